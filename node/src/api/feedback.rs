//! `POST /v1/feedback`: how good an answer was, on any node, for a request that any node accepted.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use serde::Deserialize;
use serde_json::{Value, json};
use shoal_proto::FeedbackVerdict;
use shoal_routing::Score;

use super::error::ApiError;
use crate::judge::MAX_COMMENT;
use crate::node::Node;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Feedback {
    request_id: String,
    score: f64,
    #[serde(default)]
    comment: Option<String>,
}

pub(super) async fn give(
    State(node): State<Arc<Node>>,
    body: Result<Json<Feedback>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let Json(feedback) = body.map_err(|e| ApiError::new(400, "invalid_request_error", e.body_text()))?;
    let score = Score::new(feedback.score)
        .map_err(|_| ApiError::invalid("score", "'score' must lie between 0 (useless) and 1 (perfect)"))?;
    let comment = feedback.comment.unwrap_or_default();
    if comment.chars().count() > MAX_COMMENT {
        return Err(ApiError::invalid(
            "comment",
            format!("'comment' is longer than {MAX_COMMENT} characters"),
        ));
    }
    match node.take_feedback(&feedback.request_id, score, &comment).await? {
        FeedbackVerdict::Taken => Ok(Json(json!({"request_id": feedback.request_id, "taken": true}))),
        FeedbackVerdict::Repeated => Err(ApiError::new(
            409,
            "already_scored",
            "this request was scored before; the first score counts",
        )),
        FeedbackVerdict::NoAnswer => {
            Err(ApiError::new(409, "no_answer", "this request got no answer that could be judged"))
        }
        FeedbackVerdict::Unknown | FeedbackVerdict::Unspecified => Err(ApiError::new(
            404,
            "not_found",
            "no record of this request; the node that accepted it is away, or it is older than the history kept",
        )),
    }
}
