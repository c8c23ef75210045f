//! The splitting rules and the SentencePiece kind, on vocabularies small enough to work out by hand.

mod common;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use common::Tiny;
use shoal_embedded::{Engine, LoadOptions};

fn texts(list: &[String]) -> Value {
    Value::Array(list.iter().cloned().map(Value::String).collect())
}

/// Loads a tiny model with that vocabulary; `entries` replace the tokenizer's metadata.
fn engine(vocabulary: &[String], entries: Vec<(&str, Value)>) -> Engine {
    let tiny = Tiny::new("llama");
    let mut weights = tiny.weights(1);
    weights.tensors[0].1[0] = vocabulary.len();
    weights.tensors[0].2 = vec![0.5; vocabulary.len() * tiny.hidden];
    let mut metadata = tiny.metadata();
    metadata.retain(|(key, _)| !key.starts_with("tokenizer."));
    metadata.extend(entries.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)));
    metadata.push(("tokenizer.ggml.tokens".into(), texts(vocabulary)));
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("tiny.gguf");
    common::write(&path, &metadata, &weights, GgmlDType::F32);
    Engine::load(&path, &LoadOptions::default()).expect("a loaded model")
}

#[test]
fn each_rule_splits_numbers_its_own_way() {
    let mut vocabulary = Tiny::new("llama").vocabulary();
    vocabulary.truncate(256);
    vocabulary.extend(["12", "123", "1234"].map(str::to_owned));
    let merges = texts(&["1 2", "12 3", "123 4"].map(str::to_owned));
    let digits = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    for (rule, expected) in [
        ("gpt-2", vec![258]),
        ("llama-bpe", vec![257, u32::from(b'4')]),
        ("qwen2", digits("1234")),
        ("smollm", digits("1234")),
    ] {
        let entries = vec![
            ("model", Value::String("gpt2".into())),
            ("pre", Value::String(rule.into())),
            ("merges", merges.clone()),
        ];
        assert_eq!(engine(&vocabulary, entries).tokenize("1234").expect("ids"), expected, "{rule}");
    }
}

#[test]
fn a_space_before_a_word_is_kept_and_none_is_added() {
    let mut vocabulary = Tiny::new("llama").vocabulary();
    vocabulary.truncate(256);
    vocabulary.push("\u{120}a".into());
    for rule in ["gpt-2", "llama-bpe", "qwen2", "smollm"] {
        let entries = vec![
            ("model", Value::String("gpt2".into())),
            ("pre", Value::String(rule.into())),
            ("merges", texts(&["\u{120} a".to_owned()])),
        ];
        let engine = engine(&vocabulary, entries);
        assert_eq!(engine.tokenize("a a").expect("ids"), [97, 256], "{rule}");
    }
}

fn sentence_piece(prefix: bool) -> Engine {
    let mut pieces: Vec<(String, f32, i32)> =
        vec![("<unk>".into(), 0.0, 2), ("<s>".into(), 0.0, 3), ("</s>".into(), 0.0, 3)];
    pieces.extend((0..256).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)));
    let words = [
        ("\u{2581}", -9.0),
        ("a", -8.0),
        ("b", -7.0),
        ("c", -7.0),
        ("ab", -3.0),
        ("bc", -2.0),
        ("\u{2581}ab", -4.0),
    ];
    pieces.extend(words.map(|(text, score)| (text.to_owned(), score, 1)));
    let vocabulary: Vec<String> = pieces.iter().map(|(text, ..)| text.clone()).collect();
    let entries = vec![
        ("model", Value::String("llama".into())),
        ("scores", Value::Array(pieces.iter().map(|(_, score, _)| Value::F32(*score)).collect())),
        ("token_type", Value::Array(pieces.iter().map(|(.., kind)| Value::I32(*kind)).collect())),
        ("bos_token_id", Value::U32(1)),
        ("eos_token_id", Value::U32(2)),
        ("unknown_token_id", Value::U32(0)),
        ("add_space_prefix", Value::Bool(prefix)),
    ];
    engine(&vocabulary, entries)
}

#[test]
fn sentence_pieces_join_by_score_and_fall_back_to_bytes() {
    const FIRST: u32 = 259;
    let (space, a, ab, bc, space_ab) = (FIRST, FIRST + 1, FIRST + 4, FIRST + 5, FIRST + 6);
    let plain = sentence_piece(false);
    assert_eq!(plain.tokenize("ab").expect("ids"), [1, ab]);
    // `bc` has the better score, so it is joined before `ab`.
    assert_eq!(plain.tokenize("abc").expect("ids"), [1, a, bc]);
    assert_eq!(plain.tokenize(" ab a").expect("ids"), [1, space_ab, space, a]);
    assert_eq!(plain.tokenize("\u{e9}").expect("ids"), [1, 3 + 0xC3, 3 + 0xA9]);
    assert_eq!(plain.tokenize("<s>ab</s>").expect("ids"), [1, ab, 2], "the begin token is not doubled");
    assert_eq!(sentence_piece(true).tokenize("ab").expect("ids"), [1, space_ab]);
}
