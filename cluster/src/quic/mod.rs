//! The one QUIC endpoint of a process and everything that runs on it.
//!
//! One UDP port dials and listens, so the source address of a connection is the address that its owner can
//! be dialled at. The ALPN says what a connection is for ([`Alpn`]), the certificate says who is at its other
//! end: [`Net`] dials and pools, [`Acceptor`] lets in, [`Rpc`] serves inference streams and device links,
//! [`DeviceLink`] is their other end, [`Channels`] carry tonic.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::identity::CertificateError;
use crate::ids::NodeId;

mod accept;
mod alpn;
mod congestion;
mod device;
mod directory;
mod frames;
mod grpc;
mod infer;
mod net;
mod pool;
mod pulse;
mod rpc;
mod tls;

pub use accept::Acceptor;
pub use alpn::Alpn;
pub use device::{DeviceHandle, DeviceLink, DeviceSettings, LinkState};
pub use directory::{Directory, RouterAddr};
pub use frames::FrameBuffer;
pub use grpc::{Caller, Channels, serve_control, serve_join};
pub use infer::{FRAME_LIMIT, InferStream, REQUEST_BODY_LIMIT, Responder};
pub use net::{CONNECT_DEADLINE, Connections, Link, Net, canonical};
pub use pulse::{Pulse, Vitals};
pub use rpc::{INBOUND, Inbound, Rpc};

pub(crate) use grpc::channel_on;
pub(crate) use net::udp_socket;
pub(crate) use tls::joiner_config;

/// Close codes of connections, and reset codes of streams.
pub mod code {
    use quinn::VarInt;

    /// Ended in order.
    pub const DONE: VarInt = VarInt::from_u32(0);
    /// The certificate does not allow what the connection is for.
    pub const NOT_ALLOWED: VarInt = VarInt::from_u32(1);
    /// A bounded queue is full; try later.
    pub const BUSY: VarInt = VarInt::from_u32(2);
    /// The work on this stream is no longer wanted.
    pub const CANCELLED: VarInt = VarInt::from_u32(3);
    /// Bytes that are not of the protocol.
    pub const PROTOCOL: VarInt = VarInt::from_u32(4);
    /// The process ends.
    pub const SHUTDOWN: VarInt = VarInt::from_u32(5);
}

/// Why something on the mesh's endpoint failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The port could not be bound.
    #[error(
        "cannot listen on UDP {addr}: {source}; is another node running? choose another port with --mesh"
    )]
    Bind {
        /// Wanted address.
        addr: SocketAddr,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The TLS stack refused the identity's key or certificates.
    #[error("the identity cannot be used for TLS: {0}")]
    Tls(String),
    /// A peer could not be reached or refused the handshake.
    #[error("cannot connect to {addr}: {reason}")]
    Dial {
        /// Where to.
        addr: SocketAddr,
        /// Why not.
        reason: String,
    },
    /// A peer did not answer in time.
    #[error("{addr} did not answer within {seconds} s")]
    Deadline {
        /// Where to.
        addr: SocketAddr,
        /// How long was waited.
        seconds: u64,
    },
    /// No address is known, or none answered.
    #[error("no address of {0} is known")]
    NoAddress(NodeId),
    /// Another member answered.
    #[error("{addr} is {found}, not {expected}")]
    WrongPeer {
        /// Where to.
        addr: SocketAddr,
        /// Who was wanted.
        expected: NodeId,
        /// Who answered.
        found: NodeId,
    },
    /// A device has no link to this node.
    #[error("the device {0} is not linked to this node")]
    NotLinked(NodeId),
    /// The address is this node's own.
    #[error("{0} is this node itself")]
    Myself(SocketAddr),
    /// The peer's certificate does not do.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The connection is gone.
    #[error("the connection is gone: {0}")]
    Connection(#[from] quinn::ConnectionError),
    /// The peer abandoned the stream.
    #[error("the peer cancelled the stream")]
    Cancelled,
    /// The peer reads nothing.
    #[error("the peer does not read what is sent to it")]
    Stalled,
    /// The stream ended in the middle of a frame.
    #[error("the stream broke off in the middle of a frame")]
    Truncated,
    /// A frame is larger than its kind may be.
    #[error("a frame of {size} bytes is over the limit of {limit}")]
    FrameTooLarge {
        /// Announced or real size.
        size: usize,
        /// Limit.
        limit: usize,
    },
    /// Bytes that are not of the protocol.
    #[error("the peer sent bytes that do not follow the protocol: {0}")]
    Protocol(String),
    /// The endpoint was closed.
    #[error("this node is shutting down")]
    Shutdown,
}

#[cfg(test)]
mod device_tests;
#[cfg(test)]
pub(crate) mod infer_tests;
#[cfg(test)]
pub(crate) mod tests;
