//! Forms, calls of tools, several choices and vectors, in the words of the API.

use super::*;

fn tools() -> Value {
    json!([
        { "type": "function", "function": { "name": "f", "parameters": { "type": "object" }, "strict": true } },
        { "type": "function", "function": { "name": "g" } },
    ])
}

fn f() -> Tool {
    Tool { name: "f".to_owned(), parameters: json!({ "type": "object" }), strict: true }
}

fn g() -> Tool {
    Tool { name: "g".to_owned(), parameters: Value::Null, strict: false }
}

/// What the generator is asked when these fields are added to a chat.
async fn asked(fields: Value) -> Generation {
    let mut body = hello();
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    let script = Arc::<Script>::default();
    chunks(&script, request(ApiPath::ChatCompletions, false, &body)).await;
    script.asked.lock().unwrap()[0].clone()
}

#[tokio::test]
async fn tools_and_the_choice_among_them_reach_the_generator() {
    let shown = format!("{}1", tools());
    let cases = [
        (json!(null), Some((vec![f(), g()], false, true))),
        (json!("auto"), Some((vec![f(), g()], false, true))),
        (json!("required"), Some((vec![f(), g()], true, true))),
        (json!({ "type": "function", "function": { "name": "g" } }), Some((vec![g()], true, false))),
        (json!("none"), None),
    ];
    for (choice, expected) in cases {
        let generation = asked(json!({ "tools": tools(), "tool_choice": choice })).await;
        let prompt = if expected.is_some() { shown.as_str() } else { "<user>hi" };
        assert_eq!(generation.prompt, prompt, "{choice}");
        let expected = expected.map(|(tools, required, parallel)| CallRules { tools, required, parallel });
        assert_eq!(generation.calls, expected, "{choice}");
    }
    let one = asked(json!({ "tools": tools(), "parallel_tool_calls": false })).await;
    assert!(!one.calls.unwrap().parallel);
    assert_eq!(asked(json!({ "tools": [], "tool_choice": "auto" })).await.calls, None);
}

#[tokio::test]
async fn the_response_format_reaches_the_generator() {
    let format = |format: Value| async move { asked(json!({ "response_format": format })).await.json };
    assert_eq!(format(json!({ "type": "text" })).await, None);
    assert_eq!(format(Value::Null).await, None);
    assert_eq!(format(json!({ "type": "json_object" })).await, Some(JsonForm { schema: None, strict: true }));
    let schema = json!({ "z": 1, "type": "object", "a": 2 });
    let strict =
        json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": schema, "strict": true } });
    let form = format(strict).await.unwrap();
    assert!(form.strict);
    // The order of a schema's members is the order of the answer's.
    assert_eq!(form.schema.unwrap().to_string(), "{\"z\":1,\"type\":\"object\",\"a\":2}");
    let loose = json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": {} } });
    assert!(!format(loose).await.unwrap().strict);
}

fn calling() -> Arc<Script> {
    let call = Call { name: "f".to_owned(), arguments: "{\"a\": 1}".to_owned() };
    Arc::new(Script { calls: Some(call), ..Script::default() })
}

fn with_tools() -> Value {
    let mut body = hello();
    body["tools"] = tools();
    body
}

#[tokio::test]
async fn calls_of_a_whole_answer_are_beside_its_text() {
    let body = &chunks(&calling(), request(ApiPath::ChatCompletions, false, &with_tools())).await[0];
    let choice = &body["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &json!("Hi there"))
    );
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert_eq!(calls.len(), 3);
    let mut ids = std::collections::HashSet::new();
    for call in calls {
        let id = call["id"].as_str().unwrap();
        assert!(id.starts_with("call_") && id.len() <= 40 && ids.insert(id), "{id}");
        assert_eq!(call["type"], "function");
        assert_eq!(call["function"], json!({ "name": "f", "arguments": "{\"a\": 1}" }));
    }
}

#[tokio::test]
async fn calls_of_a_stream_have_places_and_no_content() {
    let mut body = with_tools();
    body["logprobs"] = json!(true);
    let chunks = chunks(&calling(), request(ApiPath::ChatCompletions, true, &body)).await;
    let deltas: Vec<_> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    let places = |delta: &Value| -> Vec<u64> {
        let calls = delta["tool_calls"].as_array().into_iter().flatten();
        calls.map(|call| call["index"].as_u64().unwrap()).collect()
    };
    let with_calls: Vec<_> = deltas.iter().filter(|delta| delta.get("tool_calls").is_some()).collect();
    assert_eq!(with_calls.iter().map(|delta| places(delta)).collect::<Vec<_>>(), [vec![0], vec![1, 2]]);
    assert!(with_calls.iter().all(|delta| delta.get("content").is_none()));
    assert_eq!(chunks[4]["choices"][0]["logprobs"]["content"][0]["logprob"], json!(-0.1f32));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn several_choices_are_several_draws_and_the_prompt_counts_once() {
    let mut body = hello();
    body["n"] = json!(3);
    body["seed"] = json!(-1);
    body["stream_options"] = json!({ "include_usage": true });
    let script = Arc::<Script>::default();
    let whole = &chunks(&script, request(ApiPath::ChatCompletions, false, &body)).await[0];
    let indices: Vec<_> =
        whole["choices"].as_array().unwrap().iter().map(|choice| &choice["index"]).collect();
    assert_eq!(indices, [0, 1, 2]);
    assert!(whole["choices"].as_array().unwrap().iter().all(|c| c["message"]["content"] == "Hi there"));
    assert_eq!(whole["usage"], json!({ "prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14 }));
    let seeds: Vec<_> = script.asked.lock().unwrap().iter().map(|generation| generation.seed).collect();
    assert_eq!(seeds, [Some(u64::MAX), Some(0), Some(1)]);

    let streamed = chunks(&Arc::default(), request(ApiPath::ChatCompletions, true, &body)).await;
    let (usage, choices) = streamed.split_last().unwrap();
    assert_eq!(usage["usage"]["completion_tokens"], 9);
    let told: Vec<_> = choices
        .iter()
        .map(|chunk| {
            let choice = &chunk["choices"][0];
            let what = match &choice["finish_reason"] {
                Value::Null if choice["delta"]["role"] == "assistant" => "role",
                Value::Null => "text",
                _ => "end",
            };
            (choice["index"].as_u64().unwrap(), what)
        })
        .collect();
    let of = |index| [(index, "role"), (index, "text"), (index, "text"), (index, "end")];
    assert_eq!(told, [of(0), of(1), of(2)].concat());
}

async fn embed(script: &Arc<Script>, body: Value) -> Result<Value, UpstreamError> {
    let (events, error) = collect(ask(script, request(ApiPath::Embeddings, false, &body)).await?).await;
    assert!(error.is_none(), "{error:?}");
    match &events[..] {
        [Event::Chunk(bytes), Event::End { complete: true }] => Ok(serde_json::from_slice(bytes).unwrap()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn vectors_come_in_the_order_of_the_texts_and_as_long_as_asked() {
    let script = Arc::new(Script { width: Some(3), ..Script::default() });
    let answer = embed(&script, json!({ "model": "m", "input": ["ab", "cde"] })).await.unwrap();
    assert_eq!(answer["data"][1], json!({ "object": "embedding", "index": 1, "embedding": [1.0, 2.0, 3.0] }));
    assert_eq!(answer["usage"], json!({ "prompt_tokens": 5, "total_tokens": 5 }));
    let short = embed(&script, json!({ "model": "m", "input": "x", "dimensions": 1 })).await.unwrap();
    assert_eq!(short["data"][0]["embedding"], json!([1.0]));
    let packed = json!({ "model": "m", "input": "x", "encoding_format": "base64" });
    assert_eq!(embed(&script, packed).await.unwrap()["data"][0]["embedding"], "AACAPwAAAEAAAEBA");
    for bad in [
        json!({ "model": "m" }),
        json!({ "model": "m", "input": [] }),
        json!({ "model": "m", "input": "" }),
        json!({ "model": "m", "input": [1, 2] }),
        json!({ "model": "m", "input": "x", "dimensions": 0 }),
        json!({ "model": "m", "input": "x", "dimensions": 4 }),
        json!({ "model": "m", "input": "x", "encoding_format": "int8" }),
    ] {
        assert_eq!(embed(&script, bad.clone()).await.unwrap_err().status, 400, "{bad}");
    }
}

#[tokio::test]
async fn a_model_for_chats_makes_no_vectors() {
    let error = embed(&Arc::default(), json!({ "model": "m", "input": "x" })).await.unwrap_err();
    assert_eq!((error.status, error.retryable), (501, true));
}
