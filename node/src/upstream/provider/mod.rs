//! Cloud providers as upstreams: a permit, then one exchange in the provider's own dialect.
//!
//! The service asks policy for a permit before it builds anything, and hands it to egress with the request. It
//! knows no prices: [`crate::cloud`] wraps it with the purse.

mod gemini;
mod openai;
mod thoughts;

use std::sync::Arc;
use std::task::{Context, Poll};

use crate::egress::{Egress, ProviderZone, policy};
use crate::upstream::openai_http::{Dialect, Line, Settings, exchange};
use crate::upstream::{UpstreamError, UpstreamFuture, UpstreamRequest, UpstreamResponse};

/// Which API a provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// OpenAI's, or one compatible with it.
    OpenAi,
    /// Google's Gemini API.
    Gemini,
}

impl Kind {
    /// Returns the word used in the configuration and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::OpenAi => "openai",
            Kind::Gemini => "gemini",
        }
    }
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "openai" => Ok(Kind::OpenAi),
            "gemini" => Ok(Kind::Gemini),
            other => {
                Err(format!("'{other}' is not a kind of provider; it is openai (or compatible) or gemini"))
            }
        }
    }
}

/// One model of one provider as an upstream; cheap to clone.
#[derive(Debug, Clone)]
pub struct ProviderUpstream {
    egress: Arc<Egress>,
    zone: Arc<ProviderZone>,
    settings: Arc<Settings>,
    kind: Kind,
    /// The provider's own name for the model.
    model: Arc<str>,
}

impl ProviderUpstream {
    /// Makes the upstream; opens nothing.
    pub fn new(
        egress: Arc<Egress>,
        zone: Arc<ProviderZone>,
        settings: Arc<Settings>,
        kind: Kind,
        model: Arc<str>,
    ) -> Self {
        Self { egress, zone, settings, kind, model }
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
        let dialect: Box<dyn Dialect> = match self.kind {
            Kind::OpenAi => Box::new(openai::Dialect { model: self.model.clone() }),
            Kind::Gemini => Box::new(gemini::Dialect::new(self.model.clone(), &request)),
        };
        let line = Line::Out { egress: self.egress.clone(), permit };
        exchange(line, self.settings.clone(), dialect, request)
    }
}
