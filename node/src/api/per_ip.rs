//! Connections from one address: one client must not take all of them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections from one address where nobody says otherwise; a browser takes six, an SDK with a pool some dozens.
const DEFAULT: usize = 256;
/// Bits of an IPv6 address that belong to the network of one household.
const NETWORK: u32 = 64;

/// Counts connections by address. Clones count together.
#[derive(Debug, Clone)]
pub(super) struct PerIp {
    limit: usize,
    counts_loopback: bool,
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One connection, counted until dropped.
#[derive(Debug)]
pub(super) struct Guest(Option<(PerIp, IpAddr)>);

impl PerIp {
    /// `None` is the default, which leaves this host itself alone: a proxy in front of the node is one address.
    pub(super) fn new(limit: Option<usize>) -> Self {
        Self { limit: limit.unwrap_or(DEFAULT), counts_loopback: limit.is_some(), counts: Arc::default() }
    }

    /// Counts a connection; `None` when its address has as many as it may.
    pub(super) fn enter(&self, from: IpAddr) -> Option<Guest> {
        let from = household(from);
        if from.is_loopback() && !self.counts_loopback {
            return Some(Guest(None));
        }
        let mut counts = self.lock();
        let count = counts.entry(from).or_insert(0);
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Guest(Some((self.clone(), from))))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // Counts: a poisoned lock still holds valid ones.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn household(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(ip) if !ip.is_loopback() => {
            Ipv6Addr::from_bits(ip.to_bits() >> (128 - NETWORK) << (128 - NETWORK)).into()
        }
        other => other,
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let Some((all, from)) = self.0.take() else { return };
        let mut counts = all.lock();
        if let Some(count) = counts.get_mut(&from) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_share_and_gives_it_back() {
        let all = PerIp::new(Some(2));
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let held = [all.enter(ip("10.0.0.1")), all.enter(ip("::ffff:10.0.0.1"))];
        assert!(held.iter().all(Option::is_some) && all.enter(ip("10.0.0.1")).is_none());
        assert!(all.enter(ip("10.0.0.2")).is_some());
        drop(held);
        assert!(all.enter(ip("10.0.0.1")).is_some());
        let _near = (all.enter(ip("2001:db8::1")).unwrap(), all.enter(ip("2001:db8::2:1")).unwrap());
        assert!(all.enter(ip("2001:db8::3")).is_none() && all.enter(ip("2001:db8:0:1::3")).is_some());
        assert_eq!(all.lock().len(), 1, "who is gone is forgotten");
    }

    #[test]
    fn this_host_is_counted_only_where_somebody_said_a_number() {
        let by_default = PerIp::new(None);
        let guests: Vec<_> =
            (0..1000).map_while(|_| by_default.enter("127.0.0.1".parse().unwrap())).collect();
        assert_eq!(guests.len(), 1000);
        let others: Vec<_> = (0..1000).map_while(|_| by_default.enter("10.1.1.1".parse().unwrap())).collect();
        assert_eq!(others.len(), DEFAULT);
        let said = PerIp::new(Some(1));
        let _one = said.enter("127.0.0.1".parse().unwrap()).unwrap();
        assert!(
            said.enter("::1".parse().unwrap()).is_some()
                && said.enter("127.0.0.1".parse().unwrap()).is_none()
        );
    }
}
