//! The vector that the bandit learns from: a constant, the embedding of the prompt and what its surface shows.
//!
//! 24 numbers, each of about unit scale over ordinary prompts, so that one strength of regularisation fits all of
//! them. Measured on public outcomes, 16 dimensions of the embedding learn as well as 32 or 64 from full labels and
//! better from the labels that a bandit gets; seven surface quantities add as much again on subjects never seen.

use crate::embed::{Embedding, LEADING};
use crate::profile::Surface;

/// Dimensions of the embedding that are used.
pub const EMBEDDED: usize = LEADING;

/// Quantities of the surface; [`Features::of`] names them.
pub const SURFACE: usize = 7;

/// Length of the vector: the constant 1, the embedding, the surface.
pub const DIM: usize = 1 + EMBEDDED + SURFACE;

/// Largest magnitude of a component: a stranger prompt must not outweigh a hundred ordinary ones, and a peer's sums
/// can be checked against it.
pub const LIMIT: f64 = 4.0;

/// Mean and standard deviation of each surface quantity over the public prompts that the constants were made of
/// (MMLU, MMLU-Pro, GSM8K and mixed tasks; 23,658 prompts).
const SCALE: [(f64, f64); SURFACE] =
    [(4.42, 0.99), (0.032, 0.060), (0.113, 0.111), (1.65, 0.94), (0.54, 0.50), (4.71, 3.59), (4.23, 0.89)];

/// Features of a request; the first component is always 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Features([f64; DIM]);

impl Default for Features {
    /// The features of a prompt of which nothing is known.
    fn default() -> Self {
        let mut values = [0.0; DIM];
        values[0] = 1.0;
        Self(values)
    }
}

impl Features {
    /// Puts the vector together of where a prompt lies and what it looks like.
    pub fn of(embedding: &Embedding, surface: &Surface) -> Self {
        let looks = [
            surface.ln_tokens,
            surface.digit_share,
            surface.mark_share,
            surface.lines.max(1.0).ln(),
            surface.asks,
            surface.options,
            surface.mean_word_chars,
        ];
        Self::new(embedding.leading(), &looks)
    }

    /// Puts the vector together: whitened dimensions of the embedding, and the raw surface quantities in the order of
    /// [`of`](Self::of). What is not finite counts as ordinary.
    pub(crate) fn new(embedding: &[f32; EMBEDDED], surface: &[f32; SURFACE]) -> Self {
        let mut values = [0.0; DIM];
        values[0] = 1.0;
        for (value, embedded) in values[1..].iter_mut().zip(embedding) {
            *value = bounded(f64::from(*embedded));
        }
        for ((value, raw), (mean, deviation)) in values[1 + EMBEDDED..].iter_mut().zip(surface).zip(SCALE) {
            *value = bounded((f64::from(*raw) - mean) / deviation);
        }
        Self(values)
    }

    /// Returns the same with only the first `dimensions` of the embedding, for measuring what the others bring.
    pub fn truncated(mut self, dimensions: usize) -> Self {
        if let Some(rest) = self.0[1..=EMBEDDED].get_mut(dimensions..) {
            rest.fill(0.0);
        }
        self
    }

    /// Takes a vector as it was kept or sent; `None` unless every component lies within its bounds.
    pub fn from_values(values: [f64; DIM]) -> Option<Self> {
        let fits = values[0] == 1.0 && values.iter().all(|value| value.abs() <= LIMIT);
        fits.then_some(Self(values))
    }

    /// Returns the components.
    pub fn values(&self) -> &[f64; DIM] {
        &self.0
    }
}

fn bounded(value: f64) -> f64 {
    if value.is_finite() { value.clamp(-LIMIT, LIMIT) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_prompt_stays_within_the_bounds() {
        let features = Features::new(&[f32::NAN; EMBEDDED], &[1e9; SURFACE]);
        assert_eq!(features.values()[0], 1.0);
        assert!(features.values()[1..=EMBEDDED].iter().all(|value| *value == 0.0));
        assert!(features.values()[1 + EMBEDDED..].iter().all(|value| *value == LIMIT));
        assert!(Features::from_values(*features.values()).is_some());
    }

    #[test]
    fn what_was_kept_is_checked_when_it_comes_back() {
        let mut values = *Features::default().values();
        assert!(Features::from_values(values).is_some());
        values[3] = f64::NAN;
        assert_eq!(Features::from_values(values), None);
        values[3] = LIMIT + 1.0;
        assert_eq!(Features::from_values(values), None);
        values[3] = 0.0;
        values[0] = 0.5;
        assert_eq!(Features::from_values(values), None);
    }
}
