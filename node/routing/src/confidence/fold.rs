//! Folds an answer into [`Signals`] while it passes by: constant space, one small allocation per answer.

use crate::confidence::refusal::{self, OPENING_BYTES};
use crate::confidence::repetition::Repetition;
use crate::confidence::{Flaw, Signals, TokenSignals};
use crate::outcome::FinishReason;
use crate::units::Score;

/// Least log probability that counts: engines write −9999 or −inf for "none", which would drown every mean.
const MIN_LOGPROB: f64 = -20.0;

/// Everything that was seen of one answer. Feed it as the answer comes; read it at any time.
///
/// Text and log probabilities are fed separately, because some engines send one without the other.
#[derive(Debug, Clone, Default)]
pub struct SignalFold {
    tokens: Tally,
    /// What the least sure value of its calls says, which then speaks for all.
    call: Option<TokenSignals>,
    repetition: Repetition,
    opening: String,
    has_content: bool,
    finished: bool,
    truncated: bool,
    flaw: Option<Flaw>,
    host: Option<Score>,
    handoff: bool,
}

impl SignalFold {
    /// Makes a fold that has seen nothing.
    pub fn new() -> Self {
        Self { opening: String::with_capacity(OPENING_BYTES * 2), ..Self::default() }
    }

    /// Takes in the next piece of text.
    pub fn text(&mut self, piece: &str) {
        self.has_content |= piece.chars().any(|c| !c.is_whitespace());
        refusal::fold_into(&mut self.opening, piece);
        self.repetition.push(piece);
    }

    /// Takes in the log probability of a token (natural logarithm), and those of the likeliest tokens in its place
    /// in any order; an empty list where the engine gives none. What is no number is ignored.
    pub fn token(&mut self, logprob: f64, top: &[f64]) {
        if let Some((logprob, top)) = Tally::read(logprob, top) {
            self.tokens.add(logprob, top);
        }
    }

    /// Lets the least sure value of the answer's calls speak for the answer, in place of all its tokens.
    pub fn call_values(&mut self, least_sure: TokenSignals) {
        self.call = Some(least_sure);
    }

    /// Notes that the answer calls a tool, so that it is not empty without text.
    pub fn tool_call(&mut self) {
        self.has_content = true;
    }

    /// Notes a fault that the caller found: broken JSON or arguments, a missing call. The first one is kept.
    pub fn flaw(&mut self, flaw: Flaw) {
        self.flaw = self.flaw.or(Some(flaw));
    }

    /// Takes in the host's own number; what is no number between 0 and 1 is ignored.
    pub fn host_confidence(&mut self, value: f64) {
        self.host = Score::new(value).ok().or(self.host);
    }

    /// Notes that the host asks for a stronger model (`cloud_handoff`).
    pub fn handoff(&mut self, wanted: bool) {
        self.handoff |= wanted;
    }

    /// Ends the answer. `limit_was_asked` says that the caller bounded its length, so that reaching the bound is no fault.
    pub fn finish(&mut self, reason: Option<FinishReason>, limit_was_asked: bool) {
        self.finished = true;
        self.truncated = reason == Some(FinishReason::Length) && !limit_was_asked;
        self.has_content |= reason == Some(FinishReason::ToolCalls);
    }

    /// Returns what was seen so far. That an answer is empty shows only once it was finished.
    pub fn signals(&self) -> Signals {
        let seen = |flaw: Flaw, is_there: bool| is_there.then_some(flaw);
        let flaw = self
            .flaw
            .or_else(|| seen(Flaw::Empty, self.finished && !self.has_content))
            .or_else(|| seen(Flaw::Loop, self.repetition.is_loop()))
            .or_else(|| seen(Flaw::Refusal, refusal::begins_with_refusal(&self.opening)));
        Signals {
            tokens: self.call.or_else(|| self.tokens.signals()),
            repetition: self.repetition.share(),
            truncated: self.truncated,
            flaw,
            host: self.host,
            handoff: self.handoff,
        }
    }
}

/// Sums over tokens.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    tokens: u32,
    logprob_sum: f64,
    logprob_min: f64,
    tops: u32,
    margin_sum: f64,
    entropy_sum: f64,
}

impl Tally {
    /// Brings what an engine says of a token within bounds: its log probability, and margin and entropy of its place
    /// where it gave a list. `None` for what is no number.
    pub(super) fn read(logprob: f64, top: &[f64]) -> Option<(f64, Option<(f64, f64)>)> {
        let top = (top.len() >= 2).then(|| margin_and_entropy(top));
        (!logprob.is_nan()).then(|| (logprob.clamp(MIN_LOGPROB, 0.0), top))
    }

    /// Takes in a token that was [`read`](Self::read).
    pub(super) fn add(&mut self, logprob: f64, top: Option<(f64, f64)>) {
        self.tokens = self.tokens.saturating_add(1);
        self.logprob_sum += logprob;
        self.logprob_min = self.logprob_min.min(logprob);
        if let Some((margin, entropy)) = top {
            self.tops = self.tops.saturating_add(1);
            self.margin_sum += margin;
            self.entropy_sum += entropy;
        }
    }

    /// Returns what they say together; `None` without tokens.
    pub(super) fn signals(&self) -> Option<TokenSignals> {
        let mean_of_tops = |sum: f64| (self.tops > 0).then(|| sum / f64::from(self.tops));
        (self.tokens > 0).then(|| TokenSignals {
            tokens: self.tokens,
            mean_logprob: self.logprob_sum / f64::from(self.tokens),
            min_logprob: self.logprob_min,
            mean_margin: mean_of_tops(self.margin_sum),
            mean_entropy: mean_of_tops(self.entropy_sum),
        })
    }
}

/// Returns the distance of the two largest probabilities, and the entropy as a share of the largest possible.
///
/// What the list leaves out counts as one more token, so that a flat distribution does not look sharp because only
/// its head was given.
fn margin_and_entropy(top: &[f64]) -> (f64, f64) {
    let (mut first, mut second, mut sum, mut entropy) = (0.0f64, 0.0f64, 0.0, 0.0);
    let mut add = |p: f64| {
        if p > 0.0 {
            entropy -= p * p.ln();
        }
    };
    for logprob in top.iter().filter(|logprob| !logprob.is_nan()) {
        let p = logprob.min(0.0).exp();
        (first, second) = if p > first { (p, first) } else { (first, second.max(p)) };
        sum += p;
        add(p);
    }
    add((1.0 - sum).max(0.0));
    let largest = ((top.len() + 1) as f64).ln();
    (first - second, (entropy / largest).clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::confidence::{Confidence, FLAWED};

    fn finished(text: &str) -> SignalFold {
        let mut fold = SignalFold::new();
        fold.text(text);
        fold.finish(Some(FinishReason::Stop), false);
        fold
    }

    #[test]
    fn text_alone_leaves_confidence_unknown() {
        assert_eq!(finished("Paris is the capital.").signals().confidence(), Confidence::Unknown);
    }

    #[test]
    fn visible_flaws_are_found() {
        assert_eq!(finished(" \n").signals().flaw, Some(Flaw::Empty));
        assert_eq!(finished("I'm sorry, but I can't help with that.").signals().flaw, Some(Flaw::Refusal));
        assert_eq!(finished(&"no idea ".repeat(40)).signals().flaw, Some(Flaw::Loop));
        let mut broken = finished("{\"a\":");
        broken.flaw(Flaw::InvalidJson);
        assert_eq!(broken.signals().confidence().value(), Some(FLAWED));
    }

    #[test]
    fn an_answer_is_empty_only_when_it_ended_without_text_and_call() {
        assert_eq!(SignalFold::new().signals().flaw, None);
        let mut call = SignalFold::new();
        call.tool_call();
        call.finish(Some(FinishReason::ToolCalls), false);
        assert_eq!(call.signals().flaw, None);
    }

    #[test]
    fn log_probabilities_are_summed_up() {
        let mut fold = SignalFold::new();
        fold.token(0.5f64.ln(), &[0.25f64.ln(), 0.5f64.ln()]);
        fold.token(1.0f64.ln(), &[]);
        let tokens = fold.signals().tokens.unwrap();
        assert_eq!(tokens.tokens, 2);
        assert!((tokens.mean_logprob - 0.5f64.ln() / 2.0).abs() < 1e-12);
        assert!((tokens.min_logprob - 0.5f64.ln()).abs() < 1e-12);
        assert!((tokens.mean_margin.unwrap() - 0.25).abs() < 1e-12);
        let expected = (0.5 * 2.0f64.ln() + 2.0 * 0.25 * 4.0f64.ln()) / 3.0f64.ln();
        assert!((tokens.mean_entropy.unwrap() - expected).abs() < 1e-12);
    }

    #[test]
    fn impossible_numbers_do_no_harm() {
        let mut fold = SignalFold::new();
        for (logprob, top) in [
            (f64::NAN, vec![]),
            (f64::NEG_INFINITY, vec![f64::NEG_INFINITY, f64::NAN]),
            (3.0, vec![3.0, 2.0, -9999.0]),
        ] {
            fold.token(logprob, &top);
        }
        fold.host_confidence(f64::NAN);
        fold.host_confidence(7.0);
        let signals = fold.signals();
        assert_eq!((signals.host, signals.tokens.unwrap().tokens), (None, 2));
        assert!(signals.confidence().value().is_some_and(|value| (0.0..=1.0).contains(&value)));
    }

    #[test]
    fn a_limit_that_the_caller_set_is_no_truncation() {
        for (asked, truncated) in [(true, false), (false, true)] {
            let mut fold = SignalFold::new();
            fold.finish(Some(FinishReason::Length), asked);
            assert_eq!(fold.signals().truncated, truncated);
        }
    }
}
