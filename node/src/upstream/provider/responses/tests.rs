//! Both translations against requests, answers and streams as OpenAI documents them.

use serde_json::{Value, json};

use super::answer::Answer;
use super::request::translate;
use crate::device::testing::chat;
use crate::upstream::openai_http::{Dialect as _, testing_settings};
use crate::upstream::provider::{Kind, Model, Protocol, Traits};

fn model() -> Model {
    Model { name: "gpt-x".into(), traits: Traits::default() }
}

fn asked(body: &Value) -> Value {
    translate(body.to_string().as_bytes(), &model()).unwrap()
}

fn refused(body: &Value) -> String {
    translate(body.to_string().as_bytes(), &model()).unwrap_err().to_string()
}

fn answer() -> Answer {
    Answer::new("req_1", "gpt-x", 7)
}

fn streamed(events: &[Value]) -> Vec<Value> {
    let mut answer = answer();
    let chunks = |event: &Value| answer.chunks(serde_json::from_value(event.clone()).unwrap()).unwrap();
    events.iter().flat_map(chunks).collect()
}

#[test]
fn a_chat_becomes_items() {
    let schema = json!({"type": "object"});
    let body = json!({
        "model": "openai/gpt-x", "temperature": 0.5, "max_tokens": 5, "reasoning_effort": "low", "verbosity": "low",
        "logprobs": true, "top_logprobs": 3, "stream": true, "stream_options": {"include_usage": true}, "seed": 1,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": true}},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "What?"},
                {"type": "image_url", "image_url": {"url": "https://x.example/a.png", "detail": "low"}}]},
            {"role": "assistant", "content": "I look.", "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "12"}
        ]
    });
    assert_eq!(
        asked(&body),
        json!({
            "model": "gpt-x", "store": false, "stream": true, "temperature": 0.5, "max_output_tokens": 16,
            "reasoning": {"effort": "low"}, "include": ["message.output_text.logprobs"], "top_logprobs": 3,
            "text": {"format": {"name": "n", "schema": schema, "strict": true, "type": "json_schema"},
                "verbosity": "low"},
            "tools": [{"type": "function", "name": "f", "parameters": schema, "strict": false}],
            "tool_choice": {"type": "function", "name": "f"},
            "input": [
                {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Be kind."}]},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What?"},
                    {"type": "input_image", "image_url": "https://x.example/a.png", "detail": "low"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
                {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "12"}
            ]
        })
    );
}

#[test]
fn what_would_change_the_answer_is_refused_by_name() {
    for (field, value) in [("stop", json!("END")), ("n", json!(2)), ("functions", json!([{"name": "f"}]))] {
        assert!(refused(&json!({"messages": [], field: value})).contains(field));
    }
    let sound = json!({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]});
    assert!(refused(&sound).contains("input_audio"));
}

#[test]
fn a_whole_response_is_a_whole_answer() {
    let response = json!({
        "id": "resp_1", "object": "response", "model": "gpt-x-1", "status": "completed", "error": null,
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi",
                "annotations": [], "logprobs": [{"token": "Hi", "logprob": -0.5, "bytes": [72], "top_logprobs": []}]}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "web_search_call", "id": "w"}
        ],
        "usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7,
            "input_tokens_details": {"cached_tokens": 1}, "output_tokens_details": {"reasoning_tokens": 2}}
    });
    let out = answer().whole(serde_json::from_value(response).unwrap()).unwrap();
    let choice = &out["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &json!("Hi"))
    );
    assert_eq!(choice["message"]["reasoning_content"], "hm");
    assert_eq!(choice["message"]["tool_calls"][0]["id"], "c1");
    assert_eq!(choice["logprobs"]["content"][0]["logprob"], -0.5);
    assert_eq!((&out["usage"]["prompt_tokens"], &out["usage"]["completion_tokens"]), (&json!(3), &json!(4)));
    assert_eq!(out["usage"]["completion_tokens_details"]["reasoning_tokens"], 2);
    for (reason, finish) in [("max_output_tokens", "length"), ("content_filter", "content_filter")] {
        let cut = json!({"status": "incomplete", "incomplete_details": {"reason": reason}, "output": []});
        let out = answer().whole(serde_json::from_value(cut).unwrap()).unwrap();
        assert_eq!(out["choices"][0]["finish_reason"], finish);
    }
    assert!(answer().whole(serde_json::from_value(json!({"status": "failed"})).unwrap()).is_err());
}

#[test]
fn a_stream_of_events_becomes_chunks() {
    let call = |arguments: &str| json!({"type": "function_call", "call_id": "c1", "name": "f", "arguments": arguments});
    let chunks = streamed(&[
        json!({"type": "response.created", "response": {"model": "gpt-x-1", "status": "in_progress", "error": null}}),
        json!({"type": "response.in_progress", "response": {}}),
        json!({"type": "response.reasoning_summary_text.delta", "delta": "hm"}),
        json!({"type": "response.output_item.added", "output_index": 0, "item": {"type": "message", "content": []}}),
        json!({"type": "response.output_text.delta", "delta": "Hi", "logprobs": []}),
        json!({"type": "response.output_text.done", "text": "Hi"}),
        json!({"type": "response.output_item.added", "output_index": 1, "item": call("")}),
        json!({"type": "response.function_call_arguments.delta", "output_index": 1, "delta": "{}"}),
        json!({"type": "response.output_item.done", "output_index": 1, "item": call("{}")}),
        json!({"type": "response.output_item.added", "output_index": 2, "item": call("")}),
        json!({"type": "response.output_item.done", "output_index": 2, "item": call("[]")}),
        json!({"type": "response.completed", "response": {"status": "completed",
            "usage": {"input_tokens": 1, "output_tokens": 2}}}),
    ]);
    let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    let begun = |index: u64| json!({"tool_calls": [{"index": index, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]});
    let said =
        |index: u64, text: &str| json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]});
    let expected = [
        json!({"role": "assistant", "content": ""}),
        json!({"reasoning_content": "hm"}),
        json!({"content": "Hi"}),
        begun(0),
        said(0, "{}"),
        begun(1),
        said(1, "[]"),
        json!({}),
    ];
    assert_eq!(deltas[..8], expected.iter().collect::<Vec<_>>());
    assert_eq!(chunks[7]["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!((chunks.len(), &chunks[8]["usage"]["total_tokens"]), (9, &json!(3)));
    for bad in [
        json!({"type": "error", "code": "x", "message": "m"}),
        json!({"type": "response.failed", "response": {"status": "failed"}}),
    ] {
        assert!(answer().chunks(serde_json::from_value(bad).unwrap()).is_err());
    }
}

#[test]
fn openai_and_azure_have_their_own_addresses() {
    let cases = [
        (Kind::OpenAi, None, "https://a.example/v1/responses"),
        (Kind::Azure, None, "https://a.example/openai/v1/responses"),
        (
            Kind::Azure,
            Some("2025-03-01-preview"),
            "https://a.example/openai/responses?api-version=2025-03-01-preview",
        ),
    ];
    for (kind, version, url) in cases {
        let protocol = Protocol { kind, api_version: version.map(Into::into) };
        let dialect = super::Dialect::new(model(), protocol.into(), &chat(false));
        let out = dialect.outgoing(&testing_settings("https://a.example"), &chat(false)).unwrap();
        assert_eq!(out.url().as_str(), url);
        assert_eq!(out.headers().contains_key("api-key"), kind == Kind::Azure);
        assert_eq!(out.headers().contains_key("authorization"), kind == Kind::OpenAi);
    }
}

#[test]
fn null_is_as_good_as_nothing_in_a_message() {
    let out = asked(&json!({"messages": [
        {"role": "user", "content": "Hi", "tool_calls": null, "tool_call_id": null},
        {"role": "assistant", "content": "Well", "tool_calls": null, "thinking_blocks": null},
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": null}}]},
        {"role": "tool", "tool_call_id": "a", "content": "1", "tool_calls": null}
    ]}));
    let called = json!({"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"});
    assert_eq!((out["input"].as_array().unwrap().len(), &out["input"][3]), (5, &called));
}
