//! Finds text that goes round in circles, word by word, in constant space and without allocation.
//!
//! Two measures. The share of 3-grams that occurred a moment ago grows with any kind of sameness; it is gradual and
//! only lowers a score. An exact repeat of a passage, three times in a row and long, is a loop: small models that
//! lost the thread do that until their limit. What is compared are words (letters and digits, cut at 16
//! characters, so that "hahaha…" has words too); each ideograph and kana is a word of its own. Punctuation does
//! not count: the rule of a table is no loop.

/// Words in which 3-grams are looked for: a paragraph.
const WINDOW: usize = 64;

/// 3-grams that must have been seen before a share means anything.
const ENOUGH: u32 = 24;

/// Longest passage whose exact repeat is noticed, in words.
const MAX_PERIOD: usize = 32;

/// Copies of a passage in a row that make a loop. Refrains come twice.
const COPIES: u32 = 3;

/// Words that the copies must cover together, so that "no, no, no" is no loop.
const COVERED: u32 = 32;

/// The same character so often in a row is a loop, whatever it is.
const SAME_CHAR: u32 = 256;

/// Characters after which a word is cut.
const WORD_CHARS: u32 = 16;

/// First of the scripts that are written without spaces.
const IDEOGRAPHS: char = '\u{2E80}';

/// FNV-1a, 32 bits: words are compared only with near ones, so a rare collision costs a little accuracy.
const FNV_OFFSET: u32 = 0x811c_9dc5;
const FNV_PRIME: u32 = 0x0100_0193;

/// Watches a text as it grows.
#[derive(Debug, Clone)]
pub struct Repetition {
    words: [u32; WINDOW],
    trigrams: [u32; WINDOW],
    /// Bit i is set when the 3-gram in place i was in the window before.
    repeated: u64,
    count: u32,
    /// For each period, how many words in a row equalled the one that far back.
    runs: [u32; MAX_PERIOD],
    word: u32,
    word_chars: u32,
    last_char: char,
    same_chars: u32,
    worst: f64,
    looping: bool,
}

impl Default for Repetition {
    fn default() -> Self {
        Self {
            words: [0; WINDOW],
            trigrams: [0; WINDOW],
            repeated: 0,
            count: 0,
            runs: [0; MAX_PERIOD],
            word: FNV_OFFSET,
            word_chars: 0,
            last_char: ' ',
            same_chars: 0,
            worst: 0.0,
            looping: false,
        }
    }
}

impl Repetition {
    /// Takes in the next piece of text; pieces may end inside a word.
    pub fn push(&mut self, text: &str) {
        for c in text.chars() {
            self.same_chars = if c == self.last_char && !c.is_whitespace() { self.same_chars + 1 } else { 1 };
            self.last_char = c;
            self.looping |= self.same_chars >= SAME_CHAR;
            if !c.is_alphanumeric() {
                self.end_word();
                continue;
            }
            self.word = (self.word ^ u32::from(c)).wrapping_mul(FNV_PRIME);
            self.word_chars += 1;
            if c >= IDEOGRAPHS || self.word_chars >= WORD_CHARS {
                self.end_word();
            }
        }
    }

    /// Returns the largest share of repeated 3-grams in any window so far, 0 to 1.
    pub fn share(&self) -> f64 {
        self.worst
    }

    /// True once a long passage was repeated exactly.
    pub fn is_loop(&self) -> bool {
        self.looping
    }

    fn end_word(&mut self) {
        if self.word_chars == 0 {
            return;
        }
        let word = std::mem::replace(&mut self.word, FNV_OFFSET);
        self.word_chars = 0;
        self.count_runs(word);
        self.words[self.count as usize % WINDOW] = word;
        self.count = self.count.saturating_add(1);
        self.count_trigrams();
    }

    fn back(&self, words: usize) -> u32 {
        self.words[(self.count as usize).wrapping_sub(words) % WINDOW]
    }

    fn count_runs(&mut self, word: u32) {
        for period in 1..=MAX_PERIOD.min(self.count as usize) {
            let run = if self.back(period) == word { self.runs[period - 1].saturating_add(1) } else { 0 };
            self.runs[period - 1] = run;
            let length = period as u32;
            self.looping |= run >= (COPIES - 1) * length && run.saturating_add(length) >= COVERED;
        }
    }

    fn count_trigrams(&mut self) {
        if self.count < 3 {
            return;
        }
        let trigram = [3, 2, 1]
            .into_iter()
            .fold(FNV_OFFSET, |hash, words| (hash ^ self.back(words)).wrapping_mul(FNV_PRIME).rotate_left(5));
        let number = self.count - 3;
        let kept = (number as usize).min(WINDOW);
        let place = number as usize % WINDOW;
        let bit = 1u64 << place;
        if self.trigrams[..kept].contains(&trigram) {
            self.repeated |= bit
        } else {
            self.repeated &= !bit
        }
        self.trigrams[place] = trigram;
        let seen = (number + 1).min(WINDOW as u32);
        if seen >= ENOUGH {
            self.worst = self.worst.max(f64::from(self.repeated.count_ones()) / f64::from(seen));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(text: &str) -> Repetition {
        let mut repetition = Repetition::default();
        repetition.push(text);
        repetition
    }

    const PROSE: &str = "The harbour woke slowly. Gulls argued over the nets while two boys carried ice up the \
        steep road to the market, where the first stalls were being set out and the smell of bread came \
        through an open door. Nobody spoke of the storm, although each roof showed what it had done and \
        the church clock had stopped at four. By noon the road would be full again.";

    #[test]
    fn prose_is_no_loop_and_barely_repeats() {
        let prose = watched(PROSE);
        assert!(!prose.is_loop() && prose.share() < 0.05, "{}", prose.share());
    }

    #[test]
    fn exact_repeats_are_loops_in_any_script() {
        let loops = [
            "I do not know. ".repeat(12),
            "the answer is the answer is ".repeat(10),
            "yes ".repeat(40),
            "ha".repeat(400),
            "答えは分かりません。".repeat(8),
            "!".repeat(300),
            format!("{PROSE} {}", "and so on and on it goes ".repeat(8)),
        ];
        for text in loops {
            assert!(watched(&text).is_loop(), "{text}");
        }
    }

    #[test]
    fn refrains_rules_and_short_repeats_are_no_loops() {
        let fine = [
            "No, no, no! ".to_owned(),
            format!("{PROSE} {PROSE}"),
            "| --- | --- | --- | --- | --- |\n".repeat(30),
            "=".repeat(80),
            (1..200).map(|n| format!("{n}. item {n}\n")).collect(),
        ];
        for text in fine {
            assert!(!watched(&text).is_loop(), "{text}");
        }
    }

    #[test]
    fn the_share_grows_with_sameness_and_is_kept_when_the_text_goes_on() {
        let varied: String = (0..20).map(|n| format!("the price of item {n} is low; ")).collect();
        let share = watched(&varied).share();
        assert!((0.2..0.8).contains(&share), "{share}");
        assert!(watched(&format!("{varied} {PROSE}")).share() >= share);
    }

    #[test]
    fn pieces_of_words_make_the_same_words() {
        let text = "I do not know. ".repeat(12);
        let mut pieces = Repetition::default();
        for piece in text.as_bytes().chunks(4) {
            pieces.push(std::str::from_utf8(piece).unwrap());
        }
        assert!(pieces.is_loop());
        assert_eq!(pieces.share(), watched(&text).share());
    }
}
