//! From an offer and a route to something that can be called.

use std::sync::Arc;

use shoal_cluster::ids::{NodeId, Peer, Role};
use shoal_cluster::{Error, Handle, InferStream};
use shoal_proto::InferRequest;
use shoal_routing::{Offer, Route, UpstreamId};

use crate::cloud::Clouds;
use crate::cloud::metered::Metered;
use crate::device::mesh::unopened;
use crate::pipeline::Resolve;
use crate::upstream::pulse::Host;
use crate::upstream::tunnel::{Opener, Tunnel};
use crate::upstream::{BoxUpstream, UpstreamError};

/// Resolves offers of this node's own engines and providers, linked devices, and what other routers reach.
pub struct MeshResolver {
    me: Arc<str>,
    own: BoxUpstream,
    mesh: Handle,
    clouds: Arc<Clouds>,
}

impl MeshResolver {
    /// `own` runs inference on this node's own engines.
    pub fn new(me: &NodeId, own: BoxUpstream, mesh: Handle, clouds: Arc<Clouds>) -> Self {
        Self { me: me.as_str().into(), own, mesh, clouds }
    }
}

impl Resolve for MeshResolver {
    fn resolve(&self, offer: &Offer, route: &Route) -> Option<BoxUpstream> {
        let device = match &offer.upstream {
            UpstreamId::Device(device) => device,
            UpstreamId::Provider(provider) => return self.provider(offer, provider, route),
            UpstreamId::Peer(_) => return None,
        };
        let (peer, host) = match route {
            Route::Direct if *device == self.me => return Some(self.own.clone()),
            Route::Direct => {
                let host = if offer.naps { Host::Napping } else { Host::Steady };
                (Peer { role: Role::Device, id: device.parse().ok()? }, host)
            }
            Route::Via(node) => (Peer { role: Role::Router, id: node.parse().ok()? }, Host::Steady),
        };
        let tunnel = Tunnel::new(Streams(self.mesh.clone()), peer, offer.name.to_string());
        Some(BoxUpstream::new(tunnel.listening_to(host)))
    }
}

impl MeshResolver {
    /// A provider is called here, where its key is, or by the router that has it.
    fn provider(&self, offer: &Offer, provider: &Arc<str>, route: &Route) -> Option<BoxUpstream> {
        let node = match route {
            Route::Direct => return self.clouds.upstream(offer),
            Route::Via(node) => node,
        };
        let peer = Peer { role: Role::Router, id: node.parse().ok()? };
        let tunnel = Tunnel::to_provider(Streams(self.mesh.clone()), peer, provider.clone());
        Some(BoxUpstream::new(Metered::forwarded(tunnel, offer)))
    }
}

/// Opens inference streams through a router's handle.
#[derive(Clone)]
struct Streams(Handle);

impl Opener for Streams {
    type Frames = InferStream;

    async fn open(&self, to: Peer, request: InferRequest) -> Result<InferStream, UpstreamError> {
        self.0.open_infer(&to, request).await.map_err(|error| match error {
            Error::Net(error) => unopened(&error),
            other => UpstreamError::retryable(
                502,
                "upstream_error",
                format!("the mesh does not get through: {other}"),
            ),
        })
    }
}
