//! Who this process is: its key, its certificates, and the tokens that let others in.
//!
//! A node's id is the hash of its Ed25519 key, so nobody can choose another's. The first router makes a
//! root and an issuing certificate; a router that joins later gets a leaf from the router that made its
//! token and asks the root's holder for an issuing certificate of its own, in the background.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use rcgen::{KeyPair, PublicKeyData as _};
use ring::rand::SecureRandom as _;
use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};

use crate::ids::{MeshId, NodeId, Peer, Role};

pub mod book;
pub mod certificates;
mod files;
mod issuer;
pub mod join;
pub mod server;
pub mod token;

pub use book::{BookError, MemoryBook, Refusal, TokenBook, TokenRecord};
pub use certificates::{CertificateError, LeafFacts, SERVER_NAME, leaf_facts, peer_identity};
pub use issuer::obtain_issuer;
pub use join::server::Admission;
pub use join::{JoinError, Joined};
pub use token::{InvalidToken, JoinToken};

use certificates::Authority;
use files::{CA_BUNDLE, ISSUER_CERTIFICATE, ISSUER_KEY, NODE_CHAIN, NODE_KEY, ROOT_KEY};

/// Why an identity could not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot use {}: {source}; check the folder's owner and free space", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is missing or does not hold what it should.
    #[error(
        "{} is damaged: {reason}; restore it from a backup, or move {} away and join again with a new token",
        path.display(),
        path.parent().unwrap_or(path).display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is an identity already where a new one should be made.
    #[error("{} holds an identity already; start without a token to use it", .0.display())]
    Exists(PathBuf),
    /// This node has no issuing certificate yet, or never will (a device).
    #[error("this node cannot issue certificates yet; make the token on another node, or try again shortly")]
    CannotIssue,
    /// This node does not hold the root's key.
    #[error("this node does not hold the mesh's root key")]
    NotRootHolder,
    /// The token book failed.
    #[error(transparent)]
    Book(#[from] BookError),
    /// The mesh gave a certificate for something else than was asked for.
    #[error("the mesh gave a certificate for another mesh or role than the token says; ask for a new token")]
    NotAsAsked,
    /// A certificate was refused.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The cryptography library failed, which healthy systems do not see.
    #[error("cryptography failed: {0}")]
    Crypto(String),
}

impl From<rcgen::Error> for Error {
    fn from(error: rcgen::Error) -> Self {
        Error::Crypto(error.to_string())
    }
}

/// This process's key, certificate chain and the mesh's roots; on a router also what it issues with.
pub struct Identity {
    peer: Peer,
    mesh: MeshId,
    key: KeyPair,
    signer: Ed25519KeyPair,
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    verifier: Arc<dyn ClientCertVerifier>,
    expires: SystemTime,
    issuer: ArcSwapOption<Authority>,
    root: Option<Authority>,
    folder: PathBuf,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("peer", &self.peer).field("mesh", &self.mesh).finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads the identity in `folder`; `None` when none was completed there.
    ///
    /// # Errors
    /// [`Error::Damaged`] names the file and the way out; [`Error::File`] when a file cannot be read.
    pub fn load(folder: &Path) -> Result<Option<Self>, Error> {
        let Some(chain_text) = read(folder, NODE_CHAIN)? else { return Ok(None) };
        let chain = certificates_in(folder, NODE_CHAIN, &chain_text)?;
        let key = key_in(folder, NODE_KEY)?;
        let roots = certificates_in(folder, CA_BUNDLE, &require(folder, CA_BUNDLE)?)?;
        let identity = Self::assemble(folder, key, chain, roots)
            .map_err(|error| damaged(folder, NODE_CHAIN, error.to_string()))?;
        let issuer = match read(folder, ISSUER_CERTIFICATE)? {
            None => None,
            Some(text) => Some(Authority {
                key: key_in(folder, ISSUER_KEY)?,
                certificate: certificates_in(folder, ISSUER_CERTIFICATE, &text)?.remove(0),
            }),
        };
        identity.issuer.store(issuer.map(Arc::new));
        let root = match read(folder, ROOT_KEY)? {
            None => None,
            Some(_) => {
                Some(Authority { key: key_in(folder, ROOT_KEY)?, certificate: identity.roots[0].clone() })
            }
        };
        Ok(Some(Self { root, ..identity }))
    }

    /// Makes a new mesh: root, issuing certificate and this router's own leaf, all written to `folder`.
    ///
    /// `node_name` is shown in the certificate and means nothing else.
    ///
    /// # Errors
    /// [`Error::Exists`] when `folder` holds an identity, [`Error::File`] when it cannot be written.
    pub fn create_mesh(folder: &Path, node_name: &str) -> Result<Self, Error> {
        if read(folder, NODE_CHAIN)?.is_some() {
            return Err(Error::Exists(folder.to_owned()));
        }
        let now = SystemTime::now();
        let mesh = MeshId(random()?);
        let key = certificates::new_key()?;
        let id = NodeId::from_spki(&key.subject_public_key_info());
        let root = Authority::root(mesh, now)?;
        let issuer_key = certificates::new_key()?;
        let request = certificates::request_for(&issuer_key)?;
        let issuer = Authority { certificate: root.sign_issuer(&request, &id, now)?, key: issuer_key };
        let request = certificates::request_for(&key)?;
        let (_, leaf) = issuer.sign_leaf(&request, mesh, Role::Router, node_name, now)?;

        write(folder, ROOT_KEY, &pem_key(&root.key))?;
        write_issuer(folder, &issuer)?;
        let chain = vec![leaf, issuer.certificate.clone()];
        let identity = Self::establish(folder, key, chain, vec![root.certificate.clone()])?;
        identity.issuer.store(Some(Arc::new(issuer)));
        Ok(Self { root: Some(root), ..identity })
    }

    /// Verifies what an issuer sent for `key` and writes it to `folder`, the chain last.
    pub(crate) fn establish(
        folder: &Path,
        key: KeyPair,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, Error> {
        let identity = Self::assemble(folder, key, chain, roots)?;
        write(folder, NODE_KEY, &pem_key(&identity.key))?;
        write(folder, CA_BUNDLE, &files::pem_certificates(&identity.roots))?;
        write(folder, NODE_CHAIN, &files::pem_certificates(&identity.chain))?;
        Ok(identity)
    }

    /// As [`Identity::establish`], and refuses what is not of the expected mesh and role.
    pub(crate) fn establish_as(
        folder: &Path,
        key: KeyPair,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
        mesh: MeshId,
        role: Role,
    ) -> Result<Self, Error> {
        let facts = leaf_facts(chain.first().ok_or(CertificateError::Missing)?)?;
        if facts.mesh != mesh || facts.peer.role != role {
            return Err(Error::NotAsAsked);
        }
        Self::establish(folder, key, chain, roots)
    }

    /// Puts the parts together, checking that they belong together.
    fn assemble(
        folder: &Path,
        key: KeyPair,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, Error> {
        let verifier = verifier(&roots)?;
        // Verified as of a time within its validity: an expired identity still loads and can say so, and a
        // machine whose clock is not set yet does not take it for damaged.
        let facts = leaf_facts(chain.first().ok_or(CertificateError::Missing)?)?;
        let valid_at = SystemTime::now().max(facts.valid_from).min(facts.expires);
        verify(&*verifier, facts.mesh, &chain, valid_at)?;
        let actual = NodeId::from_spki(&key.subject_public_key_info());
        if actual != facts.peer.id {
            return Err(CertificateError::WrongKey { claimed: facts.peer.id, actual }.into());
        }
        let signer = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.serialized_der())
            .map_err(|error| Error::Crypto(error.to_string()))?;
        Ok(Self {
            peer: facts.peer,
            mesh: facts.mesh,
            key,
            signer,
            chain,
            roots,
            verifier,
            expires: facts.expires,
            issuer: ArcSwapOption::empty(),
            root: None,
            folder: folder.to_owned(),
        })
    }

    /// Id of this node or device.
    pub fn node_id(&self) -> &NodeId {
        &self.peer.id
    }

    /// Id and role together, as others see them.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Mesh that it belongs to.
    pub fn mesh_id(&self) -> MeshId {
        self.mesh
    }

    /// Role in its certificate.
    pub fn role(&self) -> Role {
        self.peer.role
    }

    /// True on the router that made the mesh: it can sign issuing certificates.
    pub fn holds_root(&self) -> bool {
        self.root.is_some()
    }

    /// True when it can sign the certificates of joiners.
    pub fn can_issue(&self) -> bool {
        self.issuer.load().is_some()
    }

    /// Signs a message with the node key; 64 bytes of Ed25519.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.signer.sign(message).as_ref().to_vec()
    }

    /// Certificates that prove this identity: the leaf, then the issuing certificate; no root.
    pub fn chain_der(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Root certificates of the mesh.
    pub fn roots_der(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// SHA-256 of the root's public key info, the pin in join tokens.
    pub fn ca_pin(&self) -> [u8; 32] {
        certificates::spki_sha256(&self.roots[0]).expect("the root was parsed when it verified the chain")
    }

    /// When the leaf expires.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// Verifies a chain (leaf first) against this mesh's roots and returns what the leaf says.
    ///
    /// # Errors
    /// [`CertificateError`], whose text says what is wrong with the chain.
    pub fn verify_chain(
        &self,
        chain: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<LeafFacts, CertificateError> {
        verify(&*self.verifier, self.mesh, chain, now)
    }

    /// Signs a leaf for a joiner; returns who it is and its chain.
    ///
    /// # Errors
    /// [`Error::CannotIssue`] without an issuing certificate, [`Error::Certificate`] for a bad request.
    pub fn issue(
        &self,
        csr: &[u8],
        role: Role,
        name: &str,
        now: SystemTime,
    ) -> Result<(Peer, Vec<CertificateDer<'static>>), Error> {
        let issuer = self.issuer.load_full().ok_or(Error::CannotIssue)?;
        let (peer, leaf) = issuer.sign_leaf(csr, self.mesh, role, name, now)?;
        Ok((peer, vec![leaf, issuer.certificate.clone()]))
    }

    /// Signs the issuing certificate of another router, with the root's key.
    ///
    /// # Errors
    /// [`Error::NotRootHolder`] elsewhere than on the router that made the mesh.
    pub fn sign_issuer(
        &self,
        csr: &[u8],
        router: &NodeId,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, Error> {
        let root = self.root.as_ref().ok_or(Error::NotRootHolder)?;
        Ok(root.sign_issuer(csr, router, now)?)
    }

    /// Makes a key for issuing and the request to have it certified.
    pub(crate) fn request_issuer(&self) -> Result<(KeyPair, Vec<u8>), Error> {
        let key = certificates::new_key()?;
        let request = certificates::request_for(&key)?;
        Ok((key, request))
    }

    /// Takes over an issuing certificate: proves it by issuing to itself, writes it, then uses it.
    pub(crate) fn install_issuer(
        &self,
        key: KeyPair,
        certificate: CertificateDer<'static>,
    ) -> Result<(), Error> {
        let issuer = Authority { key, certificate };
        let now = SystemTime::now();
        let request = certificates::request_for(&self.key)?;
        let (_, leaf) = issuer.sign_leaf(&request, self.mesh, self.role(), "", now)?;
        self.verify_chain(&[leaf, issuer.certificate.clone()], now)?;
        write_issuer(&self.folder, &issuer)?;
        self.issuer.store(Some(Arc::new(issuer)));
        Ok(())
    }

    /// The node key for the TLS stack.
    pub(crate) fn key_der(&self) -> PrivatePkcs8KeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der())
    }

    /// Verifies what peers present.
    pub(crate) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        self.verifier.clone()
    }

    /// 32 bytes that only this key's owner can compute; stable over restarts, different for each `purpose`.
    pub(crate) fn derived_secret(&self, purpose: &str) -> [u8; 32] {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, self.key.serialized_der());
        let tag = ring::hmac::sign(&key, purpose.as_bytes());
        tag.as_ref().try_into().expect("HMAC-SHA256 has 32 bytes")
    }
}

/// Checks an Ed25519 signature; `public_key` is [`LeafFacts::public_key`].
pub fn signature_is_valid(public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public_key).verify(message, signature).is_ok()
}

/// The one TLS provider, passed explicitly everywhere so that no process default matters.
pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Collects certificates into a root store; none may be damaged.
pub(crate) fn root_store(
    roots: &[CertificateDer<'static>],
) -> Result<Arc<rustls::RootCertStore>, CertificateError> {
    let mut store = rustls::RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).map_err(|_| CertificateError::Damaged)?;
    }
    Ok(Arc::new(store))
}

/// Fills an array with random bytes of the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::Crypto("the system has no random bytes".to_owned()))?;
    Ok(bytes)
}

/// Reads the key of an unfinished join, or makes one and writes it.
pub(crate) fn key_for_join(folder: &Path) -> Result<(KeyPair, Vec<u8>), Error> {
    if read(folder, NODE_CHAIN)?.is_some() {
        return Err(Error::Exists(folder.to_owned()));
    }
    let key = match read(folder, NODE_KEY)? {
        Some(_) => key_in(folder, NODE_KEY)?,
        None => {
            let key = certificates::new_key()?;
            write(folder, NODE_KEY, &pem_key(&key))?;
            key
        }
    };
    let request = certificates::request_for(&key)?;
    Ok((key, request))
}

fn verifier(roots: &[CertificateDer<'static>]) -> Result<Arc<dyn ClientCertVerifier>, CertificateError> {
    WebPkiClientVerifier::builder_with_provider(root_store(roots)?, provider())
        .allow_unauthenticated() // for joiners; what else such a connection asks for is closed after the handshake
        .build()
        .map_err(|error| CertificateError::Untrusted(error.to_string()))
}

fn verify(
    verifier: &dyn ClientCertVerifier,
    mesh: MeshId,
    chain: &[CertificateDer<'_>],
    now: SystemTime,
) -> Result<LeafFacts, CertificateError> {
    let (leaf, rest) = chain.split_first().ok_or(CertificateError::Missing)?;
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    verifier
        .verify_client_cert(leaf, rest, UnixTime::since_unix_epoch(since_epoch))
        .map_err(|error| CertificateError::Untrusted(error.to_string()))?;
    let facts = leaf_facts(leaf)?;
    if facts.mesh != mesh {
        return Err(CertificateError::OtherMesh { expected: mesh, found: facts.mesh });
    }
    Ok(facts)
}

fn damaged(folder: &Path, file: &str, reason: impl Into<String>) -> Error {
    Error::Damaged { path: folder.join(file), reason: reason.into() }
}

fn read(folder: &Path, file: &str) -> Result<Option<String>, Error> {
    let path = folder.join(file);
    files::read_optional(&path).map_err(|source| Error::File { path, source })
}

fn require(folder: &Path, file: &str) -> Result<String, Error> {
    read(folder, file)?.ok_or_else(|| damaged(folder, file, "it is missing"))
}

fn certificates_in(folder: &Path, file: &str, text: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    files::parse_certificates(text).ok_or_else(|| damaged(folder, file, "it holds no readable certificate"))
}

fn key_in(folder: &Path, file: &str) -> Result<KeyPair, Error> {
    let der = files::parse_key(&require(folder, file)?)
        .ok_or_else(|| damaged(folder, file, "it holds no readable key"))?;
    certificates::key_from_der(&der).map_err(|_| damaged(folder, file, "it holds no Ed25519 key"))
}

fn pem_key(key: &KeyPair) -> String {
    files::pem("PRIVATE KEY", key.serialized_der())
}

fn write(folder: &Path, file: &str, text: &str) -> Result<(), Error> {
    let path = folder.join(file);
    files::write_private(&path, text).map_err(|source| Error::File { path, source })
}

fn write_issuer(folder: &Path, issuer: &Authority) -> Result<(), Error> {
    write(folder, ISSUER_KEY, &pem_key(&issuer.key))?;
    write(folder, ISSUER_CERTIFICATE, &files::pem_certificates(std::slice::from_ref(&issuer.certificate)))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
