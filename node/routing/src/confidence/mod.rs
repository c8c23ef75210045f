//! How far an answer can be trusted, from what was seen of it.
//!
//! *Unknown is not low.* An engine that gives no log probabilities says nothing about its answers, and taking that
//! for one half would send all of them to a provider. So [`Confidence::Unknown`] is a value of its own; only
//! evidence makes a number of it: log probabilities, the host's own number, or a [`Flaw`] that anyone can see.
//!
//! The number is raw: it orders the answers of one model, but 0.8 does not mean "right in 8 of 10 cases" until
//! [`calibration`](crate::calibration) made it so.

pub mod call;
pub mod fold;
pub mod likeness;
pub mod refusal;
pub mod repetition;

use std::fmt;

use crate::units::Score;

pub use call::{CallValue, CallValues, TokenLog};
pub use fold::SignalFold;
pub use likeness::likeness;
pub use refusal::is_refusal;
pub use repetition::Repetition;

/// Highest score of an answer with a [`Flaw`]: below any threshold that a person would set.
pub const FLAWED: f64 = 0.05;

/// Weights of the parts of the raw score. Measured on multiple-choice sets, margins and mean probabilities separate
/// right from wrong alike (AUROC .77–.88) and entropy a little worse; the least likely token is noisy.
const MEAN_WEIGHT: f64 = 0.45;
const MARGIN_WEIGHT: f64 = 0.35;
const ENTROPY_WEIGHT: f64 = 0.10;
const LEAST_WEIGHT: f64 = 0.10;

/// Share of repeated 3-grams up to which text counts as ordinary: lists and tables repeat themselves.
const ORDINARY_REPETITION: f64 = 0.18;

/// What full repetition takes from the score.
const REPETITION_COST: f64 = 0.5;

/// What is left of the score when the answer was cut by a limit that nobody asked for.
const TRUNCATED_FACTOR: f64 = 0.8;

/// How far an answer can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Confidence {
    /// Nothing was seen that says anything about it.
    #[default]
    Unknown,
    /// From 0 (surely bad) to 1 (surely good).
    Known(Score),
}

impl Confidence {
    /// Returns the score, if it is known.
    pub fn score(self) -> Option<Score> {
        match self {
            Self::Unknown => None,
            Self::Known(score) => Some(score),
        }
    }

    /// Returns the number for answers and records, `None` when unknown.
    pub fn value(self) -> Option<f64> {
        self.score().map(Score::value)
    }

    /// Returns the same with its score mapped; unknown stays unknown.
    pub fn map(self, f: impl FnOnce(Score) -> Score) -> Self {
        match self {
            Self::Unknown => Self::Unknown,
            Self::Known(score) => Self::Known(f(score)),
        }
    }
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("unknown"),
            Self::Known(score) => score.fmt(f),
        }
    }
}

/// A fault of an answer that needs no probabilities to be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flaw {
    /// It ended without text and without a tool call.
    Empty,
    /// It says the same again and again.
    Loop,
    /// It begins with a refusal.
    Refusal,
    /// JSON was asked for, and it is none or breaks the schema.
    InvalidJson,
    /// The arguments of a tool call are no JSON or break the tool's schema.
    InvalidToolArguments,
    /// A tool call was required, and there is none.
    MissingToolCall,
}

impl Flaw {
    /// Returns the word used in records and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Loop => "loop",
            Self::Refusal => "refusal",
            Self::InvalidJson => "invalid_json",
            Self::InvalidToolArguments => "invalid_tool_arguments",
            Self::MissingToolCall => "missing_tool_call",
        }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the log probabilities of an answer say, summed up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenSignals {
    /// Tokens with a log probability.
    pub tokens: u32,
    /// Mean of the log probabilities, natural logarithm, ≤ 0.
    pub mean_logprob: f64,
    /// The least of them.
    pub min_logprob: f64,
    /// Mean distance between the probabilities of the likeliest and the second token, 0 to 1; `None` without top lists.
    pub mean_margin: Option<f64>,
    /// Mean entropy of the top lists as a share of the largest possible, 0 to 1; `None` without top lists.
    pub mean_entropy: Option<f64>,
}

impl TokenSignals {
    /// Returns the weighted mean of what is there: e^mean, margin, 1 − entropy, e^min.
    ///
    /// Grows with each of mean, margin and least probability, falls with entropy. 0 to 1.
    fn raw(&self) -> f64 {
        let parts = [
            (MEAN_WEIGHT, Some(self.mean_logprob.exp())),
            (MARGIN_WEIGHT, self.mean_margin),
            (ENTROPY_WEIGHT, self.mean_entropy.map(|entropy| 1.0 - entropy)),
            (LEAST_WEIGHT, Some(self.min_logprob.exp())),
        ];
        let present = || parts.iter().filter_map(|(weight, part)| part.map(|part| (*weight, part)));
        let total: f64 = present().map(|(weight, _)| weight).sum();
        present().map(|(weight, part)| weight * part).sum::<f64>() / total
    }
}

/// Everything that was seen of an answer, so far or in the end.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Signals {
    /// From log probabilities; `None` when the engine gave none.
    pub tokens: Option<TokenSignals>,
    /// Largest share of repeated 3-grams in any window of the text, 0 to 1.
    pub repetition: f64,
    /// It was cut by a limit that the caller did not set.
    pub truncated: bool,
    /// The worst fault found.
    pub flaw: Option<Flaw>,
    /// The confidence that the host itself gave.
    pub host: Option<Score>,
    /// The host asks to hand the request to a stronger model.
    pub handoff: bool,
}

impl Signals {
    /// Returns the raw confidence.
    ///
    /// * Base: the host's own number, which was made from whole distributions; else from the log probabilities,
    ///   `0.45·e^mean + 0.35·margin + 0.10·(1 − entropy) + 0.10·e^min` over the parts that are there.
    /// * × `1 − 0.5·r`, where r is the share of repeated 3-grams above 18 %, scaled to 0..1; × 0.8 when truncated.
    /// * A [`Flaw`] bounds it by [`FLAWED`], and makes it known where there is no base.
    ///
    /// Monotone: no signal that gets better lowers it.
    pub fn confidence(&self) -> Confidence {
        let base = self.host.map(Score::value).or_else(|| self.tokens.map(|tokens| tokens.raw()));
        let bound = if self.flaw.is_some() { FLAWED } else { 1.0 };
        let Some(base) = base.or_else(|| self.flaw.map(|_| FLAWED)) else { return Confidence::Unknown };
        let above = (self.repetition - ORDINARY_REPETITION) / (1.0 - ORDINARY_REPETITION);
        let repeated = 1.0 - REPETITION_COST * above.clamp(0.0, 1.0);
        let cut = if self.truncated { TRUNCATED_FACTOR } else { 1.0 };
        Confidence::Known(Score::clamped((base * repeated * cut).min(bound)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(mean: f64, min: f64, margin: Option<f64>, entropy: Option<f64>) -> Option<TokenSignals> {
        let signals = TokenSignals {
            tokens: 10,
            mean_logprob: mean,
            min_logprob: min,
            mean_margin: margin,
            mean_entropy: entropy,
        };
        Some(signals)
    }

    fn value(signals: Signals) -> Option<f64> {
        signals.confidence().value()
    }

    #[test]
    fn without_evidence_confidence_is_unknown_whatever_else_is_seen() {
        assert_eq!(value(Signals::default()), None);
        assert_eq!(value(Signals { truncated: true, repetition: 0.9, ..Signals::default() }), None);
        assert_eq!(value(Signals { handoff: true, ..Signals::default() }), None);
    }

    #[test]
    fn a_flaw_is_known_and_low_with_and_without_probabilities() {
        let flaw = Some(Flaw::Loop);
        assert_eq!(value(Signals { flaw, ..Signals::default() }), Some(FLAWED));
        let sure = Signals { flaw, tokens: tokens(0.0, 0.0, None, None), ..Signals::default() };
        assert_eq!(value(sure), Some(FLAWED));
        let unsure = Signals { flaw, tokens: tokens(-9.0, -20.0, None, None), ..Signals::default() };
        assert!(value(unsure).unwrap() < FLAWED);
    }

    #[test]
    fn certain_tokens_score_one_and_guesses_low() {
        let certain = Signals { tokens: tokens(0.0, 0.0, Some(1.0), Some(0.0)), ..Signals::default() };
        assert!((value(certain).unwrap() - 1.0).abs() < 1e-12);
        let guess = Signals { tokens: tokens(-2.0, -6.0, Some(0.05), Some(0.9)), ..Signals::default() };
        assert!(value(guess).unwrap() < 0.12);
    }

    #[test]
    fn the_hosts_own_number_comes_before_probabilities() {
        let host = Some(Score::clamped(0.9));
        assert_eq!(
            value(Signals { host, tokens: tokens(-3.0, -9.0, None, None), ..Signals::default() }),
            Some(0.9)
        );
    }

    #[test]
    fn repetition_and_truncation_lower_a_known_score() {
        let host = Some(Score::clamped(0.8));
        let plain = value(Signals { host, repetition: 0.18, ..Signals::default() }).unwrap();
        let repeated = value(Signals { host, repetition: 0.6, ..Signals::default() }).unwrap();
        let cut = value(Signals { host, truncated: true, ..Signals::default() }).unwrap();
        assert!((plain - 0.8).abs() < 1e-12 && repeated < plain && (cut - 0.64).abs() < 1e-12);
    }
}
