//! What was learnt elsewhere and is handed over as a file: sums by size of model, and sums of single arms.
//!
//! A pack is a prior, never an observation: it is not gossiped, not exported again as this mesh's own, and weighs
//! so little that what the mesh sees itself soon decides. Sums of a *size class* say which prompts are hard for
//! models of that size and nothing of any model's level, since levels differ between the sets that they come from;
//! so they take part in the slopes that all arms share and in nothing else. Sums of an *arm* are those of a model
//! with the same name and digest, and count as a few of its judgements.

use std::collections::BTreeMap;

use crate::bandit::evidence::{ArmEvidence, MAX_ARMS_READ};
use crate::bandit::prior::SizeClass;
use crate::bandit::sums::{MEMORY, QualitySums};
use crate::ids::ArmId;

/// Judgements that a size class weighs at most.
pub const CLASS_WEIGHT: f64 = 100.0;

/// Judgements that an arm of a pack weighs at most: a tenth of the memory of an arm.
///
/// Of the same models on other prompts, 1,000 earn as much as 4,000 within the noise and clearly more than 200
/// (`docs/router-packs.md`), and a wrong pack is outweighed within days.
pub const ARM_WEIGHT: f64 = 1_000.0;

/// Relative slack of the bound on weight: sums travel as 32-bit floats.
const SLACK: f64 = 1e-3;

/// Judged answers of all models of a size, by the features of their requests.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ClassPriors(pub BTreeMap<SizeClass, QualitySums>);

impl ClassPriors {
    /// Returns the sums of each class, made as light as a prior may be.
    pub fn weighed(&self) -> impl Iterator<Item = QualitySums> {
        self.0.values().filter(|sums| sums.weight() > 0.0).map(|sums| {
            let mut light = QualitySums::default();
            light.add(sums, (CLASS_WEIGHT / sums.weight()).min(1.0));
            light
        })
    }
}

/// All that a pack hands over to the routing core.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pack {
    /// Sums by size of model.
    pub classes: ClassPriors,
    /// Sums of single arms.
    pub arms: BTreeMap<ArmId, ArmEvidence>,
}

impl Pack {
    /// True when honest counting can lead here, and no more arms than a testimony may have.
    pub fn is_plausible(&self) -> bool {
        let possible = |sums: &QualitySums| sums.is_plausible() && sums.weight() <= MEMORY * (1.0 + SLACK);
        self.arms.len() <= MAX_ARMS_READ
            && self.classes.0.values().all(possible)
            && self.arms.values().all(|arm| {
                possible(&arm.quality)
                    && arm.reliability.is_plausible()
                    && arm.stats.is_plausible()
                    && arm.answers.is_plausible(&arm.quality)
            })
    }

    /// Returns what to add to what the mesh observed of an arm. How requests ended elsewhere says nothing of the hosts
    /// here, so ends are left out, and so does what traffic was like there lately.
    pub fn prior_of(&self, arm: &ArmId) -> Option<ArmEvidence> {
        let evidence = self.arms.get(arm)?;
        let weight = evidence.quality.weight().max(evidence.reliability.count() as f64);
        let share = if weight > ARM_WEIGHT { ARM_WEIGHT / weight } else { 1.0 };
        let mut prior = evidence.lighter(share);
        prior.stats = Default::default();
        // A prior never fades, so what was missed lately elsewhere would be believed for good.
        prior.answers = prior.answers.lasting();
        // Words are hashed under the key of a mesh, and are nobody else's business.
        prior.pairs = Default::default();
        Some(prior)
    }

    /// Returns the same with every sum rounded as it travels.
    pub fn rounded(self) -> Self {
        let classes = self.classes.0.into_iter().map(|(class, sums)| (class, sums.rounded())).collect();
        let arms = self.arms.into_iter().map(|(arm, evidence)| {
            let (quality, answers) = (evidence.quality.rounded(), evidence.answers.rounded());
            (arm, ArmEvidence { quality, answers, ..evidence })
        });
        Self { classes: ClassPriors(classes), arms: arms.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bandit::{Discriminant, Level, Posterior};
    use crate::domain::Domain;
    use crate::features::{EMBEDDED, Features, SURFACE};
    use crate::testing::seeded;
    use crate::units::Score;
    use rand::RngExt;

    /// Prompts far out in the first dimension are hard.
    fn judged(seed: u64, count: usize) -> QualitySums {
        let mut rng = seeded(seed);
        let mut sums = QualitySums::default();
        for _ in 0..count {
            let embedding: [f32; EMBEDDED] = std::array::from_fn(|_| rng.random_range(-1.7..1.7));
            let chance = 1.0 / (1.0 + (1.5 * f64::from(embedding[0])).exp());
            let features = Features::new(&embedding, &[4.42, 0.032, 0.113, 1.65, 0.54, 4.71, 4.23]);
            sums.record(&features, Score::clamped(if rng.random::<f64>() < chance { 1.0 } else { 0.0 }));
        }
        sums
    }

    fn at_first(value: f32) -> Features {
        let mut embedding = [0.0; EMBEDDED];
        embedding[0] = value;
        Features::new(&embedding, &[1.0; SURFACE])
    }

    fn classes(count: usize) -> ClassPriors {
        let sums = [(SizeClass::Medium, judged(1, count)), (SizeClass::Frontier, judged(2, count))];
        ClassPriors(BTreeMap::from(sums))
    }

    fn believed(qualities: &Discriminant, arm: &ArmId, value: f32) -> f64 {
        let placed = qualities.place(&at_first(value));
        qualities.expect(arm, &placed, Level { quality: Score::clamped(0.6), weight: 10.0 }).mean
    }

    #[test]
    fn a_node_without_judgements_knows_from_a_pack_which_prompts_are_hard() {
        let arm = ArmId::new("new", None);
        let blank = Discriminant::fit([]);
        assert_eq!(believed(&blank, &arm, -1.5), believed(&blank, &arm, 1.5));
        let informed = Discriminant::fit_with([], &classes(3_000));
        assert!(believed(&informed, &arm, -1.5) > believed(&informed, &arm, 1.5) + 0.2);
    }

    #[test]
    fn own_judgements_that_say_the_opposite_win_over_a_pack() {
        let arm = ArmId::new("own", None);
        let mut opposite = QualitySums::default();
        let mut rng = seeded(3);
        for _ in 0..2_000 {
            let value: f32 = rng.random_range(-1.7..1.7);
            opposite.record(&at_first(value), Score::clamped(if value > 0.0 { 1.0 } else { 0.0 }));
        }
        let fit = Discriminant::fit_with([(&arm, &opposite)], &classes(3_000));
        assert!(believed(&fit, &arm, -1.5) + 0.2 < believed(&fit, &arm, 1.5));
    }

    #[test]
    fn a_heavy_pack_weighs_as_much_as_a_light_one() {
        for sums in classes(5_000).weighed() {
            assert!((sums.weight() - CLASS_WEIGHT).abs() < 1e-6);
        }
        let arm = ArmId::new("m", None);
        let evidence = ArmEvidence { quality: judged(4, 4_000), ..ArmEvidence::default() };
        let pack = Pack { arms: BTreeMap::from([(arm.clone(), evidence)]), ..Pack::default() };
        let prior = pack.prior_of(&arm).unwrap();
        assert!((prior.quality.weight() - ARM_WEIGHT).abs() < 1e-6);
        let mean = |sums: &QualitySums| sums.mean().unwrap();
        assert!((mean(&prior.quality) - mean(&pack.arms[&arm].quality)).abs() < 1e-9);
        assert_eq!(pack.prior_of(&ArmId::new("other", None)), None);
    }

    #[test]
    fn late_evidence_of_a_pack_is_not_believed() {
        use crate::confidence::Confidence;
        use crate::escalate::gain::{AnswerSums, Evidence, Expectation};

        let (arm, mut answers) = (ArmId::new("m", None), AnswerSums::default());
        let evidence = Evidence::new(at_first(1.0), Domain::Math, Confidence::Unknown, None);
        answers.record(&evidence, Score::ZERO, Some(&Expectation::default()));
        let lasting = answers.clone().lasting();
        assert_ne!(answers, lasting);
        let evidence = ArmEvidence { quality: judged(4, 1), answers, ..ArmEvidence::default() };
        let pack = Pack { arms: BTreeMap::from([(arm.clone(), evidence)]), ..Pack::default() };
        assert_eq!(pack.prior_of(&arm).unwrap().answers, lasting);
    }

    #[test]
    fn what_nobody_can_have_counted_makes_a_pack_implausible() {
        let mut pack = Pack { classes: classes(50), ..Pack::default() };
        assert!(pack.is_plausible() && pack.clone().rounded().is_plausible());
        pack.classes.0.values_mut().for_each(|sums| sums.reward[0] = -1.0);
        assert!(!pack.is_plausible());
    }

    #[test]
    fn a_pack_changes_no_arms_level() {
        let (arm, size) = (ArmId::new("m", None), SizeClass::Medium);
        let informed = Posterior::default().with_qualities(Discriminant::fit_with([], &classes(3_000)));
        let placed = informed.qualities().place(&at_first(0.0));
        let belief = informed.answer(&arm, size, &placed);
        assert!((belief.mean - size.expected_quality().value()).abs() < 0.12, "{belief:?}");
    }
}
