//! A straight line through samples that forgets: time against prompt length, time per token against company.
//!
//! Least squares with exponential forgetting (Ljung & Söderström 1983, the scalar case), in five sums. The line is what
//! a host does as a rule; a drift on top of it is how it does just now (a phone that got hot, somebody who compiles)
//! and fades when nobody looks.

use std::time::{Duration, Instant};

/// What a sample keeps of its weight with each later one: a memory of some thirty samples.
const KEEP: f64 = 0.97;

/// Weight of a new sample in the drift: three or four bad ones in a row make a host slow, one does not. A host that
/// hangs is noticed by the requests that wait, not here.
const DRIFT_WEIGHT: f64 = 0.3;

/// Bounds of one sample's drift: one absurd time must not banish a host for minutes.
const MAX_DRIFT: f64 = 8.0;

/// Time in which a drift nobody confirms fades.
const DRIFT_FADES: Duration = Duration::from_secs(60);

/// A line `at_zero + slope · x`, both at least zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Straight {
    /// Its value where `x` is zero.
    pub at_zero: f64,
    /// What each unit of `x` adds.
    pub slope: f64,
}

impl Straight {
    /// Returns the value at `x`.
    pub fn at(self, x: f64) -> f64 {
        self.at_zero + self.slope * x
    }
}

/// A line learnt from samples, and how far the host is off it just now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Trend {
    weight: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
    /// Spread of `x`, squared, below which a slope is not believed.
    ridge: f64,
    /// Slope that is believed before the samples tell one, as a share of the value at zero.
    lean: f64,
    samples: u32,
    drift: f64,
    drift_at: Option<Instant>,
}

impl Trend {
    /// A trend of times that grow in proportion to `x` as far as nothing is known: prompts cost by their length.
    pub(super) fn through_zero() -> Self {
        // Half a sample at the origin, which the first real ones outweigh.
        Self { weight: 0.5, ..Self::level(1.0, 0.0) }
    }

    /// A trend of times that do not depend on `x` but for a share `lean` a unit, until samples that lie `ridge`
    /// squared apart tell more.
    pub(super) fn level(ridge: f64, lean: f64) -> Self {
        Self {
            weight: 0.0,
            x: 0.0,
            y: 0.0,
            xx: 0.0,
            xy: 0.0,
            ridge,
            lean,
            samples: 0,
            drift: 1.0,
            drift_at: None,
        }
    }

    /// Takes in a sample. Anything that is no number or below zero is passed over.
    pub(super) fn observe(&mut self, now: Instant, x: f64, y: f64) {
        if !(x.is_finite() && y.is_finite() && x >= 0.0 && y >= 0.0) {
            return;
        }
        if let Some(expected) = self.line().map(|line| line.at(x)).filter(|expected| *expected > 0.0) {
            let ratio = (y / expected).clamp(1.0 / MAX_DRIFT, MAX_DRIFT);
            self.drift = self.drift_now(now) + DRIFT_WEIGHT * (ratio - self.drift_now(now));
            self.drift_at = Some(now);
        }
        for (sum, value) in [
            (&mut self.weight, 1.0),
            (&mut self.x, x),
            (&mut self.y, y),
            (&mut self.xx, x * x),
            (&mut self.xy, x * y),
        ] {
            *sum = *sum * KEEP + value;
        }
        self.samples = self.samples.saturating_add(1);
    }

    /// Takes in that something took `ratio` times what the line, with its drift, had promised for it.
    pub(super) fn drifted(&mut self, now: Instant, ratio: f64) {
        if self.samples == 0 || !ratio.is_finite() {
            return;
        }
        let drift = self.drift_now(now);
        let seen = (drift * ratio).clamp(1.0 / MAX_DRIFT, MAX_DRIFT);
        self.drift = drift + DRIFT_WEIGHT * (seen - drift);
        self.drift_at = Some(now);
    }

    /// Returns the line with the drift of this moment, `None` before the first sample.
    pub(super) fn read(&self, now: Instant) -> Option<Straight> {
        let drift = self.drift_now(now);
        self.line().map(|line| Straight { at_zero: line.at_zero * drift, slope: line.slope * drift })
    }

    fn drift_now(&self, now: Instant) -> f64 {
        let age = self.drift_at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        1.0 + (self.drift - 1.0) * (-age / DRIFT_FADES.as_secs_f64()).exp()
    }

    fn line(&self) -> Option<Straight> {
        if self.samples == 0 {
            return None;
        }
        let (x, y) = (self.x / self.weight, self.y / self.weight);
        let (var, cov) = (self.xx / self.weight - x * x, self.xy / self.weight - x * y);
        // A line that leans by `lean` through the mean of the samples is what little data is pulled to.
        let believed = y * self.lean / (1.0 + self.lean * x);
        let slope = ((cov + self.ridge * believed) / (var + self.ridge)).max(0.0);
        let at_zero = y - slope * x;
        if at_zero >= 0.0 {
            return Some(Straight { at_zero, slope });
        }
        Some(Straight { at_zero: 0.0, slope: if self.xx > 0.0 { self.xy / self.xx } else { 0.0 } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    fn close(a: f64, b: f64, within: f64) {
        assert!((a - b).abs() <= within * b.abs().max(1e-9), "{a} is not {b}");
    }

    #[test]
    fn base_and_slope_of_prompt_times_are_found() {
        let (mut trend, now) = (Trend::through_zero(), start());
        for sample in 0..60u32 {
            let x = f64::from(sample * 97 % 2_000);
            trend.observe(now, x, 80.0 + 0.5 * x);
        }
        let line = trend.read(now).unwrap();
        close(line.at_zero, 80.0, 0.1);
        close(line.slope, 0.5, 0.02);
    }

    #[test]
    fn one_sample_of_a_prompt_is_taken_to_be_in_proportion() {
        let (mut trend, now) = (Trend::through_zero(), start());
        trend.observe(now, 4_000.0, 10_000.0);
        let line = trend.read(now).unwrap();
        assert!(line.at(100.0) < 500.0, "{line:?}");
        close(line.at(4_000.0), 10_000.0, 0.01);
    }

    #[test]
    fn company_costs_what_it_is_seen_to_cost_and_a_little_before() {
        let (mut trend, now) = (Trend::level(0.5, 0.1), start());
        trend.observe(now, 0.0, 20.0);
        close(trend.read(now).unwrap().slope, 2.0, 0.01);
        for sample in 0..60u32 {
            let others = f64::from(sample % 4);
            trend.observe(now, others, 20.0 + 10.0 * others);
        }
        let line = trend.read(now).unwrap();
        close(line.slope, 10.0, 0.3);
        close(line.at(2.0), 40.0, 0.1);
    }

    #[test]
    fn a_host_that_turned_slow_is_slow_after_a_few_samples_and_the_memory_fades() {
        let (mut trend, now) = (Trend::through_zero(), start());
        for _ in 0..100 {
            trend.observe(now, 1_000.0, 500.0);
        }
        for _ in 0..4 {
            trend.observe(now, 1_000.0, 3_000.0);
        }
        let slow = trend.read(now).unwrap().at(1_000.0);
        assert!(slow > 2_000.0, "{slow}");
        let later = trend.read(now + Duration::from_secs(600)).unwrap().at(1_000.0);
        assert!(later < 1_000.0, "{later}");
    }

    #[test]
    fn neither_nonsense_nor_falling_times_make_a_line_negative() {
        let (mut trend, now) = (Trend::through_zero(), start());
        for (x, y) in [(f64::NAN, 1.0), (1.0, -1.0), (f64::INFINITY, 1.0)] {
            trend.observe(now, x, y);
        }
        assert_eq!(trend.read(now), None);
        for (x, y) in [(0.0, 900.0), (1_000.0, 100.0), (2_000.0, 0.0)] {
            trend.observe(now, x, y);
        }
        let line = trend.read(now).unwrap();
        assert!(line.at_zero >= 0.0 && line.slope >= 0.0, "{line:?}");
    }
}
