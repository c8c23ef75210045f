//! The gate between a peer's gossip and chitchat: what a frame claims is proven here, or left out.
//!
//! chitchat believes every member about every other. So each inbound frame is read ([`super::frame`]), each
//! value offered to the [`Ledger`], and only what was proven is written into a new frame for chitchat:
//! - values and members that are not signed by their owner do not enter it at all;
//! - heartbeats are replaced by the number of the member's newest signed lease, so that none can be forged;
//! - deletions, resets and maximum versions, which carry no signature, are left out: keys are withdrawn by a
//!   signed value, and a reader that missed one for longer than tombstones live has forgotten the member.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::frame::{self, DigestEntry, Frame, NodeDelta, RawId, Status};
use super::ledger::{Authority, FORGET_AFTER, Ledger, MAX_MEMBERS, Revisions, Taken};
use crate::ids::NodeId;
use crate::keyspace::{Origin, Refusal};
use crate::view::{Change, ClusterView};

/// Frames that a peer may send at once after a pause.
const FRAME_BURST: f64 = 600.0;

/// Frames a second that a peer may send for long; at 100 ms intervals an honest one sends about 30, in a mesh
/// of two about 60.
const FRAMES_PER_SECOND: f64 = 200.0;

/// What a new value costs its sender, in frames: it took a signature's check of some 0.1 ms. A newcomer to a
/// mesh of 100 routers is told about 500 at once.
const NEW_VALUE_COST: f64 = 0.25;

/// What a value costs that did not hold what it claimed. An honest peer sends none.
const FALSE_VALUE_COST: f64 = 2.0;

/// Lives of members that chitchat may know at once. Each takes 80 bytes of a digest, and chitchat panics
/// when a digest outgrows a message of 65,507 bytes.
const MAX_LIVES: usize = 2 * MAX_MEMBERS;

/// Lives of one member that chitchat may know at once: restarts within [`FORGET_AFTER`].
const MAX_LIVES_OF_ONE: usize = 8;

/// Addresses of one router that are tried.
const MAX_ADDRESSES: usize = 8;

/// How long chitchat may still know a life that was superseded: its grace period and the time to notice.
const LIFE_KEPT: Duration = FORGET_AFTER.saturating_add(Duration::from_secs(60));

/// Counts of what was refused, dropped or restarted, by word.
#[derive(Debug, Default)]
pub struct Counters(Mutex<BTreeMap<&'static str, u64>>);

impl Counters {
    /// Adds one to a count.
    pub fn count(&self, what: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += 1;
    }

    /// Returns all counts that are not zero.
    pub fn snapshot(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// State of the gate of one router.
pub struct Guard {
    me: Origin,
    cluster_id: String,
    authority: Arc<dyn Authority>,
    ledger: Ledger,
    counters: Arc<Counters>,
    buckets: BTreeMap<NodeId, Bucket>,
    /// Lives that were let through to chitchat, with the time of the last mention.
    lives: BTreeMap<Origin, Instant>,
}

/// Token bucket of one peer's frames.
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// Pays for something; false when there is not enough left.
    fn spend(&mut self, cost: f64, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * FRAMES_PER_SECOND).min(FRAME_BURST);
        self.at = now;
        let enough = self.tokens >= cost;
        if enough {
            self.tokens -= cost;
        }
        enough
    }
}

impl Guard {
    /// Makes the gate of the router `me` in the mesh `cluster_id`.
    pub fn new(
        me: Origin,
        cluster_id: String,
        authority: Arc<dyn Authority>,
        counters: Arc<Counters>,
    ) -> Self {
        let ledger = Ledger::new(me.id.clone());
        Self { me, cluster_id, authority, ledger, counters, buckets: BTreeMap::new(), lives: BTreeMap::new() }
    }

    /// Starts a new life of this router, after its gossip task had to be restarted.
    pub fn set_me(&mut self, me: Origin) {
        self.me = me;
    }

    /// Checks a frame that came over `from`'s authenticated connection and returns what chitchat may see.
    ///
    /// `None` when nothing is left of it; what was left out is counted.
    pub fn admit(&mut self, from: &NodeId, bytes: &[u8], now: Instant) -> Option<Vec<u8>> {
        if !self.spend(from, 1.0, now) {
            return None;
        }
        let frame = match Frame::decode(bytes) {
            Ok(frame) => frame,
            Err(error) => {
                let word = match error {
                    frame::Error::TooLarge => "frame_too_large",
                    frame::Error::Malformed(_) => "frame_malformed",
                };
                self.counters.count(word);
                return None;
            }
        };
        self.sift(from, frame, now).map(|frame| frame.encode())
    }

    /// As [`Guard::admit`], of a frame that is read already: for simulations.
    #[cfg(any(test, feature = "test-util"))]
    pub fn admit_frame(&mut self, from: &NodeId, frame: Frame, now: Instant) -> Option<Frame> {
        if self.spend(from, 1.0, now) { self.sift(from, frame, now) } else { None }
    }

    /// Leaves of a frame what may reach chitchat.
    fn sift(&mut self, from: &NodeId, frame: Frame, now: Instant) -> Option<Frame> {
        let admitted = match frame {
            Frame::Syn { cluster_id, digest } if cluster_id == self.cluster_id => {
                Frame::Syn { digest: self.admit_digest(digest, now), cluster_id }
            }
            Frame::SynAck { digest, delta } => {
                let delta = self.admit_delta(from, delta, now);
                Frame::SynAck { digest: self.admit_digest(digest, now), delta }
            }
            Frame::Ack { delta } => {
                let delta = self.admit_delta(from, delta, now);
                if delta.is_empty() {
                    return None;
                }
                Frame::Ack { delta }
            }
            Frame::Syn { .. } | Frame::BadCluster => {
                self.counters.count("frame_wrong_mesh");
                return None;
            }
        };
        Some(admitted)
    }

    /// Takes a value that this router itself publishes.
    ///
    /// # Errors
    /// The [`Refusal`] that every reader would answer with.
    pub fn publish(&mut self, value: (&str, u64, &str), now: Instant) -> Result<(), Refusal> {
        self.ledger.offer(&*self.authority, &self.me, value, true, now).map(|_| ())
    }

    /// Tells that the last connection to a router was lost, or that there is one again.
    pub fn set_connected(&mut self, id: &NodeId, connected: bool, now: Instant) {
        self.ledger.set_connected(id, connected, now);
    }

    /// Forgets what is too old to matter.
    pub fn tick(&mut self, now: Instant) {
        self.ledger.forget_silent(now);
        let ledger = &self.ledger;
        self.lives
            .retain(|life, at| ledger.is_current(life) || now.saturating_duration_since(*at) < LIFE_KEPT);
        self.buckets.retain(|_, bucket| now.saturating_duration_since(bucket.at) < FORGET_AFTER);
    }

    /// Takes time in which this router was not running out of everybody's silence.
    pub fn excuse(&mut self, lag: Duration, now: Instant) {
        self.ledger.excuse(lag, now);
    }

    /// Returns the mesh as it is known.
    pub fn view(&self, now: Instant) -> ClusterView {
        self.ledger.view(now)
    }

    /// Brings an earlier view up to date and returns what is different; see [`Ledger::refresh`].
    pub fn refresh(&self, view: &mut ClusterView, known: &mut Revisions, now: Instant) -> Vec<Change> {
        self.ledger.refresh(view, known, now)
    }

    /// True for a router that renews its lease while there is no connection to it: it is worth dialling.
    pub fn is_unreached(&self, id: &NodeId, now: Instant) -> bool {
        self.ledger.is_unreached(id, now)
    }

    /// True while the last connection to a router is lost, and the router not yet forgotten.
    pub fn is_lost(&self, id: &NodeId) -> bool {
        self.ledger.is_lost(id)
    }

    /// Returns where a router receives gossip: its gossip address, then all others that it named.
    pub fn addresses_of(&self, id: &NodeId) -> Vec<SocketAddr> {
        let Some((gossip, info)) = self.ledger.whereabouts(id) else { return Vec::new() };
        let mut addrs = vec![gossip];
        let named = info.into_iter().flat_map(|info| info.mesh_addrs.iter());
        for addr in named.filter_map(|text| text.parse().ok()).take(MAX_ADDRESSES) {
            if !addrs.contains(&addr) {
                addrs.push(addr);
            }
        }
        addrs
    }

    /// Returns the router that receives gossip at an address.
    pub fn id_at(&self, addr: SocketAddr) -> Option<NodeId> {
        let mut current = self.lives.keys().filter(|life| self.ledger.is_current(life));
        current.find(|life| life.addr == addr).map(|life| life.id.clone())
    }

    /// Returns the bytes of all values held, for tests of the memory bound.
    pub fn held_bytes(&self) -> usize {
        self.ledger.held_bytes()
    }

    fn spend(&mut self, from: &NodeId, cost: f64, now: Instant) -> bool {
        // Peers are routers with a certificate of the mesh, so their number is bounded like its members.
        let full = Bucket { tokens: FRAME_BURST, at: now };
        let enough = self.buckets.entry(from.clone()).or_insert(full).spend(cost, now);
        if !enough {
            self.counters.count("frame_rate");
        }
        enough
    }

    fn admit_delta(&mut self, from: &NodeId, deltas: Vec<NodeDelta>, now: Instant) -> Vec<NodeDelta> {
        deltas.into_iter().filter_map(|delta| self.admit_node(from, delta, now)).collect()
    }

    fn admit_node(&mut self, from: &NodeId, delta: NodeDelta, now: Instant) -> Option<NodeDelta> {
        let origin = self.origin(&delta.id)?;
        if origin.id == self.me.id {
            // Nobody tells a node about itself.
            self.counters.count(Refusal::ForeignOrigin.as_str());
            return None;
        }
        if !self.may_live(&origin) {
            self.counters.count("too_many_lives");
            return None;
        }
        let direct = origin.id == *from;
        let mut values = Vec::with_capacity(delta.values.len());
        for mut value in delta.values {
            if value.status == Status::Deleted {
                self.counters.count("unsigned_deletion");
                continue;
            }
            let offered = (value.key.as_str(), value.version, value.value.as_str());
            let outcome = self.ledger.offer(&*self.authority, &origin, offered, direct, now);
            let cost = match &outcome {
                Ok(Taken::Known) => 0.0,
                Ok(Taken::New | Taken::Uninterpreted) => NEW_VALUE_COST,
                Err(refusal) => {
                    self.counters.count(refusal.as_str());
                    if is_false(*refusal) { FALSE_VALUE_COST } else { 0.0 }
                }
            };
            if let Ok(taken) = outcome {
                if taken == Taken::Uninterpreted {
                    self.counters.count(Refusal::UnknownKey.as_str());
                }
                let withdrawn = self.ledger.is_withdrawn(&origin, &value.key);
                value.status = if withdrawn { Status::DeleteAfterTtl } else { Status::Set };
                values.push(value);
            }
            // What came before is complete in itself: versions grow.
            if cost > 0.0 && !self.spend(from, cost, now) {
                break;
            }
        }
        if values.is_empty() || !self.ledger.is_current(&origin) {
            return None;
        }
        self.lives.insert(origin, now);
        Some(NodeDelta { last_gc_version: 0, values, ..delta })
    }

    /// Returns false if the life is new and chitchat knows as many as it may.
    fn may_live(&self, origin: &Origin) -> bool {
        let of_one = || self.lives.keys().filter(|life| life.id == origin.id).count();
        self.lives.contains_key(origin) || (self.lives.len() < MAX_LIVES && of_one() < MAX_LIVES_OF_ONE)
    }

    fn admit_digest(&mut self, digest: Vec<DigestEntry>, now: Instant) -> Vec<DigestEntry> {
        let mut admitted = Vec::with_capacity(digest.len());
        for entry in digest {
            let Some(origin) = self.origin(&entry.id) else { continue };
            if origin == self.me {
                admitted.push(DigestEntry { last_gc_version: 0, ..entry });
            } else if origin.id != self.me.id
                && self.lives.contains_key(&origin)
                && self.ledger.is_current(&origin)
            {
                let heartbeat = self.ledger.lease_seq(&origin);
                self.lives.insert(origin, now);
                admitted.push(DigestEntry { heartbeat, last_gc_version: 0, ..entry });
            }
        }
        admitted
    }

    fn origin(&self, raw: &RawId) -> Option<Origin> {
        let id = raw.node_id.parse().ok();
        if id.is_none() {
            self.counters.count("bad_node_id");
        }
        Some(Origin { id: id?, generation: raw.generation, addr: raw.addr })
    }
}

/// Whether only a liar sends such a value; the others come from relays that know less than we do.
fn is_false(refusal: Refusal) -> bool {
    match refusal {
        Refusal::ForeignOrigin
        | Refusal::BadSignature
        | Refusal::Oversized
        | Refusal::Undecodable
        | Refusal::BadCertificate => true,
        Refusal::OldGeneration
        | Refusal::NotNewer
        | Refusal::NoCertificate
        | Refusal::StaleLease
        | Refusal::UnknownKey => false,
    }
}

#[cfg(test)]
mod tests;
