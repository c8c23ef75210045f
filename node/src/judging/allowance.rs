//! So many calls in an hour: a bucket that refills evenly, so that a burst of traffic does not spend all at once.

use std::time::{Duration, Instant};

/// Share of an hour's calls that may be made at once after a quiet time.
const BURST: f64 = 0.1;
const HOUR: Duration = Duration::from_secs(3_600);

/// What may still be called.
#[derive(Debug, Clone)]
pub(super) struct Allowance {
    per_hour: f64,
    left: f64,
    at: Instant,
}

impl Allowance {
    pub(super) fn new(per_hour: u32, now: Instant) -> Self {
        let per_hour = f64::from(per_hour);
        Self { per_hour, left: most(per_hour), at: now }
    }

    /// Takes one call; false when none is left.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let hours = now.saturating_duration_since(self.at).as_secs_f64() / HOUR.as_secs_f64();
        self.left = (self.left + hours * self.per_hour).min(most(self.per_hour));
        self.at = now;
        let takes = self.left >= 1.0;
        if takes {
            self.left -= 1.0;
        }
        takes
    }

    /// Gives a call back that was not made.
    pub(super) fn give_back(&mut self) {
        self.left += 1.0;
    }
}

fn most(per_hour: f64) -> f64 {
    if per_hour < 1.0 { 0.0 } else { (per_hour * BURST).max(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_brings_an_hours_calls_and_silence_saves_only_some() {
        let start = Instant::now();
        let mut allowance = Allowance::new(100, start);
        let burst = (0..1_000).filter(|_| allowance.take(start)).count();
        assert_eq!(burst, 10);
        let steady = (1..=3_600).filter(|s| allowance.take(start + Duration::from_secs(*s))).count();
        assert!((99..=100).contains(&steady), "{steady}");
        let late = start + 10 * HOUR;
        assert_eq!((0..1_000).filter(|_| allowance.take(late)).count(), 10);
        assert!(!Allowance::new(0, start).take(late));
    }
}
