//! Joins over real loopback connections.

use shoal_proto::KeyRecord;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::super::{Admission, MemoryBook, TokenBook as _, obtain_issuer};
use super::*;
use crate::ids::{MeshId, NodeId, Peer};
use crate::quic::infer_tests::Known;
use crate::quic::tests::{Mesh, Node};
use crate::quic::{Alpn, Channels, serve_control, serve_join};
use crate::tasks::spawn_named;

const HOUR: Duration = Duration::from_secs(3600);

/// A router that lets others in.
struct Gate {
    node: Node,
    book: Arc<MemoryBook>,
    admission: Admission,
    channels: Channels,
    known: Arc<Known>,
    shutdown: CancellationToken,
    serving: [JoinHandle<()>; 2],
}

fn gate(mut node: Node, known: Vec<RouterAddr>) -> Gate {
    let known = Arc::new(Known(known));
    let channels = Channels::new(node.net.clone(), known.clone());
    let book = Arc::new(MemoryBook::new());
    let admission =
        Admission::new(node.net.identity().clone(), book.clone(), known.clone(), channels.clone());
    let shutdown = CancellationToken::new();
    let join = std::mem::replace(&mut node.new.join, mpsc::channel(1).1);
    let control = std::mem::replace(&mut node.new.control, mpsc::channel(1).1);
    let serving = [
        spawn_named("join", serve_join(join, admission.join_routes(), shutdown.clone())),
        spawn_named("control", serve_control(control, admission.add_to(Routes::default()), shutdown.clone())),
    ];
    Gate { node, book, admission, channels, known, shutdown, serving }
}

fn first_gate(mesh: &Mesh) -> Gate {
    let node = Node::start(mesh.root.clone());
    let known = vec![node.router_addr()];
    gate(node, known)
}

impl Gate {
    fn token(&self, role: Role, uses: u32) -> JoinToken {
        self.admission.create_token(role, HOUR, uses).unwrap()
    }
}

impl Gate {
    async fn stop(self) {
        self.shutdown.cancel();
        self.node.net.close();
        for task in self.serving {
            task.await.unwrap();
        }
        self.node.net.drained().await;
    }
}

async fn join(token: &JoinToken) -> Result<(tempfile::TempDir, Joined), JoinError> {
    let folder = tempfile::tempdir().unwrap();
    let joined = redeem(token, "newcomer", folder.path()).await?;
    Ok((folder, joined))
}

async fn refused(token: &JoinToken) -> String {
    join(token).await.expect_err("the token was accepted").to_string()
}

#[tokio::test]
async fn a_device_and_a_router_join_and_keep_what_they_were_given() {
    let mesh = Mesh::new();
    let gate = first_gate(&mesh);
    let key = KeyRecord { id: "k1".to_owned(), sha256: vec![1; 32], ..Default::default() };
    gate.book.set_key_records(KeyRecords { keys: vec![key.clone()] });
    for role in [Role::Device, Role::Router] {
        let text = gate.token(role, 1).to_string();
        let (folder, joined) = join(&text.parse().unwrap()).await.unwrap();
        assert_eq!(joined.identity.role(), role);
        assert_eq!(joined.routers, [gate.node.router_addr()]);
        let keys = if role == Role::Router { vec![key.clone()] } else { Vec::new() };
        assert_eq!(joined.keys.keys, keys, "{role}");
        let again = Identity::load(folder.path()).unwrap().unwrap();
        assert_eq!(again.peer(), joined.identity.peer());
        let seen = mesh.root.verify_chain(again.chain_der(), SystemTime::now()).unwrap();
        assert_eq!(seen.peer, Peer { role, id: again.node_id().clone() });
        assert!(!again.can_issue());
    }
}

#[tokio::test]
async fn what_joined_can_talk_to_the_mesh() {
    let mesh = Mesh::new();
    let mut gate = first_gate(&mesh);
    let (_folder, joined) = join(&gate.token(Role::Device, 1)).await.unwrap();
    let device = Node::start(Arc::new(joined.identity));
    device.net.connect(gate.node.addr(), Alpn::Rpc).await.unwrap();
    assert_eq!(gate.node.new.rpc.recv().await.unwrap().peer, device.peer());
}

#[tokio::test]
async fn each_bad_token_is_refused_with_its_sentence() {
    let mesh = Mesh::new();
    let gate = first_gate(&mesh);
    let check = |said: String, part: &str| {
        assert!(said.contains(part), "expected '{part}' in '{said}'");
        assert!(said.contains("shoal token create") || said.contains("--role"), "no next command: {said}");
    };
    let token = gate.token(Role::Device, 1);
    join(&token).await.unwrap();
    check(refused(&token).await, "used already");

    let expired = gate.admission.create_token(Role::Device, Duration::ZERO, 1).unwrap();
    check(refused(&expired).await, "expired");

    let revoked = gate.token(Role::Device, 1);
    gate.book.revoke(&revoked.token_id).unwrap();
    check(refused(&revoked).await, "revoked");

    // Whoever edits the role of a device token gets no router out of it.
    let mut promoted = gate.token(Role::Device, 1);
    promoted.role = Role::Router;
    check(refused(&promoted).await, "another role");
    promoted.role = Role::Device;
    join(&promoted).await.unwrap();

    let mut guessed = gate.token(Role::Device, 1);
    guessed.secret[0] ^= 1;
    check(refused(&guessed).await, "secret");

    let mut unknown = gate.token(Role::Device, 1);
    unknown.token_id[0] ^= 1;
    check(refused(&unknown).await, "does not know it");

    let mut orphan = gate.token(Role::Device, 1);
    orphan.issuer = NodeId::from_spki(b"a node that is down");
    let name = format!("name of {}", orphan.issuer.short());
    check(refused(&orphan).await, &format!("node {name} that made this token is not reachable"));
}

#[tokio::test]
async fn a_hundred_at_once_with_a_one_use_token_give_one_member() {
    let mesh = Mesh::new();
    let gate = first_gate(&mesh);
    let token = gate.token(Role::Device, 1);
    let mut attempts = JoinSet::new();
    for _ in 0..100 {
        let token = token.clone();
        attempts.spawn(async move { join(&token).await.map(|_| ()).map_err(|error| error.to_string()) });
    }
    let results = attempts.join_all().await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    for said in results.iter().filter_map(|result| result.as_ref().err()) {
        assert!(said.contains("used already"), "{said}");
    }
}

#[tokio::test]
async fn a_foreign_mesh_is_refused_before_anything_is_sent() {
    let (ours, theirs) = (Mesh::new(), Mesh::new());
    let gate = first_gate(&ours);
    let mut impostor = Node::start(theirs.root.clone());
    let good = gate.token(Role::Device, 1);

    let mut elsewhere = good.clone();
    elsewhere.seeds = vec![impostor.addr()];
    let error = join(&elsewhere).await.unwrap_err();
    assert!(matches!(error, JoinError::OtherMesh { addr } if addr == impostor.addr()), "{error}");

    // Right root, but the token names another mesh: edited.
    let mut edited = good.clone();
    edited.mesh_id = MeshId([0; 16]);
    assert!(matches!(join(&edited).await, Err(JoinError::OtherMesh { .. })));

    // The impostor is passed over where a right address follows.
    elsewhere.seeds.push(gate.node.addr());
    join(&elsewhere).await.unwrap();

    // Had a handshake with the impostor been completed, its connections would be here, before this one.
    let mut known = good;
    (known.ca_pin, known.mesh_id) = (theirs.root.ca_pin(), theirs.root.mesh_id());
    known.seeds = vec![impostor.addr()];
    let attempt = spawn_named("attempt", async move { join(&known).await.map(|_| ()) });
    impostor.new.join.recv().await.unwrap();
    assert!(impostor.new.join.try_recv().is_err());
    attempt.abort();
}

#[tokio::test]
async fn guessing_is_throttled() {
    let mesh = Mesh::new();
    let gate = first_gate(&mesh);
    let good = gate.token(Role::Device, 1);
    for _ in 0..5 {
        let mut guess = good.clone();
        guess.secret[5] ^= 0x10;
        assert!(refused(&guess).await.contains("secret"));
    }
    assert!(refused(&good).await.contains("wait a minute"));
}

#[tokio::test]
async fn nothing_to_dial_and_nobody_there_say_so() {
    let mesh = Mesh::new();
    let gate = first_gate(&mesh);
    let mut token = gate.token(Role::Device, 1);
    token.seeds.clear();
    let said = refused(&token).await;
    assert!(said.contains("carries none"), "{said}");
}

#[tokio::test]
async fn a_bad_request_costs_no_use() {
    let mesh = Mesh::new();
    let gate = first_gate(&mesh);
    let token = gate.token(Role::Device, 1);
    let hash = super::super::certificates::sha256(&token.secret);
    let request = RedeemRequest { csr_der: vec![0x30; 5000], ..Default::default() };
    assert!(gate.admission.admit(&token.token_id, &hash, Role::Device, &request).is_err());
    join(&token).await.unwrap();
}

/// Two routers of one mesh that know each other.
fn two_gates(mesh: &mut Mesh) -> (Gate, Gate) {
    let first = Node::start(mesh.root.clone());
    let second = Node::start(mesh.identity(Role::Router));
    let known = vec![first.router_addr(), second.router_addr()];
    (gate(first, known.clone()), gate(second, known))
}

#[tokio::test]
async fn a_token_is_redeemed_through_another_router() {
    let mut mesh = Mesh::new();
    let (issuer, relay) = two_gates(&mut mesh);
    let mut token = issuer.token(Role::Device, 1);
    token.seeds = vec![relay.node.addr()];
    let (_folder, joined) = join(&token).await.unwrap();
    assert_eq!(joined.routers.len(), 2);
    // The relay passes on the issuer's own words.
    assert!(refused(&token).await.contains("used already"));
}

#[tokio::test]
async fn a_relay_counts_guesses_by_the_joiners_address() {
    let mut mesh = Mesh::new();
    let (issuer, relay) = two_gates(&mut mesh);
    let mut token = issuer.token(Role::Device, 1);
    token.seeds = vec![relay.node.addr()];
    token.secret[0] ^= 1;
    for _ in 0..5 {
        assert!(refused(&token).await.contains("secret"));
    }
    assert!(refused(&token).await.contains("wait a minute"));
}

#[tokio::test]
async fn a_joined_router_gets_its_issuer_and_lets_others_in() {
    let mut mesh = Mesh::new();
    let (first, second) = two_gates(&mut mesh);
    assert!(matches!(
        second.admission.create_token(Role::Device, HOUR, 1),
        Err(super::super::Error::CannotIssue)
    ));
    let identity = second.node.net.identity().clone();
    obtain_issuer(identity, second.channels.clone(), second.known.clone()).await;
    let (_folder, joined) = join(&second.token(Role::Device, 1)).await.unwrap();
    let seen = first.node.net.identity().verify_chain(joined.identity.chain_der(), SystemTime::now());
    assert_eq!(seen.unwrap().peer, *joined.identity.peer());
}

#[tokio::test]
async fn a_token_carries_the_issuers_address_first() {
    let mut mesh = Mesh::new();
    let (first, second) = two_gates(&mut mesh);
    let token = first.token(Role::Router, 2);
    assert_eq!(token.seeds, [first.node.addr(), second.node.addr()]);
    assert_eq!(first.book.list().unwrap()[0].uses_left, 2);
    assert_ne!(first.book.list().unwrap()[0].secret_sha256, token.secret);
}

#[tokio::test]
async fn a_channel_outlives_a_restart_of_its_target() {
    let mut mesh = Mesh::new();
    let (first, second) = two_gates(&mut mesh);
    let (addr, known) = (first.node.addr(), first.known.0.clone());
    let channel = second.channels.to(mesh.root.node_id()).await.unwrap();
    let sign = async |channel: tonic::transport::Channel| {
        let (_, csr_der) = mesh.root.request_issuer().unwrap();
        let request = shoal_proto::SignIssuerRequest { csr_der };
        shoal_proto::issuer_client::IssuerClient::new(channel).sign_issuer(request).await
    };
    sign(channel.clone()).await.unwrap();

    first.stop().await;
    let (net, acceptor, new) = loop {
        match crate::quic::Net::bind(mesh.root.clone(), addr) {
            Ok(bound) => break bound,
            Err(_) => tokio::task::yield_now().await, // the old socket goes with its driver task
        }
    };
    let acceptor = spawn_named("acceptor", acceptor.run(CancellationToken::new()));
    let _first = gate(Node { net, new, acceptor }, known);
    let again = tokio::time::timeout(Duration::from_secs(20), async {
        // The first call may still meet the old connection.
        while sign(channel.clone()).await.is_err() {}
    });
    again.await.unwrap();
}
