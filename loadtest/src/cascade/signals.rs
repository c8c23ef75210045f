//! Signals of a row, read as a node reads those of an answer: one raw confidence, and a length.

use serde::Deserialize;
use shoal_routing::{Flaw, Signals, TokenSignals, escalate::gain::AnswerSignals};

/// What a line or a table says of a local answer. Anything may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
pub(super) struct SignalFields {
    /// Distance of the two likeliest options, 0 to 1.
    pub(super) margin: Option<f64>,
    /// Probability of the option that was chosen, 0 to 1.
    pub(super) pmax: Option<f64>,
    /// Entropy over the options, 0 or above.
    pub(super) entropy: Option<f64>,
    /// Share of other models that chose the same, 0 to 1.
    pub(super) agreement: Option<f64>,
    /// Tokens of the answer.
    pub(super) out_tok: Option<f64>,
    /// The answer has the form that was asked for.
    pub(super) valid: Option<bool>,
}

impl SignalFields {
    /// Fills in what is not said here.
    pub(super) fn or(self, other: &Self) -> Self {
        Self {
            margin: self.margin.or(other.margin),
            pmax: self.pmax.or(other.pmax),
            entropy: self.entropy.or(other.entropy),
            agreement: self.agreement.or(other.agreement),
            out_tok: self.out_tok.or(other.out_tok),
            valid: self.valid.or(other.valid),
        }
    }

    /// Reads them as those of an answer of one token, the letter of an option; one that cannot be read is a flaw.
    pub(super) fn read(&self) -> AnswerSignals {
        let share = |value: Option<f64>| value.filter(|value| value.is_finite()).map(|v| v.clamp(0.0, 1.0));
        let entropy = self.entropy.filter(|entropy| entropy.is_finite()).map(|entropy| entropy.max(0.0));
        let margin = share(self.margin);
        // What the others leave open: with this margin, or this entropy, about so much was left for the first.
        let chosen = share(self.pmax)
            .or_else(|| margin.map(|margin| f64::midpoint(1.0, margin)))
            .or_else(|| entropy.map(|entropy| (-entropy).exp()));
        let tokens = chosen.map(|chosen| TokenSignals {
            tokens: 1,
            mean_logprob: chosen.max(f64::MIN_POSITIVE).ln(),
            min_logprob: chosen.max(f64::MIN_POSITIVE).ln(),
            mean_margin: margin,
            mean_entropy: entropy.map(|entropy| entropy / (1.0 + entropy)),
        });
        let flaw = (self.valid == Some(false)).then_some(Flaw::Empty);
        let seen = Signals { tokens, flaw, ..Signals::default() };
        let signals = AnswerSignals { out_tokens: self.out_tok, ..AnswerSignals::from(&seen) };
        self.agreement.map_or(signals, |agreement| signals.agreed(agreement))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(fields: SignalFields) -> Option<f64> {
        fields.read().raw.value()
    }

    #[test]
    fn what_speaks_for_an_answer_raises_its_confidence() {
        let none = SignalFields::default();
        assert_eq!(raw(none), None);
        assert_eq!(raw(SignalFields { out_tok: Some(9.0), valid: Some(true), ..none }), None);
        let margin = |margin| raw(SignalFields { margin: Some(margin), ..none }).unwrap();
        assert!(margin(0.9) > margin(0.1));
        let entropy = |entropy| raw(SignalFields { entropy: Some(entropy), ..none }).unwrap();
        assert!(entropy(0.1) > entropy(1.5));
        assert_eq!(raw(SignalFields { agreement: Some(0.75), ..none }), Some(0.75));
    }

    #[test]
    fn agreement_on_what_is_no_answer_counts_nothing() {
        let fields = SignalFields { agreement: Some(1.0), valid: Some(false), ..SignalFields::default() };
        assert!(raw(fields).unwrap() < 0.1);
    }
}
