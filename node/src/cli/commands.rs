//! Commands that ask a running node and print its answer.

use std::io::Write;
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};

use super::args::{ChatArgs, ClientArgs, KeysCommand, RoleArg, TokenCommand};
use super::client::NodeClient;
use super::exit::{CliError, Exit};
use super::show;
use crate::api::tls::bundle_file;
use crate::upstream::sse::{Decoder, Item};

/// `shoal status`
pub(super) async fn status(args: &ClientArgs) -> Result<(), CliError> {
    let v = NodeClient::find(args)?.get("/shoal/v1/status").await?;
    if args.json {
        show::json(&v);
        return Ok(());
    }
    let (node, mesh, requests) = (&v["node"], &v["mesh"], &v["requests"]);
    let state = match (node["draining"].as_bool(), node["ready"].as_bool()) {
        (Some(true), _) => "draining",
        (_, Some(true)) => "ready",
        _ => "not ready",
    };
    show::line(format!(
        "node     {} ({}), {state}, up {}",
        show::text(node, "name"),
        show::text(node, "version"),
        seconds(&node["uptime_s"])
    ));
    show::line(format!("api      {}", show::text(node, "api_url")));
    show::line(format!(
        "mesh     {} of {} nodes alive, {} devices, {} models",
        mesh["alive"], mesh["nodes"], mesh["devices"], mesh["models"]
    ));
    show::line(format!(
        "requests {} accepted, {} completed, {} failed, {} cancelled, {} in progress",
        requests["accepted"],
        requests["completed"],
        requests["failed"],
        requests["cancelled"],
        requests["in_flight"]
    ));
    let rows: Vec<Vec<String>> = v["statistics"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|a| {
            vec![
                show::text(a, "arm"),
                show::text(a, "count"),
                a["mean_reward"].as_f64().map_or("-".into(), |m| format!("{m:.3}")),
                show::text(a, "failures"),
                show::text(a, "origins"),
            ]
        })
        .collect();
    if !rows.is_empty() {
        show::line("");
        show::table(&["LEARNT ABOUT", "OUTCOMES", "MEAN REWARD", "FAILURES", "FROM NODES"], &rows);
    }
    Ok(())
}

/// `shoal nodes`
pub(super) async fn nodes(args: &ClientArgs) -> Result<(), CliError> {
    list(
        args,
        "/shoal/v1/nodes",
        "nodes",
        &["NAME", "ID", "STATE", "VERSION", "API", "MESH", "DEVICES"],
        |n| {
            let state = match (n["alive"].as_bool(), n["draining"].as_bool()) {
                (Some(true), Some(true)) => "draining",
                (Some(true), _) => "alive",
                _ => "dead",
            };
            vec![
                show::text(n, "name"),
                n["id"].as_str().unwrap_or("-").chars().take(8).collect(),
                state.into(),
                show::text(n, "version"),
                show::text(n, "api_url"),
                show::text(n, "mesh_addrs"),
                n["devices"].as_array().map_or(0, Vec::len).to_string(),
            ]
        },
    )
    .await
}

/// `shoal devices`
pub(super) async fn devices(args: &ClientArgs) -> Result<(), CliError> {
    list(
        args,
        "/shoal/v1/devices",
        "devices",
        &["NAME", "ID", "NODES", "PLATFORM", "BUSY", "FIRST TOKEN", "MODELS"],
        |d| {
            let models: Vec<&str> =
                d["models"].as_array().into_iter().flatten().filter_map(|m| m["id"].as_str()).collect();
            vec![
                show::text(d, "name"),
                d["id"].as_str().unwrap_or("-").chars().take(8).collect(),
                show::text(d, "nodes"),
                show::text(d, "platform"),
                format!("{}/{}", d["in_flight"], d["slots"]),
                show::millis(&d["ttft_ms"]),
                models.join(", "),
            ]
        },
    )
    .await
}

/// `shoal models`
pub(super) async fn models(args: &ClientArgs) -> Result<(), CliError> {
    list(
        args,
        "/shoal/v1/models",
        "models",
        &["MODEL", "DEVICES", "ENGINE", "CONTEXT", "QUANTIZATION"],
        |m| {
            vec![
                show::text(m, "id"),
                show::text(m, "devices"),
                show::text(m, "engine"),
                show::text(m, "context_length"),
                show::text(m, "quantization"),
            ]
        },
    )
    .await
}

/// `shoal ps`
pub(super) async fn ps(args: &ClientArgs) -> Result<(), CliError> {
    let v = NodeClient::find(args)?.get("/shoal/v1/requests?limit=20").await?;
    if args.json {
        show::json(&v);
        return Ok(());
    }
    let row = |r: &Value| {
        vec![
            show::text(r, "id"),
            show::text(r, "outcome"),
            show::text(r, "model"),
            show::text(r, "upstream"),
            show::text(r, "routing_reason"),
            show::millis(&r["ttft_ms"]),
            show::millis(&r["duration_ms"]),
            show::text(r, "completion_tokens"),
        ]
    };
    let rows: Vec<Vec<String>> = ["active", "requests"]
        .iter()
        .flat_map(|key| v[*key].as_array().into_iter().flatten())
        .map(row)
        .collect();
    if rows.is_empty() {
        show::line("no requests yet; try `shoal chat \"hello\"`");
        return Ok(());
    }
    show::table(&["REQUEST", "OUTCOME", "MODEL", "UPSTREAM", "WHY", "FIRST", "TOTAL", "TOKENS"], &rows);
    Ok(())
}

/// `shoal token …`
pub(super) async fn token(command: &TokenCommand) -> Result<(), CliError> {
    match command {
        TokenCommand::Create { role, ttl, uses, client } => {
            let seconds = super::parse_duration(ttl)?.as_secs();
            let node = NodeClient::find(client)?;
            node.require_admin()?;
            let role = match role {
                RoleArg::Device => "device",
                RoleArg::Router => "router",
            };
            let body = json!({"role": role, "ttl_s": seconds, "uses": uses});
            let v = node.json(Method::POST, "/admin/v1/tokens", Some(body)).await?;
            if client.json {
                show::json(&v);
                return Ok(());
            }
            show::line(show::text(&v, "token"));
            if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
                show::line("");
                show::line(format!("For {uses} {role}(s), within {ttl}; shown once. On the other host:"));
                show::line(format!("  shoal join {}", show::text(&v, "token")));
                if role == "router" {
                    show::line(
                        "A router sees prompts and may issue certificates: give this token to nobody you would not give the mesh to.",
                    );
                }
            }
            Ok(())
        }
        TokenCommand::Ls(client) => {
            let node = NodeClient::find(client)?;
            node.require_admin()?;
            let v = node.get("/admin/v1/tokens").await?;
            print_list(client, &v, "tokens", &["ID", "ROLE", "USES LEFT", "EXPIRES", "STATE"], |t| {
                vec![
                    show::text(t, "id"),
                    show::text(t, "role"),
                    show::text(t, "uses_left"),
                    show::text(t, "expires"),
                    show::text(t, "state"),
                ]
            });
            Ok(())
        }
        TokenCommand::Revoke { id, client } => remove(client, "tokens", id).await,
    }
}

/// `shoal keys …`
pub(super) async fn keys(command: &KeysCommand) -> Result<(), CliError> {
    match command {
        KeysCommand::Create { name, local_only, budget, client } => {
            let node = NodeClient::find(client)?;
            node.require_admin()?;
            let budget = budget.map(|budget| budget.to_string());
            let body = json!({"name": name, "local_only": local_only, "budget": budget});
            let v = node.json(Method::POST, "/admin/v1/keys", Some(body)).await?;
            if client.json {
                show::json(&v);
            } else {
                show::line(show::text(&v, "key"));
            }
            Ok(())
        }
        KeysCommand::Ls(client) => {
            let node = NodeClient::find(client)?;
            node.require_admin()?;
            let v = node.get("/admin/v1/keys").await?;
            let headings = ["ID", "NAME", "LOCAL ONLY", "BUDGET", "SPENT", "LEFT", "CREATED", "STATE"];
            print_list(client, &v, "keys", &headings, |k| {
                let usd = |key: &str| k[key].as_f64().map_or("-".into(), |usd| format!("{usd:.4}"));
                vec![
                    show::text(k, "id"),
                    show::text(k, "name"),
                    show::text(k, "local_only"),
                    show::text(k, "budget"),
                    usd("spent_usd"),
                    usd("left_usd"),
                    show::text(k, "created"),
                    show::text(k, "state"),
                ]
            });
            Ok(())
        }
        KeysCommand::Revoke { id, client } => remove(client, "keys", id).await,
    }
}

async fn remove(client: &ClientArgs, what: &str, id: &str) -> Result<(), CliError> {
    if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(CliError::new(Exit::Usage, format!("'{id}' is not an id; `shoal {what} ls` shows them")));
    }
    let node = NodeClient::find(client)?;
    node.require_admin()?;
    let v = node.json(Method::DELETE, &format!("/admin/v1/{what}/{id}"), None).await?;
    if client.json {
        show::json(&v);
    } else {
        show::line(format!("{id} is revoked"));
    }
    Ok(())
}

/// `shoal dashboard`
pub(super) async fn dashboard(args: &ClientArgs) -> Result<(), CliError> {
    let node = NodeClient::find(args)?;
    node.require_admin()?;
    let v = node.json(Method::POST, "/admin/v1/dashboard-link", None).await?;
    if args.json {
        show::json(&v);
    } else {
        show::line(show::text(&v, "url"));
    }
    Ok(())
}

/// `shoal down`
pub(super) async fn down(args: &ClientArgs) -> Result<(), CliError> {
    let node = NodeClient::find(args)?;
    node.require_admin()?;
    let v = node.json(Method::POST, "/admin/v1/shutdown", None).await?;
    if args.json {
        show::json(&v);
    } else {
        show::line("the node finishes what it is doing and stops");
    }
    Ok(())
}

/// `shoal health`
pub(super) async fn health(args: &ClientArgs) -> Result<(), CliError> {
    let v = NodeClient::find(args)?.get("/readyz").await?;
    if args.json {
        show::json(&v);
    } else {
        show::line("healthy");
    }
    Ok(())
}

/// `shoal env`
pub(super) async fn env(args: &ClientArgs) -> Result<(), CliError> {
    let node = NodeClient::find(args)?;
    let v = node.get("/shoal/v1/status").await?;
    // By its own address the node may be out of reach of who asked by another.
    let own = v["node"]["api_url"].as_str().unwrap_or_default();
    let base = format!(
        "{}/v1",
        args.url.as_deref().map_or(own, |url| url.trim_end_matches('/').trim_end_matches("/v1"))
    );
    let trusted = if v["node"]["tls"] == "mesh" { node.ca().map(Trusted::of) } else { None };
    if args.json {
        let mut all = json!({"OPENAI_BASE_URL": base});
        if let Some(trusted) = &trusted {
            all["SSL_CERT_FILE"] = json!(trusted.list);
            all["NODE_EXTRA_CA_CERTS"] = json!(trusted.mesh);
        }
        show::json(&all);
        return Ok(());
    }
    show::line(format!("export OPENAI_BASE_URL={base}"));
    if let Some(trusted) = &trusted {
        show::line(format!("export SSL_CERT_FILE={}", quoted(&trusted.list.to_string_lossy())));
        show::line(format!("export NODE_EXTRA_CA_CERTS={}", quoted(&trusted.mesh.to_string_lossy())));
    }
    match &args.api_key {
        Some(key) => show::line(format!("export OPENAI_API_KEY={key}")),
        None => show::line(
            "# export OPENAI_API_KEY=…   the key printed at first start, or a new one: shoal keys create",
        ),
    }
    Ok(())
}

/// Files by which clients of an API with a certificate from the mesh know it.
pub(super) struct Trusted {
    /// For what takes one list of all: the host's roots and the mesh's, where the node could write it.
    pub(super) list: PathBuf,
    /// The mesh's roots alone.
    pub(super) mesh: PathBuf,
}

impl Trusted {
    pub(super) fn of(ca: &Path) -> Self {
        let mesh = std::path::absolute(ca).unwrap_or_else(|_| ca.to_owned());
        let beside = mesh.parent().and_then(Path::parent).map(bundle_file).filter(|file| file.is_file());
        Self { list: beside.unwrap_or_else(|| mesh.clone()), mesh }
    }
}

/// Quotes a word for a shell, where it needs that.
pub(super) fn quoted(text: &str) -> String {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+@%:".contains(&b)) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// `shoal chat`
pub(super) async fn chat(args: &ChatArgs) -> Result<(), CliError> {
    let node = NodeClient::find(&args.client)?;
    if let Some(text) = &args.text {
        let mut history = vec![json!({"role": "user", "content": text})];
        return one_turn(&node, args, &mut history).await;
    }
    let mut history = Vec::new();
    loop {
        prompt("> ");
        let mut input = String::new();
        if std::io::stdin().read_line(&mut input).map_err(CliError::failure)? == 0 {
            return Ok(());
        }
        if input.trim().is_empty() {
            continue;
        }
        history.push(json!({"role": "user", "content": input.trim()}));
        one_turn(&node, args, &mut history).await?;
    }
}

async fn one_turn(node: &NodeClient, args: &ChatArgs, history: &mut Vec<Value>) -> Result<(), CliError> {
    let body = json!({
        "model": args.model, "messages": history, "stream": true, "stream_options": {"include_usage": true},
    });
    let started = std::time::Instant::now();
    let response = node.stream("/v1/chat/completions", &body).await?;
    let mut bytes = response.bytes_stream();
    let mut decoder = Decoder::new();
    let (mut answer, mut meta, mut usage) = (String::new(), Value::Null, Value::Null);
    while let Some(part) = bytes.next().await {
        let part = part.map_err(|e| CliError::failure(format!("the answer was cut: {e}")))?;
        decoder.push(part);
        while let Some(item) = decoder.next_item().map_err(CliError::failure)? {
            let Item::Data(payload) = item else { continue };
            let Ok(v) = serde_json::from_slice::<Value>(&payload) else { continue };
            if let Some(message) = v["error"]["message"].as_str() {
                return Err(CliError::failure(message));
            }
            if let Some(text) = v["choices"][0]["delta"]["content"].as_str() {
                prompt(
                    &text.chars().filter(|c| !c.is_control() || *c == '\n' || *c == '\t').collect::<String>(),
                );
                answer.push_str(text);
            }
            for (key, into) in [("shoal_metadata", &mut meta), ("usage", &mut usage)] {
                if v[key].is_object() {
                    *into = v[key].clone();
                }
            }
        }
    }
    show::line("");
    let (tokens, elapsed) =
        (usage["completion_tokens"].as_f64().unwrap_or(0.0), started.elapsed().as_secs_f64());
    show::line(format!(
        "[{} on {}, {}, {tokens:.0} tokens, {:.1} tokens/s]",
        show::clean(&show::text(&meta, "model")),
        show::clean(&show::text(&meta, "upstream")),
        show::millis(&json!(elapsed * 1000.0)),
        tokens / elapsed.max(0.001)
    ));
    history.push(json!({"role": "assistant", "content": answer}));
    Ok(())
}

fn prompt(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

async fn list(
    args: &ClientArgs,
    path: &str,
    key: &str,
    headings: &[&str],
    row: impl Fn(&Value) -> Vec<String>,
) -> Result<(), CliError> {
    let v = NodeClient::find(args)?.get(path).await?;
    print_list(args, &v, key, headings, row);
    Ok(())
}

fn print_list(
    args: &ClientArgs,
    v: &Value,
    key: &str,
    headings: &[&str],
    row: impl Fn(&Value) -> Vec<String>,
) {
    if args.json {
        show::json(v);
        return;
    }
    let rows: Vec<Vec<String>> = v[key].as_array().into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        show::line(format!("no {key}"));
    } else {
        show::table(headings, &rows);
    }
}

fn seconds(value: &Value) -> String {
    let s = value.as_u64().unwrap_or(0);
    match s {
        0..=119 => format!("{s} s"),
        120..=7199 => format!("{} min", s / 60),
        _ => format!("{} h", s / 3600),
    }
}
