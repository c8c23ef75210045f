//! A committed stream on its way to the client: payloads as they came, our framing, one honest end.
//!
//! After the commit point nothing is spliced and nothing ends cleanly without a finish reason: a cut upstream
//! becomes an in-band error and the stream closes without `[DONE]`. Dropping the body (the client went away)
//! drops the upstream's stream and the ticket, which records the cancellation.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::Stream;
use serde_json::json;

use super::body::{Body, Edit};
use super::error::ApiError;
use super::sse;
use super::voice::Voice;
use crate::pipeline::tap::Payload;
use crate::pipeline::{Committed, Step};
use crate::upstream::{ApiPath, UpstreamError};

/// How long the chunk with the finish reason waits for usage, so that the metadata can carry it.
const USAGE_WAIT: Duration = Duration::from_millis(50);

/// What the client asked of its stream.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// Which API it speaks.
    pub path: ApiPath,
    /// Usage is shown.
    pub include_usage: bool,
    /// Answers to one prompt (`n`); each has a finish reason.
    pub answers: u64,
}

/// State of one relayed stream.
struct Relay {
    /// `None` once the request has ended.
    stream: Option<Committed>,
    asked: Asked,
    voice: Box<dyn Voice>,
    /// Finish chunk that waits for usage.
    finish: Option<Bytes>,
    metadata_sent: bool,
    out: VecDeque<Bytes>,
}

/// Turns a committed stream into the frames of a body in the client's API.
pub fn frames(
    stream: Committed,
    asked: Asked,
    voice: Box<dyn Voice>,
) -> impl Stream<Item = Bytes> + Send + 'static {
    let relay = Relay {
        stream: Some(stream),
        asked,
        voice,
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
            let stream = self.stream.as_mut()?;
            let step = if self.finish.is_some() {
                match tokio::time::timeout(USAGE_WAIT, stream.next()).await {
                    Ok(step) => step,
                    Err(_) => {
                        // The cost is unknown without usage; the rest of the metadata is not.
                        self.release_finish(self.all_finished());
                        continue;
                    }
                }
            } else {
                stream.next().await
            };
            match step {
                Step::Payload(kind, payload) => self.payload(kind, payload),
                Step::End(Ok(())) => self.end_well(),
                Step::End(Err(error)) => self.end_badly(error),
            }
        }
    }

    fn payload(&mut self, kind: Payload, payload: Bytes) {
        let Some(tap) = self.stream.as_ref().map(Committed::tap) else { return };
        let (usage_here, usage_known) = (tap.usage_here, tap.usage.is_some());
        let payload = if usage_here && !self.asked.include_usage { without_usage(payload) } else { payload };
        if kind == Payload::Usage {
            self.release_finish(!self.asked.include_usage && self.all_finished());
            if self.asked.include_usage {
                self.push(&payload, true);
            }
            return;
        }
        self.release_finish(false);
        match (kind, self.asked.include_usage) {
            (Payload::Finish, true) => self.push(&payload, usage_here && self.all_finished()),
            (Payload::Finish, false) if usage_known && self.all_finished() => self.push(&payload, true),
            (Payload::Finish, false) => self.finish = Some(payload),
            _ => self.push(&payload, false),
        }
    }

    /// True when every answer that was asked for has its finish reason: no later chunk will carry one.
    fn all_finished(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.tap().all_finished(self.asked.answers))
    }

    fn release_finish(&mut self, with_metadata: bool) {
        if let Some(payload) = self.finish.take() {
            self.push(&payload, with_metadata);
        }
    }

    fn push(&mut self, payload: &[u8], with_metadata: bool) {
        match &self.stream {
            Some(stream) if with_metadata && !self.metadata_sent => {
                self.metadata_sent = true;
                self.voice.payload(&sse::describe(payload, stream.ticket()), &mut self.out);
            }
            _ => self.voice.payload(payload, &mut self.out),
        }
    }

    fn end_well(&mut self) {
        self.release_finish(true);
        if self.asked.include_usage && !self.metadata_sent {
            self.push_own_usage();
        }
        if let Some(stream) = self.stream.take() {
            stream.complete();
            self.voice.end(&mut self.out);
        }
    }

    /// Tells the usage in a chunk of our own: the client asked for one, and the upstream sent none.
    fn push_own_usage(&mut self) {
        let Some(stream) = &self.stream else { return };
        let r = &stream.ticket().record;
        let object = match self.asked.path {
            ApiPath::Completions => "text_completion",
            _ => "chat.completion.chunk",
        };
        let mut chunk = json!({
            "id": r.id, "object": object, "created": r.started_ms / 1000, "model": r.model,
            "choices": [],
            "usage": {
                "prompt_tokens": r.prompt_tokens,
                "completion_tokens": r.completion_tokens,
                "total_tokens": r.prompt_tokens + r.completion_tokens,
            },
        });
        if stream.tap().usage.is_none() {
            chunk["shoal_usage_estimated"] = true.into();
        }
        let chunk = serde_json::to_vec(&chunk).expect("plain fields serialise");
        self.push(&chunk, true);
    }

    fn end_badly(&mut self, error: UpstreamError) {
        self.release_finish(false);
        if let Some(stream) = self.stream.take() {
            stream.fail("upstream_interrupted");
            let error = ApiError { code: "upstream_interrupted".into(), ..ApiError::from(error) };
            self.voice.fail(&error, &mut self.out);
        }
    }
}

/// Takes the usage out of a chunk that carries more than it.
fn without_usage(payload: Bytes) -> Bytes {
    match Body::parse(&payload) {
        Ok(body) => body.rebuild(&[("usage", Edit::Remove)]),
        Err(_) => payload,
    }
}
