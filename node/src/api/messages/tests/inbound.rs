//! What becomes of a request.

use serde_json::{Value, json};

use super::super::request::{Chat, Names, translate, translate_to_count};
use super::super::{count, request};
use crate::api::error::ApiError;

const NAMES: Names<'_> = Names { claude: Some("auto"), serves: &|model| model == "claude-here" };

fn chat(request: &Value) -> Result<(Value, Chat), ApiError> {
    let chat = translate(request.to_string().as_bytes(), NAMES)?;
    Ok((serde_json::from_slice(&chat.body).unwrap(), chat))
}

/// A request of one message, with more fields.
fn with(more: Value) -> Value {
    let mut request = json!({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]});
    for (name, value) in more.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

/// The messages that a conversation becomes.
fn said(messages: Value) -> Value {
    chat(&with(json!({"messages": messages}))).unwrap().0["messages"].clone()
}

#[test]
fn a_plain_request_keeps_what_both_apis_call_by_one_name() {
    let (body, chat) = chat(&with(json!({
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3, "stop_sequences": ["END"], "stream": true,
        "system": "Be brief.", "service_tier": "standard_only",
    })))
    .unwrap();
    assert_eq!(
        body,
        json!({"model": "m", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3,
               "stop": ["END"], "stream": true, "stream_options": {"include_usage": true},
               "service_tier": "default",
               "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]})
    );
    assert_eq!((chat.model.as_str(), &chat.stops[..]), ("m", &["END".to_owned()][..]));
    assert!(chat.warnings.is_empty());
}

#[test]
fn a_turn_with_tools_becomes_calls_and_results() {
    let messages = said(json!([
        {"role": "user", "content": [{"type": "text", "text": "What is", "cache_control": {"type": "ephemeral"}},
                                     {"type": "text", "text": "the weather?"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"b": 1, "a": "Köln"}},
            {"type": "tool_use", "id": "toolu_2", "name": "time", "input": {}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"},
            {"type": "tool_result", "tool_use_id": "toolu_2", "is_error": true,
             "content": [{"type": "text", "text": "no clock"}]},
            {"type": "text", "text": "And now?"}]},
    ]));
    let call = |id: &str, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    assert_eq!(
        messages,
        json!([
            {"role": "user", "content": "What is\n\nthe weather?"},
            {"role": "assistant", "content": "I look.", "tool_calls": [
                // Keys in the order of the test's JSON, which sorts them.
                call("toolu_1", "weather", r#"{"b":1,"a":"Köln"}"#), call("toolu_2", "time", "{}")]},
            {"role": "tool", "tool_call_id": "toolu_1", "content": "sunny"},
            {"role": "tool", "tool_call_id": "toolu_2", "content": "Error: no clock"},
            {"role": "user", "content": "And now?"},
        ])
    );
}

#[test]
fn an_input_keeps_its_bytes() {
    let text = r#"{"model":"m","max_tokens":1,"messages":[{"role":"assistant","content":[
        {"type":"tool_use","id":"i","name":"n","input":{"z": 1.50, "a":12345678901234567890123}}]}]}"#;
    let body: Value = serde_json::from_slice(&translate(text.as_bytes(), NAMES).unwrap().body).unwrap();
    let message = &body["messages"][0];
    assert_eq!(
        message["tool_calls"][0]["function"]["arguments"],
        r#"{"z": 1.50, "a":12345678901234567890123}"#
    );
    assert_eq!(message["content"], Value::Null);
}

#[test]
fn images_are_shown_and_those_of_results_follow_them() {
    let base64 =
        json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD"}});
    let url = json!({"type": "image", "source": {"type": "url", "url": "https://x.test/a.png"}});
    let messages = said(json!([
        {"role": "user", "content": [base64, {"type": "text", "text": "What is it?"}, url]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "shot", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [base64]}]},
    ]));
    let image = |url: &str| json!({"type": "image_url", "image_url": {"url": url}});
    let text = |text: &str| json!({"type": "text", "text": text});
    let data = "data:image/png;base64,QUJD";
    assert_eq!(
        messages[0]["content"],
        json!([image(data), text("What is it?"), image("https://x.test/a.png")])
    );
    assert_eq!(messages[2], json!({"role": "tool", "tool_call_id": "t", "content": ""}));
    assert_eq!(messages[3]["content"], json!([text("[image from the result of t]"), image(data)]));
}

#[test]
fn documents_are_shown_by_their_text() {
    let messages = said(json!([{"role": "user", "content": [
        {"type": "document", "title": "Notes", "source": {"type": "text", "media_type": "text/plain", "data": "one"}},
        {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "two"}]}},
        {"type": "search_result", "title": "Three", "source": "https://x.test",
         "content": [{"type": "text", "text": "three"}]},
    ]}]));
    assert_eq!(messages[0]["content"], "Notes\n\none\n\ntwo\n\nThree\n\nhttps://x.test\n\nthree");
}

#[test]
fn a_file_that_a_tool_brought_is_told_of_and_one_of_the_user_is_refused() {
    let pdf = json!({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "QQ=="}});
    let (body, chat) = chat(&with(json!({"messages": [{"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "t", "content": [pdf, {"type": "tool_reference", "tool_name": "x"}]}]}]})))
    .unwrap();
    let shown = body["messages"][0]["content"].as_str().unwrap();
    assert!(
        shown.contains("such as a PDF, was left out here") && shown.contains("'tool_reference'"),
        "{shown}"
    );
    assert_eq!(chat.warnings.len(), 2);
    let error = self::chat(&with(json!({"messages": [{"role": "user", "content": [pdf]}]}))).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("messages.0.content.0"));
    assert!(error.message.contains("PDF"), "{}", error.message);
}

#[test]
fn instructions_go_where_templates_take_them_and_accounting_nowhere() {
    let system = json!([
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=abcde"},
        {"type": "text", "text": "You are an agent."},
        {"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}},
    ]);
    let (body, _) = chat(&with(json!({"system": system, "messages": [
        {"role": "user", "content": "hi"}, {"role": "system", "content": "The plan changed."}]})))
    .unwrap();
    assert_eq!(
        body["messages"],
        json!([{"role": "system", "content": "You are an agent.\n\nBe kind."},
               {"role": "user", "content": "hi\n\n<system-reminder>\nThe plan changed.\n</system-reminder>"}])
    );
    let changed = json!({"role": "system", "content": [
        {"type": "text", "text": "More tools."}, {"type": "tool_addition", "tool": {"name": "x"}}]});
    let call =
        json!({"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]});
    let results = json!({"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "t", "content": "42"},
        {"type": "text", "text": "<system-reminder>\nHurry.\n</system-reminder>"}]});
    let (body, noted) = chat(&with(json!({"messages": [
        {"role": "user", "content": "hi"}, call, results, changed,
        {"role": "assistant", "content": "done"}, {"role": "system", "content": "Go on."}]})))
    .unwrap();
    let messages = &body["messages"];
    assert_eq!(
        messages[2],
        json!({"role": "tool", "tool_call_id": "t", "content": "42\n\n<system-reminder>\nHurry.\n</system-reminder>\n\n\
               <system-reminder>\nMore tools.\n</system-reminder>"})
    );
    assert_eq!(
        messages[4],
        json!({"role": "user", "content": "<system-reminder>\nGo on.\n</system-reminder>"})
    );
    assert_eq!(noted.warnings, ["a block of type 'tool_addition' of the system was left out"]);
    let first = said(json!([{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]));
    assert_eq!(first[0], json!({"role": "system", "content": "s"}));
}

#[test]
fn tools_become_functions_with_their_choice() {
    let tools = json!([
        {"name": "a", "description": "does a", "input_schema": {"type": "object"}, "cache_control": {}, "strict": true},
        {"type": "custom", "name": "b", "input_schema": {"type": "object"}, "defer_loading": true},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
    ]);
    let asked = |choice: Value| chat(&with(json!({"tools": tools, "tool_choice": choice})));
    let (body, chat) = asked(json!({"type": "any", "disable_parallel_tool_use": true})).unwrap();
    assert_eq!(
        body["tools"],
        json!([{"type": "function", "function": {"name": "a", "description": "does a",
                "parameters": {"type": "object"}, "strict": true}},
               {"type": "function", "function": {"name": "b", "parameters": {"type": "object"}}}])
    );
    assert_eq!((&body["tool_choice"], &body["parallel_tool_calls"]), (&json!("required"), &json!(false)));
    assert_eq!(chat.warnings.len(), 1);
    assert!(chat.warnings[0].contains("web_search_20250305"));
    for (choice, ours) in [
        (json!({"type": "auto"}), json!("auto")),
        (json!({"type": "none"}), json!("none")),
        (json!({"type": "tool", "name": "b"}), json!({"type": "function", "function": {"name": "b"}})),
        (Value::Null, Value::Null),
    ] {
        assert_eq!(asked(choice).unwrap().0["tool_choice"], ours);
    }
    for (choice, param) in [
        (json!({"type": "tool", "name": "web_search"}), "tool_choice"),
        (json!({"type": "tool", "name": "c"}), "tool_choice.name"),
        (json!({"type": "maybe"}), "tool_choice.type"),
    ] {
        assert_eq!(asked(choice).unwrap_err().param.as_deref(), Some(param));
    }
}

#[test]
fn a_request_for_anthropics_tools_alone_is_not_answered_without_them() {
    let error =
        chat(&with(json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}))).unwrap_err();
    assert!(error.message.contains("'web_search' exists at Anthropic only"), "{}", error.message);
    let (body, _) = chat(&with(json!({"tools": [], "tool_choice": {"type": "auto"}}))).unwrap();
    assert!(body.get("tools").is_none() && body.get("tool_choice").is_none());
}

#[test]
fn metadata_names_the_user_and_instructs_us() {
    let (body, chat) = chat(&with(json!({"metadata": {
        "user_id": "ann", "mode": "local", "data_class": "restricted", "team": "x"}})))
    .unwrap();
    assert_eq!(body["user"], "ann");
    assert_eq!(body["metadata"], json!({"mode": "local", "data_class": "restricted"}));
    assert_eq!(chat.warnings, ["'metadata.team' is not known and was left out"]);
    let long = "user_".to_owned() + &"0123456789abcdef".repeat(8);
    let (body, _) = self::chat(&with(json!({"metadata": {"user_id": long}}))).unwrap();
    let user = body["user"].as_str().unwrap();
    assert_eq!((user.len(), user.contains("user_")), (64, false));
    assert!(body.get("metadata").is_none());
}

#[test]
fn a_schema_is_asked_for_under_both_of_its_names() {
    let format = json!({"type": "json_schema", "schema": {"type": "object"}});
    for more in [json!({"output_config": {"format": format}}), json!({"output_format": format})] {
        let (body, chat) = chat(&with(more)).unwrap();
        assert_eq!(
            body["response_format"],
            json!({"type": "json_schema",
                   "json_schema": {"name": "answer", "strict": true, "schema": {"type": "object"}}})
        );
        assert!(chat.warnings.is_empty());
        assert!(body.get("output_config").is_none() && body.get("output_format").is_none());
    }
    assert!(chat(&with(json!({"output_config": {"format": {"type": "xml"}}}))).is_err());
}

#[test]
fn what_means_nothing_here_is_left_out_and_said() {
    let (body, chat) = chat(&with(json!({
        "thinking": {"type": "enabled", "budget_tokens": 2048}, "output_config": {"effort": "high"},
        "context_management": {"edits": []}, "mcp_servers": [], "n": 4, "betas": ["x"], "anthropic_version": "y",
        "stream_options": {"include_usage": false}, "reasoning_effort": "low",
    })))
    .unwrap();
    assert_eq!(
        body,
        json!({"model": "m", "max_tokens": 5, "reasoning_effort": "low",
               "messages": [{"role": "user", "content": "hi"}]})
    );
    let warned: Vec<&str> = chat.warnings.iter().map(|w| w.split('\'').nth(1).unwrap()).collect();
    assert_eq!(warned, ["output_config.effort", "thinking", "context_management", "n"]);
    let (_, quiet) = self::chat(&with(json!({"thinking": {"type": "disabled"}}))).unwrap();
    assert!(quiet.warnings.is_empty());
}

#[test]
fn warnings_fit_a_header_whatever_a_client_calls_its_tools() {
    let tools: Vec<Value> =
        (0..40).map(|i| json!({"type": format!("t\r\n\u{e9}{i}{}", "x".repeat(300)), "name": "n"})).collect();
    let mut tools = Value::from(tools);
    tools.as_array_mut().unwrap().push(json!({"name": "a", "input_schema": {}}));
    let (_, chat) = chat(&with(json!({"tools": tools}))).unwrap();
    assert_eq!(chat.warnings.len(), 12);
    assert!(http::HeaderValue::from_str(&chat.warnings.join("; ")).is_ok());
    assert!(chat.warnings.iter().all(|line| line.len() <= 160));
}

#[test]
fn anthropics_model_names_mean_auto_unless_somebody_serves_them() {
    let model = |names: Names<'_>, model: &str| {
        let chat = translate(with(json!({"model": model})).to_string().as_bytes(), names).unwrap();
        let body: Value = serde_json::from_slice(&chat.body).unwrap();
        assert_eq!(body["model"], chat.model.as_str());
        chat.model
    };
    assert_eq!(model(NAMES, "claude-opus-9"), "auto");
    assert_eq!(model(NAMES, "claude-here"), "claude-here");
    assert_eq!(model(NAMES, "qwen"), "qwen");
    assert_eq!(model(Names { claude: None, ..NAMES }, "claude-opus-9"), "claude-opus-9");
    assert_eq!(model(Names { claude: Some("auto:best"), ..NAMES }, "claude-opus-9"), "auto:best");
}

#[test]
fn mistakes_name_the_field() {
    let cases = [
        (with(json!({"max_tokens": null})), "max_tokens"),
        (with(json!({"max_tokens": 0})), "max_tokens"),
        (with(json!({"max_tokens": "many"})), "max_tokens"),
        (with(json!({"model": 3})), "model"),
        (with(json!({"messages": null})), "messages"),
        (with(json!({"messages": []})), "messages"),
        (with(json!({"messages": "hi"})), "messages"),
        (with(json!({"messages": [{"content": "hi"}]})), "messages.0.role"),
        (with(json!({"messages": [{"role": "king", "content": "hi"}]})), "messages.0.role"),
        (with(json!({"messages": [{"role": "user"}]})), "messages.0.content"),
        (with(json!({"messages": [{"role": "user", "content": 7}]})), "messages.0.content"),
        (
            with(json!({"messages": [{"role": "user", "content": [{"text": "x"}]}]})),
            "messages.0.content.0.type",
        ),
        (
            with(json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]})),
            "messages.0.content.0.text",
        ),
        (
            with(json!({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]})),
            "messages.0.content.0",
        ),
        (
            with(json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]})),
            "messages.0.content.0.source",
        ),
        (
            with(
                json!({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}]}),
            ),
            "messages.0.content.0",
        ),
        (
            with(json!({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]})),
            "messages.0.content.0.tool_use_id",
        ),
        (
            with(json!({"messages": [{"role": "assistant", "content": [
                {"type": "tool_use", "id": "i", "name": "n", "input": []}]}]})),
            "messages.0.content.0.input",
        ),
        (with(json!({"system": 1})), "system"),
        (with(json!({"system": [{"type": "image"}]})), "system"),
        (with(json!({"stop_sequences": "END"})), "stop_sequences"),
        (with(json!({"stop_sequences": vec!["x"; 17]})), "stop_sequences"),
        (with(json!({"metadata": "x"})), "metadata"),
        (with(json!({"metadata": {"user_id": 1}})), "metadata.user_id"),
        (with(json!({"tools": {}})), "tools"),
        (with(json!({"tools": [{"input_schema": {}}]})), "tools.0.name"),
        (with(json!({"tools": [{"name": "a"}]})), "tools.0.input_schema"),
        (with(json!({"stream": "yes"})), "stream"),
        (with(json!({"thinking": true})), "thinking"),
    ];
    for (request, param) in cases {
        let error = chat(&request).map(|_| ()).unwrap_err();
        assert_eq!(
            (error.status, error.param.as_deref()),
            (400, Some(param)),
            "{request}: {}",
            error.message
        );
        assert!(error.message.contains(param), "{request}: {}", error.message);
    }
    for text in ["", "[]", "{", r#"{"model":"a","model":"b"}"#] {
        assert_eq!(translate(text.as_bytes(), NAMES).unwrap_err().status, 400, "{text}");
    }
}

#[test]
fn counting_sees_system_messages_tools_and_images() {
    let count =
        |request: Value| count::tokens(&translate_to_count(request.to_string().as_bytes()).unwrap().body).0;
    let hello = json!({"model": "m", "messages": [{"role": "user", "content": "Hello, world"}]});
    // Three tokens, four for the message, three for the answer's head.
    assert_eq!(count(hello.clone()), 3 + 4 + 3);
    let mut with_system = hello.clone();
    with_system["system"] = "Hello, world".into();
    assert_eq!(count(with_system), 3 + 4 + 3 + 4 + 3);
    let mut with_tools = hello.clone();
    with_tools["tools"] = json!([{"name": "weather", "input_schema": {"type": "object"}}]);
    assert!(count(with_tools) > 10 + 10);
    let mut with_image = hello;
    with_image["messages"][0]["content"] = json!([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A".repeat(90_000)}}]);
    assert_eq!(count(with_image), 1000 + 4 + 3);
    assert!(request::translate_to_count(b"{}").is_err());
}
