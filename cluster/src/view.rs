//! What a router believes about its mesh: an immutable snapshot, and the difference between two of them.
//!
//! Pure. Everything in a [`ClusterView`] was signed by its owner and verified; how it came to be known is the
//! business of [`crate::gossip`]. A device that is linked to several routers appears under each of them;
//! [`ClusterView::devices`] merges these into one.

use std::collections::BTreeMap;
use std::time::Instant;

use shoal_proto::{ArmSummaries, DeviceInfo, NodeInfo, ProviderInfo};

use crate::ids::NodeId;

/// Snapshot of the mesh as one router sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterView {
    /// The router that sees.
    pub me: NodeId,
    /// All routers heard of lately, this one included, dead ones for a quarter of an hour.
    pub members: BTreeMap<NodeId, Member>,
}

/// A router of the mesh.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Its id.
    pub id: NodeId,
    /// What it says of itself.
    pub info: NodeInfo,
    /// Devices that are linked to it.
    pub devices: BTreeMap<NodeId, DeviceInfo>,
    /// Cloud providers that it has keys for, by name.
    pub providers: BTreeMap<String, ProviderInfo>,
    /// What it has learnt; `None` until it published something.
    pub stats: Option<ArmSummaries>,
    /// True while its lease is renewed and, where this router is connected to it, the connection lives.
    pub alive: bool,
    /// When its last new lease arrived here.
    pub last_seen: Instant,
    /// Its start number.
    pub generation: u64,
}

/// One difference between two views.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A router is known that was not before.
    Joined(NodeId),
    /// A router has been silent for so long that it is forgotten.
    Forgotten(NodeId),
    /// A router is alive (again).
    Alive(NodeId),
    /// A router is no longer alive.
    Dead(NodeId),
    /// A router has restarted or says something else of itself.
    Info(NodeId),
    /// A device appeared under a router, changed, or went.
    Device {
        /// The router.
        node: NodeId,
        /// The device.
        device: NodeId,
    },
    /// A router has other providers than before, or says something else of one.
    Providers(NodeId),
    /// A router published other statistics.
    Stats(NodeId),
}

/// A device as the whole mesh knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct MeshDevice<'a> {
    /// The newest announcement, by the device's start number and sequence.
    pub info: &'a DeviceInfo,
    /// Live routers that it is linked to, in order of id.
    pub routers: Vec<&'a NodeId>,
}

impl ClusterView {
    /// Returns a view that holds nobody.
    pub fn empty(me: NodeId) -> Self {
        Self { me, members: BTreeMap::new() }
    }

    /// Returns the live routers, this one included.
    pub fn alive(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| member.alive)
    }

    /// Returns the devices of live routers, each once: newest announcement wins, capacity is never summed.
    pub fn devices(&self) -> BTreeMap<&NodeId, MeshDevice<'_>> {
        let mut merged: BTreeMap<&NodeId, MeshDevice<'_>> = BTreeMap::new();
        for member in self.alive() {
            for (id, info) in &member.devices {
                let device = merged.entry(id).or_insert(MeshDevice { info, routers: Vec::new() });
                device.routers.push(&member.id);
                if (info.generation, info.seq) > (device.info.generation, device.info.seq) {
                    device.info = info;
                }
            }
        }
        merged
    }

    /// Returns what is different in `newer`, in order of router id. When a router was last seen is no difference.
    pub fn changes(&self, newer: &ClusterView) -> Vec<Change> {
        let mut changes = Vec::new();
        for id in self.members.keys().filter(|id| !newer.members.contains_key(*id)) {
            changes.push(Change::Forgotten(id.clone()));
        }
        for (id, new) in &newer.members {
            match self.members.get(id) {
                Some(old) => old.push_changes(new, &mut changes),
                None => new.push_all(&mut changes),
            }
        }
        changes
    }
}

impl Member {
    /// Says that a router is there that was not before.
    pub(crate) fn push_all(&self, changes: &mut Vec<Change>) {
        let id = &self.id;
        changes.push(Change::Joined(id.clone()));
        if self.alive {
            changes.push(Change::Alive(id.clone()));
        }
        for device in self.devices.keys() {
            changes.push(Change::Device { node: id.clone(), device: device.clone() });
        }
        if !self.providers.is_empty() {
            changes.push(Change::Providers(id.clone()));
        }
        if self.stats.is_some() {
            changes.push(Change::Stats(id.clone()));
        }
    }

    /// Says whether the router is alive from now on, if it was not so before.
    pub(crate) fn push_alive(&self, alive: bool, changes: &mut Vec<Change>) {
        match (self.alive, alive) {
            (false, true) => changes.push(Change::Alive(self.id.clone())),
            (true, false) => changes.push(Change::Dead(self.id.clone())),
            (true, true) | (false, false) => {}
        }
    }

    /// Says what is different in a newer state.
    pub(crate) fn push_changes(&self, new: &Member, changes: &mut Vec<Change>) {
        self.push_alive(new.alive, changes);
        if self.info != new.info || self.generation != new.generation {
            changes.push(Change::Info(self.id.clone()));
        }
        let gone = self.devices.keys().filter(|id| !new.devices.contains_key(*id));
        let other =
            new.devices.iter().filter(|(id, info)| self.devices.get(*id) != Some(*info)).map(|(id, _)| id);
        for device in gone.chain(other) {
            changes.push(Change::Device { node: self.id.clone(), device: device.clone() });
        }
        if self.providers != new.providers {
            changes.push(Change::Providers(self.id.clone()));
        }
        if self.stats != new.stats {
            changes.push(Change::Stats(self.id.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::from_spki(name.as_bytes())
    }

    fn member(name: &str, devices: &[(&str, u64)]) -> Member {
        let devices = devices.iter().map(|(device, seq)| {
            let device = id(device);
            (
                device.clone(),
                DeviceInfo { id: device.to_string(), seq: *seq, slots: 2, ..DeviceInfo::default() },
            )
        });
        Member {
            id: id(name),
            info: NodeInfo { name: name.to_owned(), ..NodeInfo::default() },
            devices: devices.collect(),
            providers: BTreeMap::new(),
            stats: None,
            alive: true,
            last_seen: Instant::now(),
            generation: 1,
        }
    }

    fn view(members: Vec<Member>) -> ClusterView {
        ClusterView { me: id("a"), members: members.into_iter().map(|m| (m.id.clone(), m)).collect() }
    }

    #[test]
    fn a_device_with_two_links_is_one_device() {
        let view = view(vec![member("a", &[("d", 4)]), member("b", &[("d", 9), ("e", 1)])]);
        let devices = view.devices();
        assert_eq!(devices.len(), 2);
        let device = &devices[&id("d")];
        assert_eq!((device.info.seq, device.info.slots, device.routers.len()), (9, 2, 2));
    }

    #[test]
    fn devices_of_a_dead_router_are_not_counted() {
        let mut dead = member("b", &[("d", 9)]);
        dead.alive = false;
        assert!(view(vec![member("a", &[]), dead]).devices().is_empty());
    }

    #[test]
    fn each_kind_of_change_is_told() {
        let old = view(vec![member("a", &[("d", 1)]), member("b", &[])]);
        assert_eq!(old.changes(&old.clone()), vec![]);
        let mut a = member("a", &[("e", 1)]);
        a.info.draining = true;
        a.alive = false;
        a.stats = Some(ArmSummaries::default());
        a.providers.insert("openai".into(), ProviderInfo::default());
        let new = view(vec![a, member("c", &[("f", 1)])]);
        let changes = old.changes(&new);
        let device = |node: &str, device: &str| Change::Device { node: id(node), device: id(device) };
        for expected in [
            Change::Forgotten(id("b")),
            Change::Dead(id("a")),
            Change::Info(id("a")),
            Change::Stats(id("a")),
            Change::Providers(id("a")),
            device("a", "d"),
            device("a", "e"),
            Change::Joined(id("c")),
            Change::Alive(id("c")),
            device("c", "f"),
        ] {
            assert!(changes.contains(&expected), "{expected:?} in {changes:?}");
        }
        assert_eq!(changes.len(), 10);
    }

    #[test]
    fn being_seen_again_is_no_change() {
        let old = view(vec![member("a", &[])]);
        let mut again = old.clone();
        again.members.values_mut().for_each(|m| m.last_seen = Instant::now());
        assert_eq!(old.changes(&again), vec![]);
    }
}
