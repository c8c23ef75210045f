//! Multinomial logistic regression over the embedding and the counts of telling words.
//!
//! `scripts/train_domain.py` fits it on benchmark prompts and on seeds for what benchmarks lack (law, chat), and
//! writes `assets/domain.bin`; `docs/routing.md` has its accuracy.

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

/// Weights of one domain: its constant, then one for each input.
type Weights = [f32; INPUTS + 1];

static WEIGHTS: [Weights; Domain::ALL.len()] = unpack(include_bytes!("../../assets/domain.bin"));

/// Returns the likeliest domain.
pub(super) fn classify(embedding: &Embedding, reading: &Reading) -> Domain {
    let inputs = of(embedding, reading);
    let score = |domain: Domain| {
        let (constant, weights) = WEIGHTS[domain as usize].split_first().expect("a constant comes first");
        constant + weights.iter().zip(&inputs).map(|(weight, input)| weight * input).sum::<f32>()
    };
    let scores = Domain::ALL.map(score);
    Domain::ALL
        .into_iter()
        .max_by(|a, b| scores[*a as usize].total_cmp(&scores[*b as usize]))
        .unwrap_or_default()
}

const fn unpack<const N: usize>(file: &[u8; N]) -> [Weights; Domain::ALL.len()] {
    let numbers: &[[u8; 4]] = file.as_chunks().0;
    assert!(N == size_of::<[Weights; Domain::ALL.len()]>(), "weights of other inputs");
    let mut weights = [[0.0; INPUTS + 1]; Domain::ALL.len()];
    let mut at = 0;
    while at < numbers.len() {
        weights[at / (INPUTS + 1)][at % (INPUTS + 1)] = f32::from_le_bytes(numbers[at]);
        at += 1;
    }
    weights
}
