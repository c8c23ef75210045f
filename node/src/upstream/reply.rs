//! The answering half of an inference over the mesh: what a device and a router do alike.
//!
//! A whole body is cut into frames, and every frame has a time limit. An answer that cannot be ended in order is
//! reset by dropping the responder, so that it never looks complete.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use shoal_proto::infer_frame::Kind;
use shoal_proto::{InferEnd, InferError, InferFrame, InferHead};

use super::wire::error_to_wire;
use super::{ServedBy, UpstreamError};

/// Largest chunk frame: well below the transport's bound on frames. Whole bodies are cut, payloads are not.
pub const MAX_CHUNK: usize = 4 * 1024 * 1024;

/// Longest wait for the opener to read; beyond it the slot is worth more than the reader.
const WRITE_IDLE: Duration = Duration::from_secs(60);

/// The opener is gone, or does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the opener no longer wants the answer")]
pub struct Gone;

/// Where the frames of one answer go; the cluster's responder, or a fake in tests. Dropping it resets the stream.
pub trait Respond: Send + 'static {
    /// Sends a frame, waiting while the opener reads slowly.
    fn send(&mut self, frame: InferFrame) -> impl Future<Output = Result<(), Gone>> + Send;
    /// Ends the stream in order.
    fn finish(self) -> impl Future<Output = Result<(), Gone>> + Send;
    /// Resolves once the opener no longer wants the answer.
    fn cancelled(&mut self) -> impl Future<Output = ()> + Send;
}

/// One answer on its way to the opener: a head, chunks, then exactly one end or error.
pub struct Reply<R>(R);

impl<R: Respond> Reply<R> {
    /// Begins an answer; nothing is sent yet.
    pub fn new(responder: R) -> Self {
        Self(responder)
    }

    /// Resolves once the opener no longer wants the answer. Safe to cancel.
    pub async fn cancelled(&mut self) {
        self.0.cancelled().await;
    }

    /// Says who answers, and where the request left the mesh to, as an [`EgressMark`](crate::egress::EgressMark) tells it.
    pub async fn head(&mut self, by: ServedBy, egress: String) -> Result<(), Gone> {
        self.head_of(by, egress, None).await
    }

    /// Says the same of an answer of a media type.
    pub async fn head_of(&mut self, by: ServedBy, egress: String, media: Option<&str>) -> Result<(), Gone> {
        let ServedBy { upstream, upstream_id, model } = by;
        let content_type = media.unwrap_or_default().to_owned();
        self.send(Kind::Head(InferHead { upstream, upstream_id, model, egress, content_type })).await
    }

    /// Sends one payload of a stream, uncut.
    ///
    /// # Errors
    /// The outer error says that the opener is gone, the inner one that the payload is too large to travel.
    pub async fn payload(&mut self, payload: Bytes) -> Result<Result<(), UpstreamError>, Gone> {
        if payload.len() > MAX_CHUNK {
            let message = "a part of the answer is too large";
            return Ok(Err(UpstreamError::retryable(502, "upstream_error", message)));
        }
        self.send(Kind::Chunk(payload)).await.map(Ok)
    }

    /// Sends a whole body, or a part of one, in as many frames as it takes.
    pub async fn body(&mut self, mut body: Bytes) -> Result<(), Gone> {
        while !body.is_empty() {
            let part = body.split_to(body.len().min(MAX_CHUNK));
            self.send(Kind::Chunk(part)).await?;
        }
        Ok(())
    }

    /// Ends the answer; `complete` is false when the upstream broke off.
    pub async fn end(self, complete: bool) -> Result<(), Gone> {
        self.last(Kind::End(InferEnd { complete })).await
    }

    /// Ends the answer with an error of a request that never left the mesh.
    pub async fn fail(self, error: &UpstreamError) -> Result<(), Gone> {
        self.fail_after(error, String::new()).await
    }

    /// Ends the answer with an error; `egress` as for [`head`](Self::head).
    pub async fn fail_after(self, error: &UpstreamError, egress: String) -> Result<(), Gone> {
        self.last(Kind::Error(InferError { egress, ..error_to_wire(error) })).await
    }

    async fn last(mut self, kind: Kind) -> Result<(), Gone> {
        self.send(kind).await?;
        self.0.finish().await
    }

    async fn send(&mut self, kind: Kind) -> Result<(), Gone> {
        let frame = InferFrame { kind: Some(kind) };
        tokio::time::timeout(WRITE_IDLE, self.0.send(frame)).await.map_err(|_| Gone)?
    }
}
