//! The engines of one process: named ones, found ones and the embedded one, described as one device.
//!
//! A router's own engines and a device's are the same thing; the embedded model loads in the background, so that
//! neither the API nor the link waits for it.

use anyhow::Context as _;
use futures_util::StreamExt;
use reqwest::Url;
use secrecy::SecretString;
use shoal_proto::{DeviceInfo, ModelInfo};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;

use super::detect::EngineLoad;
use super::dispatch::Dispatch;
use super::engine::{Engine, HttpEngine};
use super::lfo;
use super::power::Power;
use crate::config::Config;
use crate::tasks::{self, TaskKind};
use crate::upstream::BoxUpstream;

/// Which embedded model to run.
#[derive(Debug, Clone, Default)]
pub struct EmbeddedChoice {
    /// Model by name; `None` = the default.
    pub model: Option<String>,
    /// GGUF file; wins over the name.
    pub model_file: Option<std::path::PathBuf>,
}

/// Engines of this process.
#[derive(Debug, Clone, Default)]
pub struct EngineSet {
    engines: Vec<Engine>,
    name: String,
    id: String,
}

impl EngineSet {
    /// Starts what a router's configuration asks for: named servers, found ones, the embedded engine.
    pub fn for_router(config: &Config, shutdown: CancellationToken) -> anyhow::Result<Self> {
        let named: Vec<(Url, Option<SecretString>)> = config
            .devices
            .iter()
            .map(|d| Ok((d.url.parse().with_context(|| format!("'{}' is not a URL", d.url))?, None)))
            .collect::<anyhow::Result<_>>()?;
        let embedded = config
            .embedded
            .then(|| EmbeddedChoice { model: config.model.clone(), model_file: config.model_file.clone() });
        Self::start(named, config.detect, embedded, &config.data_dir, shutdown)
    }

    /// Starts engines: servers and phones by URL, servers looked for on loopback, the embedded engine.
    pub fn start(
        named: Vec<(Url, Option<SecretString>)>,
        detect: bool,
        embedded: Option<EmbeddedChoice>,
        data_dir: &std::path::Path,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        let mut engines = Vec::new();
        let urls: Vec<Url> = named.iter().map(|(url, _)| url.clone()).collect();
        for (url, key) in named {
            let engine = if lfo::Place::is_meant(url.as_str()) {
                lfo::Phone::new(lfo::Place::parse(url.as_str())?).start(shutdown.clone())?
            } else {
                HttpEngine::named(url, key).start(shutdown.clone())?
            };
            engines.push(engine);
        }
        if detect {
            for place in HttpEngine::loopback(&urls) {
                engines.push(place.start(shutdown.clone())?);
            }
        }
        if let Some(choice) = embedded {
            engines.push(embedded_engine(choice, data_dir.to_owned())?);
        }
        Ok(Self { engines, ..Self::default() })
    }

    /// Returns the engines.
    pub fn engines(&self) -> &[Engine] {
        &self.engines
    }

    /// Sets who the engines answer as.
    pub fn named(mut self, id: &str, name: &str) -> Self {
        id.clone_into(&mut self.id);
        name.clone_into(&mut self.name);
        self
    }

    /// Returns all engines as one upstream.
    pub fn upstream(&self) -> BoxUpstream {
        BoxUpstream::new(Dispatch::new(&self.engines, self.name.clone(), self.id.clone()))
    }

    /// Watches all engines and describes them as one device; follows every change.
    pub fn describe(&self, generation: u64, power: watch::Receiver<Power>) -> watch::Receiver<DeviceInfo> {
        let info = DeviceInfo {
            id: self.id.clone(),
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            platform: format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
            generation,
            ..DeviceInfo::default()
        };
        let engines = self.engines.clone();
        let (report, described) = watch::channel(filled(info, &engines, *power.borrow()));
        tasks::spawn(TaskKind::EngineProbe, async move {
            let statuses = engines.iter().map(|e| WatchStream::from_changes(e.status.clone()));
            let statuses = futures_util::stream::select_all(statuses).map(drop);
            let powers = WatchStream::from_changes(power.clone()).map(drop);
            let mut changes = futures_util::stream::select(statuses, powers);
            while changes.next().await.is_some() {
                let power = *power.borrow();
                report.send_modify(|info| *info = filled(std::mem::take(info), &engines, power));
            }
            // No engine can change any more; the readers keep the last description.
            report.closed().await;
        });
        described
    }
}

fn filled(mut info: DeviceInfo, engines: &[Engine], power: Power) -> DeviceInfo {
    info.models = models(engines);
    info.slots = engines.iter().map(|e| e.status.borrow().slots).fold(0, u32::saturating_add);
    let load = load(engines);
    info.in_flight = load.running;
    info.queued = load.waiting;
    info.kv_percent = load.kv_percent.map(u32::from);
    power.announce(&mut info);
    info.seq += 1;
    info
}

/// Returns what all engines run beside the requests from here; of their caches the fullest counts.
pub fn load(engines: &[Engine]) -> EngineLoad {
    engines.iter().map(|engine| engine.status.borrow().load).fold(EngineLoad::default(), |all, one| {
        EngineLoad {
            running: all.running.saturating_add(one.running),
            waiting: all.waiting.saturating_add(one.waiting),
            kv_percent: all.kv_percent.max(one.kv_percent),
        }
    })
}

/// Returns the models of all engines, by name; of a name that several serve, the larger context stands.
pub fn models(engines: &[Engine]) -> Vec<ModelInfo> {
    let mut models: Vec<ModelInfo> =
        engines.iter().flat_map(|engine| engine.status.borrow().models.clone()).collect();
    models.sort_by(|a, b| a.id.cmp(&b.id).then(b.context_length.cmp(&a.context_length)));
    models.dedup_by(|dropped, kept| {
        let same = dropped.id == kept.id;
        if same && dropped.resident == Some(true) {
            kept.resident = Some(true);
        }
        if same {
            keep_what_both_say(kept, dropped);
        }
        // One of them leaves the mesh, so the name as a whole has to count as leaving it.
        kept.remote |= same && dropped.remote;
        same
    });
    models
}

/// Leaves of what a model is said to be able to do only that which both of its engines say: either may be asked.
fn keep_what_both_say(kept: &mut ModelInfo, other: &ModelInfo) {
    let pairs = [
        (&mut kept.tools, other.tools),
        (&mut kept.vision, other.vision),
        (&mut kept.logprobs, other.logprobs),
        (&mut kept.embeddings, other.embeddings),
        (&mut kept.schema, other.schema),
        (&mut kept.audio, other.audio),
        (&mut kept.transcription, other.transcription),
        (&mut kept.speech, other.speech),
    ];
    for (kept, other) in pairs {
        *kept = kept.filter(|can| other == Some(*can));
    }
}

#[cfg(not(feature = "embedded"))]
fn embedded_engine(_: EmbeddedChoice, _: std::path::PathBuf) -> anyhow::Result<Engine> {
    anyhow::bail!(
        "this program was built without the embedded engine; build it with `--features embedded`, or name a server with --engine or --device"
    )
}

#[cfg(feature = "embedded")]
fn embedded_engine(choice: EmbeddedChoice, data_dir: std::path::PathBuf) -> anyhow::Result<Engine> {
    let options =
        crate::model::Locate { data_dir, model_file: choice.model_file, model: choice.model, offline: false };
    Ok(super::loading::engine("embedded", async move {
        let located = crate::model::locate(&options).await?;
        tracing::info!(model = %located.name, file = %located.path.display(), "loading the embedded model");
        if located.fallback {
            tracing::warn!(
                "the default model could not be fetched; a very small one answers instead. Choose one with --model or --model-file"
            );
        }
        let path = located.path.clone();
        let model = tokio::task::spawn_blocking(move || {
            shoal_embedded::Engine::load(&path, &shoal_embedded::LoadOptions::default())
        })
        .await??;
        Ok(super::embedded::engine(model, located.name, None))
    }))
}
