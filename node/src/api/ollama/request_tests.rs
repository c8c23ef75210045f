//! Requests of Ollama's API and the ones of OpenAI's that they become.

use serde_json::{Value, json};

use super::request::{Translated, Wanted, chat, embed, generate};
use crate::api::error::ApiError;

type Translate = fn(&[u8], fn(&str) -> String) -> Result<Wanted, ApiError>;

fn of(translate: Translate, request: &Value) -> Result<(Value, Translated), ApiError> {
    match translate(request.to_string().as_bytes(), str::to_owned)? {
        Wanted::Answer(out) => Ok((serde_json::from_slice(&out.body).unwrap(), out)),
        Wanted::Load { model } => panic!("{model} is only to be loaded"),
    }
}

#[test]
fn a_chat_has_the_same_settings_by_other_names() {
    let request = json!({
        "model": "m", "messages": [{"role": "user", "content": "Hi"}], "format": "json", "think": "low",
        "options": {"num_predict": 9, "temperature": 0.5, "top_k": 7, "stop": ["x"], "num_ctx": 4096},
        "keep_alive": "5m", "tools": [{"type": "function", "function": {"name": "f"}}],
    });
    let (chat, out) = of(chat, &request).unwrap();
    let expected = json!({
        "model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": true,
        "stream_options": {"include_usage": true}, "max_tokens": 9, "temperature": 0.5, "top_k": 7, "stop": ["x"],
        "response_format": {"type": "json_object"}, "reasoning_effort": "low",
        "tools": [{"type": "function", "function": {"name": "f"}}], "keep_alive": "5m",
    });
    assert_eq!(chat, expected);
    assert!(out.thinks);
    assert_eq!(out.warnings, ["the option 'num_ctx' was left out: it is set on the device"]);
}

#[test]
fn results_find_their_calls_without_ids() {
    let call = |name: &str, n: u8| json!({"function": {"name": name, "arguments": {"n": n}}});
    let request = json!({"model": "m", "stream": false, "messages": [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [call("f", 1), call("g", 2), call("f", 3)]},
        {"role": "tool", "tool_name": "g", "content": "G"},
        {"role": "tool", "content": "F1"},
        {"role": "tool", "tool_name": "f", "content": "F3"},
    ]});
    let (chat, _) = of(chat, &request).unwrap();
    let assistant = &chat["messages"][1];
    assert_eq!((&assistant["content"], &assistant["reasoning_content"]), (&Value::Null, &json!("hm")));
    assert_eq!(assistant["tool_calls"][0]["function"], json!({"name": "f", "arguments": "{\"n\":1}"}));
    let ids: Vec<&str> = (2..5).map(|at| chat["messages"][at]["tool_call_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["call_1", "call_0", "call_2"]);
}

#[test]
fn a_prompt_is_a_chat_and_a_picture_tells_what_it_is() {
    let request = json!({"model": "m", "prompt": "What?", "system": "Be brief.", "images": ["/9j/AA", "iVBORAA"],
                         "options": {"num_predict": -1}, "think": false});
    let (chat, out) = of(generate, &request).unwrap();
    let picture = |url: &str| json!({"type": "image_url", "image_url": {"url": url}});
    assert_eq!(
        chat["messages"],
        json!([{"role": "system", "content": "Be brief."},
               {"role": "user", "content": [{"type": "text", "text": "What?"},
                picture("data:image/jpeg;base64,/9j/AA"), picture("data:image/png;base64,iVBORAA")]}])
    );
    assert_eq!(
        (chat.get("max_tokens"), &chat["reasoning_effort"], out.thinks),
        (None, &json!("none"), false)
    );
}

#[test]
fn a_schema_keeps_its_bytes() {
    let text = br#"{"model":"m","prompt":"x","format":{"type":"object","properties":{"z":{},"a":{}}}}"#;
    let Wanted::Answer(out) = generate(text, str::to_owned).unwrap() else { panic!("an answer is wanted") };
    assert!(
        String::from_utf8_lossy(&out.body)
            .contains(r#""schema":{"type":"object","properties":{"z":{},"a":{}}}"#)
    );
}

#[test]
fn nothing_to_answer_only_loads() {
    for (translate, request) in [
        (chat as Translate, json!({"model": "m"})),
        (chat, json!({"model": "m", "messages": [], "keep_alive": 0})),
        (generate, json!({"model": "m", "prompt": ""})),
    ] {
        let wanted = translate(request.to_string().as_bytes(), str::to_owned).unwrap();
        assert!(matches!(wanted, Wanted::Load { model } if model == "m"));
    }
}

#[test]
fn embeddings_have_two_forms() {
    let name = |asked: &str| format!("{asked}:latest");
    let new =
        embed(br#"{"model":"e","input":["a","b"],"truncate":true,"dimensions":8}"#, "input", name).unwrap();
    assert_eq!(&new.body[..], br#"{"model":"e:latest","input":["a","b"],"dimensions":8}"#);
    assert_eq!(new.model, "e");
    let old = embed(br#"{"name":"e","prompt":"a"}"#, "prompt", name).unwrap();
    assert_eq!(&old.body[..], br#"{"model":"e:latest","input":"a"}"#);
    assert_eq!(embed(b"{\"model\":\"e\"}", "input", name).unwrap_err().param.as_deref(), Some("input"));
}

#[test]
fn what_cannot_be_followed_is_refused_by_its_name() {
    let message = json!([{"role": "user", "content": "x"}]);
    for (translate, request, param) in [
        (chat as Translate, json!({"messages": message}), "model"),
        (chat, json!({"model": "m", "messages": "x"}), "messages"),
        (chat, json!({"model": "m", "messages": [{"role": "robot"}]}), "messages[0].role"),
        (chat, json!({"model": "m", "messages": message, "options": 7}), "options"),
        (chat, json!({"model": "m", "messages": message, "format": "xml"}), "format"),
        (chat, json!({"model": "m", "messages": message, "think": 7}), "think"),
        (generate, json!({"model": "m", "prompt": "x", "raw": true}), "raw"),
        (generate, json!({"model": "m", "prompt": "x", "suffix": "y"}), "suffix"),
        (generate, json!({"model": "m", "prompt": "x", "template": "{{ .Prompt }}"}), "template"),
    ] {
        let error = of(translate, &request).unwrap_err();
        assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{request}");
    }
    assert!(of(generate, &json!({"model": "m", "prompt": "x", "raw": false, "suffix": ""})).is_ok());
}
