//! A network in memory under quinn, for meshes in virtual time.
//!
//! On a current-thread runtime with tokio's clock paused, quinn's and chitchat's timers and this network all
//! follow virtual time, so a minute of a ten-node mesh takes a second or two. Loss and delay are seeded: the
//! network's schedule repeats, TLS and chitchat still draw from the system's randomness. Never mix a real
//! socket or a blocking task into such a test: the clock would jump while it waits.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::fmt;
use std::future::Future as _;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::{Instant, Sleep};

use crate::identity::{self, Identity, key_for_join};
use crate::ids::Role;

/// Packets under way to one socket; more are lost, as in a full socket buffer.
const INBOX: usize = 8_192;

/// A network of sockets with one delay and one rate of loss, any pair of which can be cut. Cheap to clone.
#[derive(Clone)]
pub struct SimNet(Arc<Mutex<State>>);

struct State {
    rng: StdRng,
    delay: Duration,
    jitter: Duration,
    loss: f64,
    cut: BTreeSet<(SocketAddr, SocketAddr)>,
    sockets: HashMap<SocketAddr, Arc<Inbox>>,
    next: u64,
}

impl SimNet {
    /// Makes a network without loss, with 1 ms of delay each way.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            rng: StdRng::seed_from_u64(seed),
            delay: Duration::from_millis(1),
            jitter: Duration::ZERO,
            loss: 0.0,
            cut: BTreeSet::new(),
            sockets: HashMap::new(),
            next: 0,
        })))
    }

    /// Sets the delay of a packet: `delay` and up to `jitter` more, which may reorder.
    pub fn set_delay(&self, delay: Duration, jitter: Duration) {
        let mut state = self.lock();
        (state.delay, state.jitter) = (delay, jitter);
    }

    /// Sets the share of packets that are lost, 0 to 1.
    pub fn set_loss(&self, loss: f64) {
        self.lock().loss = loss;
    }

    /// Cuts the path between two addresses, both ways.
    pub fn cut(&self, a: SocketAddr, b: SocketAddr) {
        self.lock().cut.extend([(a, b), (b, a)]);
    }

    /// Cuts the path from one address to another; the way back stays open.
    pub fn cut_one_way(&self, from: SocketAddr, to: SocketAddr) {
        self.lock().cut.insert((from, to));
    }

    /// Cuts all paths between the two groups.
    pub fn partition(&self, left: &[SocketAddr], right: &[SocketAddr]) {
        for &a in left {
            for &b in right {
                self.cut(a, b);
            }
        }
    }

    /// Cuts one address off from all others, as if its host had lost power.
    pub fn isolate(&self, addr: SocketAddr) {
        let others: Vec<_> = self.lock().sockets.keys().copied().filter(|other| *other != addr).collect();
        self.partition(&[addr], &others);
    }

    /// Mends all cuts.
    pub fn heal(&self) {
        self.lock().cut.clear();
    }

    /// Binds a socket; one that was bound to the address before receives nothing any more.
    pub fn socket(&self, addr: SocketAddr) -> Arc<dyn AsyncUdpSocket> {
        let inbox = Arc::new(Inbox::default());
        self.lock().sockets.insert(addr, inbox.clone());
        Arc::new(SimSocket { net: self.clone(), addr, inbox })
    }

    fn send(&self, from: SocketAddr, to: SocketAddr, contents: &[u8]) {
        let mut state = self.lock();
        let chance: f64 = state.rng.random();
        let jitter = state.jitter.mul_f64(state.rng.random());
        if state.cut.contains(&(from, to)) || chance < state.loss {
            return;
        }
        let Some(inbox) = state.sockets.get(&to).cloned() else { return };
        let at = Instant::now() + state.delay + jitter;
        state.next += 1;
        let packet = Packet { at, number: state.next, from, contents: contents.to_vec() };
        drop(state);
        inbox.push(packet);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SimNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimNet").finish_non_exhaustive()
    }
}

/// Makes an identity in `folder`, signed by `issuer`, without the join protocol.
///
/// # Errors
/// As the identity's own.
pub fn issue_identity(issuer: &Identity, role: Role, folder: &Path) -> Result<Identity, identity::Error> {
    let (key, request) = key_for_join(folder)?;
    let (_, chain) = issuer.issue(&request, role, "", SystemTime::now())?;
    Identity::establish(folder, key, chain, issuer.roots_der().to_vec())
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    at: Instant,
    number: u64,
    from: SocketAddr,
    contents: Vec<u8>,
}

/// Packets on their way to one socket.
#[derive(Debug, Default)]
struct Inbox(Mutex<Arriving>);

#[derive(Debug, Default)]
struct Arriving {
    packets: BinaryHeap<Reverse<Packet>>,
    timer: Option<Pin<Box<Sleep>>>,
    waker: Option<Waker>,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Arriving> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, packet: Packet) {
        let mut arriving = self.lock();
        if arriving.packets.len() < INBOX {
            arriving.packets.push(Reverse(packet));
        }
        if let Some(waker) = arriving.waker.take() {
            waker.wake();
        }
    }
}

impl Arriving {
    /// Takes the next packet that is due, or arranges to be woken for it.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Packet> {
        loop {
            let now = Instant::now();
            let Some(Reverse(next)) = self.packets.peek() else { break };
            let at = next.at;
            if at <= now {
                match self.packets.pop() {
                    Some(Reverse(packet)) => return Poll::Ready(packet),
                    None => break,
                }
            }
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            timer.as_mut().reset(at);
            if timer.as_mut().poll(cx).is_pending() {
                break;
            }
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

struct SimSocket {
    net: SimNet,
    addr: SocketAddr,
    inbox: Arc<Inbox>,
}

impl fmt::Debug for SimSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimSocket").field("addr", &self.addr).finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for SimSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.net.send(self.addr, transmit.destination, transmit.contents);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut arriving = self.inbox.lock();
        let mut received = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Poll::Ready(packet) = arriving.poll_next(cx) else { break };
            let len = packet.contents.len().min(buf.len());
            buf[..len].copy_from_slice(&packet.contents[..len]);
            *meta = RecvMeta { addr: packet.from, len, stride: len, ecn: None, dst_ip: None };
            received += 1;
        }
        if received == 0 { Poll::Pending } else { Poll::Ready(Ok(received)) }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.addr)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

/// A simulated socket takes every packet at once.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
