//! The typed keys that routers replicate, and the signed envelope that each value travels in.
//!
//! Pure: values in, text out, and back. chitchat carries strings and trusts every member, so a value is a
//! `SignedValue` in base64 whose signature covers everything that gives it meaning: the key, the writer with
//! its start number and gossip address, and a sequence number that must equal chitchat's version of the key.
//! A member can therefore neither forge, nor replay under a newer version, nor rename what another one wrote.

use std::fmt;
use std::net::SocketAddr;

use data_encoding::BASE64_NOPAD;
use prost::Message;
use shoal_proto::{ArmSummaries, CertificateChain, DeviceInfo, Lease, NodeInfo, ProviderInfo, SignedValue};

use crate::ids::NodeId;

/// Longest text of one value, in bytes: chitchat never sends what follows a value that does not fit its
/// 64 KiB message, so values stay far below it.
pub const MAX_VALUE_BYTES: usize = 8 * 1024;

/// Most bytes (keys and texts) that one node replicates: a whole node then fits one chitchat message.
pub const MAX_NODE_BYTES: usize = 48 * 1024;

/// Longest key text that is accepted from others, in bytes; ours are at most 30.
pub const MAX_KEY_BYTES: usize = 64;

/// chitchat's version of the key `cert`: it is written first and never again under the same start number.
pub const CERT_VERSION: u64 = 1;

/// First bytes of every signed message, so that a gossip signature is good for nothing else.
const DOMAIN_TAG: &[u8] = b"shoal gossip value v1\0";

const DEVICE_PREFIX: &str = "dev/";
const PROVIDER_PREFIX: &str = "prov/";

/// Longest name of a provider, bytes.
const MAX_PROVIDER_NAME: usize = 32;

/// A replicated key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// Certificate chain of the writer.
    Cert,
    /// What the writer says of itself.
    Node,
    /// A device linked to the writer.
    Device(NodeId),
    /// A cloud provider that the writer has a key for, by its configured name.
    Provider(String),
    /// Summaries of what the writer has learnt, per arm.
    Stats,
    /// Proof that the writer was alive a moment ago.
    Lease,
}

impl Key {
    /// Reads a key; `None` for a key that this version does not know.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "cert" => Some(Key::Cert),
            "node" => Some(Key::Node),
            "stats" => Some(Key::Stats),
            "lease" => Some(Key::Lease),
            other => match other.strip_prefix(PROVIDER_PREFIX) {
                Some(name) => is_provider_name(name).then(|| Key::Provider(name.to_owned())),
                None => other.strip_prefix(DEVICE_PREFIX)?.parse().ok().map(Key::Device),
            },
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Cert => f.write_str("cert"),
            Key::Node => f.write_str("node"),
            Key::Device(id) => write!(f, "{DEVICE_PREFIX}{id}"),
            Key::Provider(name) => write!(f, "{PROVIDER_PREFIX}{name}"),
            Key::Stats => f.write_str("stats"),
            Key::Lease => f.write_str("lease"),
        }
    }
}

/// A replicated value, as its owner publishes it and as readers see it once verified.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Key `node`.
    Node(NodeInfo),
    /// Key `dev/<id>`; the id inside names the key.
    Device(DeviceInfo),
    /// Key `prov/<name>`; the name inside names the key.
    Provider(ProviderInfo),
    /// Key `stats`.
    Stats(ArmSummaries),
    /// Key `lease`.
    Lease(Lease),
}

impl Value {
    /// Returns the key that the value belongs under.
    ///
    /// # Errors
    /// [`Refusal::Undecodable`] if a device's id is not one, or a provider's name.
    pub fn key(&self) -> Result<Key, Refusal> {
        Ok(match self {
            Value::Node(_) => Key::Node,
            Value::Device(device) => Key::Device(device.id.parse().map_err(|_| Refusal::Undecodable)?),
            Value::Provider(provider) if is_provider_name(&provider.name) => {
                Key::Provider(provider.name.clone())
            }
            Value::Provider(_) => return Err(Refusal::Undecodable),
            Value::Stats(_) => Key::Stats,
            Value::Lease(_) => Key::Lease,
        })
    }

    /// Encodes the message inside, without envelope.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Value::Node(message) => message.encode_to_vec(),
            Value::Device(message) => message.encode_to_vec(),
            Value::Provider(message) => message.encode_to_vec(),
            Value::Stats(message) => message.encode_to_vec(),
            Value::Lease(message) => message.encode_to_vec(),
        }
    }

    /// Decodes the payload of `key`.
    ///
    /// # Errors
    /// [`Refusal::Undecodable`] if it is not that key's message, or names another device or provider than the key.
    pub fn decode(key: &Key, payload: &[u8]) -> Result<Self, Refusal> {
        let undecodable = |_| Refusal::Undecodable;
        match key {
            Key::Cert => Err(Refusal::Undecodable),
            Key::Node => NodeInfo::decode(payload).map(Value::Node).map_err(undecodable),
            Key::Stats => ArmSummaries::decode(payload).map(Value::Stats).map_err(undecodable),
            Key::Lease => Lease::decode(payload).map(Value::Lease).map_err(undecodable),
            Key::Device(id) => {
                let device = DeviceInfo::decode(payload).map_err(undecodable)?;
                if device.id == id.as_str() { Ok(Value::Device(device)) } else { Err(Refusal::Undecodable) }
            }
            Key::Provider(name) => {
                let provider = ProviderInfo::decode(payload).map_err(undecodable)?;
                if provider.name == *name { Ok(Value::Provider(provider)) } else { Err(Refusal::Undecodable) }
            }
        }
    }
}

/// True for what can be the configured name of a provider.
fn is_provider_name(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    (1..=MAX_PROVIDER_NAME).contains(&name.len()) && name.bytes().all(fits)
}

/// Why a value of another node was not taken; each is counted under [`Refusal::as_str`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Refusal {
    /// The envelope names another writer than the one it came under, or somebody speaks for this node.
    #[error("the value belongs to another node")]
    ForeignOrigin,
    /// The signature does not fit the writer's key, the value or its place.
    #[error("the signature does not fit")]
    BadSignature,
    /// The writer has restarted since.
    #[error("the value is from before the writer's restart")]
    OldGeneration,
    /// An equal or newer value of the key is known.
    #[error("the value is not newer than the known one")]
    NotNewer,
    /// A value, a key or all values of a node together are over their bound.
    #[error("the value is too large")]
    Oversized,
    /// Not base64, not an envelope, or not the message that the key names.
    #[error("the value cannot be decoded")]
    Undecodable,
    /// The certificate chain does not lead to the mesh's root, or is not this writer's.
    #[error("the certificate is not good for this node")]
    BadCertificate,
    /// No certificate of the writer is known, so nothing of it can be checked.
    #[error("the writer's certificate is not known")]
    NoCertificate,
    /// The lease was seen before: it proves nothing about now.
    #[error("the lease is stale")]
    StaleLease,
    /// The key is not one of this version's.
    #[error("the key is not known")]
    UnknownKey,
}

impl Refusal {
    /// Returns the word under which the refusal is counted.
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::ForeignOrigin => "foreign_origin",
            Refusal::BadSignature => "bad_signature",
            Refusal::OldGeneration => "old_generation",
            Refusal::NotNewer => "not_newer",
            Refusal::Oversized => "oversized",
            Refusal::Undecodable => "undecodable",
            Refusal::BadCertificate => "bad_certificate",
            Refusal::NoCertificate => "no_certificate",
            Refusal::StaleLease => "stale_lease",
            Refusal::UnknownKey => "unknown_key",
        }
    }
}

/// One life of a writer: chitchat's idea of a member.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The node.
    pub id: NodeId,
    /// Its start number.
    pub generation: u64,
    /// Where it receives gossip. Signed with each value, so that nobody can redirect a node's gossip.
    pub addr: SocketAddr,
}

/// Encodes and signs a value; `value` `None` withdraws the key.
///
/// `seq` must be the version that chitchat will give the key; `sign` is Ed25519 with the node's key.
///
/// # Errors
/// [`Refusal::Oversized`] above [`MAX_VALUE_BYTES`] of text.
pub fn seal(
    origin: &Origin,
    key: &Key,
    seq: u64,
    issued_unix_ms: u64,
    value: Option<&Value>,
    sign: impl FnOnce(&[u8]) -> Vec<u8>,
) -> Result<String, Refusal> {
    seal_under(&key.to_string(), origin, (seq, issued_unix_ms), value.map(Value::encode), sign)
}

/// As [`seal`], for any key text and payload.
pub(crate) fn seal_under(
    key: &str,
    origin: &Origin,
    (seq, issued_unix_ms): (u64, u64),
    payload: Option<Vec<u8>>,
    sign: impl FnOnce(&[u8]) -> Vec<u8>,
) -> Result<String, Refusal> {
    let mut signed = SignedValue {
        origin: origin.id.to_string(),
        generation: origin.generation,
        seq,
        issued_unix_ms,
        withdrawn: payload.is_none(),
        payload: payload.unwrap_or_default(),
        signature: Vec::new(),
    };
    signed.signature = sign(&signing_bytes(origin, key, &signed));
    let text = BASE64_NOPAD.encode(&signed.encode_to_vec());
    if text.len() > MAX_VALUE_BYTES { Err(Refusal::Oversized) } else { Ok(text) }
}

/// Decodes an envelope and checks who wrote it, for which key and under which version.
///
/// # Errors
/// Any [`Refusal`] of size, form, origin or signature.
pub fn open(
    origin: &Origin,
    key: &str,
    version: u64,
    text: &str,
    public_key: &[u8],
) -> Result<SignedValue, Refusal> {
    open_with(origin, (key, version, text), |message, signature| is_signed(public_key, message, signature))
}

/// As [`open`]; `is_signed` says whether a signature is the writer's over a message.
pub(crate) fn open_with(
    origin: &Origin,
    (key, version, text): (&str, u64, &str),
    is_signed: impl FnOnce(&[u8], &[u8]) -> bool,
) -> Result<SignedValue, Refusal> {
    if text.len() > MAX_VALUE_BYTES || key.len() > MAX_KEY_BYTES {
        return Err(Refusal::Oversized);
    }
    let bytes = BASE64_NOPAD.decode(text.as_bytes()).map_err(|_| Refusal::Undecodable)?;
    let signed = SignedValue::decode(bytes.as_slice()).map_err(|_| Refusal::Undecodable)?;
    if signed.origin != origin.id.as_str() {
        return Err(Refusal::ForeignOrigin);
    }
    if signed.generation != origin.generation {
        return Err(Refusal::OldGeneration);
    }
    if signed.seq != version {
        return Err(Refusal::BadSignature);
    }
    match is_signed(&signing_bytes(origin, key, &signed), &signed.signature) {
        true => Ok(signed),
        false => Err(Refusal::BadSignature),
    }
}

/// Tells whether `signature` is that of a raw Ed25519 public key over `message`.
pub(crate) fn is_signed(public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let key = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, public_key);
    key.verify(message, signature).is_ok()
}

/// Encodes a certificate chain, leaf first, as the text of key `cert`.
///
/// # Errors
/// [`Refusal::Oversized`] above [`MAX_VALUE_BYTES`] of text.
pub fn seal_chain<'a>(chain: impl IntoIterator<Item = &'a [u8]>) -> Result<String, Refusal> {
    let chain = CertificateChain { der: chain.into_iter().map(<[u8]>::to_vec).collect() };
    let text = BASE64_NOPAD.encode(&chain.encode_to_vec());
    if text.len() > MAX_VALUE_BYTES { Err(Refusal::Oversized) } else { Ok(text) }
}

/// Decodes the text of key `cert`; what it proves is for the mesh's authority to say.
///
/// # Errors
/// [`Refusal::Oversized`] or [`Refusal::Undecodable`].
pub fn open_chain(text: &str) -> Result<Vec<Vec<u8>>, Refusal> {
    if text.len() > MAX_VALUE_BYTES {
        return Err(Refusal::Oversized);
    }
    let bytes = BASE64_NOPAD.decode(text.as_bytes()).map_err(|_| Refusal::Undecodable)?;
    CertificateChain::decode(bytes.as_slice()).map(|chain| chain.der).map_err(|_| Refusal::Undecodable)
}

/// The message under the signature: every field with its length, so that no two values share one.
fn signing_bytes(origin: &Origin, key: &str, signed: &SignedValue) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(DOMAIN_TAG.len() + 128 + signed.payload.len());
    bytes.extend_from_slice(DOMAIN_TAG);
    bytes.push(u8::from(signed.withdrawn));
    for number in [signed.generation, signed.seq, signed.issued_unix_ms] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    let addr = origin.addr.to_string();
    for field in [key.as_bytes(), signed.origin.as_bytes(), addr.as_bytes(), signed.payload.as_slice()] {
        bytes.extend_from_slice(&(field.len() as u64).to_be_bytes());
        bytes.extend_from_slice(field);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{Ed25519KeyPair, KeyPair};

    fn pair(seed: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
    }

    fn origin() -> Origin {
        Origin { id: NodeId::from_spki(b"one"), generation: 7, addr: "127.0.0.1:7411".parse().unwrap() }
    }

    fn device(id: &NodeId) -> Value {
        Value::Device(DeviceInfo {
            id: id.to_string(),
            name: "phone".into(),
            slots: 2,
            ..DeviceInfo::default()
        })
    }

    fn sealed(value: Option<&Value>, key: &Key, seq: u64) -> String {
        seal(&origin(), key, seq, 1_000, value, |m| pair(1).sign(m).as_ref().to_vec()).unwrap()
    }

    fn opened(
        origin: &Origin,
        key: &str,
        version: u64,
        text: &str,
        signer: u8,
    ) -> Result<SignedValue, Refusal> {
        open(origin, key, version, text, pair(signer).public_key().as_ref())
    }

    #[test]
    fn keys_survive_text_and_others_are_unknown() {
        let named = [Key::Device(NodeId::from_spki(b"d")), Key::Provider("my-llm_2".into())];
        for key in [Key::Cert, Key::Node, Key::Stats, Key::Lease].into_iter().chain(named) {
            assert_eq!(Key::parse(&key.to_string()), Some(key));
        }
        for text in ["", "certs", "dev/", "dev/short", "Node", "lease ", "prov/", "prov/A b", "prov/../x"] {
            assert_eq!(Key::parse(text), None, "{text}");
        }
    }

    #[test]
    fn every_value_survives_the_envelope() {
        let id = NodeId::from_spki(b"d");
        let values = [
            Value::Node(NodeInfo {
                name: "a".into(),
                mesh_addrs: vec!["[::1]:1".into()],
                ..NodeInfo::default()
            }),
            device(&id),
            Value::Provider(ProviderInfo { name: "openai".into(), ..ProviderInfo::default() }),
            Value::Stats(ArmSummaries::default()),
            Value::Lease(Lease { counter: 3, in_flight: 1 }),
        ];
        for value in values {
            let key = value.key().unwrap();
            let signed = opened(&origin(), &key.to_string(), 5, &sealed(Some(&value), &key, 5), 1).unwrap();
            assert!(!signed.withdrawn);
            assert_eq!(Value::decode(&key, &signed.payload).unwrap(), value);
        }
    }

    #[test]
    fn an_empty_value_is_not_a_withdrawal() {
        let empty = Value::Stats(ArmSummaries::default());
        assert!(!opened(&origin(), "stats", 2, &sealed(Some(&empty), &Key::Stats, 2), 1).unwrap().withdrawn);
        assert!(opened(&origin(), "stats", 2, &sealed(None, &Key::Stats, 2), 1).unwrap().withdrawn);
    }

    #[test]
    fn whatever_is_changed_breaks_the_seal() {
        let id = NodeId::from_spki(b"d");
        let key = Key::Device(id.clone()).to_string();
        let text = sealed(Some(&device(&id)), &Key::Device(id), 5);
        assert!(opened(&origin(), &key, 5, &text, 1).is_ok());
        assert_eq!(opened(&origin(), &key, 5, &text, 2), Err(Refusal::BadSignature), "another key");
        assert_eq!(opened(&origin(), "node", 5, &text, 1), Err(Refusal::BadSignature), "another place");
        assert_eq!(opened(&origin(), &key, 6, &text, 1), Err(Refusal::BadSignature), "a newer version");
        let moved = Origin { addr: "127.0.0.1:1".parse().unwrap(), ..origin() };
        assert_eq!(opened(&moved, &key, 5, &text, 1), Err(Refusal::BadSignature), "another address");
        let younger = Origin { generation: 8, ..origin() };
        assert_eq!(opened(&younger, &key, 5, &text, 1), Err(Refusal::OldGeneration));
        let other = Origin { id: NodeId::from_spki(b"two"), ..origin() };
        assert_eq!(opened(&other, &key, 5, &text, 1), Err(Refusal::ForeignOrigin));
        assert_eq!(opened(&origin(), &key, 5, "%%%", 1), Err(Refusal::Undecodable));
        let long = "A".repeat(MAX_VALUE_BYTES + 4);
        assert_eq!(opened(&origin(), &key, 5, &long, 1), Err(Refusal::Oversized));
    }

    #[test]
    fn a_device_value_under_another_devices_key_is_refused() {
        let payload = device(&NodeId::from_spki(b"d")).encode();
        let key = Key::Device(NodeId::from_spki(b"e"));
        assert_eq!(Value::decode(&key, &payload), Err(Refusal::Undecodable));
    }

    #[test]
    fn a_provider_value_under_another_name_or_with_none_is_refused() {
        let value = Value::Provider(ProviderInfo { name: "openai".into(), ..ProviderInfo::default() });
        let key = Key::Provider("other".into());
        assert_eq!(Value::decode(&key, &value.encode()), Err(Refusal::Undecodable));
        assert_eq!(Value::Provider(ProviderInfo::default()).key(), Err(Refusal::Undecodable));
    }

    #[test]
    fn a_value_over_the_bound_is_not_sealed() {
        let value = Value::Node(NodeInfo { name: "n".repeat(MAX_VALUE_BYTES), ..NodeInfo::default() });
        let result = seal(&origin(), &Key::Node, 2, 0, Some(&value), |_| vec![0; 64]);
        assert_eq!(result, Err(Refusal::Oversized));
    }

    /// What released nodes wrote must stay readable, byte for byte.
    #[test]
    fn golden_lease() {
        let text = sealed(Some(&Value::Lease(Lease { counter: 9, in_flight: 1 })), &Key::Lease, 9);
        assert_eq!(text, GOLDEN_LEASE);
    }

    const GOLDEN_LEASE: &str = concat!(
        "ChpvMmptaGxqdmljNXlhcGFjYm01bzR6d25yYxAHGAkg6AcqBAgJEAEyQKLocn+IABqRovvtYNKNAEpgQrKe",
        "+TaLpVoxJ1/9eG1bl2laEphV7vCmo0RdBfKKEbNn12WHXL44cnqqf9s0xg4",
    );
}
