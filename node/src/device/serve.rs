//! Answers one inference that came over the mesh, by any upstream.
//!
//! The opener's cancel is raced against every wait: for the upstream's first word, for each next event, and (by
//! the failing send) while the opener reads slowly. Losing that race drops the upstream's future or
//! events, which cancels the work wherever it runs. An answer that cannot be ended in order is reset by
//! dropping the responder, so that it never looks complete.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use shoal_proto::infer_frame::Kind;
use shoal_proto::{InferEnd, InferFrame, InferHead, InferRequest};
use shoal_routing::DataClass;
use tokio::time::Instant;
use tower::ServiceExt;

use super::slots::Slots;
use crate::upstream::tunnel::error_to_wire;
use crate::upstream::{BoxUpstream, Event, UpstreamError, UpstreamRequest, UpstreamResponse};

/// Largest chunk frame: well below the transport's bound on frames. Whole bodies are cut, payloads are not.
pub const MAX_CHUNK: usize = 4 * 1024 * 1024;

/// Longest wait for the opener to read; beyond it the slot is worth more than the reader.
const WRITE_IDLE: Duration = Duration::from_secs(60);

/// Longest deadline that is taken literally; more is as good as none.
const MAX_DEADLINE_MS: u64 = 24 * 3600 * 1000;

/// What an opener is asked to wait when all slots are taken: about a short answer's length.
const RETRY_AFTER: Duration = Duration::from_secs(1);

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

/// How an answer ended, for counters and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Delivered, to the engine's own end.
    Complete,
    /// Delivered, but the engine broke off.
    Cut,
    /// An error was delivered.
    Failed,
    /// Refused for want of a slot.
    Refused,
    /// The opener cancelled or went away.
    Cancelled,
}

/// Runs `request` on `upstream` and sends the answer, within `limit` answers at a time counted by `slots`.
pub async fn answer<R: Respond>(
    request: InferRequest,
    responder: R,
    upstream: BoxUpstream,
    slots: &Slots,
    limit: u32,
) -> Ending {
    let Some(slot) = slots.try_take(limit) else {
        return fail(responder, &overloaded(slots.is_closed()), Ending::Refused).await;
    };
    let ending = match from_wire(request) {
        Ok(request) => run(request, responder, upstream).await,
        Err(error) => fail(responder, &error, Ending::Failed).await,
    };
    drop(slot);
    ending
}

fn overloaded(leaving: bool) -> UpstreamError {
    let message =
        if leaving { "this device is about to leave" } else { "all slots of this device are taken" };
    UpstreamError { retry_after: Some(RETRY_AFTER), ..UpstreamError::retryable(503, "overloaded", message) }
}

async fn run<R: Respond>(request: UpstreamRequest, mut responder: R, upstream: BoxUpstream) -> Ending {
    let stream = request.stream;
    let answered = tokio::select! {
        biased;
        () = responder.cancelled() => return Ending::Cancelled,
        answered = upstream.oneshot(request) => answered,
    };
    let UpstreamResponse { served_by, mut events } = match answered {
        Ok(answer) => answer,
        Err(error) => return fail(responder, &error, Ending::Failed).await,
    };
    let head = InferHead {
        upstream: served_by.upstream,
        upstream_id: served_by.upstream_id,
        model: served_by.model,
    };
    if send(&mut responder, Kind::Head(head)).await.is_err() {
        return Ending::Cancelled;
    }
    loop {
        let event = tokio::select! {
            biased;
            () = responder.cancelled() => return Ending::Cancelled,
            event = events.next() => event,
        };
        let sent = match event {
            Some(Ok(Event::Chunk(bytes))) if stream && bytes.len() > MAX_CHUNK => {
                let error =
                    UpstreamError::retryable(502, "upstream_error", "a part of the answer is too large");
                return fail(responder, &error, Ending::Failed).await;
            }
            Some(Ok(Event::Chunk(bytes))) => send_chunks(&mut responder, bytes).await,
            Some(Ok(Event::End { complete })) => {
                let ending = if complete { Ending::Complete } else { Ending::Cut };
                return finish(responder, Kind::End(InferEnd { complete }), ending).await;
            }
            Some(Err(error)) => return fail(responder, &error, Ending::Failed).await,
            // An upstream that forgets its end has not ended well.
            None => return finish(responder, Kind::End(InferEnd { complete: false }), Ending::Cut).await,
        };
        if sent.is_err() {
            return Ending::Cancelled;
        }
    }
}

async fn send_chunks<R: Respond>(responder: &mut R, mut bytes: Bytes) -> Result<(), Gone> {
    while !bytes.is_empty() {
        let part = bytes.split_to(bytes.len().min(MAX_CHUNK));
        send(responder, Kind::Chunk(part)).await?;
    }
    Ok(())
}

async fn send<R: Respond>(responder: &mut R, kind: Kind) -> Result<(), Gone> {
    let frame = InferFrame { kind: Some(kind) };
    tokio::time::timeout(WRITE_IDLE, responder.send(frame)).await.map_err(|_| Gone)?
}

async fn finish<R: Respond>(mut responder: R, last: Kind, ending: Ending) -> Ending {
    match send(&mut responder, last).await {
        Ok(()) => responder.finish().await.map_or(Ending::Cancelled, |()| ending),
        Err(Gone) => Ending::Cancelled,
    }
}

async fn fail<R: Respond>(responder: R, error: &UpstreamError, ending: Ending) -> Ending {
    finish(responder, Kind::Error(error_to_wire(error)), ending).await
}

/// The request as upstreams take it.
///
/// # Errors
/// The path is not an inference.
pub fn from_wire(request: InferRequest) -> Result<UpstreamRequest, UpstreamError> {
    let deadline_ms = request.deadline_ms.min(MAX_DEADLINE_MS);
    Ok(UpstreamRequest {
        path: request.path.parse()?,
        // A class that this version does not know is taken as the strictest.
        data_class: match shoal_proto::DataClass::try_from(request.data_class) {
            Ok(shoal_proto::DataClass::Public) => DataClass::Public,
            Ok(shoal_proto::DataClass::Internal) => DataClass::Internal,
            Ok(shoal_proto::DataClass::Restricted | shoal_proto::DataClass::Unspecified) | Err(_) => {
                DataClass::Restricted
            }
        },
        id: Arc::from(request.request_id),
        model: Arc::from(request.model),
        body: request.body,
        stream: request.stream,
        deadline: (deadline_ms > 0).then(|| Instant::now() + Duration::from_millis(deadline_ms)),
        hop: request.hop,
        attempts_left: request.attempts_left,
        device: (!request.device.is_empty()).then(|| Arc::from(request.device)),
    })
}
