//! Judged answers as sums, and the two-stage fit made of them.
//!
//! The sums ([`Moments`]) are all that is kept, so those of several packs or origins add up, and a fit for any set
//! of signals can be made of them later: dropping a signal drops its row and column.
//!
//! The fit ([`Fit`]) has two stages on purpose. The first explains the answer by what was *seen* of it and by the
//! looks of its prompt; that carries over to subjects never met. The second explains what is left by where the prompt
//! lies; that helps on known subjects and misleads on new ones, so it is kept apart for a
//! [`Head`](super::head::Head) to trust or distrust.

use super::evidence::{Landmarks, Layout, Pattern};
use super::triangle::Triangle;

/// Ridge of the signals, in units of the evidence: only against collinear signals.
const SIGNAL_RIDGE: f64 = 1e-5;

/// Ridge of the surface in the first stage: looks carry over well, but not all of them.
const SURFACE_RIDGE: f64 = 0.1;

/// Ridge of the second stage. In units of the evidence, since what it guards against, a new subject, does not get
/// rarer with more answers of the old ones.
const PLACE_RIDGE: f64 = 0.5;

/// Answers that the second stage doubts beyond that, about one for each of its numbers, and the first stage: a few
/// hundred answers teach little about places, and would flatter themselves on the answers that they were made of.
const PLACE_DOUBT: f64 = 200.0;
const SIGNAL_DOUBT: f64 = 1.0;

/// Answers that a prior mean weighs.
const PRIOR_WEIGHT: f64 = 4.0;

/// Variance below which a number counts as constant.
const CONSTANT: f64 = 1e-9;

/// Sums over answers of which one quantity became known.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Moments {
    gram: Triangle,
    target: Vec<f64>,
}

impl Moments {
    pub(super) fn new(dim: usize) -> Self {
        Self { gram: Triangle::zero(dim), target: vec![0.0; dim] }
    }

    pub(super) fn record(&mut self, vector: &[f64], target: f64) {
        self.gram.accumulate(1.0, vector);
        for (sum, value) in self.target.iter_mut().zip(vector) {
            *sum += target * value;
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.gram.add(&other.gram);
        for (ours, theirs) in self.target.iter_mut().zip(&other.target) {
            *ours += theirs;
        }
    }

    pub(super) fn count(&self) -> f64 {
        self.gram.at(0, 0)
    }

    fn mean(&self, index: usize) -> f64 {
        self.gram.at(index, 0) / self.count()
    }

    fn mean_target(&self, prior: f64) -> f64 {
        (self.target[0] + PRIOR_WEIGHT * prior) / (self.count() + PRIOR_WEIGHT)
    }
}

/// A linear form around a mean. Weights lie by the layout of the vectors.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Linear {
    intercept: f64,
    weights: Vec<(usize, f64)>,
    /// Variance over the answers that it was made of.
    pub(super) variance: f64,
}

impl Linear {
    fn constant(intercept: f64) -> Self {
        Self { intercept, weights: Vec::new(), variance: 0.0 }
    }

    pub(super) fn at(&self, vector: &[f64]) -> f64 {
        self.intercept + self.weights.iter().map(|(index, weight)| weight * vector[*index]).sum::<f64>()
    }
}

/// What is expected of an answer, in two stages.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fit {
    /// By what was seen of it and the looks of its prompt.
    pub(super) seen: Linear,
    /// What the place of the prompt adds.
    pub(super) place: Linear,
}

/// Moments centred and scaled: correlations, so that one ridge fits all numbers.
struct Scaled<'a> {
    moments: &'a Moments,
    deviation: Vec<f64>,
    mean_target: f64,
}

impl<'a> Scaled<'a> {
    fn of(moments: &'a Moments, dim: usize) -> Self {
        let deviation = (0..dim).map(|index| {
            let mean = moments.mean(index);
            let variance = moments.gram.at(index, index) / moments.count() - mean * mean;
            if variance > CONSTANT { variance.sqrt() } else { 0.0 }
        });
        let deviation = deviation.collect();
        Self { moments, deviation, mean_target: moments.target[0] / moments.count() }
    }

    fn varies(&self, index: usize) -> bool {
        self.deviation[index] > 0.0
    }

    fn correlation(&self, a: usize, b: usize) -> f64 {
        let product = self.moments.gram.at(a, b) / self.moments.count();
        (product - self.moments.mean(a) * self.moments.mean(b)) / (self.deviation[a] * self.deviation[b])
    }

    /// Returns the covariance of a scaled number with the target.
    fn covariance(&self, index: usize) -> f64 {
        let product = self.moments.target[index] / self.moments.count();
        (product - self.moments.mean(index) * self.mean_target) / self.deviation[index]
    }

    /// Solves for scaled weights of some numbers.
    fn ridge(&self, numbers: &[usize], covariance: &[f64], ridge: impl Fn(usize) -> f64) -> Vec<f64> {
        let gram = Triangle::of(numbers.len(), |row, column| self.correlation(numbers[row], numbers[column]));
        gram.solve(|row| ridge(numbers[row]), covariance).unwrap_or_else(|| vec![0.0; numbers.len()])
    }

    /// Turns scaled weights into a form with this mean.
    fn linear(&self, numbers: &[usize], weights: &[f64], mean: f64) -> Linear {
        let mut variance = 0.0;
        for (a, left) in numbers.iter().zip(weights) {
            variance += numbers
                .iter()
                .zip(weights)
                .map(|(b, right)| left * right * self.correlation(*a, *b))
                .sum::<f64>();
        }
        let weights: Vec<(usize, f64)> = numbers
            .iter()
            .zip(weights)
            .map(|(index, weight)| (*index, weight / self.deviation[*index]))
            .collect();
        let shift: f64 = weights.iter().map(|(index, weight)| weight * self.moments.mean(*index)).sum();
        Linear { intercept: mean - shift, weights, variance: variance.max(0.0) }
    }
}

impl Fit {
    /// Expects the same of every answer.
    pub(super) fn constant(mean: f64) -> Self {
        Self { seen: Linear::constant(mean), place: Linear::constant(0.0) }
    }

    /// Fits the quality of answers that have these signals.
    pub(super) fn quality(moments: &Moments, pattern: Pattern, landmarks: &Landmarks, prior: f64) -> Self {
        if moments.count() < 1.0 {
            return Self::constant(prior);
        }
        let scaled = Scaled::of(moments, Layout::dim(landmarks));
        let count = moments.count();
        let seen: Vec<usize> = pattern
            .numbers()
            .map(|number| Layout::SIGNALS + number)
            .chain(Layout::SURFACE..Layout::EMBEDDING)
            .filter(|index| scaled.varies(*index))
            .collect();
        let covariance: Vec<f64> = seen.iter().map(|index| scaled.covariance(*index)).collect();
        let ridge = |index: usize| {
            let strength = if index < Layout::SURFACE { SIGNAL_RIDGE } else { SURFACE_RIDGE };
            strength + SIGNAL_DOUBT / count
        };
        let weights = scaled.ridge(&seen, &covariance, ridge);
        let place = Self::place(&scaled, &seen, &weights, landmarks);
        Self { seen: scaled.linear(&seen, &weights, moments.mean_target(prior)), place }
    }

    /// Fits what a stronger model gains over answers whose quality fit is given.
    ///
    /// Its first stage takes the stronger model to be equally good everywhere, so that it ranks like the chance that
    /// the answer is wrong: the safe rule on subjects never seen. Where the stronger model is strong is left to the
    /// second stage.
    pub(super) fn gain(moments: &Moments, quality: &Self, landmarks: &Landmarks, prior: f64) -> Self {
        let seen: Vec<usize> = quality.seen.weights.iter().map(|(index, _)| *index).collect();
        if moments.count() < 1.0 {
            let intercept = prior - (quality.seen.intercept - 0.5);
            let weights = quality.seen.weights.iter().map(|(index, weight)| (*index, -weight)).collect();
            let seen = Linear { intercept, weights, variance: quality.seen.variance };
            return Self { seen, place: Linear::constant(0.0) };
        }
        let scaled = Scaled::of(moments, Layout::dim(landmarks));
        let weights: Vec<f64> =
            quality.seen.weights.iter().map(|(index, weight)| -weight * scaled.deviation[*index]).collect();
        let (seen, weights): (Vec<usize>, Vec<f64>) =
            seen.into_iter().zip(weights).filter(|(index, _)| scaled.varies(*index)).unzip();
        let place = Self::place(&scaled, &seen, &weights, landmarks);
        Self { seen: scaled.linear(&seen, &weights, moments.mean_target(prior)), place }
    }

    /// Fits what the first stage leaves by the place of the prompt.
    fn place(scaled: &Scaled<'_>, seen: &[usize], weights: &[f64], landmarks: &Landmarks) -> Linear {
        let numbers: Vec<usize> =
            (Layout::SURFACE..Layout::dim(landmarks)).filter(|index| scaled.varies(*index)).collect();
        let rest: Vec<f64> = numbers
            .iter()
            .map(|index| {
                let explained: f64 = seen
                    .iter()
                    .zip(weights)
                    .map(|(other, weight)| weight * scaled.correlation(*index, *other))
                    .sum();
                scaled.covariance(*index) - explained
            })
            .collect();
        let ridge = PLACE_RIDGE + PLACE_DOUBT / scaled.moments.count();
        let solved = scaled.ridge(&numbers, &rest, |_| ridge);
        scaled.linear(&numbers, &solved, 0.0)
    }
}
