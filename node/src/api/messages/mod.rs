//! Anthropic's Messages API: `/v1/messages`, `/v1/messages/count_tokens`, and their shape of `/v1/models`.
//!
//! Two pure translations around the pipeline, which knows chat completions alone: [`request`] on the way in, with
//! [`content`], [`shown`] and [`tools`]; [`answer`] and [`stream`] on the way out. Where the two APIs differ for good,
//! what an agent survives is preferred to what is tidy: a field that means nothing here is left out with a line in
//! `x-shoal-warnings`, and only what would change the sense of the question is refused. `docs/api.md` has the table.

mod answer;
mod blocks;
mod content;
mod count;
pub(super) mod models;
mod request;
mod room;
mod shown;
mod stop;
mod stream;
#[cfg(test)]
mod tests;
mod tools;
mod voice;

use axum::extract::{Extension, FromRef, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use http::{HeaderMap, HeaderName};
use serde_json::json;
use shoal_routing::{DataClass, ModelChoice};

use self::request::Names;
use self::room::Contexts;
use self::voice::Messages;
use super::auth::Caller;
use super::error::ApiError;
use super::front::Front;
use super::inference::{BodyBytes, Spoken, readable, refuse_compressed, serve};
use crate::upstream::ApiPath;

/// The routes of the Messages API, with and without `/v1`.
pub(super) fn routes<S>() -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    Front: FromRef<S>,
{
    let mut router = Router::new();
    for prefix in ["/v1", ""] {
        router = router
            .route(&format!("{prefix}/messages"), post(create))
            .route(&format!("{prefix}/messages/count_tokens"), post(count_tokens));
    }
    router
}

/// `POST /v1/messages`
async fn create(
    State(front): State<Front>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: BodyBytes,
) -> Response {
    let spoken = speak(&front, &headers, body);
    let mut response = serve(&front, &caller, &headers, spoken).await;
    // Anthropic's clients show this one in what they say of a failure.
    if let Some(id) = response.headers().get("x-request-id").cloned() {
        response.headers_mut().insert(HeaderName::from_static("request-id"), id);
    }
    response
}

fn speak(front: &Front, headers: &HeaderMap, body: BodyBytes) -> Result<Spoken, ApiError> {
    refuse_compressed(headers)?;
    let inventory = front.pipeline.inventory.load();
    let serves = |model: &str| {
        !inventory.registry.by_model(model).is_empty()
            || !front.pipeline.rules.rules().shares(model).is_empty()
    };
    let names = Names { claude: front.claude_model.as_deref(), serves: &serves };
    let mut chat = request::translate(&readable(body)?, names)?;
    let is_provider = |name: &str| front.pipeline.is_provider(name);
    let choice = ModelChoice::parse(&chat.model, &is_provider);
    if let Some(contexts) = Contexts::of(&inventory.registry, &choice)
        && !contexts.are_ample(chat.max_tokens, chat.body.len())
    {
        let limit = contexts.fit(chat.max_tokens, count::tokens(&chat.body).0.into());
        if limit < chat.max_tokens {
            chat.lower_limit(limit);
        }
    }
    Ok(Spoken {
        path: ApiPath::ChatCompletions,
        body: chat.body,
        voice: Box::new(Messages::new(chat.model, chat.stops)),
        past: DataClass::Public,
        warnings: chat.warnings,
    })
}

/// `POST /v1/messages/count_tokens`: runs nothing, and is no request in the sense of the history.
async fn count_tokens(headers: HeaderMap, body: BodyBytes) -> Response {
    let counted = refuse_compressed(&headers).and_then(|()| readable(body)).and_then(|bytes| {
        let chat = request::translate_to_count(&bytes)?;
        Ok(count::tokens(&chat.body))
    });
    match counted {
        Ok(tokens) => Json(json!({"input_tokens": tokens.0})).into_response(),
        Err(error) => error.into_response(),
    }
}
