//! The HTTP server: bounded header and write time, no Nagle delay, and a drain that lets running answers finish.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::per_ip::PerIp;
use super::stall::Impatient;
use super::tls::Tls;
use crate::tasks::{self, TaskKind};

/// Time in which answers that were still running at the end of the drain say so to their clients.
pub const FAREWELL: Duration = Duration::from_secs(2);
/// Connections of the admin socket at once: commands of people, and a dashboard.
const MAX_ADMIN_CONNECTIONS: usize = 64;
/// Bytes of an answer that the kernel takes beyond what the client's window lets it send. Without a bound it takes
/// megabytes for each reader that stalls, and a stall shows only after them.
#[cfg(any(target_os = "linux", target_os = "android"))]
const MAX_UNSENT: u32 = 128 << 10;
/// Pause after an accept that failed for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time between two pings of an HTTP/2 connection, and the wait for their answer.
const PING_EVERY: Duration = Duration::from_secs(30);

/// What one client may hold of the sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketLimits {
    /// Wait for a connection's first bytes, and for a request's header; a slow-loris client is held no longer.
    pub header: Duration,
    /// Wait between two pieces of a request's body.
    pub body_idle: Duration,
    /// Time in which a client must take some byte of what waits for it.
    pub write_idle: Duration,
    /// Connections at once: beyond it new ones wait in the system's queue.
    pub connections: usize,
    /// Connections at once from one address; `None` = the default, and none for this host itself.
    pub connections_per_ip: Option<usize>,
}

impl Default for SocketLimits {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(10),
            body_idle: Duration::from_secs(30),
            write_idle: Duration::from_secs(60),
            connections: 10_000,
            connections_per_ip: None,
        }
    }
}

/// Bounds of a server, and how long it waits for running answers when it stops.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// What one client may hold.
    pub sockets: SocketLimits,
    /// Wait for running answers.
    pub drain: Duration,
}

/// Accepts TCP connections until shutdown, then waits for running answers; with `tls` each makes its handshake first.
pub async fn tcp(
    listener: TcpListener,
    tls: Option<Tls>,
    app: Router,
    bounds: Bounds,
    shutdown: CancellationToken,
) {
    let limits = bounds.sockets;
    let per_ip = PerIp::new(limits.connections_per_ip);
    let accept = async || {
        let (stream, guest) = loop {
            let (stream, from) = listener.accept().await?;
            // Closed at once: whoever holds that many waits for himself.
            match per_ip.enter(from.ip()) {
                Some(guest) => break (stream, guest),
                None => metrics::counter!("shoal_refused_connections_total").increment(1),
            }
        };
        // Without this the second answer of a connection waits 40 ms for the client's delayed acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
        bound_unsent(&stream);
        Ok((stream, guest))
    };
    let stop = shutdown.clone();
    let start = |(stream, guest), place: Place| match &tls {
        None => {
            let served = converse(stream, app.clone(), place, limits);
            tasks::spawn(TaskKind::Relay, async move {
                let _until_it_ends = guest;
                served.await;
            });
        }
        Some(tls) => {
            let (tls, app, stop) = (tls.clone(), app.clone(), stop.clone());
            tasks::spawn(TaskKind::Relay, async move {
                let _until_it_ends = guest;
                let secured = tokio::select! {
                    secured = tls.accept(stream) => secured,
                    () = stop.cancelled() => None,
                };
                if let Some(stream) = secured {
                    converse(stream, app, place, limits).await;
                }
            });
        }
    };
    serve(accept, limits.connections, bounds.drain, start, shutdown).await;
}

/// Bounds what the kernel holds for a client that reads slowly or not at all ([`MAX_UNSENT`]).
#[cfg(any(target_os = "linux", target_os = "android"))]
fn bound_unsent(stream: &TcpStream) {
    if let Err(error) = socket2::SockRef::from(stream).set_tcp_notsent_lowat(MAX_UNSENT) {
        tracing::debug!(%error, "no TCP_NOTSENT_LOWAT");
    }
}

/// Elsewhere the system's own limit holds.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn bound_unsent(_stream: &TcpStream) {}

/// Accepts connections on the admin socket until shutdown.
#[cfg(unix)]
pub async fn unix(
    listener: tokio::net::UnixListener,
    app: Router,
    bounds: Bounds,
    shutdown: CancellationToken,
) {
    let accept = async || Ok(listener.accept().await?.0);
    let start = |stream, place: Place| {
        tasks::spawn(TaskKind::Relay, converse(stream, app.clone(), place, bounds.sockets));
    };
    serve(accept, MAX_ADMIN_CONNECTIONS, bounds.drain, start, shutdown).await;
}

/// A connection's place among those served at once, and its ear for the node's end.
struct Place {
    watcher: Watcher,
    _permit: OwnedSemaphorePermit,
}

async fn serve<I, F>(
    accept: impl Fn() -> F,
    limit: usize,
    drain: Duration,
    start: impl Fn(I, Place),
    shutdown: CancellationToken,
) where
    F: Future<Output = io::Result<I>>,
{
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(limit));
    loop {
        let permit = tokio::select! {
            permit = slots.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
            () = shutdown.cancelled() => break,
        };
        tokio::select! {
            accepted = accept() => match accepted {
                Ok(io) => start(io, Place { watcher: graceful.watcher(), _permit: permit }),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            () = shutdown.cancelled() => break,
        }
    }
    if tokio::time::timeout(drain + FAREWELL, graceful.shutdown()).await.is_err() {
        tracing::warn!("some answers were still running when the drain time ended");
    }
}

/// Serves one connection until it ends.
async fn converse<I>(io: I, app: Router, place: Place, limits: SocketLimits)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.header).max_headers(100);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(100)
        .max_header_list_size(64 << 10)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY);
    let io = TokioIo::new(Impatient::new(io, limits.header, limits.write_idle));
    let connection = builder.serve_connection(io, TowerToHyperService::new(app)).into_owned();
    let Place { watcher, _permit } = place;
    // A client that speaks no HTTP or goes away is its own affair.
    let _ = watcher.watch(connection).await;
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_takes_little_for_a_reader_that_stalls() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        socket2::SockRef::from(&client).set_recv_buffer_size(4096).unwrap();
        bound_unsent(&stream);
        let mut taken = 0;
        let piece = vec![0_u8; 16 << 10];
        // Writable as long as the kernel takes more; a stall is when it does not.
        while tokio::time::timeout(Duration::from_millis(500), stream.writable()).await.is_ok() {
            match stream.try_write(&piece) {
                Ok(bytes) => taken += bytes,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
        assert!(taken >= MAX_UNSENT as usize && taken < 1 << 20, "{taken} bytes");
        drop(client);
    }
}
