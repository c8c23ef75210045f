//! What clients get wrong, and what their upstream never sees.

use std::time::Duration;

use serde_json::Value;
use shoal_routing::{Mode, Tolerance};

use super::*;
use crate::upstream::openai_http::HOPS;

const NAMING: Naming<'_> = Naming { is_provider: &|_| false, lfo_manners: false };

fn chat(text: &str) -> Result<Parsed, ApiError> {
    let bytes = Bytes::copy_from_slice(text.as_bytes());
    parse(ApiPath::ChatCompletions, None, &bytes, &HeaderMap::new(), Floor::default(), NAMING)
        .map(|(parsed, _)| parsed)
}

#[test]
fn mistakes_name_the_field() {
    let cases: &[(&str, &str)] = &[
        ("{", "not a JSON object"),
        ("[]", "not a JSON object"),
        (r#"{"messages":[{"role":"user","content":"x"}]}"#, "'model' is missing"),
        (r#"{"model":3,"messages":[{"role":"user","content":"x"}]}"#, "'model' must be text"),
        (r#"{"model":"","messages":[{"role":"user","content":"x"}]}"#, "'model' must be a name"),
        (r#"{"model":"m"}"#, "'messages' is missing"),
        (r#"{"model":"m","messages":[]}"#, "'messages' is empty"),
        (r#"{"model":"m","messages":"hello"}"#, "'messages' must be a list"),
        (r#"{"model":"m","messages":["hello"]}"#, "messages[0] must be an object"),
        (r#"{"model":"m","messages":[{"content":"x"}]}"#, "messages[0].role is missing"),
        (r#"{"model":"m","messages":[{"role":"king","content":"x"}]}"#, "messages[0].role is 'king'"),
        (r#"{"model":"m","messages":[{"role":"user"}]}"#, "messages[0].content is missing"),
        (r#"{"model":"m","messages":[{"role":"user","content":7}]}"#, "messages[0].content must be text"),
        (r#"{"model":"m","messages":[{"role":"user","content":[{"type":"hologram"}]}]}"#, "'hologram'"),
        (r#"{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":-1}"#, "'max_tokens' is -1"),
        (r#"{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":0}"#, "at least 1"),
        (r#"{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":9}"#, "between 0 and 2"),
        (r#"{"model":"m","messages":[{"role":"user","content":"x"}],"stream":"yes"}"#, "'stream' is \"yes\""),
        (r#"{"model":"m","messages":[{"role":"user","content":"x"}],"n":0}"#, "'n' is 0"),
        (r#"{"model":"m","messages":[{"role":"user","content":"x"}],"stream_options":{}}"#, "only with"),
        (
            r#"{"model":"m","messages":[{"role":"user","content":"x"}],"metadata":{"mode":"moon"}}"#,
            "auto, local, cloud",
        ),
        (
            r#"{"model":"m","messages":[{"role":"user","content":"x"}],"metadata":{"confidence_threshold":3}}"#,
            "between 0 and 1",
        ),
        (r#"{"model":"m","model":"n","messages":[{"role":"user","content":"x"}]}"#, "occurs twice"),
    ];
    for (text, expected) in cases {
        let error = chat(text).map(|_| ()).unwrap_err();
        assert_eq!(error.status, 400, "{text}");
        assert!(error.message.contains(expected), "{text} gave {:?}, expected {expected:?}", error.message);
    }
}

/// A chat with one tool and more fields.
fn with_tool(more: &str) -> String {
    format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}],
            "tools":[{{"type":"function","function":{{"name":"weather","parameters":{{}}}}}}],{more}}}"#
    )
}

#[test]
fn fields_that_cannot_be_meant_are_refused_by_name() {
    let plain =
        |more: &str| format!(r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}],{more}}}"#);
    let part = |part: &str| format!(r#"{{"model":"m","messages":[{{"role":"user","content":[{part}]}}]}}"#);
    let cases = [
        (plain(r#""seed":1.5"#), "seed", "whole number"),
        (plain(r#""stop":7"#), "stop", "text or a list"),
        (plain(r#""stop":[1]"#), "stop", "text or a list"),
        (plain(r#""logprobs":3"#), "logprobs", "true or false"),
        (plain(r#""top_logprobs":3"#), "top_logprobs", "only with"),
        (plain(r#""logprobs":true,"top_logprobs":21"#), "top_logprobs", "between 0 and 20"),
        (plain(r#""n":200"#), "n", "between 1 and 128"),
        (plain(r#""user":7"#), "user", "text"),
        (plain(r#""service_tier":1"#), "service_tier", "text"),
        (plain(r#""parallel_tool_calls":"no""#), "parallel_tool_calls", "true or false"),
        (plain(r#""logit_bias":[1]"#), "logit_bias", "object"),
        (plain(r#""max_completion_tokens":0"#), "max_completion_tokens", "at least 1"),
        (plain(r#""response_format":"json""#), "response_format", "object with a 'type'"),
        (plain(r#""response_format":{}"#), "response_format", "object with a 'type'"),
        (plain(r#""response_format":{"type":"json_schema"}"#), "response_format.json_schema", "'name'"),
        (
            plain(r#""response_format":{"type":"json_schema","json_schema":{"name":"a b","schema":{}}}"#),
            "response_format.json_schema.name",
            "1 to 128",
        ),
        (
            plain(r#""response_format":{"type":"json_schema","json_schema":{"name":"a","schema":[]}}"#),
            "response_format.json_schema.schema",
            "an object",
        ),
        (plain(r#""tools":{}"#), "tools", "list"),
        (plain(r#""tools":["weather"]"#), "tools[0]", "object with a 'type'"),
        (plain(r#""tools":[{"type":"function"}]"#), "tools[0]", "function.name"),
        (plain(r#""tool_choice":"required""#), "tool_choice", "no tools"),
        (with_tool(r#""tool_choice":"always""#), "tool_choice", "'always'"),
        (with_tool(r#""tool_choice":{"type":"function"}"#), "tool_choice", "names no tool"),
        (
            with_tool(r#""tool_choice":{"type":"function","function":{"name":"whether"}}"#),
            "tool_choice",
            "'whether', which is none of the tools: weather",
        ),
        (
            plain(r#""functions":[{"name":"f"}],"function_call":{"name":"g"}"#),
            "function_call",
            "does not have",
        ),
        (part(r#"{"type":"image_url","image_url":"https://x"}"#), "messages[0].content", "image_url.url"),
        (
            part(r#"{"type":"image_url","image_url":{"url":"file:///etc/passwd"}}"#),
            "messages[0].content",
            "neither http",
        ),
        (part(r#"{"type":"input_audio","input_audio":{"data":"AA"}}"#), "messages[0].content", "'format'"),
        (part(r#"{"type":"file"}"#), "messages[0].content", "object 'file'"),
    ];
    for (text, param, expected) in cases {
        let error = chat(&text).map(|_| ()).unwrap_err();
        assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{text}: {}", error.message);
        assert!(error.message.contains(expected), "{text} gave {:?}, expected {expected:?}", error.message);
    }
}

#[test]
fn what_a_chat_may_say_reaches_the_upstream_as_it_was_said() {
    let fields = serde_json::json!({
        "n": 2, "stop": ["a", "b"], "seed": -1, "logprobs": true, "top_logprobs": 4, "user": "ann",
        "service_tier": "flex", "parallel_tool_calls": false, "temperature": 0.5, "logit_bias": {"5": -100},
        "max_completion_tokens": 77, "reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": false},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": {}}},
        "tools": [{"type": "function", "function": {"name": "weather"}}, {"type": "web_search"}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "messages": [
            {"role": "developer", "content": "be \"brief\"", "name": "boss"},
            {"role": "user", "content": [
                {"type": "text", "text": "developer"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
                {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
            ]},
        ],
    });
    let mut body = fields.clone();
    body["model"] = "m".into();
    let parsed = chat(&body.to_string()).unwrap();
    let needs = parsed.shape.needs;
    assert!(needs.tools && needs.schema && needs.vision && needs.audio && needs.logprobs);
    assert_eq!((parsed.shape.answers, parsed.shape.max_output), (2, Some(Tokens(77))));
    assert_eq!(parsed.user.as_deref(), Some("ann"));
    let sent = |plain: bool| serde_json::from_slice::<Value>(&parsed.body_for("m2", false, plain)).unwrap();
    let mut expected = body.clone();
    expected["model"] = "m2".into();
    assert_eq!(sent(false), expected, "a provider gets what the client said");
    expected["max_tokens"] = 77.into();
    expected["messages"][0]["role"] = "system".into();
    assert_eq!(sent(true), expected, "an engine gets the older words, too");
}

#[test]
fn our_instructions_and_denied_fields_go_no_further() {
    let parsed = chat(
        r#"{"model":"m","messages":[{"role":"user","content":"x"}],"api_base":"http://evil","seed":7,
            "metadata":{"mode":"local","confidence_threshold":"0.5","team":"a"}}"#,
    )
    .unwrap();
    let body: serde_json::Value = serde_json::from_slice(&parsed.body).unwrap();
    assert_eq!(body["metadata"], serde_json::json!({"team": "a"}));
    assert!(body.get("api_base").is_none());
    assert_eq!(body["seed"], 7);
    assert_eq!((parsed.shape.mode, parsed.shape.confidence_threshold), (Mode::Local, Some(0.5)));
    assert_eq!(parsed.warnings.len(), 1);
}

#[test]
fn an_empty_metadata_is_not_sent() {
    let parsed =
        chat(r#"{"model":"m","messages":[{"role":"user","content":"x"}],"metadata":{"mode":"auto"}}"#)
            .unwrap();
    assert!(!std::str::from_utf8(&parsed.body).unwrap().contains("metadata"));
}

#[test]
fn a_stream_always_asks_the_upstream_for_usage() {
    let parsed = chat(r#"{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true}"#).unwrap();
    let body: serde_json::Value = serde_json::from_slice(&parsed.body).unwrap();
    assert_eq!(body["stream_options"]["include_usage"], true);
    assert!(!parsed.include_usage);
}

#[test]
fn a_client_can_only_raise_the_class_that_its_key_demands() {
    let floor = Floor { data_class: DataClass::Restricted, local_only: false };
    let text =
        r#"{"model":"m","messages":[{"role":"user","content":"x"}],"metadata":{"data_class":"public"}}"#;
    let bytes = Bytes::from_static(text.as_bytes());
    let (parsed, _) =
        parse(ApiPath::ChatCompletions, None, &bytes, &HeaderMap::new(), floor, NAMING).unwrap();
    assert_eq!(parsed.shape.data_class, DataClass::Restricted);
    let mut headers = HeaderMap::new();
    headers.insert("x-shoal-data-class", "restricted".parse().unwrap());
    let (raised, _) =
        parse(ApiPath::ChatCompletions, None, &bytes, &headers, Floor::default(), NAMING).unwrap();
    assert_eq!(raised.shape.data_class, DataClass::Restricted);
}

#[test]
fn an_sdks_time_limit_makes_its_caller_impatient() {
    let text = r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#;
    let bytes = Bytes::from_static(text.as_bytes());
    let cases = [
        (&[][..], None, Tolerance::Patient),
        (&[("x-stainless-read-timeout", "600.0")], Some(600), Tolerance::Patient),
        (&[("x-stainless-read-timeout", "5"), ("x-stainless-timeout", "600")], Some(5), Tolerance::Tight),
        (&[("x-stainless-timeout", "NOT_GIVEN")], None, Tolerance::Patient),
        (&[("x-stainless-timeout", "-1")], None, Tolerance::Patient),
        (&[("x-stainless-timeout", "1e300")], None, Tolerance::Patient),
    ];
    for (sent, seconds, tolerance) in cases {
        let headers =
            sent.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let (parsed, request) =
            parse(ApiPath::ChatCompletions, None, &bytes, &headers, Floor::default(), NAMING).unwrap();
        assert_eq!(request.time_limit, seconds.map(Duration::from_secs), "{sent:?}");
        assert_eq!(parsed.profile.tolerance, tolerance, "{sent:?}");
    }
}

#[test]
fn the_model_name_is_replaced_without_touching_the_rest() {
    let parsed =
        chat(r#"{"model":"auto","messages":[{"role":"user","content":"x"}],"temperature": 1.50}"#).unwrap();
    let body = parsed.body_for("qwen \"x\"", false, false);
    assert!(std::str::from_utf8(&body).unwrap().contains(r#""model":"qwen \"x\"","#));
    assert!(std::str::from_utf8(&body).unwrap().contains(r#""temperature":1.50"#));
}

#[test]
fn in_lfos_manners_a_missing_model_and_its_own_name_mean_auto() {
    let read = |model: Value, lfo_manners: bool| {
        let body = serde_json::json!({"messages": [{"role": "user", "content": "x"}], "model": model});
        let bytes = Bytes::from(body.to_string());
        let naming = Naming { lfo_manners, ..NAMING };
        parse(ApiPath::ChatCompletions, None, &bytes, &HeaderMap::new(), Floor::default(), naming)
            .map(|(parsed, request)| (request.choice, parsed.body_for("m", false, false)))
    };
    for model in [Value::Null, "lfo-auto".into(), "auto".into()] {
        let (choice, body) = read(model, true).unwrap();
        assert!(choice.is_auto());
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["model"], "m");
    }
    assert_eq!(read(Value::Null, false).err().unwrap().param.as_deref(), Some("model"));
    assert_eq!(read("lfo-auto".into(), false).unwrap().0, ModelChoice::Named("lfo-auto".into()));
    assert!(read(7.into(), true).is_err());
}

#[test]
fn a_request_that_went_through_too_many_routers_goes_no_further() {
    let body = Bytes::from_static(br#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#);
    let came = |hops: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(HOPS, hops.parse().unwrap());
        parse(ApiPath::ChatCompletions, None, &body, &headers, Floor::default(), NAMING)
            .map(|(p, _)| p.shape.meshes)
    };
    assert_eq!(came("3").unwrap(), 3);
    assert_eq!(came("4").unwrap_err().status, 508);
    assert_eq!(came("many").unwrap_err().status, 400);
    assert_eq!(chat(r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#).unwrap().shape.meshes, 0);
}
