//! An answer that nobody fetches is given up, also where the connection itself is read: one stream of HTTP/2 may stall
//! while its neighbours flow, and then no write of the socket waits.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::tasks::{self, TaskKind};

/// Pieces of a body, or why there are no more.
pub(super) type Pieces = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// The frames, and since when nobody has asked for the next one.
struct Fetched {
    /// `None` once it was given up, or has ended.
    frames: Option<Pieces>,
    given_up: bool,
    /// `None` while somebody waits for a frame.
    unread_since: Option<Instant>,
}

/// A stream of frames that ends with an error when its reader stays away.
pub(super) struct Unread {
    shared: Arc<Mutex<Fetched>>,
    _watch: AbortOnDropHandle<()>,
}

impl Unread {
    /// Gives the frames up when none is fetched for `idle` although there may be some.
    pub(super) fn limited(frames: Pieces, idle: Duration) -> Self {
        let fetched = Fetched { frames: Some(frames), given_up: false, unread_since: Some(Instant::now()) };
        let shared = Arc::new(Mutex::new(fetched));
        let watch = tasks::spawn(TaskKind::Relay, watch(shared.clone(), idle));
        Self { shared, _watch: AbortOnDropHandle::new(watch) }
    }
}

async fn watch(shared: Arc<Mutex<Fetched>>, idle: Duration) {
    loop {
        let since = lock(&shared).unread_since.unwrap_or_else(Instant::now);
        tokio::time::sleep_until(since + idle).await;
        let mut fetched = lock(&shared);
        if fetched.unread_since.is_some_and(|since| since.elapsed() >= idle) {
            metrics::counter!("shoal_stalled_clients_total").increment(1);
            fetched.given_up = true;
            let frames = fetched.frames.take();
            drop(fetched);
            // Outside the lock: it ends the upstream's work.
            drop(frames);
            return;
        }
    }
}

fn lock(shared: &Mutex<Fetched>) -> MutexGuard<'_, Fetched> {
    // A panic of the frames leaves them polled to their end at worst.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream for Unread {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut fetched = lock(&self.shared);
        let Some(frames) = fetched.frames.as_mut() else {
            let late = io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing");
            return Poll::Ready(std::mem::take(&mut fetched.given_up).then_some(Err(late)));
        };
        let polled = frames.as_mut().poll_next(cx);
        fetched.unread_since = polled.is_ready().then(Instant::now);
        if matches!(polled, Poll::Ready(None)) {
            fetched.frames = None;
            fetched.unread_since = None;
        }
        polled
    }
}

impl Drop for Unread {
    /// Ends the upstream's work at once: the watching task may hold its part until it is run next.
    fn drop(&mut self) {
        let frames = lock(&self.shared).frames.take();
        drop(frames);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::{StreamExt, stream};

    use super::*;

    const IDLE: Duration = Duration::from_secs(60);

    /// Frames without end, one each ten seconds, and whether they still exist.
    fn frames() -> (Pieces, Arc<AtomicBool>) {
        struct Exists(Arc<AtomicBool>);
        impl Drop for Exists {
            fn drop(&mut self) {
                self.0.store(false, Ordering::SeqCst);
            }
        }
        let alive = Arc::new(AtomicBool::new(true));
        let exists = Exists(alive.clone());
        let frames = stream::unfold(exists, |exists| async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            Some((Ok(Bytes::from_static(b"x")), exists))
        });
        (Box::pin(frames), alive)
    }

    #[tokio::test(start_paused = true)]
    async fn who_fetches_nothing_for_a_minute_ends_the_work() {
        let (frames, alive) = frames();
        let mut read = Unread::limited(frames, IDLE);
        assert!(read.next().await.unwrap().is_ok());
        tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
        assert!(alive.load(Ordering::SeqCst));
        assert!(read.next().await.unwrap().is_ok(), "slow is not stalled");
        tokio::time::sleep(IDLE + Duration::from_secs(1)).await;
        assert!(!alive.load(Ordering::SeqCst));
        assert!(read.next().await.unwrap().is_err(), "it must not look whole");
        assert!(read.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_slow_answer_is_not_who_stalls() {
        let silent: Pieces = Box::pin(stream::pending());
        let mut read = Unread::limited(silent, IDLE);
        assert!(tokio::time::timeout(IDLE * 100, read.next()).await.is_err());
    }
}
