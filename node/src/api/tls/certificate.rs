//! The certificate that the API shows, and its renewal.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::SignatureScheme;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use shoal_cluster::identity::Identity;
use shoal_cluster::identity::server::{self, ApiCertificate, HostNames};
use tokio_util::sync::CancellationToken;

use crate::config::{self, ApiTls, Config, is_dns_name};

/// Time between two looks at the files, the addresses and the remaining life.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The same while this node may not issue yet: the mesh gives that right within seconds of a join.
const LOOK_SOON: Duration = Duration::from_secs(1);
/// Largest PEM file that is read; a chain takes a few KB.
const MAX_PEM: u64 = 1 << 20;

/// Why HTTPS could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read the {what} {}: {source}; correct --tls-cert and --tls-key (api.tls in the config)", path.display())]
    Read {
        /// `certificate` or `key`
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("{} {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// The mesh's certificate could not be made.
    #[error(transparent)]
    Identity(#[from] shoal_cluster::identity::Error),
    /// The TLS library refused the settings.
    #[error("the TLS settings are not usable: {0}")]
    Tls(#[from] rustls::Error),
}

/// The file with the host's root certificates and the mesh's, for clients that know only one list (`SSL_CERT_FILE`).
pub fn bundle_file(data_dir: &Path) -> PathBuf {
    data_dir.join("ca-bundle.crt")
}

/// Shows the certificate of the moment.
#[derive(Debug)]
pub(super) struct Shown {
    certificate: ArcSwap<Certificate>,
    source: Source,
}

#[derive(Debug)]
struct Certificate {
    key: Arc<CertifiedKey>,
    /// For clients that know no Ed25519, with which the mesh signs. Browsers call a certificate that is signed so
    /// invalid and let nobody past; of one that is signed by itself they warn.
    unsigned: Option<Arc<CertifiedKey>>,
    basis: Basis,
}

#[derive(Debug)]
enum Source {
    Mesh { identity: Arc<Identity>, wanted: Wanted },
    Own { certificate: PathBuf, key: PathBuf },
}

/// What the configuration adds to the host's own names.
#[derive(Debug)]
struct Wanted {
    names: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
}

/// What a certificate was made from.
#[derive(Debug)]
struct Basis {
    host: HostNames,
    renew_at: SystemTime,
    temporary: bool,
    changed: [Option<SystemTime>; 2],
}

impl Shown {
    /// Reads or makes the first certificate; `None` for plain HTTP.
    pub(super) fn new(config: &Config, identity: &Arc<Identity>) -> Result<Option<Self>, Error> {
        let source = match &config.tls {
            ApiTls::Off => return Ok(None),
            ApiTls::Own { certificate, key } => {
                Source::Own { certificate: certificate.clone(), key: key.clone() }
            }
            ApiTls::Mesh { names } => {
                write_bundle(&config.data_dir, identity);
                let mut addresses: BTreeSet<IpAddr> = config.advertise.iter().map(|a| a.ip()).collect();
                addresses.insert(config.listen.ip());
                let wanted = Wanted { names: names.iter().cloned().collect(), addresses };
                Source::Mesh { identity: identity.clone(), wanted }
            }
        };
        Ok(Some(Self { certificate: ArcSwap::from_pointee(source.certificate()?), source }))
    }

    /// Returns the certificate of the moment, as clients see it that can verify it.
    #[cfg(test)]
    pub(super) fn now(&self) -> Arc<CertifiedKey> {
        self.certificate.load().key.clone()
    }

    /// Replaces the certificate when it is time, until shutdown; a failure keeps the old one and is told once.
    pub(super) async fn keep_fresh(&self, shutdown: CancellationToken) {
        let mut told = false;
        loop {
            let pause = if self.certificate.load().basis.temporary { LOOK_SOON } else { LOOK_EVERY };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => return,
            }
            if !self.source.is_stale(&self.certificate.load().basis) {
                continue;
            }
            match self.source.certificate() {
                Ok(fresh) => {
                    self.certificate.store(Arc::new(fresh));
                    tracing::info!("the API shows a new certificate");
                    told = false;
                }
                Err(error) if told => tracing::debug!(%error, "still no new certificate for the API"),
                Err(error) => {
                    tracing::warn!(%error, "no new certificate for the API; it shows the old one");
                    told = true;
                }
            }
        }
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let certificate = self.certificate.load();
        let verifies = hello.signature_schemes().contains(&SignatureScheme::ED25519);
        Some(certificate.unsigned.as_ref().filter(|_| !verifies).unwrap_or(&certificate.key).clone())
    }
}

impl Source {
    fn certificate(&self) -> Result<Certificate, Error> {
        let basis = self.basis();
        match self {
            Self::Own { certificate, key } => {
                Ok(Certificate { key: Arc::new(read_pair(certificate, key)?), unsigned: None, basis })
            }
            Self::Mesh { identity, .. } => {
                let now = SystemTime::now();
                let unsigned = server::self_signed_api(&basis.host, now)?;
                if basis.temporary {
                    tracing::warn!(
                        "this node may not issue certificates yet; until then the API shows one that no client can verify"
                    );
                    return Ok(Certificate { key: certified(unsigned)?, unsigned: None, basis });
                }
                let signed = identity.issue_api(&basis.host, now)?;
                let life = signed.expires.duration_since(now).unwrap_or_default();
                let basis = Basis { renew_at: now + life / 2, ..basis };
                Ok(Certificate { key: certified(signed)?, unsigned: Some(certified(unsigned)?), basis })
            }
        }
    }

    /// Looks at what a certificate of this moment would be made from.
    fn basis(&self) -> Basis {
        let far = SystemTime::now() + server::API_LIFE / 2;
        match self {
            Self::Own { certificate, key } => Basis {
                host: HostNames::default(),
                renew_at: far,
                temporary: false,
                changed: [changed_at(certificate), changed_at(key)],
            },
            Self::Mesh { identity, wanted } => Basis {
                host: wanted.with_hosts_own(),
                renew_at: far,
                temporary: !identity.can_issue(),
                changed: [None; 2],
            },
        }
    }

    fn is_stale(&self, of: &Basis) -> bool {
        let now = self.basis();
        match self {
            Self::Own { .. } => now.changed != of.changed,
            Self::Mesh { .. } => {
                SystemTime::now() >= of.renew_at || now.temporary != of.temporary || now.host != of.host
            }
        }
    }
}

impl Wanted {
    /// Adds what this host is called and all its addresses: whichever of them a client dials, it is this host.
    fn with_hosts_own(&self) -> HostNames {
        let mut names = self.names.clone();
        names.insert("localhost".to_owned());
        let host = config::host_name();
        if is_dns_name(&host) {
            // The second name is how multicast DNS calls it, which phones and laptops ask by.
            names.insert(format!("{host}.local"));
            names.insert(host);
        }
        let mut addresses = self.addresses.clone();
        addresses.extend([IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)]);
        addresses.retain(|ip| !ip.is_unspecified());
        // A host of many containers has more bridges than a certificate may name: what was asked for stays.
        for found in shoal_cluster::advertise::interfaces() {
            if names.len() + addresses.len() < server::MAX_NAMES {
                addresses.insert(found.ip);
            }
        }
        HostNames { names, addresses }
    }
}

fn certified(made: ApiCertificate) -> Result<Arc<CertifiedKey>, Error> {
    let key = CertifiedKey::from_der(made.chain, PrivateKeyDer::from(made.key), &provider())?;
    Ok(Arc::new(key))
}

fn provider() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

fn changed_at(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|facts| facts.modified()).ok()
}

/// Reads a pair of the user's own as the server would; returns when the certificate expires.
///
/// # Errors
/// [`Error`] names the file and what is wrong with it.
pub fn examine(certificate: &Path, key: &Path) -> Result<SystemTime, Error> {
    let pair = read_pair(certificate, key)?;
    let damaged = |e: shoal_cluster::identity::CertificateError| Error::Identity(e.into());
    Ok(server::validity(&pair.cert[0]).map_err(damaged)?.1)
}

fn read_pair(certificate: &Path, key: &Path) -> Result<CertifiedKey, Error> {
    let content =
        |path: &Path, problem: &str| Error::Content { path: path.to_owned(), problem: problem.into() };
    let text = read("certificate", certificate)?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|_| content(certificate, "is no PEM file of certificates"))?;
    if chain.is_empty() {
        let problem = "holds no certificate; it must begin with -----BEGIN CERTIFICATE-----";
        return Err(content(certificate, problem));
    }
    let (_, expires) = server::validity(&chain[0])
        .map_err(|_| content(certificate, "holds a damaged certificate; copy it again"))?;
    if expires <= SystemTime::now() {
        tracing::warn!(file = %certificate.display(), "the API's certificate has expired; clients will refuse it");
    }
    let text = read("key", key)?;
    let read_key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
        let encrypted = text.windows(9).any(|word| word == b"ENCRYPTED");
        content(
            key,
            if encrypted {
                "holds an encrypted key; write it unencrypted with `openssl pkey -in F -out G`"
            } else {
                "holds no private key; it must begin with -----BEGIN PRIVATE KEY-----"
            },
        )
    })?;
    CertifiedKey::from_der(chain, read_key, &provider()).map_err(|error| {
        let problem = match error {
            rustls::Error::InconsistentKeys(_) => {
                format!(
                    "is not the key of the certificate {}; give the pair that belongs together",
                    certificate.display()
                )
            }
            other => format!("cannot be used with {}: {other}", certificate.display()),
        };
        content(key, &problem)
    })
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read { what, path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > MAX_PEM {
        let problem = format!("is larger than 1 MiB and so no {what}");
        return Err(Error::Content { path: path.to_owned(), problem });
    }
    std::fs::read(path).map_err(failed)
}

/// Writes the host's roots and the mesh's into one file; without it clients trust the mesh by `ca.crt` alone.
fn write_bundle(data_dir: &Path, identity: &Identity) {
    let host = rustls_native_certs::load_native_certs().certs;
    let text = format!("{}{}", identity.roots_pem(), server::to_pem(&host));
    let path = bundle_file(data_dir);
    let part = path.with_extension("part");
    if let Err(error) = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, &path)) {
        tracing::warn!(%error, file = %path.display(), "the list of trusted certificates could not be written");
    }
}
