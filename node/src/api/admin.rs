//! What only the node's own machine may do, by the admin socket: tokens, keys, shutdown.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::{Value, json};
use shoal_cluster::TokenBook;
use shoal_cluster::ids::Role;

use super::error::ApiError;
use crate::cloud::Budget;
use crate::node::Node;

/// Longest life of a join token.
const MAX_TTL: Duration = Duration::from_secs(90 * 86_400);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewToken {
    role: String,
    ttl_s: u64,
    uses: u32,
}

pub(super) async fn create_token(
    State(node): State<Arc<Node>>,
    body: Result<Json<NewToken>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let Json(body) = body.map_err(|e| ApiError::new(400, "invalid_request_error", e.body_text()))?;
    let role: Role =
        body.role.parse().map_err(|_| ApiError::invalid("role", "'role' must be device or router"))?;
    let ttl = Duration::from_secs(body.ttl_s);
    if ttl.is_zero() || ttl > MAX_TTL {
        return Err(ApiError::invalid("ttl_s", "a token lives between a second and 90 days"));
    }
    if !(1..=1000).contains(&body.uses) {
        return Err(ApiError::invalid("uses", "a token has 1 to 1000 uses"));
    }
    let token = node
        .mesh
        .create_token(role, ttl, body.uses)
        .map_err(|e| ApiError::new(503, "cannot_issue", e.to_string()))?;
    Ok(Json(json!({
        "token": token.to_string(),
        "id": data_encoding::HEXLOWER.encode(&token.token_id),
        "role": role.as_str(),
        "uses": body.uses,
        "expires_unix_s": token.expires_unix_s,
    })))
}

pub(super) async fn list_tokens(State(node): State<Arc<Node>>) -> Result<Json<Value>, ApiError> {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let tokens = node.book.list().map_err(store_failed)?;
    let tokens: Vec<Value> = tokens
        .into_iter()
        .map(|t| {
            let state = match t {
                _ if t.revoked => "revoked",
                _ if t.uses_left == 0 => "used",
                _ if t.expires_unix_s <= now_s => "expired",
                _ => "good",
            };
            json!({
                "id": data_encoding::HEXLOWER.encode(&t.token_id),
                "role": t.role.as_str(),
                "uses_left": t.uses_left,
                "expires": date(t.expires_unix_s),
                "state": state,
            })
        })
        .collect();
    Ok(Json(json!({"tokens": tokens})))
}

pub(super) async fn revoke_token(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let bytes: Option<[u8; 8]> =
        data_encoding::HEXLOWER.decode(id.as_bytes()).ok().and_then(|b| b.try_into().ok());
    let known = match bytes {
        Some(bytes) => node.book.revoke(&bytes).map_err(store_failed)?,
        None => false,
    };
    if known { Ok(Json(json!({"revoked": id}))) } else { Err(no_such("token")) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewKey {
    name: String,
    #[serde(default)]
    local_only: bool,
    #[serde(default)]
    budget: Option<String>,
}

pub(super) async fn create_key(
    State(node): State<Arc<Node>>,
    body: Result<Json<NewKey>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let Json(body) = body.map_err(|e| ApiError::new(400, "invalid_request_error", e.body_text()))?;
    if body.name.is_empty() || body.name.len() > 64 || body.name.chars().any(char::is_control) {
        return Err(ApiError::invalid("name", "a key's name has 1 to 64 printable characters"));
    }
    let budget = body.budget.as_deref().map(str::parse::<Budget>).transpose();
    let budget = budget.map_err(|e| ApiError::invalid("budget", e.to_string()))?;
    let key = node.keys.create(&body.name, body.local_only, budget).map_err(store_failed)?;
    node.share_keys();
    Ok(Json(json!({
        "key": key.text, "id": key.record.id, "name": body.name, "local_only": body.local_only,
        "budget": budget.map(|budget| budget.to_string()),
    })))
}

/// Lists keys; what was spent is this node's book, absent if it cannot be read.
pub(super) async fn list_keys(State(node): State<Arc<Node>>) -> Json<Value> {
    let left = |id: &str| Some(node.pipeline.purses.as_ref()?.of(id)?.left().ok()?.as_usd());
    let keys: Vec<Value> = node
        .keys
        .list()
        .into_iter()
        .map(|k| {
            json!({
                "id": k.id,
                "name": k.name,
                "local_only": k.local_only,
                "budget": k.budget.map(|budget| budget.to_string()),
                "spent_usd": k.budget.zip(left(&k.id)).map(|(budget, left)| budget.amount.as_usd() - left),
                "left_usd": left(&k.id),
                "created": date(k.created_ms / 1000),
                "state": if k.revoked_ms == 0 { "good" } else { "revoked" },
            })
        })
        .collect();
    Json(json!({"keys": keys}))
}

pub(super) async fn revoke_key(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if !node.keys.revoke(&id).map_err(store_failed)? {
        return Err(no_such("key"));
    }
    node.share_keys();
    Ok(Json(json!({"revoked": id})))
}

/// A link that logs one browser in; needed once per browser.
pub(super) async fn dashboard_link(State(node): State<Arc<Node>>) -> Json<Value> {
    Json(json!({"url": node.dashboard_url(), "expires_s": crate::dashboard::CODE_LIFE.as_secs()}))
}

pub(super) async fn shutdown(State(node): State<Arc<Node>>) -> Json<Value> {
    tracing::info!("asked to stop by the admin socket");
    node.shutdown.cancel();
    Json(json!({"stopping": true}))
}

fn store_failed(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(500, "store_failed", format!("the node's store failed: {error}"))
}

fn no_such(what: &str) -> ApiError {
    ApiError::new(
        404,
        "not_found",
        format!("there is no such {what}; `shoal {what}s ls` or `shoal {what} ls` lists them"),
    )
}

fn date(unix_s: u64) -> String {
    time::OffsetDateTime::from_unix_timestamp(unix_s as i64)
        .ok()
        .and_then(|t| t.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| unix_s.to_string())
}
