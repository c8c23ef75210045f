//! A router's whole part in its mesh: endpoint, gossip, inference streams, device links, joins and control.
//!
//! [`Service`] owns the tasks, [`Handle`] is what the rest of the program holds, [`Inbound`] is what comes in.
//! The mesh is optional: a router without peers runs the same way, and seeds are tried for ever.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use shoal_proto::control_client::ControlClient;
use shoal_proto::{InferRequest, NodeInfo, SignedBlob};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Channel;

use crate::advertise;
use crate::blob::{self, BlobRefusal};
use crate::directory::MeshDirectory;
use crate::gossip::{self, Gossip, GossipHandle, TooLarge};
use crate::identity::{self, Admission, Identity, JoinToken, TokenBook, obtain_issuer};
use crate::ids::{NodeId, Peer, Role};
use crate::keyspace::{Key, Origin, Refusal, Value};
use crate::quic::{self, Acceptor, Channels, Connections, Inbound, InferStream, Net, RouterAddr, Rpc};
use crate::tasks::spawn_named;
use crate::view::ClusterView;

/// How a router takes part in its mesh.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its name, for people.
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// Base URL of its HTTP API.
    pub api_url: String,
    /// UDP address of the mesh port; `[::]:7411` by default. Port 0 takes any.
    pub listen: SocketAddr,
    /// What others are told to dial, best first. Empty: worked out from the host's interfaces; port 0: the
    /// bound one.
    pub advertise: Vec<SocketAddr>,
    /// Routers to find the mesh by; tried for ever, needed only until others are known.
    pub seeds: Vec<RouterAddr>,
    /// Time between two rounds of gossip; [`gossip::DEFAULT_INTERVAL`] fits a mesh of up to 100 routers.
    pub gossip_interval: Duration,
    /// Start number: must be greater than at the last start, or others take this node for its own ghost.
    pub generation: u64,
}

/// Why the mesh could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint or a peer; says which address and why.
    #[error(transparent)]
    Net(#[from] quic::Error),
    /// The identity, a token or a certificate.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// A value is too large to replicate; nothing changed.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// The key is written by the service itself.
    #[error("the key {0} is written by the node itself")]
    Reserved(Key),
    /// The value names no valid key.
    #[error("not a value to replicate: {0}")]
    BadValue(#[from] Refusal),
    /// A device cannot run a router.
    #[error("this identity is a device's: only a router can serve the mesh")]
    NotARouter,
    /// A task of the mesh ended although nobody asked it to.
    #[error("the task '{task}' ended: {reason}")]
    TaskEnded {
        /// Its name.
        task: &'static str,
        /// What is known of the cause.
        reason: String,
    },
}

/// The tasks of a router's mesh side.
pub struct Service {
    net: Net,
    acceptor: Acceptor,
    connections: Connections,
    gossip: Gossip,
    rpc: Rpc,
    admission: Admission,
    control: Routes,
    channels: Channels,
    directory: Arc<MeshDirectory>,
}

/// Access to the mesh. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    net: Net,
    gossip: GossipHandle,
    rpc: Rpc,
    admission: Admission,
    channels: Channels,
    directory: Arc<MeshDirectory>,
    info: Arc<Mutex<NodeInfo>>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("net", &self.net).finish_non_exhaustive()
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("net", &self.net).finish_non_exhaustive()
    }
}

impl Service {
    /// Binds the mesh port at once; nothing is dialled or accepted before [`Service::run`]. Needs a runtime.
    ///
    /// `control` are the gRPC services of the node for other routers.
    ///
    /// # Errors
    /// [`Error::Net`] when the port is taken (names it), [`Error::NotARouter`] for a device's identity,
    /// [`Error::TooLarge`] when name, version and addresses do not fit a value.
    pub fn bind(
        settings: Settings,
        identity: Arc<Identity>,
        book: Arc<dyn TokenBook>,
        control: Routes,
    ) -> Result<(Self, Handle, mpsc::Receiver<Inbound>), Error> {
        if identity.role() != Role::Router {
            return Err(Error::NotARouter);
        }
        let endpoint = Net::bind(identity, settings.listen)?;
        Self::assemble(settings, endpoint, book, control)
    }

    /// As [`Service::bind`], on a socket made elsewhere: a simulated one.
    ///
    /// # Errors
    /// As [`Service::bind`].
    #[cfg(any(test, feature = "test-util"))]
    pub fn with_socket(
        settings: Settings,
        identity: Arc<Identity>,
        book: Arc<dyn TokenBook>,
        control: Routes,
        socket: Arc<dyn quinn::AsyncUdpSocket>,
    ) -> Result<(Self, Handle, mpsc::Receiver<Inbound>), Error> {
        if identity.role() != Role::Router {
            return Err(Error::NotARouter);
        }
        let endpoint = Net::with_socket(identity, socket)?;
        Self::assemble(settings, endpoint, book, control)
    }

    fn assemble(
        settings: Settings,
        (net, acceptor, connections): (Net, Acceptor, Connections),
        book: Arc<dyn TokenBook>,
        control: Routes,
    ) -> Result<(Self, Handle, mpsc::Receiver<Inbound>), Error> {
        let identity = net.identity().clone();
        let advertised = advertised(&settings.advertise, net.local_addr());
        let origin = Origin {
            id: identity.node_id().clone(),
            generation: settings.generation,
            addr: advertised.first().copied().unwrap_or_else(|| net.local_addr()),
        };
        let info = NodeInfo {
            name: settings.name.clone(),
            version: settings.version,
            api_url: settings.api_url,
            mesh_addrs: advertised.iter().map(ToString::to_string).collect(),
            draining: false,
            holds_root: identity.holds_root(),
            started_unix_ms: unix_ms(SystemTime::now()),
        };
        let gossip_settings =
            gossip::Settings { origin, interval: settings.gossip_interval, seeds: settings.seeds.clone() };
        let (gossip, gossip_handle) = Gossip::new(net.clone(), gossip_settings);
        gossip_handle.publish(Key::Node, Value::Node(info.clone()))?;
        let directory = Arc::new(MeshDirectory::new(
            identity.node_id().clone(),
            settings.name,
            identity.holds_root(),
            advertised,
            settings.seeds,
            gossip_handle.view(),
        ));
        let channels = Channels::new(net.clone(), directory.clone());
        let (rpc, inbound) = Rpc::new(net.clone(), directory.clone());
        let admission = Admission::new(identity, book, directory.clone(), channels.clone());
        let handle = Handle {
            net: net.clone(),
            gossip: gossip_handle,
            rpc: rpc.clone(),
            admission: admission.clone(),
            channels: channels.clone(),
            directory: directory.clone(),
            info: Arc::new(Mutex::new(info)),
        };
        let service =
            Self { net, acceptor, connections, gossip, rpc, admission, control, channels, directory };
        Ok((service, handle, inbound))
    }

    /// Takes part in the mesh until `shutdown`, then leaves it in order.
    ///
    /// # Errors
    /// [`Error::TaskEnded`] when a task ended by itself, which only a defect does.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let Self { net, acceptor, connections, gossip, rpc, admission, control, channels, directory } = self;
        let stop = CancellationToken::new();
        let control = admission.add_to(control);
        let issuer = obtain_issuer(net.identity().clone(), channels, directory);
        let mut gossip = spawn_named("gossip", gossip.run(connections.gossip, shutdown.clone()));
        let mut accept = spawn_named("accept", acceptor.run(stop.clone()));
        let mut rpc = spawn_named("rpc", rpc.run(connections.rpc, stop.clone()));
        let mut control =
            spawn_named("control", quic::serve_control(connections.control, control, stop.clone()));
        let joins = quic::serve_join(connections.join, admission.join_routes(), stop.clone());
        let mut join = spawn_named("join", joins);
        let issuer = spawn_named("issuer", stop.clone().run_until_cancelled_owned(issuer));
        let failed = tokio::select! {
            () = shutdown.cancelled() => None,
            ended = &mut gossip => Some(("gossip", ended)),
            ended = &mut accept => Some(("accept", ended)),
            ended = &mut rpc => Some(("rpc", ended)),
            ended = &mut control => Some(("control", ended)),
            ended = &mut join => Some(("join", ended)),
        };
        // Gossip says goodbye over connections that still live; a failed mesh says nothing.
        if failed.is_none() {
            finish("gossip", gossip).await;
        } else {
            gossip.abort();
        }
        stop.cancel();
        net.close();
        if let Some((task, ended)) = failed {
            for task in [accept, rpc, control, join] {
                task.abort();
            }
            return Err(Error::TaskEnded { task, reason: reason(ended) });
        }
        finish("accept", accept).await;
        finish("rpc", rpc).await;
        finish("control", control).await;
        finish("join", join).await;
        if let Err(error) = issuer.await {
            tracing::error!(task = "issuer", %error, "a task did not end in order");
        }
        net.drained().await;
        Ok(())
    }
}

async fn finish(task: &'static str, handle: JoinHandle<()>) {
    if let Err(error) = handle.await {
        tracing::error!(task, %error, "a task did not end in order");
    }
}

fn reason(ended: Result<(), JoinError>) -> String {
    match ended {
        Ok(()) => "it returned".to_owned(),
        Err(error) => error.to_string(),
    }
}

impl Handle {
    /// This router.
    pub fn node_id(&self) -> &NodeId {
        self.net.identity().node_id()
    }

    /// The bound mesh port.
    pub fn local_addr(&self) -> SocketAddr {
        self.net.local_addr()
    }

    /// What others are told to dial, best first, never empty.
    pub fn advertised(&self) -> Vec<SocketAddr> {
        self.directory.advertised().to_vec()
    }

    /// The mesh as this router sees it; notified of changes, not of mere signs of life.
    pub fn view(&self) -> watch::Receiver<Arc<ClusterView>> {
        self.gossip.view()
    }

    /// Signs and replicates a device, a provider or statistics, at the next gossip interval.
    ///
    /// # Errors
    /// [`Error::TooLarge`] above 8 KiB of text a value or 48 KiB in all; [`Error::Reserved`] for what the
    /// service writes itself; [`Error::BadValue`] for a device without a valid id or a provider without a valid name.
    pub fn publish(&self, value: Value) -> Result<(), Error> {
        match value.key()? {
            key @ (Key::Cert | Key::Node | Key::Lease) => Err(Error::Reserved(key)),
            key @ (Key::Device(_) | Key::Provider(_) | Key::Stats) => Ok(self.gossip.publish(key, value)?),
        }
    }

    /// Takes a device, a provider or statistics back.
    pub fn withdraw(&self, key: &Key) {
        if matches!(key, Key::Device(_) | Key::Provider(_) | Key::Stats) {
            self.gossip.withdraw(key);
        }
    }

    /// Tells the others whether this router takes new work.
    pub fn set_draining(&self, draining: bool) {
        let mut info = self.info.lock().unwrap_or_else(PoisonError::into_inner);
        info.draining = draining;
        // A boolean does not make a value that fitted too large.
        let _ = self.gossip.publish(Key::Node, Value::Node(info.clone()));
    }

    /// Opens an inference at a router (dialled at its address in the view, proven by its certificate) or at
    /// a device that is linked to this router.
    ///
    /// # Errors
    /// [`Error::Net`]: not linked, not reachable within 5 s, not the node it should be.
    pub async fn open_infer(&self, to: &Peer, request: InferRequest) -> Result<InferStream, Error> {
        Ok(self.rpc.open_infer(to, &request).await?)
    }

    /// Returns a client for another router's control services.
    ///
    /// # Errors
    /// [`Error::Net`] when it cannot be reached within 5 s.
    pub async fn control(&self, to: &NodeId) -> Result<ControlClient<Channel>, Error> {
        Ok(ControlClient::new(self.channels.to(to).await?))
    }

    /// Signs bytes of this router that other routers may keep and pass on; see [`blob`].
    ///
    /// # Errors
    /// [`BlobRefusal::Oversized`] above [`blob::MAX_PAYLOAD_BYTES`].
    pub fn seal(&self, generation: u64, version: u64, payload: Vec<u8>) -> Result<SignedBlob, BlobRefusal> {
        blob::seal(self.net.identity(), generation, version, unix_ms(SystemTime::now()), payload)
    }

    /// Verifies that a router of this mesh, alive or not, wrote a blob; returns which.
    ///
    /// # Errors
    /// The [`BlobRefusal`]; nothing of the blob may be believed then.
    pub fn open_blob(&self, blob: &SignedBlob) -> Result<NodeId, BlobRefusal> {
        blob::open(self.net.identity(), blob, SystemTime::now())
    }

    /// Devices that are linked to this router now.
    pub fn devices(&self) -> Vec<NodeId> {
        self.rpc.devices()
    }

    /// Makes a join token and records it in the book, which may wait for the disk.
    ///
    /// # Errors
    /// [`Error::Identity`] when this router cannot issue yet, or the book fails.
    pub fn create_token(&self, role: Role, ttl: Duration, uses: u32) -> Result<JoinToken, Error> {
        Ok(self.admission.create_token(role, ttl, uses)?)
    }

    /// Bytes of all replicated values that are held, of all routers; for metrics.
    pub fn gossip_held_bytes(&self) -> usize {
        self.gossip.held_bytes()
    }

    /// Counts of gossip that was refused, dropped or restarted, by word; for metrics.
    pub fn gossip_counters(&self) -> BTreeMap<&'static str, u64> {
        self.gossip.counters()
    }
}

/// Completes what the settings say with the bound port, or works it out.
fn advertised(wanted: &[SocketAddr], bound: SocketAddr) -> Vec<SocketAddr> {
    if wanted.is_empty() {
        return advertise::addresses(bound, &advertise::interfaces());
    }
    let with_port = |addr: &SocketAddr| match addr.port() {
        0 => SocketAddr::new(addr.ip(), bound.port()),
        _ => *addr,
    };
    wanted.iter().map(with_port).collect()
}

fn unix_ms(now: SystemTime) -> u64 {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
