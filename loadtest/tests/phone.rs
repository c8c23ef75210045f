//! The stubs of LFO's phone host: both wires answer and fail as the bridge and the app do.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shoal_loadtest::{
    http_client,
    script::Script,
    stub::{End, Kind, Options, Snapshot, Stub},
    words,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Far above what loopback needs; reached only by a broken test.
const PATIENCE: Duration = Duration::from_secs(20);

async fn phone(kind: Kind) -> Stub {
    Stub::start(Options { kind, script: Script::default(), ..Options::default() }).await.expect("a free port")
}

fn chat(prompt: &str) -> Value {
    json!({"messages": [{"role": "user", "content": prompt}], "max_tokens": 4, "temperature": 0.7})
}

/// All that the app sends until it closes.
async fn by_line(stub: &Stub, body: &Value) -> String {
    let mut socket = TcpStream::connect(stub.address()).await.expect("a connection");
    socket.write_all(format!("{body}\n").as_bytes()).await.expect("a write");
    let mut text = String::new();
    let read = tokio::time::timeout(PATIENCE, socket.read_to_string(&mut text)).await;
    read.expect("the app closes").expect("a read");
    text
}

async fn by_http(stub: &Stub, body: &Value) -> (u16, Value) {
    let client = http_client::build(PATIENCE).expect("a client");
    let url = format!("http://{}/completion", stub.address());
    let response = client.post(url).json(body).send().await.expect("an answer");
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

fn is_good(answer: &Value, prompt: &str) {
    assert_eq!(words::verify(prompt, answer["text"].as_str().expect("text")), Ok(4));
    assert_eq!((&answer["confidence"], &answer["cloud_handoff"]), (&json!(0.9), &json!(false)));
    assert!(answer["total_time_ms"].is_u64() && answer.get("function_calls").is_none());
}

/// Polls the log until `ready` holds.
async fn until(stub: &Stub, ready: impl Fn(&Snapshot) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !ready(&stub.log().snapshot()) {
        assert!(Instant::now() < deadline, "{:?}", stub.log().snapshot());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn both_wires_give_one_answer() {
    let app = phone(Kind::LfoTcp).await;
    assert!(app.url().starts_with("lfo+tcp://127.0.0.1:"));
    let text = by_line(&app, &chat("hello")).await;
    assert_eq!(text.matches('\n').count(), 1);
    is_good(&serde_json::from_str(&text).expect("JSON"), "hello");
    let bridge = phone(Kind::LfoHttp).await;
    assert!(bridge.url().starts_with("lfo+http://127.0.0.1:"));
    let (status, answer) = by_http(&bridge, &chat("hello")).await;
    assert_eq!(status, 200);
    is_good(&answer, "hello");
    for stub in [&app, &bridge] {
        let seen = stub.log().snapshot();
        assert_eq!((seen.counts.completed, seen.requests[0].end), (1, End::Completed));
        assert_eq!(seen.requests[0].fields, ["max_tokens", "messages", "temperature"]);
    }
}

#[tokio::test]
async fn judgement_and_calls_follow_the_script() {
    let app = phone(Kind::LfoTcp).await;
    let answer = |text: String| -> Value { serde_json::from_str(&text).expect("JSON") };
    let unsure = answer(by_line(&app, &chat("x [[stub conf=0.2 handoff=1]]")).await);
    assert_eq!((&unsure["confidence"], &unsure["cloud_handoff"]), (&json!(0.2), &json!(true)));
    let silent = answer(by_line(&app, &chat("x [[stub conf=none]]")).await);
    assert!(silent.get("confidence").is_none());
    let mut body = chat("x");
    body["tools"] = json!([{"type": "function", "function": {"name": "lamp", "parameters": {}}}]);
    let call = answer(by_line(&app, &body).await);
    assert_eq!(call["function_calls"][0]["name"], "lamp");
    assert!(call.get("text").is_none());
}

#[tokio::test]
async fn failures_look_as_those_of_bridge_and_app() {
    let (app, bridge) = (phone(Kind::LfoTcp).await, phone(Kind::LfoHttp).await);
    assert_eq!(by_line(&app, &json!({})).await, "{\"error\":\"messages must be an array\"}\n");
    assert_eq!(by_http(&bridge, &json!({})).await, (400, json!({"error": "messages must be an array"})));
    assert_eq!(by_line(&app, &chat("[[stub err=503]]")).await, "{\"error\":\"scripted error\"}\n");
    assert_eq!(by_http(&bridge, &chat("[[stub err=503]]")).await.0, 502);
    let cut = by_line(&app, &chat("[[stub cut=1]]")).await;
    assert!(!cut.ends_with('\n') && serde_json::from_str::<Value>(&cut).is_err());
    assert_eq!(by_line(&app, &chat("[[stub drop=1]]")).await, "");
    assert!(serde_json::from_str::<Value>(&by_line(&app, &chat("[[stub garbage=1]]")).await).is_err());
    let client = http_client::build(PATIENCE).expect("a client");
    let health = client.get(format!("http://{}/health", bridge.address())).send().await.expect("an answer");
    assert_eq!(health.status().as_u16(), 404);
}

#[tokio::test]
async fn one_answer_at_a_time_and_a_client_that_leaves_is_seen() {
    let app = phone(Kind::LfoTcp).await;
    let (slow, queued) = (chat("a [[stub ttft=50]]"), chat("b"));
    let (a, b) = tokio::join!(by_line(&app, &slow), by_line(&app, &queued));
    assert!(a.ends_with('\n') && b.ends_with('\n'));
    let mut socket = TcpStream::connect(app.address()).await.expect("a connection");
    socket.write_all(format!("{}\n", chat("[[stub hang=0]]")).as_bytes()).await.expect("a write");
    until(&app, |log| log.counts.open == 1).await;
    drop(socket);
    until(&app, |log| log.counts.client_gone == 1).await;
}
