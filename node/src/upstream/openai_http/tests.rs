//! The upstream against scripted servers: every way in which an answer can come, or fail to.

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response as Answer};
use axum::routing::{any, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tower::ServiceExt;

use super::*;
use crate::device::testing::{self, Ending, PATIENCE, TellsDrop, chat, collect, event_stream};
use crate::tasks::{self, TaskKind};
use crate::upstream::http_client::{self, Reach};

const ROLE: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"},\"finish_reason\":null}]}\n\n";
const WORD: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"},\"finish_reason\":null}]}\n\n";
const STOP: &str = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"total_tokens\":3}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

fn upstream(base: Url) -> OpenAiHttp {
    with_timeouts(base, IdleTimeouts::default())
}

fn with_timeouts(base: Url, timeouts: IdleTimeouts) -> OpenAiHttp {
    let settings = Settings {
        base,
        key: Some(SecretString::from("sk-test")),
        name: "box".to_owned(),
        id: "box-1".to_owned(),
        timeouts,
    };
    OpenAiHttp::new(http_client::build(Reach::Lan).unwrap(), settings)
}

async fn ask(upstream: OpenAiHttp, request: UpstreamRequest) -> Result<UpstreamResponse, UpstreamError> {
    tokio::time::timeout(PATIENCE, upstream.oneshot(request)).await.expect("the future resolves")
}

/// Asks a server that answers every request with `answer`.
async fn asked(
    stream: bool,
    answer: impl Fn() -> Answer + Clone + Send + Sync + 'static,
) -> Result<UpstreamResponse, UpstreamError> {
    let base = testing::serve(Router::new().fallback(any(move || async move { answer() }))).await;
    ask(upstream(base), chat(stream)).await
}

fn chunk(line: &'static str) -> Event {
    Event::Chunk(Bytes::from_static(line.strip_prefix("data: ").unwrap().trim_end().as_bytes()))
}

fn cause(error: &UpstreamError) -> (u16, &str, bool) {
    (error.status, &error.code, error.retryable)
}

#[test]
fn base_urls_work_with_and_without_v1() {
    let check = |base: &str, url: &str| {
        assert_eq!(join(&base.parse().unwrap(), "/v1/models").as_str(), url, "{base}");
    };
    check("http://h:1", "http://h:1/v1/models");
    check("http://h:1/", "http://h:1/v1/models");
    check("http://h:1/v1", "http://h:1/v1/models");
    check("http://h:1/v1/?x=y#z", "http://h:1/v1/models");
    check("https://h/api/v1", "https://h/api/v1/models");
}

#[tokio::test]
async fn a_stream_arrives_payload_by_payload_and_complete() {
    let answer =
        asked(true, || event_stream(&[":\n\n", ROLE, WORD, STOP, USAGE, DONE], Ending::Clean)).await.unwrap();
    assert_eq!(answer.served_by.upstream, "box");
    let (events, error) = collect(answer).await;
    assert!(error.is_none());
    let end = Event::End { complete: true };
    assert_eq!(events, [chunk(ROLE), chunk(WORD), chunk(STOP), chunk(USAGE), end]);
}

#[tokio::test]
async fn completeness_is_what_the_upstream_said() {
    let check = |parts: &'static [&'static str], ending, complete| async move {
        let (events, error) = collect(asked(true, move || event_stream(parts, ending)).await.unwrap()).await;
        assert!(error.is_none(), "{parts:?} {ending:?}: {error:?}");
        assert_eq!(events.last(), Some(&Event::End { complete }), "{parts:?} {ending:?}");
    };
    check(&[WORD, STOP], Ending::Clean, true).await;
    check(&[WORD, DONE], Ending::Clean, true).await;
    check(&[WORD, STOP, USAGE], Ending::Cut, true).await;
    check(&[WORD], Ending::Clean, false).await;
    check(&[WORD, "data: {\"choices\":[{\"finish_reason\":\"stop\"}"], Ending::Clean, false).await;
    check(&[WORD, "data: [DON"], Ending::Clean, false).await;
}

#[tokio::test]
async fn of_two_answers_one_alone_is_not_whole() {
    const OTHER: &str = "data: {\"choices\":[{\"index\":1,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    let ends = |parts: &'static [&'static str], ending| async move {
        let answer = move || async move { event_stream(parts, ending) };
        let base = testing::serve(Router::new().fallback(any(answer))).await;
        let body = Bytes::from_static(br#"{"model":"m","stream":true,"n":2,"messages":[]}"#);
        let (events, error) =
            collect(ask(upstream(base), UpstreamRequest { body, ..chat(true) }).await.unwrap()).await;
        (events.last() == Some(&Event::End { complete: true }), error.is_some())
    };
    assert_eq!(ends(&[WORD, STOP], Ending::Cut).await, (false, true));
    assert_eq!(ends(&[WORD, STOP, STOP], Ending::Clean).await, (false, false));
    assert_eq!(ends(&[WORD, STOP, OTHER], Ending::Cut).await, (true, false));
    // A server that knows no `n`.
    assert_eq!(ends(&[WORD, STOP, DONE], Ending::Clean).await, (true, false));
}

#[tokio::test]
async fn a_stream_cut_after_content_ends_with_an_error() {
    let (events, error) =
        collect(asked(true, || event_stream(&[ROLE, WORD], Ending::Cut)).await.unwrap()).await;
    assert!(events.starts_with(&[chunk(ROLE)]));
    assert!(!events.iter().any(|event| matches!(event, Event::End { .. })));
    assert_eq!(cause(&error.unwrap()), (502, "upstream_interrupted", true));
}

#[tokio::test]
async fn a_stream_that_holds_nothing_is_an_error_of_the_future() {
    for parts in [&[][..], &[DONE], &[":\n\n"], &["data: \n\n"]] {
        let error = asked(true, || event_stream(parts, Ending::Clean)).await.unwrap_err();
        assert_eq!(cause(&error), (502, "upstream_error", true), "{parts:?}");
    }
    let error = asked(true, || event_stream(&[], Ending::Cut)).await.unwrap_err();
    assert_eq!(cause(&error), (502, "upstream_error", true));
}

#[tokio::test]
async fn an_error_inside_a_200_stream_is_an_error() {
    const ERROR: &str = "data: {\"error\":{\"message\":\"out of memory\",\"code\":500}}\n\n";
    let error = asked(true, || event_stream(&[ERROR], Ending::Clean)).await.unwrap_err();
    assert_eq!(cause(&error), (502, "upstream_error", true));
    assert!(error.message.contains("out of memory"), "{}", error.message);
    let (events, error) =
        collect(asked(true, || event_stream(&[WORD, ERROR, DONE], Ending::Clean)).await.unwrap()).await;
    assert_eq!(events, [chunk(WORD)]);
    assert_eq!(error.unwrap().status, 502);
}

#[tokio::test]
async fn an_error_with_status_200_is_an_error_without_a_stream_too() {
    let body = r#"{"error":{"message":"slow down","code":429}}"#;
    for stream in [false, true] {
        let error =
            asked(stream, move || ([("content-type", "application/json")], body).into_response()).await;
        assert_eq!(cause(&error.unwrap_err()), (429, "rate_limit_exceeded", true), "stream {stream}");
    }
}

#[tokio::test]
async fn answers_that_are_not_the_api_are_upstream_errors() {
    let check = |stream: bool, kind: &'static str, body: &'static str| async move {
        let answered = asked(stream, move || ([("content-type", kind)], body).into_response()).await;
        assert_eq!(cause(&answered.unwrap_err()), (502, "upstream_error", true), "{stream} {kind} {body}");
    };
    for stream in [false, true] {
        check(stream, "text/html; charset=utf-8", "<html>hello</html>").await;
        check(stream, "text/plain", "hello").await;
        check(stream, "application/json", "").await;
        check(stream, "application/json", "{\"choices\":[").await;
        check(stream, "application/json", "[1]").await;
    }
    check(false, "text/event-stream", WORD).await;
    check(true, "application/json", "{\"choices\":[]}").await;
    check(true, "text/event-stream", "data: <html>\n\n").await;
}

#[tokio::test]
async fn statuses_are_mapped_and_retry_after_is_read() {
    let busy = || (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "7")], "busy").into_response();
    let error = asked(true, busy).await.unwrap_err();
    assert_eq!(cause(&error), (503, "overloaded", true));
    assert_eq!(error.retry_after, Some(Duration::from_secs(7)));
    let refused = || (StatusCode::BAD_REQUEST, r#"{"error":{"message":"n must be 1"}}"#).into_response();
    let error = asked(false, refused).await.unwrap_err();
    assert_eq!(cause(&error), (400, "invalid_request_error", false));
    assert!(error.message.ends_with("n must be 1"));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (told, mut calls) = mpsc::unbounded_channel();
    let target =
        testing::serve(Router::new().fallback(any(move || async move { told.send(()).unwrap() }))).await;
    let target = target.to_string();
    let redirect = move || (StatusCode::TEMPORARY_REDIRECT, [("location", target.clone())]).into_response();
    assert_eq!(cause(&asked(false, redirect).await.unwrap_err()), (502, "upstream_error", true));
    assert!(calls.try_recv().is_err());
}

#[tokio::test]
async fn an_address_without_a_server_is_a_retryable_error() {
    let error = ask(upstream(testing::nowhere().await), chat(true)).await.unwrap_err();
    assert_eq!(cause(&error), (502, "upstream_error", true));
}

#[tokio::test]
async fn a_whole_body_arrives_and_one_above_the_cap_does_not() {
    let body = r#"{"choices":[{"message":{"content":"an \"error\""},"finish_reason":"stop"}]}"#;
    let answer =
        asked(false, move || ([("content-type", "application/json")], body).into_response()).await.unwrap();
    let (events, error) = collect(answer).await;
    assert!(error.is_none());
    assert_eq!(events, [Event::Chunk(Bytes::from_static(body.as_bytes())), Event::End { complete: true }]);
    let huge = || Bytes::from(vec![b' '; MAX_BODY + 1]).into_response();
    assert_eq!(cause(&asked(false, huge).await.unwrap_err()), (502, "upstream_error", true));
}

#[tokio::test]
async fn the_request_is_built_anew_with_our_key() {
    let (seen, mut requests) = mpsc::unbounded_channel();
    let record = move |request: axum::extract::Request| async move {
        let (head, body) = request.into_parts();
        let body = axum::body::to_bytes(body, MAX_BODY).await.unwrap();
        seen.send((head, body)).unwrap();
        event_stream(&[WORD, DONE], Ending::Clean)
    };
    let base = testing::serve(Router::new().route("/v1/chat/completions", post(record))).await;
    ask(upstream(base.join("v1").unwrap()), chat(true)).await.unwrap();
    let (head, body) = requests.recv().await.unwrap();
    assert_eq!(body, chat(true).body);
    assert_eq!(head.headers["authorization"], "Bearer sk-test");
    assert_eq!(head.headers["x-request-id"], "req_test_1");
    let mut names: Vec<_> = head.headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    let expected = [
        "accept",
        "authorization",
        "content-length",
        "content-type",
        "host",
        "user-agent",
        "x-request-id",
        "x-shoal-hops",
    ];
    assert_eq!(names, expected);
}

#[tokio::test]
async fn silence_is_judged_by_phase() {
    let (short, long) = (Duration::from_millis(400), Duration::from_secs(3600));
    let timeouts = |first_byte, between_chunks| IdleTimeouts { first_byte, between_chunks };
    let silent = |parts: &'static [&'static str], timeouts| async move {
        let router = Router::new().fallback(any(move || async move { event_stream(parts, Ending::Silence) }));
        let answer = ask(with_timeouts(testing::serve(router).await, timeouts), chat(true)).await;
        match answer {
            Err(error) => (0, error),
            Ok(answer) => {
                let (events, error) = collect(answer).await;
                (events.len(), error.unwrap())
            }
        }
    };
    for (parts, limits, events) in [
        (&[][..], timeouts(short, long), 0),
        (&[ROLE], timeouts(short, long), 1),
        (&[ROLE, WORD], timeouts(long, short), 2),
    ] {
        let (seen, error) = silent(parts, limits).await;
        assert_eq!(seen, events, "{parts:?}");
        assert_eq!(cause(&error), (504, "upstream_timeout", true), "{parts:?}");
    }
}

#[tokio::test]
async fn the_deadline_of_the_request_bounds_everything() {
    let router = Router::new().fallback(any(|| async { event_stream(&[ROLE, WORD], Ending::Silence) }));
    let upstream = upstream(testing::serve(router).await);
    let deadline = Some(Instant::now() + Duration::from_millis(500));
    let request = UpstreamRequest { deadline, ..chat(true) };
    let (events, error) = collect(ask(upstream, request).await.unwrap()).await;
    assert_eq!(events.len(), 2);
    assert_eq!(cause(&error.unwrap()), (504, "upstream_timeout", false));
}

#[tokio::test]
async fn dropping_the_future_is_seen_by_the_upstream_during_prefill() {
    let (told, mut words) = mpsc::unbounded_channel();
    let prefill = move || {
        let guard = TellsDrop(told.clone(), "cancelled");
        async move {
            guard.0.send("prefill").unwrap();
            let _guard = guard;
            std::future::pending::<Answer>().await
        }
    };
    let base = testing::serve(Router::new().fallback(any(prefill))).await;
    for stream in [true, false] {
        let asking = tasks::spawn(TaskKind::Relay, upstream(base.clone()).oneshot(chat(stream)));
        assert_eq!(words.recv().await, Some("prefill"));
        asking.abort();
        assert_eq!(tokio::time::timeout(PATIENCE, words.recv()).await.unwrap(), Some("cancelled"));
    }
}

#[tokio::test]
async fn dropping_the_events_is_seen_by_the_upstream_during_decode() {
    let (told, mut words) = mpsc::unbounded_channel();
    let decode = move || {
        let guard = TellsDrop(told.clone(), "cancelled");
        async move {
            let parts = stream::iter([Ok::<_, std::io::Error>(WORD)]).chain(stream::pending());
            let body = axum::body::Body::from_stream(parts.inspect(move |_| {
                let _held_by_the_body = &guard;
            }));
            ([("content-type", "text/event-stream")], body).into_response()
        }
    };
    let base = testing::serve(Router::new().fallback(any(decode))).await;
    let mut answer = ask(upstream(base), chat(true)).await.unwrap();
    assert_eq!(answer.events.next().await.unwrap().unwrap(), chunk(WORD));
    assert!(words.try_recv().is_err());
    drop(answer);
    assert_eq!(tokio::time::timeout(PATIENCE, words.recv()).await.unwrap(), Some("cancelled"));
}

/// Counts connections and reads: a request that reaches the server in one read left in one write, so that no
/// pair of small segments can wait for a delayed acknowledgement, on the first request or on later ones.
#[tokio::test]
async fn later_requests_use_the_same_connection_and_leave_in_one_write() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base: Url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let (seen, mut reads) = mpsc::unbounded_channel();
    tasks::spawn(TaskKind::Api, async move {
        let mut connections = 0;
        while let Ok((mut socket, _)) = listener.accept().await {
            connections += 1;
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = socket.read(&mut buffer).await {
                seen.send((connections, buffer[..length].ends_with(b"]}"))).unwrap();
                let body = format!("{WORD}{STOP}{DONE}");
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
                let answer = format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    });
    let upstream = upstream(base);
    for _ in 0..3 {
        let (events, error) = collect(ask(upstream.clone(), chat(true)).await.unwrap()).await;
        assert!(error.is_none());
        assert_eq!(events.len(), 3);
        assert_eq!(reads.recv().await, Some((1, true)));
    }
}

#[tokio::test]
async fn a_cost_that_a_router_tells_in_a_header_is_written_beside_the_usage() {
    const ANSWER: &str = r#"{"choices":[{"message":{"content":"hi"}}],"usage":{"prompt_tokens":3}}"#;
    for (cost, told) in [("0.00042", true), ("0", false), ("-1", false), ("much", false)] {
        let answer = asked(false, move || {
            ([("content-type", "application/json"), ("x-litellm-response-cost", cost)], ANSWER)
                .into_response()
        });
        let (events, _) = collect(answer.await.unwrap()).await;
        let Event::Chunk(body) = &events[0] else { panic!("a body") };
        let mut tap = crate::pipeline::tap::Tap::default();
        tap.inspect_body(body);
        let billed = tap.usage.and_then(|usage| usage.billed).map(|billed| billed.0);
        assert_eq!(billed, told.then_some(420), "{cost}");
        assert!(told || body == ANSWER, "nothing else is touched");
    }
}
