//! Both translations against requests and answers as Google documents them.

use serde_json::{Value, json};

use super::answer::Answer;
use super::request::translate;
use super::url;

fn asked(body: &Value) -> Value {
    translate(body.to_string().as_bytes()).unwrap()
}

fn refused(body: &Value) -> String {
    translate(body.to_string().as_bytes()).unwrap_err().to_string()
}

fn answer() -> Answer {
    Answer::new("req_1", "gemini-x", 7)
}

fn whole(response: Value) -> Value {
    answer().whole(serde_json::from_value(response).unwrap()).unwrap()
}

fn streamed(pieces: &[Value]) -> Vec<Value> {
    let mut answer = answer();
    let piece = |piece: &Value| answer.chunks(serde_json::from_value(piece.clone()).unwrap()).unwrap();
    pieces.iter().flat_map(piece).collect()
}

#[test]
fn a_conversation_with_a_system_prompt_and_settings() {
    let body = json!({
        "model": "gemini/x", "temperature": 0.5, "top_p": 0.9, "max_tokens": 10, "stop": "END", "seed": 3, "n": 2,
        "logprobs": true, "top_logprobs": 4, "reasoning_effort": "low", "user": null,
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "One."}, {"role": "user", "content": [{"type": "text", "text": "Two."}]},
            {"role": "assistant", "content": "Three."}, {"role": "user", "content": "Four."}
        ]
    });
    assert_eq!(
        asked(&body),
        json!({
            "systemInstruction": {"parts": [{"text": "Be kind."}]},
            "contents": [
                {"role": "user", "parts": [{"text": "One."}, {"text": "Two."}]},
                {"role": "model", "parts": [{"text": "Three."}]},
                {"role": "user", "parts": [{"text": "Four."}]}
            ],
            "generationConfig": {
                "temperature": 0.5, "topP": 0.9, "maxOutputTokens": 10, "stopSequences": ["END"], "seed": 3,
                "candidateCount": 2, "responseLogprobs": true, "logprobs": 4,
                "thinkingConfig": {"thinkingBudget": 1024}
            }
        })
    );
}

#[test]
fn tools_go_there_and_their_results_too() {
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let call = |id: &str, city: &str| {
        json!({"id": id, "type": "function",
            "function": {"name": "weather", "arguments": json!({"city": city}).to_string()}})
    };
    let mut signed = call("a", "Rome");
    signed["extra_content"] = json!({"google": {"thought_signature": "c2ln"}});
    let body = json!({
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": null, "tool_calls": [signed, call("b", "Oslo")]},
            {"role": "tool", "tool_call_id": "b", "content": "cold"},
            {"role": "tool", "tool_call_id": "a", "content": "{\"celsius\":30}"}
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": schema}}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}}
    });
    assert_eq!(
        asked(&body),
        json!({
            "contents": [
                {"role": "user", "parts": [{"text": "Weather?"}]},
                {"role": "model", "parts": [
                    {"functionCall": {"name": "weather", "args": {"city": "Rome"}}, "thoughtSignature": "c2ln"},
                    {"functionCall": {"name": "weather", "args": {"city": "Oslo"}}}
                ]},
                {"role": "user", "parts": [
                    {"functionResponse": {"name": "weather", "response": {"result": "cold"}}},
                    {"functionResponse": {"name": "weather", "response": {"celsius": 30}}}
                ]}
            ],
            "tools": [{"functionDeclarations":
                [{"name": "weather", "description": "d", "parametersJsonSchema": schema}]}],
            "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["weather"]}}
        })
    );
}

#[test]
fn tools_without_a_choice_are_the_models_to_call() {
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]});
    let out = asked(&body);
    assert_eq!(out["tools"][0]["functionDeclarations"][0]["name"], "f");
    assert!(out.get("toolConfig").is_none());
}

#[test]
fn json_wishes_and_images_are_translated() {
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}});
    let image = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}});
    let body = json!({"messages": [{"role": "user", "content": [image]}], "response_format": format});
    let out = asked(&body);
    assert_eq!(out["generationConfig"]["responseMimeType"], "application/json");
    assert_eq!(out["generationConfig"]["responseJsonSchema"], json!({"type": "object"}));
    let part = &out["contents"][0]["parts"][0];
    assert_eq!(*part, json!({"inlineData": {"mimeType": "image/png", "data": "QUJD"}}));
}

#[test]
fn what_gemini_cannot_be_asked_is_refused_by_name() {
    let user = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
    let remote = json!({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}});
    assert!(refused(&user(remote)).contains("data: URL"));
    assert!(refused(&user(json!({"type": "file"}))).contains("'file'"));
    let orphan = json!({"messages": [{"role": "tool", "tool_call_id": "x", "content": "1"}]});
    assert!(refused(&orphan).contains("no earlier message"));
    let stops = json!({"messages": [], "stop": ["1", "2", "3", "4", "5", "6"]});
    assert!(refused(&stops).contains("stop"));
}

#[test]
fn a_whole_answer_with_usage() {
    let out = whole(json!({
        "candidates": [{"content": {"role": "model", "parts": [
            {"text": "hm", "thought": true}, {"text": "Hel"}, {"text": "lo"}]}, "finishReason": "STOP",
            "logprobsResult": {"chosenCandidates": [{"token": "Hello", "logProbability": -0.5}],
                "topCandidates": [{"candidates": [{"token": "Hello", "logProbability": -0.5}]}]}}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2, "thoughtsTokenCount": 5,
            "totalTokenCount": 10},
        "modelVersion": "gemini-x-001"
    }));
    let choice = &out["choices"][0];
    assert_eq!(out["model"], "gemini-x-001");
    assert_eq!(choice["message"]["content"], "Hello");
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["logprobs"]["content"][0]["top_logprobs"][0]["logprob"], -0.5);
    assert_eq!(out["usage"]["completion_tokens"], 7, "thoughts are billed as output");
    assert_eq!(out["usage"]["total_tokens"], 10);
}

#[test]
fn calls_come_back_with_ids_and_text_arguments() {
    let part = json!({"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "c2ln"});
    let response =
        json!({"candidates": [{"content": {"parts": [part.clone(), part]}, "finishReason": "STOP"}]});
    let out = whole(response.clone());
    let calls = out["choices"][0]["message"]["tool_calls"].as_array().unwrap();
    assert_eq!(out["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(calls[0]["function"], json!({"name": "f", "arguments": "{\"a\":1}"}));
    assert_eq!(calls[0]["extra_content"]["google"]["thought_signature"], "c2ln");
    assert_ne!(calls[0]["id"], calls[1]["id"]);
    let chunks = streamed(&[response]);
    let indices: Vec<&Value> =
        chunks.iter().filter_map(|c| c["choices"][0]["delta"]["tool_calls"][0].get("index")).collect();
    assert_eq!(indices, [0, 1]);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[test]
fn every_stop_has_its_reason() {
    let cases = [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("PROHIBITED_CONTENT", "content_filter"),
        ("SOMETHING_NEW", "content_filter"),
    ];
    for (theirs, ours) in cases {
        let out = whole(json!({"candidates": [{"finishReason": theirs}]}));
        assert_eq!(out["choices"][0]["finish_reason"], ours, "{theirs}");
    }
    let blocked = json!({"promptFeedback": {"blockReason": "SAFETY"}});
    assert_eq!(whole(blocked.clone())["choices"][0]["finish_reason"], "content_filter");
    assert_eq!(streamed(&[blocked]).last().unwrap()["choices"][0]["finish_reason"], "content_filter");
    let garbled = json!({"candidates": [{"finishReason": "MALFORMED_FUNCTION_CALL"}]});
    assert!(answer().whole(serde_json::from_value(garbled).unwrap()).is_err());
    assert!(answer().whole(serde_json::from_value(json!({})).unwrap()).is_err());
}

#[test]
fn a_stream_opens_once_says_all_and_ends_with_usage() {
    let text = |text: &str| {
        json!({"candidates": [{"content": {"parts": [{"text": text}]}}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 1}})
    };
    let mut last = text("lo");
    last["candidates"][0]["finishReason"] = "STOP".into();
    last["usageMetadata"]["candidatesTokenCount"] = 2.into();
    let chunks = streamed(&[text("Hel"), last]);
    let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    assert_eq!(*deltas[0], json!({"role": "assistant", "content": ""}));
    assert_eq!((&deltas[1]["content"], &deltas[2]["content"]), (&json!("Hel"), &json!("lo")));
    assert_eq!(chunks[3]["choices"][0]["finish_reason"], "stop");
    assert_eq!((&chunks[4]["choices"], &chunks[4]["usage"]["completion_tokens"]), (&json!([]), &json!(2)));
    assert_eq!(chunks.len(), 5);
}

#[test]
fn the_key_is_never_part_of_the_url() {
    for base in ["https://g.example", "https://g.example/", "https://g.example/v1beta/"] {
        let base = base.parse().unwrap();
        assert_eq!(url(&base, "m", false).as_str(), "https://g.example/v1beta/models/m:generateContent");
        let stream = url(&base, "models/m", true);
        assert_eq!(stream.as_str(), "https://g.example/v1beta/models/m:streamGenerateContent?alt=sse");
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
    assert_eq!(out["contents"][1]["parts"], json!([{"text": "Well"}]));
    assert_eq!(out["contents"][3]["parts"], json!([{"functionCall": {"name": "f", "args": {}}}]));
}
