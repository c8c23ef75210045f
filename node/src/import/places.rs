//! Where a deployment of LiteLLM lives here: at a device, or at a provider.

use reqwest::Url;

use crate::cloud::settings::{KNOWN, is_version};
use crate::upstream::http_client::Reach;
use crate::upstream::provider::Kind;

/// Providers with an OpenAI-compatible API: LiteLLM's prefix, base URL, usual variable of the key.
const COMPATIBLE: &[(&str, &str, &str)] = &[
    ("cerebras", "https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    ("cohere", "https://api.cohere.ai/compatibility/v1", "COHERE_API_KEY"),
    ("cohere_chat", "https://api.cohere.ai/compatibility/v1", "COHERE_API_KEY"),
    ("deepinfra", "https://api.deepinfra.com/v1/openai", "DEEPINFRA_API_KEY"),
    ("deepseek", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    ("fireworks_ai", "https://api.fireworks.ai/inference/v1", "FIREWORKS_AI_API_KEY"),
    ("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    ("mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    ("nvidia_nim", "https://integrate.api.nvidia.com/v1", "NVIDIA_NIM_API_KEY"),
    ("perplexity", "https://api.perplexity.ai", "PERPLEXITYAI_API_KEY"),
    ("together_ai", "https://api.together.xyz/v1", "TOGETHERAI_API_KEY"),
    ("xai", "https://api.x.ai/v1", "XAI_API_KEY"),
];

/// Servers that people run themselves: LiteLLM's prefix, and where it looks for them by itself.
const ENGINES: &[(&str, Option<&str>)] = &[
    ("ollama", Some("http://localhost:11434")),
    ("ollama_chat", Some("http://localhost:11434")),
    ("lm_studio", Some("http://localhost:1234")),
    ("llamafile", Some("http://localhost:8080")),
    ("hosted_vllm", None),
    ("openai_like", None),
    ("text-completion-openai", None),
    ("litellm_proxy", None),
    ("xinference", None),
    ("custom_openai", None),
];

/// Beginnings of models that LiteLLM knows without a prefix.
const UNPREFIXED: &[(&str, &str)] = &[
    ("gpt-", "openai"),
    ("chatgpt-", "openai"),
    ("o1", "openai"),
    ("o3", "openai"),
    ("o4", "openai"),
    ("text-embedding-", "openai"),
    ("ft:gpt-", "openai"),
    ("claude-", "anthropic"),
    ("gemini-", "gemini"),
    ("command-r", "cohere"),
    ("mistral-", "mistral"),
    ("deepseek-", "deepseek"),
];

/// What people write where a server wants no key.
const NO_KEYS: &[&str] = &[
    "",
    "none",
    "null",
    "empty",
    "dummy",
    "fake",
    "fake-key",
    "anything",
    "not-needed",
    "no-key",
    "ollama",
    "lm-studio",
    "sk-1234",
    "sk-fake",
    "sk-no-key-required",
];

/// Where the key of a deployment comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    /// Nobody gave one.
    Absent,
    /// A variable.
    Variable(String),
    /// It stood in the file.
    Literal,
}

impl Key {
    pub(super) fn of(value: Option<&str>) -> Self {
        match value.map(|text| (text, text.strip_prefix("os.environ/"))) {
            None => Self::Absent,
            Some((_, Some(name))) if is_variable(name) => Self::Variable(name.to_owned()),
            Some((text, None)) if NO_KEYS.contains(&text.to_ascii_lowercase().as_str()) => Self::Absent,
            Some(_) => Self::Literal,
        }
    }
}

/// Where a deployment lives here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// An inference server on this host or the local network that wants no key.
    Device {
        /// Its URL.
        url: String,
        /// Its name for the model.
        model: String,
    },
    /// A provider.
    Provider {
        /// What it is called, unless the name is taken by another one.
        name: String,
        /// Its base URL; `None` = known by its name.
        base: Option<String>,
        /// How it is spoken to.
        spoken: Spoken,
        /// Variable of its key; `None` = the usual one of a known name, or none at all.
        variable: Option<String>,
        /// Its name for the model.
        model: String,
    },
}

/// How a provider is spoken to, where its name does not tell.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Spoken {
    /// Its API; `None` = what its name tells, OpenAI's else.
    pub(super) kind: Option<Kind>,
    /// Azure's `api-version`; `None` = the newer addresses without one.
    pub(super) version: Option<String>,
}

impl Spoken {
    fn by(kind: Kind) -> Self {
        Self { kind: Some(kind), version: None }
    }
}

/// Finds the place of a deployment; `version` is Azure's.
///
/// # Errors
/// Why it has none, as the end of "… is left out: "; holds no value of the file but the provider's prefix.
pub(super) fn place(
    model: &str,
    base: Option<&str>,
    key: &Key,
    version: Option<&str>,
) -> Result<Place, String> {
    let (prefix, name) = match model.split_once('/') {
        Some((prefix, name)) if is_prefix(prefix) => (prefix, name),
        _ => (unprefixed(model, base)?, model),
    };
    if name.is_empty() || name.contains('*') {
        return Err("a pattern is no model; name the models that the provider is to offer".into());
    }
    let model = name.to_owned();
    let base = base.map(check_base).transpose()?;
    if prefix == "azure" || prefix == "azure_ai" {
        let url = base.ok_or("an Azure deployment needs its api_base, which is not in the file")?;
        let host = url.host_str().unwrap_or_default();
        let base = format!("https://{host}");
        // The other prefix is for models that are only there under the newer addresses.
        let version = version.filter(|version| prefix == "azure" && is_version(version));
        let spoken = Spoken { version: version.map(str::to_owned), ..Spoken::by(Kind::Azure) };
        return Ok(provider(provider_name(host), Some(base), spoken, key, "AZURE_API_KEY", model));
    }
    if let Some(url) = base.as_ref().filter(|_| prefix == "anthropic") {
        let place = at_url(url.as_str(), key, model)?;
        return match place {
            Place::Provider { name, base, variable, model, .. } => {
                let base = base.map(|base| base.trim_end_matches("/v1").to_owned());
                Ok(Place::Provider { name, base, spoken: Spoken::by(Kind::Anthropic), variable, model })
            }
            Place::Device { .. } => Err("no device speaks Anthropic's API without a key".into()),
        };
    }
    if let Some((_, usual)) = ENGINES.iter().find(|(engine, _)| *engine == prefix) {
        let missing = || format!("'{prefix}' needs an api_base, which is not in the file");
        let url = base.map(|url| url.to_string()).or(usual.map(str::to_owned)).ok_or_else(missing)?;
        return at_url(&url, key, model);
    }
    if let Some(url) = base {
        return at_url(url.as_str(), key, model);
    }
    if let Some(known) = KNOWN.iter().find(|known| known.name == prefix) {
        let variable = match key {
            Key::Variable(name) if name != known.key_env => Some(name.clone()),
            Key::Variable(_) | Key::Absent | Key::Literal => None,
        };
        let (name, spoken) = (known.name.into(), Spoken::default());
        return Ok(Place::Provider { name, base: None, spoken, variable, model });
    }
    match COMPATIBLE.iter().find(|(compatible, _, _)| *compatible == prefix) {
        Some((name, base, variable)) => {
            let base = Some((*base).to_owned());
            Ok(provider(provider_name(name), base, Spoken::default(), key, variable, model))
        }
        None => Err(format!("there is no provider of the kind '{prefix}' here")),
    }
}

fn provider(
    name: String,
    base: Option<String>,
    spoken: Spoken,
    key: &Key,
    usual: &str,
    model: String,
) -> Place {
    let variable = match key {
        Key::Variable(variable) => variable.clone(),
        Key::Absent | Key::Literal => usual.to_owned(),
    };
    Place::Provider { name, base, spoken, variable: Some(variable), model }
}

/// A server by its address: a device if it is near and wants no key, else a provider.
fn at_url(url: &str, key: &Key, model: String) -> Result<Place, String> {
    let parsed: Url = url.parse().map_err(|_| "its api_base is not a URL")?;
    let near = Reach::of(&parsed) == Reach::Lan;
    let url = url.trim_end_matches('/').to_owned();
    if near && *key == Key::Absent {
        return Ok(Place::Device { url, model });
    }
    if !near && parsed.scheme() == "http" {
        return Err("its api_base begins with http://, and its key would travel in the open".into());
    }
    let host = parsed.host_str().unwrap_or_default();
    let name = provider_name(host);
    let variable = match key {
        Key::Variable(variable) => Some(variable.clone()),
        Key::Literal => Some(variable_of(&name)),
        Key::Absent => None,
    };
    Ok(Place::Provider { name, base: Some(url), spoken: Spoken::default(), variable, model })
}

fn check_base(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|_| "its api_base is not a URL")?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err("its api_base is no http(s) URL".into());
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err("its api_base holds a user, a password or a query, which a URL may not hold here".into());
    }
    Ok(url)
}

fn unprefixed(model: &str, base: Option<&str>) -> Result<&'static str, String> {
    let known = UNPREFIXED.iter().find(|(beginning, _)| model.starts_with(beginning));
    match (known, base) {
        (Some((_, prefix)), _) => Ok(prefix),
        (None, Some(_)) => Ok("openai"),
        (None, None) => Err("its model has no provider in front, and none is known by the name".into()),
    }
}

/// Tells a provider of LiteLLM from the first part of a model's own name (`meta-llama/Llama-3`).
fn is_prefix(text: &str) -> bool {
    const OTHERS: &[&str] = &[
        "ai21",
        "amazon_nova",
        "anyscale",
        "azure",
        "azure_ai",
        "bedrock",
        "bedrock_converse",
        "clarifai",
        "cloudflare",
        "codestral",
        "databricks",
        "github",
        "huggingface",
        "moonshot",
        "nlp_cloud",
        "oci",
        "palm",
        "petals",
        "predibase",
        "replicate",
        "sagemaker",
        "sagemaker_chat",
        "sambanova",
        "snowflake",
        "triton",
        "vertex_ai",
        "vertex_ai_beta",
        "vllm",
        "voyage",
        "watsonx",
        "xai",
        "zai",
    ];
    text == "openai"
        || OTHERS.contains(&text)
        || KNOWN.iter().any(|known| known.name == text)
        || COMPATIBLE.iter().any(|(name, _, _)| *name == text)
        || ENGINES.iter().any(|(name, _)| *name == text)
}

/// Makes a name for a provider of a host or prefix: 1 to 32 lower-case letters, digits, `-`.
pub(super) fn provider_name(text: &str) -> String {
    let text = text.trim_start_matches("api.").trim_end_matches(".com").to_ascii_lowercase();
    let clean: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(28).collect();
    let clean = clean.trim_matches('-');
    if matches!(clean, "" | "auto" | "device" | "none") { "provider".into() } else { clean.to_owned() }
}

/// Makes a name for the variable of a provider's key; a shell takes none that begins with a digit.
fn variable_of(provider: &str) -> String {
    let name = format!("{}_API_KEY", provider.to_ascii_uppercase().replace('-', "_"));
    if name.starts_with(|c: char| c.is_ascii_digit()) { format!("HOST_{name}") } else { name }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.len() <= 128 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
