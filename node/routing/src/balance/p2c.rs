//! The power of two choices: two distinct hosts at random, the cheaper one (Mitzenmacher 2001).
//!
//! Looking at all hosts and taking the best sends every router of the mesh to the same one, on news that is
//! already old; two at random keep the load spread and still avoid the slow.

use std::sync::Arc;
use std::time::Instant;

use rand::{Rng, RngExt};

use crate::balance::load::{Load, LoadBook};
use crate::ids::UpstreamId;
use crate::registry::{Offer, Zone};
use crate::units::Tokens;

/// Answer length for which completion is predicted when nothing is known of the request.
const TYPICAL_OUTPUT: Tokens = Tokens(256);

/// Time in which a measurement loses most of its worth: a host that was slow may have finished what slowed it.
const STALE_AFTER_S: f64 = 60.0;

/// What a host without a fresh measurement is taken to cost, as a share of the other one: a little hope, so that
/// it is measured once.
const HOPE: f64 = 0.9;

/// Slots of a provider that named no bound: its queue is not ours to see.
const UNBOUNDED_SLOTS: u32 = 64;

/// What a host behind another router is taken to cost more: enough that equals are reached directly.
const DETOUR: f64 = 1.05;

/// Picks one of the hosts that serve a model.
#[derive(Debug, Clone, Copy)]
pub struct Balancer {
    expected_output: Tokens,
}

impl Default for Balancer {
    fn default() -> Self {
        Self { expected_output: TYPICAL_OUTPUT }
    }
}

/// How fit a host is; only hosts of the best tier that occurs are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    /// Ready.
    Free,
    /// Well, but all its slots are taken.
    Full,
    /// Failed just now, or asked for a pause.
    Penalised,
    /// Its breaker is open. Used only when every host is like that: the last one is never given up.
    Broken,
}

impl Balancer {
    /// Makes a balancer for answers of a given length.
    pub fn for_output(expected_output: Tokens) -> Self {
        Self { expected_output }
    }

    /// Returns the host to use, `None` when every one is excluded.
    ///
    /// Compares two distinct hosts of the best kind that occurs (ready, full, failed just now, broken) by predicted time to completion × requests under
    /// way per slot. Ties go to the first of the two; which one is first is drawn from `rng`, so a seed makes
    /// the choice reproducible.
    pub fn pick(
        &self,
        offers: &[Arc<Offer>],
        loads: &LoadBook,
        now: Instant,
        rng: &mut impl Rng,
        excluded: &[UpstreamId],
    ) -> Option<Arc<Offer>> {
        let (first, second) = self.two(offers, loads, now, rng, excluded)?;
        let chosen = match second {
            Some(second) if self.is_cheaper(&second, &first) => second,
            Some(_) | None => first,
        };
        Some(chosen.offer.clone())
    }

    /// Predicts the time to a whole answer, milliseconds; `None` when it was never measured.
    pub fn predicted_ms(&self, load: &Load) -> Option<f64> {
        let ttft = load.ttft_ms?;
        Some(ttft + f64::from(self.expected_output.0) * load.ms_per_token.unwrap_or(0.0))
    }

    /// Draws two distinct hosts of the best tier, in random order, in one pass and without allocation
    /// (reservoir sampling, Vitter 1985).
    fn two<'a>(
        &self,
        offers: &'a [Arc<Offer>],
        loads: &LoadBook,
        now: Instant,
        rng: &mut impl Rng,
        excluded: &[UpstreamId],
    ) -> Option<(Candidate<'a>, Option<Candidate<'a>>)> {
        let mut best = Tier::Broken;
        let mut seen = 0usize;
        let mut kept: [Option<Candidate<'a>>; 2] = [None, None];
        for offer in offers.iter().filter(|offer| !excluded.contains(&offer.upstream)) {
            let load = loads.of(offer, now);
            let tier = tier(offer, &load);
            if tier > best {
                continue;
            }
            if tier < best {
                (best, seen, kept) = (tier, 0, [None, None]);
            }
            seen += 1;
            let place = if seen <= 2 { seen - 1 } else { rng.random_range(0..seen) };
            if let Some(slot) = kept.get_mut(place) {
                *slot = Some(Candidate { offer, load });
            }
        }
        match kept {
            [Some(a), Some(b)] if rng.random() => Some((b, Some(a))),
            [Some(a), b] => Some((a, b)),
            [None, _] => None,
        }
    }

    /// True when `a` costs less than `b`. A host without a fresh measurement is judged by the other's.
    fn is_cheaper(&self, a: &Candidate<'_>, b: &Candidate<'_>) -> bool {
        let (known_a, known_b) = (self.predicted_ms(&a.load), self.predicted_ms(&b.load));
        let expected = |own: Option<f64>, other: Option<f64>, load: &Load| match (own, other) {
            (Some(own), Some(other)) => {
                let trust = load.age.map_or(0.0, |age| (-age.as_secs_f64() / STALE_AFTER_S).exp());
                own * trust + (other * HOPE).min(own) * (1.0 - trust)
            }
            (Some(own), None) => own,
            (None, Some(other)) => other * HOPE,
            (None, None) => 1.0,
        };
        expected(known_a, known_b, &a.load) * a.pressure()
            < expected(known_b, known_a, &b.load) * b.pressure()
    }
}

/// A host with what is known of it.
#[derive(Debug, Clone, Copy)]
struct Candidate<'a> {
    offer: &'a Arc<Offer>,
    load: Load,
}

impl Candidate<'_> {
    /// Requests per slot if this one is added.
    fn pressure(&self) -> f64 {
        let slots = match self.offer.slots {
            0 if self.offer.is_cloud() => UNBOUNDED_SLOTS,
            slots => slots.max(1),
        };
        let detour = if self.offer.zone() == Zone::Peer { DETOUR } else { 1.0 };
        detour * f64::from(self.load.in_flight.saturating_add(1)) / f64::from(slots)
    }
}

fn tier(offer: &Offer, load: &Load) -> Tier {
    let full = offer.slots > 0 && load.in_flight >= offer.slots;
    match (load.admits, load.penalised, full) {
        (false, _, _) => Tier::Broken,
        (true, true, _) => Tier::Penalised,
        (true, false, true) => Tier::Full,
        (true, false, false) => Tier::Free,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::registry::{ModelSpec, Route};
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
}
