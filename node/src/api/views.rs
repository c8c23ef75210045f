//! What the node shows of itself and of the mesh, as JSON; the dashboard and the commands read the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use shoal_proto::DeviceInfo;
use shoal_routing::bandit::sums::at;
use shoal_routing::calibration::{Bin, Calibrated};
use shoal_routing::features::DIM;
use shoal_routing::{ArmEvidence, ArmId, Curve, Domain, QualitySums, Reliability, Route, Score, UpstreamId};

use super::error::ApiError;
use super::messages;
use crate::feedback::Learnt;
use crate::node::Node;
use crate::store::{RequestRecord, unix_ms};
use crate::telemetry::holdings;

/// Most rows of one answer.
const MAX_ROWS: usize = 1000;

pub(super) async fn healthz() -> &'static str {
    "ok"
}

/// Ready = accepting and not draining; models are listed, not required.
pub(super) async fn readyz(State(node): State<Arc<Node>>) -> Response {
    let draining = node.is_draining();
    let status = if draining { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let inventory = node.pipeline.inventory.load();
    let models: Vec<&str> = inventory.registry.models().iter().map(AsRef::as_ref).collect();
    let alive = node.mesh.view().borrow().alive().count();
    let body = json!({
        "ready": !draining,
        "reason": if draining { "draining" } else { "accepting" },
        "models": models,
        "nodes_alive": alive,
    });
    if draining {
        let error = ApiError::new(503, "draining", "this node is stopping");
        return (
            status,
            Json(json!({"ready": false, "error": {"message": error.message, "code": "draining"}})),
        )
            .into_response();
    }
    (status, Json(body)).into_response()
}

pub(super) async fn metrics(State(node): State<Arc<Node>>) -> Response {
    holdings::observe();
    let mut response = node.metrics.render().into_response();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// `GET /v1/models`, with our extra fields under `shoal`; in Anthropic's shape for Anthropic's clients.
pub(super) async fn models(
    State(node): State<Arc<Node>>,
    headers: HeaderMap,
    page: Result<Query<messages::models::Page>, QueryRejection>,
) -> Json<Value> {
    let data = model_entries(&node);
    if messages::models::is_wanted(&headers) {
        // A page that cannot be read is the first one.
        let Query(page) = page.unwrap_or_default();
        return Json(messages::models::list(&data, &page));
    }
    Json(json!({"object": "list", "data": data}))
}

fn model_entries(node: &Node) -> Vec<Value> {
    let inventory = node.pipeline.inventory.load();
    let registry = &inventory.registry;
    let reachable = |model: &&Arc<str>| registry.by_model(model).iter().any(|offer| offer.is_alive());
    let mut data: Vec<Value> =
        registry.models().iter().filter(reachable).map(|m| model_entry(node, m)).collect();
    if !data.is_empty() {
        for (id, what) in [
            ("auto", "the best for each request"),
            ("auto:cheap", "the cheapest that will do"),
            ("auto:fast", "the fastest that will do"),
            ("auto:best", "the strongest"),
            ("auto:local", "the best on the mesh's devices"),
        ] {
            data.push(json!({
                "id": id, "object": "model", "created": node.started_ms / 1000, "owned_by": "shoal",
                "shoal": {"virtual": true, "chooses": what},
            }));
        }
    }
    for alias in node.pipeline.rules.rules().aliases() {
        // One that bears the name of a model is listed as that model.
        if data.iter().all(|entry| entry["id"] != *alias.name) {
            let stands_for = node.pipeline.rules.rules().shares(&alias.name);
            let stands_for: Vec<&str> = stands_for.iter().map(|(model, _)| &**model).collect();
            data.push(json!({
                "id": &*alias.name, "object": "model", "created": node.started_ms / 1000, "owned_by": "shoal",
                "shoal": {"virtual": true, "stands_for": stands_for},
            }));
        }
    }
    data
}

/// `GET /v1/models/{id}`
pub(super) async fn model(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let found = model_entries(&node).into_iter().find(|model| model["id"] == id.as_str());
    let shown =
        |model| if messages::models::is_wanted(&headers) { messages::models::entry(&model) } else { model };
    found.map(|model| Json(shown(model))).ok_or_else(|| {
        let near = node.pipeline.inventory.load().registry.nearest(&id, 3);
        let near: Vec<&str> = near.iter().map(AsRef::as_ref).collect();
        let hint = if near.is_empty() {
            String::new()
        } else {
            format!("; served are, for example: {}", near.join(", "))
        };
        let shown: String = id.chars().filter(|c| !c.is_control()).take(128).collect();
        let error =
            ApiError::new(404, "model_not_found", format!("no device serves a model named '{shown}'{hint}"));
        ApiError { param: Some("model".into()), ..error }
    })
}

fn model_entry(node: &Node, id: &str) -> Value {
    let facts = model_facts(node, id);
    json!({"id": id, "object": "model", "created": node.started_ms / 1000, "owned_by": "shoal", "shoal": facts})
}

fn model_facts(node: &Node, id: &str) -> Value {
    let inventory = node.pipeline.inventory.load();
    let offers = inventory.registry.by_model(id);
    let spec = offers.first().map(|o| o.model.clone());
    let context = offers.iter().filter_map(|o| o.model.context).max();
    json!({
        "devices": offers.iter().map(|o| o.name.to_string()).collect::<Vec<_>>(),
        "engine": spec.as_ref().map(|s| s.engine.to_string()),
        "context_length": context.map(|c| c.0),
        "quantization": spec.as_ref().and_then(|s| s.quantization.as_ref().map(ToString::to_string)),
        "digest": spec.as_ref().and_then(|s| s.digest.as_ref().map(ToString::to_string)),
        "size_bytes": spec.as_ref().and_then(|s| s.size_bytes),
        "egress": if offers.iter().any(|o| !o.is_cloud()) { "none" } else { "provider" },
    })
}

/// `GET /shoal/v1/models`
pub(crate) async fn mesh_models(State(node): State<Arc<Node>>) -> Json<Value> {
    let inventory = node.pipeline.inventory.load();
    let models: Vec<Value> = inventory
        .registry
        .models()
        .iter()
        .map(|id| {
            let mut facts = model_facts(&node, id);
            facts["id"] = json!(&**id);
            facts
        })
        .collect();
    Json(json!({"models": models}))
}

/// `GET /shoal/v1/status`
pub(crate) async fn status(State(node): State<Arc<Node>>) -> Json<Value> {
    let view = node.mesh.view().borrow().clone();
    let inventory = node.pipeline.inventory.load();
    let devices = view.devices().len().max(inventory.direct.len());
    let totals = &node.pipeline.sinks.totals;
    Json(json!({
        "node": {
            "id": node.mesh.node_id().as_str(),
            "name": node.config.name,
            "version": env!("CARGO_PKG_VERSION"),
            "api_url": node.api_url,
            "tls": node.config.tls.as_str(),
            "mesh_addrs": node.mesh.advertised().iter().map(ToString::to_string).collect::<Vec<_>>(),
            "uptime_s": node.started.elapsed().as_secs(),
            "ready": !node.is_draining(),
            "draining": node.is_draining(),
        },
        "mesh": {
            "id": node.identity.mesh_id().to_string(),
            "nodes": view.members.len(),
            "alive": view.alive().count(),
            "devices": devices,
            "models": inventory.registry.models().len(),
        },
        "requests": {
            "accepted": totals.of("accepted"),
            "completed": totals.of("completed"),
            "failed": totals.of("failed"),
            "cancelled": totals.of("cancelled"),
            "rejected": totals.of("rejected"),
            "in_flight": node.pipeline.sinks.live.len(),
            "history_rows_lost": node.pipeline.sinks.history.lost(),
        },
        "statistics": statistics(&node),
    }))
}

/// `GET /shoal/v1/router`: what was learnt, by arm and by who observed it.
///
/// `totals` are plain sums, the same on every node; `believed` is what this node decides by, each origin within its
/// influence.
pub(crate) async fn router(State(node): State<Arc<Node>>) -> Json<Value> {
    let learnt = node.pipeline.sinks.feedback.learnt();
    Json(json!({
        "policy": "thompson",
        "rules": node.pipeline.rules.describe(),
        "statistics": statistics(&node),
        "totals": arms(&learnt.totals),
        "believed": learnt.quality.iter().map(|(arm, quality)| {
            json!({"arm": arm.as_str(), "quality": quality_view(quality)})
        }).collect::<Vec<_>>(),
        "calibration": calibration(&node),
        "priors": {"arms": learnt.priors.arms.len(), "classes": learnt.priors.classes.0.len()},
        "evaluator": {"pairs": learnt.agreement.pairs, "belief": learnt.agreement.belief()},
        "origins": origins(&learnt),
    }))
}

/// How far each judged arm's confidence can be trusted.
pub(crate) fn calibration(node: &Node) -> Vec<Value> {
    let learnt = node.pipeline.sinks.feedback.learnt();
    learnt.gains.calibration().arms().map(|(arm, seen)| calibration_view(arm, seen)).collect()
}

fn origins(learnt: &Learnt) -> Vec<Value> {
    let now_ms = unix_ms();
    let rows = learnt.origins.iter().flat_map(|state| {
        let age_s = (state.issued_ms > 0).then(|| now_ms.saturating_sub(state.issued_ms) / 1000);
        state.testimony.arms.iter().map(move |(arm, evidence)| {
            let mut row = arm_view(arm, evidence);
            row["origin"] = json!(&*state.origin);
            row["generation"] = json!(state.testimony.generation);
            row["age_s"] = json!(age_s);
            row["flagged"] = json!(state.flagged);
            row
        })
    });
    rows.collect()
}

fn arms(arms: &BTreeMap<ArmId, ArmEvidence>) -> Vec<Value> {
    arms.iter().map(|(arm, evidence)| arm_view(arm, evidence)).collect()
}

fn arm_view(arm: &ArmId, evidence: &ArmEvidence) -> Value {
    let s = &evidence.stats;
    json!({
        "arm": arm.as_str(),
        "count": s.count,
        "failures": s.failures,
        "scored": s.scored,
        "reward_sum": s.reward_sum,
        "mean_reward": (s.scored > 0).then(|| s.reward_sum / s.scored as f64),
        "mean_ttft_ms": s.ttft_ms(),
        "version": evidence.version(),
        "judged": evidence.reliability.count(),
        "ece": evidence.reliability.total().ece(),
        "quality": quality_view(&evidence.quality),
        "word_pairs": evidence.pairs.len(),
    })
}

/// Judgements by features: what they weigh, their mean, and enough of the sums to compare two nodes by.
fn quality_view(quality: &QualitySums) -> Value {
    let trace: f64 = (0..DIM).map(|row| quality.gram[at(row, row)]).sum();
    json!({
        "n": quality.weight(),
        "mean": quality.mean(),
        "version": quality.version,
        "trace": trace,
        "reward": quality.reward,
    })
}

/// An arm's reliability: over all domains, and of each that was judged, with the error that its curve leaves.
fn calibration_view(arm: &ArmId, calibrated: &Calibrated) -> Value {
    let total = &calibrated.total;
    let domains: Vec<Value> = Domain::ALL
        .into_iter()
        .filter(|domain| calibrated.seen.of(*domain).count() > 0)
        .map(|domain| {
            let (seen, curve) = (calibrated.seen.of(domain), calibrated.curve_of(domain));
            json!({
                "domain": domain.as_str(), "judged": seen.count(), "ece": seen.ece(),
                "ece_calibrated": seen.ece_with(curve), "bins": bins_view(seen, curve),
            })
        })
        .collect();
    json!({
        "arm": arm.as_str(), "judged": total.count(), "ece": total.ece(), "ece_calibrated": calibrated.ece(),
        "bins": bins_view(total, &calibrated.curve), "domains": domains,
    })
}

/// Ten bins of a reliability diagram, lowest confidence first; without answers a bin has no means.
fn bins_view(seen: &Reliability, curve: &Curve) -> Vec<Value> {
    let view = |bin: &Bin| {
        let mean = |sum: f64| (bin.count > 0).then(|| sum / bin.count as f64);
        let confidence = mean(bin.raw_sum);
        json!({
            "count": bin.count,
            "mean_confidence": confidence,
            "mean_score": mean(bin.score_sum),
            "calibrated": confidence.map(|raw| curve.apply(Score::clamped(raw)).value()),
        })
    };
    seen.bins.iter().map(view).collect()
}

fn statistics(node: &Node) -> Vec<Value> {
    let learnt = node.pipeline.sinks.feedback.learnt();
    let mut sources: BTreeMap<&ArmId, usize> = BTreeMap::new();
    for arm in learnt.origins.iter().flat_map(|state| state.testimony.arms.keys()) {
        *sources.entry(arm).or_default() += 1;
    }
    learnt
        .totals
        .iter()
        .map(|(arm, evidence)| {
            let s = &evidence.stats;
            json!({
                "arm": arm.as_str(),
                "count": s.count,
                "failures": s.failures,
                "scored": s.scored,
                "mean_reward": (s.scored > 0).then(|| s.reward_sum / s.scored as f64),
                "mean_ttft_ms": s.ttft_ms(),
                "version": evidence.version(),
                "ece": evidence.reliability.total().ece(),
                "origins": sources.get(arm).copied().unwrap_or(0),
            })
        })
        .collect()
}

/// `GET /shoal/v1/nodes`
pub(crate) async fn nodes(State(node): State<Arc<Node>>) -> Json<Value> {
    let view = node.mesh.view().borrow().clone();
    let nodes: Vec<Value> = view
        .members
        .values()
        .map(|m| {
            json!({
                "id": m.id.as_str(),
                "name": m.info.name,
                "self": m.id == view.me,
                "alive": m.alive,
                "draining": m.info.draining,
                "version": m.info.version,
                "api_url": m.info.api_url,
                "mesh_addrs": m.info.mesh_addrs,
                "generation": m.generation,
                "last_seen_ms": Instant::now().saturating_duration_since(m.last_seen).as_millis() as u64,
                "devices": m.devices.values().map(|d| d.name.clone()).collect::<Vec<_>>(),
                "providers": m.providers.keys().collect::<Vec<_>>(),
                "statistics": m.stats.as_ref().map(|s| s.arms.iter().map(|a| {
                    json!({"arm": a.arm, "count": a.count, "version": a.version})
                }).collect::<Vec<_>>()),
            })
        })
        .collect();
    Json(json!({"nodes": nodes}))
}

/// `GET /shoal/v1/devices`
pub(crate) async fn devices(State(node): State<Arc<Node>>) -> Json<Value> {
    let view = node.mesh.view().borrow().clone();
    let inventory = node.pipeline.inventory.load();
    let name_of = |id: &str| {
        view.members
            .values()
            .find(|m| m.id.as_str() == id)
            .map_or_else(|| id.to_owned(), |m| m.info.name.clone())
    };
    let mut all: BTreeMap<String, &DeviceInfo> =
        inventory.direct.iter().map(|(k, v)| (k.to_string(), v)).collect();
    for (id, device) in view.devices() {
        all.entry(id.to_string()).or_insert(device.info);
    }
    let devices: Vec<Value> = all
        .iter()
        .map(|(id, d)| {
            let offer =
                inventory.registry.offers().iter().find(|o| o.upstream.name().as_ref() == id.as_str());
            let routes = offer.map(|o| o.routes.clone()).unwrap_or_default();
            let nodes: Vec<String> = routes
                .iter()
                .map(|r| match r {
                    Route::Direct => node.config.name.clone(),
                    Route::Via(id) => name_of(id),
                })
                .collect();
            device_view(&node, id, d, nodes, routes.contains(&Route::Direct))
        })
        .collect();
    Json(json!({"devices": devices}))
}

fn device_view(node: &Node, id: &str, d: &DeviceInfo, nodes: Vec<String>, direct: bool) -> Value {
    let upstream = UpstreamId::Device(id.into());
    let loads = &node.pipeline.loads;
    let models: Vec<Value> = d
        .models
        .iter()
        .map(|m| {
            let load = loads.load(&upstream, &m.id, Instant::now());
            json!({
                "id": m.id, "engine": m.engine, "context_length": m.context_length, "quantization": m.quantization,
                "digest": m.digest, "size_bytes": m.size_bytes, "tools": m.tools, "vision": m.vision,
                "logprobs": m.logprobs, "embeddings": m.embeddings, "schema": m.schema, "audio": m.audio,
                "transcription": m.transcription, "speech": m.speech, "remote": m.remote, "resident": m.resident,
                "ttft_ms": load.ttft_ms, "ms_per_token": load.ms_per_token, "breaker": load.breaker,
            })
        })
        .collect();
    let ttft = models.iter().filter_map(|m| m["ttft_ms"].as_f64()).reduce(f64::min);
    json!({
        "id": id,
        "name": d.name,
        "platform": d.platform,
        "version": d.version,
        "nodes": nodes,
        "direct": direct,
        "slots": d.slots,
        "in_flight": d.in_flight.max(loads.in_flight(&upstream)),
        "ttft_ms": ttft,
        "queued": d.queued,
        "kv_percent": d.kv_percent,
        "battery_percent": d.battery_percent,
        "charging": d.charging,
        "throttled": d.throttled,
        "models": models,
    })
}

#[derive(Deserialize)]
pub(super) struct Page {
    limit: Option<usize>,
}

/// `GET /shoal/v1/requests`
pub(super) async fn requests(
    State(node): State<Arc<Node>>,
    Query(page): Query<Page>,
) -> Result<Json<Value>, ApiError> {
    let (active, finished) = recent(&node, page.limit.unwrap_or(50).clamp(1, MAX_ROWS)).await?;
    Ok(Json(json!({"active": active, "requests": finished})))
}

/// Returns the requests in progress, oldest first, and the newest `limit` finished ones, newest first.
pub(crate) async fn recent(
    node: &Node,
    limit: usize,
) -> Result<(Vec<RequestRecord>, Vec<RequestRecord>), ApiError> {
    let active = node.pipeline.sinks.live.list();
    let history = node.pipeline.sinks.history.clone();
    let finished = tokio::task::spawn_blocking(move || history.newest(limit))
        .await
        .map_err(|e| ApiError::new(500, "internal_error", e.to_string()))?
        .map_err(|e| ApiError::new(500, "store_failed", e.to_string()))?;
    Ok((active, finished))
}

/// `GET /shoal/v1/requests/{id}`: here, or asked from the node that accepted it.
pub(super) async fn request(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    node.find_request(&id).await.map(Json)
}
