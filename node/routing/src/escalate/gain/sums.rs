//! Judged answers of an arm by what was seen of them, as sums: what a node stores, and what it tells the others.
//!
//! They stand beside the arm's [`QualitySums`], are taken in together with those and fade as they do;
//! together they are the moments of features and signals. The rest is *late* evidence, which forgets within a thousand
//! answers: how far the parts of an expectation came true, and what they missed, by features and by domain. All of it
//! adds up over origins, in any order. 132 numbers.

use std::cmp::Ordering;
use std::ops::Range;

use super::evidence::{ALL, CONFIDENCE, Evidence, KNOWN, LENGTH, SIGNALS};
use super::model::{Expectation, PARTS};
use super::triangle::Triangle;
use crate::bandit::QualitySums;
use crate::bandit::sums::{MEMORY, at};
use crate::domain::Domain;
use crate::features::{DIM, LIMIT};
use crate::units::Score;

/// Domains that are told apart.
const DOMAINS: usize = Domain::ALL.len();

/// Where the sums lie: signals × features by signal, signals × signals as a lower triangle, score × signals.
const CROSS: Range<usize> = 0..SIGNALS * DIM;
const GRAM: Range<usize> = CROSS.end..CROSS.end + SIGNALS * (SIGNALS + 1) / 2;
const TARGET: Range<usize> = GRAM.end..GRAM.end + SIGNALS;
/// Late: parts × parts as a lower triangle, score × parts; what the parts missed × features, and its answers; answers
/// by domain, and what was missed there.
const TRUST: Range<usize> = TARGET.end..TARGET.end + PARTS * (PARTS + 1) / 2;
const TRUST_TARGET: Range<usize> = TRUST.end..TRUST.end + PARTS;
const DRIFT: Range<usize> = TRUST_TARGET.end..TRUST_TARGET.end + DIM;
const DRIFT_COUNT: usize = DRIFT.end;
const DOMAIN_COUNT: Range<usize> = DRIFT_COUNT + 1..DRIFT_COUNT + 1 + DOMAINS;
const DOMAIN_REST: Range<usize> = DOMAIN_COUNT.end..DOMAIN_COUNT.end + DOMAINS;

/// Numbers of the sums of one arm.
pub const LEN: usize = DOMAIN_REST.end;

/// Answers that late evidence remembers: a new subject is noticed within some hundred.
pub(super) const LATE_MEMORY: f64 = 1_000.0;

/// Largest magnitude of a part of an expectation; scores lie between 0 and 1.
pub(super) const LARGEST_PART: f64 = 2.0;

/// Relative slack of plausibility checks: sums travel as 32-bit floats.
const SLACK: f64 = 1e-3;

/// Judged answers of one arm from one origin, by what was seen of them.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerSums {
    numbers: [f64; LEN],
}

impl Default for AnswerSums {
    fn default() -> Self {
        Self { numbers: [0.0; LEN] }
    }
}

impl AnswerSums {
    /// Takes in a judged answer; `expected` is what the model in use said of it, if it knew the arm.
    pub fn record(&mut self, evidence: &Evidence, score: Score, expected: Option<&Expectation>) {
        let (x, s, y) = (evidence.features.values(), &evidence.signals, score.value());
        let keep = 1.0 - 1.0 / MEMORY;
        let crossed = s.iter().flat_map(|signal| x.iter().map(move |value| signal * value));
        fade_into(&mut self.numbers[CROSS], keep, crossed);
        fade_into(&mut self.numbers[GRAM], keep, triangle(s));
        fade_into(&mut self.numbers[TARGET], keep, s.iter().map(|signal| y * signal));
        let Some(expected) = expected else { return };
        let keep = 1.0 - 1.0 / LATE_MEMORY;
        let parts = expected.parts;
        fade_into(&mut self.numbers[TRUST], keep, triangle(&parts));
        fade_into(&mut self.numbers[TRUST_TARGET], keep, parts.iter().map(|part| y * part));
        let missed = y - expected.seen();
        fade_into(&mut self.numbers[DRIFT], keep, x.iter().map(|value| missed * value));
        fade_into(&mut self.numbers[DRIFT_COUNT..=DRIFT_COUNT], keep, [1.0]);
        let domain = evidence.domain as usize;
        let (count, rest) = (DOMAIN_COUNT.start + domain, DOMAIN_REST.start + domain);
        fade_into(&mut self.numbers[count..=count], keep, [1.0]);
        fade_into(&mut self.numbers[rest..=rest], keep, [y - expected.weighed]);
    }

    /// Adds the sums of another origin, at a share of their weight between 0 and 1.
    pub fn add(&mut self, other: &Self, share: f64) {
        for (ours, theirs) in self.numbers.iter_mut().zip(&other.numbers) {
            *ours += share * theirs;
        }
    }

    /// Returns the same without late evidence: what traffic was like lately is no other mesh's business.
    pub fn lasting(mut self) -> Self {
        self.numbers[TRUST.start..].fill(0.0);
        self
    }

    /// Returns all numbers, for the wire and the disk.
    pub fn numbers(&self) -> &[f64; LEN] {
        &self.numbers
    }

    /// Takes numbers as they were kept or sent; whether they are plausible is for [`is_plausible`](Self::is_plausible).
    pub fn from_numbers(numbers: [f64; LEN]) -> Self {
        Self { numbers }
    }

    /// True when nothing was taken in.
    pub fn is_empty(&self) -> bool {
        self.numbers.iter().all(|number| *number == 0.0)
    }

    /// Returns the sums as they travel: each rounded to 32 bits.
    pub fn rounded(mut self) -> Self {
        self.numbers.iter_mut().for_each(|number| *number = f64::from(*number as f32));
        self
    }

    /// True when honest counting can lead here, beside these sums of the same answers: finite, features, signals and
    /// score together those of something, signals within their bounds, and late evidence as far as it was judged.
    pub fn is_plausible(&self, quality: &QualitySums) -> bool {
        if quality.version == 0 {
            return self.numbers.iter().all(|number| *number == 0.0);
        }
        self.numbers.iter().all(|number| number.is_finite())
            && self.is_plausible_of_answers(quality)
            && self.is_plausible_of_late(quality.weight().max(0.0))
    }

    fn is_plausible_of_answers(&self, quality: &QualitySums) -> bool {
        let weight = quality.weight().max(0.0);
        let slack = SLACK * (1.0 + weight);
        let [confidence, known, length] =
            [CONFIDENCE, KNOWN, LENGTH].map(|index| self.signals(index - DIM, index - DIM));
        // Whether there is a confidence is 0 or 1, so its square is itself.
        let is_known = self.cross(KNOWN - DIM, 0);
        let entry = |row: usize, column: usize| match (row, column) {
            (ALL, ALL) => quality.reward[0],
            (ALL, column) if column < DIM => quality.reward[column],
            (ALL, column) => self.target(column - DIM),
            (row, column) if row < DIM => quality.gram[at(row, column)],
            (row, column) if column < DIM => self.cross(row - DIM, column),
            (row, column) => self.signals(row - DIM, column - DIM),
        };
        (-slack..=weight * LIMIT * LIMIT + slack).contains(&length)
            && known <= weight + slack
            && confidence <= known + slack
            && (is_known - known).abs() <= slack
            && Triangle::of(ALL + 1, entry).is_definite(|_| slack)
    }

    /// Looks at late evidence beside the judgements that these sums weigh. Bounded by weight, not by the version: what
    /// has no weight would pass every cap on an origin's influence.
    fn is_plausible_of_late(&self, weight: f64) -> bool {
        let late = self.numbers[DRIFT_COUNT];
        let slack = SLACK * (1.0 + late.max(0.0));
        let most = LATE_MEMORY.min(weight) * (1.0 + SLACK) + SLACK;
        let within = |range: Range<usize>, bound: f64| {
            self.numbers[range].iter().all(|number| number.abs() <= bound * late + slack)
        };
        // Domains fade each by itself, and still no faster than the judgements do.
        let in_domains: f64 = self.numbers[DOMAIN_COUNT].iter().sum();
        let by_domain = DOMAIN_COUNT.zip(DOMAIN_REST).all(|(count, rest)| {
            let (count, rest) = (self.numbers[count], self.numbers[rest]);
            (0.0..=most).contains(&count) && rest.abs() <= count * (1.0 + SLACK) + SLACK
        });
        // Parts and score, whose square is at most 1: weights that are fitted to anything else need not be bounded.
        let entry = |row: usize, column: usize| match (row, column) {
            (PARTS, PARTS) => late,
            (PARTS, column) => self.numbers[TRUST_TARGET][column],
            (row, column) => self.trust(row, column),
        };
        (0.0..=most).contains(&late)
            // The first part is a constant 1.
            && (self.trust(0, 0) - late).abs() <= slack
            && within(TRUST, LARGEST_PART * LARGEST_PART)
            && within(TRUST_TARGET, LARGEST_PART)
            && within(DRIFT, LIMIT * 2.0 * LARGEST_PART)
            && Triangle::of(PARTS + 1, entry).is_definite(|_| slack)
            && by_domain
            && in_domains <= weight * (1.0 + SLACK) + SLACK
    }

    /// Orders two states of the same origin and arm that were judged equally often. Total.
    pub fn order(&self, other: &Self) -> Ordering {
        let pairs = self.numbers.iter().zip(&other.numbers).map(|(a, b)| a.total_cmp(b));
        pairs.fold(Ordering::Equal, Ordering::then)
    }

    pub(super) fn cross(&self, signal: usize, feature: usize) -> f64 {
        self.numbers[CROSS.start + signal * DIM + feature]
    }

    pub(super) fn signals(&self, row: usize, column: usize) -> f64 {
        self.numbers[GRAM.start + at(row.max(column), row.min(column))]
    }

    pub(super) fn target(&self, signal: usize) -> f64 {
        self.numbers[TARGET.start + signal]
    }

    pub(super) fn trust(&self, row: usize, column: usize) -> f64 {
        self.numbers[TRUST.start + at(row.max(column), row.min(column))]
    }

    pub(super) fn trust_target(&self) -> &[f64] {
        &self.numbers[TRUST_TARGET]
    }

    /// Returns what the parts missed × features, and the answers of which that was known.
    pub(super) fn drift(&self) -> (&[f64], f64) {
        (&self.numbers[DRIFT], self.numbers[DRIFT_COUNT])
    }

    /// Returns the late answers of a domain and the sum of what the expectations missed there.
    pub(super) fn missed_in(&self, domain: Domain) -> (f64, f64) {
        (
            self.numbers[DOMAIN_COUNT.start + domain as usize],
            self.numbers[DOMAIN_REST.start + domain as usize],
        )
    }
}

/// Keeps a share of each sum and adds what is new.
fn fade_into(sums: &mut [f64], keep: f64, new: impl IntoIterator<Item = f64>) {
    for (sum, new) in sums.iter_mut().zip(new) {
        *sum = *sum * keep + new;
    }
}

/// Returns the lower triangle of `v vᵀ` by rows.
fn triangle(v: &[f64]) -> impl Iterator<Item = f64> {
    v.iter().enumerate().flat_map(move |(row, left)| v[..=row].iter().map(move |right| left * right))
}
