//! An engine whose answers never end: it writes as fast as it is read, so that whoever stops reading is what stops it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Json, Router,
    body::Body,
    http::header,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::stream;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::tasks::Running;

/// Text from which pieces are cut at random, so that no two answers are alike and none repeats itself.
const TEXT: usize = 1 << 20;
/// Length of a piece: few events for many bytes, since what is tested is not how fast they are made.
const PIECE: usize = 8 << 10;

/// Stands for the text of a piece.
const MARK: &str = "TEXT";
/// Requests that it takes at once.
const SLOTS: usize = 1024;

/// The running engine; stops when dropped.
#[derive(Debug)]
pub(super) struct Firehose {
    addr: SocketAddr,
    open: Arc<AtomicUsize>,
    _task: Running,
}

/// An answer under way.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Firehose {
    /// Serves one model on a free port of loopback.
    pub(super) async fn start(model: &'static str, seed: u64) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (addr, open) = (listener.local_addr()?, Arc::new(AtomicUsize::new(0)));
        let mut rng = StdRng::seed_from_u64(seed);
        let text: Arc<str> =
            (0..TEXT).map(|_| char::from(rng.random_range(b'a'..=b'z'))).collect::<String>().into();
        let counted = Arc::clone(&open);
        // As llama.cpp tells it: each slot takes one request, and a router sends no more than that at once.
        let about = json!({"total_slots": SLOTS, "default_generation_settings": {"n_ctx": 8192}, "model_path": model});
        let list =
            json!({"object": "list", "data": [{"id": model, "object": "model", "owned_by": "firehose"}]});
        let app = Router::new()
            .route("/v1/models", get(async move || Json(list)))
            .route("/props", get(async move || Json(about)))
            .route(
                "/v1/chat/completions",
                post(async move |Json(body): Json<Value>| {
                    answer(model, body["stream"] == true, Arc::clone(&text), Arc::clone(&counted))
                }),
            );
        let task = Running::spawn("firehose", async move {
            if let Err(error) = axum::serve(listener, app).await {
                tracing::error!(%error, "the engine stopped");
            }
        });
        Ok(Self { addr, open, _task: task })
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Answers under way.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

fn answer(model: &str, streams: bool, text: Arc<str>, open: Arc<AtomicUsize>) -> Response {
    if !streams {
        let message = json!({"role": "assistant", "content": "yes"});
        let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
        return Json(json!({"id": "a", "object": "chat.completion", "created": 1, "model": model, "choices": [choice]}))
            .into_response();
    }
    open.fetch_add(1, Ordering::Relaxed);
    // Put together as text: making JSON of megabytes would take the processor from those who are to be unharmed.
    let event = json!({"id": "a", "object": "chat.completion.chunk", "created": 1, "model": model,
        "choices": [{"index": 0, "delta": {"content": MARK}, "finish_reason": null}]});
    let event = format!("data: {event}\n\n");
    let (head, tail) = event.split_once(MARK).unwrap_or_default();
    let state = (Open(open), StdRng::from_rng(&mut rand::rng()), head.to_owned(), tail.to_owned());
    let pieces = stream::unfold(state, move |(guard, mut rng, head, tail)| {
        let at = rng.random_range(0..TEXT - PIECE);
        let piece = Bytes::from([&head, &text[at..at + PIECE], &tail].concat());
        async move {
            // A reader that takes everything at once must not keep the thread.
            tokio::task::yield_now().await;
            Some((Ok::<_, std::io::Error>(piece), (guard, rng, head, tail)))
        }
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(pieces)).into_response()
}
