//! LiteLLM's `config.yaml`: deployments become devices and providers, groups of them aliases, fallbacks chains.

use std::collections::BTreeMap;

use serde_json::Value;

use super::page::{Page, quoted, shown};
use super::places::{Key, Place, Spoken, place};
use super::tables::{budget, keys_of, settings};
use super::{Error, Imported};
use crate::cloud::settings::KNOWN;
use crate::config::{FileAlias, FileConfig, rules_of};

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
pub(super) struct Import<'a> {
    pub(super) env: &'a [(String, String)],
    pub(super) devices: Vec<Device>,
    pub(super) providers: Vec<Provider>,
    /// Deployments of each group, in the order of the file.
    pub(super) groups: BTreeMap<String, Vec<Deployment>>,
    /// Groups in the order of the file.
    pub(super) order: Vec<String>,
    pub(super) notes: Vec<String>,
}

pub(super) struct Device {
    pub(super) url: String,
    pub(super) name: String,
}

pub(super) struct Provider {
    pub(super) name: String,
    /// Name and base URL before it was told from another account at the same place.
    pub(super) place: (String, Option<String>),
    pub(super) base: Option<String>,
    pub(super) spoken: Spoken,
    pub(super) variable: Option<String>,
    pub(super) models: Vec<String>,
    pub(super) prices: Vec<(String, f64, f64)>,
    /// Its key stood in the file.
    pub(super) literal: bool,
}

pub(super) struct Deployment {
    pub(super) target: Target,
    pub(super) weight: Option<f64>,
    pub(super) order: i64,
}

#[derive(Clone, PartialEq)]
pub(super) enum Target {
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
        let target = match place(&model, base.as_deref(), &key, params["api_version"].as_str()) {
            Err(why) => {
                self.notes.push(format!("{what} is left out: {why}"));
                return;
            }
            Ok(Place::Device { url, model }) => Target::Device { device: self.device(url), model },
            Ok(Place::Provider { name, base, spoken, variable, model }) => {
                let literal = key == Key::Literal;
                let index = self.provider(name, base, spoken, variable, literal);
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
        spoken: Spoken,
        variable: Option<String>,
        literal: bool,
    ) -> usize {
        let place = (name.clone(), base.clone());
        let same =
            |other: &Provider| other.place == place && other.spoken == spoken && other.variable == variable;
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
            spoken,
            variable,
            models: Vec::new(),
            prices: Vec::new(),
            literal,
        });
        self.providers.len() - 1
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
        if let Some(kind) = self.spoken.kind {
            page.set("kind", kind.as_str());
        }
        if let Some(version) = &self.spoken.version {
            page.set("api_version", version);
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
