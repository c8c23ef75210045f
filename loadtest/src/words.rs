//! Checkable answers: every word of a stub's answer names its place, its attempt and its prompt.
//!
//! A word is `w0003:nnnncccc`: its index, the attempt's nonce, and a check value over prompt, nonce and index.
//! A missing, repeated or reordered word breaks the index, words of two attempts in one answer (a splice) break
//! the nonce, and an answer to another request breaks the check value.

use std::fmt;

/// Longest answer a script may ask for, in words; the index has room for it.
pub const MAX_WORDS: usize = 20_000;

/// The words of one attempt at one prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words {
    prompt: u64,
    nonce: u16,
}

impl Words {
    /// Words that answer `prompt`; `nonce` tells two attempts at the same prompt apart.
    pub fn new(prompt: &str, nonce: u16) -> Self {
        Self { prompt: fnv1a(prompt.as_bytes()), nonce }
    }

    /// The word at `index`, without the space that separates words.
    pub fn word(&self, index: usize) -> String {
        format!("w{index:04}:{:04x}{:04x}", self.nonce, self.check(index))
    }

    fn check(&self, index: usize) -> u16 {
        let mut bytes = [0_u8; 18];
        bytes[..8].copy_from_slice(&self.prompt.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.nonce.to_le_bytes());
        bytes[10..].copy_from_slice(&(index as u64).to_le_bytes());
        let hash = fnv1a(&bytes);
        (hash ^ (hash >> 16) ^ (hash >> 32) ^ (hash >> 48)) as u16
    }
}

/// What is wrong with an answer made of words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The text is not made of words.
    NotWords,
    /// A word is missing, so a later one came too soon.
    Lost,
    /// A word came that had already been there.
    RepeatedOrReordered,
    /// Words of two attempts stand in one answer.
    Spliced,
    /// The words answer another prompt.
    Foreign,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::NotWords => "not_words",
            Fault::Lost => "lost",
            Fault::RepeatedOrReordered => "repeated_or_reordered",
            Fault::Spliced => "spliced",
            Fault::Foreign => "foreign",
        })
    }
}

/// Whether `text` is an answer of a stub, so that [`verify`] applies.
pub fn looks_like_words(text: &str) -> bool {
    text.split_whitespace().next().is_some_and(|word| parse(word).is_some())
}

/// Checks an answer against its prompt and returns how many words it has.
///
/// # Errors
/// The first fault found, going through the words in order.
pub fn verify(prompt: &str, text: &str) -> Result<usize, Fault> {
    let mut nonce = None;
    let mut expected = 0;
    for word in text.split_whitespace() {
        let (index, its_nonce, check) = parse(word).ok_or(Fault::NotWords)?;
        if *nonce.get_or_insert(its_nonce) != its_nonce {
            return Err(Fault::Spliced);
        }
        match index.cmp(&expected) {
            std::cmp::Ordering::Less => return Err(Fault::RepeatedOrReordered),
            std::cmp::Ordering::Greater => return Err(Fault::Lost),
            std::cmp::Ordering::Equal => {}
        }
        if Words::new(prompt, its_nonce).check(index) != check {
            return Err(Fault::Foreign);
        }
        expected += 1;
    }
    Ok(expected)
}

fn parse(word: &str) -> Option<(usize, u16, u16)> {
    let (index, hash) = word.strip_prefix('w')?.split_once(':')?;
    if index.len() < 4 || hash.len() != 8 || !hash.is_ascii() {
        return None;
    }
    let nonce = u16::from_str_radix(&hash[..4], 16).ok()?;
    let check = u16::from_str_radix(&hash[4..], 16).ok()?;
    Some((index.parse().ok()?, nonce, check))
}

/// Where a text of words breaks off: the nonce of its attempt and the index of the next word. `None` for another text,
/// and for one that ends within a word.
pub(crate) fn broken_off_at(text: &str) -> Option<(u16, usize)> {
    let (index, nonce, _) = parse(text.split_whitespace().next_back()?)?;
    Some((nonce, index + 1))
}

/// FNV-1a, 64 bits: no secret, only stable across builds and platforms.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(prompt: &str, nonce: u16, range: std::ops::Range<usize>) -> Vec<String> {
        range.map(|i| Words::new(prompt, nonce).word(i)).collect()
    }

    #[test]
    fn a_good_answer_verifies() {
        assert_eq!(verify("hi", &answer("hi", 7, 0..12).join(" ")), Ok(12));
        assert_eq!(verify("hi", ""), Ok(0));
    }

    #[test]
    fn each_kind_of_damage_has_its_name() {
        let good = answer("hi", 7, 0..6);
        let check = |words: &[String], fault| assert_eq!(verify("hi", &words.join(" ")), Err(fault));

        let mut lost = good.clone();
        lost.remove(3);
        check(&lost, Fault::Lost);

        let mut twice = good.clone();
        twice.insert(3, good[2].clone());
        check(&twice, Fault::RepeatedOrReordered);

        let mut swapped = good.clone();
        swapped.swap(2, 3);
        check(&swapped, Fault::Lost);

        let mut spliced = good[..3].to_vec();
        spliced.extend(answer("hi", 8, 3..6));
        check(&spliced, Fault::Spliced);

        check(&answer("ho", 7, 0..3), Fault::Foreign);
        check(&["Paris".to_owned()], Fault::NotWords);
    }

    #[test]
    fn prose_is_told_from_words() {
        assert!(looks_like_words(&Words::new("x", 1).word(0)));
        assert!(!looks_like_words("w is a letter"));
        assert!(!looks_like_words(""));
    }
}
