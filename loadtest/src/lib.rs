//! Client of Shoal's public API: checked load, and stub upstreams whose answers can be checked.
//!
//! [`chaos`] runs the real programs under faults. Nothing but [`replay`], [`cascade`], [`table`] and [`balance`] imports the router. What this package knows of Shoal is what any user knows: the HTTP API.
//! The stub writes its answers as numbered, hashed words ([`words`]), so the load generator can tell a lost,
//! repeated, reordered or spliced piece of a stream from a good one without keeping a copy of it.

pub mod balance;
pub mod cascade;
pub mod chaos;
pub mod check;
pub mod http_client;
pub mod replay;
pub mod report;
pub mod run;
pub mod script;
pub mod sse;
pub mod stub;
pub mod table;
pub mod tasks;
pub mod words;
