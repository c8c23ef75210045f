//! What an outcome says about the quality of a model.
//!
//! A whole answer proves that the arm works, not that the answer is good; only a judgement (a person's feedback, a
//! broken schema, a refusal) says that. The two are kept apart: counting every whole answer as a perfect one would
//! teach each router that the smallest model is as good as any, since it nearly always answers.

use crate::outcome::{FinishReason, Outcome, OutcomeStatus};
use crate::units::Score;

/// What an outcome says about an arm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reward {
    /// Nothing: cancelled, refused, or the request's own fault.
    Unknown,
    /// No valid answer. Failing fast earns nothing.
    Failed,
    /// A whole answer of unknown quality.
    Valid,
    /// A judgement of a whole answer that was already counted as [`Valid`](Self::Valid).
    Scored(Score),
}

impl From<&Outcome> for Reward {
    fn from(outcome: &Outcome) -> Self {
        if outcome.status.is_blameless() {
            return Self::Unknown;
        }
        match (&outcome.status, outcome.finish_reason) {
            (OutcomeStatus::Completed, Some(FinishReason::ContentFilter)) => Self::Unknown,
            (OutcomeStatus::Completed, _) => Self::Valid,
            (OutcomeStatus::Failed { .. } | OutcomeStatus::Cancelled | OutcomeStatus::Rejected, _) => {
                Self::Failed
            }
        }
    }
}
