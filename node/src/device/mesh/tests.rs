//! A device that joins a router with a token, over real QUIC on loopback, and answers through its agent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use futures_util::StreamExt;
use shoal_cluster::identity::{Identity, join};
use shoal_cluster::ids::Role;
use shoal_cluster::{DeviceLink, DeviceSettings, Handle, MemoryBook, Service, Settings};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::*;
use crate::device::agent::{self, Agent};
use crate::device::engine::HttpEngine;
use crate::device::power::Power;
use crate::device::testing::{self, Ending, PATIENCE, chat, collect, event_stream};
use crate::tasks::{self, TaskKind};
use crate::upstream::Event;
use crate::upstream::tunnel::Tunnel;

const LIST: &str = r#"{"data":[{"id":"m","owned_by":"vllm","max_model_len":4096}]}"#;
const WORD: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\n";
const STOP: &str = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[derive(Clone)]
struct Streams(Handle);

impl Opener for Streams {
    type Frames = InferStream;

    async fn open(&self, to: Peer, request: InferRequest) -> Result<InferStream, UpstreamError> {
        let opened = self.0.open_infer(&to, request).await;
        opened.map_err(|error| UpstreamError::retryable(502, "upstream_error", error.to_string()))
    }
}

/// What the router hears next of the device, of things that `wanted` picks.
async fn hears<T>(inbound: &mut mpsc::Receiver<Inbound>, mut wanted: impl FnMut(Inbound) -> Option<T>) -> T {
    let heard = async {
        loop {
            if let Some(found) = wanted(inbound.recv().await.expect("the router runs")) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, heard).await.expect("the router hears it")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_joins_announces_answers_feels_a_cancel_and_leaves() {
    let (router_dir, device_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let settings = Settings {
        name: "router".to_owned(),
        version: "0".to_owned(),
        api_url: String::new(),
        listen: loopback(),
        advertise: vec![loopback()],
        seeds: Vec::new(),
        gossip_interval: Duration::from_millis(200),
        generation: 1,
    };
    let identity = Arc::new(Identity::create_mesh(router_dir.path(), "router").unwrap());
    let book = Arc::new(MemoryBook::new());
    let (service, handle, mut inbound) = Service::bind(settings, identity, book, Default::default()).unwrap();
    let stop = CancellationToken::new();
    let _stops_all = stop.clone().drop_guard();
    tasks::spawn(TaskKind::Cluster, service.run(stop.clone()));

    let engine = Router::new().route("/v1/models", any(|| async { LIST })).route(
        "/v1/chat/completions",
        any(|body: String| async move {
            let ending = if body.contains("wait") { Ending::Silence } else { Ending::Clean };
            let parts: &[_] = if body.contains("wait") { &[WORD] } else { &[WORD, STOP] };
            event_stream(parts, ending)
        }),
    );
    let engine = HttpEngine::named(testing::serve(engine).await, None).start(stop.clone()).unwrap();

    let token = handle.create_token(Role::Device, Duration::from_secs(60), 1).unwrap();
    let joined = join::redeem(&token, "box", device_dir.path()).await.unwrap();
    let device = joined.identity.node_id().clone();
    let settings = DeviceSettings { listen: loopback(), routers: joined.routers, links: 2 };
    let (link, device_handle, received) = DeviceLink::bind(settings, Arc::new(joined.identity)).unwrap();
    tasks::spawn(TaskKind::Cluster, link.run(stop.clone()));
    let (work, pump) = work_of(received);
    tasks::spawn(TaskKind::Inbound, pump);
    let settings = agent::Settings {
        id: device.to_string(),
        name: "box".to_owned(),
        version: "0".to_owned(),
        generation: 1,
        max_slots: None,
        drain: PATIENCE,
    };
    let leave = CancellationToken::new();
    let agent = Agent::new(settings, vec![engine], watch::channel(Power::default()).1, device_handle);
    let agent = tasks::spawn(TaskKind::Agent, agent.run(work, |_| {}, leave.clone()));

    let announced = |wanted: fn(&DeviceAnnounce) -> bool| {
        move |inbound: Inbound| match inbound {
            Inbound::Announce { announce, .. } if wanted(&announce) => announce.device,
            _ => None,
        }
    };
    let offers = announced(|said| said.device.as_ref().is_some_and(|device| !device.models.is_empty()));
    let info = hears(&mut inbound, offers).await;
    assert_eq!((&*info.id, &*info.models[0].id, &*info.models[0].engine), (device.as_str(), "m", "vllm"));

    let to = Peer { role: Role::Device, id: device };
    let tunnel = Tunnel::new(Streams(handle), to, "box");
    let answer = tunnel.clone().oneshot(chat(true)).await.unwrap();
    assert_eq!(answer.served_by.upstream, "box");
    let (events, error) = collect(answer).await;
    assert!(error.is_none());
    assert_eq!(events.len(), 3);
    assert_eq!(events[2], Event::End { complete: true });

    let mut endless = chat(true);
    endless.body = br#"{"model":"m","messages":[{"role":"user","content":"wait"}]}"#[..].into();
    let mut answer = tunnel.clone().oneshot(endless).await.unwrap();
    assert!(matches!(answer.events.next().await, Some(Ok(Event::Chunk(_)))));
    hears(&mut inbound, announced(|said| said.device.as_ref().is_some_and(|device| device.in_flight == 1)))
        .await;
    drop(answer);
    hears(&mut inbound, announced(|said| said.device.as_ref().is_some_and(|device| device.in_flight == 0)))
        .await;

    leave.cancel();
    hears(&mut inbound, announced(|said| said.leaving)).await;
    tokio::time::timeout(PATIENCE, agent).await.unwrap().unwrap();
}
