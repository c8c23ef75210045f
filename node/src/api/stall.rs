//! Clients that stop in the middle: of reading an answer, or of sending a request.
//!
//! Both hold an upstream's slot, memory or a connection for as long as they are let. A client that reads slowly is
//! fine; one from which nothing moves is cut off.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Longest time in which a client takes no byte of what waits for it.
const WRITE_IDLE: Duration = Duration::from_secs(60);
/// Longest time until a connection's first byte. The HTTP server's own limit on heads begins only with that byte, since
/// it tells HTTP/1 from HTTP/2.
const FIRST_BYTE: Duration = Duration::from_secs(10);
/// Longest time between two pieces of a request's body.
const BODY_IDLE: Duration = Duration::from_secs(30);

/// A connection whose writes fail once the other side took nothing for a minute, and whose reads fail if nothing ever
/// came.
pub(super) struct WriteIdle<I> {
    io: I,
    /// Set until the first byte.
    silent: Option<Pin<Box<Sleep>>>,
    /// Set while a write waits.
    give_up: Option<Pin<Box<Sleep>>>,
}

impl<I> WriteIdle<I> {
    pub(super) fn new(io: I) -> Self {
        let silent = Some(Box::pin(tokio::time::sleep_until(Instant::now() + FIRST_BYTE)));
        Self { io, silent, give_up: None }
    }

    fn limited<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.give_up = None;
            return written;
        }
        let give_up = self
            .give_up
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + WRITE_IDLE)));
        give_up.as_mut().poll(cx).map(|()| {
            metrics::counter!("shoal_stalled_clients_total").increment(1);
            Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing"))
        })
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for WriteIdle<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        if read.is_ready() {
            self.silent = None;
        }
        let Some(silent) = &mut self.silent else { return read };
        silent.as_mut().poll(cx).map(|()| {
            metrics::counter!("shoal_stalled_clients_total").increment(1);
            Err(io::Error::new(io::ErrorKind::TimedOut, "the client says nothing"))
        })
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for WriteIdle<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.limited(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bytes);
        self.limited(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Gives a request up whose body stops coming.
pub(super) async fn limit_body_silence(request: Request, next: Next) -> Response {
    next.run(request.map(|body| Body::from_stream(hurried(body.into_data_stream())))).await
}

fn hurried(body: BodyDataStream) -> impl futures_util::Stream<Item = Result<bytes::Bytes, axum::BoxError>> {
    stream::unfold(body, |mut body| async move {
        match tokio::time::timeout(BODY_IDLE, body.next()).await {
            Ok(piece) => Some((piece?.map_err(Into::into), body)),
            Err(silence) => Some((Err(silence.into()), body)),
        }
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_cut_off_and_a_slow_one_is_not() {
        let (near, mut far) = tokio::io::duplex(1);
        let mut near = WriteIdle::new(near);
        let slow = async {
            for _ in 0..3 {
                tokio::time::sleep(WRITE_IDLE - Duration::from_secs(1)).await;
                far.read_u8().await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(near.write_all(b"abc"), slow);
        written.unwrap();
        let began = Instant::now();
        let error = near.write_all(b"defg").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed().as_secs(), WRITE_IDLE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_says_anything_is_cut_off_and_a_late_one_is_not() {
        let (near, far) = tokio::io::duplex(8);
        let began = Instant::now();
        let error = WriteIdle::new(near).read_u8().await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, FIRST_BYTE));
        drop(far);
        let (near, mut far) = tokio::io::duplex(8);
        let mut near = WriteIdle::new(near);
        let late = async {
            for _ in 0..3 {
                tokio::time::sleep(FIRST_BYTE - Duration::from_secs(1)).await;
                far.write_u8(7).await.unwrap();
            }
        };
        let read = async {
            for _ in 0..3 {
                assert_eq!(near.read_u8().await.unwrap(), 7);
            }
        };
        tokio::join!(read, late);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_coming_ends_with_an_error() {
        let first = stream::iter([Ok::<_, io::Error>(bytes::Bytes::from_static(b"{"))]);
        let body = Body::from_stream(first.chain(stream::pending()));
        let mut pieces = Box::pin(hurried(body.into_data_stream()));
        assert!(pieces.next().await.unwrap().is_ok());
        assert!(pieces.next().await.unwrap().is_err());
    }
}
