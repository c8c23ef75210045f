//! What a prompt looks like, in numbers of about the same size, for a learner beside the embedding.

use super::reading::Reading;
use crate::units::Tokens;

/// Looks of a prompt, of the sample that was read, but for its length. Every number is finite and at least 0.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Surface {
    /// Natural logarithm of the tokens of the prompt, of at least one.
    pub ln_tokens: f32,
    /// Digits among the characters, 0 to 1.
    pub digit_share: f32,
    /// Characters that are neither letters nor blanks, 0 to 1.
    pub mark_share: f32,
    /// Lines.
    pub lines: f32,
    /// 1 where the last turn of the user, or what stands before its options, ends with a question mark, else 0.
    pub asks: f32,
    /// Lines such as "A. …", the options of an exam question.
    pub options: f32,
    /// Mean length of a word in characters.
    pub mean_word_chars: f32,
}

impl Surface {
    /// Returns the natural logarithm of a count, of at least one.
    pub(super) fn ln_tokens_of(tokens: Tokens) -> f32 {
        (tokens.0.max(1) as f32).ln()
    }

    pub(super) fn of(reading: &Reading, prompt_tokens: Tokens) -> Self {
        Self {
            ln_tokens: Self::ln_tokens_of(prompt_tokens),
            digit_share: reading.digit_share(),
            mark_share: reading.mark_share(),
            lines: reading.lines() as f32,
            asks: f32::from(u8::from(reading.asks())),
            options: reading.options() as f32,
            mean_word_chars: reading.mean_word_chars(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::sample::Sample;

    #[test]
    fn an_exam_question_looks_like_one() {
        let sample = Sample::of_text("What is 2 + 2?\nA. 3\nB. 4");
        let surface = Surface::of(&Reading::of(&sample), Tokens(20));
        assert!((surface.ln_tokens - 2.995_732).abs() < 1e-5);
        assert_eq!((surface.lines, surface.options, surface.asks), (3.0, 2.0, 1.0));
        assert!((surface.digit_share - 4.0 / 24.0).abs() < 1e-6);
        assert!((surface.mean_word_chars - 12.0 / 8.0).abs() < 1e-6);
    }

    #[test]
    fn an_empty_prompt_has_finite_looks() {
        let surface = Surface::of(&Reading::of(&Sample::of_text("")), Tokens(0));
        assert_eq!(surface, Surface { lines: 1.0, ..Surface::default() });
    }
}
