//! When a lease counts: renewed lately, and by somebody who lives now.

use std::time::Duration;

use tokio::time::Instant;

use super::{LEASE_RENEWAL, LEASE_VALIDITY};

/// Renewals by which one that arrives may be ahead of the time since the one before: they travel by different ways.
const LEAP_SLACK: f64 = 1.0;

/// Renewals as the reader saw them arrive.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LeaseState {
    pub(super) renewed_at: Option<Instant>,
    /// The number it had then.
    pub(super) counter: u64,
    /// Renewals without a lapse between them.
    pub(super) streak: u32,
}

impl LeaseState {
    pub(super) fn renew(&mut self, counter: u64, now: Instant, direct: bool) {
        if !self.fresh(now) || (self.streak < 2 && self.leaps(counter, now)) {
            self.streak = 0;
        }
        self.streak = if direct { 2 } else { self.streak.saturating_add(1) };
        (self.renewed_at, self.counter) = (Some(now), counter);
    }

    /// True when more renewals lie between two that arrived than time has passed for: both are old then, and came
    /// from two sides of a partition. Such a pair is no sign that anybody renews it now.
    fn leaps(&self, counter: u64, now: Instant) -> bool {
        let passed = self.renewed_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let renewals = counter.saturating_sub(self.counter) as f64;
        renewals > passed.as_secs_f64() / LEASE_RENEWAL.as_secs_f64() + LEAP_SLACK
    }

    pub(super) fn fresh(&self, now: Instant) -> bool {
        self.renewed_at.is_some_and(|at| now.saturating_duration_since(at) <= LEASE_VALIDITY)
    }

    pub(super) fn alive(&self, now: Instant) -> bool {
        self.streak >= 2 && self.fresh(now)
    }
}
