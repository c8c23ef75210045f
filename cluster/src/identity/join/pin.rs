//! The check of a router's chain by someone who knows only the hash of the mesh's root.

use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::super::certificates::{leaf_facts, spki_sha256};
use super::super::{JoinToken, provider, root_store};
use crate::ids::{MeshId, Role};
use std::sync::Arc;

/// Accepts routers whose chain ends in the root that a token pins; everyone else fails the handshake, before
/// any application byte.
#[derive(Debug)]
pub(super) struct PinnedRoot {
    pin: [u8; 32],
    mesh: MeshId,
    provider: Arc<CryptoProvider>,
    mismatched: AtomicBool,
}

impl PinnedRoot {
    pub(super) fn new(token: &JoinToken) -> Self {
        Self {
            pin: token.ca_pin,
            mesh: token.mesh_id,
            provider: provider(),
            mismatched: AtomicBool::new(false),
        }
    }

    /// True once someone answered whose chain is of another mesh.
    pub(super) fn mismatched(&self) -> bool {
        self.mismatched.load(Ordering::Relaxed)
    }

    fn mismatch(&self) -> Error {
        self.mismatched.store(true, Ordering::Relaxed);
        Error::InvalidCertificate(CertificateError::UnknownIssuer)
    }
}

impl ServerCertVerifier for PinnedRoot {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let root = intermediates
            .iter()
            .find(|certificate| spki_sha256(certificate).is_ok_and(|pin| pin == self.pin))
            .ok_or_else(|| self.mismatch())?;
        let store = root_store(&[root.clone().into_owned()]).map_err(|_| self.mismatch())?;
        let webpki = WebPkiServerVerifier::builder_with_provider(store, self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        let verified =
            webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        let facts = leaf_facts(end_entity).map_err(|_| self.mismatch())?;
        if facts.mesh != self.mesh || facts.peer.role != Role::Router {
            return Err(self.mismatch());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
