//! The cluster package as the device side sees it: the few traits of this folder, put onto its types.

use futures_util::future::BoxFuture;
use shoal_cluster::ids::Peer;
use shoal_cluster::quic::{
    self, DeviceHandle, Error, Inbound, InferStream, Responder, RouterAddr, Rpc, Vitals,
};
use shoal_proto::{DeviceAnnounce, InferFrame, InferRequest};
use tokio::sync::{mpsc, watch};

use super::agent::{Mesh, Work};
use crate::upstream::UpstreamError;
use crate::upstream::pulse::Pulse;
use crate::upstream::reply::{Gone, Respond};
use crate::upstream::tunnel::{Frames, Interrupted, Opener};

#[cfg(test)]
mod tests;

/// Work that may wait between the link and the agent: it refuses at once what it has no slot for, so hardly any.
const WORK: usize = 16;

impl Mesh for DeviceHandle {
    type Router = RouterAddr;

    fn announce(&self, announce: DeviceAnnounce) {
        DeviceHandle::announce(self, announce);
    }

    fn routers(&self) -> watch::Receiver<Vec<RouterAddr>> {
        DeviceHandle::routers(self)
    }
}

impl Respond for Responder {
    async fn send(&mut self, frame: InferFrame) -> Result<(), Gone> {
        Responder::send(self, frame).await.map_err(|_| Gone)
    }

    async fn finish(self) -> Result<(), Gone> {
        Responder::finish(self).await.map_err(|_| Gone)
    }

    async fn cancelled(&mut self) {
        Responder::cancelled(self).await;
    }
}

impl Frames for InferStream {
    async fn next(&mut self) -> Result<Option<InferFrame>, Interrupted> {
        InferStream::next(self).await.map_err(|error| Interrupted(error.to_string()))
    }

    fn vitals(&self) -> Vitals {
        InferStream::vitals(self)
    }

    fn pulse(&self) -> BoxFuture<'static, Pulse> {
        let asked = InferStream::pulse(self);
        Box::pin(async move {
            match asked.await {
                Ok(quic::Pulse::Working) => Pulse::Working,
                Ok(quic::Pulse::Unknown) => Pulse::Unknown,
                Ok(quic::Pulse::Unasked) => Pulse::Unasked,
                // The answer's own stream tells of a lost connection, and why.
                Err(_) => std::future::pending().await,
            }
        })
    }
}

impl Opener for Rpc {
    type Frames = InferStream;

    async fn open(&self, to: Peer, request: InferRequest) -> Result<InferStream, UpstreamError> {
        self.open_infer(&to, &request).await.map_err(|error| unopened(&error))
    }
}

/// Why no stream could be opened, as an upstream's error.
pub(crate) fn unopened(error: &Error) -> UpstreamError {
    match error {
        Error::FrameTooLarge { .. } => {
            UpstreamError::new(413, "invalid_request_error", "the request is too large for the mesh")
        }
        Error::Shutdown => UpstreamError::new(503, "overloaded", "this node is shutting down"),
        Error::Deadline { .. } | Error::Stalled => UpstreamError::retryable(
            504,
            "upstream_timeout",
            format!("the mesh does not get through: {error}"),
        ),
        _ => {
            UpstreamError::retryable(502, "upstream_error", format!("the mesh does not get through: {error}"))
        }
    }
}

/// Takes the inferences out of what a device's link receives, for [`Agent::run`](super::agent::Agent::run).
///
/// The returned future moves them over and ends with either side; run it beside the agent.
pub fn work_of(
    mut inbound: mpsc::Receiver<Inbound>,
) -> (mpsc::Receiver<Work<Responder>>, impl Future<Output = ()> + Send) {
    let (send, work) = mpsc::channel(WORK);
    let pump = async move {
        while let Some(inbound) = inbound.recv().await {
            // A device's link passes on nothing else; routers alone are announced to.
            let Inbound::Infer { request, responder, .. } = inbound else { continue };
            if send.send(Work { request, responder }).await.is_err() {
                break;
            }
        }
    };
    (work, pump)
}
