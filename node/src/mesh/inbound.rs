//! What comes in over the mesh: devices' announcements, and inferences that other routers forward.

use std::sync::Arc;

use http::HeaderMap;
use shoal_cluster::Inbound;
use shoal_cluster::ids::Role;
use shoal_proto::InferRequest;
use shoal_routing::{MAX_HOPS, ModelChoice};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::error::ApiError;
use crate::api::parse::{self, Floor};
use crate::inventory::LinkEvent;
use crate::pipeline::ticket::Ticket;
use crate::pipeline::{Committed, Flow, Job, Origin, Pipeline, Purpose, Running, Step, Whole};
use crate::tasks::{self, TaskKind};
use crate::upstream::reply::{Gone, Reply, Respond};
use crate::upstream::{ServedBy, UpstreamError, UpstreamRequest, wire};

#[cfg(test)]
mod tests;

/// Longest id of a forwarded request; ours have 45 characters.
const MAX_ID: usize = 96;

/// Takes everything in until the cluster ends or shutdown; `running` counts the inferences, so that a drain
/// can wait for them.
pub async fn receive(
    mut inbound: mpsc::Receiver<Inbound>,
    links: mpsc::Sender<LinkEvent>,
    pipeline: Arc<Pipeline>,
    running: TaskTracker,
    shutdown: CancellationToken,
) {
    loop {
        let item = tokio::select! {
            item = inbound.recv() => match item { Some(item) => item, None => return },
            () = shutdown.cancelled() => return,
        };
        let event = match item {
            Inbound::Announce { device, announce } => {
                let Some(info) = announce.device else { continue };
                LinkEvent::Announced { device, info, leaving: announce.leaving }
            }
            Inbound::LinkClosed { device } => LinkEvent::Closed { device },
            Inbound::Infer { from, request, responder } => {
                let served = serve(pipeline.clone(), from.role, request, responder);
                tasks::spawn(TaskKind::InboundInfer, running.track_future(served));
                continue;
            }
        };
        if links.send(event).await.is_err() {
            return;
        }
    }
}

/// Serves one inference that a peer asked for.
async fn serve<R: Respond>(pipeline: Arc<Pipeline>, from: Role, request: InferRequest, responder: R) {
    let mut reply = Reply::new(responder);
    let accepted = if from == Role::Router {
        accept(&pipeline, request)
    } else {
        Err(ApiError::new(403, "permission_denied", "a device may not ask for inference"))
    };
    let job = match accepted {
        Ok(job) => job,
        Err(error) => {
            // The opener may be gone already; then there is nobody to tell.
            let _ = reply.fail(&refusal(error)).await;
            return;
        }
    };
    // The entry router going away drops everything from here on, in whatever phase it is.
    let ran = tokio::select! {
        biased;
        () = reply.cancelled() => return,
        ran = pipeline.run(job) => ran,
    };
    // An error here says that the entry router is gone; the ticket, dropped on the way, has recorded it.
    let _: Result<(), Gone> = match ran {
        Ok(Running::Whole(answer)) => whole(answer, reply).await,
        Ok(Running::Stream(stream)) => relay(stream, reply).await,
        Ok(Running::Sound(flow)) => sound(flow, reply).await,
        Err(failed) => reply.fail_after(&failed.error, failed.egress).await,
    };
}

/// Checks what another router forwards as strictly as what a client sends; returns it with its ticket.
fn accept(pipeline: &Pipeline, request: InferRequest) -> Result<Job, ApiError> {
    let UpstreamRequest {
        id,
        path,
        model,
        body,
        media,
        deadline,
        data_class,
        hop,
        meshes,
        attempts_left,
        device,
        ..
    } = wire::from_wire(request)?;
    if hop >= MAX_HOPS || attempts_left == 0 {
        return Err(ApiError::new(508, "too_many_hops", "the request was forwarded too often"));
    }
    let is_id = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || c == b'-';
    if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(is_id) {
        return Err(ApiError::new(400, "invalid_request_error", "the forwarded request has no valid id"));
    }
    let floor = Floor { data_class, local_only: false };
    let is_provider = |name: &str| pipeline.is_provider(name);
    // The router that accepted it wrote the model's own name into it.
    let naming = parse::Naming { is_provider: &is_provider, lfo_manners: false };
    let headers = HeaderMap::new();
    let (mut parsed, mut routing) = parse::parse(path, media.as_deref(), &body, &headers, floor, naming)?;
    parsed.shape.meshes = meshes;
    let hop = hop + 1;
    routing.hop = hop;
    if let Some(device) = device {
        routing.choice = ModelChoice::OnDevice { device, model };
    }
    let origin = Origin { id, hop, attempts_left, key_id: "peer".into(), deadline, purpose: Purpose::Client };
    pipeline.accept(parsed, &routing, origin)
}

async fn whole<R: Respond>(answer: Whole, mut reply: Reply<R>) -> Result<(), Gone> {
    reply.head(served_by(&answer.ticket), answer.ticket.egress().text()).await?;
    reply.body(answer.body.clone()).await?;
    answer.complete();
    reply.end(true).await
}

async fn relay<R: Respond>(mut stream: Committed, mut reply: Reply<R>) -> Result<(), Gone> {
    reply.head(served_by(stream.ticket()), stream.ticket().egress().text()).await?;
    let cut = loop {
        let step = tokio::select! {
            biased;
            () = reply.cancelled() => return Err(Gone),
            step = stream.next() => step,
        };
        match step {
            Step::Payload(_, payload) => {
                if let Err(error) = reply.payload(payload).await? {
                    break error;
                }
            }
            Step::End(Ok(())) => {
                stream.complete();
                return reply.end(true).await;
            }
            Step::End(Err(error)) => break error,
        }
    };
    stream.fail(&cut.code);
    reply.fail(&cut).await
}

async fn sound<R: Respond>(mut flow: Flow, mut reply: Reply<R>) -> Result<(), Gone> {
    let egress = flow.ticket().egress().text();
    let media = flow.media().clone();
    reply.head_of(served_by(flow.ticket()), egress, Some(&*media)).await?;
    let cut = loop {
        let next = tokio::select! {
            biased;
            () = reply.cancelled() => return Err(Gone),
            next = flow.next() => next,
        };
        let bytes = match next {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                flow.complete();
                return reply.end(true).await;
            }
            Err(error) => break error,
        };
        let sent = if flow.is_events() { reply.payload(bytes).await? } else { Ok(reply.body(bytes).await?) };
        if let Err(error) = sent {
            break error;
        }
    };
    flow.fail(&cut.code);
    reply.fail(&cut).await
}

fn served_by(ticket: &Ticket) -> ServedBy {
    let r = &ticket.record;
    ServedBy { upstream: r.upstream.clone(), upstream_id: r.upstream_id.clone(), model: r.model.clone() }
}

/// What was refused here before any upstream saw it: another router or device may well take it, unless the
/// request itself is at fault.
fn refusal(error: ApiError) -> UpstreamError {
    let ApiError { status, code, message, retry_after, .. } = error;
    let retryable = matches!(status, 404 | 429 | 500..);
    UpstreamError { status, code, message, retryable, retry_after, unanswered: false, unheard: false }
}
