//! Identities without certificates: a key is 32 bytes, a signature a keyed hash that only its owner is asked to make.
//!
//! A run checks tens of thousands of signatures; Ed25519 itself is tested elsewhere. That nobody can sign for another
//! is kept by construction: [`Keys::sign`] is called by the owner alone, and hostile routers sign with their own keys.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use shoal_cluster::gossip::ledger::Authority;
use shoal_cluster::ids::NodeId;

/// A router's keys.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    public: [u8; 32],
    secret: u64,
}

impl Keys {
    /// Makes the keys of the router with a number.
    pub(crate) fn new(number: usize) -> Self {
        let mut public = [0x5a; 32];
        public[..8].copy_from_slice(&(number as u64).to_be_bytes());
        Self { public, secret: secret_of(&public) }
    }

    /// Returns the id that follows from the public key.
    pub(crate) fn id(&self) -> NodeId {
        NodeId::from_spki(&self.public)
    }

    /// Returns the public key, which stands for the certificate.
    pub(crate) fn public(&self) -> &[u8] {
        &self.public
    }

    /// Signs.
    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        tag(self.secret, message).to_be_bytes().to_vec()
    }
}

/// Where the router with a number receives gossip.
pub(crate) fn address_of(number: usize) -> SocketAddr {
    let [high, low] = (number as u16).to_be_bytes();
    SocketAddr::from(([10, 0, high, low], 7411))
}

/// Whom the routers of a run take for routers: everybody who was not revoked.
#[derive(Debug, Default)]
pub(crate) struct SimAuthority {
    revoked: Mutex<BTreeSet<Vec<u8>>>,
}

impl SimAuthority {
    /// Takes a router's right away.
    pub(crate) fn revoke(&self, keys: &Keys) {
        self.revoked.lock().unwrap_or_else(PoisonError::into_inner).insert(keys.public.to_vec());
    }
}

impl Authority for SimAuthority {
    fn router_of(&self, chain: &[Vec<u8>]) -> Option<(NodeId, Vec<u8>)> {
        let [key] = chain else { return None };
        let revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner).contains(key);
        (key.len() == 32 && !revoked).then(|| (NodeId::from_spki(key), key.clone()))
    }

    fn is_signed(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        signature == tag(secret_of(public_key), message).to_be_bytes()
    }
}

fn secret_of(public: &[u8]) -> u64 {
    tag(0x9e37_79b9_7f4a_7c15, public)
}

/// A keyed hash, eight bytes at a time.
fn tag(key: u64, message: &[u8]) -> u64 {
    let mut hash = key ^ message.len() as u64;
    for part in message.chunks(8) {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^= hash >> 32;
    }
    hash
}
