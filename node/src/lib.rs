//! The Shoal router: configuration, API, pipeline, upstreams, device agent and command line.
//!
//! Reading order: [`cli`] starts a [`node`]; [`api`] parses a request and hands it to [`pipeline`], which
//! asks the pure core (`shoal_routing`) where it goes and an [`upstream`] to run it; [`inventory`] and
//! [`feedback`] keep the snapshots that the core reads.

pub mod device;
pub mod tasks;
pub mod upstream;
