//! Vectors of texts, against the plain forward pass.

mod common;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use common::{IM_END, Plain, Tiny};
use shoal_embedded::{Engine, Error, LoadOptions, Pooling};

/// Longer than two chunks of the prefill.
const TEXT: &str = "The tide comes in, the tide goes out, and nobody on the beach counts how many times it has done so \
                    since the morning; we only count the boats.";

fn check(tiny: &Tiny, pooling: u32, end: bool) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("tiny.gguf");
    let weights = tiny.weights(7);
    let mut metadata = tiny.metadata();
    metadata.push((format!("{}.pooling_type", tiny.architecture), Value::U32(pooling)));
    metadata.push(("tokenizer.ggml.add_eos_token".to_owned(), Value::Bool(end)));
    common::write(&path, &metadata, &weights, GgmlDType::F32);
    let engine = Engine::load(&path, &LoadOptions::default()).expect("a loaded model");
    let (vector, tokens) = engine.embed(TEXT, &|| false).expect("a vector").expect("not cancelled");

    let mut ids: Vec<u32> = TEXT.bytes().map(u32::from).collect();
    ids.extend(end.then_some(IM_END));
    assert_eq!(tokens, ids.len());
    let states = Plain::new(tiny, &weights).states(&ids);
    let expected: Vec<f32> = match engine.info().pooling.expect("a pooling") {
        Pooling::Mean => (0..tiny.hidden).map(|i| states.iter().map(|state| state[i]).sum()).collect(),
        Pooling::First => states[0].clone(),
        Pooling::Last => states[states.len() - 1].clone(),
    };
    let length = expected.iter().map(|x| x * x).sum::<f32>().sqrt();
    for (got, expected) in vector.iter().zip(&expected) {
        assert!((got - expected / length).abs() < 1e-3, "{got} {}", expected / length);
    }
    assert_eq!(vector.len(), tiny.hidden);
    assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-4);
    assert!(engine.embed(TEXT, &|| true).expect("no error").is_none());
}

#[test]
fn each_pooling_agrees_with_the_plain_pass() {
    check(&Tiny::new("qwen3"), 3, true);
    check(&Tiny::new("qwen2"), 1, false);
    check(&Tiny::new("llama"), 2, false);
}

#[test]
fn a_chat_model_makes_no_vectors() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("tiny.gguf");
    Tiny::new("llama").write(&path, 7);
    let engine = Engine::load(&path, &LoadOptions::default()).expect("a loaded model");
    assert_eq!(engine.info().pooling, None);
    assert!(matches!(engine.embed(TEXT, &|| false), Err(Error::Form(_))));
}
