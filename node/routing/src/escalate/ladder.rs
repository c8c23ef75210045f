//! Whom to ask after an answer that was not good enough, in order.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::ids::ArmId;
use crate::router::{Decision, Permitted};

/// Most rungs that are tried for a request: each costs its caller the time of a whole answer.
pub const MAX_RUNGS: usize = 2;

/// Part of the way from the answering model's quality to the strongest permitted one's that makes a provider adequate.
const ADEQUATE: f64 = 0.5;

/// Stronger models than the one that answered, in the order in which they are asked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ladder {
    /// The one that answered; `None` when the decision does not hold it, and then there are no rungs.
    pub answered: Option<Arc<Permitted>>,
    /// At most [`MAX_RUNGS`], each stronger than the one that answered.
    pub rungs: Vec<Arc<Permitted>>,
}

/// Ranks who may be asked after `arm` answered, on a device or in the cloud.
///
/// The best stronger model on a device first: it costs nothing and sees nothing that devices do not see already.
/// Then the cheapest provider that is adequate, then the strongest of all. Everything comes from
/// [`Decision::permitted`], so it passed the policy filter; there are no rungs where that is empty.
pub fn ladder(decision: &Decision, arm: &ArmId, cloud: bool) -> Ladder {
    let permitted = &decision.permitted;
    let answered = permitted
        .iter()
        .find(|one| one.arm == *arm && one.cloud == cloud)
        .or_else(|| permitted.iter().find(|one| one.arm == *arm));
    let Some(answered) = answered else { return Ladder::default() };
    let quality = |one: &Permitted| one.quality.of_request.value();
    let floor = quality(answered);
    let stronger: Vec<&Arc<Permitted>> =
        permitted.iter().filter(|one| one.arm != *arm && quality(one) > floor).collect();
    let best = |a: &&&Arc<Permitted>, b: &&&Arc<Permitted>| by_quality(a, b);
    let strongest = stronger.iter().max_by(best).copied();
    let bar = strongest.map_or(floor, |one| floor + ADEQUATE * (quality(one) - floor));
    let device = stronger.iter().filter(|one| !one.cloud).max_by(best).copied();
    let cheapest =
        stronger.iter().filter(|one| one.cloud && quality(one) >= bar).min_by(|a, b| by_cost(a, b));
    let mut rungs: Vec<Arc<Permitted>> = Vec::with_capacity(MAX_RUNGS);
    for rung in [device, cheapest.copied(), strongest].into_iter().flatten() {
        if rungs.len() < MAX_RUNGS && !rungs.iter().any(|known| Arc::ptr_eq(known, rung)) {
            rungs.push(rung.clone());
        }
    }
    Ladder { answered: Some(answered.clone()), rungs }
}

impl Ladder {
    /// True when there is nobody to ask: the answer needs no judgement and its stream no held prefix.
    pub fn is_empty(&self) -> bool {
        self.rungs.is_empty()
    }
}

/// Orders by quality, then by speed.
fn by_quality(a: &Permitted, b: &Permitted) -> Ordering {
    let quality = |one: &Permitted| one.quality.of_request.value();
    quality(a).total_cmp(&quality(b)).then_with(|| b.latency_ms.total_cmp(&a.latency_ms))
}

/// Orders by price; the better one of equal price comes first.
fn by_cost(a: &Permitted, b: &Permitted) -> Ordering {
    a.cost.cmp(&b.cost).then_with(|| by_quality(b, a))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bandit::Quality;
    use crate::router::RouteReason;
    use crate::units::{MicroUsd, Score};

    /// Model, in the cloud, quality and price of what the filter admitted; the first one is the chosen one.
    fn decision(permitted: &[(&str, bool, f64, u64)]) -> Decision {
        let permitted = permitted.iter().map(|(model, cloud, quality, cost)| {
            let quality = Score::clamped(*quality);
            Arc::new(Permitted {
                model: (*model).into(),
                arm: ArmId::new(model, None),
                offers: Vec::new(),
                cloud: *cloud,
                quality: Quality { of_request: quality, of_answer: quality, judged: 0 },
                cost: MicroUsd(*cost),
                latency_ms: 1_000.0,
            })
        });
        Decision {
            model: "own".into(),
            arm: ArmId::new("own", None),
            offers: Vec::new(),
            fallback_models: Vec::new(),
            propensity: 1.0,
            rule: None,
            reason: RouteReason::Named,
            considered: Vec::new(),
            removed: Vec::new(),
            explored: false,
            strange: false,
            permitted: permitted.collect(),
        }
    }

    #[test]
    fn devices_come_before_the_cheapest_adequate_provider_and_that_before_the_strongest() {
        let own = ("own", false, 0.4, 0);
        let (worse, compact, large) =
            (("tiny", false, 0.2, 0), ("3b", false, 0.5, 0), ("14b", false, 0.6, 0));
        let (nano, mini, best) =
            (("nano", true, 0.5, 10), ("mini", true, 0.7, 100), ("best", true, 0.9, 9_000));
        let cases: [(&[_], &[&str]); 7] = [
            (&[own], &[]),
            (&[own, worse], &[]),
            (&[own, compact, large], &["14b"]),
            (&[own, best, mini, nano], &["mini", "best"]),
            (&[own, best, nano], &["best"]),
            (&[own, best, mini, nano, large, compact], &["14b", "mini"]),
            (&[own, nano, ("70b", false, 0.9, 0)], &["70b"]),
        ];
        for (permitted, expected) in cases {
            let ladder = ladder(&decision(permitted), &ArmId::new("own", None), false);
            let models: Vec<&str> = ladder.rungs.iter().map(|rung| &*rung.model).collect();
            assert_eq!(models, expected, "{permitted:?}");
        }
    }

    #[test]
    fn the_ladder_starts_above_the_arm_that_answered() {
        let decision =
            decision(&[("own", false, 0.4, 0), ("14b", false, 0.6, 0), ("best", true, 0.9, 9_000)]);
        let above = |model: &str, cloud| ladder(&decision, &ArmId::new(model, None), cloud);
        assert_eq!(above("14b", false).rungs.len(), 1);
        assert!(above("best", true).is_empty());
        assert_eq!(above("not-admitted", false), Ladder::default());
    }
}
