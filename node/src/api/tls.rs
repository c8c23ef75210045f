//! HTTPS on the API: which certificate it shows, how long a handshake may take, and what a client hears that speaks
//! plain HTTP to it.
//!
//! The certificate is replaced while the server runs: one from the mesh at half of its life or when the host's
//! addresses change, the user's own when its files do.

mod certificate;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use shoal_cluster::identity::Identity;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use self::certificate::Shown;
pub use self::certificate::{Error, bundle_file, examine};
use super::error::ApiError;
use crate::config::Config;
use crate::device::detect::NODE_HEADER;

/// Longest time from a connection to the end of its handshake; phones on a bad network need seconds.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);
/// First byte of every TLS connection: the type of a record that holds a handshake (RFC 8446, 5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// Bytes read of a plain HTTP request before it is answered; what else it sends is thrown away.
const PLAIN_REQUEST: usize = 8 << 10;
/// Longest time in which a client that was turned away takes its answer.
const FAREWELL: Duration = Duration::from_secs(1);

/// HTTPS of one API address.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    shown: Arc<Shown>,
    plain_answer: Arc<[u8]>,
}

impl Tls {
    /// Prepares HTTPS as the configuration says; `None` for plain HTTP.
    ///
    /// # Errors
    /// [`Error`] names the file and what is wrong with it.
    pub fn new(config: &Config, identity: &Arc<Identity>) -> Result<Option<Self>, Error> {
        let Some(shown) = Shown::new(config, identity)? else { return Ok(None) };
        let shown = Arc::new(shown);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(shown.clone());
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Some(Self {
            acceptor: TlsAcceptor::from(Arc::new(tls)),
            shown,
            plain_answer: plain_answer(&config.name).into(),
        }))
    }

    /// Keeps the certificate fresh until shutdown.
    pub async fn keep_fresh(self, shutdown: CancellationToken) {
        self.shown.keep_fresh(shutdown).await;
    }

    /// Makes the handshake with a client; `None` when it made none in time, or spoke something else.
    pub(super) async fn accept(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let ended = match tokio::time::timeout(HANDSHAKE_WAIT, self.handshake(stream)).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(ended)) => ended,
            Err(_) => Ended::Late,
        };
        metrics::counter!("shoal_tls_refused_total", "reason" => ended.as_str()).increment(1);
        None
    }

    async fn handshake(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, Ended> {
        let mut first = [0];
        if stream.peek(&mut first).await.map_err(Ended::from)? == 0 {
            return Err(Ended::Gone);
        }
        if first[0] != HANDSHAKE_RECORD {
            self.turn_away(stream).await;
            return Err(Ended::Plain);
        }
        // No bound of its own below that on connections: a few hundred clients that begin and stall would hold all places,
        // and lock everyone else out for as long as they like.
        self.acceptor.accept(stream).await.map_err(|error| {
            // A client that does not trust the certificate ends here: its own log says more than ours could.
            tracing::debug!(%error, "no TLS handshake");
            Ended::Failed
        })
    }

    /// Tells a client that speaks plain HTTP what this port speaks.
    async fn turn_away(&self, mut stream: TcpStream) {
        let said = async {
            let mut request = vec![0; PLAIN_REQUEST];
            let read = stream.read(&mut request).await?;
            if !request[..read].first().is_some_and(u8::is_ascii_uppercase) {
                return Ok(());
            }
            stream.write_all(&self.plain_answer).await?;
            stream.shutdown().await?;
            // A close with bytes unread would reset the connection, and with it the answer.
            while stream.read(&mut request).await? > 0 {}
            io::Result::Ok(())
        };
        let _ = tokio::time::timeout(FAREWELL, said).await;
    }
}

/// Why there was no handshake.
#[derive(Debug, Clone, Copy)]
enum Ended {
    Gone,
    Plain,
    Failed,
    Late,
}

impl Ended {
    fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Plain => "plain_http",
            Self::Failed => "handshake",
            Self::Late => "late",
        }
    }
}

impl From<io::Error> for Ended {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

/// The whole answer to plain HTTP, and the node's name in it: detection must not take this port for an engine.
fn plain_answer(name: &str) -> Vec<u8> {
    let message = "this port speaks HTTPS; write https:// in the base URL, and `shoal env` on the node's machine prints how a client trusts its certificate";
    let body = ApiError::new(400, "https_required", message).body();
    let mut answer = format!(
        "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: application/json\r\n{NODE_HEADER}: {name}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend(body);
    answer
}
