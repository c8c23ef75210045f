//! What a stronger model is expected to gain over a local answer, and how far that answer can be trusted.
//!
//! One [`GainModel`] belongs to a pair of arms, the local and the stronger one. It learns from outcomes of either or
//! both, from packs and from traffic, and answers for any subset of signals. Its parts:
//!
//! * `evidence`: request and signals as numbers;
//! * `moments`: sums of judged answers and the two-stage ridge fits made of them, one per set of signals;
//! * `head`: how far each stage is trusted on late traffic, by what came true;
//! * [`Reliability`] and [`Curve`]: the last word on confidence, monotone.
//!
//! The fits are large (some 150 numbers squared), of a size for packs; what a node adds to them, [`Late`], is small
//! (2 × 340 sums and ten bins) and adds up over origins. So far the evaluation by pipe alone uses the model: a node's
//! escalation rests on the arms' discriminants and the calibrated confidence ([`judge`](crate::EscalationPolicy::judge)).
//!
//! Why not a logistic regression: a linear probability with a monotone curve on top ranks as well here, and its
//! evidence is sums that add up over origins. Why gain and not the chance of a wrong answer: see
//! `docs/decisions/0010-gain-falls-back-to-confidence.md`, with the measurements.

mod evidence;
mod head;
mod moments;
mod triangle;

use std::collections::BTreeMap;

use crate::calibration::{Curve, Reliability};
use crate::confidence::Confidence;
use crate::units::Score;

pub use evidence::{AnswerSignals, Evidence, Landmarks};

use evidence::{Layout, Pattern};
use head::{Head, Parts};
use moments::{Fit, Moments};

/// Sets of signals that are learnt apart; what comes with yet another one is learnt as if it had none.
const MAX_PATTERNS: usize = 8;

/// Judged answers from which a set of signals is believed to teach something.
const ENOUGH: f64 = 30.0;

/// Growth of the evidence after which the fits are made anew. They cost a millisecond, and barely move before.
const REFIT_GROWTH: f64 = 1.25;

/// Quality of a local answer and gain of a stronger one where nothing is known: a small model is right in half of the
/// cases, a large one in two thirds.
const PRIOR_QUALITY: f64 = 0.5;
const PRIOR_GAIN: f64 = 0.15;

/// What is expected of a pair of answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Calibrated chance that the local answer is good; unknown without a signal that speaks.
    pub confidence: Confidence,
    /// Expected quality of the local answer, with or without signals.
    pub local: Score,
    /// Expected quality of the stronger model's answer less that of the local one, −1 to 1.
    pub gain: f64,
}

/// What became known of a pair of answers. Scores, or `None`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Known {
    /// Quality of the local answer.
    pub local: Option<Score>,
    /// Quality of the stronger model's answer.
    pub strong: Option<Score>,
}

/// Learns what a stronger model gains over a local one.
#[derive(Debug, Clone)]
pub struct GainModel {
    landmarks: Landmarks,
    sums: BTreeMap<Pattern, Sums>,
    fits: BTreeMap<Pattern, Fits>,
    fitted_count: f64,
    /// Judgements of the log that the fits were made of.
    logged: Reliability,
    /// What all origins saw lately, this one included.
    late: Late,
    own: Late,
    curve: Curve,
}

/// What an origin saw lately of a pair of arms, over the fits of one pack. All of it are sums.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Late {
    quality: Head,
    gain: Head,
    reliability: Reliability,
}

/// Judged answers that had the same signals.
#[derive(Debug, Clone)]
struct Sums {
    quality: Moments,
    gain: Moments,
}

/// What is expected of answers with the same signals.
#[derive(Debug, Clone)]
struct Fits {
    quality: Fit,
    gain: Fit,
}

/// An expectation with everything that an outcome needs to teach.
struct Guess {
    vector: Vec<f64>,
    quality_parts: Parts,
    gain_parts: Parts,
    quality: f64,
    gain: f64,
}

impl Default for GainModel {
    fn default() -> Self {
        Self::new(Landmarks::default())
    }
}

impl GainModel {
    /// Makes a model that has seen nothing.
    pub fn new(landmarks: Landmarks) -> Self {
        Self {
            landmarks,
            sums: BTreeMap::new(),
            fits: BTreeMap::new(),
            fitted_count: 0.0,
            logged: Reliability::default(),
            late: Late::default(),
            own: Late::default(),
            curve: Curve::default(),
        }
    }

    /// Learns from a log, as packs are made: the order of its rows does not matter.
    pub fn train<'a>(&mut self, rows: impl IntoIterator<Item = &'a (Evidence, Known)> + Clone) {
        for (evidence, known) in rows.clone() {
            let vector = evidence.vector(&self.landmarks);
            self.take_in(evidence.pattern, &vector, known);
        }
        self.refit();
        for (evidence, known) in rows {
            if let (Some(local), true) = (known.local, evidence.speaks()) {
                let guess = self.guess(evidence);
                self.logged.record(Score::clamped(guess.quality), local);
            }
        }
        self.curve = Curve::of(&self.reliability());
    }

    /// Returns what this node itself saw lately, for the others.
    pub fn own(&self) -> &Late {
        &self.own
    }

    /// Takes what other origins saw lately in place of what was known of them; of each the newest state, once.
    pub fn adopt<'a>(&mut self, others: impl IntoIterator<Item = &'a Late>) {
        self.late = self.own.clone();
        others.into_iter().for_each(|other| self.late.add(other));
        self.curve = Curve::of(&self.reliability());
    }

    /// Returns what is expected of a pair of answers.
    pub fn estimate(&mut self, evidence: &Evidence) -> Estimate {
        let guess = self.guess(evidence);
        let raw = Score::clamped(guess.quality);
        let local = self.curve.apply(raw);
        let confidence = if evidence.speaks() { Confidence::Known(local) } else { Confidence::Unknown };
        Estimate { confidence, local, gain: guess.gain.clamp(-1.0, 1.0) }
    }

    /// Learns what became known after [`estimate`](Self::estimate).
    ///
    /// Where only one of the two is known, what was expected of the other stands in for it: a lone outcome moves the
    /// gain by its surprise.
    pub fn observe(&mut self, evidence: &Evidence, known: &Known) {
        let guess = self.guess(evidence);
        let (local, strong) = (known.local.map(Score::value), known.strong.map(Score::value));
        let expected_strong = (guess.quality + guess.gain).clamp(0.0, 1.0);
        let gain = match (local, strong) {
            (None, None) => return,
            (Some(local), Some(strong)) => strong - local,
            (Some(local), None) => expected_strong - local,
            (None, Some(strong)) => strong - guess.quality.clamp(0.0, 1.0),
        };
        for late in [&mut self.late, &mut self.own] {
            late.record(evidence, &guess, known.local, gain);
        }
        if known.local.is_some() && evidence.speaks() {
            self.curve = Curve::of(&self.reliability());
        }
        self.take_in(evidence.pattern, &guess.vector, known);
        if self.count() >= REFIT_GROWTH * self.fitted_count + 1.0 {
            self.refit();
        }
    }

    /// Returns how confident answers were and how they were judged, before the curve is applied: for a reliability
    /// diagram and, with [`curve`](Self::curve), the expected calibration error ([`Reliability::ece_with`]).
    pub fn reliability(&self) -> Reliability {
        let mut all = self.logged;
        all.add(&self.late.reliability);
        all
    }

    /// Returns the curve that makes the chance of a good answer mean what it says.
    pub fn curve(&self) -> &Curve {
        &self.curve
    }

    fn count(&self) -> f64 {
        self.sums.values().map(|sums| sums.quality.count()).sum()
    }

    fn take_in(&mut self, pattern: Pattern, vector: &[f64], known: &Known) {
        let is_new = !self.sums.contains_key(&pattern);
        let pattern = if is_new && self.sums.len() >= MAX_PATTERNS { Pattern::default() } else { pattern };
        let sums = self.sums.entry(pattern).or_insert_with(|| Sums::new(vector.len()));
        if let Some(local) = known.local {
            sums.quality.record(vector, local.value());
            if let Some(strong) = known.strong {
                sums.gain.record(vector, strong.value() - local.value());
            }
        }
    }

    fn refit(&mut self) {
        self.fits.clear();
        self.fitted_count = self.count();
    }

    /// Returns the signals to fit for answers with these: those that enough answers had, too.
    fn taught(&self, pattern: Pattern) -> Pattern {
        let count = |wanted: Pattern| -> f64 {
            let covering = self.sums.iter().filter(|(had, _)| had.covers(wanted));
            covering.map(|(_, sums)| sums.quality.count()).sum()
        };
        let common = self.sums.keys().map(|had| had.common(pattern));
        common.filter(|common| count(*common) >= ENOUGH).max_by_key(|common| common.len()).unwrap_or_default()
    }

    fn fit(&self, pattern: Pattern) -> Fits {
        let pattern = self.taught(pattern);
        let mut sums = Sums::new(Layout::dim(&self.landmarks));
        for (_, had) in self.sums.iter().filter(|(had, _)| had.covers(pattern)) {
            sums.quality.add(&had.quality);
            sums.gain.add(&had.gain);
        }
        let quality = Fit::quality(&sums.quality, pattern, &self.landmarks, PRIOR_QUALITY);
        let gain = Fit::gain(&sums.gain, &quality, &self.landmarks, PRIOR_GAIN);
        Fits { quality, gain }
    }

    fn guess(&mut self, evidence: &Evidence) -> Guess {
        if !self.fits.contains_key(&evidence.pattern) {
            let fits = self.fit(evidence.pattern);
            self.fits.insert(evidence.pattern, fits);
        }
        let fits = &self.fits[&evidence.pattern];
        let vector = evidence.vector(&self.landmarks);
        let quality_parts = self.late.quality.parts(&fits.quality, &vector, evidence.features());
        let gain_parts = self.late.gain.parts(&fits.gain, &vector, evidence.features());
        let quality = self.late.quality.expect(&fits.quality, &quality_parts);
        let gain = self.late.gain.expect(&fits.gain, &gain_parts);
        Guess { vector, quality_parts, gain_parts, quality, gain }
    }
}

impl Late {
    fn record(&mut self, evidence: &Evidence, guess: &Guess, local: Option<Score>, gain: f64) {
        self.gain.record(&guess.gain_parts, evidence.features(), gain);
        if let Some(local) = local {
            self.quality.record(&guess.quality_parts, evidence.features(), local.value());
            if evidence.speaks() {
                self.reliability.record(Score::clamped(guess.quality), local);
            }
        }
    }

    /// Adds what another origin saw.
    fn add(&mut self, other: &Self) {
        self.quality.add(&other.quality);
        self.gain.add(&other.gain);
        self.reliability.add(&other.reliability);
    }
}

impl Sums {
    fn new(dim: usize) -> Self {
        Self { quality: Moments::new(dim), gain: Moments::new(dim) }
    }
}

#[cfg(test)]
mod tests;
