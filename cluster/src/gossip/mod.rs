//! Replication between routers: chitchat, behind a guard that lets only proven values through.
//!
//! [`Gossip`] owns chitchat's task: it starts it, writes this router's values and lease into it once an
//! interval, starts it again should it end, and publishes the [`ClusterView`] that the guard's ledger makes
//! of everybody's values. The task may fail; the router goes on with the last view.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use chitchat::{ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig};
use rustls_pki_types::CertificateDer;
use shoal_proto::Lease;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::identity::Identity;
use crate::ids::{NodeId, Role};
use crate::keyspace::{self, CERT_VERSION, Key, Origin, Value};
use crate::quic::{Link, Net, RouterAddr};
use crate::tasks::spawn_named;
use crate::view::{Change, ClusterView};

pub mod frame;
pub mod guard;
pub mod ledger;
mod outbox;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod transport;

use frame::{Frame, KeyValue, NodeDelta, RawId, Status};
use guard::{Counters, Guard};
use ledger::{Authority, DEAD_KEPT, LEASE_RENEWAL, WITHDRAWN_FOR};
use outbox::Outbox;
pub use outbox::TooLarge;
use transport::{QuicTransport, Wire};

/// Default time between two rounds of gossip: a value reaches ten nodes in about 0.3 s.
pub const DEFAULT_INTERVAL: Duration = Duration::from_millis(200);

/// chitchat's threshold. Its heartbeats are our leases, one a second, so a member is dead to it after four
/// seconds of silence; it then only probes the member now and then. Views follow the lease itself.
const PHI_THRESHOLD: f64 = 4.0;

/// Pause before a chitchat task that ended is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Shortest time between two views, so that a burst of frames makes one view.
const VIEW_PAUSE: Duration = Duration::from_millis(20);

/// A look at the clock that is so late says that this process was stopped or starved.
const STARVED: Duration = Duration::from_millis(250);

/// How often a member that is known but not alive is spoken to, beyond what chitchat does by itself.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// How a router gossips.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This router's life; the address is where others send gossip.
    pub origin: Origin,
    /// Time between two rounds.
    pub interval: Duration,
    /// Routers to speak to at first, and whenever nobody else answers.
    pub seeds: Vec<RouterAddr>,
}

/// The task that owns chitchat.
pub struct Gossip {
    settings: Settings,
    shared: Arc<Shared>,
}

/// Access to the gossip of this router. Cheap to clone.
#[derive(Clone)]
pub struct GossipHandle {
    shared: Arc<Shared>,
}

struct Shared {
    identity: Arc<Identity>,
    wire: Arc<Wire>,
    counters: Arc<Counters>,
    outbox: Mutex<Outbox>,
    view: watch::Sender<Arc<ClusterView>>,
}

impl Shared {
    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The mesh's root certificates say who is a router.
struct MeshAuthority(Arc<Identity>);

impl Authority for MeshAuthority {
    fn router_of(&self, chain: &[Vec<u8>]) -> Option<(NodeId, Vec<u8>)> {
        let chain: Vec<CertificateDer<'_>> =
            chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        let facts = self.0.verify_chain(&chain, SystemTime::now()).ok()?;
        (facts.peer.role == Role::Router).then_some((facts.peer.id, facts.public_key))
    }
}

impl GossipHandle {
    /// Replicates a value, at the next interval.
    ///
    /// # Errors
    /// [`TooLarge`] above 8 KiB of text a value or 48 KiB for all; nothing changes then.
    pub fn publish(&self, key: Key, value: Value) -> Result<(), TooLarge> {
        self.shared.outbox().put(key, value, Instant::now())
    }

    /// Takes a value back, at the next interval.
    pub fn withdraw(&self, key: &Key) {
        self.shared.outbox().withdraw(key);
    }

    /// The mesh as this router sees it.
    pub fn view(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.shared.view.subscribe()
    }

    /// Counts of what was refused, dropped or restarted, by word.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.shared.counters.snapshot()
    }

    /// Bytes of all values that are held of others and this router.
    pub fn held_bytes(&self) -> usize {
        self.shared.wire.guard().held_bytes()
    }
}

impl Gossip {
    /// Makes the gossip of a router; nothing is sent before [`Gossip::run`].
    pub fn new(net: Net, settings: Settings) -> (Self, GossipHandle) {
        let identity = net.identity().clone();
        let counters = Arc::new(Counters::default());
        let authority = Arc::new(MeshAuthority(identity.clone()));
        let mesh = identity.mesh_id().to_string();
        let guard = Guard::new(settings.origin.clone(), mesh, authority, counters.clone());
        let seeds: HashMap<_, _> = settings.seeds.iter().map(|seed| (seed.addr, seed.id.clone())).collect();
        let wire = Arc::new(Wire::new(net, guard, counters.clone(), seeds));
        let outbox = Mutex::new(Outbox::new(settings.origin.clone()));
        let view = watch::Sender::new(Arc::new(ClusterView::empty(settings.origin.id.clone())));
        let shared = Arc::new(Shared { identity, wire, counters, outbox, view });
        (Self { settings, shared: shared.clone() }, GossipHandle { shared })
    }

    /// Gossips until `shutdown`; `links` are the new gossip connections.
    pub async fn run(mut self, links: mpsc::Receiver<Link>, shutdown: CancellationToken) {
        let wire_stop = CancellationToken::new();
        let wire = spawn_named("gossip_wire", self.shared.wire.clone().run(links, wire_stop.clone()));
        let views = spawn_named("gossip_views", watch_views(self.shared.clone(), wire_stop.clone()));
        while !shutdown.is_cancelled() {
            match self.live(&shutdown).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(%error, "gossip ended and is started again");
                    self.shared.counters.count("gossip_restarts");
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(RESTART_PAUSE) => {}
            }
            // chitchat starts from nothing, and others only believe a life that is newer than the last.
            self.settings.origin.generation += 1;
            self.shared.wire.guard().set_me(self.settings.origin.clone());
            self.shared.outbox().renew_all();
        }
        wire_stop.cancel();
        for task in [wire, views] {
            if let Err(error) = task.await {
                tracing::error!(%error, "a gossip task did not end in order");
            }
        }
    }

    /// One life of chitchat's task: `Ok` at shutdown, an error when the task ended by itself.
    async fn live(&self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let transport = QuicTransport(self.shared.wire.clone());
        let chain = keyspace::seal_chain(self.shared.identity.chain_der().iter().map(AsRef::as_ref))?;
        let first = ("cert".to_owned(), chain.clone());
        self.shared.wire.guard().publish(("cert", CERT_VERSION, &chain), Instant::now())?;
        let chitchat = chitchat::spawn_chitchat(self.config(), vec![first], &transport).await?;
        let stopped = chitchat.termination_watcher();
        tokio::pin!(stopped);
        let mut round = ticker(self.settings.interval);
        let mut renewal = ticker(LEASE_RENEWAL);
        let mut probe = ticker(PROBE_EVERY);
        let mut leases = 0;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                ended = &mut stopped => {
                    return Err(ended.err().unwrap_or_else(|| anyhow::anyhow!("chitchat's task ended")));
                }
                _ = renewal.tick() => {
                    leases += 1;
                    let lease = Value::Lease(Lease { counter: leases, in_flight: 0 });
                    self.write(&chitchat, vec![(Key::Lease, Some(lease))]).await;
                }
                _ = round.tick() => {
                    let due = self.shared.outbox().take_due(Instant::now());
                    self.write(&chitchat, due).await;
                }
                _ = probe.tick() => self.probe(&chitchat),
            }
        }
        self.leave(chitchat).await;
        Ok(())
    }

    /// Signs values under the versions that chitchat will give them, and sets them.
    async fn write(&self, chitchat: &ChitchatHandle, values: Vec<(Key, Option<Value>)>) {
        if values.is_empty() {
            return;
        }
        let identity = &self.shared.identity;
        let issued = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let issued_ms = u64::try_from(issued.as_millis()).unwrap_or(u64::MAX);
        let chitchat = chitchat.chitchat();
        let mut chitchat = chitchat.lock().await;
        let state = chitchat.self_node_state();
        for (key, value) in values {
            let seq = state.max_version() + 1;
            let sealed =
                keyspace::seal(&self.settings.origin, &key, seq, issued_ms, value.as_ref(), |message| {
                    identity.sign(message)
                });
            let name = key.to_string();
            let taken = sealed.and_then(|text| {
                self.shared.wire.guard().publish((&name, seq, &text), Instant::now()).map(|()| text)
            });
            match taken {
                Ok(text) if value.is_some() => state.set(name, text),
                Ok(text) => state.set_with_ttl(name, text),
                Err(refusal) => tracing::error!(%key, %refusal, "a value of this node would be refused"),
            }
        }
        self.shared.wire.changed.notify_one();
    }

    /// Takes the lease back and tells everybody known, without waiting for a round of chitchat's handshake.
    async fn leave(&self, chitchat: ChitchatHandle) {
        self.write(&chitchat, vec![(Key::Lease, None)]).await;
        if let Some(goodbye) = self.goodbye(&chitchat).await {
            let members: Vec<_> = self.shared.view.borrow().members.keys().cloned().collect();
            let others = members.iter().filter(|id| **id != self.settings.origin.id);
            let known = others.filter_map(|id| self.shared.wire.guard().addresses_of(id).first().copied());
            let known: HashSet<_> = known.chain(self.settings.seeds.iter().map(|seed| seed.addr)).collect();
            for addr in known {
                self.shared.wire.enqueue(addr, goodbye.clone());
            }
        }
        // One round, so that what was queued gets out; a peer that is slower sees the lease run out.
        tokio::time::sleep(self.settings.interval).await;
        if let Err(error) = chitchat.shutdown().await {
            tracing::debug!(%error, "chitchat did not end in order");
        }
    }

    /// Makes the frame that carries nothing but the withdrawn lease.
    async fn goodbye(&self, chitchat: &ChitchatHandle) -> Option<Vec<u8>> {
        let lease = Key::Lease.to_string();
        let chitchat = chitchat.chitchat();
        let mut chitchat = chitchat.lock().await;
        let written = chitchat.self_node_state().get_versioned(&lease)?;
        let (value, version) = (written.value.clone(), written.version);
        let Origin { id, generation, addr } = &self.settings.origin;
        let id = RawId { node_id: id.to_string(), generation: *generation, addr: *addr };
        let values = vec![KeyValue { key: lease, value, version, status: Status::DeleteAfterTtl }];
        let delta = NodeDelta { id, last_gc_version: 0, from_version_excluded: 0, values };
        Some(Frame::Ack { delta: vec![delta] }.encode())
    }

    /// Speaks to a silent member: after a long partition nobody else might.
    fn probe(&self, chitchat: &ChitchatHandle) {
        let silent: Vec<_> = {
            let view = self.shared.view.borrow();
            view.members.values().filter(|member| !member.alive).map(|member| member.id.clone()).collect()
        };
        if silent.is_empty() {
            return;
        }
        let chosen = &silent[rand::random_range(0..silent.len())];
        if let Some(addr) = self.shared.wire.guard().addresses_of(chosen).first() {
            let _ = chitchat.gossip(*addr);
        }
    }

    fn config(&self) -> ChitchatConfig {
        let Settings { origin, interval, seeds } = &self.settings;
        let seeds: HashSet<_> =
            seeds.iter().filter(|seed| seed.id != origin.id).map(|seed| seed.addr).collect();
        ChitchatConfig {
            chitchat_id: ChitchatId::new(origin.id.as_str(), origin.generation, origin.addr),
            cluster_id: self.shared.identity.mesh_id().to_string(),
            gossip_interval: *interval,
            listen_addr: origin.addr,
            seed_nodes: seeds.into_iter().map(|addr| addr.to_string()).collect(),
            failure_detector_config: FailureDetectorConfig {
                phi_threshold: PHI_THRESHOLD,
                initial_interval: LEASE_RENEWAL,
                max_interval: LEASE_RENEWAL * 4,
                dead_node_grace_period: DEAD_KEPT,
                ..FailureDetectorConfig::default()
            },
            marked_for_deletion_grace_period: WITHDRAWN_FOR,
            catchup_callback: None,
            extra_liveness_predicate: None,
        }
    }
}

/// Publishes a new view when something in it changed, and looks at the clock often enough to see a death.
async fn watch_views(shared: Arc<Shared>, stop: CancellationToken) {
    let mut clock = ticker(DEFAULT_INTERVAL);
    let mut looked = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.wire.changed.notified() => {}
            _ = clock.tick() => shared.wire.guard().tick(Instant::now()),
        }
        // Whoever looks five times a second and finds that more has passed did not run in between.
        let now = Instant::now();
        let lag = now.saturating_duration_since(looked).saturating_sub(DEFAULT_INTERVAL + VIEW_PAUSE);
        looked = now;
        if lag >= STARVED {
            tracing::debug!(
                lag_ms = lag.as_millis() as u64,
                "this node did not run; nobody is dead because of that"
            );
            shared.wire.guard().excuse(lag, now);
        }
        let view = shared.wire.guard().view(Instant::now());
        shared.view.send_if_modified(|old| {
            let changes = old.changes(&view);
            log_changes(&view, &changes);
            *old = Arc::new(view);
            !changes.is_empty()
        });
        tokio::time::sleep(VIEW_PAUSE).await;
    }
}

fn log_changes(view: &ClusterView, changes: &[Change]) {
    for change in changes {
        let (Change::Joined(id) | Change::Alive(id) | Change::Dead(id) | Change::Forgotten(id)) = change
        else {
            continue;
        };
        if *id == view.me {
            continue;
        }
        let name = view.members.get(id).map_or("unknown", |member| member.info.name.as_str());
        let node = id.short();
        match change {
            Change::Alive(_) => tracing::info!(node, name, "node is alive"),
            Change::Dead(_) => tracing::info!(node, name, "node is dead or left"),
            _ => tracing::debug!(node, name, ?change, "the mesh changed"),
        }
    }
}

fn ticker(period: Duration) -> tokio::time::Interval {
    let mut ticker = tokio::time::interval(period);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}
