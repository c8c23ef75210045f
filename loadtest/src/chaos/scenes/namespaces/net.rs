//! Network namespaces of our own: two routers, a phone behind a translating gateway, and a way in for the client.
//!
//! `n1` 10.77.1.2 ── 10.77.1.1 gateway 10.77.2.1 ── 10.77.2.2 `n2`, and behind the gateway 192.168.77.2 the phone,
//! whose packets leave under the gateway's addresses with ports of the kernel's choice. The machine's own network gets
//! no interface: a thread that has moved into a namespace dials there for connections accepted on loopback.

use std::{
    collections::BTreeSet,
    fs::File,
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsFd,
    process::{Command, Stdio},
    thread::JoinHandle,
};

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::{io::copy_bidirectional, net::TcpStream};
use tokio_util::sync::CancellationToken;

use crate::tasks;

/// All names of ours begin so; the process id follows, so that two runs do not meet.
const PREFIX: &str = "shoal-";
/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";
/// Where routers are dialled.
pub(super) const N1: &str = "10.77.1.2";
pub(super) const N2: &str = "10.77.2.2";
/// The phone's addresses in its own network: the first one, and others to change to.
pub(super) const PHONE: [&str; 2] = ["192.168.77.2", "192.168.77.3"];

/// Parties, each in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Party {
    Gateway,
    N1,
    N2,
    Phone,
}

const PARTIES: [Party; 4] = [Party::Gateway, Party::N1, Party::N2, Party::Phone];

/// The namespaces; they go with their guard.
#[derive(Debug)]
pub(super) struct Net {
    pid: u32,
}

impl Net {
    /// Builds everything, or says what this machine does not allow.
    pub(super) fn build() -> Result<Self> {
        sweep();
        let net = Self { pid: std::process::id() };
        for party in PARTIES {
            run(&["ip", "netns", "add", &net.name(party)])?;
            net.inside(party, &["ip", "link", "set", "lo", "up"])?;
        }
        let legs = [
            (Party::N1, "n1", "10.77.1.1", N1),
            (Party::N2, "n2", "10.77.2.1", N2),
            (Party::Phone, "ph", "192.168.77.1", PHONE[0]),
        ];
        let gateway = net.name(Party::Gateway);
        for (party, leg, near, far) in legs {
            let ns = net.name(party);
            run(&[
                "ip", "link", "add", leg, "netns", &gateway, "type", "veth", "peer", "name", "out", "netns",
                &ns,
            ])?;
            net.inside(Party::Gateway, &["ip", "addr", "add", &format!("{near}/24"), "dev", leg])?;
            net.inside(Party::Gateway, &["ip", "link", "set", leg, "up"])?;
            net.inside(party, &["ip", "addr", "add", &format!("{far}/24"), "dev", "out"])?;
            net.inside(party, &["ip", "link", "set", "out", "up"])?;
            net.inside(party, &["ip", "route", "add", "default", "via", near])?;
        }
        net.inside(Party::Gateway, &["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"])?;
        net.rules(&[
            "add table ip shoal",
            "add chain ip shoal post { type nat hook postrouting priority 100 ; }",
            "add rule ip shoal post ip saddr 192.168.77.0/24 oifname { n1, n2 } masquerade fully-random",
            "add chain ip shoal pass { type filter hook forward priority 0 ; }",
        ])?;
        Ok(net)
    }

    /// Name of a party's namespace.
    pub(super) fn name(&self, party: Party) -> String {
        name(self.pid, party)
    }

    fn rules(&self, rules: &[&str]) -> Result<()> {
        rules.iter().try_for_each(|rule| {
            let words: Vec<&str> = ["nft"].into_iter().chain(rule.split(' ')).collect();
            self.inside(Party::Gateway, &words)
        })
    }

    /// Runs a program in a party's namespace.
    fn inside(&self, party: Party, words: &[&str]) -> Result<()> {
        let name = self.name(party);
        run(&[["ip", "netns", "exec", &name].as_slice(), words].concat())
    }

    /// Lets nothing pass between the routers, or everything again.
    pub(super) fn part(&self, parted: bool) -> Result<()> {
        self.rules(if parted {
            &[
                "add rule ip shoal pass ip saddr 10.77.1.0/24 ip daddr 10.77.2.0/24 drop",
                "add rule ip shoal pass ip saddr 10.77.2.0/24 ip daddr 10.77.1.0/24 drop",
            ]
        } else {
            &["flush chain ip shoal pass"]
        })
    }

    /// Makes the gateway forget its translations: what a link goes down with, the kernel drops. The next packet of the
    /// phone gets a new port.
    pub(super) fn forget_mappings(&self) -> Result<()> {
        for leg in ["n1", "n2"] {
            self.inside(Party::Gateway, &["ip", "link", "set", leg, "down"])?;
            self.inside(Party::Gateway, &["ip", "link", "set", leg, "up"])?;
        }
        Ok(())
    }

    /// Ports under which the gateway sends the phone's packets on, from the kernel's table.
    pub(super) fn mapped_ports(&self) -> BTreeSet<String> {
        let list = Command::new("ip")
            .args(["netns", "exec", &self.name(Party::Gateway), "cat", "/proc/net/nf_conntrack"])
            .stderr(Stdio::null())
            .output();
        let text =
            list.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        mapped(&text)
    }

    /// Gives the phone another address in its network, as another Wi-Fi does.
    pub(super) fn move_phone(&self, from: &str, to: &str) -> Result<()> {
        let phone = |words: &[&str]| self.inside(Party::Phone, words);
        phone(&["ip", "addr", "del", &format!("{from}/24"), "dev", "out"])?;
        phone(&["ip", "addr", "add", &format!("{to}/24"), "dev", "out"])?;
        phone(&["ip", "route", "replace", "default", "via", "192.168.77.1"])
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        remove(self.pid);
    }
}

fn name(pid: u32, party: Party) -> String {
    let role = match party {
        Party::Gateway => "gateway",
        Party::N1 => "n1",
        Party::N2 => "n2",
        Party::Phone => "phone",
    };
    format!("{PREFIX}{pid}-{role}")
}

/// The port to which answers come back, of each line of the phone's datagrams: the second `dport`.
fn mapped(table: &str) -> BTreeSet<String> {
    let own = format!("src={}", PHONE[0].rsplit_once('.').map_or(PHONE[0], |(network, _)| network));
    let lines = table.lines().filter(|line| line.contains(" udp ") && line.contains(&own));
    lines
        .filter_map(|line| line.split(' ').filter_map(|word| word.strip_prefix("dport=")).nth(1))
        .map(str::to_owned)
        .collect()
}

/// Removes the namespaces of a run; links go with them.
fn remove(pid: u32) {
    for party in PARTIES {
        let name = name(pid, party);
        if std::path::Path::new(NAMES).join(&name).exists() {
            // What cannot be removed is removed by the next run.
            let _ = run(&["ip", "netns", "del", &name]);
        }
    }
}

/// Removes what a run left that was killed.
fn sweep() {
    let left = std::fs::read_dir(NAMES).into_iter().flatten().flatten();
    let pids = left.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok()
    });
    let dead: Vec<u32> = pids.filter(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()).collect();
    dead.into_iter().for_each(remove);
}

fn run(words: &[&str]) -> Result<()> {
    let (program, args) = words.split_first().context("a program")?;
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!("`{}`: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// A way from a port of loopback to an address within a namespace.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) addr: SocketAddr,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Door {
    /// Opens it. Sockets belong to the namespace in which they are made: the listener is made here, the others there.
    pub(super) fn open(namespace: &str, target: SocketAddr) -> Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let place = File::open(std::path::Path::new(NAMES).join(namespace))?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (told, hears) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let entered = move_into_link_name_space(place.as_fd(), Some(LinkNameSpaceType::Network));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let ready = entered.map_err(anyhow::Error::from).and(runtime.map_err(anyhow::Error::from));
            match ready {
                Ok(runtime) => {
                    // The opener may have gone; then it is stopped soon.
                    let _ = told.send(Ok(()));
                    runtime.block_on(async {
                        tokio::select! { () = stopped.cancelled() => {}, () = carry(listener, target) => {} }
                    });
                }
                Err(error) => drop(told.send(Err(error))),
            }
        });
        hears.recv().context("the thread at the door ended")??;
        Ok(Self { addr, stop, thread: Some(thread) })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // It ends with its token and cannot panic.
            let _ = thread.join();
        }
    }
}

async fn carry(listener: std::net::TcpListener, target: SocketAddr) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    loop {
        let Ok((mut client, _)) = listener.accept().await else { continue };
        // Ends with its connection, or with the runtime of this door.
        tasks::spawn_named("through the door", async move {
            if let Ok(mut inner) = TcpStream::connect(target).await {
                let _ = (client.set_nodelay(true), inner.set_nodelay(true));
                let _ = copy_bidirectional(&mut client, &mut inner).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_ports_are_those_that_answers_come_back_to() {
        let table = "ipv4     2 udp      17 118 src=192.168.77.2 dst=10.77.1.2 sport=40001 dport=7411 src=10.77.1.2 dst=10.77.1.1 sport=7411 dport=51234 [ASSURED] mark=0 use=2\n\
             ipv4     2 udp      17 118 src=10.77.1.2 dst=10.77.2.2 sport=7411 dport=7411 src=10.77.2.2 dst=10.77.1.2 sport=7411 dport=7411 mark=0 use=2\n";
        assert_eq!(mapped(table).into_iter().collect::<Vec<_>>(), ["51234"]);
    }
}
