//! Configuration: one file type, the environment and the flags become one validated [`Config`].
//!
//! Order: flag, then environment (`SHOAL_*`), then file, then default. LFO's variables ([`LfoManners`]) are
//! understood beside them. Nothing else in the package reads the environment. An unknown key is an error that names the nearest known one, since a typing mistake in a
//! safety setting must not be silent.

mod escalation;
mod file;
mod judging;
mod lfo_env;
mod paths;
mod reliability;
mod rules;
#[cfg(test)]
mod testing;
mod tls;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shoal_routing::{Rules, Tokens};

use crate::api::idempotency::IdempotencySettings;
use crate::api::serve::SocketLimits;
use crate::cloud::settings::configured;
use crate::cloud::{PriceEntry, ProviderSettings};
use crate::device::lfo;
use crate::judging::{AgreementSettings, EvaluatorSettings, LearningSettings};

pub use escalation::FileEscalation;
pub use file::{FileConfig, FileDevice, FileLimits, FileRouter};
pub use judging::{FileEvaluator, FileLearning};
pub use lfo_env::{DEFAULT_MAX_LOCAL_TOKENS, LfoManners};
pub use paths::{default_config_files, default_data_dir};
pub use reliability::{FileHedging, FileIdempotency, FileResume};
pub(crate) use rules::check as rules_of;
pub use rules::{FileAlias, FileRoute, FileSticky, FileTarget, FileWhen};
pub(crate) use tls::is_dns_name;
pub use tls::{ApiTls, FileApi, FileTls, TlsFlags, TlsMode};

/// Default address of the HTTP API; 8080 is where people look first, and loopback needs no decision.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:8080";
/// Default address of the mesh port: mutually authenticated, so it may bind all interfaces.
pub const DEFAULT_MESH: &str = "[::]:7411";

/// What Anthropic's model names mean where nobody serves them, so that their agents work unchanged.
pub const DEFAULT_CLAUDE_MODEL: &str = "auto";

/// A problem with the configuration, with its cause and the next step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("cannot read the config file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file or a variable does not fit the schema.
    #[error("{origin}: {message}")]
    Invalid {
        /// File or variable.
        origin: String,
        /// What is wrong, with a suggestion where there is one.
        message: String,
    },
}

/// Values given on the command line; `None` = not given.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
    /// `--listen`
    pub listen: Option<SocketAddr>,
    /// `--mesh`
    pub mesh: Option<SocketAddr>,
    /// `--advertise`
    pub advertise: Vec<SocketAddr>,
    /// `--name`
    pub name: Option<String>,
    /// `--device`
    pub devices: Vec<String>,
    /// `--embedded`
    pub embedded: bool,
    /// `--no-detect`
    pub no_detect: bool,
    /// `--no-auth`
    pub no_auth: bool,
    /// `--tls`, `--tls-cert`, `--tls-key`
    pub tls: TlsFlags,
}

/// Validated settings of a router node.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where identity, store, models and the admin socket live.
    pub data_dir: PathBuf,
    /// Address of the HTTP API.
    pub listen: SocketAddr,
    /// True when the address was chosen by somebody; else the next free port may be taken.
    pub listen_chosen: bool,
    /// UDP address of the mesh port.
    pub mesh_listen: SocketAddr,
    /// True when the mesh address was chosen by somebody.
    pub mesh_chosen: bool,
    /// Addresses that others are told to dial; empty = worked out from the interfaces.
    pub advertise: Vec<SocketAddr>,
    /// Display name; the host's name by default.
    pub name: String,
    /// Inference servers attached to this node by URL.
    pub devices: Vec<FileDevice>,
    /// Runs the embedded engine inside the node.
    pub embedded: bool,
    /// Model of the embedded engine, by name.
    pub model: Option<String>,
    /// GGUF file of the embedded engine.
    pub model_file: Option<PathBuf>,
    /// Looks for engines on loopback.
    pub detect: bool,
    /// Serves without a key; loopback only.
    pub no_auth: bool,
    /// What the API proves itself with.
    pub tls: ApiTls,
    /// Model that `claude-…` names mean which nobody serves; `None` = they are unknown.
    pub claude_model: Option<String>,
    /// Cloud providers, from the file and from keys in the environment.
    pub providers: Vec<ProviderSettings>,
    /// Prices that replace built-in ones.
    pub prices: Vec<PriceEntry>,
    /// What LFO's variables ask for; `None` if none is set.
    pub lfo: Option<LfoManners>,
    /// What routing starts from.
    pub router: FileRouter,
    /// What comes before the learnt choice.
    pub rules: Rules,
    /// The model that grades answers; `None` = nobody does.
    pub evaluator: Option<EvaluatorSettings>,
    /// What is done to learn more.
    pub learning: LearningSettings,
    /// Answers that may be asked for again.
    pub idempotency: IdempotencySettings,
    /// Share of streamed chats that may be hedged.
    pub hedging_share: f64,
    /// Streams that break off are gone on with elsewhere, where the request does not say.
    pub resume: bool,
    /// How second opinions are asked for; `None` = they are not.
    pub agreement: Option<AgreementSettings>,
    /// Sizes, counts and waits.
    pub limits: Limits,
}

/// Bounds on what one client or upstream may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest request body, bytes; 32 MiB leaves room for images.
    pub body_bytes: usize,
    /// Requests in progress at once; more are refused with 503 and `Retry-After`.
    pub concurrent_requests: usize,
    /// Wait for the first byte of an upstream; long, since a big prompt on a phone takes minutes.
    pub first_byte: Duration,
    /// Wait between two chunks of an upstream.
    pub between_chunks: Duration,
    /// Days that request history, and responses to go on from, are kept.
    pub history_days: u32,
    /// Longest prompt that mode `auto` sends to a device while a provider may take it; `None` = the model's context.
    pub max_local_tokens: Option<Tokens>,
    /// What one client may hold of the API's sockets.
    pub sockets: SocketLimits,
    /// Time for running answers when the node stops.
    pub drain: Duration,
}

impl Config {
    /// Merges flags, the given environment and the file.
    ///
    /// `env` are the variables to look at (name, value); the caller passes the process's own.
    pub fn load(flags: Flags, env: &[(String, String)]) -> Result<Self, Error> {
        let path = flags.config.clone().or_else(|| lookup(env, "SHOAL_CONFIG").map(PathBuf::from));
        let file = match path {
            Some(path) => FileConfig::read(&path, env)?,
            None => match default_config_files(env).into_iter().find(|p| p.is_file()) {
                Some(path) => FileConfig::read(&path, env)?,
                None => FileConfig::from_env(env)?,
            },
        };
        Self::merge(flags, file, env)
    }

    fn merge(flags: Flags, file: FileConfig, env: &[(String, String)]) -> Result<Self, Error> {
        let lfo = LfoManners::from_env(env)?;
        let from_port = lfo.as_ref().and_then(|lfo| lfo.listen);
        let listen = flags.listen.or(file.listen).or(from_port);
        let address = listen.unwrap_or(DEFAULT_LISTEN.parse().expect("the default is an address"));
        let mesh = flags.mesh.or(file.mesh_addr);
        let mut devices = file.devices;
        for url in flags.devices {
            devices.push(FileDevice { url, name: None, slots: None });
        }
        if let Some(url) = lfo.as_ref().and_then(|lfo| lfo.phone.clone()) {
            devices.push(FileDevice { url, name: None, slots: None });
        }
        for device in &devices {
            check_device_url(&device.url)?;
        }
        let evaluator = file.evaluator.check()?;
        let config = Self {
            data_dir: flags.data_dir.or(file.data_dir).unwrap_or_else(|| default_data_dir(env)),
            listen: address,
            listen_chosen: listen.is_some(),
            mesh_listen: mesh.unwrap_or(DEFAULT_MESH.parse().expect("the default is an address")),
            mesh_chosen: mesh.is_some(),
            advertise: if flags.advertise.is_empty() { file.advertise } else { flags.advertise },
            name: valid_name(flags.name.or(file.name).unwrap_or_else(host_name))?,
            devices,
            embedded: flags.embedded || file.embedded.unwrap_or(false),
            model: file.model,
            model_file: file.model_file,
            detect: !flags.no_detect && file.detect.unwrap_or(true),
            no_auth: flags.no_auth || file.no_auth.unwrap_or(false),
            tls: ApiTls::merge(flags.tls, file.api.tls, address.ip())?,
            claude_model: Some(file.api.claude_model.unwrap_or_else(|| DEFAULT_CLAUDE_MODEL.into()))
                .filter(|model| !model.is_empty()),
            providers: configured(file.providers, env)
                .map_err(|e| Error::Invalid { origin: "providers".into(), message: e.to_string() })?,
            prices: file.prices,
            router: file.router,
            rules: rules::check(file.routes, file.aliases)?,
            learning: file.learning.check(evaluator.as_ref())?,
            evaluator,
            idempotency: file.idempotency.check()?,
            hedging_share: file.hedging.check()?,
            resume: file.resume.enabled,
            agreement: file.escalation.check()?,
            limits: Limits {
                max_local_tokens: lfo.as_ref().map(|manners| Tokens(manners.max_local_tokens)),
                ..file.limits.into_limits()?
            },
            lfo,
        };
        if config.no_auth && !config.listen.ip().is_loopback() {
            return Err(Error::Invalid {
                origin: "no_auth".into(),
                message: format!(
                    "serving without a key is allowed on loopback only, not on {}; drop --no-auth or listen on 127.0.0.1",
                    config.listen
                ),
            });
        }
        Ok(config)
    }
}

/// Looks a variable up; empty counts as unset.
pub fn lookup<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
    env.iter().find(|(k, v)| k == name && !v.is_empty()).map(|(_, v)| v.as_str())
}

/// Returns the process's variables; the only place that reads them.
pub fn process_env() -> Vec<(String, String)> {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
}

/// Returns the host's name without its domain, or `node` where there is none.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/etc/hostname")
        .ok()
        .or_else(|| lookup(&process_env(), "HOSTNAME").map(str::to_owned))
        .or_else(|| lookup(&process_env(), "COMPUTERNAME").map(str::to_owned))
        .unwrap_or_default();
    let first = name.trim().split('.').next().unwrap_or_default();
    let clean: String =
        first.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-' || *c == '_').take(40).collect();
    if clean.is_empty() { "node".into() } else { clean }
}

/// Checks a display name: it ends up in headers, tables and logs.
pub fn valid_name(name: String) -> Result<String, Error> {
    let fits = !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if fits {
        return Ok(name);
    }
    Err(Error::Invalid {
        origin: "name".into(),
        message: "a name has 1 to 64 letters, digits, '-', '_' or '.'; choose one with --name".into(),
    })
}

fn check_device_url(url: &str) -> Result<(), Error> {
    if lfo::Place::is_meant(url) {
        let wrong = |e: lfo::NotAPlace| Error::Invalid { origin: "device".into(), message: e.to_string() };
        return lfo::Place::parse(url).map(drop).map_err(wrong);
    }
    let scheme_fits = ["http://", "https://"].iter().any(|s| url.starts_with(s));
    let parsed = url.parse::<http::Uri>().ok().filter(|u| u.host().is_some());
    if scheme_fits && parsed.is_some() {
        return Ok(());
    }
    Err(Error::Invalid {
        origin: "device".into(),
        message: format!(
            "'{url}' is not a URL of an inference server; give one such as http://127.0.0.1:11434, or lfo+tcp://HOST:6000 for a phone"
        ),
    })
}

/// Reads and checks a file without starting anything.
pub fn check_file(path: &Path, env: &[(String, String)]) -> Result<Config, Error> {
    Config::merge(Flags::default(), FileConfig::read(path, env)?, env)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn flag_beats_environment_beats_file_beats_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shoal.toml");
        std::fs::write(&path, "version = 1\nname = \"file\"\nlisten = \"127.0.0.1:1\"\n").unwrap();
        let flags = Flags { config: Some(path.clone()), ..Flags::default() };
        let e = env(&[("SHOAL_LISTEN", "127.0.0.1:2")]);
        let from_env = Config::load(flags.clone(), &e).unwrap();
        assert_eq!((from_env.listen.port(), from_env.name.as_str()), (2, "file"));
        let with_flag = Flags { listen: Some("127.0.0.1:3".parse().unwrap()), ..flags };
        assert_eq!(Config::load(with_flag, &e).unwrap().listen.port(), 3);
        let default = Config::load(Flags::default(), &env(&[("HOME", "/nowhere")])).unwrap();
        assert_eq!(default.listen.port(), 8080);
        assert!(!default.listen_chosen);
    }

    #[test]
    fn nested_variables_reach_nested_keys() {
        let config = Config::load(Flags::default(), &env(&[("SHOAL_LIMITS__BODY_BYTES", "1024")])).unwrap();
        assert_eq!(config.limits.body_bytes, 1024);
    }

    #[test]
    fn anthropics_model_names_mean_auto_what_is_set_or_nothing() {
        let meant = |more: &[(&str, &str)]| Config::load(Flags::default(), &env(more)).unwrap().claude_model;
        assert_eq!(meant(&[]).as_deref(), Some("auto"));
        assert_eq!(meant(&[("SHOAL_API__CLAUDE_MODEL", "auto:best")]).as_deref(), Some("auto:best"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shoal.toml");
        std::fs::write(&path, "version = 1\n[api]\nclaude_model = \"\"\n").unwrap();
        assert_eq!(check_file(&path, &[]).unwrap().claude_model, None);
    }

    #[test]
    fn https_is_set_by_variables_as_by_the_file() {
        let on_lan = [("SHOAL_LISTEN", "0.0.0.0:8080")];
        let config = |more: &[(&str, &str)]| {
            Config::load(Flags::default(), &env(&[&on_lan[..], more].concat())).unwrap().tls
        };
        assert_eq!(config(&[]).as_str(), "mesh");
        assert_eq!(config(&[("SHOAL_API__TLS__MODE", "off")]), ApiTls::Off);
        let own = config(&[("SHOAL_API__TLS__CERT", "/c.pem"), ("SHOAL_API__TLS__KEY", "/k.pem")]);
        assert_eq!(own, ApiTls::Own { certificate: "/c.pem".into(), key: "/k.pem".into() });
    }

    #[test]
    fn bad_settings_are_refused_with_a_reason() {
        let cases: &[(&str, &str)] = &[
            ("version = 1\nlissten = \"127.0.0.1:1\"", "did you mean 'listen'"),
            ("version = 2", "version"),
            ("listen = \"127.0.0.1:1\"", "version = 1"),
            ("version = 1\nlisten = \"nonsense\"", "listen"),
            ("version = 1\n[limits]\nbody_bytes = 0", "body_bytes"),
            ("version = 1\n[limits]\nbody_bytes = -5", "body_bytes"),
            ("version = 1\n[[devices]]\nurl = \"ftp://x\"", "not a URL"),
            ("version = 1\nno_auth = true\nlisten = \"0.0.0.0:80\"", "loopback only"),
            ("version = 1\nname = \"a b\"", "1 to 64 letters"),
            ("version = 1\n[api.tls]\ncert = \"c.pem\"", "--tls-key"),
            ("version = 1\n[api.tls]\ncerts = \"c.pem\"", "did you mean 'cert'"),
            ("version = 1\n[api.tls]\nmode = \"maybe\"", "mode"),
            ("version = ", "line 1"),
        ];
        for (text, expected) in cases {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("shoal.toml");
            std::fs::write(&path, text).unwrap();
            let error = check_file(&path, &[]).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?} gave {error:?}, expected {expected:?}");
        }
    }
}
