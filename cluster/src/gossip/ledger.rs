//! What is known of each router and proven by its signature: the pure state behind a `ClusterView`.
//!
//! Values are offered in any order, from anybody, any number of times; only the newest of each key that its
//! owner signed in its newest life counts, so all readers of the same values end at the same view. Nothing
//! is ever deleted by absence: an owner withdraws a key by a signed value.
//!
//! A router is alive while its lease is renewed, by the *reader's* clock. Two renewals in a row make it
//! alive, because a single lease may be an old one that only now came round a healed partition; a lease
//! from the router's own connection counts at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use shoal_proto::{ArmSummaries, DeviceInfo, NodeInfo, ProviderInfo};
use tokio::time::Instant;

use crate::ids::NodeId;
use crate::keyspace::{self, CERT_VERSION, Key, MAX_KEY_BYTES, MAX_NODE_BYTES, MAX_VALUE_BYTES};
use crate::keyspace::{Origin, Refusal, Value};
use crate::view::{ClusterView, Member};

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

/// Says whether a certificate chain belongs to a router of this mesh.
pub trait Authority: Send + Sync + 'static {
    /// Verifies a DER chain, leaf first, and returns the router's id and raw Ed25519 public key.
    fn router_of(&self, chain: &[Vec<u8>]) -> Option<(NodeId, Vec<u8>)>;
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
}

/// A router whose certificate is known.
struct Record {
    cert_text: String,
    public_key: Vec<u8>,
    /// Its newest life; `None` until one signed value was seen (a chain alone proves no start number).
    life: Option<Life>,
    lost_since: Option<Instant>,
    /// Last sign of life, for forgetting.
    touched: Instant,
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

/// Renewals as the reader saw them arrive.
#[derive(Debug, Clone, Copy, Default)]
struct LeaseState {
    renewed_at: Option<Instant>,
    /// Renewals without a lapse between them.
    streak: u32,
}

impl LeaseState {
    fn renew(&mut self, now: Instant, direct: bool) {
        if !self.fresh(now) {
            self.streak = 0;
        }
        self.streak = if direct { 2 } else { self.streak.saturating_add(1) };
        self.renewed_at = Some(now);
    }

    fn fresh(&self, now: Instant) -> bool {
        self.renewed_at.is_some_and(|at| now.saturating_duration_since(at) <= LEASE_VALIDITY)
    }

    fn alive(&self, now: Instant) -> bool {
        self.streak >= 2 && self.fresh(now)
    }
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
        Self { me, records: BTreeMap::new() }
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
        let signed = keyspace::open(origin, key, version, text, &record.public_key)?;
        if signed.withdrawn && text.len() > MAX_WITHDRAWAL_BYTES {
            return Err(Refusal::Oversized);
        }
        let known = Key::parse(key);
        let value = match &known {
            Some(key) if !signed.withdrawn => Some(Value::decode(key, &signed.payload)?),
            _ => None,
        };
        record.take(origin, (key, version, text), signed.withdrawn.then_some(now), now)?;
        let Some(key) = known else { return Ok(Taken::Uninterpreted) };
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
            let record =
                Record { cert_text: text.to_owned(), public_key, life: None, lost_since: None, touched: now };
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

    /// Returns the mesh as it is known at `now`.
    pub fn view(&self, now: Instant) -> ClusterView {
        let members = self.records.iter().filter_map(|(id, record)| {
            let life = record.life.as_ref()?;
            let lost =
                record.lost_since.is_some_and(|at| now.saturating_duration_since(at) >= RECONNECT_GRACE);
            let mine = *id == self.me;
            let member = Member {
                id: id.clone(),
                info: life.info.clone()?,
                devices: life.devices.clone(),
                providers: life.providers.clone(),
                stats: life.stats.clone(),
                alive: mine || (life.lease.alive(now) && !lost),
                last_seen: if mine { now } else { life.lease.renewed_at.unwrap_or(record.touched) }
                    .into_std(),
                generation: life.origin.generation,
            };
            Some((id.clone(), member))
        });
        ClusterView { me: self.me.clone(), members: members.collect() }
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
    /// Holds a verified value, starting a new life if it is from one.
    fn take(
        &mut self,
        origin: &Origin,
        (key, version, text): (&str, u64, &str),
        withdrawn_at: Option<Instant>,
        now: Instant,
    ) -> Result<(), Refusal> {
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
        if fresh.is_some() {
            self.life = fresh;
        }
        Ok(())
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
            (Key::Lease, Some(_)) => {
                life.lease.renew(now, direct);
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
            (Key::Lease, None) => life.lease = LeaseState::default(),
            (Key::Cert, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gossip::testing::{TestAuthority, Writer};
    use proptest::prelude::*;

    struct Reader {
        ledger: Ledger,
        now: Instant,
    }

    impl Reader {
        fn new() -> Self {
            Self { ledger: Ledger::new(NodeId::from_spki(b"reader")), now: Instant::now() }
        }

        fn offer(&mut self, writer: &Writer, key: &str, version: u64, text: &str) -> Result<Taken, Refusal> {
            self.offer_as(&writer.origin, key, version, text, false)
        }

        fn offer_as(
            &mut self,
            origin: &Origin,
            key: &str,
            version: u64,
            text: &str,
            direct: bool,
        ) -> Result<Taken, Refusal> {
            self.ledger.offer(&TestAuthority, origin, (key, version, text), direct, self.now)
        }

        fn meet(&mut self, writer: &Writer) {
            self.offer(writer, "cert", 1, &writer.chain()).unwrap();
            self.offer(writer, "node", 2, &writer.node(2, "first")).unwrap();
        }

        fn member(&self, writer: &Writer) -> Option<Member> {
            self.ledger.view(self.now).members.remove(writer.id())
        }

        fn lease(&mut self, writer: &Writer, seq: u64) -> bool {
            self.offer(writer, "lease", seq, &writer.lease(seq)).unwrap();
            self.member(writer).unwrap().alive
        }
    }

    #[test]
    fn nothing_counts_before_the_certificate() {
        let (mut reader, writer) = (Reader::new(), Writer::new(1, 5));
        let node = writer.node(2, "first");
        assert_eq!(reader.offer(&writer, "node", 2, &node), Err(Refusal::NoCertificate));
        assert_eq!(reader.offer(&writer, "cert", 2, &writer.chain()), Err(Refusal::BadCertificate), "late");
        let other = Writer::new(2, 5);
        assert_eq!(
            reader.offer(&writer, "cert", 1, &other.chain()),
            Err(Refusal::BadCertificate),
            "another's"
        );
        assert_eq!(reader.offer(&writer, "cert", 1, &writer.chain()), Ok(Taken::New));
        assert!(reader.member(&writer).is_none(), "a chain alone is no member");
        assert_eq!(reader.offer(&writer, "node", 2, &node), Ok(Taken::New));
        assert_eq!(reader.member(&writer).unwrap().info.name, "first");
    }

    #[test]
    fn an_unsigned_life_replaces_nothing() {
        let (mut reader, writer) = (Reader::new(), Writer::new(1, 5));
        reader.meet(&writer);
        let forged = Origin { generation: u64::MAX, ..writer.origin.clone() };
        assert_eq!(reader.offer_as(&forged, "cert", 1, &writer.chain(), false), Ok(Taken::Known));
        let node = writer.node(9, "forged");
        assert_eq!(reader.offer_as(&forged, "node", 9, &node, false), Err(Refusal::OldGeneration));
        assert!(reader.ledger.is_current(&writer.origin));
        assert_eq!(reader.offer(&writer, "node", 3, &writer.node(3, "second")), Ok(Taken::New));
    }

    #[test]
    fn a_restart_ends_the_old_life() {
        let (mut reader, old) = (Reader::new(), Writer::new(1, 5));
        let device = NodeId::from_spki(b"device");
        reader.meet(&old);
        reader.offer(&old, &Key::Device(device.clone()).to_string(), 3, &old.device(&device, 3)).unwrap();
        assert_eq!(reader.member(&old).unwrap().devices.len(), 1);
        let new = Writer::new(1, 6);
        reader.offer(&new, "node", 2, &new.node(2, "again")).unwrap();
        let member = reader.member(&new).unwrap();
        assert_eq!((member.generation, member.devices.len(), member.info.name.as_str()), (6, 0, "again"));
        assert_eq!(reader.offer(&old, "node", 99, &old.node(99, "ghost")), Err(Refusal::OldGeneration));
    }

    #[test]
    fn a_withdrawn_device_goes_and_its_old_value_does_not_come_back() {
        let (mut reader, writer) = (Reader::new(), Writer::new(1, 5));
        let device = NodeId::from_spki(b"device");
        let key = Key::Device(device.clone());
        let (name, old) = (key.to_string(), writer.device(&device, 3));
        reader.meet(&writer);
        reader.offer(&writer, &name, 3, &old).unwrap();
        reader.offer(&writer, &name, 4, &writer.seal(&key, 4, None)).unwrap();
        assert!(reader.member(&writer).unwrap().devices.is_empty());
        assert_eq!(reader.offer(&writer, &name, 3, &old), Err(Refusal::NotNewer));
    }

    #[test]
    fn withdrawn_keys_make_room_only_after_their_time() {
        let (mut reader, writer) = (Reader::new(), Writer::new(1, 5));
        reader.meet(&writer);
        let key = |n: u64| Key::Device(NodeId::from_spki(&n.to_be_bytes()));
        let withdraw = |reader: &mut Reader, n: u64| {
            reader.offer(&writer, &key(n).to_string(), n, &writer.seal(&key(n), n, None))
        };
        for n in 3..MAX_KEYS as u64 + 2 {
            withdraw(&mut reader, n).unwrap();
        }
        assert_eq!(withdraw(&mut reader, 5_000), Err(Refusal::Oversized));
        reader.now += WITHDRAWN_FOR;
        assert_eq!(withdraw(&mut reader, 5_000), Ok(Taken::New));
        assert_eq!(withdraw(&mut reader, 4), Err(Refusal::NotNewer), "below the floor");
    }

    #[test]
    fn all_values_of_a_node_together_are_bounded() {
        let (mut reader, writer) = (Reader::new(), Writer::new(1, 5));
        reader.meet(&writer);
        let big = "x".repeat(5_000);
        let refused = (3u64..20).find(|seq| {
            let device = NodeId::from_spki(&seq.to_be_bytes());
            let info = DeviceInfo { id: device.to_string(), name: big.clone(), ..DeviceInfo::default() };
            let key = Key::Device(device);
            let text = writer.seal(&key, *seq, Some(&Value::Device(info)));
            reader.offer(&writer, &key.to_string(), *seq, &text) == Err(Refusal::Oversized)
        });
        assert!(refused.is_some());
        assert!(reader.ledger.held_bytes() <= MAX_NODE_BYTES);
    }

    #[test]
    fn unknown_keys_are_held_but_not_shown() {
        let (mut reader, writer) = (Reader::new(), Writer::new(1, 5));
        reader.meet(&writer);
        let before = reader.member(&writer);
        let text = writer.seal_under("future", 3, b"whatever");
        assert_eq!(reader.offer(&writer, "future", 3, &text), Ok(Taken::Uninterpreted));
        assert_eq!(reader.offer(&writer, "future", 3, &text), Ok(Taken::Known));
        let forged = Writer::new(2, 5).seal_under("future", 4, b"whatever");
        assert_eq!(reader.offer(&writer, "future", 4, &forged), Err(Refusal::ForeignOrigin));
        for key in ["", "\u{e9}t\u{e9}"] {
            assert_eq!(reader.offer(&writer, key, 3, "AAAA"), Err(Refusal::Undecodable), "{key}");
        }
        assert_eq!(reader.member(&writer), before);
    }

    #[test]
    fn a_lease_must_be_renewed_to_be_alive() {
        let (mut reader, writer) = (Reader::new(), Writer::new(1, 5));
        reader.meet(&writer);
        assert!(!reader.lease(&writer, 3), "one lease may be an old one");
        reader.now += LEASE_RENEWAL;
        assert!(reader.lease(&writer, 4));
        let text = writer.lease(3);
        assert_eq!(reader.offer(&writer, "lease", 3, &text), Err(Refusal::StaleLease));
        reader.now += LEASE_VALIDITY;
        assert!(reader.member(&writer).unwrap().alive);
        reader.now += Duration::from_millis(1);
        assert!(!reader.member(&writer).unwrap().alive);
        reader.now += Duration::from_secs(60);
        assert!(!reader.lease(&writer, 50), "came round a healed partition");
        reader.now += LEASE_RENEWAL;
        assert!(reader.lease(&writer, 51));
    }

    #[test]
    fn a_lease_from_the_owner_itself_counts_at_once_until_taken_back() {
        let (mut reader, writer) = (Reader::new(), Writer::new(1, 5));
        reader.meet(&writer);
        reader.offer_as(&writer.origin, "lease", 3, &writer.lease(3), true).unwrap();
        assert!(reader.member(&writer).unwrap().alive);
        reader.offer(&writer, "lease", 4, &writer.seal(&Key::Lease, 4, None)).unwrap();
        assert!(!reader.member(&writer).unwrap().alive);
    }

    #[test]
    fn a_lost_connection_that_does_not_come_back_is_death() {
        let (mut reader, writer) = (Reader::new(), Writer::new(1, 5));
        reader.meet(&writer);
        reader.lease(&writer, 3);
        assert!(reader.lease(&writer, 4));
        reader.ledger.set_connected(writer.id(), false, reader.now);
        assert!(reader.member(&writer).unwrap().alive);
        reader.now += RECONNECT_GRACE;
        assert!(!reader.member(&writer).unwrap().alive);
        reader.ledger.set_connected(writer.id(), true, reader.now);
        assert!(reader.member(&writer).unwrap().alive);
    }

    #[test]
    fn the_silent_are_forgotten() {
        let (mut reader, writer) = (Reader::new(), Writer::new(1, 5));
        reader.meet(&writer);
        reader.lease(&writer, 3);
        reader.now += FORGET_AFTER - Duration::from_secs(1);
        reader.ledger.forget_silent(reader.now);
        assert!(reader.member(&writer).is_some());
        reader.now += Duration::from_secs(1);
        reader.ledger.forget_silent(reader.now);
        assert!(reader.member(&writer).is_none());
    }

    /// (generation, seq, which value)
    fn history() -> impl Strategy<Value = Vec<(u64, u64, u8)>> {
        prop::collection::vec((1u64..4, 2u64..12, 0u8..5), 1..25)
    }

    fn deliver(reader: &mut Reader, (generation, seq, which): (u64, u64, u8)) {
        let writer = Writer::new(1, generation);
        let device = NodeId::from_spki(&[which]);
        // One seq never carries two values: chitchat gives each write a version of its own.
        let seq = seq * 8 + u64::from(which);
        let key = if which == 0 { Key::Node } else { Key::Device(device.clone()) };
        let text = match which {
            0 => writer.node(seq, &format!("name {seq}")),
            _ if seq % 3 == 0 => writer.seal(&key, seq, None),
            _ => writer.device(&device, seq),
        };
        let _ = reader.offer(&writer, &key.to_string(), seq, &text);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn the_order_of_arrival_does_not_matter(mut history in history(), seed: u64) {
            let writer = Writer::new(1, 1);
            let run = |history: &[(u64, u64, u8)]| {
                let mut reader = Reader::new();
                reader.offer(&writer, "cert", 1, &writer.chain()).unwrap();
                history.iter().for_each(|event| deliver(&mut reader, *event));
                reader.member(&writer).map(|m| (m.info, m.devices, m.generation))
            };
            let straight = run(&history);
            let newest = history.iter().map(|(generation, ..)| *generation).max();
            let mut state = seed | 1;
            for i in (1..history.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                history.swap(i, (state >> 33) as usize % (i + 1));
            }
            history.extend(history.clone());
            let shuffled = run(&history);
            prop_assert_eq!(&straight, &shuffled);
            if let Some((_, _, generation)) = straight {
                prop_assert_eq!(Some(generation), newest);
            }
        }
    }
}
