//! LiteLLM's `config.yaml`: deployments become devices and providers, groups of them aliases, fallbacks chains.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::page::{Page, quoted, shown};
use super::places::{Key, Place, place};
use super::{Error, Imported};
use crate::cloud::settings::KNOWN;
use crate::config::{FileAlias, FileConfig, FileTarget, rules_of};

/// Most fallbacks of one alias.
const MAX_CHAIN: usize = 16;
/// Budget of a provider where the file has none for it.
const USUAL_BUDGET: &str = "1usd/day";

/// Settings of a deployment that are read here; others are named in a note.
const READ: &[&str] = &[
    "model",
    "api_base",
    "base_url",
    "api_key",
    "weight",
    "rpm",
    "tpm",
    "order",
    "input_cost_per_token",
    "output_cost_per_token",
    "api_version",
    "custom_llm_provider",
];

/// Turns a file into ours.
///
/// `env` tells addresses that stand in variables; keys are never looked up.
///
/// # Errors
/// The text is no YAML, has no `model_list`, or what would come out is not right.
pub fn import(yaml: &str, env: &[(String, String)]) -> Result<Imported, Error> {
    let malformed = |message: String| Error::Malformed(message);
    let root: Value = serde_saphyr::from_str(yaml).map_err(|e| {
        let first = e.to_string().lines().next().unwrap_or_default().to_owned();
        malformed(format!("it is not YAML: {}", shown(&first)))
    })?;
    let list = root["model_list"]
        .as_array()
        .ok_or_else(|| malformed("it has no list 'model_list'; give LiteLLM's config.yaml".to_owned()))?;
    let mut out = Import { env, ..Import::default() };
    for (at, entry) in list.iter().enumerate() {
        out.deployment(at, entry);
    }
    let aliases = out.aliases(&root);
    let (text, notes) = out.page(&root, &aliases);
    check(&text)?;
    let variables = out.providers.iter().filter_map(|provider| provider.variable.clone()).collect();
    Ok(Imported {
        text,
        devices: out.devices.len(),
        providers: out.providers.len(),
        aliases: aliases.len(),
        variables,
        notes,
    })
}

/// Checks what was written as `shoal config check` does, but for the keys, which are not here.
fn check(text: &str) -> Result<(), Error> {
    let file: FileConfig = toml::from_str(text).map_err(|e| Error::Result(e.to_string()))?;
    rules_of(file.routes, file.aliases).map(drop).map_err(|e| Error::Result(e.to_string()))
}

#[derive(Default)]
struct Import<'a> {
    env: &'a [(String, String)],
    devices: Vec<Device>,
    providers: Vec<Provider>,
    /// Deployments of each group, in the order of the file.
    groups: BTreeMap<String, Vec<Deployment>>,
    /// Groups in the order of the file.
    order: Vec<String>,
    notes: Vec<String>,
}

struct Device {
    url: String,
    name: String,
}

struct Provider {
    name: String,
    /// Name and base URL before it was told from another account at the same place.
    place: (String, Option<String>),
    base: Option<String>,
    variable: Option<String>,
    models: Vec<String>,
    prices: Vec<(String, f64, f64)>,
    /// Its key stood in the file.
    literal: bool,
}

struct Deployment {
    target: Target,
    weight: Option<f64>,
    order: i64,
}

#[derive(Clone, PartialEq)]
enum Target {
    /// A model of a device.
    Device { device: usize, model: String },
    /// `provider/model`.
    Provider(String),
}

impl Import<'_> {
    fn deployment(&mut self, at: usize, entry: &Value) {
        let Some(group) = entry["model_name"].as_str().filter(|name| !name.is_empty()) else {
            self.notes.push(format!("model_list[{at}] has no model_name and is left out"));
            return;
        };
        let params = &entry["litellm_params"];
        let what = format!("a deployment of '{}' (model_list[{at}])", shown(group));
        let Some(model) = params["model"].as_str() else {
            self.notes.push(format!("{what} has no litellm_params.model and is left out"));
            return;
        };
        let custom = params["custom_llm_provider"].as_str().filter(|prefix| !model.starts_with(*prefix));
        let model = custom.map_or_else(|| model.to_owned(), |prefix| format!("{prefix}/{model}"));
        let key = Key::of(params["api_key"].as_str());
        let base = params["api_base"].as_str().or(params["base_url"].as_str());
        let base = match base.map(|text| (text, text.strip_prefix("os.environ/"))) {
            Some((_, Some(name))) => match crate::config::lookup(self.env, name) {
                Some(url) => Some(url.to_owned()),
                None => {
                    let name = shown(name);
                    self.notes.push(format!(
                        "{what} is left out: its address is in {name}, which is not set here; set it and import again"
                    ));
                    return;
                }
            },
            Some((text, None)) => Some(text.to_owned()),
            None => None,
        };
        let target = match place(&model, base.as_deref(), &key) {
            Err(why) => {
                self.notes.push(format!("{what} is left out: {why}"));
                return;
            }
            Ok(Place::Device { url, model }) => Target::Device { device: self.device(url), model },
            Ok(Place::Provider { name, base, variable, model }) => {
                let literal = key == Key::Literal;
                let index = self.provider(name, base, variable, literal);
                let provider = &mut self.providers[index];
                if !provider.models.contains(&model) {
                    provider.models.push(model.clone());
                }
                provider.price(&model, params, &entry["model_info"]);
                Target::Provider(format!("{}/{model}", provider.name))
            }
        };
        let others: Vec<String> = keys_of(params).filter(|key| !READ.contains(key)).map(shown).collect();
        if !others.is_empty() {
            self.notes.push(format!(
                "{what} also sets {}, which clients say in their requests here",
                others.join(", ")
            ));
        }
        let number = |key: &str| params[key].as_f64().filter(|value| value.is_finite() && *value > 0.0);
        let deployment = Deployment {
            target,
            weight: number("weight").or(number("rpm")).or(number("tpm")),
            order: params["order"].as_i64().unwrap_or(1),
        };
        if !self.order.iter().any(|name| name == group) {
            self.order.push(group.to_owned());
        }
        self.groups.entry(group.to_owned()).or_default().push(deployment);
    }

    fn device(&mut self, url: String) -> usize {
        if let Some(index) = self.devices.iter().position(|device| device.url == url) {
            return index;
        }
        let place = url.split("://").nth(1).unwrap_or_default();
        let name: String =
            place.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(60).collect();
        let name = name.trim_matches('-').to_owned();
        self.devices.push(Device { url, name });
        self.devices.len() - 1
    }

    fn provider(
        &mut self,
        name: String,
        base: Option<String>,
        variable: Option<String>,
        literal: bool,
    ) -> usize {
        let place = (name.clone(), base.clone());
        let same = |other: &Provider| other.place == place && other.variable == variable;
        if let Some(index) = self.providers.iter().position(same) {
            self.providers[index].literal |= literal;
            return index;
        }
        let is_taken = |name: &str| self.providers.iter().any(|other| other.name == name);
        let mut free = name.clone();
        let mut number = 1;
        while is_taken(&free) {
            number += 1;
            free = format!("{name}-{number}");
        }
        // A second account at a provider that is known by its name has to say where it is.
        let known = KNOWN.iter().find(|known| known.name == name);
        let base = base.or(known.filter(|_| free != name).map(|known| known.base.to_owned()));
        self.providers.push(Provider {
            name: free,
            place,
            base,
            variable,
            models: Vec::new(),
            prices: Vec::new(),
            literal,
        });
        self.providers.len() - 1
    }

    /// Makes an alias of each group that is more than the name of its one model.
    fn aliases(&mut self, root: &Value) -> Vec<FileAlias> {
        let chains = Chains::of(root);
        let mut aliases = Vec::new();
        for group in self.order.clone() {
            let deployments = &self.groups[&group];
            let first = deployments.iter().map(|deployment| deployment.order).min().unwrap_or(1);
            let (now, later): (Vec<_>, Vec<_>) =
                deployments.iter().partition(|deployment| deployment.order == first);
            let split = self.split(&now);
            let mut fallback: Vec<String> =
                self.split(&later).into_iter().map(|target| target.model).collect();
            fallback.extend(chains.of_group(&group));
            let fallback = self.usable(fallback, &group, root);
            let stands_for_itself = split.len() == 1 && split[0].model == group && fallback.is_empty();
            if stands_for_itself {
                continue;
            }
            if let Some(alias) = self.alias(&group, split, fallback) {
                aliases.push(alias);
            }
        }
        for (name, target) in group_aliases(root) {
            match self.groups.contains_key(&target) && !self.groups.contains_key(&name) {
                true => aliases.extend(self.alias(&name, vec![FileTarget { model: target, weight: 1.0 }], Vec::new())),
                false => self.notes.push(format!(
                    "model_group_alias '{}' is left out: its target is no group of the file, or its own name is one",
                    shown(&name)
                )),
            }
        }
        aliases
    }

    /// Makes the split of deployments of one order: weights relative to one another, equal ones if one has none.
    fn split(&self, deployments: &[&Deployment]) -> Vec<FileTarget> {
        let weights: Option<Vec<f64>> = deployments.iter().map(|deployment| deployment.weight).collect();
        let weights = weights.unwrap_or_else(|| vec![1.0; deployments.len()]);
        let largest = weights.iter().copied().fold(1.0, f64::max);
        let even = weights.iter().all(|weight| *weight == weights[0]);
        let mut split: Vec<FileTarget> = Vec::new();
        for (deployment, weight) in deployments.iter().zip(&weights) {
            let model = match &deployment.target {
                Target::Provider(model) => model.clone(),
                // Hosts of one model are balanced by what they do at the moment, unless somebody weighed them.
                Target::Device { model, .. } if even => model.clone(),
                Target::Device { device, model } => format!("device:{}/{model}", self.devices[*device].name),
            };
            // Large rates (tokens a minute) become small weights in the same proportion.
            let weight = if even {
                1.0
            } else if largest > 1e6 {
                weight / largest
            } else {
                *weight
            };
            match split.iter_mut().find(|target| target.model == model) {
                Some(_) if even => {}
                Some(target) => target.weight += weight,
                None => split.push(FileTarget { model, weight }),
            }
        }
        split
    }

    fn alias(&mut self, name: &str, mut split: Vec<FileTarget>, fallback: Vec<String>) -> Option<FileAlias> {
        let chooses = name == "auto" || name.starts_with("auto:") || name.starts_with("device:");
        if chooses || name.contains('*') || name.len() > 256 || split.is_empty() {
            self.notes.push(format!(
                "the group '{}' has no alias: a pattern, 'auto' and 'device:…' cannot be one; its models are there as provider/model",
                shown(name)
            ));
            return None;
        }
        let single = (split.len() == 1).then(|| split.remove(0).model);
        Some(FileAlias { name: name.to_owned(), model: single, split, fallback, ..FileAlias::default() })
    }

    /// Leaves out of a chain what is nothing here, what occurs twice, and the group itself.
    fn usable(&mut self, chain: Vec<String>, group: &str, root: &Value) -> Vec<String> {
        let names: Vec<String> = group_aliases(root).into_iter().map(|(name, _)| name).collect();
        let mut out: Vec<String> = Vec::new();
        for model in chain {
            let is_group = self.groups.contains_key(&model) || names.contains(&model);
            let is_target = model.contains('/') || model.starts_with("device:");
            if model == group || out.contains(&model) {
                continue;
            }
            if !(is_group || is_target) {
                self.notes.push(format!(
                    "the fallback '{}' of '{}' is left out: it is no group of the file, or was left out itself",
                    shown(&model),
                    shown(group)
                ));
                continue;
            }
            out.push(model);
        }
        if out.len() > MAX_CHAIN {
            self.notes.push(format!(
                "'{}' has more than {MAX_CHAIN} fallbacks; the rest is left out",
                shown(group)
            ));
            out.truncate(MAX_CHAIN);
        }
        out
    }

    fn page(&self, root: &Value, aliases: &[FileAlias]) -> (String, usize) {
        let mut page = Page::default();
        page.line("version = 1");
        page.comment("Made of a configuration of LiteLLM by `shoal config import`; check it with `shoal config check`.");
        page.comment(
            "Requests make at most 3 attempts; hosts are balanced by load, latency and health by themselves.",
        );
        for note in &self.notes {
            page.note(note);
        }
        settings(&mut page, root);
        for device in &self.devices {
            page.line("\n[[devices]]");
            page.set("url", &device.url);
            page.set("name", &device.name);
        }
        for provider in &self.providers {
            provider.write(&mut page, root);
        }
        for provider in &self.providers {
            for (model, input, output) in &provider.prices {
                page.line("\n[[prices]]");
                page.set("provider", &provider.name);
                page.set("model", model);
                page.line(&format!("input = {input:?}\noutput = {output:?}"));
            }
        }
        aliases.iter().for_each(|alias| page.alias(alias));
        page.finish()
    }
}

impl Provider {
    fn price(&mut self, model: &str, params: &Value, info: &Value) {
        let of = |key: &str| params[key].as_f64().or(info[key].as_f64()).map(|usd| usd * 1e6);
        let fits = |usd: &f64| (0.0..=10_000.0).contains(usd);
        let price = of("input_cost_per_token").filter(fits).zip(of("output_cost_per_token").filter(fits));
        if let Some((input, output)) = price
            && self.prices.iter().all(|(known, ..)| known != model)
        {
            // A price per token times a million has digits that nobody wrote.
            let round = |usd: f64| (usd * 1e6).round() / 1e6;
            self.prices.push((model.to_owned(), round(input), round(output)));
        }
    }

    fn write(&self, page: &mut Page, root: &Value) {
        page.line("\n[[providers]]");
        page.set("name", &self.name);
        if let Some(base) = &self.base {
            page.set("base_url", base);
        }
        if self.literal {
            let usual = KNOWN.iter().find(|known| known.name == self.name).map(|known| known.key_env);
            let variable = self.variable.as_deref().or(usual).unwrap_or_default();
            page.note(&format!(
                "its key stood in the file and is not copied; put it into {variable}, or name a file with key_file"
            ));
        }
        if let Some(variable) = &self.variable {
            page.set("key_env", variable);
        }
        page.list("models", &self.models);
        match budget(&root["router_settings"]["provider_budget_config"][self.name.as_str()]) {
            Some(budget) => page.set("budget", &budget),
            None => page.line(&format!(
                "budget = {}  # the usual one: nothing is spent beyond it; raise it to what you want to spend",
                quoted(USUAL_BUDGET)
            )),
        }
    }
}

/// Reads a budget such as `{"budget_limit": 10, "time_period": "1d"}`, where a day or a month is meant.
fn budget(config: &Value) -> Option<String> {
    let usd = config["budget_limit"].as_f64().or(config["max_budget"].as_f64())?;
    let period = config["time_period"].as_str().or(config["budget_duration"].as_str())?;
    let period = match period {
        "1d" | "24h" => "day",
        "30d" | "31d" | "1mo" => "month",
        _ => return None,
    };
    (usd >= 0.0 && usd <= 1e6).then(|| format!("{usd}usd/{period}"))
}

/// What a group falls back to.
struct Chains(Vec<(String, Vec<String>)>, Vec<String>);

impl Chains {
    fn of(root: &Value) -> Self {
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

    fn of_group(&self, group: &str) -> Vec<String> {
        let own = self.0.iter().filter(|(name, _)| name == group).flat_map(|(_, models)| models);
        own.chain(&self.1).cloned().collect()
    }
}

/// Reads `model_group_alias`: a name, or an object with the name and more.
fn group_aliases(root: &Value) -> Vec<(String, String)> {
    let aliases = root["router_settings"]["model_group_alias"].as_object();
    let target = |value: &Value| value.as_str().or(value["model"].as_str()).map(str::to_owned);
    aliases.into_iter().flatten().filter_map(|(name, value)| Some((name.clone(), target(value)?))).collect()
}

/// Says what becomes of the other settings: their names only, since a value may be a secret.
fn settings(page: &mut Page, root: &Value) {
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

fn keys_of(value: &Value) -> impl Iterator<Item = &str> {
    value.as_object().into_iter().flat_map(Map::keys).map(String::as_str)
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}
