//! `/v1/audio/transcriptions`, `/v1/audio/translations` and `/v1/audio/speech`: bodies and answers pass as they are.
//!
//! Behind the edge they take the way of every request. Of which media type an answer is is only known when it begins, so
//! headers wait for that. What breaks off after it ends as its form allows: events by an error among them, bytes by a
//! connection that is closed before their end.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Extension, FromRef, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue};

use super::auth::Caller;
use super::error::ApiError;
use super::front::Front;
use super::idempotency::Verdict;
use super::inference::{
    BodyBytes, describe, events_headers, origin, put, readable, refuse_compressed, refused, sign, streaming,
};
use super::{parse, sse};
use crate::pipeline::{Flow, Job, Running};
use crate::upstream::ApiPath;

/// The routes, with and without `/v1`.
pub(super) fn routes<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    Front: FromRef<S>,
{
    let mut router = Router::new();
    for prefix in ["/v1", ""] {
        router = router
            .route(&format!("{prefix}/audio/transcriptions"), post(transcriptions))
            .route(&format!("{prefix}/audio/translations"), post(translations))
            .route(&format!("{prefix}/audio/speech"), post(speech));
    }
    router
}

async fn transcriptions(
    State(front): State<Front>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: BodyBytes,
) -> Response {
    serve(&front, &caller, &headers, ApiPath::Transcriptions, body).await
}

async fn translations(
    State(front): State<Front>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: BodyBytes,
) -> Response {
    serve(&front, &caller, &headers, ApiPath::Translations, body).await
}

async fn speech(
    State(front): State<Front>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: BodyBytes,
) -> Response {
    serve(&front, &caller, &headers, ApiPath::Speech, body).await
}

async fn serve(
    front: &Front,
    caller: &Caller,
    headers: &HeaderMap,
    path: ApiPath,
    body: BodyBytes,
) -> Response {
    let started = Instant::now();
    let id = front.new_request_id();
    let mut response = match accept(front, caller, headers, path, body, id.clone()) {
        Ok((job, warnings)) => {
            let mut response = match front.pipeline.run(job).await {
                Ok(Running::Sound(flow)) => told(flow, front.pipeline.limits.sockets.write_idle),
                // `run` gives nothing else to who asks for sound.
                Ok(_) => {
                    ApiError::new(500, "internal_error", "an answer of another API came").into_response()
                }
                Err(failed) => refused(ApiError::from(failed.error).into_response(), &failed.egress),
            };
            if !warnings.is_empty() {
                put(response.headers_mut(), "x-shoal-warnings", &warnings);
            }
            response
        }
        Err(error) => refused(error.into_response(), "none"),
    };
    sign(&mut response, headers, &id, started);
    response
}

fn accept(
    front: &Front,
    caller: &Caller,
    headers: &HeaderMap,
    path: ApiPath,
    body: BodyBytes,
    id: Arc<str>,
) -> Result<(Job, String), ApiError> {
    refuse_compressed(headers)?;
    let body = readable(body)?;
    let is_provider = |name: &str| front.pipeline.is_provider(name);
    let naming = front.pipeline.naming(&is_provider);
    let media = parse::media(headers);
    let (parsed, request) = parse::parse(path, media, &body, headers, caller.floor, naming)?;
    let warnings = parsed.warnings.join("; ");
    Ok((front.pipeline.accept(parsed, &request, origin(caller, id))?, warnings))
}

fn told(flow: Flow, write_idle: Duration) -> Response {
    let is_events = flow.is_events();
    let verdict = Verdict::default();
    let media = HeaderValue::from_str(flow.media());
    let mut record = flow.ticket().record.clone();
    record.egress = flow.ticket().egress().text();
    let media = media.unwrap_or(HeaderValue::from_static("application/octet-stream"));
    let outgoing = Outgoing { flow: Some(flow), is_events, verdict: verdict.clone() };
    let pieces =
        stream::unfold(outgoing, |mut outgoing| async move { Some((outgoing.next().await?, outgoing)) });
    let mut response = streaming(media, Box::pin(pieces), write_idle);
    if is_events {
        events_headers(&mut response);
    }
    response.extensions_mut().insert(verdict);
    describe(&mut response, &record);
    response
}

/// An answer on its way to the client.
struct Outgoing {
    /// `None` once the request has ended.
    flow: Option<Flow>,
    is_events: bool,
    verdict: Verdict,
}

impl Outgoing {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        match self.flow.as_mut()?.next().await {
            Ok(Some(bytes)) if self.is_events => Some(Ok(sse::frame(&bytes))),
            Ok(Some(bytes)) => Some(Ok(bytes)),
            Ok(None) => {
                self.flow.take()?.complete();
                None
            }
            Err(error) => {
                self.flow.take()?.fail("upstream_interrupted");
                if self.is_events {
                    self.verdict.failed();
                    let told = ApiError { code: "upstream_interrupted".into(), ..ApiError::from(error) };
                    return Some(Ok(sse::frame(&told.body())));
                }
                // Ends the connection before the end of the body, which every client takes for what it is.
                Some(Err(io::Error::other(error)))
            }
        }
    }
}
