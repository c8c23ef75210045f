//! What an answer may be escalated to: arms that passed the filter, with what is expected of each.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::bandit::{self, ArmView, Quality};
use crate::ids::ArmId;
use crate::registry::Offer;
use crate::router::candidate::{self, Candidate};
use crate::router::{Ask, MAX_ARMS};
use crate::units::MicroUsd;

/// An arm that the policy filter admitted for a request: on devices or in the cloud, never both.
#[derive(Debug, Clone, PartialEq)]
pub struct Permitted {
    /// Served name.
    pub model: Arc<str>,
    /// Its arm.
    pub arm: ArmId,
    /// Who may serve it for this request, at least one.
    pub offers: Vec<Arc<Offer>>,
    /// A request sent there leaves the devices of the mesh.
    pub cloud: bool,
    /// What is expected of it, from the mesh's judgements and its size.
    pub quality: Quality,
    /// What the request would cost at the cheapest of its offers.
    pub cost: MicroUsd,
    /// Time to the whole answer that its best host would need, milliseconds.
    pub latency_ms: f64,
}

/// Makes the list for a model that the caller named; its own arms stay when the list must be cut.
pub(super) fn of(
    mut candidates: Vec<Candidate<'_>>,
    ask: Ask<'_>,
    named: &[Arc<Offer>],
) -> Vec<Arc<Permitted>> {
    if candidates.len() > MAX_ARMS {
        let is_named =
            |candidate: &Candidate<'_>| named.iter().any(|offer| offer.model.id == candidate.entry.model);
        candidates.sort_by_key(|candidate| Reverse((is_named(candidate), candidate.entry.size)));
        candidates.truncate(MAX_ARMS);
    }
    candidates.iter().flat_map(|candidate| split(candidate, candidate.view(ask), ask)).collect()
}

/// Makes one entry of an arm's offers on devices and one of those in the cloud, given what is known of the arm as a whole.
pub(super) fn split(
    candidate: &Candidate<'_>,
    view: ArmView<'_>,
    ask: Ask<'_>,
) -> impl Iterator<Item = Arc<Permitted>> {
    [false, true].into_iter().filter_map(move |cloud| {
        let offers: Vec<Arc<Offer>> =
            candidate.offers.iter().filter(|offer| offer.is_cloud() == cloud).cloned().collect();
        if offers.is_empty() {
            return None;
        }
        // Where it runs changes what it costs and how long it takes, not how good it is.
        let (cost, latency_ms) = match offers.len() == candidate.offers.len() {
            true => (view.cost, view.latency_ms),
            false => candidate::cost_and_latency(candidate.entry, &offers, &view.stats, ask),
        };
        Some(Arc::new(Permitted {
            model: candidate.entry.model.clone(),
            arm: candidate.entry.id.clone(),
            cloud,
            quality: bandit::expected_quality(&view.answer, &view.stats),
            cost,
            latency_ms,
            offers,
        }))
    })
}
