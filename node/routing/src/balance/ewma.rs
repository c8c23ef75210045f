//! Moving average that believes bad news at once and good news with time.

use std::time::{Duration, Instant};

/// Time-decayed peak estimate of a duration, in milliseconds.
///
/// `decay` is the time constant (> 0 s). Peak-sensitive as in Finagle's PeakEwma: a sample above the estimate
/// replaces it at once, one below only pulls it down, the more the longer ago the last sample was. So a host
/// that turns slow loses its traffic with the first slow answer. The estimate never leaves the range of the
/// samples; how far it can still be trusted is for the reader to weigh, by [`age`](Self::age).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PeakEwma {
    decay: Duration,
    sampled: Option<(f64, Instant)>,
}

/// Least weight of a new low sample: samples that arrive in a burst must count too, or a peak would outlive
/// hundreds of good answers.
const MIN_WEIGHT: f64 = 0.05;

impl PeakEwma {
    /// Makes an estimate without samples.
    ///
    /// # Panics
    /// When `decay` is zero.
    pub fn new(decay: Duration) -> Self {
        assert!(!decay.is_zero(), "a time constant is above zero");
        Self { decay, sampled: None }
    }

    /// Takes in a sample in milliseconds. Anything that is no number or below zero is passed over.
    pub fn observe(&mut self, now: Instant, sample_ms: f64) {
        if !(sample_ms >= 0.0 && sample_ms.is_finite()) {
            return;
        }
        let estimate = match self.sampled {
            Some((estimate, at)) if sample_ms < estimate => {
                let passed = now.saturating_duration_since(at).as_secs_f64() / self.decay.as_secs_f64();
                let weight = (1.0 - (-passed).exp()).max(MIN_WEIGHT);
                // Rounding must not carry the estimate below the sample.
                (estimate + (sample_ms - estimate) * weight).max(sample_ms)
            }
            Some(_) | None => sample_ms,
        };
        self.sampled = Some((estimate, now));
    }

    /// Returns the estimate in milliseconds, `None` before the first sample.
    pub fn estimate_ms(&self) -> Option<f64> {
        self.sampled.map(|(estimate, _)| estimate)
    }

    /// Returns how long ago the last sample came, `None` before the first.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.sampled.map(|(_, at)| now.saturating_duration_since(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    #[test]
    fn bad_news_counts_at_once_and_good_news_with_time() {
        let now = start();
        let mut ewma = PeakEwma::new(Duration::from_secs(10));
        assert_eq!(ewma.estimate_ms(), None);
        ewma.observe(now, 100.0);
        ewma.observe(now, 900.0);
        assert_eq!(ewma.estimate_ms(), Some(900.0));
        ewma.observe(now + Duration::from_secs(10), 100.0);
        let pulled = ewma.estimate_ms().unwrap();
        assert!((pulled - (100.0 + 800.0 * (-1.0f64).exp())).abs() < 1e-6, "{pulled}");
        assert_eq!(ewma.age(now + Duration::from_secs(12)), Some(Duration::from_secs(2)));
    }

    #[test]
    fn a_burst_of_good_samples_at_one_moment_counts_too() {
        let now = start();
        let mut ewma = PeakEwma::new(Duration::from_secs(10));
        ewma.observe(now, 1_000.0);
        for _ in 0..100 {
            ewma.observe(now, 10.0);
        }
        assert!(ewma.estimate_ms().unwrap() < 20.0);
    }

    #[test]
    fn nonsense_is_passed_over() {
        let now = start();
        let mut ewma = PeakEwma::new(Duration::from_secs(1));
        for sample in [f64::NAN, -1.0, f64::INFINITY] {
            ewma.observe(now, sample);
        }
        assert_eq!(ewma.estimate_ms(), None);
    }
}
