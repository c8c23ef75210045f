//! Which host gets a request: of those that are predicted to finish it about as soon as the best, two at random, the
//! cheaper one.
//!
//! Always taking the best sends every router of the mesh to the same host, on news that is already old; two at random of
//! all hosts (Mitzenmacher 2001) gives a mesh of unequal devices its slowest one whenever both draws are slow. So a pool
//! is weighed whole, as Prequal does with its probes (Wydrowski et al., NSDI 2024), and chance decides among the good.

use std::sync::Arc;
use std::time::Instant;

use rand::{Rng, RngExt};

use crate::balance::forecast::{Forecast, TYPICAL_OUTPUT, Work};
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
const A_TURN: Work = Work { prompt: Tokens(1_024), output: TYPICAL_OUTPUT };

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
        let mut pool = Pool::gather(offers, |offer| loads.of(offer, now), self.waits, rng, excluded);
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::registry::{ModelSpec, Power, Route};
    use crate::testing::{seeded, start};

    fn offer(device: &str, slots: u32) -> Arc<Offer> {
        let spec = Arc::new(ModelSpec::new("m", "test"));
        Arc::new(Offer { slots, ..Offer::new(UpstreamId::Device(device.into()), spec) })
    }

    /// Runs a request on a host that took `ttft_ms`.
    fn serve(book: &LoadBook, offer: &Offer, now: Instant, ttft_ms: u64) {
        let mut guard = book.started(&offer.upstream, &offer.model.id, now);
        let end = now + Duration::from_millis(ttft_ms);
        guard.first_token(end);
        guard.finish(end, true);
    }

    /// Counts how often each device is picked in 1,000 picks that change nothing.
    fn shares(offers: &[Arc<Offer>], book: &LoadBook, now: Instant, excluded: &[UpstreamId]) -> Vec<usize> {
        let mut rng = seeded(1);
        let mut counts = vec![0; offers.len()];
        for _ in 0..1_000 {
            let picked = Balancer::default().pick(offers, book, now, &mut rng, excluded).unwrap();
            counts[offers.iter().position(|offer| offer.upstream == picked.upstream).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn unknown_hosts_share_evenly() {
        let offers = [offer("a", 1), offer("b", 1), offer("c", 1)];
        let counts = shares(&offers, &LoadBook::default(), start(), &[]);
        assert!(counts.iter().all(|count| (280..390).contains(count)), "{counts:?}");
    }

    #[test]
    fn the_faster_of_two_wins_until_it_is_busier_than_it_is_faster() {
        let (offers, book, now) = ([offer("a", 8), offer("b", 8)], LoadBook::default(), start());
        serve(&book, &offers[0], now, 100);
        serve(&book, &offers[1], now, 350);
        let soon = now + Duration::from_millis(400);
        assert_eq!(shares(&offers, &book, soon, &[]), [1_000, 0]);
        let _busy: Vec<_> = (0..4).map(|_| book.started(&offers[0].upstream, &"m".into(), soon)).collect();
        assert_eq!(shares(&offers, &book, soon, &[]), [0, 1_000]);
    }

    #[test]
    fn full_hosts_are_used_only_when_all_are_full() {
        let (offers, book, now) = ([offer("a", 1), offer("b", 1)], LoadBook::default(), start());
        let _first = book.started(&offers[0].upstream, &"m".into(), now);
        assert_eq!(shares(&offers, &book, now, &[]), [0, 1_000]);
        let _second = book.started(&offers[1].upstream, &"m".into(), now);
        assert!(shares(&offers, &book, now, &[]).iter().all(|count| *count > 300));
    }

    #[test]
    fn what_other_routers_run_on_a_device_fills_it_too() {
        let mut busy = offer("a", 2);
        Arc::make_mut(&mut busy).in_flight_reported = 2;
        assert_eq!(shares(&[busy, offer("b", 2)], &LoadBook::default(), start(), &[]), [0, 1_000]);
    }

    #[test]
    fn a_host_that_failed_just_now_gets_nothing_until_its_penalty_ends() {
        let (offers, book, now) = ([offer("a", 4), offer("b", 4)], LoadBook::default(), start());
        book.started(&offers[0].upstream, &"m".into(), now).finish(now, false);
        let _busy: Vec<_> = (0..3).map(|_| book.started(&offers[1].upstream, &"m".into(), now)).collect();
        assert_eq!(shares(&offers, &book, now, &[]), [0, 1_000]);
        assert_eq!(shares(&offers, &book, now + Duration::from_secs(1), &[]), [1_000, 0]);
    }

    #[test]
    fn the_last_host_is_used_although_its_breaker_is_open() {
        let (offers, book, now) = ([offer("a", 1), offer("b", 1)], LoadBook::default(), start());
        for _ in 0..5 {
            book.started(&offers[0].upstream, &"m".into(), now).finish(now, false);
        }
        assert_eq!(shares(&offers, &book, now, &[]), [0, 1_000]);
        let excluded = [offers[1].upstream.clone()];
        assert_eq!(shares(&offers, &book, now, &excluded), [1_000, 0]);
    }

    #[test]
    fn of_equals_the_one_without_a_detour_is_used() {
        let (mut far, near, book, now) = (offer("a", 4), offer("b", 4), LoadBook::default(), start());
        Arc::make_mut(&mut far).routes = vec![Route::Via("n2".into())];
        let offers = [far, near];
        assert_eq!(shares(&offers, &book, now, &[]), [0, 1_000]);
        let _busy = book.started(&offers[1].upstream, &"m".into(), now);
        assert_eq!(shares(&offers, &book, now, &[]), [1_000, 0]);
    }

    #[test]
    fn nothing_is_picked_when_all_are_excluded() {
        let offers = [offer("a", 1)];
        let excluded = [offers[0].upstream.clone()];
        let picked =
            Balancer::default().pick(&offers, &LoadBook::default(), start(), &mut seeded(1), &excluded);
        assert!(picked.is_none());
    }

    #[test]
    fn a_host_that_was_slow_long_ago_is_asked_again() {
        let (offers, book, now) = ([offer("a", 4), offer("b", 4)], LoadBook::default(), start());
        serve(&book, &offers[1], now, 1_000);
        let later = now + Duration::from_secs(900);
        serve(&book, &offers[0], later, 100);
        let soon = later + Duration::from_millis(100);
        assert_eq!(shares(&offers, &book, soon, &[])[1], 1_000);
        assert_eq!(shares(&offers, &book, now + Duration::from_secs(2), &[])[1], 0);
    }

    /// Runs a streamed request of a known prompt: `read_ms` to the first token, `token_ms` for each of ten more.
    fn stream(book: &LoadBook, offer: &Offer, at: Instant, prompt: u32, read_ms: u64, token_ms: u64) {
        let mut guard = book.begin(offer, work(prompt), at);
        for step in 0..=10 {
            guard.token(at + Duration::from_millis(read_ms + token_ms * step));
        }
        guard.finish(at + Duration::from_millis(read_ms + token_ms * 10), true);
    }

    fn work(prompt: u32) -> Work {
        Work { prompt: Tokens(prompt), ..Work::UNKNOWN }
    }

    fn shares_of(balancer: Balancer, offers: &[Arc<Offer>], book: &LoadBook, now: Instant) -> Vec<usize> {
        let mut rng = seeded(1);
        let mut counts = vec![0; offers.len()];
        for _ in 0..200 {
            let picked = balancer.pick(offers, book, now, &mut rng, &[]).unwrap();
            counts[offers.iter().position(|offer| offer.upstream == picked.upstream).unwrap()] += 1;
        }
        counts
    }

    /// Two hosts: `a` reads ten times as fast as `b`, and writes half as fast.
    fn reader_and_writer(slots: u32) -> ([Arc<Offer>; 2], LoadBook, Instant) {
        let (offers, book, mut now) = ([offer("a", slots), offer("b", slots)], LoadBook::default(), start());
        for round in 0..20u32 {
            let prompt = 100 + 200 * round;
            stream(&book, &offers[0], now, prompt, u64::from(prompt) / 10, 20);
            stream(&book, &offers[1], now, prompt, u64::from(prompt), 10);
            now += Duration::from_secs(10);
        }
        (offers, book, now)
    }

    #[test]
    fn a_long_prompt_goes_where_reading_is_fast_and_a_short_one_where_writing_is() {
        let (offers, book, now) = reader_and_writer(4);
        assert_eq!(shares_of(Balancer::for_work(work(8_000)), &offers, &book, now), [200, 0]);
        assert_eq!(shares_of(Balancer::for_work(work(50)), &offers, &book, now), [0, 200]);
    }

    #[test]
    fn the_forecast_is_the_sum_of_its_parts() {
        let (offers, book, now) = reader_and_writer(1);
        let forecast =
            |offer: &Offer| Balancer::for_work(work(2_000)).forecast(offer, &book.of(offer, now)).unwrap();
        let idle = forecast(&offers[0]);
        assert!((idle.prefill_ms - 200.0).abs() < 20.0, "{idle:?}");
        assert!((idle.decode_ms - 256.0 * 20.0).abs() < 256.0, "{idle:?}");
        assert_eq!((idle.queue_ms, idle.load_ms), (0.0, 0.0));
        // The one slot is taken by a request that was just predicted: waiting for it takes that long.
        let _running = book.begin(&offers[0], work(2_000), now);
        let queued = forecast(&offers[0]);
        assert!((queued.queue_ms - idle.total_ms()).abs() < 1.0, "{queued:?}");
        let mut cold = offers[0].clone();
        Arc::make_mut(&mut cold).resident = Some(false);
        assert!(forecast(&cold).load_ms >= 1_000.0);
    }

    #[test]
    fn a_request_waits_for_a_quick_host_rather_than_go_to_a_slow_one_if_it_may() {
        let (offers, book, now) = ([offer("a", 1), offer("b", 1)], LoadBook::default(), start());
        stream(&book, &offers[0], now, 500, 100, 10);
        stream(&book, &offers[1], now, 500, 1_000, 100);
        let soon = now + Duration::from_secs(3);
        let _running = book.begin(&offers[0], work(500), soon);
        let balancer = Balancer::for_work(work(500));
        assert_eq!(shares_of(balancer.that_waits(), &offers, &book, soon), [200, 0]);
        assert_eq!(shares_of(balancer, &offers, &book, soon), [0, 200]);
    }

    #[test]
    fn of_equals_the_better_condition_wins() {
        let worse: [(&str, fn(&mut Offer)); 6] = [
            ("cold", |offer| offer.resident = Some(false)),
            ("on battery", |offer| offer.power = Power::Battery(80)),
            ("charging", |offer| offer.power = Power::Charging),
            ("throttled", |offer| offer.throttled = true),
            ("short of cache", |offer| offer.kv_use = Some(0.97)),
            ("busy", |offer| offer.in_flight_reported = 1),
        ];
        for (what, change) in worse {
            let (mut offers, book, now) = ([offer("a", 4), offer("b", 4)], LoadBook::default(), start());
            for offer in &offers {
                stream(&book, offer, now, 500, 100, 10);
            }
            Arc::make_mut(&mut offers[0]).power = Power::Mains;
            let even = shares_of(Balancer::for_work(work(500)), &offers, &book, now);
            assert!(even.iter().all(|share| *share > 50), "{what}: {even:?}");
            // Well beyond what chance decides: the better one is drawn, or cheaper.
            change(Arc::make_mut(&mut offers[0]));
            let shares = shares_of(Balancer::for_work(work(500)), &offers, &book, now);
            assert!(shares[1] >= 150, "{what}: {shares:?}");
        }
    }

    #[test]
    fn a_session_stays_with_its_host_until_that_hurts() {
        let (offers, book, now) = ([0, 1, 2].map(|n| offer(&n.to_string(), 2)), LoadBook::default(), start());
        for offer in &offers {
            stream(&book, offer, now, 500, 100, 10);
        }
        let go = |session: u64| {
            shares_of(Balancer::for_work(work(500)).with_session(Some(session)), &offers, &book, now)
        };
        let mut homes = [0; 3];
        for session in 0..60 {
            let shares = go(session);
            let home = shares.iter().position(|share| *share == 200).expect("always the same host");
            homes[home] += 1;
        }
        assert!(homes.iter().all(|sessions| *sessions > 8), "{homes:?}");
        let home = go(7).iter().position(|share| *share == 200).unwrap();
        let _crowd: Vec<_> = (0..2).map(|_| book.begin(&offers[home], work(500), now)).collect();
        assert_eq!(go(7)[home], 0, "its host is full");
    }

    #[test]
    fn a_host_of_unknown_capacity_is_left_alone_above_its_learnt_limit() {
        let (offers, book, now) = ([offer("a", 0), offer("b", 0)], LoadBook::default(), start());
        stream(&book, &offers[0], now, 500, 10, 1);
        stream(&book, &offers[1], now, 500, 100, 10);
        let busy: Vec<_> = (0..4).map(|_| book.begin(&offers[0], work(1), now)).collect();
        assert_eq!(shares_of(Balancer::for_work(work(500)), &offers, &book, now), [200, 0]);
        book.refused(&offers[0], now);
        assert_eq!(shares_of(Balancer::for_work(work(500)), &offers, &book, now), [0, 200]);
        drop(busy);
        assert_eq!(shares_of(Balancer::for_work(work(500)), &offers, &book, now), [200, 0]);
    }

    #[test]
    fn a_host_that_often_fails_costs_more_than_its_time() {
        let (offers, book, mut now) = ([offer("a", 4), offer("b", 4)], LoadBook::default(), start());
        for round in 0..30 {
            stream(&book, &offers[0], now, 500, 100, 10);
            stream(&book, &offers[1], now, 500, 120, 12);
            if round % 3 == 0 {
                book.begin(&offers[0], work(500), now).finish(now, false);
            }
            now += Duration::from_secs(40);
        }
        assert_eq!(shares_of(Balancer::for_work(work(500)), &offers, &book, now), [0, 200]);
    }
}
