//! Signed, versioned bytes of one router that any other may keep and pass on: larger than gossip carries.
//!
//! Pure but for the identity's keys. What the bytes mean is for the package above. The writer's certificates travel
//! with them, so that a router that joins later can verify the words of one that it never met and that is gone.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use shoal_proto::SignedBlob;

use crate::identity::{Identity, signature_is_valid};
use crate::ids::{NodeId, Role};

/// Longest payload, in bytes: 64 arms of statistics take under 100 kB.
pub const MAX_PAYLOAD_BYTES: usize = 128 * 1024;

/// Longest certificate chain, in bytes: two certificates of some 600.
const MAX_CHAIN_BYTES: usize = 8 * 1024;

/// First bytes of every signed message, so that the signature is good for nothing else.
const DOMAIN_TAG: &[u8] = b"shoal blob v1\0";

/// Why a blob is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum BlobRefusal {
    /// Payload or certificates are over their bound.
    #[error("the blob is too large")]
    Oversized,
    /// The certificates do not lead to the mesh's root, are not a router's, or are another one's.
    #[error("the certificate is not good for this router")]
    BadCertificate,
    /// The signature does not fit.
    #[error("the signature does not fit")]
    BadSignature,
}

impl BlobRefusal {
    /// Returns the word under which the refusal is counted.
    pub fn as_str(self) -> &'static str {
        match self {
            BlobRefusal::Oversized => "oversized",
            BlobRefusal::BadCertificate => "bad_certificate",
            BlobRefusal::BadSignature => "bad_signature",
        }
    }
}

/// Signs `payload` as the state `version` of this router's life `generation`.
///
/// # Errors
/// [`BlobRefusal::Oversized`] above [`MAX_PAYLOAD_BYTES`].
pub fn seal(
    identity: &Identity,
    generation: u64,
    version: u64,
    issued_unix_ms: u64,
    payload: Vec<u8>,
) -> Result<SignedBlob, BlobRefusal> {
    if payload.len() > MAX_PAYLOAD_BYTES {
        return Err(BlobRefusal::Oversized);
    }
    let mut blob = SignedBlob {
        origin: identity.node_id().to_string(),
        generation,
        version,
        issued_unix_ms,
        payload,
        chain: identity.chain_der().iter().map(|der| der.to_vec()).collect(),
        signature: Vec::new(),
    };
    blob.signature = identity.sign(&signing_bytes(&blob));
    Ok(blob)
}

/// Verifies that a router of this mesh wrote a blob, and returns which.
///
/// # Errors
/// The [`BlobRefusal`]; nothing of the blob may be believed then.
pub fn open(identity: &Identity, blob: &SignedBlob, now: SystemTime) -> Result<NodeId, BlobRefusal> {
    let chain_bytes: usize = blob.chain.iter().map(Vec::len).sum();
    if blob.payload.len() > MAX_PAYLOAD_BYTES || chain_bytes > MAX_CHAIN_BYTES {
        return Err(BlobRefusal::Oversized);
    }
    let chain: Vec<CertificateDer<'_>> =
        blob.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let facts = identity.verify_chain(&chain, now).map_err(|_| BlobRefusal::BadCertificate)?;
    if facts.peer.role != Role::Router || facts.peer.id.as_str() != blob.origin {
        return Err(BlobRefusal::BadCertificate);
    }
    if !signature_is_valid(&facts.public_key, &signing_bytes(blob), &blob.signature) {
        return Err(BlobRefusal::BadSignature);
    }
    Ok(facts.peer.id)
}

/// The message under the signature: every field with its length, so that no two blobs share one.
fn signing_bytes(blob: &SignedBlob) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(DOMAIN_TAG.len() + 64 + blob.origin.len() + blob.payload.len());
    bytes.extend_from_slice(DOMAIN_TAG);
    for number in [blob.generation, blob.version, blob.issued_unix_ms] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    for field in [blob.origin.as_bytes(), blob.payload.as_slice()] {
        bytes.extend_from_slice(&(field.len() as u64).to_be_bytes());
        bytes.extend_from_slice(field);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::issue_identity;

    fn sealed(identity: &Identity) -> SignedBlob {
        seal(identity, 7, 3, 1_000, b"what it learnt".to_vec()).unwrap()
    }

    #[test]
    fn a_third_router_verifies_what_it_was_passed() {
        let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let first = Identity::create_mesh(folders[0].path(), "one").unwrap();
        let second = issue_identity(&first, Role::Router, folders[1].path()).unwrap();
        let device = issue_identity(&first, Role::Device, folders[2].path()).unwrap();
        let now = SystemTime::now();
        assert_eq!(open(&first, &sealed(&second), now), Ok(second.node_id().clone()));
        assert_eq!(open(&second, &sealed(&first), now), Ok(first.node_id().clone()));
        assert_eq!(open(&first, &sealed(&device), now), Err(BlobRefusal::BadCertificate), "a device");
        let foreign = tempfile::tempdir().unwrap();
        let foreign = Identity::create_mesh(foreign.path(), "other").unwrap();
        assert_eq!(open(&first, &sealed(&foreign), now), Err(BlobRefusal::BadCertificate), "another mesh");
    }

    #[test]
    fn whatever_is_changed_breaks_the_seal() {
        type Change = fn(&mut SignedBlob);
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let first = Identity::create_mesh(folders[0].path(), "one").unwrap();
        let second = issue_identity(&first, Role::Router, folders[1].path()).unwrap();
        let changes: [(&str, Change, BlobRefusal); 6] = [
            ("generation", |b| b.generation += 1, BlobRefusal::BadSignature),
            ("version", |b| b.version += 1, BlobRefusal::BadSignature),
            ("time", |b| b.issued_unix_ms += 1, BlobRefusal::BadSignature),
            ("payload", |b| b.payload[0] ^= 1, BlobRefusal::BadSignature),
            ("no certificates", |b| b.chain.clear(), BlobRefusal::BadCertificate),
            ("size", |b| b.payload = vec![0; MAX_PAYLOAD_BYTES + 1], BlobRefusal::Oversized),
        ];
        for (what, change, refusal) in changes {
            let mut blob = sealed(&first);
            change(&mut blob);
            assert_eq!(open(&first, &blob, SystemTime::now()), Err(refusal), "{what}");
        }
        let mut stolen = sealed(&first);
        stolen.origin = second.node_id().to_string();
        assert_eq!(open(&first, &stolen, SystemTime::now()), Err(BlobRefusal::BadCertificate));
        assert_eq!(
            seal(&first, 1, 1, 1, vec![0; MAX_PAYLOAD_BYTES + 1]).unwrap_err(),
            BlobRefusal::Oversized
        );
    }
}
