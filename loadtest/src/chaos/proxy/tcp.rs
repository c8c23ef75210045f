//! Connections: bytes are never lost or reordered on the way, but late, slow, stuck, broken off or harmed.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use tokio_util::sync::CancellationToken;

use super::{Links, flip};
use crate::tasks::Running;

/// Bytes of one read.
const CHUNK: usize = 16 << 10;
/// Pause before a blocked link is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A proxy in front of one HTTP server; stops and breaks its connections when dropped.
#[derive(Debug)]
pub(crate) struct TcpProxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    _task: Running,
}

#[derive(Debug)]
struct Shared {
    links: Arc<Links>,
    from: String,
    to: String,
    target: SocketAddr,
    needles: Vec<String>,
    found: Mutex<BTreeMap<String, u64>>,
    /// Cancelled to break what is open; replaced at once.
    open: Mutex<CancellationToken>,
}

impl TcpProxy {
    /// Listens on a free port for `from`, who dials `to` at `target`, and counts each of `needles` in what is sent.
    pub(crate) async fn start(
        links: Arc<Links>,
        from: &str,
        to: &str,
        target: SocketAddr,
        needles: Vec<String>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            links,
            from: from.to_owned(),
            to: to.to_owned(),
            target,
            needles,
            found: Mutex::default(),
            open: Mutex::default(),
        });
        let task = Running::spawn("tcp proxy", accept(Arc::clone(&shared), listener));
        Ok(Self { addr, shared, _task: task })
    }

    #[cfg(test)]
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Base URL behind the proxy.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Breaks every open connection by a reset.
    pub(crate) fn reset_all(&self) {
        self.shared.renew().cancel();
    }

    /// Times that a needle was sent towards the server.
    pub(crate) fn seen(&self, needle: &str) -> u64 {
        let found = self.shared.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.get(needle).copied().unwrap_or(0)
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.reset_all();
    }
}

impl Shared {
    fn renew(&self) -> CancellationToken {
        std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn token(&self) -> CancellationToken {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts needles in `bytes`, and returns the end that the next read may complete.
    fn search(&self, tail: &mut Vec<u8>, bytes: &[u8]) {
        let Some(longest) = self.needles.iter().map(String::len).max() else { return };
        let seam = tail.len();
        tail.extend_from_slice(bytes);
        for needle in &self.needles {
            let hits = tail
                .windows(needle.len())
                .enumerate()
                // What lies in the old end alone was counted before.
                .filter(|(at, window)| at + needle.len() > seam && *window == needle.as_bytes())
                .count();
            if hits > 0 {
                let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
                *found.entry(needle.clone()).or_default() += hits as u64;
            }
        }
        let keep = tail.len().min(longest.saturating_sub(1));
        tail.drain(..tail.len() - keep);
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let token = shared.token();
        // Ends with its connection, or when the proxy breaks it.
        crate::tasks::spawn_named("carried connection", carry(Arc::clone(&shared), client, token));
    }
}

async fn carry(shared: Arc<Shared>, client: TcpStream, token: CancellationToken) {
    // A server that is not there: the client sees its connection broken, as behind any proxy.
    let Ok(server) = TcpStream::connect(shared.target).await else { return };
    // Pacing must pass as it is.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let both = [client.as_fd().try_clone_to_owned(), server.as_fd().try_clone_to_owned()];
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let forth = pump(&shared, (&shared.from, &shared.to), true, client_read, server_write);
    let back = pump(&shared, (&shared.to, &shared.from), false, server_read, client_write);
    let carried = async { tokio::join!(forth, back) };
    tokio::select! {
        () = token.cancelled() => {
            for socket in both.into_iter().flatten() {
                // Set only now: an orderly end must deliver what is on the way.
                if let Ok(socket) = TcpStream::from_std(socket.into()) {
                    let _ = socket.set_zero_linger();
                }
            }
        }
        _ = carried => {}
    }
}

/// Carries one direction until its end; an end is handed on in order.
async fn pump(
    shared: &Shared,
    (from, to): (&str, &str),
    forth: bool,
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
) {
    let (mut buffer, mut tail) = (vec![0; CHUNK], Vec::new());
    loop {
        let size = match read.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(size) => size,
        };
        while shared.links.rule(from, to).blocked {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let bytes = &mut buffer[..size];
        if forth {
            shared.search(&mut tail, bytes);
        }
        let Some(delivery) = shared.links.judge(from, to, size, Instant::now()).first().copied() else {
            // A lost segment of a connection is sent again; only its loss for good is worth playing: a break.
            return;
        };
        if let Some(bit) = delivery.flip {
            flip(bytes, bit);
        }
        if !delivery.after.is_zero() {
            tokio::time::sleep(delivery.after).await;
        }
        if write.write_all(bytes).await.is_err() {
            return;
        }
    }
    let _ = write.shutdown().await;
}
