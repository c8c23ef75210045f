//! `shoal join`: by a token into a mesh, as a router or a device; without a token, resume.

use std::io::Read;
use std::path::Path;

use reqwest::Url;
use shoal_cluster::identity::Identity;
use shoal_cluster::ids::Role;
use shoal_cluster::{DeviceSettings, JoinToken, RouterAddr, join};
use tokio_util::sync::CancellationToken;

use super::args::JoinArgs;
use super::config::load_config;
use super::exit::{CliError, Exit};
use super::up::{RouterStart, identity_dir};
use super::{show, signals};
use crate::config::{self, Flags, lookup};
use crate::device::set::{EmbeddedChoice, EngineSet};
use crate::device::{agent_process, lfo};
use crate::node::lock_data_dir;
use crate::store::Store;

/// Largest token file; a token has about 250 characters.
const MAX_TOKEN: u64 = 4096;

/// Runs `shoal join` until it is stopped.
pub(super) async fn run(args: JoinArgs, env: &[(String, String)]) -> Result<(), CliError> {
    let config = load_config(
        Flags {
            data_dir: args.data_dir.clone(),
            listen: args.listen,
            mesh: args.mesh,
            advertise: args.advertise.clone(),
            name: args.name.clone(),
            no_detect: args.no_detect,
            tls: args.tls.clone(),
            ..Flags::default()
        },
        env,
    )?;
    let lock = lock_data_dir(&config.data_dir)?;
    let dir = identity_dir(&config.data_dir);
    let (identity, seeds, keys) = match Identity::load(&dir).map_err(CliError::failure)? {
        // An identity wins over a token, so that a container restarts with the command it was made with.
        Some(identity) => {
            if args.token.is_some() {
                tracing::info!(
                    "this data directory belongs to a mesh already; resuming, the token is not needed"
                );
            }
            let seeds = seeds_of_token(&args, env, &identity);
            (identity, seeds, shoal_proto::KeyRecords::default())
        }
        None => {
            let token = token(args.token.as_deref(), env)?;
            let joined = join::redeem(&token, &config.name, &dir).await.map_err(CliError::failure)?;
            // At once, since a restart within the next second has no token to find the mesh by.
            let routers: Vec<String> = joined.routers.iter().map(ToString::to_string).collect();
            Store::open(&config.data_dir)
                .and_then(|store| store.remember_routers(&routers))
                .map_err(CliError::failure)?;
            (joined.identity, joined.routers, joined.keys)
        }
    };
    match identity.role() {
        Role::Router => {
            if !args.engines.is_empty() || args.model.is_some() || args.model_file.is_some() {
                let message =
                    "a router takes engines by `shoal up --device URL` or --embedded, not by --engine";
                return Err(CliError::new(Exit::Usage, message));
            }
            let start = RouterStart {
                config,
                identity,
                lock,
                seeds,
                keys,
                writes: Vec::new(),
                follow_stdin: args.follow_stdin,
            };
            start.run().await
        }
        Role::Device => device(args, config, identity, seeds, lock).await,
    }
}

/// Where the token points, for an identity that has it still: a process that died right after it joined may know no
/// router yet.
fn seeds_of_token(args: &JoinArgs, env: &[(String, String)], identity: &Identity) -> Vec<RouterAddr> {
    let argument = args.token.as_deref().filter(|text| *text != "-");
    let Ok(token) = token(argument, env) else { return Vec::new() };
    if token.mesh_id != identity.mesh_id() {
        return Vec::new();
    }
    token.seeds.iter().map(|addr| RouterAddr { id: token.issuer.clone(), addr: *addr }).collect()
}

async fn device(
    args: JoinArgs,
    config: config::Config,
    identity: Identity,
    seeds: Vec<RouterAddr>,
    lock: std::fs::File,
) -> Result<(), CliError> {
    let shutdown = CancellationToken::new();
    signals::cancel_on_signal(shutdown.clone());
    if args.follow_stdin {
        signals::cancel_on_stdin_end(shutdown.clone());
    }
    let store = Store::open(&config.data_dir).map_err(CliError::failure)?;
    let mut routers = seeds;
    for text in store.known_routers().map_err(CliError::failure)? {
        if let Ok(router) = text.parse::<RouterAddr>()
            && !routers.contains(&router)
        {
            routers.push(router);
        }
    }
    if routers.is_empty() {
        let message = "this device knows no router of its mesh any more; remove its data directory and join with a new token";
        return Err(CliError::failure(message));
    }
    let engines = engines(&args, &config.data_dir, shutdown.clone())?;
    let listen = if config.mesh_chosen { config.mesh_listen } else { agent_process::ANY_PORT };
    let settings = DeviceSettings { listen, routers, links: agent_process::LINKS };
    show::line(format!(
        "shoal {} joined as '{}' (device {})",
        env!("CARGO_PKG_VERSION"),
        config.name,
        identity.node_id().short()
    ));
    agent_process::run(&config.name, identity, settings, engines, store, shutdown).await?;
    drop(lock);
    Ok(())
}

fn engines(args: &JoinArgs, data_dir: &Path, shutdown: CancellationToken) -> Result<EngineSet, CliError> {
    let mut named = Vec::new();
    let wants_model = args.model.is_some() || args.model_file.is_some();
    let mut embedded = wants_model;
    for engine in &args.engines {
        if engine == "embedded" {
            embedded = true;
            continue;
        }
        let known = |u: &Url| matches!(u.scheme(), "http" | "https") || lfo::Place::parse(u.as_str()).is_ok();
        let url: Option<Url> = engine.parse().ok().filter(known);
        let url = url.ok_or_else(|| {
            let message = format!("'{engine}' is neither `embedded` nor a URL of an engine; write for example --engine http://127.0.0.1:11434 or --engine lfo+tcp://127.0.0.1:6000");
            CliError::new(Exit::Usage, message)
        })?;
        named.push((url, None));
    }
    // Nothing named: what runs on this host serves, and the embedded engine so that something always does.
    let detect = named.is_empty() && !embedded && !args.no_detect;
    let embedded = embedded || named.is_empty() && cfg!(feature = "embedded");
    let choice =
        embedded.then(|| EmbeddedChoice { model: args.model.clone(), model_file: args.model_file.clone() });
    EngineSet::start(named, detect, choice, data_dir, shutdown).map_err(CliError::from)
}

fn token(argument: Option<&str>, env: &[(String, String)]) -> Result<JoinToken, CliError> {
    let text = match argument {
        Some("-") => read_token(&mut std::io::stdin().lock(), "standard input")?,
        Some(text) if text.starts_with('@') => {
            let path = &text[1..];
            let mut file = std::fs::File::open(path).map_err(|e| {
                CliError::failure(format!(
                    "cannot read the token file {path}: {e}; is the router that writes it up?"
                ))
            })?;
            read_token(&mut file, path)?
        }
        Some(text) => text.to_owned(),
        None => match lookup(env, "SHOAL_JOIN_TOKEN") {
            Some(text) => text.to_owned(),
            None => {
                let message = "this data directory belongs to no mesh yet; make a token with `shoal token create` on a node and give it to `shoal join`";
                return Err(CliError::new(Exit::Usage, message));
            }
        },
    };
    text.trim().parse::<JoinToken>().map_err(|e| CliError::new(Exit::Usage, e.to_string()))
}

fn read_token(from: &mut impl Read, name: &str) -> Result<String, CliError> {
    let mut text = String::new();
    from.take(MAX_TOKEN)
        .read_to_string(&mut text)
        .map_err(|e| CliError::failure(format!("cannot read a token from {name}: {e}")))?;
    Ok(text)
}
