//! chitchat's wire format, read and written by ourselves, so that nothing reaches chitchat unchecked.
//!
//! chitchat 0.11.2 asserts on what it decodes (versions that go back, keys that are not ASCII, a digest that
//! outgrows a message) and expands compressed blocks without a total. This reader has a bound for each count
//! and size, and never panics. Layout: magic u16, version u8, kind u8, then a digest and/or a delta; integers
//! little-endian; strings u16 length; a delta is a series of blocks (kind u8, length u16, bytes; maybe zstd)
//! that together hold operations: node, key-value, set-max-version.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest frame that is taken from a peer or sent to one, in bytes; chitchat itself stays below 65,507.
pub const MAX_FRAME_BYTES: usize = 64 * 1024;

/// Most bytes that the compressed blocks of one frame may expand to. What is beyond is left out, not an
/// error: an honest delta goes on from there in the next round.
pub const MAX_EXPANDED_BYTES: usize = 512 * 1024;

/// Most digest entries in a frame; each has at least 50 bytes, so 64 KiB hold no more.
const MAX_DIGEST_ENTRIES: usize = 1_300;

/// Bytes that one block may expand to, as in chitchat.
const BLOCK_BYTES: usize = u16::MAX as usize;

const MAGIC: u16 = 45_139;
const PROTOCOL: u8 = 0;

/// A frame that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Longer than [`MAX_FRAME_BYTES`].
    #[error("frame too large")]
    TooLarge,
    /// Not chitchat's format, or against its order of things.
    #[error("malformed frame: {0}")]
    Malformed(&'static str),
}

/// One message of chitchat's handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// "This is what I know."
    Syn {
        /// Name of the mesh.
        cluster_id: String,
        /// What the sender knows.
        digest: Vec<DigestEntry>,
    },
    /// "This is what I know, and what you lack."
    SynAck {
        /// What the sender knows.
        digest: Vec<DigestEntry>,
        /// What the receiver lacks.
        delta: Vec<NodeDelta>,
    },
    /// "This is what you lack."
    Ack {
        /// What the receiver lacks.
        delta: Vec<NodeDelta>,
    },
    /// "You are of another mesh."
    BadCluster,
}

/// chitchat's name of one life of a member, unchecked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RawId {
    /// Should be a node id.
    pub node_id: String,
    /// Start number.
    pub generation: u64,
    /// Where the member receives gossip.
    pub addr: SocketAddr,
}

/// How much of a member the sender knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestEntry {
    /// The member.
    pub id: RawId,
    /// Its heartbeat.
    pub heartbeat: u64,
    /// Newest version among tombstones that were dropped.
    pub last_gc_version: u64,
    /// Newest version known.
    pub max_version: u64,
}

/// News of one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDelta {
    /// The member.
    pub id: RawId,
    /// Newest version among tombstones that the sender dropped.
    pub last_gc_version: u64,
    /// The news follow on this version.
    pub from_version_excluded: u64,
    /// Values, by growing version.
    pub values: Vec<KeyValue>,
}

/// One value of a delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// Key.
    pub key: String,
    /// Value.
    pub value: String,
    /// Version.
    pub version: u64,
    /// Whether it is set, deleted, or to be deleted after a while.
    pub status: Status,
}

/// Deletion status of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Set.
    Set,
    /// Deleted.
    Deleted,
    /// Visible, but dropped after the grace period.
    DeleteAfterTtl,
}

impl Frame {
    /// Reads a frame.
    ///
    /// # Errors
    /// [`Error`] when it is too large or malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > MAX_FRAME_BYTES {
            return Err(Error::TooLarge);
        }
        let mut reader = Reader(bytes);
        if reader.u16()? != MAGIC || reader.u8()? != PROTOCOL {
            return Err(Error::Malformed("not chitchat"));
        }
        match reader.u8()? {
            0 => {
                let digest = reader.digest()?;
                Ok(Frame::Syn { digest, cluster_id: reader.string()? })
            }
            1 => {
                let digest = reader.digest()?;
                Ok(Frame::SynAck { digest, delta: reader.delta()? })
            }
            2 => Ok(Frame::Ack { delta: reader.delta()? }),
            3 => Ok(Frame::BadCluster),
            _ => Err(Error::Malformed("unknown kind")),
        }
    }

    /// Writes the frame, blocks uncompressed.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4096);
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.push(PROTOCOL);
        match self {
            Frame::Syn { cluster_id, digest } => {
                out.push(0);
                put_digest(&mut out, digest);
                put_string(&mut out, cluster_id);
            }
            Frame::SynAck { digest, delta } => {
                out.push(1);
                put_digest(&mut out, digest);
                put_delta(&mut out, delta);
            }
            Frame::Ack { delta } => {
                out.push(2);
                put_delta(&mut out, delta);
            }
            Frame::BadCluster => out.push(3),
        }
        out
    }
}

/// A cursor that runs out with an error.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(Error::Malformed("cut short"))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (head, tail) = self.0.split_first_chunk().ok_or(Error::Malformed("cut short"))?;
        self.0 = tail;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, Error> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u16(&mut self) -> Result<u16, Error> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn string(&mut self) -> Result<String, Error> {
        let len = usize::from(self.u16()?);
        let text = std::str::from_utf8(self.take(len)?).map_err(|_| Error::Malformed("not UTF-8"))?;
        Ok(text.to_owned())
    }

    fn id(&mut self) -> Result<RawId, Error> {
        let node_id = self.string()?;
        let generation = self.u64()?;
        let ip: IpAddr = match self.u8()? {
            4 => Ipv4Addr::from(self.array::<4>()?).into(),
            6 => Ipv6Addr::from(self.array::<16>()?).into(),
            _ => return Err(Error::Malformed("address")),
        };
        Ok(RawId { node_id, generation, addr: SocketAddr::new(ip, self.u16()?) })
    }

    fn digest(&mut self) -> Result<Vec<DigestEntry>, Error> {
        let count = usize::from(self.u16()?);
        if count > MAX_DIGEST_ENTRIES {
            return Err(Error::Malformed("digest too long"));
        }
        let mut entries = Vec::with_capacity(count.min(64));
        for _ in 0..count {
            let id = self.id()?;
            let (heartbeat, last_gc_version, max_version) = (self.u64()?, self.u64()?, self.u64()?);
            entries.push(DigestEntry { id, heartbeat, last_gc_version, max_version });
        }
        Ok(entries)
    }

    fn delta(&mut self) -> Result<Vec<NodeDelta>, Error> {
        let (operations, truncated) = self.expand()?;
        let mut reader = Reader(&operations);
        let mut deltas: Vec<NodeDelta> = Vec::new();
        let mut seen = BTreeSet::new();
        while !reader.0.is_empty() {
            match reader.operation(&mut deltas, &mut seen) {
                // The rest was beyond the bound: what came before it is complete in itself.
                Err(Error::Malformed("cut short")) if truncated => break,
                other => other?,
            }
        }
        Ok(deltas)
    }

    fn operation(&mut self, deltas: &mut Vec<NodeDelta>, seen: &mut BTreeSet<RawId>) -> Result<(), Error> {
        match self.u8()? {
            0 => {
                let id = self.id()?;
                let (last_gc_version, from_version_excluded) = (self.u64()?, self.u64()?);
                if !seen.insert(id.clone()) {
                    return Err(Error::Malformed("a node twice"));
                }
                deltas.push(NodeDelta { id, last_gc_version, from_version_excluded, values: Vec::new() });
            }
            1 => {
                let (key, value, version) = (self.string()?, self.string()?, self.u64()?);
                let status = match self.u8()? {
                    0 => Status::Set,
                    1 => Status::Deleted,
                    2 => Status::DeleteAfterTtl,
                    _ => return Err(Error::Malformed("status")),
                };
                let delta = deltas.last_mut().ok_or(Error::Malformed("a value without node"))?;
                if delta.values.last().is_some_and(|last| last.version >= version) {
                    return Err(Error::Malformed("versions do not grow"));
                }
                delta.values.push(KeyValue { key, value, version, status });
            }
            // Only ever honest for a member without any value, and every member has a lease: left out, because
            // a maximum below a value that came before it would end chitchat's task.
            2 => {
                self.u64()?;
            }
            _ => return Err(Error::Malformed("unknown operation")),
        }
        Ok(())
    }

    /// Joins the blocks, at most [`MAX_EXPANDED_BYTES`] of them; true if there was more.
    fn expand(&mut self) -> Result<(Vec<u8>, bool), Error> {
        let mut expanded = Vec::new();
        let mut truncated = false;
        let mut buffer = Vec::new();
        loop {
            let compressed = match self.u8()? {
                0 => return Ok((expanded, truncated)),
                1 => true,
                2 => false,
                _ => return Err(Error::Malformed("unknown block")),
            };
            let len = usize::from(self.u16()?);
            let block = self.take(len)?;
            if truncated {
                continue;
            }
            let bytes = if compressed {
                buffer.resize(BLOCK_BYTES, 0);
                let len = zstd::bulk::decompress_to_buffer(block, &mut buffer[..])
                    .map_err(|_| Error::Malformed("compressed block"))?;
                &buffer[..len]
            } else {
                block
            };
            let room = MAX_EXPANDED_BYTES - expanded.len();
            truncated = bytes.len() > room;
            expanded.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    // Every string was read from a u16 length, or is a bounded one of ours.
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_id(out: &mut Vec<u8>, id: &RawId) {
    put_string(out, &id.node_id);
    out.extend_from_slice(&id.generation.to_le_bytes());
    match id.addr.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&id.addr.port().to_le_bytes());
}

fn put_digest(out: &mut Vec<u8>, digest: &[DigestEntry]) {
    out.extend_from_slice(&(digest.len() as u16).to_le_bytes());
    for entry in digest {
        put_id(out, &entry.id);
        for number in [entry.heartbeat, entry.last_gc_version, entry.max_version] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }
}

fn put_delta(out: &mut Vec<u8>, deltas: &[NodeDelta]) {
    let mut operations = Vec::new();
    for delta in deltas {
        operations.push(0);
        put_id(&mut operations, &delta.id);
        operations.extend_from_slice(&delta.last_gc_version.to_le_bytes());
        operations.extend_from_slice(&delta.from_version_excluded.to_le_bytes());
        for value in &delta.values {
            operations.push(1);
            put_string(&mut operations, &value.key);
            put_string(&mut operations, &value.value);
            operations.extend_from_slice(&value.version.to_le_bytes());
            operations.push(match value.status {
                Status::Set => 0,
                Status::Deleted => 1,
                Status::DeleteAfterTtl => 2,
            });
        }
    }
    for block in operations.chunks(BLOCK_BYTES) {
        out.push(2);
        out.extend_from_slice(&(block.len() as u16).to_le_bytes());
        out.extend_from_slice(block);
    }
    out.push(0);
}

#[cfg(test)]
mod tests;
