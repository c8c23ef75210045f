//! How the API's address is protected: HTTPS wherever the address leaves loopback, unless somebody says otherwise.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Error;

/// The `[api]` table.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileApi {
    /// Model that Anthropic's names (`claude-…`) mean where nobody serves them; empty: they are unknown. Default `auto`.
    pub claude_model: Option<String>,
    /// HTTPS of the API.
    pub tls: FileTls,
}

/// The `[api.tls]` table.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileTls {
    /// When HTTPS is served. Default `auto`: when the API's address is not loopback.
    pub mode: Option<TlsMode>,
    /// Own certificate, PEM, with what it takes to reach a root; read again when it changes.
    pub cert: Option<PathBuf>,
    /// Key of the own certificate, PEM, not encrypted.
    pub key: Option<PathBuf>,
    /// Further DNS names for the certificate from the mesh.
    pub names: Vec<String>,
}

/// When the API speaks HTTPS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// Where the address is not loopback, or a certificate is given.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never: a proxy in front of it does.
    Off,
}

/// `--tls`, `--tls-cert` and `--tls-key`
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TlsFlags {
    /// HTTPS on the API [default: auto, which is on unless the address is loopback].
    #[arg(long, value_enum, value_name = "WHEN")]
    pub tls: Option<TlsMode>,
    /// Own certificate for the API, PEM with its chain [default: one from the mesh].
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Key of --tls-cert, PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
}

/// What the API proves itself with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiTls {
    /// Plain HTTP.
    Off,
    /// A certificate signed by the mesh, also for these names.
    Mesh {
        /// DNS names besides the host's own.
        names: Vec<String>,
    },
    /// The user's certificate and key.
    Own {
        /// PEM file of the chain.
        certificate: PathBuf,
        /// PEM file of the key.
        key: PathBuf,
    },
}

impl ApiTls {
    /// Merges flags and file for an API that listens on `ip`.
    pub(super) fn merge(flags: TlsFlags, file: FileTls, ip: IpAddr) -> Result<Self, Error> {
        let invalid = |message: &str| Error::Invalid { origin: "api.tls".into(), message: message.into() };
        let mode = flags.tls.or(file.mode).unwrap_or_default();
        // A pair belongs together: a flag for one half does not mix with the file's other half.
        let (certificate, key) = match (flags.tls_cert, flags.tls_key) {
            (None, None) => (file.cert, file.key),
            given => given,
        };
        match (mode, certificate, key) {
            (TlsMode::Off, _, _) => Ok(Self::Off),
            (_, Some(certificate), Some(key)) => Ok(Self::Own { certificate, key }),
            (_, Some(_), None) => {
                Err(invalid("a certificate needs its key; add --tls-key FILE (api.tls.key)"))
            }
            (_, None, Some(_)) => {
                Err(invalid("a key needs its certificate; add --tls-cert FILE (api.tls.cert)"))
            }
            (TlsMode::Auto, None, None) if ip.is_loopback() => Ok(Self::Off),
            (_, None, None) => {
                if let Some(name) = file.names.iter().find(|name| !is_dns_name(name)) {
                    return Err(invalid(&format!(
                        "'{name}' in names is not a DNS name; write for example shoal.example.org"
                    )));
                }
                Ok(Self::Mesh { names: file.names })
            }
        }
    }

    /// The URL scheme of the API.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Off => "http",
            Self::Mesh { .. } | Self::Own { .. } => "https",
        }
    }

    /// One word for status: `off`, `mesh` or `own`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Mesh { .. } => "mesh",
            Self::Own { .. } => "own",
        }
    }
}

/// Tells whether a certificate may carry `name`; the mesh's own name is not for the API.
pub(crate) fn is_dns_name(name: &str) -> bool {
    let fits = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let rest = name.strip_prefix("*.").unwrap_or(name);
    name.len() <= 253
        && rest.split('.').all(fits)
        && rest.parse::<IpAddr>().is_err()
        && !name.eq_ignore_ascii_case(shoal_cluster::identity::SERVER_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(flags: TlsFlags, file: &str, ip: &str) -> Result<ApiTls, String> {
        let file: FileTls = toml::from_str(file).unwrap();
        ApiTls::merge(flags, file, ip.parse().unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn https_is_the_default_exactly_where_the_address_leaves_loopback() {
        let kind = |file: &str, ip: &str| merged(TlsFlags::default(), file, ip).unwrap().as_str();
        for (file, ip, expected) in [
            ("", "127.0.0.1", "off"),
            ("", "::1", "off"),
            ("", "0.0.0.0", "mesh"),
            ("", "::", "mesh"),
            ("", "192.168.1.5", "mesh"),
            ("mode = 'off'", "0.0.0.0", "off"),
            ("mode = 'on'", "127.0.0.1", "mesh"),
            ("cert = 'c'\nkey = 'k'", "127.0.0.1", "own"),
            ("cert = 'c'\nkey = 'k'\nmode = 'off'", "0.0.0.0", "off"),
        ] {
            assert_eq!(kind(file, ip), expected, "{file:?} on {ip}");
        }
        let off = TlsFlags { tls: Some(TlsMode::Off), ..TlsFlags::default() };
        assert_eq!(merged(off, "mode = 'on'", "0.0.0.0").unwrap(), ApiTls::Off, "the flag wins");
    }

    #[test]
    fn half_a_pair_and_names_that_are_none_are_refused() {
        let half = TlsFlags { tls_cert: Some("c".into()), ..TlsFlags::default() };
        assert!(merged(half, "cert = 'x'\nkey = 'y'", "0.0.0.0").unwrap_err().contains("--tls-key"));
        assert!(merged(TlsFlags::default(), "key = 'k'", "0.0.0.0").unwrap_err().contains("--tls-cert"));
        for bad in ["", "a b", "-x", "10.0.0.1", "shoal.internal", "x..y", "https://x"] {
            let file = format!("names = ['{bad}']");
            assert!(merged(TlsFlags::default(), &file, "0.0.0.0").unwrap_err().contains("DNS name"), "{bad}");
        }
        assert!(merged(TlsFlags::default(), "names = ['shoal.example.org', '*.lan']", "::").is_ok());
    }
}
