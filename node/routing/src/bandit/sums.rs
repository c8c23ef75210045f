//! What an arm's judged answers add up to: the sufficient statistics of its quality, given the features of a request.
//!
//! Sums only, so those of several origins add up in any order. The packed matrix is what makes the posterior
//! of an arm a matter of 324 numbers, whatever it has seen.

use std::cmp::Ordering;

use crate::features::{DIM, Features, LIMIT};
use crate::units::Score;

/// Numbers of the lower triangle of the Gram matrix, row by row.
pub const PACKED: usize = DIM * (DIM + 1) / 2;

/// Judgements that the memory of an arm is long, so that a model behind an unchanged name that gets better or worse
/// is noticed: each judgement of weight 1 leaves of the older ones all but one part in so many. No honest origin's
/// sums ever weigh more.
pub const MEMORY: f64 = 10_000.0;

/// Relative slack of plausibility checks: sums travel as 32-bit floats.
const SLACK: f64 = 1e-3;

/// Judged answers of one arm from one origin, by the features of their requests.
#[derive(Debug, Clone, PartialEq)]
pub struct QualitySums {
    /// Judgements ever taken in; orders two states of one origin.
    pub version: u64,
    /// Σ x xᵀ, lower triangle by rows; the first number is the (forgetting) count.
    pub gram: [f64; PACKED],
    /// Σ score · x; the first number is the sum of scores.
    pub reward: [f64; DIM],
}

impl Default for QualitySums {
    fn default() -> Self {
        Self { version: 0, gram: [0.0; PACKED], reward: [0.0; DIM] }
    }
}

impl QualitySums {
    /// Takes in a judgement. Older ones lose a ten-thousandth of their weight.
    pub fn record(&mut self, features: &Features, score: Score) {
        self.record_weighted(features, score, 1.0);
    }

    /// Takes in a judgement that counts for `weight` of one, 0 to 1; what is not a number counts for nothing.
    ///
    /// Older ones lose in proportion, so that many light judgements forget no more than the heavy ones they equal.
    pub fn record_weighted(&mut self, features: &Features, score: Score, weight: f64) {
        let weight = if weight.is_finite() { weight.clamp(0.0, 1.0) } else { 0.0 };
        let keep = 1.0 - weight / MEMORY;
        let x = features.values();
        let mut packed = self.gram.iter_mut();
        for (row, left) in x.iter().enumerate() {
            for (right, sum) in x[..=row].iter().zip(&mut packed) {
                *sum = *sum * keep + weight * left * right;
            }
        }
        for (sum, value) in self.reward.iter_mut().zip(x) {
            *sum = *sum * keep + weight * score.value() * value;
        }
        self.version = self.version.saturating_add(1);
    }

    /// Returns the sums as they travel: each rounded to 32 bits.
    pub fn rounded(mut self) -> Self {
        for number in self.gram.iter_mut().chain(&mut self.reward) {
            *number = f64::from(*number as f32);
        }
        self
    }

    /// Adds the sums of another origin, at a share of their weight between 0 and 1.
    pub fn add(&mut self, other: &Self, share: f64) {
        if other.version == 0 {
            // Nothing was judged: most arms of most origins, and 150 numbers each.
            return;
        }
        for (ours, theirs) in self.gram.iter_mut().zip(&other.gram) {
            *ours += share * theirs;
        }
        for (ours, theirs) in self.reward.iter_mut().zip(&other.reward) {
            *ours += share * theirs;
        }
        self.version = self.version.saturating_add(other.version);
    }

    /// Returns the judgements that these sums weigh.
    pub fn weight(&self) -> f64 {
        self.gram[0]
    }

    /// Returns the mean score, if anything was judged.
    pub fn mean(&self) -> Option<f64> {
        (self.weight() > 0.0).then(|| self.reward[0] / self.weight())
    }

    /// True when honest counting can lead here: finite, no more weight than judgements, features within their bounds,
    /// scores between 0 and 1, and a Gram matrix that is positive semidefinite.
    pub fn is_plausible(&self) -> bool {
        if self.version == 0 {
            return *self == Self::default();
        }
        let weight = self.weight();
        let slack = SLACK * (1.0 + weight);
        let finite = self.gram.iter().chain(&self.reward).all(|number| number.is_finite());
        let bounded = (0..DIM).all(|row| {
            let square = self.gram[at(row, row)];
            let largest = (weight.max(0.0) * square.max(0.0)).sqrt();
            (0.0..=weight * LIMIT * LIMIT + slack).contains(&square)
                && self.reward[row].abs() <= largest + slack
        });
        finite
            && (0.0..=self.version as f64 + slack).contains(&weight)
            && (0.0..=weight + slack).contains(&self.reward[0])
            && bounded
            && self.is_semidefinite(slack)
    }

    /// Looks for a Cholesky factor of the matrix of all sums, `[Σxxᵀ Σyx; Σyxᵀ Σy]`, with `slack` added to its diagonal.
    ///
    /// With scores between 0 and 1 it has one, and only with one are the covariances within good and within bad answers
    /// those of anything: a discriminant fitted to others has no inverse to take.
    fn is_semidefinite(&self, slack: f64) -> bool {
        let Some(factor) = factor_of(&self.gram, slack) else { return false };
        let mut last = [0.0; DIM];
        for row in 0..DIM {
            let known: f64 = (0..row).map(|k| factor[at(row, k)] * last[k]).sum();
            last[row] = (self.reward[row] - known) / factor[at(row, row)];
        }
        last.iter().map(|number| number * number).sum::<f64>() <= self.reward[0] + slack
    }

    /// Orders two states of the same origin and arm. Total, so that every reader keeps the same one.
    pub fn newness(&self, other: &Self) -> Ordering {
        let numbers = |sums: &Self| sums.gram.into_iter().chain(sums.reward);
        let by_numbers = numbers(self).zip(numbers(other)).map(|(a, b)| a.total_cmp(&b));
        self.version.cmp(&other.version).then_with(|| by_numbers.fold(Ordering::Equal, Ordering::then))
    }
}

/// Returns the index of a row and column (not above the row) in the packed triangle.
pub const fn at(row: usize, column: usize) -> usize {
    row * (row + 1) / 2 + column
}

/// Returns the Cholesky factor of the matrix with `slack` added to its diagonal, if it has one.
fn factor_of(gram: &[f64; PACKED], slack: f64) -> Option<[f64; PACKED]> {
    let mut factor = *gram;
    for row in 0..DIM {
        for column in 0..=row {
            let known: f64 = (0..column).map(|k| factor[at(row, k)] * factor[at(column, k)]).sum();
            let rest = gram[at(row, column)] - known;
            factor[at(row, column)] = if row == column {
                match rest + slack {
                    pivot if pivot > 0.0 => pivot.sqrt(),
                    _ => return None,
                }
            } else {
                rest / factor[at(column, column)]
            };
        }
    }
    Some(factor)
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;
    use crate::features::{EMBEDDED, SURFACE};
    use crate::testing::seeded;

    fn judged(seed: u64, count: usize) -> QualitySums {
        let mut rng = seeded(seed);
        let mut sums = QualitySums::default();
        for _ in 0..count {
            let embedding: [f32; EMBEDDED] = std::array::from_fn(|_| rng.random_range(-2.0..2.0));
            let features = Features::new(&embedding, &[1.0; SURFACE]);
            sums.record(&features, Score::clamped(rng.random()));
        }
        sums
    }

    #[test]
    fn honest_sums_are_plausible_and_add_up() {
        assert!(QualitySums::default().is_plausible());
        let (a, b) = (judged(1, 400), judged(2, 3));
        let mut both = a.clone();
        both.add(&b, 1.0);
        assert!(a.is_plausible() && b.is_plausible() && both.is_plausible());
        assert!((both.weight() - a.weight() - b.weight()).abs() < 1e-9);
        assert_eq!(both.version, 403);
    }

    #[test]
    fn light_judgements_weigh_and_forget_as_much_as_the_heavy_ones_they_equal() {
        let features = Features::default();
        let (mut heavy, mut light) = (QualitySums::default(), QualitySums::default());
        for _ in 0..1_000 {
            heavy.record(&features, Score::ONE);
        }
        for _ in 0..4_000 {
            light.record_weighted(&features, Score::ONE, 0.25);
        }
        assert!((heavy.weight() - light.weight()).abs() < 1.0, "{} {}", heavy.weight(), light.weight());
        let before = light.clone();
        light.record_weighted(&features, Score::ZERO, f64::NAN);
        assert_eq!((light.weight(), light.mean()), (before.weight(), before.mean()));
        assert_eq!(light.version, before.version + 1);
    }

    #[test]
    fn old_judgements_fade() {
        let sums = judged(1, 5_000);
        assert!(sums.weight() < 4_000.0 && sums.weight() > 3_900.0, "{}", sums.weight());
    }

    #[test]
    fn what_nobody_can_have_counted_is_refused() {
        type Lie = fn(&mut QualitySums);
        let lies: [(&str, Lie); 8] = [
            ("rewards that no scores add up to", |s| s.reward[3] = s.weight() * 1.3),
            ("not a number", |s| s.gram[5] = f64::NAN),
            ("infinite", |s| s.reward[2] = f64::INFINITY),
            ("more weight than judgements", |s| s.version = 3),
            ("more reward than judgements", |s| s.reward[0] = s.weight() * 1.1),
            ("negative reward", |s| s.reward[0] = -1.0),
            ("features beyond their bounds", |s| s.gram[at(4, 4)] = s.weight() * 17.0),
            ("correlated beyond one", |s| s.gram[at(4, 3)] = s.weight() * 3.9),
        ];
        for (name, lie) in lies {
            let mut sums = judged(3, 100);
            lie(&mut sums);
            assert!(!sums.is_plausible(), "{name}");
        }
    }

    #[test]
    fn later_states_are_newer_and_equal_ones_equal() {
        let (old, new) = (judged(1, 10), judged(1, 11));
        assert_eq!(new.newness(&old), Ordering::Greater);
        assert_eq!(old.newness(&new), Ordering::Less);
        assert_eq!(new.newness(&new.clone()), Ordering::Equal);
    }
}
