//! The static embedding of a text: where it lies among all prompts, in a few microseconds.
//!
//! Each piece of the vocabulary has a fixed vector (distilled from a sentence encoder, in the manner of model2vec);
//! a text is the mean of its pieces, brought to unit length and whitened, since linear models and their exploration
//! want dimensions of equal scale. No context is read, and for routing none is missed: on the MMLU outcomes that
//! the project learns from, these vectors do as well as the encoder that they come from.
//!
//! The table is part of the binary. Its dimensions are principal components in their order: the first [`LEADING`]
//! ones are what the bandit learns on, all of them are for classification.

mod pieces;
mod table;

use pieces::Pieces;
use table::TABLE;

/// Dimensions of an embedding.
pub const DIMS: usize = 64;

/// Leading dimensions that a learner takes: more of them learn slower and weigh more in gossip, and gain nothing.
pub const LEADING: usize = 16;

/// Whitened embedding of a text: each dimension has mean 0 and deviation 1 over ordinary prompts.
///
/// All zeros, the mean of all prompts, for a text without a known word.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Embedding([f32; DIMS]);

impl Default for Embedding {
    /// Returns [`NEUTRAL`](Self::NEUTRAL).
    fn default() -> Self {
        Self::NEUTRAL
    }
}

impl Embedding {
    /// What a text without a known word has: nothing that sets it apart.
    pub const NEUTRAL: Self = Self([0.0; DIMS]);

    /// Embeds a text, all of it. Costs about 10 ns a byte and allocates nothing.
    pub fn of(text: &str) -> Self {
        Self::of_parts([text])
    }

    /// Embeds several texts as one; no word reaches from one into the next.
    pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a str>) -> Self {
        let (mut sums, mut count) = ([0i32; DIMS], 0u32);
        let mut pieces = Pieces::new(|rows: &[u16]| {
            rows.iter().for_each(|row| TABLE.add(*row, &mut sums));
            count += rows.len() as u32;
        });
        parts.into_iter().for_each(|part| pieces.push(part));
        if count == 0 { Self::NEUTRAL } else { Self::whitened(&sums) }
    }

    /// Brings a sum of rows to unit length, which makes their number cancel out, and whitens it.
    fn whitened(sums: &[i32; DIMS]) -> Self {
        let mut unit = sums.map(|sum| sum as f32);
        let length = unit.iter().map(|value| value * value).sum::<f32>().sqrt();
        if length > 0.0 {
            unit.iter_mut().for_each(|value| *value /= length);
        }
        TABLE.whiten(&mut unit);
        Self(unit)
    }

    /// Returns all dimensions, the most telling first.
    pub fn all(&self) -> &[f32; DIMS] {
        &self.0
    }

    /// Returns the dimensions that a learner takes.
    pub fn leading(&self) -> &[f32; LEADING] {
        self.0.first_chunk().expect("there are more dimensions than leading ones")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made by `scripts/golden_embeddings.py` with the Python libraries `model2vec` and `tokenizers`.
    include!("../../tests/golden/embeddings.in");

    #[test]
    fn embeddings_are_those_of_the_reference_libraries() {
        for (text, golden) in GOLDEN {
            let embedding = Embedding::of(text);
            for (at, (ours, theirs)) in embedding.all().iter().zip(golden).enumerate() {
                assert!((ours - theirs).abs() <= 1e-3, "{text:?} dimension {at}: {ours} for {theirs}");
            }
        }
    }

    #[test]
    fn texts_without_a_known_word_are_neutral() {
        for text in ["", " \n", "🦀🦀", "\u{0}"] {
            assert_eq!(Embedding::of(text), Embedding::NEUTRAL, "{text:?}");
        }
    }

    #[test]
    fn parts_are_embedded_as_one_text_with_a_break_between_them() {
        assert_eq!(Embedding::of_parts(["the red", "fox"]), Embedding::of("the red fox"));
        assert_ne!(Embedding::of_parts(["the re", "d fox"]), Embedding::of("the red fox"));
    }
}
