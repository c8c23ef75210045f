//! What the guard lets through, and what it refuses.

use super::super::frame::KeyValue;
use super::*;
use crate::gossip::testing::{TestAuthority, Writer};
use crate::keyspace::Key;
use chitchat::{ChitchatMessage, Deserializable};
use proptest::prelude::*;

const MESH: &str = "mesh";

struct Gate {
    guard: Guard,
    now: Instant,
}

fn gate() -> Gate {
    let me = Writer::new(9, 1).origin;
    let guard = Guard::new(me, MESH.to_owned(), Arc::new(TestAuthority), Arc::default());
    Gate { guard, now: Instant::now() }
}

impl Gate {
    fn admit(&mut self, from: &Writer, frame: &Frame) -> Option<Frame> {
        self.admit_bytes(from, &frame.encode())
    }

    fn admit_bytes(&mut self, from: &Writer, bytes: &[u8]) -> Option<Frame> {
        let admitted = self.guard.admit(from.id(), bytes, self.now)?;
        ChitchatMessage::deserialize(&mut admitted.as_slice()).expect("chitchat reads what is admitted");
        Some(Frame::decode(&admitted).unwrap())
    }

    fn counted(&self, what: &str) -> u64 {
        self.guard.counters.snapshot().get(what).copied().unwrap_or(0)
    }

    fn view(&self) -> ClusterView {
        self.guard.view(self.now)
    }
}

fn raw(origin: &Origin) -> RawId {
    RawId { node_id: origin.id.to_string(), generation: origin.generation, addr: origin.addr }
}

fn set(key: &str, version: u64, value: String) -> KeyValue {
    KeyValue { key: key.to_owned(), value, version, status: Status::Set }
}

fn news(writer: &Writer) -> NodeDelta {
    let values = vec![
        set("cert", 1, writer.chain()),
        set("node", 2, writer.node(2, "first")),
        set("lease", 3, writer.lease(3)),
    ];
    NodeDelta { id: raw(&writer.origin), last_gc_version: 0, from_version_excluded: 0, values }
}

fn entry(origin: &Origin, heartbeat: u64) -> DigestEntry {
    DigestEntry { id: raw(origin), heartbeat, last_gc_version: 77, max_version: 3 }
}

fn syn(digest: Vec<DigestEntry>) -> Frame {
    Frame::Syn { cluster_id: MESH.to_owned(), digest }
}

#[test]
fn a_member_enters_with_its_signed_values_and_not_before() {
    let (mut gate, a, b) = (gate(), Writer::new(1, 5), Writer::new(2, 5));
    let me = gate.guard.me.clone();
    let hello = syn(vec![entry(&a.origin, 9), entry(&b.origin, 9), entry(&me, 4)]);
    let Some(Frame::Syn { digest, .. }) = gate.admit(&a, &hello) else { panic!("a digest") };
    assert_eq!(digest.len(), 1, "only this node is known: {digest:?}");
    let answer = Frame::SynAck { digest: vec![entry(&a.origin, u64::MAX)], delta: vec![news(&a), news(&b)] };
    let Some(Frame::SynAck { digest, delta }) = gate.admit(&a, &answer) else { panic!("an answer") };
    assert_eq!(delta.len(), 2);
    assert_eq!((digest[0].heartbeat, digest[0].last_gc_version), (3, 0), "the lease is the heartbeat");
    let view = gate.view();
    assert!(view.members[a.id()].alive, "it spoke itself");
    assert!(!view.members[b.id()].alive, "it was only spoken of");
}

#[test]
fn the_version_trick_leaves_nothing_that_chitchat_would_assert_on() {
    let (mut gate, a, evil) = (gate(), Writer::new(1, 5), Writer::new(2, 5));
    gate.admit(&a, &Frame::Ack { delta: vec![news(&a)] }).unwrap();
    let mut delta = news(&evil);
    delta.values.push(set("lease", 100, evil.lease(100)));
    delta.values.remove(2);
    let mut operations = Frame::Ack { delta: vec![delta] }.encode();
    // The block's end is rewritten: another operation, "set the maximum version to 50".
    operations.pop();
    operations.extend_from_slice(&[2, 9, 0, 2]);
    operations.extend_from_slice(&50u64.to_le_bytes());
    operations.push(0);
    let Some(Frame::Ack { delta }) = gate.admit_bytes(&evil, &operations) else { panic!("its own values") };
    assert_eq!(delta[0].values.last().unwrap().version, 100);
}

#[test]
fn nothing_of_another_owner_changes() {
    let (mut gate, a, evil) = (gate(), Writer::new(1, 5), Writer::new(2, 5));
    gate.admit(&a, &Frame::Ack { delta: vec![news(&a)] }).unwrap();
    gate.admit(&evil, &Frame::Ack { delta: vec![news(&evil)] }).unwrap();
    let before = gate.view();
    let me = gate.guard.me.clone();
    let of_a = |values| NodeDelta { values, from_version_excluded: 3, ..news(&a) };
    let moved = Origin { addr: evil.origin.addr, ..a.origin.clone() };
    let later = Origin { generation: u64::MAX, ..a.origin.clone() };
    let attacks = [
        ("signed by the attacker", of_a(vec![set("node", 4, evil.node(4, "forged"))])),
        ("replayed as newer", of_a(vec![set("node", 400, a.node(2, "first"))])),
        ("renamed", of_a(vec![set("stats", 4, a.node(4, "x"))])),
        ("certificate at a newer version", of_a(vec![set("cert", 1 << 60, a.chain())])),
        ("another address", NodeDelta { id: raw(&moved), ..news(&a) }),
        ("another life", NodeDelta { id: raw(&later), ..news(&a) }),
        ("about the victim itself", NodeDelta { id: raw(&me), ..news(&a) }),
        ("not ASCII", of_a(vec![set("\u{e9}", 4, a.node(4, "x"))])),
        ("too long", of_a(vec![set("node", 4, "A".repeat(60_000))])),
        ("deleted", of_a(vec![KeyValue { status: Status::Deleted, ..set("node", 4, String::new()) }])),
    ];
    for (name, attack) in attacks {
        assert_eq!(gate.admit(&evil, &Frame::Ack { delta: vec![attack] }), None, "{name}");
        assert_eq!(before.changes(&gate.view()), vec![], "{name}");
    }
    let forged = syn(vec![entry(&a.origin, u64::MAX), entry(&moved, 1), entry(&later, 1)]);
    let Some(Frame::Syn { digest, .. }) = gate.admit(&evil, &forged) else { panic!("a digest") };
    assert_eq!(digest.len(), 1);
    assert_eq!(digest[0].heartbeat, 3, "frozen only if forged heartbeats counted");
    let reset = NodeDelta { last_gc_version: u64::MAX, ..of_a(vec![set("lease", 4, a.lease(4))]) };
    let Some(Frame::Ack { delta }) = gate.admit(&evil, &Frame::Ack { delta: vec![reset] }) else { panic!() };
    assert_eq!(delta[0].last_gc_version, 0, "no reset");
    for what in ["bad_signature", "foreign_origin", "unsigned_deletion", "oversized", "undecodable"] {
        assert!(gate.counted(what) > 0, "{what}");
    }
}

#[test]
fn a_withdrawal_is_let_through_as_one() {
    let (mut gate, a) = (gate(), Writer::new(1, 5));
    let mut delta = news(&a);
    delta.values.push(set("stats", 4, a.seal(&Key::Stats, 4, None)));
    let mut lying = set("lease", 5, a.lease(5));
    lying.status = Status::DeleteAfterTtl;
    delta.values.push(lying);
    let Some(Frame::Ack { delta }) = gate.admit(&a, &Frame::Ack { delta: vec![delta] }) else { panic!() };
    let status = |key: &str| delta[0].values.iter().rfind(|value| value.key == key).unwrap().status;
    assert_eq!((status("stats"), status("lease")), (Status::DeleteAfterTtl, Status::Set));
}

#[test]
fn a_peer_that_floods_is_cut_to_its_rate() {
    let (mut gate, a, b) = (gate(), Writer::new(1, 5), Writer::new(2, 5));
    let passed = (0..2_000).filter(|_| gate.admit(&a, &syn(vec![])).is_some()).count();
    assert_eq!(passed, FRAME_BURST as usize);
    assert!(gate.admit(&b, &syn(vec![])).is_some(), "others are not held back");
    gate.now += Duration::from_secs(1);
    let passed = (0..2_000).filter(|_| gate.admit(&a, &syn(vec![])).is_some()).count();
    assert_eq!(passed, FRAMES_PER_SECOND as usize);
}

#[test]
fn checking_forgeries_is_bounded_by_their_senders_budget() {
    let (mut gate, a, evil) = (gate(), Writer::new(1, 5), Writer::new(2, 5));
    gate.admit(&a, &Frame::Ack { delta: vec![news(&a)] }).unwrap();
    let forgery = evil.node(4, "forged");
    for _ in 0..100 {
        let values = (10..100).map(|version| set("node", version, forgery.clone())).collect();
        gate.admit(&evil, &Frame::Ack { delta: vec![NodeDelta { values, ..news(&a) }] });
    }
    assert!(gate.counted("foreign_origin") <= (FRAME_BURST / FALSE_VALUE_COST) as u64 + 1);
    assert!(gate.admit(&a, &syn(vec![])).is_some());
}

#[test]
fn restarting_for_ever_does_not_fill_chitchat() {
    let mut gate = gate();
    for generation in 1..100 {
        let life = Writer::new(1, generation);
        gate.admit(&life, &Frame::Ack { delta: vec![news(&life)] });
    }
    assert_eq!(gate.guard.lives.len(), MAX_LIVES_OF_ONE);
    gate.now += LIFE_KEPT;
    gate.guard.tick(gate.now);
    assert!(gate.guard.lives.len() <= 1);
}

#[test]
fn another_mesh_is_not_heard() {
    let (mut gate, a) = (gate(), Writer::new(1, 5));
    let other = Frame::Syn { cluster_id: "other".into(), digest: vec![] };
    assert_eq!(gate.admit(&a, &other), None);
    assert_eq!(gate.admit(&a, &Frame::BadCluster), None);
    assert_eq!(gate.counted("frame_wrong_mesh"), 2);
    assert_eq!(gate.admit_bytes(&a, b"junk"), None);
    assert_eq!(gate.counted("frame_malformed"), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Any frame about a known member, made of real and forged parts: chitchat always reads what is left,
    /// versions still grow, and the member's name is one that its owner signed.
    #[test]
    fn no_mixture_gets_through(
        picks in prop::collection::vec((0usize..6, 1u64..30, any::<bool>()), 0..8), of_a: bool, heartbeat: u64,
    ) {
        let (mut gate, a, evil) = (gate(), Writer::new(1, 5), Writer::new(2, 5));
        gate.admit(&a, &Frame::Ack { delta: vec![news(&a)] }).unwrap();
        let owner = if of_a { &a } else { &evil };
        let mut values: Vec<KeyValue> = picks.iter().map(|(which, version, by_evil)| {
            let signer = if *by_evil { &evil } else { owner };
            match which {
                0 => set("node", *version, signer.node(*version, if *by_evil { "forged" } else { "true" })),
                1 => set("node", *version, signer.node(version + 1, "forged")),
                2 => set("lease", *version, signer.lease(*version)),
                3 => set("cert", *version, signer.chain()),
                4 => set("\u{1f980}", *version, String::new()),
                _ => KeyValue { status: Status::Deleted, ..set("node", *version, String::new()) },
            }
        }).collect();
        values.sort_by_key(|value| value.version);
        values.dedup_by_key(|value| value.version);
        let delta = NodeDelta { values, last_gc_version: heartbeat, ..news(owner) };
        let digest = vec![entry(&a.origin, heartbeat), entry(&evil.origin, heartbeat)];
        gate.admit(&evil, &Frame::SynAck { digest, delta: vec![delta] });
        let name = gate.view().members[a.id()].info.name.clone();
        prop_assert!(name == "first" || name == "true", "{}", name);
    }
}
