//! Devices: what they serve, how quick they are, and how they keep links to two routers.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use shoal_cluster::ids::NodeId;
use shoal_proto::{DeviceInfo, ModelInfo};

use crate::events::{At, Event};
use crate::node::Linked;
use crate::request::{Host, MODELS};
use crate::world::World;

/// How often a device says how it is, and looks after its links.
const ANNOUNCE_EVERY: Duration = Duration::from_millis(1_000);

/// Silence after which a router takes the link for lost, as a connection's idle time-out does.
pub(crate) const LINK_LOST: Duration = Duration::from_millis(4_500);

/// Time until an announcement is at its router.
const LINK_DELAY: Duration = Duration::from_millis(8);

/// A device.
pub(crate) struct Device {
    pub(crate) id: NodeId,
    pub(crate) name: Arc<str>,
    pub(crate) life: u32,
    pub(crate) slots: u32,
    pub(crate) models: Vec<usize>,
    pub(crate) running: u32,
    /// Milliseconds to a first piece, and between two.
    pub(crate) first_ms: f64,
    pub(crate) gap_ms: f64,
    pub(crate) slow: f64,
    /// Share of requests that fail.
    pub(crate) failing: f64,
    /// Faults that freeze it, and whether its process is gone.
    pub(crate) naps: u32,
    pub(crate) is_down: bool,
    seq: u64,
    generation: u64,
    said: Option<DeviceInfo>,
    /// Routers that it is linked to, with their lives.
    pub(crate) links: Vec<(usize, u32)>,
    wanted: usize,
}

impl Device {
    /// Draws one.
    pub(crate) fn draw(number: usize, rng: &mut StdRng) -> Self {
        let id = NodeId::from_spki(&[b"device".as_slice(), &(number as u64).to_be_bytes()].concat());
        let mut models: Vec<usize> = (0..MODELS.len()).filter(|_| rng.random_bool(0.5)).collect();
        if models.is_empty() {
            models.push(number % MODELS.len());
        }
        Self {
            name: id.as_str().into(),
            id,
            life: 0,
            slots: rng.random_range(1..=4),
            models,
            running: 0,
            first_ms: rng.random_range(30.0..600.0),
            gap_ms: rng.random_range(20.0..200.0),
            slow: 1.0,
            failing: if rng.random_bool(0.2) { 0.05 } else { 0.0 },
            naps: 0,
            is_down: false,
            seq: 0,
            generation: 1,
            said: None,
            links: Vec::new(),
            wanted: if rng.random_bool(0.6) { 2 } else { 1 },
        }
    }

    /// True when nothing gets to it or from it.
    pub(crate) fn is_silent(&self) -> bool {
        self.is_down || self.naps > 0
    }

    /// What it says of itself now; numbered anew when something is new.
    fn info(&mut self) -> DeviceInfo {
        let model = |index: &usize| ModelInfo {
            id: MODELS[*index].to_owned(),
            engine: "sim".to_owned(),
            context_length: 8_192,
            ..ModelInfo::default()
        };
        let info = DeviceInfo {
            id: self.id.to_string(),
            name: self.id.short().to_owned(),
            generation: self.generation,
            seq: self.seq,
            slots: self.slots,
            in_flight: self.running,
            models: self.models.iter().map(model).collect(),
            ..DeviceInfo::default()
        };
        if self.said.as_ref() != Some(&info) {
            self.seq += 1;
            self.said = Some(DeviceInfo { seq: self.seq, ..info });
        }
        self.said.clone().unwrap_or_default()
    }

    /// Begins a new life of its process.
    fn restart(&mut self) {
        self.life += 1;
        self.generation += 1;
        (self.seq, self.said, self.running, self.is_down) = (0, None, 0, false);
        self.links.clear();
    }
}

impl World {
    /// A device looks after its links, and says how it is.
    pub(crate) fn announce(&mut self, number: usize, life: u32) {
        if self.devices[number].life != life || self.devices[number].is_down {
            return;
        }
        let spread = Duration::from_millis(self.rng.random_range(0..100));
        self.after(ANNOUNCE_EVERY + spread, Event::Announce { device: number, life });
        if self.devices[number].is_silent() {
            return;
        }
        let gone = |nodes: &[crate::node::Node], link: &(usize, u32)| {
            !nodes[link.0].is_member() || nodes[link.0].life != link.1
        };
        let nodes = &self.nodes;
        self.devices[number].links.retain(|link| !gone(nodes, link));
        while self.devices[number].links.len() < self.devices[number].wanted {
            let linked = |n: &usize| self.devices[number].links.iter().any(|link| link.0 == *n);
            let open: Vec<usize> =
                (0..self.nodes.len()).filter(|n| self.nodes[*n].is_member() && !linked(n)).collect();
            if open.is_empty() {
                break;
            }
            let node = open[self.rng.random_range(0..open.len())];
            let link = (node, self.nodes[node].life);
            self.devices[number].links.push(link);
        }
        let info = self.devices[number].info();
        for (node, life) in self.devices[number].links.clone() {
            let told = Event::Announced { node, life, device: number, info: info.clone(), leaving: false };
            self.after(LINK_DELAY, told);
        }
    }

    /// An announcement arrives, as the node's inventory takes it: the newest counts.
    pub(crate) fn announced(
        &mut self,
        node: usize,
        life: u32,
        device: usize,
        info: DeviceInfo,
        leaving: bool,
    ) {
        let heard = self.now;
        let router = &mut self.nodes[node];
        if !router.is_member() || router.life != life {
            return;
        }
        if leaving {
            router.is_stale |= router.linked.remove(&device).is_some();
            return;
        }
        match router.linked.get_mut(&device) {
            Some(old) if (old.info.generation, old.info.seq) > (info.generation, info.seq) => {}
            Some(old) => {
                router.is_stale |= old.info != info;
                *old = Linked { info, heard };
            }
            None => {
                router.linked.insert(device, Linked { info, heard });
                router.is_stale = true;
            }
        }
    }

    /// A device goes to other routers, and tells those that it leaves.
    pub(crate) fn move_device(&mut self, number: usize) {
        if self.devices[number].is_silent() {
            return;
        }
        let info = self.devices[number].info();
        for (node, life) in std::mem::take(&mut self.devices[number].links) {
            let told = Event::Announced { node, life, device: number, info: info.clone(), leaving: true };
            self.after(LINK_DELAY, told);
        }
    }

    /// A device's process dies with everything that it runs.
    pub(crate) fn crash_device(&mut self, number: usize) {
        self.devices[number].is_down = true;
        self.devices[number].running = 0;
        let lost: Vec<u64> = self.runs_of(Host::Device(number));
        for run in lost {
            self.end_run(run);
        }
    }

    /// It starts again.
    pub(crate) fn restart_device(&mut self, number: usize) {
        if !self.devices[number].is_down {
            return;
        }
        self.devices[number].restart();
        let life = self.devices[number].life;
        self.after(Duration::from_millis(300), Event::Announce { device: number, life });
    }

    /// How long a piece is under way between a router and one of its hosts.
    pub(crate) fn link_delay(&self, host: Host) -> Duration {
        match host {
            Host::Device(_) => LINK_DELAY,
            Host::Provider(_) => LINK_DELAY * 5,
        }
    }

    /// When a router heard last of a device, if it holds a link.
    pub(crate) fn drop_silent_links(&mut self, node: usize) {
        let now: At = self.now;
        let router = &mut self.nodes[node];
        let before = router.linked.len();
        router.linked.retain(|_, link| now - link.heard < LINK_LOST);
        router.is_stale |= router.linked.len() != before;
    }
}
