//! The inference endpoints: parse, accept, run, and put the answer on the wire in the API's own voice.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body as HttpBody;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, FromRef, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use shoal_routing::{DataClass, Decision, MAX_ATTEMPTS};

use super::auth::Caller;
use super::error::ApiError;
use super::front::Front;
use super::idempotency::Verdict;
use super::parse::{self, Floor};
use super::relay::{self, Asked};
use super::sse;
use super::unread::{Pieces, Unread};
use super::voice::{Noting, OpenAi, Voice};
use crate::pipeline::{Failed, Job, Origin, Purpose, Running, Whole};
use crate::store::{Considered, ProfileRecord, Removed};
use crate::upstream::ApiPath;

/// Headers of a stream wait this long for its commit point; then they go out and failures come in-band.
const HEADER_HOLD: Duration = Duration::from_secs(10);
/// Pause between two keep-alive comments while nothing was said yet.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A body, or why axum could not read it.
pub(super) type BodyBytes = Result<Bytes, BytesRejection>;

/// The routes of inference, with and without `/v1`, since clients differ in what they append to a base URL.
pub(super) fn routes<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    Front: FromRef<S>,
{
    let mut router = Router::new();
    for prefix in ["/v1", ""] {
        router = router
            .route(&format!("{prefix}/chat/completions"), post(chat_completions))
            .route(&format!("{prefix}/completions"), post(completions))
            .route(&format!("{prefix}/embeddings"), post(embeddings));
    }
    router.route("/shoal/v1/route", post(dry_run))
}

async fn chat_completions(
    State(front): State<Front>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: BodyBytes,
) -> Response {
    serve(&front, &caller, &headers, plain(ApiPath::ChatCompletions, body)).await
}

async fn completions(
    State(front): State<Front>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: BodyBytes,
) -> Response {
    serve(&front, &caller, &headers, plain(ApiPath::Completions, body)).await
}

async fn embeddings(
    State(front): State<Front>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: BodyBytes,
) -> Response {
    serve(&front, &caller, &headers, plain(ApiPath::Embeddings, body)).await
}

/// A request on its way to the pipeline: OpenAI's JSON, and who tells the answer.
pub(super) struct Spoken {
    /// Which of OpenAI's APIs the body speaks.
    pub path: ApiPath,
    /// OpenAI's JSON, as it came or translated.
    pub body: Bytes,
    /// Says the answer.
    pub voice: Box<dyn Voice>,
    /// Highest class of the earlier answers that the body goes on from; the request is never of a lower one.
    pub past: DataClass,
    /// What the translation left out, a sentence each.
    pub warnings: Vec<String>,
}

/// A request in OpenAI's own words.
fn plain(path: ApiPath, body: BodyBytes) -> Result<Spoken, ApiError> {
    Ok(Spoken {
        path,
        body: readable(body)?,
        voice: Box::new(OpenAi),
        past: DataClass::Public,
        warnings: Vec::new(),
    })
}

/// `POST /shoal/v1/route`: where a chat request would go, without sending it.
async fn dry_run(
    State(front): State<Front>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: BodyBytes,
) -> Result<Json<Value>, ApiError> {
    let bytes = readable(body)?;
    let is_provider = |name: &str| front.pipeline.is_provider(name);
    let naming = front.pipeline.naming(&is_provider);
    let (mut parsed, request) =
        parse::parse(ApiPath::ChatCompletions, &bytes, &headers, caller.floor, naming)?;
    let origin = origin(&caller, front.new_request_id());
    let decision = front
        .pipeline
        .preview(&mut parsed, &request, &origin)
        .map_err(|no| crate::pipeline::no_route(no, &front.pipeline.inventory.load(), Instant::now()))?;
    Ok(Json(json!({
        "model": &*decision.model,
        "routing_reason": decision.reason.under(decision.rule.as_deref()),
        "rule": decision.rule.as_deref(),
        "fallback": decision.fallback_models.iter().map(|other| &*other.model).collect::<Vec<_>>(),
        "propensity": decision.propensity,
        "upstreams": decision.offers.iter().map(|o| json!({"name": &*o.name, "id": o.upstream.to_string()})).collect::<Vec<_>>(),
        "explored": decision.explored,
        "considered": decision.considered.iter().map(Considered::from).collect::<Vec<_>>(),
        "removed": decision.removed.iter().map(Removed::from).collect::<Vec<_>>(),
        "profile": ProfileRecord::new(&parsed.profile, decision.strange),
        "may_escalate_to": stronger(&decision),
        "prompt_tokens": parsed.profile.prompt_tokens.0,
        "data_class": parsed.shape.data_class.as_str(),
    })))
}

/// Whom the chosen model's answer may be passed up to, and at what price.
fn stronger(decision: &Decision) -> Vec<Value> {
    let cloud = decision.offers.iter().all(|offer| offer.is_cloud());
    shoal_routing::ladder(decision, &decision.arm, cloud)
        .rungs
        .iter()
        .map(|rung| {
            json!({"model": &*rung.model, "cloud": rung.cloud, "quality": rung.quality.of_request.value(),
                   "cost_usd": rung.cost.as_usd(), "latency_ms": rung.latency_ms})
        })
        .collect()
}

/// Runs a request and answers it.
pub(super) async fn serve(
    front: &Front,
    caller: &Caller,
    headers: &HeaderMap,
    spoken: Result<Spoken, ApiError>,
) -> Response {
    let started = Instant::now();
    let id = front.new_request_id();
    let accepted = spoken.and_then(|spoken| accept(front, caller, headers, spoken, id.clone()));
    let mut response = match accepted {
        Ok(accepted) => accepted.answer(front).await,
        Err(error) => refused(error.into_response(), "none"),
    };
    sign(&mut response, headers, &id, started);
    response
}

/// Says which request an answer is to, and how long its headers took.
pub(super) fn sign(response: &mut Response, headers: &HeaderMap, id: &str, started: Instant) {
    let out = response.headers_mut();
    put(out, "x-request-id", id);
    put(out, "openai-processing-ms", &started.elapsed().as_millis().to_string());
    if let Some(theirs) = headers.get("x-request-id").filter(|v| v.len() <= 128) {
        out.insert(HeaderName::from_static("x-client-request-id"), theirs.clone());
    }
}

/// A request with its ticket, and how its answer is to look.
struct Accepted {
    job: Job,
    stream: bool,
    asked: Asked,
    voice: Box<dyn Voice>,
    warnings: String,
}

fn accept(
    front: &Front,
    caller: &Caller,
    headers: &HeaderMap,
    spoken: Spoken,
    id: Arc<str>,
) -> Result<Accepted, ApiError> {
    let Spoken { path, body, mut voice, past, mut warnings } = spoken;
    refuse_compressed(headers)?;
    let origin = origin(caller, id.clone());
    let is_provider = |name: &str| front.pipeline.is_provider(name);
    let floor = Floor { data_class: caller.floor.data_class.raised_to(past), ..caller.floor };
    let (parsed, mut request) =
        parse::parse(path, &body, headers, floor, front.pipeline.naming(&is_provider))?;
    request.max_local_tokens = front.pipeline.limits.max_local_tokens;
    let asked = Asked { path, include_usage: parsed.include_usage, answers: parsed.shape.answers };
    let prompt_tokens = parsed.profile.prompt_tokens;
    let stream = parsed.shape.stream;
    warnings.extend_from_slice(&parsed.warnings);
    let job = front.pipeline.accept(parsed, &request, origin)?;
    // Only now have the rules said how far the request may travel.
    voice.accepted(&id, prompt_tokens, job.travels_as());
    Ok(Accepted { job, stream, asked, voice, warnings: warnings.join("; ") })
}

/// A request of a client, just come.
pub(super) fn origin(caller: &Caller, id: Arc<str>) -> Origin {
    Origin {
        id,
        hop: 0,
        attempts_left: MAX_ATTEMPTS,
        key_id: caller.key_id.clone(),
        deadline: None,
        purpose: Purpose::Client,
    }
}

impl Accepted {
    async fn answer(self, front: &Front) -> Response {
        let Self { job, stream, asked, voice, warnings } = self;
        let verdict = Verdict::default();
        let mut voice: Box<dyn Voice> = Box::new(Noting { voice, verdict: verdict.clone() });
        let pipeline = front.pipeline.clone();
        let run: Run = Box::pin(async move { pipeline.run(job).await });
        let answered = if stream {
            streamed(run, asked, voice, front.pipeline.limits.sockets.write_idle).await
        } else {
            run.await.map(|running| match running {
                Running::Whole(answer) => whole(answer, voice.as_mut()),
                // `run` gives a stream only to those who asked for one.
                Running::Stream(_) | Running::Sound(_) => {
                    ApiError::new(500, "internal_error", "a stream came unasked").into_response()
                }
            })
        };
        let mut response = answered
            .unwrap_or_else(|failed| refused(ApiError::from(failed.error).into_response(), &failed.egress));
        response.extensions_mut().insert(verdict);
        if !warnings.is_empty() {
            put(response.headers_mut(), "x-shoal-warnings", &warnings);
        }
        response
    }
}

/// Refuses a compressed body, which would only look like broken JSON.
pub(super) fn refuse_compressed(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.contains_key(header::CONTENT_ENCODING) {
        let message = "compressed request bodies are not accepted; send them plain";
        return Err(ApiError::new(415, "unsupported_encoding", message));
    }
    Ok(())
}

/// Reads a body, or says why it cannot be read.
pub(super) fn readable(body: BodyBytes) -> Result<Bytes, ApiError> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(
            413,
            "request_too_large",
            "the request body is larger than this node accepts; send less, or raise limits.body_bytes in shoal.toml",
        ),
        _ => ApiError::new(400, "invalid_request_error", "the request body could not be read"),
    })
}

fn whole(answer: Whole, voice: &mut dyn Voice) -> Response {
    let out = match voice.whole(sse::describe(&answer.body, &answer.ticket)) {
        Ok(out) => out,
        Err(error) => {
            let egress = answer.ticket.egress().text();
            answer.fail(&error.code);
            return refused(error.into_response(), &egress);
        }
    };
    let mut response = out.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    describe(&mut response, &answer.ticket.record);
    answer.complete();
    response
}

type Run = Pin<Box<dyn Future<Output = Result<Running, Failed>> + Send>>;
type Frames = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

async fn streamed(
    mut run: Run,
    asked: Asked,
    voice: Box<dyn Voice>,
    write_idle: Duration,
) -> Result<Response, Failed> {
    match tokio::time::timeout(HEADER_HOLD, &mut run).await {
        Ok(Ok(running)) => {
            let mut record = running.ticket().record.clone();
            // The record learns of it with the first payload, which is only read after the headers.
            record.egress = running.ticket().egress().text();
            let stream_type = voice.stream_type();
            let mut response = event_stream(stream_type, relayed(running, asked, voice), write_idle);
            describe(&mut response, &record);
            Ok(response)
        }
        Ok(Err(failed)) => Err(failed),
        // What is unknown yet is left out of the headers; the metadata will have it.
        Err(_) => Ok(event_stream(voice.stream_type(), Box::pin(late_frames(run, asked, voice)), write_idle)),
    }
}

fn relayed(running: Running, asked: Asked, mut voice: Box<dyn Voice>) -> Frames {
    match running {
        Running::Stream(stream) => Box::pin(relay::frames(stream, asked, voice)),
        // `run` gives a whole body only to those who asked for one.
        Running::Whole(_) | Running::Sound(_) => {
            let error = ApiError::new(500, "internal_error", "a whole answer came unasked");
            Box::pin(stream::iter(last_words(voice.as_mut(), &error)))
        }
    }
}

/// The frames of an error that ends a stream.
fn last_words(voice: &mut dyn Voice, error: &ApiError) -> VecDeque<Bytes> {
    let mut out = VecDeque::new();
    voice.fail(error, &mut out);
    out
}

/// Body of a stream whose headers went out before its commit point: comments until then, failures in-band.
fn late_frames(run: Run, asked: Asked, voice: Box<dyn Voice>) -> impl Stream<Item = Bytes> + Send + 'static {
    enum State {
        Waiting(Run, Box<dyn Voice>),
        Relaying(Frames),
    }
    // The first comment goes with the headers: some proxies hold those back until a byte follows.
    let first = stream::iter(voice.keep_alive());
    let waiting = stream::unfold(State::Waiting(run, voice), move |mut state| async move {
        loop {
            state = match state {
                State::Waiting(mut run, mut voice) => {
                    match tokio::time::timeout(KEEP_ALIVE, &mut run).await {
                        Err(_) => match voice.keep_alive() {
                            Some(frame) => return Some((frame, State::Waiting(run, voice))),
                            None => State::Waiting(run, voice),
                        },
                        Ok(Err(failed)) => {
                            let words = last_words(voice.as_mut(), &ApiError::from(failed.error));
                            State::Relaying(Box::pin(stream::iter(words)))
                        }
                        Ok(Ok(running)) => State::Relaying(relayed(running, asked, voice)),
                    }
                }
                State::Relaying(mut frames) => {
                    let frame = frames.next().await?;
                    return Some((frame, State::Relaying(frames)));
                }
            }
        }
    });
    first.chain(waiting)
}

fn event_stream(stream_type: HeaderValue, frames: Frames, write_idle: Duration) -> Response {
    let mut response = streaming(stream_type, Box::pin(frames.map(Ok)), write_idle);
    events_headers(&mut response);
    response
}

/// An answer whose pieces go out as they come; who reads none of them for `write_idle` loses it.
pub(super) fn streaming(media: HeaderValue, pieces: Pieces, write_idle: Duration) -> Response {
    let mut response = Response::new(HttpBody::from_stream(Unread::limited(pieces, write_idle)));
    response.headers_mut().insert(header::CONTENT_TYPE, media);
    response
}

/// Keeps caches and proxies from holding events back.
pub(super) fn events_headers(response: &mut Response) {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
}

pub(super) fn describe(response: &mut Response, record: &crate::store::RequestRecord) {
    let headers = response.headers_mut();
    put(headers, "x-shoal-model", &record.model);
    put(headers, "x-shoal-upstream", &record.upstream);
    put(headers, "x-shoal-route-reason", &record.routing_reason);
    put(headers, "x-shoal-egress", &record.egress);
}

pub(super) fn refused(mut response: Response, egress: &str) -> Response {
    put(response.headers_mut(), "x-shoal-egress", egress);
    response
}

pub(super) fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    // A model's name may hold characters that no header can carry; the body has it anyway.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}
