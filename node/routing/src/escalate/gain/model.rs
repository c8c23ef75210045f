//! What to expect of an arm's answers, fitted to their sums.
//!
//! A ridge in two stages on purpose. The first explains an answer by what was *seen* of it and by the looks of its prompt;
//! that carries over to subjects never met. The second explains what is left by where the prompt lies; that helps on
//! known subjects and misleads on new ones. So their weights are not taken for granted: late outcomes move them
//! away from their priors (Bayesian linear regression), together with what was missed lately, by features and by domain.

use super::evidence::{ALL, CONFIDENCE, Evidence, KNOWN, LENGTH};
use super::sums::{AnswerSums, LARGEST_PART};
use super::triangle::Triangle;
use crate::bandit::QualitySums;
use crate::bandit::sums::at;
use crate::domain::Domain;
use crate::features::{DIM, EMBEDDED, Features};

/// Judged answers of an arm from which it is believed that they teach something.
pub const ENOUGH: f64 = 30.0;

/// Parts of an expectation that are weighed: a constant, what was seen, the place of the prompt, what was missed lately.
pub(super) const PARTS: usize = 4;

/// Weights before any outcome. The place of a prompt is believed in part: on known subjects all of it is right, on new
/// ones nothing.
const PRIOR: [f64; PARTS] = [0.0, 1.0, 0.7, 0.5];

/// Answers that those weigh, for a part of its usual variance.
const PRIOR_ANSWERS: f64 = 100.0;

/// How much harder than the others the first stage's own weight is to move.
const SEEN_FIRMNESS: f64 = 10.0;

/// Variance that is expected of what was missed.
const DRIFT_VARIANCE: f64 = 0.01;

/// Answers that "nothing was missed" weighs, over all features and in each domain.
const DRIFT_RIDGE: f64 = 300.0;
const DOMAIN_RIDGE: f64 = 50.0;

/// Ridge of the signals, in units of the evidence: only against collinear ones.
const SIGNAL_RIDGE: f64 = 1e-5;

/// Ridge of the surface in the first stage: looks carry over well, but not all of them.
const SURFACE_RIDGE: f64 = 0.1;

/// Ridge of the second stage. In units of the evidence, since what it guards against, a new subject, does not get
/// rarer with more answers of the old ones.
const PLACE_RIDGE: f64 = 0.5;

/// Answers that each stage doubts beyond that: few answers teach little about places.
const SIGNAL_DOUBT: f64 = 3.0;
const PLACE_DOUBT: f64 = 200.0;

/// Variance below which a number counts as constant.
const CONSTANT: f64 = 1e-8;

/// Least precision of a prior, for parts that do not vary.
const LEAST: f64 = 1e-6;

/// First of the features that show the looks of a prompt.
const SURFACE: usize = 1 + EMBEDDED;

/// What is expected of an answer, with all that a judgement of it needs to teach.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Expectation {
    /// Expected score, 0 to 1.
    pub quality: f64,
    pub(super) parts: [f64; PARTS],
    /// The parts, weighed, without what was missed in the domain; 0 to 1.
    pub(super) weighed: f64,
}

impl Expectation {
    /// Returns the first stage.
    pub(super) fn seen(&self) -> f64 {
        self.parts[1]
    }
}

/// What to expect of one arm's answers.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerModel {
    mean: [f64; ALL],
    level: f64,
    seen: [f64; ALL],
    place: [f64; DIM],
    drift: [f64; DIM],
    weights: [f64; PARTS],
    missed: [f64; Domain::ALL.len()],
    /// Enough answers with a confidence were judged to know what that means.
    knows_confidence: bool,
    /// The same of answers without one.
    knows_silence: bool,
}

/// Moments of judged answers, centred and scaled: correlations, so that one ridge fits all numbers.
struct Moments<'a> {
    quality: &'a QualitySums,
    answers: &'a AnswerSums,
    count: f64,
    mean: [f64; ALL],
    deviation: [f64; ALL],
    level: f64,
}

impl<'a> Moments<'a> {
    fn of(quality: &'a QualitySums, answers: &'a AnswerSums) -> Self {
        let (count, level) = (quality.weight(), quality.mean().unwrap_or_default());
        let mut all = Self { quality, answers, count, mean: [0.0; ALL], deviation: [0.0; ALL], level };
        all.mean = std::array::from_fn(|index| all.product(index, 0) / count);
        all.deviation = std::array::from_fn(|index| {
            let variance = all.product(index, index) / count - all.mean[index] * all.mean[index];
            if index > 0 && variance > CONSTANT { variance.sqrt() } else { 0.0 }
        });
        all
    }

    /// Returns the sum of the products of two numbers.
    fn product(&self, a: usize, b: usize) -> f64 {
        let (high, low) = (a.max(b), a.min(b));
        match (high < DIM, low < DIM) {
            (true, _) => self.quality.gram[at(high, low)],
            (false, true) => self.answers.cross(high - DIM, low),
            (false, false) => self.answers.signals(high - DIM, low - DIM),
        }
    }

    fn varies(&self, index: usize) -> bool {
        self.deviation[index] > 0.0
    }

    fn correlation(&self, a: usize, b: usize) -> f64 {
        let covariance = self.product(a, b) / self.count - self.mean[a] * self.mean[b];
        covariance / (self.deviation[a] * self.deviation[b])
    }

    /// Returns the covariance of a scaled number with the score.
    fn covariance(&self, index: usize) -> f64 {
        let sum = if index < DIM { self.quality.reward[index] } else { self.answers.target(index - DIM) };
        (sum / self.count - self.mean[index] * self.level) / self.deviation[index]
    }

    /// Solves for the scaled weights of some numbers.
    fn ridge(&self, numbers: &[usize], right: &[f64], ridge: impl Fn(usize) -> f64) -> Vec<f64> {
        let gram = Triangle::of(numbers.len(), |row, column| self.correlation(numbers[row], numbers[column]));
        gram.solve(|row| ridge(numbers[row]), right).unwrap_or_else(|| vec![0.0; numbers.len()])
    }

    fn variance(&self, numbers: &[usize], weights: &[f64]) -> f64 {
        let of = |(a, left): (&usize, &f64)| {
            let row = numbers.iter().zip(weights);
            left * row.map(|(b, right)| right * self.correlation(*a, *b)).sum::<f64>()
        };
        numbers.iter().zip(weights).map(of).sum::<f64>().max(0.0)
    }

    /// Turns scaled weights into those of the numbers as they come.
    fn unscaled<const N: usize>(&self, numbers: &[usize], weights: &[f64]) -> [f64; N] {
        let mut all = [0.0; N];
        for (index, weight) in numbers.iter().zip(weights) {
            all[*index] = weight / self.deviation[*index];
        }
        all
    }
}

impl AnswerModel {
    /// Fits a model; `None` before [`ENOUGH`] answers were judged, or for sums that have no solution.
    pub fn fit(quality: &QualitySums, answers: &AnswerSums) -> Option<Self> {
        if quality.weight() < ENOUGH {
            return None;
        }
        let moments = Moments::of(quality, answers);
        let count = moments.count;
        let looked = answers.signals(KNOWN - DIM, KNOWN - DIM);
        let signals = (CONFIDENCE..ALL).filter(|index| *index == LENGTH || looked >= ENOUGH);
        let seen: Vec<usize> = signals.chain(SURFACE..DIM).filter(|index| moments.varies(*index)).collect();
        let right: Vec<f64> = seen.iter().map(|index| moments.covariance(*index)).collect();
        let ridge =
            |index: usize| if index >= DIM { SIGNAL_RIDGE } else { SURFACE_RIDGE } + SIGNAL_DOUBT / count;
        let mut weights = moments.ridge(&seen, &right, ridge);
        for (index, weight) in seen.iter().zip(&mut weights) {
            // More trust in an answer must never make it worse.
            if *index == CONFIDENCE {
                *weight = weight.max(0.0);
            }
        }
        let places: Vec<usize> = (1..DIM).filter(|index| moments.varies(*index)).collect();
        let rest: Vec<f64> = places
            .iter()
            .map(|place| {
                let explained = seen.iter().zip(&weights);
                let explained: f64 =
                    explained.map(|(index, weight)| weight * moments.correlation(*place, *index)).sum();
                moments.covariance(*place) - explained
            })
            .collect();
        let place_weights = moments.ridge(&places, &rest, |_| PLACE_RIDGE + PLACE_DOUBT / count);
        let variances = [moments.variance(&seen, &weights), moments.variance(&places, &place_weights)];
        let (drift, late) = answers.drift();
        let model = Self {
            mean: moments.mean,
            level: moments.level,
            seen: moments.unscaled(&seen, &weights),
            place: moments.unscaled(&places, &place_weights),
            drift: std::array::from_fn(|index| drift[index] / (late + DRIFT_RIDGE)),
            weights: weights_of(answers, variances),
            missed: Domain::ALL.map(|domain| {
                let (count, rest) = answers.missed_in(domain);
                rest / (count + DOMAIN_RIDGE)
            }),
            knows_confidence: looked >= ENOUGH,
            knows_silence: count - looked >= ENOUGH,
        };
        model.is_finite().then_some(model)
    }

    /// Returns the quality to expect of an answer that is not asked for yet: the mean of all that could be seen of it.
    /// Not that of an answer of which nothing was seen, which is a kind of its own where some have a confidence.
    pub fn expect_asked(&self, features: Features, domain: Domain) -> f64 {
        let mut vector = self.mean;
        vector[..DIM].copy_from_slice(features.values());
        self.combined(self.parts(&vector), domain).0
    }

    /// Returns what to expect of an answer.
    pub fn expect(&self, evidence: &Evidence) -> Expectation {
        let mut vector = evidence.vector();
        if evidence.confidence.value().is_none() && !self.knows_silence {
            // Where answers always said something of themselves, one that does not is taken for ordinary.
            vector[CONFIDENCE..=KNOWN].copy_from_slice(&self.mean[CONFIDENCE..=KNOWN]);
        }
        if !evidence.knows_length {
            // It still comes: it will be as long as this arm's answers are.
            vector[LENGTH] = self.mean[LENGTH];
        }
        let parts = self.parts(&vector);
        let (combined, weighed) = self.combined(parts, evidence.domain);
        let quality = match evidence.confidence.value() {
            // Seldom seen before: a visible flaw of a model that gives no probabilities. It speaks for itself.
            Some(chance) if !self.knows_confidence => chance,
            _ => combined,
        };
        Expectation { quality, parts, weighed }
    }

    fn parts(&self, vector: &[f64; ALL]) -> [f64; PARTS] {
        let away = |weights: &[f64]| -> f64 {
            let centred = vector.iter().zip(&self.mean).map(|(value, mean)| value - mean);
            centred.zip(weights).map(|(value, weight)| value * weight).sum()
        };
        let drift: f64 = self.drift.iter().zip(vector).map(|(weight, value)| weight * value).sum();
        [1.0, self.level + away(&self.seen), away(&self.place), drift]
            .map(|part| part.clamp(-LARGEST_PART, LARGEST_PART))
    }

    /// Returns the quality to expect in a domain, and the weighed parts alone; both 0 to 1.
    fn combined(&self, parts: [f64; PARTS], domain: Domain) -> (f64, f64) {
        let weighed: f64 = self.weights.iter().zip(parts).map(|(weight, part)| weight * part).sum();
        // Within what a score can be, so that no answer is ever missed by more than one.
        let weighed = weighed.clamp(0.0, 1.0);
        ((weighed + self.missed[domain as usize]).clamp(0.0, 1.0), weighed)
    }

    fn is_finite(&self) -> bool {
        let numbers = self.seen.iter().chain(&self.place).chain(&self.drift).chain(&self.missed);
        numbers.chain(&self.mean).chain(&self.weights).all(|number| number.is_finite())
    }
}

/// Returns the weights of the parts, given the variances of both stages.
fn weights_of(answers: &AnswerSums, [seen, place]: [f64; 2]) -> [f64; PARTS] {
    let variances = [1.0, SEEN_FIRMNESS * seen, place, DRIFT_VARIANCE];
    let precision = variances.map(|variance| PRIOR_ANSWERS * variance + LEAST);
    let target = answers.trust_target();
    let right: [f64; PARTS] = std::array::from_fn(|part| target[part] + precision[part] * PRIOR[part]);
    let sums = Triangle::of(PARTS, |row, column| answers.trust(row, column));
    let solved = sums.solve(|part| precision[part], &right);
    let mut weights = solved.and_then(|weights| weights.try_into().ok()).unwrap_or(PRIOR);
    // As above: what was seen may count for nothing, but not turn round.
    weights[1] = weights[1].max(0.0);
    weights
}
