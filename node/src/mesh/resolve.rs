//! From an offer and a route to something that can be called.

use std::sync::Arc;

use shoal_cluster::Handle;
use shoal_cluster::ids::{NodeId, Peer, Role};
use shoal_routing::{Offer, Route, UpstreamId};

use crate::pipeline::Resolve;
use crate::upstream::BoxUpstream;
use crate::upstream::tunnel::Tunnel;

/// Resolves offers of this node's own engines, linked devices and other routers' devices.
pub struct MeshResolver {
    me: Arc<str>,
    own: BoxUpstream,
    mesh: Handle,
}

impl MeshResolver {
    /// `own` runs inference on this node's own engines.
    pub fn new(me: &NodeId, own: BoxUpstream, mesh: Handle) -> Self {
        Self { me: me.as_str().into(), own, mesh }
    }
}

impl Resolve for MeshResolver {
    fn resolve(&self, offer: &Offer, route: &Route) -> Option<BoxUpstream> {
        let UpstreamId::Device(device) = &offer.upstream else { return None };
        let peer = match route {
            Route::Direct if *device == self.me => return Some(self.own.clone()),
            Route::Direct => Peer { role: Role::Device, id: device.parse().ok()? },
            Route::Via(node) => Peer { role: Role::Router, id: node.parse().ok()? },
        };
        Some(BoxUpstream::new(Tunnel::new(self.mesh.clone(), peer, offer.name.to_string())))
    }
}
