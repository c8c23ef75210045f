//! Decisions under a rule.

use super::*;
use crate::rules::{Alias, Rules, Subject, Target, Targets};

/// Decides under the rules of an alias `x`.
fn decide_alias(
    split: &[(&str, f64)],
    fallback: &[&str],
    request: &Request<'_>,
    seed: u64,
) -> Result<Decision, NoRoute> {
    let target = |(model, weight): &(&str, f64)| Target { model: (*model).into(), weight: *weight };
    let targets = Targets {
        split: split.iter().map(target).collect(),
        fallback: fallback.iter().map(|model| (*model).into()).collect(),
        ..Default::default()
    };
    let alias = Alias { name: "x".into(), targets };
    let rules = Rules::new(Vec::new(), vec![alias]).unwrap();
    let (registry, loads) = (Registry::new(mesh()), LoadBook::default());
    let posterior = Posterior::default();
    let snapshot = Snapshot { registry: &registry, posterior: &posterior, loads: &loads };
    let profile = RequestProfile::of(request);
    let mut rng = seeded(seed);
    let subject = Subject { asked: "x", request, profile: &profile, key_id: "", key_name: "", user: None };
    let plan = rules.plan(&subject, &mut rng).unwrap();
    let choice = |name: &str| ModelChoice::parse(name, &|provider| provider == "openai");
    let planned = Planned { plan: &plan, choice: &choice, previous: None };
    Router::<Thompson>::default().decide_planned(planned, request, &profile, &snapshot, start(), &mut rng)
}

#[test]
fn a_split_is_a_fair_draw_that_says_its_odds() {
    let split = [("llama3.2:1b", 3.0), ("qwen2.5:32b", 1.0), ("gone", 6.0)];
    let decisions: Vec<Decision> =
        (0..2000).map(|seed| decide_alias(&split, &["auto:local"], &request("x"), seed).unwrap()).collect();
    let small = decisions.iter().filter(|decision| &*decision.model == "llama3.2:1b").count();
    assert!((small as f64 / 2000.0 - 0.75).abs() < 0.04, "{small}");
    for decision in &decisions {
        let odds = if &*decision.model == "llama3.2:1b" { 0.75 } else { 0.25 };
        assert!((decision.propensity - odds).abs() < 1e-12, "who is not there takes no part");
        assert_eq!((decision.rule.as_deref(), decision.considered.len()), (Some("x"), 2));
        assert!(decision.considered.iter().any(|seen| seen.arm == decision.arm));
        assert_eq!(decision.reason.under(decision.rule.as_deref()), "rule:x");
    }
}

#[test]
fn a_chain_is_kept_in_order_and_takes_over_where_no_target_can() {
    let chain = ["nobody", "openai/gpt-4o", "llama3.2:1b"];
    let decision = decide_alias(&[("qwen2.5:32b", 1.0)], &chain, &request("x"), 1).unwrap();
    assert_eq!(reachable(&decision), ["qwen2.5:32b", "openai/gpt-4o", "llama3.2:1b"]);
    assert_eq!(decision.propensity, 1.0);
    let decision = decide_alias(&[("gone", 1.0)], &chain, &request("x"), 1).unwrap();
    assert_eq!(reachable(&decision), ["openai/gpt-4o", "llama3.2:1b"]);
    assert_eq!(decision.reason.under(decision.rule.as_deref()), "fallback");
    let error = decide_alias(&[("gone", 1.0)], &["away"], &request("x"), 1).unwrap_err();
    assert!(matches!(&error, NoRoute::UnknownModel { model, .. } if model == "gone"), "{error:?}");
}

#[test]
fn no_rule_takes_restricted_data_out() {
    let mut restricted = request("x");
    restricted.data_class = DataClass::Restricted;
    let refused = decide_alias(&[("openai/gpt-4o", 1.0)], &[], &restricted, 1).unwrap_err();
    assert_eq!(refused.code(), "policy_blocked");
    for seed in 0..50 {
        let split = [("openai/gpt-4o", 9.0), ("llama3.2:1b", 1.0)];
        let decision = decide_alias(&split, &["openai/gpt-4o", "auto:best"], &restricted, seed).unwrap();
        assert!(decision.offers.iter().all(|offer| !offer.is_cloud()));
        let others = decision.fallback_models.iter().flat_map(|other| &other.offers);
        assert!(
            others
                .chain(decision.permitted.iter().flat_map(|arm| &arm.offers))
                .all(|offer| !offer.is_cloud())
        );
    }
}
