//! What certificates of a mesh look like, how they are made, and how they are read back.
//!
//! Three levels: one root (path length 1), one issuing certificate per router (path length 0), and leaves.
//! A leaf names its owner in a URI, `spiffe://<mesh id>/router/<node id>` or `.../device/<node id>`, and every
//! leaf also carries the one DNS name that all dialling uses: gossip knows only socket addresses, so the
//! name proves membership and the URI, checked against the key, proves who it is.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use x509_parser::prelude::{ASN1Time, FromDer as _, GeneralName, X509Certificate};

use crate::ids::{MeshId, NodeId, Peer, Role};

/// The DNS name in every leaf, and the server name of every dial.
pub const SERVER_NAME: &str = "shoal.internal";
/// Life of a leaf. One year, because rotation does not exist yet.
pub const LEAF_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Life of an issuing certificate: longer than a leaf, so that it never shortens one.
const ISSUER_LIFE: Duration = Duration::from_secs(2 * 365 * 24 * 3600);
/// Life of the root.
const ROOT_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Certificates are valid this long before they were made, for peers whose clocks are slow: a clock that shows local
/// time as UTC is wrong by up to 14 hours. It costs nothing, since a key that does not exist yet has no past.
const BACKDATE: Duration = Duration::from_secs(24 * 3600);
/// Longest display name that goes into a subject (RFC 5280: 64 characters).
const NAME_LIMIT: usize = 64;
/// Largest certificate request that is parsed; ours take about 200 bytes.
pub(super) const CSR_LIMIT: usize = 4096;

/// Why certificates were not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// No certificate was presented.
    #[error("the peer presented no certificate")]
    Missing,
    /// Not a certificate at all, or a damaged one.
    #[error("the certificate is damaged")]
    Damaged,
    /// It names no router or device, or more than one.
    #[error("the certificate names no Shoal router or device")]
    NoIdentity,
    /// It names an id that does not belong to its key.
    #[error("the certificate claims the id {claimed}, but its key has the id {actual}")]
    WrongKey {
        /// Id in the URI.
        claimed: NodeId,
        /// Id of the key.
        actual: NodeId,
    },
    /// It belongs to another mesh.
    #[error("the certificate is from the mesh {found}, not from {expected}")]
    OtherMesh {
        /// This mesh.
        expected: MeshId,
        /// The certificate's mesh.
        found: MeshId,
    },
    /// Not signed by this mesh's root, expired, or not valid for its use.
    #[error("the certificate does not verify: {0}")]
    Untrusted(String),
    /// A certificate could not be made.
    #[error("the certificate request was refused: {0}")]
    Request(String),
}

/// A key that signs certificates, with its own certificate.
pub(super) struct Authority {
    pub(super) key: KeyPair,
    pub(super) certificate: CertificateDer<'static>,
}

impl Authority {
    /// Makes the root of a new mesh.
    pub(super) fn root(mesh: MeshId, now: SystemTime) -> Result<Self, rcgen::Error> {
        let key = new_key()?;
        let params = authority_params(format!("Shoal mesh {mesh}"), 1, now, ROOT_LIFE);
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self { key, certificate })
    }

    /// Signs a router's issuing certificate for the key of `csr`. Only a root's path length allows it.
    pub(super) fn sign_issuer(
        &self,
        csr: &[u8],
        router: &NodeId,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, CertificateError> {
        let request = parse_request(csr)?;
        let params = authority_params(format!("Shoal issuer {router}"), 0, now, ISSUER_LIFE);
        self.sign(&params, &request.public_key)
    }

    /// Signs a leaf for the key of `csr`; nothing but the key is taken from the request.
    pub(super) fn sign_leaf(
        &self,
        csr: &[u8],
        mesh: MeshId,
        role: Role,
        name: &str,
        now: SystemTime,
    ) -> Result<(Peer, CertificateDer<'static>), CertificateError> {
        let request = parse_request(csr)?;
        let key = &request.public_key;
        if key.algorithm() != &rcgen::PKCS_ED25519 {
            return Err(CertificateError::Request("the key is not Ed25519".to_owned()));
        }
        let id = NodeId::from_spki(&key.subject_public_key_info());
        let mut params = leaf_params(mesh, role, &id, name, now)?;
        // A leaf that outlives its issuer would look valid and be refused.
        let (_, issuer) =
            X509Certificate::from_der(&self.certificate).map_err(|_| CertificateError::Damaged)?;
        params.not_after = params.not_after.min(issuer.validity().not_after.to_datetime());
        let certificate = self.sign(&params, key)?;
        Ok((Peer { role, id }, certificate))
    }

    pub(super) fn sign(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, CertificateError> {
        let refused = |error: rcgen::Error| CertificateError::Request(error.to_string());
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key).map_err(refused)?;
        Ok(params.signed_by(key, &issuer).map_err(refused)?.der().clone())
    }
}

/// Makes an Ed25519 key.
pub(super) fn new_key() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(&rcgen::PKCS_ED25519)
}

/// Reads an Ed25519 key; other kinds are refused.
pub(super) fn key_from_der(der: &PrivatePkcs8KeyDer<'_>) -> Result<KeyPair, rcgen::Error> {
    KeyPair::from_pkcs8_der_and_sign_algo(der, &rcgen::PKCS_ED25519)
}

/// Makes a request for a certificate that proves possession of `key`; it carries no names.
pub(super) fn request_for(key: &KeyPair) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(key)?.der().to_vec())
}

fn parse_request(csr: &[u8]) -> Result<CertificateSigningRequestParams, CertificateError> {
    if csr.len() > CSR_LIMIT {
        return Err(CertificateError::Request(format!("it is larger than {CSR_LIMIT} bytes")));
    }
    CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
        .map_err(|error| CertificateError::Request(error.to_string()))
}

pub(super) fn base_params(name: String, now: SystemTime, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = OffsetDateTime::from(now - BACKDATE);
    params.not_after = OffsetDateTime::from(now + life);
    params.use_authority_key_identifier_extension = true;
    params
}

fn authority_params(name: String, path_length: u8, now: SystemTime, life: Duration) -> CertificateParams {
    let mut params = base_params(name, now, life);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf_params(
    mesh: MeshId,
    role: Role,
    id: &NodeId,
    name: &str,
    now: SystemTime,
) -> Result<CertificateParams, CertificateError> {
    let refused = |error: rcgen::Error| CertificateError::Request(error.to_string());
    let shown: String = name.chars().filter(|c| !c.is_control()).take(NAME_LIMIT).collect();
    let shown = if shown.is_empty() { id.to_string() } else { shown };
    let mut params = base_params(shown, now, LEAF_LIFE);
    params.subject_alt_names = vec![
        SanType::URI(format!("spiffe://{mesh}/{role}/{id}").try_into().map_err(refused)?),
        SanType::DnsName(SERVER_NAME.try_into().map_err(refused)?),
    ];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

/// What a leaf says of its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafFacts {
    /// Mesh in the URI.
    pub mesh: MeshId,
    /// Role and id in the URI; the id matches the key.
    pub peer: Peer,
    /// Public key, the 32 bytes of Ed25519.
    pub public_key: Vec<u8>,
    /// Begin of validity.
    pub valid_from: SystemTime,
    /// End of validity.
    pub expires: SystemTime,
}

/// Reads a leaf and checks that the id in its URI is the hash of its key.
///
/// Does not check who signed it: see [`super::Identity::verify_chain`].
pub fn leaf_facts(leaf: &CertificateDer<'_>) -> Result<LeafFacts, CertificateError> {
    let (rest, parsed) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::Damaged)?;
    if !rest.is_empty() {
        return Err(CertificateError::Damaged);
    }
    let names = parsed
        .subject_alternative_name()
        .map_err(|_| CertificateError::Damaged)?
        .ok_or(CertificateError::NoIdentity)?;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (Some(uri), None) = (uris.next(), uris.next()) else {
        return Err(CertificateError::NoIdentity);
    };
    let (mesh, role, claimed) = parse_uri(uri).ok_or(CertificateError::NoIdentity)?;
    let spki = parsed.public_key();
    let actual = NodeId::from_spki(spki.raw);
    if actual != claimed {
        return Err(CertificateError::WrongKey { claimed, actual });
    }
    Ok(LeafFacts {
        mesh,
        peer: Peer { role, id: claimed },
        public_key: spki.subject_public_key.data.to_vec(),
        valid_from: system_time(parsed.validity().not_before),
        expires: system_time(parsed.validity().not_after),
    })
}

pub(super) fn system_time(time: ASN1Time) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
}

/// Reads who the first certificate of a chain belongs to; the id is proven to match the key.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<Peer, CertificateError> {
    Ok(leaf_facts(chain.first().ok_or(CertificateError::Missing)?)?.peer)
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo: what a join token pins.
pub(crate) fn spki_sha256(certificate: &CertificateDer<'_>) -> Result<[u8; 32], CertificateError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::Damaged)?;
    Ok(sha256(parsed.public_key().raw))
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn parse_uri(uri: &str) -> Option<(MeshId, Role, NodeId)> {
    let mut parts = uri.strip_prefix("spiffe://")?.split('/');
    let parsed = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().is_none().then_some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESH: MeshId = MeshId([3; 16]);

    fn leaf(role: Role) -> (KeyPair, CertificateDer<'static>) {
        let root = Authority::root(MESH, SystemTime::now()).unwrap();
        let key = new_key().unwrap();
        let csr = request_for(&key).unwrap();
        let (_, certificate) =
            root.sign_leaf(&csr, MESH, role, "name\nwith break", SystemTime::now()).unwrap();
        (key, certificate)
    }

    #[test]
    fn a_leaf_says_its_role_and_the_id_of_its_key() {
        for role in [Role::Router, Role::Device] {
            let (key, certificate) = leaf(role);
            let facts = leaf_facts(&certificate).unwrap();
            assert_eq!(facts.peer, Peer { role, id: NodeId::from_spki(&key.subject_public_key_info()) });
            assert_eq!(facts.mesh, MESH);
            assert_eq!(facts.public_key, key.public_key_raw());
        }
    }

    #[test]
    fn an_id_of_another_key_is_refused() {
        let root = Authority::root(MESH, SystemTime::now()).unwrap();
        let (mine, other) = (new_key().unwrap(), NodeId::from_spki(b"another key"));
        let params = leaf_params(MESH, Role::Router, &other, "", SystemTime::now()).unwrap();
        let certificate = root.sign(&params, &mine).unwrap();
        assert!(
            matches!(leaf_facts(&certificate), Err(CertificateError::WrongKey { claimed, .. }) if claimed == other)
        );
    }

    #[test]
    fn two_names_in_one_certificate_are_refused() {
        let root = Authority::root(MESH, SystemTime::now()).unwrap();
        let key = new_key().unwrap();
        let id = NodeId::from_spki(&key.subject_public_key_info());
        let mut params = leaf_params(MESH, Role::Device, &id, "", SystemTime::now()).unwrap();
        let second = format!("spiffe://{MESH}/router/{id}");
        params.subject_alt_names.push(SanType::URI(second.try_into().unwrap()));
        let certificate = root.sign(&params, &key).unwrap();
        assert_eq!(leaf_facts(&certificate), Err(CertificateError::NoIdentity));
    }

    #[test]
    fn uris_are_read_strictly() {
        let id = NodeId::from_spki(b"k");
        assert!(parse_uri(&format!("spiffe://{MESH}/router/{id}")).is_some());
        for bad in [
            format!("spiffe://{MESH}/router/{id}/"),
            format!("spiffe://{MESH}/admin/{id}"),
            format!("http://{MESH}/router/{id}"),
            format!("spiffe://x/router/{id}"),
            format!("spiffe://{MESH}/router/"),
        ] {
            assert!(parse_uri(&bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_leaf_does_not_outlive_its_issuer() {
        let now = SystemTime::now();
        let root = Authority::root(MESH, now).unwrap();
        let (key, request) = (new_key().unwrap(), request_for(&new_key().unwrap()).unwrap());
        let router = NodeId::from_spki(b"router");
        let certificate = root.sign_issuer(&request_for(&key).unwrap(), &router, now).unwrap();
        let issuer = Authority { key, certificate };
        let late = now + ISSUER_LIFE - Duration::from_secs(3600);
        let (_, leaf) = issuer.sign_leaf(&request, MESH, Role::Device, "", late).unwrap();
        assert!(leaf_facts(&leaf).unwrap().expires <= now + ISSUER_LIFE);
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_are_no_identity(bytes: Vec<u8>) {
            let _ = parse_request(&bytes);
            proptest::prop_assert!(leaf_facts(&CertificateDer::from(bytes)).is_err());
        }

        #[test]
        fn a_damaged_certificate_never_changes_who_it_is(at in 0usize..400, flip in 1u8..) {
            let (_, certificate) = leaf(Role::Device);
            let honest = leaf_facts(&certificate).unwrap().peer.id;
            let mut bytes = certificate.to_vec();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            if let Ok(facts) = leaf_facts(&CertificateDer::from(bytes)) {
                proptest::prop_assert_eq!(facts.peer.id, honest);
            }
        }
    }

    #[test]
    fn a_request_signed_by_another_key_is_refused() {
        let root = Authority::root(MESH, SystemTime::now()).unwrap();
        let mut csr = request_for(&new_key().unwrap()).unwrap();
        let last = csr.len() - 1;
        csr[last] ^= 1;
        assert!(matches!(
            root.sign_leaf(&csr, MESH, Role::Device, "", SystemTime::now()),
            Err(CertificateError::Request(_))
        ));
    }
}
