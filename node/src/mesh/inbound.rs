//! What comes in over the mesh: devices' announcements, and inferences that other routers forward.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use http::HeaderMap;
use shoal_cluster::ids::{Peer, Role};
use shoal_cluster::{Inbound, Responder};
use shoal_proto::infer_frame::Kind;
use shoal_proto::{DataClass as WireClass, InferEnd, InferError, InferFrame, InferHead, InferRequest};
use shoal_routing::{DataClass, MAX_HOPS, ModelChoice};
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use crate::api::error::ApiError;
use crate::api::parse::{self, Floor};
use crate::inventory::LinkEvent;
use crate::pipeline::tap::{Payload, Tap};
use crate::pipeline::{Answer, Job, Origin, Pipeline, Running};
use crate::tasks::{self, TaskKind};
use crate::upstream::{ApiPath, Event, UpstreamError};

/// Takes everything in until the cluster ends or shutdown.
pub async fn receive(
    mut inbound: mpsc::Receiver<Inbound>,
    links: mpsc::Sender<LinkEvent>,
    pipeline: Arc<Pipeline>,
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
                tasks::spawn(TaskKind::InboundInfer, serve(pipeline.clone(), from, request, responder));
                continue;
            }
        };
        if links.send(event).await.is_err() {
            return;
        }
    }
}

async fn serve(pipeline: Arc<Pipeline>, from: Peer, request: InferRequest, mut responder: Responder) {
    if from.role != Role::Router {
        let error = ApiError::new(403, "permission_denied", "a device may not ask for inference");
        refuse(responder, error).await;
        return;
    }
    let job = match accept(&pipeline, request) {
        Ok(job) => job,
        Err(error) => return refuse(responder, error).await,
    };
    // The entry router going away drops everything from here on, in whatever phase it is.
    let ran = tokio::select! {
        ran = pipeline.run(job) => ran,
        () = responder.cancelled() => return,
    };
    match ran {
        Ok(running) => relay(running, responder).await,
        Err(error) => refuse(responder, error).await,
    }
}

fn accept(pipeline: &Pipeline, request: InferRequest) -> Result<Job, ApiError> {
    if request.hop >= MAX_HOPS || request.attempts_left == 0 {
        return Err(ApiError::new(508, "too_many_hops", "the request was forwarded too often"));
    }
    let path: ApiPath = request.path.parse()?;
    let class = match request.data_class() {
        // A hop that says nothing is treated as the strictest: nothing may leak by a missing field.
        WireClass::Unspecified | WireClass::Restricted => DataClass::Restricted,
        WireClass::Internal => DataClass::Internal,
        WireClass::Public => DataClass::Public,
    };
    let floor = Floor { data_class: class, local_only: false };
    let bytes: Bytes = request.body;
    let (parsed, mut routing) = parse::parse(path, &bytes, &HeaderMap::new(), floor)?;
    routing.hop = request.hop + 1;
    if !request.device.is_empty() {
        routing.choice = ModelChoice::OnDevice { device: request.device.into(), model: request.model.into() };
    }
    let valid_id = request.request_id.len() <= 96
        && request.request_id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if !valid_id {
        return Err(ApiError::new(400, "invalid_request_error", "the forwarded request has no valid id"));
    }
    let origin = Origin {
        id: request.request_id.into(),
        hop: request.hop + 1,
        attempts_left: request.attempts_left,
        key_id: "peer".into(),
        deadline: (request.deadline_ms > 0)
            .then(|| Instant::now() + Duration::from_millis(request.deadline_ms)),
    };
    pipeline.accept(parsed, &routing, origin)
}

async fn relay(running: Running, mut responder: Responder) {
    let Running { answer, mut tap, guard, mut ticket } = running;
    let head = InferHead {
        upstream: ticket.record.upstream.clone(),
        upstream_id: ticket.record.upstream_id.clone(),
        model: ticket.record.model.clone(),
    };
    if send(&mut responder, Kind::Head(head)).await.is_err() {
        return;
    }
    let ended = match answer {
        Answer::Whole(body) => send(&mut responder, Kind::Chunk(body)).await.map(|()| true),
        Answer::Stream { held, mut events } => {
            tap = Tap { content_payloads: 0, content_seen: false, ..tap };
            let mut held = held;
            let mut guard_view = StreamEnd::Open;
            let mut result = Ok(());
            while let Some(payload) = held.pop_front() {
                tap.inspect(&payload);
                result = send(&mut responder, Kind::Chunk(payload)).await;
                if result.is_err() {
                    break;
                }
            }
            while result.is_ok() && matches!(guard_view, StreamEnd::Open) {
                let event = tokio::select! {
                    event = events.next() => event,
                    () = responder.cancelled() => return,
                };
                match event {
                    Some(Ok(Event::Chunk(payload))) => {
                        if tap.inspect(&payload) == Payload::Error {
                            guard_view = StreamEnd::Cut;
                        }
                        result = send(&mut responder, Kind::Chunk(payload)).await;
                    }
                    Some(Ok(Event::End { complete })) => {
                        guard_view = if complete { StreamEnd::Whole } else { StreamEnd::Cut };
                    }
                    None => guard_view = StreamEnd::Cut,
                    Some(Err(error)) => {
                        guard.finish(std::time::Instant::now(), false);
                        ticket.read(&tap);
                        ticket.fail(error.status, &error.code);
                        let _ = send(&mut responder, Kind::Error(wire_error(&error))).await;
                        let _ = responder.finish().await;
                        return;
                    }
                }
            }
            result.map(|()| matches!(guard_view, StreamEnd::Whole))
        }
    };
    // A failed send means that the entry router is gone; the dropped ticket says so.
    let Ok(complete) = ended else { return };
    ticket.read(&tap);
    guard.finish(std::time::Instant::now(), complete);
    if complete {
        ticket.complete();
    } else {
        ticket.fail(502, "upstream_interrupted");
    }
    let _ = send(&mut responder, Kind::End(InferEnd { complete })).await;
    let _ = responder.finish().await;
}

enum StreamEnd {
    Open,
    Whole,
    Cut,
}

async fn refuse(mut responder: Responder, error: ApiError) {
    let retryable = error.status == 429 || error.status >= 500 || error.status == 404;
    let frame = InferError {
        status: u32::from(error.status),
        code: error.code.to_string(),
        message: error.message,
        retryable,
        retry_after_ms: error.retry_after.map_or(0, |d| d.as_millis() as u64),
    };
    // The opener may be gone already; then there is nobody to tell.
    let _ = send(&mut responder, Kind::Error(frame)).await;
    let _ = responder.finish().await;
}

fn wire_error(error: &UpstreamError) -> InferError {
    InferError {
        status: u32::from(error.status),
        code: error.code.to_string(),
        message: error.message.clone(),
        retryable: error.retryable,
        retry_after_ms: error.retry_after.map_or(0, |d| d.as_millis() as u64),
    }
}

async fn send(responder: &mut Responder, kind: Kind) -> Result<(), shoal_cluster::quic::Error> {
    responder.send(InferFrame { kind: Some(kind) }).await
}
