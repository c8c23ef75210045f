//! The device side: engines that run models on this machine, and the agent that offers them to the mesh.
//!
//! [`detect`] finds engines, [`engine`] keeps one's model list fresh and runs inferences on it, [`serve`] answers
//! what comes over the mesh, [`agent`] ties them together. A router uses the same engines for its own host.

pub mod detect;
pub mod engine;

#[cfg(test)]
pub(crate) mod testing;
