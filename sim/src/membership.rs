//! Gossip, leases, views and statistics of the routers of a run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use shoal_cluster::Change;
use shoal_cluster::gossip::frame::{Frame, KeyValue, NodeDelta, Status};
use shoal_cluster::gossip::ledger::{LEASE_RENEWAL, LEASE_VALIDITY};
use shoal_cluster::ids::NodeId;
use shoal_cluster::keyspace::{self, CERT_VERSION, Key, Value};
use shoal_node::replication;
use shoal_proto::{Lease, NodeInfo};
use shoal_routing::{Registry, UpstreamId};

use crate::breakage::Breakage;
use crate::events::{Blob, Event};
use crate::gossip::Message;
use crate::world::World;

/// Others that a router speaks to in a round, as chitchat does.
const FANOUT: usize = 3;

/// How often routers that are not reached are dialled.
const REDIAL_PAUSE: Duration = Duration::from_secs(2);

/// Time of a pull's two ways beside the network's.
const PULL_TIMEOUT: Duration = Duration::from_secs(5);

impl World {
    /// Starts a router with what it finds on its disk.
    pub(crate) fn start_node(&mut self, number: usize) {
        let last = self.nodes[number].disk.generation;
        // As the store does it: grows also when the clock stepped back.
        let mut generation = self.unix_ms(number).max(last + 1);
        if last > 0 && self.is_broken(Breakage::GenerationGoesBack) {
            generation = generation.min(last.saturating_sub(1).max(1));
        }
        if generation <= last {
            self.violated(format!("I8: router {number} starts under {generation} after {last}"));
        }
        let (at, now) = (self.now, self.instant());
        let (authority, freed) = (self.authority.clone(), self.freed.clone());
        self.nodes[number].start(number, generation, &authority, &freed, (at, now));
        self.trace.note(self.now, "starts", number, generation);
        let chain = keyspace::seal_chain([self.nodes[number].keys.public()]).unwrap_or_default();
        self.put(number, "cert".to_owned(), CERT_VERSION, chain, Status::Set);
        self.publish_info(number);
        for offer in replication::providers::to_publish(&self.nodes[number].clouds).into_values() {
            self.write(number, &Key::Provider(offer.name.clone()), Some(Value::Provider(offer)));
        }
        let life = self.nodes[number].life;
        let spread = |rng: &mut rand::rngs::StdRng, most: Duration| {
            Duration::from_micros(rng.random_range(0..most.as_micros() as u64))
        };
        let (interval, tick) = (self.scenario.interval, self.scenario.tick);
        let at = spread(&mut self.rng, interval);
        self.after(at, Event::Round { node: number, life });
        let at = spread(&mut self.rng, LEASE_RENEWAL);
        self.after(at, Event::Lease { node: number, life });
        let at = spread(&mut self.rng, tick);
        self.after(at, Event::Tick { node: number, life });
    }

    /// Tells the others what a router says of itself.
    pub(crate) fn publish_info(&mut self, number: usize) {
        let node = &self.nodes[number];
        let info = NodeInfo {
            name: format!("router {number}"),
            mesh_addrs: vec![node.origin.addr.to_string()],
            draining: node.draining,
            ..NodeInfo::default()
        };
        self.write(number, &Key::Node, Some(Value::Node(info)));
    }

    /// Signs a value and writes it; `None` withdraws the key.
    pub(crate) fn write(&mut self, number: usize, key: &Key, value: Option<Value>) {
        let issued = self.unix_ms(number);
        let node = &self.nodes[number];
        let seq = node.book.newest(number) + 1;
        let sealed =
            keyspace::seal(&node.origin, key, seq, issued, value.as_ref(), |message| node.keys.sign(message));
        let Ok(text) = sealed else { return self.violated(format!("{key} does not fit a value")) };
        let generation = node.origin.generation;
        self.truth.published(number, generation, key, seq, value.as_ref());
        let status = if value.is_some() { Status::Set } else { Status::DeleteAfterTtl };
        self.put(number, key.to_string(), seq, text, status);
    }

    fn put(&mut self, number: usize, key: String, version: u64, value: String, status: Status) {
        let now = self.instant().into();
        let node = &mut self.nodes[number];
        if let Err(refusal) = node.guard.publish((&key, version, &value), now) {
            return self.violated(format!("a value of router {number} itself is refused: {key}: {refusal}"));
        }
        let newest = node.book.newest(number);
        let values = vec![KeyValue { key, value, version, status }];
        let delta = NodeDelta { id: node.raw(), last_gc_version: 0, from_version_excluded: newest, values };
        node.book.apply(number, delta);
    }

    /// Renews a lease.
    pub(crate) fn lease(&mut self, number: usize, life: u32) {
        if !self.nodes[number].up || self.nodes[number].life != life {
            return;
        }
        self.nodes[number].leases += 1;
        let counter = self.nodes[number].leases;
        self.write(number, &Key::Lease, Some(Value::Lease(Lease { counter, in_flight: 0 })));
        self.after(LEASE_RENEWAL, Event::Lease { node: number, life });
    }

    /// Speaks to a few others.
    pub(crate) fn round(&mut self, number: usize, life: u32) {
        let node = &self.nodes[number];
        if !node.up || node.life != life {
            return;
        }
        let now = self.instant();
        // As chitchat has it: by the heartbeat, which is the lease, whatever became of the connection.
        let is_alive = |who: &usize| {
            let member = node.view.members.get(&self.nodes[*who].id);
            member.is_some_and(|member| {
                member.alive || now.saturating_duration_since(member.last_seen) < LEASE_VALIDITY
            })
        };
        let known: Vec<usize> = node.book.known().filter(|who| *who != number).collect();
        let (mut alive, silent): (Vec<usize>, Vec<usize>) = known.into_iter().partition(is_alive);
        let digest = node.book.digest();
        let mut targets = Vec::with_capacity(FANOUT + 1);
        for _ in 0..FANOUT.min(alive.len()) {
            targets.push(alive.swap_remove(self.rng.random_range(0..alive.len())));
        }
        if !silent.is_empty() && (targets.is_empty() || self.rng.random_bool(0.1)) {
            targets.push(silent[self.rng.random_range(0..silent.len())]);
        }
        // Whoever knows too few goes on with routers that it was given to find the mesh by: any that are there.
        if targets.len() < FANOUT {
            let there: Vec<usize> =
                (0..self.nodes.len()).filter(|n| *n != number && self.nodes[*n].is_member()).collect();
            if !there.is_empty() {
                let seed = there[self.rng.random_range(0..there.len())];
                if !targets.contains(&seed) {
                    targets.push(seed);
                }
            }
        }
        for to in targets {
            self.send_frame(number, to, Message::Syn(digest.clone()));
        }
        let jitter = Duration::from_millis(self.rng.random_range(0..20));
        self.after(self.scenario.interval + jitter, Event::Round { node: number, life });
    }

    /// Sends a frame through the weather.
    pub(crate) fn send_frame(&mut self, from: usize, to: usize, message: Message) {
        let spoken_to = self.nodes[to].is_member() || self.is_broken(Breakage::RevokedStays);
        let may_speak = self.nodes[from].is_member() || self.is_broken(Breakage::RevokedStays);
        if !spoken_to || !may_speak {
            return;
        }
        let [first, second] = self.net.frame(from, to, &mut self.rng);
        if let Some(wait) = second {
            self.after(wait, Event::Frame { from, to, message: message.clone() });
        }
        if let Some(wait) = first {
            self.after(wait, Event::Frame { from, to, message });
        }
    }

    /// Takes a frame in and answers it.
    pub(crate) fn frame(&mut self, from: usize, to: usize, message: Message) {
        if !self.nodes[to].up || self.net.is_cut(from, to) {
            return;
        }
        if (self.nodes[to].revoked || self.nodes[from].revoked) && !self.is_broken(Breakage::RevokedStays) {
            return;
        }
        let now = self.instant().into();
        let sender = self.nodes[from].id.clone();
        self.nodes[to].guard.set_connected(&sender, true, now);
        match message {
            Message::Syn(digest) => {
                let book = &self.nodes[to].book;
                let answer = Message::SynAck(book.digest(), book.lacking(&digest));
                self.send_frame(to, from, answer);
            }
            Message::SynAck(digest, delta) => {
                self.take_delta(from, to, delta);
                let lacking = self.nodes[to].book.lacking(&digest);
                if !lacking.is_empty() {
                    self.send_frame(to, from, Message::Ack(lacking));
                }
            }
            Message::Ack(delta) => self.take_delta(from, to, delta),
        }
    }

    fn take_delta(&mut self, from: usize, to: usize, delta: Vec<NodeDelta>) {
        if delta.is_empty() {
            return;
        }
        let now = self.instant().into();
        let sender = self.nodes[from].id.clone();
        let admitted = self.nodes[to].guard.admit_frame(&sender, Frame::Ack { delta }, now);
        let Some(Frame::Ack { delta }) = admitted else { return };
        for delta in delta {
            if let Some(who) = self.numbers.get(delta.id.node_id.as_str()) {
                self.nodes[to].book.apply(*who, delta);
            }
        }
    }

    /// The ends of a connection that is still lost say so to their ledgers.
    pub(crate) fn connection_lost(&mut self, a: usize, b: usize) {
        if self.connects(a, b) {
            return;
        }
        let now = self.instant().into();
        for (one, other) in [(a, b), (b, a)] {
            let id = self.nodes[other].id.clone();
            if self.nodes[one].up {
                self.nodes[one].guard.set_connected(&id, false, now);
            }
        }
    }

    /// Looks at the clock: who is alive, what is new, what is to be told and asked.
    pub(crate) fn tick(&mut self, number: usize, life: u32) {
        if !self.nodes[number].up || self.nodes[number].life != life {
            return;
        }
        self.after(self.scenario.tick, Event::Tick { node: number, life });
        self.drop_silent_links(number);
        let now = self.instant();
        let (at, node) = (self.now, &mut self.nodes[number]);
        node.guard.tick(now.into());
        let mut changes = node.guard.refresh(&mut node.view, &mut node.revisions, now.into());
        for (owner, info) in node.forged.drain(..) {
            if let (Some(member), Ok(id)) = (node.view.members.get_mut(&owner), info.id.parse::<NodeId>()) {
                member.devices.insert(id.clone(), info);
                changes.push(Change::Device { node: owner, device: id });
            }
        }
        for change in &changes {
            match change {
                Change::Dead(id) => {
                    node.dead_since.insert(id.clone(), at);
                }
                Change::Alive(id) | Change::Forgotten(id) => {
                    node.dead_since.remove(id);
                }
                Change::Joined(id) if !node.view.members.get(id).is_some_and(|member| member.alive) => {
                    node.dead_since.insert(id.clone(), at);
                }
                Change::Joined(_)
                | Change::Info(_)
                | Change::Device { .. }
                | Change::Providers(_)
                | Change::Stats(_) => {}
            }
        }
        self.check_changes(number, &changes);
        let told = changes.iter().any(|change| !matches!(change, Change::Stats(_)));
        let lost = changes.iter().any(|change| matches!(change, Change::Dead(_)));
        if told && !(lost && self.is_broken(Breakage::DeadPicked)) {
            self.nodes[number].is_stale = true;
        }
        if self.nodes[number].is_stale {
            self.refresh(number);
        }
        self.redial(number);
        self.keep_up(number);
        self.look_again(number);
    }

    /// Dials whoever renews its lease without a connection, as the node's transport does.
    fn redial(&mut self, number: usize) {
        if self.now < self.nodes[number].redials_at {
            return;
        }
        self.nodes[number].redials_at = self.now + REDIAL_PAUSE;
        let now = self.instant().into();
        let node = &self.nodes[number];
        let away = node.view.members.values().filter(|member| !member.alive).map(|member| &member.id);
        let unreached: Vec<NodeId> = away.filter(|id| node.guard.is_unreached(id, now)).cloned().collect();
        for id in unreached {
            let Some(to) = self.numbers.get(id.as_str()).copied() else { continue };
            if self.connects(number, to) {
                let me = self.nodes[number].id.clone();
                self.nodes[number].guard.set_connected(&id, true, now);
                self.nodes[to].guard.set_connected(&me, true, now);
            }
        }
    }

    /// Builds the registry and publishes what is linked, as the node's inventory does.
    fn refresh(&mut self, number: usize) {
        let now = self.instant();
        let sums = self.is_broken(Breakage::SumLinked);
        let node = &mut self.nodes[number];
        node.is_stale = false;
        let direct: BTreeMap<_, _> =
            node.linked.values().map(|link| (link.info.id.clone(), link.info.clone())).collect();
        let mut registry = replication::registry(direct.values(), &node.view, &node.clouds);
        if sums {
            registry = Registry::new(registry.offers().iter().map(|offer| {
                let mut offer = offer.as_ref().clone();
                offer.slots *= offer.routes.len().max(1) as u32;
                offer
            }));
        }
        node.registry = registry;
        let devices = node.view.devices();
        let far = devices.iter().filter(|(id, _)| !direct.contains_key(id.as_str())).map(|(_, d)| d.info);
        for info in direct.values().chain(far) {
            let upstream = UpstreamId::Device(info.id.as_str().into());
            let version = (info.generation, info.seq);
            node.loads.report(&upstream, version, replication::requests(info), now);
        }
        let mut due = Vec::new();
        let by_id: BTreeMap<_, _> =
            direct.into_values().filter_map(|info| Some((info.id.parse().ok()?, info))).collect();
        for (id, info) in &by_id {
            if node.told.get(id) != Some(info) {
                due.push((Key::Device(id.clone()), Some(Value::Device(info.clone()))));
            }
        }
        for id in node.told.keys().filter(|id| !by_id.contains_key(*id)) {
            due.push((Key::Device(id.clone()), None));
        }
        node.told = by_id;
        for (key, value) in due {
            self.write(number, &key, value);
        }
        self.check_registry(number);
    }

    /// Publishes what was learnt, and asks who knows more.
    fn keep_up(&mut self, number: usize) {
        let (at, now, issued) = (self.now, self.instant(), self.unix_ms(number));
        let chance = self.rng.random();
        let node = &mut self.nodes[number];
        if let Some(summaries) = node.learning.publish(number, at, issued) {
            // Written before it is published, as the node does: others never know more than the disk.
            node.disk.own = node.learning.own.arms.clone();
            self.write(number, &Key::Stats, Some(Value::Stats(summaries)));
        }
        let node = &mut self.nodes[number];
        node.learning.show(at, now);
        // The next pulls are planned when the last ones have ended, as the node does.
        if node.learning.pulls > 0 {
            return;
        }
        let wanted = node.learning.plan.wanted(&node.view, &node.learning.positions, now, chance);
        if wanted.is_empty() {
            return;
        }
        let known = node.learning.known();
        let life = node.life;
        node.learning.pulls = wanted.len();
        for id in &wanted {
            let Some(to) = self.numbers.get(id.as_str()).copied() else { continue };
            if self.connects(number, to) {
                let wait = self.net.direct(number);
                self.after(wait, Event::Pull { from: number, to, life, known: known.clone() });
            } else {
                let failed = Event::Pulled { from: to, to: number, life, blobs: Vec::new(), answered: false };
                self.after(PULL_TIMEOUT, failed);
            }
        }
    }

    /// A router is asked for statistics.
    pub(crate) fn pull(&mut self, from: usize, to: usize, life: u32, known: &[(usize, u64, u64)]) {
        if !self.connects(from, to) {
            let failed = Event::Pulled { from: to, to: from, life, blobs: Vec::new(), answered: false };
            return self.after(PULL_TIMEOUT, failed);
        }
        let mut blobs = self.nodes[to].learning.newer_than(known, from);
        self.forge(to, from, &mut blobs);
        let wait = self.net.direct(to);
        self.after(wait, Event::Pulled { from: to, to: from, life, blobs, answered: true });
    }

    /// The answer is there.
    pub(crate) fn pulled(&mut self, from: usize, to: usize, life: u32, blobs: &[Arc<Blob>], answered: bool) {
        if !self.nodes[to].up || self.nodes[to].life != life {
            return;
        }
        let (now, broken) = (self.instant(), self.breakage);
        let id = self.nodes[from].id.clone();
        let node = &mut self.nodes[to];
        node.learning.pulls = node.learning.pulls.saturating_sub(1);
        for blob in blobs {
            node.learning.believe(blob, now, broken);
        }
        node.learning.plan.ended(&node.view, &node.learning.positions, &id, answered, now);
        for blob in blobs {
            self.check_testimony(to, blob);
        }
    }
}
