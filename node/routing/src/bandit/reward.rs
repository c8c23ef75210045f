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
            // An embedding has no tokens either, but no reason to stop.
            (OutcomeStatus::Completed, Some(FinishReason::Stop | FinishReason::Length))
                if outcome.completion_tokens.0 == 0 =>
            {
                Self::Failed
            }
            (OutcomeStatus::Completed, _) => Self::Valid,
            (OutcomeStatus::Failed { .. } | OutcomeStatus::Cancelled | OutcomeStatus::Rejected, _) => {
                Self::Failed
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::DataClass;
    use crate::router::RouteReason;
    use crate::units::Tokens;

    fn outcome(status: OutcomeStatus) -> Outcome {
        Outcome {
            request_id: "req_1".into(),
            upstream: None,
            arm: None,
            status,
            finish_reason: Some(FinishReason::Stop),
            prompt_tokens: Tokens(10),
            completion_tokens: Tokens(10),
            ttft_ms: Some(10),
            duration_ms: 20,
            attempts: 1,
            hop: 0,
            data_class: DataClass::Internal,
            escalated: false,
            propensity: 1.0,
            reason: RouteReason::Named,
        }
    }

    #[test]
    fn only_a_whole_answer_earns_and_only_the_models_own_fault_costs() {
        let failed = |code: &'static str| OutcomeStatus::Failed { code: code.into() };
        let cases = [
            (OutcomeStatus::Completed, Reward::Valid),
            (OutcomeStatus::Cancelled, Reward::Unknown),
            (OutcomeStatus::Rejected, Reward::Unknown),
            (failed("upstream_error"), Reward::Failed),
            (failed("upstream_timeout"), Reward::Failed),
            (failed("overloaded"), Reward::Unknown),
            (failed("invalid_request_error"), Reward::Unknown),
        ];
        for (status, expected) in cases {
            assert_eq!(Reward::from(&outcome(status.clone())), expected, "{status:?}");
        }
        let empty = Outcome { completion_tokens: Tokens(0), ..outcome(OutcomeStatus::Completed) };
        assert_eq!(Reward::from(&empty), Reward::Failed);
        let embedding = Outcome { finish_reason: None, ..empty };
        assert_eq!(Reward::from(&embedding), Reward::Valid);
    }
}
