//! Field of knowledge of a prompt: its embedding and its telling words, weighed by a small linear classifier.
//!
//! Words alone miss most exam questions and every paraphrase; the embedding alone takes a `for` loop for talk. Source
//! text that is marked off as such needs no guess.

mod classifier;
mod words;

pub use classifier::{INPUTS, inputs};
pub(crate) use words::WORDS;

use crate::embed::Embedding;
use crate::profile::{Reading, Sample};

/// Field of knowledge of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Domain {
    /// Programs, shells, data formats.
    Code,
    /// Calculation and proof.
    Math,
    /// Health and medicine.
    Medical,
    /// Law and contracts.
    Legal,
    /// Money, markets, taxes.
    Finance,
    /// Everything else.
    #[default]
    General,
}

impl Domain {
    /// Every domain, in the order of its index.
    pub const ALL: [Self; 6] =
        [Self::Code, Self::Math, Self::Medical, Self::Legal, Self::Finance, Self::General];

    /// Returns the word used in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Code => "code",
            Self::Math => "math",
            Self::Medical => "medical",
            Self::Legal => "legal",
            Self::Finance => "finance",
            Self::General => "general",
        }
    }

    /// Returns the domain of a word of [`as_str`](Self::as_str); any other word is none.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|domain| domain.as_str() == word)
    }

    /// Guesses the domain of a prompt, of which a bounded sample is read.
    pub fn of(text: &str) -> Self {
        let sample = Sample::of_text(text);
        Self::classify(&Embedding::of_parts(sample.parts()), &Reading::of(&sample))
    }

    /// Guesses the domain of a prompt that was embedded and read already.
    pub(crate) fn classify(embedding: &Embedding, reading: &Reading) -> Self {
        if reading.has_fence() { Self::Code } else { classifier::classify(embedding, reading) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_land_in_their_domain() {
        let cases = [
            ("Write a Rust function that parses JSON into a struct", Domain::Code),
            ("```py\nprint(1)\n```\nwhat does this do?", Domain::Code),
            ("Prove that the square root of 2 is irrational; use a lemma on integers", Domain::Math),
            ("The patient shows acute symptoms of pneumonia. Which antibiotic?", Domain::Medical),
            ("Is the landlord liable for damages under the lease contract?", Domain::Legal),
            ("How are stock dividends and bond yield taxed in a portfolio?", Domain::Finance),
            ("Tell me a story about a fox", Domain::General),
            ("", Domain::General),
            ("Can the landlord keep my deposit when I break the lease?", Domain::Legal),
            ("My boss fired me without notice, can I sue him?", Domain::Legal),
            ("I have had a headache since yesterday, what should I do?", Domain::Medical),
            ("How do I center a div on the page", Domain::Code),
            ("Should I pay off my mortgage early or put the money into a fund?", Domain::Finance),
            ("What is 15 % of 80, and 3/4 of that?", Domain::Math),
            ("Who painted the Mona Lisa?", Domain::General),
            ("Hallo, wie geht es dir heute?", Domain::General),
            ("写一首关于秋天的诗", Domain::General),
            ("Hi", Domain::General),
        ];
        for (text, expected) in cases {
            assert_eq!(Domain::of(text), expected, "{text}");
        }
    }

    #[test]
    fn a_cut_inside_a_character_is_no_panic() {
        let text = "é".repeat(4_096);
        assert_eq!(Domain::of(&format!("a{text}")), Domain::General);
    }
}
