//! Cuts text into the pieces of the vocabulary: BERT's normaliser and its greedy longest-match-first WordPiece.
//!
//! Our own, since the library allocates for every word and costs more than a whole decision may. What differs from
//! it: text that looks like a special token (`[CLS]`) is text, so that no user reaches those rows.

use super::table::{Fate, MAX_PIECE_BYTES, PieceHash, Place, TABLE};

/// Characters above which a word is unknown as a whole, as in BERT.
const MAX_WORD_CHARS: usize = 100;

/// Room for a word of that many characters.
const MAX_WORD_BYTES: usize = MAX_WORD_CHARS * 4;

/// Fates of ASCII characters, so that most text skips the pages: 0 vanishes, `b' '` parts words, punctuation stays
/// itself with the high bit set, everything else is the letter to keep.
static ASCII: [u8; 128] = {
    let mut fates = [0; 128];
    let mut code = 0u8;
    while code < 128 {
        fates[code as usize] = match code {
            b'\t' | b'\n' | b'\r' | b' ' => b' ',
            _ if code.is_ascii_punctuation() => code | ALONE,
            _ if code.is_ascii_control() => 0,
            _ => code.to_ascii_lowercase(),
        };
        code += 1;
    }
    fates
};

/// Marks a character of [`ASCII`] that is a word of its own.
const ALONE: u8 = 0x80;

/// Collects words from text and hands the rows of their pieces on.
pub(super) struct Pieces<F> {
    word: [u8; MAX_WORD_BYTES],
    bytes: usize,
    chars: usize,
    /// Receives the rows of each word whose pieces are all known.
    take: F,
}

impl<F: FnMut(&[u16])> Pieces<F> {
    pub(super) fn new(take: F) -> Self {
        Self { word: [0; MAX_WORD_BYTES], bytes: 0, chars: 0, take }
    }

    /// Takes a text; the end of it ends a word.
    pub(super) fn push(&mut self, text: &str) {
        let mut at = 0;
        while let Some(&byte) = text.as_bytes().get(at) {
            if byte.is_ascii() {
                match ASCII[usize::from(byte)] {
                    0 => {}
                    b' ' => self.end_word(),
                    letter if letter & ALONE == 0 => self.letter(letter),
                    mark => {
                        self.end_word();
                        self.letter(mark & !ALONE);
                        self.end_word();
                    }
                }
                at += 1;
            } else {
                let char = text[at..].chars().next().unwrap_or_default();
                self.wide(char);
                at += char.len_utf8();
            }
        }
        self.end_word();
    }

    /// Takes a character beyond ASCII.
    fn wide(&mut self, char: char) {
        match TABLE.fate(char) {
            Fate::Keep => self.char(char),
            Fate::Drop => {}
            Fate::Blank => self.end_word(),
            Fate::Alone => {
                self.end_word();
                self.char(char);
                self.end_word();
            }
            Fate::Hangul => letters_of(char).into_iter().flatten().for_each(|letter| self.char(letter)),
            Fate::Fold(text) => {
                for folded in text.chars() {
                    if folded == ' ' { self.end_word() } else { self.char(folded) }
                }
            }
        }
    }

    fn letter(&mut self, byte: u8) {
        if self.chars < MAX_WORD_CHARS {
            self.word[self.bytes] = byte;
            self.bytes += 1;
        }
        self.chars += 1;
    }

    fn char(&mut self, char: char) {
        if self.chars < MAX_WORD_CHARS {
            self.bytes += char.encode_utf8(&mut self.word[self.bytes..]).len();
        }
        self.chars += 1;
    }

    fn end_word(&mut self) {
        if self.chars > 0 {
            if self.chars <= MAX_WORD_CHARS {
                let mut rows = [0; MAX_WORD_CHARS];
                if let Some(count) = cut(&self.word[..self.bytes], &mut rows) {
                    (self.take)(&rows[..count]);
                }
            }
            (self.bytes, self.chars) = (0, 0);
        }
    }
}

/// Cuts a word into the longest known pieces, from the left; `None` where a rest is unknown: then all of it is.
fn cut(word: &[u8], rows: &mut [u16; MAX_WORD_CHARS]) -> Option<usize> {
    let (mut start, mut count, mut place) = (0, 0, Place::First);
    while start < word.len() {
        let longest = word.len().min(start + MAX_PIECE_BYTES);
        let mut hashes = [PieceHash::new(place); MAX_PIECE_BYTES + 1];
        for (at, byte) in word[start..longest].iter().enumerate() {
            hashes[at + 1] = hashes[at].with(*byte);
        }
        let known = (1..=longest - start)
            .rev()
            .find_map(|len| TABLE.row(place, &word[start..start + len], hashes[len]).map(|row| (row, len)));
        let (row, len) = known?;
        rows[count] = row;
        count += 1;
        start += len;
        place = Place::Later;
    }
    Some(count)
}

/// Takes a Korean syllable apart into its two or three letters (Unicode, section 3.12).
fn letters_of(syllable: char) -> [Option<char>; 3] {
    let index = syllable as u32 - 0xac00;
    let tail = index % 28;
    [
        char::from_u32(0x1100 + index / (21 * 28)),
        char::from_u32(0x1161 + index % (21 * 28) / 28),
        (tail > 0).then(|| char::from_u32(0x11a7 + tail)).flatten(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the pieces of each word of a text.
    fn counts(text: &str) -> Vec<usize> {
        let mut counts = Vec::new();
        Pieces::new(|rows: &[u16]| counts.push(rows.len())).push(text);
        counts
    }

    #[test]
    fn words_are_cut_into_the_longest_known_pieces() {
        assert_eq!(counts("Hello, World!"), [1, 1, 1, 1]);
        assert_eq!(counts("unaffable"), [3]);
        assert_eq!(counts("naïve NAIVE"), [1, 1]);
    }

    #[test]
    fn a_word_with_an_unknown_rest_or_of_more_than_a_hundred_characters_is_left_out() {
        assert_eq!(counts("hello🦀"), [0; 0]);
        assert_eq!(counts(&"a".repeat(101)), [0; 0]);
        assert!(!counts(&"a".repeat(100)).is_empty());
        assert_eq!(counts(&format!("{} tail", "ü".repeat(5_000))), [1]);
    }

    #[test]
    fn ideographs_stand_alone_and_syllables_fall_apart() {
        assert_eq!(counts("中国人"), [1, 1, 1]);
        assert_eq!(letters_of('한'), [Some('\u{1112}'), Some('\u{1161}'), Some('\u{11ab}')]);
        assert_eq!(letters_of('가'), [Some('\u{1100}'), Some('\u{1161}'), None]);
    }

    #[test]
    fn no_text_reaches_the_rows_of_special_tokens() {
        assert_eq!(counts("[CLS]").len(), 3);
    }
}
