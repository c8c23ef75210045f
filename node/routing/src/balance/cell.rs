//! What is known of one model on one host. Plain arithmetic; the lock around it is in `load`.

use std::time::{Duration, Instant};

use crate::balance::concurrency::ConcurrencyLimit;
use crate::balance::ewma::PeakEwma;
use crate::balance::length::Kind;
use crate::balance::prefix::{Held, Prefix, Saving};
use crate::balance::trend::Trend;
use crate::breaker::{Admission, CircuitBreaker};
use crate::units::Tokens;

/// Time constant of the time to first token: some requests' worth on a phone.
const TTFT_DECAY: Duration = Duration::from_secs(15);

/// Time constant of the time per token, which changes less.
const PER_TOKEN_DECAY: Duration = Duration::from_secs(30);

/// First time that a host which failed attracts nothing; doubles with each further failure.
const MIN_PENALTY: Duration = Duration::from_secs(1);

/// Longest penalty of failures.
const MAX_PENALTY: Duration = Duration::from_secs(30);

/// Company on a host whose cost is told by samples that lie this far apart, squared, and what another request is
/// taken to add to the time per token before that: batches are cheap, but not free.
const COMPANY_SPREAD: f64 = 0.5;
const COMPANY_COST: f64 = 0.1;

/// Weight of one ending in the share of failures.
const FAILING_WEIGHT: f64 = 0.1;

/// Gaps between tokens below which an answer says little of the time per token.
const MIN_GAPS: u32 = 4;

/// What a request is expected to bring its host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    /// Tokens of its prompt that are to be read; 0 = not known.
    pub(super) prompt: Tokens,
    /// Time to its first token, queue and all, milliseconds; 0 = not known.
    pub(super) first_ms: f64,
    /// Time per token after it, milliseconds; 0 = not known.
    pub(super) token_ms: f64,
}

/// How a request's first token came about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start {
    pub(super) at: Instant,
    pub(super) expected: Expected,
    /// Tokens to read before its first: its own prompt and those read beside it; `None` when the time also holds a
    /// wait for a slot or a model, or the length is not known.
    pub(super) read_tokens: Option<f64>,
    /// Other requests on the host.
    pub(super) others: u32,
    /// How its prompt begins, and what the time to its first token tells of what the host held of that.
    pub(super) prefix: Prefix,
    pub(super) saving: Option<Saving>,
    /// What its answer's length is counted under; `None` when nothing is known of the request.
    pub(super) kind: Option<Kind>,
}

impl Start {
    /// The start of a request of which nothing is known.
    pub(super) fn unknown(at: Instant) -> Self {
        let expected = Expected { prompt: Tokens(0), first_ms: 0.0, token_ms: 0.0 };
        Self { at, expected, read_tokens: None, others: 0, prefix: Prefix::UNKNOWN, saving: None, kind: None }
    }
}

/// State of one model on one host.
#[derive(Debug)]
pub(super) struct Cell {
    /// Requests under way.
    pub(super) in_flight: u32,
    /// Of those, the ones without a first token, and the sum of their starts in seconds after `anchor`.
    pub(super) waiting: u32,
    waiting_since_s: f64,
    /// Sums over the same: their prompts, and the times to a first token that they were expected to take.
    pub(super) waiting_tokens: f64,
    waiting_expected_ms: f64,
    anchor: Instant,
    pub(super) ttft: PeakEwma,
    pub(super) per_token: PeakEwma,
    /// Time to first token by prompt tokens, of requests that found a slot.
    pub(super) prefill: Trend,
    /// Time per token by other requests on the host.
    pub(super) decode: Trend,
    pub(super) limit: ConcurrencyLimit,
    /// Beginnings of prompts that it read lately.
    pub(super) held: Held,
    /// Share of requests that failed lately.
    pub(super) failing: f64,
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
            waiting_tokens: 0.0,
            waiting_expected_ms: 0.0,
            anchor: now,
            ttft: PeakEwma::new(TTFT_DECAY),
            per_token: PeakEwma::new(PER_TOKEN_DECAY),
            prefill: Trend::through_zero(),
            decode: Trend::level(COMPANY_SPREAD, COMPANY_COST),
            limit: ConcurrencyLimit::default(),
            held: Held::default(),
            failing: 0.0,
            failures_in_a_row: 0,
            penalty_until: None,
            breaker: CircuitBreaker::default(),
        }
    }

    pub(super) fn started(&mut self, now: Instant, expected: Expected) -> Admission {
        self.in_flight += 1;
        self.waiting += 1;
        self.waiting_since_s += self.seconds(now);
        self.waiting_tokens += f64::from(expected.prompt.0);
        self.waiting_expected_ms += expected.first_ms;
        self.breaker.admit(now).unwrap_or(Admission::Forced)
    }

    pub(super) fn first_token(&mut self, start: &Start, now: Instant) {
        self.stop_waiting(start);
        let took_ms = millis(now.saturating_duration_since(start.at));
        self.ttft.observe(now, took_ms);
        if let Some(tokens) = start.read_tokens {
            self.prefill.observe(now, tokens, took_ms);
        }
        if let Some(saving) = start.saving {
            self.held.learn(saving, took_ms);
        }
        self.held.read(&start.prefix, now);
    }

    /// Takes in an answer that came in one piece, of so many tokens. What reading and writing took of its time nobody saw,
    /// but it tells whether the host is as quick as was thought.
    pub(super) fn whole_answer(&mut self, start: &Start, now: Instant, tokens: u32) {
        self.stop_waiting(start);
        let took_ms = millis(now.saturating_duration_since(start.at));
        let per_token_ms = took_ms / f64::from(tokens.max(1));
        self.per_token.observe(now, per_token_ms);
        let Expected { first_ms, token_ms, .. } = start.expected;
        if tokens >= MIN_GAPS && start.read_tokens.is_some() && token_ms > 0.0 {
            let ratio = took_ms / (first_ms + token_ms * f64::from(tokens - 1));
            self.prefill.drifted(now, ratio);
            self.decode.drifted(now, ratio);
        }
        self.held.read(&start.prefix, now);
        // Confirms what is known, so that it does not grow stale.
        self.ttft.observe(now, self.ttft.estimate_ms().unwrap_or(per_token_ms));
    }

    /// Takes in the mean time between the tokens of a streamed answer.
    pub(super) fn tokens(&mut self, start: &Start, now: Instant, gaps: u32, per_token_ms: f64) {
        self.per_token.observe(now, per_token_ms);
        if gaps >= MIN_GAPS {
            // The company changed while it ran: the mean of both ends stands for the time between.
            let others = f64::midpoint(f64::from(start.others), f64::from(self.in_flight.saturating_sub(1)));
            self.decode.observe(now, others, per_token_ms);
            self.limit.observe(Duration::from_secs_f64(per_token_ms / 1e3), self.in_flight);
        }
    }

    pub(super) fn stop_waiting(&mut self, start: &Start) {
        self.waiting = self.waiting.saturating_sub(1);
        self.waiting_since_s -= self.seconds(start.at);
        self.waiting_tokens -= f64::from(start.expected.prompt.0);
        self.waiting_expected_ms -= start.expected.first_ms;
        if self.waiting == 0 {
            // Drops the rounding that differences of large sums leave behind.
            (self.waiting_since_s, self.waiting_tokens, self.waiting_expected_ms) = (0.0, 0.0, 0.0);
        }
    }

    pub(super) fn finished(&mut self, now: Instant, admission: Admission, ok: bool, jitter: f64) {
        self.breaker.record(now, admission, ok, jitter);
        self.failing += FAILING_WEIGHT * (f64::from(u8::from(!ok)) - self.failing);
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

    /// Takes in that a request was taken away since the host fell silent. That ends all that are under way at once, and is
    /// one fault: a radio that slept for some seconds must not open the breaker.
    pub(super) fn fell_silent(&mut self, now: Instant, admission: Admission, jitter: f64) {
        let is_first = self.penalty_until.is_none_or(|until| now >= until);
        if is_first || admission == Admission::Probe {
            self.finished(now, admission, false, jitter);
        }
    }

    /// Returns the mean time that requests without a first token have waited, milliseconds.
    pub(super) fn waited_ms(&self, now: Instant) -> Option<f64> {
        (self.waiting > 0)
            .then(|| (self.seconds(now) - self.waiting_since_s / f64::from(self.waiting)).max(0.0) * 1e3)
    }

    /// Returns by how much the requests without a first token are late on average, milliseconds: a host that hangs.
    pub(super) fn overdue_ms(&self, now: Instant) -> f64 {
        let waited = self.waited_ms(now).unwrap_or(0.0);
        (waited - self.waiting_expected_ms / f64::from(self.waiting.max(1))).max(0.0)
    }

    fn seconds(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.anchor).as_secs_f64()
    }
}

pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
