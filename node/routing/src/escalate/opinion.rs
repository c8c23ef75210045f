//! What it is worth to ask a second model of a device before an answer is judged.
//!
//! Where nothing is known of an answer, whether another model says the same is the best sign there is. It costs no money but
//! the caller's time, so it is bought only where it can change what happens: a value of information (Howard 1966),
//! the mean of what is done knowing the answer to the question less what is done without it.

use super::{EscalationPolicy, JudgeInput, Verdict};

/// Least and largest chance of agreement that is reckoned with.
const LEAST_CHANCE: f64 = 0.05;

/// The judgement of an answer as it stands, and as it would be with either opinion.
#[derive(Debug, Clone, Copy)]
pub struct Prospect<'a> {
    /// Nobody else was asked.
    pub now: JudgeInput<'a>,
    /// Another model says the same.
    pub agreed: JudgeInput<'a>,
    /// Another model says something else.
    pub disagreed: JudgeInput<'a>,
}

impl EscalationPolicy {
    /// Returns what a second opinion is expected to add to the quality that the caller gets, in the units of a gain, 0 to 1.
    ///
    /// Where a threshold decides it is 1 if the opinion can turn the decision, else 0. Otherwise the chance of agreement is the
    /// one at which the expectation without the opinion is the mean of those with it; one half where nothing is
    /// expected without it.
    pub fn value_of_opinion(&self, prospect: &Prospect<'_>) -> f64 {
        let Prospect { now, agreed, disagreed } = prospect;
        let (if_agreed, if_not) = (self.judge(agreed), self.judge(disagreed));
        if now.threshold.is_some() {
            return f64::from(u8::from(if_agreed != if_not));
        }
        let chance = self.chance_of_agreement(prospect);
        let knowing = chance * self.worth(agreed, if_agreed) + (1.0 - chance) * self.worth(disagreed, if_not);
        (knowing - self.worth(now, self.judge(now))).clamp(0.0, 1.0)
    }

    fn worth(&self, input: &JudgeInput<'_>, verdict: Verdict) -> f64 {
        match verdict {
            Verdict::Accept => 0.0,
            Verdict::Escalate { rung, .. } => self.gain(input, &input.rungs[rung]).unwrap_or_default(),
        }
    }

    fn chance_of_agreement(&self, prospect: &Prospect<'_>) -> f64 {
        let gain = |input: &JudgeInput<'_>| self.gain(input, input.rungs.first()?);
        let gains = (gain(&prospect.now), gain(&prospect.agreed), gain(&prospect.disagreed));
        let chance = match gains {
            (Some(now), Some(agreed), Some(disagreed)) if disagreed > agreed => {
                (disagreed - now) / (disagreed - agreed)
            }
            _ => 0.5,
        };
        chance.clamp(LEAST_CHANCE, 1.0 - LEAST_CHANCE)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bandit::Quality;
    use crate::class::Preference;
    use crate::confidence::Confidence;
    use crate::ids::ArmId;
    use crate::router::Permitted;
    use crate::units::{MicroUsd, Score};

    fn quality(value: f64, judged: u64) -> Quality {
        Quality { of_request: Score::clamped(value), of_answer: Score::clamped(value), judged }
    }

    fn rungs(value: f64, cost: u64) -> [Arc<Permitted>; 1] {
        [Arc::new(Permitted {
            model: "strong".into(),
            arm: ArmId::new("strong", None),
            offers: Vec::new(),
            cloud: cost > 0,
            quality: quality(value, 0),
            cost: MicroUsd(cost),
            latency_ms: 500.0,
        })]
    }

    fn value(rungs: &[Arc<Permitted>], judged: Option<f64>, threshold: Option<f64>) -> f64 {
        let input = |confidence| JudgeInput {
            confidence,
            handoff: false,
            threshold: threshold.map(Score::clamped),
            answered: quality(judged.unwrap_or(0.5), if judged.is_some() { 50 } else { 0 }),
            learnt: None,
            preference: Preference::Balanced,
            may_spend: true,
            rungs,
        };
        let known = |value| Confidence::Known(Score::clamped(value));
        let prospect = Prospect {
            now: input(Confidence::Unknown),
            agreed: input(known(0.9)),
            disagreed: input(known(0.2)),
        };
        EscalationPolicy.value_of_opinion(&prospect)
    }

    #[test]
    fn an_opinion_is_worth_something_where_it_can_turn_the_decision() {
        assert!(value(&rungs(0.8, 10), Some(0.6), None) > 0.03);
        assert!(value(&rungs(0.8, 10), None, None) > 0.1, "nothing is known without it");
        assert_eq!(value(&rungs(0.8, 10), None, Some(0.5)), 1.0);
    }

    #[test]
    fn where_the_decision_is_the_same_either_way_it_is_worth_nothing() {
        assert_eq!(value(&rungs(0.2, 10), Some(0.6), None), 0.0, "nobody is better");
        assert_eq!(value(&rungs(0.8, 10), None, Some(0.95)), 0.0, "no opinion is enough");
        assert_eq!(value(&rungs(0.8, 10), None, Some(0.1)), 0.0);
    }

    #[test]
    fn it_is_worth_most_near_the_decision() {
        let near = value(&rungs(0.6, 10), Some(0.5), None);
        let sure = value(&rungs(0.6, 10), Some(0.85), None);
        assert!(near > sure, "{near} {sure}");
    }
}
