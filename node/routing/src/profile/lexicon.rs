//! The words that tell something, in one table: each word of a prompt is looked up once, for its field of knowledge,
//! its language and its task together.
//!
//! Words of up to 16 bytes are numbers, so a comparison is one instruction; the table is hashed at compile time.

use super::language::{self, Language};
use super::task::{self, Task};
use crate::domain::{self, Domain};

/// Slots of the table, a power of two; about a third of them are taken.
const SLOTS: usize = 4096;

/// A word in lower case, as a number. Longer words are in no list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word(u128);

impl Word {
    /// Longest word that can be looked up.
    pub(super) const MAX_BYTES: usize = 16;

    /// Returns the key of a word whose bytes are lowered already, filled up with zeros.
    pub(super) const fn new(bytes: [u8; Self::MAX_BYTES]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }

    /// Returns the bytes as a number.
    pub(super) const fn number(self) -> u128 {
        self.0
    }

    const fn slot(self) -> usize {
        let folded = (self.0 as u64) ^ (self.0 >> 64) as u64;
        (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - SLOTS.trailing_zeros())) as usize
    }
}

/// What a word tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clue {
    /// The field that it belongs to.
    pub(super) domain: Option<Domain>,
    /// The task that it asks for.
    pub(super) task: Option<Task>,
    /// Languages in which it is common, a bit for each index.
    pub(super) languages: u16,
}

const NOTHING: Clue = Clue { domain: None, task: None, languages: 0 };

struct Lexicon {
    words: [Word; SLOTS],
    clues: [Clue; SLOTS],
}

static LEXICON: Lexicon = Lexicon::build();

/// Returns what a word tells, if anything.
pub(super) fn look_up(word: Word) -> Option<&'static Clue> {
    let at = LEXICON.find(word);
    (LEXICON.words[at] == word && word != NO_WORD).then(|| &LEXICON.clues[at])
}

const NO_WORD: Word = Word(0);

impl Lexicon {
    const fn build() -> Self {
        let mut lexicon = Self { words: [NO_WORD; SLOTS], clues: [NOTHING; SLOTS] };
        let mut list = 0;
        while list < domain::WORDS.len() {
            let (domain, words) = domain::WORDS[list];
            lexicon.add(words, Clue { domain: Some(domain), ..NOTHING });
            list += 1;
        }
        list = 0;
        while list < language::WORDS.len() {
            let (language, words) = language::WORDS[list];
            lexicon.add(words, Clue { languages: Language::bit(language), ..NOTHING });
            list += 1;
        }
        list = 0;
        while list < task::WORDS.len() {
            let (task, words) = task::WORDS[list];
            lexicon.add(words, Clue { task: Some(task), ..NOTHING });
            list += 1;
        }
        lexicon
    }

    const fn add(&mut self, words: &[&str], clue: Clue) {
        let mut index = 0;
        while index < words.len() {
            let word = key(words[index].as_bytes());
            let at = self.find(word);
            self.words[at] = word;
            let known = self.clues[at];
            assert!(known.domain.is_none() || clue.domain.is_none(), "a word belongs to one domain");
            assert!(known.task.is_none() || clue.task.is_none(), "a word belongs to one task");
            self.clues[at] = Clue {
                domain: if clue.domain.is_some() { clue.domain } else { known.domain },
                task: if clue.task.is_some() { clue.task } else { known.task },
                languages: known.languages | clue.languages,
            };
            index += 1;
        }
    }

    /// Returns the slot of a word, or the free one where it would be.
    const fn find(&self, word: Word) -> usize {
        let mut at = word.slot();
        while self.words[at].0 != word.0 && self.words[at].0 != NO_WORD.0 {
            at = (at + 1) % SLOTS;
        }
        at
    }
}

const fn key(word: &[u8]) -> Word {
    assert!(word.len() <= Word::MAX_BYTES, "a word is too long for the table");
    let mut bytes = [0; Word::MAX_BYTES];
    let mut at = 0;
    while at < word.len() {
        assert!(!word[at].is_ascii_uppercase(), "words are listed in lower case");
        bytes[at] = word[at];
        at += 1;
    }
    Word::new(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_tells_all_that_its_lists_say() {
        let clue = |word: &str| look_up(key(word.as_bytes())).copied();
        assert_eq!(clue("python").and_then(|clue| clue.domain), Some(Domain::Code));
        assert_eq!(clue("translate").and_then(|clue| clue.task), Some(Task::Translate));
        let shared = clue("de").map(|clue| clue.languages).unwrap_or_default();
        for language in [Language::Spanish, Language::French, Language::Portuguese, Language::Dutch] {
            assert_ne!(shared & Language::bit(language), 0, "{language:?}");
        }
        assert_eq!(clue("qzxv"), None);
        assert_eq!(clue(""), None);
    }

    #[test]
    fn the_table_is_at_most_half_full() {
        let taken = LEXICON.words.iter().filter(|word| **word != NO_WORD).count();
        assert!(taken > 400 && taken <= SLOTS / 2, "{taken}");
    }
}
