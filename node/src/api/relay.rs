//! A committed stream on its way to the client: payloads as they came, our framing, one honest end.
//!
//! After the commit point nothing is spliced and nothing ends cleanly without a finish reason: a cut upstream
//! becomes an in-band error and the stream closes without `[DONE]`. Dropping the body (the client went away)
//! drops the upstream's stream and the ticket, which records the cancellation.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, Stream};
use serde_json::json;
use shoal_routing::InFlight;

use super::error::ApiError;
use super::sse;
use crate::pipeline::tap::{Payload, Tap};
use crate::pipeline::ticket::Ticket;
use crate::pipeline::{Answer, Running};
use crate::upstream::{Event, UpstreamError};

/// How long the chunk with the finish reason waits for usage, so that the metadata can carry it.
const USAGE_WAIT: Duration = Duration::from_millis(50);

/// State of one relayed stream.
struct Relay {
    events: BoxStream<'static, Result<Event, UpstreamError>>,
    held: VecDeque<Bytes>,
    tap: Tap,
    /// `None` once the request has ended.
    open: Option<(Ticket, InFlight)>,
    include_usage: bool,
    /// Finish chunk that waits for usage.
    finish: Option<Bytes>,
    metadata_sent: bool,
    out: VecDeque<Bytes>,
}

/// Turns a committed stream into the frames of an SSE body.
///
/// # Panics
/// If the answer is not a stream; the caller asked for one.
pub fn frames(running: Running, include_usage: bool) -> impl Stream<Item = Bytes> + Send + 'static {
    let Running { answer, tap, guard, ticket } = running;
    let (held, events) = match answer {
        Answer::Stream { held, events } => (held, events),
        // A whole body where a stream was asked for is relayed as its one payload.
        Answer::Whole(body) => (VecDeque::from([body]), futures_util::stream::empty().boxed()),
    };
    // The held payloads are read once more as they leave, so the tap starts afresh.
    let tap = Tap { content_payloads: 0, finish_reason: None, content_seen: false, ..tap };
    let relay = Relay {
        events,
        held,
        tap,
        open: Some((ticket, guard)),
        include_usage,
        finish: None,
        metadata_sent: false,
        out: VecDeque::new(),
    };
    futures_util::stream::unfold(relay, |mut relay| async move {
        let frame = relay.next().await?;
        Some((frame, relay))
    })
}

impl Relay {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.out.pop_front() {
                return Some(frame);
            }
            self.open.as_ref()?;
            if let Some(payload) = self.held.pop_front() {
                self.payload(payload);
                continue;
            }
            let event = if self.finish.is_some() {
                match tokio::time::timeout(USAGE_WAIT, self.events.next()).await {
                    Ok(event) => event,
                    Err(_) => {
                        // The cost is unknown without usage; the rest of the metadata is not.
                        self.release_finish(true);
                        continue;
                    }
                }
            } else {
                self.events.next().await
            };
            match event {
                Some(Ok(Event::Chunk(payload))) => self.payload(payload),
                Some(Ok(Event::End { complete: true })) if self.tap.finish_reason.is_some() => {
                    self.end_well()
                }
                Some(Ok(Event::End { .. })) | None if self.tap.finish_reason.is_none() => {
                    self.end_badly(&UpstreamError::new(
                        502,
                        "upstream_interrupted",
                        "the answer was cut off: the upstream ended without a finish reason; what came so far is not whole",
                    ));
                }
                // The finish reason came: the answer is whole, whatever the connection did afterwards.
                Some(Ok(Event::End { .. })) | None => self.end_well(),
                Some(Err(_)) if self.tap.finish_reason.is_some() => self.end_well(),
                Some(Err(error)) => self.end_badly(&error),
            }
        }
    }

    fn payload(&mut self, payload: Bytes) {
        let kind = self.tap.inspect(&payload);
        if let Some((ticket, guard)) = &mut self.open {
            match kind {
                Payload::Content => guard.token(Instant::now()),
                Payload::Finish | Payload::Usage => ticket.read(&self.tap),
                Payload::Lifecycle | Payload::Error => {}
            }
        }
        match kind {
            Payload::Usage => {
                if self.include_usage {
                    self.release_finish(false);
                    self.push_with_metadata(&payload);
                } else {
                    self.release_finish(true);
                }
            }
            Payload::Finish => {
                self.release_finish(false);
                if self.include_usage && self.tap.usage.is_none() {
                    self.out.push_back(sse::frame(&payload));
                } else {
                    self.finish = Some(payload);
                    if self.tap.usage.is_some() {
                        self.release_finish(true);
                    }
                }
            }
            Payload::Error => {
                let error = UpstreamError::new(
                    502,
                    "upstream_error",
                    "the upstream reported an error in the middle of its answer",
                );
                self.end_badly(&error);
            }
            Payload::Content | Payload::Lifecycle => {
                self.release_finish(false);
                self.out.push_back(sse::frame(&payload));
            }
        }
    }

    fn release_finish(&mut self, with_metadata: bool) {
        if let Some(payload) = self.finish.take() {
            if with_metadata && !self.metadata_sent {
                self.push_with_metadata(&payload);
            } else {
                self.out.push_back(sse::frame(&payload));
            }
        }
    }

    fn push_with_metadata(&mut self, payload: &[u8]) {
        let Some((ticket, _)) = &self.open else { return };
        self.out.push_back(sse::frame(&sse::describe(payload, ticket)));
        self.metadata_sent = true;
    }

    fn end_well(&mut self) {
        self.release_finish(true);
        let Some((mut ticket, guard)) = self.open.take() else { return };
        ticket.read(&self.tap);
        if self.include_usage && !self.metadata_sent {
            // The client asked for usage and the upstream tells none: our own count, marked as such.
            let r = &ticket.record;
            let chunk = json!({
                "id": r.id, "object": "chat.completion.chunk", "created": r.started_ms / 1000, "model": r.model,
                "choices": [],
                "usage": {
                    "prompt_tokens": r.prompt_tokens,
                    "completion_tokens": r.completion_tokens,
                    "total_tokens": r.prompt_tokens + r.completion_tokens,
                },
                "shoal_usage_estimated": true,
            });
            let chunk = serde_json::to_vec(&chunk).expect("plain fields serialise");
            self.out.push_back(sse::frame(&sse::describe(&chunk, &ticket)));
        }
        self.out.push_back(sse::DONE);
        guard.finish(Instant::now(), true);
        ticket.complete();
    }

    fn end_badly(&mut self, error: &UpstreamError) {
        let Some((mut ticket, guard)) = self.open.take() else { return };
        ticket.read(&self.tap);
        metrics::counter!("shoal_streams_interrupted_total").increment(1);
        let error = ApiError { code: "upstream_interrupted".into(), ..ApiError::from(error.clone()) };
        self.out.push_back(sse::frame(&error.body()));
        guard.finish(Instant::now(), false);
        ticket.fail(502, "upstream_interrupted");
    }
}
