//! Ollama's own API, for the clients that speak nothing else: a request becomes one of OpenAI's, its answer lines of
//! JSON.
//!
//! [`request`] translates in, [`voice`] out, [`models`] lists. What manages models on a machine (`pull`, `create`, …)
//! is refused: devices own their models.

mod models;
mod names;
mod request;
#[cfg(test)]
mod request_tests;
#[cfg(test)]
mod tests;
mod voice;

use std::time::Instant;

use axum::Router;
use axum::extract::{Extension, FromRef, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use shoal_routing::DataClass;

use self::names::served_name;
use self::request::{Translated, Wanted};
use self::voice::{Embeddings, Form, Ollama, Times, Way};
use super::auth::Caller;
use super::error::ApiError;
use super::front::Front;
use super::inference::{BodyBytes, Spoken, readable, refuse_compressed, serve};
use super::voice::Voice;
use crate::store::unix_ms;
use crate::upstream::ApiPath;

/// The routes that need a key.
pub(super) fn routes<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    Front: FromRef<S>,
{
    let mut router = Router::new()
        .route("/api/chat", post(chat))
        .route("/api/generate", post(generate))
        .route("/api/embed", post(embed))
        .route("/api/embeddings", post(embeddings))
        .route("/api/tags", get(models::tags))
        .route("/api/ps", get(models::running))
        .route("/api/show", post(models::show))
        .route("/api/version", get(models::version));
    for managed in ["pull", "push", "create", "copy", "delete", "blobs/{digest}"] {
        router = router.route(&format!("/api/{managed}"), any(not_managed));
    }
    router
}

/// `GET /`: what Ollama's command line asks before anything else; it tells no more than `/healthz`.
pub(super) async fn greet() -> &'static str {
    "Shoal is running; Ollama's API is at /api, OpenAI's at /v1\n"
}

async fn chat(
    State(front): State<Front>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: BodyBytes,
) -> Response {
    answer(&front, &caller, &headers, body, Way::Chat).await
}

async fn generate(
    State(front): State<Front>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: BodyBytes,
) -> Response {
    answer(&front, &caller, &headers, body, Way::Generate).await
}

async fn answer(front: &Front, caller: &Caller, headers: &HeaderMap, body: BodyBytes, way: Way) -> Response {
    let times = Times::now();
    let wanted = received(headers, body).and_then(|bytes| {
        let name = |asked: &str| served(front, asked);
        match way {
            Way::Chat => request::chat(&bytes, name),
            Way::Generate => request::generate(&bytes, name),
        }
    });
    let spoken = match wanted {
        Ok(Wanted::Load { model }) => {
            let mut response = voice::loaded(way, model, times).into_response();
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            return response;
        }
        Ok(Wanted::Answer(request)) => {
            let voice = Ollama::new(way, request.model.clone(), request.thinks, times);
            Ok(spoken(ApiPath::ChatCompletions, request, Box::new(voice)))
        }
        Err(error) => Err(error),
    };
    serve(front, caller, headers, spoken).await
}

async fn embed(
    State(front): State<Front>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: BodyBytes,
) -> Response {
    vectors(&front, &caller, &headers, body, Form::Embed).await
}

async fn embeddings(
    State(front): State<Front>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: BodyBytes,
) -> Response {
    vectors(&front, &caller, &headers, body, Form::Embeddings).await
}

async fn vectors(
    front: &Front,
    caller: &Caller,
    headers: &HeaderMap,
    body: BodyBytes,
    form: Form,
) -> Response {
    let times = Times::now();
    let field = match form {
        Form::Embed => "input",
        Form::Embeddings => "prompt",
    };
    let translated =
        received(headers, body).and_then(|bytes| request::embed(&bytes, field, |asked| served(front, asked)));
    let spoken = translated.map(|request| {
        let voice = Embeddings { form, model: request.model.clone(), times };
        spoken(ApiPath::Embeddings, request, Box::new(voice))
    });
    serve(front, caller, headers, spoken).await
}

async fn not_managed() -> ApiError {
    let message =
        "models are managed on the devices that run them, with their engine's own commands or `shoal pull`";
    ApiError::new(501, "unsupported", message)
}

fn received(headers: &HeaderMap, body: BodyBytes) -> Result<Bytes, ApiError> {
    refuse_compressed(headers)?;
    readable(body)
}

fn spoken(path: ApiPath, request: Translated, voice: Box<dyn Voice>) -> Spoken {
    Spoken { path, body: request.body, voice, past: DataClass::Public, warnings: request.warnings }
}

fn served(front: &Front, asked: &str) -> String {
    let inventory = front.pipeline.inventory.load();
    served_name(asked, |name| !inventory.registry.by_model(name).is_empty() || models::is_alias(front, name))
}

impl Times {
    fn now() -> Self {
        let began = Instant::now();
        Self { came_ms: unix_ms(), elapsed: Box::new(move || began.elapsed()) }
    }
}
