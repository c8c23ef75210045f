//! Vectors and symmetric matrices of the features without the constant: just what fitting needs.
//!
//! Fixed size, on the stack, plain loops that the compiler unrolls; a linear-algebra crate would add half a minute of
//! build for three functions.

use crate::features::{DIM, Features};

/// Length of a vector: the features without the constant.
pub(super) const SIDE: usize = DIM - 1;

/// A column of numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Vector(pub(super) [f64; SIDE]);

impl Default for Vector {
    fn default() -> Self {
        Self([0.0; SIDE])
    }
}

impl Vector {
    pub(super) fn of(features: &Features) -> Self {
        Self::from_fn(|i| features.values()[i + 1])
    }

    pub(super) fn from_fn(f: impl FnMut(usize) -> f64) -> Self {
        Self(std::array::from_fn(f))
    }

    pub(super) fn plus(&self, other: &Self, factor: f64) -> Self {
        Self::from_fn(|i| self.0[i] + factor * other.0[i])
    }

    pub(super) fn minus(&self, other: &Self) -> Self {
        self.plus(other, -1.0)
    }

    pub(super) fn scaled(&self, factor: f64) -> Self {
        Self::from_fn(|i| factor * self.0[i])
    }
}

/// Returns the inner product.
pub(super) fn dot(a: &Vector, b: &Vector) -> f64 {
    a.0.iter().zip(&b.0).map(|(a, b)| a * b).sum()
}

/// A symmetric matrix, all of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Matrix(pub(super) [[f64; SIDE]; SIDE]);

impl Default for Matrix {
    fn default() -> Self {
        Self([[0.0; SIDE]; SIDE])
    }
}

impl Matrix {
    /// Makes a matrix from its lower triangle: `f(row, column)` with the column not above the row.
    pub(super) fn symmetric(f: impl Fn(usize, usize) -> f64) -> Self {
        Self(std::array::from_fn(|row| std::array::from_fn(|column| f(row.max(column), row.min(column)))))
    }

    pub(super) fn add(&mut self, other: &Self, factor: f64) {
        for (ours, theirs) in self.0.iter_mut().flatten().zip(other.0.iter().flatten()) {
            *ours += factor * theirs;
        }
    }

    pub(super) fn add_diagonal(&mut self, value: f64) {
        for i in 0..SIDE {
            self.0[i][i] += value;
        }
    }

    /// Adds `factor · v vᵀ`.
    pub(super) fn add_outer(&mut self, v: &Vector, factor: f64) {
        for (row, left) in self.0.iter_mut().zip(&v.0) {
            for (number, right) in row.iter_mut().zip(&v.0) {
                *number += factor * left * right;
            }
        }
    }

    pub(super) fn scaled(mut self, factor: f64) -> Self {
        self.0.iter_mut().flatten().for_each(|number| *number *= factor);
        self
    }

    /// Multiplies by a vector: rows scaled and added up, which the symmetry permits. Sums that do not wait for one another are
    /// made several at a time, which an inner product's strict order forbids.
    pub(super) fn times(&self, v: &Vector) -> Vector {
        let mut product = [0.0; SIDE];
        for (row, factor) in self.0.iter().zip(&v.0) {
            for (sum, number) in product.iter_mut().zip(row) {
                *sum += factor * number;
            }
        }
        Vector(product)
    }

    /// Returns `vᵀ M v`, never below 0.
    pub(super) fn quadratic(&self, v: &Vector) -> f64 {
        dot(&self.times(v), v).max(0.0)
    }

    /// Returns the lower Cholesky factor of a positive definite matrix; `None` when it is none.
    pub(super) fn factor(&self) -> Option<Self> {
        let mut lower = Self::default();
        for row in 0..SIDE {
            for column in 0..=row {
                let known: f64 = (0..column).map(|k| lower.0[row][k] * lower.0[column][k]).sum();
                let rest = self.0[row][column] - known;
                lower.0[row][column] = if row == column {
                    if rest.is_nan() || rest <= 1e-12 {
                        return None;
                    }
                    rest.sqrt()
                } else {
                    rest / lower.0[column][column]
                };
            }
        }
        Some(lower)
    }

    /// Inverts a positive definite matrix by its Cholesky factor; `None` when it is none.
    pub(super) fn inverse(&self) -> Option<Self> {
        let lower = self.factor()?;
        // Rows of the inverse of the factor, then their products.
        let mut inverse_lower = Self::default();
        for column in 0..SIDE {
            for row in column..SIDE {
                let unit = if row == column { 1.0 } else { 0.0 };
                let known: f64 = (column..row).map(|k| lower.0[row][k] * inverse_lower.0[k][column]).sum();
                inverse_lower.0[row][column] = (unit - known) / lower.0[row][row];
            }
        }
        Some(Self::symmetric(|row, column| {
            (row..SIDE).map(|k| inverse_lower.0[k][row] * inverse_lower.0[k][column]).sum()
        }))
    }
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::*;
    use crate::testing::seeded;

    #[test]
    fn an_inverse_undoes_its_matrix() {
        let mut rng = seeded(1);
        let mut matrix = Matrix::default();
        for _ in 0..60 {
            matrix.add_outer(&Vector::from_fn(|_| rng.random_range(-1.0..1.0)), 1.0);
        }
        matrix.add_diagonal(0.1);
        let inverse = matrix.inverse().unwrap();
        let v = Vector::from_fn(|i| i as f64 - 7.0);
        let back = inverse.times(&matrix.times(&v));
        for (a, b) in back.0.iter().zip(&v.0) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
        assert!(inverse.quadratic(&v) > 0.0);
    }

    #[test]
    fn what_is_not_positive_definite_has_no_inverse() {
        assert_eq!(Matrix::default().inverse(), None);
        let mut matrix = Matrix::default();
        matrix.add_diagonal(-1.0);
        assert_eq!(matrix.inverse(), None);
        matrix.add_diagonal(f64::NAN);
        assert_eq!(matrix.inverse(), None);
    }
}
