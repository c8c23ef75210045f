//! What anyone can see of an answer, as a judgement: few signs, small weights, nothing learnt where nothing shows.
//!
//! Two kinds of signs, because only one of them can be averaged as it comes. Whether a form that was asked for (JSON,
//! the arguments of a call) was kept shows *either way*, so kept and broken forms count alike. A refusal, a loop, a
//! cut or a retry shows only when something is wrong: learnt from as they come they would be all that is known of an
//! arm, and one refusal in a hundred would teach that it always refuses. [`Proportion`] lets just so many of them in
//! that the judged answers hold the share of bad ones that all answers have.

use crate::confidence::{Flaw, Signals};
use crate::units::Score;

/// Weight of a sign that shows either way: a well-formed answer may still be wrong.
const FORM_WEIGHT: f64 = 0.25;

/// Weight of a retry at once: people also ask again out of curiosity.
const RETRY_WEIGHT: f64 = 0.5;

/// Judgements that stand for what is believed of an arm before anyone judges; equal to the weight of the prior.
const PRIOR_JUDGEMENTS: f64 = 10.0;

/// Answers after which the counts of a [`Proportion`] are halved, so that a model that changed is noticed.
const MEMORY: f64 = 4_000.0;

/// Whether the form that the caller asked for came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Form {
    /// None was asked for, or it could not be checked.
    #[default]
    Free,
    /// The answer has it.
    Kept,
    /// The answer does not have it.
    Broken,
}

/// What was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SignKind {
    /// The form asked for came.
    Kept,
    /// It did not.
    Broken,
    /// No text and no call.
    Empty,
    /// The same again and again.
    Loop,
    /// It begins with a refusal.
    Refusal,
    /// Cut by a limit that the caller did not set.
    Truncated,
    /// The same was asked again at once.
    Retried,
}

impl SignKind {
    /// Returns the word used in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kept => "form_kept",
            Self::Broken => "form_broken",
            Self::Empty => "empty",
            Self::Loop => "loop",
            Self::Refusal => "refusal",
            Self::Truncated => "truncated",
            Self::Retried => "retried",
        }
    }

    /// True for what shows only when something is wrong; such signs are learnt from in [`Proportion`] alone.
    pub fn is_one_sided(self) -> bool {
        match self {
            Self::Kept | Self::Broken => false,
            Self::Empty | Self::Loop | Self::Refusal | Self::Truncated | Self::Retried => true,
        }
    }

    fn score(self) -> f64 {
        match self {
            Self::Broken | Self::Empty | Self::Loop => 0.0,
            // Some refusals are right, and half an answer is better than none.
            Self::Refusal | Self::Retried => 0.2,
            Self::Truncated => 0.3,
            Self::Kept => 0.8,
        }
    }

    fn weight(self) -> f64 {
        match self {
            Self::Kept | Self::Broken => FORM_WEIGHT,
            Self::Retried => RETRY_WEIGHT,
            Self::Empty | Self::Loop | Self::Refusal | Self::Truncated => 1.0,
        }
    }
}

/// A judgement made of what was seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sign {
    /// What was seen.
    pub kind: SignKind,
    /// How good an answer with that sign is.
    pub score: Score,
    /// Probability with which it is to be learnt from, 0 to 1.
    pub weight: f64,
}

impl Sign {
    /// Makes the judgement of a kind of sign.
    pub fn of(kind: SignKind) -> Self {
        Self { kind, score: Score::clamped(kind.score()), weight: kind.weight() }
    }

    /// Reads the signs of a whole answer; the gravest one counts. `None` = nothing was seen.
    pub fn of_answer(signals: &Signals, form: Form) -> Option<Self> {
        let kind = match (signals.flaw, form) {
            (Some(Flaw::Empty), _) => SignKind::Empty,
            (Some(Flaw::Loop), _) => SignKind::Loop,
            (Some(Flaw::InvalidJson | Flaw::InvalidToolArguments | Flaw::MissingToolCall), _)
            | (_, Form::Broken) => SignKind::Broken,
            (Some(Flaw::Refusal), _) => SignKind::Refusal,
            (None, _) if signals.truncated => SignKind::Truncated,
            (None, Form::Kept) => SignKind::Kept,
            (None, Form::Free) => return None,
        };
        Some(Self::of(kind))
    }
}

/// How many one-sided signs of an arm may be learnt from.
///
/// Judged answers are a sample of all answers. With the share f of them flagged, a fair sample that holds J other
/// judgements holds J·f/(1−f) flagged ones; the prior counts as 10 of J. No more are let in.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Proportion {
    answers: f64,
    flagged: f64,
    judged: f64,
    admitted: f64,
}

impl Proportion {
    /// Counts a whole answer of the arm.
    pub fn answered(&mut self) {
        self.answers += 1.0;
        if self.answers > MEMORY {
            *self = Self {
                answers: self.answers / 2.0,
                flagged: self.flagged / 2.0,
                judged: self.judged / 2.0,
                admitted: self.admitted / 2.0,
            };
        }
    }

    /// Counts a judgement by somebody who judges good answers too.
    pub fn judged(&mut self) {
        self.judged += 1.0;
    }

    /// Counts a flagged answer; true when it is to be learnt from.
    pub fn admits(&mut self) -> bool {
        self.flagged += 1.0;
        let odds = self.flagged / (self.answers - self.flagged).max(1.0);
        // Rounded: a tenth of a judgement that is due is none yet.
        let admits = self.admitted + 0.5 <= (PRIOR_JUDGEMENTS + self.judged) * odds;
        if admits {
            self.admitted += 1.0;
        }
        admits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_learnt_where_nothing_shows() {
        assert_eq!(Sign::of_answer(&Signals::default(), Form::Free), None);
        let repeated = Signals { repetition: 0.5, handoff: true, ..Signals::default() };
        assert_eq!(Sign::of_answer(&repeated, Form::Free), None);
    }

    #[test]
    fn the_gravest_sign_counts() {
        let flawed = |flaw| Signals { flaw: Some(flaw), truncated: true, ..Signals::default() };
        let cut = Signals { truncated: true, ..Signals::default() };
        let cases = [
            (flawed(Flaw::Empty), Form::Broken, SignKind::Empty),
            (flawed(Flaw::Loop), Form::Kept, SignKind::Loop),
            (flawed(Flaw::InvalidJson), Form::Free, SignKind::Broken),
            (flawed(Flaw::InvalidToolArguments), Form::Free, SignKind::Broken),
            (flawed(Flaw::MissingToolCall), Form::Free, SignKind::Broken),
            (flawed(Flaw::Refusal), Form::Broken, SignKind::Broken),
            (flawed(Flaw::Refusal), Form::Kept, SignKind::Refusal),
            (cut, Form::Broken, SignKind::Broken),
            (cut, Form::Kept, SignKind::Truncated),
            (Signals::default(), Form::Kept, SignKind::Kept),
            (Signals::default(), Form::Broken, SignKind::Broken),
        ];
        for (signals, form, expected) in cases {
            let sign = Sign::of_answer(&signals, form).unwrap();
            assert_eq!(sign.kind, expected, "{signals:?} {form:?}");
            assert!(sign.weight > 0.0 && (sign.score.value() > 0.5) == (expected == SignKind::Kept));
        }
    }

    #[test]
    fn a_form_counts_alike_whether_it_was_kept_or_broken() {
        assert_eq!(Sign::of(SignKind::Kept).weight, Sign::of(SignKind::Broken).weight);
    }

    /// Returns the mean of an arm whose answers, but for the flagged share, are worth `quality`.
    fn learnt_mean(flagged: f64, judged_share: f64, quality: f64, answers: u32) -> f64 {
        let mut proportion = Proportion::default();
        let (mut count, mut sum) = (PRIOR_JUDGEMENTS, PRIOR_JUDGEMENTS * quality);
        let every = |share: f64, n: u32| (f64::from(n + 1) * share).floor() > (f64::from(n) * share).floor();
        for n in 0..answers {
            proportion.answered();
            if every(flagged, n) {
                if proportion.admits() {
                    count += 1.0;
                }
            } else if every(judged_share, n) {
                proportion.judged();
                count += 1.0;
                sum += quality;
            }
        }
        sum / count
    }

    #[test]
    fn flagged_answers_weigh_as_much_among_the_judged_as_among_all() {
        for flagged in [0.01, 0.1, 0.3] {
            for judged_share in [0.0, 0.05, 0.5] {
                let mean = learnt_mean(flagged, judged_share, 0.7, 3_000);
                let fair = 0.7 * (1.0 - flagged);
                assert!((mean - fair).abs() < 0.04, "{flagged} {judged_share}: {mean} instead of {fair}");
            }
        }
        assert!(learnt_mean(1.0, 0.0, 0.7, 200) < 0.05, "an arm that always fails is known as such");
    }
}
