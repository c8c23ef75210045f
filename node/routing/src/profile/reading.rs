//! One pass over the sample of a prompt: what its characters are and what its words tell.

use super::language::{Language, Script, Scripts};
use super::lexicon::{self, Word};
use super::sample::Sample;
use super::task::{self, Task};
use super::words::Words;
use crate::domain::Domain;

/// Bytes at both ends of a text in which a word that asks for a task counts double.
const LOUD_BYTES: usize = 120;

/// Signs that only source text shows.
const CODE_MARKS: [&str; 7] = ["();", " => ", "->", "!=", "==", "});", "</"];

/// Shortest word that tells what a prompt is about, bytes.
const TELLING_BYTES: usize = 3;

/// Marks off source text in a message.
const FENCE: &str = "```";

/// Counts of one pass.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Reading {
    /// Characters.
    chars: u32,
    /// Letters of any script.
    letters: u32,
    /// Digits 0 to 9.
    digits: u32,
    /// Spaces.
    blanks: u32,
    /// Runs of letters and digits.
    words: u32,
    /// Characters in them.
    word_chars: u32,
    /// Line ends.
    line_ends: u32,
    /// Lines such as "A. …" or "b) …".
    options: u32,
    /// Latin letters beyond ASCII.
    wide_latin: u32,
    /// The last turn, or what stands before a list of options, ends with a question mark.
    asks: bool,
    /// Some of it is marked off as source text.
    pub(super) has_fence: bool,
    /// Kinds of signs that only source text shows.
    code_marks: u32,
    pub(super) scripts: Scripts,
    /// Words that are common in each language.
    pub(super) languages: [u16; Language::ALL.len()],
    /// Words of each field.
    domains: [u16; Domain::ALL.len()],
    /// Words that ask for each task, those near an end twice.
    pub(super) tasks: [u16; Task::ALL.len()],
    /// What it is about.
    pub(super) about: Words,
}

impl Reading {
    /// Reads a sample, all of it: one look-up a word, about 3 ns a byte.
    pub(crate) fn of(sample: &Sample<'_>) -> Self {
        let mut reading = Self::default();
        for part in sample.parts() {
            reading.read(part);
        }
        for text in [sample.head(), sample.end()] {
            reading.has_fence |= text.contains(FENCE);
        }
        let has_mark = |mark: &&str| sample.parts().any(|part| part.contains(mark));
        reading.code_marks = CODE_MARKS.iter().filter(|mark| has_mark(mark)).count() as u32;
        if reading.letters > reading.scripts.latin() {
            for (task, marks) in task::MARKS {
                if marks.iter().any(has_mark) {
                    reading.tasks[task as usize] += 2;
                }
            }
        }
        let end = sample.end().trim_end();
        reading.asks |= end.ends_with(['?', '？', '؟']);
        reading
    }

    fn read(&mut self, text: &str) {
        let bytes = text.as_bytes();
        let mut word = OpenWord::default();
        self.options += u32::from(is_option(bytes));
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            let (mut width, mut chars) = (1, 1);
            if byte.is_ascii_alphanumeric() {
                let run = &bytes[at..];
                width = run.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
                let run = &run[..width];
                chars = width as u32;
                word.push(run, chars);
                let digits = run.iter().filter(|byte| byte.is_ascii_digit()).count() as u32;
                self.digits += digits;
                self.letters += chars - digits;
                self.scripts.add(Script::Latin, chars - digits);
            } else if byte.is_ascii() {
                self.end_word(&mut word, at, bytes.len());
                if byte == b' ' {
                    self.blanks += 1;
                } else if byte == b'\n' {
                    self.line_ends += 1;
                    if is_option(&bytes[at + 1..]) {
                        self.options += 1;
                        self.asks |= text[..at].trim_end().ends_with(['?', '？', '؟']);
                    }
                }
            } else {
                let char = text[at..].chars().next().unwrap_or_default();
                width = char.len_utf8();
                if char.is_alphanumeric() {
                    word.push(lowered(char).encode_utf8(&mut [0; 4]).as_bytes(), 1);
                    let script = Script::of(char);
                    self.letters += 1;
                    self.wide_latin += u32::from(script == Script::Latin);
                    self.scripts.add(script, 1);
                } else {
                    self.end_word(&mut word, at, bytes.len());
                }
            }
            self.chars += chars;
            at += width;
        }
        self.end_word(&mut word, at, bytes.len());
    }

    fn end_word(&mut self, word: &mut OpenWord, end: usize, of: usize) {
        if word.chars == 0 {
            return;
        }
        self.words += 1;
        self.word_chars += word.chars;
        let clue = word.key().and_then(lexicon::look_up);
        if let Some(key) = word.key().filter(|_| word.tells())
            && clue.is_none_or(|clue| clue.languages == 0)
        {
            self.about.add(key.number());
        }
        if let Some(clue) = clue {
            if let Some(domain) = clue.domain {
                self.domains[domain as usize] += 1;
            }
            if let Some(task) = clue.task {
                let loud = end <= LOUD_BYTES || of - end <= LOUD_BYTES;
                self.tasks[task as usize] += 1 + u16::from(loud);
            }
            let mut languages = clue.languages;
            while languages != 0 {
                self.languages[languages.trailing_zeros() as usize] += 1;
                languages &= languages - 1;
            }
        }
        *word = OpenWord::default();
    }

    /// Returns how many telling words of a field there are.
    pub(crate) fn hits(&self, domain: Domain) -> u32 {
        u32::from(self.domains[domain as usize])
    }

    /// Returns how many kinds of signs there are that only source text shows.
    pub(crate) fn code_marks(&self) -> u32 {
        self.code_marks
    }

    /// True when some of the text is marked off as source text.
    pub(crate) fn has_fence(&self) -> bool {
        self.has_fence
    }

    /// True when there are Latin letters that English does without.
    pub(super) fn has_wide_latin(&self) -> bool {
        self.wide_latin > 0
    }

    /// Returns the share of digits among the characters.
    pub(crate) fn digit_share(&self) -> f32 {
        self.digits as f32 / self.chars.max(1) as f32
    }

    /// Returns the share of the characters that are no letters, blanks among them.
    pub(crate) fn non_letter_share(&self) -> f32 {
        (self.chars - self.letters) as f32 / self.chars.max(1) as f32
    }

    /// Returns the share of the characters that are neither letters nor blanks.
    pub(super) fn mark_share(&self) -> f32 {
        self.chars.saturating_sub(self.letters + self.blanks) as f32 / self.chars.max(1) as f32
    }

    /// Returns the number of lines.
    pub(super) fn lines(&self) -> u32 {
        self.line_ends + 1
    }

    pub(super) fn options(&self) -> u32 {
        self.options
    }

    pub(super) fn asks(&self) -> bool {
        self.asks
    }

    pub(super) fn mean_word_chars(&self) -> f32 {
        self.word_chars as f32 / self.words.max(1) as f32
    }
}

/// A word that has not ended yet, lowered, as far as the lexicon can know it.
#[derive(Default)]
struct OpenWord {
    bytes: [u8; Word::MAX_BYTES],
    len: usize,
    chars: u32,
}

impl OpenWord {
    fn push(&mut self, text: &[u8], chars: u32) {
        if let Some(room) = self.bytes.get_mut(self.len..self.len + text.len()) {
            for (slot, byte) in room.iter_mut().zip(text) {
                *slot = byte.to_ascii_lowercase();
            }
        }
        self.len += text.len();
        self.chars += chars;
    }

    /// True when it is neither a number nor too short to tell anything.
    fn tells(&self) -> bool {
        self.len >= TELLING_BYTES && !self.bytes[0].is_ascii_digit()
    }

    fn key(&self) -> Option<Word> {
        (self.len <= Word::MAX_BYTES).then(|| Word::new(self.bytes))
    }
}

/// Lowers the letters that listed words begin with; what others become does not matter.
fn lowered(char: char) -> char {
    match char {
        'À'..='Ö' | 'Ø'..='Þ' => char::from_u32(char as u32 + 0x20).unwrap_or(char),
        _ => char,
    }
}

/// True for the start of a line such as "A. …", "(b) …".
fn is_option(line: &[u8]) -> bool {
    let blanks = line.iter().take(4).take_while(|byte| matches!(byte, b' ' | b'\t' | b'(')).count();
    matches!(line[blanks..], [b'A'..=b'J' | b'a'..=b'j', b'.' | b')' | b':', b' ', ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Reading {
        Reading::of(&Sample::of_text(text))
    }

    #[test]
    fn characters_are_told_apart() {
        let reading = read("Zwölf 12 Äpfel?\n漢字");
        assert_eq!((reading.chars, reading.letters, reading.digits), (18, 12, 2));
        assert_eq!((reading.words, reading.word_chars, reading.lines()), (4, 14, 2));
        assert_eq!(reading.wide_latin, 2);
        assert!(!reading.asks());
        assert!(read("So? \n").asks() && read("对吗？").asks());
        assert!(read("Which one?\nA. One\nB. Two").asks() && !read("Choose.\nA. One").asks());
    }

    #[test]
    fn lines_that_offer_an_answer_are_counted() {
        let text = "Which one?\nA. One\nB. Two\n  (c) three\nAnd. no\nK. no\nA.no\nA";
        assert_eq!(read(text).options(), 3);
        assert_eq!(read("A. One").options(), 1);
    }

    #[test]
    fn words_are_found_in_any_case_and_long_ones_in_no_list() {
        let reading = read("PYTHON python Pythonpythonpythonpython");
        assert_eq!(reading.hits(Domain::Code), 2);
        assert_eq!(read("Über Für").languages[Language::German as usize], 2);
    }

    #[test]
    fn signs_of_source_text_count_once_each() {
        let reading = read("a == b; c == d; e();\n```\n```");
        assert_eq!((reading.code_marks(), reading.has_fence()), (2, true));
    }

    #[test]
    fn nothing_to_read_is_no_trouble() {
        let reading = read("");
        assert_eq!(
            (reading.digit_share(), reading.non_letter_share(), reading.mean_word_chars()),
            (0.0, 0.0, 0.0)
        );
    }
}
