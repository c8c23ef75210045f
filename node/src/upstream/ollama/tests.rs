//! Golden translations in both directions, and the window a prompt gets.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::json;
use tokio::sync::mpsc;
use tower::ServiceExt;

use super::*;
use crate::device::testing::{self, chat, collect};
use crate::upstream::http_client::{self, Reach};
use crate::upstream::openai_http::IdleTimeouts;
use crate::upstream::{Event, UpstreamRequest};

fn translated(body: &Value) -> Option<Value> {
    request::translate(body.to_string().as_bytes())
}

#[test]
fn a_conversation_with_tools_and_images_keeps_its_meaning() {
    let body = json!({
        "model": "llama3.2:1b", "stream": true, "stream_options": {"include_usage": true},
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [
                {"type": "text", "text": "What is"}, {"type": "text", "text": "this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]},
            {"role": "assistant", "content": null, "reasoning_content": "I should look.", "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{\"at\":3}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "a cat"}],
        "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
        "tool_choice": "auto", "temperature": 0.5, "seed": 7, "stop": "END", "max_completion_tokens": 50,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        "logprobs": true, "top_logprobs": 5, "reasoning_effort": "none", "user": "u",
    });
    let told = json!({
        "model": "llama3.2:1b", "stream": true,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is\nthis?", "images": ["aGk="]},
            {"role": "assistant", "content": "", "thinking": "I should look.",
             "tool_calls": [{"function": {"name": "look", "arguments": {"at": 3}}}]},
            {"role": "tool", "content": "a cat", "tool_name": "look"}],
        "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
        "options": {"temperature": 0.5, "seed": 7, "stop": ["END"], "num_predict": 50},
        "format": {"type": "object"}, "logprobs": true, "top_logprobs": 5, "think": false,
    });
    assert_eq!(translated(&body), Some(told));
}

#[test]
fn what_its_own_api_cannot_be_told_goes_to_the_other() {
    let with = |name: &str, value: Value| {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        body[name] = value;
        translated(&body)
    };
    assert!(with("n", json!(1)).is_some() && with("tool_choice", json!("none")).is_some());
    for (name, value) in [
        ("n", json!(2)),
        ("logit_bias", json!({"5": 1})),
        ("tool_choice", json!("required")),
        ("tool_choice", json!({"type": "function", "function": {"name": "f"}})),
        ("response_format", json!({"type": "grammar"})),
        (
            "messages",
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y"}}]}]),
        ),
        (
            "messages",
            json!([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{bro"}}]}]),
        ),
    ] {
        assert_eq!(with(name, value.clone()), None, "{name}: {value}");
    }
}

#[test]
fn tools_are_left_out_where_none_may_be_called() {
    let body = json!({"model": "m", "messages": [], "tools": [{}], "tool_choice": "none"});
    assert!(translated(&body).unwrap().get("tools").is_none());
}

#[test]
fn a_whole_answer_keeps_its_meaning() {
    let told = json!({"model": "m", "created_at": "2025-01-01T00:00:00Z", "done": true, "done_reason": "stop",
        "message": {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [
            {"function": {"name": "f", "arguments": {"a": 1}}}, {"id": "x", "function": {"name": "g", "arguments": {}}}]},
        "prompt_eval_count": 11, "eval_count": 5, "total_duration": 9,
        "logprobs": [{"token": "a", "logprob": -0.5, "top_logprobs": []}]});
    let whole = Answer::new("req_abc_1", "m", 5).whole(serde_json::from_value(told).unwrap()).unwrap();
    assert_eq!(
        whole,
        json!({"id": "chatcmpl-abc_1", "object": "chat.completion", "created": 5, "model": "m",
            "choices": [{"index": 0, "finish_reason": "tool_calls",
                "logprobs": {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": []}]},
                "message": {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
                    {"id": "call_abc_1_0", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}},
                    {"id": "x", "type": "function", "function": {"name": "g", "arguments": "{}"}}]}}],
            "usage": {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}})
    );
}

#[test]
fn a_stream_keeps_its_meaning_and_ends_with_reason_and_usage() {
    let mut answer = Answer::new("req_1", "m", 5);
    let mut told = |line: Value| answer.chunks(serde_json::from_value(line).unwrap());
    let first = told(json!({"message": {"role": "assistant", "content": "Hel"}, "done": false}));
    assert_eq!(first[0]["choices"][0]["delta"], json!({"role": "assistant", "content": "Hel"}));
    assert_eq!(first[0]["choices"][0]["finish_reason"], Value::Null);
    let call =
        json!({"message": {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}});
    assert_eq!(told(call.clone())[0]["choices"][0]["delta"]["tool_calls"][0]["index"], 0);
    assert_eq!(told(call)[0]["choices"][0]["delta"]["tool_calls"][0]["index"], 1);
    assert!(told(json!({"message": {"content": ""}, "done": false})).is_empty(), "nothing was said");
    let last = told(json!({"message": {"content": ""}, "done": true, "done_reason": "length",
        "prompt_eval_count": 3, "eval_count": 4}));
    assert_eq!(last[0]["choices"][0]["finish_reason"], "length");
    assert_eq!((&last[1]["choices"], &last[1]["usage"]["total_tokens"]), (&json!([]), &json!(7)));
}

/// A server that tells what it was asked, and whose model is loaded with a window of 5,000.
async fn server() -> (Ollama, mpsc::UnboundedReceiver<Value>) {
    type Asked = mpsc::UnboundedSender<Value>;
    let (asked, heard) = mpsc::unbounded_channel();
    let answer = async |State(asked): State<Asked>, axum::Json(body): axum::Json<Value>| {
        let streams = body["stream"] == true;
        asked.send(body).unwrap();
        let last = json!({"message": {"content": "!"}, "done": true, "done_reason": "stop"});
        let lines = json!({"message": {"content": "Hi"}}).to_string() + "\n" + &last.to_string() + "\n";
        let (kind, text) =
            if streams { ("application/x-ndjson", lines) } else { ("application/json", last.to_string()) };
        ([("content-type", kind)], text).into_response()
    };
    let ps = json!({"models": [{"model": "loaded", "context_length": 5000}]});
    let router = Router::new()
        .route("/api/chat", post(answer))
        .route("/api/ps", get(|| async move { axum::Json(ps) }))
        .with_state(asked);
    let base = testing::serve(router).await;
    let settings =
        Settings { base, key: None, name: "o".into(), id: "o".into(), timeouts: IdleTimeouts::default() };
    (Ollama::new(http_client::build(Reach::Lan).unwrap(), settings), heard)
}

fn asking(model: &str, letters: usize, stream: bool) -> UpstreamRequest {
    let messages = json!([{"role": "user", "content": "a".repeat(letters)}]);
    let body = json!({"model": model, "messages": messages, "stream": stream, "max_tokens": 100}).to_string();
    UpstreamRequest { model: Arc::from(model), body: body.into(), ..chat(stream) }
}

#[tokio::test]
async fn a_long_prompt_gets_a_window_that_holds_it_and_none_shrinks() {
    let (ollama, mut heard) = server().await;
    let mut window = async |model: &str, letters: usize| {
        ollama.clone().oneshot(asking(model, letters, false)).await.unwrap();
        heard.recv().await.unwrap()["options"]["num_ctx"].clone()
    };
    assert_eq!(window("m", 300).await, Value::Null, "a short prompt leaves the server its own window");
    assert_eq!(window("m", 15_000).await, 8192);
    assert_eq!(window("m", 300).await, 8192, "a smaller window would load the model anew");
    assert_eq!(window("m", 100_000).await, MAX_WINDOW);
    assert_eq!(window("loaded", 12_600).await, 5000, "the window that is there is enough");
}

#[tokio::test]
async fn json_lines_are_a_stream_with_a_good_end() {
    let (ollama, mut heard) = server().await;
    let (events, error) = collect(ollama.oneshot(asking("m", 9, true)).await.unwrap()).await;
    assert_eq!(heard.recv().await.unwrap()["stream"], true);
    assert!(error.is_none() && events.len() == 4, "{events:?}");
    assert_eq!(events[3], Event::End { complete: true });
}

#[test]
fn efforts_become_the_levels_that_ollama_knows() {
    for (effort, think) in [
        ("none", json!(false)),
        ("minimal", json!("low")),
        ("low", json!("low")),
        ("medium", json!("medium")),
        ("high", json!("high")),
        ("xhigh", json!("high")),
        ("extreme", json!(true)),
    ] {
        let body = json!({"model": "m", "messages": [], "reasoning_effort": effort});
        assert_eq!(translated(&body).unwrap()["think"], think, "{effort}");
    }
}
