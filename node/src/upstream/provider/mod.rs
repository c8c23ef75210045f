//! Cloud providers as upstreams: a permit, then one exchange in the provider's own dialect.
//!
//! The service asks policy for a permit before it builds anything, and hands it to egress with the request. It
//! knows no prices: [`crate::cloud`] wraps it with the purse.

mod anthropic;
mod azure;
mod gemini;
mod openai;
mod responses;
mod thoughts;
mod translated;

use std::sync::Arc;
use std::task::{Context, Poll};

use serde::{Deserialize, Serialize};
use shoal_routing::Tokens;

use crate::egress::{Egress, ProviderZone, policy};
use crate::upstream::openai_http::{Dialect, Line, Settings, exchange};
use crate::upstream::{UpstreamError, UpstreamFuture, UpstreamRequest, UpstreamResponse};

/// Which API a provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// OpenAI's, or one compatible with it: OpenRouter, LiteLLM, Portkey, another Shoal.
    OpenAi,
    /// OpenAI's as Azure hosts it.
    Azure,
    /// Anthropic's Messages API.
    Anthropic,
    /// Google's Gemini API.
    Gemini,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 4] = [Kind::OpenAi, Kind::Azure, Kind::Anthropic, Kind::Gemini];

    /// Returns the word used in the configuration and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::OpenAi => "openai",
            Kind::Azure => "azure",
            Kind::Anthropic => "anthropic",
            Kind::Gemini => "gemini",
        }
    }
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Kind::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
            format!(
                "'{text}' is not a kind of provider; it is openai (or compatible), azure, anthropic or gemini"
            )
        })
    }
}

/// Which of OpenAI's two APIs for chats a model is asked by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// `/v1/chat/completions`.
    #[default]
    Chat,
    /// `/v1/responses`, the only one that some models have.
    Responses,
}

impl std::str::FromStr for Api {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "chat" => Ok(Api::Chat),
            "responses" => Ok(Api::Responses),
            other => Err(format!("'{other}' is not an API; it is chat or responses")),
        }
    }
}

/// How one provider is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protocol {
    /// Its API.
    pub kind: Kind,
    /// Azure's `api-version`; `None` = the newer addresses without one.
    pub api_version: Option<Arc<str>>,
}

/// What a request to a model depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits {
    /// How OpenAI's kind is asked.
    pub api: Api,
    /// Longest answer.
    pub max_output: Option<Tokens>,
    /// Can be held to a JSON schema by the API itself.
    pub schema: Option<bool>,
    /// Takes temperature and the like; reasoning models refuse them.
    pub sampling: bool,
    /// Decides itself how long it thinks, by effort; else it is given a budget in tokens.
    pub adaptive_thinking: bool,
}

impl Default for Traits {
    fn default() -> Self {
        Self { api: Api::Chat, max_output: None, schema: None, sampling: true, adaptive_thinking: false }
    }
}

/// A model as its provider knows it; cheap to clone.
#[derive(Debug, Clone)]
pub struct Model {
    /// The provider's own name for it.
    pub name: Arc<str>,
    /// What requests to it depend on.
    pub traits: Traits,
}

/// One model of one provider as an upstream; cheap to clone.
#[derive(Debug, Clone)]
pub struct ProviderUpstream {
    egress: Arc<Egress>,
    zone: Arc<ProviderZone>,
    settings: Arc<Settings>,
    protocol: Arc<Protocol>,
    model: Model,
}

impl ProviderUpstream {
    /// Makes the upstream; opens nothing.
    pub fn new(
        egress: Arc<Egress>,
        zone: Arc<ProviderZone>,
        settings: Arc<Settings>,
        protocol: Arc<Protocol>,
        model: Model,
    ) -> Self {
        Self { egress, zone, settings, protocol, model }
    }

    fn dialect(&self, request: &UpstreamRequest) -> Box<dyn Dialect> {
        let (model, protocol) = (self.model.clone(), &self.protocol);
        // The newer API of chats has no sound of its own.
        let api = if request.path.is_sound() { Api::Chat } else { model.traits.api };
        match (protocol.kind, api) {
            (Kind::Anthropic, _) => Box::new(anthropic::Dialect::new(model, request)),
            (Kind::Gemini, _) => Box::new(gemini::Dialect::new(model.name, request)),
            (Kind::OpenAi | Kind::Azure, Api::Responses) => {
                Box::new(responses::Dialect::new(model, protocol.clone(), request))
            }
            (Kind::Azure, Api::Chat) => Box::new(azure::Dialect::new(model, protocol.clone())),
            (Kind::OpenAi, Api::Chat) => Box::new(openai::Dialect { model }),
        }
    }
}

impl tower::Service<UpstreamRequest> for ProviderUpstream {
    type Response = UpstreamResponse;
    type Error = UpstreamError;
    type Future = UpstreamFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: UpstreamRequest) -> UpstreamFuture {
        let permit = match policy::grant(&request, &self.zone) {
            Ok(permit) => permit,
            Err(denied) => {
                let error = UpstreamError::retryable(403, "policy_blocked", denied.to_string());
                return Box::pin(std::future::ready(Err(error)));
            }
        };
        let dialect = self.dialect(&request);
        let line = Line::Out { egress: self.egress.clone(), permit };
        exchange(line, self.settings.clone(), dialect, request)
    }
}
