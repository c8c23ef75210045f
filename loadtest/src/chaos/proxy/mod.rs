//! Faults between two parties of a mesh, changeable while packets run.
//!
//! Each router is told to be dialled at a UDP proxy of its own, each engine is dialled through a TCP proxy. A proxy
//! knows who sends by the source address, so every ordered pair has its own rule: `(n1, n2)` and `(n2, n1)` make a
//! one-way fault. Chance is seeded; the kernel's timing is not, so a seed repeats the odds and not the packets.

mod tcp;
mod udp;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

pub(super) use self::{tcp::TcpProxy, udp::UdpProxy};

/// Longest time that bytes wait for a link's bandwidth; what would wait longer is dropped, as a full queue drops.
const MAX_BACKLOG: Duration = Duration::from_secs(1);
/// Times the delay of its link by which a reordered packet is late, at least this long.
const REORDER_LATE: Duration = Duration::from_millis(20);

/// What happens to bytes from one party to another. The default is a perfect link.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rule {
    /// Nothing passes.
    pub(super) blocked: bool,
    /// Share of packets lost, 0 to 1.
    pub(super) drop: f64,
    /// Share that comes twice.
    pub(super) duplicate: f64,
    /// Share that has a bit flipped.
    pub(super) corrupt: f64,
    /// Share that comes later than its successors.
    pub(super) reorder: f64,
    /// Time that every packet takes.
    pub(super) delay: Duration,
    /// Most that this time differs, either way.
    pub(super) jitter: Duration,
    /// Bytes a second; `None` = as many as come.
    pub(super) bandwidth: Option<u64>,
}

/// One copy of a packet that is to be delivered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Delivery {
    pub(super) after: Duration,
    /// Bit to flip, counted from the start.
    pub(super) flip: Option<usize>,
}

/// What passed over all links.
#[derive(Debug, Default)]
pub(super) struct Passed {
    pub(super) delivered: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) harmed: AtomicU64,
}

/// The rules of all pairs, and who sends from where.
#[derive(Debug)]
pub(super) struct Links {
    state: Mutex<State>,
    pub(super) passed: Passed,
}

#[derive(Debug)]
struct State {
    rng: StdRng,
    names: BTreeMap<SocketAddr, String>,
    rules: BTreeMap<(String, String), Rule>,
    /// When the line of a pair with a bandwidth is free again.
    free_at: BTreeMap<(String, String), Instant>,
}

impl Links {
    pub(super) fn new(seed: u64) -> Self {
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            names: BTreeMap::new(),
            rules: BTreeMap::new(),
            free_at: BTreeMap::new(),
        };
        Self { state: Mutex::new(state), passed: Passed::default() }
    }

    /// Says who sends from an address.
    pub(super) fn name(&self, addr: SocketAddr, name: &str) {
        self.lock().names.insert(addr, name.to_owned());
    }

    pub(super) fn name_of(&self, addr: SocketAddr) -> Option<String> {
        self.lock().names.get(&addr).cloned()
    }

    /// Sets the rule of one direction.
    pub(super) fn set(&self, from: &str, to: &str, rule: Rule) {
        self.lock().rules.insert((from.to_owned(), to.to_owned()), rule);
    }

    /// Sets the rule of both directions of every pair of `left` and `right`.
    pub(super) fn between(&self, left: &[&str], right: &[&str], rule: Rule) {
        for (a, b) in left.iter().flat_map(|a| right.iter().map(move |b| (a, b))).filter(|(a, b)| a != b) {
            self.set(a, b, rule);
            self.set(b, a, rule);
        }
    }

    /// Makes all links perfect again.
    pub(super) fn heal(&self) {
        let mut state = self.lock();
        state.rules.clear();
        state.free_at.clear();
    }

    pub(super) fn rule(&self, from: &str, to: &str) -> Rule {
        self.lock().rules.get(&(from.to_owned(), to.to_owned())).copied().unwrap_or_default()
    }

    /// Decides what becomes of a packet of `bytes` bytes: no, one or two deliveries.
    pub(super) fn judge(&self, from: &str, to: &str, bytes: usize, now: Instant) -> Vec<Delivery> {
        let mut state = self.lock();
        let pair = (from.to_owned(), to.to_owned());
        let Some(rule) = state.rules.get(&pair).copied() else {
            self.passed.delivered.fetch_add(1, Ordering::Relaxed);
            return vec![Delivery { after: Duration::ZERO, flip: None }];
        };
        let queued = match rule.bandwidth {
            None => Duration::ZERO,
            Some(rate) => {
                let free = state.free_at.get(&pair).copied().unwrap_or(now).max(now);
                let queued = free.duration_since(now);
                if queued <= MAX_BACKLOG {
                    let takes = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
                    state.free_at.insert(pair, free + takes);
                }
                queued
            }
        };
        let mut happens = |share: f64| share > 0.0 && state.rng.random_bool(share.clamp(0.0, 1.0));
        if rule.blocked || queued > MAX_BACKLOG || happens(rule.drop) {
            self.passed.lost.fetch_add(1, Ordering::Relaxed);
            return Vec::new();
        }
        let copies = 1 + usize::from(happens(rule.duplicate));
        let deliveries: Vec<Delivery> = (0..copies)
            .map(|_| {
                let mut after = queued + rule.delay;
                if !rule.jitter.is_zero() {
                    let swing = state.rng.random_range(-1.0..=1.0) * rule.jitter.as_secs_f64();
                    after = Duration::from_secs_f64((after.as_secs_f64() + swing).max(0.0));
                }
                if rule.reorder > 0.0 && state.rng.random_bool(rule.reorder.min(1.0)) {
                    after += rule.delay.max(REORDER_LATE);
                }
                let flips = bytes > 0 && rule.corrupt > 0.0 && state.rng.random_bool(rule.corrupt.min(1.0));
                Delivery { after, flip: flips.then(|| state.rng.random_range(0..bytes * 8)) }
            })
            .collect();
        let harmed = deliveries.iter().filter(|one| one.flip.is_some()).count() as u64;
        self.passed.harmed.fetch_add(harmed, Ordering::Relaxed);
        self.passed.delivered.fetch_add(deliveries.len() as u64, Ordering::Relaxed);
        deliveries
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain values, whole between any two statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Flips one bit of a packet.
fn flip(bytes: &mut [u8], bit: usize) {
    if let Some(byte) = bytes.get_mut(bit / 8) {
        *byte ^= 1 << (bit % 8);
    }
}

#[cfg(test)]
mod tests;
