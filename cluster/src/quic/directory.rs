//! What the transport must know of the mesh: who has which address. Gossip knows it.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use crate::ids::{InvalidId, NodeId};

/// A router and where to dial it. Text form `node_id@host:port`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouterAddr {
    /// Who must answer there.
    pub id: NodeId,
    /// Address of its mesh port.
    pub addr: SocketAddr,
}

impl fmt::Display for RouterAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.addr)
    }
}

impl FromStr for RouterAddr {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId(text.to_owned(), "router address (node_id@host:port)");
        let (id, addr) = text.split_once('@').ok_or_else(invalid)?;
        Ok(Self { id: id.parse().map_err(|_| invalid())?, addr: addr.parse().map_err(|_| invalid())? })
    }
}

/// Addresses and names of members, as this node knows them now. Calls are cheap and never block.
pub trait Directory: Send + Sync + 'static {
    /// Mesh addresses of a router, best first; empty when it is unknown.
    fn addrs(&self, id: &NodeId) -> Vec<SocketAddr>;
    /// All live routers, this one included.
    fn routers(&self) -> Vec<RouterAddr>;
    /// The router that holds the key of the mesh's root.
    fn root_holder(&self) -> Option<NodeId>;
    /// Name of a member for people.
    fn display_name(&self, id: &NodeId) -> Option<String>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn router_addresses_survive_text() {
        for addr in ["192.0.2.1:7411", "[2001:db8::1]:7411"] {
            let router = RouterAddr { id: NodeId::from_spki(b"r"), addr: addr.parse().unwrap() };
            assert_eq!(router.to_string().parse::<RouterAddr>().unwrap(), router);
        }
        for bad in ["", "@", "abc@192.0.2.1:7411", "192.0.2.1:7411"] {
            assert!(bad.parse::<RouterAddr>().is_err(), "{bad}");
        }
    }
}
