//! Files that are damaged or made to harm: a sentence each, no panic, no large allocation.

mod common;

use std::path::Path;

use candle_core::quantized::gguf_file::Value;
use common::{Lcg, Tiny};
use shoal_embedded::{Engine, Error, LoadOptions, ModelFile};

fn load(bytes: &[u8]) -> Result<Engine, Error> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, bytes).expect("a file");
    Engine::load(&path, &LoadOptions::default())
}

fn refusal(bytes: &[u8]) -> String {
    match load(bytes) {
        Ok(_) => panic!("the file was taken"),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains('\n') && text.len() > 20, "no sentence: {text}");
            text
        }
    }
}

fn sound() -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("tiny.gguf");
    Tiny { hidden: 8, heads: 2, kv_heads: 1, head_dim: 4, feed_forward: 8, ..Tiny::new("llama") }
        .write(&path, 1);
    std::fs::read(path).expect("the file")
}

/// Magic, version 3, then the counts of tensors and metadata entries.
fn header(tensors: u64, entries: u64) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(entries.to_le_bytes());
    bytes
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

#[test]
fn what_is_no_gguf_is_refused() {
    assert!(refusal(b"").contains("empty"));
    assert!(refusal(b"<html>not found</html>").contains("GGUF"));
    assert!(refusal(b"GGUF").contains("ends within"));
    assert!(refusal(b"GGUF\x09\0\0\0").contains("version"));
    let error = Engine::load(Path::new("/nonexistent/m.gguf"), &LoadOptions::default()).err();
    assert!(matches!(error, Some(Error::Io { .. })));
    let folder = tempfile::tempdir().expect("a folder");
    assert!(ModelFile::new(folder.path()).inspect().is_err());
}

#[test]
fn claims_that_the_file_cannot_hold_are_refused_before_anything_is_allocated() {
    refusal(&header(u64::MAX, 0));
    refusal(&header(0, u64::MAX));
    refusal(&header(1 << 30, 1 << 30));

    let mut long_key = header(0, 1);
    long_key.extend((1u64 << 40).to_le_bytes());
    refusal(&long_key);

    for (kind, count) in [(0u32, 1u64 << 40), (8, 1 << 40), (9, 1 << 40), (8, u64::MAX), (10, u64::MAX / 4)] {
        let mut array = header(0, 1);
        text(&mut array, "a");
        array.extend(9u32.to_le_bytes());
        array.extend(kind.to_le_bytes());
        array.extend(count.to_le_bytes());
        refusal(&array);
    }

    let mut nested = header(0, 1);
    text(&mut nested, "a");
    nested.extend(9u32.to_le_bytes());
    for _ in 0..100_000 {
        nested.extend(9u32.to_le_bytes());
        nested.extend(1u64.to_le_bytes());
    }
    assert!(refusal(&nested).contains("nested"));
}

#[test]
fn shapes_and_offsets_that_overflow_are_refused() {
    let tensor = |dimensions: &[u64], kind: u32, offset: u64| {
        let mut bytes = header(1, 0);
        text(&mut bytes, "t");
        bytes.extend((dimensions.len() as u32).to_le_bytes());
        for dimension in dimensions {
            bytes.extend(dimension.to_le_bytes());
        }
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.resize(256, 0);
        bytes
    };
    assert!(refusal(&tensor(&[1 << 32, 1 << 32], 0, 0)).contains("shape"));
    assert!(refusal(&tensor(&[1 << 63, 2], 0, 0)).contains("shape"));
    assert!(refusal(&tensor(&[0], 0, 0)).contains("shape"));
    assert!(refusal(&tensor(&[4], 0, u64::MAX - 1)).contains("beyond"));
    assert!(refusal(&tensor(&[4], 0, 1 << 40)).contains("cut short"));
    assert!(refusal(&tensor(&[4], 77, 0)).contains("type"));
    assert!(refusal(&tensor(&[5], 8, 0)).contains("blocks"));
    assert!(refusal(&tensor(&[1, 1, 1, 1, 1], 0, 0)).contains("dimensions"));
}

#[test]
fn an_alignment_of_nought_is_refused() {
    for alignment in [0u32, 3, 1 << 31] {
        let mut bytes = header(0, 1);
        text(&mut bytes, "general.alignment");
        bytes.extend(4u32.to_le_bytes());
        bytes.extend(alignment.to_le_bytes());
        assert!(refusal(&bytes).contains("alignment"));
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let sound = sound();
    load(&sound).expect("the whole file is fine");
    // The last 31 bytes may be padding.
    for length in (0..sound.len() - 32).step_by(997).chain(0..64) {
        refusal(&sound[..length]);
    }
}

#[test]
fn a_file_with_flipped_bytes_never_panics() {
    let sound = sound();
    let mut random = Lcg(5);
    let mut pick = |below: usize| ((random.next() + 1.0) / 2.0 * below as f32) as usize % below;
    let header_end = sound.len() / 4;
    for round in 0..400 {
        let mut damaged = sound.clone();
        for _ in 0..=round % 4 {
            let at = pick(header_end);
            damaged[at] = pick(256) as u8;
        }
        if let Ok(engine) = load(&damaged) {
            engine.count_tokens("some text");
        }
    }
}

#[test]
fn metadata_that_contradicts_the_tensors_is_refused() {
    let tiny = Tiny::new("qwen3");
    let weights = tiny.weights(3);
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("m.gguf");
    let changes: [(&str, Value); 14] = [
        ("qwen3.block_count", Value::U32(3)),
        ("qwen3.block_count", Value::U32(u32::MAX)),
        ("qwen3.block_count", Value::U32(0)),
        ("qwen3.embedding_length", Value::U32(31)),
        ("qwen3.feed_forward_length", Value::U64(u64::MAX)),
        ("qwen3.attention.head_count", Value::U32(0)),
        ("qwen3.attention.head_count_kv", Value::U32(3)),
        ("qwen3.attention.key_length", Value::U32(7)),
        ("qwen3.context_length", Value::U32(0)),
        ("qwen3.expert_count", Value::U32(8)),
        ("general.architecture", Value::String("rwkv".into())),
        ("tokenizer.ggml.model", Value::String("bert".into())),
        ("tokenizer.ggml.pre", Value::String("martian".into())),
        ("tokenizer.chat_template", Value::String("{% for %}".into())),
    ];
    for (key, value) in changes {
        let mut metadata = tiny.metadata();
        metadata.retain(|(known, _)| known != key);
        metadata.push((key.to_owned(), value));
        common::write(&path, &metadata, &weights, candle_core::quantized::GgmlDType::F32);
        let error = Engine::load(&path, &LoadOptions::default()).err().map(|error| error.to_string());
        assert!(error.is_some(), "{key} was taken");
    }
}

#[test]
fn a_template_that_loops_for_ever_is_stopped() {
    let tiny = Tiny::new("llama");
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("m.gguf");
    let mut metadata = tiny.metadata();
    let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
    metadata.push(("tokenizer.chat_template".into(), Value::String(source.into())));
    common::write(&path, &metadata, &tiny.weights(3), candle_core::quantized::GgmlDType::F32);
    let engine = Engine::load(&path, &LoadOptions::default()).expect("a model");
    assert!(matches!(engine.render_chat(&[], None), Err(Error::Template(_))));
}
