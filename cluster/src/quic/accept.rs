//! Accepting connections: who may come in, and for what.

use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, Incoming};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::net::{CONNECT_DEADLINE, peer_of};
use super::{Alpn, Net, code};

/// Handshakes worked on at once; each costs about a millisecond of CPU.
const HANDSHAKES: usize = 256;
/// From so many on, callers must prove their address first, so that forged senders cost nothing.
const PROVE_ADDRESS_FROM: usize = 64;

/// Accepts connections until shutdown and sorts them into [`super::Connections`].
#[derive(Debug)]
pub struct Acceptor {
    net: Net,
}

impl Acceptor {
    pub(super) fn new(net: Net) -> Self {
        Self { net }
    }

    /// Runs until `shutdown`, or until [`Net::close`].
    pub async fn run(self, shutdown: CancellationToken) {
        let mut handshakes = JoinSet::new();
        loop {
            let room = handshakes.len() < HANDSHAKES;
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.net.closed().cancelled() => break,
                Some(_) = handshakes.join_next() => {}
                incoming = self.net.endpoint().accept(), if room => {
                    let Some(incoming) = incoming else { break };
                    self.take_up(incoming, &mut handshakes);
                }
            }
        }
    }

    fn take_up(&self, incoming: Incoming, handshakes: &mut JoinSet<()>) {
        if handshakes.len() >= PROVE_ADDRESS_FROM && !incoming.remote_address_validated() {
            if let Err(error) = incoming.retry() {
                error.into_incoming().ignore();
            }
            return;
        }
        handshakes.spawn(handshake(self.net.clone(), incoming).in_current_span());
    }
}

async fn handshake(net: Net, incoming: Incoming) {
    let remote = incoming.remote_address();
    match tokio::time::timeout(CONNECT_DEADLINE, incoming).await {
        Ok(Ok(connection)) => sort(&net, connection),
        Ok(Err(error)) => tracing::debug!(%remote, %error, "a handshake failed"),
        Err(_) => tracing::debug!(%remote, "a handshake took too long"),
    }
}

fn sort(net: &Net, connection: Connection) {
    let refuse = |reason: &str| {
        tracing::info!(remote = %connection.remote_address(), reason, "refused a connection");
        connection.close(code::NOT_ALLOWED, reason.as_bytes());
    };
    let agreed = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| Alpn::from_bytes(data.protocol.as_deref()?));
    let Some(alpn) = agreed else { return refuse("unknown purpose") };
    let peer = match peer_of(&connection, net.identity()) {
        Ok(peer) => peer,
        Err(error) => return refuse(&error.to_string()),
    };
    if !alpn.admits(peer.as_ref().map(|peer| peer.role)) {
        return refuse("the certificate does not allow this");
    }
    net.admit(alpn, peer, connection);
}
