//! Frames on a stream: one byte for the stream's kind, then `u32` big-endian length and a prost message each.
//!
//! Reading is safe to cancel (what arrived stays in the buffer); memory grows with what has arrived, never
//! with what a header promises.

use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use prost::Message;
use quinn::{ReadError, RecvStream, SendStream, WriteError};

use super::{Error, code};

/// Bytes of the length in front of each frame.
const HEADER: usize = 4;
/// Most bytes taken from the transport at once.
const READ_SIZE: usize = 64 * 1024;

/// What a bidirectional stream on an RPC connection is for: its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamKind {
    /// One inference; the opener asks, the other end answers.
    Infer = 1,
    /// A device's announcements, a router's welcomes.
    Announce = 2,
    /// One question whether the other end still works on a request.
    Pulse = 3,
}

impl StreamKind {
    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Infer),
            2 => Some(Self::Announce),
            3 => Some(Self::Pulse),
            _ => None,
        }
    }
}

/// What of a stream of frames has arrived and was not taken yet.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: BytesMut,
}

impl FrameBuffer {
    /// Adds what has arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next frame's message; `None` until all of it is here.
    ///
    /// # Errors
    /// [`Error::FrameTooLarge`] when its header promises more than `limit` bytes; the stream has to be given up.
    pub fn next(&mut self, limit: usize) -> Result<Option<Bytes>, Error> {
        let Some(header) = self.bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let size = u32::from_be_bytes(*header) as usize;
        if size > limit {
            return Err(Error::FrameTooLarge { size, limit });
        }
        if self.bytes.len() < HEADER + size {
            return Ok(None);
        }
        self.bytes.advance(HEADER);
        Ok(Some(self.bytes.split_to(size).freeze()))
    }
}

/// The receiving half of a stream.
#[derive(Debug)]
pub(super) struct FrameReader {
    stream: RecvStream,
    buffer: FrameBuffer,
    ended: bool,
}

impl FrameReader {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self { stream, buffer: FrameBuffer::default(), ended: false }
    }

    /// Reads the stream's first byte.
    pub(super) async fn kind(&mut self) -> Result<StreamKind, Error> {
        while self.buffer.bytes.is_empty() {
            if !self.fill().await? {
                return Err(Error::Truncated);
            }
        }
        let byte = self.buffer.bytes.get_u8();
        StreamKind::from_byte(byte).ok_or_else(|| Error::Protocol(format!("unknown kind of stream {byte}")))
    }

    /// Reads the next frame; `None` when the peer has finished. Safe to cancel.
    pub(super) async fn next<M: Message + Default>(&mut self, limit: usize) -> Result<Option<M>, Error> {
        loop {
            if let Some(frame) = self.buffer.next(limit)? {
                let message = M::decode(frame).map_err(|error| Error::Protocol(error.to_string()))?;
                return Ok(Some(message));
            }
            if !self.fill().await? {
                return if self.buffer.bytes.is_empty() { Ok(None) } else { Err(Error::Truncated) };
            }
        }
    }

    /// Tells the peer that nothing more will be read.
    pub(super) fn stop(&mut self, reason: quinn::VarInt) {
        if !self.ended {
            self.ended = true;
            let _ = self.stream.stop(reason); // fails only on a stream that has ended
        }
    }

    /// Takes in what has arrived; false at the end of the stream.
    async fn fill(&mut self) -> Result<bool, Error> {
        if self.ended {
            return Ok(false);
        }
        match self.stream.read_chunk(READ_SIZE, true).await {
            Ok(Some(chunk)) => {
                self.buffer.push(&chunk.bytes);
                Ok(true)
            }
            Ok(None) => {
                self.ended = true;
                Ok(false)
            }
            Err(error) => {
                self.ended = true;
                Err(match error {
                    ReadError::Reset(_) => Error::Cancelled,
                    ReadError::ConnectionLost(lost) => Error::Connection(lost),
                    other => Error::Protocol(other.to_string()),
                })
            }
        }
    }
}

/// The sending half of a stream. Dropped before [`FrameWriter::finish`], it resets the stream: the peer must
/// never take a broken-off answer for a whole one.
#[derive(Debug)]
pub(super) struct FrameWriter {
    stream: SendStream,
    finished: bool,
    /// Set while a frame is half written, so that a cancelled write is not followed by another.
    torn: bool,
}

impl FrameWriter {
    pub(super) fn new(stream: SendStream) -> Self {
        Self { stream, finished: false, torn: false }
    }

    /// Opens the stream towards the peer, who sees it only once a byte arrives.
    pub(super) async fn kind(&mut self, kind: StreamKind) -> Result<(), Error> {
        self.stream.write_all(&[kind as u8]).await.map_err(write_error)
    }

    /// Sends one frame; waits for the peer's window. If cancelled, the stream can only be dropped.
    pub(super) async fn send(&mut self, message: &impl Message, limit: usize) -> Result<(), Error> {
        let size = message.encoded_len();
        if size > limit {
            return Err(Error::FrameTooLarge { size, limit });
        }
        if self.torn {
            return Err(Error::Truncated);
        }
        let mut frame = Vec::with_capacity(HEADER + size);
        frame.extend_from_slice(&u32::try_from(size).expect("limits are far below 4 GiB").to_be_bytes());
        message.encode(&mut frame).expect("a vector grows as needed");
        self.torn = true;
        self.stream.write_all(&frame).await.map_err(write_error)?;
        self.torn = false;
        Ok(())
    }

    /// As [`FrameWriter::send`], but gives the stream up when the peer does not read in time.
    pub(super) async fn send_within(
        &mut self,
        message: &impl Message,
        limit: usize,
        deadline: Duration,
    ) -> Result<(), Error> {
        tokio::time::timeout(deadline, self.send(message, limit)).await.unwrap_or(Err(Error::Stalled))
    }

    /// Ends the stream in order.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        if self.torn {
            return Err(Error::Truncated);
        }
        self.finished = true;
        self.stream.finish().map_err(|_| Error::Cancelled)
    }

    /// Abandons the stream.
    pub(super) fn reset(&mut self, reason: quinn::VarInt) {
        if !self.finished {
            self.finished = true;
            let _ = self.stream.reset(reason); // fails only on a stream that has ended
        }
    }

    /// Resolves when the peer stops reading or the connection dies.
    pub(super) fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let stopped = self.stream.stopped();
        async move {
            let _ = stopped.await; // each way of ending is an end
        }
    }
}

impl Drop for FrameWriter {
    fn drop(&mut self) {
        self.reset(code::CANCELLED);
    }
}

fn write_error(error: WriteError) -> Error {
    match error {
        WriteError::Stopped(_) => Error::Cancelled,
        WriteError::ConnectionLost(lost) => Error::Connection(lost),
        other => Error::Protocol(other.to_string()),
    }
}
