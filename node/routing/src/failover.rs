//! In which order upstreams are tried: another host of the model first, then another way to a host that failed,
//! then the next model where it was ours to choose.
//!
//! Pure, so that meshes full of faults can be simulated with the order that a node keeps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;

use crate::balance::{Balancer, Forecast, LoadBook, Work};
use crate::ids::{ArmId, UpstreamId};
use crate::limit::MAX_ATTEMPTS;
use crate::registry::{Offer, Registry, Route};
use crate::router::{Decision, Fallback, RouteReason};

/// Tries that a model gets before the next one of a rule's chain: another host once, of three attempts in all.
const CHAINED: usize = 2;

/// Part of the predicted time on a busy host within which a free one must be done to be worth the move.
const WORTH_MOVING: f64 = 0.9;

/// Attempts that one request made and may still make, those for a stronger model included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tries {
    made: u32,
    allowed: u32,
}

impl Tries {
    /// Makes the count of a request that may make `left` attempts; never more than [`MAX_ATTEMPTS`].
    pub fn new(left: u32) -> Self {
        Self { made: 0, allowed: left.min(MAX_ATTEMPTS) }
    }

    /// True while another attempt may be made.
    pub fn are_left(&self) -> bool {
        self.made < self.allowed
    }

    /// Returns how many more may be made.
    pub fn left(&self) -> u32 {
        self.allowed.saturating_sub(self.made)
    }

    /// True before the first attempt.
    pub fn is_fresh(&self) -> bool {
        self.made == 0
    }

    /// True when one attempt was made and no more.
    pub fn is_first(&self) -> bool {
        self.made == 1
    }

    /// Counts an attempt that begins; returns how many whoever is asked by `route` may make of it.
    ///
    /// Another router makes one: what it tries is not told back, so with more the attempts of two routers would
    /// multiply, and a request could reach six hosts.
    pub fn begin(&mut self, route: &Route) -> u32 {
        let left = self.left();
        self.made = self.made.saturating_add(1);
        match route {
            Route::Direct => left,
            Route::Via(_) => left.min(1),
        }
    }
}

/// One attempt's target.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Who is asked.
    pub offer: Arc<Offer>,
    /// By which way.
    pub route: Route,
    /// The arm that will answer.
    pub arm: ArmId,
    /// Why.
    pub reason: RouteReason,
}

impl Choice {
    /// True while `registry`, the newest, still has the way that was chosen from an older one: a request may have
    /// waited for half a minute since, and a router that is dead by now would cost it an attempt and time.
    pub fn is_open(&self, registry: &Registry) -> bool {
        let is_same = |known: &&Arc<Offer>| known.upstream == self.offer.upstream;
        let known = registry.by_model(&self.offer.model.id).iter().find(is_same);
        known.is_some_and(|known| known.routes.contains(&self.route))
    }
}

/// The decision's candidates, taken one by one.
#[derive(Debug)]
pub struct Candidates {
    offers: Vec<Arc<Offer>>,
    others: std::vec::IntoIter<Fallback>,
    reason: RouteReason,
    tried: Vec<(Arc<Offer>, Route)>,
    /// Tries that one model may take while another one waits.
    patience: usize,
    tries: usize,
}

impl Candidates {
    /// Candidates of a decision.
    pub fn new(decision: &Decision) -> Self {
        Self {
            offers: decision.offers.clone(),
            others: decision.fallback_models.clone().into_iter(),
            reason: decision.reason,
            tried: Vec::new(),
            // A chain that somebody wrote down is to be gone along, though a model has many hosts.
            patience: if decision.rule.is_some() { CHAINED } else { usize::MAX },
            tries: 0,
        }
    }

    /// Candidates of a stronger model, asked because an answer was not good enough.
    pub fn stronger(offers: Vec<Arc<Offer>>) -> Self {
        Self {
            offers,
            others: Vec::new().into_iter(),
            reason: RouteReason::Escalated,
            tried: Vec::new(),
            patience: usize::MAX,
            tries: 0,
        }
    }

    /// Returns the next candidate; no way to a model on a host is tried twice.
    ///
    /// `hop` is how often the request was forwarded before; chance among equals comes from `rng`.
    pub fn next(
        &mut self,
        loads: &LoadBook,
        hop: u32,
        balancer: Balancer,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<Choice> {
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
                    .pick(&self.offers, loads, now, rng, &failed)
                    .or_else(|| balancer.pick(&self.offers, loads, now, rng, &exhausted))
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

    /// True while something else than `choice` is left to be tried.
    pub fn has_more(&self, choice: &Choice, hop: u32) -> bool {
        let is_other = |offer: &Arc<Offer>| {
            self.untried(offer, hop).is_some_and(|route| {
                offer.upstream != choice.offer.upstream
                    || offer.model.id != choice.offer.model.id
                    || route != choice.route
            })
        };
        self.others.len() > 0 || self.offers.iter().any(is_other)
    }

    /// Takes in that a host asked for less traffic, for `pause`. One that is full and told how many slots it has may
    /// be chosen again: it is known to be full now, and may be waited for.
    pub fn throttled(
        &mut self,
        choice: &Choice,
        is_full: bool,
        pause: Duration,
        loads: &LoadBook,
        now: Instant,
    ) {
        loads.refused(&choice.offer, now);
        if is_full && choice.offer.slots > 0 {
            self.give_back(choice);
        } else {
            loads.pause(&choice.offer.upstream, now, pause);
        }
    }

    /// Returns another device with a free slot for the same model, to be asked beside one that is late.
    pub fn beside(
        &mut self,
        late: &Choice,
        loads: &LoadBook,
        hop: u32,
        balancer: Balancer,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<Choice> {
        let free = self.free(late, loads, hop, now);
        let offer = balancer.pick(&free, loads, now, rng, &[])?;
        self.instead(late, offer, hop)
    }

    /// Returns a device on which a request that waits for a busy one would be done earlier, since it has a free slot
    /// now; the busy one may be chosen again.
    #[expect(clippy::too_many_arguments, reason = "what is known, when, and the work it is known for")]
    pub fn freed(
        &mut self,
        busy: &Choice,
        loads: &LoadBook,
        hop: u32,
        balancer: Balancer,
        work: Work,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<Choice> {
        let total_ms = |offer: &Offer| {
            Forecast::of(work, offer, &loads.for_work(offer, &work, now)).map(|f| f.total_ms())
        };
        let waits_ms = total_ms(&busy.offer);
        let mut free = self.free(busy, loads, hop, now);
        // Forecasts err; a place in a line is not given up for nothing.
        free.retain(|offer| match (total_ms(offer), waits_ms) {
            (Some(there), Some(here)) => there < here * WORTH_MOVING,
            (None, _) | (_, None) => true,
        });
        let offer = balancer.pick(&free, loads, now, rng, &[])?;
        let choice = self.instead(busy, offer, hop)?;
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

    fn instead(&mut self, late: &Choice, offer: Arc<Offer>, hop: u32) -> Option<Choice> {
        let route = self.untried(&offer, hop)?;
        self.tried.push((offer.clone(), route.clone()));
        Some(Choice { offer, route, arm: late.arm.clone(), reason: late.reason })
    }

    /// Lets a host be chosen again that was not asked after all, or may be waited for.
    pub fn give_back(&mut self, choice: &Choice) {
        // This way to it alone: another one that failed stays tried.
        self.tried.retain(|(offer, route)| !(Arc::ptr_eq(offer, &choice.offer) && *route == choice.route));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::ModelSpec;

    fn via(router: &str) -> Route {
        Route::Via(router.into())
    }

    #[test]
    fn another_router_makes_one_attempt_of_one() {
        let mut tries = Tries::new(9);
        assert_eq!(tries.begin(&via("b")), 1);
        assert!(tries.is_first());
        assert_eq!(tries.begin(&Route::Direct), 2);
        assert_eq!(tries.begin(&via("c")), 1);
        assert!(!tries.are_left(), "three in all, whatever was asked for");
    }

    #[test]
    fn a_way_is_closed_when_the_newest_registry_lost_it() {
        let offer = |routes: &[Route]| {
            let mut offer = Offer::new(UpstreamId::Device("d".into()), Arc::new(ModelSpec::new("m", "test")));
            offer.routes = routes.to_vec();
            offer
        };
        let chosen = Arc::new(offer(&[via("b"), via("c")]));
        let arm = chosen.model.arm();
        let choice = Choice { offer: chosen, route: via("b"), arm, reason: RouteReason::Named };
        assert!(choice.is_open(&Registry::new([offer(&[via("b")])])));
        assert!(!choice.is_open(&Registry::new([offer(&[via("c")])])), "its router died");
        assert!(!choice.is_open(&Registry::default()), "its host left");
    }
}
