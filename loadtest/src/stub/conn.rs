//! Connections that a handler can break at once, as a crashed server's kernel would.

use std::{
    io,
    net::Shutdown,
    os::fd::AsFd,
    pin::Pin,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
    time::Duration,
};

use axum::{extract::connect_info::Connected, serve::IncomingStream, serve::Listener};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Breaks one connection: every later read and write of it fails.
#[derive(Clone, Debug)]
pub(super) struct KillSwitch {
    token: CancellationToken,
    /// The same socket once more, for bytes that no HTTP server would write.
    raw: Option<Arc<std::net::TcpStream>>,
}

impl KillSwitch {
    /// Breaks the connection.
    pub(super) fn kill(&self) {
        self.token.cancel();
    }

    /// Writes past the HTTP server: each piece after its pause. The server must not have written a head yet.
    ///
    /// # Errors
    /// When the client has gone.
    pub(super) async fn write(&self, pieces: &[(Duration, Vec<u8>)]) -> io::Result<()> {
        let raw = self.raw.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let mut socket = TcpStream::from_std(raw.try_clone()?)?;
        for (pause, bytes) in pieces {
            if !pause.is_zero() {
                tokio::time::sleep(*pause).await;
            }
            socket.write_all(bytes).await?;
        }
        Ok(())
    }

    /// Ends the sending side in order (FIN), then breaks the connection.
    pub(super) fn finish(&self) {
        if let Some(raw) = &self.raw {
            // A client that has gone already needs no farewell.
            let _ = raw.shutdown(Shutdown::Write);
        }
        self.kill();
    }

    /// Breaks the connection by a reset (RST), as a crashed host does.
    pub(super) fn reset(&self) {
        if let Some(raw) = &self.raw
            && let Ok(socket) = raw.try_clone().and_then(TcpStream::from_std)
        {
            let _ = socket.set_zero_linger();
        }
        self.kill();
    }
}

impl Connected<IncomingStream<'_, KillableListener>> for KillSwitch {
    fn connect_info(stream: IncomingStream<'_, KillableListener>) -> Self {
        let raw = stream.io().inner.as_fd().try_clone_to_owned().ok().map(|fd| Arc::new(fd.into()));
        KillSwitch { token: stream.io().token.clone(), raw }
    }
}

/// Accepts [`KillableStream`]s; all of them break when `all` is cancelled.
#[derive(Debug)]
pub(super) struct KillableListener {
    inner: TcpListener,
    all: CancellationToken,
    accepted: Arc<AtomicU64>,
}

impl KillableListener {
    pub(super) fn new(inner: TcpListener, all: CancellationToken, accepted: Arc<AtomicU64>) -> Self {
        Self { inner, all, accepted }
    }
}

impl Listener for KillableListener {
    type Io = KillableStream;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, address) = Listener::accept(&mut self.inner).await;
        self.accepted.fetch_add(1, Ordering::Relaxed);
        // Pacing is the point of a stub: a token must not wait for the next one.
        let _ = stream.set_nodelay(true);
        (KillableStream::new(stream, self.all.child_token()), address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.inner.local_addr()
    }
}

/// A TCP stream that fails once its token is cancelled.
#[derive(Debug)]
pub(super) struct KillableStream {
    inner: TcpStream,
    token: CancellationToken,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl KillableStream {
    fn new(inner: TcpStream, token: CancellationToken) -> Self {
        let cancelled = Box::pin(token.clone().cancelled_owned());
        Self { inner, token, cancelled }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cancelled.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionReset.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for KillableStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for KillableStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
