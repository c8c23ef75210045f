//! The book of what every upstream does at this moment; the guard that writes into it is in `in_flight`.
//!
//! The one mutable state of the core that several tasks share. Each upstream has its own short lock around
//! arithmetic: never held across anything that waits, never two at once.

mod in_flight;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

pub use self::in_flight::InFlight;
use crate::balance::cell::{Cell, Expected, Start};
use crate::balance::concurrency;
use crate::balance::forecast::{Forecast, Work};
use crate::balance::length::{Kind, Lengths};
use crate::balance::prefix::{Prefix, Saving};
use crate::balance::reserve::Reservations;
use crate::balance::trend::Straight;
use crate::breaker::Admission;
use crate::ids::UpstreamId;
use crate::registry::Offer;
use crate::units::Tokens;

/// Longest forecast that is kept as a reservation, milliseconds: an hour.
const MAX_FORECAST_MS: f64 = 3.6e6;

/// How long a host that refused for want of slots is taken to be full, unless it reports: a short answer's length.
const FULL_FOR: Duration = Duration::from_secs(1);

/// Tokens of a prompt that a cache is expected to save, from which on its time is not one of reading.
const CACHED_AT_ALL: f64 = 1.0;

/// Longest pause that a host can ask for.
const MAX_PAUSE: Duration = Duration::from_secs(120);

/// What is known of one model on one upstream, at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Requests on the upstream, all its models together: this node's, and others' as far as it told.
    pub in_flight: u32,
    /// Of those, this node's requests for the model that wait for their first token, and the tokens of their prompts.
    pub waiting: u32,
    /// See [`waiting`](Self::waiting).
    pub pending_tokens: f64,
    /// By how much those are late on average, milliseconds.
    pub overdue_ms: f64,
    /// Requests that must end before another begins; 0 = a slot is free, or its slots are not known.
    pub ahead: u32,
    /// Time until they have ended, milliseconds; `None` when none of them is ours.
    pub wait_ms: Option<f64>,
    /// Time to first token, milliseconds: the estimate, or what requests wait for already if that is longer.
    pub ttft_ms: Option<f64>,
    /// Time per token after the first, milliseconds.
    pub ms_per_token: Option<f64>,
    /// Time to first token by tokens to read, milliseconds, of requests that found a slot.
    pub prefill: Option<Straight>,
    /// Time per token by other requests on the upstream, milliseconds.
    pub decode: Option<Straight>,
    /// Tokens at the beginning of the prompt that are expected not to be read again; 0 unless read for a request.
    pub cached_tokens: f64,
    /// Tokens of the answer to expect; `None` unless read for a request.
    pub output: Option<f64>,
    /// Requests that it was found to take at once; what it says itself counts more.
    pub limit: u32,
    /// Share of requests that failed lately, 0 to 1.
    pub failing: f64,
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
        waiting: 0,
        pending_tokens: 0.0,
        overdue_ms: 0.0,
        ahead: 0,
        wait_ms: None,
        ttft_ms: None,
        ms_per_token: None,
        prefill: None,
        decode: None,
        cached_tokens: 0.0,
        output: None,
        limit: concurrency::INITIAL as u32,
        failing: 0.0,
        age: None,
        penalised: false,
        admits: true,
        breaker: "closed",
    };
}

/// Called when an upstream has a request less, after its lock was released.
type Freed = Box<dyn Fn(&UpstreamId) + Send + Sync>;

struct Upstream {
    id: UpstreamId,
    freed: Arc<OnceLock<Freed>>,
    /// Spreads the jitter of breakers over upstreams and, by the book's seed, over nodes.
    jitter: f64,
    /// Lengths of answers, of all upstreams together: a model is as long-winded everywhere.
    lengths: Arc<Mutex<Lengths>>,
    state: Mutex<UpstreamState>,
}

#[derive(Debug, Default)]
struct UpstreamState {
    /// Requests of this node, and those of them that wait here for a slot.
    in_flight: u32,
    queued: u32,
    reservations: Reservations,
    /// What it said last, and this node's part in that.
    report: Option<Report>,
    /// It refused a request because its slots, so many, are taken; believed until this moment or its next report.
    full: Option<(Instant, u32)>,
    /// It asked for a pause: all its models share its account, or its slots.
    pause_until: Option<Instant>,
    models: BTreeMap<Arc<str>, Cell>,
}

/// What a request finds on its host.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    /// Tokens of the prompt that are to be read, and all of it by its beginnings.
    prompt: Tokens,
    prefix: Prefix,
    saving: Option<Saving>,
    kind: Option<Kind>,
    first_ms: f64,
    token_ms: f64,
    total_ms: f64,
    read_tokens: Option<f64>,
    others: u32,
}

impl Place {
    fn ends(self, now: Instant) -> Instant {
        now + Duration::from_secs_f64(self.total_ms.clamp(0.0, MAX_FORECAST_MS) / 1e3)
    }
}

#[derive(Debug, Clone, Copy)]
struct Report {
    version: (u64, u64),
    requests: u32,
    of_this_node: u32,
}

impl UpstreamState {
    /// Requests on the upstream, with those of other routers by its last report.
    fn requests(&self, now: Instant) -> u32 {
        let others = self.report.map_or(0, |report| report.requests.saturating_sub(report.of_this_node));
        let known = self.in_flight.saturating_add(others);
        match self.full {
            Some((until, slots)) if now < until => known.max(slots.saturating_add(self.queued)),
            _ => known,
        }
    }

    fn load(&self, model: &str, now: Instant) -> Load {
        let mut load = Load {
            in_flight: self.requests(now),
            penalised: self.pause_until.is_some_and(|until| now < until),
            ..Load::UNKNOWN
        };
        let Some(cell) = self.models.get(model) else { return load };
        load.ttft_ms = match (cell.ttft.estimate_ms(), cell.waited_ms(now)) {
            (Some(estimate), Some(waited)) => Some(estimate.max(waited)),
            (estimate, _) => estimate,
        };
        Load {
            waiting: cell.waiting,
            pending_tokens: cell.waiting_tokens,
            overdue_ms: cell.overdue_ms(now),
            ms_per_token: cell.per_token.estimate_ms(),
            prefill: cell.prefill.read(now),
            decode: cell.decode.read(now),
            limit: cell.limit.requests(),
            failing: cell.failing,
            age: cell.ttft.age(now),
            penalised: load.penalised || cell.penalty_until.is_some_and(|until| now < until),
            admits: cell.breaker.would_admit(now),
            breaker: cell.breaker.as_str(),
            ..load
        }
    }

    /// What a request finds that is sent to an offer now; `output` is the length of answer to expect.
    fn place(&self, offer: &Offer, work: &Work, output: Option<f64>, now: Instant) -> Place {
        let load = Load { output, ..self.load_for(offer, work, now) };
        let forecast = Forecast::of(*work, offer, &load).unwrap_or_default();
        let at_once = load.ahead == 0 && offer.resident != Some(false) && work.prompt.0 > 0;
        let whole = f64::from(work.prompt.0) + load.pending_tokens;
        let held = self.models.get(&offer.model.id).map_or(0.0, |cell| cell.held.longest(&work.prefix, now));
        let saving = |line: Straight| Saving { whole_ms: line.at(whole), rest_ms: line.at(whole - held) };
        Place {
            prompt: Tokens((f64::from(work.prompt.0) - load.cached_tokens).max(0.0) as u32),
            prefix: work.prefix,
            saving: load.prefill.filter(|_| at_once && held > 0.0).map(saving),
            kind: (work.output.0 > 0).then_some(Kind { task: work.task, most: work.most }),
            first_ms: forecast.queue_ms + forecast.load_ms + forecast.prefill_ms,
            token_ms: forecast.decode_ms / f64::from(work.output.0.max(1)),
            total_ms: forecast.total_ms(),
            // What a cache saves says nothing of how fast the host reads.
            read_tokens: (at_once && load.cached_tokens < CACHED_AT_ALL).then_some(whole),
            others: load.in_flight,
        }
    }

    /// Counts a request that is sent.
    fn admit(&mut self, model: &Arc<str>, place: Place, now: Instant) -> (Admission, Start, u64) {
        let others = place.others.max(self.in_flight);
        self.in_flight += 1;
        let reservation = self.reservations.add(now, place.ends(now));
        let expected = Expected { prompt: place.prompt, first_ms: place.first_ms, token_ms: place.token_ms };
        let Place { read_tokens, prefix, saving, kind, .. } = place;
        let start = Start { at: now, expected, read_tokens, others, prefix, saving, kind };
        (cell(self, model, now).started(now, expected), start, reservation)
    }

    /// The same for a request: what of its prompt the host has read before.
    fn load_for(&self, offer: &Offer, work: &Work, now: Instant) -> Load {
        let held = |cell: &Cell| cell.held.worth() * cell.held.longest(&work.prefix, now);
        Load { cached_tokens: self.models.get(&offer.model.id).map_or(0.0, held), ..self.load_of(offer, now) }
    }

    /// Adds what the offer says to what is known of its upstream.
    fn load_of(&self, offer: &Offer, now: Instant) -> Load {
        let mut load = self.load(&offer.model.id, now);
        if self.report.is_none() {
            load.in_flight = load.in_flight.max(offer.requests_reported());
        }
        if offer.slots > 0 {
            load.ahead = (load.in_flight + 1).saturating_sub(offer.slots);
            load.wait_ms = self.reservations.wait_ms(load.ahead, load.in_flight, now);
        }
        load
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("id", &self.id).field("state", &self.state).finish_non_exhaustive()
    }
}

impl Upstream {
    fn has_freed(&self) {
        if let Some(freed) = self.freed.get() {
            freed(&self.id);
        }
    }

    fn lengths(&self) -> MutexGuard<'_, Lengths> {
        self.lengths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expected_output(&self, offer: &Offer, work: &Work) -> Option<f64> {
        expected_output(&self.lengths, offer, work)
    }

    fn lock(&self) -> MutexGuard<'_, UpstreamState> {
        // Arithmetic that cannot panic: a poisoned lock still holds valid counts.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Loads of every upstream that this node has used.
#[derive(Default)]
pub struct LoadBook {
    seed: u64,
    upstreams: RwLock<BTreeMap<UpstreamId, Arc<Upstream>>>,
    freed: Arc<OnceLock<Freed>>,
    lengths: Arc<Mutex<Lengths>>,
}

impl fmt::Debug for LoadBook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadBook")
            .field("seed", &self.seed)
            .field("upstreams", &self.upstreams)
            .finish_non_exhaustive()
    }
}

impl LoadBook {
    /// Makes an empty book. Nodes with different seeds ask broken upstreams at different moments.
    pub fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// Says whom to tell when an upstream has a request less, so that who waits for it can go on. The first one named
    /// stays. It is called without any lock of the book.
    pub fn tell_when_freed(&self, freed: impl Fn(&UpstreamId) + Send + Sync + 'static) {
        // Set once at start; a second caller would take the news from the first.
        let _ = self.freed.set(Box::new(freed));
    }

    /// Counts a request as under way until the guard finishes or drops; nothing is known of it.
    pub fn started(&self, upstream: &UpstreamId, model: &Arc<str>, now: Instant) -> InFlight {
        self.enter(upstream, model, now, |_| Place::default())
    }

    /// Counts a request as under way on an offer until the guard finishes or drops. Its forecast is its reservation:
    /// later ones wait for it.
    pub fn begin(&self, offer: &Offer, work: Work, now: Instant) -> InFlight {
        let output = self.expected_output(offer, &work);
        self.enter(&offer.upstream, &offer.model.id, now, |state| state.place(offer, &work, output, now))
    }

    /// Counts a request that waits here for a slot of its host: load for those who come later, nothing that the host
    /// knows of. [`InFlight::sent`] ends the wait.
    pub fn queue(&self, offer: &Offer, work: Work, now: Instant) -> InFlight {
        let entry = self.upstream(&offer.upstream);
        let output = self.expected_output(offer, &work);
        let reservation = {
            let mut state = entry.lock();
            let place = state.place(offer, &work, output, now);
            state.in_flight += 1;
            state.queued += 1;
            state.reservations.add(now, place.ends(now))
        };
        let expected = Expected { prompt: work.prompt, first_ms: 0.0, token_ms: 0.0 };
        let start = Start { expected, ..Start::unknown(now) };
        InFlight::new(entry, offer.model.id.clone(), Admission::Normal, start, reservation, false)
    }

    fn enter(
        &self,
        upstream: &UpstreamId,
        model: &Arc<str>,
        now: Instant,
        place: impl FnOnce(&UpstreamState) -> Place,
    ) -> InFlight {
        let entry = self.upstream(upstream);
        let (admission, start, reservation) = {
            let mut state = entry.lock();
            let place = place(&state);
            state.admit(model, place, now)
        };
        InFlight::new(entry, model.clone(), admission, start, reservation, true)
    }

    /// Keeps requests away from an upstream for a time that it named itself (a 429), at most 120 s: from all its
    /// models, since they share its account or its slots.
    pub fn pause(&self, upstream: &UpstreamId, now: Instant, pause: Duration) {
        let entry = self.upstream(upstream);
        let mut state = entry.lock();
        let until = now + pause.min(MAX_PAUSE);
        state.pause_until = Some(state.pause_until.map_or(until, |known| known.max(until)));
    }

    /// Takes in that an upstream refused a request because it has too many. Where its slots are known they are all
    /// taken for a second, or until it reports again; where not, its limit is lower than was thought.
    pub fn refused(&self, offer: &Offer, now: Instant) {
        let entry = self.upstream(&offer.upstream);
        let mut state = entry.lock();
        let in_flight = state.in_flight;
        if offer.slots == 0 {
            cell(&mut state, &offer.model.id, now).limit.refused(in_flight);
            return;
        }
        state.full = Some((now + FULL_FOR, offer.slots));
    }

    /// Takes in how many requests an upstream said it has, running and queued, from all routers.
    ///
    /// This node's part is what it has under way when the report comes, so that its later requests are added to the
    /// report instead of hidden by it. A report of the `version` that is known already changes nothing.
    pub fn report(&self, upstream: &UpstreamId, version: (u64, u64), requests: u32, now: Instant) {
        let entry = self.upstream(upstream);
        let mut state = entry.lock();
        if state.report.is_some_and(|known| known.version == version) {
            return;
        }
        let (before, of_this_node) = (state.requests(now), state.in_flight.saturating_sub(state.queued));
        state.report = Some(Report { version, requests, of_this_node });
        state.full = None;
        let fewer = state.requests(now) < before;
        drop(state);
        if fewer {
            entry.has_freed();
        }
    }

    /// Returns what is known of a model on an upstream.
    pub fn load(&self, upstream: &UpstreamId, model: &str, now: Instant) -> Load {
        self.known(upstream).map_or(Load::UNKNOWN, |entry| entry.lock().load(model, now))
    }

    /// Returns what is known of an offer. What the device reported about other routers' requests counts too.
    pub fn of(&self, offer: &Offer, now: Instant) -> Load {
        match self.known(&offer.upstream) {
            Some(entry) => entry.lock().load_of(offer, now),
            None => UpstreamState::default().load_of(offer, now),
        }
    }

    /// The same for a request: what of its prompt the host holds, and how long an answer the model gives.
    pub fn for_work(&self, offer: &Offer, work: &Work, now: Instant) -> Load {
        let output = self.expected_output(offer, work);
        let load = match self.known(&offer.upstream) {
            Some(entry) => entry.lock().load_for(offer, work, now),
            None => UpstreamState::default().load_of(offer, now),
        };
        Load { output, ..load }
    }

    fn expected_output(&self, offer: &Offer, work: &Work) -> Option<f64> {
        expected_output(&self.lengths, offer, work)
    }

    /// Returns the requests on an upstream: this node's, and others' by its last report.
    pub fn requests(&self, upstream: &UpstreamId, now: Instant) -> u32 {
        self.known(upstream).map_or(0, |entry| entry.lock().requests(now))
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
        let new = || {
            let (id, freed, jitter) = (id.clone(), self.freed.clone(), jitter(self.seed, id));
            Arc::new(Upstream { id, freed, jitter, lengths: self.lengths.clone(), state: Mutex::default() })
        };
        upstreams.entry(id.clone()).or_insert_with(new).clone()
    }
}

/// Returns the tokens of the answer to expect of a model; `None` when it is no text.
fn expected_output(lengths: &Mutex<Lengths>, offer: &Offer, work: &Work) -> Option<f64> {
    let kind = Kind { task: work.task, most: work.most };
    let lengths = || lengths.lock().unwrap_or_else(PoisonError::into_inner);
    (work.output.0 > 0).then(|| lengths().expected(&offer.model.id, kind, f64::from(work.output.0)))
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
