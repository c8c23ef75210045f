//! A router's side of RPC connections: inference streams from other routers, links of devices.
//!
//! A device dials in and stays; the router opens streams towards it on that connection, so it may sit
//! behind any NAT. A device announces and answers, and may open nothing else.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{RecvStream, SendStream};
use shoal_proto::infer_frame::Kind;
use shoal_proto::{DeviceAnnounce, DeviceWelcome, InferError, InferFrame, InferRequest};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::frames::{FrameReader, FrameWriter, StreamKind};
use super::infer::REQUEST_LIMIT;
use super::pulse::{self, WorkList};
use super::{Alpn, Directory, Error, InferStream, Link, Net, Responder, code};
use crate::ids::{NodeId, Peer, Role};

/// Things that wait for the node to look at them. Beyond it new inferences are answered "overloaded": a
/// request that waits here has waited too long already.
pub const INBOUND: usize = 1024;
/// Longest wait for the whole of a request once its stream is open; 32 MiB at 10 Mbit/s take 27 s.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
/// Largest announcement: some hundred models.
pub(super) const ANNOUNCE_LIMIT: usize = 256 * 1024;
/// A link whose other end reads nothing for so long is given up.
pub(super) const SEND_DEADLINE: Duration = Duration::from_secs(10);
/// What an overloaded node asks its peers to wait, ms.
const RETRY_AFTER_MS: u64 = 500;

/// What arrives on RPC connections.
#[derive(Debug)]
pub enum Inbound {
    /// A request to answer.
    Infer {
        /// Who asks; on a router always a router.
        from: Peer,
        /// The request.
        request: InferRequest,
        /// Where the answer goes.
        responder: Responder,
    },
    /// A linked device says what it has.
    Announce {
        /// The device, proven by certificate.
        device: NodeId,
        /// Its announcement; names the same device.
        announce: DeviceAnnounce,
    },
    /// A device's link to this node is gone.
    LinkClosed {
        /// The device.
        device: NodeId,
    },
}

/// RPC of a router. Cheap to clone.
#[derive(Clone)]
pub struct Rpc {
    inner: Arc<Inner>,
}

struct Inner {
    net: Net,
    directory: Arc<dyn Directory>,
    inbound: mpsc::Sender<Inbound>,
    devices: Mutex<BTreeMap<NodeId, Link>>,
    work: WorkList,
}

impl fmt::Debug for Rpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rpc").field("devices", &self.devices()).finish_non_exhaustive()
    }
}

impl Rpc {
    /// Makes the RPC side of `net`; what arrives comes out of the receiver.
    pub fn new(net: Net, directory: Arc<dyn Directory>) -> (Self, mpsc::Receiver<Inbound>) {
        let (inbound, receiver) = mpsc::channel(INBOUND);
        let inner = Inner { net, directory, inbound, devices: Mutex::default(), work: WorkList::default() };
        (Self { inner: Arc::new(inner) }, receiver)
    }

    /// Serves every new RPC connection until `shutdown`.
    pub async fn run(self, mut connections: mpsc::Receiver<Link>, shutdown: CancellationToken) {
        let mut serving = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = serving.join_next() => {}
                link = connections.recv() => {
                    let Some(link) = link else { break };
                    serving.spawn(self.clone().serve(link).in_current_span());
                }
            }
        }
    }

    /// Devices that are linked to this node now.
    pub fn devices(&self) -> Vec<NodeId> {
        self.links().iter().filter(|(_, link)| link.is_open()).map(|(id, _)| id.clone()).collect()
    }

    /// Opens an inference at a router (dialled by its address in the directory) or a linked device.
    ///
    /// # Errors
    /// [`Error::NotLinked`] for a device without a link to this node; otherwise as [`Net::connect_to`].
    pub async fn open_infer(&self, to: &Peer, request: &InferRequest) -> Result<InferStream, Error> {
        let link = match to.role {
            Role::Device => {
                let link = self.links().get(&to.id).cloned();
                link.filter(Link::is_open).ok_or_else(|| Error::NotLinked(to.id.clone()))?
            }
            Role::Router => {
                let addrs = self.inner.directory.addrs(&to.id);
                self.inner.net.connect_to(&to.id, &addrs, Alpn::Rpc).await?
            }
        };
        InferStream::open(&link, request).await
    }

    async fn serve(self, link: Link) {
        let mut streams = JoinSet::new();
        loop {
            tokio::select! {
                Some(_) = streams.join_next() => {}
                accepted = link.connection.accept_bi() => {
                    let Ok((send, receive)) = accepted else { break };
                    let work = self.clone().serve_stream(link.clone(), send, receive);
                    streams.spawn(work.in_current_span());
                }
            }
        }
        // Streams of a dead connection end by themselves; what they still report must be let through.
        while streams.join_next().await.is_some() {}
    }

    async fn serve_stream(self, link: Link, send: SendStream, receive: RecvStream) {
        let (mut writer, mut reader) = (FrameWriter::new(send), FrameReader::new(receive));
        let result = match tokio::time::timeout(REQUEST_DEADLINE, reader.kind()).await {
            Ok(Ok(StreamKind::Infer)) if link.peer.role == Role::Router => {
                serve_infer(&link.peer, writer, reader, &self.inner.inbound, &self.inner.work).await
            }
            Ok(Ok(StreamKind::Pulse)) => pulse::answer(&link.peer.id, writer, reader, &self.inner.work).await,
            Ok(Ok(StreamKind::Announce)) if link.peer.role == Role::Device => {
                self.serve_device(&link, writer, reader).await
            }
            Ok(Ok(_)) => {
                writer.reset(code::NOT_ALLOWED);
                reader.stop(code::NOT_ALLOWED);
                Err(Error::Protocol("its role may not open this kind of stream".to_owned()))
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Truncated),
        };
        if let Err(error) = result {
            tracing::debug!(peer = %link.peer.id, %error, "a stream ended early");
        }
    }

    async fn serve_device(
        &self,
        link: &Link,
        mut writer: FrameWriter,
        mut reader: FrameReader,
    ) -> Result<(), Error> {
        let device = &link.peer.id;
        if let Some(older) = self.links().insert(device.clone(), link.clone())
            && older.connection.stable_id() != link.connection.stable_id()
        {
            older.connection.close(code::DONE, b"the device linked anew");
        }
        tracing::info!(%device, remote = %link.remote(), "a device linked");
        let result = self.hear_device(device, &mut writer, &mut reader).await;
        if matches!(result, Err(Error::Protocol(_) | Error::FrameTooLarge { .. })) {
            link.connection.close(code::PROTOCOL, b"bad announcement");
        }
        let was_current = {
            let mut links = self.links();
            let current = links.get(device).map(|link| link.connection.stable_id());
            let was_current = current == Some(link.connection.stable_id());
            if was_current {
                links.remove(device);
            }
            was_current
        };
        if was_current {
            tracing::info!(%device, "a device's link closed");
            let _ = self.inner.inbound.send(Inbound::LinkClosed { device: device.clone() }).await;
        }
        result
    }

    /// Takes announcements until the link ends; each is answered with the routers known now.
    async fn hear_device(
        &self,
        device: &NodeId,
        writer: &mut FrameWriter,
        reader: &mut FrameReader,
    ) -> Result<(), Error> {
        writer.send_within(&self.welcome(), ANNOUNCE_LIMIT, SEND_DEADLINE).await?;
        while let Some(announce) = reader.next::<DeviceAnnounce>(ANNOUNCE_LIMIT).await? {
            if announce.device.as_ref().is_none_or(|info| info.id != device.as_str()) {
                return Err(Error::Protocol("a device announced another than itself".to_owned()));
            }
            let inbound = Inbound::Announce { device: device.clone(), announce };
            self.inner.inbound.send(inbound).await.map_err(|_| Error::Shutdown)?;
            writer.send_within(&self.welcome(), ANNOUNCE_LIMIT, SEND_DEADLINE).await?;
        }
        Ok(())
    }

    fn welcome(&self) -> DeviceWelcome {
        let me = self.inner.net.identity().node_id();
        DeviceWelcome {
            node_id: me.to_string(),
            node_name: self.inner.directory.display_name(me).unwrap_or_else(|| me.short().to_owned()),
            routers: self.inner.directory.routers().iter().map(ToString::to_string).collect(),
        }
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<NodeId, Link>> {
        self.inner.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the request and hands it on; shared by routers and devices.
pub(super) async fn serve_infer(
    from: &Peer,
    mut writer: FrameWriter,
    mut reader: FrameReader,
    inbound: &mpsc::Sender<Inbound>,
    work: &WorkList,
) -> Result<(), Error> {
    let read = reader.next::<InferRequest>(REQUEST_LIMIT);
    let request = match tokio::time::timeout(REQUEST_DEADLINE, read).await {
        Ok(Ok(Some(request))) => request,
        Ok(Ok(None)) | Err(_) => return Err(Error::Truncated),
        Ok(Err(error)) => {
            writer.reset(code::PROTOCOL);
            reader.stop(code::PROTOCOL);
            return Err(error);
        }
    };
    let listed = work.enter(&from.id, &request.request_id);
    let infer = Inbound::Infer { from: from.clone(), request, responder: Responder::new(writer, listed) };
    match inbound.try_send(infer) {
        Ok(()) => Ok(()),
        Err(mpsc::error::TrySendError::Full(Inbound::Infer { mut responder, .. })) => {
            let error = InferError {
                status: 503,
                code: "overloaded".to_owned(),
                message: "the node takes no more requests at the moment".to_owned(),
                retryable: true,
                retry_after_ms: RETRY_AFTER_MS,
                egress: String::new(),
                unanswered: false,
            };
            responder.send(InferFrame { kind: Some(Kind::Error(error)) }).await?;
            responder.finish().await
        }
        Err(_) => Err(Error::Shutdown),
    }
}
