//! Circuit breaker: stops sending to a host that keeps failing, and asks it again with one request at a time.
//!
//! `Closed` = traffic flows. It opens after [`MAX_CONSECUTIVE`] faults in a row, or when more than half of at
//! least [`MIN_SAMPLES`] requests within [`WINDOW`] failed. A fault of the *request* (a 4xx) is not a fault of
//! the host: callers report it as success, since the host did answer. Time and jitter are arguments.

use std::time::{Duration, Instant};

/// Faults in a row that open it.
pub const MAX_CONSECUTIVE: u32 = 5;

/// Time over which the success rate is taken.
pub const WINDOW: Duration = Duration::from_secs(30);

/// Requests in the window below which its rate says nothing.
pub const MIN_SAMPLES: u32 = 10;

/// First time it stays open; doubles with each failed probe.
pub const MIN_OPEN: Duration = Duration::from_secs(5);

/// Longest time it stays open, before jitter.
pub const MAX_OPEN: Duration = Duration::from_secs(60);

/// Share by which jitter lengthens the open time at most, so that nodes do not all probe at once.
const JITTER: f64 = 0.25;

/// Slices of the window; an old slice is dropped whole.
const SLICES: usize = 6;

/// Length of a slice.
const SLICE: Duration = Duration::from_millis(WINDOW.as_millis() as u64 / SLICES as u64);

/// With what standing a request went out; the breaker weighs its result accordingly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The breaker was closed.
    Normal,
    /// The one request by which a half-open breaker asks.
    Probe,
    /// It went out although the breaker was open, because every other host was worse.
    Forced,
}

/// Breaker of one model on one host.
#[derive(Debug, Clone)]
pub enum CircuitBreaker {
    /// Traffic flows.
    Closed {
        /// Faults since the last success.
        consecutive: u32,
        /// Results of the last half minute.
        window: Window,
    },
    /// Nothing is sent.
    Open {
        /// When to ask again.
        until: Instant,
        /// Open time without jitter; the next one is twice as long.
        backoff: Duration,
    },
    /// One request asks whether the host is back.
    HalfOpen {
        /// That request is under way.
        probing: bool,
        /// Open time that led here.
        backoff: Duration,
    },
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self::Closed { consecutive: 0, window: Window::default() }
    }
}

impl CircuitBreaker {
    /// True when [`admit`](Self::admit) would let a request through; changes nothing.
    pub fn would_admit(&self, now: Instant) -> bool {
        match self {
            Self::Closed { .. } => true,
            Self::Open { until, .. } => now >= *until,
            Self::HalfOpen { probing, .. } => !probing,
        }
    }

    /// Asks to send. `None` = not now. A probe must end in [`record`](Self::record) or [`abandon`](Self::abandon).
    pub fn admit(&mut self, now: Instant) -> Option<Admission> {
        match self {
            Self::Closed { .. } => Some(Admission::Normal),
            Self::Open { until, backoff } if now >= *until => {
                *self = Self::HalfOpen { probing: true, backoff: *backoff };
                Some(Admission::Probe)
            }
            Self::HalfOpen { probing: probing @ false, .. } => {
                *probing = true;
                Some(Admission::Probe)
            }
            Self::Open { .. } | Self::HalfOpen { .. } => None,
        }
    }

    /// Takes in how a request ended. `jitter` is between 0 and 1 and lengthens the open time by up to a quarter.
    ///
    /// A request that went out before the breaker opened says nothing about the host now, and is passed over.
    pub fn record(&mut self, now: Instant, admission: Admission, ok: bool, jitter: f64) {
        match (&mut *self, admission) {
            (Self::Closed { consecutive, window }, _) => {
                *consecutive = if ok { 0 } else { *consecutive + 1 };
                window.record(now, ok);
                if *consecutive >= MAX_CONSECUTIVE || window.is_failing(now) {
                    self.open(now, MIN_OPEN, jitter);
                }
            }
            (Self::Open { .. } | Self::HalfOpen { .. }, Admission::Normal) => {}
            (Self::Open { .. } | Self::HalfOpen { .. }, Admission::Probe | Admission::Forced) if ok => {
                *self = Self::default();
            }
            (Self::HalfOpen { backoff, .. }, Admission::Probe) => {
                let backoff = (*backoff * 2).min(MAX_OPEN);
                self.open(now, backoff, jitter);
            }
            (Self::Open { .. } | Self::HalfOpen { .. }, Admission::Probe | Admission::Forced) => {}
        }
    }

    /// Takes back a probe that ended without a result, so that the next request may ask.
    pub fn abandon(&mut self, admission: Admission) {
        if let (Self::HalfOpen { probing, .. }, Admission::Probe) = (self, admission) {
            *probing = false;
        }
    }

    /// Returns the word used in the status page and in metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Closed { .. } => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen { .. } => "half_open",
        }
    }

    fn open(&mut self, now: Instant, backoff: Duration, jitter: f64) {
        let until = now + backoff.mul_f64(1.0 + JITTER * jitter.clamp(0.0, 1.0));
        *self = Self::Open { until, backoff };
    }
}

/// Successes and faults of the last half minute, in slices.
#[derive(Debug, Clone, Default)]
pub struct Window {
    /// Start of the newest slice.
    newest: Option<Instant>,
    /// (successes, faults), the newest first.
    slices: [(u32, u32); SLICES],
}

impl Window {
    fn record(&mut self, now: Instant, ok: bool) {
        self.advance(now);
        let (successes, faults) = &mut self.slices[0];
        if ok {
            *successes = successes.saturating_add(1);
        } else {
            *faults = faults.saturating_add(1);
        }
    }

    fn is_failing(&mut self, now: Instant) -> bool {
        self.advance(now);
        let (successes, faults) = self
            .slices
            .iter()
            .fold((0u32, 0u32), |(s, f), slice| (s.saturating_add(slice.0), f.saturating_add(slice.1)));
        successes.saturating_add(faults) >= MIN_SAMPLES && successes < faults
    }

    /// Makes the newest slice the one that holds `now`. Time that runs backwards stays in the newest.
    fn advance(&mut self, now: Instant) {
        let Some(newest) = self.newest else {
            self.newest = Some(now);
            return;
        };
        let passed = now.saturating_duration_since(newest).as_nanos() / SLICE.as_nanos();
        let shift = usize::try_from(passed).unwrap_or(usize::MAX).min(SLICES);
        if shift == 0 {
            return;
        }
        self.slices.rotate_right(shift);
        self.slices[..shift].fill((0, 0));
        self.newest = Some(if shift == SLICES { now } else { newest + SLICE * shift as u32 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    const NO_JITTER: f64 = 0.0;

    fn tripped(now: Instant) -> CircuitBreaker {
        let mut breaker = CircuitBreaker::default();
        for _ in 0..MAX_CONSECUTIVE {
            assert!(breaker.would_admit(now));
            breaker.record(now, Admission::Normal, false, NO_JITTER);
        }
        breaker
    }

    #[test]
    fn faults_in_a_row_open_it_and_a_success_between_them_does_not() {
        let now = start();
        assert!(!tripped(now).would_admit(now));
        let mut breaker = CircuitBreaker::default();
        for index in 0..9 {
            breaker.record(now, Admission::Normal, index % 4 == 3, NO_JITTER);
        }
        assert_eq!(breaker.as_str(), "closed");
    }

    #[test]
    fn a_failing_majority_opens_it_only_with_enough_samples_within_the_window() {
        let now = start();
        let run = |results: &[bool], pause: Duration| {
            let mut breaker = CircuitBreaker::default();
            for (index, ok) in results.iter().enumerate() {
                breaker.record(now + pause * index as u32, Admission::Normal, *ok, NO_JITTER);
            }
            breaker.as_str()
        };
        let mostly_failing = [false, false, true, false, false, true, false, false, true, false];
        assert_eq!(run(&mostly_failing, Duration::from_secs(1)), "open");
        assert_eq!(run(&mostly_failing[1..], Duration::from_secs(1)), "closed");
        assert_eq!(run(&mostly_failing, Duration::from_secs(6)), "closed");
        let one_in_three = [true, true, false].repeat(20);
        assert_eq!(run(&one_in_three, Duration::from_secs(1)), "closed");
    }

    #[test]
    fn half_open_admits_one_probe() {
        let now = start();
        let mut breaker = tripped(now);
        let later = now + MIN_OPEN;
        assert_eq!(breaker.admit(now), None);
        assert_eq!(breaker.admit(later), Some(Admission::Probe));
        assert_eq!(breaker.admit(later), None);
        assert!(!breaker.would_admit(later));
        breaker.abandon(Admission::Probe);
        assert_eq!(breaker.admit(later), Some(Admission::Probe));
        breaker.record(later, Admission::Probe, true, NO_JITTER);
        assert_eq!(breaker.admit(later), Some(Admission::Normal));
    }

    #[test]
    fn each_failed_probe_doubles_the_wait_up_to_a_minute() {
        let mut now = start();
        let mut breaker = tripped(now);
        for expected in [5, 10, 20, 40, 60, 60] {
            let wait = Duration::from_secs(expected);
            assert!(!breaker.would_admit(now + wait - Duration::from_millis(1)), "{expected}");
            now += wait;
            assert_eq!(breaker.admit(now), Some(Admission::Probe), "{expected}");
            breaker.record(now, Admission::Probe, false, NO_JITTER);
        }
    }

    #[test]
    fn jitter_lengthens_the_wait_by_up_to_a_quarter() {
        let now = start();
        let mut breaker = CircuitBreaker::default();
        for _ in 0..MAX_CONSECUTIVE {
            breaker.record(now, Admission::Normal, false, 1.0);
        }
        assert!(!breaker.would_admit(now + MIN_OPEN.mul_f64(1.24)));
        assert!(breaker.would_admit(now + MIN_OPEN.mul_f64(1.25)));
    }

    #[test]
    fn results_of_requests_from_before_it_opened_change_nothing() {
        let now = start();
        let mut breaker = tripped(now);
        breaker.record(now, Admission::Normal, true, NO_JITTER);
        assert_eq!(breaker.as_str(), "open");
        breaker.record(now, Admission::Forced, true, NO_JITTER);
        assert_eq!(breaker.as_str(), "closed");
    }
}
