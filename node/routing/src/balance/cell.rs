//! What is known of one model on one host. Plain arithmetic; the lock around it is in `load`.

use std::time::{Duration, Instant};

use crate::balance::ewma::PeakEwma;
use crate::breaker::{Admission, CircuitBreaker};

/// Time constant of the time to first token: some requests' worth on a phone.
const TTFT_DECAY: Duration = Duration::from_secs(15);

/// Time constant of the time per token, which changes less.
const PER_TOKEN_DECAY: Duration = Duration::from_secs(30);

/// First time that a host which failed attracts nothing; doubles with each further failure.
const MIN_PENALTY: Duration = Duration::from_secs(1);

/// Longest penalty of failures, and of a host that names a time itself.
const MAX_PENALTY: Duration = Duration::from_secs(30);
const MAX_NAMED_PENALTY: Duration = Duration::from_secs(120);

/// State of one model on one host.
#[derive(Debug)]
pub(super) struct Cell {
    /// Requests under way.
    pub(super) in_flight: u32,
    /// Of those, the ones without a first token, and the sum of their starts in seconds after `anchor`.
    waiting: u32,
    waiting_since_s: f64,
    anchor: Instant,
    pub(super) ttft: PeakEwma,
    pub(super) per_token: PeakEwma,
    failures_in_a_row: u32,
    pub(super) penalty_until: Option<Instant>,
    pub(super) breaker: CircuitBreaker,
}

impl Cell {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            in_flight: 0,
            waiting: 0,
            waiting_since_s: 0.0,
            anchor: now,
            ttft: PeakEwma::new(TTFT_DECAY),
            per_token: PeakEwma::new(PER_TOKEN_DECAY),
            failures_in_a_row: 0,
            penalty_until: None,
            breaker: CircuitBreaker::default(),
        }
    }

    pub(super) fn started(&mut self, now: Instant) -> Admission {
        self.in_flight += 1;
        self.waiting += 1;
        self.waiting_since_s += self.seconds(now);
        self.breaker.admit(now).unwrap_or(Admission::Forced)
    }

    pub(super) fn first_token(&mut self, started: Instant, now: Instant) {
        self.stop_waiting(started);
        self.ttft.observe(now, millis(now.saturating_duration_since(started)));
    }

    pub(super) fn whole_answer(&mut self, started: Instant, now: Instant, per_token_ms: f64) {
        self.stop_waiting(started);
        self.per_token.observe(now, per_token_ms);
        // Confirms what is known, so that it does not grow stale.
        self.ttft.observe(now, self.ttft.estimate_ms().unwrap_or(per_token_ms));
    }

    pub(super) fn stop_waiting(&mut self, started: Instant) {
        self.waiting = self.waiting.saturating_sub(1);
        self.waiting_since_s -= self.seconds(started);
        if self.waiting == 0 {
            // Drops the rounding that differences of large sums leave behind.
            self.waiting_since_s = 0.0;
        }
    }

    pub(super) fn finished(&mut self, now: Instant, admission: Admission, ok: bool, jitter: f64) {
        self.breaker.record(now, admission, ok, jitter);
        if ok {
            self.failures_in_a_row = 0;
            self.penalty_until = None;
        } else if self.penalty_until.is_none_or(|until| now >= until) {
            // Failures of requests that were already under way when the penalty began do not lengthen it.
            let doublings = self.failures_in_a_row.min(5);
            self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
            self.penalty_until = Some(now + (MIN_PENALTY * 2u32.pow(doublings)).min(MAX_PENALTY));
        }
    }

    pub(super) fn penalise(&mut self, now: Instant, pause: Duration) {
        let until = now + pause.min(MAX_NAMED_PENALTY);
        self.penalty_until = Some(self.penalty_until.map_or(until, |known| known.max(until)));
    }

    /// Returns the mean time that requests without a first token have waited, milliseconds.
    pub(super) fn waited_ms(&self, now: Instant) -> Option<f64> {
        (self.waiting > 0)
            .then(|| (self.seconds(now) - self.waiting_since_s / f64::from(self.waiting)).max(0.0) * 1e3)
    }

    fn seconds(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.anchor).as_secs_f64()
    }
}

pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
