//! How a provider has answered this node since its start: how often it was asked, how often it failed, how long it took.
//!
//! Kept in memory beside the purse, because the history holds requests, not attempts: an answer of a provider that
//! failed is one row under the name of whoever answered in the end.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::upstream::UpstreamError;

/// Whole answers whose times are kept: the 99th percentile then rests on about five of them, at 2 kB a provider.
const KEPT: usize = 512;

/// What one provider has done; cheap to clone, clones share it.
#[derive(Debug, Clone, Default)]
pub struct Traffic(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    requests: u64,
    failed: u64,
    took: VecDeque<Duration>,
}

/// The traffic so far.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Summary {
    /// Requests sent since the start of the node.
    pub requests: u64,
    /// Of these, those that ended in an error; one that the client left is none.
    pub failed: u64,
    /// Median time of the newest `KEPT` whole answers, milliseconds; absent before the first.
    pub p50_ms: Option<f64>,
    /// 99th percentile of the same.
    pub p99_ms: Option<f64>,
}

impl Traffic {
    /// Notes that a request goes out at `now`.
    pub fn begin(&self, now: Instant) -> Call {
        self.lock().requests += 1;
        Call { traffic: self.clone(), started: now }
    }

    /// Returns the traffic so far.
    pub fn summary(&self) -> Summary {
        let inner = self.lock();
        let mut took: Vec<Duration> = inner.took.iter().copied().collect();
        took.sort_unstable();
        // The nearest rank: a time that was measured, never one between two.
        let rank = |percent: usize| {
            let at = (took.len() * percent).div_ceil(100).checked_sub(1)?;
            took.get(at).map(|d| d.as_secs_f64() * 1000.0)
        };
        Summary { requests: inner.requests, failed: inner.failed, p50_ms: rank(50), p99_ms: rank(99) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request under way. Dropped without an end, it was left by the client and is neither an answer nor a failure.
#[derive(Debug)]
pub struct Call {
    traffic: Traffic,
    started: Instant,
}

impl Call {
    /// Notes a whole answer.
    pub fn answered(self, now: Instant) {
        let mut inner = self.traffic.lock();
        if inner.took.len() == KEPT {
            inner.took.pop_front();
        }
        inner.took.push_back(now.saturating_duration_since(self.started));
    }

    /// Notes an error. What policy kept back was never sent, so it does not count at all.
    pub fn failed(self, error: &UpstreamError) {
        let mut inner = self.traffic.lock();
        if &*error.code == "policy_blocked" {
            inner.requests -= 1;
        } else {
            inner.failed += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_failures_and_departures_are_told_apart() {
        let (traffic, start) = (Traffic::default(), Instant::now());
        assert_eq!(traffic.summary(), Summary::default());
        for ms in 1..=98 {
            traffic.begin(start).answered(start + Duration::from_millis(ms));
        }
        drop(traffic.begin(start));
        traffic.begin(start).failed(&UpstreamError::retryable(500, "upstream_error", "no"));
        traffic.begin(start).failed(&UpstreamError::retryable(403, "policy_blocked", "no"));
        let summary = traffic.summary();
        assert_eq!((summary.requests, summary.failed), (100, 1));
        assert_eq!((summary.p50_ms, summary.p99_ms), (Some(49.0), Some(98.0)));
    }

    #[test]
    fn old_times_give_way() {
        let (traffic, start) = (Traffic::default(), Instant::now());
        traffic.begin(start).answered(start + Duration::from_secs(60));
        for _ in 0..KEPT {
            traffic.begin(start).answered(start + Duration::from_millis(5));
        }
        assert_eq!(traffic.summary().p99_ms, Some(5.0));
        assert_eq!(traffic.summary().requests, KEPT as u64 + 1);
    }
}
