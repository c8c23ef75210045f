//! The power of two choices: two distinct hosts at random, the cheaper one (Mitzenmacher 2001).
//!
//! Looking at all hosts and taking the best sends every router of the mesh to the same one, on news that is
//! already old; two at random keep the load spread and still avoid the slow.

use std::sync::Arc;
use std::time::Instant;

use rand::{Rng, RngExt};

use crate::balance::load::{Load, LoadBook};
use crate::ids::UpstreamId;
use crate::registry::Offer;
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
    /// Compares two distinct hosts of the best [tier](Tier) by predicted time to completion × requests under
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
        f64::from(self.load.in_flight.saturating_add(1)) / f64::from(slots)
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
