//! Membership and transport of Shoal: who is in the mesh, and how bytes get there.
//!
//! Knows nodes, devices and keys; knows nothing of models' quality, requests' meaning or policy.
//! [`identity`] holds keys, certificates and join tokens; [`quic`] the one endpoint with everything that
//! runs on it; [`keyspace`] and [`view`] are pure; [`gossip`] owns chitchat; [`service`] ties them together.

pub mod identity;
pub mod ids;
pub mod quic;
pub mod tasks;
