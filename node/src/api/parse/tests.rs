//! What clients get wrong, and what their upstream never sees.

use serde_json::Value;
use shoal_routing::Tolerance;

use super::*;

const NAMING: Naming<'_> = Naming { is_provider: &|_| false, lfo_manners: false };

fn chat(text: &str) -> Result<Parsed, ApiError> {
    let bytes = Bytes::copy_from_slice(text.as_bytes());
    parse(ApiPath::ChatCompletions, &bytes, &HeaderMap::new(), Floor::default(), NAMING)
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
    let (parsed, _) = parse(ApiPath::ChatCompletions, &bytes, &HeaderMap::new(), floor, NAMING).unwrap();
    assert_eq!(parsed.shape.data_class, DataClass::Restricted);
    let mut headers = HeaderMap::new();
    headers.insert("x-shoal-data-class", "restricted".parse().unwrap());
    let (raised, _) = parse(ApiPath::ChatCompletions, &bytes, &headers, Floor::default(), NAMING).unwrap();
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
            parse(ApiPath::ChatCompletions, &bytes, &headers, Floor::default(), NAMING).unwrap();
        assert_eq!(request.time_limit, seconds.map(Duration::from_secs), "{sent:?}");
        assert_eq!(parsed.profile.tolerance, tolerance, "{sent:?}");
    }
}

#[test]
fn the_model_name_is_replaced_without_touching_the_rest() {
    let parsed = chat(r#"{"model":"auto","messages":[{"role":"user","content":"x"}],"seed": 1.50}"#).unwrap();
    let body = parsed.body_for("qwen \"x\"", false, false);
    assert!(std::str::from_utf8(&body).unwrap().contains(r#""model":"qwen \"x\"","#));
    assert!(std::str::from_utf8(&body).unwrap().contains(r#""seed":1.50"#));
}

#[test]
fn in_lfos_manners_a_missing_model_and_its_own_name_mean_auto() {
    let read = |model: Value, lfo_manners: bool| {
        let body = serde_json::json!({"messages": [{"role": "user", "content": "x"}], "model": model});
        let bytes = Bytes::from(body.to_string());
        let naming = Naming { lfo_manners, ..NAMING };
        parse(ApiPath::ChatCompletions, &bytes, &HeaderMap::new(), Floor::default(), naming)
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
