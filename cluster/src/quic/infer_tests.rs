//! Inference streams over real loopback connections.

use std::time::Duration;

use bytes::Bytes;
use shoal_proto::infer_frame::Kind;
use shoal_proto::{InferEnd, InferFrame, InferRequest};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::tests::{Mesh, Node};
use super::*;
use crate::ids::{Peer, Role};
use crate::tasks::spawn_named;

/// "Promptly": far above what a loaded machine needs, far below the idle time-out of 5 s.
pub(super) const PROMPTLY: Duration = Duration::from_secs(3);

/// A directory that knows what a test tells it.
pub(crate) struct Known(pub(crate) Vec<RouterAddr>);

impl Directory for Known {
    fn addrs(&self, id: &NodeId) -> Vec<SocketAddr> {
        self.0.iter().filter(|router| router.id == *id).map(|router| router.addr).collect()
    }

    fn routers(&self) -> Vec<RouterAddr> {
        self.0.clone()
    }

    fn root_holder(&self) -> Option<NodeId> {
        self.0.first().map(|router| router.id.clone())
    }

    fn display_name(&self, id: &NodeId) -> Option<String> {
        Some(format!("name of {}", id.short()))
    }
}

impl Node {
    pub(crate) fn router_addr(&self) -> RouterAddr {
        RouterAddr { id: self.peer().id, addr: self.addr() }
    }
}

/// A router with RPC running.
pub(super) struct Serving {
    pub(super) node: Node,
    pub(super) rpc: Rpc,
    pub(super) inbound: mpsc::Receiver<Inbound>,
}

pub(super) fn serve(mut node: Node, known: Vec<RouterAddr>) -> Serving {
    let (rpc, inbound) = Rpc::new(node.net.clone(), Arc::new(Known(known)));
    let connections = std::mem::replace(&mut node.new.rpc, mpsc::channel(1).1);
    spawn_named("rpc", rpc.clone().run(connections, CancellationToken::new()));
    Serving { node, rpc, inbound }
}

pub(super) fn request(body: &'static [u8]) -> InferRequest {
    InferRequest { request_id: "req_1".to_owned(), body: Bytes::from_static(body), ..Default::default() }
}

pub(super) fn chunk(bytes: impl Into<Bytes>) -> InferFrame {
    InferFrame { kind: Some(Kind::Chunk(bytes.into())) }
}

pub(super) async fn expect_infer(inbound: &mut mpsc::Receiver<Inbound>) -> (Peer, InferRequest, Responder) {
    match tokio::time::timeout(PROMPTLY, inbound.recv()).await.unwrap().unwrap() {
        Inbound::Infer { from, request, responder } => (from, request, responder),
        other => panic!("{other:?}"),
    }
}

struct Pair {
    asker: Serving,
    answerer: Serving,
    to: Peer,
}

fn pair() -> Pair {
    let mut mesh = Mesh::new();
    let (a, b) = (Node::start(mesh.root.clone()), Node::start(mesh.identity(Role::Router)));
    let (to, addr) = (b.peer(), b.router_addr());
    Pair { asker: serve(a, vec![addr]), answerer: serve(b, Vec::new()), to }
}

#[tokio::test]
async fn a_request_and_its_answer_cross_whole_and_in_order() {
    let mut pair = pair();
    let mut answer = pair.asker.rpc.open_infer(&pair.to, &request(b"{\"x\":1}")).await.unwrap();
    let (from, asked, mut responder) = expect_infer(&mut pair.answerer.inbound).await;
    assert_eq!(from, pair.asker.node.peer());
    assert_eq!(asked, request(b"{\"x\":1}"));
    let end = InferFrame { kind: Some(Kind::End(InferEnd { complete: true })) };
    let large = chunk(vec![7; 3 * 1024 * 1024]);
    let frames = vec![chunk("one"), chunk(""), large, end];
    let sent = frames.clone();
    let sending = spawn_named("answer", async move {
        for frame in sent {
            responder.send(frame).await.unwrap();
        }
        responder.finish().await.unwrap();
    });
    let mut received = Vec::new();
    while let Some(frame) = answer.next().await.unwrap() {
        received.push(frame);
    }
    assert_eq!(received, frames);
    assert_eq!(answer.next().await.unwrap(), None);
    sending.await.unwrap();
}

#[tokio::test]
async fn a_large_request_crosses_whole() {
    let mut pair = pair();
    let mut large = request(b"");
    large.body = (0..4_000_000u32).map(|n| n as u8).collect::<Vec<u8>>().into();
    let _answer = pair.asker.rpc.open_infer(&pair.to, &large).await.unwrap();
    let (_, asked, _) = expect_infer(&mut pair.answerer.inbound).await;
    assert!(asked == large, "the body was changed on its way");
}

#[tokio::test]
async fn the_accepting_router_asks_back_on_the_same_connection() {
    let mut pair = pair();
    let _answer = pair.asker.rpc.open_infer(&pair.to, &request(b"")).await.unwrap();
    let (from, ..) = expect_infer(&mut pair.answerer.inbound).await;
    // Its directory knows no address: only the accepted connection can carry this.
    let mut back = pair.answerer.rpc.open_infer(&from, &request(b"back")).await.unwrap();
    let (_, asked, responder) = expect_infer(&mut pair.asker.inbound).await;
    assert_eq!(asked.body, Bytes::from_static(b"back"));
    responder.finish().await.unwrap();
    assert_eq!(back.next().await.unwrap(), None);
}

#[tokio::test]
async fn dropping_the_stream_cancels_the_responder() {
    let mut pair = pair();
    let answer = pair.asker.rpc.open_infer(&pair.to, &request(b"")).await.unwrap();
    let (_, _, mut responder) = expect_infer(&mut pair.answerer.inbound).await;
    responder.send(chunk("first")).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(50), responder.cancelled());
    assert!(early.await.is_err(), "cancelled before anybody cancelled");
    drop(answer);
    tokio::time::timeout(PROMPTLY, responder.cancelled()).await.unwrap();
    assert!(matches!(responder.send(chunk("second")).await, Err(Error::Cancelled)));
}

#[tokio::test]
async fn dropping_the_responder_is_never_a_clean_end() {
    let mut pair = pair();
    let mut answer = pair.asker.rpc.open_infer(&pair.to, &request(b"")).await.unwrap();
    let (_, _, mut responder) = expect_infer(&mut pair.answerer.inbound).await;
    responder.send(chunk("first")).await.unwrap();
    assert_eq!(answer.next().await.unwrap(), Some(chunk("first")));
    drop(responder);
    let end = tokio::time::timeout(PROMPTLY, answer.next()).await.unwrap();
    assert!(matches!(end, Err(Error::Cancelled)), "{end:?}");
}

#[tokio::test]
async fn a_lost_connection_is_seen_at_both_ends() {
    let mut pair = pair();
    let mut answer = pair.asker.rpc.open_infer(&pair.to, &request(b"")).await.unwrap();
    let (_, _, mut responder) = expect_infer(&mut pair.answerer.inbound).await;
    pair.asker.node.net.close();
    tokio::time::timeout(PROMPTLY, responder.cancelled()).await.unwrap();
    assert!(matches!(answer.next().await, Err(Error::Connection(_))));
}

#[tokio::test]
async fn oversized_frames_are_refused_before_they_are_sent() {
    let mut pair = pair();
    let mut huge = request(b"");
    huge.body = vec![0; REQUEST_BODY_LIMIT + 1].into();
    let refused = pair.asker.rpc.open_infer(&pair.to, &huge).await;
    assert!(matches!(refused, Err(Error::FrameTooLarge { .. })));
    let mut answer = pair.asker.rpc.open_infer(&pair.to, &request(b"")).await.unwrap();
    let (_, _, mut responder) = expect_infer(&mut pair.answerer.inbound).await;
    let refused = responder.send(chunk(vec![0; FRAME_LIMIT + 1])).await;
    assert!(matches!(refused, Err(Error::FrameTooLarge { .. })));
    responder.send(chunk("smaller")).await.unwrap();
    assert_eq!(answer.next().await.unwrap(), Some(chunk("smaller")));
}

#[tokio::test]
async fn hostile_bytes_reset_the_stream_and_reach_nobody() {
    let mut pair = pair();
    let link =
        pair.asker.node.net.connect_to(&pair.to.id, &[pair.answerer.node.addr()], Alpn::Rpc).await.unwrap();
    let too_large = [&[1u8][..], &u32::MAX.to_be_bytes()].concat();
    let garbage = [&[1u8][..], &3u32.to_be_bytes(), &[0xFF; 3]].concat();
    let unknown_kind = vec![77u8, 0, 0, 0, 0];
    let announcement_of_a_router = vec![2u8, 0, 0, 0, 0];
    for bytes in [too_large, garbage, unknown_kind, announcement_of_a_router] {
        let (mut send, mut receive) = link.connection.open_bi().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        let end = tokio::time::timeout(PROMPTLY, receive.read_chunk(10, true)).await.unwrap();
        assert!(matches!(end, Err(quinn::ReadError::Reset(_))), "{bytes:?}: {end:?}");
    }
    assert!(link.is_open(), "one bad stream does not end the others");
    assert!(pair.answerer.inbound.try_recv().is_err());
}

#[tokio::test]
async fn a_full_queue_answers_overloaded() {
    let mut pair = pair();
    let mut held = Vec::new();
    for _ in 0..INBOUND {
        held.push(pair.asker.rpc.open_infer(&pair.to, &request(b"")).await.unwrap());
    }
    // Streams are taken up concurrently: any one of them may be the one too many.
    held.push(pair.asker.rpc.open_infer(&pair.to, &request(b"")).await.unwrap());
    let answers = held.iter_mut().map(|answer| Box::pin(answer.next()));
    let (first, ..) = futures_util::future::select_all(answers).await;
    let frame = first.unwrap().unwrap();
    assert!(matches!(frame.kind, Some(Kind::Error(error)) if error.retryable && error.status == 503));
    expect_infer(&mut pair.answerer.inbound).await;
}
