//! Cloud providers of this node: which there are, what they may see, what they cost, and what is left to spend.
//!
//! [`Clouds`] holds them and makes two things of each model: an offer for the registry, and an upstream, which is
//! [`metered::Metered`] around [`ProviderUpstream`]. The keys stay in here and in the requests; nothing that
//! is shown, logged or gossiped is made from them.

pub mod budget;
pub mod key_purse;
pub mod metered;
pub mod prices;
pub mod purse;
mod saved;
pub mod settings;
#[cfg(test)]
mod tests;
pub mod traffic;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::Serialize;
use shoal_routing::{Craft, ModelSpec, Offer, UpstreamId};
use tokio::sync::watch;

pub use budget::Budget;
pub use key_purse::KeyPurses;
pub use prices::{PriceEntry, price_list};
pub(crate) use settings::is_provider_name;
pub use settings::{FileProvider, ProviderSettings, Source};

use self::metered::Metered;
use self::prices::Prices;
use self::purse::{Owner, Purse};
use self::traffic::Traffic;
use crate::config::Limits;
use crate::egress::{Egress, ProviderZone};
use crate::store::Store;
use crate::upstream::BoxUpstream;
use crate::upstream::openai_http::{IdleTimeouts, Settings};
use crate::upstream::provider::{Api, Kind, Model, Protocol, ProviderUpstream, Traits};

/// Longest wait for a provider's first byte: they queue, but they load no model.
const FIRST_BYTE: Duration = Duration::from_secs(120);
/// Longest silence of a provider between two chunks.
const BETWEEN_CHUNKS: Duration = Duration::from_secs(60);

/// Why the providers cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A provider's settings are wrong.
    #[error(transparent)]
    Settings(#[from] settings::Error),
    /// A price is wrong.
    #[error(transparent)]
    Price(#[from] prices::Error),
    /// The HTTP client could not be built.
    #[error(transparent)]
    Client(#[from] crate::upstream::http_client::Error),
    /// The file of added providers could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is no provider of that name.
    #[error("there is no provider '{0}'; `shoal cloud ls` lists them")]
    Unknown(String),
    /// It offers nothing.
    #[error("no model of the provider '{0}' is known; name some with --model")]
    NoModels(String),
}

/// One provider, ready to be called.
#[derive(Debug)]
struct Provider {
    settings: ProviderSettings,
    models: Vec<Arc<str>>,
    zone: Arc<ProviderZone>,
    wire: Arc<Settings>,
    protocol: Arc<Protocol>,
    purse: Purse,
    traffic: Traffic,
}

/// What is told of a provider; no key in it.
#[derive(Debug, Clone, Serialize)]
pub struct ProviderStatus {
    /// Name.
    pub name: String,
    /// API it speaks.
    pub kind: &'static str,
    /// Base URL.
    pub base_url: String,
    /// Served names of its models.
    pub models: Vec<String>,
    /// May be sent data of class `internal`.
    pub internal_ok: bool,
    /// Whether a key is set.
    pub key: bool,
    /// Where its settings come from.
    pub source: &'static str,
    /// Budget as text, `1usd/day`.
    pub budget: String,
    /// The same in US dollars.
    pub budget_usd: f64,
    /// Spent in the present period, running requests at their highest price; absent if the store fails.
    pub spent_usd: Option<f64>,
    /// Requests of this node since its start.
    pub requests: u64,
    /// Of these, those that ended in an error.
    pub failed: u64,
    /// Median time of its newest whole answers, milliseconds; absent before the first.
    pub p50_ms: Option<f64>,
    /// 99th percentile of the same.
    pub p99_ms: Option<f64>,
}

/// The providers of a node.
#[derive(Debug)]
pub struct Clouds {
    egress: Arc<Egress>,
    store: Store,
    prices: Prices,
    timeouts: IdleTimeouts,
    file: PathBuf,
    providers: ArcSwap<BTreeMap<Arc<str>, Arc<Provider>>>,
    offers: watch::Sender<Arc<Vec<Offer>>>,
    /// Held by whoever changes the providers, so that two changes do not undo each other.
    changing: Mutex<()>,
}

impl Clouds {
    /// Sets the configured providers up, and those that were added before; opens no connection.
    ///
    /// # Errors
    /// Settings, prices or the file of added providers are wrong.
    pub fn new(
        configured: Vec<ProviderSettings>,
        prices: &[PriceEntry],
        data_dir: &Path,
        store: Store,
        limits: &Limits,
    ) -> Result<Self, Error> {
        let file = data_dir.join(saved::FILE);
        let clouds = Self {
            egress: Arc::new(Egress::new()?),
            store,
            prices: Prices::with(prices)?,
            timeouts: IdleTimeouts {
                first_byte: FIRST_BYTE.min(limits.first_byte),
                between_chunks: BETWEEN_CHUNKS.min(limits.between_chunks),
            },
            providers: ArcSwap::default(),
            offers: watch::channel(Arc::default()).0,
            changing: Mutex::default(),
            file,
        };
        let added = saved::read(&clouds.file)?;
        for settings in configured.into_iter().chain(added) {
            clouds.put(settings)?;
        }
        clouds.announce();
        Ok(clouds)
    }

    /// Returns the offers of all models, and every later state of them.
    pub fn offers(&self) -> watch::Receiver<Arc<Vec<Offer>>> {
        self.offers.subscribe()
    }

    /// Returns the upstream of an offer; `None` if its provider is gone.
    pub fn upstream(&self, offer: &Offer) -> Option<BoxUpstream> {
        let UpstreamId::Provider(name) = &offer.upstream else { return None };
        let providers = self.providers.load();
        let provider = providers.get(name)?;
        let model: Arc<str> = offer.model.id.strip_prefix(&**name)?.strip_prefix('/')?.into();
        let quote = self.prices.quote(name, &model);
        let traits = Traits {
            api: quote.api.unwrap_or(provider.settings.api),
            max_output: quote.max_output,
            schema: quote.abilities.schema,
            sampling: quote.sampling,
            adaptive_thinking: quote.adaptive_thinking,
        };
        let inner = ProviderUpstream::new(
            self.egress.clone(),
            provider.zone.clone(),
            provider.wire.clone(),
            provider.protocol.clone(),
            Model { name: model, traits },
        );
        Some(BoxUpstream::new(Metered::new(inner, provider.purse.clone(), quote, provider.traffic.clone())))
    }

    /// Adds a provider, or replaces the settings of one; a key that is not given anew is kept. Durable.
    ///
    /// # Errors
    /// It has no model, or cannot be saved.
    pub fn add(&self, settings: ProviderSettings) -> Result<ProviderStatus, Error> {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let provider = self.put(ProviderSettings { source: Source::Added, ..settings })?;
        self.save()?;
        tracing::info!(provider = %provider.settings.name, budget = %provider.settings.budget, "provider added");
        Ok(provider.status())
    }

    /// Removes a provider. One from the environment or the file comes back at the next start.
    ///
    /// # Errors
    /// There is none of that name, or the change cannot be saved.
    pub fn remove(&self, name: &str) -> Result<ProviderStatus, Error> {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut providers = BTreeMap::clone(&self.providers.load());
        let gone = providers.remove(name).ok_or_else(|| Error::Unknown(name.to_owned()))?;
        self.publish(providers);
        self.save()?;
        tracing::info!(provider = name, "provider removed");
        Ok(gone.status())
    }

    /// Returns what may be told of each provider, by name. Reads the store: keep it off the hot path.
    pub fn list(&self) -> Vec<ProviderStatus> {
        self.providers.load().values().map(|provider| provider.status()).collect()
    }

    fn put(&self, mut settings: ProviderSettings) -> Result<Arc<Provider>, Error> {
        let mut providers = BTreeMap::clone(&self.providers.load());
        let name: Arc<str> = settings.name.as_str().into();
        if settings.key.is_none() {
            // A key belongs to the server that it was given for, and is never carried to another.
            let same =
                providers.get(&name).filter(|old| old.settings.base.origin() == settings.base.origin());
            settings.key = same.and_then(|old| old.settings.key.clone());
        }
        let models = match settings.models.as_slice() {
            [] => self.prices.models(&name),
            some => some.to_vec(),
        };
        if models.is_empty() {
            return Err(Error::NoModels(settings.name));
        }
        let zone = ProviderZone {
            name: name.clone(),
            base: settings.base.clone(),
            internal_ok: settings.internal_ok,
        };
        let wire = Settings {
            base: settings.base.clone(),
            key: settings.key.clone(),
            name: settings.name.clone(),
            id: settings.name.clone(),
            timeouts: self.timeouts,
        };
        let protocol =
            Protocol { kind: settings.kind, api_version: settings.api_version.as_deref().map(Arc::from) };
        let provider = Arc::new(Provider {
            models: models.iter().map(|model| Arc::from(format!("{name}/{model}"))).collect(),
            zone: Arc::new(zone),
            wire: Arc::new(wire),
            protocol: Arc::new(protocol),
            purse: Purse::new(Owner::Provider(name.clone()), settings.budget, self.store.clone()),
            // New settings are no reason to forget what the provider did.
            traffic: providers.get(&name).map(|old| old.traffic.clone()).unwrap_or_default(),
            settings,
        });
        providers.insert(name, provider.clone());
        self.publish(providers);
        Ok(provider)
    }

    fn publish(&self, providers: BTreeMap<Arc<str>, Arc<Provider>>) {
        let offers = providers.values().flat_map(|provider| self.offers_of(provider)).collect();
        self.providers.store(Arc::new(providers));
        self.offers.send_replace(Arc::new(offers));
    }

    fn offers_of(&self, provider: &Provider) -> Vec<Offer> {
        let ProviderSettings { name, kind, api, internal_ok, .. } = &provider.settings;
        let offer = |id: &Arc<str>| {
            let quote = self.prices.quote(name, id.strip_prefix(name.as_str()).map_or("", |m| &m[1..]));
            let mut spec = ModelSpec::new(id.clone(), kind.as_str());
            spec.context = quote.context;
            let can = quote.abilities;
            spec.tools = can.tools;
            spec.vision = can.vision;
            spec.logprobs = can.logprobs;
            spec.embeddings = can.embeddings;
            spec.schema = can.schema;
            spec.audio = can.audio;
            spec.transcription = can.transcription;
            spec.speech = can.speech;
            spec.max_output = quote.max_output;
            match kind {
                // What the API itself has no word for, whatever the model.
                Kind::Anthropic => {
                    (spec.embeddings, spec.logprobs, spec.audio) = (Some(false), Some(false), Some(false));
                    // Where the API cannot, a tool's arguments are the answer.
                    spec.schema = Some(true);
                }
                Kind::Gemini => spec.embeddings = Some(false),
                Kind::OpenAi | Kind::Azure => {
                    if quote.api.unwrap_or(*api) == Api::Responses {
                        spec.embeddings = Some(false);
                    }
                }
            }
            if matches!(kind, Kind::Anthropic | Kind::Gemini) {
                (spec.transcription, spec.speech) = (Some(false), Some(false));
            }
            if spec.craft() == Craft::Text {
                spec.tools = can.tools.or(Some(true));
            }
            let mut offer = Offer::new(UpstreamId::Provider(name.as_str().into()), Arc::new(spec));
            offer.price = Some(quote.price);
            offer.sound_price = quote.sound;
            offer.internal_ok = *internal_ok;
            offer
        };
        provider.models.iter().map(offer).collect()
    }

    fn save(&self) -> Result<(), Error> {
        let providers = self.providers.load();
        let added = providers.values().map(|p| &p.settings).filter(|s| s.source == Source::Added);
        let written = saved::write(&self.file, added);
        written.map_err(|source| Error::Write { path: self.file.clone(), source })
    }

    fn announce(&self) {
        for status in self.list() {
            tracing::info!(
                provider = %status.name, models = status.models.len(), budget = %status.budget,
                spent_usd = status.spent_usd, source = status.source, prices = %self.prices.noted,
                "provider enabled"
            );
        }
    }
}

impl Provider {
    fn status(&self) -> ProviderStatus {
        let settings = &self.settings;
        let balance = self.purse.balance();
        let traffic = self.traffic.summary();
        ProviderStatus {
            name: settings.name.clone(),
            kind: settings.kind.as_str(),
            base_url: settings.base.to_string(),
            models: self.models.iter().map(ToString::to_string).collect(),
            internal_ok: settings.internal_ok,
            key: settings.key.is_some(),
            source: settings.source.as_str(),
            budget: settings.budget.to_string(),
            budget_usd: settings.budget.amount.as_usd(),
            spent_usd: balance.ok().map(|balance| balance.spent.as_usd()),
            requests: traffic.requests,
            failed: traffic.failed,
            p50_ms: traffic.p50_ms,
            p99_ms: traffic.p99_ms,
        }
    }
}
