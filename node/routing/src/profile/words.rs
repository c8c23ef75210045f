//! The words that a prompt is about, as numbers: what a memory of pairs of words is asked with.
//!
//! Words that are common in some language tell nothing and are left out, and so are single letters, numbers and what
//! is longer than any listed word. Of more than [`MAX_WORDS`] those with the smallest hashes are kept (a bottom-k
//! sketch; Broder 1997): every prompt keeps the same ones, so that two words that matter together are both kept in
//! many prompts or in none.

/// Most words that are kept: 276 pairs, and whole questions of some hundred words.
pub const MAX_WORDS: usize = 24;

/// Distinct words of a prompt that tell something, as hashes without a key: they never leave the process.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Words {
    /// Ascending, those in use first.
    hashes: [u32; MAX_WORDS],
    len: u8,
}

impl Words {
    /// Adds a word, in lower case and filled up with zeros.
    pub(super) fn add(&mut self, word: u128) {
        let hash = hash_of(word);
        let len = usize::from(self.len);
        let Err(at) = self.hashes[..len].binary_search(&hash) else { return };
        if at == MAX_WORDS {
            return;
        }
        let end = len.min(MAX_WORDS - 1);
        self.hashes.copy_within(at..end, at + 1);
        self.hashes[at] = hash;
        self.len = (end + 1) as u8;
    }

    /// Returns the hashes of the words, ascending.
    pub(crate) fn hashes(&self) -> &[u32] {
        &self.hashes[..usize::from(self.len)]
    }

    /// True when no word tells anything, or none may be looked at.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl std::fmt::Debug for Words {
    /// Shows how many words there are and not which.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Words").field("len", &self.len).finish()
    }
}

/// Mixes a word into 32 bits (the finaliser of MurmurHash3).
fn hash_of(word: u128) -> u32 {
    let mut hash = (word as u64) ^ ((word >> 64) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (hash >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Reading, Sample};

    fn words(text: &str) -> Words {
        Reading::of(&Sample::of_text(text)).about
    }

    #[test]
    fn common_words_numbers_short_and_long_ones_are_left_out_and_case_is_no_difference() {
        let about = words("Should I call the doctor if my CHEST, my chest hurts at 150 bpm?");
        assert_eq!(about.hashes().len(), 5, "call, doctor, chest, hurts, bpm");
        assert_eq!(words("chest hurts").hashes().len(), 2);
        assert!(words("I do not, 42 is it? pneumonoultramicroscopic").is_empty());
        assert_eq!(words("doctor hurts chest bpm call"), about);
    }

    #[test]
    fn of_many_words_every_prompt_keeps_the_same_ones() {
        let text = |from: usize| (from..from + 60).map(|n| format!("word{n:03}x ")).collect::<String>();
        let (one, other) = (words(&text(0)), words(&text(20)));
        assert_eq!((one.hashes().len(), other.hashes().len()), (MAX_WORDS, MAX_WORDS));
        assert!(one.hashes().is_sorted_by(|a, b| a < b));
        // What one keeps of the words that both have, the other keeps too, up to where its own room ends.
        let shared = words(&text(20)[..40 * 9]);
        let last = one.hashes()[MAX_WORDS - 1].min(other.hashes()[MAX_WORDS - 1]);
        for hash in shared.hashes().iter().filter(|hash| **hash <= last) {
            assert!(one.hashes().contains(hash) && other.hashes().contains(hash));
        }
    }

    #[test]
    fn printing_them_shows_none() {
        assert_eq!(format!("{:?}", words("chest pain")), "Words { len: 2 }");
    }
}
