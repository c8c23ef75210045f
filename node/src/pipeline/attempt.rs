//! One attempt at one upstream, up to its commit point.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use shoal_routing::{Hold, InFlight, Signals, Tokens};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::delivery::{Committed, Events, Running, Whole};
use super::flow::Flow;
use super::resume::Resume;
use super::tap::{Payload, Tap};
use super::ticket::Ticket;
use super::watch::{self, Watch};
use crate::upstream::pulse::Commitment;
use crate::upstream::{BoxUpstream, Event, UpstreamError, UpstreamRequest, UpstreamResponse};

/// Largest answer that is not streamed.
const MAX_WHOLE: usize = 64 << 20;
/// Most payloads held back before content; more without any content is a broken upstream.
const MAX_HELD: usize = 256;
/// Most bytes held back before content: a role and an empty delta take a few hundred.
const MAX_HELD_BYTES: usize = 1 << 20;
/// Pause for an upstream that said it is full without saying for how long.
const FULL_PAUSE: Duration = Duration::from_millis(250);

/// An attempt that failed before anything was given to the client.
pub(super) struct Failure {
    pub(super) error: UpstreamError,
}

impl Failure {
    /// True when the upstream asked for less traffic rather than broke.
    pub(super) fn is_throttle(&self) -> bool {
        self.error.status == 429 || self.is_full()
    }

    /// True when all its slots are taken.
    pub(super) fn is_full(&self) -> bool {
        self.error.code == "overloaded"
    }

    /// Returns how long the upstream wants to be left alone.
    pub(super) fn pause(&self) -> Option<Duration> {
        // An empty purse fills in no moment, and says nothing of the upstream to who pays from another.
        let pause = (self.error.code != "insufficient_quota").then_some(FULL_PAUSE);
        if self.is_throttle() { self.error.retry_after.or(pause) } else { None }
    }

    /// Returns the code as a label of a metric: a closed set, since the words come from other hosts.
    pub(super) fn label(&self) -> &'static str {
        const KNOWN: [&str; 8] = [
            "upstream_error",
            "upstream_interrupted",
            "upstream_timeout",
            "overloaded",
            "model_not_found",
            "no_device",
            "policy_blocked",
            "invalid_request_error",
        ];
        KNOWN.into_iter().find(|known| *known == self.error.code).unwrap_or("other")
    }
}

/// How long the silences of one answer may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Until there is content: a long prompt on a phone takes minutes, whatever lifecycle payloads come before.
    pub(super) first_byte: Duration,
    /// Between two events after that.
    pub(super) between_chunks: Duration,
    /// When the whole request gives up.
    pub(super) deadline: Option<tokio::time::Instant>,
}

impl Patience {
    async fn before_content<F: Future>(&self, future: F) -> Result<F::Output, UpstreamError> {
        self.within(self.first_byte, future).await
    }

    pub(super) async fn between<F: Future>(&self, future: F) -> Result<F::Output, UpstreamError> {
        self.within(self.between_chunks, future).await
    }

    async fn within<F: Future>(&self, limit: Duration, future: F) -> Result<F::Output, UpstreamError> {
        let silence = tokio::time::Instant::now() + limit;
        let until = self.deadline.map_or(silence, |deadline| deadline.min(silence));
        tokio::time::timeout_at(until, future).await.map_err(|_| {
            if until == silence {
                UpstreamError::retryable(504, "upstream_timeout", "the upstream stopped answering")
            } else {
                UpstreamError::new(504, "upstream_timeout", "the request's deadline passed")
            }
        })
    }
}

/// An answer at its commit point.
pub(super) struct Begun {
    answer: Answer,
    guard: InFlight,
    patience: Patience,
    watch: Watch,
    commitment: Commitment,
}

enum Answer {
    Whole(Bytes, Tap),
    /// Payloads up to the first with content, then the rest.
    Stream(VecDeque<Bytes>, Events),
    /// The first bytes of an answer to a request about sound, its media type, and the rest.
    Sound(Bytes, Arc<str>, Events),
}

impl Begun {
    /// Puts the answer together with the ticket that it will end.
    ///
    /// With `resume`, and while that can do anything, its host need not be waited for as long as one that alone can go on.
    pub(super) fn into_running(
        self,
        ticket: Ticket,
        resume: Option<Box<Resume>>,
        ending: CancellationToken,
    ) -> Running {
        let (unasked, answers) = (self.watch.unasked(), self.watch.answers());
        match self.answer {
            Answer::Whole(body, tap) => {
                Running::Whole(Whole::new(unasked.removed_from(body), &tap, self.guard, ticket))
            }
            Answer::Stream(held, events) => {
                let (patience, guard) = (self.patience, self.guard);
                let resume = match resume {
                    Some(resume) => Some(resume.holding(self.commitment)),
                    None => {
                        self.commitment.commit();
                        None
                    }
                };
                let stream = Committed::new(held, events, patience, guard, ticket, unasked, answers);
                Running::Stream(stream.resumable(resume).until(ending))
            }
            Answer::Sound(first, media, events) => {
                self.commitment.commit();
                Running::Sound(
                    Flow::new(first, media, events, self.patience, self.guard, ticket).until(ending),
                )
            }
        }
    }

    /// Takes a stream of text apart; `None` for any other answer.
    pub(super) fn into_stream(self) -> Option<(VecDeque<Bytes>, Events, InFlight)> {
        match self.answer {
            Answer::Whole(..) | Answer::Sound(..) => None,
            Answer::Stream(held, events) => Some((held, events, self.guard)),
        }
    }

    /// Makes one of a whole answer that is there already.
    pub(super) fn whole_of(body: Bytes, guard: InFlight, patience: Patience, mut watch: Watch) -> Self {
        let mut tap = Tap::default();
        tap.inspect_body(&body);
        watch.body(&body);
        Self { answer: Answer::Whole(body, tap), guard, patience, watch, commitment: Commitment::default() }
    }

    /// Returns the body of a whole answer.
    pub(super) fn whole(&self) -> Option<&Bytes> {
        match &self.answer {
            Answer::Whole(body, _) => Some(body),
            Answer::Stream(..) | Answer::Sound(..) => None,
        }
    }

    /// Returns the length of the whole answer in tokens; `None` while it still comes, and where nobody counted any.
    pub(super) fn out_tokens(&self) -> Option<f64> {
        let tokens = match &self.answer {
            Answer::Whole(_, tap) => tap.completion_tokens(),
            Answer::Stream(..) => self.watch.tokens_at_end()?,
            Answer::Sound(..) => return None,
        };
        (tokens > 0).then_some(tokens as f64)
    }

    /// Returns what was seen of the answer so far.
    pub(super) fn signals(&self) -> Signals {
        self.watch.signals()
    }

    /// Gives the answer up: its host did its part, and what it wrote is paid for. Returns the tokens it wrote.
    pub(super) fn reject(self) -> u64 {
        let tokens = match self.answer {
            Answer::Whole(_, tap) => tap.completion_tokens(),
            Answer::Stream(held, _) => held.len() as u64,
            Answer::Sound(..) => 0,
        };
        self.guard.finish(Instant::now(), true);
        tokens
    }
}

/// Asks `upstream` and waits for the commit point. Dropping the future cancels the work.
pub(super) async fn run(
    upstream: BoxUpstream,
    request: UpstreamRequest,
    mut guard: InFlight,
    patience: Patience,
    mut watch: Watch,
) -> Result<Begun, Failure> {
    let (stream, is_sound) = (request.stream, request.path.is_sound());
    let commitment = request.commitment.clone();
    let result = async {
        let response = patience.before_content(upstream.oneshot(request)).await??;
        if is_sound {
            until_heard(response, &patience, &mut guard).await
        } else if stream {
            until_commit(response.events, &patience, &mut guard, &mut watch).await
        } else {
            whole(response.events, &patience, &mut guard, &mut watch).await
        }
    }
    .await;
    match result {
        Ok(answer) => Ok(Begun { answer, guard, patience, watch, commitment }),
        Err(error) => {
            // A fault of the request, or a request for less traffic, says nothing against the host.
            let failure = Failure { error };
            if failure.error.unheard {
                guard.host_is_silent();
            }
            let blameless = failure.error.status < 500 || failure.is_throttle();
            guard.finish(Instant::now(), blameless);
            Err(failure)
        }
    }
}

/// Reads until the first content, and on to the end of the held prefix where a stronger model may be asked.
async fn until_commit(
    mut events: Events,
    patience: &Patience,
    guard: &mut InFlight,
    watch: &mut Watch,
) -> Result<Answer, UpstreamError> {
    let (mut held, mut size) = (VecDeque::new(), 0);
    let mut tap = Tap::default();
    let mut hold_until: Option<Instant> = None;
    loop {
        let event = match hold_until {
            None => patience.before_content(events.next()).await?,
            Some(until) => {
                match tokio::time::timeout_at(until.into(), patience.between(events.next())).await {
                    Ok(event) => event?,
                    // Late: what came so far has to do, and the client gets it now.
                    Err(_) => {
                        watch.give_up_holding();
                        return Ok(Answer::Stream(held, events));
                    }
                }
            }
        };
        match event {
            Some(Ok(Event::Chunk(payload))) => {
                let kind = tap.inspect(&payload);
                match kind {
                    Payload::Error => return Err(in_band(&payload)),
                    Payload::Broken => return Err(broken()),
                    Payload::Lifecycle | Payload::Content | Payload::Finish | Payload::Usage => {}
                }
                size += payload.len();
                held.push_back(payload);
                let hold =
                    watch.payload(held.back().map_or(&[][..], |p| p), tokio::time::Instant::now().into_std());
                if matches!(kind, Payload::Content | Payload::Finish) || hold_until.is_some() {
                    guard.first_token(Instant::now());
                    match hold {
                        Hold::Hold { until: Some(until) } if kind != Payload::Finish => {
                            hold_until = Some(until)
                        }
                        Hold::Hold { .. } | Hold::Commit => return Ok(Answer::Stream(held, events)),
                    }
                    continue;
                }
                if held.len() > MAX_HELD || size > MAX_HELD_BYTES {
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

/// Reads the first bytes of an answer to a request about sound.
async fn until_heard(
    response: UpstreamResponse,
    patience: &Patience,
    guard: &mut InFlight,
) -> Result<Answer, UpstreamError> {
    let UpstreamResponse { media, mut events, .. } = response;
    let media = media.unwrap_or_else(|| "application/json".into());
    loop {
        match patience.before_content(events.next()).await? {
            Some(Ok(Event::Chunk(bytes))) if bytes.is_empty() => {}
            Some(Ok(Event::Chunk(first))) => {
                // Its time is the recording's, not that of a first token, which others are measured by.
                guard.whole_answer(Instant::now(), Tokens(1));
                return Ok(Answer::Sound(first, media, events));
            }
            Some(Ok(Event::End { .. })) | None => return Err(ended_early()),
            Some(Err(error)) => return Err(error),
        }
    }
}

async fn whole(
    mut events: Events,
    patience: &Patience,
    guard: &mut InFlight,
    watch: &mut Watch,
) -> Result<Answer, UpstreamError> {
    let mut parts: Vec<Bytes> = Vec::with_capacity(1);
    let mut size = 0;
    loop {
        let event = if parts.is_empty() {
            patience.before_content(events.next()).await?
        } else {
            patience.between(events.next()).await?
        };
        match event {
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
    let mut tap = Tap::default();
    match tap.inspect_body(&body) {
        Some(Payload::Error) => return Err(in_band(&body)),
        Some(_) => {}
        None => {
            return Err(UpstreamError::retryable(
                502,
                "upstream_error",
                "the upstream answered something that is no answer",
            ));
        }
    }
    if watch.is_active() || watch::tells_confidence(&body) {
        watch.body(&body);
    }
    let tokens = tap.completion_tokens();
    guard.whole_answer(Instant::now(), Tokens(u32::try_from(tokens).unwrap_or(u32::MAX)));
    Ok(Answer::Whole(body, tap))
}

/// The error of an upstream that streams something else than JSON.
pub(super) fn broken() -> UpstreamError {
    UpstreamError::retryable(502, "upstream_error", "the upstream streams something that is no answer")
}

fn ended_early() -> UpstreamError {
    UpstreamError::retryable(502, "upstream_interrupted", "the upstream ended its answer before it was whole")
}

/// Reads an error object that came where an answer was expected. Its words are not passed on: whoever speaks HTTP
/// words its own upstream's errors, and knows there whether they quote the prompt.
pub(super) fn in_band(payload: &[u8]) -> UpstreamError {
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
    let retryable = status == 429 || status >= 500;
    let message = "the upstream reported an error instead of an answer";
    UpstreamError { retryable, ..UpstreamError::new(status as u16, "upstream_error", message) }
}
