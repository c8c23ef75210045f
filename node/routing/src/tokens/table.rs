//! The packed token table: laid out at compile time, read in place, so that it costs no memory of the heap and no
//! time at start.
//!
//! Tokens are known by their 64-bit hash alone, which their own texts never share: one look at one place of a table
//! of 2 MB, where comparing bytes would miss the cache twice more. Other bytes pass for a token once in 10^13
//! look-ups; a count that is off by one then is no harm, since it measures size and bills nobody.
//!
//! `scripts/pack_tokens.py` writes it and says what each section holds; `assets/README.md` where it comes from.

static FILE: &[u8] = include_bytes!("../../assets/o200k.bin");

/// The o200k encoding (GPT-4o and later).
pub(super) static O200K: Table = Table::of(FILE);

/// Longest token in bytes.
const MAX_TOKEN_BYTES: usize = 128;

/// Bits of a slot that hold a rank; the others hold those of the hash.
const RANK_BITS: u32 = 18;

/// Rank of an empty slot.
const EMPTY: u64 = (1 << RANK_BITS) - 1;

/// Code points of one page of classes.
const PAGE: usize = 256;

/// Pages that cover all of Unicode.
const PAGES: usize = 0x11_0000 / PAGE;

/// Class of a character in the pattern that parts text before it is merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Punctuation, symbols, controls.
    Other,
    /// Upper-case and title-case letters.
    Upper,
    /// Lower-case letters.
    Lower,
    /// Letters without case.
    Letter,
    /// Combining marks.
    Mark,
    /// Numbers.
    Number,
    /// White space but for line ends.
    Blank,
    /// Carriage return and line feed.
    LineEnd,
}

impl Class {
    const ALL: [Self; 8] = [
        Self::Other,
        Self::Upper,
        Self::Lower,
        Self::Letter,
        Self::Mark,
        Self::Number,
        Self::Blank,
        Self::LineEnd,
    ];
}

/// Borrowed sections of the packed file.
pub(super) struct Table {
    slots: &'static [[u8; 8]],
    page_of: &'static [u8],
    pages: &'static [u8],
}

impl Table {
    const fn of(file: &'static [u8]) -> Self {
        let (magic, rest) = file.split_at(8);
        assert!(matches!(magic, b"SHOALBPE"), "not a packed token table");
        let (header, rest) = rest.split_at(4 * 4);
        let header: &[[u8; 4]] = header.as_chunks().0;
        assert!(number(header[0]) == 1, "another version");
        let (slots, rest) = rest.split_at(number(header[2]) * 8);
        let (page_of, pages) = rest.split_at(PAGES);
        assert!(pages.len() == number(header[3]) * PAGE, "the file ends too early or too late");
        let slots: &[[u8; 8]] = slots.as_chunks().0;
        assert!(slots.len() == 1 << RANK_BITS && number(header[1]) < slots.len());
        Self { slots, page_of, pages }
    }

    /// Returns the rank of a token: the lower, the earlier two parts are merged into it.
    pub(super) fn rank(&self, bytes: &[u8]) -> Option<u32> {
        if bytes.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let hash = hash(bytes);
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let slot = u64::from_le_bytes(self.slots[at]);
            if (slot ^ hash) >> RANK_BITS == 0 && slot & EMPTY != EMPTY {
                return Some((slot & EMPTY) as u32);
            }
            if slot & EMPTY == EMPTY {
                return None;
            }
            at = (at + 1) & mask;
        }
    }

    pub(super) fn class(&self, char: char) -> Class {
        let code = char as usize;
        let page = usize::from(self.page_of[code / PAGE]);
        Class::ALL[usize::from(self.pages[page * PAGE + code % PAGE]) % Class::ALL.len()]
    }
}

/// Hashes eight bytes at a time; `scripts/pack_tokens.py` does the same.
fn hash(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, chunk: u64| {
        let hash = (hash ^ chunk).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^ hash >> 32
    };
    let (chunks, rest) = bytes.as_chunks();
    let length = (bytes.len() as u64).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    let hash = chunks.iter().fold(length, |hash, chunk| mix(hash, u64::from_le_bytes(*chunk)));
    if rest.is_empty() { hash } else { mix(hash, little_end(rest)) }
}

/// Returns up to seven bytes as a number, without a loop: most pieces end in a part of a chunk.
fn little_end(bytes: &[u8]) -> u64 {
    let len = bytes.len();
    match (bytes.first_chunk(), bytes.last_chunk()) {
        (Some(first), Some(last)) => {
            u64::from(u32::from_le_bytes(*first)) | u64::from(u32::from_le_bytes(*last)) << (8 * (len - 4))
        }
        _ => {
            let (first, middle, last) = (bytes[0], bytes[len / 2], bytes[len - 1]);
            u64::from(first) | u64::from(middle) << (8 * (len / 2)) | u64::from(last) << (8 * (len - 1))
        }
    }
}

const fn number(bytes: [u8; 4]) -> usize {
    u32::from_le_bytes(bytes) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_is_in_one_slot_and_what_is_no_token_has_none() {
        let mut seen = vec![0u8; EMPTY as usize];
        for slot in O200K.slots {
            if let Some(count) = seen.get_mut((u64::from_le_bytes(*slot) & EMPTY) as usize) {
                *count += 1;
            }
        }
        let tokens = seen.iter().rposition(|count| *count > 0).unwrap() + 1;
        assert_eq!(tokens, 199_998);
        assert!(seen[..tokens].iter().all(|count| *count == 1));
        assert!(O200K.rank(b" the").is_some() && O200K.rank(b"!").is_some());
        assert_eq!(O200K.rank(b"\xff\xfe\xfd"), None);
        assert_eq!(O200K.rank(&[b' '; MAX_TOKEN_BYTES + 1]), None);
    }

    #[test]
    fn characters_are_of_their_class() {
        let cases = [
            ('A', Class::Upper),
            ('ǅ', Class::Upper),
            ('ß', Class::Lower),
            ('漢', Class::Letter),
            ('\u{301}', Class::Mark),
            ('Ⅷ', Class::Number),
            ('\u{3000}', Class::Blank),
            ('\r', Class::LineEnd),
            ('\u{1c}', Class::Other),
            ('€', Class::Other),
        ];
        for (char, class) in cases {
            assert_eq!(O200K.class(char), class, "{char:?}");
        }
    }
}
