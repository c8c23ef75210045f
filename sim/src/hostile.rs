//! What a router with a valid certificate can try: other owners' values, old lives, higher versions, absurd counts.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use shoal_cluster::gossip::frame::{KeyValue, NodeDelta, Status};
use shoal_cluster::ids::NodeId;
use shoal_cluster::keyspace::{self, Key, Origin, Value};
use shoal_proto::{DeviceInfo, Lease, ModelInfo};
use shoal_routing::{ArmEvidence, ArmId, ArmStats};

use crate::breakage::Breakage;
use crate::events::{Blob, Event};
use crate::gossip::Message;
use crate::learning::blob;
use crate::request::MODELS;
use crate::world::World;

/// How often it tries something.
const EVERY: Duration = Duration::from_millis(700);

/// What it claims to have counted.
const ABSURD: u64 = 1_000_000_000;

impl World {
    /// A hostile router tries something on somebody.
    pub(crate) fn mischief(&mut self, liar: usize) {
        self.after(EVERY, Event::Mischief { node: liar });
        if !self.nodes[liar].up {
            return;
        }
        let others: Vec<usize> = self.nodes[liar].book.known().filter(|who| *who != liar).collect();
        if others.is_empty() {
            return;
        }
        let victim = others[self.rng.random_range(0..others.len())];
        let to = others[self.rng.random_range(0..others.len())];
        let Some(known) = self.nodes[liar].book.all_of(victim) else { return };
        let delta = match self.rng.random_range(0..8) {
            0 => self.replayed(victim, known),
            1 => self.forged(liar, victim, to, known),
            2 => renumbered(known),
            3 => self.withdrawn(liar, known),
            4 => NodeDelta { values: Vec::new(), ..self.forged(liar, to, to, known) },
            5 => return self.boast(liar),
            6 => self.reborn(liar, known),
            _ => return self.flood(liar, to, known),
        };
        self.send_frame(liar, to, Message::Ack(vec![delta]));
    }

    /// What it once recorded of a router, perhaps of an earlier life; the first time it records.
    fn replayed(&mut self, victim: usize, known: NodeDelta) -> NodeDelta {
        self.truth.recorded.entry(victim).or_insert(known).clone()
    }

    /// A value in another router's name under its own signature.
    fn forged(&mut self, liar: usize, victim: usize, to: usize, known: NodeDelta) -> NodeDelta {
        let device = NodeId::from_spki(b"made up");
        let info = DeviceInfo {
            id: device.to_string(),
            name: "made up".to_owned(),
            seq: 1 << 40,
            slots: u32::MAX,
            models: vec![ModelInfo { id: MODELS[0].to_owned(), ..ModelInfo::default() }],
            ..DeviceInfo::default()
        };
        if self.is_broken(Breakage::ForeignOwner) {
            let owner = self.nodes[victim].id.clone();
            self.nodes[to].forged.push((owner, info.clone()));
        }
        self.signed(liar, known, &Key::Device(device), Some(Value::Device(info)))
    }

    fn withdrawn(&mut self, liar: usize, known: NodeDelta) -> NodeDelta {
        self.signed(liar, known, &Key::Lease, None)
    }

    /// A later life that the router never began.
    fn reborn(&mut self, liar: usize, known: NodeDelta) -> NodeDelta {
        let mut id = known.id.clone();
        id.generation += 1_000;
        let lease = Value::Lease(Lease { counter: u64::MAX, in_flight: 0 });
        self.signed(liar, NodeDelta { id, ..known }, &Key::Lease, Some(lease))
    }

    fn signed(&self, liar: usize, known: NodeDelta, key: &Key, value: Option<Value>) -> NodeDelta {
        let newest = known.values.last().map_or(0, |value| value.version);
        let Ok(id) = known.id.node_id.parse() else { return known };
        let origin = Origin { id, generation: known.id.generation, addr: known.id.addr };
        let version = newest + 1;
        let keys = &self.nodes[liar].keys;
        let sealed = keyspace::seal(&origin, key, version, 0, value.as_ref(), |message| keys.sign(message));
        let value = sealed.unwrap_or_default();
        let values = vec![KeyValue { key: key.to_string(), value, version, status: Status::Set }];
        NodeDelta { from_version_excluded: newest, values, ..known }
    }

    /// A device of its own that nobody has, with room for everything: it attracts and never answers.
    fn boast(&mut self, liar: usize) {
        let device = NodeId::from_spki(b"bottomless");
        let models = MODELS.map(|id| ModelInfo { id: id.to_owned(), ..ModelInfo::default() }).to_vec();
        let info = DeviceInfo {
            id: device.to_string(),
            name: "bottomless".to_owned(),
            seq: self.now.as_millis() as u64,
            slots: u32::MAX,
            models,
            ..DeviceInfo::default()
        };
        self.write(liar, &Key::Device(device), Some(Value::Device(info)));
    }

    fn flood(&mut self, liar: usize, to: usize, known: NodeDelta) {
        for _ in 0..20 {
            self.send_frame(liar, to, Message::Ack(vec![renumbered(known.clone())]));
        }
    }

    /// What a hostile router adds to its answer to a pull: absurd counts of its own, and others' in its own hand.
    pub(crate) fn forge(&mut self, of: usize, to: usize, blobs: &mut Vec<Arc<Blob>>) {
        if self.scenario.hostile != Some(of) {
            return;
        }
        let stats = ArmStats { count: ABSURD, scored: ABSURD, version: 2 * ABSURD, ..ArmStats::default() };
        let stats = ArmStats { reward_sum: ABSURD as f64, ..stats };
        let lie = |generation: u64| {
            let arms = [(ArmId::new(MODELS[0], None), ArmEvidence { stats, ..ArmEvidence::default() })];
            shoal_routing::Testimony::resume(generation, arms.into())
        };
        let own = lie(self.nodes[of].origin.generation);
        blobs.push(Arc::new(blob(of, &self.nodes[of].name, &own, 0)));
        for victim in 0..self.nodes.len() {
            if victim != of && victim != to {
                // What was true once: signed, and old.
                if let Some(held) = self.nodes[of].learning.blobs.get(&victim) {
                    blobs.push(self.truth.old_blobs.entry(victim).or_insert_with(|| held.clone()).clone());
                }
                let forged = lie(self.nodes[victim].origin.generation + 1);
                let blob = blob(victim, &self.nodes[victim].name, &forged, 0);
                blobs.push(Arc::new(Blob { signer: of, ..blob }));
            }
        }
    }
}

/// The same values under higher versions.
fn renumbered(known: NodeDelta) -> NodeDelta {
    let values = known.values.into_iter().map(|value| KeyValue { version: value.version + 500, ..value });
    NodeDelta { values: values.collect(), ..known }
}
