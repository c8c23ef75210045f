//! A model of chitchat: each router holds the newest life of every router that its guard let through, tells others
//! how far it knows each, and sends what they lack, newest versions last.
//!
//! What it leaves out (marks of deletion, sizes of messages, its own failure detector) Shoal does not rely on; the
//! real one runs in virtual time in the tests of `shoal-cluster`.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_cluster::gossip::frame::{KeyValue, NodeDelta, RawId, Status};

/// How far a router knows another: index, start number, newest version.
pub(crate) type Digest = Arc<Vec<(usize, u64, u64)>>;

/// One message of the handshake.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    /// "This is what I know."
    Syn(Digest),
    /// "This is what I know, and what you lack."
    SynAck(Digest, Vec<NodeDelta>),
    /// "This is what you lack."
    Ack(Vec<NodeDelta>),
}

/// What a router holds of all.
#[derive(Debug, Default)]
pub(crate) struct Book {
    lives: BTreeMap<usize, Life>,
}

/// A router's life as another one knows it.
#[derive(Debug)]
struct Life {
    id: RawId,
    newest: u64,
    values: BTreeMap<String, (u64, String, Status)>,
}

impl Book {
    /// Says how far everybody is known.
    pub(crate) fn digest(&self) -> Digest {
        Arc::new(self.lives.iter().map(|(who, life)| (*who, life.id.generation, life.newest)).collect())
    }

    /// Returns the newest version that a router wrote.
    pub(crate) fn newest(&self, who: usize) -> u64 {
        self.lives.get(&who).map_or(0, |life| life.newest)
    }

    /// Returns the routers of which anything is held.
    pub(crate) fn known(&self) -> impl Iterator<Item = usize> {
        self.lives.keys().copied()
    }

    /// Returns what somebody with this digest lacks.
    pub(crate) fn lacking(&self, digest: &[(usize, u64, u64)]) -> Vec<NodeDelta> {
        let mut deltas = Vec::new();
        for (who, life) in &self.lives {
            let known = digest.binary_search_by_key(who, |entry| entry.0).ok().map(|at| digest[at]);
            let from = match known {
                Some((_, generation, _)) if generation > life.id.generation => continue,
                Some((_, generation, version)) if generation == life.id.generation => version,
                _ => 0,
            };
            if from < life.newest {
                deltas.push(life.since(from));
            }
        }
        deltas
    }

    /// Returns all that is held of a router.
    pub(crate) fn all_of(&self, who: usize) -> Option<NodeDelta> {
        self.lives.get(&who).map(|life| life.since(0))
    }

    /// Takes in what the guard let through, or what this router writes itself.
    pub(crate) fn apply(&mut self, who: usize, delta: NodeDelta) {
        let new = || Life { id: delta.id.clone(), newest: 0, values: BTreeMap::new() };
        let life = self.lives.entry(who).or_insert_with(new);
        if delta.id.generation < life.id.generation {
            return;
        }
        if delta.id.generation > life.id.generation {
            *life = new();
        }
        // What is missing between would never be asked for again.
        if delta.from_version_excluded > life.newest {
            return;
        }
        for KeyValue { key, value, version, status } in delta.values {
            if version > life.newest {
                life.newest = version;
                life.values.insert(key, (version, value, status));
            }
        }
    }
}

impl Life {
    fn since(&self, from: u64) -> NodeDelta {
        let newer = self.values.iter().filter(|(_, (version, ..))| *version > from);
        let mut values: Vec<KeyValue> = newer
            .map(|(key, (version, value, status))| KeyValue {
                key: key.clone(),
                value: value.clone(),
                version: *version,
                status: *status,
            })
            .collect();
        values.sort_by_key(|value| value.version);
        NodeDelta { id: self.id.clone(), last_gc_version: 0, from_version_excluded: from, values }
    }
}
