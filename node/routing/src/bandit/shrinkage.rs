//! How strongly slopes are drawn to zero: as strongly as makes the judgements likeliest.
//!
//! One fixed strength fits one kind of traffic. Over mixed prompts features vary by about one, and slopes fitted to a
//! few thousand outcomes want a strong hand. Where all prompts speak of one subject they vary by a third of that, and
//! the same hand holds the slopes far below what the outcomes say.
//!
//! With A = Σ ωW over the arms (W the covariance within good and bad answers, ω = judgements × share of good × share
//! of bad) and B = Σ ωδ (δ the distance between their means), slopes s give B a normal distribution of mean A·s and
//! covariance A. With s ~ N(0, I/r) the logarithm of B's likelihood, twice and but for a constant, is
//! D·ln r − ln|A + rI| + Bᵀ(A + rI)⁻¹B, and its maximum over r is the ridge to take (type II maximum likelihood;
//! MacKay 1992). Both are sums, so no judgement needs to be seen again.

use crate::bandit::linear::{Matrix, SIDE, Vector};

/// Ridges to choose among, in units of ω: a judgement of an arm that is right half of the time counts for a quarter.
///
/// Steps of two, since between neighbours the likelihood hardly differs. The strongest stands for a hundred judgements:
/// where arms contradict each other the likelihood asks for more, but an arm is held to the common slopes by a strength of
/// its own, and holding those tighter cost twelve models a tenth of a point of accuracy.
const RIDGES: [f64; 6] = [1.0, 2.0, 4.0, 8.0, 16.0, 25.0];

/// Returns the ridge under which the distance `between` is likeliest, given the matrix `within`; of equal ones the
/// strongest, which is also what is left when the matrix is none.
pub(super) fn likeliest(within: &Matrix, between: &Vector) -> f64 {
    let [.., strongest] = RIDGES;
    let (mut best, mut most) = (strongest, f64::NEG_INFINITY);
    for ridge in RIDGES.into_iter().rev() {
        if let Some(likelihood) = likelihood(within, between, ridge)
            && likelihood > most
        {
            (best, most) = (ridge, likelihood);
        }
    }
    best
}

/// Twice the logarithm of the likelihood, but for what does not depend on the ridge.
fn likelihood(within: &Matrix, between: &Vector, ridge: f64) -> Option<f64> {
    let mut matrix = within.clone();
    matrix.add_diagonal(ridge);
    let lower = matrix.factor()?;
    // With L Lᵀ the matrix and L z = between, the quadratic form is z·z and the determinant the square of L's diagonal.
    let mut solved = [0.0; SIDE];
    let (mut square, mut log_determinant) = (0.0, 0.0);
    for row in 0..SIDE {
        let known: f64 = lower.0[row][..row].iter().zip(&solved).map(|(factor, z)| factor * z).sum();
        let pivot = lower.0[row][row];
        solved[row] = (between.0[row] - known) / pivot;
        square += solved[row] * solved[row];
        log_determinant += 2.0 * pivot.ln();
    }
    Some(SIDE as f64 * ridge.ln() - log_determinant + square)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums as slopes of this size leave them, of features that vary by `variance`.
    fn sums(weight: f64, variance: f64, slope: f64) -> (Matrix, Vector) {
        let mut within = Matrix::default();
        within.add_diagonal(weight * variance);
        (within, Vector::from_fn(|_| weight * variance * slope))
    }

    fn ridge(weight: f64, variance: f64, slope: f64) -> f64 {
        let (within, between) = sums(weight, variance, slope);
        likeliest(&within, &between)
    }

    #[test]
    fn steep_slopes_are_held_loosely_and_flat_ones_tightly() {
        assert_eq!(ridge(100.0, 1.0, 1.0), 1.0);
        assert_eq!(ridge(100.0, 1.0, 0.02), 25.0);
        let middle = ridge(1_000.0, 1.0, 0.4);
        assert!((4.0..=8.0).contains(&middle), "{middle}");
    }

    #[test]
    fn slopes_of_features_that_hardly_vary_are_not_held_tighter_than_others() {
        // A slope of 2 where the deviation is 0.3 tells as much as one of 0.6 where it is 1.
        assert!(ridge(100.0, 0.09, 2.0) <= ridge(100.0, 1.0, 0.6));
    }

    #[test]
    fn what_is_no_matrix_is_held_tightest() {
        let mut none = Matrix::default();
        none.add_diagonal(f64::NAN);
        assert_eq!(likeliest(&none, &Vector::default()), 25.0);
    }
}
