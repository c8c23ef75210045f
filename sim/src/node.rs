//! A router as the simulation has it: Shoal's own guard, view, registry, loads, budgets and evidence, and around them
//! what a process would own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use shoal_cluster::ClusterView;
use shoal_cluster::gossip::frame::RawId;
use shoal_cluster::gossip::guard::{Counters, Guard};
use shoal_cluster::gossip::ledger::Revisions;
use shoal_cluster::ids::NodeId;
use shoal_cluster::keyspace::Origin;
use shoal_proto::DeviceInfo;
use shoal_routing::{Line, LoadBook, Offer, Registry, RetryBudget, UpstreamId};

use crate::events::At;
use crate::gossip::Book;
use crate::identity::{Keys, SimAuthority, address_of};
use crate::learning::Learning;
use crate::money::Purse;
use crate::request::PROVIDERS;

/// Name of the mesh.
const MESH: &str = "sim";

/// Upstreams that have a request less, with the router that counts it.
pub(crate) type Freed = Arc<Mutex<Vec<(usize, UpstreamId)>>>;

/// A router.
pub(crate) struct Node {
    pub(crate) keys: Keys,
    pub(crate) id: NodeId,
    /// The id as origins of evidence and routes have it.
    pub(crate) name: Arc<str>,
    /// Counts starts of the process; what was planned for an earlier one is void.
    pub(crate) life: u32,
    pub(crate) up: bool,
    pub(crate) revoked: bool,
    pub(crate) draining: bool,
    /// When it died, was revoked, or came up last.
    pub(crate) since: At,
    /// How far its wall clock is off, milliseconds.
    pub(crate) clock_ms: i64,
    pub(crate) disk: Disk,
    pub(crate) origin: Origin,
    pub(crate) guard: Guard,
    pub(crate) book: Book,
    pub(crate) view: ClusterView,
    pub(crate) revisions: Revisions,
    /// When it dials next whom it does not reach.
    pub(crate) redials_at: At,
    pub(crate) registry: Registry,
    /// What is linked here changed since the registry was built.
    pub(crate) is_stale: bool,
    pub(crate) loads: Arc<LoadBook>,
    pub(crate) retries: RetryBudget,
    /// The checker's own count of requests and retries under way, of retries made, and of what was paid back.
    pub(crate) tally: Tally,
    pub(crate) lines: BTreeMap<UpstreamId, Queue>,
    pub(crate) linked: BTreeMap<usize, Linked>,
    pub(crate) told: BTreeMap<NodeId, DeviceInfo>,
    pub(crate) clouds: Vec<Offer>,
    pub(crate) learning: Learning,
    pub(crate) leases: u64,
    /// Since when it has taken others for dead.
    pub(crate) dead_since: BTreeMap<NodeId, At>,
    /// What a stranger said of others: believed only by a router that is broken on purpose.
    pub(crate) forged: Vec<(NodeId, DeviceInfo)>,
    /// The checker's own count of what it published to have observed of each arm.
    pub(crate) learned: BTreeMap<shoal_routing::ArmId, u64>,
}

/// What a router finds again when it starts.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// The last start number.
    pub(crate) generation: u64,
    /// What it observed.
    pub(crate) own: BTreeMap<shoal_routing::ArmId, shoal_routing::ArmEvidence>,
    /// Its books, by provider.
    pub(crate) purses: BTreeMap<usize, Purse>,
}

/// See [`Node::tally`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) active: u32,
    pub(crate) retrying: u32,
    pub(crate) budgets: [Spending; 1 + PROVIDERS.len()],
}

/// What was spent of one retry budget, and paid in.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spending {
    pub(crate) retries: [u64; 2],
    pub(crate) deposits: u64,
}

/// Place of an upstream's retry budget in a [`Tally`]: all devices share one, each provider has its own.
pub(crate) fn budget_of(upstream: &UpstreamId) -> usize {
    let provider = PROVIDERS.iter().position(|name| **name == **upstream.name());
    provider.map_or(0, |n| 1 + n)
}

/// Who waits for one host.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(crate) slots: u32,
    pub(crate) line: Line,
    pub(crate) turns: BTreeMap<u64, u64>,
}

/// A device as it announced itself here.
#[derive(Debug)]
pub(crate) struct Linked {
    pub(crate) info: DeviceInfo,
    pub(crate) heard: At,
}

impl Node {
    /// Makes the router with a number; it has to be started.
    pub(crate) fn new(number: usize, authority: &Arc<SimAuthority>, now: Instant) -> Self {
        let keys = Keys::new(number);
        let id = keys.id();
        let origin = Origin { id: id.clone(), generation: 0, addr: address_of(number) };
        let name: Arc<str> = id.as_str().into();
        Self {
            keys,
            guard: guard(&origin, authority),
            view: ClusterView::empty(id.clone()),
            revisions: Revisions::new(),
            redials_at: At::ZERO,
            id,
            name: name.clone(),
            life: 0,
            up: false,
            revoked: false,
            draining: false,
            since: At::ZERO,
            clock_ms: 0,
            disk: Disk::default(),
            origin,
            book: Book::default(),
            registry: Registry::default(),
            is_stale: false,
            loads: Arc::default(),
            retries: RetryBudget::default(),
            tally: Tally::default(),
            lines: BTreeMap::new(),
            linked: BTreeMap::new(),
            told: BTreeMap::new(),
            clouds: Vec::new(),
            learning: Learning::new(name, 0, BTreeMap::new(), now),
            leases: 0,
            dead_since: BTreeMap::new(),
            forged: Vec::new(),
            learned: BTreeMap::new(),
        }
    }

    /// Begins a life with what the disk holds; everything else is as in a new process.
    pub(crate) fn start(
        &mut self,
        number: usize,
        generation: u64,
        authority: &Arc<SimAuthority>,
        freed: &Freed,
        (at, now): (At, Instant),
    ) {
        self.life += 1;
        (self.up, self.since) = (true, at);
        self.disk.generation = generation;
        self.origin.generation = generation;
        self.guard = guard(&self.origin, authority);
        self.book = Book::default();
        (self.view, self.revisions) = (ClusterView::empty(self.id.clone()), Revisions::new());
        (self.registry, self.is_stale) = (Registry::default(), true);
        self.loads = Arc::new(LoadBook::new(generation));
        let freed = freed.clone();
        self.loads.tell_when_freed(move |upstream| {
            freed.lock().unwrap_or_else(PoisonError::into_inner).push((number, upstream.clone()));
        });
        self.retries = RetryBudget::default();
        self.tally = Tally::default();
        self.lines.clear();
        self.linked.clear();
        self.told.clear();
        self.dead_since.clear();
        (self.leases, self.draining) = (0, false);
        let own = self.disk.own.clone();
        self.learned = own.iter().map(|(arm, evidence)| (arm.clone(), evidence.stats.count)).collect();
        self.learning = Learning::new(self.name.clone(), generation, own, now);
    }

    /// The name of its life in gossip.
    pub(crate) fn raw(&self) -> RawId {
        RawId {
            node_id: self.origin.id.to_string(),
            generation: self.origin.generation,
            addr: self.origin.addr,
        }
    }

    /// True when it is up and others may speak to it.
    pub(crate) fn is_member(&self) -> bool {
        self.up && !self.revoked
    }
}

fn guard(origin: &Origin, authority: &Arc<SimAuthority>) -> Guard {
    Guard::new(origin.clone(), MESH.to_owned(), authority.clone(), Arc::new(Counters::default()))
}
