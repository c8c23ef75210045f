//! A symmetric matrix by its lower triangle, and the solution of positive definite systems.

/// Symmetric matrix, lower triangle by rows.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Triangle {
    dim: usize,
    values: Vec<f64>,
}

impl Triangle {
    /// Makes a matrix of a function of row and column; it is asked for the lower triangle only.
    pub(super) fn of(dim: usize, mut entry: impl FnMut(usize, usize) -> f64) -> Self {
        let values = (0..dim).flat_map(|row| (0..=row).map(move |column| (row, column)));
        Self { dim, values: values.map(|(row, column)| entry(row, column)).collect() }
    }

    /// Solves `(self + diag(ridge)) x = right` by Cholesky; `None` unless the matrix is positive definite.
    pub(super) fn solve(&self, ridge: impl Fn(usize) -> f64, right: &[f64]) -> Option<Vec<f64>> {
        let factor = self.cholesky(ridge)?;
        let row_of = |row: usize| &factor[row * (row + 1) / 2..][..=row];
        let mut x = right.to_vec();
        for row in 0..self.dim {
            let (entries, diagonal) = row_of(row).split_at(row);
            let known: f64 = entries.iter().zip(&x).map(|(entry, value)| entry * value).sum();
            x[row] = (x[row] - known) / diagonal[0];
        }
        for row in (0..self.dim).rev() {
            let (entries, diagonal) = row_of(row).split_at(row);
            let value = x[row] / diagonal[0];
            x[row] = value;
            for (left, entry) in x[..row].iter_mut().zip(entries) {
                *left -= entry * value;
            }
        }
        Some(x)
    }

    /// True when `self + diag(ridge)` is positive definite.
    pub(super) fn is_definite(&self, ridge: impl Fn(usize) -> f64) -> bool {
        self.cholesky(ridge).is_some()
    }

    fn cholesky(&self, ridge: impl Fn(usize) -> f64) -> Option<Vec<f64>> {
        let mut factor = self.values.clone();
        for row in 0..self.dim {
            let (above, current) = factor.split_at_mut(row * (row + 1) / 2);
            current[row] += ridge(row);
            for column in 0..=row {
                let (known, rest) = current.split_at_mut(column);
                let other =
                    if column == row { &*known } else { &above[column * (column + 1) / 2..][..column] };
                let sum: f64 = known.iter().zip(other).map(|(a, b)| a * b).sum();
                let value = rest[0] - sum;
                rest[0] = match column == row {
                    true if value > 0.0 => value.sqrt(),
                    true => return None,
                    false => value / above[column * (column + 1) / 2 + column],
                };
            }
        }
        Some(factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRIES: [[f64; 3]; 3] = [[4.0, 1.0, 0.5], [1.0, 3.0, -1.0], [0.5, -1.0, 2.0]];

    #[test]
    fn a_system_is_solved() {
        let matrix = Triangle::of(3, |row, column| ENTRIES[row][column]);
        let x = [1.0, -2.0, 3.0];
        let ridge = |row: usize| 0.1 * row as f64;
        let product = |row: usize| (0..3).map(|column| ENTRIES[row][column] * x[column]).sum::<f64>();
        let right: Vec<f64> = (0..3).map(|row| product(row) + ridge(row) * x[row]).collect();
        for (solved, expected) in matrix.solve(ridge, &right).unwrap().iter().zip(x) {
            assert!((solved - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn what_is_not_positive_definite_has_no_solution() {
        let ones = Triangle::of(2, |_, _| 1.0);
        assert_eq!(ones.solve(|_| 0.0, &[1.0, 1.0]), None);
        assert!(ones.solve(|_| 1e-3, &[1.0, 1.0]).is_some());
    }
}
