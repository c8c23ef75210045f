//! What an arm's judged answers to prompts with a pair of words add up to.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::PairKey;
use crate::units::Score;

/// Most pairs of an arm that one origin tells of: with them six arms stay within 20 kB.
pub const MAX_PAIRS: usize = 32;

/// Answers that the memory of a pair is long: what was expected of them changes as the linear form learns, so old ones
/// must not speak for it.
pub const PAIR_MEMORY: f64 = 200.0;

/// Bounds on a share of good answers when it is compared with another: one in fifty either way.
const LEAST_SHARE: f64 = 0.02;

/// Relative slack of plausibility checks: sums travel as 32-bit floats.
const SLACK: f64 = 1e-3;

/// Judged answers to prompts with one pair of words.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PairSum {
    /// Answers, the older ones faded.
    pub count: f64,
    /// Sum of their scores.
    pub score: f64,
    /// Sum of what the arm's linear form expected of them.
    pub expected: f64,
}

impl PairSum {
    /// Takes in a judged answer.
    pub fn record(&mut self, score: Score, expected: f64) {
        let keep = 1.0 - 1.0 / PAIR_MEMORY;
        self.count = self.count * keep + 1.0;
        self.score = self.score * keep + score.value();
        self.expected = self.expected * keep + expected.clamp(0.0, 1.0);
    }

    /// Adds the sums of another origin, at a share of their weight between 0 and 1.
    pub fn add(&mut self, other: &Self, share: f64) {
        self.count += share * other.count;
        self.score += share * other.score;
        self.expected += share * other.expected;
    }

    /// Returns the share of good answers that was expected.
    pub(super) fn expectation(&self) -> f64 {
        (self.expected / self.count.max(f64::MIN_POSITIVE)).clamp(LEAST_SHARE, 1.0 - LEAST_SHARE)
    }

    /// Returns how much likelier the scores are at their own mean than at what was expected: twice the logarithm of
    /// the likelihood ratio (Wilks 1938). About 1 where nothing was missed, whatever the count.
    pub fn evidence(&self) -> f64 {
        if self.count <= 0.0 {
            return 0.0;
        }
        let expected = self.expectation();
        let seen = (self.score / self.count).clamp(0.0, 1.0);
        let term = |seen: f64, expected: f64| if seen > 0.0 { seen * (seen / expected).ln() } else { 0.0 };
        2.0 * self.count * (term(seen, expected) + term(1.0 - seen, 1.0 - expected))
    }

    fn rounded(self) -> Self {
        let round = |number: f64| f64::from(number as f32);
        Self { count: round(self.count), score: round(self.score), expected: round(self.expected) }
    }

    fn is_plausible(&self, judged: f64) -> bool {
        let most = judged.min(PAIR_MEMORY) * (1.0 + SLACK) + SLACK;
        let of_count = 0.0..=self.count * (1.0 + SLACK) + SLACK;
        self.count > 0.0
            && self.count <= most
            && of_count.contains(&self.score)
            && of_count.contains(&self.expected)
    }

    fn order(&self, other: &Self) -> Ordering {
        self.count
            .total_cmp(&other.count)
            .then(self.score.total_cmp(&other.score))
            .then(self.expected.total_cmp(&other.expected))
    }
}

/// The pairs of one arm that an origin tells of; added up, those of several.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PairSums {
    by_key: BTreeMap<PairKey, PairSum>,
}

impl PairSums {
    /// Returns every pair, ascending.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (PairKey, &PairSum)> {
        self.by_key.iter().map(|(key, sum)| (*key, sum))
    }

    /// Returns the sums of a pair.
    pub fn get(&self, key: PairKey) -> Option<&PairSum> {
        self.by_key.get(&key)
    }

    pub(super) fn get_mut(&mut self, key: PairKey) -> Option<&mut PairSum> {
        self.by_key.get_mut(&key)
    }

    /// Puts a pair in, in the place of what is known of it.
    pub fn insert(&mut self, key: PairKey, sum: PairSum) {
        self.by_key.insert(key, sum);
    }

    pub(super) fn remove(&mut self, key: PairKey) -> Option<PairSum> {
        self.by_key.remove(&key)
    }

    /// Returns the number of pairs.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// True when no pair is known.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Returns the pair that tells least.
    pub(super) fn weakest(&self) -> Option<(PairKey, f64)> {
        let told = self.by_key.iter().map(|(key, sum)| (*key, sum.evidence()));
        told.min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// Adds the pairs of another origin, each at its share of the weight.
    pub fn add(&mut self, other: &Self, share: impl Fn(PairKey) -> f64) {
        for (key, sum) in &other.by_key {
            self.by_key.entry(*key).or_default().add(sum, share(*key));
        }
    }

    /// Returns the sums as they travel: each rounded to 32 bits.
    pub fn rounded(&self) -> Self {
        Self { by_key: self.by_key.iter().map(|(key, sum)| (*key, sum.rounded())).collect() }
    }

    /// True when honest counting of `judged` answers can lead here.
    pub fn is_plausible(&self, judged: u64) -> bool {
        self.by_key.len() <= MAX_PAIRS && self.by_key.values().all(|sum| sum.is_plausible(judged as f64))
    }

    /// Orders two states of the same origin and arm. Total.
    pub fn order(&self, other: &Self) -> Ordering {
        let sums = self.by_key.values().zip(other.by_key.values()).map(|(a, b)| a.order(b));
        self.by_key.keys().cmp(other.by_key.keys()).then_with(|| sums.fold(Ordering::Equal, Ordering::then))
    }
}
