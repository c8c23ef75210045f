//! Thompson sampling (Thompson 1933; Agrawal and Goyal 2012), with price and waiting time weighed per request.
//!
//! Quality of an arm = chance of a whole answer × quality of a whole answer. Each factor has a Beta posterior over
//! the mesh's sums; their product is approximated by a normal with the same mean and variance, which is what
//! makes a draw cost nanoseconds. Price and time are known, so they are subtracted, not learnt: a change of
//! preference needs no relearning.
//!
//! **Propensity.** With more than two arms the probability of being the best draw has no closed form. So
//! 32 joint samples are drawn, each names its winner, and the choice is then drawn from the shares of
//! wins, mixed with a small uniform floor. Over all randomness an arm is chosen exactly as often as by sampling
//! once (apart from the floor), and *given the samples* the logged number is the exact probability of the choice,
//! bounded below by the floor: what inverse-propensity estimates need.

use rand::{Rng, RngExt};

use crate::bandit::policy::{ArmView, Context, Policy, Selection};
use crate::bandit::prior::SizeClass;
use crate::bandit::stats::ArmStats;
use crate::class::Preference;
use crate::units::{MicroUsd, Score};

/// Joint samples of a selection: shares in steps of 3 %, at some 10 ns for a sample of one arm.
const DRAWS: usize = 32;

/// Share of choices spread evenly over all arms, so that no propensity is 0 and no weight of an estimate explodes.
const FLOOR: f64 = 0.02;

/// Judgements that the prior of a size class weighs.
const PRIOR_JUDGEMENTS: f64 = 10.0;

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
}

/// Mean and standard deviation of a quality.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Belief {
    mean: f64,
    deviation: f64,
    /// Chance of a whole answer.
    whole: f64,
}

impl Belief {
    /// Combines the prior of a size class with what was observed.
    fn new(size: SizeClass, stats: &ArmStats) -> Self {
        let requests = PRIOR_REQUESTS + stats.count as f64;
        let whole = (PRIOR_WHOLE + stats.count.saturating_sub(stats.failures) as f64) / requests;
        let judgements = PRIOR_JUDGEMENTS + stats.scored as f64;
        let prior = size.expected_quality().value() * PRIOR_JUDGEMENTS;
        let quality = ((prior + stats.reward_sum) / judgements).clamp(0.0, 1.0);
        // Beta variances, and the variance of a product of independent factors.
        let whole_var = whole * (1.0 - whole) / (requests + 1.0);
        let quality_var = quality * (1.0 - quality) / (judgements + 1.0);
        let variance = whole * whole * quality_var + quality * quality * whole_var + whole_var * quality_var;
        Self { mean: whole * quality, deviation: variance.sqrt(), whole }
    }
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

/// Returns what to expect of an arm, from its size and from what the mesh observed of it.
pub fn expected_quality(size: SizeClass, stats: &ArmStats) -> Quality {
    let belief = Belief::new(size, stats);
    Quality {
        of_request: Score::clamped(belief.mean),
        of_answer: Score::clamped(belief.mean / belief.whole),
        judged: stats.scored,
    }
}

/// Thompson sampling over the mean quality of each arm.
#[derive(Debug, Clone, Copy, Default)]
pub struct Thompson;

impl Policy for Thompson {
    fn select(&self, context: &Context<'_>, arms: &[ArmView<'_>], rng: &mut dyn Rng) -> Selection {
        assert!(!arms.is_empty(), "a policy chooses among at least one arm");
        let weights = Weights::of(context.preference);
        let beliefs: Vec<(Belief, f64)> = arms
            .iter()
            .map(|arm| {
                let belief = Belief::new(arm.size, &arm.stats);
                // A failed request is waited for again elsewhere: an arm must not look quick because it gives up.
                let again = (1.0 - belief.whole) * weights.latency;
                (belief, weights.penalty(arm.cost, arm.latency_ms) + again)
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
    for _ in 0..DRAWS {
        let (mut winner, mut best) = (0, f64::NEG_INFINITY);
        for (index, (belief, penalty)) in beliefs.iter().enumerate() {
            let sample = (belief.mean + belief.deviation * normal(rng)).clamp(0.0, 1.0) - penalty;
            if sample > best {
                (winner, best) = (index, sample);
            }
        }
        shares[winner] += (1.0 - FLOOR) / DRAWS as f64;
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

/// Draws from the standard normal distribution (Box and Muller 1958).
fn normal(rng: &mut dyn Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Domain;
    use crate::embed::Embedding;
    use crate::ids::ArmId;
    use crate::profile::{Language, RequestProfile, Surface, Task, Tolerance};
    use crate::request::Needs;
    use crate::testing::seeded;
    use crate::units::Tokens;

    const PROFILE: RequestProfile = RequestProfile {
        prompt_tokens: Tokens(100),
        exact: true,
        max_output: None,
        expected_output: Tokens(256),
        turns: 1,
        last_user_chars: 100,
        needs: Needs {
            tools: false,
            schema: false,
            vision: false,
            audio: false,
            embeddings: false,
            logprobs: false,
        },
        embedding: Embedding::NEUTRAL,
        surface: Surface {
            ln_tokens: 4.6,
            digit_share: 0.0,
            non_letter_share: 0.2,
            lines: 1.0,
            asks: 0.0,
            options: 0.0,
            mean_word_chars: 5.0,
        },
        domain: Domain::General,
        language: Language::English,
        task: Task::Chat,
        tolerance: Tolerance::Watching,
        interactive: true,
    };

    /// Size, answers, failures, judged answers with their mean, price and time of an arm.
    struct Arm(SizeClass, u64, u64, u64, f64, u64, f64);

    fn run(arms: &[Arm], preference: Preference, rounds: u32) -> (Vec<f64>, Vec<f64>) {
        let ids: Vec<ArmId> = (0..arms.len()).map(|index| ArmId::new(&index.to_string(), None)).collect();
        let views: Vec<ArmView<'_>> = arms
            .iter()
            .zip(&ids)
            .map(|(arm, id)| ArmView {
                arm: id,
                size: arm.0,
                stats: ArmStats {
                    count: arm.1,
                    failures: arm.2,
                    scored: arm.3,
                    reward_sum: arm.3 as f64 * arm.4,
                    ..ArmStats::default()
                },
                cost: MicroUsd(arm.5),
                latency_ms: arm.6,
            })
            .collect();
        let mut rng = seeded(3);
        let (mut shares, mut weighted) = (vec![0.0; arms.len()], vec![0.0; arms.len()]);
        let context = Context { profile: &PROFILE, preference };
        for _ in 0..rounds {
            let selection = Thompson.select(&context, &views, &mut rng);
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
        let draws: Vec<f64> = (0..20_000).map(|_| normal(&mut rng)).collect();
        let mean = draws.iter().sum::<f64>() / 20_000.0;
        let variance = draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }
}
