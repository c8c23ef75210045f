//! Configurations as people have them, there and back: what comes out passes the node's own check.

use super::*;
use crate::config::{Config, check_file};
use crate::upstream::provider::Kind;

/// A literal key that must show nowhere.
const CANARY: &str = "sk-canary-5e1d";

/// Imports, and reads the result as `shoal config check` does with the keys in the environment.
fn round_trip(yaml: &str) -> (Imported, Config) {
    let imported = from_litellm(yaml, &[]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shoal.toml");
    std::fs::write(&path, &imported.text).unwrap();
    let env: Vec<(String, String)> =
        imported.variables.iter().map(|name| (name.clone(), "sk-from-environment".to_owned())).collect();
    let config = check_file(&path, &env).unwrap_or_else(|e| panic!("{e}\n{}", imported.text));
    (imported, config)
}

fn shares(config: &Config, name: &str) -> Vec<(String, f64)> {
    config.rules.shares(name).into_iter().map(|(model, share)| (model.to_string(), share)).collect()
}

fn fallback(config: &Config, name: &str) -> Vec<String> {
    let alias = config.rules.aliases().find(|alias| &*alias.name == name).unwrap();
    alias.targets.fallback.iter().map(ToString::to_string).collect()
}

#[test]
fn a_balanced_group_with_chains_and_an_alias() {
    let yaml = r#"
model_list:
  - model_name: gpt-4o
    litellm_params: {model: openai/gpt-4o, api_key: os.environ/OPENAI_API_KEY, rpm: 300}
  - model_name: gpt-4o
    litellm_params:
      model: azure/my-gpt4o
      api_base: https://my-endpoint.openai.azure.com/
      api_key: os.environ/AZURE_API_KEY_EU
      api_version: "2024-02-01"
      rpm: 100
  - model_name: cheap
    litellm_params: {model: gpt-4o-mini, api_key: os.environ/OPENAI_API_KEY}
    model_info: {input_cost_per_token: 0.00000015, output_cost_per_token: 0.0000006}
  - model_name: long
    litellm_params: {model: gemini/gemini-1.5-pro, api_key: os.environ/GEMINI_API_KEY}
router_settings:
  routing_strategy: latency-based-routing
  model_group_alias: {"gpt-4": "gpt-4o", "mini": {"model": "cheap", "hidden": true}}
  fallbacks: [{"gpt-4o": ["cheap", "long"]}]
  provider_budget_config: {openai: {budget_limit: 20, time_period: 1d}}
  redis_password: os.environ/REDIS_PASSWORD
litellm_settings:
  context_window_fallbacks: [{"cheap": ["long"]}]
  default_fallbacks: ["cheap"]
  num_retries: 3
general_settings:
  master_key: sk-canary-5e1d
"#;
    let (imported, config) = round_trip(yaml);
    assert!(!imported.text.contains(CANARY));
    let azure = "my-endpoint-openai-azure/my-gpt4o".to_owned();
    assert_eq!(shares(&config, "gpt-4o"), [("openai/gpt-4o".to_owned(), 0.75), (azure, 0.25)]);
    assert_eq!(shares(&config, "gpt-4").len(), 2, "an alias of a group shares as the group does");
    assert_eq!(shares(&config, "mini"), [("openai/gpt-4o-mini".to_owned(), 1.0)]);
    assert_eq!(fallback(&config, "gpt-4o"), ["cheap", "long"]);
    assert_eq!(fallback(&config, "cheap"), ["long"]);
    let provider = |name: &str| config.providers.iter().find(|provider| provider.name == name).unwrap();
    assert_eq!(provider("openai").models, ["gpt-4o", "gpt-4o-mini"]);
    assert_eq!(provider("openai").budget.to_string(), "20usd/day");
    assert_eq!(provider("my-endpoint-openai-azure").base.as_str(), "https://my-endpoint.openai.azure.com/");
    let azure = provider("my-endpoint-openai-azure");
    assert_eq!((azure.kind, azure.api_version.as_deref()), (Kind::Azure, Some("2024-02-01")));
    assert_eq!(config.prices.len(), 1);
    assert_eq!((config.prices[0].input, config.prices[0].output), (0.15, 0.6));
    for said in ["latency-based-routing", "redis_password", "master_key"] {
        assert!(imported.text.contains(said), "{said} is not mentioned:\n{}", imported.text);
    }
    assert!(!imported.text.contains("REDIS_PASSWORD"));
}

#[test]
fn engines_on_the_network_are_devices_and_what_wants_a_key_is_none() {
    let yaml = r#"
model_list:
  - model_name: llama3.2
    litellm_params: {model: ollama/llama3.2}
  - model_name: local
    litellm_params: {model: openai/qwen, api_base: "http://192.168.1.20:8000/v1", api_key: EMPTY, weight: 3}
  - model_name: local
    litellm_params: {model: hosted_vllm/qwen, api_base: "http://gpu.lan:8000", weight: 1}
  - model_name: even
    litellm_params: {model: openai/qwen, api_base: "http://192.168.1.20:8000/v1", api_key: none}
  - model_name: even
    litellm_params: {model: hosted_vllm/qwen, api_base: "http://gpu.lan:8000"}
  - model_name: guarded
    litellm_params: {model: openai/big, api_base: "http://10.0.0.9:8000/v1", api_key: sk-canary-5e1d, order: 1}
  - model_name: guarded
    litellm_params: {model: ollama_chat/llama3.2, order: 2}
"#;
    let (imported, config) = round_trip(yaml);
    assert_eq!((imported.devices, imported.providers), (3, 1));
    assert!(!imported.text.contains(CANARY) && imported.text.contains("its key stood in the file"));
    assert_eq!(config.devices[0].url, "http://localhost:11434");
    assert!(shares(&config, "llama3.2").is_empty(), "a model by its own name needs no alias");
    assert_eq!(
        shares(&config, "local"),
        [
            ("device:192-168-1-20-8000-v1/qwen".to_owned(), 0.75),
            ("device:gpu-lan-8000/qwen".to_owned(), 0.25)
        ]
    );
    assert_eq!(shares(&config, "even"), [("qwen".to_owned(), 1.0)], "equal hosts are Shoal's to balance");
    assert_eq!(fallback(&config, "guarded"), ["llama3.2"]);
    assert_eq!(imported.variables, ["HOST_10_0_0_9_API_KEY"]);
}

#[test]
fn two_accounts_and_what_there_is_no_word_for() {
    let yaml = r#"
model_list:
  - model_name: a
    litellm_params: {model: openai/gpt-4o, api_key: os.environ/OPENAI_API_KEY}
  - model_name: a
    litellm_params: {model: openai/gpt-4o, api_key: os.environ/OTHER_KEY, temperature: 0.2, seed: 7}
  - model_name: a2
    litellm_params: {model: openai/gpt-4o-mini, api_key: os.environ/OTHER_KEY}
  - model_name: b
    litellm_params: {model: groq/llama-3.3-70b, api_key: sk-canary-5e1d}
  - model_name: c
    litellm_params: {model: bedrock/anthropic.claude-v2, aws_secret_access_key: sk-canary-5e1d}
  - model_name: "*"
    litellm_params: {model: "openai/*", api_key: os.environ/OPENAI_API_KEY}
  - model_name: "auto"
    litellm_params: {model: openai/gpt-4o, api_key: os.environ/OPENAI_API_KEY}
  - model_name: d
    litellm_params: {model: openai/x, api_base: os.environ/NOT_SET, api_key: os.environ/OPENAI_API_KEY}
  - model_name: e
    litellm_params: {model: openai/x, api_base: "https://me:sk-canary-5e1d@x.example", api_key: os.environ/K}
router_settings:
  fallbacks: [{"a": ["b", "c", "nowhere"]}]
environment_variables: {SECRET: sk-canary-5e1d}
"#;
    let (imported, config) = round_trip(yaml);
    assert!(!imported.text.contains(CANARY), "{}", imported.text);
    let names: Vec<&str> = config.providers.iter().map(|provider| provider.name.as_str()).collect();
    assert_eq!(names, ["openai", "openai-2", "groq"]);
    assert_eq!(shares(&config, "a").len(), 2);
    assert_eq!(fallback(&config, "a"), ["b"]);
    for said in [
        "'c' (model_list[4]) is left out: there is no provider of the kind 'bedrock'",
        "a pattern is no model",
        "the group 'auto' has no alias",
        "NOT_SET",
        "the fallback 'nowhere' of 'a' is left out",
        "temperature, seed",
        "holds a user, a password",
        "put it into GROQ_API_KEY",
        "environment_variables: no counterpart for SECRET",
    ] {
        assert!(imported.text.contains(said), "'{said}' is not in:\n{}", imported.text);
    }
    assert!(imported.notes >= 9);
}

#[test]
fn vendors_with_apis_of_their_own_are_spoken_to_in_them() {
    let yaml = r#"
model_list:
  - model_name: a
    litellm_params: {model: anthropic/claude-sonnet-4, api_key: os.environ/ANTHROPIC_API_KEY}
  - model_name: b
    litellm_params: {model: claude-sonnet-4, api_base: "https://claude.proxy.example/v1", api_key: os.environ/PROXY_KEY}
  - model_name: c
    litellm_params: {model: azure_ai/phi-4, api_base: "https://x.services.ai.azure.com/models", api_key: os.environ/A, api_version: "2024-05-01-preview"}
  - model_name: d
    litellm_params: {model: azure/whisper, api_base: "https://x.services.ai.azure.com", api_key: os.environ/A, api_version: "2024-10-21"}
"#;
    let (_, config) = round_trip(yaml);
    let told: Vec<_> = config
        .providers
        .iter()
        .map(|p| (p.name.as_str(), p.kind, p.base.as_str(), p.api_version.as_deref()))
        .collect();
    assert_eq!(
        told,
        [
            ("anthropic", Kind::Anthropic, "https://api.anthropic.com/", None),
            ("claude-proxy-example", Kind::Anthropic, "https://claude.proxy.example/", None),
            ("x-services-ai-azure", Kind::Azure, "https://x.services.ai.azure.com/", None),
            ("x-services-ai-azure-2", Kind::Azure, "https://x.services.ai.azure.com/", Some("2024-10-21")),
        ]
    );
}

#[test]
fn what_is_no_configuration_of_litellm_is_refused() {
    for (text, expected) in [
        ("a: [", "not YAML"),
        ("model: x", "model_list"),
        ("", "model_list"),
        ("model_list: {a: 1}", "model_list"),
    ] {
        let error = from_litellm(text, &[]).unwrap_err().to_string();
        assert!(error.contains(expected), "{text:?}: {error}");
    }
    let (empty, config) = round_trip("model_list: []");
    assert!(config.rules.is_empty() && empty.aliases == 0);
}
