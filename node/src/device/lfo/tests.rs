//! A phone over both wires, against sockets that behave as LFO's app and bridge do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::post;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tower::ServiceExt;

use super::*;
use crate::device::testing::{self, PATIENCE};

fn hurried(url: &str) -> Phone {
    let place = Place::parse(url).unwrap();
    Phone { refresh: Duration::from_millis(20), ..Phone::new(place) }
}

async fn wait_for(engine: &mut Engine, what: &str, wanted: impl FnMut(&EngineStatus) -> bool) {
    let waiting = engine.status.wait_for(wanted);
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never {what}")).unwrap();
}

/// An app that answers each line with the next of `replies`, sends what it read, and closes; the last reply repeats.
async fn app(replies: &'static [&'static [u8]]) -> (String, mpsc::UnboundedReceiver<Value>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("lfo+tcp://{}", listener.local_addr().unwrap());
    let (seen, questions) = mpsc::unbounded_channel();
    tasks::spawn(TaskKind::Api, async move {
        let mut replies = replies.iter().peekable();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let mut socket = BufReader::new(socket);
            let mut line = String::new();
            if socket.read_line(&mut line).await.unwrap_or(0) == 0 {
                continue;
            }
            let _ = seen.send(serde_json::from_str(&line).unwrap());
            let reply = *replies.peek().unwrap();
            if replies.len() > 1 {
                replies.next();
            }
            let _ = socket.write_all(reply).await;
        }
    });
    (url, questions)
}

fn request(stream: bool) -> UpstreamRequest {
    UpstreamRequest { model: "lfo-local-functiongemma".into(), ..testing::chat(stream) }
}

async fn ask(engine: &Engine, request: UpstreamRequest) -> Result<Vec<Value>, UpstreamError> {
    let answer = engine.upstream.clone().oneshot(request).await?;
    let (events, error) = testing::collect(answer).await;
    assert!(error.is_none());
    assert_eq!(events.last(), Some(&Event::End { complete: true }));
    let chunks = events.iter().filter_map(|event| match event {
        Event::Chunk(bytes) => Some(serde_json::from_slice(bytes).unwrap()),
        Event::End { .. } => None,
    });
    Ok(chunks.collect())
}

#[tokio::test]
async fn the_apps_own_socket_answers_chats() {
    let reply: &[u8] = br#"{"text":"Hello!","confidence":0.82,"total_time_ms":120,"cloud_handoff":false}
"#;
    let (url, mut questions) = app(Box::leak(Box::new([reply]))).await;
    let mut engine = hurried(&url).start(CancellationToken::new()).unwrap();
    wait_for(&mut engine, "up", |status| status.slots == 1).await;
    let status = engine.status.borrow().clone();
    assert_eq!(status.kind, Some(EngineKind::Lfo));
    assert_eq!((status.models[0].engine.as_str(), status.models[0].context_length), ("lfo", 2048));

    let body = ask(&engine, request(false)).await.unwrap().remove(0);
    assert_eq!(body["choices"][0]["message"]["content"], "Hello!");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(
        body[PHONE_FIELD],
        json!({"confidence": 0.82, "cloud_handoff": false, "total_time_ms": 120.0})
    );
    let asked = questions.recv().await.unwrap();
    assert_eq!(asked["messages"], json!([{"role": "user", "content": "hi"}]));
    assert!(asked.get("model").is_none());

    let chunks = ask(&engine, request(true)).await.unwrap();
    assert_eq!(chunks.len(), 2);
    assert_eq!(chunks[0]["choices"][0]["delta"]["content"], "Hello!");
    assert_eq!(chunks[0][PHONE_FIELD]["confidence"], 0.82);
    assert_eq!(chunks[1]["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn what_breaks_is_told_apart_and_others_may_be_asked() {
    let endless: &[u8] = Box::leak(vec![b'x'; exchange::MAX_ANSWER + 2].into_boxed_slice());
    let cases: [(&[u8], u16, &str); 5] = [
        (b"", 502, "broke off"),
        (b"{\"text\":\"ha", 502, "broke off"),
        (b"nonsense\n", 502, "does not write"),
        (b"{\"error\":\"the prompt was: secret\"}\n", 502, "reported an error"),
        (endless, 502, "more than 1024 KiB"),
    ];
    for (reply, status, words) in cases {
        let (url, _questions) = app(Box::leak(Box::new([reply]))).await;
        let engine = hurried(&url).start(CancellationToken::new()).unwrap();
        let error = ask(&engine, request(false)).await.unwrap_err();
        assert_eq!((error.status, error.retryable), (status, true), "{words}");
        assert!(error.message.contains(words) && !error.message.contains("secret"), "{}", error.message);
    }
}

#[tokio::test]
async fn a_phone_that_goes_away_is_withdrawn_and_comes_back() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    // Probes are far apart, so that only the refused request can withdraw the model.
    let phone = Phone { refresh: Duration::from_secs(3600), ..hurried(&format!("lfo+tcp://{address}")) };
    let mut engine = phone.start(CancellationToken::new()).unwrap();
    wait_for(&mut engine, "up", |status| status.slots == 1).await;
    drop(listener);
    let error = ask(&engine, request(false)).await.unwrap_err();
    assert_eq!((error.status, error.code.as_ref(), error.retryable), (503, "upstream_unreachable", true));
    wait_for(&mut engine, "down", |status| status.models.is_empty() && status.problem.is_some()).await;

    let mut engine = hurried(&format!("lfo+tcp://{address}")).start(CancellationToken::new()).unwrap();
    wait_for(&mut engine, "down", |status| status.problem.is_some()).await;
    let _listener = TcpListener::bind(address).await.unwrap();
    wait_for(&mut engine, "back", |status| status.slots == 1).await;
}

#[tokio::test]
async fn one_request_at_a_time_and_a_deadline_for_each() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("lfo+tcp://{}", listener.local_addr().unwrap());
    let phone = Phone { answer_wait: Duration::from_millis(200), ..hurried(&url) };
    let engine = phone.start(CancellationToken::new()).unwrap();
    let slow = ask(&engine, request(false));
    let second = async {
        // The first is under way once its connection and line are there.
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let mut socket = BufReader::new(socket);
            let mut line = String::new();
            if socket.read_line(&mut line).await.unwrap_or(0) > 0 {
                let busy = ask(&engine, request(false)).await.unwrap_err();
                return (busy, socket);
            }
        }
    };
    let (slow, (busy, _socket)) = tokio::join!(slow, second);
    assert_eq!((busy.code.as_ref(), busy.retryable), ("overloaded", true));
    let slow = slow.unwrap_err();
    assert_eq!((slow.status, slow.code.as_ref(), slow.retryable), (504, "upstream_timeout", true));
    let late = UpstreamRequest { deadline: Some(Instant::now()), ..request(false) };
    assert!(!ask(&engine, late).await.unwrap_err().retryable, "nobody else can meet a deadline that is past");
}

#[tokio::test]
async fn the_bridge_answers_by_http_and_its_failures_count() {
    let broken = Arc::new(AtomicBool::new(false));
    let switch = broken.clone();
    let completion = move |body: Bytes| {
        let broken = switch.load(Ordering::SeqCst);
        async move {
            let asked: Value = serde_json::from_slice(&body).unwrap();
            if broken {
                return (StatusCode::BAD_GATEWAY, r#"{"error":"Android TCP timeout"}"#).into_response();
            }
            let call = json!([{"name": "f", "arguments": {"n": asked["max_tokens"]}}]);
            axum::Json(json!({"function_calls": call, "confidence": 0.3, "cloud_handoff": true}))
                .into_response()
        }
    };
    // As LFO's bridge: no health path at all.
    let base = testing::serve(Router::new().route("/completion", post(completion))).await;
    let url = format!("lfo+http://{}", base.as_str().trim_start_matches("http://").trim_end_matches('/'));
    let mut engine = hurried(&url).start(CancellationToken::new()).unwrap();
    wait_for(&mut engine, "up", |status| status.slots == 1).await;
    let chunks = ask(&engine, request(true)).await.unwrap();
    let call = &chunks[0]["choices"][0]["delta"]["tool_calls"][0];
    assert_eq!(call["function"], json!({"name": "f", "arguments": "{\"n\":512}"}));
    assert_eq!((&call["index"], &call["type"]), (&json!(0), &json!("function")));
    assert_eq!(chunks[0][PHONE_FIELD]["cloud_handoff"], true);
    assert_eq!(chunks[1]["choices"][0]["finish_reason"], "tool_calls");
    broken.store(true, Ordering::SeqCst);
    let error = ask(&engine, request(false)).await.unwrap_err();
    assert_eq!((error.status, error.retryable), (502, true));
}

#[tokio::test]
async fn completions_and_foreign_models_are_left_to_others() {
    let (url, _questions) = app(&[b"{\"text\":\"x\"}\n"]).await;
    let engine = hurried(&url).start(CancellationToken::new()).unwrap();
    let completion = UpstreamRequest { path: ApiPath::Completions, ..request(false) };
    assert_eq!(ask(&engine, completion).await.unwrap_err().status, 501);
    assert_eq!(ask(&engine, testing::chat(false)).await.unwrap_err().code, "model_not_found");
}
