//! What a client sees, through the routes, over scripted upstreams.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::response::Response;
use http::Request;
use serde_json::{Value, json};
use shoal_routing::Tokens;
use tower::ServiceExt;

use super::outbound::event;
use crate::api::front::Front;
use crate::api::{auth, messages, shape};
use crate::testing::{
    Act, Beat, ROLE, STOP, Scene, USAGE, WORD, broken, offer, say, stream_answer, whole_answer,
};
use crate::upstream::UpstreamError;

fn app(front: &Front) -> Router {
    messages::routes::<Front>()
        .layer(DefaultBodyLimit::max(4096))
        .layer(middleware::from_fn_with_state(front.clone(), auth::require_key))
        .layer(middleware::from_fn(shape::tell_errors))
        .with_state(front.clone())
}

async fn send(scene: &Scene, path: &str, body: Value, headers: &[(&str, &str)]) -> Response {
    let mut request = Request::post(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    app(&scene.front).oneshot(request.body(Body::from(body.to_string())).unwrap()).await.unwrap()
}

async fn ask(scene: &Scene, more: Value) -> Response {
    let mut body = json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    send(scene, "/v1/messages?beta=true", body, &[("anthropic-beta", "whatever")]).await
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|v| v.to_str().unwrap())
}

async fn text(response: Response) -> String {
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn body(response: Response) -> Value {
    serde_json::from_str(&text(response).await).unwrap()
}

/// The events of a stream, which must be nothing else.
async fn events(response: Response) -> Vec<Value> {
    text(response).await.split_inclusive("\n\n").map(event).collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

fn scene() -> Scene {
    Scene::new(vec![offer("a", "m", &[])])
}

#[tokio::test(start_paused = true)]
async fn a_message_is_answered_with_one() {
    let mut scene = scene();
    scene.script("a/m", [whole_answer()]);
    let response = ask(&scene, json!({"thinking": {"type": "adaptive"}, "top_k": 5})).await;
    assert_eq!(response.status(), 200);
    assert_eq!(header(&response, "request-id"), header(&response, "x-request-id"));
    assert_eq!(header(&response, "x-shoal-model"), Some("m"));
    assert!(header(&response, "x-shoal-warnings").unwrap().contains("thinking"));
    let message = body(response).await;
    assert_eq!((&message["type"], &message["stop_reason"]), (&json!("message"), &json!("end_turn")));
    assert_eq!(message["content"], json!([{"type": "text", "text": "hi"}]));
    assert_eq!(message["usage"]["output_tokens"], 4);
    assert_eq!(message["shoal_metadata"]["upstream"], "a");
    let row = scene.only_outcome().0;
    assert_eq!(message["id"], row.id.replace("req_", "msg_"));
    let asked: Value = serde_json::from_slice(&scene.asked()[0].body).unwrap();
    assert_eq!((&asked["max_tokens"], &asked["top_k"]), (&json!(9), &json!(5)));
    assert_eq!(asked["messages"], json!([{"role": "user", "content": "x"}]));
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_usage_and_metadata() {
    let mut scene = scene();
    scene.script("a/m", [stream_answer()]);
    let response = ask(&scene, json!({"stream": true})).await;
    assert_eq!(header(&response, "content-type"), Some("text/event-stream"));
    assert!(header(&response, "request-id").is_some());
    let events = events(response).await;
    assert_eq!(
        kinds(&events),
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    assert!(events[0]["message"]["usage"]["input_tokens"].as_u64().unwrap() > 0);
    assert_eq!(events[4]["usage"]["output_tokens"], 4);
    assert_eq!(events[4]["shoal_metadata"]["upstream"], "a");
    assert_eq!(scene.only_outcome().0.outcome, "completed");
}

#[tokio::test(start_paused = true)]
async fn usage_that_no_upstream_told_is_our_own() {
    let scene = scene();
    scene.script("a/m", [Act::Play(vec![say(ROLE), say(WORD), say(STOP), Beat::End(true)])]);
    let events = events(ask(&scene, json!({"stream": true})).await).await;
    assert_eq!(events[4]["usage"]["output_tokens"], 1);
    assert!(events[4]["shoal_metadata"].is_object());
}

#[tokio::test(start_paused = true)]
async fn a_cut_stream_ends_with_an_error_event() {
    let mut scene = scene();
    scene.script("a/m", [Act::Play(vec![say(ROLE), say(WORD), Beat::Break(broken())])]);
    let events = events(ask(&scene, json!({"stream": true})).await).await;
    assert_eq!(kinds(&events), ["message_start", "content_block_start", "content_block_delta", "error"]);
    assert_eq!(events[3]["error"]["code"], "upstream_interrupted");
    assert_eq!(scene.only_outcome().0.outcome, "failed");
}

#[tokio::test(start_paused = true)]
async fn a_slow_answer_is_kept_alive_by_pings() {
    let mut scene = scene();
    let wait = Beat::Wait(Duration::from_secs(25));
    let late = vec![say(ROLE), wait, say(WORD), say(STOP), say(USAGE), Beat::End(true)];
    scene.script("a/m", [Act::Play(late)]);
    let events = events(ask(&scene, json!({"stream": true})).await).await;
    assert_eq!(kinds(&events)[..3], ["ping", "ping", "message_start"]);
    assert_eq!(kinds(&events).last(), Some(&"message_stop"));
    assert_eq!(scene.only_outcome().0.outcome, "completed");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_no_message_is_an_error_and_a_failure() {
    let mut scene = scene();
    let garbled = r#"{"choices":[{"message":{"tool_calls":[{"function":{"name":"f","arguments":"{"}}]},"finish_reason":"tool_calls"}]}"#;
    scene.script("a/m", [Act::Play(vec![say(garbled), Beat::End(true)])]);
    let response = ask(&scene, json!({})).await;
    assert_eq!(response.status(), 502);
    assert_eq!(body(response).await["error"]["type"], "api_error");
    assert_eq!(scene.only_outcome().0.outcome, "failed");
}

#[tokio::test(start_paused = true)]
async fn errors_have_their_shape_whoever_refuses() {
    let mut scene = scene();
    let full = UpstreamError::retryable(503, "overloaded", "full");
    scene.script("a/m", [Act::Fail(full)]);
    let long = "x".repeat(5000);
    for (more, status, kind) in [
        (json!({"max_tokens": null}), 400, "invalid_request_error"),
        (json!({"temperature": 9}), 400, "invalid_request_error"),
        (json!({"model": "nobody"}), 404, "not_found_error"),
        (json!({"system": long}), 413, "request_too_large"),
        (json!({}), 503, "overloaded_error"),
    ] {
        let response = ask(&scene, more).await;
        assert_eq!(response.status().as_u16(), status);
        assert!(header(&response, "request-id").is_some(), "{status}");
        let error = body(response).await;
        assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!(kind)));
    }
    scene.front.no_auth = false;
    let response = ask(&scene, json!({})).await;
    assert_eq!(response.status(), 401);
    assert_eq!(body(response).await["error"]["type"], "authentication_error");
    let path = "/v1/messages/count_tokens";
    assert_eq!(send(&scene, path, json!({"messages": []}), &[]).await.status(), 401);
    scene.front.no_auth = true;
    let gzip = send(&scene, "/v1/messages", json!({}), &[("content-encoding", "gzip")]).await;
    assert_eq!(gzip.status(), 415);
}

#[tokio::test(start_paused = true)]
async fn anthropics_names_are_answered_by_what_is_there_and_can_be_unknown() {
    let mut scene = scene();
    scene.script("a/m", [whole_answer()]);
    let message = body(ask(&scene, json!({"model": "claude-opus-9"})).await).await;
    assert_eq!(message["shoal_metadata"]["model"], "m");
    let row = scene.only_outcome().0;
    assert_eq!(row.model_requested, "auto");
    scene.front.claude_model = None;
    assert_eq!(ask(&scene, json!({"model": "claude-opus-9"})).await.status(), 404);
}

#[tokio::test(start_paused = true)]
async fn our_instructions_count_in_their_metadata() {
    let mut cloudy = offer("a", "m", &[]);
    Arc::make_mut(&mut cloudy.model).remote = true;
    let mut scene = Scene::new(vec![cloudy]);
    let response = ask(&scene, json!({"metadata": {"user_id": "ann", "data_class": "restricted"}})).await;
    assert_eq!(response.status(), 403);
    assert_eq!(body(response).await["error"]["type"], "permission_error");
    assert!(scene.tried().is_empty());
    assert_eq!(scene.only_outcome().0.outcome, "rejected");
}

#[tokio::test(start_paused = true)]
async fn a_limit_beyond_the_context_is_a_bound_and_a_prompt_beyond_it_too_long() {
    let mut short = offer("a", "m", &[]);
    Arc::make_mut(&mut short.model).context = Some(Tokens(600));
    let mut scene = Scene::new(vec![short]);
    scene.script("a/m", [whole_answer()]);
    let response = ask(&scene, json!({"max_tokens": 32_000})).await;
    assert_eq!(response.status(), 200);
    assert!(header(&response, "x-shoal-warnings").unwrap().contains("'max_tokens' was lowered to 528"));
    let asked: Value = serde_json::from_slice(&scene.asked()[0].body).unwrap();
    assert_eq!(asked["max_tokens"], 528);
    assert_eq!(scene.only_outcome().0.outcome, "completed");
    let long = "word ".repeat(700);
    let refused = ask(&scene, json!({"max_tokens": 32_000, "system": long})).await;
    assert_eq!(refused.status(), 400);
    let error = body(refused).await;
    // Agents shorten the conversation when they read this.
    assert!(error["error"]["message"].as_str().unwrap().starts_with("prompt is too long: "), "{error}");
}

#[tokio::test(start_paused = true)]
async fn counting_runs_nothing() {
    let scene = scene();
    for path in ["/v1/messages/count_tokens?beta=true", "/messages/count_tokens"] {
        let request = json!({"model": "claude-x", "messages": [{"role": "user", "content": "Hello, world"}]});
        assert_eq!(body(send(&scene, path, request, &[]).await).await, json!({"input_tokens": 10}));
    }
    let wrong = send(&scene, "/v1/messages/count_tokens", json!({"messages": []}), &[]).await;
    assert_eq!(wrong.status(), 400);
    assert_eq!(body(wrong).await["type"], "error");
    assert_eq!(scene.pipeline.sinks.totals.of("accepted"), 0);
}
