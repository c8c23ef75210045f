//! How near the evaluator's scores come to what people say of the same answers, for people to see.
//!
//! What a judgement weighs is decided before it comes here: who judges lightly is let in by chance, in the share of cases
//! that it weighs, so that the sums need no weights and the evaluator's falls as it disagrees.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use shoal_routing::Score;

use super::JudgedBy;

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

/// Pairs the judgements of people and of the evaluator.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    agreement: Agreement,
    waiting: BTreeMap<Arc<str>, (JudgedBy, Score)>,
    order: VecDeque<Arc<str>>,
}

impl Pairs {
    pub(super) fn new(agreement: Agreement) -> Self {
        Self { agreement, ..Self::default() }
    }

    pub(super) fn agreement(&self) -> Agreement {
        self.agreement
    }

    /// Takes note of a judgement; when both have judged an answer, of how near they were.
    pub(super) fn note(&mut self, request: &Arc<str>, by: JudgedBy, score: Score) {
        if by == JudgedBy::Signs {
            return;
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

    fn paired(evaluator_says: impl Fn(u32) -> Score) -> Pairs {
        let mut pairs = Pairs::default();
        for n in 0..400_u32 {
            let (request, truth) = (Arc::from(format!("req_{n}")), Score::clamped(f64::from(n % 2)));
            let (first, second) = if n % 3 == 0 {
                ((JudgedBy::Client, truth), (JudgedBy::Evaluator, evaluator_says(n)))
            } else {
                ((JudgedBy::Evaluator, evaluator_says(n)), (JudgedBy::Client, truth))
            };
            pairs.note(&request, first.0, first.1);
            pairs.note(&request, second.0, second.1);
        }
        pairs
    }

    #[test]
    fn an_evaluator_that_agrees_with_people_is_believed_and_one_that_throws_dice_is_not() {
        let unknown = Agreement::default().belief();
        let good = paired(|n| Score::clamped(f64::from(n % 2))).agreement().belief();
        let dice = paired(|n| Score::clamped(f64::from(n / 2 % 2))).agreement().belief();
        assert!(unknown < good && good > 0.9, "{unknown} {good}");
        assert!(dice < 0.1, "{dice}");
    }

    #[test]
    fn what_waits_for_the_other_judge_is_bounded() {
        let mut pairs = Pairs::default();
        for n in 0..3 * WAITING {
            pairs.note(&format!("req_{n}").into(), JudgedBy::Evaluator, Score::ONE);
        }
        assert!(pairs.waiting.len() <= WAITING && pairs.order.len() <= WAITING);
        pairs.note(&"req_0".into(), JudgedBy::Client, Score::ZERO);
        assert_eq!(pairs.agreement(), Agreement::default());
    }
}
