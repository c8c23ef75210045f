//! How a command reaches a node: the admin socket in its data directory, or a URL with an API key.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use shoal_cluster::identity::server::ca_file;

use super::args::ClientArgs;
use super::exit::{CliError, Exit};
use super::up::identity_dir;
use crate::config;
use crate::upstream::http_client::{self, Trust};

/// File name of the admin socket in the data directory.
pub const ADMIN_SOCKET: &str = "admin.sock";
/// File that `shoal dev` leaves in the default data directory, so that other commands find its first node.
pub const POINTER_FILE: &str = "node-at";
/// Wait for an answer that is not a stream.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// A node, as a command sees it.
pub struct NodeClient {
    http: reqwest::Client,
    base: String,
    key: Option<String>,
    admin: bool,
    place: String,
    /// File with the certificates that prove this node.
    ca: Option<PathBuf>,
}

impl NodeClient {
    /// Finds the node: `--url`, else the admin socket of the data directory.
    pub fn find(args: &ClientArgs) -> Result<Self, CliError> {
        match &args.url {
            Some(url) => Self::by_url(url, args),
            None => Self::by_socket(&data_dir(args)),
        }
    }

    fn by_url(url: &str, args: &ClientArgs) -> Result<Self, CliError> {
        let base = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        if !base.starts_with("http://") && !base.starts_with("https://") {
            let message = format!("'{url}' is not a URL; give one such as http://127.0.0.1:8080");
            return Err(CliError::new(Exit::Usage, message));
        }
        let parsed: reqwest::Url =
            base.parse().map_err(|e| CliError::new(Exit::Usage, format!("'{url}' is not a URL: {e}")))?;
        let (ca, trust) = trust(args)?;
        let reach = http_client::Reach::of(&parsed);
        let http = http_client::build_trusting(reach, &trust).map_err(CliError::failure)?;
        Ok(Self { http, place: base.clone(), base, key: args.api_key.clone(), admin: false, ca })
    }

    #[cfg(unix)]
    fn by_socket(dir: &Path) -> Result<Self, CliError> {
        let mut socket = dir.join(ADMIN_SOCKET);
        if !socket.exists()
            && let Ok(elsewhere) = std::fs::read_to_string(dir.join(POINTER_FILE))
        {
            socket = PathBuf::from(elsewhere.trim()).join(ADMIN_SOCKET);
        }
        if !socket.exists() {
            return Err(not_running(dir));
        }
        let http = http_client::on_socket(&socket).map_err(CliError::failure)?;
        let home = socket.parent().unwrap_or(dir);
        Ok(Self {
            http,
            base: "http://shoal".into(),
            key: None,
            admin: true,
            ca: Some(ca_file(&identity_dir(home))).filter(|file| file.is_file()),
            place: socket.display().to_string(),
        })
    }

    #[cfg(not(unix))]
    fn by_socket(dir: &Path) -> Result<Self, CliError> {
        let _ = dir;
        let message = "on this platform give the node's address with --url and a key with --api-key";
        Err(CliError::new(Exit::Unreachable, message))
    }

    /// Sends a request and returns the JSON of the answer.
    pub async fn json(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, CliError> {
        let mut request = self.request(method, path).timeout(ANSWER_WAIT);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|e| self.unreachable(&e))?;
        if !status.is_success() {
            return Err(refused(status, &bytes));
        }
        serde_json::from_slice(&bytes).map_err(|e| {
            CliError::new(Exit::Failure, format!("{} answered something that is not JSON: {e}", self.place))
        })
    }

    /// Shorthand for a GET.
    pub async fn get(&self, path: &str) -> Result<Value, CliError> {
        self.json(Method::GET, path, None).await
    }

    /// Sends a request whose answer is read as a stream.
    pub async fn stream(&self, path: &str, body: &Value) -> Result<reqwest::Response, CliError> {
        let response =
            self.request(Method::POST, path).json(body).send().await.map_err(|e| self.unreachable(&e))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = response.bytes().await.unwrap_or_default();
        Err(refused(status, &bytes))
    }

    /// Returns the file with the certificates that prove the node's own; `None` where the web's are all there is.
    pub fn ca(&self) -> Option<&Path> {
        self.ca.as_deref()
    }

    /// Returns an error unless the command came in by the admin socket.
    pub fn require_admin(&self) -> Result<(), CliError> {
        if self.admin {
            return Ok(());
        }
        let message = "this command works on the node's own machine only; run it there without --url";
        Err(CliError::new(Exit::NotAllowed, message))
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> CliError {
        let cause = root_cause(error);
        let next = if cause.contains("certificate") {
            "give the mesh's certificate, identity/ca.crt in the data directory of any router, with --ca-file or SHOAL_CA_FILE"
        } else {
            "is it running? Start it with `shoal up`"
        };
        let message = format!("the node at {} does not answer ({cause}); {next}", self.place);
        CliError::new(Exit::Unreachable, message)
    }
}

/// Returns the data directory that a command means.
pub fn data_dir(args: &ClientArgs) -> PathBuf {
    args.data_dir.clone().unwrap_or_else(|| config::default_data_dir(&config::process_env()))
}

/// Returns the data directory of the local node: the one given or usual, or the one that this points to, as `shoal dev`
/// leaves it.
pub fn home(args: &ClientArgs) -> PathBuf {
    let dir = data_dir(args);
    if dir.join(ADMIN_SOCKET).exists() {
        return dir;
    }
    match std::fs::read_to_string(dir.join(POINTER_FILE)) {
        Ok(elsewhere) => PathBuf::from(elsewhere.trim()),
        Err(_) => dir,
    }
}

/// Whom `--url` may be: who `--ca-file` proves and nobody else, or a member of the mesh that the data directory
/// belongs to, or whom the web knows.
fn trust(args: &ClientArgs) -> Result<(Option<PathBuf>, Trust), CliError> {
    if let Some(file) = &args.ca_file {
        let wrong = |e: &dyn std::fmt::Display| {
            let message =
                format!("{} holds no certificate ({e}); give a PEM file with --ca-file", file.display());
            CliError::new(Exit::Usage, message)
        };
        let roots = read_certificates(file).map_err(|e| wrong(&e))?;
        if roots.is_empty() {
            return Err(wrong(&"it is empty of them"));
        }
        return Ok((Some(file.clone()), Trust::Only(roots)));
    }
    let dir = data_dir(args);
    let pointed = std::fs::read_to_string(dir.join(POINTER_FILE)).map(|text| PathBuf::from(text.trim()));
    let known = [Some(dir), pointed.ok()].into_iter().flatten().map(|dir| ca_file(&identity_dir(&dir)));
    let found = known.into_iter().find_map(|file| Some((read_certificates(&file).ok()?, file)));
    Ok(match found {
        Some((roots, file)) => (Some(file), Trust::Also(roots)),
        None => (None, Trust::default()),
    })
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, rustls::pki_types::pem::Error> {
    CertificateDer::pem_file_iter(file)?.collect()
}

fn not_running(dir: &std::path::Path) -> CliError {
    let message = format!(
        "no node runs with the data directory {}; start one with `shoal up`, or name another node with --url or --data-dir",
        dir.display()
    );
    CliError::new(Exit::Unreachable, message)
}

fn refused(status: http::StatusCode, body: &[u8]) -> CliError {
    let message = serde_json::from_slice::<Value>(body)
        .ok()
        .and_then(|v| v["error"]["message"].as_str().map(str::to_owned))
        .unwrap_or_else(|| format!("the node answered {status}"));
    let exit = match status.as_u16() {
        401 | 403 => Exit::NotAllowed,
        _ => Exit::Failure,
    };
    CliError::new(exit, message)
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut current = error;
    while let Some(source) = current.source() {
        current = source;
    }
    current.to_string()
}
