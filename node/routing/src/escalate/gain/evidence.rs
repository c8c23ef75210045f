//! What is known when a local answer is judged: its request, and what was seen of the answer.
//!
//! What was seen comes as one number, the raw confidence, which the arm's curve for the domain turns into a chance;
//! so the learner meets a number that means the same for every engine, and that more trust only ever raises. An answer
//! of which nothing was seen is not a bad one: it is told apart by a number of its own.

use crate::confidence::{Confidence, FLAWED, Signals};
use crate::domain::Domain;
use crate::features::{DIM, Features, LIMIT};
use crate::units::Score;

/// Numbers made of what was seen: calibrated confidence, whether there is one, length.
pub const SIGNALS: usize = 3;

/// Numbers of one judged answer: features of its request, then what was seen of it.
pub(super) const ALL: usize = DIM + SIGNALS;

/// Where they lie.
pub(super) const CONFIDENCE: usize = DIM;
pub(super) const KNOWN: usize = DIM + 1;
pub(super) const LENGTH: usize = DIM + 2;

/// Logarithm of the length of an ordinary answer, and the scale on which lengths differ.
const ORDINARY_LENGTH: f64 = 5.0;
const LENGTH_SCALE: f64 = 2.0;

/// What was seen of an answer, before calibration.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct AnswerSignals {
    /// How far it can be trusted: raw, so it only orders the answers of one arm.
    pub raw: Confidence,
    /// Length of the whole answer in tokens; `None` while it still comes.
    pub out_tokens: Option<f64>,
}

impl AnswerSignals {
    /// Takes in the share of other models that say the same, 0 to 1: half of the raw confidence, or all of it where
    /// nothing else was seen. Agreement on a flawed answer counts nothing.
    pub fn agreed(self, share: f64) -> Self {
        let raw = match self.raw.value() {
            _ if !share.is_finite() => self.raw,
            Some(known) if known <= FLAWED => self.raw,
            Some(known) => Confidence::Known(Score::clamped((known + share.clamp(0.0, 1.0)) / 2.0)),
            None => Confidence::Known(Score::clamped(share)),
        };
        Self { raw, ..self }
    }
}

impl From<&Signals> for AnswerSignals {
    /// Takes what was seen of an answer that may still come: of a held prefix the length says nothing.
    fn from(signals: &Signals) -> Self {
        Self { raw: signals.confidence(), out_tokens: None }
    }
}

/// Everything that is known of an answer and its request when it is judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evidence {
    pub(super) features: Features,
    pub(super) domain: Domain,
    /// Calibrated chance that the answer is good.
    pub confidence: Confidence,
    pub(super) signals: [f64; SIGNALS],
    pub(super) knows_length: bool,
}

impl Evidence {
    /// Puts together what is known; the confidence is calibrated.
    pub fn new(features: Features, domain: Domain, confidence: Confidence, out_tokens: Option<f64>) -> Self {
        let chance = confidence.value();
        let length = out_tokens
            .filter(|tokens| tokens.is_finite() && *tokens >= 0.0)
            .map(|tokens| ((tokens.ln_1p() - ORDINARY_LENGTH) / LENGTH_SCALE).clamp(-LIMIT, LIMIT));
        let (known, knows_length) = (f64::from(u8::from(chance.is_some())), length.is_some());
        let signals = [chance.unwrap_or_default(), known, length.unwrap_or_default()];
        Self { features, domain, confidence, signals, knows_length }
    }

    /// Returns the numbers: features, then signals.
    pub(super) fn vector(&self) -> [f64; ALL] {
        let mut vector = [0.0; ALL];
        vector[..DIM].copy_from_slice(self.features.values());
        vector[DIM..].copy_from_slice(&self.signals);
        vector
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(value: f64) -> Confidence {
        Confidence::Known(Score::clamped(value))
    }

    #[test]
    fn agreement_is_half_of_what_is_known_and_counts_nothing_for_a_flawed_answer() {
        let seen = |raw| AnswerSignals { raw, out_tokens: None };
        assert_eq!(seen(Confidence::Unknown).agreed(0.5).raw, known(0.5));
        assert_eq!(seen(known(0.75)).agreed(0.25).raw, known(0.5));
        assert_eq!(seen(known(FLAWED)).agreed(1.0).raw, known(FLAWED));
        assert_eq!(seen(known(0.75)).agreed(f64::NAN).raw, known(0.75));
    }

    #[test]
    fn nothing_seen_is_not_the_same_as_a_confidence_of_zero() {
        let evidence =
            |confidence, tokens| Evidence::new(Features::default(), Domain::Code, confidence, tokens).signals;
        assert_eq!(evidence(Confidence::Unknown, None), [0.0; 3]);
        assert_eq!(evidence(known(0.0), None), [0.0, 1.0, 0.0]);
        assert!(evidence(Confidence::Unknown, Some(f64::INFINITY)) == [0.0; 3]);
        assert_eq!(evidence(known(1.0), Some(1e300))[2], LIMIT);
    }
}
