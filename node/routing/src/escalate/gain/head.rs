//! How far each part of an expectation is to be trusted on the traffic of now.
//!
//! Four numbers are weighed against each other: a constant, both stages of the [`Fit`], and what a small learner
//! found in what the fit left over lately. Outcomes move the weights away from their priors within a few hundred
//! answers: on a subject that the fit never saw, its second stage falls to a fifth of its weight; on known ones it
//! rises to all of it. Bayesian linear regression, whose older outcomes fade; all evidence is sums.

use super::moments::Fit;
use super::triangle::Triangle;
use crate::features::DIM;

/// Parts that are weighed: constant, seen, place, late.
const PARTS: usize = 4;

/// Weights before any outcome. The place of a prompt is believed in part: on known subjects all of it is right, on new
/// ones nothing. Ranking changes by less than 0.002 APGR for 0.3 to 0.8 of it, or of the late learner.
const PRIOR: [f64; PARTS] = [0.0, 1.0, 0.7, 0.5];

/// Answers that the prior weighs, for a part of its usual variance.
const PRIOR_ANSWERS: f64 = 100.0;

/// How much harder than the others the first stage's own weight is to move.
const SEEN_FIRMNESS: f64 = 10.0;

/// Variance that is expected of the late learner.
const LATE_VARIANCE: f64 = 0.01;

/// What each outcome leaves of the older ones: a memory of 1,000 answers.
const KEEP: f64 = 1.0 - 1e-3;

/// Ridge of the late learner, in answers: its constant, its other weights. Small gains of place are real only if
/// hundreds of answers say so.
const LATE_CONSTANT_RIDGE: f64 = 50.0;
const LATE_RIDGE: f64 = 600.0;

/// Least precision of a prior, for parts that do not vary.
const LEAST: f64 = 1e-6;

/// Late evidence on one expectation. All of it but the derived weights are sums.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Head {
    trust: Triangle,
    trust_target: [f64; PARTS],
    late: Triangle,
    late_target: Vec<f64>,
    late_weights: Vec<f64>,
}

impl Default for Head {
    fn default() -> Self {
        Self {
            trust: Triangle::zero(PARTS),
            trust_target: [0.0; PARTS],
            late: Triangle::zero(DIM),
            late_target: vec![0.0; DIM],
            late_weights: vec![0.0; DIM],
        }
    }
}

/// The parts of one expectation before they are weighed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts([f64; PARTS]);

impl Head {
    pub(super) fn parts(&self, fit: &Fit, vector: &[f64], features: &[f64; DIM]) -> Parts {
        let late = self.late_weights.iter().zip(features).map(|(weight, value)| weight * value).sum();
        Parts([1.0, fit.seen.at(vector), fit.place.at(vector), late])
    }

    pub(super) fn expect(&self, fit: &Fit, parts: &Parts) -> f64 {
        let weights = self.weights(fit);
        weights.iter().zip(parts.0).map(|(weight, part)| weight * part).sum()
    }

    /// Returns the weights of constant, first stage, second stage and late learner.
    pub(super) fn weights(&self, fit: &Fit) -> [f64; PARTS] {
        let variances = [1.0, SEEN_FIRMNESS * fit.seen.variance, fit.place.variance, LATE_VARIANCE];
        let precision = variances.map(|variance| PRIOR_ANSWERS * variance + LEAST);
        let right: [f64; PARTS] =
            std::array::from_fn(|part| self.trust_target[part] + precision[part] * PRIOR[part]);
        let solved = self.trust.solve(|part| precision[part], &right);
        solved.and_then(|weights| weights.try_into().ok()).unwrap_or(PRIOR)
    }

    pub(super) fn record(&mut self, parts: &Parts, features: &[f64; DIM], outcome: f64) {
        if !outcome.is_finite() || !parts.0.iter().all(|part| part.is_finite()) {
            return;
        }
        self.trust.accumulate(KEEP, &parts.0);
        for (sum, part) in self.trust_target.iter_mut().zip(parts.0) {
            *sum = *sum * KEEP + outcome * part;
        }
        let rest = outcome - parts.0[1];
        self.late.accumulate(1.0, features);
        for (sum, value) in self.late_target.iter_mut().zip(features) {
            *sum += rest * value;
        }
        self.refit();
    }

    /// Adds what another origin saw.
    pub(super) fn add(&mut self, other: &Self) {
        self.trust.add(&other.trust);
        self.late.add(&other.late);
        let pairs = self.trust_target.iter_mut().chain(&mut self.late_target);
        for (ours, theirs) in pairs.zip(other.trust_target.iter().chain(&other.late_target)) {
            *ours += theirs;
        }
        self.refit();
    }

    fn refit(&mut self) {
        let ridge = |index: usize| if index == 0 { LATE_CONSTANT_RIDGE } else { LATE_RIDGE };
        if let Some(weights) = self.late.solve(ridge, &self.late_target) {
            self.late_weights = weights;
        }
    }
}
