//! Certificates for the HTTP API, signed by the mesh but good for nothing inside it.
//!
//! They differ from a member's leaf in three ways. The key is ECDSA P-256, made anew for each certificate and kept
//! in memory only: browsers know no Ed25519. They carry names and addresses of the host and no identity, so that no
//! member takes one for a router or a device. And they serve only as a server's.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    SanType,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::certificates::{Authority, CertificateError, SERVER_NAME, base_params, system_time};
use super::files::{CA_BUNDLE, pem_certificates};
use super::{Error, Identity};

/// Life of an API certificate; it is renewed at each start and at half of it, and some clients refuse more than a year.
pub const API_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// Most names and addresses of one certificate; a host with more has bridges that nobody dials.
pub const MAX_NAMES: usize = 64;

/// What a client may call the host of an API.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostNames {
    /// DNS names.
    pub names: BTreeSet<String>,
    /// Addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// A certificate for the API with its key.
pub struct ApiCertificate {
    /// The leaf, then the issuing certificate if there is one.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivatePkcs8KeyDer<'static>,
    /// When it expires.
    pub expires: SystemTime,
}

impl Identity {
    /// Makes a key and signs a certificate for it that names this host.
    ///
    /// # Errors
    /// [`Error::CannotIssue`] while this node has no issuing certificate, [`Error::Certificate`] for a name that no
    /// certificate may carry.
    pub fn issue_api(&self, host: &HostNames, now: SystemTime) -> Result<ApiCertificate, Error> {
        let issuer = self.issuer.load_full().ok_or(Error::CannotIssue)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let (leaf, expires) = issuer.sign_api(&key, host, now)?;
        Ok(ApiCertificate { chain: vec![leaf, issuer.certificate.clone()], key: der(&key), expires })
    }

    /// The mesh's root certificates as PEM, for clients of the API.
    pub fn roots_pem(&self) -> String {
        pem_certificates(self.roots_der())
    }
}

/// Makes a certificate that nobody signed but itself: until this node may issue, a client that asks for no proof gets
/// an encrypted connection.
///
/// # Errors
/// [`Error::Certificate`] for a name that no certificate may carry.
pub fn self_signed_api(host: &HostNames, now: SystemTime) -> Result<ApiCertificate, Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = params(host, now)?;
    params.use_authority_key_identifier_extension = false;
    let leaf = params.self_signed(&key)?.der().clone();
    Ok(ApiCertificate { chain: vec![leaf], key: der(&key), expires: now + API_LIFE })
}

/// File in an identity's folder that holds the mesh's root certificates: what clients of the API trust.
pub fn ca_file(folder: &Path) -> PathBuf {
    folder.join(CA_BUNDLE)
}

/// Encodes certificates as PEM.
pub fn to_pem(certificates: &[CertificateDer<'_>]) -> String {
    pem_certificates(certificates)
}

/// Begin and end of a certificate's validity.
///
/// # Errors
/// [`CertificateError::Damaged`] when it is none.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), CertificateError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::Damaged)?;
    Ok((system_time(parsed.validity().not_before), system_time(parsed.validity().not_after)))
}

impl Authority {
    fn sign_api(
        &self,
        key: &KeyPair,
        host: &HostNames,
        now: SystemTime,
    ) -> Result<(CertificateDer<'static>, SystemTime), CertificateError> {
        let mut params = params(host, now)?;
        // As with a member's leaf: one that outlives its issuer would look valid and be refused.
        let (_, issuer_expires) = validity(&self.certificate)?;
        params.not_after = params.not_after.min(issuer_expires.into());
        let expires = params.not_after.into();
        Ok((self.sign(&params, key)?, expires))
    }
}

fn params(host: &HostNames, now: SystemTime) -> Result<CertificateParams, CertificateError> {
    let shown = host.names.first().cloned().unwrap_or_else(|| "localhost".to_owned());
    let mut params = base_params(shown, now, API_LIFE);
    for name in &host.names {
        // Every dial inside the mesh checks this name: outside it must prove nothing.
        if name.eq_ignore_ascii_case(SERVER_NAME) {
            return Err(CertificateError::Request(format!("{SERVER_NAME} is a name of the mesh itself")));
        }
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().map_err(refused)?));
    }
    params.subject_alt_names.extend(host.addresses.iter().map(|ip| SanType::IpAddress(*ip)));
    params.subject_alt_names.truncate(MAX_NAMES);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn refused(error: rcgen::Error) -> CertificateError {
    CertificateError::Request(error.to_string())
}

fn der(key: &KeyPair) -> PrivatePkcs8KeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostNames {
        HostNames {
            names: BTreeSet::from(["box".to_owned(), "localhost".to_owned()]),
            addresses: BTreeSet::from(["192.168.1.5".parse().unwrap(), "::1".parse().unwrap()]),
        }
    }

    #[test]
    fn clients_that_trust_the_mesh_verify_it_for_the_hosts_names_alone() {
        use rustls::client::danger::ServerCertVerifier;
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::create_mesh(folder.path(), "first").unwrap();
        let made = identity.issue_api(&host(), SystemTime::now()).unwrap();
        let roots = super::super::root_store(identity.roots_der()).unwrap();
        let verifier =
            rustls::client::WebPkiServerVerifier::builder_with_provider(roots, super::super::provider())
                .build()
                .unwrap();
        let verify = |name: &str| {
            let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
            verifier.verify_server_cert(
                &made.chain[0],
                &made.chain[1..],
                &name,
                &[],
                rustls_pki_types::UnixTime::now(),
            )
        };
        for good in ["box", "localhost", "192.168.1.5", "::1"] {
            verify(good).unwrap();
        }
        for bad in ["api.openai.com", "192.168.1.6", SERVER_NAME] {
            verify(bad).unwrap_err();
        }
        assert_eq!(
            validity(&made.chain[0]).unwrap().1,
            made.expires - Duration::from_nanos(nanos(made.expires))
        );
    }

    fn nanos(time: SystemTime) -> u64 {
        time.duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos().into()
    }

    #[test]
    fn it_is_nobody_inside_the_mesh() {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::create_mesh(folder.path(), "first").unwrap();
        let made = identity.issue_api(&host(), SystemTime::now()).unwrap();
        assert!(matches!(
            identity.verify_chain(&made.chain, SystemTime::now()),
            Err(CertificateError::Untrusted(_))
        ));
        assert_eq!(super::super::leaf_facts(&made.chain[0]), Err(CertificateError::NoIdentity));
        let claimed = HostNames { names: BTreeSet::from([SERVER_NAME.to_owned()]), ..host() };
        assert!(identity.issue_api(&claimed, SystemTime::now()).is_err());
    }
}
