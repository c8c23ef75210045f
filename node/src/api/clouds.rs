//! Providers over HTTP: everybody may look, only the node's own machine may change.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::{Value, json};
use shoal_routing::UpstreamId;

use super::error::ApiError;
use crate::cloud::settings::trimmed;
use crate::cloud::{Error, FileProvider, ProviderSettings, ProviderStatus, Source};
use crate::node::Node;
use crate::replication::clean;

/// Longest text of another node that is shown, in characters.
const MAX_SHOWN: usize = 160;

/// What `shoal cloud add` sends over the admin socket.
#[derive(Deserialize)]
pub(super) struct NewProvider {
    #[serde(flatten)]
    settings: FileProvider,
    key: Option<String>,
}

/// `GET /shoal/v1/providers`
pub(crate) async fn list(State(node): State<Arc<Node>>) -> Result<Json<Value>, ApiError> {
    let clouds = node.clouds.clone();
    let providers: Vec<ProviderStatus> = tokio::task::spawn_blocking(move || clouds.list())
        .await
        .map_err(|_| ApiError::new(500, "internal_error", "the list of providers could not be read"))?;
    let providers: Vec<Value> = providers.iter().map(|provider| with_load(&node, provider)).collect();
    Ok(Json(json!({"providers": providers, "elsewhere": elsewhere(&node)})))
}

/// Providers that other nodes have keys for; a request here goes through them.
fn elsewhere(node: &Node) -> Vec<Value> {
    let view = node.mesh.view().borrow().clone();
    let others = view.members.values().filter(|member| member.id != view.me);
    let told = others.flat_map(|member| member.providers.values().map(move |info| (member, info)));
    told.map(|(member, info)| {
        let models = info.models.iter().map(|model| format!("{}/{}", info.name, model.id));
        let models: Vec<String> = models.map(|model| clean(&model, MAX_SHOWN)).collect();
        json!({"name": info.name, "kind": clean(&info.kind, MAX_SHOWN), "node": clean(&member.info.name, MAX_SHOWN),
            "alive": member.alive, "internal_ok": info.internal_ok, "models": models})
    })
    .collect()
}

/// Adds what the router knows: requests under way and, by model, the breaker.
fn with_load(node: &Node, provider: &ProviderStatus) -> Value {
    let (loads, now) = (&node.pipeline.loads, Instant::now());
    let upstream = UpstreamId::Provider(provider.name.as_str().into());
    let breakers: serde_json::Map<String, Value> = provider
        .models
        .iter()
        .map(|model| (model.clone(), loads.load(&upstream, model, now).breaker.into()))
        .collect();
    let mut value = json!(provider);
    value["in_flight"] = json!(loads.in_flight(&upstream));
    value["breakers"] = Value::Object(breakers);
    value
}

/// `POST /admin/v1/providers`
pub(super) async fn add(
    State(node): State<Arc<Node>>,
    body: Result<Json<NewProvider>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    // The rejection's text could quote the body, and the body holds a key.
    let Json(body) =
        body.map_err(|_| ApiError::invalid("body", "the provider's settings are not readable"))?;
    let key = body.key.map(|key| trimmed(&key, "the key")).transpose();
    let key = key.map_err(|message| ApiError::invalid("key", message))?;
    // Paths and variables are the command's to read: the node's own may hold other keys.
    let settings = FileProvider { key_env: None, key_file: None, ..body.settings };
    let settings =
        settings.check(&[], Source::Added).map_err(|e| ApiError::invalid("provider", e.to_string()))?;
    let clouds = node.clouds.clone();
    let added = blocking(move || clouds.add(ProviderSettings { key, ..settings })).await?;
    Ok(Json(json!(added)))
}

/// `DELETE /admin/v1/providers/{name}`
pub(super) async fn remove(
    State(node): State<Arc<Node>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let clouds = node.clouds.clone();
    let removed = blocking(move || clouds.remove(&name)).await?;
    Ok(Json(json!({"removed": removed})))
}

async fn blocking(
    change: impl FnOnce() -> Result<ProviderStatus, Error> + Send + 'static,
) -> Result<ProviderStatus, ApiError> {
    let done = tokio::task::spawn_blocking(change).await;
    let done =
        done.map_err(|_| ApiError::new(500, "internal_error", "the providers could not be changed"))?;
    done.map_err(|error| match error {
        Error::Unknown(_) => ApiError::new(404, "not_found", error.to_string()),
        Error::Settings(_) | Error::NoModels(_) | Error::Price(_) => {
            ApiError::invalid("provider", error.to_string())
        }
        Error::Client(_) | Error::Write { .. } => ApiError::new(500, "store_failed", error.to_string()),
    })
}
