//! Any order of offers ends at one view; liveness goes by the reader's clock.

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
    assert_eq!(reader.offer(&writer, "cert", 1, &other.chain()), Err(Refusal::BadCertificate), "another's");
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
fn nobody_is_dead_because_the_reader_did_not_run() {
    let (mut reader, writer) = (Reader::new(), Writer::new(1, 5));
    reader.meet(&writer);
    reader.lease(&writer, 3);
    assert!(reader.lease(&writer, 4));
    let stopped = LEASE_VALIDITY * 3;
    reader.now += stopped;
    reader.ledger.excuse(stopped, reader.now);
    assert!(reader.member(&writer).unwrap().alive);
    assert!(reader.lease(&writer, 5), "and it goes on from there");
    // Being excused moves nothing into the future.
    reader.ledger.excuse(stopped, reader.now);
    reader.now += LEASE_VALIDITY + Duration::from_millis(1);
    assert!(!reader.member(&writer).unwrap().alive);
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
fn two_old_leases_from_two_sides_of_a_partition_are_no_sign_of_life() {
    let (mut reader, writer) = (Reader::new(), Writer::new(1, 5));
    reader.meet(&writer);
    assert!(!reader.lease(&writer, 12));
    reader.now += Duration::from_millis(300);
    assert!(!reader.lease(&writer, 19), "seven renewals in a third of a second");
    reader.now += LEASE_RENEWAL;
    assert!(reader.lease(&writer, 20), "whoever lives renews it again");
    reader.now += Duration::from_millis(10);
    assert!(reader.lease(&writer, 40), "and is alive whatever overtakes what");
}

#[test]
fn a_router_that_renews_its_lease_without_a_connection_is_to_be_dialled() {
    let (mut reader, writer) = (Reader::new(), Writer::new(1, 5));
    reader.meet(&writer);
    reader.lease(&writer, 3);
    reader.lease(&writer, 4);
    let state = |reader: &Reader| {
        (reader.ledger.is_lost(writer.id()), reader.ledger.is_unreached(writer.id(), reader.now))
    };
    assert_eq!(state(&reader), (false, false), "never connected, never lost");
    reader.ledger.set_connected(writer.id(), false, reader.now);
    assert_eq!(state(&reader), (true, true));
    reader.now += LEASE_VALIDITY * 2;
    assert_eq!(state(&reader), (true, false), "silent");
    reader.lease(&writer, 9);
    reader.now += LEASE_RENEWAL;
    reader.lease(&writer, 10);
    assert_eq!(state(&reader), (true, true), "others hear of it again");
    assert!(!reader.member(&writer).unwrap().alive, "but nobody asks whom it does not reach");
    reader.ledger.set_connected(writer.id(), true, reader.now);
    assert_eq!(state(&reader), (false, false));
    assert!(reader.member(&writer).unwrap().alive);
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
    deliver_of(reader, &Writer::new(1, generation), seq, which);
}

fn deliver_of(reader: &mut Reader, writer: &Writer, seq: u64, which: u8) {
    let device = NodeId::from_spki(&[which]);
    // One seq never carries two values: chitchat gives each write a version of its own.
    let seq = seq * 8 + u64::from(which);
    let key = if which == 0 { Key::Node } else { Key::Device(device.clone()) };
    let text = match which {
        0 => writer.node(seq, &format!("name {seq}")),
        _ if seq.is_multiple_of(3) => writer.seal(&key, seq, None),
        _ => writer.device(&device, seq),
    };
    let _ = reader.offer(writer, &key.to_string(), seq, &text);
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

    #[test]
    fn a_view_brought_up_to_date_is_a_view_made_anew(events in prop::collection::vec((1u8..4, 1u64..4, 2u64..12, 0u8..7), 1..40)) {
        let mut reader = Reader::new();
        let (mut kept, mut known) = (ClusterView::empty(NodeId::from_spki(b"reader")), Revisions::new());
        kept.me = reader.ledger.view(reader.now).me;
        for (who, generation, seq, what) in events {
            let writer = Writer::new(who, generation);
            reader.now += Duration::from_millis(400);
            let _ = reader.offer(&writer, "cert", 1, &writer.chain());
            match what {
                5 => { let _ = reader.offer(&writer, "lease", seq, &writer.lease(seq)); }
                6 => reader.ledger.set_connected(writer.id(), seq % 2 == 0, reader.now),
                _ => deliver_of(&mut reader, &writer, seq, what),
            }
            if seq == 11 {
                reader.now += FORGET_AFTER;
                reader.ledger.forget_silent(reader.now);
            }
            let anew = reader.ledger.view(reader.now);
            let expected = kept.changes(&anew);
            prop_assert_eq!(reader.ledger.refresh(&mut kept, &mut known, reader.now), expected);
            prop_assert_eq!(&kept, &anew);
        }
    }
}
