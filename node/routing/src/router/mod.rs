//! From a request to a decision: what is allowed, what is possible, what is best. In this order, always.
//!
//! Policy filters before anything ranks, on every hop, so no ranking, retry or fallback can bring a forbidden
//! upstream back: whatever a [`Decision`] holds passed the filter.

mod filter;
mod no_route;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use rand::Rng;

use crate::balance::{Balancer, LoadBook};
use crate::bandit::{ArmStats, ArmView, Context, Policy, Posterior, SizeClass, Thompson};
use crate::choice::ModelChoice;
use crate::ids::{ArmId, UpstreamId};
use crate::profile::RequestProfile;
use crate::registry::{ArmEntry, Offer, Registry};
use crate::request::Request;
use crate::router::filter::Filter;
use crate::units::MicroUsd;

pub use no_route::NoRoute;

/// Names that an "unknown model" error suggests.
const SUGGESTIONS: usize = 3;

/// Arms that a policy weighs; above that, those with the best prior. Bounds the time of a decision.
const MAX_ARMS: usize = 32;

/// Time to first token to expect before any was measured, milliseconds: a warm laptop.
const EXPECTED_TTFT_MS: f64 = 600.0;

/// Time per token of a provider before any was measured, milliseconds.
const PROVIDER_MS_PER_TOKEN: f64 = 15.0;

/// Why an arm was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteReason {
    /// The caller named the model.
    Named,
    /// The caller named the device.
    PinnedDevice,
    /// The caller named the provider.
    PinnedProvider,
    /// The bandit chose by Thompson sampling.
    AutoThompson,
    /// The model was ours to choose, but only one could serve the request.
    OnlyCandidate,
    /// The chosen model failed; this one ranked next.
    Fallback,
    /// No decision was made.
    None,
}

impl RouteReason {
    /// Returns the words used in headers, the history and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Named => "named",
            Self::PinnedDevice => "pinned_device",
            Self::PinnedProvider => "pinned_provider",
            Self::AutoThompson => "auto:thompson",
            Self::OnlyCandidate => "only_candidate",
            Self::Fallback => "fallback",
            Self::None => "none",
        }
    }
}

impl fmt::Display for RouteReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a decision is made from: one consistent picture, taken once per request.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot<'a> {
    /// What is served.
    pub registry: &'a Registry,
    /// What was learnt.
    pub posterior: &'a Posterior,
    /// What the upstreams do now.
    pub loads: &'a LoadBook,
}

/// Another model to try when the chosen one cannot answer.
#[derive(Debug, Clone)]
pub struct Fallback {
    /// Served name.
    pub model: Arc<str>,
    /// Its arm.
    pub arm: ArmId,
    /// Who may serve it for this request.
    pub offers: Vec<Arc<Offer>>,
}

/// Where a request goes.
#[derive(Debug, Clone)]
pub struct Decision {
    /// Served name of the chosen model.
    pub model: Arc<str>,
    /// Its arm. When the caller named a model that several builds serve, the offer picked says which: [`ModelSpec::arm`](crate::ModelSpec::arm).
    pub arm: ArmId,
    /// Who may serve it for this request, at least one; the balancer picks, failover picks again.
    pub offers: Vec<Arc<Offer>>,
    /// The other models, best first; empty unless the model was ours to choose.
    pub fallback_models: Vec<Fallback>,
    /// Probability with which the arm was chosen; 1 when the caller named it.
    pub propensity: f64,
    /// Why.
    pub reason: RouteReason,
    /// Every model that was weighed with its expected utility, best first.
    pub considered: Vec<(Arc<str>, f64)>,
}

/// Decides where requests go, by a policy.
#[derive(Debug, Clone, Copy, Default)]
pub struct Router<P = Thompson> {
    policy: P,
}

impl<P: Policy> Router<P> {
    /// Makes a router that chooses by `policy`.
    pub fn new(policy: P) -> Self {
        Self { policy }
    }

    /// Returns the policy, for folding outcomes into statistics.
    pub fn policy(&self) -> &P {
        &self.policy
    }

    /// Decides where a request goes.
    ///
    /// # Errors
    /// [`NoRoute`] when nothing may or can serve it, with the reason that a client can act on.
    pub fn decide(
        &self,
        request: &Request<'_>,
        profile: &RequestProfile,
        snapshot: &Snapshot<'_>,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Result<Decision, NoRoute> {
        let mut filter = Filter::new(request, profile);
        let registry = snapshot.registry;
        match &request.choice {
            ModelChoice::Auto(_) | ModelChoice::AutoLocal => {
                self.choose(request, profile, snapshot, &mut filter, now, rng)
            }
            ModelChoice::Named(model) => {
                let offers = registry.by_model(model).iter();
                named(offers, &mut filter, RouteReason::Named).map_err(|no| {
                    if filter.has_seen() { no.about(model) } else { NoRoute::unknown(model, registry) }
                })
            }
            ModelChoice::OnDevice { device, model } => {
                let offers = registry.by_model(model);
                let on_device = |offer: &&Arc<Offer>| matches!(&offer.upstream, UpstreamId::Device(id) if id == device || offer.name == *device);
                named(offers.iter().filter(on_device), &mut filter, RouteReason::PinnedDevice).map_err(|no| {
                    match (filter.has_seen(), offers) {
                        (true, _) => no.about(model),
                        (false, []) => NoRoute::unknown(model, registry),
                        (false, _) => NoRoute::NoDevice { model: Some(format!("{model} on {device}")) },
                    }
                })
            }
            ModelChoice::Provider { provider, model } => {
                let from_provider = |offer: &&Arc<Offer>| {
                    matches!(&offer.upstream, UpstreamId::Provider(id) if id == provider)
                        && is_providers_model(&offer.model.id, provider, model)
                };
                let offers = registry.offers().iter().filter(from_provider);
                named(offers, &mut filter, RouteReason::PinnedProvider).map_err(|no| {
                    let name = || format!("{provider}/{model}");
                    if filter.has_seen() { no.about(&name()) } else { NoRoute::unknown(&name(), registry) }
                })
            }
        }
    }

    /// Chooses among all models that may and can serve the request.
    fn choose(
        &self,
        request: &Request<'_>,
        profile: &RequestProfile,
        snapshot: &Snapshot<'_>,
        filter: &mut Filter<'_>,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Result<Decision, NoRoute> {
        let mut candidates: Vec<Candidate<'_>> = Vec::new();
        for entry in snapshot.registry.arms() {
            let makes_vectors =
                entry.embedder || entry.offers.iter().any(|o| o.model.embeddings == Some(true));
            if (request.needs.embeddings && !makes_vectors) || (!request.needs.embeddings && entry.embedder) {
                continue;
            }
            let offers: Vec<Arc<Offer>> =
                entry.offers.iter().filter(|offer| filter.admits(offer)).cloned().collect();
            if !offers.is_empty() {
                candidates.push(Candidate { entry, offers });
            }
        }
        prefer_known(&mut candidates, filter);
        if candidates.is_empty() && !filter.has_seen() && !snapshot.registry.offers().is_empty() {
            let what = if request.needs.embeddings { "embeddings" } else { "chat" };
            return Err(NoRoute::Unsupported { what });
        }
        if candidates.is_empty() {
            return Err(filter.refusal());
        }
        if request.needs.embeddings {
            // Vectors of two models cannot be compared: the same model each time, while it is served.
            candidates.truncate(1);
        }
        if candidates.len() > MAX_ARMS {
            candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.entry.size));
            candidates.truncate(MAX_ARMS);
        }
        let views: Vec<ArmView<'_>> =
            candidates.iter().map(|candidate| candidate.view(profile, snapshot, now)).collect();
        let context = Context { profile, preference: request.effective_preference() };
        let selection = self.policy.select(&context, &views, rng);
        let reason =
            if candidates.len() == 1 { RouteReason::OnlyCandidate } else { RouteReason::AutoThompson };
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        order.sort_by(|a, b| selection.scores[*b].total_cmp(&selection.scores[*a]).then(a.cmp(b)));
        let considered =
            order.iter().map(|index| (candidates[*index].entry.model.clone(), selection.scores[*index]));
        let considered = considered.collect();
        let mut ranked: Vec<Option<Candidate<'_>>> = candidates.into_iter().map(Some).collect();
        let chosen = ranked[selection.index].take().expect("each candidate is taken once");
        let fallback_models = order
            .into_iter()
            .filter_map(|index| ranked[index].take())
            .map(|other| Fallback {
                model: other.entry.model.clone(),
                arm: other.entry.id.clone(),
                offers: other.offers,
            })
            .collect();
        Ok(Decision {
            model: chosen.entry.model.clone(),
            arm: chosen.entry.id.clone(),
            offers: chosen.offers,
            fallback_models,
            propensity: selection.propensity,
            reason,
            considered,
        })
    }
}

/// An arm with the offers that passed the filter.
struct Candidate<'a> {
    entry: &'a ArmEntry,
    offers: Vec<Arc<Offer>>,
}

impl<'a> Candidate<'a> {
    fn view(&self, profile: &RequestProfile, snapshot: &Snapshot<'_>, now: Instant) -> ArmView<'a> {
        let balancer = Balancer::for_output(profile.expected_output);
        let stats = snapshot.posterior.arm(&self.entry.id);
        let latency = |offer: &Arc<Offer>| {
            let load = snapshot.loads.of(offer, now);
            let waiting = match offer.slots {
                0 => 1.0,
                slots => f64::from(load.in_flight.saturating_add(1)) / f64::from(slots),
            };
            let predicted = balancer.predicted_ms(&load);
            predicted.unwrap_or_else(|| expected_ms(self.entry.size, offer, profile, &stats))
                * waiting.max(1.0)
        };
        let cost = |offer: &Arc<Offer>| match offer.price {
            Some(price) => price.cost(profile.prompt_tokens, profile.expected_output),
            None => MicroUsd(0),
        };
        ArmView {
            arm: &self.entry.id,
            size: self.entry.size,
            stats,
            cost: self.offers.iter().map(cost).min().unwrap_or_default(),
            latency_ms: self.offers.iter().map(latency).fold(f64::INFINITY, f64::min),
        }
    }
}

/// Predicts the time to a whole answer of an upstream that this node never measured, milliseconds: from what
/// the mesh saw of the model elsewhere, else from its size.
fn expected_ms(size: SizeClass, offer: &Offer, profile: &RequestProfile, stats: &ArmStats) -> f64 {
    let per_token = if offer.is_cloud() { PROVIDER_MS_PER_TOKEN } else { size.expected_ms_per_token() };
    stats.ttft_ms().unwrap_or(EXPECTED_TTFT_MS) + per_token * f64::from(profile.expected_output.0)
}

/// Leaves out arms that may lack what the request needs, if some are known to have it.
fn prefer_known(candidates: &mut Vec<Candidate<'_>>, filter: &Filter<'_>) {
    let known =
        |candidate: &Candidate<'_>| candidate.offers.iter().any(|offer| filter.is_known_to_fit(offer));
    if candidates.iter().any(known) {
        candidates.retain(known);
    }
}

/// Decides for a model that the caller named: every offer of it that passes the filter.
fn named<'a>(
    offers: impl IntoIterator<Item = &'a Arc<Offer>>,
    filter: &mut Filter<'_>,
    reason: RouteReason,
) -> Result<Decision, NoRoute> {
    let offers: Vec<Arc<Offer>> = offers.into_iter().filter(|offer| filter.admits(offer)).cloned().collect();
    let Some(first) = offers.first() else { return Err(filter.refusal()) };
    Ok(Decision {
        model: first.model.id.clone(),
        arm: first.model.arm(),
        offers,
        fallback_models: Vec::new(),
        propensity: 1.0,
        reason,
        considered: Vec::new(),
    })
}

/// True when a served name is a provider's model, with or without the provider in front.
fn is_providers_model(id: &str, provider: &str, model: &str) -> bool {
    id == model
        || id.strip_prefix(provider).and_then(|rest| rest.strip_prefix('/')).is_some_and(|rest| rest == model)
}
