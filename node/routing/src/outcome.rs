//! The facts of how a request ended. Every accepted request has exactly one outcome, also when it was cancelled.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::class::DataClass;
use crate::ids::{ArmId, UpstreamId};
use crate::router::RouteReason;
use crate::units::Tokens;

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutcomeStatus {
    /// The client got a whole answer.
    Completed,
    /// No upstream gave a whole answer.
    Failed {
        /// The machine-readable code of the error, "upstream_error".
        code: Cow<'static, str>,
    },
    /// The client went away.
    Cancelled,
    /// Refused before any upstream was tried: no permission, no capacity, no such model.
    Rejected,
}

impl OutcomeStatus {
    /// Returns the word used in the history and in metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed { .. } => "failed",
            Self::Cancelled => "cancelled",
            Self::Rejected => "rejected",
        }
    }

    /// True when the fault lies with the request itself, or with a shortage of capacity: it says nothing about a model.
    pub fn is_blameless(&self) -> bool {
        const BLAMELESS: [&str; 6] = [
            "invalid_request_error",
            "context_length_exceeded",
            "model_not_found",
            "overloaded",
            "rate_limit_exceeded",
            "policy_blocked",
        ];
        match self {
            Self::Completed => false,
            Self::Failed { code } => BLAMELESS.contains(&code.as_ref()),
            Self::Cancelled | Self::Rejected => true,
        }
    }
}

/// Why a model stopped writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FinishReason {
    /// It was done.
    Stop,
    /// It reached the longest answer or the end of its context.
    Length,
    /// It calls a tool.
    ToolCalls,
    /// The upstream's filter cut it.
    ContentFilter,
    /// Something that we do not know.
    Other,
}

impl FinishReason {
    /// Reads the OpenAI word; unknown words are [`Other`](Self::Other).
    pub fn parse(word: &str) -> Self {
        match word {
            "stop" => Self::Stop,
            "length" => Self::Length,
            "tool_calls" | "function_call" => Self::ToolCalls,
            "content_filter" => Self::ContentFilter,
            _ => Self::Other,
        }
    }

    /// Returns the OpenAI word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::ContentFilter => "content_filter",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for FinishReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The facts of how a request ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Id of the request.
    pub request_id: Arc<str>,
    /// Who answered last; `None` when nobody was asked.
    pub upstream: Option<UpstreamId>,
    /// The arm that answered last; `None` when none was chosen.
    pub arm: Option<ArmId>,
    /// How it ended.
    pub status: OutcomeStatus,
    /// Why the model stopped, if it said.
    pub finish_reason: Option<FinishReason>,
    /// Tokens of the prompt: the upstream's own count if it gave one.
    pub prompt_tokens: Tokens,
    /// Tokens of the answer: the upstream's own count, else what passed by. 0 = the answer was empty.
    pub completion_tokens: Tokens,
    /// From the decision to the first token, milliseconds.
    pub ttft_ms: Option<u64>,
    /// From the request to the end of its answer, milliseconds.
    pub duration_ms: u64,
    /// Upstreams that were tried.
    pub attempts: u32,
    /// Routers that forwarded the request before this one.
    pub hop: u32,
    /// Its data class.
    pub data_class: DataClass,
    /// A stronger model was asked after the first answer.
    pub escalated: bool,
    /// Probability with which the arm was chosen, 0 to 1; 1 when the caller named it.
    pub propensity: f64,
    /// Why that arm.
    pub reason: RouteReason,
}
