//! OpenAI's API as Azure hosts it: a deployment in the address, and filters that speak in the stream.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{ConnectInfo, Path, Query, State},
    http::StatusCode,
    response::Response,
    routing::post,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Shared, conn::KillSwitch, error, infer, render::Frame, request, responses};

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/openai/deployments/{deployment}/chat/completions", post(deployed))
        .route("/openai/v1/chat/completions", post(infer::chat))
        .route("/openai/v1/responses", post(responses::create))
        .nest("/openai", super::audio::router())
}

#[derive(Deserialize)]
struct Version {
    #[serde(rename = "api-version")]
    api_version: Option<String>,
}

async fn deployed(
    State(shared): State<Arc<Shared>>,
    connection: ConnectInfo<KillSwitch>,
    Path(deployment): Path<String>,
    Query(version): Query<Version>,
    body: Bytes,
) -> Response {
    if version.api_version.is_none() {
        return error(StatusCode::NOT_FOUND, "Resource not found", "404", None);
    }
    // The address says which model it is; what the body calls it does not matter.
    let named = serde_json::from_slice::<Value>(&body).ok().filter(Value::is_object).map(|mut body| {
        body["model"] = deployment.into();
        Bytes::from(body.to_string())
    });
    infer::infer(&shared, connection, request::Path::Chat, &named.unwrap_or(body)).await
}

/// The chunk that comes first: what a filter found in the prompt, and no choice.
pub(super) fn filter_report() -> Frame {
    let safe = json!({"hate": {"filtered": false, "severity": "safe"}});
    let payload = json!({"id": "", "object": "", "created": 0, "model": "", "choices": [],
        "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": safe}]});
    Frame { payload: payload.to_string(), due: 0, tokens: 0 }
}
