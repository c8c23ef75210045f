//! Each family of models against a plain forward pass, over several prompt chunks and cached positions.

mod common;

use std::ops::ControlFlow;

use common::{IM_END, Plain, Tiny};
use shoal_embedded::{Engine, FinishReason, GenerateRequest, LoadOptions, Token};

/// Longer than two chunks of the prefill and than the sliding window.
const PROMPT: &str = "The tide comes in, the tide goes out, and nobody on the beach counts how many times it has done \
                      so since the morning; we only count the boats.";

fn check(tiny: &Tiny) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("tiny.gguf");
    let weights = tiny.write(&path, 7);
    let engine = Engine::load(&path, &LoadOptions::default()).expect("a loaded model");
    let request = GenerateRequest {
        prompt: PROMPT.to_owned(),
        max_tokens: 20,
        temperature: 0.0,
        top_logprobs: Some(3),
        ..GenerateRequest::default()
    };
    let mut tokens: Vec<Token> = Vec::new();
    let finished = engine
        .generate(&request, &|| false, &mut |token| {
            tokens.push(token);
            ControlFlow::Continue(())
        })
        .expect("an answer");
    assert_eq!(finished.prompt_tokens, PROMPT.len());
    assert!(finished.completion_tokens >= 5, "too short to tell: {}", finished.completion_tokens);
    assert_eq!(tokens.len(), finished.completion_tokens);

    let plain = Plain::new(tiny, &weights);
    let mut ids: Vec<u32> = PROMPT.bytes().map(u32::from).collect();
    for token in &tokens {
        let expected = plain.logprobs(&ids);
        let difference = (expected[token.id as usize] - token.logprob).abs();
        assert!(difference < 2e-3, "{}: token {} differs by {difference}", tiny.architecture, ids.len());
        let best = expected.iter().copied().fold(f32::MIN, f32::max);
        assert!(best - expected[token.id as usize] < 2e-3, "not the likeliest token");
        assert!((token.top[0].1 - token.logprob).abs() < 1e-6);
        assert!(token.top[0].1 >= token.top[1].1 && token.top[1].1 >= token.top[2].1);
        ids.push(token.id);
    }
    if finished.reason == FinishReason::Stop {
        assert!(
            plain.logprobs(&ids).iter().enumerate().all(|(id, p)| {
                *p <= plain.logprobs(&ids)[IM_END as usize] + 2e-3 || id == IM_END as usize
            })
        );
    }
}

#[test]
fn llama_agrees_with_the_plain_pass() {
    check(&Tiny::new("llama"));
}

#[test]
fn llama_with_divided_frequencies_and_an_output_matrix_agrees() {
    check(&Tiny { rope_divisors: true, tied: false, ..Tiny::new("llama") });
}

#[test]
fn qwen2_agrees_with_the_plain_pass() {
    check(&Tiny::new("qwen2"));
}

#[test]
fn qwen3_agrees_with_the_plain_pass() {
    check(&Tiny::new("qwen3"));
}

#[test]
fn gemma3_agrees_with_the_plain_pass() {
    check(&Tiny::new("gemma3"));
}
