//! Arms that may and can serve a request, with what is known of each.

use std::sync::Arc;
use std::time::Duration;

use crate::balance::Forecast;
use crate::bandit::{ArmStats, ArmView, SizeClass};
use crate::profile::RequestProfile;
use crate::registry::{ArmEntry, Craft, Offer, Registry};
use crate::request::Request;
use crate::router::Ask;
use crate::router::account::Removal;
use crate::router::filter::Filter;
use crate::units::MicroUsd;

/// Time to first token to expect before any was measured, milliseconds: a warm laptop.
const EXPECTED_TTFT_MS: f64 = 600.0;

/// Time per token of a provider before any was measured, milliseconds.
const PROVIDER_MS_PER_TOKEN: f64 = 15.0;

/// Which of the permitted offers are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// All of them.
    Everywhere,
    /// Those that leave the devices of the mesh.
    CloudOnly,
}

/// Collects every arm with the offers of it that pass the filter, in the order of the registry.
pub(super) fn gather<'a>(
    registry: &'a Registry,
    request: &Request<'_>,
    filter: &mut Filter<'_>,
    scope: Scope,
) -> Vec<Candidate<'a>> {
    let mut candidates: Vec<Candidate<'a>> = Vec::new();
    for entry in registry.arms() {
        let craft = request.needs.craft();
        let can = craft != Craft::Text && entry.offers.iter().any(|offer| offer.model.makes(craft));
        if entry.craft != craft && !can {
            continue;
        }
        let wanted = |offer: &&Arc<Offer>| scope == Scope::Everywhere || offer.is_cloud();
        let offers: Vec<Arc<Offer>> =
            entry.offers.iter().filter(wanted).filter(|offer| filter.admits(offer)).cloned().collect();
        if !offers.is_empty() {
            candidates.push(Candidate { entry, offers });
        }
    }
    prefer_known(&mut candidates, filter);
    candidates
}

/// Leaves out arms that are predicted to answer after the caller is gone; the quickest one stays in any case, since
/// predictions err and an error is no answer either.
pub(super) fn in_time<'a>(
    weighed: Vec<(Candidate<'a>, ArmView<'a>)>,
    limit: Option<Duration>,
    filter: &mut Filter<'_>,
) -> Vec<(Candidate<'a>, ArmView<'a>)> {
    let Some(limit_ms) = limit.map(|limit| limit.as_secs_f64() * 1e3) else { return weighed };
    let quickest = weighed.iter().map(|(_, view)| view.latency_ms).fold(f64::INFINITY, f64::min);
    let bar = limit_ms.max(quickest);
    let (kept, late): (Vec<_>, Vec<_>) = weighed.into_iter().partition(|(_, view)| view.latency_ms <= bar);
    late.iter().for_each(|(candidate, _)| filter.note(&candidate.entry.model, None, Removal::Deadline));
    kept
}

/// Leaves only what is in the cloud, if anything is: for prompts that devices should not be given.
pub(super) fn prefer_cloud(candidates: &mut Vec<Candidate<'_>>) {
    if candidates.iter().any(|candidate| candidate.offers.iter().any(|offer| offer.is_cloud())) {
        for candidate in candidates.iter_mut() {
            candidate.offers.retain(|offer| offer.is_cloud());
        }
        candidates.retain(|candidate| !candidate.offers.is_empty());
    }
}

/// An arm with the offers that passed the filter.
pub(super) struct Candidate<'a> {
    pub(super) entry: &'a ArmEntry,
    pub(super) offers: Vec<Arc<Offer>>,
}

impl<'a> Candidate<'a> {
    pub(super) fn view(&self, ask: Ask<'_>) -> ArmView<'a> {
        let Ask { snapshot, placed, weights, .. } = ask;
        let stats = snapshot.posterior.arm(&self.entry.id);
        let (cost, latency_ms) = cost_and_latency(self.entry, &self.offers, &stats, ask);
        ArmView {
            arm: &self.entry.id,
            size: self.entry.size,
            stats,
            answer: snapshot.posterior.answer(&self.entry.id, self.entry.size, placed),
            cost,
            latency_ms,
            penalty: weights.penalty(cost, latency_ms) + weights.again(&stats),
        }
    }
}

/// Returns what a request costs at the cheapest of an arm's offers, and the time to the whole answer at the quickest,
/// milliseconds.
pub(super) fn cost_and_latency(
    entry: &ArmEntry,
    offers: &[Arc<Offer>],
    stats: &ArmStats,
    ask: Ask<'_>,
) -> (MicroUsd, f64) {
    let Ask { profile, snapshot, now, .. } = ask;
    let work = profile.work();
    let latency = |offer: &Arc<Offer>| {
        let load = snapshot.loads.for_work(offer, &work, now);
        let forecast = Forecast::of(work, offer, &load).map(|forecast| forecast.total_ms());
        forecast.unwrap_or_else(|| {
            let rounds = match offer.slots {
                0 => 1.0,
                slots => f64::from(load.in_flight.saturating_add(1)) / f64::from(slots),
            };
            expected_ms(entry.size, offer, profile, stats) * rounds.max(1.0)
        })
    };
    let cost = |offer: &Arc<Offer>| match offer.price {
        Some(price) => price.cost(profile.prompt_tokens, profile.expected_output),
        None => MicroUsd(0),
    };
    let cost = offers.iter().map(cost).min().unwrap_or_default();
    (cost, offers.iter().map(latency).fold(f64::INFINITY, f64::min))
}

/// Predicts the time to a whole answer of an upstream that this node never measured, milliseconds: from what
/// the mesh saw of the model elsewhere, else from its size.
fn expected_ms(size: SizeClass, offer: &Offer, profile: &RequestProfile, stats: &ArmStats) -> f64 {
    let per_token = if offer.is_cloud() { PROVIDER_MS_PER_TOKEN } else { size.expected_ms_per_token() };
    stats.ttft_ms().unwrap_or(EXPECTED_TTFT_MS) + per_token * f64::from(profile.expected_output.0)
}

/// Leaves out arms that may lack what the request needs, if some are known to have it.
fn prefer_known(candidates: &mut Vec<Candidate<'_>>, filter: &mut Filter<'_>) {
    let is_known = |candidate: &Candidate<'_>, filter: &Filter<'_>| {
        candidate.offers.iter().any(|offer| filter.is_known_to_fit(offer))
    };
    if candidates.iter().any(|candidate| is_known(candidate, filter)) {
        candidates.retain(|candidate| {
            let known = is_known(candidate, filter);
            if !known {
                filter.note(&candidate.entry.model, None, Removal::NotKnownToFit);
            }
            known
        });
    }
}
