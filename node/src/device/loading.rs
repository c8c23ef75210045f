//! An engine that is still being made: downloading and loading a model takes longer than a start may.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;
use tower::ServiceExt;

use super::engine::{Engine, EngineStatus};
use crate::tasks::{self, TaskKind};
use crate::upstream::{BoxUpstream, UpstreamError, UpstreamFuture, UpstreamRequest};

/// An engine that is still being made: it serves no model until `make` is done, and then is what was made.
pub(super) fn engine(
    name: &str,
    make: impl Future<Output = anyhow::Result<Engine>> + Send + 'static,
) -> Engine {
    let (report, status) = watch::channel(EngineStatus::default());
    let made: Arc<OnceLock<BoxUpstream>> = Arc::default();
    let slot = made.clone();
    tasks::spawn(TaskKind::EngineProbe, async move {
        match make.await {
            Ok(engine) => {
                // Set once, here.
                let _ = slot.set(engine.upstream.clone());
                let mut inner = engine.status.clone();
                loop {
                    report.send_replace(inner.borrow_and_update().clone());
                    if inner.changed().await.is_err() {
                        break;
                    }
                }
                report.closed().await;
            }
            Err(error) => {
                tracing::error!("the embedded engine serves nothing: {error:#}");
                report.send_modify(|s| s.problem = Some(format!("{error:#}")));
                report.closed().await;
            }
        }
    });
    Engine::new(name, status, BoxUpstream::new(Loading(made)))
}

#[derive(Clone)]
struct Loading(Arc<OnceLock<BoxUpstream>>);

impl tower::Service<UpstreamRequest> for Loading {
    type Response = crate::upstream::UpstreamResponse;
    type Error = UpstreamError;
    type Future = UpstreamFuture;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), UpstreamError>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: UpstreamRequest) -> UpstreamFuture {
        match self.0.get() {
            Some(upstream) => Box::pin(upstream.clone().oneshot(request)),
            None => Box::pin(std::future::ready(Err(UpstreamError::retryable(
                503,
                "overloaded",
                "the model is still loading",
            )))),
        }
    }
}
