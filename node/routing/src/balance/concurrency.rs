//! How many requests a host takes at once when it does not say: found out by what company costs.
//!
//! Gradient2 of Netflix's concurrency-limits, fed with time per token. Time to first token grows with the prompt and
//! whole answers with their length; the time per token is what only crowding changes. What is usual is learnt quickly
//! downwards and hardly upwards, or a crowd that stays would become usual itself.

use std::time::Duration;

/// Limit before anything is known, and its bounds.
pub(super) const INITIAL: f64 = 20.0;
const MIN: f64 = 1.0;
const MAX: f64 = 200.0;

/// How much slower than usual is no sign of crowding yet.
const TOLERANCE: f64 = 1.5;

/// Share by which one sample may move the limit.
const SMOOTHING: f64 = 0.2;

/// Weight of a sample below and above what is usual. A host that became slower for good is believed to be so after
/// some thousand answers.
const QUICKER_WEIGHT: f64 = 0.1;
const SLOWER_WEIGHT: f64 = 0.001;

/// What a refusal leaves of the limit: the host itself said that it is too much.
const BACK_OFF: f64 = 0.7;

/// A limit that follows the host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConcurrencyLimit {
    limit: f64,
    usual_ms: f64,
}

impl Default for ConcurrencyLimit {
    fn default() -> Self {
        Self { limit: INITIAL, usual_ms: 0.0 }
    }
}

impl ConcurrencyLimit {
    /// Returns the requests that it takes at once, 1 to 200.
    pub fn requests(&self) -> u32 {
        self.limit as u32
    }

    /// Takes in the time per token of an answer that ran beside `in_flight - 1` others.
    pub fn observe(&mut self, per_token: Duration, in_flight: u32) {
        let sample = per_token.as_secs_f64() * 1e3;
        if sample <= 0.0 {
            return;
        }
        let weight = match self.usual_ms {
            0.0 => 1.0,
            usual if sample < usual => QUICKER_WEIGHT,
            _ => SLOWER_WEIGHT,
        };
        self.usual_ms += weight * (sample - self.usual_ms);
        // Far below the limit a time says nothing of it.
        if f64::from(in_flight) < self.limit / 2.0 {
            return;
        }
        let gradient = (TOLERANCE * self.usual_ms / sample).clamp(0.5, 1.0);
        let wanted = self.limit * gradient + if gradient >= 1.0 { self.limit.sqrt() } else { 0.0 };
        self.limit = (self.limit + SMOOTHING * (wanted - self.limit)).clamp(MIN, MAX);
    }

    /// Takes in that the host refused a request because it has too many.
    pub fn refused(&mut self, in_flight: u32) {
        self.limit = (self.limit.min(f64::from(in_flight.max(1))) * BACK_OFF).clamp(MIN, MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: f64) -> Duration {
        Duration::from_secs_f64(n / 1e3)
    }

    /// Runs a host whose tokens take 20 ms up to `knee` requests and longer in proportion above.
    fn settle(knee: f64) -> u32 {
        let mut limit = ConcurrencyLimit::default();
        // What is usual is learnt before the crowd comes.
        for _ in 0..50 {
            limit.observe(ms(20.0), 1);
        }
        for _ in 0..400 {
            let in_flight = limit.requests();
            limit.observe(ms(20.0 * (f64::from(in_flight) / knee).max(1.0)), in_flight);
        }
        limit.requests()
    }

    #[test]
    fn the_limit_finds_the_knee_of_a_host() {
        assert!((4..=12).contains(&settle(6.0)), "{}", settle(6.0));
        assert!((30..=75).contains(&settle(40.0)), "{}", settle(40.0));
        assert_eq!(settle(10_000.0), 200);
    }

    #[test]
    fn an_idle_host_teaches_nothing_about_its_limit() {
        let mut limit = ConcurrencyLimit::default();
        for slow in [20.0, 500.0, 20.0, 900.0] {
            limit.observe(ms(slow), 1);
        }
        assert_eq!(limit.requests(), 20);
    }

    #[test]
    fn a_refusal_goes_below_what_was_too_much_and_never_to_zero() {
        let mut limit = ConcurrencyLimit::default();
        limit.refused(10);
        assert_eq!(limit.requests(), 7);
        (0..50).for_each(|_| limit.refused(1));
        assert_eq!(limit.requests(), 1);
    }
}
