//! One generating request from body to answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{ConnectInfo, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use super::{
    Kind, Shared, answer, azure,
    body::{self, Cut, Framing, Outgoing},
    conn::KillSwitch,
    error,
    faults::{self, Last, Parts},
    log::{End, Entry, Guard, Phase},
    ollama,
    render::Envelope,
    request::{Path, Refusal, Request},
};
use crate::{script::Script, words::fnv1a};

type Connection = ConnectInfo<KillSwitch>;

pub(super) async fn chat(state: State<Arc<Shared>>, connection: Connection, body: Bytes) -> Response {
    infer(&state, connection, Path::Chat, &body).await
}

pub(super) async fn completion(state: State<Arc<Shared>>, connection: Connection, body: Bytes) -> Response {
    infer(&state, connection, Path::Completion, &body).await
}

pub(super) async fn ollama_chat(state: State<Arc<Shared>>, connection: Connection, body: Bytes) -> Response {
    infer(&state, connection, Path::Ollama, &body).await
}

pub(super) async fn infer(shared: &Arc<Shared>, connection: Connection, path: Path, body: &[u8]) -> Response {
    let parsed = if path == Path::Ollama { ollama::parse(body) } else { Request::parse(path, body) };
    let parsed = parsed.and_then(|request| {
        let script = shared
            .options
            .script
            .for_prompt(&request.prompt)
            .map_err(|error| Refusal(error.to_string(), Some("messages")))?;
        Ok((request, script))
    });
    let (request, script) = match parsed {
        Ok((request, script)) => (request, in_the_mood(shared, script)),
        Err(Refusal(message, param)) => {
            shared.log.open(entry(path, None, None)).end(End::Refused, 400);
            return error(StatusCode::BAD_REQUEST, &message, "invalid_request_error", param);
        }
    };
    let mut entry = entry(path, Some(&request), script.tag.clone());
    entry.prompt = script.show.then(|| request.prompt.clone());
    let guard = shared.log.open(entry);
    if !shared.options.models.contains(&request.model) {
        let message = format!("The model '{}' does not exist.", request.model);
        return refuse(guard, error(StatusCode::NOT_FOUND, &message, "model_not_found", Some("model")));
    }
    serve(shared, connection, request, script, guard).await
}

/// The script as it is now: slowed down, refusing everybody, or spared since the fault has hit often enough.
fn in_the_mood(shared: &Shared, mut script: Script) -> Script {
    if let (Some(times), Some(tag)) = (script.times, &script.tag)
        && shared.options.ledger.count(tag) >= times
    {
        script = script.spared();
    }
    let slower = shared.mood.slower.load(Ordering::Relaxed).max(1);
    script.ttft *= slower;
    script.itl *= slower;
    match shared.mood.refuses.load(Ordering::Relaxed) {
        0 => {}
        status => script.status = Some(status),
    }
    script
}

async fn serve(
    shared: &Arc<Shared>,
    ConnectInfo(connection): Connection,
    request: Request,
    script: Script,
    mut guard: Guard,
) -> Response {
    let slot = Arc::clone(&shared.slots).acquire_owned().await.expect("the semaphore is never closed");
    guard.phase(Phase::Prefill);
    if script.drop {
        guard.end(End::Fault, 0);
        connection.kill();
        return StatusCode::NO_CONTENT.into_response();
    }
    let first = Instant::now() + script.ttft;
    if let Some(status) = script.status {
        tokio::time::sleep_until(first).await;
        return refuse(guard, scripted_status(status, script.retry_after));
    }
    if script.html {
        tokio::time::sleep_until(first).await;
        guard.end(End::Fault, 200);
        return ([(header::CONTENT_TYPE, "text/html")], "<html><body>Sign in</body></html>").into_response();
    }
    let choices = answer::plan(&request, &script, nonce(shared, guard.seq()));
    let id = match request.path {
        Path::Chat | Path::Ollama => format!("chatcmpl-{}", guard.seq()),
        _ => format!("cmpl-{}", guard.seq()),
    };
    let envelope = Envelope { request: &request, script: &script, id, created: shared.started_unix };
    if script.hang == Some(0) {
        return std::future::pending().await;
    }
    if let Some(fault) = script.fault {
        tokio::time::sleep_until(first).await;
        return raw(connection, fault, script.fault_at, &envelope, &choices, guard).await;
    }
    if request.stream {
        let lines = request.path == Path::Ollama;
        let mut frames = if lines { ollama::frames(&envelope, &choices) } else { envelope.frames(&choices) };
        if shared.options.kind == Kind::Azure {
            frames.insert(0, azure::filter_report());
        }
        let framing = if lines { Framing::Lines } else { Framing::Data };
        tokio::time::sleep_until(first).await;
        let out = Outgoing { script, frames: frames.into_iter(), guard, _slot: slot, first, framing };
        let kind = if lines { "application/x-ndjson" } else { "text/event-stream" };
        let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")];
        return (headers, Body::from_stream(body::events(out))).into_response();
    }
    let longest = choices.iter().map(|choice| choice.pieces.len()).max().unwrap_or(0);
    tokio::time::sleep_until(first).await;
    guard.phase(Phase::Decode);
    if script.hang.is_some() {
        return std::future::pending().await;
    }
    tokio::time::sleep_until(first + body::pace(script.itl, longest.saturating_sub(1))).await;
    let body = match request.path {
        Path::Ollama => ollama::body(&envelope, &choices),
        _ => envelope.body(&choices),
    };
    whole(&script, guard, body, super::render::tokens_of(&choices))
}

/// Writes a scripted fault past the HTTP server.
async fn raw(
    connection: KillSwitch,
    fault: &str,
    at: usize,
    envelope: &Envelope<'_>,
    choices: &[answer::Choice],
    mut guard: Guard,
) -> Response {
    let (mut before, mut after, mut tokens) = (Vec::new(), Vec::new(), 0);
    for frame in envelope.frames(choices) {
        let is_before = tokens < at;
        tokens += frame.tokens as usize;
        if is_before { before.push(frame.payload) } else { after.push(frame.payload) }
    }
    let whole = envelope.body(choices).to_string();
    let plan = faults::plan(fault, &Parts { stream: envelope.request.stream, before, after, whole });
    guard.phase(if at > 0 { Phase::Decode } else { Phase::Prefill });
    guard.sent(at as u64);
    // A client that goes while this is written is what some faults are about.
    let _ = connection.write(&plan.pieces).await;
    if plan.last == Last::Hang {
        // Dropped, and so logged as `client_gone`, when the client goes.
        return std::future::pending().await;
    }
    guard.end(End::Fault, 200);
    match plan.last {
        Last::Fin => connection.finish(),
        Last::Reset => connection.reset(),
        Last::Hang => {}
    }
    StatusCode::NO_CONTENT.into_response()
}

pub(super) fn whole(script: &Script, mut guard: Guard, body: serde_json::Value, tokens: usize) -> Response {
    if script.garbage {
        guard.end(End::Fault, 200);
        return ([(header::CONTENT_TYPE, "application/json")], "{\"choices\": [garbage").into_response();
    }
    if script.cut.is_some() || script.inband.is_some() {
        guard.end(End::Fault, 200);
        let text = body.to_string();
        let half = Bytes::copy_from_slice(&text.as_bytes()[..text.len() / 2]);
        let cut = stream::once(async {
            body::flushed().await;
            Err(Cut)
        });
        let half_then_cut = stream::once(std::future::ready(Ok(half))).chain(cut);
        let length = HeaderValue::from(text.len());
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (header::CONTENT_LENGTH, length),
        ];
        return (headers, Body::from_stream(half_then_cut)).into_response();
    }
    guard.sent(tokens as u64);
    guard.end(End::Completed, 200);
    Json(body).into_response()
}

fn scripted_status(status: u16, retry_after: Option<u64>) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let code = match status.as_u16() {
        401 => "invalid_api_key",
        404 => "model_not_found",
        429 => "rate_limit_exceeded",
        503 => "overloaded",
        _ => "scripted",
    };
    let mut response = error(status, "scripted error", code, None);
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

pub(super) fn refuse(mut guard: Guard, response: Response) -> Response {
    guard.end(End::Refused, response.status().as_u16());
    response
}

/// Differs between two attempts at one stub, and (by its models and start) between two stubs.
pub(super) fn nonce(shared: &Shared, seq: u64) -> u16 {
    let salt = fnv1a(format!("{}{:p}{}", std::process::id(), Arc::as_ptr(&shared.log), seq).as_bytes());
    (salt ^ (salt >> 16) ^ (salt >> 32)) as u16
}

pub(super) fn entry(path: Path, request: Option<&Request>, tag: Option<String>) -> Entry {
    Entry {
        model: request.map(|request| request.model.clone()).unwrap_or_default(),
        stream: request.is_some_and(|request| request.stream),
        tag,
        fields: request.map(|request| request.fields.clone()).unwrap_or_default(),
        ..blank(path.as_str())
    }
}

/// The entry of a request that just came.
pub(super) fn blank(path: &'static str) -> Entry {
    Entry {
        seq: 0,
        path,
        model: String::new(),
        stream: false,
        tag: None,
        prompt: None,
        fields: Vec::new(),
        phase: Phase::Queued,
        end: End::Open,
        tokens_sent: 0,
        status: 0,
    }
}
