//! Whether an answer is good enough, and whom to ask when it is not.
//!
//! [`ladder()`] ranks what the policy filter admitted, so nothing forbidden can be on it; [`EscalationPolicy::judge`]
//! compares the answer with the next rung. Without a threshold it asks for the expected *gain*, the stronger
//! model's quality less the answer's, not for the chance that the answer is wrong: a question that nobody answers
//! well is not worth a dearer bad answer (on MMLU-Pro, gain ranks better than p(wrong) at each price).

pub mod gain;
pub mod held;
mod ladder;
mod opinion;

use std::fmt;
use std::sync::Arc;

use crate::bandit::{Quality, Weights};
use crate::class::Preference;
use crate::confidence::{Confidence, FLAWED};
use crate::ids::ArmId;
use crate::router::Permitted;
use crate::units::{MicroUsd, Score};

use gain::{Evidence, GainModel};

pub use held::{HELD_FOR, HELD_TOKENS, HeldPrefix, Hold};
pub use ladder::{Ladder, MAX_RUNGS, ladder};
pub use opinion::Prospect;

/// Judgements of an arm from which its mean quality alone may speak against an answer of unknown confidence.
const ENOUGH_JUDGEMENTS: u64 = 10;

/// What is known when an answer, or the held prefix of one, is judged.
#[derive(Debug, Clone, Copy)]
pub struct JudgeInput<'a> {
    /// How far the answer can be trusted, calibrated.
    pub confidence: Confidence,
    /// Its host asked for a stronger model (`cloud_handoff`); counts as below any threshold.
    pub handoff: bool,
    /// The threshold that the caller set; decides alone where it is given.
    pub threshold: Option<Score>,
    /// What is expected of the arm that answered.
    pub answered: Quality,
    /// What was learnt of arms and answers, for this one; `None` leaves it to `confidence` and `answered`.
    pub learnt: Option<Grounds<'a>>,
    /// What the caller cares about: the exchange rate between quality, price and time.
    pub preference: Preference,
    /// Money may be spent: purse, key and day have some left. Without it only rungs that cost nothing are taken.
    pub may_spend: bool,
    /// Whom to ask, in order; what is left of the ladder.
    pub rungs: &'a [Arc<Permitted>],
}

/// What was learnt, and an answer in its terms.
#[derive(Debug, Clone, Copy)]
pub struct Grounds<'a> {
    /// What was learnt.
    pub model: &'a GainModel,
    /// Who answered.
    pub arm: &'a ArmId,
    /// The request, and what was seen of the answer.
    pub evidence: &'a Evidence,
}

/// Whether an answer is given to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Accept,
    /// A stronger model is asked instead.
    Escalate {
        /// Index of the rung to ask; earlier ones are not worth it.
        rung: usize,
        /// Why.
        reason: EscalationReason,
    },
}

/// Why an answer was not good enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EscalationReason {
    /// Its confidence is below the caller's threshold.
    BelowThreshold,
    /// Its host asked for a stronger model.
    Handoff,
    /// A stronger model is expected to do better by more than its price.
    ExpectedGain,
}

impl EscalationReason {
    /// Returns the word used in answers, records and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BelowThreshold => "low_confidence",
            Self::Handoff => "cloud_handoff",
            Self::ExpectedGain => "expected_gain",
        }
    }
}

impl fmt::Display for EscalationReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Decides whether an answer is good enough.
///
/// Monotone: an answer that is accepted is accepted with any higher confidence.
#[derive(Debug, Clone, Copy, Default)]
pub struct EscalationPolicy;

impl EscalationPolicy {
    /// Judges an answer.
    ///
    /// * With a threshold: a known confidence below it escalates to the first rung, whatever that costs; an unknown
    ///   one does not.
    /// * Without: to the first rung whose expected gain is above its price. The gain comes from the [`GainModel`]
    ///   where that knows both arms; else it is the rung's quality less the confidence. Where that is unknown, too, the
    ///   mean quality of the arm takes its place once ten answers of it were judged; before, its size is no evidence
    ///   against an answer, so it is accepted.
    /// * A handoff is below any threshold, and worth [`FLAWED`] without one.
    /// * A rung that costs something is passed over unless money may be spent.
    pub fn judge(&self, input: &JudgeInput<'_>) -> Verdict {
        let affordable = |rung: &Permitted| input.may_spend || rung.cost == MicroUsd(0);
        let first = |is_worth_it: &dyn Fn(&Permitted) -> bool| {
            input.rungs.iter().position(|rung| affordable(rung) && is_worth_it(rung))
        };
        let (rung, reason) = match (input.threshold, input.confidence.score()) {
            (Some(_), _) if input.handoff => (first(&|_| true), EscalationReason::Handoff),
            (Some(threshold), Some(confidence)) if confidence < threshold => {
                (first(&|_| true), EscalationReason::BelowThreshold)
            }
            (Some(_), _) => (None, EscalationReason::BelowThreshold),
            (None, _) => {
                let reason =
                    if input.handoff { EscalationReason::Handoff } else { EscalationReason::ExpectedGain };
                (first(&|rung| self.gain(input, rung).is_some_and(|gain| gain > 0.0)), reason)
            }
        };
        rung.map_or(Verdict::Accept, |rung| Verdict::Escalate { rung, reason })
    }

    /// Returns what asking a rung is expected to bring: its quality less the answer's, less price and waiting time
    /// at the caller's rate of exchange. Between −2 and 1; `None` when nothing speaks for or against the answer.
    pub fn gain(&self, input: &JudgeInput<'_>, rung: &Permitted) -> Option<f64> {
        let price = Weights::of(input.preference).penalty(rung.cost, rung.latency_ms);
        let learnt = input.learnt.and_then(|of| of.model.gain(of.arm, &rung.arm, of.evidence));
        let (strong, local) = match learnt {
            Some(gain) if input.handoff => (gain.strong * chance_of_answer(rung), gain.local.min(FLAWED)),
            Some(gain) => (gain.strong * chance_of_answer(rung), gain.local),
            None => (rung.quality.of_request.value(), answer_quality(input)?.value()),
        };
        Some(strong - local - price)
    }
}

/// Returns the chance that a request sent to a rung gets a whole answer.
fn chance_of_answer(rung: &Permitted) -> f64 {
    let Quality { of_request, of_answer, .. } = rung.quality;
    if of_answer.value() > 0.0 { (of_request.value() / of_answer.value()).min(1.0) } else { 1.0 }
}

/// Returns the quality to expect of the answer that is there; `None` when nothing speaks for or against it.
fn answer_quality(input: &JudgeInput<'_>) -> Option<Score> {
    let known = match input.confidence {
        Confidence::Known(score) => Some(score),
        Confidence::Unknown => {
            (input.answered.judged >= ENOUGH_JUDGEMENTS).then_some(input.answered.of_answer)
        }
    };
    if !input.handoff {
        return known;
    }
    let low = Score::clamped(FLAWED);
    Some(known.filter(|score| *score < low).unwrap_or(low))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ArmId;

    fn quality(value: f64, judged: u64) -> Quality {
        Quality { of_request: Score::clamped(value), of_answer: Score::clamped(value), judged }
    }

    fn rung(value: f64, cost: u64) -> Arc<Permitted> {
        Arc::new(Permitted {
            model: "strong".into(),
            arm: ArmId::new("strong", None),
            offers: Vec::new(),
            cloud: cost > 0,
            quality: quality(value, 0),
            cost: MicroUsd(cost),
            latency_ms: 1_000.0,
        })
    }

    fn input(rungs: &[Arc<Permitted>]) -> JudgeInput<'_> {
        JudgeInput {
            confidence: Confidence::Unknown,
            handoff: false,
            threshold: None,
            answered: quality(0.4, 0),
            learnt: None,
            preference: Preference::Balanced,
            may_spend: true,
            rungs,
        }
    }

    fn known(value: f64) -> Confidence {
        Confidence::Known(Score::clamped(value))
    }

    fn judge(input: JudgeInput<'_>) -> Verdict {
        EscalationPolicy.judge(&input)
    }

    #[test]
    fn a_threshold_decides_alone() {
        let rungs = [rung(0.1, 1_000_000)];
        let threshold = Some(Score::clamped(0.7));
        let reason = EscalationReason::BelowThreshold;
        for (confidence, expected) in [
            (known(0.69), Verdict::Escalate { rung: 0, reason }),
            (known(0.7), Verdict::Accept),
            (Confidence::Unknown, Verdict::Accept),
        ] {
            assert_eq!(judge(JudgeInput { threshold, confidence, ..input(&rungs) }), expected);
        }
    }

    #[test]
    fn gain_is_weighed_against_the_price_at_the_callers_rate() {
        let rungs = [rung(0.8, 5_000)];
        let at = |preference| judge(JudgeInput { confidence: known(0.5), preference, ..input(&rungs) });
        assert_eq!(
            at(Preference::Best),
            Verdict::Escalate { rung: 0, reason: EscalationReason::ExpectedGain }
        );
        assert_eq!(at(Preference::Cheap), Verdict::Accept);
    }

    #[test]
    fn a_rung_that_is_not_worth_it_is_passed_over() {
        let rungs = [rung(0.45, 0), rung(0.9, 100)];
        let verdict = judge(JudgeInput { confidence: known(0.5), ..input(&rungs) });
        assert_eq!(verdict, Verdict::Escalate { rung: 1, reason: EscalationReason::ExpectedGain });
    }

    #[test]
    fn without_money_only_free_rungs_are_taken() {
        let (paid, both) = ([rung(0.9, 1)], [rung(0.9, 1), rung(0.6, 0)]);
        for threshold in [None, Some(Score::ONE)] {
            let broke = |rungs| {
                judge(JudgeInput { confidence: known(0.1), threshold, may_spend: false, ..input(rungs) })
            };
            assert_eq!(broke(&paid), Verdict::Accept);
            assert!(matches!(broke(&both), Verdict::Escalate { rung: 1, .. }));
        }
    }

    #[test]
    fn unknown_is_not_low_until_the_model_was_judged() {
        let rungs = [rung(0.8, 0)];
        assert_eq!(judge(input(&rungs)), Verdict::Accept);
        let judged = |value| judge(JudgeInput { answered: quality(value, 10), ..input(&rungs) });
        assert!(matches!(judged(0.4), Verdict::Escalate { .. }));
        assert_eq!(judged(0.8), Verdict::Accept);
    }

    #[test]
    fn a_handoff_is_below_any_threshold() {
        let rungs = [rung(0.8, 1_000)];
        for threshold in [None, Some(Score::ZERO), Some(Score::ONE)] {
            for confidence in [Confidence::Unknown, known(0.99)] {
                let verdict = judge(JudgeInput { handoff: true, threshold, confidence, ..input(&rungs) });
                assert_eq!(verdict, Verdict::Escalate { rung: 0, reason: EscalationReason::Handoff });
            }
        }
    }

    #[test]
    fn with_no_rung_left_every_answer_is_accepted() {
        for threshold in [None, Some(Score::ONE)] {
            assert_eq!(
                judge(JudgeInput { threshold, confidence: known(0.0), handoff: true, ..input(&[]) }),
                Verdict::Accept
            );
        }
    }
}
