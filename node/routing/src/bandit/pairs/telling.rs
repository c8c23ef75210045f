//! Which pairs are believed, and what they change: an immutable snapshot that requests read.

use std::collections::BTreeMap;

use super::sums::{PairSum, PairSums};
use super::{PairKey, PairSalt};
use crate::bandit::discriminant::Belief;
use crate::ids::ArmId;
use crate::profile::Words;

/// Evidence from which a pair is believed. Of some ten thousand pairs that mean nothing the most telling one reaches
/// 2 ln 10,000 = 18 by chance: the price of having searched among so many, and some more, since they are looked at again
/// after each answer.
pub const BELIEVED_FROM: f64 = 24.0;

/// Made-up answers of each pair that came out as expected.
const PRIOR: f64 = 3.0;

/// Most pairs of an arm that are believed, those most telling.
const MAX_BELIEVED: usize = 64;

/// Most pairs of one prompt that are looked at.
const MAX_FOUND: usize = 16;

/// Bits of the sieve that most pairs of a prompt end in.
const SIEVE: usize = 4_096;

/// What a pair changes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Effect {
    /// Added to the log-odds of a good answer.
    shift: f64,
    /// Variance of what is not known of it, in log-odds.
    spread: f64,
    evidence: f64,
}

impl Effect {
    fn of(sum: &PairSum) -> Option<Self> {
        let evidence = sum.evidence();
        if evidence.is_nan() || evidence < BELIEVED_FROM {
            return None;
        }
        let expected = sum.expectation();
        let weight = sum.count + PRIOR;
        let share = (sum.score.clamp(0.0, sum.count) + PRIOR * expected) / weight;
        let odds = |share: f64| (share / (1.0 - share)).ln();
        Some(Self {
            shift: odds(share) - odds(expected),
            spread: 1.0 / (weight * share * (1.0 - share)),
            evidence,
        })
    }
}

/// Pairs that are believed, by arm.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Telling {
    salt: PairSalt,
    /// Pairs that some arm believes, ascending.
    keys: Vec<PairKey>,
    /// What each of `keys` changes for an arm, in their order: a prompt's pairs are looked up once, not by each arm.
    arms: BTreeMap<ArmId, Vec<Option<Effect>>>,
    sieve: Sieve,
}

/// Pairs of a prompt that some arm has something to tell of, as places among its keys.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Found {
    places: [u32; MAX_FOUND],
    len: usize,
}

impl Found {
    fn places(&self) -> impl Iterator<Item = usize> + '_ {
        self.places[..self.len].iter().map(|place| *place as usize)
    }
}

impl Telling {
    /// Chooses among what was added up of each arm.
    pub fn of<'a>(salt: PairSalt, arms: impl IntoIterator<Item = (&'a ArmId, &'a PairSums)>) -> Self {
        let mut believed: Vec<(&ArmId, Vec<(PairKey, Effect)>)> = Vec::new();
        for (arm, sums) in arms {
            let mut effects: Vec<(PairKey, Effect)> =
                sums.iter().filter_map(|(key, sum)| Some((key, Effect::of(sum)?))).collect();
            effects.sort_by(|a, b| b.1.evidence.total_cmp(&a.1.evidence));
            effects.truncate(MAX_BELIEVED);
            if !effects.is_empty() {
                believed.push((arm, effects));
            }
        }
        let mut keys: Vec<PairKey> =
            believed.iter().flat_map(|(_, effects)| effects.iter().map(|(key, _)| *key)).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut sieve = Sieve::default();
        keys.iter().for_each(|key| sieve.add(*key));
        let row = |effects: Vec<(PairKey, Effect)>| {
            let mut row = vec![None; keys.len()];
            for (key, effect) in effects {
                if let Ok(place) = keys.binary_search(&key) {
                    row[place] = Some(effect);
                }
            }
            row
        };
        let arms = believed.into_iter().map(|(arm, effects)| (arm.clone(), row(effects))).collect();
        Self { salt, keys, arms, sieve }
    }

    /// Looks a prompt's pairs up.
    pub fn find(&self, words: &Words) -> Found {
        let mut found = Found::default();
        if self.keys.is_empty() {
            return found;
        }
        let known = words
            .pairs(self.salt)
            .filter(|key| self.sieve.lets_through(*key))
            .filter_map(|key| self.keys.binary_search(&key).ok());
        for (into, place) in found.places.iter_mut().zip(known) {
            *into = place as u32;
            found.len += 1;
        }
        found
    }

    /// Returns the pair that speaks for an arm: of those found the most telling.
    pub fn spoken(&self, arm: &ArmId, found: &Found) -> Option<PairKey> {
        self.effect(arm, found).map(|(key, _)| key)
    }

    /// Returns what to expect of an arm's answer, given what its linear form expects.
    pub fn correct(&self, arm: &ArmId, found: &Found, linear: Belief) -> Belief {
        let Some((_, effect)) = self.effect(arm, found) else { return linear };
        let mean = linear.mean.clamp(0.01, 0.99);
        let odds = (mean / (1.0 - mean)).ln() + effect.shift;
        let corrected = 1.0 / (1.0 + (-odds).exp());
        // What is not known of the linear form shrinks or grows with the slope of the odds.
        let linear_spread = linear.deviation / (mean * (1.0 - mean));
        let spread = (linear_spread * linear_spread + effect.spread).sqrt();
        Belief { mean: corrected, deviation: corrected * (1.0 - corrected) * spread }
    }

    fn effect(&self, arm: &ArmId, found: &Found) -> Option<(PairKey, Effect)> {
        if found.len == 0 {
            return None;
        }
        let row = self.arms.get(arm)?;
        let known = found.places().filter_map(|place| Some((*self.keys.get(place)?, (*row.get(place)?)?)));
        known.max_by(|a, b| a.1.evidence.total_cmp(&b.1.evidence))
    }
}

/// A set of keys that may say yes to a few more (Bloom 1970, one hash).
#[derive(Debug, Clone, PartialEq)]
struct Sieve([u64; SIEVE / 64]);

impl Default for Sieve {
    fn default() -> Self {
        Self([0; SIEVE / 64])
    }
}

impl Sieve {
    fn add(&mut self, key: PairKey) {
        let at = key.0 as usize % SIEVE;
        self.0[at / 64] |= 1 << (at % 64);
    }

    fn lets_through(&self, key: PairKey) -> bool {
        let at = key.0 as usize % SIEVE;
        self.0[at / 64] & (1 << (at % 64)) != 0
    }
}
