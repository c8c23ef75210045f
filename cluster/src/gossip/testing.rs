//! Writers and an authority for the tests of this folder: keys without certificates.

use std::net::SocketAddr;
use std::sync::Arc;

use ring::signature::{Ed25519KeyPair, KeyPair};
use shoal_proto::{DeviceInfo, Lease, NodeInfo};

use crate::gossip::ledger::Authority;
use crate::ids::NodeId;
use crate::keyspace::{self, Key, Origin, Value};

/// Takes a chain of exactly one raw public key for a certificate.
pub(crate) struct TestAuthority;

impl Authority for TestAuthority {
    fn router_of(&self, chain: &[Vec<u8>]) -> Option<(NodeId, Vec<u8>)> {
        match chain {
            [key] if key.len() == 32 => Some((NodeId::from_spki(key), key.clone())),
            _ => None,
        }
    }
}

/// A router that signs.
#[derive(Clone)]
pub(crate) struct Writer {
    pair: Arc<Ed25519KeyPair>,
    pub(crate) origin: Origin,
}

impl Writer {
    pub(crate) fn new(seed: u8, generation: u64) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], 7000 + u16::from(seed)));
        let id = NodeId::from_spki(pair.public_key().as_ref());
        Self { pair: Arc::new(pair), origin: Origin { id, generation, addr } }
    }

    pub(crate) fn id(&self) -> &NodeId {
        &self.origin.id
    }

    pub(crate) fn chain(&self) -> String {
        keyspace::seal_chain([self.pair.public_key().as_ref()]).unwrap()
    }

    pub(crate) fn seal(&self, key: &Key, seq: u64, value: Option<&Value>) -> String {
        keyspace::seal(&self.origin, key, seq, 0, value, |m| self.pair.sign(m).as_ref().to_vec()).unwrap()
    }

    pub(crate) fn seal_under(&self, key: &str, seq: u64, payload: &[u8]) -> String {
        let sign = |message: &[u8]| self.pair.sign(message).as_ref().to_vec();
        keyspace::seal_under(key, &self.origin, (seq, 0), Some(payload.to_vec()), sign).unwrap()
    }

    pub(crate) fn node(&self, seq: u64, name: &str) -> String {
        let info = NodeInfo { name: name.to_owned(), ..NodeInfo::default() };
        self.seal(&Key::Node, seq, Some(&Value::Node(info)))
    }

    pub(crate) fn lease(&self, seq: u64) -> String {
        self.seal(&Key::Lease, seq, Some(&Value::Lease(Lease { counter: seq, in_flight: 0 })))
    }

    pub(crate) fn device(&self, device: &NodeId, seq: u64) -> String {
        let info = DeviceInfo { id: device.to_string(), seq, ..DeviceInfo::default() };
        self.seal(&Key::Device(device.clone()), seq, Some(&Value::Device(info)))
    }
}
