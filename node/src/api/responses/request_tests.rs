//! Requests of the Responses API and the chats that they become.

use std::collections::BTreeMap;

use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use super::request::{Draft, Past, Translated};
use crate::api::error::ApiError;

fn translated(request: &Value, past: &Past) -> Result<(Value, Translated), ApiError> {
    let bytes = request.to_string();
    let out = Draft::read(bytes.as_bytes())?.translate(past)?;
    Ok((serde_json::from_slice(&out.body).unwrap(), out))
}

fn raw(value: Value) -> Box<RawValue> {
    to_raw_value(&value).unwrap()
}

#[test]
fn settings_have_their_names_in_a_chat() {
    let request = json!({
        "model": "m", "input": "Hi", "instructions": "Be brief.", "stream": true, "max_output_tokens": 9,
        "temperature": 0.5, "top_p": 0.9, "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "json_schema", "name": "s", "strict": true, "schema": {"type": "object"}},
                 "verbosity": "low"},
        "include": ["message.output_text.logprobs"], "top_logprobs": 2, "metadata": {"mode": "local"},
        "parallel_tool_calls": false, "store": false, "truncation": "auto", "user": "u", "top_k": 7, "n": 2,
        "tools": [{"type": "function", "name": "f", "parameters": {}}, {"type": "web_search"}],
        "tool_choice": {"type": "function", "name": "f"},
    });
    let (chat, out) = translated(&request, &Past::default()).unwrap();
    let expected = json!({
        "model": "m", "stream": true, "stream_options": {"include_usage": true}, "max_tokens": 9,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "temperature": 0.5, "top_p": 0.9, "reasoning_effort": "low", "verbosity": "low", "logprobs": true,
        "top_logprobs": 2, "metadata": {"mode": "local"}, "user": "u", "top_k": 7, "parallel_tool_calls": false,
        "response_format": {"type": "json_schema",
                            "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": true}},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
    });
    assert_eq!(chat, expected);
    assert!(out.telling.summarise && out.telling.logprobs);
    for part in ["'truncation'", "'web_search'", "'n'"] {
        assert!(out.warnings.iter().any(|w| w.contains(part)), "{part} in {:?}", out.warnings);
    }
}

#[test]
fn the_smallest_request_is_a_chat_of_one_message() {
    let (chat, out) = translated(&json!({"model": "m", "input": "Hi"}), &Past::default()).unwrap();
    assert_eq!(chat, json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": false}));
    assert!(out.warnings.is_empty() && !out.telling.summarise && !out.telling.logprobs);
    assert_eq!(
        out.input.get(),
        r#"[{"type":"message","role":"user","content":[{"type":"input_text","text":"Hi"}]}]"#
    );
}

#[test]
fn the_past_comes_first_and_is_kept_with_the_rest() {
    let past = Past {
        items: vec![
            raw(json!({"role": "user", "content": "One"})),
            raw(json!({"role": "assistant", "content": "1"})),
        ],
        referred: BTreeMap::from([("msg_x".into(), raw(json!({"role": "user", "content": "Two"})))]),
        ..Past::default()
    };
    let request = json!({
        "model": "m", "previous_response_id": "resp_1", "instructions": "Count.",
        "input": [{"type": "item_reference", "id": "msg_x"}],
    });
    let (chat, out) = translated(&request, &past).unwrap();
    let roles: Vec<&str> =
        chat["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user"]);
    assert_eq!(serde_json::from_str::<Value>(out.input.get()).unwrap().as_array().unwrap().len(), 3);
    let error = translated(&request, &Past::default()).unwrap_err();
    assert_eq!((error.status, error.param.as_deref()), (404, Some("input[0].id")));
}

#[test]
fn what_cannot_be_done_is_refused_by_its_own_name() {
    for (field, value) in [
        ("input", json!(7)),
        ("input", json!([])),
        ("background", json!(true)),
        ("conversation", json!("conv_1")),
        ("prompt", json!({"id": "p"})),
        ("max_output_tokens", json!(0)),
        ("max_output_tokens", json!("many")),
        ("instructions", json!([1])),
        ("text", json!("json")),
        ("text", json!({"format": {"type": "json_schema", "name": "s"}})),
        ("tools", json!({})),
        ("include", json!("all")),
        ("store", json!("yes")),
        ("previous_response_id", json!(1)),
    ] {
        let mut request = json!({"model": "m", "input": "Hi"});
        request[field] = value.clone();
        let error = translated(&request, &Past::default()).unwrap_err();
        assert_eq!(error.status, 400, "{field}: {value}");
        assert!(error.param.as_deref().is_some_and(|param| param.starts_with(field)), "{field}: {error:?}");
    }
    assert_eq!(
        translated(&json!({"model": "m"}), &Past::default()).unwrap_err().param.as_deref(),
        Some("input")
    );
}

#[test]
fn what_a_coding_agent_sends_is_understood() {
    let text = |text: &str| json!([{"type": "input_text", "text": text}]);
    let request = json!({
        "model": "m", "instructions": "You code.", "stream": true, "store": false, "tool_choice": "auto",
        "parallel_tool_calls": false, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k",
        "reasoning": {"effort": "medium", "summary": "auto"}, "text": {"verbosity": "low"},
        "tools": [
            {"type": "function", "name": "shell", "description": "", "strict": false, "parameters": {"type": "object"}},
            {"type": "custom", "name": "apply_patch", "description": "Edits.", "format": {"type": "grammar", "syntax": "lark", "definition": "start: x"}},
            {"type": "web_search", "external_web_access": false},
        ],
        "input": [
            {"type": "message", "role": "developer", "content": text("Sandboxed.")},
            {"type": "message", "role": "user", "content": text("Fix it.")},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "look"}], "content": null, "encrypted_content": "gAAA"},
            {"type": "function_call", "name": "shell", "arguments": "{}", "call_id": "c1"},
            {"type": "function_call_output", "call_id": "c1", "output": "ok"},
            {"type": "custom_tool_call", "status": "completed", "call_id": "c2", "name": "apply_patch", "input": "*** Begin"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": "done"},
        ],
    });
    let (chat, out) = translated(&request, &Past::default()).unwrap();
    let messages = chat["messages"].as_array().unwrap();
    let roles: Vec<&str> = messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "tool", "assistant", "tool"]);
    assert_eq!(messages[0]["content"], "You code.\n\nSandboxed.");
    assert_eq!(messages[2]["reasoning_content"], "look");
    assert_eq!(messages[4]["tool_calls"][0]["function"]["name"], "apply_patch");
    assert_eq!(chat["tools"].as_array().unwrap().len(), 2);
    assert_eq!((&chat["prompt_cache_key"], &chat["verbosity"]), (&json!("k"), &json!("low")));
    assert_eq!(out.warnings, ["the tool 'web_search' was left out: nobody runs it here"]);
    assert!(out.telling.summarise && out.telling.free_tools.contains("apply_patch"));
    assert!(!out.telling.logprobs, "only other words are included");
}

#[test]
fn a_schema_keeps_the_order_of_its_properties() {
    let text = r#"{"model":"m","input":"x","text":{"format":{"type":"json_schema","name":"s","schema":{"properties":{"z":{},"a":{}}}}}}"#;
    let out = Draft::read(text.as_bytes()).unwrap().translate(&Past::default()).unwrap();
    assert!(String::from_utf8_lossy(&out.body).contains(r#"{"properties":{"z":{},"a":{}}}"#));
}
