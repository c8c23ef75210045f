//! What makes a provider: name, API, address, key, models, budget; from the environment, the file or a command.

use reqwest::Url;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::budget::Budget;
use crate::upstream::provider::{Api, Kind};

/// Longest name of a provider; it stands in headers, tables and model names.
const MAX_NAME: usize = 32;
/// Longest name of a model.
const MAX_MODEL: usize = 128;
/// Most models of one provider.
const MAX_MODELS: usize = 256;
/// Longest `api_version`; they are dates.
const MAX_VERSION: usize = 32;
/// Largest key file, bytes: keys are short, and a wrong path may name anything.
const MAX_KEY: usize = 4096;

/// One `[[providers]]` entry.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FileProvider {
    /// Name: the part before the slash in `openai/gpt-4o`.
    pub name: String,
    /// API it speaks; known for known names, else `openai`.
    pub kind: Option<Kind>,
    /// Base URL, with or without the version; known for known names.
    pub base_url: Option<String>,
    /// Variable that holds the key; the usual one for known names.
    pub key_env: Option<String>,
    /// File that holds the key.
    pub key_file: Option<std::path::PathBuf>,
    /// Azure's `api-version`; without it the newer addresses are used, which have none.
    pub api_version: Option<String>,
    /// Which of OpenAI's APIs its models are asked by; a line in `[[prices]]` says it for one model. Default `chat`.
    pub api: Option<Api>,
    /// Models to offer; those with a price for known names.
    #[serde(default)]
    pub models: Vec<String>,
    /// May be sent data of class `internal`. Default true.
    pub internal_ok: Option<bool>,
    /// Most that may be spent. Default 1 USD a day.
    pub budget: Option<Budget>,
}

/// Where the settings of a provider come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A key was found in the environment.
    Environment,
    /// The configuration file.
    Config,
    /// `shoal cloud add`.
    Added,
}

impl Source {
    /// Returns the word for tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Environment => "environment",
            Source::Config => "config",
            Source::Added => "added",
        }
    }
}

/// Checked settings of one provider. `Debug` does not show the key.
#[derive(Debug, Clone)]
pub struct ProviderSettings {
    /// Name.
    pub name: String,
    /// API it speaks.
    pub kind: Kind,
    /// Base URL.
    pub base: Url,
    /// Key, if it wants one.
    pub key: Option<SecretString>,
    /// Azure's `api-version`.
    pub api_version: Option<String>,
    /// Which of OpenAI's APIs its models are asked by.
    pub api: Api,
    /// Models to offer; empty = those with a price.
    pub models: Vec<String>,
    /// May be sent data of class `internal`.
    pub internal_ok: bool,
    /// Most that may be spent.
    pub budget: Budget,
    /// Where this comes from.
    pub source: Source,
}

/// A provider of which the usual settings are known.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// Name.
    pub name: &'static str,
    /// API.
    pub kind: Kind,
    /// Base URL.
    pub base: &'static str,
    /// Variable that holds its key.
    pub key_env: &'static str,
}

/// Providers that a key in the environment switches on.
pub const KNOWN: &[Known] = &[
    Known {
        name: "openai",
        kind: Kind::OpenAi,
        base: "https://api.openai.com/v1",
        key_env: "OPENAI_API_KEY",
    },
    Known {
        name: "anthropic",
        kind: Kind::Anthropic,
        base: "https://api.anthropic.com",
        key_env: "ANTHROPIC_API_KEY",
    },
    Known {
        name: "gemini",
        kind: Kind::Gemini,
        base: "https://generativelanguage.googleapis.com",
        key_env: "GEMINI_API_KEY",
    },
    Known {
        name: "openrouter",
        kind: Kind::OpenAi,
        base: "https://openrouter.ai/api/v1",
        key_env: "OPENROUTER_API_KEY",
    },
];

/// True for what can be an `api-version` of Azure.
pub(crate) fn is_version(text: &str) -> bool {
    (1..=MAX_VERSION).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Settings that cannot be right; the text names the setting and never a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("provider '{provider}': {message}")]
pub struct Error {
    /// Name as it was given.
    pub provider: String,
    /// What is wrong and what helps.
    pub message: String,
}

impl FileProvider {
    /// Checks the entry and reads its key from `env` or a file.
    ///
    /// # Errors
    /// A setting is missing or cannot be right.
    pub fn check(self, env: &[(String, String)], source: Source) -> Result<ProviderSettings, Error> {
        let shown: String = self.name.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect();
        let wrong = |message: String| Error { provider: shown.clone(), message };
        if !is_provider_name(&self.name) {
            let message = "its name must have 1 to 32 lower-case letters, digits, '-' or '_', and not be 'auto' or 'device'";
            return Err(wrong(message.into()));
        }
        let known = KNOWN.iter().find(|known| known.name == self.name);
        let base = self.base_url.as_deref().or(known.map(|known| known.base));
        let base =
            base.ok_or_else(|| wrong("it needs a base URL; give one with --base-url or base_url".into()))?;
        let base = check_base(base).map_err(|message| wrong(message.into()))?;
        let key = match (&self.key_file, self.key_env.as_deref().or(known.map(|known| known.key_env))) {
            (Some(path), _) => Some(read_key(path).map_err(&wrong)?),
            (None, Some(name)) => key_from(env, name).map_err(&wrong)?,
            (None, None) => None,
        };
        if let Some(name) = self.key_env.filter(|_| key.is_none()) {
            return Err(wrong(format!("its key is to come from {name}, which is not set")));
        }
        let fits = |model: &String| {
            !model.is_empty() && model.len() <= MAX_MODEL && model.chars().all(|c| c.is_ascii_graphic())
        };
        if self.models.len() > MAX_MODELS || !self.models.iter().all(fits) {
            return Err(wrong(format!("its models must be at most {MAX_MODELS} names without spaces")));
        }
        let kind = self.kind.or(known.map(|known| known.kind)).unwrap_or(Kind::OpenAi);
        if self.api_version.as_ref().is_some_and(|version| kind != Kind::Azure || !is_version(version)) {
            return Err(wrong(
                "its api_version must be a date such as 2024-10-21, and is for kind azure".into(),
            ));
        }
        let api = self.api.unwrap_or_default();
        if api == Api::Responses && !matches!(kind, Kind::OpenAi | Kind::Azure) {
            return Err(wrong(format!(
                "the API 'responses' is OpenAI's; kind {} has its own",
                kind.as_str()
            )));
        }
        Ok(ProviderSettings {
            kind,
            api_version: self.api_version,
            api,
            name: self.name,
            base,
            key,
            models: self.models,
            internal_ok: self.internal_ok.unwrap_or(true),
            budget: self.budget.unwrap_or_default(),
            source,
        })
    }
}

/// Returns the providers that the environment and the file make, the file before the environment.
///
/// # Errors
/// An entry is wrong, or named twice.
pub fn configured(
    entries: Vec<FileProvider>,
    env: &[(String, String)],
) -> Result<Vec<ProviderSettings>, Error> {
    let mut out: Vec<ProviderSettings> = Vec::new();
    for entry in entries {
        let checked = entry.check(env, Source::Config)?;
        if out.iter().any(|other| other.name == checked.name) {
            return Err(Error { provider: checked.name, message: "it is configured twice".into() });
        }
        out.push(checked);
    }
    for known in KNOWN {
        let wrong = |message| Error { provider: known.name.to_owned(), message };
        if out.iter().any(|other| other.name == known.name)
            || key_from(env, known.key_env).map_err(wrong)?.is_none()
        {
            continue;
        }
        let entry = FileProvider { name: known.name.to_owned(), ..FileProvider::default() };
        out.push(entry.check(env, Source::Environment)?);
    }
    Ok(out)
}

/// Looks a key up in `NAME`, else in the file that `NAME_FILE` names; empty counts as unset.
fn key_from(env: &[(String, String)], name: &str) -> Result<Option<SecretString>, String> {
    if let Some(key) = crate::config::lookup(env, name) {
        return Ok(Some(trimmed(key, name)?));
    }
    match crate::config::lookup(env, &format!("{name}_FILE")) {
        Some(path) => read_key(std::path::Path::new(path)).map(Some),
        None => Ok(None),
    }
}

fn read_key(path: &std::path::Path) -> Result<SecretString, String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read the key file {shown}: {e}"))?;
    trimmed(&text, &format!("the key file {shown}"))
}

/// Checks a key's form; the message names its place and never the key.
///
/// # Errors
/// It is empty, too long or holds spaces.
pub fn trimmed(text: &str, place: &str) -> Result<SecretString, String> {
    let key = text.trim();
    if key.is_empty() || key.len() > MAX_KEY || !key.chars().all(|c| c.is_ascii_graphic()) {
        return Err(format!("{place} holds no key"));
    }
    Ok(SecretString::from(key.to_owned()))
}

/// True when a provider may be called so: 1 to 32 lower-case letters, digits, '-' or '_'.
pub(crate) fn is_provider_name(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(fits)
        && !matches!(name, "auto" | "device" | "none")
}

fn check_base(text: &str) -> Result<Url, &'static str> {
    let url: Url = text.parse().map_err(|_| "its base URL is not a URL")?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err("its base URL must begin with https:// or http://");
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err("its base URL may hold no user, password or query; the key goes into a file");
    }
    let far = crate::upstream::http_client::Reach::of(&url) == crate::upstream::http_client::Reach::Internet;
    if url.scheme() == "http" && far {
        return Err("its base URL must begin with https://, or the key would travel in the open");
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_key_in_the_environment_or_its_file_switches_a_provider_on() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, "AIza-file\n").unwrap();
        let env = env(&[("OPENAI_API_KEY", "sk-env"), ("GEMINI_API_KEY_FILE", file.to_str().unwrap())]);
        let found = configured(Vec::new(), &env).unwrap();
        let keys: Vec<(&str, &str)> =
            found.iter().map(|p| (p.name.as_str(), p.key.as_ref().unwrap().expose_secret())).collect();
        assert_eq!(keys, [("openai", "sk-env"), ("gemini", "AIza-file")]);
        assert!(found.iter().all(|p| p.budget.to_string() == "1usd/day" && p.internal_ok));
        assert!(!format!("{found:?}").contains("sk-env"), "a key shows in no debug output");
        assert!(configured(Vec::new(), &[]).unwrap().is_empty());
    }

    #[test]
    fn mistakes_name_the_provider_and_the_setting() {
        let entry = |name: &str, base: &str| FileProvider {
            name: name.into(),
            base_url: Some(base.into()),
            ..FileProvider::default()
        };
        let cases = [
            (entry("Auto", "https://x.example"), "lower-case"),
            (entry("device", "https://x.example"), "not be 'auto'"),
            (FileProvider { name: "own".into(), ..FileProvider::default() }, "needs a base URL"),
            (entry("own", "ftp://x"), "must begin with"),
            (entry("own", "https://me:pw@x.example"), "no user, password"),
            (entry("own", "http://x.example.com/v1"), "in the open"),
            (FileProvider { key_env: Some("NO_KEY".into()), ..entry("own", "https://x.example") }, "NO_KEY"),
            (
                FileProvider { key_file: Some("/nonexistent/k".into()), ..entry("own", "https://x.example") },
                "key file",
            ),
            (FileProvider { models: vec!["a b".into()], ..entry("own", "https://x.example") }, "models"),
            (
                FileProvider { api_version: Some("2024-10-21".into()), ..entry("own", "https://x.example") },
                "kind azure",
            ),
            (
                FileProvider {
                    api_version: Some("x?y=1".into()),
                    kind: Some(Kind::Azure),
                    ..entry("own", "https://x.example")
                },
                "api_version",
            ),
            (
                FileProvider {
                    api: Some(Api::Responses),
                    kind: Some(Kind::Gemini),
                    ..entry("own", "https://x.example")
                },
                "responses",
            ),
        ];
        for (entry, expected) in cases {
            let error = entry.check(&[], Source::Config).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
