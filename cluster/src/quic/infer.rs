//! One inference, one stream: the opener sends a request, the other end streams the answer's frames.
//!
//! Cancelling costs nothing to arrange: the opener drops its [`InferStream`], the transport says STOP_SENDING,
//! and [`Responder::cancelled`] resolves at the other end. A responder that is dropped resets the stream, so
//! an answer that broke off never looks complete.

use std::time::Duration;

use shoal_proto::{InferFrame, InferRequest};

use quinn::Connection;

use super::frames::{FrameReader, FrameWriter, StreamKind};
use super::pulse::{self, Listed, Pulse, Vitals};
use super::{Error, Link, code};
use crate::tasks::spawn_named;

/// Largest body of a request: a prompt with some images.
pub const REQUEST_BODY_LIMIT: usize = 32 * 1024 * 1024;
/// The fields around a body are small.
pub(super) const REQUEST_LIMIT: usize = REQUEST_BODY_LIMIT + 64 * 1024;
/// Largest frame of an answer; a longer body travels in several chunks.
pub const FRAME_LIMIT: usize = 8 * 1024 * 1024;

/// Longest time that a whole answer is waited for to arrive.
const ARRIVAL: Duration = Duration::from_secs(120);

/// The answer to a request, as it comes. Dropping it cancels the inference at the other end.
#[derive(Debug)]
pub struct InferStream {
    frames: FrameReader,
    connection: Connection,
    request_id: String,
}

impl InferStream {
    /// Sends `request` on a new stream of `link`. If this is cancelled, the stream is reset.
    ///
    /// # Errors
    /// [`Error::FrameTooLarge`] for a body over 32 MiB, [`Error::Connection`] when the link is down.
    pub async fn open(link: &Link, request: &InferRequest) -> Result<Self, Error> {
        let size = request.body.len();
        if size > REQUEST_BODY_LIMIT {
            return Err(Error::FrameTooLarge { size, limit: REQUEST_BODY_LIMIT });
        }
        let (send, receive) = link.connection.open_bi().await?;
        let (mut writer, frames) = (FrameWriter::new(send), FrameReader::new(receive));
        let (connection, request_id) = (link.connection.clone(), request.request_id.clone());
        let stream = Self { frames, connection, request_id };
        writer.kind(StreamKind::Infer).await?;
        writer.send(request, REQUEST_LIMIT).await?;
        writer.finish()?;
        Ok(stream)
    }

    /// Waits for the next frame; `None` when the peer has finished. Safe to cancel.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the peer gave up, [`Error::Connection`] when it is gone.
    pub async fn next(&mut self) -> Result<Option<InferFrame>, Error> {
        self.frames.next(FRAME_LIMIT).await
    }

    /// Returns what the connection knows of its other end and of the way there.
    pub fn vitals(&self) -> Vitals {
        Vitals::of(&self.connection)
    }

    /// Asks the other end, beside the answer, whether it still works on the request. Resolves when it says so, which
    /// may be never: the caller bounds it.
    ///
    /// # Errors
    /// [`Error::Connection`] when the connection is gone.
    pub fn pulse(&self) -> impl Future<Output = Result<Pulse, Error>> + Send + 'static {
        pulse::ask(self.connection.clone(), self.request_id.clone())
    }
}

impl Drop for InferStream {
    fn drop(&mut self) {
        self.frames.stop(code::CANCELLED);
    }
}

/// Where the answer to a request goes. Dropping it before [`Responder::finish`] resets the stream.
#[derive(Debug)]
pub struct Responder {
    writer: FrameWriter,
    /// As long as this lives, the opener is told that its request is worked on.
    listed: Listed,
}

impl Responder {
    pub(super) fn new(writer: FrameWriter, listed: Listed) -> Self {
        Self { writer, listed }
    }

    /// Sends one frame, waiting while the opener reads slowly. If cancelled, only dropping is left.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the opener no longer wants the answer; [`Error::FrameTooLarge`] over 8 MiB,
    /// after which smaller frames may still follow.
    pub async fn send(&mut self, frame: InferFrame) -> Result<(), Error> {
        self.writer.send(&frame, FRAME_LIMIT).await
    }

    /// Ends the answer in order. What was sent is still delivered.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the opener no longer wants it.
    pub async fn finish(self) -> Result<(), Error> {
        let Self { mut writer, listed } = self;
        writer.finish()?;
        // What was sent may be on its way for long on a slow link, and is not lost meanwhile.
        let arrived = writer.stopped();
        drop(spawn_named("arriving", async move {
            let _ = tokio::time::timeout(ARRIVAL, arrived).await; // late or not, nothing more is known here
            drop(listed);
        }));
        Ok(())
    }

    /// Resolves when the opener dropped its stream or the connection died. Safe to cancel.
    pub async fn cancelled(&mut self) {
        self.writer.stopped().await;
    }
}
