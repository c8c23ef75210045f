//! The packed file of the embedding, laid out at compile time: nothing is unpacked or built at run time, and a file
//! of another layout does not compile.
//!
//! `scripts/pack_embedding.py` writes it and says what each section holds; `assets/README.md` where it comes from.

use super::DIMS;

static FILE: &[u8] = include_bytes!("../../assets/embedding.bin");

/// The sections of [`FILE`].
pub(super) static TABLE: Table = Table::of(FILE);

/// Longest piece of the vocabulary in bytes, without its mark.
pub(super) const MAX_PIECE_BYTES: usize = 18;

/// Mark of a piece that continues a word.
const LATER_MARK: &[u8] = b"##";

/// An empty slot.
const EMPTY: u16 = 0xffff;

/// Code points of one page of characters.
const PAGE: usize = 256;

/// Pages that cover all of Unicode.
const PAGES: usize = 0x11_0000 / PAGE;

/// What becomes of a character before words are cut into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It belongs to a word as it is.
    Keep,
    /// It vanishes: a control or an accent.
    Drop,
    /// It parts words.
    Blank,
    /// It is a word of its own: punctuation, ideographs.
    Alone,
    /// A Korean syllable, to be taken apart into its letters.
    Hangul,
    /// It is replaced by this text, in which blanks part words.
    Fold(&'static str),
}

/// Where a search in the vocabulary begins: pieces that begin a word and pieces that continue one differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// At the start of a word.
    First,
    /// Inside a word.
    Later,
}

/// Hash of a piece, grown byte by byte (FNV-1a, 32 bits).
#[derive(Debug, Clone, Copy)]
pub(super) struct PieceHash(u32);

impl PieceHash {
    pub(super) fn new(place: Place) -> Self {
        match place {
            Place::First => Self(0x811c_9dc5),
            Place::Later => Self(0x5bd1_e995),
        }
    }

    pub(super) fn with(self, byte: u8) -> Self {
        Self((self.0 ^ u32::from(byte)).wrapping_mul(0x0100_0193))
    }
}

/// Borrowed sections of the packed file.
pub(super) struct Table {
    mean: [f32; DIMS],
    scale: [f32; DIMS],
    slots: &'static [[u8; 4]],
    token_ends: &'static [[u8; 4]],
    tokens: &'static [u8],
    page_of: &'static [u8],
    pages: &'static [[u8; 2]],
    fold_ends: &'static [[u8; 4]],
    folds: &'static [u8],
    rows: &'static [[u8; DIMS]],
}

impl Table {
    const fn of(file: &'static [u8]) -> Self {
        let (magic, rest) = file.split_at(8);
        assert!(matches!(magic, b"SHOALEMB"), "not a packed embedding");
        let (header, rest) = rest.split_at(8 * 4);
        let header: &[[u8; 4]] = header.as_chunks().0;
        assert!(number(header[0]) == 1 && number(header[2]) == DIMS, "another version or another size");
        let count = number(header[1]);
        let (mean, rest) = rest.split_at(DIMS * 4);
        let (deviation, rest) = rest.split_at(DIMS * 4);
        let (slots, rest) = rest.split_at(number(header[3]) * 4);
        let (token_ends, rest) = rest.split_at(count * 4);
        let (tokens, rest) = rest.split_at(number(header[4]));
        let (page_of, rest) = rest.split_at(PAGES);
        let (pages, rest) = rest.split_at(number(header[5]) * PAGE * 2);
        let (fold_ends, rest) = rest.split_at(number(header[6]) * 4);
        let (folds, rest) = rest.split_at(number(header[7]));
        let (rows, tail) = rest.as_chunks();
        assert!(rows.len() == count && tail.is_empty(), "the file ends too early or too late");
        let slots = slots.as_chunks().0;
        assert!(slots.len().is_power_of_two());
        Self {
            mean: numbers(mean),
            scale: inverse(numbers(deviation)),
            slots,
            token_ends: token_ends.as_chunks().0,
            tokens,
            page_of,
            pages: pages.as_chunks().0,
            fold_ends: fold_ends.as_chunks().0,
            folds,
            rows,
        }
    }

    /// Returns the row of a piece, which `hash` must have been made of.
    pub(super) fn row(&self, place: Place, piece: &[u8], hash: PieceHash) -> Option<u16> {
        let mask = self.slots.len() - 1;
        let mut at = (hash.0.wrapping_mul(0x9e37_79b1) >> 16) as usize & mask;
        loop {
            let [low, high, tag_low, tag_high] = self.slots[at];
            let row = u16::from_le_bytes([low, high]);
            if row == EMPTY {
                return None;
            }
            // Most other pieces are told apart by half of the hash, without a look at their text.
            if u16::from_le_bytes([tag_low, tag_high]) == hash.0 as u16 && self.is(row, place, piece) {
                return Some(row);
            }
            at = (at + 1) & mask;
        }
    }

    fn is(&self, row: u16, place: Place, piece: &[u8]) -> bool {
        let token = part(self.tokens, self.token_ends, usize::from(row));
        match place {
            Place::First => token == piece,
            Place::Later => token.strip_prefix(LATER_MARK) == Some(piece),
        }
    }

    /// Adds the row of a piece to `sums`.
    pub(super) fn add(&self, row: u16, sums: &mut [i32; DIMS]) {
        for (sum, value) in sums.iter_mut().zip(self.rows[usize::from(row)]) {
            *sum += i32::from(value as i8);
        }
    }

    /// Brings the dimensions of a unit vector to mean 0 and deviation 1 over the prompts that the table was fitted on.
    pub(super) fn whiten(&self, unit: &mut [f32; DIMS]) {
        for (value, (mean, scale)) in unit.iter_mut().zip(self.mean.iter().zip(&self.scale)) {
            *value = (*value - mean) * scale;
        }
    }

    /// Returns what becomes of a character.
    pub(super) fn fate(&self, char: char) -> Fate {
        let code = char as usize;
        let page = usize::from(self.page_of[code / PAGE]);
        match u16::from_le_bytes(self.pages[page * PAGE + code % PAGE]) {
            0 => Fate::Keep,
            1 => Fate::Drop,
            2 => Fate::Blank,
            3 => Fate::Alone,
            4 => Fate::Hangul,
            fold => {
                let bytes = part(self.folds, self.fold_ends, usize::from(fold) - 5);
                // A fold is whole characters; were it not, the character would only vanish.
                Fate::Fold(std::str::from_utf8(bytes).unwrap_or_default())
            }
        }
    }
}

/// Returns a part of texts that were written one after the other.
fn part(texts: &'static [u8], ends: &[[u8; 4]], index: usize) -> &'static [u8] {
    let start = if index == 0 { 0 } else { number(ends[index - 1]) };
    &texts[start..number(ends[index])]
}

const fn number(bytes: [u8; 4]) -> usize {
    u32::from_le_bytes(bytes) as usize
}

const fn numbers(bytes: &[u8]) -> [f32; DIMS] {
    let bytes: &[[u8; 4]] = bytes.as_chunks().0;
    let mut numbers = [0.0; DIMS];
    let mut at = 0;
    while at < DIMS {
        numbers[at] = f32::from_le_bytes(bytes[at]);
        at += 1;
    }
    numbers
}

const fn inverse(mut numbers: [f32; DIMS]) -> [f32; DIMS] {
    let mut at = 0;
    while at < DIMS {
        assert!(numbers[at] > 0.0, "a dimension without spread");
        numbers[at] = 1.0 / numbers[at];
        at += 1;
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look_up(place: Place, piece: &[u8]) -> Option<u16> {
        let hash = piece.iter().fold(PieceHash::new(place), |hash, byte| hash.with(*byte));
        TABLE.row(place, piece, hash)
    }

    #[test]
    fn every_piece_of_the_vocabulary_is_found_by_its_text_and_fits_the_bound() {
        for row in 0..TABLE.rows.len() {
            let token = part(TABLE.tokens, TABLE.token_ends, row);
            let (place, piece) = match token.strip_prefix(LATER_MARK) {
                Some(piece) if !piece.is_empty() => (Place::Later, piece),
                _ => (Place::First, token),
            };
            assert!(piece.len() <= MAX_PIECE_BYTES || token.starts_with(b"["), "{row}");
            assert_eq!(look_up(place, piece).map(usize::from), Some(row));
        }
        assert_eq!(look_up(Place::First, b"qzxv"), None);
        assert_eq!(look_up(Place::Later, b""), None);
    }

    #[test]
    fn characters_meet_their_fate() {
        let cases = [
            ('a', Fate::Keep),
            ('ß', Fate::Keep),
            ('😀', Fate::Keep),
            ('\n', Fate::Blank),
            ('\u{a0}', Fate::Blank),
            ('\u{0}', Fate::Drop),
            ('\u{301}', Fate::Drop),
            ('?', Fate::Alone),
            ('。', Fate::Alone),
            ('漢', Fate::Alone),
            ('한', Fate::Hangul),
            ('Ü', Fate::Fold("u")),
            ('Σ', Fate::Fold("σ")),
            ('≠', Fate::Fold(" = ")),
        ];
        for (char, fate) in cases {
            assert_eq!(TABLE.fate(char), fate, "{char:?}");
        }
    }
}
