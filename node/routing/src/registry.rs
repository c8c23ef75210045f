//! What the mesh serves at one moment: an immutable snapshot of offers, indexed by model and by arm.
//!
//! The task that watches devices and gossip builds a new one when something changes; a request holds the one it
//! began with. Everything that would need formatting or sorting on the request path (arms, sorted names) is
//! computed here, once per change.

mod offer;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::sync::Arc;

pub use self::offer::{Craft, ModelSpec, Offer, Power, Route, Zone};
use crate::bandit::prior::{self, SizeClass};
use crate::ids::{ArmId, UpstreamId};

/// Tag that engines add to a name without one; `llama3.2` finds `llama3.2:latest`.
const DEFAULT_TAG: &str = ":latest";

/// Longest name that is compared letter by letter when looking for near names.
const MAX_COMPARED: usize = 96;

/// Offers of one arm, with what its name tells.
#[derive(Debug)]
pub(crate) struct ArmEntry {
    pub(crate) id: ArmId,
    pub(crate) model: Arc<str>,
    pub(crate) size: SizeClass,
    pub(crate) craft: Craft,
    pub(crate) offers: Vec<Arc<Offer>>,
}

/// Everything the mesh serves at one moment.
#[derive(Debug, Default)]
pub struct Registry {
    offers: Vec<Arc<Offer>>,
    by_model: BTreeMap<Arc<str>, Vec<Arc<Offer>>>,
    models: Vec<Arc<str>>,
    arms: Vec<ArmEntry>,
}

impl Registry {
    /// Indexes offers. Their order does not matter: equal sets give equal decisions.
    ///
    /// Two offers of one model by one upstream become one with the ways of both; capacity is never summed.
    pub fn new(offers: impl IntoIterator<Item = Offer>) -> Self {
        let mut merged: BTreeMap<(UpstreamId, Arc<str>), Offer> = BTreeMap::new();
        for offer in offers {
            match merged.entry((offer.upstream.clone(), offer.model.id.clone())) {
                Entry::Occupied(known) => known.into_mut().merge(offer),
                Entry::Vacant(place) => {
                    place.insert(offer);
                }
            }
        }
        let offers: Vec<Arc<Offer>> = merged.into_values().map(Arc::new).collect();
        let mut by_model: BTreeMap<Arc<str>, Vec<Arc<Offer>>> = BTreeMap::new();
        let mut by_arm: BTreeMap<ArmId, Vec<Arc<Offer>>> = BTreeMap::new();
        for offer in &offers {
            by_model.entry(offer.model.id.clone()).or_default().push(offer.clone());
            by_arm.entry(offer.model.arm()).or_default().push(offer.clone());
        }
        let arms = by_arm
            .into_iter()
            .map(|(id, offers)| ArmEntry {
                id,
                model: offers[0].model.id.clone(),
                size: prior::size_class(&offers[0].model),
                craft: offers[0].model.craft(),
                offers,
            })
            .collect();
        let models = by_model.keys().cloned().collect();
        Self { offers, by_model, models, arms }
    }

    /// Returns who serves a model; empty when nobody does. A name without a tag also finds its `:latest`.
    pub fn by_model(&self, model: &str) -> &[Arc<Offer>] {
        if let Some(offers) = self.by_model.get(model) {
            return offers;
        }
        let from_here = self.by_model.range::<str, _>((Bound::Excluded(model), Bound::Unbounded));
        from_here
            .take_while(|(name, _)| name.starts_with(model))
            .find(|(name, _)| &name[model.len()..] == DEFAULT_TAG)
            .map_or(&[], |(_, offers)| offers)
    }

    /// Returns the served names, sorted.
    pub fn models(&self) -> &[Arc<str>] {
        &self.models
    }

    /// Returns every offer, ordered by upstream and model.
    pub fn offers(&self) -> &[Arc<Offer>] {
        &self.offers
    }

    /// Returns up to `n` served names, nearest first, for "unknown model, did you mean".
    ///
    /// Near = few edits, letter case apart, or one holds the other. Far names are left out.
    pub fn nearest(&self, model: &str, n: usize) -> Vec<Arc<str>> {
        let wanted = model.to_ascii_lowercase();
        let mut near: Vec<(usize, &Arc<str>)> = self
            .models
            .iter()
            .filter_map(|name| {
                let candidate = name.to_ascii_lowercase();
                let holds = wanted.len() >= 3 && (candidate.contains(&wanted) || wanted.contains(&candidate));
                let edits = edit_distance(&wanted, &candidate);
                let limit = wanted.len().max(candidate.len()) / 2;
                if holds { Some((edits.min(1), name)) } else { (edits <= limit).then_some((edits, name)) }
            })
            .collect();
        near.sort();
        near.into_iter().take(n).map(|(_, name)| name.clone()).collect()
    }

    pub(crate) fn arms(&self) -> &[ArmEntry] {
        &self.arms
    }
}

/// Counts insertions, deletions and replacements between two names (Levenshtein), one row at a time.
pub fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(MAX_COMPARED).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().take(MAX_COMPARED).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::DataClass;
    use crate::units::{MicroUsd, Price};

    fn offer(device: &str, model: &str) -> Offer {
        Offer::new(UpstreamId::Device(device.into()), Arc::new(ModelSpec::new(model, "test")))
    }

    #[test]
    fn models_are_sorted_and_found_with_or_without_the_default_tag() {
        let registry = Registry::new([
            offer("b", "llama3.2:latest"),
            offer("a", "gemma"),
            offer("a", "llama3.2:latest"),
        ]);
        assert_eq!(registry.models().iter().map(|m| &**m).collect::<Vec<_>>(), ["gemma", "llama3.2:latest"]);
        assert_eq!(registry.by_model("llama3.2").len(), 2);
        assert_eq!(registry.by_model("llama3.2:latest").len(), 2);
        assert!(registry.by_model("llama3").is_empty());
        assert!(registry.by_model("zzz").is_empty());
    }

    #[test]
    fn near_names_are_offered_and_far_ones_are_not() {
        let registry =
            Registry::new(["llama3.2:1b", "llama3.2:3b", "gemma3", "SmolLM2-135M"].map(|m| offer("a", m)));
        let near = |name| registry.nearest(name, 3).iter().map(|m| m.to_string()).collect::<Vec<_>>();
        assert_eq!(near("lama3.2:1b"), ["llama3.2:1b", "llama3.2:3b"]);
        assert_eq!(near("smollm2-135m")[0], "SmolLM2-135M");
        assert_eq!(near("gemma"), ["gemma3"]);
        assert!(near("claude-opus-4").is_empty());
        assert_eq!(registry.nearest("llama3.2", 1).len(), 1);
    }

    #[test]
    fn a_remote_model_is_cloud_although_a_device_serves_it() {
        let mut remote = ModelSpec::new("gpt-oss:120b-cloud", "ollama");
        remote.remote = true;
        let offer = Offer::new(UpstreamId::Device("a".into()), Arc::new(remote));
        assert_eq!(offer.zone(), Zone::Local);
        assert!(offer.is_cloud() && !offer.admits(DataClass::Restricted) && offer.admits(DataClass::Public));
    }

    #[test]
    fn only_the_entry_router_uses_other_routers() {
        let mut offer = offer("a", "m");
        offer.routes = vec![Route::Via("n2".into()), Route::Direct];
        assert_eq!(offer.routes_at(0).count(), 2);
        assert_eq!(offer.routes_at(1).collect::<Vec<_>>(), [&Route::Direct]);
        offer.routes.pop();
        assert_eq!(offer.zone(), Zone::Peer);
    }

    #[test]
    fn a_device_that_two_routers_announce_is_one_offer_with_two_ways() {
        let announced = |routes: Vec<Route>, in_flight| Offer {
            routes,
            slots: 2,
            in_flight_reported: in_flight,
            ..offer("a", "m")
        };
        let far = announced(vec![Route::Via("n2".into())], 1);
        let registry = Registry::new([far, announced(vec![Route::Direct], 2)]);
        let [merged] = registry.by_model("m") else { panic!("one offer") };
        assert_eq!(merged.routes, [Route::Direct, Route::Via("n2".into())]);
        assert_eq!((merged.slots, merged.in_flight_reported), (2, 2));
    }

    #[test]
    fn a_providers_model_that_two_nodes_price_costs_the_dearer_of_each() {
        let priced = |input: u64, output: u64| Offer {
            price: Some(Price { input_per_million: MicroUsd(input), output_per_million: MicroUsd(output) }),
            ..Offer::new(UpstreamId::Provider("p".into()), Arc::new(ModelSpec::new("p/m", "openai")))
        };
        let free = Offer { price: None, ..priced(0, 0) };
        for (offers, expected) in [
            ([priced(1, 8), priced(2, 4)], priced(2, 8).price),
            ([priced(2, 4), priced(1, 8)], priced(2, 8).price),
            ([free.clone(), priced(1, 8)], priced(1, 8).price),
            ([priced(1, 8), free.clone()], priced(1, 8).price),
            ([free.clone(), free.clone()], None),
        ] {
            assert_eq!(Registry::new(offers).by_model("p/m")[0].price, expected);
        }
    }

    #[test]
    fn builds_of_one_name_are_arms_of_their_own() {
        let mut other = ModelSpec::new("m", "test");
        other.digest = Some("sha256:ffff".into());
        let registry =
            Registry::new([offer("a", "m"), Offer::new(UpstreamId::Device("b".into()), Arc::new(other))]);
        assert_eq!(registry.by_model("m").len(), 2);
        assert_eq!(registry.arms().iter().map(|arm| arm.id.as_str()).collect::<Vec<_>>(), ["m", "m@ffff"]);
    }
}
