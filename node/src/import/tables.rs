//! The tables of LiteLLM's file beside `model_list`: chains, aliases of groups, budgets, and what is only named.

use serde_json::{Map, Value};

use super::page::{Page, shown};

/// Reads a budget such as `{"budget_limit": 10, "time_period": "1d"}`, where a day or a month is meant.
pub(super) fn budget(config: &Value) -> Option<String> {
    let usd = config["budget_limit"].as_f64().or(config["max_budget"].as_f64())?;
    let period = config["time_period"].as_str().or(config["budget_duration"].as_str())?;
    let period = match period {
        "1d" | "24h" => "day",
        "30d" | "31d" | "1mo" => "month",
        _ => return None,
    };
    (0.0..=1e6).contains(&usd).then(|| format!("{usd}usd/{period}"))
}

/// What groups fall back to: each with its chain, then what counts for all.
pub(super) struct Chains(Vec<(String, Vec<String>)>, Vec<String>);

impl Chains {
    pub(super) fn of(root: &Value) -> Self {
        let tables = [&root["router_settings"], &root["litellm_settings"]];
        let mut chains: Vec<(String, Vec<String>)> = Vec::new();
        let mut all = Vec::new();
        for table in tables {
            for key in ["fallbacks", "context_window_fallbacks", "content_policy_fallbacks"] {
                for pair in table[key].as_array().into_iter().flatten() {
                    for (group, models) in pair.as_object().into_iter().flatten() {
                        let models = texts(models);
                        match group.as_str() {
                            "*" => all.extend(models),
                            _ => chains.push((group.clone(), models)),
                        }
                    }
                }
            }
            all.extend(texts(&table["default_fallbacks"]));
        }
        Self(chains, all)
    }

    pub(super) fn of_group(&self, group: &str) -> Vec<String> {
        let own = self.0.iter().filter(|(name, _)| name == group).flat_map(|(_, models)| models);
        own.chain(&self.1).cloned().collect()
    }
}

/// Reads `model_group_alias`: a name, or an object with the name and more.
pub(super) fn group_aliases(root: &Value) -> Vec<(String, String)> {
    let aliases = root["router_settings"]["model_group_alias"].as_object();
    let target = |value: &Value| value.as_str().or(value["model"].as_str()).map(str::to_owned);
    aliases.into_iter().flatten().filter_map(|(name, value)| Some((name.clone(), target(value)?))).collect()
}

/// Says what becomes of the other settings: their names only, since a value may be a secret.
pub(super) fn settings(page: &mut Page, root: &Value) {
    let strategy = root["router_settings"]["routing_strategy"].as_str();
    if let Some(strategy) = strategy.filter(|strategy| *strategy != "simple-shuffle") {
        page.note(&format!(
            "routing_strategy '{}': hosts are balanced by load and latency; ask for auto:cheap or auto:fast to weigh models",
            shown(strategy)
        ));
    }
    if root["general_settings"]["master_key"].is_string() {
        page.note(
            "general_settings.master_key: Shoal makes its first key itself; `shoal keys create` makes more",
        );
    }
    const CARRIED: &[&str] = &[
        "routing_strategy",
        "model_group_alias",
        "fallbacks",
        "context_window_fallbacks",
        "content_policy_fallbacks",
        "default_fallbacks",
        "provider_budget_config",
        "master_key",
        "telemetry",
        "set_verbose",
        "drop_params",
        "num_retries",
        "retry_after",
        "enable_pre_call_checks",
    ];
    for table in ["router_settings", "litellm_settings", "general_settings", "environment_variables"] {
        let left: Vec<String> =
            keys_of(&root[table]).filter(|key| !CARRIED.contains(key)).map(shown).collect();
        if !left.is_empty() {
            page.note(&format!("{table}: no counterpart for {}", left.join(", ")));
        }
    }
    if ["router_settings", "litellm_settings"].iter().any(|t| !root[*t]["content_policy_fallbacks"].is_null())
    {
        page.note("content_policy_fallbacks are tried on every failure, not on refusals by a provider's filter alone");
    }
}

pub(super) fn keys_of(value: &Value) -> impl Iterator<Item = &str> {
    value.as_object().into_iter().flat_map(Map::keys).map(String::as_str)
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}
