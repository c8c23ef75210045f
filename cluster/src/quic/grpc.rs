//! tonic over QUIC: each channel of a caller is one bidirectional stream that carries HTTP/2.
//!
//! Slower than frames of our own, and its calls share one stream's losses, but typed and complete: right for
//! the control plane, which is small. Streams arrive at one server for all connections; who calls is in
//! the request's extensions as [`Caller`].

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use quinn::{Connection, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, Join, ReadBuf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Server};
use tower::service_fn;

use super::net::{CONNECT_DEADLINE, canonical};
use super::{Alpn, Directory, Error, Link, Net, code};
use crate::ids::{NodeId, Peer};

/// HTTP/2 window of one call. The defaults of 64 KiB would hold large pulls back under QUIC's own windows.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
/// HTTP/2 window of all calls on a channel.
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// Calls at once on a router's channel.
const CALLS: u32 = 256;
/// Calls at once of a joiner: one, so that attempts cannot outrun the count of failures.
const JOIN_CALLS: u32 = 1;
/// Streams that wait to be taken up by the server.
const WAITING_STREAMS: usize = 64;
/// Joiners served at once; each is one connection with one call.
const JOINERS: usize = 64;
/// A joiner's connection is closed after this time: a join takes one call and maybe a relay's.
const JOIN_DEADLINE: Duration = Duration::from_secs(30);
/// Longest any control call may take; larger pulls than fit into it belong on streams of their own.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// After shutdown calls under way get this long.
const GRACE: Duration = Duration::from_secs(2);

/// Who makes a gRPC call; in the extensions of each request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Proven by certificate; `None` for a joiner.
    pub peer: Option<Peer>,
    /// Where it calls from.
    pub remote: SocketAddr,
}

/// One QUIC stream as a byte stream that knows its caller.
struct ByteStream {
    halves: Join<RecvStream, SendStream>,
    caller: Caller,
}

impl ByteStream {
    fn new(send: SendStream, receive: RecvStream, caller: Caller) -> Self {
        Self { halves: tokio::io::join(receive, send), caller }
    }
}

impl Connected for ByteStream {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.halves).poll_read(context, buffer)
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.halves).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.halves).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.halves).poll_shutdown(context)
    }
}

/// Serves the control connections of routers until `shutdown`.
pub async fn serve_control(mut links: mpsc::Receiver<Link>, routes: Routes, shutdown: CancellationToken) {
    let (streams, incoming) = mpsc::channel(WAITING_STREAMS);
    let accept = async {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                Some(_) = connections.join_next() => {}
                link = links.recv() => {
                    let Some(Link { peer, connection, .. }) = link else { break };
                    let caller = Caller { peer: Some(peer), remote: canonical(connection.remote_address()) };
                    let streams = streams.clone();
                    connections.spawn(async move { feed(&connection, &caller, &streams).await });
                }
            }
        }
    };
    serve(accept, incoming, CALLS, routes, shutdown).await;
}

/// Serves joiners until `shutdown`: a few at once, each for a short time.
pub async fn serve_join(
    mut joiners: mpsc::Receiver<Connection>,
    routes: Routes,
    shutdown: CancellationToken,
) {
    let (streams, incoming) = mpsc::channel(WAITING_STREAMS);
    let accept = async {
        let mut connections = JoinSet::new();
        loop {
            let room = connections.len() < JOINERS;
            tokio::select! {
                Some(_) = connections.join_next() => {}
                joiner = joiners.recv(), if room => {
                    let Some(connection) = joiner else { break };
                    let caller = Caller { peer: None, remote: canonical(connection.remote_address()) };
                    let streams = streams.clone();
                    connections.spawn(async move {
                        let _ = tokio::time::timeout(JOIN_DEADLINE, feed(&connection, &caller, &streams)).await;
                        connection.close(code::DONE, b"one join per connection");
                    });
                }
            }
        }
    };
    serve(accept, incoming, JOIN_CALLS, routes, shutdown).await;
}

/// Hands every stream of a connection to the server, until the connection ends.
async fn feed(connection: &Connection, caller: &Caller, streams: &mpsc::Sender<ByteStream>) {
    while let Ok((send, receive)) = connection.accept_bi().await {
        if streams.send(ByteStream::new(send, receive, caller.clone())).await.is_err() {
            break;
        }
    }
}

async fn serve(
    accept: impl Future<Output = ()>,
    incoming: mpsc::Receiver<ByteStream>,
    calls: u32,
    routes: Routes,
    shutdown: CancellationToken,
) {
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(calls)
        .timeout(CALL_DEADLINE)
        .add_routes(routes)
        .serve_with_incoming_shutdown(
            ReceiverStream::new(incoming).map(Ok::<_, io::Error>),
            shutdown.clone().cancelled_owned(),
        );
    let enough = async {
        shutdown.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        result = server => {
            if let Err(error) = result {
                tracing::error!(%error, "the control server ended");
            }
        }
        () = accept => {}
        () = enough => {}
    }
}

/// gRPC channels to other routers, one for each, made when first wanted. Cheap to clone.
#[derive(Clone)]
pub struct Channels {
    net: Net,
    directory: Arc<dyn Directory>,
    open: Arc<Mutex<HashMap<NodeId, Channel>>>,
}

impl fmt::Debug for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channels").field("net", &self.net).finish_non_exhaustive()
    }
}

impl Channels {
    /// Makes channels that find their targets in `directory`.
    pub fn new(net: Net, directory: Arc<dyn Directory>) -> Self {
        Self { net, directory, open: Arc::default() }
    }

    /// Returns a channel to a router, proven by its certificate. A channel reconnects by itself.
    ///
    /// # Errors
    /// As [`Net::connect_to`], within 5 s.
    pub async fn to(&self, id: &NodeId) -> Result<Channel, Error> {
        self.net.connect_to(id, &self.directory.addrs(id), Alpn::Control).await?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(open.entry(id.clone()).or_insert_with(|| self.make(id.clone())).clone())
    }

    fn make(&self, id: NodeId) -> Channel {
        let (net, directory) = (self.net.clone(), self.directory.clone());
        let connector = service_fn(move |_| {
            let (net, directory, id) = (net.clone(), directory.clone(), id.clone());
            async move {
                let link = net.connect_to(&id, &directory.addrs(&id), Alpn::Control).await?;
                open_stream(&link.connection).await
            }
        });
        endpoint().timeout(CALL_DEADLINE).connect_with_connector_lazy(connector)
    }
}

/// Makes a channel on one connection, as a joiner does.
pub(crate) fn channel_on(connection: Connection) -> Channel {
    endpoint().connect_with_connector_lazy(service_fn(move |_| {
        let connection = connection.clone();
        async move { open_stream(&connection).await }
    }))
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://shoal.internal") // the name means nothing: the connector decides
        .connect_timeout(CONNECT_DEADLINE)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}

async fn open_stream(connection: &Connection) -> Result<TokioIo<ByteStream>, Error> {
    let (send, receive) = connection.open_bi().await?;
    let caller = Caller { peer: None, remote: canonical(connection.remote_address()) };
    Ok(TokioIo::new(ByteStream::new(send, receive, caller)))
}
