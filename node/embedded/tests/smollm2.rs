//! The real SmolLM2-135M-Instruct (Q4_1), if `SHOAL_TEST_MODEL` names its file.

#![allow(clippy::print_stderr, reason = "says what it skips")]

use std::ops::ControlFlow;
use std::path::Path;

use serde_json::{Value, json};
use shoal_embedded::{
    ChatMessage, Engine, FinishReason, GenerateRequest, JsonForm, LoadOptions, Requantize, Token,
};

fn engine(requantize: Requantize) -> Option<Engine> {
    let Some(path) = std::env::var_os("SHOAL_TEST_MODEL") else {
        eprintln!("skipped: SHOAL_TEST_MODEL does not name a model file");
        return None;
    };
    let options = LoadOptions { requantize, ..LoadOptions::default() };
    Some(Engine::load(Path::new(&path), &options).expect("a loaded model"))
}

fn greedy(engine: &Engine, prompt: &str, max_tokens: usize) -> (FinishReason, Vec<Token>) {
    let request = GenerateRequest {
        prompt: prompt.to_owned(),
        max_tokens,
        temperature: 0.0,
        top_logprobs: Some(5),
        ..GenerateRequest::default()
    };
    let mut tokens = Vec::new();
    let finished = engine
        .generate(&request, &|| false, &mut |token| {
            tokens.push(token);
            ControlFlow::Continue(())
        })
        .expect("an answer");
    (finished.reason, tokens)
}

#[test]
fn token_ids_equal_those_of_the_reference_tokenizer() {
    let Some(engine) = engine(Requantize::Auto) else { return };
    let prompt = engine
        .render_chat(&[ChatMessage::new("user", "What is the capital of France?")], None)
        .expect("a prompt");
    // The first 37 ids are those that llama.cpp's server gives for this conversation.
    let expected: [(&str, &[u32]); 4] = [
        (
            &prompt,
            &[
                1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407,
                19712, 8182, 2, 198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531,
                198,
            ],
        ),
        (
            "In 2024, it's 3.14  spaces\n\n\tand tabs \u{2014} \u{201C}quotes\u{201D} caf\u{e9} \u{65e5}\u{672c}\u{8a9e} \u{1f600}!",
            &[
                788, 216, 34, 32, 34, 36, 28, 357, 506, 216, 35, 30, 33, 36, 216, 5600, 1116, 197, 397,
                29416, 1841, 619, 385, 2346, 573, 37366, 17097, 241, 115, 40993, 179, 120, 248, 40303, 218,
                17,
            ],
        ),
        (" leading", &[2899]),
        (
            "def f(x):\n    return x**2 # ok\n",
            &[1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 907, 10907, 198],
        ),
    ];
    for (text, ids) in expected {
        assert_eq!(engine.tokenize(text).expect("ids"), ids, "{text}");
    }
}

#[test]
fn it_knows_the_capital_of_france_and_says_how_sure_it_is() {
    let Some(engine) = engine(Requantize::Auto) else { return };
    let (_, tokens) = greedy(&engine, "The capital of France is", 6);
    let text: String = tokens.iter().map(|token| token.text.as_str()).collect();
    assert!(text.starts_with(" Paris"), "{text}");
    for token in &tokens {
        assert!(token.logprob <= 0.0 && token.logprob == token.top[0].1, "{token:?}");
        assert_eq!(token.bytes, token.text.as_bytes());
        let mass: f32 = token.top.iter().map(|(_, logprob)| logprob.exp()).sum();
        assert!(mass <= 1.0 + 1e-4);
    }
}

#[test]
fn a_chat_answer_ends_by_itself() {
    let Some(engine) = engine(Requantize::Auto) else { return };
    let message = ChatMessage::new("user", "Say hello.");
    let prompt = engine.render_chat(&[message], None).expect("a prompt");
    let (reason, tokens) = greedy(&engine, &prompt, 200);
    assert_eq!(reason, FinishReason::Stop);
    let text: String = tokens.iter().map(|token| token.text.as_str()).collect();
    assert!(!text.is_empty() && !text.contains("<|im_end|>"), "{text}");
}

#[test]
fn requantising_hardly_moves_the_logprobs() {
    let Some(exact) = engine(Requantize::Never) else { return };
    let Some(auto) = engine(Requantize::Auto) else { return };
    let (_, expected) = greedy(&exact, "The capital of France is", 1);
    let (_, got) = greedy(&auto, "The capital of France is", 1);
    assert_eq!(expected[0].id, got[0].id);
    assert!((expected[0].logprob - got[0].logprob).abs() < 0.1, "{:?} {:?}", expected[0], got[0]);
}

#[test]
fn it_answers_in_the_form_of_a_schema_and_not_without_it() {
    let Some(engine) = engine(Requantize::Auto) else { return };
    let schema = json!({
        "type": "object",
        "properties": {
            "city": { "type": "string", "maxLength": 30 },
            "country": { "enum": ["France", "Norway"] },
            "inhabitants": { "type": "integer", "minimum": 0 }
        },
        "required": ["city", "country", "inhabitants"]
    });
    let question = ChatMessage::new("user", "Tell me about Paris.");
    let prompt = engine.render_chat(&[question], None).expect("a prompt");
    for (temperature, seed) in [(0.0, 1), (1.0, 2)] {
        let free = GenerateRequest {
            prompt: prompt.clone(),
            max_tokens: 60,
            temperature,
            ..GenerateRequest::default()
        };
        let free = GenerateRequest { seed: Some(seed), ..free };
        let json = Some(JsonForm { schema: schema.clone(), strict: true });
        let formed = text(&engine, &GenerateRequest { json, ..free.clone() });
        let value: Value = serde_json::from_str(&formed).expect(&formed);
        assert!(value["city"].is_string() && value["inhabitants"].is_u64(), "{formed}");
        assert!(value["country"] == "France" || value["country"] == "Norway", "{formed}");
        assert!(serde_json::from_str::<Value>(&text(&engine, &free)).is_err());
    }
}

fn text(engine: &Engine, request: &GenerateRequest) -> String {
    let mut text = String::new();
    let mut keep = |token: Token| {
        text.push_str(&token.text);
        ControlFlow::Continue(())
    };
    engine.generate(request, &|| false, &mut keep).expect("an answer");
    text
}
