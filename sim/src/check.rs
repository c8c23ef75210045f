//! What must hold, all the time and at the end. The checker keeps books of its own; it asks the parts under test only
//! for what they show to others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shoal_cluster::gossip::frame::NodeDelta;
use shoal_cluster::ids::NodeId;
use shoal_cluster::keyspace::{Key, Value};
use shoal_cluster::{Change, ClusterView};
use shoal_routing::{DataClass, MAX_ATTEMPTS, MAX_HOPS, Mode, Route, UpstreamId};

use crate::breakage::Breakage;
use crate::events::Blob;
use crate::node::Spending;
use crate::request::PROVIDERS;
use crate::world::World;

/// How long a router that is gone may count as alive: a lease, and its way through the mesh.
const GONE_AFTER: Duration = Duration::from_secs(7);

/// How long a router may still be picked after this one took it for dead.
const PICKED_AFTER: Duration = Duration::from_millis(1_500);

/// Share of a fifth of the requests under way that retries may be, and retries that are always allowed.
const RETRY_SHARE: u32 = 5;
const RETRIES_ALWAYS: u32 = 3;

/// Tokens of a full bucket of retries, and what a retry after a fault, or a refusal, takes of it.
const BUCKET: u64 = 500;
const RETRY_COST: [u64; 2] = [14, 5];

/// How far totals may differ, relatively.
const EQUAL: f64 = 1e-4;

/// Longest time that a breaker may keep a host away, with jitter.
const BREAKER: Duration = Duration::from_secs(76);

/// What the routers truly wrote, and what each reader has seen of it.
#[derive(Default)]
pub(crate) struct Truth {
    /// Sequence numbers of each value, by writer, start number, key and value.
    written: BTreeMap<(usize, u64, u64, u64), Vec<u64>>,
    /// The last that each life of a reader saw of a writer's key: start number and sequence.
    seen: BTreeMap<(usize, u32, usize, u64), (u64, u64)>,
    /// What a hostile router recorded.
    pub(crate) recorded: BTreeMap<usize, NodeDelta>,
    /// The same of testimonies.
    pub(crate) old_blobs: BTreeMap<usize, Arc<Blob>>,
}

impl Truth {
    /// Notes what a router writes.
    pub(crate) fn published(
        &mut self,
        who: usize,
        generation: u64,
        key: &Key,
        seq: u64,
        value: Option<&Value>,
    ) {
        if let Some(value) = value
            && *key != Key::Lease
        {
            let value = (who, generation, hash(key.to_string().as_bytes()), hash(&value.encode()));
            self.written.entry(value).or_default().push(seq);
        }
    }
}

fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

impl World {
    /// I6 and the order of values: what a view shows was written by its owner, and never goes back.
    pub(crate) fn check_changes(&mut self, reader: usize, changes: &[Change]) {
        // Taken out, so that the checker may write while it reads.
        let nobody = ClusterView::empty(self.nodes[reader].id.clone());
        let view = std::mem::replace(&mut self.nodes[reader].view, nobody);
        self.check_changed(reader, &view, changes);
        self.nodes[reader].view = view;
    }

    fn check_changed(&mut self, reader: usize, view: &ClusterView, changes: &[Change]) {
        for change in changes {
            let (id, values) = match change {
                Change::Info(id) | Change::Joined(id) => {
                    let info = view.members.get(id).map(|member| Value::Node(member.info.clone()));
                    (id, info.into_iter().collect())
                }
                Change::Device { node, device } => {
                    let info = view.members.get(node).and_then(|member| member.devices.get(device));
                    (node, info.map(|info| Value::Device(info.clone())).into_iter().collect())
                }
                Change::Stats(id) => {
                    let stats = view.members.get(id).and_then(|member| member.stats.clone());
                    (id, stats.map(Value::Stats).into_iter().collect())
                }
                Change::Providers(id) => {
                    let member = view.members.get(id);
                    let known = member.into_iter().flat_map(|member| member.providers.values());
                    (id, known.map(|info| Value::Provider(info.clone())).collect::<Vec<_>>())
                }
                Change::Alive(_) | Change::Dead(_) | Change::Forgotten(_) => continue,
            };
            for value in values {
                self.check_value(reader, view, id, &value);
            }
        }
    }

    fn check_value(&mut self, reader: usize, view: &ClusterView, owner: &NodeId, value: &Value) {
        let (Some(who), Some(member)) = (self.numbers.get(owner.as_str()), view.members.get(owner)) else {
            return self.violated(format!("I6: router {reader} knows a router that never was: {owner}"));
        };
        let who = *who;
        let key = value.key().map(|key| hash(key.to_string().as_bytes())).unwrap_or_default();
        let written = (who, member.generation, key, hash(&value.encode()));
        let generation = member.generation;
        let Some(written) = self.truth.written.get(&written) else {
            return self.violated(format!(
                "I6: router {reader} holds a value of router {who} that it never wrote: {value:?}"
            ));
        };
        let place = (reader, self.nodes[reader].life, who, key);
        let last = self.truth.seen.get(&place).copied().unwrap_or_default();
        // A value that was written twice may be the later one.
        let newer = written.iter().map(|seq| (generation, *seq)).find(|position| *position >= last);
        if let Some(position) = newer {
            self.truth.seen.insert(place, position);
        } else {
            self.violated(format!("router {reader} goes back to an older value of router {who}: {value:?}"));
        }
    }

    /// The same for a testimony that was offered: what is held was signed by its origin.
    pub(crate) fn check_testimony(&mut self, reader: usize, offered: &Blob) {
        let learning = &self.nodes[reader].learning;
        let held = learning.blobs.get(&offered.origin);
        let foreign = held.is_some_and(|held| held.signer != held.origin);
        let held = learning.evidence.of(&offered.blob.origin);
        let (life, who) = (self.nodes[reader].life, offered.origin);
        let position = held.map(|held| (held.generation, held.version));
        if foreign {
            self.violated(format!("I6: router {reader} believes what another signed for router {who}"));
        }
        if let Some(position) = position {
            let last = self.truth.seen.insert((reader, life, who, u64::MAX), position);
            if last.is_some_and(|last| last > position) {
                self.violated(format!("router {reader} goes back to an older testimony of router {who}"));
            }
        }
    }

    /// Capacity is never summed.
    pub(crate) fn check_registry(&mut self, node: usize) {
        let too_many = self.nodes[node].registry.offers().iter().find_map(|offer| {
            let UpstreamId::Device(name) = &offer.upstream else { return None };
            let device = self.device_numbers.get(name)?;
            (offer.slots > self.devices[*device].slots).then_some((*device, offer.slots))
        });
        if let Some((device, slots)) = too_many {
            let has = self.devices[device].slots;
            self.violated(format!("router {node} counts {slots} slots of device {device}, which has {has}"));
        }
    }

    /// I3, I7 and dead picks: what is about to be sent may be sent.
    pub(crate) fn check_send(&mut self, id: u64) {
        let Some(job) = self.jobs.get(&id) else { return };
        let Some(attempt) = &job.attempt else { return };
        let (node, offer) = (job.node, &attempt.choice.offer);
        // The client's own words, not what a router made of them.
        let asked = &self.clients[job.client].request;
        if offer.is_cloud() {
            let fit = PROVIDERS.iter().position(|name| **name == **offer.upstream.name()) == Some(0);
            let may = match asked.data_class {
                DataClass::Restricted => false,
                DataClass::Internal => fit,
                DataClass::Public => true,
            };
            if !may || asked.effective_mode() == Mode::Local {
                let class = asked.data_class;
                return self
                    .violated(format!("I3: router {node} sends a {class} request to {}", offer.upstream));
            }
        }
        if job.made > MAX_ATTEMPTS {
            return self.violated(format!("I7: attempt {} of a request at router {node}", job.made));
        }
        if job.hop + 1 > MAX_HOPS || (job.hop > 0 && attempt.choice.route != Route::Direct) {
            return self.violated(format!("I7: a request takes hop {} from router {node}", job.hop + 1));
        }
        if let Route::Via(name) = &attempt.choice.route
            && let Some(to) = self.numbers.get(name)
        {
            let to = *to;
            let known_dead = self.nodes[node].dead_since.get(&self.nodes[to].id).copied();
            let truly = &self.nodes[to];
            let gone = !truly.is_member() && self.now - truly.since > GONE_AFTER + PICKED_AFTER;
            let since_paths = self.now - self.paths_changed > GONE_AFTER + PICKED_AFTER;
            if known_dead.is_some_and(|since| self.now - since > PICKED_AFTER) {
                self.violated(format!("router {node} picks router {to}, which it takes for dead"));
            } else if gone && since_paths {
                self.violated(format!("I9: router {node} picks router {to}, which is gone"));
            }
        }
    }

    /// I7, of all routers together.
    pub(crate) fn check_sends(&mut self, client: usize) {
        let sends = self.clients[client].sends;
        if sends > MAX_ATTEMPTS {
            self.violated(format!("I7: request {client} reaches hosts {sends} times"));
        }
    }

    /// Retries stay within their budget.
    pub(crate) fn check_retries(&mut self, node: usize) {
        let tally = self.nodes[node].tally;
        let most = (tally.active / RETRY_SHARE).max(RETRIES_ALWAYS);
        if tally.retrying > most {
            let of = tally.active;
            self.violated(format!("I7: {} retries of {of} requests at router {node}", tally.retrying));
        }
        for Spending { retries, deposits } in tally.budgets {
            for (kind, retries) in retries.into_iter().enumerate() {
                if retries * RETRY_COST[kind] > BUCKET + deposits {
                    self.violated(format!("I7: {retries} retries of kind {kind} at router {node}"));
                }
            }
        }
    }

    /// I4: neither books nor bills exceed a purse, and no bill the books.
    pub(crate) fn check_purse(&mut self, node: usize, provider: usize) {
        let Some(purse) = self.nodes[node].disk.purses.get(&provider) else { return };
        if purse.booked > purse.limit || purse.billed > purse.booked {
            let what = format!("I4: purse {provider} of router {node}: {purse:?}");
            self.violated(what);
        }
    }

    /// I2: a piece belongs to the answer that was begun, and is the next one.
    pub(crate) fn client_piece(&mut self, client: usize, source: u64, number: u32) {
        let known = &mut self.clients[client];
        let begun = *known.source.get_or_insert(source);
        if begun != source || known.next_piece != number || known.ends > 0 {
            let (expected, ends) = (known.next_piece, known.ends);
            return self.violated(format!(
                "I2: request {client} gets piece {number} of run {source}, expects {expected} of {begun}, ends {ends}"
            ));
        }
        known.next_piece += 1;
    }

    /// I2: a whole answer is whole.
    pub(crate) fn client_end(&mut self, client: usize, source: u64, pieces: u32) {
        let known = &self.clients[client];
        if known.request.stream && (known.source != Some(source) || known.next_piece != pieces) {
            let got = known.next_piece;
            return self.violated(format!("I2: request {client} ends clean with {got} of {pieces} pieces"));
        }
        if known.source.is_some_and(|begun| begun != source) {
            return self.violated(format!("I2: request {client} is spliced"));
        }
        self.end_client(client, "completed");
        if self.is_broken(Breakage::EndTwice) && client % 50 == 49 {
            self.end_client(client, "completed");
        }
    }

    /// I1: a request ends once.
    pub(crate) fn end_client(&mut self, client: usize, how: &'static str) {
        self.clients[client].ends += 1;
        self.clients[client].ended_at = self.now;
        self.trace.note(self.now, how, client, u64::from(self.clients[client].ends));
        if self.clients[client].ends > 1 {
            self.violated(format!("I1: request {client} ends again: {how}"));
        }
    }

    /// What must hold at any moment: nobody who is long gone counts as alive.
    pub(crate) fn check(&mut self) {
        if self.now - self.paths_changed < GONE_AFTER {
            return;
        }
        for gone in 0..self.nodes.len() {
            if self.nodes[gone].is_member() || self.now - self.nodes[gone].since < GONE_AFTER {
                continue;
            }
            let id = self.nodes[gone].id.clone();
            let believes = |node: &crate::node::Node| {
                node.is_member() && node.view.members.get(&id).is_some_and(|member| member.alive)
            };
            if let Some(reader) = self.nodes.iter().position(believes) {
                let word = if self.nodes[gone].revoked { "I9: a revoked" } else { "a dead" };
                return self.violated(format!("{word} router {gone} is alive to router {reader}"));
            }
        }
    }

    /// What must hold when all is quiet again.
    pub(crate) fn check_end(&mut self) {
        if let Some(client) = (0..self.clients.len()).find(|client| self.clients[*client].ends != 1) {
            let (ends, node) = (self.clients[client].ends, self.clients[client].node);
            return self.violated(format!("I1: request {client} at router {node} ended {ends} times"));
        }
        if let Some((id, job)) = self.jobs.first_key_value() {
            let what = format!("I5: job {id} at router {} goes on though its request ended", job.node);
            return self.violated(what);
        }
        if let Some((id, run)) = self.runs.first_key_value() {
            return self.violated(format!("I5: run {id} on {:?} goes on", run.host));
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].is_member() {
                self.check_idle(node);
                self.check_views(node);
            }
        }
        self.check_totals();
    }

    /// I5, and breakers that would never ask again.
    fn check_idle(&mut self, node: usize) {
        let (now, later) = (self.instant(), self.instant() + BREAKER);
        let router = &self.nodes[node];
        let devices = self.devices.iter().map(|device| UpstreamId::Device(device.name.clone()));
        let providers = PROVIDERS.iter().map(|name| UpstreamId::Provider((*name).into()));
        let busy = devices.chain(providers).find(|upstream| router.loads.in_flight(upstream) > 0);
        let stuck = router.registry.offers().iter().find(|offer| {
            let load = router.loads.load(&offer.upstream, &offer.model.id, now);
            let asks = router.loads.load(&offer.upstream, &offer.model.id, later).admits;
            !asks || (load.breaker == "half_open" && !load.admits)
        });
        let waits = router.lines.values().map(|queue| queue.line.len()).sum::<usize>();
        let tally = router.tally;
        if let Some(upstream) = busy {
            let count = router.loads.in_flight(&upstream);
            self.violated(format!(
                "I5: router {node} counts {count} requests on {upstream}, and none is there"
            ));
        } else if let Some(offer) = stuck {
            let what = format!("the breaker of {} at router {node} is stuck", offer.upstream);
            self.violated(what);
        } else if waits > 0 || tally.active > 0 || tally.retrying > 0 {
            self.violated(format!("I5: {waits} wait at router {node}, {tally:?}"));
        }
    }

    /// Live sets and newest values are the same everywhere.
    fn check_views(&mut self, reader: usize) {
        for owner in 0..self.nodes.len() {
            let (there, known) = (&self.nodes[owner], &self.nodes[reader]);
            let member = known.view.members.get(&there.id);
            if !there.is_member() {
                if member.is_some_and(|member| member.alive) {
                    return self.violated(format!("router {owner} is gone and alive to router {reader}"));
                }
                continue;
            }
            let Some(member) = member.filter(|member| member.alive) else {
                return self.violated(format!("router {owner} is alive, and not so to router {reader}"));
            };
            if self.scenario.hostile == Some(owner) {
                continue;
            }
            if member.generation != there.origin.generation || member.devices != there.told {
                let what = format!(
                    "router {reader} holds old devices of router {owner}: {:?} for {:?}",
                    member.devices, there.told
                );
                return self.violated(what);
            }
            let own = there.view.members.get(&there.id).and_then(|own| own.stats.as_ref());
            if member.stats.as_ref() != own {
                return self
                    .violated(format!("router {reader} holds old statistics' news of router {owner}"));
            }
        }
    }

    /// Totals over those who are there are the same everywhere.
    fn check_totals(&mut self) {
        let live: Vec<usize> = (0..self.nodes.len()).filter(|n| self.nodes[*n].is_member()).collect();
        let honest = |n: &&usize| self.scenario.hostile != Some(**n);
        let totals = |reader: usize| {
            let mut sums: BTreeMap<&str, [f64; 4]> = BTreeMap::new();
            for origin in live.iter().filter(honest) {
                let Some(said) = self.nodes[reader].learning.evidence.of(&self.nodes[*origin].name) else {
                    continue;
                };
                for (arm, evidence) in &said.arms {
                    let s = &evidence.stats;
                    let sum = sums.entry(arm.as_str()).or_default();
                    let parts = [s.count as f64, s.failures as f64, s.reward_sum, s.ttft_ms_sum];
                    sum.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
                }
            }
            sums
        };
        let mut truth: BTreeMap<&str, f64> = BTreeMap::new();
        for origin in live.iter().filter(honest) {
            for (arm, count) in &self.nodes[*origin].learned {
                *truth.entry(arm.as_str()).or_default() += *count as f64;
            }
        }
        let mut bad = None;
        let Some(first) = live.first().map(|first| totals(*first)) else { return };
        for reader in &live {
            let own = totals(*reader);
            let near = |a: f64, b: f64| (a - b).abs() <= EQUAL * a.abs().max(b.abs()).max(1.0);
            let same = own.len() == first.len()
                && own
                    .iter()
                    .zip(&first)
                    .all(|(a, b)| a.0 == b.0 && a.1.iter().zip(b.1).all(|(a, b)| near(*a, *b)));
            let counted =
                truth.iter().all(|(arm, count)| near(own.get(arm).map_or(0.0, |sum| sum[0]), *count));
            if !same || !counted {
                bad = Some(format!(
                    "totals of router {reader}: {own:?}, of another: {first:?}, truly {truth:?}"
                ));
                break;
            }
        }
        if let Some(what) = bad {
            self.violated(what);
        }
    }
}
