//! `shoal launch`: starts an agent of somebody else so that it asks the mesh, and changes none of its files.

mod plan;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use reqwest::Method;
use serde_json::json;

use self::plan::{Mesh, Plan};
use super::args::{ClientArgs, LaunchArgs};
use super::client::{NodeClient, home};
use super::commands::{Trusted, quoted};
use super::exit::{CliError, Exit};
use super::show;
use super::up::write_private;

/// File in the data directory with the key that agents get.
const KEY_FILE: &str = "launch-key";

/// `shoal launch`
pub(super) async fn run(args: LaunchArgs, env: &[(String, String)]) -> Result<(), CliError> {
    let node = NodeClient::find(&args.client)?;
    let status = node.get("/shoal/v1/status").await?;
    let own = status["node"]["api_url"].as_str().unwrap_or_default();
    let url = args.client.url.as_deref().unwrap_or(own).trim_end_matches('/').trim_end_matches("/v1");
    let trusted = if status["node"]["tls"] == "mesh" { node.ca().map(Trusted::of) } else { None };
    let listed = node.get("/v1/models").await?;
    let models = listed["data"].as_array().into_iter().flatten();
    let mut mesh = Mesh {
        url: url.to_owned(),
        key: "sk-shoal-…".into(),
        model: args.model.clone(),
        small_model: args.small_model.clone().unwrap_or_else(|| small_model(&args.model).into()),
        models: models
            .filter_map(|model| {
                Some((model["id"].as_str()?.to_owned(), model["shoal"]["context_length"].as_u64()))
            })
            .collect(),
        trusted: trusted.map(|trusted| (trusted.mesh, trusted.list)),
    };
    if args.print {
        print(&Plan::of(args.agent, &mesh), &args);
        return Ok(());
    }
    let plan = Plan::of(args.agent, &mesh);
    let path = crate::config::lookup(env, "PATH").unwrap_or_default();
    let Some(program) = find(plan.program, OsStr::new(path)) else {
        let message = format!("'{}' is not installed; install it with `{}`", plan.program, plan.install);
        return Err(CliError::new(Exit::Failure, message));
    };
    mesh.key = key(&node, &args.client).await?;
    let plan = Plan::of(args.agent, &mesh);
    let mut command = Command::new(program);
    command.args(&plan.args).args(&args.args).envs(plan.set);
    for name in plan.unset {
        command.env_remove(name);
    }
    become_it(command)
}

/// The model for small things where nobody named one: whoever is quick, unless a model was named for the work, since
/// then that one is there.
fn small_model(model: &str) -> &str {
    if model == "auto" { "auto:fast" } else { model }
}

/// Shows the variables and the command line as a shell takes them; the key is not shown.
fn print(plan: &Plan, args: &LaunchArgs) {
    for name in &plan.unset {
        show::line(format!("unset {name}"));
    }
    for (name, value) in &plan.set {
        show::line(format!("export {name}={}", quoted(&value.to_string_lossy())));
    }
    let rest = args.args.iter().map(|arg| arg.to_string_lossy().into_owned());
    let words = plan.args.iter().cloned().chain(rest);
    let line: Vec<String> = words.map(|word| quoted(&word)).collect();
    show::line(format!("{} {}", plan.program, line.join(" ")).trim_end());
}

/// Finds a program as a shell does.
fn find(program: &str, path: &OsStr) -> Option<PathBuf> {
    let ending = std::env::consts::EXE_SUFFIX;
    std::env::split_paths(path)
        .map(|folder| folder.join(format!("{program}{ending}")))
        .find(|file| is_executable(file))
}

#[cfg(unix)]
fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file).is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_executable(file: &Path) -> bool {
    file.is_file()
}

/// Returns the key for the agent: the one given, else one that is kept for this, made at the first launch.
async fn key(node: &NodeClient, client: &ClientArgs) -> Result<String, CliError> {
    if let Some(key) = &client.api_key {
        return Ok(key.clone());
    }
    if client.url.is_some() {
        // The node answered without a key, so it takes any.
        return Ok("none".into());
    }
    let file = home(client).join(KEY_FILE);
    let kept = std::fs::read_to_string(&file).unwrap_or_default().trim().to_owned();
    let keys = node.get("/admin/v1/keys").await?;
    let is_good = keys["keys"].as_array().into_iter().flatten().any(|key| {
        let id = key["id"].as_str().unwrap_or_default();
        key["state"] == "good" && kept.starts_with(&format!("sk-shoal-{id}_"))
    });
    if is_good {
        return Ok(kept);
    }
    let made = node.json(Method::POST, "/admin/v1/keys", Some(json!({"name": "launch"}))).await?;
    let key = made["key"].as_str().ok_or_else(|| CliError::failure("the node gave no key"))?.to_owned();
    write_private(&file, &key).map_err(|e| {
        CliError::failure(format!("cannot keep the key in {}: {e}; give one with --api-key", file.display()))
    })?;
    Ok(key)
}

/// Becomes the agent, so that signals, the terminal and the exit code are its own.
#[cfg(unix)]
fn become_it(mut command: Command) -> Result<(), CliError> {
    use std::os::unix::process::CommandExt;
    let error = command.exec();
    Err(CliError::failure(format!("cannot start {}: {error}", command.get_program().to_string_lossy())))
}

#[cfg(not(unix))]
fn become_it(mut command: Command) -> Result<(), CliError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().map_err(|e| CliError::failure(format!("cannot start {name}: {e}")))?;
    if status.success() {
        return Ok(());
    }
    Err(CliError::failure(format!("{name} ended with {status}")))
}
