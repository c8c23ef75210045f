//! The rules by themselves, and both proxies over real sockets.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

fn judged(rule: Rule, count: usize) -> Vec<Vec<Delivery>> {
    let links = Links::new(7);
    links.set("a", "b", rule);
    let now = Instant::now();
    (0..count).map(|_| links.judge("a", "b", 1000, now)).collect()
}

#[test]
fn a_rule_holds_in_its_direction_only() {
    let links = Links::new(1);
    links.set("a", "b", Rule { blocked: true, ..Rule::default() });
    let now = Instant::now();
    assert_eq!(links.judge("a", "b", 10, now), []);
    assert_eq!(links.judge("b", "a", 10, now).len(), 1);
    links.heal();
    assert_eq!(links.judge("a", "b", 10, now).len(), 1);
}

#[test]
fn shares_come_out_as_asked_for_and_by_the_seed() {
    let rule = Rule { drop: 0.2, duplicate: 0.1, corrupt: 0.5, ..Rule::default() };
    let one = judged(rule, 4000);
    assert_eq!(one, judged(rule, 4000), "equal seeds give equal faults");
    let lost = one.iter().filter(|copies| copies.is_empty()).count();
    let twice = one.iter().filter(|copies| copies.len() == 2).count();
    assert!((700..900).contains(&lost), "{lost} of 4000 lost");
    assert!((240..400).contains(&twice), "{twice} of 4000 twice");
    let harmed = one.iter().flatten().filter(|copy| copy.flip.is_some()).count();
    assert!((1500..2000).contains(&harmed), "{harmed} harmed");
}

#[test]
fn delay_and_jitter_stay_within_their_bounds_and_reordering_overtakes() {
    let ms = Duration::from_millis;
    let rule = Rule { delay: ms(100), jitter: ms(50), ..Rule::default() };
    assert!(judged(rule, 500).iter().flatten().all(|copy| (ms(50)..=ms(150)).contains(&copy.after)));
    let rule = Rule { reorder: 0.3, ..Rule::default() };
    let late = judged(rule, 500).iter().flatten().filter(|copy| copy.after >= REORDER_LATE).count();
    assert!((100..200).contains(&late), "{late} of 500 late");
}

#[test]
fn bandwidth_queues_up_to_a_bound_and_drops_above_it() {
    let judged = judged(Rule { bandwidth: Some(10_000), ..Rule::default() }, 30);
    let delivered: Vec<Duration> = judged.iter().flatten().map(|copy| copy.after).collect();
    assert_eq!(delivered.len(), 11, "a second of backlog at ten packets a second, and the one on the line");
    assert!(delivered.windows(2).all(|two| two[0] < two[1]));
}

#[test]
fn a_flipped_bit_is_one_bit() {
    let mut bytes = [0_u8; 4];
    flip(&mut bytes, 17);
    assert_eq!(bytes, [0, 0, 2, 0]);
    flip(&mut bytes, 999);
    assert_eq!(bytes, [0, 0, 2, 0]);
}

#[tokio::test]
async fn datagrams_pass_both_ways_and_a_new_source_port_is_seen() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let links = Arc::new(Links::new(1));
    links.name(client.local_addr().unwrap(), "c");
    let proxy = UdpProxy::start(links.clone(), "s", server.local_addr().unwrap()).await.unwrap();
    let mut buffer = [0; 16];
    let mut sources = Vec::new();
    for round in 0..2_u8 {
        client.send_to(&[round], proxy.addr()).await.unwrap();
        let (bytes, source) =
            tokio::time::timeout(PATIENCE, server.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(&buffer[..bytes], [round]);
        server.send_to(&[round + 100], source).await.unwrap();
        let (bytes, from) =
            tokio::time::timeout(PATIENCE, client.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!((&buffer[..bytes], from), (&[round + 100][..], proxy.addr()));
        sources.push(source);
        proxy.rebind("c");
    }
    assert_ne!(sources[0], sources[1], "the server sees another source port");
    links.set("c", "s", Rule { blocked: true, ..Rule::default() });
    client.send_to(b"lost", proxy.addr()).await.unwrap();
    while links.passed.lost.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    links.set("c", "s", Rule::default());
    client.send_to(b"kept", proxy.addr()).await.unwrap();
    let (bytes, _) = tokio::time::timeout(PATIENCE, server.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(&buffer[..bytes], b"kept");
}

#[tokio::test]
async fn a_connection_is_carried_watched_and_reset() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let links = Arc::new(Links::new(1));
    let proxy =
        TcpProxy::start(links, "c", "s", server.local_addr().unwrap(), vec!["needle".into()]).await.unwrap();
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    let (mut served, _) = server.accept().await.unwrap();
    client.write_all(b"hay nee").await.unwrap();
    let mut buffer = [0; 64];
    let mut got = served.read(&mut buffer).await.unwrap();
    client.write_all(b"dle hay").await.unwrap();
    while got < 14 {
        got += served.read(&mut buffer[got..]).await.unwrap();
    }
    assert_eq!(&buffer[..got], b"hay needle hay");
    assert_eq!(proxy.seen("needle"), 1, "also across two reads");
    served.write_all(b"answer").await.unwrap();
    client.read_exact(&mut buffer[..6]).await.unwrap();
    proxy.reset_all();
    let ended = tokio::time::timeout(PATIENCE, client.read(&mut buffer)).await.unwrap();
    assert!(ended.is_err() || ended.unwrap() == 0);
}
