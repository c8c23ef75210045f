//! For whom a request runs: a client, or the node itself.

use std::sync::Arc;

use shoal_routing::DataClass;

/// For whom a request runs. What the node asks for itself is no client's request: it is counted apart, and its answer
/// starts no further work of its kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Purpose {
    /// A client, here or at the router that forwarded it.
    #[default]
    Client,
    /// Another model's answer to a client's request, to compare them.
    Shadow {
        /// Id of the client's request.
        of: Arc<str>,
        /// The class of the client's request; the call itself travels as restricted.
        class: DataClass,
    },
    /// Another model's answer to a client's request that is not answered yet, to see whether it says the same.
    Agreement {
        /// Id of the client's request.
        of: Arc<str>,
    },
    /// A grade of an answer.
    Evaluation {
        /// Id of the request whose answer is graded.
        of: Arc<str>,
    },
}

impl Purpose {
    /// Returns the word for records and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Shadow { .. } => "shadow",
            Self::Agreement { .. } => "agreement",
            Self::Evaluation { .. } => "evaluation",
        }
    }

    /// Returns the request that it is about; empty for a client's own.
    pub fn of(&self) -> &str {
        match self {
            Self::Client => "",
            Self::Shadow { of, .. } | Self::Agreement { of } | Self::Evaluation { of } => of,
        }
    }

    /// True for a client's request.
    pub fn is_client(&self) -> bool {
        *self == Self::Client
    }
}
