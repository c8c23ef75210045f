//! Answers that must have a form have it, whatever a model would rather say: tiny models with random weights, many seeds.

mod common;

use std::ops::ControlFlow;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value as Entry;
use common::Tiny;
use serde_json::{Value, json};
use shoal_embedded::{
    CallRules, Engine, Error, FinishReason, GenerateRequest, JsonForm, LoadOptions, Token, Tool,
};

/// Seeds of each property.
const SEEDS: u64 = 12;

const HERMES: &str = "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}";
const LLAMA: &str = "{% if tools %}Environment: ipython {\"name\": f, \"parameters\": p}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}";
const GEMMA: &str =
    "{% if tools %}<start_function_call>call:{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}";

fn engine(tiny: &Tiny, template: &str) -> Engine {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("tiny.gguf");
    let mut metadata = tiny.metadata();
    metadata.push(("tokenizer.chat_template".to_owned(), Entry::String(template.to_owned())));
    common::write(&path, &metadata, &tiny.weights(7), GgmlDType::F32);
    Engine::load(&path, &LoadOptions::default()).expect("a loaded model")
}

fn tiny(architecture: &'static str, pieces: bool, control: &[&'static str]) -> Tiny {
    Tiny { context: 4_096, pieces, control: control.to_vec(), ..Tiny::new(architecture) }
}

fn hermes() -> Engine {
    engine(&tiny("qwen2", false, &["<tool_call>", "</tool_call>"]), HERMES)
}

fn function_gemma() -> Engine {
    let control = [
        "<start_function_call>",
        "<end_function_call>",
        "<escape>",
        "<start_function_response>",
        "<end_of_turn>",
    ];
    engine(&tiny("llama", true, &control), GEMMA)
}

fn request(seed: u64) -> GenerateRequest {
    GenerateRequest {
        prompt: format!("Question {seed}: "),
        max_tokens: 3_000,
        temperature: 1.0,
        seed: Some(seed),
        ..GenerateRequest::default()
    }
}

fn run(engine: &Engine, request: &GenerateRequest) -> (FinishReason, Vec<Token>) {
    let mut tokens = Vec::new();
    let finished = engine
        .generate(request, &|| false, &mut |token| {
            tokens.push(token);
            ControlFlow::Continue(())
        })
        .expect("an answer");
    assert_eq!(tokens.len(), finished.completion_tokens);
    (finished.reason, tokens)
}

fn text(tokens: &[Token]) -> String {
    tokens.iter().map(|token| token.text.as_str()).collect()
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "city": { "type": "string", "maxLength": 8 },
            "degrees": { "type": "integer", "minimum": -20, "maximum": 45 },
            "sky": { "enum": ["clear", "cloudy \u{2601}"] },
            "sure": { "type": "boolean" },
            "next": { "type": "array", "items": { "$ref": "#/$defs/day" }, "minItems": 1, "maxItems": 2 }
        },
        "required": ["city", "degrees", "sky", "next"],
        "$defs": { "day": { "type": "object", "properties": { "n": { "const": 7 } }, "required": ["n"], "title": "Day" } }
    })
}

/// Whether a value fits [`schema`], written out by hand.
fn fits(value: &Value) -> bool {
    let Some(object) = value.as_object() else { return false };
    let known = ["city", "degrees", "sky", "sure", "next"];
    object.keys().all(|key| known.contains(&key.as_str()))
        && object.get("city").and_then(Value::as_str).is_some_and(|city| city.chars().count() <= 8)
        && object.get("degrees").and_then(Value::as_i64).is_some_and(|n| (-20..=45).contains(&n))
        && object.get("sky").is_some_and(|sky| sky == "clear" || sky == "cloudy \u{2601}")
        && object.get("sure").is_none_or(Value::is_boolean)
        && object.get("next").and_then(Value::as_array).is_some_and(|next| {
            (1..=2).contains(&next.len()) && next.iter().all(|day| day == &json!({ "n": 7 }))
        })
}

#[test]
fn an_answer_under_a_schema_always_fits_it() {
    for pieces in [false, true] {
        let engine = engine(&tiny("llama", pieces, &[]), "{{ messages }}");
        let json = Some(JsonForm { schema: schema(), strict: true });
        for seed in 0..SEEDS {
            let (reason, tokens) = run(&engine, &GenerateRequest { json: json.clone(), ..request(seed) });
            let answer = text(&tokens);
            let value = serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
            assert!(fits(&value), "{answer}");
            assert_eq!(reason, FinishReason::Stop);
        }
        // The model by itself writes no such thing, so it is the form that does it.
        let free = (0..4).filter(|seed| {
            let free = GenerateRequest { max_tokens: 100, ..request(*seed) };
            serde_json::from_str::<Value>(&text(&run(&engine, &free).1)).is_ok_and(|value| fits(&value))
        });
        assert_eq!(free.count(), 0);
    }
}

#[test]
fn the_likeliest_tokens_within_the_form_are_taken_and_logprobs_stay_those_of_all_tokens() {
    let engine = engine(&tiny("llama", false, &[]), "{{ messages }}");
    let json = Some(JsonForm { schema: json!({ "enum": ["x"] }), strict: true });
    let formed = GenerateRequest { json, temperature: 0.0, top_logprobs: Some(1), ..request(1) };
    let (_, tokens) = run(&engine, &formed);
    assert_eq!(text(&tokens), "\"x\"");
    let free = GenerateRequest { json: None, max_tokens: 1, ..formed };
    let (_, likeliest) = run(&engine, &free);
    assert_eq!(tokens[0].top, likeliest[0].top, "the alternatives are the model's own");
    assert!(tokens[0].logprob < tokens[0].top[0].1, "what only the form allowed is improbable");
}

#[test]
fn any_json_object_parses_as_far_as_the_limit_lets_it() {
    let engine = engine(&tiny("qwen2", false, &[]), "{{ messages }}");
    let mut complete = 0;
    for seed in 0..SEEDS {
        let json = Some(JsonForm::any_object());
        let (reason, tokens) = run(&engine, &GenerateRequest { json, max_tokens: 400, ..request(seed) });
        let answer = text(&tokens);
        match serde_json::from_str::<Value>(&answer) {
            Ok(value) => {
                complete += 1;
                assert!(value.is_object());
            }
            Err(error) => {
                assert_eq!(reason, FinishReason::Length, "{answer}");
                assert!(error.is_eof(), "{error}: {answer}");
            }
        }
    }
    assert!(complete > 0, "no answer was short enough to tell");
}

fn tools() -> Vec<Tool> {
    let tool = |name: &str, parameters| Tool { name: name.to_owned(), parameters, strict: true };
    vec![
        tool(
            "get_weather",
            json!({
                "type": "object",
                "properties": {
                    "unit": { "type": "string", "enum": ["celsius", "fahrenheit"] },
                    "city": { "type": "string", "minLength": 1, "maxLength": 6 },
                    "days": { "type": "array", "items": { "enum": [1, 2] } },
                },
                "required": ["city"]
            }),
        ),
        tool("now", Value::Null),
    ]
}

fn arguments_fit(name: &str, arguments: &Value) -> bool {
    let Some(members) = arguments.as_object() else { return false };
    match name {
        "now" => true,
        "get_weather" => {
            members.keys().all(|key| ["unit", "city", "days"].contains(&key.as_str()))
                && members["city"].as_str().is_some_and(|city| (1..=6).contains(&city.chars().count()))
                && members.get("unit").is_none_or(|unit| unit == "celsius" || unit == "fahrenheit")
                && members.get("days").is_none_or(Value::is_array)
        }
        _ => false,
    }
}

#[test]
fn required_calls_are_of_known_tools_with_arguments_that_fit() {
    let llama = engine(&tiny("llama", false, &["<|python_tag|>"]), LLAMA);
    // `now` takes any object, which a random model makes endless; of JSON forms only the first tool is offered.
    let first = tools().into_iter().take(1).collect::<Vec<_>>();
    for (engine, offered) in [(hermes(), &first), (llama, &first), (function_gemma(), &tools())] {
        assert!(engine.info().takes_tools);
        for seed in 0..SEEDS {
            let calls = Some(CallRules { tools: offered.clone(), required: true, parallel: false });
            let (reason, tokens) = run(&engine, &GenerateRequest { calls, ..request(seed) });
            assert_eq!(reason, FinishReason::Calls);
            assert_eq!(text(&tokens), "", "a call is no content");
            let made: Vec<_> = tokens.iter().flat_map(|token| &token.calls).collect();
            assert_eq!(made.len(), 1);
            let arguments = serde_json::from_str(&made[0].arguments).expect("JSON");
            assert!(arguments_fit(&made[0].name, &arguments), "{made:?}");
        }
    }
}

#[test]
fn several_calls_may_be_made_where_the_form_has_them() {
    for (engine, between) in [(hermes(), "\n"), (function_gemma(), "<start_function_call>")] {
        let next = engine.tokenize(between).expect("ids").pop().expect("one token");
        let most = (0..SEEDS / 2).map(|seed| {
            let tools = tools().into_iter().take(1).collect();
            let calls = Some(CallRules { tools, required: true, parallel: true });
            let logit_bias = vec![(next, 4.0)];
            let (reason, tokens) = run(&engine, &GenerateRequest { calls, logit_bias, ..request(seed) });
            assert_eq!((reason, text(&tokens).as_str()), (FinishReason::Calls, ""));
            tokens.iter().flat_map(|token| &token.calls).count()
        });
        assert!(most.max().is_some_and(|most| (2..=16).contains(&most)));
    }
}

#[test]
fn a_call_that_a_model_may_make_has_its_form_once_it_begins() {
    for (engine, open) in [(hermes(), "<tool_call>"), (function_gemma(), "<start_function_call>")] {
        let id = engine.tokenize(open).expect("ids").pop().expect("one token");
        let mut begun = 0;
        for seed in 0..SEEDS / 2 {
            let tools = tools().into_iter().take(1).collect();
            let calls = Some(CallRules { tools, required: false, parallel: true });
            // The marker is made likelier than chance would have it; what follows is up to the form.
            let request =
                GenerateRequest { calls, logit_bias: vec![(id, 12.0)], max_tokens: 150, ..request(seed) };
            let (reason, tokens) = run(&engine, &request);
            let opened = tokens.iter().filter(|token| token.id == id).count();
            let made: Vec<_> = tokens.iter().flat_map(|token| &token.calls).collect();
            begun += opened;
            assert!(made.len() == opened || reason == FinishReason::Length && made.len() + 1 == opened);
            assert!(made.iter().all(|call| {
                arguments_fit(&call.name, &serde_json::from_str(&call.arguments).expect("JSON"))
            }));
        }
        assert!(begun > 0, "no call was begun: the test tells nothing");
    }
}

#[test]
fn json_or_calls_is_one_of_the_two() {
    let engine = hermes();
    let (mut jsons, mut called) = (0, 0);
    for seed in 0..SEEDS {
        let tools = tools().into_iter().take(1).collect();
        let request = GenerateRequest {
            calls: Some(CallRules { tools, required: false, parallel: false }),
            json: Some(JsonForm { schema: schema(), strict: true }),
            temperature: 2.0,
            ..request(seed)
        };
        let (reason, tokens) = run(&engine, &request);
        match reason {
            FinishReason::Calls => called += 1,
            _ => {
                assert!(fits(&serde_json::from_str(&text(&tokens)).expect("JSON")));
                jsons += 1;
            }
        }
    }
    assert!(jsons > 0 && called > 0, "{jsons} {called}");
}

#[test]
fn what_cannot_be_enforced_is_refused_before_a_token() {
    let engine = hermes();
    let refused = |request: &GenerateRequest| {
        let mut none = |_| panic!("a token of {:?}", request.json);
        engine.generate(request, &|| false, &mut none).expect_err("a refusal")
    };
    let form =
        |schema: Value| GenerateRequest { json: Some(JsonForm { schema, strict: true }), ..request(1) };
    let deep = (0..100).fold(json!({}), |inner, _| json!({ "type": "array", "items": inner, "not": {} }));
    for schema in [
        json!({ "not": { "type": "string" } }),
        json!({ "$ref": "https://example.com/schema" }),
        json!({ "$ref": "#/$defs/none" }),
        json!({ "type": "strange\u{1F600}" }),
        json!({ "type": "string", "pattern": "(" }),
        json!({ "type": "string", "pattern": "a".repeat(2_000) }),
        json!({ "enum": (0..60_000).map(|n| format!("value {n}")).collect::<Vec<_>>() }),
        json!({ "allOf": [{ "type": "string" }, { "type": "number" }] }),
        json!({ "enum": [] }),
        deep,
    ] {
        let shown = schema.to_string().chars().take(80).collect::<String>();
        let error = refused(&form(schema));
        assert!(matches!(error, Error::Form(_)), "{shown}: {error}");
        assert!(error.to_string().len() < 400, "{error}");
    }
    assert!(matches!(refused(&form(json!([1]))), Error::InvalidRequest(_)));

    let tool = |name: &str| Tool { name: name.to_owned(), parameters: Value::Null, strict: false };
    let calls = |tools: Vec<Tool>| GenerateRequest {
        calls: Some(CallRules { tools, required: true, parallel: true }),
        ..request(1)
    };
    assert!(matches!(refused(&calls(vec![])), Error::Form(_)));
    assert!(matches!(refused(&calls(vec![tool("x"); 129])), Error::Form(_)));
    for name in ["", "a b", "a\"", "\u{e9}", &"x".repeat(65)] {
        assert!(matches!(refused(&calls(vec![tool(name)])), Error::InvalidRequest(_)), "{name}");
    }

    let unknown = engine_without_tools();
    assert!(!unknown.info().takes_tools);
    let error = unknown
        .generate(&calls(vec![tool("x")]), &|| false, &mut |_| panic!("no token"))
        .expect_err("a refusal");
    assert!(matches!(error, Error::Form(_)), "{error}");
}

fn engine_without_tools() -> Engine {
    engine(&tiny("llama", false, &[]), "{% for m in messages %}{{ m.content }}{% endfor %}")
}

#[test]
fn a_lenient_schema_leaves_out_what_cannot_be_enforced() {
    let schema = json!({ "type": "integer", "minimum": 3, "maximum": 5, "not": { "const": 4 } });
    let json = Some(JsonForm { schema, strict: false });
    let engine = engine_without_tools();
    let (_, tokens) = run(&engine, &GenerateRequest { json, ..request(3) });
    let n: i64 = text(&tokens).trim().parse().expect("a number");
    assert!((3..=5).contains(&n));
}

#[test]
fn schemas_that_would_blow_up_end_in_time() {
    let engine = engine_without_tools();
    let doubled: serde_json::Map<String, Value> = (0..40)
        .map(|n| {
            let next = json!({ "$ref": format!("#/$defs/d{}", n + 1) });
            (format!("d{n}"), json!({ "anyOf": [next, next], "allOf": [next, next] }))
        })
        .chain([("d40".to_owned(), json!({ "type": "string", "maxLength": 2 }))])
        .collect();
    let wide =
        (0..500).map(|n| (format!("p{n}"), json!({ "type": "string" }))).collect::<serde_json::Map<_, _>>();
    for schema in [
        json!({ "$ref": "#/$defs/d0", "$defs": doubled }),
        json!({ "type": "object", "properties": wide }),
        json!({ "$ref": "#" }),
        json!({ "type": "array", "items": { "$ref": "#" } }),
        json!({ "type": "string", "minLength": 100_000, "maxLength": 1_000_000 }),
        json!({ "type": "array", "minItems": 100_000, "items": {} }),
        json!({ "type": "string", "pattern": "((a{1000}){1000}){1000}" }),
        json!({ "type": "string", "pattern": "^(a|b|ab)*(a+a+)+(.*x){50}$" }),
    ] {
        let json = Some(JsonForm { schema, strict: true });
        // Whether it is refused or begun does not matter here; that this returns does.
        let _ =
            engine.generate(&GenerateRequest { json, max_tokens: 20, ..request(1) }, &|| false, &mut |_| {
                ControlFlow::Continue(())
            });
    }
}
