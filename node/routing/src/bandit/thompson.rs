//! Thompson sampling (Thompson 1933; Agrawal and Goyal 2012), with price and waiting time weighed per request.
//!
//! Quality of an arm = chance of a whole answer × quality of a whole answer. The first has a Beta posterior over the
//! mesh's sums, the second comes from the arm's discriminant, given the request; their product is approximated by a
//! normal with the same mean and variance, which is what makes a draw cost nanoseconds. Price and time are known, so they are subtracted, not learnt: a change of
//! preference needs no relearning.
//!
//! **Propensity.** With more than two arms the probability of being the best draw has no closed form. So
//! 32 joint samples are drawn, each names its winner, and the choice is then drawn from the shares of
//! wins, mixed with a small uniform floor. Over all randomness an arm is chosen exactly as often as by sampling
//! once (apart from the floor), and *given the samples* the logged number is the exact probability of the choice,
//! bounded below by the floor: what inverse-propensity estimates need.

use rand::{Rng, RngExt};

use crate::bandit::discriminant::Belief;
use crate::bandit::policy::{ArmView, Policy, Selection};
use crate::bandit::stats::ArmStats;
use crate::class::Preference;
use crate::units::{MicroUsd, Score};

/// Joint samples of a selection: shares in steps of 3 %, at some 10 ns for a sample of one arm.
const DRAWS: usize = 32;

/// Share of choices spread evenly over all arms, so that no propensity is 0 and no weight of an estimate explodes.
const FLOOR: f64 = 0.02;

/// Requests that the prior belief in a whole answer weighs, and how many of them succeeded.
const PRIOR_REQUESTS: f64 = 10.0;
const PRIOR_WHOLE: f64 = 9.0;

/// Price at which half of the price term is reached: half a cent, a long answer of a large model.
const HALF_COST: MicroUsd = MicroUsd(5_000);

/// Time at which half of the waiting term is reached: people begin to leave.
const HALF_LATENCY_MS: f64 = 8_000.0;

/// How much quality a caller gives for price and for time, both between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// Quality given up to avoid the dearest answer.
    pub cost: f64,
    /// Quality given up to avoid the slowest answer.
    pub latency: f64,
}

impl Weights {
    /// Returns the weights of a preference.
    pub fn of(preference: Preference) -> Self {
        match preference {
            Preference::Balanced => Self { cost: 0.30, latency: 0.15 },
            Preference::Cheap => Self { cost: 0.90, latency: 0.05 },
            Preference::Fast => Self { cost: 0.10, latency: 0.70 },
            Preference::Best => Self { cost: 0.02, latency: 0.02 },
        }
    }

    /// Returns what price and time take from an arm's quality. Both saturate: twice too slow is not twice as bad.
    pub fn penalty(&self, cost: MicroUsd, latency_ms: f64) -> f64 {
        let cost = cost.0 as f64 / (cost.0 + HALF_COST.0) as f64;
        self.cost * cost + self.latency * latency_ms / (latency_ms + HALF_LATENCY_MS)
    }

    /// Returns what the chance of a failure takes: a failed request is waited for again elsewhere, so that no arm looks
    /// quick because it gives up.
    pub fn again(&self, stats: &ArmStats) -> f64 {
        self.latency * (1.0 - chance_of_answer(stats))
    }
}

/// Returns the chance that a request sent to an arm gets a whole answer.
pub fn chance_of_answer(stats: &ArmStats) -> f64 {
    let requests = PRIOR_REQUESTS + stats.count as f64;
    (PRIOR_WHOLE + stats.count.saturating_sub(stats.failures) as f64) / requests
}

/// Returns what to believe of a request sent to an arm; one without a whole answer has quality 0.
fn of_request(answer: &Belief, stats: &ArmStats) -> Belief {
    let whole = chance_of_answer(stats);
    // A Beta variance, and the variance of a product of independent factors.
    let whole_var = whole * (1.0 - whole) / (PRIOR_REQUESTS + stats.count as f64 + 1.0);
    let answer_var = answer.deviation * answer.deviation;
    let variance =
        whole * whole * answer_var + answer.mean * answer.mean * whole_var + whole_var * answer_var;
    Belief { mean: whole * answer.mean, deviation: variance.sqrt() }
}

/// What to expect of an arm: the means of its posterior.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// Of a request sent there; one without a whole answer counts as 0.
    pub of_request: Score,
    /// Of a whole answer that is already there.
    pub of_answer: Score,
    /// Judgements that stand behind it, over the mesh; 0 = nothing but the size of the model.
    pub judged: u64,
}

/// Returns what to expect of an arm, from what is believed of its answers and what the mesh observed of it.
pub fn expected_quality(answer: &Belief, stats: &ArmStats) -> Quality {
    Quality {
        of_request: Score::clamped(of_request(answer, stats).mean),
        of_answer: Score::clamped(answer.mean),
        judged: stats.scored,
    }
}

/// Thompson sampling over the expected quality of each arm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thompson {
    /// Factor on the posterior's standard deviation, 0 (greedy) or above; 1 = probability matching.
    ///
    /// Measured over streams of 5,000 requests, 0.3 to 0.6 earn most once something is known: the posterior treats
    /// its own approximations as if they could be averaged away.
    pub exploration: f64,
}

impl Default for Thompson {
    fn default() -> Self {
        Self { exploration: 0.5 }
    }
}

impl Policy for Thompson {
    fn select(&self, arms: &[ArmView<'_>], rng: &mut dyn Rng) -> Selection {
        assert!(!arms.is_empty(), "a policy chooses among at least one arm");
        let beliefs: Vec<(Belief, f64)> = arms
            .iter()
            .map(|arm| {
                let belief = of_request(&arm.answer, &arm.stats);
                (Belief { deviation: belief.deviation * self.exploration, ..belief }, arm.penalty)
            })
            .collect();
        let scores = beliefs.iter().map(|(belief, penalty)| belief.mean - penalty).collect();
        if arms.len() == 1 {
            return Selection { index: 0, propensity: 1.0, scores };
        }
        let shares = shares_of_wins(&beliefs, rng);
        let (index, propensity) = draw(&shares, rng.random());
        Selection { index, propensity, scores }
    }
}

/// Returns the probability of each arm: its share of won samples, mixed with the floor.
fn shares_of_wins(beliefs: &[(Belief, f64)], rng: &mut dyn Rng) -> Vec<f64> {
    let mut shares = vec![FLOOR / beliefs.len() as f64; beliefs.len()];
    for _ in 0..DRAWS / 2 {
        // The two numbers of a draw belong to two samples.
        let mut best = [(0, f64::NEG_INFINITY); 2];
        for (index, (belief, penalty)) in beliefs.iter().enumerate() {
            for (best, normal) in best.iter_mut().zip(normals(rng)) {
                let sample = (belief.mean + belief.deviation * normal).clamp(0.0, 1.0) - penalty;
                if sample > best.1 {
                    *best = (index, sample);
                }
            }
        }
        for (winner, _) in best {
            shares[winner] += (1.0 - FLOOR) / DRAWS as f64;
        }
    }
    shares
}

/// Returns the index into which `point` (0 to 1) falls, with its share.
fn draw(shares: &[f64], point: f64) -> (usize, f64) {
    let mut rest = point;
    for (index, share) in shares.iter().enumerate() {
        rest -= share;
        if rest < 0.0 {
            return (index, *share);
        }
    }
    // Rounding may leave the last hair of the unit interval uncovered.
    let last = shares.len() - 1;
    (last, shares[last])
}

/// Draws two independent numbers from the standard normal distribution (Box and Muller 1958).
fn normals(rng: &mut dyn Rng) -> [f64; 2] {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    let (sin, cos) = (std::f64::consts::TAU * rng.random::<f64>()).sin_cos();
    [radius * cos, radius * sin]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bandit::prior::SizeClass;
    use crate::bandit::stats::Observations;
    use crate::features::Features;
    use crate::ids::ArmId;
    use crate::testing::seeded;

    /// Size, answers, failures, judged answers with their mean, price and time of an arm.
    struct Arm(SizeClass, u64, u64, u64, f64, u64, f64);

    fn run(arms: &[Arm], preference: Preference, rounds: u32) -> (Vec<f64>, Vec<f64>) {
        let ids: Vec<ArmId> = (0..arms.len()).map(|index| ArmId::new(&index.to_string(), None)).collect();
        let weights = Weights::of(preference);
        let views: Vec<ArmView<'_>> = arms
            .iter()
            .zip(&ids)
            .map(|(arm, id)| {
                let stats = ArmStats {
                    count: arm.1,
                    failures: arm.2,
                    scored: arm.3,
                    reward_sum: arm.3 as f64 * arm.4,
                    ..ArmStats::default()
                };
                let mut seen = Observations::default();
                seen.put(&"me".into(), 1, id, stats).unwrap();
                let posterior = seen.posterior();
                let placed = posterior.qualities().place(&Features::default());
                let cost = MicroUsd(arm.5);
                ArmView {
                    arm: id,
                    size: arm.0,
                    stats,
                    answer: posterior.answer(id, arm.0, &placed),
                    cost,
                    latency_ms: arm.6,
                    penalty: weights.penalty(cost, arm.6) + weights.again(&stats),
                }
            })
            .collect();
        let mut rng = seeded(3);
        let (mut shares, mut weighted) = (vec![0.0; arms.len()], vec![0.0; arms.len()]);
        for _ in 0..rounds {
            let selection = Thompson::default().select(&views, &mut rng);
            shares[selection.index] += 1.0 / f64::from(rounds);
            weighted[selection.index] += 1.0 / selection.propensity / f64::from(rounds);
        }
        (shares, weighted)
    }

    #[test]
    fn the_larger_model_leads_while_nothing_is_known() {
        let arms = [
            Arm(SizeClass::Tiny, 0, 0, 0, 0.0, 0, 2_000.0),
            Arm(SizeClass::Medium, 0, 0, 0, 0.0, 0, 2_000.0),
        ];
        let (shares, _) = run(&arms, Preference::Balanced, 1_000);
        assert!(shares[1] > 0.9 && shares[0] > 0.0, "{shares:?}");
    }

    #[test]
    fn judgements_overrule_the_prior() {
        let arms = [
            Arm(SizeClass::Small, 100, 0, 60, 0.95, 0, 2_000.0),
            Arm(SizeClass::Large, 100, 0, 60, 0.30, 0, 2_000.0),
        ];
        let (shares, _) = run(&arms, Preference::Balanced, 1_000);
        assert!(shares[0] > 0.95, "{shares:?}");
    }

    #[test]
    fn answering_often_does_not_make_a_small_model_good() {
        let arms = [
            Arm(SizeClass::Tiny, 100_000, 0, 0, 0.0, 0, 2_000.0),
            Arm(SizeClass::Medium, 10, 0, 0, 0.0, 0, 2_000.0),
        ];
        let (shares, _) = run(&arms, Preference::Balanced, 1_000);
        assert!(shares[1] > 0.9, "{shares:?}");
    }

    #[test]
    fn failing_fast_earns_nothing() {
        let arms = [
            Arm(SizeClass::Large, 100, 95, 0, 0.0, 0, 1.0),
            Arm(SizeClass::Compact, 100, 0, 0, 0.0, 0, 5_000.0),
        ];
        let (shares, _) = run(&arms, Preference::Fast, 1_000);
        assert!(shares[1] > 0.9, "{shares:?}");
    }

    #[test]
    fn the_preference_decides_between_quality_price_and_speed() {
        let arms = [
            Arm(SizeClass::Small, 0, 0, 0, 0.0, 0, 1_000.0),
            Arm(SizeClass::Large, 0, 0, 0, 0.0, 0, 40_000.0),
            Arm(SizeClass::Frontier, 0, 0, 0, 0.0, 20_000, 4_000.0),
        ];
        let favourite = |preference| {
            let (shares, _) = run(&arms, preference, 1_000);
            (0..3).max_by(|a, b| shares[*a].total_cmp(&shares[*b])).unwrap()
        };
        assert_eq!(favourite(Preference::Best), 2);
        assert_eq!(favourite(Preference::Cheap), 1);
        assert_eq!(favourite(Preference::Fast), 2);
    }

    #[test]
    fn propensities_are_true_probabilities() {
        // Weighing each choice by 1/propensity must give each arm the weight 1, however rarely it is chosen.
        let arms = [
            Arm(SizeClass::Small, 0, 0, 0, 0.0, 0, 2_000.0),
            Arm(SizeClass::Compact, 0, 0, 0, 0.0, 0, 2_000.0),
            Arm(SizeClass::Medium, 0, 0, 0, 0.0, 0, 2_000.0),
        ];
        let (shares, weighted) = run(&arms, Preference::Balanced, 15_000);
        assert!(shares[0] < 0.25 && shares[2] > 0.4, "{shares:?}");
        for weight in weighted {
            assert!((weight - 1.0).abs() < 0.15, "{weight}");
        }
    }

    #[test]
    fn a_single_arm_is_certain() {
        let (shares, weighted) = run(&[Arm(SizeClass::Tiny, 0, 0, 0, 0.0, 0, 1.0)], Preference::Balanced, 10);
        assert!((shares[0] - 1.0).abs() < 1e-9 && (weighted[0] - 1.0).abs() < 1e-9);
    }

    #[test]
    fn normal_draws_have_mean_zero_and_deviation_one() {
        let mut rng = seeded(5);
        let draws: Vec<f64> = (0..10_000).flat_map(|_| normals(&mut rng)).collect();
        let mean = draws.iter().sum::<f64>() / 20_000.0;
        let variance = draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }
}
