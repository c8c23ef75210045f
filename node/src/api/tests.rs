//! What a client sees, through the router of the inference endpoints, over scripted upstreams.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, BodyDataStream};
use axum::middleware;
use axum::response::Response;
use futures_util::StreamExt;
use http::Request;
use serde_json::Value;
use tower::ServiceExt;

use super::front::Front;
use super::{auth, inference};
use crate::testing::{
    Act, BODY, Beat, ROLE, STOP, Scene, USAGE, WORD, broken, offer, say, stream_answer, whole_answer,
};

fn app(front: &Front) -> Router {
    inference::routes::<Front>()
        .layer(middleware::from_fn_with_state(front.clone(), auth::require_key))
        .with_state(front.clone())
}

async fn post(scene: &Scene, extra: &str) -> Response {
    post_with(scene, extra, &[]).await
}

async fn post_with(scene: &Scene, extra: &str, headers: &[(&str, &str)]) -> Response {
    let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}]{extra}}}"#);
    let mut request = Request::post("/v1/chat/completions");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    app(&scene.front).oneshot(request.body(Body::from(body)).unwrap()).await.unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|v| v.to_str().unwrap())
}

async fn json(response: Response) -> Value {
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

async fn frame(body: &mut BodyDataStream) -> Option<String> {
    body.next().await.map(|f| String::from_utf8(f.unwrap().to_vec()).unwrap())
}

/// Reads a stream to its end: its payloads, `[DONE]` and comments as they are.
async fn lines(response: Response) -> Vec<String> {
    let mut body = response.into_body().into_data_stream();
    let mut all = Vec::new();
    while let Some(frame) = frame(&mut body).await {
        all.push(frame.trim_end().strip_prefix("data: ").unwrap_or(frame.trim_end()).to_owned());
    }
    all
}

fn one(beats: Vec<Beat>) -> Scene {
    let scene = Scene::new(vec![offer("a", "m", &[])]);
    scene.script("a/m", [Act::Play(beats)]);
    scene
}

/// Tells, for each line, what it is and whether the metadata rides it.
fn kinds(lines: &[String]) -> Vec<String> {
    let kind = |line: &String| {
        let Ok(value) = serde_json::from_str::<Value>(line) else { return line.clone() };
        let mut kind = match &value {
            v if v.get("error").is_some() => "error".to_owned(),
            v if v["choices"].as_array().is_none_or(Vec::is_empty) => "usage".to_owned(),
            v => match v["choices"][0]["finish_reason"].as_str() {
                Some(reason) => reason.to_owned(),
                None => "chunk".to_owned(),
            },
        };
        if value["choices"].as_array().is_some_and(|c| !c.is_empty()) && value["usage"].is_object() {
            kind.push_str("+usage");
        }
        if value.get("shoal_metadata").is_some() {
            kind.push_str("+metadata");
        }
        kind
    };
    lines.iter().map(kind).collect()
}

#[tokio::test(start_paused = true)]
async fn metadata_rides_the_chunk_that_it_should() {
    let both = r#"{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#;
    let counted =
        r#"{"choices":[{"delta":{"content":"hi"}}],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#;
    let second = STOP.replace("{\"delta\"", "{\"index\":1,\"delta\"");
    let late = Beat::Wait(Duration::from_secs(1));
    let end = Beat::End(true);
    let asked = r#","stream_options":{"include_usage":true}"#;
    let cases: Vec<(&str, &str, Vec<Beat>, &[&str])> = vec![
        ("not asked", "", vec![say(WORD), say(STOP), say(USAGE), end.clone()], &["chunk", "stop+metadata"]),
        (
            "asked",
            asked,
            vec![say(WORD), say(STOP), say(USAGE), end.clone()],
            &["chunk", "stop", "usage+metadata"],
        ),
        ("none from the upstream", "", vec![say(WORD), say(STOP), end.clone()], &["chunk", "stop+metadata"]),
        (
            "asked, none told",
            asked,
            vec![say(WORD), say(STOP), end.clone()],
            &["chunk", "stop", "usage+metadata"],
        ),
        ("in the finish chunk", "", vec![say(WORD), say(both), end.clone()], &["chunk", "stop+metadata"]),
        (
            "asked, in the finish chunk",
            asked,
            vec![say(WORD), say(both), end.clone()],
            &["chunk", "stop+usage+metadata"],
        ),
        ("in every chunk", "", vec![say(counted), say(both), end.clone()], &["chunk", "stop+metadata"]),
        (
            "asked, in every chunk",
            asked,
            vec![say(counted), say(STOP), say(USAGE), end.clone()],
            &["chunk+usage", "stop", "usage+metadata"],
        ),
        (
            "before the finish",
            "",
            vec![say(WORD), say(USAGE), say(STOP), end.clone()],
            &["chunk", "stop+metadata"],
        ),
        (
            "two answers",
            r#","n":2"#,
            vec![say(WORD), say(STOP), say(WORD), say(&second), say(USAGE), end.clone()],
            &["chunk", "stop", "chunk", "stop+metadata"],
        ),
        (
            "two answers, the second late",
            r#","n":2"#,
            vec![say(WORD), say(STOP), late.clone(), say(WORD), say(&second), end.clone()],
            &["chunk", "stop", "chunk", "stop+metadata"],
        ),
        (
            "usage too late",
            "",
            vec![say(WORD), say(STOP), late, say(USAGE), end],
            &["chunk", "stop+metadata"],
        ),
    ];
    for (what, extra, beats, expected) in cases {
        let mut scene = one(beats);
        let response = post(&scene, &format!(r#","stream":true{extra}"#)).await;
        let lines = lines(response).await;
        let mut expected: Vec<&str> = expected.to_vec();
        expected.push("[DONE]");
        assert_eq!(kinds(&lines), expected, "{what}: {lines:?}");
        assert_eq!(scene.only_outcome().0.outcome, "completed", "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_finish_chunk_waits_for_usage_but_not_long() {
    let scene = one(vec![say(WORD), say(STOP), Beat::Silence]);
    let mut body = post(&scene, r#","stream":true"#).await.into_body().into_data_stream();
    frame(&mut body).await.unwrap();
    let began = tokio::time::Instant::now();
    let finish = frame(&mut body).await.unwrap();
    assert!(finish.contains("\"stop\"") && finish.contains("shoal_metadata"));
    assert!(began.elapsed() <= Duration::from_millis(60), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_cut_stream_ends_with_an_error_and_without_done() {
    let error = r#"{"error":{"message":"boom"}}"#;
    for beats in [
        vec![say(ROLE), say(WORD), Beat::Break(broken())],
        vec![say(ROLE), say(WORD), Beat::End(false)],
        vec![say(ROLE), say(WORD), say(error)],
        vec![say(ROLE), say(WORD), Beat::Silence],
    ] {
        let mut scene = one(beats);
        let lines = lines(post(&scene, r#","stream":true"#).await).await;
        assert_eq!(kinds(&lines), ["chunk", "chunk", "error"]);
        let error: Value = serde_json::from_str(&lines[2]).unwrap();
        assert_eq!(error["error"]["code"], "upstream_interrupted");
        let row = scene.only_outcome().0;
        assert_eq!((row.outcome.as_str(), row.error.as_str()), ("failed", "upstream_interrupted"));
    }
}

#[tokio::test(start_paused = true)]
async fn headers_wait_for_the_commit_point_and_then_say_who_answered() {
    let wait = Beat::Wait(Duration::from_secs(9));
    let mut scene = one(vec![say(ROLE), wait, say(WORD), say(STOP), Beat::End(true)]);
    let response = post_with(&scene, r#","stream":true"#, &[("x-request-id", "mine")]).await;
    assert_eq!(response.status(), 200);
    assert_eq!(header(&response, "x-shoal-upstream"), Some("a"));
    assert_eq!(header(&response, "x-shoal-model"), Some("m"));
    assert_eq!(header(&response, "x-shoal-route-reason"), Some("named"));
    assert_eq!(header(&response, "x-shoal-egress"), Some("none"));
    assert_eq!(header(&response, "x-client-request-id"), Some("mine"));
    let id = header(&response, "x-request-id").unwrap().to_owned();
    assert!(id.starts_with("req_0123abcd_"), "{id}");
    let lines = lines(response).await;
    assert_eq!(kinds(&lines), ["chunk", "chunk", "stop+metadata", "[DONE]"]);
    assert_eq!(scene.only_outcome().0.id, id);
}

#[tokio::test(start_paused = true)]
async fn after_ten_seconds_comments_flow_and_failures_come_in_band() {
    let mut scene = Scene::new(vec![offer("a", "m", &[])]);
    let late = Act::Play(vec![say(ROLE), Beat::Wait(Duration::from_secs(35)), Beat::Break(broken())]);
    scene.script("a/m", [late]);
    let began = tokio::time::Instant::now();
    let response = post(&scene, r#","stream":true"#).await;
    assert_eq!((response.status().as_u16(), began.elapsed().as_secs()), (200, 10));
    assert_eq!(header(&response, "x-shoal-upstream"), None);
    assert_eq!(header(&response, "x-shoal-egress"), None, "nobody knows yet");
    let lines = lines(response).await;
    assert_eq!(kinds(&lines), [": keep-alive", ": keep-alive", ": keep-alive", "error"]);
    assert_eq!(scene.only_outcome().0.outcome, "failed");
}

#[tokio::test(start_paused = true)]
async fn after_ten_seconds_a_late_answer_still_comes_whole() {
    let wait = Beat::Wait(Duration::from_secs(15));
    let mut scene = one(vec![say(ROLE), wait, say(WORD), say(STOP), say(USAGE), Beat::End(true)]);
    let lines = lines(post(&scene, r#","stream":true"#).await).await;
    assert_eq!(kinds(&lines), [": keep-alive", "chunk", "chunk", "stop+metadata", "[DONE]"]);
    assert_eq!(scene.only_outcome().0.outcome, "completed");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_body_cancels_the_upstream() {
    let mut scene = one(vec![say(WORD), say(WORD), Beat::Silence]);
    let mut body = post(&scene, r#","stream":true"#).await.into_body().into_data_stream();
    frame(&mut body).await.unwrap();
    frame(&mut body).await.unwrap();
    assert_eq!(scene.working(), 1);
    drop(body);
    let row = scene.only_outcome().0;
    assert_eq!((row.outcome.as_str(), row.completion_tokens), ("cancelled", 2));
}

#[tokio::test(start_paused = true)]
async fn a_body_dropped_while_comments_flow_cancels_too() {
    let mut scene = Scene::new(vec![offer("a", "m", &[])]);
    scene.script("a/m", [Act::Hang]);
    let mut body = post(&scene, r#","stream":true"#).await.into_body().into_data_stream();
    assert_eq!(frame(&mut body).await.unwrap(), ": keep-alive\n\n");
    drop(body);
    assert_eq!(scene.only_outcome().0.outcome, "cancelled");
}

#[tokio::test(start_paused = true)]
async fn a_whole_answer_carries_its_metadata() {
    let mut scene = one(vec![say(BODY), Beat::End(true)]);
    let response = post(&scene, r#","api_base":"http://evil""#).await;
    assert_eq!(header(&response, "content-type"), Some("application/json"));
    assert!(header(&response, "x-shoal-warnings").unwrap().contains("api_base"));
    let answer = json(response).await;
    let metadata = &answer["shoal_metadata"];
    assert_eq!(answer["choices"][0]["message"]["content"], "hi");
    assert_eq!((&metadata["target"], &metadata["upstream"]), (&"local".into(), &"a".into()));
    assert_eq!((&metadata["attempts"], &metadata["egress"]), (&1.into(), &"none".into()));
    assert_eq!(metadata["confidence"], Value::Null);
    assert!(!String::from_utf8_lossy(&scene.asked()[0].body).contains("evil"));
    assert_eq!(scene.only_outcome().0.completion_tokens, 4);
}

#[tokio::test(start_paused = true)]
async fn failures_have_their_status_and_time_to_come_back() {
    let mut full = crate::upstream::UpstreamError::retryable(503, "overloaded", "full");
    full.retry_after = Some(Duration::from_millis(10));
    let mut scene = Scene::new(vec![offer("a", "m", &[])]);
    scene.script("a/m", [Act::Fail(full)]);
    let response = post(&scene, "").await;
    assert_eq!(response.status(), 503);
    assert_eq!(header(&response, "retry-after"), Some("1"));
    assert_eq!(header(&response, "x-shoal-egress"), Some("none"));
    assert_eq!(json(response).await["error"]["code"], "overloaded");
    assert_eq!(scene.only_outcome().0.status, 503);
}

#[tokio::test(start_paused = true)]
async fn a_restricted_request_never_meets_an_engine_that_sends_it_on() {
    let cases: [&[(&str, &str)]; 2] = [
        &[("x-shoal-data-class", "restricted")],
        // The higher of two counts, whatever their order.
        &[("x-shoal-data-class", "restricted"), ("x-shoal-data-class", "public")],
    ];
    for headers in cases {
        let mut cloudy = offer("a", "m", &[]);
        std::sync::Arc::make_mut(&mut cloudy.model).remote = true;
        let mut scene = Scene::new(vec![cloudy]);
        let response = post_with(&scene, "", headers).await;
        assert_eq!(response.status(), 403);
        assert_eq!(json(response).await["error"]["code"], "policy_blocked");
        assert!(scene.tried().is_empty());
        assert_eq!(scene.only_outcome().0.outcome, "rejected");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_is_asked_for_and_a_local_one_keeps_requests_in_the_mesh() {
    let mut scene = Scene::new(vec![offer("a", "m", &[])]);
    scene.front.no_auth = false;
    let key = scene.front.keys.create("k", true, None).unwrap();
    assert_eq!(post(&scene, "").await.status(), 401);
    assert_eq!(post_with(&scene, "", &[("x-api-key", "sk-shoal-aaaaaaaa_x")]).await.status(), 401);
    scene.script("a/m", [whole_answer()]);
    let bearer = format!("Bearer {}", key.text);
    let answer = json(post_with(&scene, "", &[("authorization", &bearer)]).await).await;
    assert_eq!(answer["shoal_metadata"]["data_class"], "restricted");
    assert_eq!(scene.only_outcome().0.key_id, key.record.id);
}

#[tokio::test(start_paused = true)]
async fn mistakes_are_answered_before_anything_is_accepted() {
    let scene = Scene::new(vec![offer("a", "m", &[])]);
    for (extra, headers, status) in [
        (r#","n":0"#, &[][..], 400),
        ("", &[("content-encoding", "gzip")][..], 415),
        ("", &[("x-shoal-data-class", "secret")][..], 400),
    ] {
        let response = post_with(&scene, extra, headers).await;
        assert_eq!(response.status().as_u16(), status);
        assert!(header(&response, "x-request-id").is_some());
        assert_eq!(header(&response, "x-shoal-egress"), Some("none"));
    }
    assert_eq!(scene.pipeline.sinks.totals.of("accepted"), 0);
}

#[tokio::test(start_paused = true)]
async fn the_base_url_works_without_v1() {
    let scene = Scene::new(vec![offer("a", "m", &[])]);
    scene.script("a/m", [stream_answer()]);
    let body = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}"#;
    let request = Request::post("/chat/completions").body(Body::from(body)).unwrap();
    let response = app(&scene.front).oneshot(request).await.unwrap();
    assert_eq!(lines(response).await.last().map(String::as_str), Some("[DONE]"));
}
