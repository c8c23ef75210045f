//! In which order upstreams are tried: another host of the model first, then another way to a host that failed,
//! then the next model where it was ours to choose.

use std::sync::Arc;
use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::StdRng;
use shoal_routing::{
    ArmId, Balancer, Decision, Fallback, Forecast, LoadBook, Offer, Route, RouteReason, UpstreamId, Work,
};

/// Tries that a model gets before the next one of a rule's chain: another host once, of three attempts in all.
const CHAINED: usize = 2;

/// Part of the predicted time on a busy host within which a free one must be done to be worth the move.
const WORTH_MOVING: f64 = 0.9;

/// One attempt's target.
#[derive(Debug, Clone)]
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
    /// Tries that one model may take while another one waits.
    patience: usize,
    tries: usize,
    rng: StdRng,
}

impl Candidates {
    pub(super) fn new(decision: &Decision) -> Self {
        Self {
            offers: decision.offers.clone(),
            others: decision.fallback_models.clone().into_iter(),
            reason: decision.reason,
            tried: Vec::new(),
            // A chain that somebody wrote down is to be gone along, though a model has many hosts.
            patience: if decision.rule.is_some() { CHAINED } else { usize::MAX },
            tries: 0,
            rng: StdRng::from_rng(&mut rand::rng()),
        }
    }

    /// Candidates of a stronger model, asked because an answer was not good enough.
    pub(super) fn stronger(offers: Vec<Arc<Offer>>) -> Self {
        Self {
            offers,
            others: Vec::new().into_iter(),
            reason: RouteReason::Escalated,
            tried: Vec::new(),
            patience: usize::MAX,
            tries: 0,
            rng: StdRng::from_rng(&mut rand::rng()),
        }
    }

    /// Returns the next candidate; no way to a model on a host is tried twice.
    pub(super) fn next(&mut self, loads: &LoadBook, hop: u32, balancer: Balancer) -> Option<Choice> {
        let now = Instant::now();
        loop {
            let exhausted: Vec<UpstreamId> = self
                .offers
                .iter()
                .filter(|o| self.untried(o, hop).is_none())
                .map(|o| o.upstream.clone())
                .collect();
            // A host that failed, by whatever way or model, comes after hosts that did not fail at all.
            // So does one that is reached only through a router that failed: many hosts share its fate.
            let cut_off =
                self.offers.iter().filter(|o| self.untried(o, hop).is_some_and(|r| self.through_failed(&r)));
            let failed: Vec<UpstreamId> = self
                .tried
                .iter()
                .map(|(o, _)| o)
                .chain(cut_off)
                .map(|o| o.upstream.clone())
                .chain(exhausted.iter().cloned())
                .collect();
            let has_its_share = self.tries >= self.patience && self.others.len() > 0;
            let picked = (!has_its_share).then(|| {
                balancer
                    .pick(&self.offers, loads, now, &mut self.rng, &failed)
                    .or_else(|| balancer.pick(&self.offers, loads, now, &mut self.rng, &exhausted))
            });
            if let Some(offer) = picked.flatten() {
                self.tries += 1;
                let route = self.untried(&offer, hop)?;
                self.tried.push((offer.clone(), route.clone()));
                let arm = offer.model.arm();
                return Some(Choice { offer, route, arm, reason: self.reason });
            }
            self.offers = self.others.next()?.offers;
            self.tries = 0;
            self.reason = RouteReason::Fallback;
        }
    }

    /// Returns another device with a free slot for the same model, to be asked beside one that is late.
    pub(super) fn beside(
        &mut self,
        late: &Choice,
        loads: &LoadBook,
        hop: u32,
        balancer: Balancer,
    ) -> Option<Choice> {
        let now = Instant::now();
        let free = self.free(late, loads, hop, now);
        self.instead(late, &free, loads, hop, balancer, now)
    }

    /// Returns a device on which a request that waits for a busy one would be done earlier, since it has a free slot now.
    pub(super) fn freed(
        &mut self,
        busy: &Choice,
        loads: &LoadBook,
        hop: u32,
        balancer: Balancer,
        work: Work,
    ) -> Option<Choice> {
        let now = Instant::now();
        let total_ms = |offer: &Offer| Forecast::of(work, offer, &loads.of(offer, now)).map(|f| f.total_ms());
        let waits_ms = total_ms(&busy.offer);
        let mut free = self.free(busy, loads, hop, now);
        // Forecasts err; a place in a line is not given up for nothing.
        free.retain(|offer| match (total_ms(offer), waits_ms) {
            (Some(there), Some(here)) => there < here * WORTH_MOVING,
            (None, _) | (_, None) => true,
        });
        let choice = self.instead(busy, &free, loads, hop, balancer, now)?;
        self.give_back(busy);
        Some(choice)
    }

    /// Devices with a free slot for the model of a choice, which were not tried and are well.
    fn free(&self, late: &Choice, loads: &LoadBook, hop: u32, now: Instant) -> Vec<Arc<Offer>> {
        let is_free = |offer: &&Arc<Offer>| {
            let load = loads.of(offer, now);
            matches!(offer.upstream, UpstreamId::Device(_))
                && !offer.is_cloud()
                && offer.upstream != late.offer.upstream
                && offer.model.id == late.offer.model.id
                && (offer.slots > 0 && load.in_flight < offer.slots)
                && (load.admits && !load.penalised)
                && self.untried(offer, hop).is_some_and(|route| !self.through_failed(&route))
        };
        self.offers.iter().filter(is_free).cloned().collect()
    }

    fn instead(
        &mut self,
        late: &Choice,
        free: &[Arc<Offer>],
        loads: &LoadBook,
        hop: u32,
        balancer: Balancer,
        now: Instant,
    ) -> Option<Choice> {
        let offer = balancer.pick(free, loads, now, &mut self.rng, &[])?;
        let route = self.untried(&offer, hop)?;
        self.tried.push((offer.clone(), route.clone()));
        Some(Choice { offer, route, arm: late.arm.clone(), reason: late.reason })
    }

    /// Lets a host be chosen again that had no room: it is known to be full now, and may be waited for.
    pub(super) fn give_back(&mut self, choice: &Choice) {
        self.tried.retain(|(offer, _)| !Arc::ptr_eq(offer, &choice.offer));
    }

    /// A way to the host that was not tried, around routers that failed if there is one.
    fn untried(&self, offer: &Offer, hop: u32) -> Option<Route> {
        let was_tried = |route: &Route| {
            self.tried
                .iter()
                .any(|(o, r)| o.upstream == offer.upstream && o.model.id == offer.model.id && r == route)
        };
        let fresh = || offer.routes_at(hop).filter(|route| !was_tried(route));
        fresh().find(|route| !self.through_failed(route)).or_else(|| fresh().next()).cloned()
    }

    fn through_failed(&self, route: &Route) -> bool {
        matches!(route, Route::Via(_)) && self.tried.iter().any(|(_, tried)| tried == route)
    }
}
