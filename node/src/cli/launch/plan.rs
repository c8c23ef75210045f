//! What each agent is started with, so that it asks the mesh: variables and arguments, worked out without doing
//! anything.

use std::ffi::OsString;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::super::args::Agent;

/// Variable that carries the key to agents which are told its name.
const KEY_VARIABLE: &str = "SHOAL_API_KEY";

/// A mesh as an agent is to see it.
#[derive(Debug, Clone)]
pub(super) struct Mesh {
    /// Base URL without `/v1`.
    pub(super) url: String,
    /// API key.
    pub(super) key: String,
    /// Model for the work.
    pub(super) model: String,
    /// Model for small things: titles, summaries.
    pub(super) small_model: String,
    /// Models that the agent may be switched to, with their contexts in tokens where they are known.
    pub(super) models: Vec<(String, Option<u64>)>,
    /// Certificates that prove the node, where the web's do not: of the mesh alone, and in one list with the host's.
    pub(super) trusted: Option<(PathBuf, PathBuf)>,
}

/// A program to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// Its name.
    pub(super) program: &'static str,
    /// Arguments before those of the caller.
    pub(super) args: Vec<String>,
    /// Variables to set.
    pub(super) set: Vec<(&'static str, OsString)>,
    /// Variables to take away.
    pub(super) unset: Vec<&'static str>,
    /// How to install it.
    pub(super) install: &'static str,
}

impl Mesh {
    /// Context of the model for the work, the longest of all where it is the mesh's to choose.
    fn context(&self) -> Option<u64> {
        let chosen =
            self.models.iter().find(|(model, _)| *model == self.model).and_then(|(_, context)| *context);
        chosen.or_else(|| {
            let is_ours = self.model == "auto" || self.model.starts_with("auto:");
            self.models.iter().filter_map(|(_, context)| *context).max().filter(|_| is_ours)
        })
    }
}

/// Returns a length of answers that leaves most of a context to the conversation; agents believe in 32,000.
fn answer_length(context: u64) -> u64 {
    (context / 8).clamp(1024, 32_000)
}

impl Plan {
    /// Plans the start of an agent.
    pub(super) fn of(agent: Agent, mesh: &Mesh) -> Self {
        let mut plan = match agent {
            Agent::Claude => claude(mesh),
            Agent::Codex => codex(mesh),
            Agent::Opencode => opencode(mesh),
        };
        if let Some((own, list)) = &mesh.trusted {
            plan.set.push(("NODE_EXTRA_CA_CERTS", own.into()));
            plan.set.push(("SSL_CERT_FILE", list.into()));
        }
        plan
    }
}

/// Claude Code speaks Anthropic's API and appends `/v1/messages` itself.
fn claude(mesh: &Mesh) -> Plan {
    let (model, small) = (OsString::from(&mesh.model), OsString::from(&mesh.small_model));
    // It takes a model that it does not know for one with the longest context there is, and then never compacts.
    let lengths = mesh.context().map(|context| {
        [
            ("CLAUDE_CODE_MAX_CONTEXT_TOKENS", context.to_string().into()),
            ("CLAUDE_CODE_MAX_OUTPUT_TOKENS", answer_length(context).to_string().into()),
        ]
    });
    let mut plan = Plan {
        program: "claude",
        args: Vec::new(),
        set: vec![
            ("ANTHROPIC_BASE_URL", mesh.url.clone().into()),
            ("ANTHROPIC_AUTH_TOKEN", mesh.key.clone().into()),
            ("ANTHROPIC_MODEL", model.clone()),
            // Each of its own names, so that switching by name stays in the mesh.
            ("ANTHROPIC_DEFAULT_OPUS_MODEL", model.clone()),
            ("ANTHROPIC_DEFAULT_SONNET_MODEL", model),
            ("ANTHROPIC_DEFAULT_HAIKU_MODEL", small.clone()),
            ("ANTHROPIC_SMALL_FAST_MODEL", small),
            // A line of its prompt that changes with every request and so spoils every engine's prompt cache.
            ("CLAUDE_CODE_ATTRIBUTION_HEADER", "0".into()),
        ],
        // A key for Anthropic is nothing to show to a node, and the agent would ask which of the two to use.
        unset: vec!["ANTHROPIC_API_KEY"],
        install: "npm install -g @anthropic-ai/claude-code",
    };
    plan.set.extend(lengths.into_iter().flatten());
    plan
}

/// Codex takes a provider by overrides of its configuration, whose values are TOML.
fn codex(mesh: &Mesh) -> Plan {
    let text = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let provider = "model_providers.shoal";
    let mut overrides = vec![
        ("model".to_owned(), text(&mesh.model)),
        ("model_provider".to_owned(), text("shoal")),
        (format!("{provider}.name"), text("Shoal")),
        (format!("{provider}.base_url"), text(&format!("{}/v1", mesh.url))),
        (format!("{provider}.env_key"), text(KEY_VARIABLE)),
        (format!("{provider}.wire_api"), text("responses")),
    ];
    if let Some(context) = mesh.context() {
        overrides.push(("model_context_window".to_owned(), context.to_string()));
    }
    Plan {
        program: "codex",
        args: overrides
            .into_iter()
            .flat_map(|(key, value)| ["-c".to_owned(), format!("{key}={value}")])
            .collect(),
        set: vec![(KEY_VARIABLE, mesh.key.clone().into()), ("OPENAI_API_KEY", mesh.key.clone().into())],
        unset: Vec::new(),
        install: "npm install -g @openai/codex",
    }
}

/// opencode merges a configuration from a variable into the user's own.
fn opencode(mesh: &Mesh) -> Plan {
    let entry = |model: &str, context: Option<u64>| {
        let mut entry = json!({"name": model});
        if let Some(context) = context {
            entry["limit"] = json!({"context": context, "output": answer_length(context)});
        }
        entry
    };
    let mut models: serde_json::Map<String, Value> =
        mesh.models.iter().map(|(model, context)| (model.clone(), entry(model, *context))).collect();
    for model in [&mesh.model, &mesh.small_model] {
        models.insert(model.clone(), entry(model, Mesh { model: model.clone(), ..mesh.clone() }.context()));
    }
    let config = json!({
        "$schema": "https://opencode.ai/config.json",
        "provider": {"shoal": {
            "npm": "@ai-sdk/openai-compatible",
            "name": "Shoal",
            "options": {"baseURL": format!("{}/v1", mesh.url), "apiKey": format!("{{env:{KEY_VARIABLE}}}")},
            "models": models,
        }},
        "model": format!("shoal/{}", mesh.model),
        "small_model": format!("shoal/{}", mesh.small_model),
    });
    Plan {
        program: "opencode",
        args: Vec::new(),
        set: vec![
            ("OPENCODE_CONFIG_CONTENT", config.to_string().into()),
            (KEY_VARIABLE, mesh.key.clone().into()),
        ],
        unset: Vec::new(),
        install: "npm install -g opencode-ai",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh() -> Mesh {
        Mesh {
            url: "http://127.0.0.1:8080".into(),
            key: "sk-shoal-x".into(),
            model: "auto".into(),
            small_model: "auto:fast".into(),
            models: vec![
                ("qwen \"3\"".into(), Some(65_536)),
                ("auto".into(), None),
                ("tiny".into(), Some(4096)),
            ],
            trusted: None,
        }
    }

    fn value(plan: &Plan, name: &str) -> String {
        let found = plan.set.iter().find(|(n, _)| *n == name);
        found.unwrap_or_else(|| panic!("{name} is not set")).1.to_str().unwrap().to_owned()
    }

    #[test]
    fn claude_is_pointed_at_the_mesh_under_every_name_of_its_models() {
        let plan = Plan::of(Agent::Claude, &mesh());
        assert_eq!(value(&plan, "ANTHROPIC_BASE_URL"), "http://127.0.0.1:8080");
        assert_eq!(value(&plan, "ANTHROPIC_AUTH_TOKEN"), "sk-shoal-x");
        assert_eq!(value(&plan, "ANTHROPIC_MODEL"), "auto");
        assert_eq!(value(&plan, "ANTHROPIC_SMALL_FAST_MODEL"), "auto:fast");
        assert_eq!(value(&plan, "CLAUDE_CODE_MAX_CONTEXT_TOKENS"), "65536");
        assert_eq!(value(&plan, "CLAUDE_CODE_MAX_OUTPUT_TOKENS"), "8192");
        let unknown = Plan::of(Agent::Claude, &Mesh { model: "other".into(), ..mesh() });
        assert!(unknown.set.iter().all(|(name, _)| !name.starts_with("CLAUDE_CODE_MAX")));
        assert_eq!(plan.unset, ["ANTHROPIC_API_KEY"]);
        assert!(plan.args.is_empty());
    }

    #[test]
    fn codexs_overrides_are_toml() {
        let plan = Plan::of(Agent::Codex, &Mesh { model: "qwen \"3\"".into(), ..mesh() });
        let text: String = plan
            .args
            .chunks(2)
            .inspect(|pair| assert_eq!(pair[0], "-c"))
            .map(|pair| format!("{}\n", pair[1]))
            .collect();
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["model"].as_str(), Some("qwen \"3\""));
        assert_eq!(table["model_context_window"].as_integer(), Some(65_536));
        let provider = &table["model_providers"]["shoal"];
        assert_eq!(provider["base_url"].as_str(), Some("http://127.0.0.1:8080/v1"));
        assert_eq!(provider["wire_api"].as_str(), Some("responses"));
        assert_eq!(value(&plan, provider["env_key"].as_str().unwrap()), "sk-shoal-x");
    }

    #[test]
    fn opencode_gets_a_provider_with_every_model_and_no_key_in_its_configuration() {
        let plan = Plan::of(Agent::Opencode, &mesh());
        let text = value(&plan, "OPENCODE_CONFIG_CONTENT");
        assert!(!text.contains("sk-shoal-x"));
        let config: Value = serde_json::from_str(&text).unwrap();
        let provider = &config["provider"]["shoal"];
        assert_eq!(provider["options"]["baseURL"], "http://127.0.0.1:8080/v1");
        let models: Vec<&String> = provider["models"].as_object().unwrap().keys().collect();
        assert_eq!(models, ["qwen \"3\"", "auto", "tiny", "auto:fast"], "in the order of the mesh's list");
        assert_eq!(provider["models"]["tiny"]["limit"], json!({"context": 4096, "output": 1024}));
        assert_eq!(provider["models"]["auto"]["limit"]["context"], 65_536);
        assert_eq!(config["model"], "shoal/auto");
    }

    #[test]
    fn a_mesh_that_proves_itself_is_trusted() {
        let trusted = Some((PathBuf::from("/d/ca.crt"), PathBuf::from("/d/all.crt")));
        for agent in [Agent::Claude, Agent::Codex, Agent::Opencode] {
            let plan = Plan::of(agent, &Mesh { trusted: trusted.clone(), ..mesh() });
            assert_eq!(value(&plan, "NODE_EXTRA_CA_CERTS"), "/d/ca.crt");
            assert_eq!(value(&plan, "SSL_CERT_FILE"), "/d/all.crt");
        }
    }
}
