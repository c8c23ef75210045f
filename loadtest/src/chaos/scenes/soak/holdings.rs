//! What a router holds, read from outside and from its metrics, and how it grows.

use std::{
    collections::BTreeSet,
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::super::super::{mesh::Mesh, node::Node};

/// Pause between two looks within a quiet moment.
const LOOK: Duration = Duration::from_millis(500);
/// State of a socket whose peer has closed and which its owner has not (`/proc/net/tcp`).
const CLOSE_WAIT: &str = "08";

/// What one router holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Held {
    /// Live bytes on the heap.
    pub(super) bytes: f64,
    /// Tasks that have not ended.
    pub(super) tasks: f64,
    /// Open descriptors.
    pub(super) descriptors: f64,
    /// Sockets in CLOSE_WAIT.
    pub(super) close_wait: f64,
}

impl Held {
    /// The lower of each: what comes and goes within a moment is not held.
    fn floor(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.min(other.bytes),
            tasks: self.tasks.min(other.tasks),
            descriptors: self.descriptors.min(other.descriptors),
            close_wait: self.close_wait.min(other.close_wait),
        }
    }
}

/// What all routers held at one quiet moment, in their order.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub(super) at: Duration,
    pub(super) held: Vec<Held>,
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for held in &self.held {
            let (bytes, tasks, open) = (held.bytes / 1e6, held.tasks, held.descriptors);
            write!(f, "{bytes:.3} MB {tasks} tasks {open} fds {} CLOSE_WAIT; ", held.close_wait)?;
        }
        Ok(())
    }
}

/// Looks for `length` and keeps the lowest of each.
pub(super) async fn read(mesh: &Mesh, started: Instant, length: Duration) -> Result<Reading> {
    let mut lowest: Vec<Held> = Vec::new();
    let began = Instant::now();
    while lowest.is_empty() || began.elapsed() < length {
        let mut now = Vec::new();
        for node in &mesh.nodes {
            now.push(look(mesh, node).await?);
        }
        lowest = if lowest.is_empty() {
            now
        } else {
            lowest.iter().zip(now).map(|(one, other)| one.floor(other)).collect()
        };
        tokio::time::sleep(LOOK).await;
    }
    Ok(Reading { at: started.elapsed(), held: lowest })
}

async fn look(mesh: &Mesh, node: &Node) -> Result<Held> {
    let process = node.process.as_ref().context("the router runs")?;
    let metric = async |name: &str| mesh.api.metric(&node.url, name, "").await.unwrap_or(0.0);
    let held = Held {
        bytes: metric("shoal_allocated_bytes").await,
        tasks: metric("shoal_alive_tasks").await,
        descriptors: process.descriptors() as f64,
        close_wait: close_wait(process.pid()) as f64,
    };
    if held.bytes <= 0.0 || held.tasks <= 0.0 || held.descriptors <= 0.0 {
        bail!("{} does not tell what it holds: {held:?}", node.name);
    }
    Ok(held)
}

/// Sockets of a process in CLOSE_WAIT.
fn close_wait(pid: u32) -> usize {
    let own: BTreeSet<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned))
        .collect();
    ["tcp", "tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).ok())
        .map(|table| closing(&table, &own))
        .sum()
}

/// Rows of a socket table in CLOSE_WAIT whose inode is among `own`.
fn closing(table: &str, own: &BTreeSet<String>) -> usize {
    table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|cells| cells.get(3) == Some(&CLOSE_WAIT))
        .filter(|cells| cells.get(9).is_some_and(|inode| own.contains(*inode)))
        .count()
}

/// The median of the slopes of all pairs (Theil 1950, Sen 1968): a moment that was not as quiet as the others does not
/// move it. 0 for fewer than two points.
pub(super) fn slope(points: &[(f64, f64)]) -> f64 {
    let mut slopes: Vec<f64> = points
        .iter()
        .enumerate()
        .flat_map(|(at, left)| points[at + 1..].iter().map(move |right| (left, right)))
        .filter(|(left, right)| right.0 > left.0)
        .map(|(left, right)| (right.1 - left.1) / (right.0 - left.0))
        .collect();
    slopes.sort_by(f64::total_cmp);
    slopes.get(slopes.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_that_of_most_points() {
        let mut points: Vec<(f64, f64)> = (0..20).map(|x| (f64::from(x), 3.0 * f64::from(x) + 1.0)).collect();
        assert!((slope(&points) - 3.0).abs() < 1e-9);
        points[7].1 = 1_000.0;
        assert!((slope(&points) - 3.0).abs() < 1e-9, "one loud moment");
        assert_eq!(slope(&points[..1]), 0.0);
    }

    #[test]
    fn sockets_are_counted_by_state_and_owner() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F90 0100007F:9C40 08 00000000:00000000 00:00000000 00000000     0        0 11 1 0\n\
             1: 0100007F:1F90 0100007F:9C41 08 00000000:00000000 00:00000000 00000000     0        0 12 1 0\n\
             2: 0100007F:1F90 0100007F:9C42 01 00000000:00000000 00:00000000 00000000     0        0 13 1 0\n";
        let own = |inodes: &[&str]| inodes.iter().map(|one| (*one).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(closing(table, &own(&["11", "13"])), 1);
        assert_eq!(closing(table, &own(&["11", "12"])), 2);
        assert_eq!(closing(table, &own(&["13"])), 0);
    }

    #[tokio::test]
    async fn a_socket_that_its_peer_left_is_found() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (held, _) = listener.accept().await.unwrap();
        let before = close_wait(std::process::id());
        drop(peer);
        let seen =
            super::super::super::super::wait::until("CLOSE_WAIT", Duration::from_secs(20), async || {
                (close_wait(std::process::id()) > before).then_some(())
            });
        seen.await.unwrap();
        drop(held);
    }
}
