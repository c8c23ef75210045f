//! What is known of each router and proven by its signature: the pure state behind a `ClusterView`.
//!
//! Values are offered in any order, from anybody, any number of times; only the newest of each key that its
//! owner signed in its newest life counts, so all readers of the same values end at the same view. Nothing
//! is ever deleted by absence: an owner withdraws a key by a signed value.
//!
//! A router is alive while its lease is renewed, by the *reader's* clock. Two renewals in a row make it
//! alive, because a single lease may be an old one that only now came round a healed partition; a lease
//! from the router's own connection counts at once.

mod lease;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use shoal_proto::{ArmSummaries, DeviceInfo, NodeInfo, ProviderInfo};
use tokio::time::Instant;

use self::lease::LeaseState;
use crate::ids::NodeId;
use crate::keyspace::{self, CERT_VERSION, Key, MAX_KEY_BYTES, MAX_NODE_BYTES, MAX_VALUE_BYTES};
use crate::keyspace::{Origin, Refusal, Value};
use crate::view::{Change, ClusterView, Member};

/// How often a router renews its lease.
pub const LEASE_RENEWAL: Duration = Duration::from_secs(1);

/// How long a lease counts after it arrived: three lost renewals, and with the time to spread below 5 s.
pub const LEASE_VALIDITY: Duration = Duration::from_millis(3_500);

/// How long a lost connection to a router may take to come back before the router stops being selectable.
pub const RECONNECT_GRACE: Duration = Duration::from_secs(2);

/// How long chitchat keeps a member after it found it dead.
pub const DEAD_KEPT: Duration = Duration::from_secs(15 * 60);

/// How long a silent router is remembered: longer than chitchat does, which would otherwise ask only for what
/// is newer than values (the certificate) that are forgotten here; and shorter than a withdrawn key
/// ([`WITHDRAWN_FOR`]), so that whoever missed a withdrawal has also forgotten the value.
pub const FORGET_AFTER: Duration = Duration::from_secs(17 * 60);

/// How long a withdrawn key is remembered, here and in chitchat.
pub const WITHDRAWN_FOR: Duration = Duration::from_secs(30 * 60);

/// Longest text of a withdrawal, in bytes: an envelope with nothing in it has 250.
const MAX_WITHDRAWAL_BYTES: usize = 512;

/// Most routers that are known at once; the mesh is meant for a hundred.
pub const MAX_MEMBERS: usize = 256;

/// Most keys that are held of one router, withdrawn ones included.
pub const MAX_KEYS: usize = 1024;

/// Says whether a certificate chain belongs to a router of this mesh, and whether that router signed something.
pub trait Authority: Send + Sync + 'static {
    /// Verifies a DER chain, leaf first, and returns the router's id and raw Ed25519 public key.
    fn router_of(&self, chain: &[Vec<u8>]) -> Option<(NodeId, Vec<u8>)>;

    /// Verifies a router's signature: Ed25519. A simulation that checks millions brings a cheaper one of its own.
    fn is_signed(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        keyspace::is_signed(public_key, message, signature)
    }
}

/// What became of an offered value that was not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is new and counts from now on.
    New,
    /// Exactly this was known.
    Known,
    /// It is signed well, but under a key that this version does not know; held for others, not interpreted.
    Uninterpreted,
}

/// All that is known and proven, of all routers.
pub struct Ledger {
    me: NodeId,
    records: BTreeMap<NodeId, Record>,
    /// Changes so far, of all routers together: no two states of a router have the same number.
    revisions: u64,
}

/// Which state of each router a view shows; goes with one view, and is nobody else's business.
pub type Revisions = BTreeMap<NodeId, u64>;

/// A router whose certificate is known.
struct Record {
    cert_text: String,
    public_key: Vec<u8>,
    /// Its newest life; `None` until one signed value was seen (a chain alone proves no start number).
    life: Option<Life>,
    lost_since: Option<Instant>,
    /// Last sign of life, for forgetting.
    touched: Instant,
    /// Number of the last change of what a view shows of it, signs of life apart.
    revision: u64,
}

struct Life {
    origin: Origin,
    held: BTreeMap<String, Held>,
    /// Bytes of keys and texts that are held and not withdrawn.
    bytes: usize,
    /// Keys that are not held and not newer than this were withdrawn long ago.
    floor: u64,
    info: Option<NodeInfo>,
    devices: BTreeMap<NodeId, DeviceInfo>,
    providers: BTreeMap<String, ProviderInfo>,
    stats: Option<ArmSummaries>,
    lease: LeaseState,
}

struct Held {
    seq: u64,
    text: String,
    withdrawn_at: Option<Instant>,
}

impl Life {
    fn new(origin: Origin) -> Self {
        Self {
            origin,
            held: BTreeMap::new(),
            bytes: 0,
            floor: 0,
            info: None,
            devices: BTreeMap::new(),
            providers: BTreeMap::new(),
            stats: None,
            lease: LeaseState::default(),
        }
    }

    /// Drops withdrawn keys that chitchat has dropped, too, and refuses their old values from now on.
    fn drop_withdrawn(&mut self, now: Instant) {
        let floor = &mut self.floor;
        self.held.retain(|_, held| {
            let old = held.withdrawn_at.is_some_and(|at| now.saturating_duration_since(at) >= WITHDRAWN_FOR);
            if old {
                *floor = held.seq.max(*floor);
            }
            !old
        });
    }
}

impl Ledger {
    /// Makes a ledger that knows nobody.
    pub fn new(me: NodeId) -> Self {
        Self { me, records: BTreeMap::new(), revisions: 0 }
    }

    /// Offers a value found under `key` of `origin` with chitchat's `version`.
    ///
    /// `direct` says that it arrived on the origin's own authenticated connection.
    ///
    /// # Errors
    /// The [`Refusal`] for which nothing changed.
    pub fn offer(
        &mut self,
        authority: &dyn Authority,
        origin: &Origin,
        (key, version, text): (&str, u64, &str),
        direct: bool,
        now: Instant,
    ) -> Result<Taken, Refusal> {
        if text.len() > MAX_VALUE_BYTES || key.len() > MAX_KEY_BYTES {
            return Err(Refusal::Oversized);
        }
        // chitchat slices the first byte of a key as text: anything but ASCII would panic there.
        if key.is_empty() || !key.is_ascii() {
            return Err(Refusal::Undecodable);
        }
        if key == "cert" {
            return self.offer_chain(authority, origin, version, text, now);
        }
        let record = self.records.get_mut(&origin.id).ok_or(Refusal::NoCertificate)?;
        let stale = if key == "lease" { Refusal::StaleLease } else { Refusal::NotNewer };
        match &record.life {
            Some(life) if origin.generation < life.origin.generation => return Err(Refusal::OldGeneration),
            Some(life) if origin.generation == life.origin.generation => {
                if life.origin.addr != origin.addr {
                    return Err(Refusal::BadSignature);
                }
                match life.held.get(key) {
                    Some(held) if held.seq == version && held.text == text => return Ok(Taken::Known),
                    Some(held) if held.seq >= version => return Err(stale),
                    None if version <= life.floor => return Err(stale),
                    _ => {}
                }
            }
            _ => {}
        }
        let public_key = &record.public_key;
        let signed = keyspace::open_with(origin, (key, version, text), |message, signature| {
            authority.is_signed(public_key, message, signature)
        })?;
        if signed.withdrawn && text.len() > MAX_WITHDRAWAL_BYTES {
            return Err(Refusal::Oversized);
        }
        let known = Key::parse(key);
        let value = match &known {
            Some(key) if !signed.withdrawn => Some(Value::decode(key, &signed.payload)?),
            _ => None,
        };
        if record.take(origin, (key, version, text), signed.withdrawn.then_some(now), now)? {
            self.revisions += 1;
            record.revision = self.revisions;
        }
        let Some(key) = known else { return Ok(Taken::Uninterpreted) };
        if key != Key::Lease {
            self.revisions += 1;
            record.revision = self.revisions;
        }
        record.interpret(key, value, direct, now);
        Ok(Taken::New)
    }

    fn offer_chain(
        &mut self,
        authority: &dyn Authority,
        origin: &Origin,
        version: u64,
        text: &str,
        now: Instant,
    ) -> Result<Taken, Refusal> {
        if version != CERT_VERSION {
            return Err(Refusal::BadCertificate);
        }
        if self.records.get(&origin.id).is_some_and(|record| record.cert_text == text) {
            return Ok(Taken::Known);
        }
        let chain = keyspace::open_chain(text)?;
        let (id, public_key) = authority.router_of(&chain).ok_or(Refusal::BadCertificate)?;
        if id != origin.id {
            return Err(Refusal::BadCertificate);
        }
        if let Some(record) = self.records.get_mut(&id) {
            record.cert_text = text.to_owned();
            record.public_key = public_key;
        } else if self.records.len() < MAX_MEMBERS {
            let record = Record {
                cert_text: text.to_owned(),
                public_key,
                life: None,
                lost_since: None,
                touched: now,
                revision: 0,
            };
            self.records.insert(id, record);
        } else {
            return Err(Refusal::Oversized);
        }
        Ok(Taken::New)
    }

    /// Returns true if `origin` is a router's newest known life, proven by at least one signed value.
    pub fn is_current(&self, origin: &Origin) -> bool {
        self.life(&origin.id).is_some_and(|life| life.origin == *origin)
    }

    /// Returns the number of the newest lease of `origin`, 0 when there is none.
    pub fn lease_seq(&self, origin: &Origin) -> u64 {
        let life = self.life(&origin.id).filter(|life| life.origin == *origin);
        life.and_then(|life| life.held.get("lease")).map_or(0, |held| held.seq)
    }

    /// Returns true if the value withdraws its key; `false` also for one that is not held.
    pub fn is_withdrawn(&self, origin: &Origin, key: &str) -> bool {
        self.life(&origin.id)
            .and_then(|life| life.held.get(key))
            .is_some_and(|held| held.withdrawn_at.is_some())
    }

    /// Returns where a router receives gossip, and what else it says of itself.
    pub fn whereabouts(&self, id: &NodeId) -> Option<(SocketAddr, Option<&NodeInfo>)> {
        self.life(id).map(|life| (life.origin.addr, life.info.as_ref()))
    }

    /// Tells that the last connection to a router was lost, or that there is one again.
    pub fn set_connected(&mut self, id: &NodeId, connected: bool, now: Instant) {
        if let Some(record) = self.records.get_mut(id) {
            record.lost_since = if connected { None } else { record.lost_since.or(Some(now)) };
        }
    }

    /// Forgets routers that have been silent for [`FORGET_AFTER`].
    pub fn forget_silent(&mut self, now: Instant) {
        let me = &self.me;
        self.records
            .retain(|id, record| id == me || now.saturating_duration_since(record.touched) < FORGET_AFTER);
    }

    /// True while the last connection to a router is lost, and the router not yet forgotten.
    pub fn is_lost(&self, id: &NodeId) -> bool {
        self.records.get(id).is_some_and(|record| record.lost_since.is_some())
    }

    /// True for a router that renews its lease, as others tell, while there is no connection to it.
    pub fn is_unreached(&self, id: &NodeId, now: Instant) -> bool {
        let renews = |record: &Record| record.life.as_ref().is_some_and(|life| life.lease.alive(now));
        self.records.get(id).is_some_and(|record| record.lost_since.is_some() && renews(record))
    }

    /// Returns the mesh as it is known at `now`.
    pub fn view(&self, now: Instant) -> ClusterView {
        let mut view = ClusterView::empty(self.me.clone());
        self.refresh(&mut view, &mut Revisions::new(), now);
        view
    }

    /// Brings an earlier view up to `now` and returns what is different: the same as [`ClusterView::changes`] would
    /// of two views, and only routers that said something new are copied.
    ///
    /// `known` belongs to `view`: empty for an empty one, and changed by nobody else.
    pub fn refresh(&self, view: &mut ClusterView, known: &mut Revisions, now: Instant) -> Vec<Change> {
        let is_shown = |id: &NodeId| {
            let life = self.records.get(id).and_then(|record| record.life.as_ref());
            life.is_some_and(|life| life.info.is_some())
        };
        let mut changes = Vec::new();
        view.members.retain(|id, _| {
            let stays = is_shown(id);
            if !stays {
                changes.push(Change::Forgotten(id.clone()));
                known.remove(id);
            }
            stays
        });
        for (id, record) in &self.records {
            let (alive, last_seen) =
                (record.alive(*id == self.me, now), record.last_seen(*id == self.me, now));
            let old = view.members.get_mut(id);
            if let Some(old) = old
                && known.get(id) == Some(&record.revision)
            {
                old.push_alive(alive, &mut changes);
                (old.alive, old.last_seen) = (alive, last_seen);
                continue;
            }
            let Some(member) = record.member(id, alive, last_seen) else { continue };
            match view.members.get(id) {
                Some(old) => old.push_changes(&member, &mut changes),
                None => member.push_all(&mut changes),
            }
            view.members.insert(id.clone(), member);
            known.insert(id.clone(), record.revision);
        }
        changes
    }

    /// Takes time in which this router was not running out of everybody's silence: it is no sign of anybody's death that
    /// nothing was heard by who did not listen (Lifeguard, Dadgar et al. 2018, calls that local health).
    pub fn excuse(&mut self, lag: Duration, now: Instant) {
        for record in self.records.values_mut() {
            let later = |at: &mut Instant| *at = (*at + lag).min(now);
            record.lost_since.iter_mut().for_each(later);
            let lease = record.life.as_mut().and_then(|life| life.lease.renewed_at.as_mut());
            lease.into_iter().for_each(later);
        }
    }

    /// Returns the bytes of keys and texts held of all routers, withdrawn ones included.
    pub fn held_bytes(&self) -> usize {
        let lives = self.records.values().filter_map(|record| record.life.as_ref());
        lives.flat_map(|life| life.held.iter()).map(|(key, held)| key.len() + held.text.len()).sum()
    }

    fn life(&self, id: &NodeId) -> Option<&Life> {
        self.records.get(id)?.life.as_ref()
    }
}

impl Record {
    fn alive(&self, is_me: bool, now: Instant) -> bool {
        let lost = self.lost_since.is_some_and(|at| now.saturating_duration_since(at) >= RECONNECT_GRACE);
        is_me || (!lost && self.life.as_ref().is_some_and(|life| life.lease.alive(now)))
    }

    fn last_seen(&self, is_me: bool, now: Instant) -> std::time::Instant {
        let renewed = self.life.as_ref().and_then(|life| life.lease.renewed_at);
        if is_me { now } else { renewed.unwrap_or(self.touched) }.into_std()
    }

    /// Returns what a view shows of the router; `None` while it said nothing of itself.
    fn member(&self, id: &NodeId, alive: bool, last_seen: std::time::Instant) -> Option<Member> {
        let life = self.life.as_ref()?;
        Some(Member {
            id: id.clone(),
            info: life.info.clone()?,
            devices: life.devices.clone(),
            providers: life.providers.clone(),
            stats: life.stats.clone(),
            alive,
            last_seen,
            generation: life.origin.generation,
        })
    }

    /// Holds a verified value, starting a new life if it is from one; true if it is.
    fn take(
        &mut self,
        origin: &Origin,
        (key, version, text): (&str, u64, &str),
        withdrawn_at: Option<Instant>,
        now: Instant,
    ) -> Result<bool, Refusal> {
        let mut fresh = None;
        let current = self.life.as_mut().filter(|life| life.origin == *origin);
        let life = match current {
            Some(life) => life,
            None => fresh.insert(Life::new(origin.clone())),
        };
        let old = life.held.get(key).filter(|held| held.withdrawn_at.is_none());
        let old = old.map_or(0, |held| key.len() + held.text.len());
        let new = if withdrawn_at.is_some() { 0 } else { key.len() + text.len() };
        if life.bytes - old + new > MAX_NODE_BYTES {
            return Err(Refusal::Oversized);
        }
        if !life.held.contains_key(key) && life.held.len() >= MAX_KEYS {
            life.drop_withdrawn(now);
            if life.held.len() >= MAX_KEYS {
                return Err(Refusal::Oversized);
            }
        }
        life.bytes = life.bytes - old + new;
        life.held.insert(key.to_owned(), Held { seq: version, text: text.to_owned(), withdrawn_at });
        let is_new_life = fresh.is_some();
        if is_new_life {
            self.life = fresh;
        }
        Ok(is_new_life)
    }

    /// Changes what the view shows; `None` is a withdrawal.
    fn interpret(&mut self, key: Key, value: Option<Value>, direct: bool, now: Instant) {
        let Some(life) = self.life.as_mut() else { return };
        match (key, value) {
            (Key::Node, Some(Value::Node(info))) => life.info = Some(info),
            (Key::Stats, Some(Value::Stats(stats))) => life.stats = Some(stats),
            (Key::Device(id), Some(Value::Device(device))) => {
                life.devices.insert(id, device);
            }
            (Key::Provider(name), Some(Value::Provider(provider))) => {
                life.providers.insert(name, provider);
            }
            (Key::Lease, Some(Value::Lease(lease))) => {
                life.lease.renew(lease.counter, now, direct);
                self.touched = now;
                if direct {
                    self.lost_since = None;
                }
            }
            (Key::Node, _) => life.info = None,
            (Key::Stats, _) => life.stats = None,
            (Key::Device(id), _) => {
                life.devices.remove(&id);
            }
            (Key::Provider(name), _) => {
                life.providers.remove(&name);
            }
            // A router that leaves takes its lease back, and is gone from every view a moment later.
            (Key::Lease, _) => life.lease = LeaseState::default(),
            (Key::Cert, _) => {}
        }
    }
}

#[cfg(test)]
mod tests;
