//! A model at an upstream: what it is, what it can, what it costs, and by which ways it is reached.

use std::sync::Arc;

use crate::class::DataClass;
use crate::ids::{ArmId, UpstreamId};
use crate::units::{Price, SoundPrice, Tokens};

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
    /// It may be silent for seconds and be well: most likely a phone, whose radio sleeps.
    pub naps: bool,
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
            naps: false,
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
    pub(super) fn merge(&mut self, other: Self) {
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
