//! All engines of a device as one upstream: the request goes to the least busy one that serves its model.

use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use shoal_routing::DataClass;
use tower::ServiceExt;

use super::engine::Engine;
use super::slots::{Slot, Slots};
use crate::upstream::{ServedBy, UpstreamError, UpstreamFuture, UpstreamRequest, UpstreamResponse};

/// What a client is asked to wait when every engine with the model is busy.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The engines of one device; cheap to clone, all clones count slots together.
#[derive(Debug, Clone)]
pub struct Dispatch {
    engines: Vec<(Engine, Slots)>,
    name: String,
    id: String,
}

impl Dispatch {
    /// Puts engines together; answers are signed with the device's name and id.
    pub fn new(engines: &[Engine], name: impl Into<String>, id: impl Into<String>) -> Self {
        let engines = engines.iter().map(|engine| (engine.clone(), Slots::default())).collect();
        Self { engines, name: name.into(), id: id.into() }
    }

    /// Picks an engine and takes a slot of it.
    fn pick(&self, request: &UpstreamRequest) -> Result<(&Engine, Slot), UpstreamError> {
        let mut refusal = UpstreamError::retryable(
            404,
            "model_not_found",
            format!("{} does not serve '{}'", self.name, request.model),
        );
        let mut serving = Vec::new();
        for (engine, slots) in &self.engines {
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
            serving.push((slots.taken() * 1024 / status.slots.max(1), status.slots, engine, slots));
        }
        if !serving.is_empty() {
            let message = format!("all slots for '{}' on {} are taken", request.model, self.name);
            refusal = UpstreamError::retryable(503, "overloaded", message);
            refusal.retry_after = Some(RETRY_AFTER);
        }
        serving.sort_by_key(|(load, ..)| *load);
        let picked =
            serving.into_iter().find_map(|(_, limit, engine, slots)| Some((engine, slots.try_take(limit)?)));
        picked.ok_or(refusal)
    }
}

impl tower::Service<UpstreamRequest> for Dispatch {
    type Response = UpstreamResponse;
    type Error = UpstreamError;
    type Future = UpstreamFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: UpstreamRequest) -> UpstreamFuture {
        let (upstream, slot) = match self.pick(&request) {
            Ok((engine, slot)) => (engine.upstream.clone(), slot),
            Err(refusal) => return Box::pin(std::future::ready(Err(refusal))),
        };
        let served_by = ServedBy {
            upstream: self.name.clone(),
            upstream_id: self.id.clone(),
            model: request.model.to_string(),
        };
        Box::pin(async move {
            let answer = upstream.oneshot(request).await?;
            let events = answer.events.map(move |event| {
                let _held_until_the_events_are_dropped = &slot;
                event
            });
            Ok(UpstreamResponse { served_by, events: events.boxed() })
        })
    }
}
