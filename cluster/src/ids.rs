//! Names of the things in a mesh, parsed once at the edge so that the rest need not check them.

use std::fmt;
use std::str::FromStr;

/// Characters of a node or device id: base32 of the SHA-256 of its public key, cut to 130 bits.
pub const ID_LEN: usize = 26;

/// Text that is not a valid id, role or peer address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a valid {1}")]
pub struct InvalidId(pub String, pub &'static str);

/// Identity of a router or a device, derived from its public key, so that nobody can choose another's.
///
/// Held in place, without a string of its own: ids are the keys of every map of members, and a frame of gossip looks
/// some hundred of them up.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; ID_LEN]);

impl NodeId {
    /// Derives the id from a DER-encoded SubjectPublicKeyInfo.
    pub fn from_spki(spki_der: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, spki_der);
        let text = data_encoding::BASE32_NOPAD.encode(digest.as_ref()).to_ascii_lowercase();
        let mut id = [0; ID_LEN];
        id.copy_from_slice(&text.as_bytes()[..ID_LEN]);
        Self(id)
    }

    /// Returns the 26 characters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("both constructors take ASCII alone")
    }

    /// Returns the first 8 characters, enough to tell nodes apart in logs and request ids.
    pub fn short(&self) -> &str {
        &self.as_str()[..8]
    }
}

impl FromStr for NodeId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId(text.to_owned(), "node id");
        let id: [u8; ID_LEN] = text.as_bytes().try_into().map_err(|_| invalid())?;
        let valid = id.iter().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'));
        if valid { Ok(Self(id)) } else { Err(invalid()) }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a certificate lets its owner do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Member of the gossip; serves the API, forwards, issues certificates.
    Router,
    /// Inference host; announces its models and receives work, nothing else.
    Device,
}

impl Role {
    /// Returns the word used in certificates, tokens and flags.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Router => "router",
            Role::Device => "device",
        }
    }
}

impl FromStr for Role {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        match text {
            "router" => Ok(Role::Router),
            "device" => Ok(Role::Device),
            other => Err(InvalidId(other.to_owned(), "role (router or device)")),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The other end of an authenticated connection, read from its certificate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// Role in the URI name of the certificate.
    pub role: Role,
    /// Id that matches the certificate's key.
    pub id: NodeId,
}

/// Identity of a mesh: random, made with its root certificate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeshId(pub [u8; 16]);

impl fmt::Display for MeshId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for MeshId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for MeshId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId(text.to_owned(), "mesh id (32 hexadecimal digits)");
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(|_| invalid())?;
        Ok(Self(bytes.try_into().map_err(|_| invalid())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_id_survives_text_and_refuses_other_text() {
        let id = NodeId::from_spki(b"some key");
        assert_eq!(id.as_str().parse::<NodeId>().unwrap(), id);
        for bad in ["", "short", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxy1"] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn mesh_id_survives_text() {
        let id = MeshId([7; 16]);
        assert_eq!(id.to_string().parse::<MeshId>().unwrap(), id);
    }
}
