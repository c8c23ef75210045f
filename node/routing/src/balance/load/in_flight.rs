//! A request under way: it measures its host as it goes, and gives its slot back when it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Upstream;
use crate::balance::cell::{Cell, Start, millis};
use crate::balance::forecast::Work;
use crate::breaker::Admission;
use crate::registry::Offer;
use crate::units::Tokens;

/// One request under way on an upstream.
///
/// Feed it the tokens as they pass; end it with [`finish`](Self::finish). Dropped without that (the client went
/// away), it only frees its slot: a cancelled request says nothing about the host.
#[derive(Debug)]
pub struct InFlight {
    upstream: Arc<Upstream>,
    model: Arc<str>,
    admission: Admission,
    start: Start,
    reservation: u64,
    first_token: Option<Instant>,
    last_token: Instant,
    tokens: u32,
    /// Tokens of the answer, once it is whole.
    answered: Option<Tokens>,
    sent: bool,
    silent: bool,
    done: bool,
}

impl InFlight {
    pub(super) fn new(
        upstream: Arc<Upstream>,
        model: Arc<str>,
        admission: Admission,
        start: Start,
        reservation: u64,
        sent: bool,
    ) -> Self {
        Self {
            upstream,
            model,
            admission,
            start,
            reservation,
            first_token: None,
            last_token: start.at,
            tokens: 0,
            answered: None,
            sent,
            silent: false,
            done: false,
        }
    }

    /// Notes that the wait for a slot is over: from here on the host is measured.
    pub fn sent(&mut self, offer: &Offer, work: Work, now: Instant) {
        if self.sent {
            return;
        }
        let output = self.upstream.expected_output(offer, &work);
        let mut state = self.upstream.lock();
        state.reservations.remove(self.reservation);
        state.queued = state.queued.saturating_sub(1);
        state.in_flight = state.in_flight.saturating_sub(1);
        let place = state.place(offer, &work, output, now);
        (self.admission, self.start, self.reservation) = state.admit(&self.model, place, now);
        self.last_token = now;
        self.sent = true;
    }

    /// Notes the first token: its time counts at once. Later calls are passed over.
    pub fn first_token(&mut self, now: Instant) {
        if self.first_token.is_some() {
            return;
        }
        self.first_token = Some(now);
        self.last_token = now;
        let start = self.start;
        self.with_cell(|cell, _| cell.first_token(&start, now));
    }

    /// Notes a token; the first one counts as [`first_token`](Self::first_token). Takes no lock after that.
    pub fn token(&mut self, now: Instant) {
        if self.first_token.is_none() {
            self.first_token(now);
        } else {
            self.tokens = self.tokens.saturating_add(1);
            self.last_token = now;
        }
    }

    /// Notes an answer that came in one piece. Its time is spread over its tokens; what is known of the time to
    /// first token stays, since nobody saw one.
    pub fn whole_answer(&mut self, now: Instant, tokens: Tokens) {
        if self.first_token.is_some() {
            return;
        }
        self.first_token = Some(now);
        self.answered(tokens);
        let start = self.start;
        self.with_cell(|cell, _| cell.whole_answer(&start, now, tokens.0));
    }

    /// Notes that the host fell silent: if the request fails now, so do all others there, by one fault.
    pub fn host_is_silent(&mut self) {
        self.silent = true;
    }

    /// Notes that the answer is whole, and its length: what is expected of the model's next ones. Pieces of a stream may
    /// hold several tokens each, and an answer that was broken off, or given up, says nothing of lengths.
    pub fn answered(&mut self, tokens: Tokens) {
        self.answered = Some(tokens).filter(|tokens| tokens.0 > 0);
    }

    /// Ends the request. `ok` = the upstream did its part; a fault of the request itself (a 4xx) is `ok` too.
    pub fn finish(mut self, now: Instant, ok: bool) {
        let per_token = self
            .first_token
            .filter(|_| self.tokens > 0)
            .map(|first| millis(self.last_token.saturating_duration_since(first)) / f64::from(self.tokens));
        let (admission, start, gaps, silent) = (self.admission, self.start, self.tokens, self.silent);
        self.with_cell(|cell, jitter| {
            if let (true, Some(sample)) = (ok, per_token) {
                cell.tokens(&start, now, gaps, sample);
            }
            if silent && !ok {
                cell.fell_silent(now, admission, jitter);
            } else {
                cell.finished(now, admission, ok, jitter);
            }
        });
        if let (true, Some(kind), Some(tokens)) = (ok, self.start.kind, self.answered) {
            self.upstream.lengths().record(&self.model, kind, tokens);
        }
        self.done = true;
    }

    /// Returns the time from the start to the first token.
    pub fn ttft(&self) -> Option<Duration> {
        self.first_token.map(|first| first.saturating_duration_since(self.start.at))
    }

    fn with_cell(&self, change: impl FnOnce(&mut Cell, f64)) {
        if let Some(cell) = self.upstream.lock().models.get_mut(&self.model) {
            change(cell, self.upstream.jitter);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.upstream.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        state.reservations.remove(self.reservation);
        if !self.sent {
            state.queued = state.queued.saturating_sub(1);
        } else if let Some(cell) = state.models.get_mut(&self.model) {
            cell.in_flight = cell.in_flight.saturating_sub(1);
            if self.first_token.is_none() {
                cell.stop_waiting(&self.start);
            }
            if !self.done {
                cell.breaker.abandon(self.admission);
            }
        }
        if self.sent && self.done && self.first_token.is_some() {
            // It ran there and is done: a slot is free, whatever the host said before.
            state.full = None;
        }
        drop(state);
        self.upstream.has_freed();
    }
}
