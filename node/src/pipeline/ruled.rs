//! The operator's rules at work: asked once for each request that a client brings to this node, and counted.
//!
//! A forwarded request was ruled where the client connected, and the node's own calls are no client's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rand::Rng;
use serde_json::{Value, json};
use shoal_routing::{
    Decision, NoRoute, Offer, Plan, Planned, Request, Rules, Snapshot as RouterSnapshot, Subject, UpstreamId,
};

use super::{Origin, Pipeline};
use crate::api::parse::{Naming, Parsed};
use crate::cloud::purse::Purse;
use crate::store::KeyRing;

/// Requests by rule and model.
type Taken = BTreeMap<(Arc<str>, Arc<str>), u64>;

/// The rules of a node, and how many requests they sent where.
#[derive(Default)]
pub struct RuleBook {
    rules: Rules,
    keys: Option<Arc<KeyRing>>,
    /// Since the start. Bounded by the rules: a rule leads to the models that it names, and
    /// to what the policy chose where it names none.
    taken: Mutex<Taken>,
}

impl RuleBook {
    /// Makes the book; `keys` tells what a key is called.
    pub fn new(rules: Rules, keys: Arc<KeyRing>) -> Self {
        Self { rules, keys: Some(keys), taken: Mutex::default() }
    }

    /// Returns the rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Asks the rules about a request, and puts what they say into its shape.
    pub(super) fn rule(
        &self,
        parsed: &mut Parsed,
        request: &Request<'_>,
        origin: &Origin,
        naming: Naming<'_>,
        rng: &mut impl Rng,
    ) -> Option<Plan> {
        if self.rules.is_empty() || origin.hop != 0 || !origin.purpose.is_client() {
            return None;
        }
        let key = self.keys.as_ref().and_then(|keys| keys.find(&origin.key_id));
        let subject = Subject {
            asked: &parsed.model,
            request,
            profile: &parsed.profile,
            key_id: &origin.key_id,
            key_name: key.as_ref().map_or("", |key| &key.name),
            user: parsed.user.as_deref(),
        };
        let plan = self.rules.plan(&subject, rng)?;
        let shape = &mut parsed.shape;
        shape.mode = plan.mode;
        shape.data_class = plan.data_class;
        shape.preference = plan.preference.unwrap_or(shape.preference);
        if !plan.targets.is_empty() {
            shape.chooses = plan.targets.iter().all(|target| naming.choice(&target.model).is_auto());
        }
        Some(plan)
    }

    /// Counts a request that a rule led somewhere.
    pub(super) fn count(&self, decision: &Decision) {
        let Some(rule) = &decision.rule else { return };
        let (rule_label, model) = (rule.to_string(), decision.model.to_string());
        metrics::counter!("shoal_rule_requests_total", "rule" => rule_label, "model" => model).increment(1);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        *taken.entry((rule.clone(), decision.model.clone())).or_insert(0) += 1;
    }

    /// Returns each rule with the shares that it asks for and the requests that it sent to each model, as JSON.
    pub fn describe(&self) -> Vec<Value> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let entry = |name: &Arc<str>, kind: &str, fallback: &[Arc<str>]| {
            let sent = taken.iter().filter(|((rule, _), _)| rule == name);
            let total: u64 = sent.clone().map(|(_, count)| count).sum();
            let shares = self.rules.shares(name);
            json!({
                "name": &**name,
                "kind": kind,
                "split": shares.iter().map(|(model, share)| json!({"model": &**model, "share": share}))
                    .collect::<Vec<_>>(),
                "fallback": fallback.iter().map(|model| &**model).collect::<Vec<_>>(),
                "requests": total,
                "sent": sent.map(|((_, model), count)| json!({
                    "model": &**model, "requests": count, "share": *count as f64 / total as f64,
                })).collect::<Vec<_>>(),
            })
        };
        let routes = self.rules.routes().map(|route| entry(&route.name, "route", &route.targets.fallback));
        let aliases = self.rules.aliases().map(|alias| entry(&alias.name, "alias", &alias.targets.fallback));
        routes.chain(aliases).collect()
    }
}

impl Pipeline {
    /// Asks the rules, then the router, where a client's request would go, without sending it.
    pub fn preview(
        &self,
        parsed: &mut Parsed,
        request: &Request<'_>,
        origin: &Origin,
    ) -> Result<Decision, NoRoute> {
        let plan = self.plan(parsed, request, origin);
        self.decide_under(plan.as_ref(), parsed, request, origin)
    }

    pub(super) fn plan(&self, parsed: &mut Parsed, request: &Request<'_>, origin: &Origin) -> Option<Plan> {
        let is_provider = |name: &str| self.is_provider(name);
        self.rules.rule(parsed, request, origin, self.naming(&is_provider), &mut rand::rng())
    }

    pub(super) fn decide_under(
        &self,
        plan: Option<&Plan>,
        parsed: &Parsed,
        request: &Request<'_>,
        origin: &Origin,
    ) -> Result<Decision, NoRoute> {
        let left = self.purses.as_ref().filter(|_| origin.hop == 0).and_then(|p| p.left(&origin.key_id));
        let bounded = left.map(|left| Request { budget_left: Some(left), ..request.borrowed() });
        let request = bounded.as_ref().unwrap_or(request);
        let Some(plan) = plan else { return self.decide(parsed, request) };
        let (inventory, learnt, now) = (self.inventory.load(), self.sinks.feedback.learnt(), Instant::now());
        let snapshot = RouterSnapshot {
            registry: &inventory.registry,
            posterior: &learnt.posterior,
            loads: &self.loads,
        };
        let is_provider = |name: &str| inventory.providers.contains(name);
        let naming = self.naming(&is_provider);
        let previous = self.turns.previous(request, now);
        let choice = |name: &str| naming.choice(name);
        let planned = Planned { plan, choice: &choice, previous: previous.as_ref() };
        self.router.decide_planned(planned, request, &parsed.profile, &snapshot, now, &mut rand::rng())
    }

    /// Returns the purse that pays for an attempt; only providers bill.
    pub(super) fn payer(&self, offer: &Offer, origin: &Origin) -> Option<Purse> {
        let bills = matches!(offer.upstream, UpstreamId::Provider(_)) && origin.hop == 0;
        self.purses.as_ref().filter(|_| bills)?.of(&origin.key_id)
    }
}
