//! Keywords: whole words, letter case aside, found in one pass over a text of any length.

use std::iter::Peekable;
use std::str::CharIndices;

/// One or several words that must follow one another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyword {
    /// As it was written.
    text: String,
    words: Vec<String>,
}

impl Keyword {
    /// Reads a keyword; `None` unless it begins and ends with a letter or digit: what stands around words is not looked
    /// at, so that `c++` would be found in every `c`.
    pub fn new(text: &str) -> Option<Self> {
        let ends = text.chars().next().zip(text.chars().next_back());
        ends.filter(|(first, last)| first.is_alphanumeric() && last.is_alphanumeric())?;
        Some(Self { text: text.to_owned(), words: Words::of(text).map(lower).collect() })
    }

    /// Returns the text that it was made of.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Tells whether one of the keywords stands in the text.
pub(super) fn contains_any(text: &str, keywords: &[Keyword]) -> bool {
    let mut words = Words::of(text);
    while let Some(word) = words.next() {
        let begins = |keyword: &&Keyword| keyword.words.first().is_some_and(|first| is_same(word, first));
        let goes_on = |keyword: &Keyword| {
            let mut next = words.clone();
            keyword.words[1..].iter().all(|wanted| next.next().is_some_and(|word| is_same(word, wanted)))
        };
        if keywords.iter().filter(begins).any(goes_on) {
            return true;
        }
    }
    false
}

fn lower(word: &str) -> String {
    word.chars().flat_map(char::to_lowercase).collect()
}

/// Compares a word of a text with one in lower case, without a copy.
fn is_same(word: &str, lower: &str) -> bool {
    // Most words differ in their first letter; lower case of another length is rare and compared in full.
    word.chars().flat_map(char::to_lowercase).eq(lower.chars())
}

/// The words of a text: runs of letters, digits and `_`; in scripts that are written without spaces, each character.
#[derive(Clone)]
struct Words<'a> {
    text: &'a str,
    chars: Peekable<CharIndices<'a>>,
}

impl<'a> Words<'a> {
    fn of(text: &'a str) -> Self {
        Self { text, chars: text.char_indices().peekable() }
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let (start, first) = self.chars.find(|(_, c)| is_part(*c))?;
        let mut end = start + first.len_utf8();
        if !stands_alone(first) {
            while let Some((at, c)) = self.chars.next_if(|(_, c)| is_part(*c) && !stands_alone(*c)) {
                end = at + c.len_utf8();
            }
        }
        Some(&self.text[start..end])
    }
}

fn is_part(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// True for kana and Han characters.
fn stands_alone(c: char) -> bool {
    matches!(u32::from(c), 0x3040..=0x30ff | 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0x2_0000..=0x3_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_words_are_found_whatever_their_case() {
        let found = |text: &str, keyword: &str| contains_any(text, &[Keyword::new(keyword).unwrap()]);
        for (text, keyword) in [
            ("Is RUST fast?", "rust"),
            ("the borrow\nchecker complains", "Borrow Checker"),
            ("use node.js, please", "node.js"),
            ("Die ÜBERSICHT fehlt", "übersicht"),
            ("请看这份合同的条款", "合同"),
            ("rust", "rust"),
            ("a a b", "a b"),
        ] {
            assert!(found(text, keyword), "{keyword} in {text}");
        }
        for (text, keyword) in [
            ("a trustworthy answer", "rust"),
            ("rusty", "rust"),
            ("the borrow of a checker", "borrow checker"),
            ("the borrow", "borrow checker"),
            ("snake_rust", "rust"),
            ("", "rust"),
        ] {
            assert!(!found(text, keyword), "{keyword} in {text}");
        }
        for bad in ["", "c++", "#tag", " rust"] {
            assert_eq!(Keyword::new(bad), None, "{bad}");
        }
    }
}
