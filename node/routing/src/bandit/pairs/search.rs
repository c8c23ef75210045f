//! Where pairs are looked for: a table of candidates for each arm, on the node that judged, and nowhere else.

use std::collections::BTreeMap;

use super::sums::{MAX_PAIRS, PairSum, PairSums};
use super::{Foreseen, PairKey, PairSalt};
use crate::ids::ArmId;
use crate::profile::Words;
use crate::units::Score;

/// Candidates of one arm: 128 KiB.
const CANDIDATES: usize = 8_192;

/// Places where a candidate can be.
const WAYS: usize = 4;

/// Arms that are searched: as many as a testimony holds.
const MAX_ARMS: usize = crate::bandit::evidence::MAX_ARMS;

/// What is left of the lightest candidate of a full bucket when a new one asks for its place: what does not come again
/// soon makes room.
const AGEING: f32 = 0.9;

/// Weight below which a candidate gives its place up.
const LIGHT: f32 = 1.5;

/// Weight of a pair before it is told to others, that of five answers of which the first have faded a little: what few
/// prompts have in common is theirs alone.
pub const TOLD_FROM: f64 = 4.5;

/// Evidence of a pair before it is told to others: one in seventy by chance.
const TOLD_EVIDENCE: f64 = 6.0;

/// Judgements of an arm from which its answers can be a surprise: before, what was expected of it is little but its size,
/// and all words that prompts have in common would seem to explain the difference.
const KNOWN_FROM: f64 = 50.0;

/// Prompts with a pair from which its frequency is known well enough to compare.
const ENOUGH_MET: f32 = 10.0;

/// A pair is met less often than another when it is in less than this share of its prompts.
const NARROWER: f32 = 0.8;

/// It explains nearly as much when it has this share of its evidence.
const NEARLY: f64 = 0.8;

/// Of so many answers that a pair explains one teaches the linear form.
///
/// Each would pull it down for the two words alone. None would leave it knowing nothing of prompts whose pair is in all of them.
const TEACHES_ONE_IN: u32 = 4;

/// The search of one node, over all arms.
#[derive(Debug, Clone, Default)]
pub struct PairSearch {
    salt: PairSalt,
    arms: BTreeMap<ArmId, Table>,
    /// How often pairs are met, over all arms.
    traffic: Table,
}

impl PairSearch {
    /// Makes a search that tells pairs apart under this key.
    pub fn new(salt: PairSalt) -> Self {
        Self { salt, ..Self::default() }
    }

    /// Takes in a judged answer of an arm to a prompt with these words.
    ///
    /// The pair that had spoken is measured against the linear form, every other one against what was expected with that
    /// pair's help: what one pair explains is no evidence for the others. Returns whether the linear form should learn
    /// from the answer, too: always, unless a pair explains it.
    #[must_use]
    pub fn record(
        &mut self,
        arm: &ArmId,
        told: &mut PairSums,
        words: &Words,
        score: Score,
        foreseen: &Foreseen,
    ) -> bool {
        let is_room = self.arms.contains_key(arm) || self.arms.len() < MAX_ARMS;
        if !is_room || foreseen.weight < KNOWN_FROM {
            return true;
        }
        let table = self.arms.entry(arm.clone()).or_default();
        let mut seen = Vec::new();
        for key in words.pairs(self.salt) {
            let has_spoken = foreseen.spoken == Some(key);
            let expected = if has_spoken { foreseen.linear } else { foreseen.answer };
            let sum = match told.get_mut(key) {
                Some(sum) => {
                    sum.record(score, expected);
                    Some(*sum)
                }
                None => table.record(key, score, expected).map(|slot| slot.sum()),
            };
            if let Some(sum) = sum {
                seen.push(Seen { key, sum, evidence: sum.evidence(), met: self.traffic.meet(key) });
            }
        }
        for pair in &seen {
            let is_due = pair.sum.count >= TOLD_FROM
                && (pair.evidence >= TOLD_EVIDENCE || foreseen.spoken == Some(pair.key));
            let is_told = told.get(pair.key).is_some();
            if is_due && !seen.iter().any(|other| other.outdoes(pair)) {
                if !is_told {
                    tell(told, table, pair);
                }
            } else if is_told && is_due {
                told.remove(pair.key);
                table.put(pair.key, &pair.sum);
            }
        }
        table.explained = table.explained.wrapping_add(u32::from(foreseen.spoken.is_some()));
        foreseen.spoken.is_none() || table.explained.is_multiple_of(TEACHES_ONE_IN)
    }
}

/// A pair of a judged prompt.
struct Seen {
    key: PairKey,
    sum: PairSum,
    evidence: f64,
    /// Judged prompts that had it, whichever arm answered.
    met: f32,
}

impl Seen {
    /// True when this pair explains nearly as much as another one and is met less often.
    ///
    /// Where an arm answers badly because of two words that stand in longer expressions, all pairs across and within those
    /// are as telling, until the arm is asked about prompts with one expression alone; and believed of those it
    /// never is.
    fn outdoes(&self, other: &Self) -> bool {
        other.met >= ENOUGH_MET && self.met < NARROWER * other.met && self.evidence >= NEARLY * other.evidence
    }
}

/// Moves a candidate to those that are told of, in the place of the weakest if there is no room.
fn tell(told: &mut PairSums, table: &mut Table, pair: &Seen) {
    let weakest = told.weakest().filter(|_| told.len() >= MAX_PAIRS);
    if weakest.is_some_and(|(_, evidence)| evidence >= pair.evidence) {
        return;
    }
    table.take(pair.key);
    if let Some((weakest, _)) = weakest
        && let Some(sum) = told.remove(weakest)
    {
        table.put(weakest, &sum);
    }
    told.insert(pair.key, pair.sum);
}

/// A key that no pair has.
const NO_KEY: u32 = 0;

#[derive(Debug, Clone, Copy)]
struct Slot {
    key: u32,
    count: f32,
    score: f32,
    expected: f32,
}

impl Slot {
    const EMPTY: Self = Self { key: NO_KEY, count: 0.0, score: 0.0, expected: 0.0 };

    fn sum(&self) -> PairSum {
        PairSum {
            count: f64::from(self.count),
            score: f64::from(self.score),
            expected: f64::from(self.expected),
        }
    }

    fn set(&mut self, sum: &PairSum) {
        (self.count, self.score, self.expected) = (sum.count as f32, sum.score as f32, sum.expected as f32);
    }
}

/// Candidates in buckets of four.
#[derive(Debug, Clone)]
struct Table {
    slots: Box<[Slot]>,
    /// Answers that a pair explained.
    explained: u32,
}

impl Default for Table {
    fn default() -> Self {
        Self { slots: vec![Slot::EMPTY; CANDIDATES].into(), explained: 0 }
    }
}

impl Table {
    /// Takes an answer in; returns the candidate unless its bucket is taken by heavier ones.
    fn record(&mut self, key: PairKey, score: Score, expected: f64) -> Option<&mut Slot> {
        let slot = self.slot(key)?;
        let mut sum = slot.sum();
        sum.record(score, expected);
        slot.set(&sum);
        Some(slot)
    }

    /// Counts a prompt with a pair; returns how many there were. Nothing fades but what makes room.
    fn meet(&mut self, key: PairKey) -> f32 {
        let Some(slot) = self.slot(key) else { return 0.0 };
        slot.count += 1.0;
        slot.count
    }

    /// Removes a candidate.
    fn take(&mut self, key: PairKey) {
        if let Some(slot) = self.slot(key) {
            slot.key = NO_KEY;
        }
    }

    /// Puts a pair back that is no longer told of.
    fn put(&mut self, key: PairKey, sum: &PairSum) {
        if let Some(slot) = self.slot(key) {
            slot.set(sum);
        }
    }

    fn slot(&mut self, key: PairKey) -> Option<&mut Slot> {
        let bucket = key.0 as usize % (CANDIDATES / WAYS) * WAYS;
        let bucket = &mut self.slots[bucket..bucket + WAYS];
        let known = bucket.iter().position(|slot| slot.key == key.0);
        let free = || bucket.iter().position(|slot| slot.key == NO_KEY);
        if let Some(at) = known.or_else(free) {
            let slot = &mut bucket[at];
            if slot.key == NO_KEY {
                *slot = Slot { key: key.0, ..Slot::EMPTY };
            }
            return Some(slot);
        }
        let lightest = bucket.iter_mut().min_by(|a, b| a.count.total_cmp(&b.count))?;
        if lightest.count >= LIGHT {
            lightest.count *= AGEING;
            lightest.score *= AGEING;
            lightest.expected *= AGEING;
            return None;
        }
        *lightest = Slot { key: key.0, ..Slot::EMPTY };
        Some(lightest)
    }
}
