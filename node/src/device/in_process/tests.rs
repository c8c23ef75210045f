//! The OpenAI face of an engine in this process, with a scripted generator behind it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc as blocking;

use bytes::Bytes;
use serde_json::json;
use tower::ServiceExt;

use super::*;
use crate::device::testing::{PATIENCE, chat, collect};
use crate::tasks::{self, TaskKind};

mod forms;

/// Answers "Hi there", and records what it was asked.
#[derive(Default)]
struct Script {
    asked: Mutex<Vec<Generation>>,
    /// Never ends by itself.
    endless: bool,
    /// Waits here before the first token, until cancelled.
    hangs: bool,
    error: Option<GenerateError>,
    panics: bool,
    tokens: AtomicUsize,
    ended: AtomicBool,
    started: Option<Mutex<blocking::Sender<()>>>,
    /// Makes this call behind the words.
    calls: Option<Call>,
    /// Makes vectors of that many numbers.
    width: Option<usize>,
}

impl Generator for Arc<Script> {
    fn describe(&self) -> ModelInfo {
        let embeddings = self.width.is_some();
        ModelInfo {
            id: "m".to_owned(),
            context_length: 512,
            embeddings: Some(embeddings),
            ..ModelInfo::default()
        }
    }

    fn embed(
        &self,
        text: &str,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Option<(Vec<f32>, usize)>, GenerateError> {
        let vector = (1..=self.width.unwrap_or(0)).map(|n| n as f32).collect();
        Ok((!cancel()).then_some((vector, text.len())))
    }

    fn render_chat(&self, messages: &[Message], tools: Option<&Value>) -> Result<String, GenerateError> {
        if let Some(tools) = tools {
            return Ok(format!("{tools}{}", messages.len()));
        }
        Ok(messages.iter().map(|message| format!("<{}>{}", message.role, message.content)).collect())
    }

    fn generate(
        &self,
        generation: &Generation,
        cancel: &dyn Fn() -> bool,
        on_token: &mut dyn FnMut(Token) -> ControlFlow<()>,
    ) -> Result<Summary, GenerateError> {
        assert!(!self.panics, "scripted");
        self.asked.lock().unwrap().push(generation.clone());
        if let Some(started) = &self.started {
            started.lock().unwrap().send(()).unwrap();
        }
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let mut summary = Summary { finish: Finish::Cancelled, prompt_tokens: 5, completion_tokens: 0 };
        let words = ["Hi", "", " there"];
        for word in words.iter().cycle().take(if self.endless { usize::MAX } else { words.len() }) {
            while self.hangs && !cancel() {
                std::thread::yield_now();
            }
            let token = Token {
                text: (*word).to_owned(),
                logprob: -0.5,
                top: vec![((*word).to_owned(), -0.5), ("Yo".to_owned(), -2.0)],
                bytes: if word.is_empty() { vec![0xF0] } else { word.as_bytes().to_vec() },
                calls: Vec::new(),
            };
            if cancel() || on_token(token).is_break() {
                self.ended.store(true, Ordering::SeqCst);
                return Ok(summary);
            }
            self.tokens.fetch_add(1, Ordering::SeqCst);
            summary.completion_tokens += 1;
        }
        summary.finish = Finish::Stop;
        if let Some(call) = &self.calls {
            // Two calls: one token may complete several, and a later one another.
            for calls in [vec![call.clone()], vec![call.clone(), call.clone()]] {
                let _ = on_token(Token { calls, logprob: -0.1, ..Token::default() });
            }
            summary.finish = Finish::Calls;
        }
        Ok(summary)
    }
}

fn request(path: ApiPath, stream: bool, body: &Value) -> UpstreamRequest {
    UpstreamRequest { path, body: Bytes::from(body.to_string()), ..chat(stream) }
}

async fn ask(script: &Arc<Script>, request: UpstreamRequest) -> Result<UpstreamResponse, UpstreamError> {
    let asking = engine(script.clone(), 1).upstream.oneshot(request);
    tokio::time::timeout(PATIENCE, asking).await.expect("the future resolves")
}

/// The JSON chunks of a good answer.
async fn chunks(script: &Arc<Script>, request: UpstreamRequest) -> Vec<Value> {
    let (mut events, error) = collect(ask(script, request).await.unwrap()).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(events.pop(), Some(Event::End { complete: true }));
    let json = |event| match event {
        Event::Chunk(bytes) => serde_json::from_slice(&bytes).unwrap(),
        Event::End { .. } => panic!("an end before the end"),
    };
    events.into_iter().map(json).collect()
}

fn hello() -> Value {
    json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] })
}

#[tokio::test]
async fn a_streamed_chat_has_role_tokens_finish_and_usage() {
    let mut body = hello();
    body["stream_options"] = json!({ "include_usage": true });
    let chunks = chunks(&Arc::default(), request(ApiPath::ChatCompletions, true, &body)).await;
    let deltas: Vec<_> = chunks.iter().map(|chunk| chunk["choices"][0]["delta"].clone()).collect();
    assert_eq!(deltas[0], json!({ "role": "assistant", "content": "" }));
    assert_eq!(deltas[1..4], [json!({ "content": "Hi" }), json!({ "content": " there" }), json!({})]);
    assert_eq!(chunks[2]["choices"][0]["finish_reason"], Value::Null);
    assert_eq!(chunks[3]["choices"][0]["finish_reason"], "stop");
    assert_eq!(chunks[4]["choices"], json!([]));
    assert_eq!(chunks[4]["usage"], json!({ "prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8 }));
    assert_eq!(chunks.len(), 5);
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["id"] == chunks[0]["id"] && chunk["object"] == "chat.completion.chunk")
    );
}

#[tokio::test]
async fn logprobs_come_with_every_token_even_without_text() {
    let mut body = hello();
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(2);
    let streamed = chunks(&Arc::default(), request(ApiPath::ChatCompletions, true, &body)).await;
    assert_eq!(streamed.len(), 5, "role, three tokens, finish");
    let first = &streamed[1]["choices"][0]["logprobs"]["content"][0];
    assert_eq!(
        (&first["token"], &first["logprob"], &first["bytes"]),
        (&json!("Hi"), &json!(-0.5), &json!([72, 105]))
    );
    assert_eq!(first["top_logprobs"][1]["token"], "Yo");
    let whole = &chunks(&Arc::default(), request(ApiPath::ChatCompletions, false, &body)).await[0];
    assert_eq!(whole["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_begun_answer_is_gone_on_with() {
    let script = Arc::<Script>::default();
    let begun = json!({ "role": "assistant", "content": "Well, " });
    let mut body = hello();
    body["messages"].as_array_mut().unwrap().push(begun.clone());
    let closed = body.clone();
    body["continue_final_message"] = json!(true);
    body["add_generation_prompt"] = json!(false);
    chunks(&script, request(ApiPath::ChatCompletions, false, &body)).await;
    chunks(&script, request(ApiPath::ChatCompletions, false, &closed)).await;
    let prompts: Vec<String> = script.asked.lock().unwrap().iter().map(|one| one.prompt.clone()).collect();
    assert_eq!(prompts, ["<user>hiWell, ", "<user>hi<assistant>Well, "]);
    for wrong in [
        json!([{ "role": "user", "content": "hi" }]),
        json!([begun]),
        json!([{ "role": "user", "content": "hi" }, { "role": "assistant", "tool_calls": [] }]),
    ] {
        body["messages"] = wrong;
        let refused = ask(&script, request(ApiPath::ChatCompletions, false, &body)).await.unwrap_err();
        assert_eq!((refused.status, refused.retryable), (400, false), "{}", body["messages"]);
    }
}

#[tokio::test]
async fn a_whole_chat_is_one_body() {
    let body = &chunks(&Arc::default(), request(ApiPath::ChatCompletions, false, &hello())).await[0];
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["choices"][0]["message"]["content"], "Hi there");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["usage"]["total_tokens"], 8);
}

#[tokio::test]
async fn completions_have_their_own_shape() {
    let ask = |stream| {
        let body = json!({ "model": "m", "prompt": "once", "logprobs": 2 });
        async move { chunks(&Arc::default(), request(ApiPath::Completions, stream, &body)).await }
    };
    let choice = &ask(false).await[0]["choices"][0];
    assert_eq!(choice["text"], "Hi there");
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 2, 2]));
    assert_eq!(choice["logprobs"]["top_logprobs"][0], json!({ "Hi": -0.5, "Yo": -2.0 }));
    let streamed = ask(true).await;
    let texts: Vec<_> = streamed.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["Hi", "", " there", ""]);
    assert_eq!(streamed[2]["choices"][0]["logprobs"]["text_offset"], json!([2]));
}

#[tokio::test]
async fn parameters_reach_the_generator() {
    let script = Arc::<Script>::default();
    let body = json!({ "model": "m", "max_completion_tokens": 7, "max_tokens": 9, "temperature": 0, "top_p": 0.5,
        "seed": -1, "stop": "END", "frequency_penalty": 1, "presence_penalty": -2, "n": 1, "user": "x",
        "logit_bias": { "12": -100, "7": 3.5 },
        "messages": [{ "role": "system", "content": "be brief" },
            { "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] },
            { "role": "assistant", "content": null }] });
    chunks(&script, request(ApiPath::ChatCompletions, false, &body)).await;
    let expected = Generation {
        prompt: "<system>be brief<user>a\nb<assistant>".to_owned(),
        max_tokens: 7,
        temperature: 0.0,
        top_p: 0.5,
        seed: Some(u64::MAX),
        stop: vec!["END".to_owned()],
        top_logprobs: None,
        frequency_penalty: 1.0,
        presence_penalty: -2.0,
        logit_bias: vec![(12, -100.0), (7, 3.5)],
        json: None,
        calls: None,
    };
    assert_eq!(*script.asked.lock().unwrap(), [expected]);
}

#[tokio::test]
async fn bad_requests_are_refused_before_anything_runs() {
    let script = Arc::<Script>::default();
    let with = |key: &str, value: Value| {
        let mut body = hello();
        body[key] = value;
        request(ApiPath::ChatCompletions, true, &body)
    };
    let prompt = |body: Value| request(ApiPath::Completions, true, &body);
    let raw = UpstreamRequest { body: Bytes::from_static(b"{\"messages\": [tell"), ..chat(true) };
    for bad in [
        with("messages", json!([])),
        with("messages", Value::Null),
        with("messages", json!("hi")),
        with("messages", json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }])),
        with("n", json!(0)),
        with("n", json!(17)),
        with("logit_bias", json!({ "x": 1 })),
        with("logit_bias", json!({ "1": 101 })),
        with("functions", json!([{ "name": "f" }])),
        with("temperature", json!(3)),
        with("top_p", json!(-0.1)),
        with("max_tokens", json!(0)),
        with("max_tokens", json!(-1)),
        with("stop", json!([""])),
        with("logprobs", json!(3)),
        with("top_logprobs", json!(3)),
        with("response_format", json!({ "type": "json_schema" })),
        with("response_format", json!({ "type": "json_schema", "json_schema": { "name": "x" } })),
        with("response_format", json!({ "type": "grammar" })),
        with("tools", json!([{ "type": "function" }])),
        with("tools", json!([{ "type": "custom", "custom": { "name": "x" } }])),
        with("tool_choice", json!("required")),
        with("tool_choice", json!({ "type": "function", "function": { "name": "f" } })),
        prompt(json!({})),
        prompt(json!({ "prompt": ["a", "b"] })),
        prompt(json!({ "prompt": [1, 2] })),
        prompt(json!({ "prompt": "a", "best_of": 2 })),
        prompt(json!({ "prompt": "a", "logprobs": 99 })),
        raw,
    ] {
        let body = bad.body.clone();
        let error = ask(&script, bad).await.expect_err(&String::from_utf8_lossy(&body));
        assert_eq!((error.status, &*error.code), (400, "invalid_request_error"), "{body:?}");
        assert!(!error.message.contains("tell"), "{}", error.message);
    }
    assert!(script.asked.lock().unwrap().is_empty());
    let other = UpstreamRequest { model: Arc::from("other"), ..chat(true) };
    assert_eq!(ask(&script, other).await.unwrap_err().status, 404);
}

#[tokio::test]
async fn errors_of_the_generator_are_errors_of_the_future() {
    let check = async |error: GenerateError, status: u16, code: &str| {
        for stream in [true, false] {
            let script = Arc::new(Script { error: Some(error.clone()), ..Script::default() });
            let error = ask(&script, request(ApiPath::ChatCompletions, stream, &hello())).await.unwrap_err();
            assert_eq!((error.status, &*error.code), (status, code));
        }
    };
    check(GenerateError::ContextTooLong("600 of 512".into()), 400, "context_length_exceeded").await;
    check(GenerateError::Invalid("no".into()), 400, "invalid_request_error").await;
    check(GenerateError::Unsupported("no".into()), 400, "invalid_request_error").await;
    check(GenerateError::Failed("no".into()), 502, "upstream_error").await;
}

#[tokio::test]
async fn a_panic_of_the_generator_is_an_error_and_frees_the_slot() {
    let script = Arc::new(Script { panics: true, ..Script::default() });
    let engine = engine(script, 1);
    for _ in 0..2 {
        let error = engine.upstream.clone().oneshot(chat(true)).await.unwrap_err();
        assert_eq!((error.status, &*error.code), (502, "upstream_error"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_events_ends_the_generation_within_the_bound() {
    let script = Arc::new(Script { endless: true, ..Script::default() });
    let engine = engine(script.clone(), 1);
    let mut answer = engine.upstream.clone().oneshot(chat(true)).await.unwrap();
    assert!(matches!(answer.events.next().await, Some(Ok(Event::Chunk(_)))));
    drop(answer);
    // The slot comes back only once the generation has ended.
    let second = tokio::time::timeout(PATIENCE, engine.upstream.oneshot(chat(true))).await.unwrap().unwrap();
    assert!(script.ended.load(Ordering::SeqCst));
    assert!(script.tokens.load(Ordering::SeqCst) <= 2 * (TOKENS_AHEAD + 2), "nobody read, so it had to wait");
    drop(second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_future_ends_the_prefill() {
    let (started, seen) = blocking::channel();
    let script = Arc::new(Script { hangs: true, started: Some(Mutex::new(started)), ..Script::default() });
    let engine = engine(script.clone(), 1);
    let asking = tasks::spawn(TaskKind::Relay, engine.upstream.clone().oneshot(chat(true)));
    tokio::task::spawn_blocking(move || seen.recv_timeout(PATIENCE)).await.unwrap().unwrap();
    // While it hangs the only slot is taken, and says so.
    let refused = engine.upstream.clone().oneshot(chat(true)).await.unwrap_err();
    assert_eq!((refused.status, &*refused.code, refused.retryable), (503, "overloaded", true));
    asking.abort();
    let ended = async {
        while !script.ended.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("the generation ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deadline_ends_the_generation() {
    let script = Arc::new(Script { hangs: true, ..Script::default() });
    let deadline = Some(Instant::now() + Duration::from_millis(50));
    let error = ask(&script, UpstreamRequest { deadline, ..chat(true) }).await.unwrap_err();
    assert_eq!((error.status, &*error.code), (504, "upstream_timeout"));
}
