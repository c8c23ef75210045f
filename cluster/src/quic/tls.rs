//! TLS and transport settings for each purpose.
//!
//! TLS 1.3 only, no resumption (a resumed session would carry a verdict about a certificate into another
//! purpose, and a handshake costs a millisecond), no early data, and only the mesh's own roots count.

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, ServerConfig,
    TransportConfig, VarInt,
};
use rand::RngExt as _;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;

use super::congestion::FlooredCubic;
use super::{Alpn, Error};
use crate::identity::{Identity, provider, root_store};
use crate::ids::Role;

/// How long a silent router is believed: one lost second of keep-alive must not fail it, five must.
const ROUTER_IDLE: Duration = Duration::from_secs(5);
/// A router's keep-alive towards routers.
const ROUTER_KEEP_ALIVE: Duration = Duration::from_secs(1);
/// How long a silent device is believed: phones' radios sleep for seconds.
const DEVICE_IDLE: Duration = Duration::from_secs(15);
/// A device's keep-alive; NAT bindings live about 30 s.
const DEVICE_KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A joiner's connection serves one call.
const JOIN_IDLE: Duration = Duration::from_secs(10);
/// Inference streams at once in each direction; the transport's default of 100 would queue a busy node.
const INFER_STREAMS: VarInt = VarInt::from_u32(4096);
/// Gossip messages under way at once from one peer; each is one stream of at most 64 KiB.
const GOSSIP_STREAMS: VarInt = VarInt::from_u32(256);
/// Streams that a device may open on its link: the announcements, one that replaces them, and questions whether the
/// router is there.
pub(super) const DEVICE_STREAMS: VarInt = VarInt::from_u32(4);
/// Streams of gRPC: one per channel of the caller, with spares for reconnects.
const CONTROL_STREAMS: VarInt = VarInt::from_u32(16);
/// Streams before it is known who calls: one, enough for a joiner.
const UNKNOWN_STREAMS: VarInt = VarInt::from_u32(1);
/// Bytes under way before it is known who calls; a join request has about 500.
const UNKNOWN_WINDOW: VarInt = VarInt::from_u32(64 * 1024);
/// Bytes under way on a member's connection, over all streams.
pub(super) const MEMBER_WINDOW: VarInt = VarInt::from_u32(64 * 1024 * 1024);
/// Bytes under way on one stream: 2.5 MB/s at 100 ms. What a stalled reader leaves unread counts against the whole
/// connection, so that of readers that stop it takes 256 on one link to hold up the others; with the transport's default
/// of 1.25 MB it took 26.
const STREAM_WINDOW: VarInt = VarInt::from_u32(256 * 1024);
/// Bytes of a connection id, as the library's default.
const CONNECTION_ID: usize = 8;
/// Handshakes that may wait for their turn; more are refused at once.
const WAITING_HANDSHAKES: usize = 1024;

fn tls_error(error: impl std::fmt::Display) -> Error {
    Error::Tls(error.to_string())
}

fn idle(timeout: Duration) -> IdleTimeout {
    IdleTimeout::try_from(timeout).expect("a few seconds fit the field")
}

/// Endpoint settings with a reset key derived from the identity: after a restart the new process can tell
/// peers with old connections at once that these are dead.
pub(super) fn endpoint_config(identity: &Identity) -> EndpointConfig {
    let reset = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &identity.derived_secret("stateless reset"));
    let mut config = EndpointConfig::new(Arc::new(reset));
    config.cid_generator(|| Box::new(RandomIds));
    config
}

/// Random connection ids. The library's default marks its ids with a key of the process and drops others
/// unanswered, which would silence the resets after a restart.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::rng().random::<[u8; CONNECTION_ID]>())
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// What both ends of a member's connection have in common.
fn member_transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport.congestion_controller_factory(Arc::new(FlooredCubic::default()));
    transport
}

/// Settings for accepted connections, tight until it is known who calls; see [`super::accept`].
pub(super) fn server_config(identity: &Identity) -> Result<ServerConfig, Error> {
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls_error)?
        .with_client_cert_verifier(identity.verifier())
        .with_cert_resolver(Arc::new(OwnChain::of(identity)?));
    tls.alpn_protocols = Alpn::ALL.iter().map(|alpn| alpn.as_bytes().to_vec()).collect();
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    let mut transport = member_transport();
    // The smaller idle time-out of the two ends counts, so the dialling end decides.
    transport.max_idle_timeout(Some(idle(DEVICE_IDLE)));
    transport.max_concurrent_bidi_streams(UNKNOWN_STREAMS);
    transport.max_concurrent_uni_streams(VarInt::from_u32(0));
    transport.receive_window(UNKNOWN_WINDOW).stream_receive_window(STREAM_WINDOW);
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).map_err(tls_error)?));
    config.transport_config(Arc::new(transport));
    config.max_incoming(WAITING_HANDSHAKES);
    Ok(config)
}

/// Settings for dialling as this member.
pub(super) fn client_config(identity: &Identity, alpn: Alpn) -> Result<ClientConfig, Error> {
    let roots = root_store(identity.roots_der())?;
    let verifier =
        WebPkiServerVerifier::builder_with_provider(roots, provider()).build().map_err(tls_error)?;
    let chain = OwnChain::of(identity)?.chain;
    let mut tls = client_tls(verifier)?
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from((*chain).clone())));
    finish_client(&mut tls, alpn);
    let mut transport = member_transport();
    let (silence, keep_alive) = match identity.role() {
        Role::Router => (ROUTER_IDLE, ROUTER_KEEP_ALIVE),
        Role::Device => (DEVICE_IDLE, DEVICE_KEEP_ALIVE),
    };
    transport.max_idle_timeout(Some(idle(silence))).keep_alive_interval(Some(keep_alive));
    let (both_ways, one_way) = streams(alpn);
    transport.max_concurrent_bidi_streams(both_ways).max_concurrent_uni_streams(one_way);
    transport.receive_window(MEMBER_WINDOW).stream_receive_window(STREAM_WINDOW);
    quic_client(tls, transport)
}

/// Settings for a joiner, who has no certificate yet; `verifier` checks the pin of the token.
pub(crate) fn joiner_config(verifier: Arc<dyn ServerCertVerifier>) -> Result<ClientConfig, Error> {
    let mut tls = client_tls(verifier)?.with_no_client_auth();
    finish_client(&mut tls, Alpn::Join);
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(Some(idle(JOIN_IDLE)));
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0));
    quic_client(tls, transport)
}

/// Streams that the other end may open on a connection for `alpn`: bidirectional, unidirectional.
pub(super) fn streams(alpn: Alpn) -> (VarInt, VarInt) {
    let none = VarInt::from_u32(0);
    match alpn {
        Alpn::Join => (UNKNOWN_STREAMS, none),
        Alpn::Gossip => (none, GOSSIP_STREAMS),
        Alpn::Rpc => (INFER_STREAMS, none),
        Alpn::Control => (CONTROL_STREAMS, none),
    }
}

fn client_tls(
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert>, Error> {
    Ok(rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls_error)?
        .dangerous() // the library's word for "own verifier"; ours is its WebPKI one over our roots, or the pin
        .with_custom_certificate_verifier(verifier))
}

fn finish_client(tls: &mut rustls::ClientConfig, alpn: Alpn) {
    tls.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    tls.resumption = Resumption::disabled();
}

fn quic_client(tls: rustls::ClientConfig, transport: TransportConfig) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).map_err(tls_error)?));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Presents the own chain, and to joiners the root behind it as well: they know only its hash.
#[derive(Debug)]
struct OwnChain {
    chain: Arc<CertifiedKey>,
    with_root: Arc<CertifiedKey>,
}

impl OwnChain {
    fn of(identity: &Identity) -> Result<Self, Error> {
        let key = PrivateKeyDer::from(identity.key_der());
        let chain =
            CertifiedKey::from_der(identity.chain_der().to_vec(), key, &provider()).map_err(tls_error)?;
        let mut with_root = chain.clone();
        with_root.cert.extend(identity.roots_der().iter().cloned());
        Ok(Self { chain: Arc::new(chain), with_root: Arc::new(with_root) })
    }
}

impl ResolvesServerCert for OwnChain {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let joiner = hello.alpn()?.any(|name| name == Alpn::Join.as_bytes());
        Some(if joiner { self.with_root.clone() } else { self.chain.clone() })
    }
}
