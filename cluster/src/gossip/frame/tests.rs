//! Frames are read as they are written, and hostile ones are refused.

use super::*;
use chitchat::{ChitchatMessage, Deserializable, Serializable};
use proptest::prelude::*;

fn id(port: u16) -> RawId {
    RawId { node_id: format!("node{port}"), generation: 3, addr: SocketAddr::from(([10, 0, 0, 1], port)) }
}

fn value(key: &str, version: u64) -> KeyValue {
    KeyValue { key: key.into(), value: "text".repeat(50), version, status: Status::Set }
}

fn delta(port: u16, values: Vec<KeyValue>) -> NodeDelta {
    NodeDelta { id: id(port), last_gc_version: 0, from_version_excluded: 1, values }
}

fn frames() -> Vec<Frame> {
    let v6 = RawId { addr: "[fe80::1]:7".parse().unwrap(), ..id(9) };
    let entry = |id| DigestEntry { id, heartbeat: 5, last_gc_version: 1, max_version: 9 };
    let digest = vec![entry(id(1)), entry(id(2)), entry(v6)];
    let news = vec![delta(1, vec![value("a", 2), value("b", 7)]), delta(2, vec![value("c", 2)])];
    vec![
        Frame::Syn { cluster_id: "mesh".into(), digest: digest.clone() },
        Frame::SynAck { digest, delta: news.clone() },
        Frame::Ack { delta: news },
        Frame::Ack { delta: Vec::new() },
        Frame::BadCluster,
    ]
}

/// chitchat reads what we write, and we read what chitchat writes (compressed).
#[test]
fn frames_are_chitchats_own() {
    for frame in frames() {
        let bytes = frame.encode();
        assert_eq!(Frame::decode(&bytes).unwrap(), frame);
        let theirs = ChitchatMessage::deserialize(&mut bytes.as_slice()).unwrap();
        if let Frame::Syn { .. } | Frame::BadCluster = frame {
            assert_eq!(theirs.serialize_to_vec(), bytes);
        }
    }
}

#[test]
fn compressed_blocks_are_read() {
    let plain = Frame::Ack { delta: vec![delta(1, vec![value("a", 2), value("b", 3)])] };
    let bytes = plain.encode();
    let operations = &bytes[4 + 3..bytes.len() - 1];
    let block = zstd::bulk::compress(operations, 0).unwrap();
    assert_eq!(Frame::decode(&ack(&[block])).unwrap(), plain);
}

fn ack(blocks: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Frame::BadCluster.encode();
    bytes[3] = 2;
    for block in blocks {
        bytes.push(1);
        bytes.extend_from_slice(&(block.len() as u16).to_le_bytes());
        bytes.extend_from_slice(block);
    }
    bytes.push(0);
    bytes
}

#[test]
fn a_bomb_is_cut_at_the_bound() {
    let plain = Frame::Ack { delta: vec![delta(1, vec![value("a", 2)])] }.encode();
    let mut blocks = vec![zstd::bulk::compress(&plain[4 + 3..plain.len() - 1], 0).unwrap()];
    // A value that never ends, in blocks of some 30 bytes for 65,535 each.
    let mut endless = vec![1];
    put_string(&mut endless, "k");
    endless.extend_from_slice(&u16::MAX.to_le_bytes());
    endless.resize(endless.len() + usize::from(u16::MAX), b'x');
    endless.extend_from_slice(&[0; 9]);
    let zeros = zstd::bulk::compress(&vec![0; BLOCK_BYTES], 0).unwrap();
    blocks.extend(endless.chunks(BLOCK_BYTES).map(|chunk| zstd::bulk::compress(chunk, 0).unwrap()));
    blocks.extend(std::iter::repeat_n(zeros, 1_500));
    let bytes = ack(&blocks);
    assert!(bytes.len() < MAX_FRAME_BYTES);
    let mut reader = Reader(&bytes[4..]);
    let (expanded, truncated) = reader.expand().unwrap();
    assert!(truncated);
    assert_eq!(expanded.len(), MAX_EXPANDED_BYTES);
    assert!(expanded.capacity() <= 2 * MAX_EXPANDED_BYTES);
}

#[test]
fn what_is_against_the_order_is_malformed() {
    let twice = Frame::Ack { delta: vec![delta(1, vec![]), delta(1, vec![])] };
    let back = Frame::Ack { delta: vec![delta(1, vec![value("a", 5), value("b", 5)])] };
    for frame in [twice, back] {
        assert!(matches!(Frame::decode(&frame.encode()), Err(Error::Malformed(_))));
    }
    assert_eq!(Frame::decode(&vec![0; MAX_FRAME_BYTES + 1]), Err(Error::TooLarge));
    for frame in frames() {
        let bytes = frame.encode();
        for len in 0..bytes.len() {
            assert!(Frame::decode(&bytes[..len]).is_err(), "{len} of {}", bytes.len());
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..600), kind in 0u8..4) {
        let _ = Frame::decode(&bytes);
        bytes.splice(0..0, [MAGIC.to_le_bytes()[0], MAGIC.to_le_bytes()[1], 0, kind]);
        let _ = Frame::decode(&bytes);
    }

    #[test]
    fn flipped_bytes_are_read_without_panic(at in 0usize..500, to: u8, which in 0usize..5) {
        let mut bytes = frames()[which].encode();
        let at = at % bytes.len();
        bytes[at] = to;
        if let Ok(frame) = Frame::decode(&bytes) {
            prop_assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
        }
    }
}
