//! Which host gets a request: of those that are predicted to finish it about as soon as the best, two at random, the
//! cheaper one.
//!
//! Always taking the best sends every router of the mesh to the same host, on news that is already old; two at random of
//! all hosts (Mitzenmacher 2001) gives a mesh of unequal devices its slowest one whenever both draws are slow. So a pool
//! is weighed whole, as Prequal does with its probes (Wydrowski et al., NSDI 2024), and chance decides among the good.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use rand::{Rng, RngExt};

use crate::balance::forecast::{Forecast, Work};
use crate::balance::load::{Load, LoadBook};
use crate::balance::{affinity, condition};
use crate::ids::UpstreamId;
use crate::registry::Offer;
use crate::units::Tokens;

/// Hosts that are weighed; of more, so many at random. Prequal's pool.
const POOL: usize = 16;

/// How much longer than the best host's the predicted time of a host may be that is drawn: forecasts err by more.
const NEAR: f64 = 1.1;

/// Time in which a measurement loses most of its worth: a host that was slow may have finished what slowed it.
const STALE_AFTER_S: f64 = 60.0;

/// The same for what was learnt from many samples: a slow machine stays slow, but may have been given better parts.
const LEARNT_STALE_AFTER_S: f64 = 1_800.0;

/// What a host without a fresh measurement is taken to cost, as a share of the best: a little hope, so that it is
/// measured once.
const HOPE: f64 = 0.9;

/// The same while a first request finds out: it could be the slowest of all, and is used if the others are that full.
const UNPROVEN: f64 = 8.0;

/// Slots of a provider that named no bound: its queue is not ours to see.
const UNBOUNDED_SLOTS: u32 = 64;

/// Share of the pool above whose requests in flight a host of unknown capacity is hot.
const HOT_QUANTILE: f64 = 0.84;

/// The request by which hosts are compared for sessions: the same for each turn, or long talks would move.
const A_TURN: Work = Work { prompt: Tokens(1_024), ..Work::UNKNOWN };

/// Picks one of the hosts that serve a model.
#[derive(Debug, Clone, Copy)]
pub struct Balancer {
    work: Work,
    session: Option<u64>,
    waits: bool,
}

impl Default for Balancer {
    fn default() -> Self {
        Self::for_work(Work::UNKNOWN)
    }
}

/// How fit a host is; only hosts of the best tier that occurs are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    /// Well.
    Ready,
    /// Well, but all its slots are taken, and nobody would wait for one.
    Full,
    /// Failed just now, or asked for a pause.
    Penalised,
    /// Its breaker is open. Used only when every host is like that: the last one is never given up.
    Broken,
}

impl Balancer {
    /// Makes a balancer for answers of a given length to prompts of unknown length.
    pub fn for_output(output: Tokens) -> Self {
        Self::for_work(Work { output, ..Work::UNKNOWN })
    }

    /// Makes a balancer for a request.
    pub fn for_work(work: Work) -> Self {
        Self { work, session: None, waits: false }
    }

    /// Lets the request go where its session goes, unless that hurts. `session` is a hash of what all turns of a
    /// conversation share.
    #[must_use]
    pub fn with_session(self, session: Option<u64>) -> Self {
        Self { session, ..self }
    }

    /// Lets a request wait for a busy host that would still finish it sooner than an idle one. For callers that have a
    /// queue for that; without one, a device that is full refuses, and is used only when all are full.
    #[must_use]
    pub fn that_waits(self) -> Self {
        Self { waits: true, ..self }
    }

    /// Returns the host to use, `None` when every one is excluded.
    ///
    /// Weighs the hosts of the best kind that occurs (well, full, failed just now, broken) by predicted time to completion;
    /// of those within a tenth of the best, draws two and keeps the cheaper. A session's own host is taken if its time
    /// is within a quarter of the best. All chance comes from `rng`, so a seed makes the choice reproducible.
    pub fn pick(
        &self,
        offers: &[Arc<Offer>],
        loads: &LoadBook,
        now: Instant,
        rng: &mut impl Rng,
        excluded: &[UpstreamId],
    ) -> Option<Arc<Offer>> {
        let mut pool =
            Pool::gather(offers, |offer| loads.for_work(offer, &self.work, now), self.waits, rng, excluded);
        self.price(&mut pool);
        pool.cool();
        let best = pool.iter().map(|host| host.cost).min_by(f64::total_cmp)?;
        if let Some(own) = self.own_host(&pool).filter(|own| own.cost <= best * affinity::STAYS_WITHIN) {
            return Some(own.offer.clone());
        }
        let near = |host: &&Host<'_>| host.cost <= best * NEAR;
        let count = pool.iter().filter(near).count();
        let nth = |n: usize| pool.iter().filter(near).nth(n);
        let first = rng.random_range(0..count);
        // Of the others: `count - 1` places, with the first one's left out.
        let second = (count > 1).then(|| (first + rng.random_range(1..count)) % count);
        let (first, second) = (nth(first)?, second.and_then(nth));
        let chosen = second.filter(|second| second.cost < first.cost).unwrap_or(first);
        Some(chosen.offer.clone())
    }

    /// Predicts the request on a host; `None` when it was never measured.
    pub fn forecast(&self, offer: &Offer, load: &Load) -> Option<Forecast> {
        Forecast::of(self.work, offer, load)
    }

    /// Gives each host of the pool its cost.
    fn price(&self, pool: &mut Pool<'_>) {
        for host in pool.iter_mut() {
            host.predicted = self.forecast(host.offer, &host.load).map(|forecast| forecast.total_ms());
        }
        let best = pool.iter().filter_map(|host| host.predicted).min_by(f64::total_cmp);
        for host in pool.iter_mut() {
            let expected = match (host.predicted, best) {
                (Some(own), Some(best)) => {
                    let trust = host.trust();
                    own * trust + (best * HOPE).min(own) * (1.0 - trust)
                }
                // Never measured: one request finds out, others wait for what it finds.
                (None, Some(best)) => match host.load.in_flight {
                    0 => best * HOPE,
                    asked => best * UNPROVEN * f64::from(asked),
                },
                (_, None) => host.pressure(),
            };
            host.cost = expected * condition::factor(host.offer, &host.load);
        }
    }

    /// Returns the host that the session likes best.
    fn own_host<'p, 'a>(&self, pool: &'p Pool<'a>) -> Option<&'p Host<'a>> {
        let session = self.session?;
        let liked = |host: &Host<'a>| affinity::liking(session, &host.offer.upstream, host.idle_ms());
        pool.iter().max_by(|a, b| liked(a).total_cmp(&liked(b)))
    }
}

/// A host with what is known of it.
#[derive(Debug, Clone, Copy)]
struct Host<'a> {
    offer: &'a Arc<Offer>,
    load: Load,
    predicted: Option<f64>,
    cost: f64,
}

impl Host<'_> {
    /// Requests per slot if this one is added.
    fn pressure(&self) -> f64 {
        let slots = match self.offer.slots {
            0 if self.offer.is_cloud() => UNBOUNDED_SLOTS,
            slots => slots.max(1),
        };
        f64::from(self.load.in_flight.saturating_add(1)) / f64::from(slots)
    }

    /// How much the last measurement still counts, 0 to 1.
    fn trust(&self) -> f64 {
        let stale_after = if self.load.prefill.is_some() { LEARNT_STALE_AFTER_S } else { STALE_AFTER_S };
        self.load.age.map_or(0.0, |age| (-age.as_secs_f64() / stale_after).exp())
    }

    /// Time of a turn if nothing else ran there; 1 when it was never measured.
    fn idle_ms(&self) -> f64 {
        let prefill = self.load.prefill.map(|line| line.at(f64::from(A_TURN.prompt.0)));
        let token = self.load.decode.map(|line| line.at_zero).or(self.load.ms_per_token).unwrap_or(0.0);
        prefill.or(self.load.ttft_ms).map_or(1.0, |first| first + token * f64::from(A_TURN.output.0))
    }
}

/// The hosts that are weighed: those of the best tier, at most [`POOL`] of them.
struct Pool<'a> {
    hosts: [Option<Host<'a>>; POOL],
    tier: Tier,
    seen: usize,
}

impl<'a> Pool<'a> {
    /// Fills a pool in one pass and without allocation (reservoir sampling, Vitter 1985).
    fn gather(
        offers: &'a [Arc<Offer>],
        load: impl Fn(&Offer) -> Load,
        waits: bool,
        rng: &mut impl Rng,
        excluded: &[UpstreamId],
    ) -> Self {
        let mut pool = Self { hosts: [const { None }; POOL], tier: Tier::Broken, seen: 0 };
        for offer in offers.iter().filter(|offer| !excluded.contains(&offer.upstream)) {
            let load = load(offer);
            let tier = tier(&load, waits);
            if tier > pool.tier {
                continue;
            }
            if tier < pool.tier {
                pool = Self { hosts: [const { None }; POOL], tier, seen: 0 };
            }
            pool.seen += 1;
            let place = if pool.seen <= POOL { pool.seen - 1 } else { rng.random_range(0..pool.seen) };
            if let Some(slot) = pool.hosts.get_mut(place) {
                *slot = Some(Host { offer, load, predicted: None, cost: 0.0 });
            }
        }
        pool
    }

    /// Takes out the hosts of unknown capacity that are hot, while there are others: what their queue does to a request
    /// cannot be predicted, only avoided (Prequal's rule).
    fn cool(&mut self) {
        let mut in_flight = [0u32; POOL];
        let mut count = 0;
        for (slot, host) in in_flight.iter_mut().zip(self.iter()) {
            *slot = host.load.in_flight;
            count += 1;
        }
        if count == 0 {
            return;
        }
        in_flight[..count].sort_unstable();
        let quantile = in_flight[((HOT_QUANTILE * count as f64) as usize).min(count - 1)];
        let is_hot = |host: &Host<'_>| {
            let requests = host.load.in_flight;
            host.offer.slots == 0 && (requests > quantile || requests >= host.load.limit)
        };
        if self.iter().all(is_hot) {
            return;
        }
        for slot in &mut self.hosts {
            if slot.as_ref().is_some_and(is_hot) {
                *slot = None;
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Host<'a>> {
        self.hosts.iter().flatten()
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Host<'a>> {
        self.hosts.iter_mut().flatten()
    }
}

fn tier(load: &Load, waits: bool) -> Tier {
    match (load.admits, load.penalised, load.ahead > 0 && !waits) {
        (false, _, _) => Tier::Broken,
        (true, true, _) => Tier::Penalised,
        (true, false, true) => Tier::Full,
        (true, false, false) => Tier::Ready,
    }
}
