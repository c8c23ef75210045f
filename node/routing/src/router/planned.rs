//! Decisions under a rule: its pick among those that may and can serve the request, then its other models, then its
//! fallback chain. Each passes the same filter as what a client asks for by name.

use std::sync::Arc;
use std::time::Instant;

use rand::Rng;

use super::candidate::Candidate;
use super::{Ask, Considered, Decision, Fallback, NoRoute, RouteReason, Router, Snapshot};
use crate::bandit::{Policy, Weights};
use crate::choice::ModelChoice;
use crate::ids::ArmId;
use crate::profile::RequestProfile;
use crate::request::Request;
use crate::rules::Plan;

/// What a request and a rule make together.
#[derive(Clone, Copy)]
pub struct Planned<'a> {
    /// The rule's word.
    pub plan: &'a Plan,
    /// Reads the name of a model as if a client had written it.
    pub choice: &'a dyn Fn(&str) -> ModelChoice,
    /// Who called the tools whose results the request brings.
    pub previous: Option<&'a ArmId>,
}

impl<P: Policy> Router<P> {
    /// Decides where a request goes that a rule is about.
    ///
    /// The pick is the first of the plan's targets that has a way, so its probability is its weight among those that
    /// have one, and the decision says so.
    ///
    /// # Errors
    /// [`NoRoute`] when neither a target nor a fallback may and can serve it: the first target's reason.
    pub fn decide_planned(
        &self,
        planned: Planned<'_>,
        request: &Request<'_>,
        profile: &RequestProfile,
        snapshot: &Snapshot<'_>,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Result<Decision, NoRoute> {
        let Planned { plan, choice, previous } = planned;
        let mut decide = |choice: ModelChoice| {
            let request = plan.narrowed(request, choice);
            self.decide_after(previous, &request, profile, snapshot, now, rng)
        };
        let (mut ways, mut refusal) = (Vec::new(), None);
        if plan.targets.is_empty() {
            match decide(request.choice.clone()) {
                Ok(decision) => ways.push((1.0, decision)),
                Err(no) => refusal = Some(no),
            }
        }
        for target in &plan.targets {
            match decide(choice(&target.model)) {
                Ok(decision) => ways.push((target.weight, decision)),
                Err(no) => refusal = refusal.or(Some(no)),
            }
        }
        let chain: Vec<Decision> =
            plan.fallback.iter().filter_map(|model| decide(choice(model)).ok()).collect();
        let is_choice = ways.len() > 1;
        let considered = match is_choice {
            true => {
                considered(&ways, &plan.narrowed(request, request.choice.clone()), profile, snapshot, now)
            }
            false => Vec::new(),
        };
        let total: f64 = ways.iter().map(|(weight, _)| weight).sum();
        let mut order = ways.iter().map(|(_, decision)| decision).chain(&chain);
        let Some(picked) = order.next() else { return Err(refusal.unwrap_or(NoRoute::NoLocalCapacity)) };
        let mut decision = picked.clone();
        decision.fallback_models.extend(order.flat_map(ways_of));
        decision.rule = Some(plan.rule.clone());
        if ways.is_empty() {
            decision.reason = RouteReason::Fallback;
        }
        if is_choice {
            let same = ways.iter().filter(|(_, other)| other.arm == decision.arm);
            decision.propensity *= same.map(|(weight, _)| weight).sum::<f64>() / total;
        }
        if !considered.is_empty() {
            decision.considered = considered;
        }
        Ok(decision)
    }
}

/// Everybody that a decision may end up at, in its order.
fn ways_of(decision: &Decision) -> impl Iterator<Item = Fallback> {
    let first = Fallback {
        model: decision.model.clone(),
        arm: decision.arm.clone(),
        offers: decision.offers.clone(),
    };
    std::iter::once(first).chain(decision.fallback_models.iter().cloned())
}

/// Accounts for the arms of a split as if they had been weighed, so that another policy can be compared on them.
/// Empty where the model of one of them was ours to choose: then what was weighed there is the account.
fn considered(
    ways: &[(f64, Decision)],
    request: &Request<'_>,
    profile: &RequestProfile,
    snapshot: &Snapshot<'_>,
    now: Instant,
) -> Vec<Considered> {
    if ways.iter().any(|(_, decision)| !decision.considered.is_empty()) {
        return Vec::new();
    }
    let placed = snapshot.posterior.place(&profile.features, &profile.words);
    let weights = Weights::of(request.effective_preference());
    let ask = Ask { request, profile, snapshot, placed: &placed, weights: &weights, previous: None, now };
    let mut seen: Vec<Considered> = Vec::with_capacity(ways.len());
    for (_, decision) in ways {
        let Some(entry) = snapshot.registry.arms().iter().find(|entry| entry.id == decision.arm) else {
            continue;
        };
        if seen.iter().all(|other| other.arm != entry.id) {
            let offers = decision.offers.iter().filter(|offer| offer.model.arm() == entry.id);
            let candidate = Candidate { entry, offers: offers.map(Arc::clone).collect() };
            let view = candidate.view(ask);
            let score = view.answer.mean - view.penalty;
            let by_pair = snapshot.posterior.spoken(&entry.id, &placed).is_some();
            seen.push(Considered::new(&entry.model, &view, score, by_pair));
        }
    }
    seen.sort_by(|a, b| b.score.total_cmp(&a.score));
    seen
}
