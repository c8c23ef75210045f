//! Three routers and a device with real QUIC on real loopback sockets, read at the *remote* node.
//!
//! Each router has a runtime of its own, so that one can die without a word: all its tasks and its socket
//! vanish at once.

#![allow(clippy::unwrap_used)] // helpers of tests, too, may panic

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_cluster::keyspace::{Key, Value};
use shoal_cluster::{
    ClusterView, DeviceHandle, DeviceLink, DeviceSettings, Error, Handle, Identity, Inbound, JoinToken,
    MemoryBook, NodeId, Peer, Role, RouterAddr, Service, Settings, join,
};
use shoal_proto::infer_frame::Kind;
use shoal_proto::{
    ArmSummaries, ArmSummary, DeviceAnnounce, DeviceInfo, InferEnd, InferFrame, InferHead, InferRequest,
    NodeInfo,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

const LOOPBACK: &str = "127.0.0.1:0";

/// A busy machine may need longer than the mesh does; what is measured has its own bound.
const PATIENCE: Duration = Duration::from_secs(20);

struct Router {
    runtime: Runtime,
    handle: Handle,
    stop: CancellationToken,
    folder: TempDir,
}

fn settings(name: &str, seeds: Vec<RouterAddr>, generation: u64) -> Settings {
    Settings {
        name: name.to_owned(),
        version: "1.2.3".to_owned(),
        api_url: format!("http://{name}.test"),
        listen: LOOPBACK.parse().unwrap(),
        advertise: Vec::new(),
        seeds,
        gossip_interval: Duration::from_millis(200),
        generation,
    }
}

fn start(identity: Identity, folder: TempDir, settings: Settings) -> Router {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let stop = CancellationToken::new();
    let guard = runtime.enter();
    let book = Arc::new(MemoryBook::new());
    let (service, handle, inbound) =
        Service::bind(settings, Arc::new(identity), book, Routes::default()).unwrap();
    drop(guard);
    runtime.spawn(service.run(stop.clone()));
    runtime.spawn(serve(handle.clone(), inbound));
    Router { runtime, handle, stop, folder }
}

fn frame(kind: Kind) -> InferFrame {
    InferFrame { kind: Some(kind) }
}

/// What a node does with what comes in: replicates devices, answers with its own name.
async fn serve(handle: Handle, mut inbound: mpsc::Receiver<Inbound>) {
    while let Some(event) = inbound.recv().await {
        match event {
            Inbound::Announce { announce, .. } => {
                let device = announce.device.expect("checked by the link");
                handle.publish(Value::Device(device)).unwrap();
            }
            Inbound::LinkClosed { device } => handle.withdraw(&Key::Device(device)),
            Inbound::Infer { mut responder, request, .. } => {
                let upstream = handle.node_id().to_string();
                let head = InferHead { upstream, model: request.model, ..InferHead::default() };
                responder.send(frame(Kind::Head(head))).await.unwrap();
                responder.send(frame(Kind::Chunk(request.body))).await.unwrap();
                responder.send(frame(Kind::End(InferEnd { complete: true }))).await.unwrap();
                responder.finish().await.unwrap();
            }
        }
    }
}

fn first(name: &str) -> Router {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::create_mesh(folder.path(), name).unwrap();
    start(identity, folder, settings(name, Vec::new(), 1))
}

/// Makes a token, waiting while a new router gets its issuing certificate.
async fn token(through: &Router, role: Role) -> JoinToken {
    let soon = async {
        loop {
            match through.handle.create_token(role, Duration::from_secs(60), 1) {
                Err(Error::Identity(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                token => break token.unwrap(),
            }
        }
    };
    tokio::time::timeout(PATIENCE, soon).await.expect("a router can issue soon after it joined")
}

async fn joined(through: &Router, name: &str) -> Router {
    let token = token(through, Role::Router).await;
    let folder = tempfile::tempdir().unwrap();
    let joined = join::redeem(&token, name, folder.path()).await.unwrap();
    start(joined.identity, folder, settings(name, joined.routers, 1))
}

/// Waits until the view of `router` satisfies `condition`; the time it took.
async fn sees(router: &Router, what: &str, condition: impl FnMut(&Arc<ClusterView>) -> bool) -> Duration {
    let mut view = router.handle.view();
    let start = Instant::now();
    let waited = tokio::time::timeout(PATIENCE, view.wait_for(condition)).await.is_ok();
    assert!(waited, "never saw {what}: {:?} {:?}", view.borrow(), router.handle.gossip_counters());
    start.elapsed()
}

fn alive(view: &ClusterView, id: &NodeId) -> bool {
    view.members.get(id).is_some_and(|member| member.alive)
}

fn device_of<'a>(view: &'a ClusterView, node: &NodeId, device: &NodeId) -> Option<&'a DeviceInfo> {
    view.members.get(node)?.devices.get(device)
}

struct Device {
    id: NodeId,
    handle: DeviceHandle,
    stop: CancellationToken,
    _folder: TempDir,
}

async fn device(through: &Router) -> Device {
    let token = token(through, Role::Device).await;
    let folder = tempfile::tempdir().unwrap();
    let joined = join::redeem(&token, "phone", folder.path()).await.unwrap();
    let id = joined.identity.node_id().clone();
    // One link only, so that the test knows which router carries it.
    let routers = joined.routers.into_iter().filter(|r| r.id == *through.handle.node_id()).collect();
    let settings = DeviceSettings { listen: LOOPBACK.parse().unwrap(), routers, links: 1 };
    let (link, handle, inbound) = DeviceLink::bind(settings, Arc::new(joined.identity)).unwrap();
    let stop = CancellationToken::new();
    through.runtime.spawn(link.run(stop.clone()));
    through.runtime.spawn(answer(id.clone(), inbound));
    Device { id, handle, stop, _folder: folder }
}

async fn answer(id: NodeId, mut inbound: mpsc::Receiver<Inbound>) {
    while let Some(Inbound::Infer { mut responder, .. }) = inbound.recv().await {
        let head = InferHead { upstream: id.to_string(), ..InferHead::default() };
        responder.send(frame(Kind::Head(head))).await.unwrap();
        responder.finish().await.unwrap();
    }
}

fn announcement(device: &Device, seq: u64) -> DeviceAnnounce {
    let id = device.id.to_string();
    let info = DeviceInfo { id, name: "phone".into(), seq, slots: 2, ..DeviceInfo::default() };
    DeviceAnnounce { device: Some(info), leaving: false }
}

async fn upstream_of(router: &Router, to: &Peer) -> String {
    let request =
        InferRequest { model: "m".into(), body: b"{}".as_slice().into(), ..InferRequest::default() };
    let mut stream = router.handle.open_infer(to, request).await.unwrap();
    let Some(InferFrame { kind: Some(Kind::Head(head)) }) = stream.next().await.unwrap() else {
        panic!("a head")
    };
    while stream.next().await.unwrap().is_some() {}
    head.upstream
}

#[tokio::test]
async fn three_routers_and_a_device_over_real_sockets() {
    let a = first("a");
    let b = joined(&a, "b").await;
    // The third joins through the second, which gets its issuing certificate from the first.
    sees(&b, "the first router", |view| alive(view, a.handle.node_id())).await;
    let c = joined(&b, "c").await;
    let routers = [&a, &b, &c];

    // Members: each is seen alive by each, with what it says of itself.
    for seen_by in routers {
        for node in routers {
            sees(seen_by, "all routers alive", |view| alive(view, node.handle.node_id())).await;
        }
    }
    let view = c.handle.view().borrow().clone();
    let member = &view.members[a.handle.node_id()];
    assert_eq!((member.info.name.as_str(), member.info.version.as_str()), ("a", "1.2.3"));
    assert!(member.info.holds_root && !view.members[b.handle.node_id()].info.holds_root);
    let addr: SocketAddr = member.info.mesh_addrs[0].parse().unwrap();
    assert_eq!(addr, a.handle.local_addr());

    // A device of one router is in the view of another within 2 s, and work reaches it.
    let phone = device(&c).await;
    phone.handle.announce(announcement(&phone, 1));
    let took = sees(&a, "the device", |view| device_of(view, c.handle.node_id(), &phone.id).is_some()).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    phone.handle.announce(announcement(&phone, 2));
    sees(&b, "the newer announcement", |view| {
        device_of(view, c.handle.node_id(), &phone.id).is_some_and(|info| info.seq == 2)
    })
    .await;
    assert_eq!(c.handle.devices(), vec![phone.id.clone()]);
    let to_phone = Peer { role: Role::Device, id: phone.id.clone() };
    assert_eq!(upstream_of(&c, &to_phone).await, phone.id.to_string());
    let to_c = Peer { role: Role::Router, id: c.handle.node_id().clone() };
    assert_eq!(upstream_of(&a, &to_c).await, c.handle.node_id().to_string());

    // Statistics, draining, withdrawal: read at the others.
    let arm = ArmSummary { arm: "m".into(), count: 3, reward_sum: 2.5, version: 3, ..ArmSummary::default() };
    let stats = ArmSummaries { arms: vec![arm], generation: 1, version: 4 };
    a.handle.publish(Value::Stats(stats.clone())).unwrap();
    sees(&c, "the statistics", |view| view.members[a.handle.node_id()].stats.as_ref() == Some(&stats)).await;
    b.handle.set_draining(true);
    sees(&a, "that b drains", |view| view.members[b.handle.node_id()].info.draining).await;
    phone.stop.cancel();
    sees(&a, "that the device left", |view| device_of(view, c.handle.node_id(), &phone.id).is_none()).await;

    // One dies without a word: out of the others' views within 5 s. It comes back as a newer life.
    let Router { runtime, handle, folder, .. } = b;
    let dead = handle.node_id().clone();
    runtime.shutdown_background();
    drop(handle);
    let death = Instant::now();
    for survivor in [&a, &c] {
        sees(survivor, "the death", |view| !alive(view, &dead)).await;
        assert!(death.elapsed() < Duration::from_secs(5), "{:?}", death.elapsed());
        let view = survivor.handle.view().borrow().clone();
        assert!(alive(&view, a.handle.node_id()) && alive(&view, c.handle.node_id()));
    }
    let identity = Identity::load(folder.path()).unwrap().unwrap();
    let seeds = vec![RouterAddr { id: a.handle.node_id().clone(), addr: a.handle.local_addr() }];
    let b = start(identity, folder, settings("b again", seeds, 2));
    sees(&c, "the restarted router", |view| {
        let member = &view.members[&dead];
        member.alive && member.info.name == "b again" && member.generation == 2
    })
    .await;

    // One leaves in order: gone at once.
    b.stop.cancel();
    let took = sees(&c, "the leave", |view| !alive(view, &dead)).await;
    assert!(took < Duration::from_secs(3), "{took:?}");
    for router in [a, b, c] {
        assert!(!router.handle.gossip_counters().contains_key("gossip_restarts"));
        router.runtime.shutdown_background();
    }
}

#[tokio::test]
async fn a_router_without_peers_works_and_bounds_what_it_replicates() {
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::create_mesh(folder.path(), "alone").unwrap();
    let me = identity.node_id().clone();
    // A seed that answers nobody; its port stays taken, so that no other test gets it.
    let silent = std::net::UdpSocket::bind(LOOPBACK).unwrap();
    let seed = RouterAddr { id: NodeId::from_spki(b"nobody"), addr: silent.local_addr().unwrap() };
    let alone = start(identity, folder, settings("alone", vec![seed], 1));
    sees(&alone, "itself", |view| alive(view, &me)).await;
    let reserved = alone.handle.publish(Value::Node(NodeInfo::default()));
    assert!(matches!(reserved, Err(Error::Reserved(Key::Node))));
    let huge = DeviceInfo { id: me.to_string(), name: "n".repeat(9_000), ..DeviceInfo::default() };
    assert!(matches!(alone.handle.publish(Value::Device(huge)), Err(Error::TooLarge(_))));
    assert!(matches!(alone.handle.publish(Value::Device(DeviceInfo::default())), Err(Error::BadValue(_))));
    let small = DeviceInfo { id: me.to_string(), ..DeviceInfo::default() };
    alone.handle.publish(Value::Device(small)).unwrap();
    sees(&alone, "its own device", |view| view.members[&me].devices.len() == 1).await;
    alone.runtime.shutdown_background();
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let alone = first("alone");
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::create_mesh(folder.path(), "second").unwrap();
    let taken = alone.handle.local_addr();
    let wanted = Settings { listen: taken, ..settings("second", Vec::new(), 1) };
    let book = Arc::new(MemoryBook::new());
    let error = Service::bind(wanted, Arc::new(identity), book, Routes::default()).unwrap_err();
    assert!(error.to_string().contains(&taken.port().to_string()), "{error}");
    alone.runtime.shutdown_background();
}
