//! Recognises the engine behind a base URL and reads what it serves.
//!
//! Engines share ports and imitate each other's API (several answer Ollama's `/api/tags`), so the port proves
//! nothing and the order of the questions matters: each kind is known by an answer that no other gives. An
//! answer with the header `x-shoal-node` is a Shoal router, never an engine: adopting one would send requests
//! in circles. One probe, all questions together, stays within a second.

use std::collections::HashMap;
use std::time::Duration;

use reqwest::{Client, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use shoal_proto::ModelInfo;

use crate::upstream::openai_http::join;
pub use load::EngineLoad;

mod describe;
mod load;
#[cfg(test)]
mod tests;

/// Longest time for one probe, whatever it has to ask.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Header on every response of a Shoal router.
pub const NODE_HEADER: &str = "x-shoal-node";

/// Largest answer to a question about models; some engines list chat templates with them.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// Most models taken from one engine; what more there is could not be announced anyway.
const MAX_MODELS: usize = 128;

/// Default ports of engines: Ollama, LM Studio, llama.cpp and LocalAI, vLLM, SGLang, Jan, KoboldCpp.
const PORTS: [u16; 7] = [11434, 1234, 8080, 8000, 30000, 1337, 5001];

/// Returns the base URLs on this host where engines listen by default.
pub fn loopback_places() -> impl Iterator<Item = Url> {
    let url = |port| format!("http://127.0.0.1:{port}").parse().expect("a fixed host and a port make a URL");
    PORTS.into_iter().map(url)
}

/// What kind of server an engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EngineKind {
    /// The engine inside this process.
    Embedded,
    /// Ollama.
    Ollama,
    /// `llama-server` of llama.cpp.
    LlamaCpp,
    /// LM Studio.
    LmStudio,
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// LocalAI.
    LocalAi,
    /// Jan.
    Jan,
    /// KoboldCpp.
    KoboldCpp,
    /// LFO's app on a phone, or its bridge.
    Lfo,
    /// Any other server with the OpenAI API.
    OpenAi,
}

impl EngineKind {
    /// Returns the word used on the wire and in output.
    pub fn as_str(self) -> &'static str {
        match self {
            EngineKind::Embedded => "embedded",
            EngineKind::Ollama => "ollama",
            EngineKind::LlamaCpp => "llama.cpp",
            EngineKind::LmStudio => "lmstudio",
            EngineKind::Vllm => "vllm",
            EngineKind::Sglang => "sglang",
            EngineKind::LocalAi => "localai",
            EngineKind::Jan => "jan",
            EngineKind::KoboldCpp => "koboldcpp",
            EngineKind::Lfo => "lfo",
            EngineKind::OpenAi => "openai",
        }
    }
}

/// An engine that answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// What it is.
    pub kind: EngineKind,
    /// What it serves, sorted by name.
    pub models: Vec<ModelInfo>,
    /// Requests it runs at once, at least 1.
    pub slots: u32,
    /// What it runs now, where it says so.
    pub load: EngineLoad,
}

/// Why there is no engine to use; reads on after the URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Nothing accepts connections.
    #[error("does not answer: is the engine running?")]
    Unreachable,
    /// It did not answer within [`PROBE_TIMEOUT`].
    #[error("did not answer within a second")]
    Timeout,
    /// A Shoal router.
    #[error("is a Shoal node, not an engine: use `shoal join` to make them one mesh")]
    ShoalNode,
    /// It wants another key, or one at all.
    #[error("refuses the key, or wants one")]
    Unauthorized,
    /// Something that is not an engine.
    #[error("is not an engine that Shoal knows: it has no usable /v1/models")]
    NotAnEngine,
}

/// What need not be asked again at each probe: Ollama's details by model digest.
#[derive(Debug, Default)]
pub struct Cache {
    shown: HashMap<String, Value>,
}

/// Asks the server at `base` what it is and what it serves.
///
/// `cache` belongs to this base URL and is kept from probe to probe.
///
/// # Errors
/// Nothing usable is there; see [`ProbeError`].
pub async fn probe(
    client: &Client,
    base: &Url,
    key: Option<&SecretString>,
    cache: &mut Cache,
) -> Result<Found, ProbeError> {
    let asker = Asker { client, base, key };
    tokio::time::timeout(PROBE_TIMEOUT, asker.identify(cache)).await.map_err(|_| ProbeError::Timeout)?
}

/// Asks one server.
#[derive(Clone, Copy)]
struct Asker<'a> {
    client: &'a Client,
    base: &'a Url,
    key: Option<&'a SecretString>,
}

impl Asker<'_> {
    async fn identify(self, cache: &mut Cache) -> Result<Found, ProbeError> {
        // Alone and first: where nothing listens, one refused connection is all that a probe costs.
        let openai = match self.get("/v1/models").await {
            Err(ProbeError::NotAnEngine) => Value::Null,
            answer => answer?,
        };
        let (kobold, props, studio, version, ollama) = tokio::try_join!(
            self.optional("/api/extra/version"),
            self.optional("/props"),
            self.optional("/api/v0/models"),
            self.optional("/version"),
            self.optional("/api/version"),
        )?;
        let listed = openai.get("data").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let owner = |name: &str| listed.iter().any(|model| model["owned_by"] == name);

        let (kind, mut models, slots) = if kobold["result"] == "KoboldCpp" {
            let context = self.optional("/api/extra/true_max_context_length").await?;
            (EngineKind::KoboldCpp, describe::koboldcpp(listed, &context), 1)
        } else if props["default_generation_settings"].is_object() {
            (EngineKind::LlamaCpp, describe::llama_cpp(listed, &props), describe::llama_cpp_slots(&props))
        } else if studio["data"]
            .as_array()
            .is_some_and(|list| list.iter().all(|model| model["state"].is_string()))
        {
            (EngineKind::LmStudio, describe::lm_studio(&studio), 1)
        } else if owner("vllm") {
            (EngineKind::Vllm, describe::served(listed, "vllm"), describe::BATCHING_SLOTS)
        } else if owner("sglang") {
            let info = self.optional("/get_model_info").await?;
            (EngineKind::Sglang, describe::sglang(listed, &info), describe::BATCHING_SLOTS)
        } else if ollama["version"].is_string()
            && let tags = self.get("/api/tags").await?
            && tags["models"].is_array()
        {
            let (shown, running) = tokio::try_join!(self.show_all(&tags, cache), self.optional("/api/ps"))?;
            (EngineKind::Ollama, describe::ollama(&tags, &shown, &running, &ollama), 1)
        } else if !openai["data"].is_array() {
            return Err(ProbeError::NotAnEngine);
        } else if version["version"].is_string() && listed.iter().all(|model| model["owned_by"].is_null()) {
            (EngineKind::LocalAi, describe::served(listed, "localai"), 1)
        } else if self.base.port() == Some(1337) {
            (EngineKind::Jan, describe::served(listed, "jan"), 1)
        } else {
            (EngineKind::OpenAi, describe::served(listed, "openai"), describe::UNKNOWN_SLOTS)
        };
        models.retain(|model| !model.id.is_empty());
        models.sort_by(|a, b| a.id.cmp(&b.id));
        models.dedup_by(|a, b| a.id == b.id);
        models.truncate(MAX_MODELS);
        let load = self.load(kind).await?.unwrap_or_default();
        Ok(Found { kind, models, slots, load })
    }

    /// Asks for the engine's load in the way of its kind; `None` where it has none.
    async fn load(self, kind: EngineKind) -> Result<Option<EngineLoad>, ProbeError> {
        let names = match kind {
            EngineKind::Vllm => &load::VLLM,
            EngineKind::Sglang => &load::SGLANG,
            EngineKind::LlamaCpp => {
                let slots = EngineLoad::of_slots(&self.optional("/slots").await?);
                let told = EngineLoad::of_metrics(&self.metrics().await?, &load::LLAMA_CPP);
                return Ok(told.or(slots));
            }
            _ => return Ok(None),
        };
        Ok(EngineLoad::of_metrics(&self.metrics().await?, names))
    }

    /// Returns the engine's page of metrics, empty where it has none.
    async fn metrics(self) -> Result<String, ProbeError> {
        match self.body(self.client.get(join(self.base, "/metrics"))).await {
            Ok(body) => Ok(String::from_utf8(body).unwrap_or_default()),
            Err(ProbeError::NotAnEngine | ProbeError::Unauthorized) => Ok(String::new()),
            Err(error) => Err(error),
        }
    }

    /// Asks Ollama for the details of each model that is not known yet, one after the other.
    async fn show_all(self, tags: &Value, cache: &mut Cache) -> Result<HashMap<String, Value>, ProbeError> {
        let listed = tags["models"].as_array().map_or(&[][..], Vec::as_slice);
        let mut shown = HashMap::new();
        for model in listed.iter().take(MAX_MODELS) {
            let (Some(name), Some(digest)) = (describe::ollama_name(model), model["digest"].as_str()) else {
                continue;
            };
            // The name belongs to the key: two tags of one digest may differ in their parameters.
            let key = format!("{name} {digest}");
            let details = match cache.shown.remove(&key) {
                Some(known) => known,
                None => match self.post("/api/show", &serde_json::json!({ "model": name })).await {
                    Err(ProbeError::NotAnEngine) => continue,
                    answer => describe::ollama_essence(&answer?),
                },
            };
            shown.insert(key, details);
        }
        cache.shown = shown.clone();
        Ok(shown)
    }

    /// As [`get`](Self::get), but a server that does not know the path answers null.
    async fn optional(self, path: &str) -> Result<Value, ProbeError> {
        match self.get(path).await {
            Err(ProbeError::NotAnEngine | ProbeError::Unauthorized) => Ok(Value::Null),
            answer => answer,
        }
    }

    async fn get(self, path: &str) -> Result<Value, ProbeError> {
        self.answer(self.client.get(join(self.base, path))).await
    }

    async fn post(self, path: &str, body: &Value) -> Result<Value, ProbeError> {
        self.answer(self.client.post(join(self.base, path)).json(body)).await
    }

    async fn answer(self, request: reqwest::RequestBuilder) -> Result<Value, ProbeError> {
        let body = self.body(request).await?;
        serde_json::from_slice(&body).map_err(|_| ProbeError::NotAnEngine)
    }

    async fn body(self, mut request: reqwest::RequestBuilder) -> Result<Vec<u8>, ProbeError> {
        if let Some(key) = self.key {
            request = request.bearer_auth(key.expose_secret());
        }
        let broken = |error: reqwest::Error| match error {
            e if e.is_timeout() => ProbeError::Timeout,
            e if e.is_connect() => ProbeError::Unreachable,
            _ => ProbeError::NotAnEngine,
        };
        let mut response = request.send().await.map_err(broken)?;
        if response.headers().contains_key(NODE_HEADER) {
            return Err(ProbeError::ShoalNode);
        }
        match response.status() {
            status if status.is_success() => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(ProbeError::Unauthorized),
            _ => return Err(ProbeError::NotAnEngine),
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(ProbeError::NotAnEngine);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}
