//! The one place that builds an HTTP client, so that every socket has the same safe settings.
//!
//! Redirects are off: an engine or provider that redirects is misconfigured or hostile, and following it would
//! carry a prompt to an address nobody allowed. Trust is the union of the bundled web roots and the host's own:
//! the first alone fails behind a gateway that re-signs, the second alone is empty in a bare container.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, Url, redirect};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

/// Longest wait for a TCP or TLS connection on the local network.
pub const CONNECT_TIMEOUT_LAN: Duration = Duration::from_secs(2);

/// Longest wait for a TCP or TLS connection across the internet.
pub const CONNECT_TIMEOUT_INTERNET: Duration = Duration::from_secs(5);

/// How long an idle connection is kept: below the 5 s after which common Python servers close theirs, so that
/// a request does not meet a connection that is just being closed.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// Idle connections kept to one host; more than the slots of a usual engine would only hold memory.
const POOL_MAX_IDLE: usize = 64;

/// How far away the servers of a client are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// This host or the local network: short connect time-out, never through a proxy.
    Lan,
    /// The internet: longer connect time-out, through the system's proxy if one is set.
    Internet,
}

impl Reach {
    /// Judges a base URL by its host alone, without asking a name server.
    pub fn of(url: &Url) -> Self {
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let local = match host.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) => {
                let [a, b, ..] = ip.octets();
                let carrier_grade = a == 100 && (64..128).contains(&b);
                ip.is_loopback() || ip.is_private() || ip.is_link_local() || carrier_grade
            }
            Ok(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
            Err(_) => {
                let suffixes = [".localhost", ".local", ".lan", ".internal", ".home.arpa"];
                !host.contains('.') || suffixes.iter().any(|suffix| host.ends_with(suffix))
            }
        };
        if local { Reach::Lan } else { Reach::Internet }
    }
}

/// The client could not be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The TLS settings were refused.
    #[error("the TLS client settings are not usable")]
    Tls(#[from] rustls::Error),
    /// The HTTP settings were refused.
    #[error("the HTTP client could not be built")]
    Http(#[from] reqwest::Error),
}

/// Builds a client for servers at the given reach.
///
/// The client is cheap to clone and shares one connection pool; build one for each reach, not one per request.
///
/// # Errors
/// The TLS or HTTP library refused the settings.
pub fn build(reach: Reach) -> Result<Client, Error> {
    build_trusting(reach, &Trust::default())
}

/// As [`build`], with a say in which servers are believed.
///
/// # Errors
/// The TLS or HTTP library refused the settings.
#[allow(clippy::disallowed_methods)] // the one place that the lint points to
pub fn build_trusting(reach: Reach, trust: &Trust) -> Result<Client, Error> {
    let builder = Client::builder()
        .tls_backend_preconfigured(tls_config(trust)?)
        .redirect(redirect::Policy::none())
        .tcp_nodelay(true)
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(POOL_MAX_IDLE)
        .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")));
    let builder = match reach {
        Reach::Lan => builder.connect_timeout(CONNECT_TIMEOUT_LAN).no_proxy(),
        Reach::Internet => builder.connect_timeout(CONNECT_TIMEOUT_INTERNET),
    };
    Ok(builder.build()?)
}

/// Builds a client that reaches one server through a Unix socket, whatever host its URLs name.
///
/// # Errors
/// The TLS or HTTP library refused the settings.
#[cfg(unix)]
#[allow(clippy::disallowed_methods)] // the one place that the lint points to
pub fn on_socket(path: &std::path::Path) -> Result<Client, Error> {
    let builder = Client::builder().tls_backend_preconfigured(tls_config(&Trust::default())?).no_proxy();
    Ok(builder.redirect(redirect::Policy::none()).unix_socket(path).build()?)
}

/// Roots that a client believes.
#[derive(Debug, Clone)]
pub enum Trust {
    /// The web's and the host's, and these.
    Also(Vec<CertificateDer<'static>>),
    /// These alone.
    Only(Vec<CertificateDer<'static>>),
}

impl Default for Trust {
    fn default() -> Self {
        Self::Also(Vec::new())
    }
}

impl Trust {
    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        let given = match self {
            Self::Only(given) => given,
            Self::Also(given) => {
                roots.roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
                let native = rustls_native_certs::load_native_certs();
                let (_, ignored) = roots.add_parsable_certificates(native.certs);
                if ignored > 0 || !native.errors.is_empty() {
                    tracing::debug!(
                        ignored,
                        errors = native.errors.len(),
                        "some of the host's root certificates are unusable"
                    );
                }
                given
            }
        };
        roots.add_parsable_certificates(given.iter().cloned());
        roots
    }
}

fn tls_config(trust: &Trust) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_root_certificates(trust.roots()).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clients_build_without_a_process_wide_tls_provider() {
        build(Reach::Lan).unwrap();
        build(Reach::Internet).unwrap();
    }

    #[test]
    fn reach_follows_the_host() {
        let check = |url: &str, reach| assert_eq!(Reach::of(&url.parse().unwrap()), reach, "{url}");
        for lan in [
            "127.0.0.1:1",
            "localhost:1",
            "gpu-box:8000",
            "10.1.2.3",
            "192.168.0.9",
            "100.64.1.2",
            "[::1]:8080",
            "[fd00::1]",
            "tower.local",
            "172.17.0.1",
        ] {
            check(&format!("http://{lan}/v1"), Reach::Lan);
        }
        for far in ["api.openai.com", "8.8.8.8", "100.128.0.1", "[2606:4700::1111]"] {
            check(&format!("https://{far}/v1"), Reach::Internet);
        }
    }
}
