//! The node's side of the mesh: what comes in over it, how offers become calls over it, keys and what was learnt
//! kept equal.

mod inbound;
mod keys;
mod resolve;
mod responses;
pub mod statistics;

pub use inbound::receive;
pub use keys::{keep_keys_equal, push_keys};
pub use resolve::MeshResolver;
pub use responses::MeshResponses;
pub use statistics::{keep_statistics_equal, newer_than};

use shoal_cluster::Handle;
use shoal_cluster::keyspace::{Key, Value};
use shoal_proto::SignedBlob;

use crate::feedback::Announce;
use crate::inventory::Publish;

/// Publishes the inventory, and what was learnt, through the cluster handle.
pub struct GossipPublisher(pub Handle);

impl Publish for GossipPublisher {
    fn publish(&self, value: Value) {
        if let Err(error) = self.0.publish(value) {
            tracing::warn!(%error, "a value could not be published to the mesh");
            metrics::counter!("shoal_gossip_refused_total").increment(1);
        }
    }

    fn withdraw(&self, key: &Key) {
        self.0.withdraw(key);
    }
}

impl Announce for GossipPublisher {
    fn publish(&self, value: Value) {
        Publish::publish(self, value);
    }

    fn seal(&self, generation: u64, version: u64, payload: Vec<u8>) -> Option<SignedBlob> {
        let sealed = self.0.seal(generation, version, payload);
        if let Err(error) = &sealed {
            tracing::warn!(%error, "what was learnt could not be published to the mesh");
        }
        sealed.ok()
    }
}
