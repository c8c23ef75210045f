//! The trait behind which a way of choosing hides, and what it is shown.

use rand::Rng;

use crate::bandit::discriminant::Belief;
use crate::bandit::prior::SizeClass;
use crate::bandit::reward::Reward;
use crate::bandit::stats::ArmStats;
use crate::ids::ArmId;
use crate::units::MicroUsd;

/// One arm that may be chosen, as a policy sees it.
#[derive(Debug, Clone, Copy)]
pub struct ArmView<'a> {
    /// The arm.
    pub arm: &'a ArmId,
    /// How large the model is.
    pub size: SizeClass,
    /// What the mesh observed of it.
    pub stats: ArmStats,
    /// How good a whole answer to this request is expected to be.
    pub answer: Belief,
    /// What the request would cost there.
    pub cost: MicroUsd,
    /// Time to the whole answer that its best host would need, milliseconds.
    pub latency_ms: f64,
    /// What price and waiting take from the quality of an answer, at the caller's rate of exchange.
    pub penalty: f64,
}

/// A choice among arms.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// Index of the chosen arm.
    pub index: usize,
    /// Probability with which that index was drawn, above 0 and up to 1.
    pub propensity: f64,
    /// Expected utility of each arm, in their order; what ranks the others when the chosen one fails.
    pub scores: Vec<f64>,
}

/// A way of choosing among arms. Statistics stay values that others own; a policy is a pure function of them.
pub trait Policy: Send + Sync {
    /// Chooses one of the arms.
    ///
    /// # Panics
    /// May panic when `arms` is empty.
    fn select(&self, arms: &[ArmView<'_>], rng: &mut dyn Rng) -> Selection;

    /// Folds what an outcome said into the arm's sums.
    fn observe(&self, stats: &mut ArmStats, reward: Reward, ttft_ms: Option<u64>) {
        stats.record(reward, ttft_ms);
    }
}
