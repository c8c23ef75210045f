//! `shoal cloud`: providers are added, listed and removed over the admin socket. Keys are read here and sent once.

use std::io::Read;

use reqwest::Method;
use serde_json::{Value, json};

use super::args::{ClientArgs, CloudAddArgs, CloudCommand};
use super::client::NodeClient;
use super::exit::{CliError, Exit};
use super::show;
use crate::cloud::Budget;
use crate::cloud::settings::KNOWN;
use crate::config::lookup;
use crate::upstream::provider::{Api, Kind};

pub(super) async fn run(command: CloudCommand, env: &[(String, String)]) -> Result<(), CliError> {
    match command {
        CloudCommand::Add(args) => add(args, env).await,
        CloudCommand::Ls(client) => list(&client).await,
        CloudCommand::Rm { name, client } => remove(&name, &client).await,
    }
}

async fn add(args: CloudAddArgs, env: &[(String, String)]) -> Result<(), CliError> {
    let usage = |message: String| CliError::new(Exit::Usage, message);
    let budget: Budget = args.budget.parse().map_err(|e| usage(format!("{e}")))?;
    let kind: Option<Kind> = args.kind.as_deref().map(str::parse).transpose().map_err(usage)?;
    let api: Option<Api> = args.api.as_deref().map(str::parse).transpose().map_err(usage)?;
    let key = key(&args, env)?;
    let node = NodeClient::find(&args.client)?;
    node.require_admin()?;
    let mut body = json!({
        "name": args.name, "kind": kind, "base_url": args.base_url, "models": args.models,
        "api_version": args.api_version, "api": api, "internal_ok": !args.public_only, "budget": budget,
    });
    if let Some(key) = key {
        body["key"] = key.into();
    }
    let v = node.json(Method::POST, "/admin/v1/providers", Some(body)).await?;
    if args.client.json {
        show::json(&v);
        return Ok(());
    }
    show::line(format!(
        "{} is on with {} models and a purse of {}",
        show::text(&v, "name"),
        v["models"].as_array().map_or(0, Vec::len),
        show::text(&v, "budget")
    ));
    if v["key"] == Value::Bool(false) {
        show::line("it has no key; if it wants one, give it with --key-file");
    }
    Ok(())
}

/// Reads the key where the command was told to, else where a known provider's is usually found.
fn key(args: &CloudAddArgs, env: &[(String, String)]) -> Result<Option<String>, CliError> {
    let read = |path: &std::path::Path| {
        let mut text = String::new();
        let read = if path == std::path::Path::new("-") {
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        } else {
            std::fs::read_to_string(path)
        };
        read.map_err(|e| {
            CliError::new(Exit::Usage, format!("cannot read the key file {}: {e}", path.display()))
        })
    };
    if let Some(path) = &args.key_file {
        return read(path).map(Some);
    }
    // A usual key is for the usual server only.
    let known = KNOWN.iter().find(|known| known.name == args.name && args.base_url.is_none());
    let Some(known) = known else { return Ok(None) };
    match (lookup(env, known.key_env), lookup(env, &format!("{}_FILE", known.key_env))) {
        (Some(key), _) => Ok(Some(key.to_owned())),
        (None, Some(path)) => read(std::path::Path::new(path)).map(Some),
        (None, None) => Ok(None),
    }
}

async fn list(client: &ClientArgs) -> Result<(), CliError> {
    let v = NodeClient::find(client)?.get("/shoal/v1/providers").await?;
    if client.json {
        show::json(&v);
        return Ok(());
    }
    let providers = v["providers"].as_array().map_or(&[][..], Vec::as_slice);
    let elsewhere = v["elsewhere"].as_array().map_or(&[][..], Vec::as_slice);
    if providers.is_empty() && elsewhere.is_empty() {
        show::line(
            "no cloud provider; `shoal cloud add openai` adds one, or set OPENAI_API_KEY and start again",
        );
        return Ok(());
    }
    let rows: Vec<Vec<String>> = providers
        .iter()
        .map(|p| {
            vec![
                show::text(p, "name"),
                show::text(p, "kind"),
                show::text(p, "base_url"),
                p["models"].as_array().map_or(0, Vec::len).to_string(),
                show::text(p, "key"),
                p["spent_usd"].as_f64().map_or_else(|| "-".to_owned(), |usd| format!("{usd:.4}")),
                show::text(p, "budget"),
                show::text(p, "internal_ok"),
                show::text(p, "source"),
            ]
        })
        .collect();
    if !rows.is_empty() {
        let columns = ["NAME", "KIND", "BASE URL", "MODELS", "KEY", "SPENT USD", "PURSE", "INTERNAL", "FROM"];
        show::table(&columns, &rows);
    }
    for p in elsewhere {
        let models = p["models"].as_array().map_or(0, Vec::len);
        let away = if p["alive"] == Value::Bool(false) { " and is away" } else { "" };
        let (name, node) = (show::text(p, "name"), show::text(p, "node"));
        show::line(format!("{name} ({models} models) by way of {node}, which has its key and purse{away}"));
    }
    Ok(())
}

async fn remove(name: &str, client: &ClientArgs) -> Result<(), CliError> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
        let message = format!("'{}' is no provider's name; `shoal cloud ls` shows them", show::clean(name));
        return Err(CliError::new(Exit::Usage, message));
    }
    let node = NodeClient::find(client)?;
    node.require_admin()?;
    let v = node.json(Method::DELETE, &format!("/admin/v1/providers/{name}"), None).await?;
    if client.json {
        show::json(&v);
        return Ok(());
    }
    show::line(format!("{name} is off"));
    if v["removed"]["source"] != "added" {
        show::line("its key is still in the environment or the config file: it comes back at the next start");
    }
    Ok(())
}
