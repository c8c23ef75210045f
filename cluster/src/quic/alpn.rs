//! What a connection is for, agreed in its handshake, and which role may ask for it.

use crate::ids::Role;

/// Purpose of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Alpn {
    /// Redeeming a join token; the only purpose without a client certificate.
    Join,
    /// Membership gossip between routers.
    Gossip,
    /// Inference streams and device links.
    Rpc,
    /// gRPC between routers.
    Control,
}

impl Alpn {
    /// All purposes.
    pub const ALL: [Alpn; 4] = [Alpn::Join, Alpn::Gossip, Alpn::Rpc, Alpn::Control];

    /// Name in the TLS handshake.
    pub fn as_bytes(self) -> &'static [u8] {
        match self {
            Alpn::Join => b"shoal-join/1",
            Alpn::Gossip => b"shoal-gossip/1",
            Alpn::Rpc => b"shoal-rpc/1",
            Alpn::Control => b"h2",
        }
    }

    /// Reads the name in the TLS handshake.
    pub fn from_bytes(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|alpn| alpn.as_bytes() == name)
    }

    /// Whether a caller may open a connection for this purpose; `None` is a caller without certificate.
    pub fn admits(self, caller: Option<Role>) -> bool {
        match (self, caller) {
            (Alpn::Join, _) => true,
            (Alpn::Gossip | Alpn::Control, Some(Role::Router)) => true,
            (Alpn::Rpc, Some(Role::Router | Role::Device)) => true,
            (Alpn::Gossip | Alpn::Control, Some(Role::Device)) => false,
            (Alpn::Gossip | Alpn::Rpc | Alpn::Control, None) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_read_back() {
        for alpn in Alpn::ALL {
            assert_eq!(Alpn::from_bytes(alpn.as_bytes()), Some(alpn));
        }
        assert_eq!(Alpn::from_bytes(b"h3"), None);
    }
}
