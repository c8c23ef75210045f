//! Devices that only dial out, and the routers they link to.

use std::time::Duration;

use shoal_proto::{DeviceAnnounce, DeviceInfo};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::infer_tests::{PROMPTLY, Serving, chunk, expect_infer, request, serve};
use super::tests::{Mesh, Node};
use super::*;
use crate::ids::{Peer, Role};
use crate::tasks::spawn_named;

struct Device {
    peer: Peer,
    handle: DeviceHandle,
    inbound: mpsc::Receiver<Inbound>,
    shutdown: CancellationToken,
}

fn device(mesh: &mut Mesh, routers: Vec<RouterAddr>, links: usize) -> Device {
    let identity = mesh.identity(Role::Device);
    let peer = identity.peer().clone();
    let settings = DeviceSettings { listen: "127.0.0.1:0".parse().unwrap(), routers, links };
    let (link, handle, inbound) = DeviceLink::bind(settings, identity).unwrap();
    let shutdown = CancellationToken::new();
    spawn_named("device", link.run(shutdown.clone()));
    Device { peer, handle, inbound, shutdown }
}

fn announcement(id: &NodeId, seq: u64) -> DeviceAnnounce {
    let device = Some(DeviceInfo { id: id.to_string(), seq, ..Default::default() });
    DeviceAnnounce { device, leaving: false }
}

async fn next(inbound: &mut mpsc::Receiver<Inbound>) -> Inbound {
    tokio::time::timeout(PROMPTLY, inbound.recv()).await.unwrap().unwrap()
}

async fn expect_announce(serving: &mut Serving, seq: u64) -> NodeId {
    loop {
        if let Inbound::Announce { device, announce } = next(&mut serving.inbound).await
            && announce.device.unwrap().seq == seq
        {
            return device;
        }
    }
}

async fn expect_links(handle: &DeviceHandle, count: usize) {
    let mut links = handle.links();
    tokio::time::timeout(PROMPTLY, links.wait_for(|links| links.len() == count)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_device_that_only_dials_out_is_given_work_on_its_link() {
    let mut mesh = Mesh::new();
    let mut router = serve(Node::start(mesh.root.clone()), Vec::new());
    let mut device = device(&mut mesh, vec![router.node.router_addr()], 1);
    device.handle.announce(announcement(&device.peer.id, 1));
    assert_eq!(expect_announce(&mut router, 1).await, device.peer.id);
    assert_eq!(router.rpc.devices(), [device.peer.id.clone()]);

    let mut answer = router.rpc.open_infer(&device.peer, &request(b"work")).await.unwrap();
    let (from, asked, mut responder) = expect_infer(&mut device.inbound).await;
    assert_eq!(from, router.node.peer());
    assert_eq!(&asked.body[..], b"work");
    responder.send(chunk("done")).await.unwrap();
    responder.finish().await.unwrap();
    assert_eq!(answer.next().await.unwrap(), Some(chunk("done")));
    assert_eq!(answer.next().await.unwrap(), None);

    let answer = router.rpc.open_infer(&device.peer, &request(b"unwanted")).await.unwrap();
    let (_, _, mut responder) = expect_infer(&mut device.inbound).await;
    drop(answer);
    tokio::time::timeout(PROMPTLY, responder.cancelled()).await.unwrap();
}

#[tokio::test]
async fn the_newest_announcement_goes_out_at_once() {
    let mut mesh = Mesh::new();
    let mut router = serve(Node::start(mesh.root.clone()), Vec::new());
    let device = device(&mut mesh, vec![router.node.router_addr()], 1);
    for seq in 1..=3 {
        device.handle.announce(announcement(&device.peer.id, seq));
        expect_announce(&mut router, seq).await;
    }
}

#[tokio::test]
async fn a_router_that_answers_nothing_is_doubted_and_another_is_linked_to() {
    let mut mesh = Mesh::new();
    let other = serve(Node::start(mesh.identity(Role::Router)), Vec::new());
    // It accepts connections, as a stopped process's peers believe for a while, and serves none.
    let silent = Node::start(mesh.root.clone());
    let device = device(&mut mesh, vec![silent.router_addr()], 1);
    let connection = device.handle.connection_to(&silent.peer().id, silent.addr()).await;
    device.handle.learn(other.node.router_addr());
    let mut links = device.handle.links();
    let linked = links.wait_for(|links| links.iter().any(|link| link.router == other.node.peer().id));
    // 1.5 s until it is asked, 1.75 s for its answer; its connection alone would be believed for 15.
    tokio::time::timeout(2 * PROMPTLY, linked).await.expect("the other is linked to").unwrap();
    assert!(connection.close_reason().is_none(), "what runs over the doubted link goes on");
}

#[tokio::test]
async fn whoever_waits_is_told_whether_its_very_request_is_worked_on() {
    let mut mesh = Mesh::new();
    let mut router = serve(Node::start(mesh.root.clone()), Vec::new());
    let mut device = device(&mut mesh, vec![router.node.router_addr()], 1);
    device.handle.announce(announcement(&device.peer.id, 1));
    expect_announce(&mut router, 1).await;
    let answer = router.rpc.open_infer(&device.peer, &request(b"work")).await.unwrap();
    let (_, _, responder) = expect_infer(&mut device.inbound).await;
    let asked = async |answer: &InferStream| {
        tokio::time::timeout(PROMPTLY, answer.pulse()).await.expect("it answers").unwrap()
    };
    assert_eq!(asked(&answer).await, Pulse::Working);
    let again = router.rpc.open_infer(&device.peer, &request(b"more")).await.unwrap();
    let (_, _, other) = expect_infer(&mut device.inbound).await;
    drop(responder);
    assert_eq!(asked(&again).await, Pulse::Working, "another attempt of the same request runs");
    drop(other);
    assert_eq!(asked(&again).await, Pulse::Unknown);
}

#[tokio::test]
async fn a_device_links_to_a_second_router_that_it_learnt_from_the_first() {
    let mut mesh = Mesh::new();
    let second = Node::start(mesh.identity(Role::Router));
    let first = Node::start(mesh.root.clone());
    let both = vec![first.router_addr(), second.router_addr()];
    let (first, second) = (serve(first, both.clone()), serve(second, both));
    let device = device(&mut mesh, vec![first.node.router_addr()], 2);
    expect_links(&device.handle, 2).await;
    assert_eq!(device.handle.routers().borrow().len(), 2);
    let names: Vec<String> = device.handle.links().borrow().iter().map(|link| link.name.clone()).collect();
    assert!(names.contains(&format!("name of {}", second.node.peer().id.short())), "{names:?}");

    // One goes: the other keeps the device.
    first.node.net.close();
    expect_links(&device.handle, 1).await;
    assert_eq!(second.rpc.devices(), std::slice::from_ref(&device.peer.id));
}

#[tokio::test]
async fn a_lost_link_is_reported_and_made_again() {
    let mut mesh = Mesh::new();
    let mut router = serve(Node::start(mesh.root.clone()), Vec::new());
    let device = device(&mut mesh, vec![router.node.router_addr()], 1);
    device.handle.announce(announcement(&device.peer.id, 1));
    expect_announce(&mut router, 1).await;
    device.handle.connection_to(&router.node.peer().id, router.node.addr()).await.close(code::DONE, b"test");
    loop {
        if let Inbound::LinkClosed { device: gone } = next(&mut router.inbound).await {
            assert_eq!(gone, device.peer.id);
            break;
        }
    }
    assert_eq!(expect_announce(&mut router, 1).await, device.peer.id);
}

#[tokio::test]
async fn shutting_a_device_down_closes_its_link_at_once() {
    let mut mesh = Mesh::new();
    let mut router = serve(Node::start(mesh.root.clone()), Vec::new());
    let device = device(&mut mesh, vec![router.node.router_addr()], 1);
    expect_links(&device.handle, 1).await;
    device.shutdown.cancel();
    assert!(matches!(next(&mut router.inbound).await, Inbound::LinkClosed { .. }));
    assert!(router.rpc.devices().is_empty());
    let gone = router.rpc.open_infer(&device.peer, &request(b"")).await;
    assert!(matches!(gone, Err(Error::NotLinked(_))));
}

#[tokio::test]
async fn a_device_may_not_speak_for_another_nor_ask_for_inference() {
    let mut mesh = Mesh::new();
    let mut router = serve(Node::start(mesh.root.clone()), Vec::new());
    let honest = device(&mut mesh, vec![router.node.router_addr()], 1);
    honest.handle.announce(announcement(&NodeId::from_spki(b"someone else"), 1));
    assert!(matches!(next(&mut router.inbound).await, Inbound::LinkClosed { .. }));
    honest.shutdown.cancel();

    let rogue = Node::start(mesh.identity(Role::Device));
    let link = rogue.net.connect(router.node.addr(), Alpn::Rpc).await.unwrap();
    let mut answer = InferStream::open(&link, &request(b"mine")).await.unwrap();
    assert!(matches!(answer.next().await, Err(Error::Cancelled)));
    while let Ok(inbound) = router.inbound.try_recv() {
        assert!(!matches!(inbound, Inbound::Infer { .. }), "a device's request got through");
    }
}

#[tokio::test]
async fn an_unreachable_router_is_tried_until_it_is_there() {
    let mut mesh = Mesh::new();
    let port = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = port.local_addr().unwrap();
    let late = mesh.identity(Role::Router);
    let routers = vec![RouterAddr { id: late.node_id().clone(), addr }];
    let device = device(&mut mesh, routers, 1);
    tokio::time::timeout(PROMPTLY, port.readable()).await.unwrap().unwrap(); // a first dial went nowhere
    drop(port);
    let _router = serve(Node::start_at(late, addr), Vec::new());
    let mut links = device.handle.links();
    let up = links.wait_for(|links| links.len() == 1);
    tokio::time::timeout(Duration::from_secs(20), up).await.unwrap().unwrap();
}
