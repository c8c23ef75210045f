//! An engine: something on this host, or next to it, that runs models.
//!
//! What it can do changes while it runs (a model is pulled, the server is stopped), so its status is a watched
//! value and its upstream is not: an engine that is down simply serves no model. The embedded engine fills in
//! its status once; an HTTP engine has a task that probes it and withdraws its models when it goes away.

use std::task::{Context, Poll};
use std::time::Duration;

use reqwest::{Client, Url};
use secrecy::SecretString;
use shoal_proto::ModelInfo;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::detect::{self, Cache, EngineKind, EngineLoad, ProbeError};
use super::slots::Slots;
use crate::tasks::{self, TaskKind};
use crate::upstream::openai_http::{IdleTimeouts, OpenAiHttp, Settings};
use crate::upstream::{
    BoxUpstream, UpstreamError, UpstreamFuture, UpstreamRequest, UpstreamResponse, http_client,
    ollama::Ollama,
};

/// How often an engine is asked what it serves: a model that was just pulled shows within the 2 s that a
/// newcomer would wait, and a probe costs a local engine well under a millisecond.
pub const REFRESH: Duration = Duration::from_secs(2);

/// Probes in a row that may time out before the models are withdrawn. A refused connection counts at once, but a
/// busy machine answers late without being gone.
const TOLERATED_TIMEOUTS: u32 = 3;

/// What an engine can do now.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EngineStatus {
    /// What it is; `None` as long as nothing was recognised there.
    pub kind: Option<EngineKind>,
    /// Models it serves, by name; empty while it is down.
    pub models: Vec<ModelInfo>,
    /// Requests it runs at once; 0 while it is down.
    pub slots: u32,
    /// What it runs beside the requests from here, where it says so.
    pub load: EngineLoad,
    /// Why it serves nothing, as a sentence for a person.
    pub problem: Option<String>,
}

/// A source of inference; cheap to clone.
#[derive(Clone)]
pub struct Engine {
    /// Name for people: its URL, or "embedded".
    pub name: String,
    /// What it can do, kept fresh.
    pub status: watch::Receiver<EngineStatus>,
    /// Runs an inference on it.
    pub upstream: BoxUpstream,
    /// Requests from here that it runs.
    pub taken: Slots,
}

impl Engine {
    /// Makes an engine that runs nothing yet.
    pub fn new(
        name: impl Into<String>,
        status: watch::Receiver<EngineStatus>,
        upstream: BoxUpstream,
    ) -> Self {
        Self { name: name.into(), status, upstream, taken: Slots::default() }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Whether an engine that does not answer is worth telling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// The user named it: say so when it is down.
    Yes,
    /// It was only looked for: silence is normal.
    No,
}

/// An HTTP engine to be watched.
#[derive(Debug, Clone)]
pub struct HttpEngine {
    /// Base URL, with or without `/v1`.
    pub base: Url,
    /// Bearer key, if it wants one.
    pub key: Option<SecretString>,
    /// Whether its absence is reported.
    pub expected: Expected,
    /// Time between probes; [`REFRESH`] unless a test is in a hurry.
    pub refresh: Duration,
    /// Longest silences during an inference.
    pub timeouts: IdleTimeouts,
}

impl HttpEngine {
    /// Describes an engine that the user named.
    pub fn named(base: Url, key: Option<SecretString>) -> Self {
        Self { base, key, expected: Expected::Yes, refresh: REFRESH, timeouts: IdleTimeouts::default() }
    }

    /// Describes the places on this host where engines listen by default, except those already named.
    pub fn loopback(named: &[Url]) -> Vec<Self> {
        let taken = |base: &Url| {
            let same = |url: &&Url| {
                let local = matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
                local && url.port_or_known_default() == base.port_or_known_default()
            };
            named.iter().any(|url| same(&url))
        };
        detect::loopback_places()
            .filter(|base| !taken(base))
            .map(|base| Self { expected: Expected::No, ..Self::named(base, None) })
            .collect()
    }

    /// Starts the task that probes the engine until `shutdown`, and returns the engine.
    ///
    /// The first probe runs at once; await [`watch::Receiver::changed`] on the status for its result.
    ///
    /// # Errors
    /// No HTTP client could be built.
    pub fn start(self, shutdown: CancellationToken) -> Result<Engine, http_client::Error> {
        let client = http_client::build(http_client::Reach::of(&self.base))?;
        let (report, status) = watch::channel(EngineStatus::default());
        let name = self.base.as_str().trim_end_matches('/').to_owned();
        let settings = Settings {
            base: self.base.clone(),
            key: self.key.clone(),
            name: name.clone(),
            id: name.clone(),
            timeouts: self.timeouts,
        };
        let upstream = ByKind {
            status: status.clone(),
            openai: OpenAiHttp::new(client.clone(), settings.clone()),
            ollama: Ollama::new(client.clone(), settings),
        };
        let engine = Engine::new(name, status, BoxUpstream::new(upstream));
        let taken = engine.taken.clone();
        tasks::spawn(TaskKind::EngineProbe, async move {
            shutdown.run_until_cancelled(self.watch(&client, &report, &taken)).await;
        });
        Ok(engine)
    }

    /// Probes for ever; each change lands in `report`.
    async fn watch(&self, client: &Client, report: &watch::Sender<EngineStatus>, taken: &Slots) {
        let mut tick = tokio::time::interval(self.refresh);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut cache = Cache::default();
        let mut timeouts = 0;
        loop {
            tick.tick().await;
            let before = taken.taken();
            let status = match detect::probe(client, &self.base, self.key.as_ref(), &mut cache).await {
                Ok(found) => {
                    timeouts = 0;
                    let detect::Found { kind, models, slots, load } = found;
                    // A request of ours that began or ended meanwhile must not pass for somebody else's.
                    let load = load.without(before.max(taken.taken()));
                    EngineStatus { kind: Some(kind), models, slots, load, problem: None }
                }
                Err(ProbeError::Timeout)
                    if timeouts + 1 < TOLERATED_TIMEOUTS && report.borrow().slots > 0 =>
                {
                    timeouts += 1;
                    continue;
                }
                Err(error) => {
                    EngineStatus { problem: Some(self.sentence(&error)), ..EngineStatus::default() }
                }
            };
            self.publish(report, status);
        }
    }

    fn publish(&self, report: &watch::Sender<EngineStatus>, status: EngineStatus) {
        let mut before = EngineStatus::default();
        report.send_if_modified(|known| {
            let changed = *known != status;
            before = std::mem::replace(known, status.clone());
            changed
        });
        let settled = |status: &EngineStatus| EngineStatus {
            load: EngineLoad::default(),
            models: status.models.iter().map(|m| ModelInfo { resident: None, ..m.clone() }).collect(),
            ..status.clone()
        };
        // A load that comes and goes is news for routers, not for people.
        if settled(&before) == settled(&status) {
            return;
        }
        let url = self.base.as_str();
        match &status.problem {
            None => {
                let kind = status.kind.map_or("unknown", EngineKind::as_str);
                tracing::info!(
                    url,
                    kind,
                    models = status.models.len(),
                    slots = status.slots,
                    "engine serves"
                );
            }
            Some(problem) if self.expected == Expected::Yes => {
                tracing::warn!(url, problem, "engine serves nothing")
            }
            Some(problem) if before.slots > 0 => tracing::info!(url, problem, "engine is gone"),
            Some(problem) => tracing::trace!(url, problem, "no engine"),
        }
    }

    fn sentence(&self, error: &ProbeError) -> String {
        format!("{} {error}", self.base.as_str().trim_end_matches('/'))
    }
}

/// Speaks to a server in the best words that it knows, by what it was recognised as last.
#[derive(Debug, Clone)]
struct ByKind {
    status: watch::Receiver<EngineStatus>,
    openai: OpenAiHttp,
    ollama: Ollama,
}

impl tower::Service<UpstreamRequest> for ByKind {
    type Response = UpstreamResponse;
    type Error = UpstreamError;
    type Future = UpstreamFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: UpstreamRequest) -> UpstreamFuture {
        match self.status.borrow().kind {
            Some(EngineKind::Ollama) => self.ollama.call(request),
            _ => self.openai.call(request),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::Router;
    use axum::http::StatusCode;
    use axum::response::IntoResponse;
    use axum::routing::any;

    use super::*;
    use crate::device::testing::{self, PATIENCE};

    #[tokio::test]
    async fn what_came_from_here_is_not_told_as_somebody_elses() {
        let models = serde_json::json!({"data": [{"id": "m", "owned_by": "vllm"}]});
        let router = Router::new().route("/v1/models", any(move || async move { axum::Json(models) })).route(
            "/metrics",
            any(|| async { "vllm:num_requests_running 3\nvllm:num_requests_waiting 1\n" }),
        );
        let shutdown = CancellationToken::new();
        let mut engine = hurried(testing::serve(router).await).start(shutdown.clone()).unwrap();
        wait_for(&mut engine, "all are others'", |status| status.load.running == 3).await;
        let ours: Vec<_> = (0..2).filter_map(|_| engine.taken.try_take(9)).collect();
        wait_for(&mut engine, "one is another's", |status| status.load.running == 1).await;
        assert_eq!(engine.status.borrow().load.waiting, 1);
        drop(ours);
        wait_for(&mut engine, "all are others' again", |status| status.load.running == 3).await;
        shutdown.cancel();
    }

    fn hurried(base: Url) -> HttpEngine {
        HttpEngine { refresh: Duration::from_millis(10), ..HttpEngine::named(base, None) }
    }

    async fn wait_for(engine: &mut Engine, what: &str, wanted: impl FnMut(&EngineStatus) -> bool) {
        let waiting = engine.status.wait_for(wanted);
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never {what}")).unwrap();
    }

    #[tokio::test]
    async fn models_come_and_go_with_the_engine() {
        let up = Arc::new(AtomicBool::new(false));
        let switch = up.clone();
        let models = r#"{"data":[{"id":"m","owned_by":"vllm","max_model_len":4096}]}"#;
        let answer = move || {
            let up = switch.load(Ordering::SeqCst);
            async move { if up { models.into_response() } else { StatusCode::BAD_GATEWAY.into_response() } }
        };
        let base = testing::serve(Router::new().fallback(any(answer))).await;
        let shutdown = CancellationToken::new();
        let mut engine = hurried(base).start(shutdown.clone()).unwrap();
        wait_for(&mut engine, "down", |status| status.problem.is_some() && status.models.is_empty()).await;
        up.store(true, Ordering::SeqCst);
        wait_for(&mut engine, "up", |status| status.slots > 0 && status.models.len() == 1).await;
        assert_eq!(engine.status.borrow().kind, Some(EngineKind::Vllm));
        up.store(false, Ordering::SeqCst);
        wait_for(&mut engine, "down again", |status| status.slots == 0 && status.models.is_empty()).await;
        shutdown.cancel();
        let ended = async { while engine.status.changed().await.is_ok() {} };
        tokio::time::timeout(PATIENCE, ended).await.expect("the probing task ends at shutdown");
    }

    #[tokio::test]
    async fn an_engine_that_is_not_there_says_so() {
        let base = testing::nowhere().await;
        let mut engine = hurried(base.clone()).start(CancellationToken::new()).unwrap();
        wait_for(&mut engine, "down", |status| status.problem.is_some()).await;
        let problem = engine.status.borrow().problem.clone().unwrap();
        assert!(problem.starts_with(base.as_str().trim_end_matches('/')), "{problem}");
        assert!(problem.contains("is the engine running?"), "{problem}");
    }

    #[test]
    fn places_that_were_named_are_not_looked_at_twice() {
        let all = HttpEngine::loopback(&[]).len();
        let named = ["http://localhost:11434/v1".parse().unwrap(), "http://10.0.0.1:8080".parse().unwrap()];
        let rest = HttpEngine::loopback(&named);
        assert_eq!(rest.len(), all - 1);
        assert!(
            rest.iter().all(|engine| engine.base.port() != Some(11434) && engine.expected == Expected::No)
        );
    }
}
