//! One attempt at one upstream, up to its commit point.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use shoal_routing::{InFlight, Tokens};
use tower::ServiceExt;

use super::tap::{Payload, Tap};
use super::ticket::Ticket;
use crate::upstream::{BoxUpstream, Event, UpstreamError, UpstreamRequest};

/// Largest answer that is not streamed.
const MAX_WHOLE: usize = 64 << 20;
/// Most payloads held back before content; more without any content is a broken upstream.
const MAX_HELD: usize = 256;
/// Pause for an upstream that said it is full without saying for how long.
const FULL_PAUSE: Duration = Duration::from_millis(250);

/// An attempt that failed before anything was given to the client.
pub(super) struct Failure {
    pub(super) error: UpstreamError,
}

impl Failure {
    /// True when the upstream asked for less traffic rather than broke.
    pub(super) fn is_throttle(&self) -> bool {
        self.error.status == 429 || self.error.code == "overloaded"
    }

    /// Returns how long the upstream wants to be left alone.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.is_throttle().then(|| self.error.retry_after.unwrap_or(FULL_PAUSE))
    }
}

/// An answer at its commit point.
pub(super) struct Begun {
    answer: Answer,
    tap: Tap,
    guard: InFlight,
}

/// An answer that the client will get: this attempt's bytes and no other's.
pub enum Answer {
    /// The whole body.
    Whole(Bytes),
    /// Payloads held so far, then the rest.
    Stream {
        /// Payloads up to the first with content.
        held: VecDeque<Bytes>,
        /// What follows.
        events: BoxStream<'static, Result<Event, UpstreamError>>,
    },
}

/// A committed request: relay the answer, feed the tap, end the ticket.
pub struct Running {
    /// The answer.
    pub answer: Answer,
    /// What was read of it.
    pub tap: Tap,
    /// Load of the upstream; end it with the answer.
    pub guard: InFlight,
    /// The request's outcome; end it with the answer.
    pub ticket: Ticket,
}

impl Begun {
    pub(super) fn into_running(self, mut ticket: Ticket) -> Running {
        ticket.first_content();
        ticket.read(&self.tap);
        Running { answer: self.answer, tap: self.tap, guard: self.guard, ticket }
    }
}

pub(super) async fn run(
    upstream: BoxUpstream,
    request: UpstreamRequest,
    mut guard: InFlight,
    first_byte: Duration,
    between_chunks: Duration,
) -> Result<Begun, Failure> {
    let stream = request.stream;
    let deadline = request.deadline;
    let mut tap = Tap::default();
    let result = async {
        let response = limited(first_byte, deadline, upstream.oneshot(request)).await??;
        let events = idle_limited(response.events, first_byte, between_chunks, deadline);
        if stream {
            until_content(events, &mut tap, &mut guard).await
        } else {
            whole(events, &mut tap, &mut guard).await
        }
    }
    .await;
    match result {
        Ok(answer) => Ok(Begun { answer, tap, guard }),
        Err(error) => {
            // A fault of the request, or a request for less traffic, says nothing against the host.
            let failure = Failure { error };
            let blameless = failure.error.status < 500 || failure.is_throttle();
            guard.finish(Instant::now(), blameless);
            Err(failure)
        }
    }
}

async fn until_content(
    mut events: BoxStream<'static, Result<Event, UpstreamError>>,
    tap: &mut Tap,
    guard: &mut InFlight,
) -> Result<Answer, UpstreamError> {
    let mut held = VecDeque::new();
    loop {
        match events.next().await {
            Some(Ok(Event::Chunk(payload))) => {
                let kind = tap.inspect(&payload);
                if kind == Payload::Error {
                    return Err(in_band(&payload));
                }
                held.push_back(payload);
                if matches!(kind, Payload::Content | Payload::Finish) {
                    guard.first_token(Instant::now());
                    return Ok(Answer::Stream { held, events });
                }
                if held.len() > MAX_HELD {
                    return Err(UpstreamError::retryable(
                        502,
                        "upstream_error",
                        "the upstream streams without content",
                    ));
                }
            }
            Some(Ok(Event::End { .. })) | None => return Err(ended_early()),
            Some(Err(error)) => return Err(error),
        }
    }
}

async fn whole(
    mut events: BoxStream<'static, Result<Event, UpstreamError>>,
    tap: &mut Tap,
    guard: &mut InFlight,
) -> Result<Answer, UpstreamError> {
    let mut parts: Vec<Bytes> = Vec::with_capacity(1);
    let mut size = 0;
    loop {
        match events.next().await {
            Some(Ok(Event::Chunk(part))) => {
                size += part.len();
                if size > MAX_WHOLE {
                    return Err(UpstreamError::retryable(
                        502,
                        "upstream_error",
                        "the upstream's answer is larger than 64 MiB",
                    ));
                }
                parts.push(part);
            }
            Some(Ok(Event::End { complete: true })) => break,
            Some(Ok(Event::End { complete: false })) | None => return Err(ended_early()),
            Some(Err(error)) => return Err(error),
        }
    }
    let body = match parts.len() {
        1 => parts.swap_remove(0),
        _ => {
            let mut joined = BytesMut::with_capacity(size);
            parts.iter().for_each(|p| joined.extend_from_slice(p));
            joined.freeze()
        }
    };
    if !tap.inspect_body(&body) {
        return Err(UpstreamError::retryable(
            502,
            "upstream_error",
            "the upstream answered something that is not JSON",
        ));
    }
    let tokens = tap.usage.map_or(0, |u| u.completion_tokens);
    guard.whole_answer(Instant::now(), Tokens(u32::try_from(tokens).unwrap_or(u32::MAX)));
    Ok(Answer::Whole(body))
}

/// Applies the two idle limits to every step of a stream, also after its commit point.
fn idle_limited(
    events: BoxStream<'static, Result<Event, UpstreamError>>,
    first_byte: Duration,
    between_chunks: Duration,
    deadline: Option<tokio::time::Instant>,
) -> BoxStream<'static, Result<Event, UpstreamError>> {
    futures_util::stream::unfold(Some((events, first_byte)), move |state| async move {
        let (mut events, limit) = state?;
        match limited(limit, deadline, events.next()).await {
            Ok(Some(item)) => Some((item, Some((events, between_chunks)))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

async fn limited<F: Future>(
    limit: Duration,
    deadline: Option<tokio::time::Instant>,
    future: F,
) -> Result<F::Output, UpstreamError> {
    let idle = tokio::time::Instant::now() + limit;
    let until = deadline.map_or(idle, |d| d.min(idle));
    tokio::time::timeout_at(until, future).await.map_err(|_| {
        let over = deadline.is_some_and(|d| d <= idle);
        let message = if over { "the request's deadline passed" } else { "the upstream stopped answering" };
        UpstreamError { retryable: !over, ..UpstreamError::new(504, "upstream_timeout", message) }
    })
}

fn ended_early() -> UpstreamError {
    UpstreamError::retryable(502, "upstream_interrupted", "the upstream ended its answer before it was whole")
}

/// Reads an error object that came inside a stream.
fn in_band(payload: &[u8]) -> UpstreamError {
    #[derive(serde::Deserialize)]
    struct Outer {
        error: serde_json::Value,
    }
    let error = serde_json::from_slice::<Outer>(payload).map(|o| o.error).unwrap_or_default();
    let status = error["code"]
        .as_u64()
        .or(error["status"].as_u64())
        .filter(|s| (400..=599).contains(s))
        .unwrap_or(502);
    let message = error["message"].as_str().unwrap_or("the upstream reported an error");
    let message: String = message.chars().filter(|c| !c.is_control()).take(500).collect();
    let retryable = status == 429 || status >= 500;
    UpstreamError { retryable, ..UpstreamError::new(status as u16, "upstream_error", message) }
}
