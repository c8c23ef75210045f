//! OpenAI's Responses API: a request becomes a chat completion, its answer a response that can be gone on from.
//!
//! `request` and `items` translate in, `voice` out; what is kept between requests is sealed for its caller
//! (`seal`) and found on any node (`keeper`).

mod items;
mod keeper;
mod object;
mod output;
mod request;
#[cfg(test)]
mod request_tests;
mod seal;
#[cfg(test)]
mod tests;
mod tools;
mod views;
mod voice;
#[cfg(test)]
mod voice_tests;

use axum::Router;
use axum::extract::{Extension, FromRef, State};
use axum::response::Response;
use axum::routing::{get, post};
use http::HeaderMap;

pub use self::keeper::{Away, Elsewhere, Keeper, home_of};
use self::object::Birth;
use self::request::Draft;
use self::voice::Responses;
use super::auth::Caller;
use super::error::ApiError;
use super::front::Front;
use super::inference::{BodyBytes, Spoken, readable, refuse_compressed, serve};
use crate::store::unix_ms;
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
            .route(&format!("{prefix}/responses"), post(create))
            .route(&format!("{prefix}/responses/compact"), post(compact))
            .route(&format!("{prefix}/responses/{{id}}"), get(views::retrieve).delete(views::delete))
            .route(&format!("{prefix}/responses/{{id}}/cancel"), post(views::cancel))
            .route(&format!("{prefix}/responses/{{id}}/input_items"), get(views::input_items));
    }
    router
}

/// `POST /v1/responses`
async fn create(
    State(front): State<Front>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: BodyBytes,
) -> Response {
    let spoken = speak(&front, &caller, &headers, body).await;
    serve(&front, &caller, &headers, spoken).await
}

/// `POST /v1/responses/compact`: the vendor answers with items that only its own models can read.
async fn compact() -> ApiError {
    let message = "conversations are not compacted here, since what the vendor makes of them only its own models can \
                   read; ask a model for a summary and go on from that, as agents do by themselves";
    ApiError::new(400, "unsupported", message)
}

async fn speak(
    front: &Front,
    caller: &Caller,
    headers: &HeaderMap,
    body: BodyBytes,
) -> Result<Spoken, ApiError> {
    refuse_compressed(headers)?;
    let bytes = readable(body)?;
    let draft = Draft::read(&bytes)?;
    let past = front.responses.recall(caller, headers, &front.short_id, &draft).await?;
    let translated = draft.translate(&past)?;
    let birth = Birth {
        suffix: format!("{}_{}", front.short_id, uuid::Uuid::now_v7().simple()),
        created_s: unix_ms() / 1000,
    };
    let keep = draft.store.then(|| front.responses.keep(caller, headers, birth.id(), translated.input));
    Ok(Spoken {
        path: ApiPath::ChatCompletions,
        body: translated.body,
        voice: Box::new(Responses::new(birth, translated.telling, keep)),
        past: past.data_class,
        warnings: translated.warnings,
    })
}
