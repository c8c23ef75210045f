//! `Idempotency-Key`: a request that is sent twice runs once, and both get the same bytes.
//!
//! It works on what goes over the wire, so every API has it alike: the first request with a key runs in a task of its
//! own, its answer is recorded while it is told, and whoever comes with the same key reads the recording from its
//! start. So a retry costs nothing a second time, neither money nor a tool that runs twice. When the last reader
//! goes, the work goes on for a moment, since a client that names its request may be about to come back over a new
//! connection, and is cancelled then. Failures are not kept: a retry after one is meant to run anew.
//!
//! Answers are in the memory of this node alone and of one API key each: a retry that reaches another node, or comes
//! after a restart, runs anew.

mod ledger;
mod recording;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body::Body as _;

use self::ledger::{Claim, Lease, Ledger, Place};
use self::recording::Reader;
use super::auth::Caller;
use super::error::ApiError;
use super::form::{Form, is_form};
use super::front::Front;
use super::inference::readable;
use crate::tasks::{self, TaskKind};

/// The header; clients of OpenAI and Stripe know it by this name.
const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that an answer is another request's.
const REPLAY: HeaderName = HeaderName::from_static("x-shoal-idempotent-replay");
/// Headers beside the body that change how a request may be answered.
const MEANING: [&str; 4] =
    ["x-shoal-data-class", "x-session-id", "x-conversation-id", "x-claude-code-session-id"];
/// Longest key, bytes; a UUID has 36.
const MAX_KEY: usize = 255;
/// What a client is asked to wait when too many keyed requests are under way.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How many answers are kept, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdempotencySettings {
    /// How long an answer is kept after its end.
    pub keep: Duration,
    /// Most answers kept or under way; 0 = the header is ignored.
    pub entries: usize,
    /// Most bytes of all answers together; one answer may take a quarter of it.
    pub bytes: usize,
    /// How long the work goes on when nobody reads it any more; 0 = it is cancelled at once.
    pub grace: Duration,
}

impl Default for IdempotencySettings {
    /// Ten minutes, 1,000 answers, 64 MiB: longer than any client library retries. Five seconds of grace, in which
    /// they come back after a lost connection.
    fn default() -> Self {
        Self { keep: Duration::from_secs(600), entries: 1000, bytes: 64 << 20, grace: Duration::from_secs(5) }
    }
}

/// The answers that this node can give again; cheap to clone.
#[derive(Debug, Clone)]
pub struct Answers(Ledger);

impl Answers {
    /// Makes an empty memory.
    pub fn new(settings: IdempotencySettings) -> Self {
        Self(Ledger::new(settings))
    }
}

/// Whether an answer that began well ended with an error in its stream; travels in a response's extensions.
#[derive(Debug, Clone, Default)]
pub(super) struct Verdict(Arc<AtomicBool>);

impl Verdict {
    /// Notes that the answer failed.
    pub(super) fn failed(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_failed(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Runs a request, or gives the answer of an earlier one with the same key.
pub(super) async fn answer_once(State(front): State<Front>, request: Request, next: Next) -> Response {
    if request.method() != Method::POST || front.answers.0.is_off() {
        return next.run(request).await;
    }
    let Some(name) = request.headers().get(&KEY) else { return next.run(request).await };
    let answered = match name_of(name) {
        Ok(name) => keyed(&front, name, request, next).await,
        Err(error) => Err(error),
    };
    answered.unwrap_or_else(IntoResponse::into_response)
}

fn name_of(value: &HeaderValue) -> Result<String, ApiError> {
    let text = value.to_str().ok().map(str::trim).filter(|text| (1..=MAX_KEY).contains(&text.len()));
    text.map(str::to_owned).ok_or_else(|| {
        let message =
            format!("the header 'Idempotency-Key' must be 1 to {MAX_KEY} printable ASCII characters");
        ApiError::invalid("Idempotency-Key", message)
    })
}

async fn keyed(front: &Front, name: String, request: Request, next: Next) -> Result<Response, ApiError> {
    let (ledger, write_idle) = (&front.answers.0, front.pipeline.limits.sockets.write_idle);
    let (parts, body) = request.into_parts();
    let body = Bytes::from_request(Request::from_parts(parts.clone(), body), &()).await;
    let body = readable(body)?;
    // Without a caller nobody was let in; the key check stands before this.
    let owner = parts.extensions.get::<Caller>().map(|caller| caller.key_id.clone()).unwrap_or_default();
    let place = Place { owner, name };
    let path = parts.uri.path_and_query().map_or(parts.uri.path(), |path| path.as_str());
    let hash = digest(path, &parts.headers, &body);
    match ledger.claim(place, hash) {
        Claim::Run(lease, reader) => {
            let request = Request::from_parts(parts, Body::from(body));
            tasks::spawn(TaskKind::Replay, run(lease, request, next));
            reader.respond(write_idle).await
        }
        Claim::Share(reader) => {
            let state = if reader.has_ended() { "kept" } else { "running" };
            metrics::counter!("shoal_idempotent_replays_total", "answer" => state).increment(1);
            let mut response = replay(reader, write_idle).await?;
            let theirs = parts.headers.get("x-request-id").filter(|value| value.len() <= 128);
            let name = HeaderName::from_static("x-client-request-id");
            response.headers_mut().remove(&name);
            if let Some(theirs) = theirs {
                response.headers_mut().insert(name, theirs.clone());
            }
            Ok(response)
        }
        Claim::Different => Err(ApiError {
            param: Some("Idempotency-Key".into()),
            ..ApiError::new(
                422,
                "idempotency_key_reused",
                "this Idempotency-Key was used for another request before; send a new key with a new request, and the same body with the same key",
            )
        }),
        Claim::TooLarge => Err(ApiError::new(
            409,
            "idempotency_in_progress",
            "the request with this Idempotency-Key is still running, and its answer is too large to be given twice; wait for the first one",
        )
        .after(RETRY_AFTER)),
        Claim::Full => {
            metrics::counter!("shoal_shed_total").increment(1);
            let message = "too many requests with an Idempotency-Key are running; try again, or raise idempotency.entries";
            Err(ApiError::new(503, "overloaded", message).after(RETRY_AFTER))
        }
    }
}

async fn replay(reader: Reader, write_idle: Duration) -> Result<Response, ApiError> {
    let mut response = reader.respond(write_idle).await?;
    response.headers_mut().insert(REPLAY, HeaderValue::from_static("true"));
    Ok(response)
}

/// Runs the request to its end, or until nobody reads; then keeps the answer for its time if it was good.
async fn run(lease: Lease, request: Request, next: Next) {
    let recorded = tokio::select! {
        biased;
        () = lease.deserted() => None,
        is_good = record(&lease, request, next) => Some(is_good),
    };
    match recorded {
        Some(true) => lease.keep().await,
        // Dropped with everything under it: that cancels the upstream's work.
        Some(false) | None => drop(lease),
    }
}

/// Records the answer piece by piece; true when it was good.
async fn record(lease: &Lease, request: Request, next: Next) -> bool {
    let response = next.run(request).await;
    let verdict = response.extensions().get::<Verdict>().cloned().unwrap_or_default();
    let (mut head, body) = response.into_parts();
    if let Some(length) = body.size_hint().exact() {
        head.headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    let is_success = head.status.is_success();
    lease.head(head);
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(piece) => lease.piece(piece).await,
            Err(error) => {
                tracing::debug!(%error, "an answer with an Idempotency-Key broke off");
                return false;
            }
        }
    }
    lease.end();
    is_success && !verdict.is_failed()
}

/// Hash of all that makes two requests the same one.
fn digest(path: &str, headers: &HeaderMap, body: &[u8]) -> [u8; 32] {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut part = |bytes: &[u8]| {
        context.update(&(bytes.len() as u64).to_be_bytes());
        context.update(bytes);
    };
    part(path.as_bytes());
    for name in MEANING {
        for value in headers.get_all(name) {
            part(name.as_bytes());
            part(value.as_bytes());
        }
    }
    // A client library that sends a form again draws a new boundary for it.
    let media =
        headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).filter(|media| is_form(media));
    match media.map(|media| Form::parse(media, body)) {
        Some(Ok(form)) => {
            for field in &form.parts {
                part(field.name.as_bytes());
                part(if field.is_file { b"file" } else { b"text" });
                part(field.content);
            }
        }
        Some(Err(_)) | None => part(body),
    }
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}
