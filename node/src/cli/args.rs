//! What people type. The names are promises; see the contract in `docs/cli.md`.

mod router;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::router::{
    RouterCalibrationArgs, RouterCommand, RouterEvalArgs, RouterExportArgs, RouterImportArgs, RouterTrainArgs,
};
use crate::config::TlsFlags;

/// A mesh of LLM routers: one OpenAI endpoint over the phones, laptops and GPU boxes you own.
#[derive(Debug, Parser)]
#[command(name = "shoal", version, max_term_width = 100, propagate_version = true)]
pub struct Cli {
    /// More log lines (-v debug, -vv trace); SHOAL_LOG sets filters by module.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    /// Only warnings and errors.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands, in the order in which a newcomer meets them.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a router node; the first one makes the mesh.
    Up(UpArgs),
    /// Join a mesh by a token, as a router or a device; without a token, resume.
    Join(JoinArgs),
    /// Start a whole mesh on this machine: 3 routers, 3 devices with a real model.
    Dev(DevArgs),
    /// Ask a model and stream its answer.
    Chat(ChatArgs),
    /// Show what the mesh is doing.
    Status(ClientArgs),
    /// List the router nodes.
    Nodes(ClientArgs),
    /// List the devices.
    Devices(ClientArgs),
    /// List the models.
    Models(ClientArgs),
    /// List requests in progress and the newest finished ones.
    Ps(ClientArgs),
    /// Print a link that opens the dashboard in a browser; it works once, within 10 minutes.
    Dashboard(ClientArgs),
    /// Show why a request went where it went.
    Explain(ExplainArgs),
    /// Make, list and revoke join tokens.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Make, list and revoke API keys.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Add, list and remove cloud providers.
    #[command(subcommand)]
    Cloud(CloudCommand),
    /// Measure, train, hand over and adopt what the router has learnt.
    #[command(subcommand)]
    Router(RouterCommand),
    /// Fetch a model for the embedded engine.
    Pull(PullArgs),
    /// Exit with 0 when the local node is healthy.
    Health(ClientArgs),
    /// Say what is wrong on this machine and how to mend it; exit with 1 if something is bad.
    Doctor(DoctorArgs),
    /// Print the variables that point OpenAI clients at the local node.
    Env(ClientArgs),
    /// Start an agent (claude, codex, opencode) so that it asks this mesh; its own files stay as they are.
    Launch(LaunchArgs),
    /// Stop the local node.
    Down(ClientArgs),
    /// Check and show the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Write shell completions to standard output.
    Completions {
        /// Shell to write for.
        shell: clap_complete::Shell,
    },
}

/// Where a client command finds its node.
#[derive(Debug, Clone, Default, Args)]
pub struct ClientArgs {
    /// Data directory of the node [default: the platform's data directory].
    #[arg(long, env = "SHOAL_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Base URL of a node elsewhere; needs an API key.
    #[arg(long, env = "SHOAL_URL")]
    pub url: Option<String>,
    /// Certificates to trust for --url https://…, PEM; nothing else is trusted then [default: the web's, the system's and
    /// the mesh's that the data directory belongs to].
    #[arg(long, env = "SHOAL_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// API key for --url.
    #[arg(long, env = "SHOAL_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Machine-readable output.
    #[arg(long)]
    pub json: bool,
}

/// An agent that can be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Agent {
    /// Claude Code.
    Claude,
    /// OpenAI's Codex.
    Codex,
    /// opencode.
    Opencode,
}

/// `shoal launch`
#[derive(Debug, Clone, Args)]
pub struct LaunchArgs {
    /// Agent to start.
    #[arg(value_enum)]
    pub agent: Agent,
    /// Model for its work.
    #[arg(long, default_value = "auto")]
    pub model: String,
    /// Model for titles and summaries [default: auto:fast, or the model for its work if one is named].
    #[arg(long, value_name = "MODEL")]
    pub small_model: Option<String>,
    /// Show what would be run instead of running it; the key is not shown.
    #[arg(long)]
    pub print: bool,
    /// Where the node is.
    #[command(flatten)]
    pub client: ClientArgs,
    /// Arguments of the agent; the first that is not an option above ends those, as `--` does.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<OsString>,
}

/// `shoal doctor`
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Config file, as for `shoal up`.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Where the node is.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Role of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    /// An inference host.
    Device,
    /// A router node.
    Router,
}

/// `shoal up`
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// Config file [default: shoal.toml here, in the user's or in the system's config directory].
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Data directory.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Address of the HTTP API [default: 127.0.0.1:8080, or the next free port].
    #[arg(long)]
    pub listen: Option<SocketAddr>,
    /// UDP address of the mesh port [default: port 7411 on all interfaces].
    #[arg(long)]
    pub mesh: Option<SocketAddr>,
    /// Address that others are told to dial; repeat for several.
    #[arg(long)]
    pub advertise: Vec<SocketAddr>,
    /// Display name [default: the host's name].
    #[arg(long)]
    pub name: Option<String>,
    /// OpenAI-compatible inference server to attach; repeat for several.
    #[arg(long = "device", value_name = "URL")]
    pub devices: Vec<String>,
    /// Answer with the engine inside this program too.
    #[arg(long)]
    pub embedded: bool,
    /// Do not look for inference servers on loopback.
    #[arg(long)]
    pub no_detect: bool,
    /// Serve without an API key; allowed on loopback only.
    #[arg(long)]
    pub no_auth: bool,
    /// HTTPS of the API.
    #[command(flatten)]
    pub tls: TlsFlags,
    /// Write a join token to a file once the mesh is up; repeat for several.
    #[arg(long = "write-token", value_name = "ROLE:FILE[:USES]")]
    pub write_tokens: Vec<String>,
    /// End when standard input closes; for a parent process.
    #[arg(long, hide = true)]
    pub follow_stdin: bool,
}

/// `shoal join`
#[derive(Debug, Clone, Args)]
pub struct JoinArgs {
    /// The token, `@FILE` to read it from a file, or `-` for standard input; SHOAL_JOIN_TOKEN works too.
    pub token: Option<String>,
    /// Data directory.
    #[arg(long, env = "SHOAL_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Router: address of the HTTP API.
    #[arg(long)]
    pub listen: Option<SocketAddr>,
    /// UDP address of the mesh port.
    #[arg(long)]
    pub mesh: Option<SocketAddr>,
    /// Router: address that others are told to dial; repeat for several.
    #[arg(long)]
    pub advertise: Vec<SocketAddr>,
    /// Display name [default: the host's name].
    #[arg(long, env = "SHOAL_NAME")]
    pub name: Option<String>,
    /// Engine to serve with: a URL, or `embedded`; repeat for several [default: what is found on loopback, else embedded].
    #[arg(long = "engine", value_name = "URL|embedded")]
    pub engines: Vec<String>,
    /// Model of the embedded engine.
    #[arg(long)]
    pub model: Option<String>,
    /// GGUF file of the embedded engine.
    #[arg(long)]
    pub model_file: Option<PathBuf>,
    /// Router: do not look for inference servers on loopback.
    #[arg(long)]
    pub no_detect: bool,
    /// Router: HTTPS of the API.
    #[command(flatten)]
    pub tls: TlsFlags,
    /// End when standard input closes; for a parent process.
    #[arg(long, hide = true)]
    pub follow_stdin: bool,
}

/// `shoal dev`
#[derive(Debug, Clone, Args)]
pub struct DevArgs {
    /// Router nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub nodes: u16,
    /// Devices, spread over the nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(0..=16))]
    pub devices: u16,
    /// Data directory of the whole mesh [default: dev/ in the platform's data directory].
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Port of the first node's API; the others follow.
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// Model of the devices.
    #[arg(long)]
    pub model: Option<String>,
    /// GGUF file of the devices.
    #[arg(long)]
    pub model_file: Option<PathBuf>,
}

/// `shoal chat`
#[derive(Debug, Clone, Args)]
pub struct ChatArgs {
    /// Model to ask.
    #[arg(long, default_value = "auto")]
    pub model: String,
    /// What to say; without it a conversation begins.
    pub text: Option<String>,
    /// Where the node is.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `shoal explain`
#[derive(Debug, Clone, Args)]
pub struct ExplainArgs {
    /// Id of the request, `req_…`.
    pub id: String,
    /// Where the node is.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `shoal token …`
#[derive(Debug, Clone, Subcommand)]
pub enum TokenCommand {
    /// Make a join token; it is shown once.
    Create {
        /// What the token makes of who holds it.
        #[arg(long, value_enum, default_value = "device")]
        role: RoleArg,
        /// How long it is good for: 30m, 1h, 7d.
        #[arg(long, default_value = "1h")]
        ttl: String,
        /// How many may join with it.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
        uses: u32,
        /// Where the node is.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// List tokens, without their secrets.
    Ls(ClientArgs),
    /// Make a token useless.
    Revoke {
        /// Id from `shoal token ls`.
        id: String,
        /// Where the node is.
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// `shoal keys …`
#[derive(Debug, Clone, Subcommand)]
pub enum KeysCommand {
    /// Make an API key; it is shown once and works on every node.
    Create {
        /// What it is for.
        #[arg(default_value = "key")]
        name: String,
        /// Requests with it never leave the devices of the mesh.
        #[arg(long)]
        local_only: bool,
        /// Most that requests with it may cost at providers, on each node: 5usd/month, 0.5usd/day.
        #[arg(long)]
        budget: Option<crate::cloud::Budget>,
        /// Where the node is.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// List keys, without their secrets.
    Ls(ClientArgs),
    /// Make a key useless on every node.
    Revoke {
        /// Id from `shoal keys ls`.
        id: String,
        /// Where the node is.
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// `shoal cloud …`
#[derive(Debug, Clone, Subcommand)]
pub enum CloudCommand {
    /// Add a provider, or change the settings of one; its key is kept unless given anew.
    Add(CloudAddArgs),
    /// List providers with what they may cost and have cost; keys are never shown.
    Ls(ClientArgs),
    /// Remove a provider.
    Rm {
        /// Its name.
        name: String,
        /// Where the node is.
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// `shoal cloud add`
#[derive(Debug, Clone, Args)]
pub struct CloudAddArgs {
    /// Name: openai, anthropic, gemini, openrouter, or your own; its models are then NAME/MODEL.
    pub name: String,
    /// API it speaks: openai (or compatible: LiteLLM, Portkey, another Shoal), azure, anthropic or gemini.
    #[arg(long)]
    pub kind: Option<String>,
    /// Base URL; known for known names.
    #[arg(long)]
    pub base_url: Option<String>,
    /// Azure's api-version, such as 2024-10-21 [default: the newer addresses, which have none].
    #[arg(long, value_name = "DATE")]
    pub api_version: Option<String>,
    /// Which of OpenAI's APIs its models are asked by: chat or responses [default: chat].
    #[arg(long)]
    pub api: Option<String>,
    /// File that holds the key, or `-` for standard input [default: its usual variable, such as OPENAI_API_KEY].
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Model to offer; repeat for several [default: those with a known price].
    #[arg(long = "model", value_name = "MODEL")]
    pub models: Vec<String>,
    /// Most that may be spent: 5usd/day, 20usd/month.
    #[arg(long, default_value = "1usd/day")]
    pub budget: String,
    /// Send it data of class public only.
    #[arg(long)]
    pub public_only: bool,
    /// Where the node is.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `shoal pull`
#[derive(Debug, Clone, Args)]
pub struct PullArgs {
    /// Known name, `owner/repository/file.gguf` on the hub, or URL of a GGUF file.
    pub model: String,
    /// Data directory to keep it in.
    #[arg(long, env = "SHOAL_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Machine-readable output.
    #[arg(long)]
    pub json: bool,
}

/// `shoal config …`
#[derive(Debug, Clone, Subcommand)]
pub enum ConfigCommand {
    /// Read the configuration and say whether it is right.
    Check {
        /// File to read.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Show the merged configuration.
    Show {
        /// File to read.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Show a file with every key.
    Schema,
    /// Turn another router's configuration into ours; a key that stands in it is not copied.
    Import {
        /// Whose it is.
        #[arg(value_enum)]
        from: ImportFrom,
        /// Its file, or `-` for standard input.
        file: PathBuf,
        /// Where to write ours; must not exist [default: standard output].
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

/// Routers whose configuration can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ImportFrom {
    /// LiteLLM's proxy, `config.yaml`.
    Litellm,
}
