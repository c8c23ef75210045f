//! In which order upstreams are tried: another host of the model first, then another way to a host that failed,
//! then the next model where it was ours to choose.

use std::sync::Arc;
use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::StdRng;
use shoal_routing::{
    ArmId, Balancer, Decision, Fallback, LoadBook, Offer, Route, RouteReason, Tokens, UpstreamId,
};

/// One attempt's target.
pub(super) struct Choice {
    pub(super) offer: Arc<Offer>,
    pub(super) route: Route,
    pub(super) arm: ArmId,
    pub(super) reason: RouteReason,
}

/// The decision's candidates, taken one by one.
pub(super) struct Candidates {
    offers: Vec<Arc<Offer>>,
    others: std::vec::IntoIter<Fallback>,
    reason: RouteReason,
    tried: Vec<(Arc<Offer>, Route)>,
    rng: StdRng,
}

impl Candidates {
    pub(super) fn new(decision: Decision) -> Self {
        Self {
            offers: decision.offers,
            others: decision.fallback_models.into_iter(),
            reason: decision.reason,
            tried: Vec::new(),
            rng: StdRng::from_rng(&mut rand::rng()),
        }
    }

    /// Returns the next candidate; no way to a model on a host is tried twice.
    pub(super) fn next(&mut self, loads: &LoadBook, hop: u32, expected_output: Tokens) -> Option<Choice> {
        let balancer = Balancer::for_output(expected_output);
        let now = Instant::now();
        loop {
            let exhausted: Vec<UpstreamId> = self
                .offers
                .iter()
                .filter(|o| self.untried(o, hop).is_none())
                .map(|o| o.upstream.clone())
                .collect();
            // A host that failed, by whatever way or model, comes after hosts that did not fail at all.
            let failed: Vec<UpstreamId> =
                self.tried.iter().map(|(o, _)| o.upstream.clone()).chain(exhausted.iter().cloned()).collect();
            let picked = balancer
                .pick(&self.offers, loads, now, &mut self.rng, &failed)
                .or_else(|| balancer.pick(&self.offers, loads, now, &mut self.rng, &exhausted));
            if let Some(offer) = picked {
                let route = self.untried(&offer, hop)?;
                self.tried.push((offer.clone(), route.clone()));
                let arm = offer.model.arm();
                return Some(Choice { offer, route, arm, reason: self.reason });
            }
            self.offers = self.others.next()?.offers;
            self.reason = RouteReason::Fallback;
        }
    }

    fn untried(&self, offer: &Offer, hop: u32) -> Option<Route> {
        let was_tried = |route: &Route| {
            self.tried
                .iter()
                .any(|(o, r)| o.upstream == offer.upstream && o.model.id == offer.model.id && r == route)
        };
        offer.routes_at(hop).find(|route| !was_tried(route)).cloned()
    }
}
