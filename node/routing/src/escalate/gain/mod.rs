//! What a stronger model is expected to gain over a local answer, and how far that answer can be trusted.
//!
//! A [`GainModel`] is made of the sums that nodes exchange ([`ArmEvidence`]) and read by requests, in a node and in
//! the evaluation by pipe alike. Its parts:
//!
//! * `evidence`: request and answer as numbers;
//! * [`Calibration`]: what the raw confidence of an arm's answer is worth in a domain;
//! * `sums` and `model`: what to expect of an arm's answer, with or without one to look at.
//!
//! The gain is the difference of two expectations, one for each arm: what the stronger model's answer will be worth,
//! by its prompt, less what the local one is worth, by its prompt and what was seen of it. So no pair of arms needs sums
//! of its own, and a judged answer teaches whoever gave it: a local one, a stronger one that took over, or a shadow's. Where
//! both are linear forms over the same answers the difference is the form that the gain itself would have got.
//!
//! Why gain and not the chance of a wrong answer, and why linear: `docs/decisions/0010-gain-falls-back-to-confidence.md`,
//! with the measurements.

mod evidence;
mod model;
mod sums;
mod triangle;

use std::collections::BTreeMap;

use crate::bandit::ArmEvidence;
use crate::calibration::Calibration;
use crate::domain::Domain;
use crate::features::Features;
use crate::ids::ArmId;

pub use evidence::{AnswerSignals, Evidence, SIGNALS};
pub use model::{AnswerModel, ENOUGH, Expectation};
pub use sums::{AnswerSums, LEN};

/// What is expected of a pair of answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gain {
    /// Expected quality of the local answer, 0 to 1.
    pub local: f64,
    /// Expected quality of the stronger model's answer, 0 to 1.
    pub strong: f64,
}

impl Gain {
    /// Returns the difference, −1 to 1.
    pub fn value(&self) -> f64 {
        self.strong - self.local
    }
}

/// What to expect of every arm's answers: an immutable snapshot that requests read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GainModel {
    calibration: Calibration,
    arms: BTreeMap<ArmId, AnswerModel>,
}

impl GainModel {
    /// Fits all arms to their sums over the origins. Some 6 µs for an arm; done when sums change, never in a request.
    pub fn fit(sums: &BTreeMap<ArmId, ArmEvidence>) -> Self {
        let calibration = Calibration::of(sums.iter().map(|(arm, seen)| (arm.clone(), seen.reliability)));
        let fitted = |(arm, seen): (&ArmId, &ArmEvidence)| {
            Some((arm.clone(), AnswerModel::fit(&seen.quality, &seen.answers)?))
        };
        Self { calibration, arms: sums.iter().filter_map(fitted).collect() }
    }

    /// Returns how raw confidence is calibrated.
    pub fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    /// Puts together what is known of an arm's answer, its confidence calibrated.
    pub fn evidence(
        &self,
        arm: &ArmId,
        features: Features,
        domain: Domain,
        signals: &AnswerSignals,
    ) -> Evidence {
        let confidence = self.calibration.apply(arm, domain, signals.raw);
        Evidence::new(features, domain, confidence, signals.out_tokens)
    }

    /// Returns what to expect of an arm's answer; `None` before [`ENOUGH`] of them were judged.
    pub fn expect(&self, arm: &ArmId, evidence: &Evidence) -> Option<Expectation> {
        Some(self.arms.get(arm)?.expect(evidence))
    }

    /// Returns what is expected of a local answer and of the stronger model's in its place; `None` unless enough answers
    /// of both arms were judged.
    pub fn gain(&self, local: &ArmId, strong: &ArmId, evidence: &Evidence) -> Option<Gain> {
        let strong = self.arms.get(strong)?.expect_asked(evidence.features, evidence.domain);
        Some(Gain { local: self.expect(local, evidence)?.quality, strong })
    }
}

#[cfg(test)]
mod tests;
