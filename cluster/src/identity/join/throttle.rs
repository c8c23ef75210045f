//! How often one address may try wrong tokens.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

/// Failed attempts that one address may make in [`WINDOW`]. A secret has 256 bits; this bounds log noise and
/// work, not luck.
pub(super) const FAILURES: usize = 5;
/// Time in which failures count.
pub(super) const WINDOW: Duration = Duration::from_secs(60);
/// Addresses whose failures are remembered; the one that failed longest ago makes room.
const ADDRESSES: usize = 4096;

/// Failures by address.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    failures: HashMap<IpAddr, Vec<Instant>>,
}

impl Throttle {
    /// Whether `remote` may try now.
    pub(super) fn admits(&self, remote: IpAddr, now: Instant) -> bool {
        let recent = |times: &Vec<Instant>| times.iter().filter(|at| is_recent(**at, now)).count();
        self.failures.get(&remote).map_or(0, recent) < FAILURES
    }

    /// Counts a failure of `remote`.
    pub(super) fn record(&mut self, remote: IpAddr, now: Instant) {
        if self.failures.len() >= ADDRESSES && !self.failures.contains_key(&remote) {
            let oldest = self.failures.iter().min_by_key(|(_, times)| times.last().copied());
            if let Some(oldest) = oldest.map(|(address, _)| *address) {
                self.failures.remove(&oldest);
            }
        }
        let times = self.failures.entry(remote).or_default();
        times.retain(|at| is_recent(*at, now));
        times.push(now);
    }
}

fn is_recent(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < WINDOW
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fifth_failure_closes_the_door_for_a_minute() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        let (guesser, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        for second in 0..5 {
            let now = start + Duration::from_secs(second);
            assert!(throttle.admits(guesser, now));
            throttle.record(guesser, now);
        }
        assert!(!throttle.admits(guesser, start + Duration::from_secs(5)));
        assert!(throttle.admits(other, start + Duration::from_secs(5)));
        assert!(!throttle.admits(guesser, start + Duration::from_secs(59)));
        assert!(throttle.admits(guesser, start + WINDOW));
    }

    #[test]
    fn memory_is_bounded() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for n in 0..(ADDRESSES as u32 + 10) {
            throttle.record(IpAddr::from(n.to_be_bytes()), now);
        }
        assert_eq!(throttle.failures.len(), ADDRESSES);
    }
}
