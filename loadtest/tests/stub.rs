//! The stub and the checker against each other: good answers pass, each injected fault is found by its name.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shoal_loadtest::{
    check::{self, Expected, Verdict},
    http_client,
    run::{self, Load},
    stub::{End, Kind, Options, Phase, Stub},
};

/// Far above what loopback needs; reached only by a broken test.
const PATIENCE: Duration = Duration::from_secs(20);

async fn stub() -> (Stub, reqwest::Client) {
    let stub = Stub::start(Options::default()).await.expect("a free port");
    (stub, http_client::build(PATIENCE).expect("a client"))
}

fn chat(prompt: &str, more: Value) -> Value {
    let mut body = json!({"model": "stub", "messages": [{"role": "user", "content": prompt}]});
    for (key, value) in more.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

async fn post(client: &reqwest::Client, stub: &Stub, path: &str, body: &Value) -> reqwest::Response {
    client.post(format!("{}{path}", stub.url())).json(body).send().await.expect("an answer")
}

async fn json_of(client: &reqwest::Client, stub: &Stub, path: &str, body: &Value) -> Value {
    post(client, stub, path, body).await.json().await.expect("JSON")
}

/// Payloads of a stream, `[DONE]` included.
async fn payloads(client: &reqwest::Client, stub: &Stub, path: &str, body: &Value) -> Vec<String> {
    let text = post(client, stub, path, body).await.text().await.expect("a whole stream");
    text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect()
}

async fn verdict(client: &reqwest::Client, stub: &Stub, prompt: &str, stream: bool) -> Verdict {
    let body = chat(prompt, json!({"stream": stream}));
    let sent = Instant::now();
    let response = client.post(format!("{}/v1/chat/completions", stub.url())).json(&body).send().await;
    check::judge(response, sent, Expected { prompt, max_tokens: None, stream }).await.verdict
}

/// Polls the log until `ready` holds.
async fn until(stub: &Stub, what: &str, ready: impl Fn(&Stub) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !ready(stub) {
        assert!(Instant::now() < deadline, "never {what}: {:?}", stub.log().snapshot());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn good_answers_are_ok_in_every_framing() {
    let (stub, client) = stub().await;
    for marker in
        ["", "[[stub n=9]]", "[[stub n=40 crlf=1]]", "[[stub n=9 noise=1 split=3]]", "[[stub itl=1 n=5]]"]
    {
        for stream in [true, false] {
            assert_eq!(
                verdict(&client, &stub, &format!("hi {marker}"), stream).await,
                Verdict::Ok,
                "{marker}"
            );
        }
    }
    assert_eq!(stub.log().snapshot().counts.completed, 10);
}

#[tokio::test]
async fn each_fault_is_found_and_named() {
    let (stub, client) = stub().await;
    let marked = |code: &str| Verdict::CutMarked(code.to_owned());
    let unmarked = |why: &str| Verdict::CutUnmarked(why.to_owned());
    let refused = |status, code: &str| Verdict::Refused { status, code: code.to_owned() };
    let none = |kind: &str| Verdict::NoAnswer(kind.to_owned());
    let cases = [
        ("cut=3", true, marked("transport")),
        ("cut=3", false, none("body transport")),
        ("inband=3", true, marked("scripted")),
        ("no_finish=1", true, unmarked("no finish_reason")),
        ("no_finish=1", false, unmarked("no finish_reason")),
        ("no_done=1", true, unmarked("no [DONE]")),
        ("garbage=1", true, Verdict::Corrupt("chunk is no JSON".to_owned())),
        ("garbage=1", false, unmarked("body is no JSON")),
        ("html=1", false, unmarked("body is no JSON")),
        ("html=1", true, unmarked("no finish_reason")),
        ("err=503", true, refused(503, "overloaded")),
        ("status=429 retry_after=2", false, refused(429, "rate_limit_exceeded")),
        ("drop=1", true, none("transport")),
        ("drop=1", false, none("transport")),
    ];
    for (fault, stream, want) in cases {
        let got = verdict(&client, &stub, &format!("[[stub n=8 {fault}]]"), stream).await;
        assert_eq!(got, want, "{fault} stream={stream}");
    }
}

#[tokio::test]
async fn faults_below_http_come_where_they_are_asked_for() {
    let (stub, client) = stub().await;
    let transport = || Verdict::CutMarked("transport".to_owned());
    let none = || Verdict::NoAnswer("transport".to_owned());
    let unmarked = |why: &str| Verdict::CutUnmarked(why.to_owned());
    let cases = [
        ("fault=reset_before_head", none()),
        ("fault=fin_before_head", none()),
        ("fault=fin_inside_head", none()),
        ("fault=not_http", none()),
        ("fault=reset_midway at=3", transport()),
        ("fault=fin_midway at=3", transport()),
        ("fault=bad_chunk_size at=3", transport()),
        ("fault=end_midway at=3", unmarked("no finish_reason")),
        ("fault=comments_only at=3", unmarked("no finish_reason")),
        ("fault=broken_json at=3", Verdict::Corrupt("chunk is no JSON".to_owned())),
        ("fault=chunks_twice", Verdict::Corrupt("repeated_or_reordered".to_owned())),
        ("fault=after_done", Verdict::Corrupt("data after [DONE]".to_owned())),
        ("fault=error_event at=3", Verdict::CutMarked("error".to_owned())),
        ("fault=cr_only", Verdict::Ok),
        ("fault=multi_line", Verdict::Ok),
        ("fault=no_length", Verdict::Ok),
        ("fault=early_hints", Verdict::Ok),
        ("fault=no_usage", Verdict::Ok),
    ];
    for (fault, want) in cases {
        let got = verdict(&client, &stub, &format!("[[stub n=8 {fault}]]"), true).await;
        assert_eq!(got, want, "{fault}");
    }
}

#[tokio::test]
async fn a_fault_hits_so_many_requests_of_its_tag_and_a_stub_may_refuse_or_slow_down() {
    let (stub, client) = stub().await;
    let prompt = "[[stub n=4 fault=reset_before_head tag=once times=1]]";
    assert_eq!(verdict(&client, &stub, prompt, true).await, Verdict::NoAnswer("transport".to_owned()));
    assert_eq!(verdict(&client, &stub, prompt, true).await, Verdict::Ok);
    assert_eq!(stub.log().tagged("once").len(), 2);
    stub.refuse(Some(500));
    let refused = Verdict::Refused { status: 500, code: "scripted".to_owned() };
    assert_eq!(verdict(&client, &stub, "[[stub n=4]]", false).await, refused);
    stub.refuse(None);
    stub.slow_down(20);
    let began = Instant::now();
    assert_eq!(verdict(&client, &stub, "[[stub n=2 ttft=10]]", false).await, Verdict::Ok);
    assert!(began.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn text_that_is_not_the_scripted_words_does_not_pass() {
    let (stub, client) = stub().await;
    let body = chat("[[stub say=hello n=3]]", json!({}));
    let sent = Instant::now();
    let response = client.post(format!("{}/v1/chat/completions", stub.url())).json(&body).send().await;
    let expected = Expected { prompt: "[[stub n=3]]", max_tokens: None, stream: false };
    assert_eq!(
        check::judge(response, sent, expected).await.verdict,
        Verdict::Corrupt("not_words".to_owned())
    );
}

#[tokio::test]
async fn an_answer_shorter_than_scripted_does_not_pass() {
    let (stub, client) = stub().await;
    // The server is asked for 8 words, the judge expects 12: a router that loses the tail looks like this.
    let body = chat("[[stub n=12]]", json!({"stream": true, "max_tokens": 8}));
    let sent = Instant::now();
    let response = client.post(format!("{}/v1/chat/completions", stub.url())).json(&body).send().await;
    let expected = Expected { prompt: "[[stub n=12]]", max_tokens: None, stream: true };
    let answer = check::judge(response, sent, expected).await;
    assert_eq!(answer.verdict, Verdict::CutUnmarked("8 of 12 words".to_owned()));
}

#[tokio::test]
async fn an_answer_to_another_prompt_does_not_pass() {
    let (stub, client) = stub().await;
    let body = chat("one", json!({}));
    let sent = Instant::now();
    let response = client.post(format!("{}/v1/chat/completions", stub.url())).json(&body).send().await;
    let expected = Expected { prompt: "two", max_tokens: None, stream: false };
    assert_eq!(check::judge(response, sent, expected).await.verdict, Verdict::Corrupt("foreign".to_owned()));
}

#[tokio::test]
async fn a_client_that_goes_away_is_seen_in_every_phase() {
    let mut options = Options { slots: 1, ..Options::default() };
    options.script.tokens = 1000;
    let stub = Stub::start(options).await.expect("a free port");
    let client = http_client::build(PATIENCE).expect("a client");
    let url = format!("{}/v1/chat/completions", stub.url());
    let gone = |stub: &Stub, count: u64| stub.log().snapshot().counts.client_gone == count;
    let cases = [
        ("[[stub ttft=600000]]", true, Phase::Prefill),
        ("[[stub ttft=600000]]", false, Phase::Prefill),
        ("[[stub itl=60000]]", true, Phase::Decode),
        ("[[stub itl=60000]]", false, Phase::Decode),
        ("[[stub hang=0]]", true, Phase::Prefill),
        ("[[stub hang=3]]", true, Phase::Decode),
    ];
    for (before, (marker, stream, phase)) in (0..).zip(cases) {
        let request = abortable(client.post(&url).json(&chat(marker, json!({"stream": stream}))).send());
        until(&stub, "in phase", |stub| {
            stub.log()
                .snapshot()
                .requests
                .last()
                .is_some_and(|entry| entry.phase == phase && entry.end == End::Open)
        })
        .await;
        request.abort();
        until(&stub, "client_gone", |stub| gone(stub, before + 1)).await;
        assert_eq!(stub.log().snapshot().requests.last().expect("an entry").phase, phase, "{marker}");
    }
    // All slots are free again, or this would never end.
    assert_eq!(verdict(&client, &stub, "[[stub n=2]]", true).await, Verdict::Ok);
}

#[tokio::test]
async fn requests_beyond_the_slots_wait() {
    let stub = Stub::start(Options { slots: 1, ..Options::default() }).await.expect("a free port");
    let client = http_client::build(PATIENCE).expect("a client");
    let url = format!("{}/v1/chat/completions", stub.url());
    let first = client.post(&url).json(&chat("[[stub hang=0]]", json!({}))).send();
    let second = client.post(&url).json(&chat("[[stub n=1]]", json!({}))).send();
    let (first, second) = (abortable(first), abortable(second));
    until(&stub, "one waiting", |stub| {
        let phases: Vec<_> = stub.log().snapshot().requests.iter().map(|entry| entry.phase).collect();
        phases.contains(&Phase::Queued) && phases.contains(&Phase::Prefill)
    })
    .await;
    first.abort();
    second.abort();
    until(&stub, "both gone", |stub| stub.log().snapshot().counts.open == 0).await;
}

#[tokio::test]
async fn logprobs_usage_and_stop_come_as_openai_sends_them() {
    let (stub, client) = stub().await;
    let asked = json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 3});
    let whole = json_of(&client, &stub, "/v1/chat/completions", &chat("hi", asked.clone())).await;
    let tokens = whole["choices"][0]["logprobs"]["content"].as_array().expect("logprobs");
    assert_eq!(tokens.len(), 3);
    assert_eq!(tokens[0]["top_logprobs"].as_array().expect("alternatives").len(), 2);
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 3);

    let mut streamed = asked;
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({"include_usage": true});
    let events = payloads(&client, &stub, "/v1/chat/completions", &chat("hi", streamed)).await;
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).expect("JSON")).collect();
    let usage = chunks.last().expect("chunks");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 3);
    assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"]));
    let with_logprobs = chunks.iter().filter(|c| c["choices"][0]["logprobs"]["content"].is_array()).count();
    assert_eq!(with_logprobs, 3);

    let asked = json!({"model": "stub", "prompt": "hi", "logprobs": 2, "max_tokens": 2});
    let completion = json_of(&client, &stub, "/v1/completions", &asked).await;
    assert_eq!(completion["object"], "text_completion");
    assert_eq!(completion["choices"][0]["logprobs"]["text_offset"], json!([0, 14]));

    let stopped =
        json_of(&client, &stub, "/v1/chat/completions", &chat("hi", json!({"stop": " w0002"}))).await;
    assert_eq!(stopped["choices"][0]["message"]["content"].as_str().expect("text").split(' ').count(), 2);
    let two = json_of(&client, &stub, "/v1/chat/completions", &chat("hi", json!({"n": 2}))).await;
    assert_eq!(two["choices"].as_array().expect("choices").len(), 2);
}

#[tokio::test]
async fn a_tool_call_streams_in_pieces_that_join() {
    let (stub, client) = stub().await;
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters":
        {"type": "object", "properties": {"city": {"type": "string"}}}}}]);
    let body = chat("[[stub tool=1]]", json!({"tools": tools, "stream": true}));
    let (mut name, mut arguments, mut finish) = (String::new(), String::new(), Value::Null);
    for event in payloads(&client, &stub, "/v1/chat/completions", &body).await {
        let Ok(chunk) = serde_json::from_str::<Value>(&event) else { continue };
        let call = &chunk["choices"][0]["delta"]["tool_calls"][0]["function"];
        name.push_str(call["name"].as_str().unwrap_or_default());
        arguments.push_str(call["arguments"].as_str().unwrap_or_default());
        if !chunk["choices"][0]["finish_reason"].is_null() {
            finish = chunk["choices"][0]["finish_reason"].clone();
        }
    }
    assert_eq!((name.as_str(), finish), ("weather", json!("tool_calls")));
    assert_eq!(serde_json::from_str::<Value>(&arguments).expect("JSON"), json!({"city": "stub"}));
}

#[tokio::test]
async fn bad_requests_get_openai_errors() {
    let options = Options { key: Some("secret".to_owned()), ..Options::default() };
    let stub = Stub::start(options).await.expect("a free port");
    let client = http_client::build(PATIENCE).expect("a client");
    let url = format!("{}/v1/chat/completions", stub.url());
    let send = async |key: &str, body: String| {
        let response = client.post(&url).bearer_auth(key).body(body).send().await.expect("an answer");
        let status = response.status().as_u16();
        let body: Value = response.json().await.expect("JSON");
        (status, body["error"]["code"].as_str().unwrap_or("none").to_owned())
    };
    assert_eq!(send("wrong", chat("hi", json!({})).to_string()).await, (401, "invalid_api_key".into()));
    assert_eq!(send("secret", "{".into()).await, (400, "invalid_request_error".into()));
    let other = chat("hi", json!({"model": "gpt-9"})).to_string();
    assert_eq!(send("secret", other).await, (404, "model_not_found".into()));
    let typo = chat("[[stub nn=4]]", json!({})).to_string();
    assert_eq!(send("secret", typo).await, (400, "invalid_request_error".into()));
}

#[tokio::test]
async fn each_kind_shows_its_own_face() {
    for (kind, path, pointer, want) in [
        (Kind::Ollama, "/api/tags", "/models/0/name", json!("stub")),
        (Kind::LlamaCpp, "/props", "/total_slots", json!(4)),
        (Kind::Vllm, "/v1/models", "/data/0/max_model_len", json!(8192)),
        (Kind::Lmstudio, "/api/v0/models", "/data/0/state", json!("loaded")),
        (Kind::Openai, "/v1/models/stub", "/owned_by", json!("stub")),
    ] {
        let stub = Stub::start(Options { kind, ..Options::default() }).await.expect("a free port");
        let client = http_client::build(PATIENCE).expect("a client");
        let response = client.get(format!("{}{path}", stub.url())).send().await.expect("an answer");
        let body: Value = response.json().await.expect("JSON");
        assert_eq!(body.pointer(pointer), Some(&want), "{kind:?}");
    }
}

#[tokio::test]
async fn a_load_over_two_servers_counts_by_url() {
    let (good, _) = stub().await;
    let mut options = Options::default();
    options.script.apply("err=503").expect("a fault");
    let bad = Stub::start(options).await.expect("a free port");
    let report = run::run(Load {
        urls: vec![good.url(), format!("{}/v1", bad.url())],
        key: None,
        model: "stub".to_owned(),
        requests: 40,
        concurrency: 8,
        stream_share: 0.5,
        prompt: "{i} [[stub n=6 ttft=10 itl=4]]".to_owned(),
        max_tokens: None,
        timeout: PATIENCE,
    })
    .await
    .expect("a client");
    let json = report.json();
    assert_eq!((report.all.ok, report.not_ok(), report.forbidden()), (20, 20, 0));
    assert_eq!(json["failed"], json!({"503 overloaded": 20}));
    assert_eq!(json["by_url"][good.url()]["ok"], 20);
    assert_eq!(json["by_url"][good.url()]["streamed"], 10);
    assert_eq!(json["latency_ms"]["count"], 20);
    assert_eq!(json["ttft_ms"]["count"], 10);
    // The script's own pace is a lower bound whatever the machine does.
    assert!(json["latency_ms"]["p50"].as_f64().expect("a number") >= 29.9, "{json}");
    assert!(json["ttft_ms"]["p50"].as_f64().expect("a number") >= 9.9, "{json}");
}

fn abortable<F>(future: F) -> tokio::task::JoinHandle<()>
where
    F: Future<Output = reqwest::Result<reqwest::Response>> + Send + 'static,
{
    shoal_loadtest::tasks::spawn_named("request", async move {
        if let Ok(response) = future.await {
            let _ = response.bytes().await;
        }
    })
}
