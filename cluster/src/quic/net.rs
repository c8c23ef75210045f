//! The endpoint: dials with one connection per address and purpose, and hands out every new connection once.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use quinn::{AsyncUdpSocket, ClientConfig, Connection, Endpoint, Runtime as _, TokioRuntime, VarInt};
use rustls_pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::pool::{Found, Pool, Promise};
use super::{Acceptor, Alpn, Error, code, tls};
use crate::identity::{CertificateError, Identity, SERVER_NAME, leaf_facts};
use crate::ids::{NodeId, Peer, Role};
use crate::tasks::spawn_named;

/// Longest wait for a handshake, dialling or accepting.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// A second address of the same node is tried when the first has not answered for so long.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);
/// New connections that wait to be taken up; beyond it they are closed as busy. A mesh of 100 nodes that
/// comes up at once makes about 100 of each purpose.
const NEW_CONNECTIONS: usize = 256;
/// Socket buffers: the system's default of about 200 KiB overflows when a loaded node is not scheduled for
/// some milliseconds.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;

/// A live connection and who is at its other end.
#[derive(Clone)]
pub struct Link {
    /// Who, proven by certificate.
    pub peer: Peer,
    /// The connection.
    pub connection: Connection,
    /// True when this process dialled.
    pub dialled: bool,
}

impl Link {
    /// Address of the other end, with IPv4 in its plain form.
    pub fn remote(&self) -> SocketAddr {
        canonical(self.connection.remote_address())
    }

    /// False once the connection has ended.
    pub fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("peer", &self.peer)
            .field("remote", &self.remote())
            .field("dialled", &self.dialled)
            .finish()
    }
}

/// New connections, by purpose. Gossip and RPC also deliver those that this node dialled, since the other
/// end may use them too; each connection comes once.
#[derive(Debug)]
pub struct Connections {
    /// Routers only.
    pub gossip: mpsc::Receiver<Link>,
    /// Routers and devices. On a device nothing comes here: its link looks after its own connections.
    pub rpc: mpsc::Receiver<Link>,
    /// Routers only; accepted ones only.
    pub control: mpsc::Receiver<Link>,
    /// Joiners: no certificate was checked.
    pub join: mpsc::Receiver<Connection>,
}

/// The mesh's endpoint of this process. Cheap to clone.
#[derive(Clone)]
pub struct Net {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: Endpoint,
    identity: Arc<Identity>,
    gossip: ClientConfig,
    rpc: ClientConfig,
    control: ClientConfig,
    pool: Pool,
    fresh: Fresh,
    dials: TaskTracker,
    closed: CancellationToken,
}

/// Where new connections go.
struct Fresh {
    gossip: mpsc::Sender<Link>,
    rpc: mpsc::Sender<Link>,
    control: mpsc::Sender<Link>,
    join: mpsc::Sender<Connection>,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").field("local", &self.local_addr()).finish_non_exhaustive()
    }
}

impl Net {
    /// Binds a UDP port. Nothing is accepted until the [`Acceptor`] runs. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Bind`] names the port.
    pub fn bind(identity: Arc<Identity>, listen: SocketAddr) -> Result<(Self, Acceptor, Connections), Error> {
        let refused = |source| Error::Bind { addr: listen, source: Arc::new(source) };
        let socket = udp_socket(listen).map_err(refused)?;
        let socket = TokioRuntime.wrap_udp_socket(socket).map_err(refused)?;
        Self::with_socket(identity, socket)
    }

    /// Uses a socket made elsewhere, also a simulated one.
    ///
    /// # Errors
    /// [`Error::Tls`] when the identity cannot be used, [`Error::Bind`] when the socket fails.
    pub fn with_socket(
        identity: Arc<Identity>,
        socket: Arc<dyn AsyncUdpSocket>,
    ) -> Result<(Self, Acceptor, Connections), Error> {
        let server = match identity.role() {
            Role::Router => Some(tls::server_config(&identity)?),
            Role::Device => None, // dials only
        };
        let config = tls::endpoint_config(&identity);
        let addr = socket.local_addr().unwrap_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
        let endpoint = Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(TokioRuntime))
            .map_err(|source| Error::Bind { addr, source: Arc::new(source) })?;
        let (gossip, gossip_receiver) = mpsc::channel(NEW_CONNECTIONS);
        let (rpc, rpc_receiver) = mpsc::channel(NEW_CONNECTIONS);
        let (control, control_receiver) = mpsc::channel(NEW_CONNECTIONS);
        let (join, join_receiver) = mpsc::channel(NEW_CONNECTIONS);
        let net = Self {
            inner: Arc::new(Inner {
                endpoint,
                gossip: tls::client_config(&identity, Alpn::Gossip)?,
                rpc: tls::client_config(&identity, Alpn::Rpc)?,
                control: tls::client_config(&identity, Alpn::Control)?,
                identity,
                pool: Pool::default(),
                fresh: Fresh { gossip, rpc, control, join },
                dials: TaskTracker::new(),
                closed: CancellationToken::new(),
            }),
        };
        let connections = Connections {
            gossip: gossip_receiver,
            rpc: rpc_receiver,
            control: control_receiver,
            join: join_receiver,
        };
        Ok((net.clone(), Acceptor::new(net), connections))
    }

    /// The identity that this endpoint presents.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.inner.identity
    }

    /// Bound address; the port is the real one when 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        let unknown = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        self.inner.endpoint.local_addr().map_or(unknown, canonical)
    }

    /// Returns the connection to `addr` for `alpn`, dialling when there is none.
    ///
    /// Callers that ask at the same time share one dial. The other end is some router of the mesh; use
    /// [`Net::connect_to`] where it matters which.
    ///
    /// # Errors
    /// [`Error::Dial`], [`Error::Deadline`] (5 s) or what is wrong with the peer's certificate.
    pub async fn connect(&self, addr: SocketAddr, alpn: Alpn) -> Result<Link, Error> {
        let addr = canonical(addr);
        let mut outcome = match self.inner.pool.find(addr, alpn) {
            Found::Open(link) => return Ok(link),
            Found::Dialling(outcome) => outcome,
            Found::Dial(promise, outcome) => {
                let net = self.clone();
                let dial = async move { net.dial_and_share(addr, alpn, promise).await };
                spawn_named("dial", self.inner.dials.track_future(dial));
                outcome
            }
        };
        let finished = outcome.wait_for(Option::is_some).await.map_err(|_| Error::Shutdown)?;
        finished.clone().expect("the wait ended on a result")
    }

    /// Returns a connection to the node `id`, proven by its certificate; any live one, else the first of
    /// `addrs` that answers as this node.
    ///
    /// # Errors
    /// As [`Net::connect`]; [`Error::WrongPeer`] when only others answer, [`Error::NoAddress`] for no address.
    pub async fn connect_to(&self, id: &NodeId, addrs: &[SocketAddr], alpn: Alpn) -> Result<Link, Error> {
        if let Some(link) = self.inner.pool.find_peer(id, alpn) {
            return Ok(link);
        }
        let mut attempts: FuturesUnordered<_> = addrs
            .iter()
            .zip(0u32..)
            .map(|(&addr, position)| async move {
                tokio::time::sleep(NEXT_ADDRESS_AFTER * position).await;
                let link = self.connect(addr, alpn).await?;
                if link.peer.id == *id {
                    Ok(link)
                } else {
                    Err(Error::WrongPeer { addr, expected: id.clone(), found: link.peer.id })
                }
            })
            .collect();
        let mut last = Error::NoAddress(id.clone());
        let search = async {
            while let Some(result) = attempts.next().await {
                match result {
                    Ok(link) => return Some(link),
                    Err(error) => last = error,
                }
            }
            None
        };
        match tokio::time::timeout(CONNECT_DEADLINE, search).await {
            Ok(Some(link)) => Ok(link),
            Ok(None) | Err(_) => Err(last),
        }
    }

    /// Ends all connections and stops accepting. Peers notice at once.
    pub fn close(&self) {
        self.inner.closed.cancel();
        self.inner.endpoint.close(code::SHUTDOWN, b"shutting down");
    }

    /// Waits until peers have been told of [`Net::close`], at most one second.
    pub async fn drained(&self) {
        self.inner.dials.close();
        let told = async {
            self.inner.dials.wait().await;
            self.inner.endpoint.wait_idle().await;
        };
        // A peer that has gone silent acknowledges nothing; nobody should wait for it at shutdown.
        let _ = tokio::time::timeout(Duration::from_secs(1), told).await;
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    pub(super) fn closed(&self) -> &CancellationToken {
        &self.inner.closed
    }

    async fn dial_and_share(self, addr: SocketAddr, alpn: Alpn, promise: Promise) {
        let dial = tokio::time::timeout(CONNECT_DEADLINE, self.dial(addr, alpn));
        let result = tokio::select! {
            biased;
            () = self.inner.closed.cancelled() => Err(Error::Shutdown),
            result = dial => result.unwrap_or(Err(Error::Deadline { addr, seconds: CONNECT_DEADLINE.as_secs() })),
        };
        if let Ok(link) = &result
            && self.inner.identity.role() == Role::Router
            && alpn != Alpn::Control
        {
            self.hand_out(alpn, link.clone());
        }
        self.inner.pool.dialled(addr, alpn, &promise, result);
    }

    async fn dial(&self, addr: SocketAddr, alpn: Alpn) -> Result<Link, Error> {
        let config = match alpn {
            Alpn::Gossip => &self.inner.gossip,
            Alpn::Rpc => &self.inner.rpc,
            Alpn::Control => &self.inner.control,
            Alpn::Join => {
                let reason = "a member does not join again".to_owned();
                return Err(Error::Dial { addr, reason });
            }
        };
        let failed = |reason: String| Error::Dial { addr, reason };
        let connecting = self
            .inner
            .endpoint
            .connect_with(config.clone(), addr, SERVER_NAME)
            .map_err(|error| failed(error.to_string()))?;
        let connection = connecting.await.map_err(|error| failed(error.to_string()))?;
        let refuse = |error: Error| {
            connection.close(code::NOT_ALLOWED, b"not the expected peer");
            Err(error)
        };
        let peer = match peer_of(&connection, &self.inner.identity) {
            Ok(Some(peer)) if peer.role == Role::Router => peer,
            Ok(_) => return refuse(failed("a device answered where a router should".to_owned())),
            Err(error) => return refuse(error.into()),
        };
        if peer.id == *self.inner.identity.node_id() {
            return refuse(Error::Myself(addr));
        }
        Ok(Link { peer, connection, dialled: true })
    }

    /// Takes an accepted connection whose purpose and caller have been checked.
    pub(super) fn admit(&self, alpn: Alpn, peer: Option<Peer>, connection: Connection) {
        let Some(peer) = peer.filter(|_| alpn != Alpn::Join) else {
            if let Err(refused) = self.inner.fresh.join.try_send(connection) {
                busy(&refused.into_inner());
            }
            return;
        };
        let (both_ways, one_way) = match peer.role {
            Role::Router => tls::streams(alpn),
            Role::Device => (tls::DEVICE_STREAMS, VarInt::from_u32(0)),
        };
        connection.set_receive_window(tls::MEMBER_WINDOW);
        connection.set_max_concurrent_bi_streams(both_ways);
        connection.set_max_concurrent_uni_streams(one_way);
        let link = Link { peer, connection, dialled: false };
        // A router dials from the port that it listens on, so its address serves for dialling back.
        if link.peer.role == Role::Router && alpn != Alpn::Control {
            self.inner.pool.accepted(alpn, &link);
        }
        self.hand_out(alpn, link);
    }

    fn hand_out(&self, alpn: Alpn, link: Link) {
        let queue = match alpn {
            Alpn::Gossip => &self.inner.fresh.gossip,
            Alpn::Rpc => &self.inner.fresh.rpc,
            Alpn::Control => &self.inner.fresh.control,
            Alpn::Join => return,
        };
        if let Err(refused) = queue.try_send(link) {
            busy(&refused.into_inner().connection);
        }
    }
}

/// Writes an IPv4 address that a dual-stack socket shows as IPv6 in its plain form, so that one peer has one
/// address.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Reads who is at the other end; `None` without a certificate. The handshake has verified the chain.
pub(super) fn peer_of(
    connection: &Connection,
    identity: &Identity,
) -> Result<Option<Peer>, CertificateError> {
    let Some(presented) = connection.peer_identity() else { return Ok(None) };
    let chain =
        presented.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| CertificateError::Damaged)?;
    let facts = leaf_facts(chain.first().ok_or(CertificateError::Missing)?)?;
    if facts.mesh != identity.mesh_id() {
        return Err(CertificateError::OtherMesh { expected: identity.mesh_id(), found: facts.mesh });
    }
    Ok(Some(facts.peer))
}

fn busy(connection: &Connection) {
    tracing::warn!(remote = %connection.remote_address(), "too many new connections wait; closed one");
    connection.close(code::BUSY, b"busy");
}

/// Makes the UDP socket; `[::]` also takes IPv4, and falls back to IPv4 alone on hosts without IPv6.
pub(crate) fn udp_socket(listen: SocketAddr) -> io::Result<std::net::UdpSocket> {
    match open_udp(listen) {
        Err(error) if listen.is_ipv6() && listen.ip().is_unspecified() && no_ipv6(&error) => {
            open_udp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, listen.port())))
        }
        result => result,
    }
}

fn open_udp(listen: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.is_ipv6() && listen.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // The system may allow less; a smaller buffer works, only worse.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

fn no_ipv6(error: &io::Error) -> bool {
    error.kind() != io::ErrorKind::AddrInUse && error.kind() != io::ErrorKind::PermissionDenied
}
