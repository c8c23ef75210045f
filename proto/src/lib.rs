//! Wire types of Shoal: the generated code of `shoal/v1/*.proto` and nothing else.
//!
//! `gossip.proto` holds replicated values, `rpc.proto` the frames of QUIC streams, `control.proto` the
//! gRPC services, `pack.proto` the files in which what was learnt is handed over. A released message never changes meaning: fields are added, numbers never reused.

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
mod generated {
    tonic::include_proto!("shoal.v1");
}

pub use generated::*;
