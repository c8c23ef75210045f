//! Replication between routers: chitchat, behind a guard that lets only proven values through.

pub mod ledger;
