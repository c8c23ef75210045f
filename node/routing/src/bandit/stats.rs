//! Sums that a mesh can share: per arm, per origin, newest life of each origin only.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::bandit::discriminant::{Belief, Discriminant, Level, Placed};
use crate::bandit::pairs::{Foreseen, PairKey, Telling};
use crate::bandit::prior::SizeClass;
use crate::bandit::reward::Reward;
use crate::features::Features;
use crate::ids::ArmId;
use crate::profile::Words;
use crate::units::Score;

/// Judgements that the prior of a size class weighs.
const PRIOR_JUDGEMENTS: f64 = 10.0;

/// What one origin observed of one arm. All fields are sums, so arms of several origins add up.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ArmStats {
    /// Finished requests that said something: whole answers and failures.
    pub count: u64,
    /// Of those, the failures.
    pub failures: u64,
    /// Answers that were judged.
    pub scored: u64,
    /// Sum of their scores, each 0 to 1.
    pub reward_sum: f64,
    /// Answers whose time to first token is known.
    pub ttft_count: u64,
    /// Sum of those times, milliseconds.
    pub ttft_ms_sum: f64,
    /// Grows with each change; orders two states of one origin.
    pub version: u64,
}

/// Sums that no honest origin can have, such as more failures than requests.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("statistics of arm '{arm}' from '{origin}' are impossible")]
pub struct Implausible {
    /// Who sent them.
    pub origin: Arc<str>,
    /// The arm they are about.
    pub arm: ArmId,
}

impl ArmStats {
    /// Adds what an outcome said.
    pub fn record(&mut self, reward: Reward, ttft_ms: Option<u64>) {
        match reward {
            Reward::Unknown => return,
            Reward::Failed => {
                self.count += 1;
                self.failures += 1;
            }
            Reward::Valid => self.count += 1,
            Reward::Scored(score) => {
                self.scored += 1;
                self.reward_sum += score.value();
            }
        }
        if let Some(ttft_ms) = ttft_ms {
            self.ttft_count += 1;
            self.ttft_ms_sum += ttft_ms as f64;
        }
        self.version += 1;
    }

    /// Returns the mean time to first token in milliseconds, if any was measured.
    pub fn ttft_ms(&self) -> Option<f64> {
        (self.ttft_count > 0).then(|| self.ttft_ms_sum / self.ttft_count as f64)
    }

    /// True when honest counting can lead here.
    pub fn is_plausible(&self) -> bool {
        self.failures <= self.count
            && self.reward_sum >= 0.0
            && self.reward_sum <= self.scored as f64 + 1e-6
            && self.ttft_ms_sum >= 0.0
            && self.ttft_ms_sum.is_finite()
    }

    /// Adds the sums of another origin; counts saturate.
    pub fn add(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        self.failures = self.failures.saturating_add(other.failures);
        self.scored = self.scored.saturating_add(other.scored);
        self.reward_sum += other.reward_sum;
        self.ttft_count = self.ttft_count.saturating_add(other.ttft_count);
        self.ttft_ms_sum += other.ttft_ms_sum;
        self.version = self.version.saturating_add(other.version);
    }

    /// Orders two states of the same origin and arm. Total, so that every reader keeps the same one.
    pub(crate) fn newness(&self, other: &Self) -> Ordering {
        let sums = |s: &Self| (s.version, s.count, s.failures, s.scored, s.ttft_count);
        sums(self)
            .cmp(&sums(other))
            .then(self.reward_sum.total_cmp(&other.reward_sum))
            .then(self.ttft_ms_sum.total_cmp(&other.ttft_ms_sum))
    }
}

/// What each origin observed, newest generation only.
///
/// A join-semilattice: [`merge`](Self::merge) commutes, associates and is idempotent, so gossip may lose, repeat
/// and reorder what it likes (Shapiro et al. 2011, state-based CRDTs).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observations {
    origins: BTreeMap<Arc<str>, Life>,
}

/// One life of an origin: from a start of the process to its next.
#[derive(Debug, Clone, PartialEq, Default)]
struct Life {
    generation: u64,
    arms: BTreeMap<ArmId, ArmStats>,
}

impl Observations {
    /// Counts an own observation.
    pub fn record(
        &mut self,
        origin: &Arc<str>,
        generation: u64,
        arm: &ArmId,
        reward: Reward,
        ttft_ms: Option<u64>,
    ) {
        if reward == Reward::Unknown {
            return;
        }
        if let Some(life) = self.life(origin, generation) {
            life.arms.entry(arm.clone()).or_default().record(reward, ttft_ms);
        }
    }

    /// Takes in what an origin says it observed of an arm; older states than the one known change nothing.
    ///
    /// # Errors
    /// [`Implausible`] for sums that honest counting cannot reach; they are not kept.
    pub fn put(
        &mut self,
        origin: &Arc<str>,
        generation: u64,
        arm: &ArmId,
        stats: ArmStats,
    ) -> Result<(), Implausible> {
        if !stats.is_plausible() {
            return Err(Implausible { origin: origin.clone(), arm: arm.clone() });
        }
        if let Some(life) = self.life(origin, generation) {
            let known = life.arms.entry(arm.clone()).or_insert(stats);
            if stats.newness(known) == Ordering::Greater {
                *known = stats;
            }
        }
        Ok(())
    }

    /// Takes in everything that another set knows.
    pub fn merge(&mut self, other: &Self) {
        for (origin, theirs) in &other.origins {
            let Some(ours) = self.life(origin, theirs.generation) else { continue };
            for (arm, stats) in &theirs.arms {
                let known = ours.arms.entry(arm.clone()).or_insert(*stats);
                if stats.newness(known) == Ordering::Greater {
                    *known = *stats;
                }
            }
        }
    }

    /// Returns what one origin observed, in its newest life.
    pub fn of(&self, origin: &str) -> impl Iterator<Item = (&ArmId, &ArmStats)> {
        self.origins.get(origin).into_iter().flat_map(|life| &life.arms)
    }

    /// Adds the origins up.
    pub fn posterior(&self) -> Posterior {
        let mut arms: BTreeMap<ArmId, ArmStats> = BTreeMap::new();
        for life in self.origins.values() {
            for (arm, stats) in &life.arms {
                arms.entry(arm.clone()).or_default().add(stats);
            }
        }
        Posterior { arms, ..Posterior::default() }
    }

    /// Returns the life to write to: `None` when a newer one is known. A newer generation replaces the older.
    fn life(&mut self, origin: &Arc<str>, generation: u64) -> Option<&mut Life> {
        let life =
            self.origins.entry(origin.clone()).or_insert_with(|| Life { generation, arms: BTreeMap::new() });
        match generation.cmp(&life.generation) {
            Ordering::Less => return None,
            Ordering::Equal => {}
            Ordering::Greater => *life = Life { generation, arms: BTreeMap::new() },
        }
        Some(life)
    }
}

/// What the whole mesh observed: an immutable snapshot that decisions read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Posterior {
    arms: BTreeMap<ArmId, ArmStats>,
    qualities: Discriminant,
    pairs: Telling,
}

impl Posterior {
    /// Makes a snapshot of sums that were added up elsewhere.
    pub fn of(arms: BTreeMap<ArmId, ArmStats>) -> Self {
        Self { arms, ..Self::default() }
    }

    /// Adds what was learnt of the arms' quality by the features of requests.
    pub fn with_qualities(self, qualities: Discriminant) -> Self {
        Self { qualities, ..self }
    }

    /// Adds what was learnt of pairs of words beyond that.
    pub fn with_pairs(self, pairs: Telling) -> Self {
        Self { pairs, ..self }
    }

    /// Returns what was learnt of pairs of words.
    pub fn pairs(&self) -> &Telling {
        &self.pairs
    }

    /// Returns a request as the arms are shown it.
    pub fn place(&self, features: &Features, words: &Words) -> Placed {
        Placed { found: self.pairs.find(words), ..self.qualities.place(features) }
    }

    /// Returns the pair of the request's words that speaks for an arm, if one does.
    pub fn spoken(&self, arm: &ArmId, placed: &Placed) -> Option<PairKey> {
        self.pairs.spoken(arm, &placed.found)
    }

    /// Returns what was learnt of the arms' quality by the features of requests.
    pub fn qualities(&self) -> &Discriminant {
        &self.qualities
    }

    /// Returns how good an arm's whole answer to a request is expected to be.
    ///
    /// Before anything was judged the size of the model stands for it; judgements of answers whose requests are no
    /// longer known count for the arm's level.
    pub fn answer(&self, arm: &ArmId, size: SizeClass, placed: &Placed) -> Belief {
        self.pairs.correct(arm, &placed.found, self.linear(arm, size, placed))
    }

    /// Returns what a judgement of an arm's answer to a request is compared with.
    pub fn foresee(&self, arm: &ArmId, size: SizeClass, placed: &Placed) -> Foreseen {
        let linear = self.linear(arm, size, placed);
        Foreseen {
            weight: self.qualities.weight(arm),
            linear: linear.mean,
            answer: self.pairs.correct(arm, &placed.found, linear).mean,
            spoken: self.spoken(arm, placed),
        }
    }

    /// Returns the same as [`answer`](Self::answer) by the features of the request alone, whatever its words.
    fn linear(&self, arm: &ArmId, size: SizeClass, placed: &Placed) -> Belief {
        let stats = self.arm(arm);
        let apart = (stats.scored as f64 - self.qualities.weight(arm)).max(0.0);
        // Forgetting makes the sums weigh less than what was counted; the difference is no evidence of its own.
        let apart = if self.qualities.weight(arm) > 0.0 { apart.min(PRIOR_JUDGEMENTS) } else { apart };
        let mean = if stats.scored > 0 { stats.reward_sum / stats.scored as f64 } else { 0.0 };
        let weight = PRIOR_JUDGEMENTS + apart;
        let quality = (size.expected_quality().value() * PRIOR_JUDGEMENTS + mean * apart) / weight;
        self.qualities.expect(arm, placed, Level { quality: Score::clamped(quality), weight })
    }

    /// Returns the sums of an arm; zeros when nobody observed it.
    pub fn arm(&self, arm: &ArmId) -> ArmStats {
        self.arms.get(arm).copied().unwrap_or_default()
    }

    /// Returns every observed arm with its sums, sorted.
    pub fn arms(&self) -> impl Iterator<Item = (&ArmId, &ArmStats)> {
        self.arms.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arm(name: &str) -> ArmId {
        ArmId::new(name, None)
    }

    fn seen(count: u64, failures: u64) -> ArmStats {
        ArmStats { count, failures, version: count, ..ArmStats::default() }
    }

    #[test]
    fn origins_add_up_and_repetition_changes_nothing() {
        let (a, b) = (Arc::from("a"), Arc::from("b"));
        let mut observations = Observations::default();
        for _ in 0..3 {
            observations.put(&a, 1, &arm("m"), seen(10, 1)).unwrap();
            observations.put(&b, 7, &arm("m"), seen(5, 0)).unwrap();
        }
        assert_eq!(observations.posterior().arm(&arm("m")), seen(15, 1));
        assert_eq!(observations.posterior().arm(&arm("unseen")), ArmStats::default());
    }

    #[test]
    fn only_the_newest_life_of_an_origin_counts() {
        let a = Arc::from("a");
        let mut observations = Observations::default();
        observations.put(&a, 1, &arm("m"), seen(10, 1)).unwrap();
        observations.put(&a, 1, &arm("m"), seen(8, 1)).unwrap();
        assert_eq!(observations.posterior().arm(&arm("m")), seen(10, 1));
        observations.put(&a, 2, &arm("m"), seen(3, 0)).unwrap();
        observations.put(&a, 1, &arm("m"), seen(99, 0)).unwrap();
        assert_eq!(observations.posterior().arm(&arm("m")), seen(3, 0));
    }

    #[test]
    fn impossible_sums_are_refused() {
        let a = Arc::from("a");
        let mut observations = Observations::default();
        let cases = [
            seen(1, 2),
            ArmStats { scored: 1, reward_sum: 1.5, ..ArmStats::default() },
            ArmStats { scored: 1, reward_sum: f64::NAN, ..ArmStats::default() },
            ArmStats { reward_sum: -0.1, ..ArmStats::default() },
            ArmStats { ttft_ms_sum: f64::INFINITY, ..ArmStats::default() },
        ];
        for stats in cases {
            assert!(observations.put(&a, 1, &arm("m"), stats).is_err(), "{stats:?}");
        }
        assert_eq!(observations.posterior(), Posterior::default());
    }

    #[test]
    fn own_observations_are_counted_by_what_they_say() {
        let me = Arc::from("me");
        let mut observations = Observations::default();
        let half = Reward::Scored(Score::new(0.5).unwrap());
        for (reward, ttft) in [
            (Reward::Valid, Some(100)),
            (Reward::Valid, Some(300)),
            (Reward::Failed, None),
            (Reward::Unknown, Some(9_999)),
            (half, None),
        ] {
            observations.record(&me, 1, &arm("m"), reward, ttft);
        }
        let stats = observations.posterior().arm(&arm("m"));
        assert_eq!((stats.count, stats.failures, stats.scored, stats.version), (3, 1, 1, 4));
        assert_eq!((stats.reward_sum, stats.ttft_ms()), (0.5, Some(200.0)));
        assert_eq!(observations.of("me").count(), 1);
        assert_eq!(observations.of("other").count(), 0);
    }
}
