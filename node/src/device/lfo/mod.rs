//! A phone that runs LFO's app, as it is: an engine behind `lfo+http://` (its bridge) or `lfo+tcp://` (the app).
//!
//! Nothing is installed on the phone. It runs one request at a time and answers whole, so a client that streams
//! gets its content in one chunk. The phone's own judgement of its answer (confidence, a wish for a stronger
//! model) travels beside the answer in the field [`PHONE_FIELD`], where the node that decides about escalation
//! reads it. A phone sleeps and changes its network: a refused connection withdraws its model at once, and a
//! probe every few seconds brings it back.

mod exchange;
mod place;
mod translate;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::stream;
use shoal_proto::ModelInfo;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use self::exchange::{Broken, Line};
use self::translate::{NoReply, Question, Reply, Writer};
use super::detect::EngineKind;
use super::engine::{Engine, EngineStatus, REFRESH};
use crate::tasks::{self, TaskKind};
use crate::upstream::{
    ApiPath, BoxUpstream, Event, ServedBy, UpstreamError, UpstreamFuture, UpstreamRequest, UpstreamResponse,
    http_client,
};

pub use place::{NotAPlace, Place, Wire};
pub use translate::PHONE_FIELD;

/// Longest wait for a whole answer: 512 tokens on a slow phone take a minute and a half.
pub const ANSWER_WAIT: Duration = Duration::from_secs(120);

/// Answers at once; LFO's app has one context.
const SLOTS: u32 = 1;

/// When a client may try again while the phone is busy.
const BUSY_RETRY: Duration = Duration::from_secs(1);

/// Probes in a row without an answer before the model is withdrawn; a refused connection counts at once.
const TOLERATED_SILENCES: u32 = 2;

/// A phone to be watched.
#[derive(Debug, Clone)]
pub struct Phone {
    /// Where it is.
    pub place: Place,
    /// Time between probes; [`REFRESH`] unless a test is in a hurry.
    pub refresh: Duration,
    /// Longest wait for an answer; [`ANSWER_WAIT`] unless a test is in a hurry.
    pub answer_wait: Duration,
}

impl Phone {
    /// Describes a phone with the usual waits.
    pub fn new(place: Place) -> Self {
        Self { place, refresh: REFRESH, answer_wait: ANSWER_WAIT }
    }

    /// Starts the task that looks after the phone until `shutdown`, and returns it as an engine.
    ///
    /// # Errors
    /// No HTTP client could be built.
    pub fn start(self, shutdown: CancellationToken) -> Result<Engine, http_client::Error> {
        let line = Line::new(&self.place)?;
        let name = self.place.name();
        let shared = Arc::new(Shared {
            line,
            name: name.clone(),
            model: self.place.model.clone(),
            answer_wait: self.answer_wait,
            slot: Semaphore::new(SLOTS as usize),
            lost: Notify::new(),
        });
        let (report, status) = watch::channel(EngineStatus::default());
        let watched = shared.clone();
        tasks::spawn(TaskKind::EngineProbe, async move {
            shutdown.run_until_cancelled(self.watch(&watched, &report)).await;
        });
        Ok(Engine::new(name, status, BoxUpstream::new(Lfo { shared })))
    }

    /// Looks after the phone for ever; each change lands in `report`.
    async fn watch(&self, shared: &Shared, report: &watch::Sender<EngineStatus>) {
        let mut tick = tokio::time::interval(self.refresh);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silences = 0;
        loop {
            tokio::select! {
                // An exchange found out first; the next tick asks again.
                () = shared.lost.notified() => {
                    publish(report, shared, down(shared, Broken::Refused));
                    continue;
                }
                _ = tick.tick() => {}
            }
            // The app serves one connection after the other: a probe would only wait behind the answer.
            if shared.slot.available_permits() == 0 {
                continue;
            }
            let status = match shared.line.probe().await {
                Ok(()) => {
                    silences = 0;
                    self.up()
                }
                Err(Broken::Silent) if silences + 1 < TOLERATED_SILENCES && report.borrow().slots > 0 => {
                    silences += 1;
                    continue;
                }
                Err(broken) => down(shared, broken),
            };
            publish(report, shared, status);
        }
    }

    fn up(&self) -> EngineStatus {
        let model = ModelInfo {
            id: self.place.model.clone(),
            engine: EngineKind::Lfo.as_str().to_owned(),
            context_length: self.place.context,
            tools: Some(true),
            vision: Some(false),
            audio: Some(false),
            embeddings: Some(false),
            transcription: Some(false),
            speech: Some(false),
            ..ModelInfo::default()
        };
        EngineStatus {
            kind: Some(EngineKind::Lfo),
            models: vec![model],
            slots: SLOTS,
            ..EngineStatus::default()
        }
    }
}

fn down(shared: &Shared, broken: Broken) -> EngineStatus {
    let problem = format!("{} {}", shared.name, broken.sentence());
    EngineStatus { problem: Some(problem), ..EngineStatus::default() }
}

fn publish(report: &watch::Sender<EngineStatus>, shared: &Shared, status: EngineStatus) {
    let changed = report.send_if_modified(|before| {
        let changed = *before != status;
        if changed {
            before.clone_from(&status);
        }
        changed
    });
    match &status.problem {
        _ if !changed => {}
        None => tracing::info!(phone = shared.name, model = shared.model, "phone serves"),
        Some(problem) => tracing::warn!(problem, "phone serves nothing"),
    }
}

struct Shared {
    line: Line,
    name: String,
    model: String,
    answer_wait: Duration,
    slot: Semaphore,
    lost: Notify,
}

/// The phone as an upstream.
#[derive(Clone)]
struct Lfo {
    shared: Arc<Shared>,
}

impl tower::Service<UpstreamRequest> for Lfo {
    type Response = UpstreamResponse;
    type Error = UpstreamError;
    type Future = UpstreamFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: UpstreamRequest) -> UpstreamFuture {
        Box::pin(answer(self.shared.clone(), request))
    }
}

async fn answer(shared: Arc<Shared>, request: UpstreamRequest) -> Result<UpstreamResponse, UpstreamError> {
    if *request.model != *shared.model {
        let message = format!("{} does not serve '{}'", shared.name, request.model);
        return Err(UpstreamError::retryable(404, "model_not_found", message));
    }
    if request.path != ApiPath::ChatCompletions {
        let message = format!("{} serves chats only", shared.name);
        return Err(UpstreamError::retryable(501, "unsupported", message));
    }
    let question = Question::read(&request.body)?;
    let Ok(_slot) = shared.slot.try_acquire() else {
        let message = format!("{} is busy with another request", shared.name);
        let busy = UpstreamError::retryable(503, "overloaded", message);
        return Err(UpstreamError { retry_after: Some(BUSY_RETRY), ..busy });
    };
    let silence = Instant::now() + shared.answer_wait;
    let until = request.deadline.map_or(silence, |deadline| deadline.min(silence));
    let exchange = tokio::time::timeout_at(until, shared.line.exchange(&question.line)).await;
    let answered = match exchange {
        Ok(answered) => answered.map_err(|broken| {
            if broken == Broken::Refused {
                shared.lost.notify_one();
            }
            broken_off(&shared, broken)
        })?,
        Err(_) if until < silence => {
            return Err(UpstreamError::new(
                504,
                "upstream_timeout",
                "the answer did not finish in the time allowed",
            ));
        }
        Err(_) => return Err(broken_off(&shared, Broken::Silent)),
    };
    let reply = Reply::read(&answered).map_err(|no_reply| unusable(&shared, no_reply))?;
    let writer = Writer::new(&request, &question, reply, SystemTime::now());
    let parts = if request.stream { writer.chunks() } else { vec![writer.body()] };
    let events = parts.into_iter().map(Event::Chunk).chain([Event::End { complete: true }]).map(Ok);
    let served_by = ServedBy {
        upstream: shared.name.clone(),
        upstream_id: shared.name.clone(),
        model: shared.model.clone(),
    };
    Ok(UpstreamResponse { served_by, media: None, events: stream::iter(events.collect::<Vec<_>>()).boxed() })
}

fn broken_off(shared: &Shared, broken: Broken) -> UpstreamError {
    let message = format!("{} {}", shared.name, broken.sentence());
    match broken {
        Broken::Refused => UpstreamError::retryable(503, "upstream_unreachable", message),
        Broken::Silent => UpstreamError::retryable(504, "upstream_timeout", message),
        Broken::Cut | Broken::TooLong | Broken::Status(_) | Broken::ShoalNode => {
            UpstreamError::retryable(502, "upstream_error", message)
        }
    }
}

fn unusable(shared: &Shared, no_reply: NoReply) -> UpstreamError {
    let what = match no_reply {
        NoReply::Malformed => "answered something that LFO's app does not write",
        NoReply::Refused => "reported an error; the app's screen says which",
        NoReply::Empty { cloud_handoff: false } => "answered with neither text nor calls",
        NoReply::Empty { cloud_handoff: true } => "gave no answer and asks for a stronger model",
    };
    UpstreamError::retryable(502, "upstream_error", format!("{} {what}", shared.name))
}
