//! How a generation starts, goes on and ends, on tiny models that need no download.

mod common;

use std::cell::Cell;
use std::ops::ControlFlow;

use common::{IM_END, IM_START, Tiny};
use shoal_embedded::{
    ChatMessage, Engine, Error, FinishReason, Finished, GenerateRequest, LoadOptions, Token,
};

fn engine() -> Engine {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("tiny.gguf");
    Tiny::new("llama").write(&path, 7);
    Engine::load(&path, &LoadOptions::default()).expect("a loaded model")
}

fn greedy(prompt: &str, max_tokens: usize) -> GenerateRequest {
    GenerateRequest { prompt: prompt.to_owned(), max_tokens, temperature: 0.0, ..GenerateRequest::default() }
}

fn run(engine: &Engine, request: &GenerateRequest) -> (Finished, Vec<Token>) {
    let mut tokens = Vec::new();
    let finished = engine
        .generate(request, &|| false, &mut |token| {
            tokens.push(token);
            ControlFlow::Continue(())
        })
        .expect("an answer");
    (finished, tokens)
}

fn text(tokens: &[Token]) -> String {
    tokens.iter().map(|token| token.text.as_str()).collect()
}

#[test]
fn the_length_limit_ends_an_answer() {
    let (finished, tokens) = run(&engine(), &greedy("abc", 5));
    assert_eq!(finished.reason, FinishReason::Length);
    assert_eq!((finished.prompt_tokens, finished.completion_tokens, tokens.len()), (3, 5, 5));
}

#[test]
fn the_end_of_the_context_ends_an_answer_and_a_longer_prompt_is_refused() {
    let engine = engine();
    let (finished, _) = run(&engine, &greedy(&"a".repeat(250), 1_000));
    assert!(finished.prompt_tokens + finished.completion_tokens <= 256);
    let error = engine
        .generate(&greedy(&"a".repeat(256), 1), &|| false, &mut |_| ControlFlow::Continue(()))
        .expect_err("a refusal");
    assert!(matches!(error, Error::ContextTooLong { limit: 255, tokens: 256 }), "{error}");
}

#[test]
fn the_context_can_be_made_smaller_and_not_larger() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("tiny.gguf");
    Tiny::new("llama").write(&path, 7);
    for (asked, got) in [(100, 100), (100_000, 256)] {
        let options = LoadOptions { context_limit: Some(asked), ..LoadOptions::default() };
        assert_eq!(Engine::load(&path, &options).expect("a model").info().context_length, got);
    }
}

#[test]
fn an_empty_prompt_and_senseless_settings_are_refused() {
    let engine = engine();
    let refused = |request: &GenerateRequest| {
        engine.generate(request, &|| false, &mut |_| ControlFlow::Continue(())).expect_err("a refusal")
    };
    assert!(matches!(refused(&greedy("", 1)), Error::EmptyPrompt));
    for request in [
        GenerateRequest { temperature: -1.0, ..greedy("a", 1) },
        GenerateRequest { temperature: f32::NAN, ..greedy("a", 1) },
        GenerateRequest { top_p: 1.5, ..greedy("a", 1) },
        GenerateRequest { presence_penalty: 3.0, ..greedy("a", 1) },
        GenerateRequest { frequency_penalty: f32::INFINITY, ..greedy("a", 1) },
        GenerateRequest { top_logprobs: Some(21), ..greedy("a", 1) },
    ] {
        assert!(matches!(refused(&request), Error::InvalidRequest(_)), "{request:?}");
    }
}

#[test]
fn no_tokens_may_be_asked_for() {
    let (finished, tokens) = run(&engine(), &greedy("abc", 0));
    assert_eq!((finished.reason, finished.completion_tokens, tokens.len()), (FinishReason::Length, 0, 0));
}

#[test]
fn a_stop_text_ends_the_answer_before_it() {
    let engine = engine();
    let (_, tokens) = run(&engine, &greedy("abc", 30));
    let whole = text(&tokens);
    let middle = whole.char_indices().nth(whole.chars().count() / 2).expect("a character").0;
    let stop: String = whole[middle..].chars().take(2).collect();
    let request = GenerateRequest { stop: vec![stop.clone()], ..greedy("abc", 30) };
    let (finished, tokens) = run(&engine, &request);
    assert_eq!(finished.reason, FinishReason::Stop);
    assert_eq!(text(&tokens), whole[..whole.find(&stop).expect("it is there")]);
}

#[test]
fn cancel_is_heard_between_chunks_of_the_prompt_and_between_tokens() {
    let engine = engine();
    for (limit, tokens) in [(1, 0), (3, 0), (5, 2)] {
        let asked = Cell::new(0);
        let cancel = || {
            asked.set(asked.get() + 1);
            asked.get() > limit
        };
        let mut seen = 0;
        // 130 tokens are three chunks, so the fourth question is the first after the prompt.
        let finished = engine
            .generate(&greedy(&"abcde".repeat(26), 20), &cancel, &mut |_| {
                seen += 1;
                ControlFlow::Continue(())
            })
            .expect("an end");
        assert_eq!(finished.reason, FinishReason::Cancelled);
        assert_eq!(finished.completion_tokens, tokens);
        assert!(seen <= tokens);
    }
}

#[test]
fn a_receiver_that_breaks_off_ends_the_generation() {
    let mut seen = 0;
    let finished = engine()
        .generate(&greedy("abc", 50), &|| false, &mut |_| {
            seen += 1;
            if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .expect("an end");
    assert_eq!((finished.reason, seen), (FinishReason::Cancelled, 3));
}

#[test]
fn a_seed_repeats_a_draw_and_another_seed_does_not() {
    let engine = engine();
    let drawn = |seed| {
        let request = GenerateRequest { temperature: 1.5, seed: Some(seed), ..greedy("abc", 40) };
        run(&engine, &request).1.iter().map(|token| token.id).collect::<Vec<_>>()
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
}

#[test]
fn the_narrowest_nucleus_and_one_candidate_are_the_greedy_choice() {
    let engine = engine();
    let ids = |request: &GenerateRequest| run(&engine, request).1.iter().map(|t| t.id).collect::<Vec<_>>();
    let expected = ids(&greedy("abc", 20));
    assert_eq!(ids(&GenerateRequest { temperature: 2.0, top_p: 0.0, ..greedy("abc", 20) }), expected);
    assert_eq!(ids(&GenerateRequest { temperature: 2.0, top_k: Some(1), ..greedy("abc", 20) }), expected);
}

#[test]
fn penalties_keep_tokens_from_coming_again() {
    let engine = engine();
    let distinct = |penalty| {
        let request =
            GenerateRequest { presence_penalty: penalty, frequency_penalty: penalty, ..greedy("aaaa", 40) };
        let (_, tokens) = run(&engine, &request);
        let ids: std::collections::HashSet<u32> = tokens.iter().map(|token| token.id).collect();
        ids.len() as f64 / tokens.len() as f64
    };
    assert!(distinct(2.0) > distinct(0.0), "{} {}", distinct(2.0), distinct(0.0));
}

#[test]
fn generations_at_the_same_time_do_not_disturb_each_other() {
    let engine = engine();
    let prompts = ["one fish", "two fish, and a long tail of words behind them to fill a chunk or so", "red"];
    let alone: Vec<_> = prompts.iter().map(|prompt| run(&engine, &greedy(prompt, 30)).1).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let engine = &engine;
        let threads: Vec<_> =
            prompts.iter().map(|prompt| scope.spawn(move || run(engine, &greedy(prompt, 30)).1)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(alone, together);
}

#[test]
fn control_tokens_in_a_prompt_count_as_one_token_and_chatml_is_the_default_template() {
    let engine = engine();
    let messages = [ChatMessage::new("developer", "Be brief."), ChatMessage::new("user", "Hi")];
    let prompt = engine.render_chat(&messages, None).expect("a prompt");
    assert_eq!(
        prompt,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    let ids = engine.tokenize(&prompt).expect("ids");
    assert_eq!(ids.iter().filter(|id| **id == IM_START).count(), 3);
    assert_eq!(ids.iter().filter(|id| **id == IM_END).count(), 2);
    assert_eq!(engine.count_tokens("<|im_start|>"), 1);
    assert!(!engine.info().takes_tools);
}
