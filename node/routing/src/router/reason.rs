//! Why an arm was chosen, as one word for headers, the history and metrics.

use std::borrow::Cow;
use std::fmt;

/// Why an arm was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteReason {
    /// The caller named the model.
    Named,
    /// The caller named the device.
    PinnedDevice,
    /// The caller named the provider.
    PinnedProvider,
    /// The bandit chose by Thompson sampling.
    AutoThompson,
    /// The model was ours to choose, but only one could serve the request.
    OnlyCandidate,
    /// The prompt does not fit the named model, or is longer than devices may be given: a provider in its place.
    PromptTooLong,
    /// The caller named a model of devices and asked for the cloud: a provider in its place.
    ModeCloud,
    /// The chosen model failed; this one ranked next.
    Fallback,
    /// The answer of a weaker model was not good enough.
    Escalated,
    /// Asked beside another model that answered the client, to compare them; nobody gets its answer.
    Shadow,
    /// Asked beside another model whose answer nothing is known of, to see whether it says the same.
    Agreement,
    /// No decision was made.
    None,
}

impl RouteReason {
    /// Returns the words used in headers, the history and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Named => "named",
            Self::PinnedDevice => "pinned_device",
            Self::PinnedProvider => "pinned_provider",
            Self::AutoThompson => "auto:thompson",
            Self::OnlyCandidate => "only_candidate",
            Self::PromptTooLong => "prompt_too_long",
            Self::ModeCloud => "mode_cloud",
            Self::Fallback => "fallback",
            Self::Escalated => "escalated",
            Self::Shadow => "shadow",
            Self::Agreement => "agreement",
            Self::None => "none",
        }
    }

    /// Returns the same, or `rule:NAME` where a rule made the choice: what came after its pick keeps its own words.
    pub fn under(self, rule: Option<&str>) -> Cow<'static, str> {
        let is_first = match self {
            Self::Named
            | Self::PinnedDevice
            | Self::PinnedProvider
            | Self::AutoThompson
            | Self::OnlyCandidate
            | Self::PromptTooLong
            | Self::ModeCloud => true,
            Self::Fallback | Self::Escalated | Self::Shadow | Self::Agreement | Self::None => false,
        };
        match rule.filter(|_| is_first) {
            Some(rule) => Cow::Owned(format!("rule:{rule}")),
            None => Cow::Borrowed(self.as_str()),
        }
    }
}

impl fmt::Display for RouteReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
