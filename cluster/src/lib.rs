//! Membership and transport of Shoal: who is in the mesh, and how bytes get there.
//!
//! Knows nodes, devices and keys; knows nothing of models' quality, requests' meaning or policy.
//! [`identity`] holds keys, certificates and join tokens; [`quic`] the one endpoint with everything that
//! runs on it; [`keyspace`], [`blob`] and [`view`] are pure; [`gossip`] owns chitchat; [`service`] ties them together.

pub mod advertise;
pub mod blob;
mod directory;
pub mod gossip;
pub mod identity;
pub mod ids;
pub mod keyspace;
pub mod quic;
pub mod service;
#[cfg(any(test, feature = "test-util"))]
pub mod sim;
pub mod tasks;
pub mod view;

pub use blob::BlobRefusal;
pub use identity::{
    BookError, Identity, JoinError, JoinToken, Joined, MemoryBook, Refusal, TokenBook, TokenRecord, join,
};
pub use ids::{InvalidId, MeshId, NodeId, Peer, Role};
pub use quic::{
    Caller, DeviceHandle, DeviceLink, DeviceSettings, Inbound, InferStream, LinkState, Responder, RouterAddr,
};
pub use service::{Error, Handle, Service, Settings};
pub use view::{Change, ClusterView, Member, MeshDevice};
