//! Settings of the judges, after all checks.

use std::time::Duration;

use crate::cloud::Budget;

/// The model that grades answers.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluatorSettings {
    /// `auto:local`, a served model (asked on devices only) or `provider/model` (asked there).
    pub model: String,
    /// Share of completed chat answers that are graded, 0 to 1.
    pub share: f64,
    /// Most that grades may cost at a provider, beside the provider's own purse.
    pub budget: Budget,
    /// Grades asked for in an hour, at most.
    pub per_hour: u32,
    /// Grades asked for at once, at least 1.
    pub max_concurrent: usize,
    /// Longest wait for one grade.
    pub timeout: Duration,
}

/// How the node looks for evidence by itself.
#[derive(Debug, Clone, PartialEq)]
pub struct LearningSettings {
    /// Share of completed `auto` chats that another model of a device answers too, 0 to 1.
    pub shadow_share: f64,
    /// Shadow calls in an hour, at most.
    pub shadow_per_hour: u32,
}

impl Default for LearningSettings {
    /// No shadow calls: they cost electricity and time of devices, so somebody has to want them.
    fn default() -> Self {
        Self { shadow_share: 0.0, shadow_per_hour: DEFAULT_PER_HOUR }
    }
}

/// How second opinions are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgreementSettings {
    /// Second opinions asked for in an hour, at most.
    pub per_hour: u32,
    /// Asked for at once, at least 1.
    pub max_concurrent: usize,
    /// Longest that a client is kept waiting by one.
    pub wait: Duration,
}

/// Calls in an hour where nobody says otherwise: one in 15 s, which a small device can bear.
pub const DEFAULT_PER_HOUR: u32 = 240;
