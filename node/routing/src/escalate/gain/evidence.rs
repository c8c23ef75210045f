//! What is known when a local answer is judged: its request, and those signals of the answer that were seen.
//!
//! Signals come and go with engines (log probabilities), with the policy (agreement of a second model costs a
//! call) and with the answer. A missing one is not a zero: answers are told apart by *which* signals they have
//! ([`Pattern`]), and only answers that have at least the same ones teach what those are worth.

use crate::confidence::Signals;
use crate::embed::{DIMS, Embedding};
use crate::features::{DIM, EMBEDDED, Features};

/// Numbers made of the signals: squares beside most of them, since the chance to be right bends at both ends.
pub(super) const SIGNALS: usize = 12;

/// Numbers of the surface of the prompt among [`Features`].
pub(super) const SURFACE: usize = DIM - 1 - EMBEDDED;

/// Squared distance (of two unit vectors: 0 to 4) at which a landmark's influence has fallen to 1/e. Prompts of one
/// subject lie within it, of different ones mostly without.
const REACH: f64 = 0.55;

/// Largest entropy and length that are believed: a host's number is squared, and one absurd answer must not outweigh all.
const MOST_ENTROPY: f64 = 100.0;
const MOST_TOKENS: f64 = 1e7;

/// What was seen of an answer; `None` = unknown.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct AnswerSignals {
    /// Distance of the two likeliest tokens or options, 0 to 1.
    pub margin: Option<f64>,
    /// Probability of what was chosen, 0 to 1.
    pub top_probability: Option<f64>,
    /// Entropy over what could have been chosen, in any unit that stays the same.
    pub entropy: Option<f64>,
    /// Share of other local models that say the same, 0 to 1.
    pub agreement: Option<f64>,
    /// Length of the answer in tokens.
    pub out_tokens: Option<f64>,
    /// The answer has the form that was asked for.
    pub valid: Option<bool>,
}

impl AnswerSignals {
    /// True when something speaks for or against the answer; its length alone does not.
    pub fn speak(&self) -> bool {
        self.valid.is_some()
            || [self.margin, self.top_probability, self.entropy, self.agreement].iter().any(Option::is_some)
    }

    /// Returns the same within bounds, without numbers that are none, and without agreement on what is no answer.
    fn cleaned(&self) -> Self {
        let within = |value: Option<f64>, most: f64| {
            value.filter(|value| value.is_finite()).map(|value| value.clamp(0.0, most))
        };
        let agreement =
            within(self.agreement, 1.0).map(|share| if self.valid == Some(false) { 0.0 } else { share });
        Self {
            margin: within(self.margin, 1.0),
            top_probability: within(self.top_probability, 1.0),
            entropy: within(self.entropy, MOST_ENTROPY),
            agreement,
            out_tokens: within(self.out_tokens, MOST_TOKENS),
            valid: self.valid,
        }
    }
}

impl From<&Signals> for AnswerSignals {
    /// Takes what a host's answer showed. Agreement is not of one answer: the caller adds it.
    fn from(signals: &Signals) -> Self {
        let tokens = signals.tokens.as_ref();
        Self {
            margin: tokens.and_then(|tokens| tokens.mean_margin),
            top_probability: tokens.map(|tokens| tokens.mean_logprob.exp()),
            entropy: tokens.and_then(|tokens| tokens.mean_entropy),
            agreement: None,
            out_tokens: tokens.map(|tokens| f64::from(tokens.tokens)),
            valid: signals.flaw.map(|_| false),
        }
    }
}

/// Which signals an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Pattern(u8);

impl Pattern {
    const MARGIN: u8 = 1;
    const TOP: u8 = 2;
    const ENTROPY: u8 = 4;
    const AGREEMENT: u8 = 8;
    const LENGTH: u8 = 16;
    const VALID: u8 = 32;

    /// Which of them each number needs; [`numbers`] makes them in this order.
    const NEEDS: [u8; SIGNALS] = [
        Self::MARGIN,
        Self::MARGIN,
        Self::TOP,
        Self::TOP,
        Self::ENTROPY,
        Self::ENTROPY,
        Self::AGREEMENT,
        Self::AGREEMENT,
        Self::LENGTH,
        Self::LENGTH,
        Self::VALID,
        Self::AGREEMENT | Self::LENGTH,
    ];

    fn of(signals: &AnswerSignals) -> Self {
        let bit = |is_there: bool, bit: u8| if is_there { bit } else { 0 };
        Self(
            bit(signals.margin.is_some(), Self::MARGIN)
                | bit(signals.top_probability.is_some(), Self::TOP)
                | bit(signals.entropy.is_some(), Self::ENTROPY)
                | bit(signals.agreement.is_some(), Self::AGREEMENT)
                | bit(signals.out_tokens.is_some(), Self::LENGTH)
                | bit(signals.valid.is_some(), Self::VALID),
        )
    }

    /// True when everything that the other has is here.
    pub(super) fn covers(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns what both have.
    pub(super) fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Returns the number of signals.
    pub(super) fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Returns the indices of the numbers that can be made of these signals.
    pub(super) fn numbers(self) -> impl Iterator<Item = usize> {
        Self::NEEDS
            .into_iter()
            .enumerate()
            .filter(move |(_, need)| self.0 & need == *need)
            .map(|(index, _)| index)
    }
}

/// Everything that is known of an answer and its request when it is judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    pub(super) pattern: Pattern,
    signals: [f64; SIGNALS],
    features: Features,
    embedding: Embedding,
    speaks: bool,
}

impl Evidence {
    /// Puts together what is known.
    pub fn new(features: Features, embedding: Embedding, signals: &AnswerSignals) -> Self {
        let signals = signals.cleaned();
        Self {
            pattern: Pattern::of(&signals),
            signals: numbers(&signals),
            features,
            embedding,
            speaks: signals.speak(),
        }
    }

    /// True when something speaks for or against the answer itself.
    pub fn speaks(&self) -> bool {
        self.speaks
    }

    pub(super) fn features(&self) -> &[f64; DIM] {
        self.features.values()
    }

    /// Returns the vector of [`Layout`]: constant, signals, surface, embedding, nearness of the landmarks.
    pub(super) fn vector(&self, landmarks: &Landmarks) -> Vec<f64> {
        let mut vector = Vec::with_capacity(Layout::dim(landmarks));
        vector.push(1.0);
        vector.extend(self.signals);
        vector.extend(&self.features.values()[1 + EMBEDDED..]);
        vector.extend(self.embedding.all().iter().map(|value| f64::from(*value)));
        landmarks.nearness(&self.embedding, &mut vector);
        vector
    }
}

fn numbers(signals: &AnswerSignals) -> [f64; SIGNALS] {
    let zero = |value: Option<f64>| value.unwrap_or_default();
    let [margin, top, entropy, agreement] =
        [signals.margin, signals.top_probability, signals.entropy, signals.agreement].map(zero);
    let length = signals.out_tokens.map_or(0.0, f64::ln_1p);
    let valid = f64::from(u8::from(signals.valid == Some(true)));
    [
        margin,
        margin * margin,
        top,
        top * top,
        entropy,
        entropy * entropy,
        agreement,
        agreement * agreement,
        length,
        length * length,
        valid,
        agreement * length,
    ]
}

/// Where the parts of a vector lie.
pub(super) struct Layout;

impl Layout {
    pub(super) const SIGNALS: usize = 1;
    pub(super) const SURFACE: usize = 1 + SIGNALS;
    pub(super) const EMBEDDING: usize = Self::SURFACE + SURFACE;
    pub(super) const LANDMARKS: usize = Self::EMBEDDING + DIMS;

    pub(super) fn dim(landmarks: &Landmarks) -> usize {
        Self::LANDMARKS + landmarks.0.len()
    }
}

/// Prompts that others are compared with: what is learnt near one says nothing far from all.
///
/// They make local what a linear form smears over the whole space (radial basis functions, Nyström). Taken once,
/// from the prompts of a pack; sums over other landmarks cannot be added.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Landmarks(Vec<[f64; DIMS]>);

impl Landmarks {
    /// Takes prompts as landmarks.
    pub fn new<'a>(embeddings: impl IntoIterator<Item = &'a Embedding>) -> Self {
        Self(embeddings.into_iter().map(unit).collect())
    }

    fn nearness(&self, embedding: &Embedding, vector: &mut Vec<f64>) {
        let prompt = unit(embedding);
        vector.extend(self.0.iter().map(|landmark| {
            let square: f64 = landmark.iter().zip(&prompt).map(|(a, b)| (a - b) * (a - b)).sum();
            (-square / REACH).exp()
        }));
    }
}

fn unit(embedding: &Embedding) -> [f64; DIMS] {
    let values = embedding.all().map(f64::from);
    let length = values.iter().map(|value| value * value).sum::<f64>().sqrt();
    if length > 0.0 { values.map(|value| value / length) } else { values }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(signals: AnswerSignals) -> Evidence {
        Evidence::new(Features::default(), Embedding::NEUTRAL, &signals)
    }

    #[test]
    fn length_alone_says_nothing_of_an_answer() {
        assert!(!evidence(AnswerSignals::default()).speaks());
        assert!(!evidence(AnswerSignals { out_tokens: Some(9.0), ..AnswerSignals::default() }).speaks());
        assert!(evidence(AnswerSignals { valid: Some(true), ..AnswerSignals::default() }).speaks());
        assert!(!evidence(AnswerSignals { margin: Some(f64::NAN), ..AnswerSignals::default() }).speaks());
    }

    #[test]
    fn agreement_on_no_answer_counts_nothing() {
        let none = AnswerSignals { agreement: Some(1.0), valid: Some(false), ..AnswerSignals::default() };
        assert_eq!(evidence(none).signals[6], 0.0);
        assert_eq!(evidence(AnswerSignals { valid: Some(true), ..none }).signals[6], 1.0);
    }

    #[test]
    fn numbers_need_all_their_signals() {
        let both = AnswerSignals { agreement: Some(0.5), out_tokens: Some(3.0), ..AnswerSignals::default() };
        let one = AnswerSignals { out_tokens: None, ..both };
        assert_eq!(evidence(both).pattern.numbers().collect::<Vec<_>>(), [6, 7, 8, 9, 11]);
        assert_eq!(evidence(one).pattern.numbers().collect::<Vec<_>>(), [6, 7]);
        assert!(evidence(both).pattern.covers(evidence(one).pattern));
    }

    #[test]
    fn a_landmark_is_near_itself() {
        let (here, there) = (Embedding::of("the tort of negligence"), Embedding::of("integrate x squared"));
        let landmarks = Landmarks::new([&here, &there]);
        let vector = Evidence::new(Features::default(), here, &AnswerSignals::default()).vector(&landmarks);
        assert_eq!(vector.len(), Layout::dim(&landmarks));
        assert!((vector[Layout::LANDMARKS] - 1.0).abs() < 1e-9 && vector[Layout::LANDMARKS + 1] < 0.3);
    }
}
