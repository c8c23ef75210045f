//! Why nothing serves a request, in words for the client: cause first, then what helps.

use std::fmt;
use std::sync::Arc;

use crate::registry::Registry;
use crate::router::SUGGESTIONS;
use crate::units::Tokens;

/// Why nothing serves a request. `Display` is for the client; it holds no text of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoRoute {
    /// Nobody serves a model of that name.
    UnknownModel {
        /// The name that was asked for.
        model: String,
        /// Served names that come near it.
        nearest: Vec<Arc<str>>,
    },
    /// It is known who serves it, but nobody of them can be reached or takes new work.
    NoDevice {
        /// The model; `None` when any would have done.
        model: Option<String>,
    },
    /// Prompt and answer do not fit any candidate.
    ContextTooLong {
        /// The longest context among them.
        limit: Tokens,
        /// What prompt and requested answer take.
        tokens: Tokens,
    },
    /// No candidate can do what the request needs.
    Unsupported {
        /// What is missing, "tools".
        what: &'static str,
    },
    /// It must run on a device of the mesh, and none can.
    NoLocalCapacity,
    /// Data class, mode or hop count forbid every candidate.
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
            Self::ContextTooLong { .. } => "context_length_exceeded",
            Self::Unsupported { .. } => "unsupported",
            Self::NoLocalCapacity => "no_local_capacity",
            Self::PolicyBlocked { .. } => "policy_blocked",
        }
    }

    /// Adds the name that was asked for, and names near it if nobody serves it.
    pub(super) fn about(self, model: &str, registry: &Registry) -> Self {
        match self {
            Self::NoDevice { .. } | Self::NoLocalCapacity if registry.by_model(model).is_empty() => {
                Self::UnknownModel { model: model.to_owned(), nearest: registry.nearest(model, SUGGESTIONS) }
            }
            Self::NoDevice { .. } => Self::NoDevice { model: Some(model.to_owned()) },
            other => other,
        }
    }
}

impl std::error::Error for NoRoute {}

impl fmt::Display for NoRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownModel { model, nearest } => {
                write!(f, "The model '{model}' does not exist.")?;
                match nearest.as_slice() {
                    [] => f.write_str(" GET /v1/models lists what is served."),
                    names => write!(f, " Did you mean {}?", names.join(", ")),
                }
            }
            Self::NoDevice { model: Some(model) } => {
                write!(f, "No device that serves '{model}' takes requests now. 'shoal devices' shows why.")
            }
            Self::NoDevice { model: None } => f.write_str(
                "No device of the mesh takes requests now. Join one with 'shoal join', or see 'shoal devices'.",
            ),
            Self::ContextTooLong { limit, tokens } => write!(
                f,
                "Prompt and requested answer take {tokens} tokens; the longest context that serves this \
                 request is {limit} tokens. Shorten the prompt or lower max_tokens."
            ),
            Self::Unsupported { what } => {
                write!(f, "No model that serves this request supports {what}. Name another model.")
            }
            Self::NoLocalCapacity => f.write_str(
                "The request must stay on the devices of the mesh, and none of them can serve it now. \
                 Join a device with 'shoal join', or allow the cloud with metadata.mode 'auto'.",
            ),
            Self::PolicyBlocked { why } => write!(f, "Policy forbids every candidate: {why}."),
        }
    }
}
