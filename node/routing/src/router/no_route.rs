//! Why nothing serves a request, in words for the client: cause first, then what helps.

use std::sync::Arc;

use crate::class::Mode;
use crate::registry::{Offer, Registry};
use crate::request::Request;
use crate::router::SUGGESTIONS;
use crate::units::Tokens;

/// Why nothing serves a request. `Display` is for the client; it holds no text of the request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// Nobody serves a model of that name.
    #[error("The model '{model}' does not exist. {}", suggestion(nearest))]
    UnknownModel {
        /// The name that was asked for.
        model: String,
        /// Served names that come near it.
        nearest: Vec<Arc<str>>,
    },
    /// It is known who serves it, but nobody of them can be reached or takes new work.
    #[error("No device {} takes requests now. 'shoal devices' shows why.", whom(model.as_deref()))]
    NoDevice {
        /// The model; `None` when any would have done.
        model: Option<String>,
    },
    /// The nodes that have the provider's key cannot be reached.
    #[error(
        "No node that has the key for '{provider}' can be reached now. 'shoal nodes' shows which are away."
    )]
    ProviderAway {
        /// Configured name of the provider.
        provider: Arc<str>,
    },
    /// Prompt and answer do not fit any candidate.
    #[error(
        "Prompt and requested answer take {tokens} tokens; the longest context that may serve this request \
         is {limit} tokens. Shorten the prompt or lower max_tokens."
    )]
    ContextTooLong {
        /// The longest context among them.
        limit: Tokens,
        /// What prompt and requested answer take.
        tokens: Tokens,
    },
    /// No candidate can do what the request needs.
    #[error("No model that may serve this request supports {what}.")]
    Unsupported {
        /// What is missing, "tools".
        what: &'static str,
    },
    /// It must run on a device of the mesh, and none can.
    #[error(
        "The request must stay on the devices of the mesh, and none of them can serve it now. \
         Join one with 'shoal join', or name another model."
    )]
    NoLocalCapacity,
    /// What is left of the key's money covers no provider, and no device can serve it.
    #[error(
        "What is left of this API key's budget does not cover any provider that may serve this request. Ask a model \
         of a device, ask for fewer tokens with max_tokens, wait for the next period, or make a key with a larger \
         --budget; 'shoal keys ls' shows what is left."
    )]
    KeyBudget,
    /// Data class, mode or hop count forbid every candidate.
    #[error("Policy forbids every candidate: {why}.")]
    PolicyBlocked {
        /// The rule.
        why: &'static str,
    },
}

impl NoRoute {
    /// Returns the machine-readable code of the error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownModel { .. } => "model_not_found",
            Self::NoDevice { .. } => "no_device",
            Self::ProviderAway { .. } => "provider_away",
            Self::ContextTooLong { .. } => "context_length_exceeded",
            Self::Unsupported { .. } => "unsupported",
            Self::NoLocalCapacity => "no_local_capacity",
            Self::KeyBudget => "insufficient_quota",
            Self::PolicyBlocked { .. } => "policy_blocked",
        }
    }

    /// Says that nobody serves a name, with served names near it.
    ///
    /// With no device alive it cannot be known: a device that went away took the names of its models with it. A request
    /// that must stay on devices is then told that, which passes, and not that its model does not exist.
    pub(super) fn unknown(model: &str, request: &Request<'_>, registry: &Registry) -> Self {
        let on_devices = |offer: &Arc<Offer>| offer.is_alive() && !offer.is_cloud();
        if request.effective_mode() == Mode::Local && !registry.offers().iter().any(on_devices) {
            return Self::NoLocalCapacity;
        }
        Self::UnknownModel { model: model.to_owned(), nearest: registry.nearest(model, SUGGESTIONS) }
    }

    /// Adds the name that was asked for.
    pub(super) fn about(self, model: &str) -> Self {
        match self {
            Self::NoDevice { .. } => Self::NoDevice { model: Some(model.to_owned()) },
            other => other,
        }
    }
}

/// Ends an "unknown model" sentence with what the caller may have meant.
fn suggestion(nearest: &[Arc<str>]) -> String {
    match nearest {
        [] => "GET /v1/models lists what is served.".to_owned(),
        names => format!("Did you mean {}?", names.join(", ")),
    }
}

fn whom(model: Option<&str>) -> String {
    model.map_or_else(|| "of the mesh".to_owned(), |model| format!("that serves '{model}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_reads_the_cause_and_the_next_step() {
        let unknown = |nearest: &[&str]| NoRoute::UnknownModel {
            model: "lama".into(),
            nearest: nearest.iter().map(|name| Arc::from(*name)).collect(),
        };
        let cases = [
            (unknown(&["llama"]), "The model 'lama' does not exist. Did you mean llama?"),
            (unknown(&[]), "The model 'lama' does not exist. GET /v1/models lists what is served."),
            (
                NoRoute::NoDevice { model: Some("m".into()) },
                "No device that serves 'm' takes requests now. 'shoal devices' shows why.",
            ),
            (NoRoute::Unsupported { what: "tools" }, "No model that may serve this request supports tools."),
        ];
        for (error, text) in cases {
            assert_eq!(error.to_string(), text);
        }
    }
}
