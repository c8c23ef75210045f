//! The Shoal router: configuration, API, pipeline, upstreams, device agent and command line.
//!
//! Reading order: [`cli`] starts a [`node`]; [`api`] parses a request and hands it to [`pipeline`], which
//! asks the pure core (`shoal_routing`) where it goes and an [`upstream`] to run it; [`inventory`] and
//! [`feedback`] keep the snapshots that the core reads; [`mesh`] and [`replication`] connect all of it to the
//! other routers. [`device`] is the other half of the program: the agent that lends a host's engines to a mesh.

pub mod api;
pub mod cli;
pub mod cloud;
pub mod config;
pub mod control;
pub mod dashboard;
pub mod device;
pub mod egress;
pub mod evaluate;
pub mod feedback;
pub mod import;
pub mod inventory;
pub mod judge;
pub mod judging;
pub mod mesh;
pub mod model;
pub mod node;
pub mod pack;
pub mod pipeline;
pub mod replication;
pub mod sound;
pub mod store;
pub mod tasks;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod upstream;
