//! A scriptable OpenAI-compatible server that stands in for a device or a provider in tests.
//!
//! It behaves as the real servers do where a router can tell the difference (errors, streams, logprobs, usage,
//! cancellation), and misbehaves on request ([`crate::script`]). `GET /stub/log` says what it saw.

mod answer;
mod anthropic;
mod audio;
mod azure;
mod body;
mod conn;
mod embeddings;
pub mod faults;
mod gemini;
mod infer;
mod inventory;
mod lfo;
mod log;
mod ollama;
mod render;
mod request;
mod responses;
mod vendor;

use std::{
    net::SocketAddr,
    sync::Arc,
    sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use clap::ValueEnum;
use serde_json::json;
use tokio::{net::TcpListener, sync::Semaphore, task::JoinHandle};

pub use self::log::{Counts, End, Entry, Log, Phase, Snapshot};
use crate::script::Script;

/// Largest request body taken; the same order as real servers allow for images.
const MAX_BODY_BYTES: usize = 32 << 20;

/// Which server the stub imitates where they differ: health and discovery paths, model listings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Nothing but the OpenAI paths.
    #[default]
    Openai,
    /// Ollama.
    Ollama,
    /// llama.cpp's server.
    #[value(name = "llama.cpp", alias = "llamacpp")]
    LlamaCpp,
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// LM Studio.
    Lmstudio,
    /// OpenAI's API as Azure hosts it, a provider.
    Azure,
    /// Anthropic's Messages API, a provider.
    Anthropic,
    /// Google's Gemini API, a provider.
    Gemini,
    /// The HTTP bridge of LFO's phone host.
    LfoHttp,
    /// The socket of LFO's app on a phone.
    LfoTcp,
}

impl Kind {
    fn is_phone(self) -> bool {
        matches!(self, Kind::LfoHttp | Kind::LfoTcp)
    }
}

/// How a stub is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Models it serves; requests for others get 404.
    pub models: Vec<String>,
    /// Requests served at once; more wait in a queue, as in llama.cpp. A phone serves one.
    pub slots: usize,
    /// Context length it announces, in tokens.
    pub context: u32,
    /// Which server it imitates.
    pub kind: Kind,
    /// Pace and faults of requests that carry no marker.
    pub script: Script,
    /// Bearer key that requests must carry, if any.
    pub key: Option<String>,
    /// Digest of the weights that it tells in its list of models, if any.
    pub digest: Option<String>,
    /// Counts requests by tag, for faults that hit only the first (`times`); shared by stubs that count together.
    pub ledger: Arc<faults::Ledger>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            models: vec!["stub".to_owned()],
            slots: 4,
            context: 8192,
            kind: Kind::Openai,
            script: Script::default(),
            key: None,
            digest: None,
            ledger: Arc::default(),
        }
    }
}

/// What a test may change while a stub runs.
#[derive(Debug, Default)]
struct Mood {
    /// Times by which the scripted pace is lengthened; 0 means 1.
    slower: AtomicU32,
    /// HTTP status with which every request is refused; 0 means none.
    refuses: AtomicU16,
}

/// What every handler shares.
struct Shared {
    options: Options,
    slots: Arc<Semaphore>,
    log: Arc<Log>,
    started_unix: u64,
    /// Connections accepted, those that read this log among them.
    connections: Arc<AtomicU64>,
    mood: Arc<Mood>,
}

/// A running stub; dropping it stops it and breaks its connections.
#[derive(Debug)]
pub struct Stub {
    address: SocketAddr,
    kind: Kind,
    log: Arc<Log>,
    server: JoinHandle<()>,
    kill: tokio_util::sync::CancellationToken,
    mood: Arc<Mood>,
}

impl Stub {
    /// Binds and serves in the background.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start(options: Options) -> std::io::Result<Self> {
        let listener = TcpListener::bind(options.listen).await?;
        let address = listener.local_addr()?;
        let kill = tokio_util::sync::CancellationToken::new();
        let connections = Arc::new(AtomicU64::new(0));
        let log = Arc::new(Log::default());
        let started_unix = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .as_secs();
        let mood = Arc::new(Mood::default());
        let shared = Arc::new(Shared {
            mood: Arc::clone(&mood),
            slots: Arc::new(Semaphore::new(if options.kind.is_phone() { 1 } else { options.slots.max(1) })),
            log: Arc::clone(&log),
            started_unix,
            connections: Arc::clone(&connections),
            options,
        });
        let kind = shared.options.kind;
        if kind == Kind::LfoTcp {
            let app = lfo::app(listener, shared, kill.clone());
            return Ok(Self {
                address,
                kind,
                log,
                server: crate::tasks::spawn_named("stub", app),
                kill,
                mood,
            });
        }
        let listener = conn::KillableListener::new(listener, kill.clone(), connections);
        let app = router(shared).into_make_service_with_connect_info::<conn::KillSwitch>();
        let server = crate::tasks::spawn_named("stub", async move {
            if let Err(error) = axum::serve(listener, app).await {
                tracing::error!(%error, "stub stopped");
            }
        });
        Ok(Self { address, kind, log, server, kill, mood })
    }

    /// URL as a router takes it: without a trailing slash and without `/v1`, `lfo+http` or `lfo+tcp` for a phone.
    pub fn url(&self) -> String {
        let scheme = match self.kind {
            Kind::LfoHttp => "lfo+http",
            Kind::LfoTcp => "lfo+tcp",
            _ => "http",
        };
        format!("{scheme}://{}", self.address)
    }

    /// Address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lengthens the scripted times of every later request by this factor.
    pub fn slow_down(&self, factor: u32) {
        self.mood.slower.store(factor, Ordering::Relaxed);
    }

    /// Refuses every later request with this HTTP status, or no longer.
    pub fn refuse(&self, status: Option<u16>) {
        self.mood.refuses.store(status.unwrap_or(0), Ordering::Relaxed);
    }

    /// What it saw so far.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Waits until the server ends, which it does only when its listener fails.
    pub async fn run(mut self) {
        // A panic in the accept loop ends the wait as well; there is nothing to hand on.
        let _ = (&mut self.server).await;
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.server.abort();
        self.kill.cancel();
    }
}

fn router(shared: Arc<Shared>) -> Router {
    let api = match shared.options.kind {
        Kind::Gemini => gemini::router(),
        Kind::Anthropic => anthropic::router(),
        Kind::Azure => azure::router(),
        kind if kind.is_phone() => lfo::bridge(),
        kind => Router::new()
            .route("/v1/chat/completions", post(infer::chat))
            .route("/v1/completions", post(infer::completion))
            .route("/v1/responses", post(responses::create))
            .route("/v1/embeddings", post(embeddings::make))
            .merge(audio::router())
            .merge(inventory::router(kind)),
    };
    api.layer(middleware::from_fn_with_state(Arc::clone(&shared), require_key))
        .route("/stub/log", get(read_log).delete(clear_log))
        .fallback(unknown_path)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(shared)
}

async fn require_key(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let Some(key) = &shared.options.key else {
        return next.run(request).await;
    };
    let (header, prefix) = match shared.options.kind {
        Kind::Gemini => ("x-goog-api-key", ""),
        // The vendor's newer clients write it as OpenAI does; both are taken.
        Kind::Anthropic if request.headers().contains_key("x-api-key") => ("x-api-key", ""),
        Kind::Azure => ("api-key", ""),
        _ => ("authorization", "Bearer "),
    };
    let given = request.headers().get(header).and_then(|value| value.to_str().ok());
    if given.and_then(|value| value.strip_prefix(prefix)) == Some(key) {
        return next.run(request).await;
    }
    match shared.options.kind {
        Kind::Gemini => {
            let message = "API key not valid. Please pass a valid API key.";
            gemini::error(StatusCode::BAD_REQUEST, message, Some("API_KEY_INVALID"), None)
        }
        Kind::Anthropic => anthropic::error(StatusCode::UNAUTHORIZED, "invalid x-api-key", None),
        _ => error(StatusCode::UNAUTHORIZED, "Incorrect API key provided.", "invalid_api_key", None),
    }
}

async fn read_log(State(shared): State<Arc<Shared>>) -> Response {
    let mut log = json!(shared.log.snapshot());
    log["connections"] = shared.connections.load(Ordering::Relaxed).into();
    Json(log).into_response()
}

async fn clear_log(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.log.clear();
    StatusCode::NO_CONTENT
}

async fn unknown_path() -> Response {
    error(StatusCode::NOT_FOUND, "Unknown path.", "not_found", None)
}

/// An error body as OpenAI writes it.
fn error(status: StatusCode, message: &str, code: &str, param: Option<&str>) -> Response {
    let kind = match status.as_u16() {
        401 => "authentication_error",
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    };
    let body = json!({"error": {"message": message, "type": kind, "param": param, "code": code}});
    (status, Json(body)).into_response()
}
