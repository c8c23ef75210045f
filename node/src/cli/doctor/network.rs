//! Ports and addresses: the API's, the mesh's, and what others would be told to dial.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, SystemTime};

use reqwest::Url;
use shoal_cluster::advertise::{self, Interface};
use tokio::net::TcpListener;

use super::check::Check;
use super::live::Live;
use crate::api::tls::examine;
use crate::config::{ApiTls, Config};
use crate::device::detect::NODE_HEADER;
use crate::upstream::http_client;

/// Longest wait for an answer from this very machine.
const WAIT: Duration = Duration::from_secs(1);

/// Days before its end from which an own certificate is worth a word; who renews by a timer does so at 30.
const SOON_DAYS: u64 = 14;

/// What to do about it.
const RENEW: &str = "renew it; the node takes a changed file over by itself";

/// What is behind the API's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Api {
    /// The node that this doctor looks at; its URL.
    Ours(String),
    /// Nothing.
    Free,
    /// Another Shoal node.
    AnotherNode,
    /// Some other program.
    Taken,
    /// It cannot be bound at all.
    Unusable(String),
}

pub(super) async fn api(config: &Config, node: Option<&Live>) -> Api {
    if let Some(url) = node.and_then(|live| live.status["node"]["api_url"].as_str()) {
        return Api::Ours(url.to_owned());
    }
    match TcpListener::bind(config.listen).await {
        Ok(_) => Api::Free,
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            if is_node(config.listen).await {
                Api::AnotherNode
            } else {
                Api::Taken
            }
        }
        Err(error) => Api::Unusable(error.to_string()),
    }
}

async fn is_node(address: SocketAddr) -> bool {
    let address = dialable(address);
    let Ok(url) = format!("http://{address}/healthz").parse::<Url>() else { return false };
    let Ok(client) = http_client::build(http_client::Reach::Lan) else { return false };
    let answer = tokio::time::timeout(WAIT, client.get(url).send()).await;
    answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.headers().contains_key(NODE_HEADER)))
}

pub(super) fn api_port(found: &Api, listen: SocketAddr, chosen: bool) -> Check {
    const NAME: &str = "API port";
    let other = format!("choose another, such as --listen {}:{}", listen.ip(), listen.port().wrapping_add(1));
    match found {
        Api::Ours(url) => Check::ok(NAME, format!("the node answers at {url}")),
        Api::Free => Check::ok(NAME, format!("{listen} is free")),
        Api::Unusable(error) => Check::bad(NAME, format!("{listen} cannot be used: {error}"), other),
        Api::AnotherNode if chosen => {
            Check::bad(NAME, format!("another Shoal node listens on {listen}"), other)
        }
        Api::Taken if chosen => Check::bad(NAME, format!("another program listens on {listen}"), other),
        Api::AnotherNode => Check::warn(
            NAME,
            format!("another Shoal node listens on {listen}; this one would take the next free port"),
            "`shoal status --data-dir D` looks at the other one",
        ),
        Api::Taken => Check::warn(
            NAME,
            format!("another program listens on {listen}; the node would take the next free port"),
            other,
        ),
    }
}

/// How the API's address is protected.
pub(super) fn api_tls(config: &Config, now: SystemTime) -> Check {
    const NAME: &str = "HTTPS";
    match &config.tls {
        ApiTls::Off if config.listen.ip().is_loopback() => {
            Check::ok(NAME, "not needed: the API is on loopback")
        }
        ApiTls::Off => Check::warn(
            NAME,
            format!(
                "the API on {} speaks plain HTTP: keys and prompts can be read on the way",
                config.listen
            ),
            "drop `--tls off` (api.tls.mode), unless a proxy in front of it speaks HTTPS",
        ),
        ApiTls::Mesh { .. } => {
            Check::ok(NAME, "with a certificate from the mesh; `shoal env` prints how clients trust it")
        }
        ApiTls::Own { certificate, key } => match examine(certificate, key) {
            Err(error) => Check::bad(NAME, error.to_string(), "give the certificate and its key, both PEM"),
            Ok(expires) => {
                let days = expires.duration_since(now).map_or(0, |left| left.as_secs() / 86_400);
                let cause = format!("{} is good for {days} more days", certificate.display());
                match days {
                    0 => Check::bad(
                        NAME,
                        format!("{} has expired or will today", certificate.display()),
                        RENEW,
                    ),
                    1..SOON_DAYS => Check::warn(NAME, cause, RENEW),
                    _ => Check::ok(NAME, cause),
                }
            }
        },
    }
}

/// What is behind the mesh's UDP address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mesh {
    /// Addresses of the running node that answer, and those that do not.
    Ours(Vec<SocketAddr>, Vec<SocketAddr>),
    /// Nothing.
    Free,
    /// Some other program, or another node.
    Taken,
    /// It cannot be bound at all.
    Unusable(String),
}

pub(super) async fn mesh(config: &Config, node: Option<&Live>) -> Mesh {
    if let Some(live) = node {
        let told = live.status["node"]["mesh_addrs"].as_array().into_iter().flatten();
        let told: Vec<SocketAddr> = told.filter_map(|addr| addr.as_str()?.parse().ok()).collect();
        let (mut answer, mut silent) = (Vec::new(), Vec::new());
        for address in told {
            if quic_answers(address).await { answer.push(address) } else { silent.push(address) }
        }
        return Mesh::Ours(answer, silent);
    }
    match UdpSocket::bind(config.mesh_listen) {
        Ok(_) => Mesh::Free,
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Mesh::Taken,
        Err(error) => Mesh::Unusable(error.to_string()),
    }
}

pub(super) fn mesh_port(found: &Mesh, listen: SocketAddr, chosen: bool) -> Check {
    const NAME: &str = "mesh port (UDP)";
    let join = |addrs: &[SocketAddr]| addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let other = format!("choose another, such as --mesh [::]:{}", listen.port().wrapping_add(1));
    match found {
        Mesh::Ours(answer, silent) if silent.is_empty() => {
            Check::ok(NAME, format!("answers at {}", join(answer)))
        }
        Mesh::Ours(_, silent) => Check::bad(
            NAME,
            format!("the node tells others to dial {}, and gets no answer there itself", join(silent)),
            "let UDP through the firewall, or name reachable addresses with --advertise",
        ),
        Mesh::Free => Check::ok(NAME, format!("{listen} is free")),
        Mesh::Taken if chosen => Check::bad(NAME, format!("another program has {listen}"), other),
        Mesh::Taken => Check::warn(
            NAME,
            format!("another program has {listen}; the node would take the next free port"),
            other,
        ),
        Mesh::Unusable(error) if listen.is_ipv6() && !chosen => Check::warn(
            NAME,
            format!("{listen} cannot be used ({error}); the node would use IPv4 alone"),
            format!("--mesh 0.0.0.0:{}", listen.port()),
        ),
        Mesh::Unusable(error) => Check::bad(NAME, format!("{listen} cannot be used: {error}"), other),
    }
}

/// Asks a QUIC server for its versions: needs no certificate, opens no connection, and costs it one datagram.
async fn quic_answers(address: SocketAddr) -> bool {
    let any = if address.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let Ok(socket) = tokio::net::UdpSocket::bind(any).await else { return false };
    let ask = async {
        socket.connect(address).await?;
        socket.send(&version_question()).await?;
        let mut answer = [0; 1500];
        let length = socket.recv(&mut answer).await?;
        Ok::<bool, std::io::Error>(is_version_answer(&answer[..length]))
    };
    tokio::time::timeout(WAIT, ask).await.is_ok_and(|answer| answer.unwrap_or(false))
}

/// A long header with a version reserved for this use (RFC 9000, 6.3), as long as a first datagram must be.
fn version_question() -> [u8; 1200] {
    let mut datagram = [0; 1200];
    let head = [0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8, b's', b'h', b'o', b'a', b'l', b'd', b'o', b'c', 0];
    datagram[..head.len()].copy_from_slice(&head);
    datagram
}

/// A long header with version 0 (RFC 9000, 17.2.1).
fn is_version_answer(datagram: &[u8]) -> bool {
    matches!(datagram, [first, 0, 0, 0, 0, ..] if first & 0x80 != 0)
}

/// Judges what others would be told to dial.
pub(super) fn interfaces(listen: SocketAddr, found: &[Interface], chosen: &[SocketAddr]) -> Check {
    const NAME: &str = "addresses";
    let text = |addrs: &[SocketAddr]| addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if !chosen.is_empty() {
        return Check::ok(NAME, format!("others are told to dial {}, as configured", text(chosen)));
    }
    let told = advertise::addresses(listen, found);
    let skipped: Vec<&str> = {
        let skipped = |i: &&Interface| !i.ip.is_loopback() && !told.iter().any(|addr| addr.ip() == i.ip);
        let mut names: Vec<&str> =
            found.iter().filter(skipped).filter(|i| !is_link_local(i.ip)).map(|i| i.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    };
    let beside = if skipped.is_empty() { String::new() } else { format!("; not {}", skipped.join(", ")) };
    if told.iter().all(|addr| addr.ip().is_loopback()) {
        return Check::warn(
            NAME,
            format!("only this machine can reach {}{beside}", text(&told)),
            "connect to a network, or name a reachable address with --advertise, to add other machines",
        );
    }
    let networks = told.iter().filter(|addr| addr.is_ipv4()).count();
    if networks > 1 {
        return Check {
            next: Some("if others cannot reach all of them, name the right one with --advertise".into()),
            ..Check::ok(NAME, format!("others are told to dial each of {}{beside}", text(&told)))
        };
    }
    Check::ok(NAME, format!("others are told to dial {}{beside}", text(&told)))
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// An address to dial for one that is listened on.
fn dialable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (std::net::Ipv4Addr::LOCALHOST, address.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (std::net::Ipv6Addr::LOCALHOST, address.port()).into(),
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;
    use crate::config::Flags;

    fn config(listen: SocketAddr, mesh: SocketAddr) -> Config {
        let flags = Flags { listen: Some(listen), mesh: Some(mesh), ..Flags::default() };
        Config::load(flags, &[]).unwrap()
    }

    #[tokio::test]
    async fn a_taken_port_is_seen() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let config = config(tcp.local_addr().unwrap(), udp.local_addr().unwrap());
        let app = axum::Router::new();
        crate::tasks::spawn(crate::tasks::TaskKind::Api, async move { axum::serve(tcp, app).await });
        assert_eq!(api(&config, None).await, Api::Taken);
        assert_eq!(mesh(&config, None).await, Mesh::Taken);
        drop(udp);
        assert_eq!(mesh(&config, None).await, Mesh::Free);
        let header = axum::response::AppendHeaders([(NODE_HEADER, "x")]);
        let app = axum::Router::new().route("/healthz", axum::routing::get(async move || (header, "ok")));
        let url = crate::device::testing::serve(app).await;
        let listen = SocketAddr::from(([127, 0, 0, 1], url.port().unwrap()));
        let config = Config { listen, ..config };
        assert_eq!(api(&config, None).await, Api::AnotherNode);
    }

    #[test]
    fn a_taken_port_is_bad_only_if_it_was_chosen() {
        let listen = "127.0.0.1:8080".parse().unwrap();
        for (found, chosen, verdict) in [
            (Api::Free, true, Verdict::Ok),
            (Api::Ours("http://127.0.0.1:8080".into()), true, Verdict::Ok),
            (Api::Taken, false, Verdict::Warn),
            (Api::Taken, true, Verdict::Bad),
            (Api::AnotherNode, false, Verdict::Warn),
            (Api::Unusable("no such address".into()), false, Verdict::Bad),
        ] {
            assert_eq!(api_port(&found, listen, chosen).verdict, verdict, "{found:?}");
        }
        let mesh_listen = "[::]:7411".parse().unwrap();
        let there = || vec![SocketAddr::from(([192, 168, 1, 5], 7411))];
        for (found, chosen, verdict) in [
            (Mesh::Ours(there(), vec![]), false, Verdict::Ok),
            (Mesh::Ours(vec![], there()), false, Verdict::Bad),
            (Mesh::Taken, false, Verdict::Warn),
            (Mesh::Taken, true, Verdict::Bad),
            (Mesh::Unusable("no IPv6".into()), false, Verdict::Warn),
        ] {
            assert_eq!(mesh_port(&found, mesh_listen, chosen).verdict, verdict, "{found:?}");
        }
    }

    #[test]
    fn plain_http_beyond_loopback_and_a_bad_pair_are_told() {
        let judged = |listen: &str, tls: ApiTls| {
            let config = Config { tls, ..config(listen.parse().unwrap(), "[::]:0".parse().unwrap()) };
            api_tls(&config, SystemTime::now()).verdict
        };
        assert_eq!(judged("127.0.0.1:8080", ApiTls::Off), Verdict::Ok);
        assert_eq!(judged("0.0.0.0:8080", ApiTls::Off), Verdict::Warn);
        assert_eq!(judged("0.0.0.0:8080", ApiTls::Mesh { names: vec![] }), Verdict::Ok);
        let own = ApiTls::Own { certificate: "/nowhere/c".into(), key: "/nowhere/k".into() };
        assert_eq!(judged("0.0.0.0:8080", own), Verdict::Bad);
    }

    #[test]
    fn addresses_are_told_as_others_would_dial_them() {
        let listen = "[::]:7411".parse().unwrap();
        let host = |list: &[(&str, &str)]| -> Vec<Interface> {
            list.iter().map(|(n, ip)| Interface { name: (*n).to_owned(), ip: ip.parse().unwrap() }).collect()
        };
        let lo = ("lo", "127.0.0.1");
        let check = |list: &[(&str, &str)]| interfaces(listen, &host(list), &[]);
        let one = check(&[lo, ("eth0", "192.168.1.5"), ("eth0", "fe80::1"), ("docker0", "172.17.0.1")]);
        assert_eq!(one.verdict, Verdict::Ok);
        assert_eq!(one.cause, "others are told to dial 192.168.1.5:7411; not docker0");
        assert_eq!(one.next, None);
        let two = check(&[lo, ("eth0", "192.168.1.5"), ("tun0", "10.8.0.2")]);
        assert!(two.verdict == Verdict::Ok && two.next.is_some_and(|next| next.contains("--advertise")));
        assert_eq!(check(&[lo, ("docker0", "172.17.0.1")]).verdict, Verdict::Warn);
        let told = interfaces(listen, &host(&[lo]), &["203.0.113.7:7411".parse().unwrap()]);
        assert!(told.verdict == Verdict::Ok && told.cause.contains("203.0.113.7:7411"));
    }

    #[test]
    fn only_a_version_answer_is_one() {
        assert!(is_version_answer(&[0x80, 0, 0, 0, 0, 1]));
        assert!(!is_version_answer(&[0x40, 0, 0, 0, 0]));
        assert!(!is_version_answer(&[0xc0, 0, 0, 0, 1, 8]));
        assert!(!is_version_answer(b""));
        assert!(!is_version_answer(&version_question()));
    }
}
