//! From a request to a decision: what is allowed, what is possible, what is best. In this order, always.
//!
//! Policy filters before anything ranks, on every hop, so no ranking, retry or fallback can bring a forbidden
//! upstream back: whatever a [`Decision`] holds passed the filter.

mod account;
mod candidate;
mod filter;
mod no_route;
mod permitted;
mod planned;
mod reason;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use rand::Rng;

use crate::balance::LoadBook;
use crate::bandit::{ArmView, Placed, Policy, Posterior, Thompson, Weights};
use crate::choice::ModelChoice;
use crate::class::Mode;
use crate::ids::{ArmId, UpstreamId};
use crate::profile::RequestProfile;
use crate::registry::{Craft, Offer, Registry, Route};
use crate::request::Request;
use crate::router::candidate::{Candidate, Scope};
use crate::router::filter::Filter;

pub use account::{Considered, Removal, Removed};
pub use no_route::NoRoute;
pub use permitted::Permitted;
pub use planned::Planned;
pub use reason::RouteReason;

/// Names that an "unknown model" error suggests.
const SUGGESTIONS: usize = 3;

/// Arms that a policy weighs; above that, those with the best prior. Bounds the time of a decision.
const MAX_ARMS: usize = 32;

/// Quality given up to let the model go on that called the tools whose results a request brings: a guess, as large as
/// the step between two size classes.
const SWITCHING: f64 = 0.1;

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
    /// Name of the rule that led there; `None` if no rule was about the request.
    pub rule: Option<Arc<str>>,
    /// Every arm that was weighed, best first; empty when the caller named the model.
    pub considered: Vec<Considered>,
    /// Who was not weighed, and why; up to 32.
    pub removed: Vec<Removed>,
    /// The choice is not the arm with the highest expected utility: it was drawn in order to learn.
    pub explored: bool,
    /// The request is unlike all that was judged, so that only the arms' levels spoke.
    pub strange: bool,
    /// Every arm that the filter admitted, the chosen one among them: what [`ladder`](crate::escalate::ladder) ranks.
    /// Empty where no answer may be escalated: unless the mode is `auto`, the model was named or ours to choose,
    /// and this is the router where the client connected.
    pub permitted: Vec<Arc<Permitted>>,
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
        self.decide_after(None, request, profile, snapshot, now, rng)
    }

    /// Decides where a request goes that brings the results of tools which an arm called in the turn before: any
    /// other arm is charged for the change.
    ///
    /// # Errors
    /// As [`decide`](Self::decide).
    pub fn decide_after(
        &self,
        previous: Option<&ArmId>,
        request: &Request<'_>,
        profile: &RequestProfile,
        snapshot: &Snapshot<'_>,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Result<Decision, NoRoute> {
        let placed = snapshot.posterior.place(&profile.features, &profile.words);
        let weights = Weights::of(request.effective_preference());
        let ask = Ask { request, profile, snapshot, placed: &placed, weights: &weights, previous, now };
        let registry = snapshot.registry;
        match &request.choice {
            ModelChoice::Auto(_) | ModelChoice::AutoLocal => {
                self.choose(ask, &mut Filter::new(request, profile), Scope::Everywhere, rng)
            }
            ModelChoice::Named(model) => self.decide_named(ask, model, rng),
            ModelChoice::OnDevice { device, model } => {
                let mut filter = Filter::new(request, profile);
                let offers = registry.by_model(model);
                let on_device = |offer: &&Arc<Offer>| matches!(&offer.upstream, UpstreamId::Device(id) if id == device || offer.name == *device);
                named(offers.iter().filter(on_device), &mut filter, RouteReason::PinnedDevice).map_err(|no| {
                    match (filter.has_seen(), offers) {
                        (true, _) => no.about(model),
                        (false, []) => NoRoute::unknown(model, request, registry),
                        (false, _) => NoRoute::NoDevice { model: Some(format!("{model} on {device}")) },
                    }
                })
            }
            ModelChoice::Provider { provider, model } => {
                let mut filter = Filter::new(request, profile);
                let from_provider = |offer: &&Arc<Offer>| {
                    matches!(&offer.upstream, UpstreamId::Provider(id) if id == provider)
                        && is_providers_model(&offer.model.id, provider, model)
                };
                let name = format!("{provider}/{model}");
                let by_name = registry.by_model(&name);
                let mut known = registry.offers().iter().filter(from_provider).peekable();
                if by_name.is_empty() && known.peek().is_none() {
                    return Err(NoRoute::unknown(&name, request, registry));
                }
                // An engine may serve a model whose own name begins as a provider does: openai/gpt-oss-20b. What another
                // router calls a provider takes such a name from no device; a provider of this node's own does.
                let is_heard_of = by_name.iter().any(|offer| !is_provider(offer))
                    && request.effective_mode() != Mode::Cloud
                    && !known.clone().any(|offer| offer.routes.contains(&Route::Direct));
                if is_heard_of || known.peek().is_none() {
                    return self.decide_named(ask, &name, rng);
                }
                let offers = registry.offers().iter().filter(from_provider);
                named(offers, &mut filter, RouteReason::PinnedProvider).map_err(|no| match no {
                    NoRoute::NoDevice { .. } => NoRoute::ProviderAway { provider: provider.clone() },
                    other => other,
                })
            }
        }
    }

    /// Decides for a served name. A model that only devices serve makes room for a provider's when the caller asked
    /// for the cloud, or when the prompt is too long for the devices and the mode leaves it to us.
    fn decide_named(&self, ask: Ask<'_>, model: &str, rng: &mut impl Rng) -> Result<Decision, NoRoute> {
        let Ask { request, profile, snapshot, .. } = ask;
        let offers = by_devices_first(snapshot.registry.by_model(model));
        let may_replace = request.hop == 0
            && request.needs.craft() == Craft::Text
            && !offers.is_empty()
            && !offers.iter().any(|offer| offer.is_cloud());
        let mut replace = |reason: RouteReason| {
            let mut filter = Filter::new(request, profile);
            let decision = self.choose(ask, &mut filter, Scope::CloudOnly, rng).ok()?;
            Some(Decision { reason, ..decision })
        };
        let mut filter = Filter::new(request, profile);
        let instead = match request.effective_mode() {
            Mode::Cloud if may_replace => replace(RouteReason::ModeCloud),
            Mode::Auto if may_replace && filter.is_too_long_for_devices() => {
                replace(RouteReason::PromptTooLong)
            }
            Mode::Auto | Mode::Local | Mode::Cloud => None,
        };
        if let Some(decision) = instead {
            return Ok(decision);
        }
        match named(offers.iter().copied(), &mut filter, RouteReason::Named) {
            Ok(mut decision) => {
                if may_escalate(request) {
                    let mut others = Filter::new(request, profile);
                    let mut candidates =
                        candidate::gather(snapshot.registry, request, &mut others, Scope::Everywhere);
                    if filter.is_too_long_for_devices() {
                        decision.prefer_cloud();
                        candidate::prefer_cloud(&mut candidates);
                    }
                    decision.permitted = permitted::of(candidates, ask, &decision.offers);
                }
                Ok(decision)
            }
            Err(NoRoute::ContextTooLong { limit, tokens }) => {
                let cloud = (may_replace && request.effective_mode() == Mode::Auto)
                    .then(|| replace(RouteReason::PromptTooLong));
                cloud.flatten().ok_or(NoRoute::ContextTooLong { limit, tokens })
            }
            Err(no) if filter.has_seen() => Err(no.about(model)),
            Err(_) => Err(NoRoute::unknown(model, request, snapshot.registry)),
        }
    }

    /// Chooses among all models that may and can serve the request.
    fn choose(
        &self,
        ask: Ask<'_>,
        filter: &mut Filter<'_>,
        scope: Scope,
        rng: &mut impl Rng,
    ) -> Result<Decision, NoRoute> {
        let Ask { request, snapshot, .. } = ask;
        let mut candidates = candidate::gather(snapshot.registry, request, filter, scope);
        if candidates.is_empty() && !filter.has_seen() && !snapshot.registry.offers().is_empty() {
            let what = match request.needs.craft() {
                Craft::Text => "chat",
                Craft::Vectors => "embeddings",
                Craft::Transcripts => "transcription",
                Craft::Speech => "speech",
            };
            return Err(NoRoute::Unsupported { what });
        }
        if candidates.is_empty() {
            return Err(filter.refusal());
        }
        if request.needs.embeddings {
            // Vectors of two models cannot be compared: the same model each time, while it is served.
            candidates.truncate(1);
        } else if may_escalate(request) && filter.is_too_long_for_devices() {
            candidate::prefer_cloud(&mut candidates);
        }
        if candidates.len() > MAX_ARMS {
            candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.entry.size));
            candidates.truncate(MAX_ARMS);
        }
        let stays = |candidate: &Candidate<'_>| ask.previous == Some(&candidate.entry.id);
        let can_stay = candidates.iter().any(stays);
        let weighed = candidates.into_iter().map(|candidate| {
            let mut view = candidate.view(ask);
            if can_stay && !stays(&candidate) {
                view.penalty += SWITCHING;
            }
            (candidate, view)
        });
        let (candidates, views): (Vec<Candidate<'_>>, Vec<ArmView<'_>>) =
            candidate::in_time(weighed.collect(), request.time_limit, filter).into_iter().unzip();
        let selection = self.policy.select(&views, rng);
        let reason =
            if candidates.len() == 1 { RouteReason::OnlyCandidate } else { RouteReason::AutoThompson };
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        order.sort_by(|a, b| selection.scores[*b].total_cmp(&selection.scores[*a]).then(a.cmp(b)));
        let account = |index: &usize| {
            let view = &views[*index];
            let by_pair = ask.snapshot.posterior.spoken(view.arm, ask.placed).is_some();
            Considered::new(&candidates[*index].entry.model, view, selection.scores[*index], by_pair)
        };
        let considered = order.iter().map(account).collect();
        let explored = order[0] != selection.index;
        let permitted = if may_escalate(request) {
            let weighed = candidates.iter().zip(&views);
            weighed.flat_map(|(candidate, view)| permitted::split(candidate, *view, ask)).collect()
        } else {
            Vec::new()
        };
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
            rule: None,
            considered,
            removed: filter.removed(),
            explored,
            strange: ask.placed.strange,
            permitted,
        })
    }
}

impl Decision {
    /// Leaves only the offers in the cloud, if there are any.
    fn prefer_cloud(&mut self) {
        if self.offers.iter().any(|offer| offer.is_cloud()) {
            self.offers.retain(|offer| offer.is_cloud());
        }
    }
}

/// A request with the picture that it is decided in.
#[derive(Clone, Copy)]
struct Ask<'a> {
    request: &'a Request<'a>,
    profile: &'a RequestProfile,
    snapshot: &'a Snapshot<'a>,
    placed: &'a Placed,
    weights: &'a Weights,
    /// Who called the tools whose results the request brings.
    previous: Option<&'a ArmId>,
    now: Instant,
}

/// True when an answer to the request may be followed by a stronger model's. Only the entry router does that, since
/// two that judge the same answer would pay twice; vectors and sound are not judged.
fn may_escalate(request: &Request<'_>) -> bool {
    let choice = match request.choice {
        ModelChoice::Auto(_) | ModelChoice::Named(_) => true,
        ModelChoice::AutoLocal | ModelChoice::OnDevice { .. } | ModelChoice::Provider { .. } => false,
    };
    let is_text = request.needs.craft() == Craft::Text;
    choice && request.effective_mode() == Mode::Auto && request.hop == 0 && is_text
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
        rule: None,
        considered: Vec::new(),
        removed: filter.removed(),
        explored: false,
        strange: false,
        permitted: Vec::new(),
    })
}

fn is_provider(offer: &Offer) -> bool {
    matches!(offer.upstream, UpstreamId::Provider(_))
}

/// Leaves out the providers that only other routers have, where a device serves the same name.
fn by_devices_first(offers: &[Arc<Offer>]) -> Vec<&Arc<Offer>> {
    let on_devices = offers.iter().any(|offer| !is_provider(offer));
    let stays =
        |offer: &&Arc<Offer>| !on_devices || !is_provider(offer) || offer.routes.contains(&Route::Direct);
    offers.iter().filter(stays).collect()
}

/// True when a served name is a provider's model, with or without the provider in front.
fn is_providers_model(id: &str, provider: &str, model: &str) -> bool {
    id == model
        || id.strip_prefix(provider).and_then(|rest| rest.strip_prefix('/')).is_some_and(|rest| rest == model)
}
