//! Datagrams: one socket in front of a router, and behind it one for each who sends to it, as a NAT has.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::{net::UdpSocket, sync::Semaphore};

use super::{Links, flip};
use crate::tasks::{self, Running};

/// Largest datagram.
const MAX_DATAGRAM: usize = 65_536;
/// Datagrams under way late at once, over one proxy; more are dropped, as a full queue drops.
const MAX_LATE: usize = 8_192;
/// Senders at once; a mesh under test has a dozen.
const MAX_FLOWS: usize = 512;

/// A proxy in front of one router; stops when dropped.
#[derive(Debug)]
pub(crate) struct UdpProxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    _task: Running,
}

#[derive(Debug)]
struct Shared {
    links: Arc<Links>,
    owner: String,
    target: SocketAddr,
    front: Arc<UdpSocket>,
    flows: Mutex<HashMap<SocketAddr, Flow>>,
    late: Arc<Semaphore>,
}

/// What one sender has behind the proxy.
#[derive(Debug)]
struct Flow {
    socket: Arc<UdpSocket>,
    _back: Running,
}

impl UdpProxy {
    /// Listens on a free port of loopback for who dials `owner`, whose own port is `target`.
    pub(crate) async fn start(links: Arc<Links>, owner: &str, target: SocketAddr) -> io::Result<Self> {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
        let addr = front.local_addr()?;
        let shared = Arc::new(Shared {
            links,
            owner: owner.to_owned(),
            target,
            front,
            flows: Mutex::default(),
            late: Arc::new(Semaphore::new(MAX_LATE)),
        });
        let task = Running::spawn("udp proxy", inbound(Arc::clone(&shared)));
        Ok(Self { addr, shared, _task: task })
    }

    /// Where others are told to dial.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Gives the flows of `name` new source ports, as a NAT does that forgot them.
    pub(crate) fn rebind(&self, name: &str) {
        let links = &self.shared.links;
        self.shared.flows().retain(|source, _| links.name_of(*source).as_deref() != Some(name));
    }
}

impl Shared {
    fn flows(&self) -> MutexGuard<'_, HashMap<SocketAddr, Flow>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The socket by which `source` reaches the router.
    async fn flow(self: &Arc<Self>, source: SocketAddr, name: &str) -> io::Result<Arc<UdpSocket>> {
        if let Some(flow) = self.flows().get(&source) {
            return Ok(Arc::clone(&flow.socket));
        }
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
        socket.connect(self.target).await?;
        let back = outbound(Arc::clone(self), Arc::clone(&socket), source, name.to_owned());
        let flow = Flow { socket: Arc::clone(&socket), _back: Running::spawn("udp flow", back) };
        let mut flows = self.flows();
        if flows.len() >= MAX_FLOWS {
            flows.clear();
        }
        flows.insert(source, flow);
        Ok(socket)
    }

    /// Hands a datagram on as the rules say; `to` is `None` on a connected socket.
    async fn pass(
        &self,
        from: &str,
        to: &str,
        bytes: &[u8],
        socket: &Arc<UdpSocket>,
        at: Option<SocketAddr>,
    ) {
        for delivery in self.links.judge(from, to, bytes.len(), Instant::now()) {
            let mut copy = bytes.to_vec();
            if let Some(bit) = delivery.flip {
                flip(&mut copy, bit);
            }
            if delivery.after.is_zero() {
                send(socket, &copy, at).await;
            } else if let Ok(permit) = Arc::clone(&self.late).try_acquire_owned() {
                let socket = Arc::clone(socket);
                // Ends by itself when the datagram is out, a second later at most.
                tasks::spawn_named("late datagram", async move {
                    tokio::time::sleep(delivery.after).await;
                    send(&socket, &copy, at).await;
                    drop(permit);
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, bytes: &[u8], at: Option<SocketAddr>) {
    // A router that is not there refuses datagrams; so does the network, silently.
    let _ = match at {
        Some(addr) => socket.send_to(bytes, addr).await,
        None => socket.send(bytes).await,
    };
}

async fn inbound(shared: Arc<Shared>) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        // An error here is an ICMP message about an earlier datagram.
        let Ok((size, source)) = shared.front.recv_from(&mut buffer).await else { continue };
        let name = shared.links.name_of(source).unwrap_or_default();
        if let Ok(socket) = shared.flow(source, &name).await {
            shared.pass(&name, &shared.owner, &buffer[..size], &socket, None).await;
        }
    }
}

async fn outbound(shared: Arc<Shared>, socket: Arc<UdpSocket>, source: SocketAddr, name: String) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        match socket.recv(&mut buffer).await {
            Ok(size) => {
                shared.pass(&shared.owner, &name, &buffer[..size], &shared.front, Some(source)).await;
            }
            // The router is away (ICMP); it may come back. Yield, so that a storm of errors starves nobody.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}
