//! All that one origin says it observed, of every arm, in one state of one life.
//!
//! A testimony is replaced as a whole, never arm by arm: a node that starts again carries its sums on under a newer
//! generation, and a reader goes from the old life to the new one in one step, without a gap in the totals.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::bandit::pairs::PairSums;
use crate::bandit::reward::Reward;
use crate::bandit::stats::ArmStats;
use crate::bandit::sums::{MEMORY, QualitySums};
use crate::calibration::DomainReliability;
use crate::domain::Domain;
use crate::escalate::gain::{AnswerSignals, AnswerSums, GainModel};
use crate::features::Features;
use crate::ids::ArmId;
use crate::units::Score;

/// Longest time to a first token that is believed, milliseconds: an hour, beyond any deadline.
const LONGEST_TTFT_MS: f64 = 3_600_000.0;

/// Most arms of a published testimony: 40 that were judged everywhere take under 128 KiB on the wire.
pub const MAX_ARMS: usize = 40;

/// Most arms that are believed of a testimony or a pack: earlier versions published so many, of fewer sums each.
pub const MAX_ARMS_READ: usize = 64;

/// Relative slack of the bound on weight: sums travel as 32-bit floats.
const SLACK: f64 = 1e-3;

/// What one origin observed of one arm. Sums, so those of several origins add up.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ArmEvidence {
    /// How its requests ended, and the plain mean of their judgements.
    pub stats: ArmStats,
    /// How far its confidence could be trusted, by domain.
    pub reliability: DomainReliability,
    /// Its judgements by the features of their requests.
    pub quality: QualitySums,
    /// The same judgements by what was seen of the answers.
    pub answers: AnswerSums,
    /// Its judgements by pairs of words, the most telling ones.
    pub pairs: PairSums,
}

/// A judged answer: its request, and what was seen of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged {
    /// What the request looked like; `None` when that is no longer known.
    pub features: Option<Features>,
    /// Its field of knowledge.
    pub domain: Domain,
    /// What was seen of the answer.
    pub signals: AnswerSignals,
}

impl ArmEvidence {
    /// Adds what another origin observed.
    pub fn add(&mut self, other: &Self) {
        self.stats.add(&other.stats);
        self.reliability.add(&other.reliability);
        self.quality.add(&other.quality, 1.0);
        if other.quality.version > 0 {
            self.answers.add(&other.answers, 1.0);
        }
        self.pairs.add(&other.pairs, |_| 1.0);
    }

    /// Returns the observations taken in; grows with each change.
    pub fn version(&self) -> u64 {
        self.stats.version.saturating_add(self.quality.version)
    }

    fn is_plausible(&self) -> bool {
        let stats = &self.stats;
        // What the version counts is what growth is measured by, so nothing may be counted beside it.
        stats.is_plausible()
            && stats.count.saturating_add(stats.scored) <= stats.version
            && stats.ttft_count <= stats.version
            && stats.ttft_ms_sum <= stats.ttft_count as f64 * LONGEST_TTFT_MS
            && self.reliability.count() <= stats.scored
            && self.reliability.is_plausible()
            && self.quality.is_plausible()
            && self.quality.weight() <= MEMORY * (1.0 + SLACK)
            && self.answers.is_plausible(&self.quality)
            && self.pairs.is_plausible(stats.scored)
    }

    fn rounded(&self) -> Self {
        let mut rounded = Self {
            quality: self.quality.clone().rounded(),
            answers: self.answers.clone().rounded(),
            pairs: self.pairs.rounded(),
            ..self.clone()
        };
        for bin in rounded.reliability.bins_mut() {
            bin.raw_sum = f64::from(bin.raw_sum as f32);
            bin.score_sum = f64::from(bin.score_sum as f32);
        }
        rounded
    }

    /// Orders two states by all their numbers.
    fn order(&self, other: &Self) -> Ordering {
        let bins = |evidence: &Self| {
            let bins = evidence.reliability.bins();
            bins.map(|bin| (bin.count, bin.raw_sum.to_bits(), bin.score_sum.to_bits())).collect::<Vec<_>>()
        };
        self.stats
            .newness(&other.stats)
            .then_with(|| self.quality.newness(&other.quality))
            .then_with(|| bins(self).cmp(&bins(other)))
            .then_with(|| self.answers.order(&other.answers))
            .then_with(|| self.pairs.order(&other.pairs))
    }
}

/// What an origin testifies in one state of one life.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Testimony {
    /// Start number of the origin; grows at each restart.
    pub generation: u64,
    /// Observations ever taken in; grows with each change, also over restarts.
    pub version: u64,
    /// What it observed.
    pub arms: BTreeMap<ArmId, ArmEvidence>,
}

impl Testimony {
    /// Carries sums of earlier lives on.
    pub fn resume(generation: u64, arms: BTreeMap<ArmId, ArmEvidence>) -> Self {
        let version = arms.values().fold(0, |sum: u64, arm| sum.saturating_add(arm.version()));
        Self { generation, version, arms }
    }

    /// Takes in how a request ended. A failure counts here alone, not as a bad answer too: a request's quality is the chance
    /// of an answer × the answer's quality, so failing fast attracts nothing.
    pub fn record_end(&mut self, arm: &ArmId, reward: Reward, ttft_ms: Option<u64>) {
        if reward == Reward::Unknown {
            return;
        }
        let evidence = self.arms.entry(arm.clone()).or_default();
        let before = evidence.version();
        evidence.stats.record(reward, ttft_ms);
        self.version = self.version.saturating_add(evidence.version().saturating_sub(before));
    }

    /// Takes in a judgement: as one of the plain count, for what it says of the answer's confidence, and by the features
    /// of its request and what was seen of the answer. `model` is what decisions rest on now: its calibration is part of
    /// what was seen, and how its expectation came true is learnt, too.
    pub fn record_judgement(&mut self, arm: &ArmId, judged: &Judged, score: Score, model: &GainModel) {
        let Judged { features, domain, signals } = judged;
        let known = self.arms.entry(arm.clone()).or_default();
        let before = known.version();
        known.stats.record(Reward::Scored(score), None);
        if let Some(raw) = signals.raw.score() {
            known.reliability.record(*domain, raw, score);
        }
        if let Some(features) = features {
            let evidence = model.evidence(arm, *features, *domain, signals);
            known.quality.record(features, score);
            known.answers.record(&evidence, score, model.expect(arm, &evidence).as_ref());
        }
        self.version = self.version.saturating_add(known.version().saturating_sub(before));
    }

    /// Returns the state as it travels: every sum that is sent in 32 bits rounded to them, and of more than
    /// [`MAX_ARMS`] arms those most was observed of. Totals of these are the same on every node, bit by bit.
    pub fn published(&self) -> Self {
        let mut arms: Vec<_> = self.arms.iter().collect();
        arms.sort_by_key(|(_, evidence)| std::cmp::Reverse(evidence.version()));
        arms.truncate(MAX_ARMS);
        let arms = arms.into_iter().map(|(arm, evidence)| (arm.clone(), evidence.rounded())).collect();
        Self { generation: self.generation, version: self.version, arms }
    }

    /// True when honest counting can lead here.
    pub fn is_plausible(&self) -> bool {
        let counted = self.arms.values().fold(0, |sum: u64, arm| sum.saturating_add(arm.version()));
        self.arms.len() <= MAX_ARMS_READ
            && counted <= self.version
            && self.arms.values().all(ArmEvidence::is_plausible)
    }

    /// Orders two states of one origin. Total, so that every reader keeps the same one: newest life, then most
    /// observations; the rest only decides between two states that no honest origin can both have been in.
    pub fn newness(&self, other: &Self) -> Ordering {
        let position = |testimony: &Self| (testimony.generation, testimony.version);
        position(self).cmp(&position(other)).then_with(|| self.order(other))
    }

    fn order(&self, other: &Self) -> Ordering {
        let names = self.arms.keys().cmp(other.arms.keys());
        let states = self.arms.values().zip(other.arms.values()).map(|(a, b)| a.order(b));
        names.then_with(|| states.fold(Ordering::Equal, Ordering::then))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bandit::Pack;

    #[test]
    fn as_many_arms_as_earlier_versions_published_are_believed() {
        let of = |count: usize| -> Testimony {
            let mut testimony = Testimony::default();
            for n in 0..count {
                testimony.record_end(&ArmId::new(&format!("m{n}"), None), Reward::Valid, None);
            }
            testimony
        };
        assert_eq!(of(MAX_ARMS_READ).published().arms.len(), MAX_ARMS);
        for (count, believed) in [(MAX_ARMS + 1, true), (MAX_ARMS_READ, true), (MAX_ARMS_READ + 1, false)] {
            let testimony = of(count);
            assert_eq!(testimony.is_plausible(), believed, "{count}");
            let pack = Pack { arms: testimony.arms, ..Pack::default() };
            assert_eq!(pack.is_plausible(), believed, "{count} in a pack");
        }
    }
}
