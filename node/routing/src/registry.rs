//! What the mesh serves at one moment: an immutable snapshot of offers, indexed by model and by arm.
//!
//! The task that watches devices and gossip builds a new one when something changes; a request holds the one it
//! began with. Everything that would need formatting or sorting on the request path (arms, sorted names) is
//! computed here, once per change.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;
use std::sync::Arc;

use crate::bandit::prior::{self, SizeClass};
use crate::class::DataClass;
use crate::ids::{ArmId, UpstreamId};
use crate::units::{Price, SoundPrice, Tokens};

/// Tag that engines add to a name without one; `llama3.2` finds `llama3.2:latest`.
const DEFAULT_TAG: &str = ":latest";

/// Longest name that is compared letter by letter when looking for near names.
const MAX_COMPARED: usize = 96;

/// A model as one upstream serves it. `None` = the upstream does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    /// Name under which clients ask for it.
    pub id: Arc<str>,
    /// Engine that runs it: "embedded", "ollama", "llama.cpp", "openai", …
    pub engine: Arc<str>,
    /// Context length.
    pub context: Option<Tokens>,
    /// Longest answer.
    pub max_output: Option<Tokens>,
    /// Digest of the weights, hexadecimal.
    pub digest: Option<Arc<str>>,
    /// Name of the quantisation, "Q4_K_M".
    pub quantization: Option<Arc<str>>,
    /// Size of the weights in bytes.
    pub size_bytes: Option<u64>,
    /// Takes tools.
    pub tools: Option<bool>,
    /// Takes images.
    pub vision: Option<bool>,
    /// Returns log probabilities.
    pub logprobs: Option<bool>,
    /// Makes embeddings.
    pub embeddings: Option<bool>,
    /// Can be held to a JSON schema.
    pub schema: Option<bool>,
    /// Takes sound in a chat.
    pub audio: Option<bool>,
    /// Writes down what is said in a recording.
    pub transcription: Option<bool>,
    /// Reads a text aloud.
    pub speech: Option<bool>,
    /// The engine itself forwards to somewhere else: counts as cloud.
    pub remote: bool,
}

impl ModelSpec {
    /// Makes a description in which everything but name and engine is unknown.
    pub fn new(id: impl Into<Arc<str>>, engine: impl Into<Arc<str>>) -> Self {
        Self {
            id: id.into(),
            engine: engine.into(),
            context: None,
            max_output: None,
            digest: None,
            quantization: None,
            size_bytes: None,
            tools: None,
            vision: None,
            logprobs: None,
            embeddings: None,
            schema: None,
            audio: None,
            transcription: None,
            speech: None,
            remote: false,
        }
    }

    /// Returns the arm of the model: its name and the start of its digest.
    pub fn arm(&self) -> ArmId {
        ArmId::new(&self.id, self.digest.as_deref())
    }

    /// Returns what it was made for, by its name where the upstream does not say; a model of another craft is never
    /// chosen to chat.
    pub fn craft(&self) -> Craft {
        const VECTORS: [&str; 6] = ["embed", "bge-", "minilm", "e5-", "gte-", "arctic-"];
        const TRANSCRIPTS: [&str; 7] =
            ["whisper", "transcribe", "parakeet", "canary-", "moonshine", "sensevoice", "-asr"];
        const SPEECH: [&str; 7] = ["tts", "kokoro", "piper", "orpheus", "chatterbox", "vibevoice", "parler-"];
        let id = self.id.to_ascii_lowercase();
        let is_named = |can: Option<bool>, marks: &[&str]| {
            can != Some(false) && marks.iter().any(|mark| id.contains(mark))
        };
        // Who says that a model handles recordings and not that it takes tools does not mean one to chat with.
        let is_said = |can: Option<bool>| can == Some(true) && self.tools != Some(true);
        if is_named(self.embeddings, &VECTORS) {
            Craft::Vectors
        } else if is_said(self.transcription) || is_named(self.transcription, &TRANSCRIPTS) {
            Craft::Transcripts
        } else if is_said(self.speech) || is_named(self.speech, &SPEECH) {
            Craft::Speech
        } else {
            Craft::Text
        }
    }

    /// True when it can be asked for what a craft makes: it was made for it, or the upstream says so.
    pub fn makes(&self, craft: Craft) -> bool {
        let said = match craft {
            Craft::Text => None,
            Craft::Vectors => self.embeddings,
            Craft::Transcripts => self.transcription,
            Craft::Speech => self.speech,
        };
        said.unwrap_or_else(|| self.craft() == craft)
    }
}

/// What a model makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Craft {
    /// Text, in answer to text.
    Text,
    /// Vectors of texts.
    Vectors,
    /// Texts of recordings.
    Transcripts,
    /// Recordings of texts.
    Speech,
}

/// How a node reaches an upstream.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Route {
    /// From this node: a linked device, a peer, a provider that it holds a key for.
    Direct,
    /// Through another router, by its node id.
    Via(Arc<str>),
}

/// How far away an offer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Zone {
    /// A device linked to this node.
    Local,
    /// Reached only through another router.
    Peer,
    /// A cloud service.
    Provider,
}

/// What feeds a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Power {
    /// It does not say.
    #[default]
    Unknown,
    /// It has no battery, or a full one and a plug.
    Mains,
    /// It charges.
    Charging,
    /// Its battery, percent left.
    Battery(u8),
}

/// One model on one upstream.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    /// Who serves it.
    pub upstream: UpstreamId,
    /// Name of the upstream for people.
    pub name: Arc<str>,
    /// What is served.
    pub model: Arc<ModelSpec>,
    /// Ways to it, best first. None = known but not reachable now, which makes "no device" of "unknown model".
    pub routes: Vec<Route>,
    /// Requests it takes at once, over all its models; 0 = unbounded or unknown.
    pub slots: u32,
    /// Requests that it said it runs, from all routers together.
    pub in_flight_reported: u32,
    /// Requests that it said wait inside its engines, whoever sent them.
    pub queued_reported: u32,
    /// The model is in its memory; `None` = it does not say.
    pub resident: Option<bool>,
    /// What feeds it.
    pub power: Power,
    /// It slows itself down against heat.
    pub throttled: bool,
    /// Share of its cache of keys and values in use, 0 to 1.
    pub kv_use: Option<f32>,
    /// It takes nothing new.
    pub draining: bool,
    /// What it charges; `None` = nothing.
    pub price: Option<Price>,
    /// What it charges for sound; nothing is known of it where both measures are 0.
    pub sound_price: SoundPrice,
    /// May see data of class `internal`. Matters for providers and remote models only.
    pub internal_ok: bool,
}

impl Offer {
    /// Makes a reachable offer without price or bound.
    pub fn new(upstream: UpstreamId, model: Arc<ModelSpec>) -> Self {
        Self {
            name: upstream.name().clone(),
            upstream,
            model,
            routes: vec![Route::Direct],
            slots: 0,
            in_flight_reported: 0,
            queued_reported: 0,
            resident: None,
            power: Power::Unknown,
            throttled: false,
            kv_use: None,
            draining: false,
            price: None,
            sound_price: SoundPrice::default(),
            internal_ok: true,
        }
    }

    /// Returns how far away it is.
    pub fn zone(&self) -> Zone {
        match self.upstream {
            UpstreamId::Provider(_) => Zone::Provider,
            UpstreamId::Peer(_) => Zone::Peer,
            UpstreamId::Device(_) if self.routes.contains(&Route::Direct) => Zone::Local,
            UpstreamId::Device(_) => Zone::Peer,
        }
    }

    /// True when a request sent there leaves the devices of the mesh.
    pub fn is_cloud(&self) -> bool {
        self.model.remote || matches!(self.upstream, UpstreamId::Provider(_))
    }

    /// True when data of a class may be sent there.
    pub fn admits(&self, class: DataClass) -> bool {
        !self.is_cloud()
            || match class {
                DataClass::Public => true,
                DataClass::Internal => self.internal_ok,
                DataClass::Restricted => false,
            }
    }

    /// True when it can take a request now, as far as is known.
    pub fn is_alive(&self) -> bool {
        !self.draining && !self.routes.is_empty()
    }

    /// Returns the requests that it said it has, running or waiting, from all routers together.
    pub fn requests_reported(&self) -> u32 {
        match self.queued_reported {
            0 => self.in_flight_reported,
            // What waits in an engine is in part what was sent to the device; that all its slots are taken is sure.
            queued => self.in_flight_reported.max(self.slots.saturating_add(queued)),
        }
    }

    /// Returns the ways that a request which was already forwarded `hop` times may take, best first.
    ///
    /// Only the entry router hands a request to another router; others use what they reach themselves.
    pub fn routes_at(&self, hop: u32) -> impl Iterator<Item = &Route> {
        let is_peer = matches!(self.upstream, UpstreamId::Peer(_));
        self.routes.iter().filter(move |route| hop == 0 || (**route == Route::Direct && !is_peer))
    }

    /// Takes in another report of the same upstream and model: one device, whoever announced it.
    fn merge(&mut self, other: Self) {
        for route in other.routes {
            if !self.routes.contains(&route) {
                self.routes.push(route);
            }
        }
        // Direct sorts first: a way without another router is the best one.
        self.routes.sort();
        self.in_flight_reported = self.in_flight_reported.max(other.in_flight_reported);
        self.queued_reported = self.queued_reported.max(other.queued_reported);
        // The rest is one device's word, whoever passed it on: what one report lacks the other may have.
        self.resident = self.resident.or(other.resident);
        if self.power == Power::Unknown {
            self.power = other.power;
        }
        self.throttled |= other.throttled;
        self.kv_use = self.kv_use.or(other.kv_use);
        self.draining |= other.draining;
        self.internal_ok &= other.internal_ok;
        // Whichever way it goes, it costs no more than is set aside for it.
        self.price = match (self.price, other.price) {
            (Some(ours), Some(theirs)) => Some(ours.max_of_each(theirs)),
            (ours, theirs) => ours.or(theirs),
        };
        self.sound_price = self.sound_price.max_of_each(other.sound_price);
    }
}

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
    use crate::units::MicroUsd;

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
