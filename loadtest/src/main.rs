//! The command `shoal-loadtest`: parses its line and calls the library.

use std::{io::Write, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use shoal_loadtest::{
    balance,
    cascade::{self, Cascade},
    chaos, replay,
    run::{self, Load},
    script::Script,
    stub::{Kind, Options, Stub},
    table,
};

/// Load and stub upstreams for Shoal, through its public API.
#[derive(Parser)]
#[command(name = "shoal-loadtest", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sends requests in a closed loop over one or more nodes and judges every answer.
    Run(RunArgs),
    /// Chooses a model for each request of a stream, and learns from what the choice was worth: routing evaluation by pipe.
    Replay(ReplayArgs),
    /// Prints what was measured.
    #[command(subcommand)]
    Report(ReportCommand),
    /// Serves a stub upstream.
    #[command(subcommand)]
    Stub(StubCommand),
    /// Plays faults on real routers and devices on this machine, and checks what must hold under each.
    Chaos(ChaosArgs),
    /// Answers requests with the signals of a local answer by confidence and gain, a JSON object a line.
    Cascade(CascadeArgs),
}

#[derive(Subcommand)]
enum ReportCommand {
    /// Routing against its rivals on public outcomes: cost, latency, accuracy, leaks of restricted prompts.
    Table(TableArgs),
    /// Balancing against perfect knowledge and rivals: traces of real traffic over six unequal devices, in virtual time.
    Balance(BalanceArgs),
}

#[derive(Subcommand)]
enum StubCommand {
    /// An OpenAI-compatible inference server with faults on request; see GET /stub/log.
    Device(DeviceArgs),
    /// A cloud provider: the same server, by default one that knows nothing but its API; --kind openai, azure, anthropic or gemini.
    Provider(DeviceArgs),
}

#[derive(Args)]
struct ChaosArgs {
    /// The program `shoal` [default: the one beside this program].
    #[arg(long, env = "SHOAL_BIN")]
    bin: Option<PathBuf>,
    /// The short set (the default): each fault a few times, some minutes in all.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// The long set, with the counts of docs/faults.md: an hour and more.
    #[arg(long)]
    full: bool,
    /// Faults to play, by name or number (kill_router,16); all of them if not given.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Seed of what is drawn: lost packets, flipped bits, strangers' datagrams.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Length of the soak, in minutes [default: 30 in the long set].
    #[arg(long, value_parser = minutes)]
    minutes: Option<f64>,
    /// The program shoal of the version before, for a mesh of both versions.
    #[arg(long)]
    previous: Option<PathBuf>,
    /// Folder for report.json and report.html.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Args)]
struct RunArgs {
    /// Base URL of a node; repeat it to spread the requests.
    #[arg(long = "url", required = true)]
    urls: Vec<String>,
    /// API key.
    #[arg(long, env = "SHOAL_API_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Model to ask for.
    #[arg(long)]
    model: String,
    /// Requests in all.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// Requests under way at once.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// Share of streamed requests, 0 to 1.
    #[arg(long, default_value_t = 0.5, value_parser = share)]
    stream: f64,
    /// Prompt; {i} becomes the request's number. A stub obeys a marker such as [[stub n=32 itl=5]].
    #[arg(long, default_value = "Request {i}: name a colour.")]
    prompt: String,
    /// Limit on generated tokens.
    #[arg(long)]
    max_tokens: Option<usize>,
    /// Cap on one request, in seconds.
    #[arg(long, default_value_t = 120)]
    timeout: u64,
    /// Requests that may fail with an explicit error before the exit code is 1.
    #[arg(long, default_value_t = 0)]
    allow_failed: u64,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct ReplayArgs {
    /// Models file of the data set: names and order of the arms.
    #[arg(long)]
    models: std::path::PathBuf,
    /// Arms that may be chosen, by index in that file; all of them if not given.
    #[arg(long, value_delimiter = ',')]
    arms: Vec<usize>,
    /// thompson (what a node does), greedy, blind (one mean per arm), random, fixed:ARM.
    #[arg(long, default_value = "thompson")]
    policy: replay::Choice,
    /// Price of the dearest arm's mean cost, in units of quality.
    #[arg(long, default_value_t = 0.0, value_parser = not_negative)]
    lambda: f64,
    /// Leading dimensions of the embedding to learn on.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u8).range(0..=16))]
    dim: u8,
    /// Learn by features alone, not by pairs of words too.
    #[arg(long)]
    no_words: bool,
    /// Seed of all randomness: equal seeds and inputs give equal choices.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Router pack to begin with; its signature is not looked at.
    #[arg(long)]
    pack: Option<std::path::PathBuf>,
    /// File to learn from first, reading only the outcome of the arm that is chosen for each row.
    #[arg(long)]
    warm: Option<std::path::PathBuf>,
    /// Read every arm's outcome in that file.
    #[arg(long, requires = "warm")]
    warm_full: bool,
    /// Learn nothing from the stream.
    #[arg(long)]
    frozen: bool,
    /// Routers that share the stream; request i goes to router i mod N unless it names one.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    nodes: u16,
    /// Own requests of a router between two rounds of sharing; 0 = they never share.
    #[arg(long, default_value_t = 50)]
    sync: usize,
    /// Whom a router shares with.
    #[arg(long, value_enum, default_value = "all")]
    mode: replay::Mode,
}

#[derive(Args)]
struct TableArgs {
    /// The folder of public outcomes.
    #[arg(long, default_value = "data")]
    data: std::path::PathBuf,
    /// Splits to play and average.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    splits: u32,
    /// Seed of the first split: equal seeds print equal tables.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct BalanceArgs {
    /// The folder of the traces.
    #[arg(long, default_value = "data/traces")]
    traces: PathBuf,
    /// Seeds to play.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    seeds: u32,
    /// The first seed: equal seeds print equal tables.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Requests of each run, from a part of the trace that the seed picks.
    #[arg(long, default_value_t = 3000, value_parser = clap::value_parser!(u32).range(10..))]
    requests: u32,
    /// Shares of the devices' capacity that arrive on average.
    #[arg(long = "load", value_delimiter = ',', default_value = "0.4,0.6,0.8", value_parser = capacity)]
    loads: Vec<f64>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct DeviceArgs {
    /// Address to listen on; port 0 takes a free one. The first line of output names it.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Model to serve; repeat it for several.
    #[arg(long = "model", default_value = "stub")]
    models: Vec<String>,
    /// Requests served at once; more wait.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    slots: u16,
    /// Context length announced, in tokens.
    #[arg(long, default_value_t = 8192)]
    context: u32,
    /// Time to first token, in milliseconds.
    #[arg(long, default_value_t = 0)]
    ttft_ms: u64,
    /// Time between tokens, in milliseconds.
    #[arg(long, default_value_t = 0)]
    itl_ms: u64,
    /// Tokens in an answer.
    #[arg(long, default_value_t = 16)]
    tokens: usize,
    /// Default faults, in the words of a marker: "err=503 retry_after=2".
    #[arg(long = "fault")]
    faults: Vec<String>,
    /// Server to imitate.
    #[arg(long, value_enum, default_value_t)]
    kind: Kind,
    /// Bearer key to require.
    #[arg(long)]
    key: Option<String>,
    /// Digest of the weights to tell: two stubs with the same one go on in each other's answers.
    #[arg(long)]
    digest: Option<String>,
}

#[derive(Args)]
struct CascadeArgs {
    /// Names of the models of a set (X.models.json).
    #[arg(long)]
    models: Option<PathBuf>,
    /// Local model, by number or name.
    #[arg(long)]
    local: String,
    /// Strong model, by number or name.
    #[arg(long)]
    strong: String,
    /// Local models whose agreement with the local one is a signal, by number or name.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Set to learn from first, with the outcomes of both models (JSON lines).
    #[arg(long)]
    warm: Option<PathBuf>,
    /// Table of option probabilities to learn from first and to look signals up in by id (CSV with columns
    /// MODEL:pmax, MODEL:margin, MODEL:entropy, MODEL:ok).
    #[arg(long)]
    signals: Option<PathBuf>,
    /// Price of a strong call in units of quality; a larger gain escalates.
    #[arg(long, default_value_t = 0.147, value_parser = not_negative)]
    lambda: f64,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn not_negative(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|number: &f64| number.is_finite() && *number >= 0.0)
        .ok_or_else(|| "a number from 0 up".to_owned())
}

fn minutes(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|minutes| (0.1..=1440.0).contains(minutes))
        .ok_or_else(|| "a number from 0.1 to 1440".to_owned())
}

fn capacity(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|load| (0.01..=10.0).contains(load))
        .ok_or_else(|| "a number from 0.01 to 10".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| "a number from 0 to 1".to_owned())
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::WARN).init();
    match Cli::parse().command {
        Command::Run(args) => load(args).await,
        Command::Replay(args) => replay_stream(args),
        Command::Report(ReportCommand::Table(args)) => report_table(args),
        Command::Report(ReportCommand::Balance(args)) => report_balance(args),
        Command::Stub(StubCommand::Device(args) | StubCommand::Provider(args)) => device(args).await,
        Command::Cascade(args) => cascade(args),
        Command::Chaos(args) => chaos(args).await,
    }
}

async fn chaos(args: ChaosArgs) -> Result<ExitCode> {
    let bin = match args.bin {
        Some(bin) => bin,
        None => std::env::current_exe().context("finding this program")?.with_file_name("shoal"),
    };
    let options = chaos::Options {
        bin,
        full: args.full,
        only: args.only,
        seed: args.seed,
        minutes: args.minutes,
        previous: args.previous,
    };
    let mut stderr = std::io::stderr();
    let run = chaos::run(options, |line| {
        // Progress is for who watches; nobody may.
        let _ = writeln!(stderr, "{line}");
    });
    // Dropping the run ends every process that it started.
    let report = tokio::select! {
        report = run => report?,
        () = asked_to_stop() => anyhow::bail!("stopped; the processes under test have been ended"),
    };
    if let Some(out) = &args.out {
        report.write(out)?;
    }
    std::io::stdout().write_all(report.to_string().as_bytes()).context("writing the report")?;
    Ok(if report.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Waits for Ctrl-C or SIGTERM.
async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

fn replay_stream(args: ReplayArgs) -> Result<ExitCode> {
    let options = replay::Options {
        models: args.models,
        arms: args.arms,
        policy: args.policy,
        lambda: args.lambda,
        dim: usize::from(args.dim),
        words: !args.no_words,
        seed: args.seed,
        warm: args.warm,
        warm_full: args.warm_full,
        pack: args.pack,
        frozen: args.frozen,
        nodes: usize::from(args.nodes),
        sync: args.sync,
        mode: args.mode,
    };
    replay::run(&options, std::io::stdin().lock(), std::io::stdout().lock())?;
    Ok(ExitCode::SUCCESS)
}

fn report_table(args: TableArgs) -> Result<ExitCode> {
    let table = table::play(&table::Options { data: args.data, splits: args.splits, seed: args.seed })?;
    let text = if args.json { format!("{:#}\n", table.json()) } else { table.to_string() };
    std::io::stdout().write_all(text.as_bytes()).context("writing the table")?;
    Ok(ExitCode::SUCCESS)
}

fn report_balance(args: BalanceArgs) -> Result<ExitCode> {
    let report = balance::play(&balance::Options {
        traces: args.traces,
        seeds: args.seeds,
        seed: args.seed,
        requests: args.requests as usize,
        loads: args.loads,
    })?;
    let text = if args.json { format!("{:#}\n", report.json()) } else { report.to_string() };
    std::io::stdout().write_all(text.as_bytes()).context("writing the table")?;
    Ok(ExitCode::SUCCESS)
}

async fn load(args: RunArgs) -> Result<ExitCode> {
    let report = run::run(Load {
        urls: args.urls,
        key: args.key,
        model: args.model,
        requests: args.requests as usize,
        concurrency: usize::from(args.concurrency),
        stream_share: args.stream,
        prompt: args.prompt,
        max_tokens: args.max_tokens,
        timeout: Duration::from_secs(args.timeout),
    })
    .await
    .context("setting up the HTTP client")?;
    let text = if args.json { format!("{}\n", report.json()) } else { report.to_string() };
    std::io::stdout().write_all(text.as_bytes()).context("writing the report")?;
    let good = report.forbidden() == 0 && report.not_ok() <= args.allow_failed;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cascade(args: CascadeArgs) -> Result<ExitCode> {
    let mut cascade = Cascade::new(&cascade::Options {
        models: args.models,
        local: args.local,
        strong: args.strong,
        peers: args.peers,
        warm: args.warm,
        signals: args.signals,
        lambda: args.lambda,
        seed: args.seed,
    })?;
    cascade.run(std::io::stdin().lock(), std::io::stdout().lock())?;
    Ok(ExitCode::SUCCESS)
}

async fn device(args: DeviceArgs) -> Result<ExitCode> {
    let mut script = Script {
        ttft: Duration::from_millis(args.ttft_ms),
        itl: Duration::from_millis(args.itl_ms),
        ..Script::default()
    };
    script.apply(&format!("n={}", args.tokens))?;
    for fault in &args.faults {
        script.apply(fault)?;
    }
    let options = Options {
        listen: args.listen,
        models: args.models,
        slots: usize::from(args.slots),
        context: args.context,
        kind: args.kind,
        script,
        key: args.key,
        digest: args.digest,
        ..Options::default()
    };
    let stub = Stub::start(options).await.with_context(|| format!("listening on {}", args.listen))?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening {}", stub.url())
        .and_then(|()| stdout.flush())
        .context("printing the address")?;
    stub.run().await;
    Ok(ExitCode::SUCCESS)
}
