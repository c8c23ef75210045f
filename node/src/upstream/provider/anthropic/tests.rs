//! Both translations against requests, answers and streams as Anthropic documents them.

use serde_json::{Value, json};
use shoal_routing::Tokens;

use super::answer::Answer;
use super::request::{ANSWER_TOOL, answers_by_tool, translate};
use crate::device::testing::chat;
use crate::upstream::UpstreamRequest;
use crate::upstream::openai_http::{Dialect as _, testing_settings};
use crate::upstream::provider::{Model, Traits};

fn model(traits: Traits) -> Model {
    Model { name: "claude-x".into(), traits }
}

fn traits() -> Traits {
    Traits { max_output: Some(Tokens(64_000)), ..Traits::default() }
}

fn asked_of(body: &Value, traits: Traits) -> Value {
    translate(body.to_string().as_bytes(), &model(traits)).unwrap()
}

fn asked(body: &Value) -> Value {
    asked_of(body, traits())
}

fn refused(body: &Value) -> String {
    translate(body.to_string().as_bytes(), &model(traits())).unwrap_err().to_string()
}

fn answer(unwraps: bool) -> Answer {
    Answer::new("req_1", "claude-x", 7, unwraps)
}

fn whole(message: Value) -> Value {
    answer(false).whole(serde_json::from_value(message).unwrap()).unwrap()
}

fn streamed_as(unwraps: bool, events: &[Value]) -> Vec<Value> {
    let mut answer = answer(unwraps);
    let chunks = |event: &Value| answer.chunks(serde_json::from_value(event.clone()).unwrap()).unwrap();
    events.iter().flat_map(chunks).collect()
}

fn streamed(events: &[Value]) -> Vec<Value> {
    streamed_as(false, events)
}

fn user(content: Value) -> Value {
    json!({"messages": [{"role": "user", "content": content}]})
}

fn with(mut body: Value, more: Value) -> Value {
    let more = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    body
}

#[test]
fn a_conversation_with_a_system_prompt_and_settings() {
    let body = json!({
        "model": "anthropic/claude-x", "temperature": 1.5, "top_p": 0.9, "max_tokens": 10, "stop": "END",
        "stream": true, "stream_options": {"include_usage": true}, "user": "u1", "seed": 3, "logit_bias": null,
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "One."}, {"role": "user", "content": [{"type": "text", "text": "Two."}]},
            {"role": "assistant", "content": "Three."}, {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Four."}
        ]
    });
    assert_eq!(
        asked(&body),
        json!({
            "model": "claude-x", "max_tokens": 10, "temperature": 1.0, "stop_sequences": ["END"], "stream": true,
            "metadata": {"user_id": "u1"},
            "system": [{"type": "text", "text": "Be kind."}, {"type": "text", "text": "Be brief."}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Three."}]},
                {"role": "user", "content": [{"type": "text", "text": "Four."}]}
            ]
        })
    );
}

#[test]
fn tools_go_there_and_their_results_come_first_in_one_turn() {
    let schema = json!({"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "string"}}});
    let call = |id: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": "weather", "arguments": arguments}});
    let thought = json!({"type": "thinking", "thinking": "hm", "signature": "sig"});
    let body = json!({
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": null, "thinking_blocks": [thought, {"type": "other"}],
                "tool_calls": [call("functions.weather:0", "{\"city\":\"Rome\"}"), call("b", "garbled")]},
            {"role": "tool", "tool_call_id": "functions.weather:0", "content": "30 degrees"},
            {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "cold"}]},
            {"role": "user", "content": "And?"}
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": schema}},
            {"type": "function", "function": {"name": "now"}}],
        "tool_choice": "required", "parallel_tool_calls": false
    });
    let out = asked(&body);
    assert_eq!(
        out["messages"],
        json!([
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "sig"},
                {"type": "tool_use", "id": "functions_weather_0", "name": "weather", "input": {"city": "Rome"}},
                {"type": "tool_use", "id": "b", "name": "weather", "input": {}}
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "functions_weather_0",
                    "content": [{"type": "text", "text": "30 degrees"}]},
                {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "cold"}]},
                {"type": "text", "text": "And?"}
            ]}
        ])
    );
    assert_eq!(out["tool_choice"], json!({"type": "any", "disable_parallel_tool_use": true}));
    assert_eq!(out["tools"][0], json!({"name": "weather", "description": "d", "input_schema": schema}));
    assert_eq!(out["tools"][1]["input_schema"]["type"], "object");
    let text = out["tools"].to_string();
    assert!(
        text.find("\"z\"") < text.find("\"a\""),
        "the order of a schema's fields means something to a model"
    );
}

#[test]
fn a_conversation_that_called_tools_goes_on_without_any() {
    let body = json!({"messages": [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "a", "content": ""}
    ]});
    let out = asked(&body);
    assert_eq!(out["tools"], json!([{"name": "f", "input_schema": {"type": "object"}}]));
    assert_eq!(out["tool_choice"], json!({"type": "none"}));
    assert_eq!(out["messages"][2]["content"], json!([{"type": "tool_result", "tool_use_id": "a"}]));
}

#[test]
fn choices_of_tools_are_translated() {
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
    let named = json!({"type": "function", "function": {"name": "f"}});
    let cases = [
        (json!("auto"), Value::Null),
        (json!("none"), json!({"type": "none"})),
        (named, json!({"type": "tool", "name": "f"})),
    ];
    for (choice, expected) in cases {
        let out = asked(&with(user(json!("?")), json!({"tools": tools, "tool_choice": choice})));
        assert_eq!(out["tool_choice"], expected, "{choice}");
    }
    let one = with(user(json!("?")), json!({"tools": tools, "parallel_tool_calls": false}));
    assert_eq!(asked(&one)["tool_choice"], json!({"type": "auto", "disable_parallel_tool_use": true}));
}

#[test]
fn images_and_files_become_sources() {
    let parts = json!([
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,UERG"}},
        {"type": "text", "text": "What?", "cache_control": {"type": "ephemeral"}}
    ]);
    assert_eq!(
        asked(&user(parts))["messages"][0]["content"],
        json!([
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}},
            {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "UERG"}},
            {"type": "text", "text": "What?", "cache_control": {"type": "ephemeral"}}
        ])
    );
}

#[test]
fn the_limit_is_always_there_and_never_above_the_models() {
    let limit = |more: Value| asked(&with(user(json!("?")), more))["max_tokens"].clone();
    assert_eq!(limit(json!({})), 4096);
    assert_eq!(limit(json!({"max_tokens": 9, "max_completion_tokens": 7})), 7);
    assert_eq!(limit(json!({"max_tokens": 1_000_000})), 64_000);
}

#[test]
fn a_schema_is_the_apis_to_keep_or_else_a_tools() {
    let schema = json!({"type": "object", "properties": {"grade": {"type": "integer"}}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
    let body = with(
        user(json!("?")),
        json!({"response_format": format, "reasoning_effort": "high", "max_tokens": 9000}),
    );
    let native = asked_of(&body, Traits { schema: Some(true), ..traits() });
    assert_eq!(native["output_config"], json!({"format": {"type": "json_schema", "schema": schema}}));
    assert!(native.get("tools").is_none());
    let by_tool = asked(&body);
    assert_eq!(by_tool["tool_choice"], json!({"type": "tool", "name": ANSWER_TOOL}));
    assert_eq!(by_tool["tools"][0]["input_schema"], schema);
    assert!(by_tool.get("thinking").is_none(), "the API refuses thoughts before a forced call");
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let both = asked(&with(body.clone(), json!({"tools": tools})));
    assert_eq!((both["tools"].as_array().unwrap().len(), &both["tool_choice"]["type"]), (2, &json!("any")));
    assert!(answers_by_tool(body.to_string().as_bytes(), &traits()));
    assert!(!answers_by_tool(user(json!("?")).to_string().as_bytes(), &traits()));
    let loose = asked(&with(user(json!("?")), json!({"response_format": {"type": "json_object"}})));
    assert!(loose["system"][0]["text"].as_str().unwrap().contains("JSON"));
}

#[test]
fn effort_becomes_a_budget_or_stays_an_effort() {
    let body = |more: Value| {
        with(user(json!("?")), with(json!({"reasoning_effort": "high", "temperature": 0.3}), more))
    };
    let out = asked(&body(json!({"max_tokens": 20_000})));
    assert_eq!(out["thinking"], json!({"type": "enabled", "budget_tokens": 10_000}));
    assert!(out.get("temperature").is_none(), "thinking takes none");
    let out = asked(&body(json!({"max_tokens": 100})));
    assert!(out.get("thinking").is_none() && out["temperature"] == 0.3, "no room to think");
    let out = asked_of(&body(json!({})), Traits { adaptive_thinking: true, ..traits() });
    assert_eq!(
        (&out["thinking"], &out["output_config"]),
        (&json!({"type": "adaptive"}), &json!({"effort": "high"}))
    );
    let own = json!({"type": "enabled", "budget_tokens": 2000});
    assert_eq!(asked(&body(json!({"thinking": own})))["thinking"], own);
    let out =
        asked_of(&with(user(json!("?")), json!({"temperature": 0})), Traits { sampling: false, ..traits() });
    assert!(out.get("temperature").is_none());
}

#[test]
fn calls_without_their_thoughts_are_gone_on_with_without_a_budget() {
    let thought = json!({"type": "thinking", "thinking": "hm", "signature": "s"});
    let body = |thoughts: Value, then: &[Value]| {
        let call = json!({"id": "a", "function": {"name": "f", "arguments": "{}"}});
        let mut messages = vec![
            json!({"role": "user", "content": "?"}),
            json!({"role": "assistant", "content": "I look.", "tool_calls": [call], "thinking_blocks": thoughts}),
            json!({"role": "tool", "tool_call_id": "a", "content": "1"}),
        ];
        messages.extend_from_slice(then);
        json!({"messages": messages, "reasoning_effort": "high", "max_tokens": 9000, "temperature": 0.3})
    };
    let answered =
        [json!({"role": "assistant", "content": "One."}), json!({"role": "user", "content": "And now?"})];
    for (body, thinks) in [
        (body(json!([]), &[]), false),
        (body(json!([thought]), &[]), true),
        // Only the last turn of the assistant counts.
        (body(json!([]), &answered), true),
    ] {
        let out = asked(&body);
        assert_eq!((out.get("thinking").is_some(), out.get("temperature").is_none()), (thinks, thinks));
    }
    let out = asked_of(&body(json!([]), &[]), Traits { adaptive_thinking: true, ..traits() });
    assert_eq!(out["thinking"], json!({"type": "adaptive"}), "who decides itself takes any history");
}

#[test]
fn a_conversation_begins_with_the_user_and_a_begun_answer_ends_clean() {
    let body = json!({"messages": [{"role": "assistant", "content": "Hi "}, {"role": "user", "content": "  "},
        {"role": "assistant", "content": "I say: "}]});
    let turns = asked(&body)["messages"].clone();
    assert_eq!(turns[0]["role"], "user");
    assert_eq!(
        turns[1]["content"],
        json!([{"type": "text", "text": "Hi "}, {"type": "text", "text": "I say:"}])
    );
}

#[test]
fn what_anthropic_cannot_be_asked_is_refused_by_name() {
    assert!(refused(&user(json!([{"type": "input_audio"}]))).contains("'input_audio'"));
    assert!(refused(&with(user(json!("?")), json!({"stop": ["a", "\n\n"]}))).contains("stop"));
    assert!(refused(&with(user(json!("?")), json!({"n": 2}))).contains("n = 1"));
    assert!(refused(&with(user(json!("?")), json!({"functions": [{"name": "f"}]}))).contains("'tools'"));
    assert!(refused(&json!({"messages": [{"role": "tool", "content": "1"}]})).contains("id"));
    assert!(refused(&json!({"messages": 3})).contains("chat request"));
}

#[test]
fn a_whole_answer_with_thoughts_calls_and_usage() {
    let out = whole(json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x-1", "stop_reason": "tool_use",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "sig"},
            {"type": "redacted_thinking", "data": "xx"},
            {"type": "text", "text": "Let me "}, {"type": "text", "text": "see."},
            {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
            {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"b": 1, "a": 2}},
            {"type": "tool_use", "name": "g"}
        ],
        "usage": {"input_tokens": 3, "cache_creation_input_tokens": 4, "cache_read_input_tokens": 5, "output_tokens": 6}
    }));
    let message = &out["choices"][0]["message"];
    assert_eq!(
        (&out["model"], &out["choices"][0]["finish_reason"]),
        (&json!("claude-x-1"), &json!("tool_calls"))
    );
    assert_eq!((&message["content"], &message["reasoning_content"]), (&json!("Let me see."), &json!("hm")));
    assert_eq!(message["thinking_blocks"].as_array().unwrap().len(), 2);
    assert_eq!(
        message["tool_calls"],
        json!([
            {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": "{\"b\":1,\"a\":2}"}},
            {"id": "call_req_1_1", "type": "function", "function": {"name": "g", "arguments": "{}"}}
        ])
    );
    assert_eq!((&out["usage"]["prompt_tokens"], &out["usage"]["total_tokens"]), (&json!(12), &json!(18)));
    assert_eq!(out["usage"]["prompt_tokens_details"]["cached_tokens"], 5);
}

#[test]
fn every_stop_has_its_reason() {
    let cases = [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "length"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
    ];
    for (theirs, ours) in cases {
        let out = whole(json!({"content": [], "stop_reason": theirs}));
        assert_eq!(out["choices"][0]["finish_reason"], ours, "{theirs}");
        let end =
            json!({"type": "message_delta", "delta": {"stop_reason": theirs}, "usage": {"output_tokens": 1}});
        assert_eq!(streamed(&[end])[1]["choices"][0]["finish_reason"], ours, "{theirs}");
    }
}

fn start(block: Value) -> Value {
    json!({"type": "content_block_start", "index": 0, "content_block": block})
}

fn delta(delta: Value) -> Value {
    json!({"type": "content_block_delta", "index": 0, "delta": delta})
}

fn stop() -> Value {
    json!({"type": "content_block_stop", "index": 0})
}

fn end(reason: &str) -> Value {
    json!({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 15}})
}

fn piece(text: &str) -> Value {
    delta(json!({"type": "input_json_delta", "partial_json": text}))
}

#[test]
fn a_stream_tells_role_thoughts_text_calls_reason_and_usage() {
    let chunks = streamed(&[
        json!({"type": "message_start", "message": {"model": "claude-x-1", "usage": {"input_tokens": 9, "output_tokens": 1}}}),
        json!({"type": "ping"}),
        start(json!({"type": "thinking", "thinking": "", "signature": ""})),
        delta(json!({"type": "thinking_delta", "thinking": "hm"})),
        delta(json!({"type": "signature_delta", "signature": "sig"})),
        stop(),
        start(json!({"type": "text", "text": ""})),
        delta(json!({"type": "text_delta", "text": "Hi"})),
        delta(json!({"type": "citations_delta", "citation": {}})),
        stop(),
        start(json!({"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}})),
        piece(""),
        piece("{\"a\":"),
        piece("1}"),
        stop(),
        start(json!({"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}})),
        stop(),
        end("tool_use"),
        json!({"type": "message_stop"}),
    ]);
    let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    let call = |index: u64, id: &str, name: &str| json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}]});
    let said =
        |index: u64, text: &str| json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]});
    let expected = [
        json!({"role": "assistant", "content": ""}),
        json!({"reasoning_content": "hm"}),
        json!({"thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "sig"}]}),
        json!({"content": "Hi"}),
        call(0, "toolu_1", "f"),
        said(0, "{\"a\":"),
        said(0, "1}"),
        call(1, "toolu_2", "g"),
        said(1, "{}"),
        json!({}),
    ];
    assert_eq!(deltas[..10], expected.iter().collect::<Vec<_>>());
    assert_eq!(chunks[9]["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!((&chunks[10]["choices"], &chunks[10]["usage"]["total_tokens"]), (&json!([]), &json!(24)));
    assert!(chunks.len() == 11 && chunks.iter().all(|chunk| chunk["model"] == "claude-x-1"));
}

#[test]
fn an_answer_by_tool_is_text_again() {
    let use_of = |input: Value| json!({"type": "tool_use", "id": "t", "name": ANSWER_TOOL, "input": input});
    let message = json!({"content": [use_of(json!({"grade": 7}))], "stop_reason": "tool_use"});
    let out = answer(true).whole(serde_json::from_value(message).unwrap()).unwrap();
    assert_eq!(out["choices"][0]["message"]["content"], "{\"grade\":7}");
    assert_eq!(out["choices"][0]["finish_reason"], "stop");
    assert!(out["choices"][0]["message"].get("tool_calls").is_none());
    let chunks = streamed_as(
        true,
        &[start(use_of(json!({}))), piece("{\"grade\":"), piece("7}"), stop(), end("tool_use")],
    );
    let text: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!((text.as_str(), &chunks[3]["choices"][0]["finish_reason"]), ("{\"grade\":7}", &json!("stop")));
}

#[test]
fn the_key_and_the_version_are_headers() {
    for base in ["https://a.example", "https://a.example/v1/"] {
        let request: UpstreamRequest = chat(true);
        let dialect = super::Dialect::new(model(traits()), &request);
        let out = dialect.outgoing(&testing_settings(base), &request).unwrap();
        assert_eq!(out.url().as_str(), "https://a.example/v1/messages");
        assert_eq!(out.headers()["x-api-key"], "sk-test");
        assert_eq!(out.headers()["anthropic-version"], "2023-06-01");
        assert!(out.headers().get("authorization").is_none());
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
    assert_eq!(out["messages"][1]["content"], json!([{"type": "text", "text": "Well"}]));
    let called = json!([{"type": "tool_use", "id": "a", "name": "f", "input": {}}]);
    assert_eq!(out["messages"][3]["content"], called);
}
