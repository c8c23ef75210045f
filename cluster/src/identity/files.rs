//! Files of an identity: written whole or not at all, readable by their owner alone.
//!
//! Each write goes to a temporary file beside the target, is flushed to the disk, renamed over the target,
//! and the folder is flushed as well, so that a power cut leaves the old file or the new one.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// Private key of the node or device, PKCS#8 in PEM.
pub(super) const NODE_KEY: &str = "node.key";
/// Leaf, then the issuing certificate. Written last: an identity exists once this file does.
pub(super) const NODE_CHAIN: &str = "node.crt";
/// Root certificates of the mesh.
pub(super) const CA_BUNDLE: &str = "ca.crt";
/// Key with which this router signs leaves.
pub(super) const ISSUER_KEY: &str = "issuer.key";
/// Certificate of that key.
pub(super) const ISSUER_CERTIFICATE: &str = "issuer.crt";
/// Key of the mesh's root, on the first router only.
pub(super) const ROOT_KEY: &str = "root.key";

/// Characters of base64 on a line of PEM (RFC 7468).
const PEM_LINE: usize = 64;

/// Encodes one PEM block.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let body = data_encoding::BASE64.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(PEM_LINE) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// Encodes certificates, one block after the other.
pub(super) fn pem_certificates(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|der| pem("CERTIFICATE", der)).collect()
}

/// Writes `text` to `path`, durable and with mode 0600, replacing what was there in one step.
pub(super) fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let temporary = path.with_extension("partial");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    let mut file = options.open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, path)?;
    #[cfg(unix)]
    fs::File::open(folder)?.sync_all()?;
    Ok(())
}

/// Reads a file; `None` when there is none.
pub(super) fn read_optional(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the certificates of PEM text; `None` when a block is damaged or there is none.
pub(super) fn parse_certificates(text: &str) -> Option<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>().ok()?;
    (!all.is_empty()).then_some(all)
}

/// Reads a PKCS#8 key from PEM text.
pub(super) fn parse_key(text: &str) -> Option<PrivatePkcs8KeyDer<'static>> {
    PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_file_is_private_and_replaces_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/node.key");
        write_private(&path, "old").unwrap();
        write_private(&path, "new").unwrap();
        assert_eq!(read_optional(&path).unwrap().unwrap(), "new");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "a temporary file stayed");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn pem_survives_a_round_trip() {
        let certificates = vec![CertificateDer::from(vec![7u8; 100]), CertificateDer::from(vec![9u8; 3])];
        assert_eq!(parse_certificates(&pem_certificates(&certificates)).unwrap(), certificates);
        assert!(parse_certificates("nothing here").is_none());
    }
}
