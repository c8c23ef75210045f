//! Which addresses of its mesh port a router tells others to dial, when nobody said.
//!
//! Pure over a list of interfaces. Addresses of container bridges lead nowhere from outside, link-local
//! ones need a scope that only this host knows, and loopback is good only where everything is local.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Names of interfaces that belong to containers or virtual machines on this host.
const BRIDGES: [&str; 8] = ["docker", "br-", "veth", "virbr", "cni", "flannel", "podman", "lxcbr"];

/// An address of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Name of the interface.
    pub name: String,
    /// The address.
    pub ip: IpAddr,
}

/// Reads this host's interfaces; none if the system does not say.
pub fn interfaces() -> Vec<Interface> {
    let found = if_addrs::get_if_addrs().unwrap_or_default();
    found.into_iter().map(|found| Interface { ip: found.ip(), name: found.name }).collect()
}

/// Returns what to advertise for a socket bound to `listen`, best first, never empty.
pub fn addresses(listen: SocketAddr, interfaces: &[Interface]) -> Vec<SocketAddr> {
    if !listen.ip().is_unspecified() {
        return vec![listen];
    }
    let mut usable: Vec<IpAddr> = interfaces
        .iter()
        .filter(|interface| !BRIDGES.iter().any(|bridge| interface.name.starts_with(bridge)))
        .map(|interface| interface.ip)
        .filter(|ip| is_reachable(ip) && (listen.is_ipv6() || ip.is_ipv4()))
        .collect();
    // A home or office network has IPv4 throughout, and IPv6 with changing privacy addresses if at all.
    usable.sort_by_key(IpAddr::is_ipv6);
    usable.dedup();
    if usable.is_empty() {
        usable.push(Ipv4Addr::LOCALHOST.into());
    }
    usable.into_iter().map(|ip| SocketAddr::new(ip, listen.port())).collect()
}

fn is_reachable(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_link_local() || ip.is_unspecified()),
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(listen: &str, interfaces: &[(&str, &str)], expected: &[&str]) {
        let interfaces: Vec<_> = interfaces
            .iter()
            .map(|(name, ip)| Interface { name: (*name).to_owned(), ip: ip.parse().unwrap() })
            .collect();
        let found = addresses(listen.parse().unwrap(), &interfaces);
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{listen} with {interfaces:?}");
    }

    #[test]
    fn advertises_what_others_can_dial() {
        let host = [
            ("lo", "127.0.0.1"),
            ("lo", "::1"),
            ("eth0", "2001:db8::5"),
            ("eth0", "fe80::5"),
            ("eth0", "192.168.1.5"),
            ("docker0", "172.17.0.1"),
            ("br-3f2a", "172.18.0.1"),
            ("vethab1", "169.254.3.3"),
            ("virbr0", "192.168.122.1"),
            ("cni0", "10.42.0.1"),
        ];
        check("[::]:7411", &host, &["192.168.1.5:7411", "[2001:db8::5]:7411"]);
        check("0.0.0.0:7411", &host, &["192.168.1.5:7411"]);
        check("127.0.0.1:7411", &host, &["127.0.0.1:7411"]);
        check("[::1]:7411", &host, &["[::1]:7411"]);
        check("192.168.1.5:9", &host, &["192.168.1.5:9"]);
    }

    #[test]
    fn a_host_without_network_advertises_loopback() {
        check("[::]:7411", &[("lo", "127.0.0.1"), ("eth0", "169.254.1.1")], &["127.0.0.1:7411"]);
        check("[::]:7411", &[], &["127.0.0.1:7411"]);
    }

    #[test]
    fn inside_a_container_its_own_address_counts() {
        check("[::]:7411", &[("lo", "127.0.0.1"), ("eth0", "172.18.0.3")], &["172.18.0.3:7411"]);
    }
}
