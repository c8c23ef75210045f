//! Real endpoints on loopback: who can talk to whom, and over how many connections.

use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::identity::{Identity, key_for_join};
use crate::ids::{Peer, Role};
use crate::tasks::spawn_named;

/// A mesh's first router, from which further identities are issued.
pub(crate) struct Mesh {
    pub(crate) root: Arc<Identity>,
    folders: Vec<TempDir>,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Arc::new(Identity::create_mesh(folder.path(), "first").unwrap());
        Self { root, folders: vec![folder] }
    }

    pub(crate) fn identity(&mut self, role: Role) -> Arc<Identity> {
        self.identity_of(role, SystemTime::now())
    }

    fn identity_of(&mut self, role: Role, issued: SystemTime) -> Arc<Identity> {
        let folder = tempfile::tempdir().unwrap();
        let (key, csr) = key_for_join(folder.path()).unwrap();
        let (_, chain) = self.root.issue(&csr, role, "", issued).unwrap();
        let identity =
            Identity::establish(folder.path(), key, chain, self.root.roots_der().to_vec()).unwrap();
        self.folders.push(folder);
        Arc::new(identity)
    }
}

/// An endpoint on loopback whose acceptor runs until it is dropped.
pub(crate) struct Node {
    pub(crate) net: Net,
    pub(crate) new: Connections,
    pub(crate) acceptor: JoinHandle<()>,
}

impl Node {
    pub(crate) fn start(identity: Arc<Identity>) -> Self {
        Self::start_at(identity, "127.0.0.1:0".parse().unwrap())
    }

    pub(crate) fn start_at(identity: Arc<Identity>, addr: SocketAddr) -> Self {
        let (net, acceptor, new) = Net::bind(identity, addr).unwrap();
        let acceptor = spawn_named("acceptor", acceptor.run(CancellationToken::new()));
        Self { net, new, acceptor }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.net.local_addr()
    }

    pub(crate) fn peer(&self) -> Peer {
        self.net.identity().peer().clone()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.net.close();
        self.acceptor.abort();
    }
}

#[tokio::test]
async fn routers_meet_and_each_knows_the_other() {
    let mut mesh = Mesh::new();
    let mut a = Node::start(mesh.root.clone());
    let b = Node::start(mesh.identity(Role::Router));
    let link = b.net.connect(a.addr(), Alpn::Gossip).await.unwrap();
    assert_eq!(link.peer, a.peer());
    let accepted = a.new.gossip.recv().await.unwrap();
    assert_eq!(accepted.peer, b.peer());
    assert!(link.dialled && !accepted.dialled);
}

#[tokio::test]
async fn a_reply_finds_the_accepted_connection_by_the_peers_address() {
    let mut mesh = Mesh::new();
    let (mut a, mut b) = (Node::start(mesh.root.clone()), Node::start(mesh.identity(Role::Router)));
    b.net.connect(a.addr(), Alpn::Gossip).await.unwrap();
    let accepted = a.new.gossip.recv().await.unwrap();
    assert_eq!(accepted.remote(), b.addr());
    let back = a.net.connect(b.addr(), Alpn::Gossip).await.unwrap();
    assert_eq!(back.connection.stable_id(), accepted.connection.stable_id());
    assert!(b.new.gossip.recv().await.unwrap().dialled, "the dialler serves the connection as well");
    assert!(b.new.gossip.try_recv().is_err(), "no second connection was made");
}

#[tokio::test]
async fn callers_at_the_same_time_share_one_dial() {
    let mut mesh = Mesh::new();
    let mut a = Node::start(mesh.root.clone());
    let b = Node::start(mesh.identity(Role::Router));
    let addr = a.addr();
    let dials = (0..20).map(|_| b.net.connect(addr, Alpn::Rpc));
    for link in futures_util::future::join_all(dials).await {
        assert_eq!(link.unwrap().peer, a.peer());
    }
    let first = a.new.rpc.recv().await.unwrap();
    assert!(first.is_open());
    assert!(a.new.rpc.try_recv().is_err());
}

#[tokio::test]
async fn another_mesh_is_refused_by_both_ends() {
    let (mine, theirs) = (Mesh::new(), Mesh::new());
    let mut a = Node::start(mine.root.clone());
    let b = Node::start(theirs.root.clone());
    let error = b.net.connect(a.addr(), Alpn::Gossip).await.unwrap_err();
    assert!(matches!(error, Error::Dial { .. }), "{error}");
    assert!(a.new.gossip.try_recv().is_err());
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_both_ends() {
    let mut mesh = Mesh::new();
    let a = Node::start(mesh.root.clone());
    let issued = SystemTime::now() - crate::identity::certificates::LEAF_LIFE - Duration::from_secs(60);
    let b = Node::start(mesh.identity_of(Role::Router, issued));
    let refused = a.net.connect(b.addr(), Alpn::Gossip).await.unwrap_err();
    assert!(refused.to_string().to_lowercase().contains("expired"), "{refused}");
    if let Ok(link) = b.net.connect(a.addr(), Alpn::Gossip).await {
        // The dialler's handshake may end before the other side has looked at its certificate.
        assert!(matches!(link.connection.closed().await, quinn::ConnectionError::ConnectionClosed(_)));
    }
}

#[tokio::test]
async fn a_device_may_open_rpc_only() {
    let mut mesh = Mesh::new();
    let mut a = Node::start(mesh.root.clone());
    let device = Node::start(mesh.identity(Role::Device));
    for alpn in [Alpn::Gossip, Alpn::Control] {
        // The handshake itself succeeds; the router closes at once when it sees the role.
        if let Ok(link) = device.net.connect(a.addr(), alpn).await {
            let reason = link.connection.closed().await;
            let quinn::ConnectionError::ApplicationClosed(close) = reason else { panic!("{reason}") };
            assert_eq!(close.error_code, code::NOT_ALLOWED);
        }
    }
    assert!(a.new.gossip.try_recv().is_err() && a.new.control.try_recv().is_err());
    device.net.connect(a.addr(), Alpn::Rpc).await.unwrap();
    assert_eq!(a.new.rpc.recv().await.unwrap().peer, device.peer());
}

#[tokio::test]
async fn a_caller_without_certificate_may_join_only() {
    let mesh = Mesh::new();
    let mut a = Node::start(mesh.root.clone());
    let roots = crate::identity::root_store(mesh.root.roots_der()).unwrap();
    let provider = crate::identity::provider();
    for alpn in Alpn::ALL {
        let mut tls = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        tls.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let connection =
            endpoint.connect_with(config, a.addr(), crate::identity::SERVER_NAME).unwrap().await.unwrap();
        if alpn == Alpn::Join {
            let _accepted = a.new.join.recv().await.unwrap();
            let _first = connection.open_bi().await.unwrap();
            let second = tokio::time::timeout(Duration::from_millis(100), connection.open_bi());
            assert!(second.await.is_err(), "a joiner was given a second stream");
            assert!(connection.open_uni().now_or_never_is_none());
        } else {
            let reason = connection.closed().await;
            assert!(
                matches!(&reason, quinn::ConnectionError::ApplicationClosed(c) if c.error_code == code::NOT_ALLOWED)
            );
        }
    }
    assert!(a.new.gossip.try_recv().is_err());
    assert!(a.new.rpc.try_recv().is_err() && a.new.control.try_recv().is_err());
}

trait Pending {
    fn now_or_never_is_none(self) -> bool;
}

impl<F: Future> Pending for F {
    fn now_or_never_is_none(self) -> bool {
        futures_util::FutureExt::now_or_never(self).is_none()
    }
}

#[tokio::test]
async fn connect_to_skips_wrong_and_dead_addresses() {
    let mut mesh = Mesh::new();
    let a = Node::start(mesh.root.clone());
    let b = Node::start(mesh.identity(Role::Router));
    let c = Node::start(mesh.identity(Role::Router));
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addrs = [silent.local_addr().unwrap(), b.addr(), c.addr()];
    let link = a.net.connect_to(&c.peer().id, &addrs, Alpn::Rpc).await.unwrap();
    assert_eq!(link.peer, c.peer());
    let again = a.net.connect_to(&c.peer().id, &[], Alpn::Rpc).await.unwrap();
    assert_eq!(again.connection.stable_id(), link.connection.stable_id());
    let error = a.net.connect_to(&NodeId::from_spki(b"nobody"), &[b.addr()], Alpn::Rpc).await.unwrap_err();
    assert!(matches!(error, Error::WrongPeer { found, .. } if found == b.peer().id));
}

#[tokio::test]
async fn dialling_oneself_is_refused() {
    let mesh = Mesh::new();
    let a = Node::start(mesh.root.clone());
    let error = a.net.connect(a.addr(), Alpn::Gossip).await.unwrap_err();
    assert!(matches!(error, Error::Myself(_)), "{error}");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let mesh = Mesh::new();
    let a = Node::start(mesh.root.clone());
    let Err(error) = Net::bind(mesh.root.clone(), a.addr()) else { panic!("bound twice") };
    assert!(error.to_string().contains(&a.addr().to_string()), "{error}");
}

#[tokio::test]
async fn a_dual_stack_socket_shows_plain_ipv4_addresses() {
    let mut mesh = Mesh::new();
    let Ok((net, acceptor, mut new)) = Net::bind(mesh.root.clone(), "[::]:0".parse().unwrap()) else {
        return;
    };
    let acceptor = spawn_named("acceptor", acceptor.run(CancellationToken::new()));
    let b = Node::start(mesh.identity(Role::Router));
    let addr = SocketAddr::from(([127, 0, 0, 1], net.local_addr().port()));
    b.net.connect(addr, Alpn::Gossip).await.unwrap();
    assert_eq!(new.gossip.recv().await.unwrap().remote(), b.addr());
    net.close();
    acceptor.await.unwrap();
}

#[tokio::test]
async fn a_restarted_router_is_redialled_without_waiting_for_the_idle_timeout() {
    let mut mesh = Mesh::new();
    let a = Node::start(mesh.root.clone());
    let restarting = mesh.identity(Role::Router);
    // A runtime of its own that is dropped without a farewell, as in a crash.
    let (sender, receiver) = std::sync::mpsc::channel();
    let (crash, crashed) = tokio::sync::oneshot::channel::<()>();
    let identity = restarting.clone();
    let process = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let endpoint = runtime.block_on(async {
            let (net, acceptor, mut new) = Net::bind(identity, "127.0.0.1:0".parse().unwrap()).unwrap();
            spawn_named("acceptor", acceptor.run(CancellationToken::new()));
            sender.send(net.local_addr()).unwrap();
            let link = new.rpc.recv().await.unwrap();
            let (mut send, receive) = link.connection.accept_bi().await.unwrap();
            send.write_all(b"!").await.unwrap();
            let _ = crashed.await;
            (net, new, link, send, receive)
        });
        drop(runtime); // first: without its tasks the rest can say no farewell
        drop(endpoint);
    });
    let addr = receiver.recv().unwrap();
    let old = a.net.connect(addr, Alpn::Rpc).await.unwrap();
    // An answer proves that both ends have left the handshake behind; before, no reset would be understood.
    let (mut send, mut receive) = old.connection.open_bi().await.unwrap();
    send.write_all(b"?").await.unwrap();
    receive.read_exact(&mut [0]).await.unwrap();
    crash.send(()).unwrap();
    process.join().unwrap();
    let b = Node::start_at(restarting, addr);
    let began = std::time::Instant::now();
    let reason = old.connection.closed().await;
    assert_eq!(reason, quinn::ConnectionError::Reset, "after {:?}", began.elapsed());
    let new = a.net.connect(addr, Alpn::Rpc).await.unwrap();
    assert_eq!(new.peer, b.peer());
    assert_ne!(new.connection.stable_id(), old.connection.stable_id());
}

#[tokio::test]
async fn streams_that_nobody_reads_do_not_hold_up_another_one() {
    const STALLED: usize = 200;
    let mut mesh = Mesh::new();
    let mut a = Node::start(mesh.root.clone());
    let b = Node::start(mesh.identity(Role::Router));
    let reader = b.net.connect(a.addr(), Alpn::Rpc).await.unwrap().connection;
    let writer = a.new.rpc.recv().await.unwrap().connection;
    let piece = vec![7; 256 * 1024];
    let played = tokio::time::timeout(Duration::from_secs(60), async {
        let (mut open, mut unread) = (Vec::new(), Vec::new());
        for _ in 0..STALLED {
            let mut stream = writer.open_bi().await.unwrap();
            // Done once the far end holds it all: it may have that much of each, read or not.
            stream.0.write_all(&piece).await.unwrap();
            open.push(stream);
            unread.push(reader.accept_bi().await.unwrap());
        }
        let (mut send, _receive) = writer.open_bi().await.unwrap();
        send.write_all(&piece).await.unwrap();
        send.finish().unwrap();
        let (_send, mut receive) = reader.accept_bi().await.unwrap();
        receive.read_to_end(piece.len()).await.unwrap()
    });
    assert_eq!(played.await.expect("nothing waits for those who do not read").len(), 256 * 1024);
}
