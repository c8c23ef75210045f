//! All engines of a device as one upstream: the request goes to the least busy one that serves its model.
//!
//! Where several serve it, one that dies before its first byte of content is replaced by the next, here, since
//! nobody else knows that this host has another. With one engine nothing is held back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use shoal_routing::DataClass;
use tower::ServiceExt;

use super::engine::Engine;
use super::slots::Slot;
use crate::pipeline::tap::{Payload, Tap};
use crate::upstream::{
    BoxUpstream, Event, ServedBy, UpstreamError, UpstreamFuture, UpstreamRequest, UpstreamResponse,
};

type UpstreamResult = Result<UpstreamResponse, UpstreamError>;

/// What a client is asked to wait when every engine with the model is busy.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Events held back while an engine has said nothing yet; one that goes on beyond it is taken as it is.
const MAX_HELD: usize = 256;

/// The engines of one device; cheap to clone, all clones count slots together.
#[derive(Debug, Clone)]
pub struct Dispatch {
    engines: Vec<Engine>,
    /// Which engine is first among equally busy ones; moves on with each request.
    turn: Arc<AtomicUsize>,
    name: String,
    id: String,
}

impl Dispatch {
    /// Puts engines together; answers are signed with the device's name and id.
    pub fn new(engines: &[Engine], name: impl Into<String>, id: impl Into<String>) -> Self {
        Self { engines: engines.to_vec(), turn: Arc::default(), name: name.into(), id: id.into() }
    }

    /// Picks an engine that was not `tried`, takes a slot of it, and says whether there would be another.
    fn pick(&self, request: &UpstreamRequest, tried: &[usize]) -> Result<Picked<'_>, UpstreamError> {
        let mut refusal = UpstreamError::retryable(
            404,
            "model_not_found",
            format!("{} does not serve '{}'", self.name, request.model),
        );
        let mut serving = Vec::new();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        for at in (0..self.engines.len()).map(|i| (turn + i) % self.engines.len()) {
            let engine = &self.engines[at];
            if tried.contains(&at) {
                continue;
            }
            let status = engine.status.borrow();
            let Some(model) = status.models.iter().find(|model| *model.id == *request.model) else {
                continue;
            };
            // A router filters this already; a device checks again, because it is the last to be able to.
            if model.remote && request.data_class == DataClass::Restricted {
                let message =
                    format!("'{}' runs outside of the mesh, where this request may not go", request.model);
                refusal = UpstreamError::retryable(403, "policy_blocked", message);
                continue;
            }
            let busy = u64::from(engine.taken.taken())
                + u64::from(status.load.running)
                + u64::from(status.load.waiting);
            serving.push((busy * 1024 / u64::from(status.slots.max(1)), status.slots, at));
        }
        if !serving.is_empty() {
            let message = format!("all slots for '{}' on {} are taken", request.model, self.name);
            refusal = UpstreamError::retryable(503, "overloaded", message);
            refusal.retry_after = Some(RETRY_AFTER);
        }
        serving.sort_by_key(|(load, ..)| *load);
        let others = serving.len() > 1;
        let picked = serving.into_iter().find_map(|(_, limit, at)| {
            let engine = &self.engines[at];
            Some(Picked { at, engine, slot: engine.taken.try_take(limit)?, others })
        });
        picked.ok_or(refusal)
    }

    async fn run(self, request: UpstreamRequest) -> UpstreamResult {
        let mut tried = Vec::new();
        let mut failed = None;
        loop {
            let picked = match self.pick(&request, &tried) {
                Ok(picked) => picked,
                Err(refusal) => return Err(failed.unwrap_or(refusal)),
            };
            let upstream = picked.engine.upstream.clone();
            let begun = if picked.others || failed.is_some() {
                begun(upstream, request.clone()).await
            } else {
                upstream.oneshot(request.clone()).await
            };
            match begun {
                Ok(answer) => return Ok(self.signed(answer, picked.slot, &request)),
                Err(error) if error.retryable && picked.others => {
                    tracing::debug!(engine = picked.engine.name, code = %error.code, "trying this host's next engine");
                    tried.push(picked.at);
                    failed = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The answer as this host's; its slot is given back with the events.
    fn signed(&self, answer: UpstreamResponse, slot: Slot, request: &UpstreamRequest) -> UpstreamResponse {
        let served_by = ServedBy {
            upstream: self.name.clone(),
            upstream_id: self.id.clone(),
            model: request.model.to_string(),
        };
        let events = answer.events.map(move |event| {
            let _held_until_the_events_are_dropped = &slot;
            event
        });
        UpstreamResponse { served_by, media: answer.media, events: events.boxed() }
    }
}

/// An engine with a slot taken.
struct Picked<'a> {
    at: usize,
    engine: &'a Engine,
    slot: Slot,
    others: bool,
}

/// Runs a request up to its first content, or to the end of an answer that is not streamed.
async fn begun(upstream: BoxUpstream, request: UpstreamRequest) -> UpstreamResult {
    let is_sound = request.path.is_sound();
    let streamed = request.stream;
    let mut answer = upstream.oneshot(request).await?;
    let mut held = Vec::new();
    let mut tap = Tap::default();
    while held.len() < MAX_HELD {
        let event = match answer.events.next().await {
            Some(Ok(event)) => event,
            Some(Err(error)) => return Err(error),
            None => Event::End { complete: false },
        };
        let decided = match &event {
            Event::End { complete: true } => true,
            Event::End { complete: false } => {
                let message = "the engine ended its answer before it began";
                return Err(UpstreamError::retryable(502, "upstream_interrupted", message));
            }
            // Errors of these come as errors.
            Event::Chunk(_) if is_sound => true,
            // An error object goes on to whoever asked: the engine lives and has its reason.
            Event::Chunk(payload) if streamed => {
                !matches!(tap.inspect(payload), Payload::Lifecycle | Payload::Usage)
            }
            Event::Chunk(_) => false,
        };
        held.push(Ok(event));
        if decided {
            break;
        }
    }
    let events = stream::iter(held).chain(answer.events).boxed();
    Ok(UpstreamResponse { events, ..answer })
}

impl tower::Service<UpstreamRequest> for Dispatch {
    type Response = UpstreamResponse;
    type Error = UpstreamError;
    type Future = UpstreamFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: UpstreamRequest) -> UpstreamFuture {
        Box::pin(self.clone().run(request))
    }
}
