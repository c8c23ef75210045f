//! A peer with a valid router certificate that speaks raw gossip frames.
//!
//! Whatever it sends: the victim's chitchat task goes on, no interpreted value of another owner changes, and
//! what is held stays bounded.

#![allow(clippy::unwrap_used)] // helpers of tests, too, may panic

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use shoal_cluster::gossip::frame::{DigestEntry, Frame, KeyValue, NodeDelta, RawId, Status};
use shoal_cluster::keyspace::{self, Key, MAX_NODE_BYTES, Origin, Value};
use shoal_cluster::quic::{Alpn, Connections, Link, Net};
use shoal_cluster::sim::issue_identity;
use shoal_cluster::tasks::spawn_named;
use shoal_cluster::{ClusterView, Handle, Identity, MemoryBook, NodeId, Role, RouterAddr, Service, Settings};
use shoal_proto::{DeviceInfo, Lease, NodeInfo};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

const PATIENCE: Duration = Duration::from_secs(20);

struct Mesh {
    root: Arc<Identity>,
    folders: Vec<TempDir>,
}

impl Mesh {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Arc::new(Identity::create_mesh(folder.path(), "victim").unwrap());
        Self { root, folders: vec![folder] }
    }

    fn identity(&mut self) -> Arc<Identity> {
        let folder = tempfile::tempdir().unwrap();
        let identity = issue_identity(&self.root, Role::Router, folder.path()).unwrap();
        self.folders.push(folder);
        Arc::new(identity)
    }
}

fn start(identity: Arc<Identity>, name: &str, seeds: Vec<RouterAddr>) -> Handle {
    let settings = Settings {
        name: name.to_owned(),
        version: "0".to_owned(),
        api_url: String::new(),
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: Vec::new(),
        seeds,
        gossip_interval: Duration::from_millis(100),
        generation: 5,
    };
    let (service, handle, mut inbound) =
        Service::bind(settings, identity, Arc::new(MemoryBook::new()), Routes::default()).unwrap();
    spawn_named("inbound", async move { while inbound.recv().await.is_some() {} });
    spawn_named("service", service.run(CancellationToken::new()));
    handle
}

async fn sees(handle: &Handle, what: &str, condition: impl FnMut(&Arc<ClusterView>) -> bool) {
    let mut view = handle.view();
    let waited = tokio::time::timeout(PATIENCE, view.wait_for(condition)).await.is_ok();
    assert!(waited, "never saw {what}: {:?} {:?}", view.borrow(), handle.gossip_counters());
}

fn alive(view: &ClusterView, id: &NodeId) -> bool {
    view.members.get(id).is_some_and(|member| member.alive)
}

/// What the victim believes of a router, without when it was last seen.
fn belief(handle: &Handle, of: &NodeId) -> impl PartialEq + std::fmt::Debug + use<> {
    let member = handle.view().borrow().members[of].clone();
    (member.info, member.devices, member.stats, member.generation)
}

/// The attacker: an endpoint, and the power to sign for itself.
struct Evil {
    identity: Arc<Identity>,
    origin: Origin,
    link: Link,
    mesh: String,
    // Connections are closed once nobody takes them up.
    _connections: Connections,
}

impl Evil {
    async fn connect(identity: Arc<Identity>, victim: SocketAddr) -> Self {
        let (net, acceptor, connections) =
            Net::bind(identity.clone(), "127.0.0.1:0".parse().unwrap()).unwrap();
        spawn_named("acceptor", acceptor.run(CancellationToken::new()));
        let link = net.connect(victim, Alpn::Gossip).await.unwrap();
        let origin = Origin { id: identity.node_id().clone(), generation: 1, addr: net.local_addr() };
        let mesh = identity.mesh_id().to_string();
        Self { identity, origin, link, mesh, _connections: connections }
    }

    async fn send(&self, bytes: &[u8]) {
        let mut stream = self.link.connection.open_uni().await.unwrap();
        // The victim may stop a stream that is too long.
        let _ = stream.write_all(bytes).await;
        let _ = stream.finish();
    }

    async fn send_frame(&self, frame: &Frame) {
        self.send(&frame.encode()).await;
    }

    fn seal(&self, origin: &Origin, key: &Key, seq: u64, value: &Value) -> String {
        keyspace::seal(origin, key, seq, 0, Some(value), |message| self.identity.sign(message)).unwrap()
    }

    fn chain(&self) -> String {
        keyspace::seal_chain(self.identity.chain_der().iter().map(AsRef::as_ref)).unwrap()
    }

    fn name(&self, origin: &Origin, seq: u64) -> KeyValue {
        let info = NodeInfo { name: "forged".into(), draining: true, ..NodeInfo::default() };
        set("node", seq, self.seal(origin, &Key::Node, seq, &Value::Node(info)))
    }

    /// Its own values, honest so far.
    fn hello(&self) -> NodeDelta {
        let lease = set("lease", 3, self.seal(&self.origin, &Key::Lease, 3, &Value::Lease(Lease::default())));
        delta(&self.origin, vec![set("cert", 1, self.chain()), self.name(&self.origin, 2), lease])
    }

    fn syn(&self, digest: Vec<DigestEntry>) -> Frame {
        Frame::Syn { cluster_id: self.mesh.clone(), digest }
    }
}

fn raw(origin: &Origin) -> RawId {
    RawId { node_id: origin.id.to_string(), generation: origin.generation, addr: origin.addr }
}

fn set(key: &str, version: u64, value: String) -> KeyValue {
    KeyValue { key: key.to_owned(), value, version, status: Status::Set }
}

fn delta(origin: &Origin, values: Vec<KeyValue>) -> NodeDelta {
    NodeDelta { id: raw(origin), last_gc_version: 0, from_version_excluded: 0, values }
}

fn ack(delta: NodeDelta) -> Frame {
    Frame::Ack { delta: vec![delta] }
}

/// An Ack of the given blocks, each compressed or not.
fn ack_of(blocks: &[(bool, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Frame::Ack { delta: Vec::new() }.encode();
    bytes.pop();
    for (compressed, block) in blocks {
        bytes.push(if *compressed { 1 } else { 2 });
        bytes.extend_from_slice(&u16::try_from(block.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(block);
    }
    bytes.push(0);
    bytes
}

/// The operations of a frame's delta, without the frame.
fn operations(frame: &Frame) -> Vec<u8> {
    let bytes = frame.encode();
    bytes[4 + 3..bytes.len() - 1].to_vec()
}

/// Everything that one can say of a member that would hurt if it were believed.
async fn lie_about(evil: &Evil, origin: &Origin) {
    // The version trick: a value of version 100, then "the maximum is 50"; and the highest of all, after
    // which the owner could never write again.
    for (version, maximum) in [(100, 50), (u64::MAX, u64::MAX)] {
        let mut trick = operations(&ack(delta(origin, vec![evil.name(origin, version)])));
        trick.push(2);
        trick.extend_from_slice(&u64::to_le_bytes(maximum));
        evil.send(&ack_of(&[(false, trick)])).await;
    }
    // Heartbeats that would freeze a member, tombstones that would empty it.
    for heartbeat in [0, u64::MAX] {
        let (last_gc_version, max_version) = (u64::MAX, u64::MAX);
        let entry = DigestEntry { id: raw(origin), heartbeat, last_gc_version, max_version };
        evil.send_frame(&evil.syn(vec![entry.clone()])).await;
        evil.send_frame(&Frame::SynAck { digest: vec![entry], delta: Vec::new() }).await;
    }
    let mut emptied = delta(origin, vec![evil.name(origin, 101)]);
    emptied.last_gc_version = u64::MAX;
    evil.send_frame(&ack(emptied)).await;
    let gone = KeyValue { status: Status::Deleted, ..set("node", 200, String::new()) };
    evil.send_frame(&ack(delta(origin, vec![gone]))).await;
    // A key that chitchat would slice in the middle of a character, and a value that blocks all others.
    evil.send_frame(&ack(delta(origin, vec![set("\u{1f980}", 300, "x".into())]))).await;
    evil.send_frame(&ack(delta(origin, vec![set("node", 301, "A".repeat(60_000))]))).await;
}

/// Members that do not exist: so many that chitchat's digest would outgrow its message.
async fn send_ghosts(evil: &Evil) {
    for batch in 0..20u64 {
        let ghosts = (0..700u64).map(|n| {
            let id = NodeId::from_spki(&(batch * 700 + n).to_be_bytes());
            let origin = Origin { id, generation: 1, addr: evil.origin.addr };
            DigestEntry { id: raw(&origin), heartbeat: 9, last_gc_version: 0, max_version: 1 }
        });
        evil.send_frame(&evil.syn(ghosts.collect())).await;
    }
}

/// Bombs, junk, frames that are too long, and another mesh.
async fn send_junk(evil: &Evil, about: &Origin) {
    let zeros = zstd::bulk::compress(&vec![0; 65_535], 0).unwrap();
    evil.send(&ack_of(&vec![(true, zeros); 1_500])).await;
    let hello = operations(&ack(evil.hello()));
    let many: Vec<u8> = hello.into_iter().cycle().take(65_000).collect();
    evil.send(&ack_of(&vec![(true, zstd::bulk::compress(&many, 0).unwrap()); 12])).await;
    evil.send(&vec![7; 1 << 20]).await;
    evil.send_frame(&Frame::Syn { cluster_id: "other".into(), digest: Vec::new() }).await;
    evil.send_frame(&Frame::BadCluster).await;
    let mut rng = StdRng::seed_from_u64(1);
    let shapes = [evil.syn(Vec::new()), ack(evil.hello()), ack(delta(about, vec![]))];
    for round in 0..100 {
        let mut bytes = shapes[round % shapes.len()].encode();
        for _ in 0..rng.random_range(1..8) {
            let at = rng.random_range(0..bytes.len());
            bytes[at] = rng.random();
        }
        evil.send(&bytes).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lies_changes_nothing_of_the_others() {
    let mut mesh = Mesh::new();
    let victim = start(mesh.root.clone(), "victim", Vec::new());
    let seed = RouterAddr { id: victim.node_id().clone(), addr: victim.local_addr() };
    let honest = start(mesh.identity(), "honest", vec![seed]);
    let phone = NodeId::from_spki(b"phone");
    let info = DeviceInfo { id: phone.to_string(), slots: 2, ..DeviceInfo::default() };
    honest.publish(Value::Device(info)).unwrap();
    let target = honest.node_id().clone();
    sees(&victim, "the honest router and its device", |view| {
        alive(view, &target) && !view.members[&target].devices.is_empty()
    })
    .await;
    let evil = Evil::connect(mesh.identity(), victim.local_addr()).await;
    let (before, before_me) = (belief(&victim, &target), belief(&victim, victim.node_id()));
    let honest_origin = Origin { id: target.clone(), generation: 5, addr: honest.local_addr() };
    let victim_origin = Origin { id: victim.node_id().clone(), generation: 5, addr: victim.local_addr() };

    // It introduces itself, so that all that follows comes from a member in good standing.
    evil.send_frame(&ack(evil.hello())).await;
    sees(&victim, "the attacker as a member", |view| view.members.contains_key(&evil.origin.id)).await;
    let mine = DigestEntry { id: raw(&evil.origin), heartbeat: 1, last_gc_version: 0, max_version: 0 };
    evil.send_frame(&evil.syn(vec![mine])).await;
    for origin in [&evil.origin, &honest_origin, &victim_origin] {
        lie_about(&evil, origin).await;
    }
    // A later life of the honest router, at the attacker's address.
    let stolen = Origin { generation: u64::MAX, addr: evil.origin.addr, ..honest_origin.clone() };
    let values = vec![set("cert", 1, evil.chain()), evil.name(&stolen, 2)];
    evil.send_frame(&ack(delta(&stolen, values))).await;
    send_ghosts(&evil).await;
    send_junk(&evil, &honest_origin).await;

    // The honest router writes on, and the victim hears it: gossip lives, and nothing was blocked.
    let later = NodeId::from_spki(b"later");
    let info = DeviceInfo { id: later.to_string(), ..DeviceInfo::default() };
    assert_eq!(belief(&victim, &target), before);
    honest.publish(Value::Device(info)).unwrap();
    sees(&victim, "what the honest router wrote later", |view| {
        alive(view, &target) && view.members[&target].devices.contains_key(&later)
    })
    .await;
    honest.withdraw(&Key::Device(later.clone()));
    sees(&victim, "what it took back", |view| !view.members[&target].devices.contains_key(&later)).await;
    assert_eq!(belief(&victim, &target), before);
    assert_eq!(belief(&victim, victim.node_id()), before_me);

    let counted = victim.gossip_counters();
    assert!(!counted.contains_key("gossip_restarts"), "{counted:?}");
    let expected = ["foreign_origin", "bad_signature", "unsigned_deletion", "oversized", "undecodable"];
    for what in expected.into_iter().chain(["frame_malformed", "frame_too_large", "frame_wrong_mesh"]) {
        assert!(counted.contains_key(what), "{what} in {counted:?}");
    }
    assert_eq!(victim.view().borrow().members.len(), 3, "ghosts are no members");
    assert!(victim.gossip_held_bytes() <= 3 * (MAX_NODE_BYTES + 8 * 1024));
}
