//! Bytes of strangers: arbitrary ones, and good ones that were tampered with.
//!
//! A target is a folder of `corpus/`, one input a file, and a function that must take any bytes without a panic. Inputs
//! come from a seeded generator and a failing one is shrunk, so the quick run is the same everywhere; the long one
//! (`./test full`) takes another seed each time and prints it. `SHOAL_FUZZ_CASES` and `SHOAL_FUZZ_SEED` choose both.

use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Inputs of the quick run.
const QUICK: u32 = 2_000;
/// Longest run of arbitrary bytes.
const ARBITRARY: usize = 600;
/// Most changes to one input of the corpus.
const CHANGES: usize = 6;
/// Longest text that a change puts in.
const PUT: usize = 40;

/// One act of tampering; places are taken modulo the length.
#[derive(Debug, Clone)]
enum Change {
    Set(usize, u8),
    Put(usize, Vec<u8>),
    Cut(usize, usize),
    Repeat(usize, usize, u8),
    /// Goes on with another input of the corpus from here.
    Splice(usize, usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = |place: usize, length: usize| if length == 0 { 0 } else { place % length };
        match self {
            Change::Set(place, byte) => {
                let place = at(*place, bytes.len());
                if let Some(target) = bytes.get_mut(place) {
                    *target = *byte;
                }
            }
            Change::Put(place, text) => {
                let place = at(*place, bytes.len() + 1);
                bytes.splice(place..place, text.iter().copied());
            }
            Change::Cut(place, length) => {
                let start = at(*place, bytes.len() + 1);
                let end = start.saturating_add(*length).min(bytes.len());
                bytes.drain(start..end);
            }
            Change::Repeat(place, length, times) => {
                let start = at(*place, bytes.len() + 1);
                let end = start.saturating_add(*length).min(bytes.len());
                let part = bytes[start..end].repeat(usize::from(*times));
                bytes.splice(end..end, part);
            }
            Change::Splice(place, other) => {
                let other = &corpus[other % corpus.len()];
                let place = at(*place, bytes.len() + 1);
                bytes.truncate(place);
                bytes.extend_from_slice(&other[at(place, other.len() + 1)..]);
            }
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    // Bytes that mean something to most readers come more often than others.
    let byte = prop_oneof![any::<u8>(), proptest::sample::select(b"{}[]\",:\\\r\n \x00\xff-=.0e".to_vec())];
    let place = any::<u32>().prop_map(|place| place as usize);
    prop_oneof![
        (place.clone(), byte.clone()).prop_map(|(at, byte)| Change::Set(at, byte)),
        (place.clone(), vec(byte, 1..PUT)).prop_map(|(at, text)| Change::Put(at, text)),
        (place.clone(), 1..PUT).prop_map(|(at, length)| Change::Cut(at, length)),
        (place.clone(), 1..PUT, 1..64u8).prop_map(|(at, length, times)| Change::Repeat(at, length, times)),
        (place.clone(), place).prop_map(|(at, other)| Change::Splice(at, other)),
    ]
}

/// Gives a target `SHOAL_FUZZ_CASES` inputs, each of its corpus as it is among them.
///
/// # Panics
/// When the target panics; the message has the input, shrunk. Also when its corpus is missing.
pub fn strangers(target: &str, takes: impl Fn(&[u8])) {
    let corpus = corpus(target);
    corpus.iter().for_each(|input| takes(input));
    let known = corpus.clone();
    let tampered = (any::<u32>(), vec(change(), 1..=CHANGES)).prop_map(move |(which, changes)| {
        let mut bytes = known[which as usize % known.len()].clone();
        changes.iter().for_each(|change| change.apply(&mut bytes, &known));
        bytes
    });
    let inputs = prop_oneof![1 => vec(any::<u8>(), 0..ARBITRARY), 4 => tampered];
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let cases = number("SHOAL_FUZZ_CASES").and_then(|cases| u32::try_from(cases).ok()).unwrap_or(QUICK);
    let seed = number("SHOAL_FUZZ_SEED").unwrap_or(1);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let outcome = runner.run(&inputs, |input| {
        takes(&input);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{target}, seed {seed}: {error}");
    }
}

/// Reads a target's corpus, in the order of the files' names.
///
/// # Panics
/// When there is none.
pub fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files.iter().map(|file| std::fs::read(file).expect("a readable file")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_reader_that_falls_over_a_byte_is_found() {
        let found = std::panic::catch_unwind(|| {
            strangers("sse", |bytes| assert!(!bytes.windows(2).any(|pair| pair == b"\\\\"), "fell"));
        });
        assert!(found.is_err());
    }

    #[test]
    fn the_corpus_itself_comes_first_and_every_case_is_run() {
        let (first, count) = (Cell::new(None), Cell::new(0u32));
        strangers("sse", |bytes| {
            first.set(first.take().or_else(|| Some(bytes.to_vec())));
            count.set(count.get() + 1);
        });
        assert_eq!(first.take(), corpus("sse").into_iter().next());
        assert!(count.get() >= QUICK.min(2_000) || std::env::var("SHOAL_FUZZ_CASES").is_ok());
    }
}
