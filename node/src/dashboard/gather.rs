//! What a page shows, taken from the same views that answer `/shoal/v1/…`, so that both always agree.

use std::sync::Arc;

use axum::extract::State;
use serde_json::Value;

use crate::api::error::ApiError;
use crate::api::{clouds, views};
use crate::node::Node;
use crate::store::{RequestRecord, unix_ms};

/// Finished requests on the page: a screen or two.
const RECENT: usize = 30;
/// Requests in progress on the page; under load the number above the table tells the rest.
const ACTIVE: usize = 30;

/// One look at the mesh.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Of `/shoal/v1/status`.
    pub(super) status: Value,
    /// Of `/shoal/v1/nodes`.
    pub(super) nodes: Vec<Value>,
    /// Of `/shoal/v1/devices`.
    pub(super) devices: Vec<Value>,
    /// Of `/shoal/v1/models`.
    pub(super) models: Vec<Value>,
    /// Of `/shoal/v1/providers`.
    pub(super) providers: Vec<Value>,
    /// Under `calibration` of `/shoal/v1/router`.
    pub(super) calibration: Vec<Value>,
    /// In progress, newest first.
    pub(super) active: Vec<RequestRecord>,
    /// Finished, newest first.
    pub(super) recent: Vec<RequestRecord>,
    /// Milliseconds since the Unix epoch when this was taken.
    pub(super) now_ms: u64,
}

/// Takes one look.
pub(super) async fn overview(node: &Arc<Node>) -> Result<Facts, ApiError> {
    let (mut active, recent) = views::recent(node, RECENT).await?;
    active.reverse();
    active.truncate(ACTIVE);
    let state = || State(node.clone());
    Ok(Facts {
        status: views::status(state()).await.0,
        nodes: list(views::nodes(state()).await.0, "nodes"),
        devices: list(views::devices(state()).await.0, "devices"),
        models: list(views::mesh_models(state()).await.0, "models"),
        providers: list(clouds::list(state()).await?.0, "providers"),
        calibration: views::calibration(node),
        active,
        recent,
        now_ms: unix_ms(),
    })
}

/// Finds one request, here or on the node that accepted it.
pub(super) async fn request(node: &Node, id: &str) -> Result<RequestRecord, ApiError> {
    let value = node.find_request(id).await?;
    serde_json::from_value(value)
        .map_err(|e| ApiError::new(502, "bad_record", format!("the record cannot be read: {e}")))
}

fn list(mut value: Value, name: &str) -> Vec<Value> {
    match value[name].take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}
