//! The HTTP server: bounded header time, no Nagle delay, and a drain that lets running answers finish.

use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Wait for a request's header; a slow-loris client holds a connection no longer.
const HEADER_WAIT: Duration = Duration::from_secs(10);
/// Wait for running answers when the node stops.
pub const DRAIN_WAIT: Duration = Duration::from_secs(120);
/// Connections at once: beyond it new ones wait in the system's queue.
const MAX_CONNECTIONS: usize = 10_000;
/// Pause after an accept that failed for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts TCP connections until shutdown, then waits for running answers.
pub async fn tcp(listener: TcpListener, app: Router, shutdown: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    loop {
        let permit = tokio::select! {
            permit = slots.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
            () = shutdown.cancelled() => break,
        };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = shutdown.cancelled() => break,
        };
        // Without this the second answer of a connection waits 40 ms for the client's delayed acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
        serve(TokioIo::new(stream), app.clone(), &graceful, permit);
    }
    drop(listener);
    drain(graceful).await;
}

/// Accepts connections on the admin socket until shutdown.
#[cfg(unix)]
pub async fn unix(listener: tokio::net::UnixListener, app: Router, shutdown: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(64));
    loop {
        let permit = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => continue,
            },
            () = shutdown.cancelled() => break,
        };
        serve(TokioIo::new(stream), app.clone(), &graceful, permit);
    }
    drain(graceful).await;
}

fn serve<I>(
    io: TokioIo<I>,
    app: Router,
    graceful: &GracefulShutdown,
    permit: tokio::sync::OwnedSemaphorePermit,
) where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_WAIT).max_headers(100);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(100).max_header_list_size(64 << 10);
    let connection = builder.serve_connection(io, TowerToHyperService::new(app)).into_owned();
    let watched = graceful.watch(connection);
    crate::tasks::spawn(crate::tasks::TaskKind::Relay, async move {
        // A client that speaks no HTTP or goes away is its own affair.
        let _ = watched.await;
        drop(permit);
    });
}

async fn drain(graceful: GracefulShutdown) {
    if tokio::time::timeout(DRAIN_WAIT, graceful.shutdown()).await.is_err() {
        tracing::warn!("some answers were still running when the drain time ended");
    }
}
