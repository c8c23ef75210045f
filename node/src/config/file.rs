//! The shape of `shoal.toml` and of the `SHOAL_*` variables that mirror it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::escalation::FileEscalation;
use super::judging::{FileEvaluator, FileLearning};
use super::reliability::{FileHedging, FileIdempotency, FileResume};
use super::rules::{FileAlias, FileRoute, FileSticky, FileTarget, FileWhen};
use super::{Error, FileApi, FileTls, Limits, TlsMode};
use crate::api::serve::SocketLimits;
use crate::cloud::{FileProvider, PriceEntry};

/// Variables that begin with `SHOAL_` but are not settings of a node.
const NOT_SETTINGS: &[&str] = &[
    "SHOAL_CONFIG",
    "SHOAL_API_KEY",
    "SHOAL_URL",
    "SHOAL_CA_FILE",
    "SHOAL_JOIN_TOKEN",
    "SHOAL_MODEL_URL",
    "SHOAL_LOG",
    "SHOAL_BIN",
];

/// `shoal.toml`, version 1.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileConfig {
    /// Version of the format; must be 1.
    pub version: Option<u32>,
    /// Address of the HTTP API.
    pub listen: Option<SocketAddr>,
    /// UDP address of the mesh port.
    pub mesh_addr: Option<SocketAddr>,
    /// Addresses that others are told to dial.
    pub advertise: Vec<SocketAddr>,
    /// Data directory.
    pub data_dir: Option<PathBuf>,
    /// Display name.
    pub name: Option<String>,
    /// Runs the embedded engine inside the node.
    pub embedded: Option<bool>,
    /// Model of the embedded engine, by name.
    pub model: Option<String>,
    /// GGUF file of the embedded engine.
    pub model_file: Option<PathBuf>,
    /// Looks for engines on loopback.
    pub detect: Option<bool>,
    /// Serves without a key; loopback only.
    pub no_auth: Option<bool>,
    /// The API's HTTPS.
    pub api: FileApi,
    /// Inference servers attached by URL.
    pub devices: Vec<FileDevice>,
    /// Cloud providers.
    pub providers: Vec<FileProvider>,
    /// Prices that replace built-in ones.
    pub prices: Vec<PriceEntry>,
    /// What routing starts from.
    pub router: FileRouter,
    /// Names that stand for other models.
    pub aliases: Vec<FileAlias>,
    /// Rules by what a request looks like; the first whose conditions hold decides.
    pub routes: Vec<FileRoute>,
    /// The model that grades answers.
    pub evaluator: FileEvaluator,
    /// What is done to learn more.
    pub learning: FileLearning,
    /// Answers that may be asked for again by `Idempotency-Key`.
    pub idempotency: FileIdempotency,
    /// A second device beside one that is late.
    pub hedging: FileHedging,
    /// Streams that break off.
    pub resume: FileResume,
    /// What may be spent to find out whether an answer is good enough.
    pub escalation: FileEscalation,
    /// Sizes, counts and waits.
    pub limits: FileLimits,
}

/// One `[[devices]]` entry.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FileDevice {
    /// Base URL of an OpenAI-compatible server, with or without `/v1`.
    pub url: String,
    /// Display name; the host and port by default.
    pub name: Option<String>,
    /// Requests it runs at once; asked from the engine where it tells, else 4.
    pub slots: Option<u32>,
}

/// The `[router]` table.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileRouter {
    /// Begins with the pack of public outcomes inside the program, until the mesh knows better. Default false: on
    /// models and prompts that it was not made of it did not help (`docs/router-packs.md`).
    pub shipped_pack: bool,
}

/// The `[limits]` table.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileLimits {
    /// Largest request body, bytes. Default 33554432 (32 MiB).
    pub body_bytes: u64,
    /// Requests in progress at once. Default 1024.
    pub concurrent_requests: u64,
    /// Seconds to wait for an upstream's first byte. Default 300.
    pub first_byte_s: u64,
    /// Seconds to wait between two chunks. Default 30.
    pub between_chunks_s: u64,
    /// Days that request history, and responses to go on from, are kept. Default 30.
    pub history_days: u32,
    /// Seconds that a client may take for a request's header, and to begin at all. Default 10.
    pub header_s: u64,
    /// Seconds between two pieces of a request's body; on average a KiB a second must come. Default 30.
    pub body_idle_s: u64,
    /// Seconds in which a client must take some byte of what waits for it. Default 60.
    pub write_idle_s: u64,
    /// Connections to the API at once. Default 10000.
    pub connections: u64,
    /// Of them, from one address (IPv6: one /64). Default 256, and no bound for this host itself, where a proxy may
    /// stand in front; a number here counts for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_per_ip: Option<u64>,
    /// Seconds for running answers when the node stops; the rest end with an error. Default 120.
    pub drain_s: u64,
}

impl Default for FileLimits {
    fn default() -> Self {
        Self {
            body_bytes: 32 << 20,
            concurrent_requests: 1024,
            first_byte_s: 300,
            between_chunks_s: 30,
            history_days: 30,
            header_s: 10,
            body_idle_s: 30,
            write_idle_s: 60,
            connections: 10_000,
            connections_per_ip: None,
            drain_s: 120,
        }
    }
}

impl FileLimits {
    pub(super) fn into_limits(self) -> Result<Limits, Error> {
        let in_range = |name: &str, value: u64, low: u64, high: u64| {
            if (low..=high).contains(&value) {
                return Ok(value);
            }
            Err(Error::Invalid {
                origin: format!("limits.{name}"),
                message: format!("{value} is out of range; {name} lies between {low} and {high}"),
            })
        };
        Ok(Limits {
            body_bytes: in_range("body_bytes", self.body_bytes, 1024, 1 << 30)? as usize,
            concurrent_requests: in_range("concurrent_requests", self.concurrent_requests, 1, 100_000)?
                as usize,
            first_byte: Duration::from_secs(in_range("first_byte_s", self.first_byte_s, 1, 3600)?),
            between_chunks: Duration::from_secs(in_range(
                "between_chunks_s",
                self.between_chunks_s,
                1,
                3600,
            )?),
            history_days: in_range("history_days", u64::from(self.history_days), 1, 3650)? as u32,
            sockets: SocketLimits {
                header: Duration::from_secs(in_range("header_s", self.header_s, 1, 3600)?),
                body_idle: Duration::from_secs(in_range("body_idle_s", self.body_idle_s, 1, 3600)?),
                write_idle: Duration::from_secs(in_range("write_idle_s", self.write_idle_s, 1, 3600)?),
                connections: in_range("connections", self.connections, 1, 1_000_000)? as usize,
                connections_per_ip: match self.connections_per_ip {
                    Some(most) => Some(in_range("connections_per_ip", most, 1, 1_000_000)? as usize),
                    None => None,
                },
            },
            drain: Duration::from_secs(in_range("drain_s", self.drain_s, 1, 86_400)?),
            max_local_tokens: None,
        })
    }
}

impl FileConfig {
    /// Reads a file and lays the environment over it.
    pub fn read(path: &Path, env: &[(String, String)]) -> Result<Self, Error> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::parse(&text, &path.display().to_string(), env)
    }

    /// Reads a file's text and lays the environment over it; errors name `origin`.
    pub fn parse(text: &str, origin: &str, env: &[(String, String)]) -> Result<Self, Error> {
        let origin = origin.to_owned();
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| invalid(&origin, &e))?;
        match table.get("version") {
            Some(toml::Value::Integer(1)) => {}
            Some(other) => {
                let message = format!("version {other} is not known to this program; it reads version = 1");
                return Err(Error::Invalid { origin, message });
            }
            None => {
                let message = "the first line must be `version = 1`".to_owned();
                return Err(Error::Invalid { origin, message });
            }
        }
        // The file alone first, so that an error names the file and not a variable.
        table.clone().try_into::<Self>().map_err(|e| invalid(&origin, &e))?;
        Self::overlay(table, env)
    }

    /// Builds the settings from the environment alone.
    pub fn from_env(env: &[(String, String)]) -> Result<Self, Error> {
        Self::overlay(toml::Table::new(), env)
    }

    fn overlay(mut table: toml::Table, env: &[(String, String)]) -> Result<Self, Error> {
        let known = toml::Table::try_from(Self::sample()).expect("the sample is a table");
        for (name, value) in env {
            let Some(rest) = name.strip_prefix("SHOAL_") else { continue };
            if value.is_empty() || NOT_SETTINGS.contains(&name.as_str()) {
                continue;
            }
            let path: Vec<String> = rest.split("__").map(str::to_ascii_lowercase).collect();
            if !known.contains_key(&path[0]) {
                // Others may own variables with our prefix; a typing mistake is still worth a line.
                tracing::warn!(variable = %name, "is not a setting of Shoal and is ignored");
                continue;
            }
            insert(&mut table, &path, scalar(value));
            table.clone().try_into::<Self>().map_err(|e| invalid(name, &e))?;
        }
        table.try_into().map_err(|e| invalid("environment", &e))
    }

    /// Returns a value in which every key is present, for `config schema` and for knowing the keys.
    pub fn sample() -> Self {
        Self {
            version: Some(1),
            listen: super::DEFAULT_LISTEN.parse().ok(),
            mesh_addr: super::DEFAULT_MESH.parse().ok(),
            advertise: Vec::new(),
            data_dir: Some(PathBuf::from("~/.local/share/shoal")),
            name: Some("kitchen".into()),
            embedded: Some(false),
            model: Some("smollm2-135m-instruct".into()),
            model_file: Some(PathBuf::from("model.gguf")),
            detect: Some(true),
            no_auth: Some(false),
            api: FileApi {
                tls: FileTls {
                    mode: Some(TlsMode::Auto),
                    cert: Some(PathBuf::from("api.crt")),
                    key: Some(PathBuf::from("api.key")),
                    names: vec!["shoal.example.org".into()],
                },
                claude_model: Some(super::DEFAULT_CLAUDE_MODEL.into()),
            },
            devices: Vec::new(),
            providers: Vec::new(),
            prices: Vec::new(),
            router: FileRouter::default(),
            aliases: vec![FileAlias {
                name: "smart".into(),
                split: vec![
                    FileTarget { model: "qwen2.5:32b".into(), weight: 9.0 },
                    FileTarget { model: "openai/gpt-4o".into(), weight: 1.0 },
                ],
                sticky: Some(FileSticky::User),
                fallback: vec!["auto:local".into()],
                ..FileAlias::default()
            }],
            routes: vec![FileRoute {
                name: "contracts-stay-here".into(),
                when: FileWhen {
                    models: vec!["auto".into(), "gpt-*".into()],
                    keywords: vec!["contract".into()],
                    min_prompt_tokens: Some(1),
                    max_prompt_tokens: Some(100_000),
                    domains: vec!["legal".into()],
                    languages: vec!["en".into(), "de".into()],
                    tasks: vec!["chat".into()],
                    data_classes: vec!["internal".into()],
                    modes: vec!["auto".into()],
                    keys: vec!["office".into()],
                    tools: Some(false),
                    images: Some(false),
                    embeddings: false,
                },
                model: Some("smart".into()),
                split: Vec::new(),
                sticky: Some(FileSticky::Off),
                fallback: vec!["auto:local".into()],
                mode: Some("local".into()),
                preference: Some("balanced".into()),
                data_class: Some("restricted".into()),
            }],
            evaluator: FileEvaluator { model: Some("auto:local".into()), ..FileEvaluator::default() },
            learning: FileLearning::default(),
            idempotency: FileIdempotency::default(),
            hedging: FileHedging::default(),
            resume: FileResume::default(),
            escalation: FileEscalation { agreement: true, ..FileEscalation::default() },
            limits: FileLimits::default(),
        }
    }
}

/// Reads a variable as TOML where it is one (numbers, booleans, lists), else as text.
fn scalar(text: &str) -> toml::Value {
    let parsed = format!("v = {text}").parse::<toml::Table>().ok().and_then(|mut t| t.remove("v"));
    match parsed {
        Some(
            value @ (toml::Value::Integer(_)
            | toml::Value::Boolean(_)
            | toml::Value::Float(_)
            | toml::Value::Array(_)),
        ) => value,
        _ => toml::Value::String(text.to_owned()),
    }
}

fn insert(table: &mut toml::Table, path: &[String], value: toml::Value) {
    match path {
        [] => {}
        [last] => {
            table.insert(last.clone(), value);
        }
        [first, rest @ ..] => {
            let inner = table.entry(first.clone()).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if let toml::Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

/// Turns a parser's error into one sentence, with the nearest known key for an unknown one.
fn invalid(origin: &str, error: &toml::de::Error) -> Error {
    let text = error.to_string();
    let mut message = text.trim().replace('\n', " ");
    if let Some(unknown) = between(&text, "unknown field `", "`") {
        let expected: Vec<&str> = text.split('`').skip(3).step_by(2).collect();
        // Half of the letters wrong is no typing mistake any more.
        let near = |known: &&&str| shoal_routing::edit_distance(unknown, known) * 2 <= unknown.len();
        let nearest = expected.iter().filter(near).min_by_key(|k| shoal_routing::edit_distance(unknown, k));
        message = match nearest {
            Some(best) => format!("unknown key '{unknown}'; did you mean '{best}'?"),
            None => format!("unknown key '{unknown}'; see `shoal config schema`"),
        };
    }
    Error::Invalid { origin: origin.to_owned(), message }
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let from = text.find(start)? + start.len();
    let to = text[from..].find(end)? + from;
    Some(&text[from..to])
}
