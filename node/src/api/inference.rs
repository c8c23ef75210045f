//! The OpenAI inference endpoints: parse, accept, run, and put the answer on the wire.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Body as HttpBody;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use shoal_routing::MAX_ATTEMPTS;

use super::auth::Caller;
use super::error::ApiError;
use super::parse::{self, Parsed};
use super::{relay, sse};
use crate::node::Node;
use crate::pipeline::{Answer, Origin, Running};
use crate::upstream::ApiPath;

/// Headers of a stream wait this long for its commit point; then they go out and failures come in-band.
const HEADER_HOLD: Duration = Duration::from_secs(10);
/// Pause between two keep-alive comments while nothing was said yet.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

type BodyBytes = Result<Bytes, BytesRejection>;

pub(super) async fn chat_completions(
    State(node): State<Arc<Node>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: BodyBytes,
) -> Response {
    serve(node, caller, ApiPath::ChatCompletions, headers, body).await
}

pub(super) async fn completions(
    State(node): State<Arc<Node>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: BodyBytes,
) -> Response {
    serve(node, caller, ApiPath::Completions, headers, body).await
}

pub(super) async fn embeddings(
    State(node): State<Arc<Node>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: BodyBytes,
) -> Response {
    serve(node, caller, ApiPath::Embeddings, headers, body).await
}

/// `POST /shoal/v1/route`: where a chat request would go, without sending it.
pub(super) async fn dry_run(
    State(node): State<Arc<Node>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: BodyBytes,
) -> Result<Json<Value>, ApiError> {
    let bytes = readable(body)?;
    let (parsed, request) = parse::parse(ApiPath::ChatCompletions, &bytes, &headers, caller.floor)?;
    let decision = node
        .pipeline
        .decide(&parsed, &request)
        .map_err(|no| crate::pipeline::no_route(&no, &node.pipeline.inventory.load().registry))?;
    Ok(Json(json!({
        "model": &*decision.model,
        "routing_reason": decision.reason.as_str(),
        "propensity": decision.propensity,
        "upstreams": decision.offers.iter().map(|o| json!({"name": &*o.name, "id": o.upstream.to_string()})).collect::<Vec<_>>(),
        "considered": decision.considered.iter().map(|(m, s)| json!({"model": &**m, "score": s})).collect::<Vec<_>>(),
        "prompt_tokens": parsed.profile.prompt_tokens.0,
        "data_class": parsed.shape.data_class.as_str(),
    })))
}

async fn serve(
    node: Arc<Node>,
    caller: Caller,
    path: ApiPath,
    headers: HeaderMap,
    body: BodyBytes,
) -> Response {
    let started = Instant::now();
    let id = node.new_request_id();
    let mut response = match begin(&node, &caller, path, &headers, body, id.clone()).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    };
    let out = response.headers_mut();
    put(out, "x-request-id", &id);
    put(out, "openai-processing-ms", &started.elapsed().as_millis().to_string());
    if let Some(theirs) = headers.get("x-request-id").filter(|v| v.len() <= 128) {
        out.insert(HeaderName::from_static("x-client-request-id"), theirs.clone());
    }
    if !out.contains_key("x-shoal-egress") {
        put(out, "x-shoal-egress", "none");
    }
    response
}

async fn begin(
    node: &Arc<Node>,
    caller: &Caller,
    path: ApiPath,
    headers: &HeaderMap,
    body: BodyBytes,
    id: Arc<str>,
) -> Result<Response, ApiError> {
    if headers.contains_key(header::CONTENT_ENCODING) {
        let message = "compressed request bodies are not accepted; send plain JSON";
        return Err(ApiError::new(415, "unsupported_encoding", message));
    }
    if node.is_draining() {
        let message = "this node is stopping; ask another node of the mesh";
        return Err(ApiError::new(503, "draining", message).after(Duration::from_secs(1)));
    }
    let bytes = readable(body)?;
    let origin =
        Origin { id, hop: 0, attempts_left: MAX_ATTEMPTS, key_id: caller.key_id.clone(), deadline: None };
    let (job, stream, include_usage, warnings) = {
        let (parsed, request) = parse::parse(path, &bytes, headers, caller.floor)?;
        let Parsed { include_usage, .. } = parsed;
        let (stream, warnings) = (parsed.shape.stream, parsed.warnings.join("; "));
        (node.pipeline.accept(parsed, &request, origin)?, stream, include_usage, warnings)
    };
    drop(bytes);
    let pipeline = node.pipeline.clone();
    let run = async move { pipeline.run(job).await };
    let mut response = if stream { streamed(Box::pin(run), include_usage).await? } else { whole(run.await?) };
    if !warnings.is_empty() {
        put(response.headers_mut(), "x-shoal-warnings", &warnings);
    }
    Ok(response)
}

fn readable(body: BodyBytes) -> Result<Bytes, ApiError> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(
            413,
            "request_too_large",
            "the request body is larger than this node accepts; send less, or raise limits.body_bytes in shoal.toml",
        ),
        _ => ApiError::new(400, "invalid_request_error", "the request body could not be read"),
    })
}

fn whole(running: Running) -> Response {
    let Running { answer, tap, guard, mut ticket } = running;
    let body = match answer {
        Answer::Whole(body) => body,
        // `run` gives a stream only to those who asked for one.
        Answer::Stream { .. } => {
            return ApiError::new(500, "internal_error", "a stream came where a whole answer was asked for")
                .into_response();
        }
    };
    ticket.read(&tap);
    let out = sse::describe(&body, &ticket);
    let mut response = out.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    describe(&mut response, &ticket.record);
    guard.finish(Instant::now(), true);
    ticket.complete();
    response
}

type Run = Pin<Box<dyn Future<Output = Result<Running, ApiError>> + Send>>;

async fn streamed(mut run: Run, include_usage: bool) -> Result<Response, ApiError> {
    match tokio::time::timeout(HEADER_HOLD, &mut run).await {
        Ok(Ok(running)) => {
            let record = running.ticket.record.clone();
            let frames = relay::frames(running, include_usage).map(Ok::<Bytes, std::convert::Infallible>);
            let mut response = event_stream(HttpBody::from_stream(frames));
            describe(&mut response, &record);
            Ok(response)
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Ok(event_stream(HttpBody::from_stream(
            late_frames(run, include_usage).map(Ok::<Bytes, std::convert::Infallible>),
        ))),
    }
}

/// Body of a stream whose headers went out before its commit point: comments until then, failures in-band.
fn late_frames(run: Run, include_usage: bool) -> impl futures_util::Stream<Item = Bytes> + Send + 'static {
    enum State {
        Waiting(Run),
        Relaying(Pin<Box<dyn futures_util::Stream<Item = Bytes> + Send>>),
        Ended,
    }
    futures_util::stream::unfold(State::Waiting(run), move |state| async move {
        match state {
            State::Waiting(mut run) => match tokio::time::timeout(KEEP_ALIVE, &mut run).await {
                Err(_) => Some((sse::KEEP_ALIVE, State::Waiting(run))),
                Ok(Err(error)) => Some((sse::frame(&error.body()), State::Ended)),
                Ok(Ok(running)) => {
                    let mut frames = Box::pin(relay::frames(running, include_usage));
                    let first = frames.next().await?;
                    Some((first, State::Relaying(frames)))
                }
            },
            State::Relaying(mut frames) => {
                let frame = frames.next().await?;
                Some((frame, State::Relaying(frames)))
            }
            State::Ended => None,
        }
    })
}

fn event_stream(body: HttpBody) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

fn describe(response: &mut Response, record: &crate::store::RequestRecord) {
    let headers = response.headers_mut();
    put(headers, "x-shoal-model", &record.model);
    put(headers, "x-shoal-upstream", &record.upstream);
    put(headers, "x-shoal-route-reason", &record.routing_reason);
    put(headers, "x-shoal-egress", &record.egress);
}

fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    // A model's name may hold characters that no header can carry; the body has it anyway.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}
