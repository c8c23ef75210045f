//! Who has which address, read from the view: what the transport asks of the gossip.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use crate::ids::NodeId;
use crate::quic::{Directory, RouterAddr};
use crate::view::{ClusterView, Member};

/// Addresses of one router that are told to devices and joiners; more would be tried one by one.
const ADDRS_TOLD: usize = 3;

/// The directory of a router: its view, and what it knows without one.
pub(crate) struct MeshDirectory {
    me: NodeId,
    name: String,
    holds_root: bool,
    advertised: Vec<SocketAddr>,
    seeds: Vec<RouterAddr>,
    view: watch::Receiver<Arc<ClusterView>>,
}

impl MeshDirectory {
    pub(crate) fn new(
        me: NodeId,
        name: String,
        holds_root: bool,
        advertised: Vec<SocketAddr>,
        seeds: Vec<RouterAddr>,
        view: watch::Receiver<Arc<ClusterView>>,
    ) -> Self {
        Self { me, name, holds_root, advertised, seeds, view }
    }

    pub(crate) fn advertised(&self) -> &[SocketAddr] {
        &self.advertised
    }

    fn view(&self) -> Arc<ClusterView> {
        self.view.borrow().clone()
    }
}

fn mesh_addrs(member: &Member) -> impl Iterator<Item = SocketAddr> + '_ {
    member.info.mesh_addrs.iter().filter_map(|text| text.parse().ok())
}

impl Directory for MeshDirectory {
    fn addrs(&self, id: &NodeId) -> Vec<SocketAddr> {
        let view = self.view();
        let mut addrs: Vec<_> = view.members.get(id).map(|m| mesh_addrs(m).collect()).unwrap_or_default();
        for seed in self.seeds.iter().filter(|seed| seed.id == *id) {
            if !addrs.contains(&seed.addr) {
                addrs.push(seed.addr);
            }
        }
        addrs
    }

    fn routers(&self) -> Vec<RouterAddr> {
        let told = |id: &NodeId, addr| RouterAddr { id: id.clone(), addr };
        let mine = self.advertised.iter().take(ADDRS_TOLD).map(|addr| told(&self.me, *addr));
        let view = self.view();
        let others = view.alive().filter(|member| member.id != self.me);
        let others = others.flat_map(|m| mesh_addrs(m).take(ADDRS_TOLD).map(|addr| told(&m.id, addr)));
        mine.chain(others).collect()
    }

    fn root_holder(&self) -> Option<NodeId> {
        if self.holds_root {
            return Some(self.me.clone());
        }
        let view = self.view();
        let holders = view.members.values().filter(|member| member.info.holds_root);
        holders.max_by_key(|member| member.alive).map(|member| member.id.clone())
    }

    fn display_name(&self, id: &NodeId) -> Option<String> {
        if *id == self.me {
            return Some(self.name.clone());
        }
        let view = self.view();
        let member = view.members.get(id).map(|member| member.info.name.clone());
        let device = || view.devices().get(id).map(|device| device.info.name.clone());
        member.or_else(device)
    }
}
