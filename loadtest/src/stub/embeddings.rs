//! OpenAI's API for embeddings: vectors that depend on their text and model alone, so that a client can check them.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use data_encoding::BASE64;
use serde_json::{Value, json};

use super::{
    Shared, error,
    infer::{blank, refuse},
    log::{End, Entry},
};
use crate::words::fnv1a;

/// Numbers of a vector, unless the request says how many.
const DIMENSIONS: usize = 8;
/// Most numbers that may be asked for.
const MAX_DIMENSIONS: usize = 4096;

pub(super) async fn make(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let model = body["model"].as_str().unwrap_or_default().to_owned();
    let mut fields: Vec<String> =
        body.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect();
    fields.sort();
    let mut guard = shared.log.open(Entry { model: model.clone(), fields, ..blank("/v1/embeddings") });
    if !shared.options.models.contains(&model) {
        let message = format!("The model '{model}' does not exist.");
        return refuse(guard, error(StatusCode::NOT_FOUND, &message, "model_not_found", Some("model")));
    }
    let texts: Option<Vec<&str>> = match &body["input"] {
        Value::String(text) => Some(vec![text]),
        Value::Array(texts) => texts.iter().map(Value::as_str).collect(),
        _ => None,
    };
    let Some(texts) = texts.filter(|texts| !texts.is_empty()) else {
        let message = "'input' must be text, or a list of texts.";
        return refuse(
            guard,
            error(StatusCode::BAD_REQUEST, message, "invalid_request_error", Some("input")),
        );
    };
    let dimensions = body["dimensions"].as_u64().and_then(|n| usize::try_from(n).ok());
    let dimensions = dimensions.unwrap_or(DIMENSIONS).clamp(1, MAX_DIMENSIONS);
    let packed = body["encoding_format"] == "base64";
    let entry = |(index, text): (usize, &&str)| {
        let vector = vector(&model, text, dimensions);
        let vector: Value = if packed {
            let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
            BASE64.encode(&bytes).into()
        } else {
            vector.into()
        };
        json!({"object": "embedding", "index": index, "embedding": vector})
    };
    let data: Vec<Value> = texts.iter().enumerate().map(entry).collect();
    let tokens: usize = texts.iter().map(|text| text.split_whitespace().count()).sum();
    guard.sent(texts.len() as u64);
    guard.end(End::Completed, 200);
    Json(json!({"object": "list", "model": model, "data": data,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}))
    .into_response()
}

/// Numbers from -1 to 1 in steps that 32 bits hold exactly.
fn vector(model: &str, text: &str, dimensions: usize) -> Vec<f32> {
    let number = |at: usize| {
        let hash = fnv1a(format!("{model}|{at}|{text}").as_bytes());
        f32::from((hash >> 48) as i16) / 32768.0
    };
    (0..dimensions).map(number).collect()
}
