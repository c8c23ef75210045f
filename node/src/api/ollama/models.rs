//! What models there are, in Ollama's words.

use axum::Json;
use axum::extract::State;
use http::HeaderMap;
use serde_json::{Value, json};
use shoal_routing::{ModelSpec, Offer};

use super::voice::Times;
use super::{received, request, served};
use crate::api::error::ApiError;
use crate::api::front::Front;
use crate::api::inference::BodyBytes;

/// Version of Ollama whose API this is: some clients refuse older ones, and read no other version than that.
const API_VERSION: &str = "0.13.0";
/// Names behind which a node chooses.
const VIRTUAL: [&str; 5] = ["auto", "auto:cheap", "auto:fast", "auto:best", "auto:local"];

/// `GET /api/tags`
pub(super) async fn tags(State(front): State<Front>) -> Json<Value> {
    let now = Times::now().moment_it_came();
    let mut models = listed(&front, |_| true, &now);
    if !models.is_empty() {
        let aliases = front.pipeline.rules.rules().aliases();
        models.extend(aliases.map(|alias| entry(&ModelSpec::new(alias.name.clone(), "shoal"), &now)));
        models.extend(VIRTUAL.iter().map(|name| entry(&ModelSpec::new(*name, "shoal"), &now)));
    }
    Json(json!({"models": models}))
}

/// `GET /api/ps`: models of devices, which load and unload them as they see fit.
pub(super) async fn running(State(front): State<Front>) -> Json<Value> {
    let now = Times::now().moment_it_came();
    let mut models = listed(&front, |offer| !offer.is_cloud(), &now);
    for model in &mut models {
        model["expires_at"] = json!(now);
        model["size_vram"] = model["size"].clone();
    }
    Json(json!({"models": models}))
}

/// `GET /api/version`
pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": API_VERSION, "shoal": env!("CARGO_PKG_VERSION")}))
}

/// `POST /api/show`
pub(super) async fn show(
    State(front): State<Front>,
    headers: HeaderMap,
    body: BodyBytes,
) -> Result<Json<Value>, ApiError> {
    let asked = request::only_model(&received(&headers, body)?)?;
    let name = served(&front, &asked);
    let inventory = front.pipeline.inventory.load();
    let spec = match inventory.registry.by_model(&name).first() {
        Some(offer) => offer.model.as_ref().clone(),
        None if VIRTUAL.contains(&name.as_str()) || is_alias(&front, &name) => {
            ModelSpec { tools: Some(true), vision: Some(true), ..ModelSpec::new(name.as_str(), "shoal") }
        }
        None => {
            let near = inventory.registry.nearest(&name, 3).join(", ");
            let shown: String = asked.chars().filter(|c| !c.is_control()).take(128).collect();
            let hint = if near.is_empty() { near } else { format!("; served are, for example: {near}") };
            return Err(ApiError::new(404, "model_not_found", format!("model '{shown}' not found{hint}")));
        }
    };
    Ok(Json(shown(&spec, &Times::now().moment_it_came())))
}

/// True for a name that the rules give to other models.
pub(super) fn is_alias(front: &Front, name: &str) -> bool {
    front.pipeline.rules.rules().aliases().any(|alias| &*alias.name == name)
}

fn listed(front: &Front, wanted: impl Fn(&Offer) -> bool, now: &str) -> Vec<Value> {
    let inventory = front.pipeline.inventory.load();
    let first = |id: &std::sync::Arc<str>| {
        let offers = inventory.registry.by_model(id);
        offers.iter().find(|offer| wanted(offer)).map(|offer| entry(&offer.model, now))
    };
    inventory.registry.models().iter().filter_map(first).collect()
}

fn entry(spec: &ModelSpec, now: &str) -> Value {
    json!({
        "name": &*spec.id, "model": &*spec.id, "modified_at": now, "size": spec.size_bytes.unwrap_or(0),
        "digest": spec.digest.as_deref().unwrap_or_default(), "details": details(spec),
    })
}

fn details(spec: &ModelSpec) -> Value {
    json!({
        "parent_model": "", "format": "gguf", "family": &*spec.engine, "families": [&*spec.engine],
        "parameter_size": "", "quantization_level": spec.quantization.as_deref().unwrap_or_default(),
    })
}

fn shown(spec: &ModelSpec, now: &str) -> Value {
    let capability = |name: &'static str, has: bool| has.then_some(name);
    let makes_vectors = spec.embeddings == Some(true);
    let capabilities: Vec<&str> = [
        capability("completion", !makes_vectors),
        capability("embedding", makes_vectors),
        // What is unknown is let through: the router finds out, and a client that is told "no" never asks.
        capability("tools", spec.tools.unwrap_or(!makes_vectors)),
        capability("vision", spec.vision == Some(true)),
    ]
    .into_iter()
    .flatten()
    .collect();
    json!({
        "license": "", "modelfile": "", "parameters": "", "template": "", "details": details(spec),
        "modified_at": now, "capabilities": capabilities,
        "model_info": {"general.architecture": "shoal", "shoal.context_length": spec.context.map(|tokens| tokens.0)},
    })
}
