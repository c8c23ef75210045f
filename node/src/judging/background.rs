//! Work of the node's own beside its clients': only where a slot is free, and given up when one is missing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use shoal_routing::{ArmId, Decision, LoadBook, MAX_ATTEMPTS, Offer, Request, RouteReason};

use crate::api::parse::{self, Floor, Parsed};
use crate::pipeline::{Origin, Pipeline, Purpose};
use crate::upstream::ApiPath;

/// How often a running call looks whether a client waits for its slot.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Why a call ended without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aside {
    /// A client needed the slot.
    Crowded,
    /// It took too long.
    Late,
}

/// Models that a request may go to, with who serves each, best first.
pub(super) fn by_rank(decision: Decision) -> Vec<(ArmId, Vec<Arc<Offer>>)> {
    let rank = |model: &Arc<str>| decision.considered.iter().position(|weighed| weighed.model == *model);
    let mut models = vec![(rank(&decision.model), decision.arm.clone(), decision.offers.clone())];
    models.extend(decision.fallback_models.iter().map(|f| (rank(&f.model), f.arm.clone(), f.offers.clone())));
    models.sort_by_key(|(rank, _, _)| rank.unwrap_or(usize::MAX));
    models.into_iter().map(|(_, arm, offers)| (arm, offers)).collect()
}

/// Returns the idlest offer that has room for work that nobody waits for: where others run, one slot stays free.
pub(super) fn with_room(offers: &[Arc<Offer>], loads: &LoadBook, now: Instant) -> Option<Arc<Offer>> {
    let room = |offer: &&Arc<Offer>| {
        let load = loads.of(offer, now);
        let is_free = offer.slots == 0 || load.in_flight == 0 || load.in_flight + 1 < offer.slots;
        is_free && load.admits && !load.penalised
    };
    offers.iter().filter(room).min_by_key(|offer| loads.of(offer, now).in_flight).cloned()
}

/// Makes the decision that a request goes to one offer.
pub(super) fn decided(offer: Arc<Offer>, propensity: f64, reason: RouteReason) -> Decision {
    Decision {
        model: offer.model.id.clone(),
        arm: offer.model.arm(),
        offers: vec![offer],
        fallback_models: Vec::new(),
        propensity,
        reason,
        rule: None,
        considered: Vec::new(),
        removed: Vec::new(),
        explored: false,
        strange: false,
        permitted: Vec::new(),
    }
}

/// Makes the origin of a request of the node's own: one attempt, since nobody waits.
pub(super) fn origin(short_id: &str, purpose: Purpose) -> Origin {
    Origin {
        id: format!("req_{short_id}_{}", uuid::Uuid::now_v7().simple()).into(),
        hop: 0,
        attempts_left: 1.min(MAX_ATTEMPTS),
        key_id: "node".into(),
        deadline: None,
        purpose,
    }
}

/// Reads a chat body again; `None` if it cannot be read under this floor.
pub(super) fn read<'a>(
    pipeline: &Pipeline,
    body: &'a bytes::Bytes,
    floor: Floor,
) -> Option<(Parsed, Request<'a>)> {
    let is_provider = |name: &str| pipeline.is_provider(name);
    let naming = pipeline.naming(&is_provider);
    parse::parse(ApiPath::ChatCompletions, None, body, &HeaderMap::new(), floor, naming).ok()
}

/// Runs a call on an offer until it ends, a client needs its slot, or the time is over. Giving it up cancels the
/// work on the device.
pub(super) async fn aside<T>(
    loads: &LoadBook,
    offer: &Offer,
    timeout: Duration,
    call: impl Future<Output = T>,
) -> Result<T, Aside> {
    let crowded = async {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if offer.slots > 0 && loads.in_flight(&offer.upstream) > offer.slots {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        done = call => Ok(done),
        () = crowded => Err(Aside::Crowded),
        () = tokio::time::sleep(timeout) => Err(Aside::Late),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::offer;

    fn slots(device: &str, slots: u32) -> Arc<Offer> {
        Arc::new(Offer { slots, ..offer(device, "m", &[]) })
    }

    #[test]
    fn work_that_nobody_waits_for_leaves_a_slot_to_clients() {
        let loads = LoadBook::new(1);
        let now = Instant::now();
        let (one, three) = (slots("one", 1), slots("three", 3));
        let start = |offer: &Offer| loads.started(&offer.upstream, &offer.model.id, now);
        let has_room = |offer: &Arc<Offer>| with_room(std::slice::from_ref(offer), &loads, now).is_some();
        assert!(has_room(&one) && has_room(&three));
        let _first = start(&one);
        let _second = start(&three);
        assert!(!has_room(&one) && has_room(&three));
        let _third = start(&three);
        assert!(!has_room(&three), "the last slot is a client's");
        assert!(with_room(&[one, three], &loads, now).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_given_up_when_a_client_needs_its_slot_or_it_takes_too_long() {
        let loads = LoadBook::new(1);
        let offer = slots("one", 1);
        let started = || loads.started(&offer.upstream, &offer.model.id, Instant::now());
        let _own = started();
        let timeout = Duration::from_secs(60);
        let quiet = aside(&loads, &offer, timeout, std::future::pending::<()>()).await;
        assert_eq!(quiet, Err(Aside::Late));
        let _clients = started();
        let began = tokio::time::Instant::now();
        let crowded = aside(&loads, &offer, timeout, std::future::pending::<()>()).await;
        assert_eq!(crowded, Err(Aside::Crowded));
        assert!(began.elapsed() < Duration::from_secs(1));
        assert_eq!(aside(&loads, &offer, timeout, async { 7 }).await, Ok(7));
    }
}
