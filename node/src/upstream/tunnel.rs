//! Upstream at the far end of the mesh: a device behind its link, or another router.
//!
//! One request is one stream of frames. The order of frames is enforced here, so that nothing above has to
//! doubt an answer: a head first, chunks, then exactly one end or error. A stream that closes without either was
//! cut and says so. Dropping the future or the events drops the stream, which the far end sees as a cancel.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use shoal_cluster::ids::{Peer, Role};
use shoal_cluster::quic::Vitals;
use shoal_proto::infer_frame::Kind;
use shoal_proto::{InferFrame, InferHead, InferRequest};
use tokio::time::Instant;

use super::pulse::{self, Host, Listening, Lost, Pulse};
use super::wire::{error_from_wire, media_from_wire, to_wire};
use super::{
    Event, ServedBy, UpstreamError, UpstreamFuture, UpstreamRequest, UpstreamResponse, reading_time_of,
};
use crate::egress::EgressMark;

/// Longest silence of the far end. It watches its engine itself, phase by phase, and reports what it sees; this
/// bound is above all of its own and only meets a process that hangs while its connection lives.
pub const FAR_END_SILENCE: Duration = Duration::from_secs(330);

/// Opens inference streams to peers; the cluster's handle, or a fake in tests.
pub trait Opener: Clone + Send + Sync + 'static {
    /// The stream of frames; dropping it cancels.
    type Frames: Frames;

    /// Sends `request` to `to` on a new stream.
    fn open(
        &self,
        to: Peer,
        request: InferRequest,
    ) -> impl Future<Output = Result<Self::Frames, UpstreamError>> + Send;
}

/// The frames of one answer.
pub trait Frames: Send + 'static {
    /// Returns the next frame, or `None` when the far end finished the stream.
    fn next(&mut self) -> impl Future<Output = Result<Option<InferFrame>, Interrupted>> + Send;

    /// Returns signs that the far end's process runs, whatever it does, and what the way there is like.
    fn vitals(&self) -> Vitals {
        Vitals::default()
    }

    /// Asks the far end whether it still works on the request; may never resolve.
    fn pulse(&self) -> BoxFuture<'static, Pulse> {
        Box::pin(std::future::ready(Pulse::Unasked))
    }
}

/// The stream broke; why, for the log.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Interrupted(pub String);

/// A device or router as an upstream; cheap to clone.
#[derive(Debug, Clone)]
pub struct Tunnel<O> {
    opener: O,
    to: Peer,
    name: String,
    host: Host,
    provider: Option<Arc<str>>,
}

impl<O: Opener> Tunnel<O> {
    /// Makes the upstream; `name` is how people know the far end. Nothing is opened yet.
    pub fn new(opener: O, to: Peer, name: impl Into<String>) -> Self {
        Self { opener, to, name: name.into(), host: Host::Steady, provider: None }
    }

    /// Says what kind of host is at the far end, where it is not a steady one.
    pub fn listening_to(self, host: Host) -> Self {
        Self { host, ..self }
    }

    /// Makes the upstream of a provider that the far end has the key for. A request that is lost on the way there counts
    /// as sent to it, since nobody can say that it was not.
    pub fn to_provider(opener: O, to: Peer, provider: Arc<str>) -> Self {
        let name = format!("the node that has the key for '{provider}'");
        Self { opener, to, name, host: Host::Steady, provider: Some(provider) }
    }
}

impl<O: Opener> tower::Service<UpstreamRequest> for Tunnel<O> {
    type Response = UpstreamResponse;
    type Error = UpstreamError;
    type Future = UpstreamFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: UpstreamRequest) -> UpstreamFuture {
        let Self { opener, to, name, host, provider } = self.clone();
        Box::pin(async move {
            let deadline = request.deadline;
            // A device knows of no provider, and what it says could only mislead.
            let is_router = to.role == Role::Router;
            let silence = FAR_END_SILENCE + reading_time_of(&request.body);
            let opened = opener.open(to, to_wire(&request));
            let frames = bounded(deadline, silence, &name, opened).await??;
            let lost = LostOnTheWay { egress: request.egress.clone(), provider };
            let told = is_router.then_some(&request.egress);
            let commitment = request.commitment.clone();
            let listening = Listening::new(commitment, host, request.body.len());
            Answer { frames, deadline, silence, listening, name, over: false }.begin(told, lost).await
        })
    }
}

/// Marks the request as sent to the provider unless the far end said what became of it, also if the asker goes away.
struct LostOnTheWay {
    egress: EgressMark,
    provider: Option<Arc<str>>,
}

impl LostOnTheWay {
    fn found(mut self) {
        self.provider = None;
    }
}

impl Drop for LostOnTheWay {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take() {
            self.egress.handed_to(&provider);
        }
    }
}

/// Waits for `future`, but not longer than the far end may be silent, nor past the request's deadline.
async fn bounded<F: Future>(
    deadline: Option<Instant>,
    silence: Duration,
    name: &str,
    future: F,
) -> Result<F::Output, UpstreamError> {
    let silence = Instant::now() + silence;
    let until = deadline.map_or(silence, |deadline| deadline.min(silence));
    tokio::time::timeout_at(until, future).await.map_err(|_| {
        if until == silence {
            UpstreamError::retryable(504, "upstream_timeout", format!("{name} has gone silent"))
        } else {
            UpstreamError::new(504, "upstream_timeout", format!("{name} did not finish in the time allowed"))
        }
    })
}

/// An answer being read.
struct Answer<F> {
    frames: F,
    deadline: Option<Instant>,
    silence: Duration,
    listening: Listening,
    name: String,
    over: bool,
}

impl<F: Frames> Answer<F> {
    async fn begin(
        mut self,
        egress: Option<&EgressMark>,
        lost: LostOnTheWay,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let first = self.frame().await?;
        lost.found();
        let (served_by, media) = match first {
            Kind::Head(InferHead { upstream, upstream_id, model, egress: told, content_type }) => {
                if let Some(egress) = egress {
                    egress.told_by_peer(&told);
                }
                (ServedBy { upstream, upstream_id, model }, media_from_wire(&content_type))
            }
            Kind::Error(error) => {
                if let Some(egress) = egress {
                    egress.told_by_peer(&error.egress);
                }
                return Err(error_from_wire(error));
            }
            Kind::Chunk(_) | Kind::End(_) => return Err(self.disorder()),
        };
        let events = stream::unfold(self, |mut answer| async move {
            if answer.over {
                return None;
            }
            let event = answer.event().await;
            answer.over = !matches!(event, Ok(Event::Chunk(_)));
            Some((event, answer))
        });
        Ok(UpstreamResponse { served_by, media, events: events.boxed() })
    }

    async fn event(&mut self) -> Result<Event, UpstreamError> {
        match self.frame().await? {
            Kind::Chunk(bytes) => Ok(Event::Chunk(bytes)),
            Kind::End(end) => Ok(Event::End { complete: end.complete }),
            Kind::Error(error) => Err(error_from_wire(error)),
            Kind::Head(_) => Err(self.disorder()),
        }
    }

    async fn frame(&mut self) -> Result<Kind, UpstreamError> {
        let heard = pulse::next_frame(&mut self.frames, &self.listening);
        let frame = bounded(self.deadline, self.silence, &self.name, heard).await;
        let frame = match frame.map_err(UpstreamError::without_answer)? {
            Ok(frame) => frame,
            Err(lost) => {
                let (why, what) = match lost {
                    Lost::Silent => ("silent", "stopped answering"),
                    Lost::Unknown => ("unknown", "lost the request"),
                };
                metrics::counter!("shoal_pulses_lost_total", "why" => why).increment(1);
                tracing::info!(upstream = self.name, what, "a request is taken away from its host");
                return Err(UpstreamError { unheard: lost == Lost::Silent, ..self.interrupted(what) });
            }
        };
        match frame {
            Ok(Some(InferFrame { kind: Some(kind) })) => Ok(kind),
            Ok(Some(InferFrame { kind: None })) => Err(self.disorder()),
            Ok(None) => Err(self.interrupted("closed the stream")),
            Err(Interrupted(reason)) => {
                tracing::debug!(upstream = self.name, reason, "an inference stream broke");
                Err(self.interrupted("was lost"))
            }
        }
    }

    fn interrupted(&self, what: &str) -> UpstreamError {
        let message = format!("{} {what} before the answer was complete", self.name);
        UpstreamError::retryable(502, "upstream_interrupted", message).without_answer()
    }

    fn disorder(&self) -> UpstreamError {
        UpstreamError::retryable(
            502,
            "upstream_error",
            format!("{} does not keep to the protocol", self.name),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use shoal_cluster::ids::NodeId;
    use shoal_proto::InferError;
    use tower::ServiceExt;

    use super::*;
    use crate::device::testing::chat;

    /// Frames that a far end sends; an empty list is a stream that breaks, `None` one that cannot be opened.
    #[derive(Clone)]
    struct Script(Option<Vec<Kind>>);

    impl Opener for Script {
        type Frames = VecDeque<Kind>;

        async fn open(&self, _: Peer, _: InferRequest) -> Result<VecDeque<Kind>, UpstreamError> {
            let unopened = || UpstreamError::retryable(502, "upstream_error", "no way");
            self.0.clone().map(Into::into).ok_or_else(unopened)
        }
    }

    impl Frames for VecDeque<Kind> {
        async fn next(&mut self) -> Result<Option<InferFrame>, Interrupted> {
            let kind = self.pop_front().ok_or_else(|| Interrupted("broken".into()))?;
            Ok(Some(InferFrame { kind: Some(kind) }))
        }
    }

    async fn egress_of(frames: Option<Vec<Kind>>) -> String {
        let to = Peer { role: Role::Router, id: NodeId::from_spki(b"owner") };
        let request = chat(false);
        let mark = request.egress.clone();
        let _: Result<_, _> = Tunnel::to_provider(Script(frames), to, "openai".into()).oneshot(request).await;
        mark.text()
    }

    #[tokio::test]
    async fn what_a_device_says_of_providers_is_passed_over() {
        let head = InferHead { egress: "openai".into(), ..InferHead::default() };
        let error = InferError { egress: "openai".into(), ..InferError::default() };
        for said in [Kind::Head(head), Kind::Error(error)] {
            let to = Peer { role: Role::Device, id: NodeId::from_spki(b"device") };
            let request = chat(false);
            let mark = request.egress.clone();
            let _: Result<_, _> = Tunnel::new(Script(Some(vec![said])), to, "box").oneshot(request).await;
            assert_eq!(mark.text(), "none");
        }
    }

    #[tokio::test]
    async fn where_a_request_went_is_what_the_owner_says_and_the_worst_if_it_says_nothing() {
        let head = |egress: &str| Kind::Head(InferHead { egress: egress.into(), ..InferHead::default() });
        let error = |egress: &str| Kind::Error(InferError { egress: egress.into(), ..InferError::default() });
        assert_eq!(egress_of(Some(vec![head("openai")])).await, "openai");
        assert_eq!(egress_of(Some(vec![error("openai")])).await, "openai");
        assert_eq!(egress_of(Some(vec![error("none")])).await, "none", "an empty purse sends nothing");
        assert_eq!(egress_of(Some(vec![])).await, "openai", "nobody can say that it was not sent");
        assert_eq!(egress_of(None).await, "none", "it did not even leave this node");
    }
}
