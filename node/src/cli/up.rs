//! `shoal up`: a router node; the first one makes the mesh.

use std::path::{Path, PathBuf};

use anyhow::Context;
use shoal_cluster::identity::Identity;
use shoal_cluster::identity::server::ca_file;
use shoal_cluster::ids::Role;
use shoal_cluster::{Handle, RouterAddr};
use tokio_util::sync::CancellationToken;

use super::args::{PullArgs, UpArgs};
use super::config::load_config;
use super::exit::{CliError, Exit};
use super::{show, signals};
use crate::config::{ApiTls, Config, Flags, default_data_dir};
use crate::device::set::EngineSet;
use crate::node::{Parts, Started, lock_data_dir};
use crate::store::Store;
use crate::telemetry;

/// Life of a token written by `--write-token`: containers restart for weeks.
const WRITTEN_TOKEN_TTL: std::time::Duration = std::time::Duration::from_secs(90 * 86_400);

/// Runs `shoal up` until it is stopped.
pub(super) async fn run(args: UpArgs, env: &[(String, String)]) -> Result<(), CliError> {
    let writes = args.write_tokens.iter().map(|t| TokenFile::parse(t)).collect::<Result<Vec<_>, _>>()?;
    let follow_stdin = args.follow_stdin;
    let config = load_config(
        Flags {
            config: args.config,
            data_dir: args.data_dir,
            listen: args.listen,
            mesh: args.mesh,
            advertise: args.advertise,
            name: args.name,
            devices: args.devices,
            embedded: args.embedded,
            no_detect: args.no_detect,
            no_auth: args.no_auth,
            tls: args.tls,
        },
        env,
    )?;
    let lock = lock_data_dir(&config.data_dir)?;
    let dir = identity_dir(&config.data_dir);
    let identity = match Identity::load(&dir).map_err(CliError::failure)? {
        Some(identity) if identity.role() == Role::Device => {
            return Err(CliError::new(
                Exit::Usage,
                format!(
                    "{} belongs to a device; resume it with `shoal join`, or choose another --data-dir for a router",
                    config.data_dir.display()
                ),
            ));
        }
        Some(identity) => identity,
        None => Identity::create_mesh(&dir, &config.name).map_err(CliError::failure)?,
    };
    let start = RouterStart {
        config,
        identity,
        lock,
        seeds: Vec::new(),
        keys: Default::default(),
        writes,
        follow_stdin,
    };
    start.run().await
}

/// What a router starts from, whether by `up` or by `join`.
pub(super) struct RouterStart {
    pub(super) config: Config,
    pub(super) identity: Identity,
    pub(super) lock: std::fs::File,
    pub(super) seeds: Vec<RouterAddr>,
    pub(super) keys: shoal_proto::KeyRecords,
    pub(super) writes: Vec<TokenFile>,
    pub(super) follow_stdin: bool,
}

impl RouterStart {
    /// Starts the node, tells how to use it, and waits for its end.
    pub(super) async fn run(mut self) -> Result<(), CliError> {
        let shutdown = CancellationToken::new();
        signals::cancel_on_signal(shutdown.clone());
        if self.follow_stdin {
            signals::cancel_on_stdin_end(shutdown.clone());
        }
        self.seeds.extend(known_routers(&self.config.data_dir)?);
        let engines = EngineSet::for_router(&self.config, shutdown.clone())?;
        let parts = Parts {
            identity: self.identity,
            seeds: self.seeds,
            keys: self.keys,
            engines,
            lock: self.lock,
            shutdown,
            metrics: telemetry::start_metrics()?,
        };
        let started = Started::start(self.config, parts).await?;
        for write in &self.writes {
            write.write(&started.node.mesh)?;
        }
        greet(&started);
        started.finish().await;
        Ok(())
    }
}

/// Returns where a node keeps its identity.
pub(super) fn identity_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("identity")
}

fn known_routers(data_dir: &Path) -> Result<Vec<RouterAddr>, CliError> {
    let known = Store::open(data_dir).and_then(|s| s.known_routers()).map_err(CliError::failure)?;
    Ok(known.iter().filter_map(|text| text.parse().ok()).collect())
}

fn greet(started: &Started) {
    let node = &started.node;
    show::line(format!("shoal {} is up as '{}'", env!("CARGO_PKG_VERSION"), node.config.name));
    show::line(format!("  API        {}/v1", node.api_url));
    show::line(format!("  dashboard  {}", node.dashboard_url()));
    show::line(format!("  mesh       {} (node {})", node.mesh.local_addr(), node.mesh.node_id().short()));
    let ca = ca_file(&identity_dir(&node.config.data_dir));
    let trust = match &node.config.tls {
        ApiTls::Mesh { .. } => {
            show::line(format!("  trust      {}   (for clients; `shoal env` prints how)", ca.display()));
            format!("--cacert {} ", ca.display())
        }
        ApiTls::Own { .. } | ApiTls::Off => String::new(),
    };
    match &started.new_key {
        Some(key) => {
            show::line(format!("  API key    {}   (shown once; more with `shoal keys create`)", key.text));
            show::line(format!(
                "  try        curl {trust}{}/v1/chat/completions -H 'Authorization: Bearer {}' -H 'Content-Type: application/json' -d '{{\"model\":\"auto\",\"messages\":[{{\"role\":\"user\",\"content\":\"Hello!\"}}]}}'",
                node.api_url, key.text
            ));
        }
        None if node.config.no_auth => show::line("  API key    none needed (--no-auth)"),
        None => show::line(
            "  API key    the mesh's keys; `shoal keys ls` lists them, `shoal keys create` makes one",
        ),
    }
    for provider in node.clouds.list() {
        show::line(format!(
            "  cloud      {} ({} models) with a purse of {}, {:.2} USD spent; `shoal cloud ls`",
            provider.name,
            provider.models.len(),
            provider.budget,
            provider.spent_usd.unwrap_or_default(),
        ));
    }
    let lfo = node.config.lfo.as_ref();
    for line in lfo.map(|lfo| lfo.announcements(node.config.listen)).unwrap_or_default() {
        show::line(format!("  {line}"));
    }
    show::line("  add a device: `shoal token create` here, then `shoal join <token>` there");
}

/// A `--write-token ROLE:FILE[:USES]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TokenFile {
    role: Role,
    file: PathBuf,
    uses: u32,
}

impl TokenFile {
    pub(super) fn parse(text: &str) -> Result<Self, CliError> {
        let wrong = || {
            CliError::new(
                Exit::Usage,
                format!("'{text}' is not ROLE:FILE[:USES]; write for example device:/join/device.token:16"),
            )
        };
        let (role, rest) = text.split_once(':').ok_or_else(wrong)?;
        let role: Role = role.parse().map_err(|_| wrong())?;
        let (file, uses) = match rest.rsplit_once(':') {
            Some((file, uses)) if !uses.is_empty() && uses.bytes().all(|b| b.is_ascii_digit()) => {
                (file, uses.parse().map_err(|_| wrong())?)
            }
            _ => (rest, 1),
        };
        if file.is_empty() || !(1..=1000).contains(&uses) {
            return Err(wrong());
        }
        Ok(Self { role, file: file.into(), uses })
    }

    /// Writes a fresh token, so that a reader sees all of it or nothing; one read before stays good.
    fn write(&self, mesh: &Handle) -> anyhow::Result<()> {
        let token = mesh.create_token(self.role, WRITTEN_TOKEN_TTL, self.uses)?;
        let part = self.file.with_extension("part");
        let shown = self.file.display();
        write_private(&part, &format!("{token}\n"))
            .with_context(|| format!("cannot write the token file {shown}"))?;
        std::fs::rename(&part, &self.file).with_context(|| format!("cannot write the token file {shown}"))?;
        tracing::info!(file = %shown, role = %self.role, uses = self.uses, "join token written");
        Ok(())
    }
}

/// Writes a file that only its owner may read.
pub(super) fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let mut options = std::fs::File::options();
    options.create(true).truncate(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// `shoal pull`
pub(super) async fn pull(args: PullArgs, env: &[(String, String)]) -> Result<(), CliError> {
    let dir = args.data_dir.unwrap_or_else(|| default_data_dir(env));
    let model = crate::model::pull(&args.model, &dir).await.map_err(CliError::failure)?;
    if args.json {
        show::json(&serde_json::json!({"name": model.name, "path": model.path, "sha256": model.sha256}));
    } else {
        show::line(format!("{} is in {}", model.name, model.path.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_files_are_parsed_with_and_without_uses() {
        let parsed = TokenFile::parse("device:/join/device.token:16").unwrap();
        assert_eq!(parsed, TokenFile { role: Role::Device, file: "/join/device.token".into(), uses: 16 });
        assert_eq!(TokenFile::parse("router:C:\\t").unwrap().uses, 1);
        for bad in ["", "device", "king:/x", "device:", "device:/x:0", "device:/x:99999"] {
            assert!(TokenFile::parse(bad).is_err(), "{bad}");
        }
    }
}
