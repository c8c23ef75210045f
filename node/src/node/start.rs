//! From settings to a running node: puts the parts together, starts their tasks and stops them in order.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use metrics_exporter_prometheus::PrometheusHandle;
use shoal_cluster::identity::Identity;
use shoal_cluster::{Handle, RouterAddr, Settings, TokenBook};
use shoal_routing::{LoadBook, PairSalt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Node;
use crate::api::front::Front;
use crate::api::idempotency::Answers;
use crate::api::responses::Keeper;
use crate::api::serve::{Bounds, FAREWELL};
use crate::api::tls::Tls;
use crate::cloud::{Clouds, KeyPurses};
use crate::config::Config;
use crate::control::ControlService;
use crate::dashboard;
use crate::device::power::watch_power;
use crate::device::set::EngineSet;
use crate::feedback;
use crate::inventory::{self, EVENT_QUEUE};
use crate::judge::Judge;
use crate::judging::agreement::SecondOpinion;
use crate::judging::{evaluator, shadow, witness};
use crate::mesh::{self, GossipPublisher, MeshResolver, MeshResponses};
use crate::pack;
use crate::pipeline::live::Live;
use crate::pipeline::ticket::Sinks;
use crate::pipeline::{Pipeline, RuleBook};
use crate::store::{HistoryWriter, KeyRing, NewKey, ResponseShelf, Store, StoreBook, unix_ms};
use crate::tasks::{self, TaskKind};

/// Time between two rounds of gossip; measured: a key reaches 10 nodes in 0.3 s at 17 kB/s each.
const GOSSIP_INTERVAL: Duration = Duration::from_millis(200);
/// Ports tried after the first when 8080 is taken and nobody asked for it.
const PORT_TRIES: u16 = 50;
/// Time between "not ready" and the end of accepting, so that load balancers and peers notice first.
const LAME_DUCK: Duration = Duration::from_millis(500);

/// A started node and what must be awaited when it ends.
pub struct Started {
    /// The node.
    pub node: Arc<Node>,
    /// The API key, if one was made at this start.
    pub new_key: Option<NewKey>,
    tasks: Vec<JoinHandle<()>>,
    servers: Vec<JoinHandle<()>>,
    inbound: TaskTracker,
    stop_background: CancellationToken,
    stop_serving: CancellationToken,
    _lock: File,
}

/// What a node starts from besides its configuration.
pub struct Parts {
    /// Who it is.
    pub identity: Identity,
    /// Routers to dial first.
    pub seeds: Vec<RouterAddr>,
    /// Key records from the router that let it in.
    pub keys: shoal_proto::KeyRecords,
    /// Own engines.
    pub engines: EngineSet,
    /// The data directory's lock.
    pub lock: File,
    /// Stops the node.
    pub shutdown: CancellationToken,
    /// Metrics recorder of the process.
    pub metrics: PrometheusHandle,
}

impl Started {
    /// Starts all parts; the API listens when this returns, the mesh is joined in the background.
    pub async fn start(mut config: Config, parts: Parts) -> anyhow::Result<Self> {
        let Parts { identity, seeds, keys: handed_keys, engines, lock, shutdown, metrics } = parts;
        let store = Store::open(&config.data_dir)?;
        let keys = KeyRing::load(store.clone())?;
        if let Some(hash) = config.lfo.as_ref().and_then(|lfo| lfo.auth_sha256) {
            keys.accept_foreign("LFO_AUTH_TOKEN", hash);
        }
        keys.merge(handed_keys.keys.into_iter().filter_map(crate::replication::key_from_proto).collect())?;
        let identity = Arc::new(identity);
        let tls = Tls::new(&config, &identity)?;
        let (listener, api_url) = bind_api(&mut config).await?;
        let new_key =
            if keys.is_empty() && !config.no_auth { Some(keys.create("first", false, None)?) } else { None };
        let me = identity.node_id().clone();
        let generation = store.next_generation()?;
        let (feedback_service, feedback) = feedback::Service::new(me.as_str(), generation, store.clone())?;
        let priors = pack::at_start(&store, config.router.shipped_pack)?;
        let salt = PairSalt::of_bytes(identity.mesh_id().0);
        let feedback_service = feedback_service.with_salt(salt).with_priors(Arc::new(priors));
        let book = Arc::new(StoreBook::new(store.clone(), keys.clone()));
        // Two tokens: the API and running answers end first, then what they depend on.
        let (stop_serving, stop_background) = (CancellationToken::new(), CancellationToken::new());
        let (history, history_task) =
            HistoryWriter::start(store.clone(), config.limits.history_days, stop_background.clone());
        let (shelf, shelf_task) =
            ResponseShelf::start(store.clone(), config.limits.history_days, stop_background.clone());
        let live = Live::default();
        let (mut witness_service, witness) = witness::Service::new(feedback.clone());
        let judge = Judge {
            store: store.clone(),
            history: history.clone(),
            feedback: feedback.clone(),
            witness: witness.clone(),
        };
        let control = ControlService::routes(judge.clone(), keys.clone(), live.clone(), shelf.clone());
        // Tokens are made for devices and routers: there may be some, which come back by themselves.
        let expects_mesh = !seeds.is_empty() || !book.list()?.is_empty();
        let (service, mesh, inbound) =
            bind_mesh(&config, identity.clone(), book.clone(), control, api_url.clone(), seeds, generation)?;
        let (links, link_events) = mpsc::channel(EVENT_QUEUE);
        let engines = engines.named(me.as_str(), &config.name);
        let own = engines.describe(generation, watch_power(shutdown.clone()));
        let clouds = Arc::new(Clouds::new(
            std::mem::take(&mut config.providers),
            &config.prices,
            &config.data_dir,
            store.clone(),
            &config.limits,
        )?);
        let (inventory_service, snapshot) =
            inventory::Service::new(me.clone(), own, link_events, mesh.view(), clouds.offers());
        let loads = Arc::new(LoadBook::new(generation));
        let inventory_service = inventory_service.reporting_to(loads.clone());
        let lfo_manners = config.lfo.is_some();
        let feedback_handle = feedback.clone();
        let sinks = Sinks { feedback, witness, history, live, totals: Arc::default(), lfo_manners };
        let resolver = Arc::new(MeshResolver::new(&me, engines.upstream(), mesh.clone(), clouds.clone()));
        let pipeline = Pipeline::new(&config.name, snapshot, loads, sinks, resolver, config.limits.clone())
            .with_rules(RuleBook::new(config.rules.clone(), keys.clone()))
            .with_purses(KeyPurses::new(keys.clone(), store.clone()))
            .with_hedging(config.hedging_share)
            .resuming(config.resume)
            .expecting_a_mesh(expects_mesh)
            .with_second_opinion(
                config.agreement.map(|settings| SecondOpinion::new(settings, me.short().into())),
            );
        let pipeline = Arc::new(pipeline);
        let front = Front {
            name: config.name.as_str().into(),
            short_id: me.short().into(),
            pipeline: pipeline.clone(),
            keys: keys.clone(),
            no_auth: config.no_auth,
            claude_model: config.claude_model.as_deref().map(Arc::from),
            responses: Keeper::new(shelf, Arc::new(MeshResponses(mesh.clone())))?,
            answers: Answers::new(config.idempotency),
        };
        let background = stop_background.clone();
        let mut judges = Vec::new();
        if let Some(settings) = config.evaluator.clone() {
            let (share, short_id) = (settings.share, me.short().into());
            let (service, sender) =
                evaluator::Service::new(settings, pipeline.clone(), store.clone(), short_id)?;
            witness_service = witness_service.graded_by(share, sender);
            judges.push(tasks::spawn(TaskKind::Evaluator, service.run(background.clone())));
            if config.learning.shadow_share > 0.0 {
                let (service, sender) =
                    shadow::Service::new(&config.learning, pipeline.clone(), me.short().into());
                witness_service = witness_service.shadowed_by(config.learning.shadow_share, sender);
                judges.push(tasks::spawn(TaskKind::Shadow, service.run(background.clone())));
            }
        }
        let node = Arc::new(Node {
            front,
            api_url,
            identity,
            mesh: mesh.clone(),
            pipeline: pipeline.clone(),
            clouds,
            store: store.clone(),
            keys: keys.clone(),
            book,
            judge,
            door: dashboard::Door::default(),
            metrics,
            shutdown,
            started: Instant::now(),
            started_ms: unix_ms(),
            draining: AtomicBool::new(false),
            config,
        });

        let forwarded = TaskTracker::new();
        let mut tasks = vec![
            tasks::spawn(TaskKind::Witness, witness_service.run(background.clone())),
            history_task,
            shelf_task,
            tasks::spawn(TaskKind::Cluster, {
                let stop = background.clone();
                async move {
                    if let Err(error) = service.run(stop).await {
                        tracing::error!(%error, "the mesh part stopped; this node goes on with its own devices");
                    }
                }
            }),
            tasks::spawn(
                TaskKind::Inventory,
                inventory_service.run(GossipPublisher(mesh.clone()), background.clone()),
            ),
            tasks::spawn(
                TaskKind::Feedback,
                feedback_service.run(GossipPublisher(mesh.clone()), background.clone()),
            ),
            tasks::spawn(
                TaskKind::Statistics,
                mesh::keep_statistics_equal(mesh.clone(), feedback_handle, background.clone()),
            ),
            tasks::spawn(
                TaskKind::Inbound,
                mesh::receive(inbound, links, pipeline, forwarded.clone(), background.clone()),
            ),
            tasks::spawn(TaskKind::Keys, mesh::keep_keys_equal(mesh.clone(), keys, background.clone())),
            tasks::spawn(TaskKind::Store, remember_routers(mesh, store, background)),
        ];
        tasks.append(&mut judges);
        let mut servers = vec![tasks::spawn(
            TaskKind::Api,
            crate::api::serve::tcp(
                listener,
                tls.clone(),
                crate::api::public(node.clone()),
                bounds(&node.config),
                stop_serving.clone(),
            ),
        )];
        if let Some(tls) = tls {
            tasks.push(tasks::spawn(TaskKind::Certificate, tls.keep_fresh(stop_background.clone())));
        }
        #[cfg(unix)]
        servers.push(admin_socket(&node, stop_serving.clone())?);
        Ok(Self {
            node,
            new_key,
            tasks,
            servers,
            inbound: forwarded,
            stop_background,
            stop_serving,
            _lock: lock,
        })
    }

    /// Waits for shutdown, then drains: not ready, tell the mesh, stop accepting, let answers finish, stop.
    pub async fn finish(self) {
        self.node.shutdown.cancelled().await;
        tracing::info!("stopping: running answers may finish");
        self.node.draining.store(true, Ordering::Relaxed);
        self.node.mesh.set_draining(true);
        tokio::time::sleep(LAME_DUCK).await;
        self.stop_serving.cancel();
        // What other routers sent here is as much a running answer as what clients did.
        self.inbound.close();
        let drain = self.node.config.limits.drain;
        let forwarded = tokio::time::timeout(drain + FAREWELL, self.inbound.wait());
        let servers = futures_util::future::join_all(self.servers);
        let drained = async { tokio::join!(servers, forwarded).1 };
        let ending = self.node.pipeline.ending.clone();
        let patience = async {
            tokio::time::sleep(drain).await;
            tracing::warn!("some answers are still running; they end with an error");
            ending.cancel();
            std::future::pending().await
        };
        let forwarded = tokio::select! {
            forwarded = drained => forwarded,
            never = patience => never,
        };
        if forwarded.is_err() {
            tracing::warn!("some forwarded requests were still running when the drain time ended");
        }
        self.stop_background.cancel();
        for task in self.tasks {
            let _ = task.await;
        }
        #[cfg(unix)]
        let _ = std::fs::remove_file(self.node.config.data_dir.join(crate::cli::client::ADMIN_SOCKET));
        tracing::info!("stopped");
    }
}

fn bounds(config: &Config) -> Bounds {
    Bounds { sockets: config.limits.sockets, drain: config.limits.drain }
}

fn bind_mesh(
    config: &Config,
    identity: Arc<Identity>,
    book: Arc<StoreBook>,
    control: tonic::service::Routes,
    api_url: String,
    seeds: Vec<RouterAddr>,
    generation: u64,
) -> anyhow::Result<(shoal_cluster::Service, Handle, mpsc::Receiver<shoal_cluster::Inbound>)> {
    let settings = |listen| Settings {
        name: config.name.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        api_url: api_url.clone(),
        listen,
        advertise: config.advertise.clone(),
        seeds: seeds.clone(),
        gossip_interval: GOSSIP_INTERVAL,
        generation,
    };
    let bind = |listen| {
        shoal_cluster::Service::bind(
            settings(listen),
            identity.clone(),
            book.clone() as Arc<dyn TokenBook>,
            control.clone(),
        )
    };
    let mut listen = config.mesh_listen;
    let first = bind(listen);
    if first.is_ok() || config.mesh_chosen {
        return Ok(first?);
    }
    // A second node on one machine is common while trying things out; a host without IPv6 is common too.
    for port in 1..=PORT_TRIES {
        listen.set_port(config.mesh_listen.port() + port);
        if let Ok(bound) = bind(listen) {
            tracing::info!(%listen, "the usual mesh port is taken; using this one");
            return Ok(bound);
        }
    }
    let v4 = std::net::SocketAddr::from(([0, 0, 0, 0], config.mesh_listen.port()));
    Ok(bind(v4).or(first)?)
}

async fn bind_api(config: &mut Config) -> anyhow::Result<(TcpListener, String)> {
    let tries = if config.listen_chosen { 0 } else { PORT_TRIES };
    let mut address = config.listen;
    for extra in 0..=tries {
        address.set_port(if config.listen.port() == 0 { 0 } else { config.listen.port() + extra });
        match TcpListener::bind(address).await {
            Ok(listener) => {
                let bound = listener.local_addr().context("the API socket has no address")?;
                if extra > 0 {
                    tracing::info!(
                        "port {} is taken; the API is on port {}",
                        config.listen.port(),
                        bound.port()
                    );
                }
                config.listen = bound;
                let host =
                    if bound.ip().is_unspecified() { "127.0.0.1".to_owned() } else { host_text(bound.ip()) };
                return Ok((listener, format!("{}://{host}:{}", config.tls.scheme(), bound.port())));
            }
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && extra < tries => {}
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                anyhow::bail!(
                    "the address {address} is in use by another program; stop it, or choose another with --listen"
                )
            }
            Err(error) => {
                anyhow::bail!("cannot listen on {address}: {error}; choose another address with --listen")
            }
        }
    }
    unreachable!("the loop returns at its last round")
}

fn host_text(ip: std::net::IpAddr) -> String {
    match ip {
        std::net::IpAddr::V4(ip) => ip.to_string(),
        std::net::IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

#[cfg(unix)]
fn admin_socket(node: &Arc<Node>, stop: CancellationToken) -> anyhow::Result<JoinHandle<()>> {
    use std::os::unix::fs::PermissionsExt;
    let path = node.config.data_dir.join(crate::cli::client::ADMIN_SOCKET);
    // The data directory's lock is held: a socket that is left over belongs to nobody.
    let _ = std::fs::remove_file(&path);
    let listener = tokio::net::UnixListener::bind(&path).with_context(|| {
        format!("cannot make the admin socket {}; choose a shorter --data-dir", path.display())
    })?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot protect the admin socket {}", path.display()))?;
    let app = crate::api::admin(node.clone());
    Ok(tasks::spawn(
        TaskKind::AdminSocket,
        crate::api::serve::unix(listener, app, bounds(&node.config), stop),
    ))
}

/// Keeps the addresses of the other routers in the store, so that a restart finds them without a token.
async fn remember_routers(mesh: Handle, store: Store, shutdown: CancellationToken) {
    let mut view = mesh.view();
    let mut known: Vec<String> = Vec::new();
    loop {
        let now: Vec<String> = {
            let view = view.borrow_and_update();
            let others = view.alive().filter(|m| m.id != view.me);
            others.flat_map(|m| m.info.mesh_addrs.iter().map(move |a| format!("{}@{a}", m.id))).collect()
        };
        if now != known && !now.is_empty() {
            known.clone_from(&now);
            let store = store.clone();
            let written = tokio::task::spawn_blocking(move || store.remember_routers(&now)).await;
            if let Ok(Err(error)) = written {
                tracing::warn!(%error, "the routers' addresses could not be stored");
            }
        }
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}

/// Makes the data directory and takes its lock; a second process on it is refused.
pub fn lock_data_dir(dir: &Path) -> anyhow::Result<File> {
    let shown = dir.display();
    std::fs::create_dir_all(dir).map_err(|e| {
        anyhow::anyhow!("cannot use the data directory {shown}: {e}; choose another with --data-dir")
    })?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join("lock"))
        .map_err(|e| anyhow::anyhow!("cannot write to the data directory {shown}: {e}; check its owner, or choose another with --data-dir"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            anyhow::bail!(
                "another shoal already runs with the data directory {shown}; stop it with `shoal down`, or choose another with --data-dir"
            )
        }
        Err(std::fs::TryLockError::Error(e)) => anyhow::bail!("cannot lock the data directory {shown}: {e}"),
    }
}
