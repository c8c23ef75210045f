//! Joining a mesh with a token: the joiner's side here, the routers' side in [`server`].
//!
//! The joiner knows the mesh only by the hash of its root's key. It checks that hash against the chain that
//! the router presents, during the handshake, so nothing of the token is sent to anyone else.

use std::error::Error as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quinn::{Connection, TokioRuntime};
use rustls_pki_types::CertificateDer;
use shoal_proto::join_client::JoinClient;
use shoal_proto::{KeyRecords, RedeemReply, RedeemRequest};
use tonic::Code;

use super::{Identity, JoinToken, SERVER_NAME};
use crate::ids::Role;
use crate::quic::{self, RouterAddr};

mod pin;
pub mod server;
mod throttle;

use pin::PinnedRoot;

/// Longest wait for one address.
const DIAL_DEADLINE: Duration = Duration::from_secs(5);
/// Longest wait for the answer: the router may have to ask the token's issuer first.
const REDEEM_DEADLINE: Duration = Duration::from_secs(20);

/// Why a join failed. Each text is a sentence for a person.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No address in the token answered.
    #[error(
        "no router of the mesh answered at {}: {last}; check that the mesh port (UDP) is open, or make a token with `--advertise` set on the node",
        addresses(tried)
    )]
    NotReachable {
        /// Addresses from the token.
        tried: Vec<SocketAddr>,
        /// What the last attempt met.
        last: String,
    },
    /// Whoever answered does not belong to the mesh of the token. Nothing was sent.
    #[error(
        "{addr} does not belong to the mesh of this token (its certificate authority is another one); nothing was sent. Make a new token on the mesh that you want to join"
    )]
    OtherMesh {
        /// Who answered.
        addr: SocketAddr,
    },
    /// The mesh refused the token; the text is the mesh's.
    #[error("{0}")]
    Refused(String),
    /// The mesh's answer makes no sense.
    #[error(
        "the mesh sent an answer that cannot be used ({0}); update this machine and the mesh to one version"
    )]
    BadReply(String),
    /// The identity could not be made or written.
    #[error(transparent)]
    Identity(#[from] super::Error),
    /// The network could not be used at all.
    #[error(transparent)]
    Network(#[from] quic::Error),
}

fn addresses(tried: &[SocketAddr]) -> String {
    if tried.is_empty() {
        return "any address (the token carries none)".to_owned();
    }
    tried.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What a successful join gives.
#[derive(Debug)]
pub struct Joined {
    /// The new identity, written to its folder.
    pub identity: Identity,
    /// Routers to dial from now on.
    pub routers: Vec<RouterAddr>,
    /// API-key records; empty for a device.
    pub keys: KeyRecords,
}

/// Redeems a token and writes the identity that it gives to `folder`.
///
/// Dials the token's addresses in turn, 5 s each. `name` is shown in the certificate. A key that an earlier
/// attempt left in `folder` is used again.
///
/// # Errors
/// [`JoinError`]; its text says what to do.
pub async fn redeem(token: &JoinToken, name: &str, folder: &Path) -> Result<Joined, JoinError> {
    let (key, csr_der) = super::key_for_join(folder)?;
    let request = RedeemRequest {
        token_id: token.token_id.to_vec(),
        secret: token.secret.to_vec(),
        issuer: token.issuer.to_string(),
        csr_der,
        name: name.to_owned(),
        role: token.role.to_string(),
    };
    let endpoint = client_endpoint()?;
    let reply = ask_in_turn(&endpoint, token, &request).await;
    endpoint.close(quic::code::DONE, b"");
    let reply = reply?;

    let roots = pinned(reply.ca_bundle, token)?;
    let chain = reply.certificate_chain.into_iter().map(CertificateDer::from).collect();
    // Looks at what was signed before anything is written.
    let identity = Identity::establish_as(folder, key, chain, roots, token.mesh_id, token.role)?;
    let routers = reply.routers.iter().filter_map(|text| text.parse().ok()).collect();
    let keys = match token.role {
        Role::Router => reply.keys.unwrap_or_default(),
        Role::Device => KeyRecords::default(),
    };
    Ok(Joined { identity, routers, keys })
}

/// Only roots whose key is the token's pin are taken, whatever else the answer carries.
fn pinned(bundle: Vec<Vec<u8>>, token: &JoinToken) -> Result<Vec<CertificateDer<'static>>, JoinError> {
    let roots: Vec<_> = bundle
        .into_iter()
        .map(CertificateDer::from)
        .filter(|root| super::certificates::spki_sha256(root).is_ok_and(|pin| pin == token.ca_pin))
        .collect();
    if roots.is_empty() {
        return Err(JoinError::BadReply("it lacks the mesh's root certificate".to_owned()));
    }
    Ok(roots)
}

async fn ask_in_turn(
    endpoint: &quinn::Endpoint,
    token: &JoinToken,
    request: &RedeemRequest,
) -> Result<RedeemReply, JoinError> {
    let mut worst = JoinError::NotReachable { tried: token.seeds.clone(), last: "nothing to try".to_owned() };
    for &addr in &token.seeds {
        let pin = Arc::new(PinnedRoot::new(token));
        let connection = match dial(endpoint, addr, pin.clone()).await {
            Ok(connection) => connection,
            Err(_) if pin.mismatched() => {
                worst = JoinError::OtherMesh { addr };
                continue;
            }
            Err(last) => {
                if let JoinError::NotReachable { last: known, .. } = &mut worst {
                    *known = last;
                }
                continue;
            }
        };
        let mut client = JoinClient::new(quic::channel_on(connection));
        let answer = tokio::time::timeout(REDEEM_DEADLINE, client.redeem(request.clone())).await;
        match answer {
            Ok(Ok(reply)) => return Ok(reply.into_inner()),
            Ok(Err(status)) if status.source().is_some() => {
                let last = "the connection broke off".to_owned();
                worst = JoinError::NotReachable { tried: token.seeds.clone(), last };
            }
            // Another router may reach the issuer where this one does not.
            Ok(Err(status)) if status.code() == Code::Unavailable => {
                worst = JoinError::Refused(status.message().to_owned());
            }
            Ok(Err(status)) => return Err(JoinError::Refused(status.message().to_owned())),
            Err(_) => {
                let seconds = REDEEM_DEADLINE.as_secs();
                worst = JoinError::Refused(format!("{addr} did not answer within {seconds} s; try again"));
            }
        }
    }
    Err(worst)
}

async fn dial(
    endpoint: &quinn::Endpoint,
    addr: SocketAddr,
    pin: Arc<PinnedRoot>,
) -> Result<Connection, String> {
    let config = quic::joiner_config(pin).map_err(|error| error.to_string())?;
    let connecting = endpoint.connect_with(config, addr, SERVER_NAME).map_err(|error| error.to_string())?;
    match tokio::time::timeout(DIAL_DEADLINE, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", DIAL_DEADLINE.as_secs())),
    }
}

/// A socket for dialling only; both IP versions where the host has them.
fn client_endpoint() -> Result<quinn::Endpoint, JoinError> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let bind = |source| {
        let addr = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        JoinError::Network(quic::Error::Bind { addr, source: Arc::new(source) })
    };
    let socket = quic::udp_socket(any).map_err(bind)?;
    quinn::Endpoint::new(quinn::EndpointConfig::default(), None, socket, Arc::new(TokioRuntime)).map_err(bind)
}

/// Seconds since the Unix epoch.
fn unix_seconds(now: SystemTime) -> u64 {
    now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
