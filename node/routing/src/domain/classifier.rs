//! Multinomial logistic regression over the embedding and the counts of telling words.
//!
//! `scripts/train_domain.py` fits it on benchmark prompts and on seeds for what benchmarks lack (law, chat), and
//! writes `assets/domain.bin`; `docs/profile.md` has its accuracy.

use super::Domain;
use crate::embed::{DIMS, Embedding};
use crate::profile::{Reading, Sample};

/// Inputs of the classifier: the embedding, the telling words of each field, the signs of source text, the shares of
/// digits and of what are no letters.
pub const INPUTS: usize = DIMS + Domain::ALL.len() + 2;

/// Returns the inputs for a prompt, as training takes them.
pub fn inputs(text: &str) -> [f32; INPUTS] {
    let sample = Sample::of_text(text);
    of(&Embedding::of_parts(sample.parts()), &Reading::of(&sample))
}

fn of(embedding: &Embedding, reading: &Reading) -> [f32; INPUTS] {
    let mut inputs = [0.0; INPUTS];
    let (dims, rest) = inputs.split_at_mut(DIMS);
    dims.copy_from_slice(embedding.all());
    let (counts, shares) = rest.split_at_mut(Domain::ALL.len());
    for (count, domain) in counts.iter_mut().zip(Domain::ALL) {
        let hits = if domain == Domain::General { reading.code_marks() } else { reading.hits(domain) };
        *count = (hits as f32).ln_1p();
    }
    shares.copy_from_slice(&[reading.digit_share(), reading.non_letter_share()]);
    inputs
}

/// Number of domains.
const DOMAINS: usize = Domain::ALL.len();

/// The constants, then for each input its weight in each domain: in this order six sums run side by side.
static WEIGHTS: [[f32; DOMAINS]; INPUTS + 1] = unpack(include_bytes!("../../assets/domain.bin"));

/// Returns the likeliest domain.
pub(super) fn classify(embedding: &Embedding, reading: &Reading) -> Domain {
    let (mut scores, weights) = (WEIGHTS[0], &WEIGHTS[1..]);
    for (input, weights) in of(embedding, reading).iter().zip(weights) {
        for (score, weight) in scores.iter_mut().zip(weights) {
            *score += weight * input;
        }
    }
    let score = |domain: Domain| scores[domain as usize];
    Domain::ALL.into_iter().max_by(|a, b| score(*a).total_cmp(&score(*b))).unwrap_or_default()
}

/// Reads the weights, which the file holds domain by domain.
const fn unpack<const N: usize>(file: &[u8; N]) -> [[f32; DOMAINS]; INPUTS + 1] {
    let numbers: &[[u8; 4]] = file.as_chunks().0;
    assert!(N == size_of::<[[f32; DOMAINS]; INPUTS + 1]>(), "weights of other inputs");
    let mut weights = [[0.0; DOMAINS]; INPUTS + 1];
    let mut at = 0;
    while at < numbers.len() {
        weights[at % (INPUTS + 1)][at / (INPUTS + 1)] = f32::from_le_bytes(numbers[at]);
        at += 1;
    }
    weights
}
