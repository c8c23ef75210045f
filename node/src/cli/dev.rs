//! `shoal dev`: a whole mesh on this machine, each node and device a process of its own.
//!
//! The children are this same program with `up` and `join`; nothing is special about them but that they end when
//! this process does (their standard input closes), and that everything stays on loopback.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::args::{ClientArgs, DevArgs};
use super::client::{NodeClient, POINTER_FILE};
use super::exit::CliError;
use super::{show, signals};
use crate::config::default_data_dir;

/// Wait for all nodes and devices to answer; a first download of the model takes longer and is waited for apart.
const START_WAIT: Duration = Duration::from_secs(60);
/// Wait for the model to be fetched and loaded on all devices.
const MODEL_WAIT: Duration = Duration::from_secs(900);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// Wait for a child to end after its standard input closed.
const END_WAIT: Duration = Duration::from_secs(10);

/// A child process and what it is.
struct Part {
    name: String,
    dir: PathBuf,
    child: Child,
}

/// Runs `shoal dev` until it is stopped.
pub(super) async fn run(args: DevArgs, env: &[(String, String)]) -> Result<(), CliError> {
    let shutdown = CancellationToken::new();
    signals::cancel_on_signal(shutdown.clone());
    let default_dir = default_data_dir(env);
    let dir = args.data_dir.clone().unwrap_or_else(|| default_dir.join("dev"));
    let _lock = crate::node::lock_data_dir(&dir)?;
    let mut parts = Vec::new();
    let outcome = tokio::select! {
        started = start(&args, &dir, &mut parts) => started,
        () = shutdown.cancelled() => Ok(None),
    };
    let result = match outcome {
        Ok(Some(info)) => {
            register(&default_dir, &parts[0].dir);
            let dashboard = dashboard_url(&parts[0].dir, &info).await;
            greet(&info, &dashboard, &dir);
            wait(&mut parts, &shutdown).await
        }
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    stop(parts).await;
    let _ = std::fs::remove_file(dir.join("dev.json"));
    unregister(&default_dir, &dir);
    result.map_err(CliError::from)
}

async fn start(args: &DevArgs, dir: &Path, parts: &mut Vec<Part>) -> anyhow::Result<Option<Value>> {
    let _ = std::fs::remove_file(dir.join("dev.json"));
    let model_file = match &args.model_file {
        Some(file) => Some(file.clone()),
        None if args.devices > 0 => Some(fetch_model(args, dir).await?),
        None => None,
    };
    show::line(format!("starting {} nodes and {} devices …", args.nodes, args.devices));
    parts.push(router(args, dir, 1, None)?);
    let first = wait_ready(parts, 0).await?;
    let (mut router_token, mut device_token) = (None, None);
    if args.nodes > 1 {
        router_token = Some(token(&first, "router", args.nodes).await?);
    }
    if args.devices > 0 {
        device_token = Some(token(&first, "device", args.devices).await?);
    }
    for n in 2..=args.nodes {
        parts.push(router(args, dir, n, router_token.as_deref())?);
    }
    for n in 1..=args.devices {
        parts.push(device(args, dir, n, device_token.as_deref(), model_file.as_deref())?);
    }
    let mut nodes = Vec::new();
    for index in 0..usize::from(args.nodes) {
        let client = wait_ready(parts, index).await?;
        wait_complete(parts, &client, args).await?;
        let status = client.get("/shoal/v1/status").await.map_err(|e| anyhow::anyhow!(e.message))?;
        nodes.push(json!({
            "name": parts[index].name,
            "url": status["node"]["api_url"],
            "mesh": status["node"]["mesh_addrs"][0],
            "pid": parts[index].child.id(),
        }));
    }
    let devices: Vec<Value> = parts[usize::from(args.nodes)..]
        .iter()
        .map(|p| json!({"name": p.name, "pid": p.child.id()}))
        .collect();
    let info = json!({"api_key": api_key(dir, &first).await?, "nodes": nodes, "devices": devices});
    let path = dir.join("dev.json");
    write_private(&path, &serde_json::to_string_pretty(&info)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Some(info))
}

/// Fetches the model once, so that the devices do not each do it.
async fn fetch_model(args: &DevArgs, dir: &Path) -> anyhow::Result<PathBuf> {
    if cfg!(not(feature = "embedded")) {
        bail!(
            "this program was built without the embedded engine, so its devices could not answer; build it with default features, or use --devices 0"
        );
    }
    let options = crate::model::Locate {
        data_dir: dir.to_owned(),
        model_file: None,
        model: args.model.clone(),
        offline: false,
    };
    let located = crate::model::locate(&options).await?;
    if located.fallback {
        show::line(format!(
            "note: using the small model {}, since the default one could not be fetched; it answers, but badly",
            located.name
        ));
    }
    Ok(located.path)
}

fn router(args: &DevArgs, dir: &Path, n: u16, token: Option<&str>) -> anyhow::Result<Part> {
    let name = format!("node{n}");
    let data_dir = dir.join(&name);
    let listen = SocketAddr::from(([127, 0, 0, 1], args.port + n - 1));
    let mut command = child(&data_dir, args.devices, n == 1)?;
    match token {
        None => command.arg("up"),
        Some(_) => command.arg("join"),
    };
    command.args(["--no-detect", "--follow-stdin", "--mesh", "127.0.0.1:0", "--name", &name]);
    command.args(["--listen", &listen.to_string()]).arg("--data-dir").arg(&data_dir);
    spawn(command, name, data_dir, token)
}

fn device(
    args: &DevArgs,
    dir: &Path,
    n: u16,
    token: Option<&str>,
    model_file: Option<&Path>,
) -> anyhow::Result<Part> {
    let name = format!("device{n}");
    let data_dir = dir.join(&name);
    let mut command = child(&data_dir, args.devices, false)?;
    command.args([
        "join",
        "--engine",
        "embedded",
        "--follow-stdin",
        "--mesh",
        "127.0.0.1:0",
        "--name",
        &name,
    ]);
    command.arg("--data-dir").arg(&data_dir);
    if let Some(model) = &args.model {
        command.args(["--model", model]);
    }
    if let Some(file) = model_file {
        command.arg("--model-file").arg(file);
    }
    spawn(command, name, data_dir, token)
}

fn child(data_dir: &Path, devices: u16, is_first: bool) -> anyhow::Result<Command> {
    std::fs::create_dir_all(data_dir).with_context(|| format!("cannot make {}", data_dir.display()))?;
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    #[cfg(not(feature = "embedded"))]
    let _ = devices;
    let mut command = Command::new(program);
    command.arg("--quiet").stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true);
    #[cfg(feature = "embedded")]
    command.env(
        shoal_embedded::THREADS_VARIABLE,
        shoal_embedded::recommended_threads(usize::from(devices)).to_string(),
    );
    // The children's settings are on their command lines; the caller's would reach all of them alike.
    for name in
        ["SHOAL_LISTEN", "SHOAL_MESH_ADDR", "SHOAL_DATA_DIR", "SHOAL_NAME", "SHOAL_CONFIG", "SHOAL_ADVERTISE"]
    {
        command.env_remove(name);
    }
    // A phone of LFO belongs to one node; three that ask it would queue behind each other.
    if !is_first {
        for name in ["ANDROID_HOST", "ANDROID_PORT"] {
            command.env_remove(name);
        }
    }
    command.env_remove("PORT");
    Ok(command)
}

fn spawn(mut command: Command, name: String, dir: PathBuf, token: Option<&str>) -> anyhow::Result<Part> {
    let log = std::fs::File::create(dir.join("log"))
        .with_context(|| format!("cannot write {}", dir.join("log").display()))?;
    command.stderr(log);
    if let Some(token) = token {
        // By the environment, not the command line: other users of the machine can list those.
        command.env("SHOAL_JOIN_TOKEN", token);
    }
    let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    Ok(Part { name, dir, child })
}

async fn wait_ready(parts: &mut [Part], index: usize) -> anyhow::Result<NodeClient> {
    let give_up = Instant::now() + START_WAIT;
    loop {
        check_children(parts)?;
        let args = ClientArgs { data_dir: Some(parts[index].dir.clone()), ..ClientArgs::default() };
        if let Ok(client) = NodeClient::find(&args)
            && client.get("/readyz").await.is_ok()
        {
            return Ok(client);
        }
        if Instant::now() >= give_up {
            bail!("{} does not answer; see {}", parts[index].name, parts[index].dir.join("log").display());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until a node sees all nodes and a model on every device.
async fn wait_complete(parts: &mut [Part], client: &NodeClient, args: &DevArgs) -> anyhow::Result<()> {
    let give_up = Instant::now() + MODEL_WAIT;
    loop {
        check_children(parts)?;
        let status = client.get("/shoal/v1/status").await.map_err(|e| anyhow::anyhow!(e.message))?;
        let devices = client.get("/shoal/v1/devices").await.map_err(|e| anyhow::anyhow!(e.message))?;
        let serving = devices["devices"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|d| d["models"].as_array().is_some_and(|m| !m.is_empty()))
            .count();
        let alive = status["mesh"]["alive"].as_u64().unwrap_or(0);
        if alive >= u64::from(args.nodes) && serving >= usize::from(args.devices) {
            return Ok(());
        }
        if Instant::now() >= give_up {
            bail!(
                "only {alive} of {} nodes and {serving} of {} devices answer; their logs are beside their data",
                args.nodes,
                args.devices
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn check_children(parts: &mut [Part]) -> anyhow::Result<()> {
    for part in parts {
        if let Some(status) = part.child.try_wait().context("cannot look after a child process")? {
            let log = part.dir.join("log");
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let last = text.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("it said nothing");
            bail!("{} ended ({status}): {last}; its log is {}", part.name, log.display());
        }
    }
    Ok(())
}

async fn token(client: &NodeClient, role: &str, uses: u16) -> anyhow::Result<String> {
    let body = json!({"role": role, "ttl_s": 3600, "uses": uses});
    let v = client
        .json(reqwest::Method::POST, "/admin/v1/tokens", Some(body))
        .await
        .map_err(|e| anyhow::anyhow!(e.message))?;
    Ok(v["token"].as_str().context("the node gave no token")?.to_owned())
}

/// Returns the one key of the mesh; it is kept beside the data, since `shoal dev` is started again and again.
async fn api_key(dir: &Path, client: &NodeClient) -> anyhow::Result<String> {
    let path = dir.join("api-key");
    if let Ok(key) = std::fs::read_to_string(&path) {
        return Ok(key.trim().to_owned());
    }
    let v = client
        .json(reqwest::Method::POST, "/admin/v1/keys", Some(json!({"name": "dev"})))
        .await
        .map_err(|e| anyhow::anyhow!(e.message))?;
    let key = v["key"].as_str().context("the node gave no key")?.to_owned();
    write_private(&path, &key).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(key)
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let part = path.with_extension("part");
    let mut options = std::fs::File::options();
    options.create(true).truncate(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(&part)?.write_all(text.as_bytes())?;
    std::fs::rename(&part, path)
}

/// Asks the first node for a link to its dashboard; without one the page itself says how to get in.
async fn dashboard_url(first: &Path, info: &Value) -> String {
    let args = ClientArgs { data_dir: Some(first.to_owned()), ..ClientArgs::default() };
    let link = match NodeClient::find(&args) {
        Ok(client) => client.json(reqwest::Method::POST, "/admin/v1/dashboard-link", None).await.ok(),
        Err(_) => None,
    };
    link.and_then(|v| v["url"].as_str().map(str::to_owned))
        .unwrap_or_else(|| format!("{}/dashboard", info["nodes"][0]["url"].as_str().unwrap_or_default()))
}

fn greet(info: &Value, dashboard: &str, dir: &Path) {
    let key = info["api_key"].as_str().unwrap_or_default();
    show::line("");
    show::line("the mesh is up; every node answers for all devices:");
    for node in info["nodes"].as_array().into_iter().flatten() {
        show::line(format!("  {}   {}/v1", show::text(node, "name"), show::text(node, "url")));
    }
    let url = info["nodes"][0]["url"].as_str().unwrap_or_default();
    show::line(format!("API key    {key}"));
    show::line(format!("dashboard  {dashboard}"));
    show::line("");
    show::line("try it:");
    show::line(format!(
        "  curl {url}/v1/chat/completions -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' -d '{{\"model\":\"auto\",\"messages\":[{{\"role\":\"user\",\"content\":\"What is the capital of France?\"}}]}}'"
    ));
    show::line("");
    show::line(format!("data and logs are in {}; Ctrl-C ends all of it", dir.display()));
}

async fn wait(parts: &mut [Part], shutdown: &CancellationToken) -> anyhow::Result<()> {
    let mut told: Vec<String> = Vec::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
        // A part that dies is told, not mended: killing one to watch the others go on is what people do here.
        for part in parts.iter_mut() {
            if let Some(status) = part.child.try_wait().context("cannot look after a child process")?
                && !told.contains(&part.name)
            {
                show::line(format!("{} ended ({status}); the others go on", part.name));
                told.push(part.name.clone());
            }
        }
        if told.len() == parts.len() {
            bail!("all processes of the mesh have ended");
        }
    }
}

async fn stop(mut parts: Vec<Part>) {
    for part in &mut parts {
        drop(part.child.stdin.take());
    }
    let give_up = Instant::now() + END_WAIT;
    for part in &mut parts {
        if tokio::time::timeout_at(give_up, part.child.wait()).await.is_err() {
            let _ = part.child.kill().await;
        }
    }
}

/// Lets other commands find the first node without being told where it is.
fn register(default_dir: &Path, first: &Path) {
    let written = std::fs::create_dir_all(default_dir)
        .and_then(|()| std::fs::write(default_dir.join(POINTER_FILE), first.display().to_string()));
    if let Err(error) = written {
        tracing::warn!(%error, "other commands need --data-dir {} to find this mesh", first.display());
    }
}

fn unregister(default_dir: &Path, dir: &Path) {
    let pointer = default_dir.join(POINTER_FILE);
    let ours = std::fs::read_to_string(&pointer).is_ok_and(|text| Path::new(text.trim()).starts_with(dir));
    if ours {
        let _ = std::fs::remove_file(pointer);
    }
}
