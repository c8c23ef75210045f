//! chitchat's messages over QUIC: one unidirectional stream each, on the connection that the pool has.
//!
//! `send` only enqueues, since chitchat's one loop awaits it: a peer that does not answer costs its own
//! queue and nothing else. What arrives passes the [`Guard`] before chitchat sees it.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable as _, Serializable as _};
use quinn::RecvStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use super::frame::MAX_FRAME_BYTES;
use super::guard::{Counters, Guard};
use crate::ids::NodeId;
use crate::quic::{Alpn, Error, Link, Net, canonical, code};
use crate::tasks::spawn_named;

/// Frames that wait for one peer. More would be old by the time they are sent; chitchat says it all again.
const SEND_QUEUE: usize = 8;

/// Frames that wait for chitchat, from all peers. It takes each in well under a millisecond.
const RECEIVE_QUEUE: usize = 256;

/// Peers with a queue at once: members, seeds, and lives that have just ended.
const MAX_QUEUES: usize = 512;

/// A queue that had nothing to send for so long is taken down.
const QUEUE_IDLE: Duration = Duration::from_secs(30);

/// Longest time for one frame to be handed to the connection, or to arrive once begun. A peer that takes
/// longer is as good as dead to gossip.
const FRAME_DEADLINE: Duration = Duration::from_secs(3);

/// Frames of one peer that may arrive at the same time.
const FRAMES_AT_ONCE: usize = 16;

/// Attempts to get back a lost connection to a member, and the pause before each.
const RECONNECTS: u32 = 4;
const RECONNECT_PAUSE: Duration = Duration::from_millis(400);

/// How often a router is dialled after that, while it renews its lease: cheap, and sooner than anybody would notice.
const REDIAL_PAUSE: Duration = Duration::from_secs(2);

/// What the senders, the receivers and chitchat's socket share.
pub(super) struct Wire {
    net: Net,
    guard: Mutex<Guard>,
    counters: Arc<Counters>,
    /// Ids that are known to be at an address, from the settings.
    seeds: HashMap<SocketAddr, NodeId>,
    queues: Mutex<HashMap<SocketAddr, mpsc::Sender<Vec<u8>>>>,
    inbound: Mutex<Option<mpsc::Sender<(SocketAddr, ChitchatMessage)>>>,
    /// Live gossip connections of each peer.
    connections: Mutex<BTreeMap<NodeId, u32>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    /// Told after each frame that may have changed the view.
    pub(super) changed: Notify,
}

impl Wire {
    pub(super) fn new(
        net: Net,
        guard: Guard,
        counters: Arc<Counters>,
        seeds: HashMap<SocketAddr, NodeId>,
    ) -> Self {
        Self {
            net,
            guard: Mutex::new(guard),
            counters,
            seeds,
            queues: Mutex::default(),
            inbound: Mutex::default(),
            connections: Mutex::default(),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
            changed: Notify::new(),
        }
    }

    /// The gate and what it knows. Held for one frame or one view.
    pub(super) fn guard(&self) -> MutexGuard<'_, Guard> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves every new gossip connection until `shutdown`, then ends all tasks of the wire.
    pub(super) async fn run(self: Arc<Self>, mut links: mpsc::Receiver<Link>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                link = links.recv() => {
                    let Some(link) = link else { break };
                    let serve = self.clone().serve(link).in_current_span();
                    spawn_named("gossip_receive", self.tasks.track_future(serve));
                }
            }
        }
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Reads a connection's frames until it ends.
    async fn serve(self: Arc<Self>, link: Link) {
        let id = link.peer.id.clone();
        self.connected(&id);
        let mut arriving = JoinSet::new();
        loop {
            let room = arriving.len() < FRAMES_AT_ONCE;
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                Some(_) = arriving.join_next() => {}
                stream = link.connection.accept_uni(), if room => {
                    let Ok(stream) = stream else { break };
                    arriving.spawn(receive(self.clone(), link.clone(), stream).in_current_span());
                }
            }
        }
        if self.disconnected(&id) && !self.shutdown.is_cancelled() {
            self.reconnect(&id).await;
        }
    }

    fn connected(&self, id: &NodeId) {
        *lock(&self.connections).entry(id.clone()).or_default() += 1;
        self.guard().set_connected(id, true, Instant::now());
    }

    /// Returns true if that was the last connection to the peer.
    fn disconnected(&self, id: &NodeId) -> bool {
        let last = {
            let mut connections = lock(&self.connections);
            let count = connections.entry(id.clone()).or_default();
            *count = count.saturating_sub(1);
            let last = *count == 0;
            if last {
                connections.remove(id);
            }
            last
        };
        if last {
            self.guard().set_connected(id, false, Instant::now());
            self.changed.notify_one();
        }
        last
    }

    /// Tries to get a connection back: at once, before its loss makes a living member unselectable, and later whenever
    /// others tell that the router lives. Gossip alone would come round to one of a hundred peers in half a minute, and
    /// after a partition each pair counts as parted until then. A new connection comes to [`Wire::run`] like any other.
    async fn reconnect(&self, id: &NodeId) {
        for tries in 0u32.. {
            let is_late = tries >= RECONNECTS;
            let pause = if is_late { REDIAL_PAUSE } else { RECONNECT_PAUSE };
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            let (is_lost, is_unreached, addrs) = {
                let guard = self.guard();
                (guard.is_lost(id), guard.is_unreached(id, Instant::now()), guard.addresses_of(id))
            };
            if !is_lost || addrs.is_empty() {
                return;
            }
            if is_late && !is_unreached {
                continue;
            }
            // A router that is gone for good takes the dial its whole deadline; nobody waits for that at the end.
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                connected = self.net.connect_to(id, &addrs, Alpn::Gossip) => if connected.is_ok() { return },
            }
        }
    }

    /// Queues a frame for a peer; drops it when the queue is full. Never waits.
    pub(super) fn enqueue(self: &Arc<Self>, to: SocketAddr, frame: Vec<u8>) {
        let to = canonical(to);
        let mut queues = lock(&self.queues);
        queues.retain(|_, queue| !queue.is_closed());
        if !queues.contains_key(&to) {
            if queues.len() >= MAX_QUEUES || self.shutdown.is_cancelled() {
                return self.counters.count("too_many_queues");
            }
            let (queue, frames) = mpsc::channel(SEND_QUEUE);
            spawn_named("gossip_send", self.tasks.track_future(self.clone().drain(to, frames)));
            queues.insert(to, queue);
        }
        if queues.get(&to).is_some_and(|queue| queue.try_send(frame).is_err()) {
            self.counters.count("send_queue_full");
        }
    }

    /// Sends the frames of one queue in turn; ends when there are none for a while.
    async fn drain(self: Arc<Self>, to: SocketAddr, mut frames: mpsc::Receiver<Vec<u8>>) {
        loop {
            let next = tokio::select! {
                () = self.shutdown.cancelled() => return,
                next = timeout(QUEUE_IDLE, frames.recv()) => next,
            };
            let Ok(Some(frame)) = next else { return };
            let sent = tokio::select! {
                () = self.shutdown.cancelled() => return,
                sent = self.send(to, &frame) => sent,
            };
            if let Err(error) = sent {
                tracing::debug!(%to, %error, "gossip could not be sent");
                self.counters.count("send_failed");
                // What waited meanwhile is old; chitchat will say it anew.
                while frames.try_recv().is_ok() {}
            }
        }
    }

    async fn send(&self, to: SocketAddr, frame: &[u8]) -> Result<(), Error> {
        let known = self.guard().id_at(to).or_else(|| self.seeds.get(&to).cloned());
        let link = match known {
            Some(id) => {
                let mut addrs = self.guard().addresses_of(&id);
                if !addrs.contains(&to) {
                    addrs.insert(0, to);
                }
                self.net.connect_to(&id, &addrs, Alpn::Gossip).await?
            }
            None => self.net.connect(to, Alpn::Gossip).await?,
        };
        let deadline = Error::Deadline { addr: to, seconds: FRAME_DEADLINE.as_secs() };
        let write = async {
            let mut stream = link.connection.open_uni().await?;
            stream.write_all(frame).await.map_err(|error| Error::Protocol(error.to_string()))?;
            // The stream was just opened, and nobody else finishes it.
            let _ = stream.finish();
            Ok(())
        };
        timeout(FRAME_DEADLINE, write).await.unwrap_or(Err(deadline))
    }

    /// Hands chitchat a message that the guard never saw.
    #[cfg(test)]
    pub(super) fn inject(&self, from: SocketAddr, message: ChitchatMessage) {
        let inbound = lock(&self.inbound);
        inbound.as_ref().unwrap().try_send((from, message)).unwrap();
    }

    /// Passes what the guard admits of a frame on to chitchat.
    fn take_in(&self, link: &Link, bytes: &[u8]) {
        let admitted = self.guard().admit(&link.peer.id, bytes, Instant::now());
        self.changed.notify_one();
        let Some(admitted) = admitted else { return };
        let message = match ChitchatMessage::deserialize(&mut admitted.as_slice()) {
            Ok(message) => message,
            Err(_) => return self.counters.count("frame_malformed"),
        };
        let inbound = lock(&self.inbound);
        if inbound.as_ref().is_some_and(|inbound| inbound.try_send((link.remote(), message)).is_err()) {
            self.counters.count("receive_queue_full");
        }
    }
}

async fn receive(wire: Arc<Wire>, link: Link, mut stream: RecvStream) {
    match timeout(FRAME_DEADLINE, stream.read_to_end(MAX_FRAME_BYTES)).await {
        Ok(Ok(bytes)) => wire.take_in(&link, &bytes),
        Ok(Err(quinn::ReadToEndError::TooLong)) => {
            let _ = stream.stop(code::PROTOCOL);
            wire.counters.count("frame_too_large");
        }
        Ok(Err(quinn::ReadToEndError::Read(_))) => wire.counters.count("frame_broken_off"),
        Err(_) => wire.counters.count("frame_too_slow"),
    }
}

/// Opens chitchat's socket on the wire; each opening ends the one before.
pub(super) struct QuicTransport(pub(super) Arc<Wire>);

#[async_trait]
impl Transport for QuicTransport {
    async fn open(&self, _listen_addr: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let (inbound, messages) = mpsc::channel(RECEIVE_QUEUE);
        *lock(&self.0.inbound) = Some(inbound);
        Ok(Box::new(QuicSocket { wire: self.0.clone(), messages }))
    }
}

struct QuicSocket {
    wire: Arc<Wire>,
    messages: mpsc::Receiver<(SocketAddr, ChitchatMessage)>,
}

#[async_trait]
impl Socket for QuicSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        self.wire.enqueue(to, message.serialize_to_vec());
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        self.messages.recv().await.ok_or_else(|| anyhow::anyhow!("another socket was opened"))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
