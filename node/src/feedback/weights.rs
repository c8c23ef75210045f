//! What a judgement weighs by who made it, and how the evaluator's weight follows its agreement with people.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use shoal_routing::{ArmId, Score};

use super::JudgedBy;

/// A person or program that used the answer knows how good it was.
const CLIENT: f64 = 1.0;
/// A visible flaw is certain, but says little of how good an answer without one is.
const SIGNS: f64 = 0.25;
/// An evaluator that always agrees with people; what it weighs falls with its disagreement. Half, since it judges
/// many answers that nobody asked about, and a judge's errors are not independent of each other.
const EVALUATOR: f64 = 0.5;

/// Pairs of judgements that the belief in an evaluator weighs before any was seen, and their mean distance.
const PRIOR_PAIRS: f64 = 10.0;
const PRIOR_ERROR: f64 = 0.2;
/// Memory of agreement, pairs: an evaluator whose model changes is measured anew.
const PAIRS_KEPT: f64 = 200.0;
/// Judgements that wait for the other judge's; feedback mostly comes within minutes.
const WAITING: usize = 2_048;

/// How near the evaluator's scores were to explicit feedback on the same answers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Agreement {
    /// Pairs seen, fading.
    pub pairs: f64,
    /// Sum of the distances of their scores, fading likewise.
    pub error: f64,
}

impl Agreement {
    /// Takes in a pair of judgements of one answer.
    pub fn record(&mut self, evaluator: Score, client: Score) {
        let keep = 1.0 - 1.0 / PAIRS_KEPT;
        self.pairs = self.pairs * keep + 1.0;
        self.error = self.error * keep + (evaluator.value() - client.value()).abs();
    }

    /// Returns how far the evaluator is believed, 0 to 1: a judge that throws dice, half a score off on average,
    /// is not believed at all.
    pub fn belief(&self) -> f64 {
        let error = (PRIOR_PAIRS * PRIOR_ERROR + self.error) / (PRIOR_PAIRS + self.pairs);
        (1.0 - 2.0 * error).clamp(0.0, 1.0)
    }
}

/// Weighs judgements, and watches the judges meanwhile.
#[derive(Debug, Default)]
pub(super) struct Weights {
    agreement: Agreement,
    waiting: BTreeMap<Arc<str>, (JudgedBy, Score)>,
    order: VecDeque<Arc<str>>,
    /// Weight of light judgements that the plain counts of an arm have not seen yet.
    credit: BTreeMap<ArmId, f64>,
}

impl Weights {
    pub(super) fn new(agreement: Agreement) -> Self {
        Self { agreement, ..Self::default() }
    }

    pub(super) fn agreement(&self) -> Agreement {
        self.agreement
    }

    /// Returns what a judgement counts for, 0 to 1, and compares it with the other judge's of the same request.
    pub(super) fn weigh(&mut self, request: &Arc<str>, by: JudgedBy, score: Score) -> f64 {
        match by {
            JudgedBy::Signs => return SIGNS,
            JudgedBy::Client | JudgedBy::Evaluator => {}
        }
        match self.waiting.get(request) {
            Some((JudgedBy::Evaluator, evaluator)) if by == JudgedBy::Client => {
                self.agreement.record(*evaluator, score);
                self.waiting.remove(request);
            }
            Some((JudgedBy::Client, client)) if by == JudgedBy::Evaluator => {
                self.agreement.record(score, *client);
                self.waiting.remove(request);
            }
            _ => self.wait(request, by, score),
        }
        if by == JudgedBy::Client { CLIENT } else { EVALUATOR * self.agreement.belief() }
    }

    /// Tells whether a judgement of this weight counts as one where only whole ones are counted: a light one does in
    /// the share of cases that its weight is, evenly spread.
    pub(super) fn counts_whole(&mut self, arm: &ArmId, weight: f64) -> bool {
        if weight >= 1.0 {
            return true;
        }
        let credit = self.credit.entry(arm.clone()).or_default();
        *credit += weight;
        let whole = *credit >= 1.0;
        if whole {
            *credit -= 1.0;
        }
        whole
    }

    fn wait(&mut self, request: &Arc<str>, by: JudgedBy, score: Score) {
        if self.waiting.insert(request.clone(), (by, score)).is_none() {
            self.order.push_back(request.clone());
        }
        if self.order.len() > WAITING
            && let Some(oldest) = self.order.pop_front()
        {
            self.waiting.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paired(evaluator_says: impl Fn(u32) -> Score) -> Weights {
        let mut weights = Weights::default();
        for n in 0..400_u32 {
            let (request, truth) = (Arc::from(format!("req_{n}")), Score::clamped(f64::from(n % 2)));
            let (first, second) = if n % 3 == 0 {
                ((JudgedBy::Client, truth), (JudgedBy::Evaluator, evaluator_says(n)))
            } else {
                ((JudgedBy::Evaluator, evaluator_says(n)), (JudgedBy::Client, truth))
            };
            weights.weigh(&request, first.0, first.1);
            weights.weigh(&request, second.0, second.1);
        }
        weights
    }

    #[test]
    fn an_evaluator_that_agrees_with_people_weighs_more_and_one_that_does_not_nothing() {
        let other = Arc::from("other");
        let unknown = Weights::default().weigh(&other, JudgedBy::Evaluator, Score::ONE);
        let good =
            paired(|n| Score::clamped(f64::from(n % 2))).weigh(&other, JudgedBy::Evaluator, Score::ONE);
        let dice =
            paired(|n| Score::clamped(f64::from(n / 2 % 2))).weigh(&other, JudgedBy::Evaluator, Score::ONE);
        assert!(unknown < good && good > 0.45, "{unknown} {good}");
        assert!(dice < 0.05, "{dice}");
        assert_eq!(Weights::default().weigh(&other, JudgedBy::Client, Score::ONE), CLIENT);
    }

    #[test]
    fn what_waits_for_the_other_judge_is_bounded() {
        let mut weights = Weights::default();
        for n in 0..3 * WAITING {
            weights.weigh(&format!("req_{n}").into(), JudgedBy::Evaluator, Score::ONE);
        }
        assert!(weights.waiting.len() <= WAITING && weights.order.len() <= WAITING);
        weights.weigh(&"req_0".into(), JudgedBy::Client, Score::ZERO);
        assert_eq!(weights.agreement(), Agreement::default());
    }

    #[test]
    fn light_judgements_count_whole_in_the_share_of_their_weight() {
        let (mut weights, arm) = (Weights::default(), ArmId::new("m", None));
        assert!(weights.counts_whole(&arm, 1.0));
        let whole = (0..100).filter(|_| weights.counts_whole(&arm, 0.25)).count();
        assert_eq!(whole, 25);
        assert_eq!((0..100).filter(|_| weights.counts_whole(&arm, 0.0)).count(), 0);
    }
}
