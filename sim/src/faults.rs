//! The faults of a scenario, begun and ended.

use std::time::Duration;

use rand::RngExt;

use crate::events::Event;
use crate::scenario::{Back, Fault};
use crate::world::World;

/// When the ends of a lost connection notice it.
const NOTICED_FROM_MS: u64 = 1_500;
const NOTICED_TO_MS: u64 = 5_000;

/// Pieces of a device that flaps: silence and answer, each this long.
const FLAP: Duration = Duration::from_millis(1_500);

impl World {
    /// A fault begins.
    pub(crate) fn fault(&mut self, index: usize) {
        let trouble = self.scenario.faults[index].clone();
        self.trace.note(self.now, "fault", index, trouble.lasts.as_millis() as u64);
        let mut lasts = trouble.lasts;
        match trouble.fault {
            Fault::Crash { node, .. } => self.crash(node),
            Fault::Partition { ref left, one_way } => {
                let others: Vec<usize> = (0..self.scenario.nodes).filter(|n| !left.contains(n)).collect();
                for a in left {
                    for b in &others {
                        self.cut(*a, *b, one_way);
                    }
                }
            }
            Fault::Cut { a, b, one_way } if a != b => self.cut(a, b, one_way),
            Fault::Cut { .. } => {}
            Fault::Storm { loss } => {
                self.storms.push((index, loss));
                self.blow();
            }
            Fault::SlowNode { node, by } => self.net.set_slow(node, Some(by)),
            Fault::ClockJump { node, by_ms } => self.nodes[node].clock_ms += by_ms,
            Fault::Revoke { node } => self.revoke(node),
            Fault::Drain { node } => self.set_draining(node, true),
            Fault::Nap { device } => self.devices[device].naps += 1,
            Fault::Flap { device } => {
                self.devices[device].naps += 1;
                lasts = lasts.min(FLAP);
            }
            Fault::DeviceCrash { device } => self.crash_device(device),
            Fault::Move { device } => self.move_device(device),
            Fault::SlowDevice { device, times } => self.devices[device].slow *= times,
            Fault::Faulty { device, share } => self.devices[device].failing = share,
            Fault::ProviderOut { provider } => self.providers_out[provider] += 1,
        }
        self.after(lasts, Event::Mend { index });
    }

    /// A fault ends.
    pub(crate) fn mend(&mut self, index: usize) {
        let trouble = self.scenario.faults[index].clone();
        self.trace.note(self.now, "mends", index, 0);
        match trouble.fault {
            Fault::Crash { node, back } => self.come_back(node, back),
            Fault::Partition { ref left, one_way } => {
                let others: Vec<usize> = (0..self.scenario.nodes).filter(|n| !left.contains(n)).collect();
                for a in left {
                    for b in &others {
                        self.mend_path(*a, *b, one_way);
                    }
                }
            }
            Fault::Cut { a, b, one_way } if a != b => self.mend_path(a, b, one_way),
            Fault::Storm { .. } => {
                self.storms.retain(|(other, _)| *other != index);
                self.blow();
            }
            Fault::SlowNode { node, .. } => self.net.set_slow(node, None),
            Fault::Drain { node } => self.set_draining(node, false),
            Fault::Nap { device } => self.devices[device].naps -= 1,
            Fault::Flap { device } => {
                self.devices[device].naps -= 1;
                if self.now < trouble.at + trouble.lasts {
                    self.after(FLAP, Event::Fault { index });
                }
            }
            Fault::DeviceCrash { device } => self.restart_device(device),
            Fault::SlowDevice { device, times } => self.devices[device].slow /= times,
            Fault::Faulty { device, .. } => self.devices[device].failing = 0.0,
            Fault::ProviderOut { provider } => self.providers_out[provider] -= 1,
            Fault::Cut { .. } | Fault::ClockJump { .. } | Fault::Revoke { .. } | Fault::Move { .. } => {}
        }
    }

    fn cut(&mut self, a: usize, b: usize, one_way: bool) {
        self.net.cut(a, b);
        if !one_way {
            self.net.cut(b, a);
        }
        self.paths_changed = self.now;
        self.lose_connection(a, b);
    }

    fn mend_path(&mut self, a: usize, b: usize, one_way: bool) {
        self.net.mend(a, b);
        if !one_way {
            self.net.mend(b, a);
        }
        self.paths_changed = self.now;
    }

    fn lose_connection(&mut self, a: usize, b: usize) {
        let wait = Duration::from_millis(self.rng.random_range(NOTICED_FROM_MS..NOTICED_TO_MS));
        self.after(wait, Event::ConnectionLost { a, b });
    }

    fn blow(&mut self) {
        let loss = self.storms.iter().map(|(_, loss)| *loss).fold(0.0, f64::max);
        self.net.set_storm(loss);
        self.paths_changed = self.now;
    }

    /// A router's process dies, and with it everything that it held in memory.
    fn crash(&mut self, node: usize) {
        if !self.nodes[node].up {
            return;
        }
        self.trace.note(self.now, "dies", node, 0);
        let held: Vec<u64> =
            self.jobs.iter().filter(|(_, job)| job.node == node).map(|(id, _)| *id).collect();
        self.nodes[node].up = false;
        self.nodes[node].since = self.now;
        for id in held {
            let Some(job) = self.jobs.get(&id) else { continue };
            let (client, parent) = (job.client, job.parent);
            self.forget_to_settle(id);
            self.abandon(id);
            if parent.is_none() {
                self.end_client(client, "router died");
            }
        }
        for other in 0..self.nodes.len() {
            if other != node && self.nodes[other].up {
                self.lose_connection(node, other);
            }
        }
    }

    fn come_back(&mut self, node: usize, back: Back) {
        if self.nodes[node].up {
            return;
        }
        match back {
            Back::WithData if !self.nodes[node].revoked => self.start_node(node),
            Back::Without => {
                let number = self.add_node();
                self.start_node(number);
            }
            Back::WithData | Back::Never => {}
        }
    }

    fn revoke(&mut self, node: usize) {
        if node == 0 || self.nodes[node].revoked {
            return;
        }
        self.nodes[node].revoked = true;
        self.nodes[node].since = self.now;
        let keys = self.nodes[node].keys.clone();
        self.authority.revoke(&keys);
        for other in 0..self.nodes.len() {
            if other != node && self.nodes[other].up {
                self.lose_connection(node, other);
            }
        }
    }

    fn set_draining(&mut self, node: usize, draining: bool) {
        self.nodes[node].draining = draining;
        if self.nodes[node].up {
            self.publish_info(node);
        }
    }
}
