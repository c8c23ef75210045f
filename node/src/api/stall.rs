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
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Bytes by which the version of HTTP is known: the preface of HTTP/2. Until then no limit of the server's own holds.
const OPENING: usize = 24;
/// Bytes of a body that must come in a second, on average: a tenth of what the worst mobile network brings.
const BODY_RATE: f64 = 1024.0;

/// A connection that fails when the other side does not begin, or takes nothing of what waits for it.
pub(super) struct Impatient<I> {
    io: I,
    write_idle: Duration,
    /// Set while a write waits.
    give_up: Option<Pin<Box<Sleep>>>,
    /// Set until the client has begun; with the bytes that it has still to send for that.
    opening: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<I> Impatient<I> {
    pub(super) fn new(io: I, opening: Duration, write_idle: Duration) -> Self {
        let opening = Some((Box::pin(tokio::time::sleep(opening)), OPENING));
        Self { io, write_idle, give_up: None, opening }
    }

    fn opened(&mut self, cx: &mut Context<'_>, read: usize, waits: bool) -> io::Result<()> {
        let Some((give_up, missing)) = &mut self.opening else { return Ok(()) };
        *missing = missing.saturating_sub(read);
        if *missing == 0 {
            self.opening = None;
        } else if waits && give_up.as_mut().poll(cx).is_ready() {
            metrics::counter!("shoal_stalled_clients_total").increment(1);
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not begin"));
        }
        Ok(())
    }

    fn limited<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.give_up = None;
            return written;
        }
        let give_up = self
            .give_up
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + self.write_idle)));
        give_up.as_mut().poll(cx).map(|()| {
            metrics::counter!("shoal_stalled_clients_total").increment(1);
            Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing"))
        })
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Impatient<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        let read = buffer.filled().len() - before;
        self.opened(cx, read, polled.is_pending())?;
        polled
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Impatient<I> {
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

/// Gives a request up whose body stops coming, or trickles.
pub(super) async fn limit_body_silence(
    State(idle): State<Duration>,
    request: Request,
    next: Next,
) -> Response {
    next.run(request.map(|body| Body::from_stream(hurried(body.into_data_stream(), idle)))).await
}

fn hurried(
    body: BodyDataStream,
    idle: Duration,
) -> impl futures_util::Stream<Item = Result<bytes::Bytes, axum::BoxError>> {
    let began = Instant::now();
    stream::unfold((body, 0.0), move |(mut body, mut received)| async move {
        // Twice the silence that is allowed anyway is free, so that short bodies of slow clients pass.
        let due = began + 2 * idle + Duration::from_secs_f64(received / BODY_RATE);
        let until = due.min(Instant::now() + idle);
        match tokio::time::timeout_at(until, body.next()).await {
            Ok(piece) => {
                let piece = piece?;
                received += piece.as_ref().map_or(0, |bytes| bytes.len()) as f64;
                Some((piece.map_err(Into::into), (body, received)))
            }
            Err(silence) => Some((Err(silence.into()), (body, received))),
        }
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const HEADER: Duration = Duration::from_secs(10);
    const WRITE_IDLE: Duration = Duration::from_secs(60);
    const BODY_IDLE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_begin_is_cut_off_and_one_that_did_is_not() {
        for beginning in ["", "P", "PRI * HTTP/2.0"] {
            let (near, mut far) = tokio::io::duplex(64);
            let mut near = Impatient::new(near, HEADER, WRITE_IDLE);
            far.write_all(beginning.as_bytes()).await.unwrap();
            let began = Instant::now();
            let error = near.read_to_end(&mut Vec::new()).await.unwrap_err();
            assert_eq!((error.kind(), began.elapsed()), (io::ErrorKind::TimedOut, HEADER), "{beginning}");
        }
        let (near, mut far) = tokio::io::duplex(64);
        let mut near = Impatient::new(near, HEADER, WRITE_IDLE);
        far.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n").await.unwrap();
        let mut all = Vec::new();
        let reads = near.read_to_end(&mut all);
        assert!(tokio::time::timeout(Duration::from_secs(3600), reads).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_given_up() {
        let trickle = stream::unfold((), |()| async {
            tokio::time::sleep(BODY_IDLE / 2).await;
            Some((Ok::<_, io::Error>(bytes::Bytes::from_static(b"x")), ()))
        });
        let began = Instant::now();
        let mut pieces = Box::pin(hurried(Body::from_stream(trickle).into_data_stream(), BODY_IDLE));
        while pieces.next().await.unwrap().is_ok() {}
        let took = began.elapsed();
        assert!((2 * BODY_IDLE..3 * BODY_IDLE).contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_cut_off_and_a_slow_one_is_not() {
        let (near, mut far) = tokio::io::duplex(1);
        let mut near = Impatient::new(near, HEADER, WRITE_IDLE);
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
    async fn a_body_that_stops_coming_ends_with_an_error() {
        let first = stream::iter([Ok::<_, io::Error>(bytes::Bytes::from_static(b"{"))]);
        let body = Body::from_stream(first.chain(stream::pending()));
        let mut pieces = Box::pin(hurried(body.into_data_stream(), BODY_IDLE));
        assert!(pieces.next().await.unwrap().is_ok());
        assert!(pieces.next().await.unwrap().is_err());
    }
}
