//! Router packs over the admin socket: what is adopted moves where requests go, so only the node's own machine may.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, State};
use serde_json::Value;

use super::error::ApiError;
use crate::node::Node;
use crate::pack;
use crate::pack::desk::{self, Desk, Error};

/// Base64 makes four bytes of three; the rest is for the other fields.
const BODY_BYTES: usize = pack::MAX_BYTES * 4 / 3 + 4096;

pub(super) fn body_limit() -> DefaultBodyLimit {
    DefaultBodyLimit::max(BODY_BYTES)
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::NothingLearnt => Self::new(409, "nothing_learnt", message),
            Error::Unusable(_) => Self::new(422, "unusable_pack", message),
            Error::Untrusted(_) => Self::new(403, "untrusted_pack", message),
            Error::Invalid { param, message } => Self::invalid(param, message),
            Error::NotAdopted => Self::new(404, "not_found", message),
            Error::Store(_) => Self::new(500, "store_failed", message),
        }
    }
}

/// `POST /admin/v1/router/export`: what the mesh has learnt, signed by this node.
pub(super) async fn export(
    State(node): State<Arc<Node>>,
    body: Result<Json<desk::Export>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let wish = read(body)?;
    at_desk(&node, move |desk| desk.export(wish)).await.map(Json)
}

/// `POST /admin/v1/router/pack`: checks a pack and says what it would have earned; adopts it with `adopt`.
pub(super) async fn import(
    State(node): State<Arc<Node>>,
    body: Result<Json<desk::Import>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let wish = read(body)?;
    let (shown, adopted) = at_desk(&node, move |desk| desk.import(&wish)).await?;
    if let Some(pack) = adopted {
        node.pipeline.sinks.feedback.begin_with(Arc::new(pack)).await;
    }
    Ok(Json(shown))
}

/// `DELETE /admin/v1/router/pack`
pub(super) async fn remove(State(node): State<Arc<Node>>) -> Result<Json<Value>, ApiError> {
    let (shown, pack) = at_desk(&node, Desk::remove).await?;
    node.pipeline.sinks.feedback.begin_with(Arc::new(pack)).await;
    Ok(Json(shown))
}

/// `POST /admin/v1/router/eval`
pub(super) async fn eval(
    State(node): State<Arc<Node>>,
    body: Result<Json<desk::Eval>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let wish = read(body)?;
    at_desk(&node, move |desk| desk.eval(&wish)).await.map(Json)
}

fn read<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, ApiError> {
    body.map(|Json(wish)| wish).map_err(|e| ApiError::new(400, "invalid_request_error", e.body_text()))
}

/// Works on the node's data, off the tasks that serve.
async fn at_desk<T: Send + 'static>(
    node: &Arc<Node>,
    work: impl FnOnce(&Desk) -> Result<T, Error> + Send + 'static,
) -> Result<T, ApiError> {
    let desk = Desk {
        store: node.store.clone(),
        data_dir: node.config.data_dir.clone(),
        identity: node.identity.clone(),
        name: node.config.name.clone(),
        shipped: node.config.router.shipped_pack,
        learnt: node.pipeline.sinks.feedback.learnt(),
    };
    let done = tokio::task::spawn_blocking(move || work(&desk)).await;
    let done = done.map_err(|_| {
        ApiError::new(500, "internal_error", "the work on the pack failed; the node's log says more")
    })?;
    done.map_err(ApiError::from)
}
