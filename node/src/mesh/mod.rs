//! The node's side of the mesh: what comes in over it, how offers become calls over it, and keys kept equal.

mod inbound;
mod keys;
mod resolve;

pub use inbound::receive;
pub use keys::{keep_keys_equal, push_keys};
pub use resolve::MeshResolver;

use shoal_cluster::Handle;
use shoal_cluster::keyspace::{Key, Value};

use crate::inventory::Publish;

/// Publishes the inventory through the cluster handle.
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
