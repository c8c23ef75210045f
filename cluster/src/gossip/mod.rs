//! Replication between routers: chitchat, behind a guard that lets only proven values through.

pub mod frame;
pub mod guard;
pub mod ledger;
#[cfg(test)]
mod testing;
