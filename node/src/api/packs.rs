//! Router packs over the admin socket: what is adopted moves where requests go, so only the node's own machine may.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, State};
use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::{Value, json};
use shoal_routing::Pack;

use super::error::ApiError;
use crate::evaluate::{self, Candidate, Choice, Known, MAX_DECISIONS, Verdict, verdict_json};
use crate::node::Node;
use crate::pack::{self, Header, RouterPack, Source, Trust, seal};
use crate::store::{DecisionLog, unix_ms};

/// Base64 makes four bytes of three; the rest is for the other fields.
const BODY_BYTES: usize = pack::MAX_BYTES * 4 / 3 + 4096;

/// Time that an import's estimate looks back.
const IMPORT_LOOKS_BACK_MS: u64 = 30 * 86_400_000;

pub(super) fn body_limit() -> DefaultBodyLimit {
    DefaultBodyLimit::max(BODY_BYTES)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewExport {
    name: Option<String>,
}

/// `POST /admin/v1/router/export`: what the mesh has learnt, signed by this node.
pub(super) async fn export(
    State(node): State<Arc<Node>>,
    body: Result<Json<NewExport>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let Json(body) = body.map_err(|e| ApiError::new(400, "invalid_request_error", e.body_text()))?;
    let packed = pack::of_mesh(&node.pipeline.sinks.feedback.learnt());
    if packed.arms.is_empty() {
        let message = "the mesh has learnt nothing yet that a pack could hold: give feedback on some answers first (POST /v1/feedback)";
        return Err(ApiError::new(409, "nothing_learnt", message));
    }
    let name = body.name.unwrap_or_else(|| node.config.name.clone());
    let rows = packed.arms.values().map(|arm| arm.quality.version).sum();
    let header = Header {
        name: name.clone(),
        made_ms: unix_ms(),
        sources: vec![Source { name: format!("mesh of {name}"), licence: String::new(), rows }],
        prices_sha256: pack::prices_sha256(),
    };
    let bytes = RouterPack::write_signed(&header, &packed, &node.identity);
    let written = RouterPack::read(&bytes).map_err(unreadable)?;
    Ok(Json(json!({
        "pack": BASE64.encode(&bytes),
        "bytes": bytes.len(),
        "name": name,
        "key": written.seal.map(|seal| seal.key_text()),
        "judgements": rows,
        "arms": packed.arms.keys().map(|arm| arm.as_str()).collect::<Vec<_>>(),
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Import {
    pack: String,
    key: Option<String>,
    #[serde(default)]
    allow_unsigned: bool,
    #[serde(default)]
    adopt: bool,
}

/// `POST /admin/v1/router/pack`: checks a pack and says what it would have earned; adopts it with `adopt`.
pub(super) async fn import(
    State(node): State<Arc<Node>>,
    body: Result<Json<Import>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let Json(body) = body.map_err(|e| ApiError::new(400, "invalid_request_error", e.body_text()))?;
    let (bytes, read) = decode(&body.pack)?;
    let key = body.key.as_deref().map(parse_key).transpose()?;
    let trust = seal::trust(
        read.seal.as_ref(),
        &node.identity,
        key.as_deref(),
        body.allow_unsigned,
        SystemTime::now(),
    )
    .map_err(|refusal| ApiError::new(403, "untrusted_pack", refusal.to_string()))?;
    let shipped = node.config.router.shipped_pack;
    let with = pack::effective(Some(&read.pack), shipped);
    let since_ms = unix_ms().saturating_sub(IMPORT_LOOKS_BACK_MS);
    let estimate = estimate(&node, Choice::Thompson, with.clone(), since_ms).await?;
    if body.adopt {
        let (store, name, word) = (node.store.clone(), read.header.name.clone(), trust.as_str());
        blocking(move || store.adopt_pack(&name, word, &bytes)).await?;
        node.pipeline.sinks.feedback.begin_with(Arc::new(with)).await;
        tracing::info!(pack = read.header.name, trust = trust.as_str(), "a router pack was adopted");
    }
    let signer = match &trust {
        Trust::OwnMesh(id) => Some(id.clone()),
        Trust::NamedKey | Trust::Unproven => None,
    };
    Ok(Json(json!({
        "name": read.header.name,
        "made_unix_ms": read.header.made_ms,
        "sources": read.header.sources.iter().map(|source| json!({
            "name": source.name, "licence": source.licence, "rows": source.rows,
        })).collect::<Vec<_>>(),
        "key": read.seal.as_ref().map(seal::Seal::key_text),
        "trust": trust.as_str(),
        "signer": signer,
        "arms": read.pack.arms.iter().map(|(arm, evidence)| json!({
            "arm": arm.as_str(), "weight": evidence.quality.weight(), "mean": evidence.quality.mean(),
        })).collect::<Vec<_>>(),
        "classes": read.pack.classes.0.iter().map(|(class, sums)| json!({
            "class": class.as_str(), "weight": sums.weight(),
        })).collect::<Vec<_>>(),
        "estimate": estimate,
        "adopted": body.adopt,
    })))
}

/// `DELETE /admin/v1/router/pack`
pub(super) async fn remove(State(node): State<Arc<Node>>) -> Result<Json<Value>, ApiError> {
    let store = node.store.clone();
    if !blocking(move || store.remove_pack()).await? {
        return Err(ApiError::new(
            404,
            "not_found",
            "no pack is adopted; `shoal router import FILE` adopts one",
        ));
    }
    let pack = pack::effective(None, node.config.router.shipped_pack);
    node.pipeline.sinks.feedback.begin_with(Arc::new(pack)).await;
    tracing::info!("the adopted router pack was removed");
    Ok(Json(json!({"removed": true})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Eval {
    policy: String,
    pack: Option<String>,
    since_s: u64,
}

/// `POST /admin/v1/router/eval`
pub(super) async fn eval(
    State(node): State<Arc<Node>>,
    body: Result<Json<Eval>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let Json(body) = body.map_err(|e| ApiError::new(400, "invalid_request_error", e.body_text()))?;
    let choice: Choice = body.policy.parse().map_err(|e: String| ApiError::invalid("policy", e))?;
    let pack = match &body.pack {
        Some(text) => pack::effective(Some(&decode(text)?.1.pack), node.config.router.shipped_pack),
        None => (*node.pipeline.sinks.feedback.learnt().priors).clone(),
    };
    let since_ms = unix_ms().saturating_sub(body.since_s.saturating_mul(1000));
    let mut answer = estimate(&node, choice, pack, since_ms).await?;
    answer["policy"] = json!(body.policy);
    answer["since_s"] = json!(body.since_s);
    Ok(Json(answer))
}

/// Evaluates a candidate beside what the node does now, by the same rule.
async fn estimate(node: &Arc<Node>, choice: Choice, pack: Pack, since_ms: u64) -> Result<Value, ApiError> {
    // A connection of its own: reading tens of thousands of rows must not hold up what pays and records.
    let dir = node.config.data_dir.clone();
    let learnt = node.pipeline.sinks.feedback.learnt();
    let me = node.mesh.node_id().to_string();
    let (log, candidate, present) = tokio::task::spawn_blocking(move || {
        let log = crate::store::decision_log_at(&dir, since_ms, MAX_DECISIONS)?;
        let known = Known::of(&learnt, &me, (*learnt.priors).clone());
        let candidate = Candidate { choice, pack };
        let present = Candidate { choice: Choice::Thompson, pack: known.present.clone() };
        let measure = |candidate| evaluate::evaluate(&log.decisions, &known, candidate);
        let (candidate, present) = (measure(&candidate), measure(&present));
        Ok((log, candidate, present))
    })
    .await
    .map_err(|_| ApiError::new(500, "internal_error", "the evaluation failed; the node's log says more"))?
    .map_err(|e: crate::store::Error| ApiError::new(500, "store_failed", e.to_string()))?;
    Ok(report(&log, candidate.as_ref(), present.as_ref()))
}

fn report(log: &DecisionLog, candidate: Option<&Verdict>, present: Option<&Verdict>) -> Value {
    let mut logged: BTreeMap<&str, f64> = BTreeMap::new();
    for row in &log.decisions {
        *logged.entry(row.arm.as_str()).or_default() += 1.0 / log.decisions.len() as f64;
    }
    json!({
        "decisions": log.decisions.len(),
        "too_few": candidate.is_none_or(|verdict| verdict.utility.is_thin()),
        "left_out": {"no_choice": log.no_choice, "taken_over": log.taken_over, "incomplete": log.incomplete},
        "logged_shares": logged,
        "candidate": candidate.map(verdict_json),
        "present": present.map(verdict_json),
    })
}

fn decode(text: &str) -> Result<(Vec<u8>, RouterPack), ApiError> {
    let bytes = BASE64
        .decode(text.as_bytes())
        .map_err(|_| ApiError::invalid("pack", "'pack' must be a pack file in base64"))?;
    let read = RouterPack::read(&bytes).map_err(unreadable)?;
    Ok((bytes, read))
}

fn unreadable(error: pack::Error) -> ApiError {
    ApiError::new(422, "unusable_pack", error.to_string())
}

fn parse_key(text: &str) -> Result<Vec<u8>, ApiError> {
    let key = data_encoding::HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).ok();
    key.filter(|key| key.len() == 32).ok_or_else(|| {
        ApiError::invalid("key", "a key has 64 hexadecimal digits; `shoal router export` prints it")
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, crate::store::Error> + Send + 'static,
) -> Result<T, ApiError> {
    let failed = |e: &dyn std::fmt::Display| ApiError::new(500, "store_failed", e.to_string());
    tokio::task::spawn_blocking(work).await.map_err(|e| failed(&e))?.map_err(|e| failed(&e))
}
