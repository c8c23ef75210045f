//! What a router between us and a model says that an answer cost.

use bytes::Bytes;
use http::HeaderMap;

/// Header in which LiteLLM says what an answer cost, US dollars; 0 where it does not know.
const LITELLM_COST: &str = "x-litellm-response-cost";

pub(super) fn billed(headers: &HeaderMap) -> Option<f64> {
    let told: f64 = headers.get(LITELLM_COST)?.to_str().ok()?.trim().parse().ok()?;
    (told.is_finite() && told > 0.0).then_some(told)
}

/// Writes what an answer cost to where OpenRouter writes it, so that it is read in one place.
pub(super) fn with_cost(body: Bytes, usd: f64) -> Bytes {
    let Ok(mut answer) = serde_json::from_slice::<serde_json::Value>(&body) else { return body };
    match answer.get_mut("usage").and_then(serde_json::Value::as_object_mut) {
        Some(usage) if !usage.contains_key("cost") => drop(usage.insert("cost".into(), usd.into())),
        _ => return body,
    }
    serde_json::to_vec(&answer).map_or(body, Bytes::from)
}
