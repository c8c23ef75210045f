//! What a linear form cannot say: that two words together mean something that neither means alone.
//!
//! The discriminant reads the mean of a prompt's words, and a mean holds no conjunction. So an arm has a small memory
//! beside it: of pairs of words, how good its answers to prompts with the pair were, and how good the linear form
//! expected them to be. The difference is what the pair means beyond its two words, since the linear form has learnt
//! those.
//!
//! * [`PairSearch`] counts all pairs that come up, on this node only, and hands the few most telling to the arm's
//!   evidence;
//! * [`PairSums`] are those few: sums, so what several origins observed adds up by pair;
//! * [`Telling`] is what decisions read: the pairs whose evidence exceeds what the luckiest of all that were searched
//!   would reach by chance, and what they change.

mod search;
mod sums;
mod telling;
#[cfg(test)]
mod tests;

pub use search::{PairSearch, TOLD_FROM};
pub use sums::{MAX_PAIRS, PAIR_MEMORY, PairSum, PairSums};
pub use telling::{BELIEVED_FROM, Found, Telling};

use crate::profile::Words;

/// What was expected of an arm's answer, as far as pairs learn from how it came true.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Foreseen {
    /// Judgements that the linear form rests on.
    pub weight: f64,
    /// Mean quality by the linear form alone.
    pub linear: f64,
    /// The same as decisions use it.
    pub answer: f64,
    /// The pair that makes the difference.
    pub spoken: Option<PairKey>,
}

/// A pair of words, hashed under the key of a mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PairKey(pub u32);

/// The key under which pairs are hashed: the same on all routers of a mesh, so that their sums add up.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct PairSalt(u64);

impl PairSalt {
    /// Makes the key of a mesh from the bytes by which it is known.
    pub fn of_bytes(bytes: [u8; 16]) -> Self {
        let [low, high] = [0, 8].map(|at| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte])));
        Self(low.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ high)
    }
}

impl std::fmt::Debug for PairSalt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PairSalt(..)")
    }
}

impl Words {
    /// Returns every pair of two different words.
    pub(crate) fn pairs(&self, salt: PairSalt) -> impl Iterator<Item = PairKey> + '_ {
        let hashes = self.hashes();
        hashes.iter().enumerate().flat_map(move |(at, high)| {
            hashes[..at].iter().map(move |low| {
                let both = u64::from(*high) << 32 | u64::from(*low);
                let mixed = (both ^ salt.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
                // 0 is no pair.
                PairKey(((mixed >> 32) as u32).max(1))
            })
        })
    }
}
