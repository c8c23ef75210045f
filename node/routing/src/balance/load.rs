//! The book of what every upstream does at this moment, and the guard that writes into it.
//!
//! The one mutable state of the core that several tasks share. Each upstream has its own short lock around
//! arithmetic: never held across anything that waits, never two at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::balance::cell::{Cell, millis};
use crate::breaker::Admission;
use crate::ids::UpstreamId;
use crate::registry::Offer;
use crate::units::Tokens;

/// What is known of one model on one upstream, at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Requests of this node under way on the upstream, all its models together.
    pub in_flight: u32,
    /// Time to first token, milliseconds: the estimate, or what requests wait for already if that is longer.
    pub ttft_ms: Option<f64>,
    /// Time per token after the first, milliseconds.
    pub ms_per_token: Option<f64>,
    /// Since the last measurement.
    pub age: Option<Duration>,
    /// It failed just now, or asked for a pause.
    pub penalised: bool,
    /// Its breaker lets a request through.
    pub admits: bool,
    /// State of its breaker: "closed", "open", "half_open".
    pub breaker: &'static str,
}

impl Load {
    /// What is known of an upstream that was never used.
    pub const UNKNOWN: Self = Self {
        in_flight: 0,
        ttft_ms: None,
        ms_per_token: None,
        age: None,
        penalised: false,
        admits: true,
        breaker: "closed",
    };
}

#[derive(Debug)]
struct Upstream {
    /// Spreads the jitter of breakers over upstreams and, by the book's seed, over nodes.
    jitter: f64,
    state: Mutex<UpstreamState>,
}

#[derive(Debug, Default)]
struct UpstreamState {
    in_flight: u32,
    models: BTreeMap<Arc<str>, Cell>,
}

impl Upstream {
    fn lock(&self) -> MutexGuard<'_, UpstreamState> {
        // Arithmetic that cannot panic: a poisoned lock still holds valid counts.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Loads of every upstream that this node has used.
#[derive(Debug, Default)]
pub struct LoadBook {
    seed: u64,
    upstreams: RwLock<BTreeMap<UpstreamId, Arc<Upstream>>>,
}

impl LoadBook {
    /// Makes an empty book. Nodes with different seeds ask broken upstreams at different moments.
    pub fn new(seed: u64) -> Self {
        Self { seed, upstreams: RwLock::default() }
    }

    /// Counts a request as under way until the guard finishes or drops.
    pub fn started(&self, upstream: &UpstreamId, model: &Arc<str>, now: Instant) -> InFlight {
        let entry = self.upstream(upstream);
        let admission = {
            let mut state = entry.lock();
            state.in_flight += 1;
            cell(&mut state, model, now).started(now)
        };
        InFlight {
            upstream: entry,
            model: model.clone(),
            admission,
            started: now,
            first_token: None,
            last_token: now,
            tokens: 0,
            done: false,
        }
    }

    /// Keeps requests away from a model of an upstream for a time that it named itself (a 429), at most 120 s.
    pub fn penalise(&self, upstream: &UpstreamId, model: &Arc<str>, now: Instant, pause: Duration) {
        let entry = self.upstream(upstream);
        cell(&mut entry.lock(), model, now).penalise(now, pause);
    }

    /// Returns what is known of a model on an upstream.
    pub fn load(&self, upstream: &UpstreamId, model: &str, now: Instant) -> Load {
        let Some(entry) = self.known(upstream) else { return Load::UNKNOWN };
        let state = entry.lock();
        let Some(cell) = state.models.get(model) else {
            return Load { in_flight: state.in_flight, ..Load::UNKNOWN };
        };
        let waited = cell.waited_ms(now);
        let ttft_ms = match (cell.ttft.estimate_ms(), waited) {
            (Some(estimate), Some(waited)) => Some(estimate.max(waited)),
            (estimate, _) => estimate,
        };
        Load {
            in_flight: state.in_flight,
            ttft_ms,
            ms_per_token: cell.per_token.estimate_ms(),
            age: cell.ttft.age(now),
            penalised: cell.penalty_until.is_some_and(|until| now < until),
            admits: cell.breaker.would_admit(now),
            breaker: cell.breaker.as_str(),
        }
    }

    /// Returns what is known of an offer. What the device reported about other routers' requests counts too.
    pub fn of(&self, offer: &Offer, now: Instant) -> Load {
        let mut load = self.load(&offer.upstream, &offer.model.id, now);
        load.in_flight = load.in_flight.max(offer.in_flight_reported);
        load
    }

    /// Returns the requests of this node under way on an upstream.
    pub fn in_flight(&self, upstream: &UpstreamId) -> u32 {
        self.known(upstream).map_or(0, |entry| entry.lock().in_flight)
    }

    /// Drops upstreams that nobody uses and `keep` does not want, so that the book does not grow for ever.
    pub fn retain(&self, keep: impl Fn(&UpstreamId) -> bool) {
        let mut upstreams = self.upstreams.write().unwrap_or_else(PoisonError::into_inner);
        upstreams.retain(|id, entry| keep(id) || entry.lock().in_flight > 0);
    }

    fn known(&self, id: &UpstreamId) -> Option<Arc<Upstream>> {
        self.upstreams.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn upstream(&self, id: &UpstreamId) -> Arc<Upstream> {
        if let Some(entry) = self.known(id) {
            return entry;
        }
        let mut upstreams = self.upstreams.write().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Upstream { jitter: jitter(self.seed, id), state: Mutex::default() });
        upstreams.entry(id.clone()).or_insert_with(new).clone()
    }
}

fn cell<'a>(state: &'a mut UpstreamState, model: &Arc<str>, now: Instant) -> &'a mut Cell {
    if !state.models.contains_key(model) {
        state.models.insert(model.clone(), Cell::new(now));
    }
    state.models.get_mut(model).expect("the line above inserted it")
}

/// Maps a seed and a name to a number between 0 and 1 (FNV-1a: spread is wanted, not secrecy).
fn jitter(seed: u64, id: &UpstreamId) -> f64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ seed;
    for byte in id.kind().bytes().chain(id.name().bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    (hash >> 40) as f64 / (1u64 << 24) as f64
}

/// One request under way on an upstream.
///
/// Feed it the tokens as they pass; end it with [`finish`](Self::finish). Dropped without that (the client went
/// away), it only frees its slot: a cancelled request says nothing about the host.
#[derive(Debug)]
pub struct InFlight {
    upstream: Arc<Upstream>,
    model: Arc<str>,
    admission: Admission,
    started: Instant,
    first_token: Option<Instant>,
    last_token: Instant,
    tokens: u32,
    done: bool,
}

impl InFlight {
    /// Notes the first token: its time counts at once. Later calls are passed over.
    pub fn first_token(&mut self, now: Instant) {
        if self.first_token.is_some() {
            return;
        }
        self.first_token = Some(now);
        self.last_token = now;
        let started = self.started;
        self.with_cell(|cell, _| cell.first_token(started, now));
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
        let started = self.started;
        let per_token_ms = millis(now.saturating_duration_since(started)) / f64::from(tokens.0.max(1));
        self.with_cell(|cell, _| cell.whole_answer(started, now, per_token_ms));
    }

    /// Ends the request. `ok` = the upstream did its part; a fault of the request itself (a 4xx) is `ok` too.
    pub fn finish(mut self, now: Instant, ok: bool) {
        let per_token = self
            .first_token
            .filter(|_| self.tokens > 0)
            .map(|first| millis(self.last_token.saturating_duration_since(first)) / f64::from(self.tokens));
        let admission = self.admission;
        self.with_cell(|cell, jitter| {
            if let (true, Some(sample)) = (ok, per_token) {
                cell.per_token.observe(now, sample);
            }
            cell.finished(now, admission, ok, jitter);
        });
        self.done = true;
    }

    /// Returns the time from the start to the first token.
    pub fn ttft(&self) -> Option<Duration> {
        self.first_token.map(|first| first.saturating_duration_since(self.started))
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
        if let Some(cell) = state.models.get_mut(&self.model) {
            cell.in_flight = cell.in_flight.saturating_sub(1);
            if self.first_token.is_none() {
                cell.stop_waiting(self.started);
            }
            if !self.done {
                cell.breaker.abandon(self.admission);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn device(name: &str) -> UpstreamId {
        UpstreamId::Device(name.into())
    }

    #[test]
    fn a_finished_request_leaves_its_times_and_frees_its_slot() {
        let (book, now, a, model) = (LoadBook::default(), start(), device("a"), Arc::from("m"));
        let mut guard = book.started(&a, &model, now);
        assert_eq!(book.in_flight(&a), 1);
        for step in 0..=10 {
            guard.token(now + ms(200 + 30 * step));
        }
        assert_eq!(guard.ttft(), Some(ms(200)));
        guard.finish(now + ms(600), true);
        let load = book.load(&a, &model, now + ms(700));
        assert_eq!((load.in_flight, load.ttft_ms, load.age), (0, Some(200.0), Some(ms(500))));
        assert!((load.ms_per_token.unwrap() - 30.0).abs() < 1e-9);
        assert!(!load.penalised && load.admits);
    }

    #[test]
    fn an_answer_in_one_piece_does_not_pass_for_a_slow_first_token() {
        let (book, now, a, model) = (LoadBook::default(), start(), device("a"), Arc::from("m"));
        let whole = |at: Instant| {
            let mut guard = book.started(&a, &model, at);
            guard.whole_answer(at + ms(5_000), Tokens(100));
            guard.finish(at + ms(5_000), true);
            book.load(&a, "m", at + ms(5_000))
        };
        let unknown_before = whole(now);
        assert_eq!((unknown_before.ttft_ms, unknown_before.ms_per_token), (Some(50.0), Some(50.0)));
        let mut streamed = book.started(&a, &model, now + ms(6_000));
        streamed.token(now + ms(6_300));
        drop(streamed);
        assert_eq!(whole(now + ms(7_000)).ttft_ms, Some(300.0));
    }

    #[test]
    fn a_cancelled_stream_is_load_until_it_drops_and_says_nothing_of_the_host() {
        let (book, now, a, model) = (LoadBook::default(), start(), device("a"), Arc::from("m"));
        let guards: Vec<_> = (0..3).map(|_| book.started(&a, &model, now)).collect();
        assert_eq!(book.load(&a, "m", now).in_flight, 3);
        drop(guards);
        assert_eq!(book.load(&a, "m", now), Load::UNKNOWN);
    }

    #[test]
    fn slots_are_shared_by_all_models_of_an_upstream() {
        let (book, now, a) = (LoadBook::default(), start(), device("a"));
        let _one = book.started(&a, &Arc::from("m1"), now);
        let _two = book.started(&a, &Arc::from("m2"), now);
        assert_eq!(book.load(&a, "m1", now).in_flight, 2);
        assert_eq!(book.load(&a, "m3", now).in_flight, 2);
        assert_eq!(book.in_flight(&device("b")), 0);
    }

    #[test]
    fn a_host_that_hangs_looks_slower_while_it_hangs() {
        let (book, now, a, model) = (LoadBook::default(), start(), device("a"), Arc::from("m"));
        let mut guard = book.started(&a, &model, now);
        guard.first_token(now + ms(100));
        guard.finish(now + ms(100), true);
        let hanging = book.started(&a, &model, now + ms(1_000));
        assert_eq!(book.load(&a, "m", now + ms(1_050)).ttft_ms, Some(100.0));
        let waited = book.load(&a, "m", now + ms(6_000)).ttft_ms.unwrap();
        assert!((waited - 5_000.0).abs() < 1.0, "{waited}");
        drop(hanging);
        assert_eq!(book.load(&a, "m", now + ms(6_000)).ttft_ms, Some(100.0));
    }

    #[test]
    fn failures_keep_traffic_away_longer_each_time_and_a_success_forgives() {
        let (book, mut now, a, model) = (LoadBook::default(), start(), device("a"), Arc::from("m"));
        for seconds in [1, 2, 4] {
            book.started(&a, &model, now).finish(now, false);
            assert!(book.load(&a, "m", now + ms(1_000 * seconds - 1)).penalised, "{seconds}");
            now += ms(1_000 * seconds);
            assert!(!book.load(&a, "m", now).penalised, "{seconds}");
        }
        book.started(&a, &model, now).finish(now, true);
        book.started(&a, &model, now).finish(now, false);
        assert!(!book.load(&a, "m", now + ms(1_000)).penalised);
    }

    #[test]
    fn requests_that_fail_together_count_as_one_failure() {
        let (book, now, a, model) = (LoadBook::default(), start(), device("a"), Arc::from("m"));
        let together: Vec<_> = (0..4).map(|_| book.started(&a, &model, now)).collect();
        for guard in together {
            guard.finish(now + ms(10), false);
        }
        assert!(book.load(&a, "m", now + ms(1_009)).penalised);
        assert!(!book.load(&a, "m", now + ms(1_010)).penalised);
    }

    #[test]
    fn a_named_pause_is_kept_up_to_two_minutes() {
        let (book, now, a, model) = (LoadBook::default(), start(), device("a"), Arc::from("m"));
        book.penalise(&a, &model, now, ms(600_000));
        assert!(book.load(&a, "m", now + ms(119_999)).penalised);
        assert!(!book.load(&a, "m", now + ms(120_000)).penalised);
    }

    #[test]
    fn a_dropped_probe_lets_the_next_one_through() {
        let (book, now, a, model) = (LoadBook::default(), start(), device("a"), Arc::from("m"));
        for _ in 0..5 {
            book.started(&a, &model, now).finish(now, false);
        }
        assert!(!book.load(&a, "m", now).admits);
        let later = now + ms(10_000);
        let probe = book.started(&a, &model, later);
        assert!(!book.load(&a, "m", later).admits);
        drop(probe);
        assert!(book.load(&a, "m", later).admits);
    }

    #[test]
    fn upstreams_in_use_are_never_dropped_from_the_book() {
        let (book, now, model) = (LoadBook::default(), start(), Arc::from("m"));
        let held = book.started(&device("a"), &model, now);
        drop(book.started(&device("b"), &model, now));
        book.retain(|_| false);
        assert_eq!(book.in_flight(&device("a")), 1);
        drop(held);
        assert_eq!(book.in_flight(&device("a")), 0);
    }

    #[test]
    fn nodes_and_upstreams_differ_in_jitter() {
        let jitters: Vec<f64> =
            (0..4).flat_map(|seed| ["a", "b"].map(|name| jitter(seed, &device(name)))).collect();
        assert!(jitters.iter().all(|j| (0.0..1.0).contains(j)));
        assert!(jitters.iter().enumerate().all(|(i, j)| !jitters[..i].contains(j)), "{jitters:?}");
    }
}
