//! What Ollama's clients see, through the routes, over scripted upstreams; and what the voice says on its own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::middleware;
use axum::response::Response;
use bytes::Bytes;
use http::{Method, Request};
use proptest::prelude::*;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::routes;
use super::voice::{Embeddings, Form, Ollama, Times, Way};
use crate::api::auth;
use crate::api::error::ApiError;
use crate::api::shape::tell_errors;
use crate::api::voice::Voice;
use crate::testing::{Act, Beat, ROLE, Scene, WORD, broken, offer, say, stream_answer, whole_answer};

fn app(scene: &Scene) -> Router {
    routes()
        .layer(middleware::from_fn_with_state(scene.front.clone(), auth::require_key))
        .layer(middleware::from_fn(tell_errors))
        .with_state(scene.front.clone())
}

fn scene(acts: impl IntoIterator<Item = Act>) -> Scene {
    let scene = Scene::new(vec![offer("a", "m:latest", &[])]);
    scene.script("a/m:latest", acts);
    scene
}

async fn ask(scene: &Scene, method: Method, path: &str, body: Value) -> Response {
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let request = Request::builder().method(method).uri(path).body(body).unwrap();
    app(scene).oneshot(request).await.unwrap()
}

async fn post(scene: &Scene, path: &str, body: Value) -> Response {
    ask(scene, Method::POST, path, body).await
}

async fn lines(response: Response) -> Vec<Value> {
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let text = std::str::from_utf8(&bytes).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn only(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let mut lines = lines(response).await;
    assert_eq!(lines.len(), 1);
    (status, lines.remove(0))
}

fn question() -> Value {
    json!([{"role": "user", "content": "x"}])
}

#[tokio::test(start_paused = true)]
async fn a_chat_streams_lines_unless_asked_not_to() {
    let mut scene = scene([stream_answer()]);
    let response =
        post(&scene, "/api/chat", json!({"model": "m", "messages": question(), "options": {"num_ctx": 8}}))
            .await;
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    assert!(response.headers()["x-shoal-warnings"].to_str().unwrap().contains("num_ctx"));
    let lines = lines(response).await;
    assert_eq!((&lines[0]["message"]["content"], &lines[0]["done"]), (&json!("hi"), &json!(false)));
    let last = lines.last().unwrap();
    assert_eq!((lines.len(), &last["done"], &last["done_reason"]), (2, &json!(true), &json!("stop")));
    assert_eq!((&last["prompt_eval_count"], &last["eval_count"]), (&json!(3), &json!(4)));
    assert_eq!(last["shoal_metadata"]["upstream"], "a");
    assert_eq!(last["model"], "m", "the name that the client knows");
    assert_eq!(serde_json::from_slice::<Value>(&scene.asked()[0].body).unwrap()["model"], "m:latest");
    assert_eq!(scene.only_outcome().0.outcome, "completed");
}

#[tokio::test(start_paused = true)]
async fn a_whole_answer_is_one_object() {
    let scene = scene([whole_answer(), whole_answer()]);
    let (_, chat) = only(
        post(&scene, "/api/chat", json!({"model": "m:latest", "messages": question(), "stream": false}))
            .await,
    )
    .await;
    assert_eq!(chat["message"], json!({"role": "assistant", "content": "hi"}));
    assert_eq!((&chat["done"], &chat["eval_count"]), (&json!(true), &json!(4)));
    let (_, text) =
        only(post(&scene, "/api/generate", json!({"model": "m", "prompt": "y", "stream": false})).await)
            .await;
    assert_eq!((&text["response"], &text["done_reason"]), (&json!("hi"), &json!("stop")));
}

#[tokio::test(start_paused = true)]
async fn a_cut_stream_ends_with_an_error_line() {
    let mut scene = scene([Act::Play(vec![say(ROLE), say(WORD), Beat::Break(broken())])]);
    let lines = lines(post(&scene, "/api/chat", json!({"model": "m", "messages": question()})).await).await;
    assert_eq!(lines.len(), 2);
    assert!(lines[1]["error"].is_string() && lines[1].get("done").is_none(), "{lines:?}");
    assert_eq!(scene.only_outcome().0.outcome, "failed");
}

#[tokio::test(start_paused = true)]
async fn no_byte_comes_before_a_late_answer() {
    let late = vec![
        say(ROLE),
        Beat::Wait(Duration::from_secs(45)),
        say(WORD),
        say(crate::testing::STOP),
        Beat::End(true),
    ];
    let scene = scene([Act::Play(late)]);
    let lines = lines(post(&scene, "/api/chat", json!({"model": "m", "messages": question()})).await).await;
    assert_eq!(lines.last().unwrap()["done"], true);
}

#[tokio::test(start_paused = true)]
async fn errors_have_one_sentence() {
    let mut scene = scene([]);
    let (status, error) =
        only(post(&scene, "/api/chat", json!({"model": "other", "messages": question()})).await).await;
    assert_eq!(status, 404);
    assert!(error["error"].is_string());
    let (status, error) =
        only(post(&scene, "/api/generate", json!({"model": "m", "prompt": "x", "raw": true})).await).await;
    assert_eq!((status, error["error"].as_str().unwrap().contains("raw")), (400, true));
    for managed in ["pull", "create", "push", "copy"] {
        assert_eq!(only(post(&scene, &format!("/api/{managed}"), json!({"model": "m"})).await).await.0, 501);
    }
    assert_eq!(only(ask(&scene, Method::DELETE, "/api/delete", json!({"model": "m"})).await).await.0, 501);
    scene.front.no_auth = false;
    let (status, error) = only(ask(&scene, Method::GET, "/api/tags", Value::Null).await).await;
    assert_eq!((status, error["error"].is_string()), (401, true));
}

#[tokio::test(start_paused = true)]
async fn models_are_listed_and_shown() {
    let mut taking_pictures = offer("b", "eye", &[]);
    let spec = Arc::make_mut(&mut taking_pictures.model);
    (spec.vision, spec.tools, spec.context) = (Some(true), Some(false), Some(shoal_routing::Tokens(4096)));
    let scene = Scene::new(vec![offer("a", "m:latest", &[]), taking_pictures]);
    let (_, tags) = only(ask(&scene, Method::GET, "/api/tags", Value::Null).await).await;
    let names: Vec<&str> =
        tags["models"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert!(["eye", "m:latest", "auto"].iter().all(|name| names.contains(name)), "{names:?}");
    let (_, running) = only(ask(&scene, Method::GET, "/api/ps", Value::Null).await).await;
    assert_eq!(running["models"].as_array().unwrap().len(), 2);
    let (_, eye) = only(post(&scene, "/api/show", json!({"model": "eye"})).await).await;
    assert_eq!(eye["capabilities"], json!(["completion", "vision"]));
    assert_eq!(eye["model_info"]["shoal.context_length"], 4096);
    assert_eq!(post(&scene, "/api/show", json!({"name": "m"})).await.status(), 200);
    assert_eq!(post(&scene, "/api/show", json!({"model": "auto:latest"})).await.status(), 200);
    assert_eq!(post(&scene, "/api/show", json!({"model": "nobody"})).await.status(), 404);
    let (_, version) = only(ask(&scene, Method::GET, "/api/version", Value::Null).await).await;
    assert!(version["version"].as_str().unwrap().split('.').count() == 3);
}

#[tokio::test(start_paused = true)]
async fn a_model_is_loaded_without_being_asked_anything() {
    let scene = scene([]);
    let (_, chat) = only(post(&scene, "/api/chat", json!({"model": "m"})).await).await;
    assert_eq!((&chat["done"], &chat["done_reason"]), (&json!(true), &json!("load")));
    assert!(post(&scene, "/api/generate", json!({"model": "m"})).await.status().is_success());
    assert!(scene.tried().is_empty());
}

#[tokio::test(start_paused = true)]
async fn embeddings_come_in_both_forms() {
    let mut embedder = offer("a", "e", &[]);
    Arc::make_mut(&mut embedder.model).embeddings = Some(true);
    let scene = Scene::new(vec![embedder]);
    let two = r#"{"data":[{"index":1,"embedding":[0.5,1.50]},{"index":0,"embedding":[0.25]}],"usage":{"prompt_tokens":3}}"#;
    let one = r#"{"data":[{"index":0,"embedding":[0.25]}]}"#;
    scene.script("a/e", [two, one].map(|body| Act::Play(vec![say(body), Beat::End(true)])));
    let (_, new) =
        only(post(&scene, "/api/embed", json!({"model": "e:latest", "input": ["a", "b"]})).await).await;
    assert_eq!((&new["embeddings"], &new["prompt_eval_count"]), (&json!([[0.25], [0.5, 1.5]]), &json!(3)));
    let (_, old) = only(post(&scene, "/api/embeddings", json!({"model": "e", "prompt": "a"})).await).await;
    assert_eq!(old["embedding"], json!([0.25]));
}

/// A voice for which each look at the clock is a second later.
fn voice(way: Way, thinks: bool) -> Ollama {
    let looks = std::sync::atomic::AtomicU64::new(0);
    let elapsed = move || Duration::from_secs(looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1);
    Ollama::new(way, "m".into(), thinks, Times { came_ms: 1_000, elapsed: Box::new(elapsed) })
}

fn told(voice: &mut Ollama, chunks: &[Value]) -> Vec<Value> {
    let mut out = VecDeque::new();
    for chunk in chunks {
        voice.payload(chunk.to_string().as_bytes(), &mut out);
    }
    voice.end(&mut out);
    out.iter().map(|line| serde_json::from_slice(line.strip_suffix(b"\n").unwrap()).unwrap()).collect()
}

fn delta(delta: Value) -> Value {
    json!({"choices": [{"delta": delta}]})
}

#[test]
fn calls_are_told_whole_with_their_arguments_as_objects() {
    let part = |arguments: &str, name: Value| {
        delta(
            json!({"tool_calls": [{"index": 0, "id": "c", "function": {"name": name, "arguments": arguments}}]}),
        )
    };
    let broken =
        delta(json!({"tool_calls": [{"index": 1, "function": {"name": "g", "arguments": "{\"cut"}}]}));
    let chunks = [
        delta(json!({"reasoning_content": "hm"})),
        part("{\"a\"", json!("f")),
        part(":1}", Value::Null),
        broken,
        json!({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}),
        json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}),
    ];
    let lines = told(&mut voice(Way::Chat, true), &chunks);
    assert_eq!(lines[0]["message"], json!({"role": "assistant", "content": "", "thinking": "hm"}));
    assert_eq!(
        lines[1]["message"]["tool_calls"],
        json!([{"id": "c", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}},
               {"function": {"index": 1, "name": "g", "arguments": {}}}])
    );
    assert_eq!(
        lines[2],
        json!({"model": "m", "created_at": "1970-01-01T00:00:04Z", "message": {"role": "assistant", "content": ""},
               "done": true, "done_reason": "stop", "total_duration": 3_000_000_000_u64, "load_duration": 0,
               "prompt_eval_count": 3, "prompt_eval_duration": 1_000_000_000, "eval_count": 4,
               "eval_duration": 2_000_000_000})
    );
}

#[test]
fn thinking_is_told_only_where_it_is_wanted() {
    let chunks = [delta(json!({"reasoning": "hm"})), delta(json!({"content": "x"}))];
    let lines = told(&mut voice(Way::Generate, false), &chunks);
    assert_eq!((lines.len(), &lines[0]["response"], lines[0].get("thinking")), (2, &json!("x"), None));
    let lines = told(&mut voice(Way::Generate, true), &chunks);
    assert_eq!((lines.len(), &lines[0]["thinking"]), (3, &json!("hm")));
}

#[test]
fn after_an_error_nothing_looks_like_a_good_end() {
    let (mut voice, mut out) = (voice(Way::Chat, true), VecDeque::new());
    voice.payload(delta(json!({"content": "x"})).to_string().as_bytes(), &mut out);
    voice.fail(&ApiError::new(502, "upstream_interrupted", "it broke"), &mut out);
    voice.end(&mut out);
    voice.payload(delta(json!({"content": "x"})).to_string().as_bytes(), &mut out);
    assert_eq!(out.len(), 2);
    assert_eq!(out[1], Bytes::from_static(b"{\"error\":\"it broke\",\"code\":\"upstream_interrupted\"}\n"));
    let mut voice = Embeddings {
        form: Form::Embed,
        model: "m".into(),
        times: Times { came_ms: 0, elapsed: Box::new(Duration::default) },
    };
    assert_eq!(voice.whole(Bytes::from_static(b"{}")).unwrap_err().status, 502);
}

#[test]
fn calls_without_end_are_an_error() {
    let (mut voice, mut out) = (voice(Way::Chat, true), VecDeque::new());
    for index in 0..200 {
        let part = json!({"index": index, "id": "c", "function": {"name": "f", "arguments": "{}"}});
        voice.payload(delta(json!({"tool_calls": [part]})).to_string().as_bytes(), &mut out);
    }
    voice.end(&mut out);
    assert_eq!(out.len(), 1);
    assert!(String::from_utf8_lossy(&out[0]).contains("more than 128 tools"));
}

proptest! {
    #[test]
    fn however_it_is_cut_the_lines_add_up(
        pieces in prop::collection::vec((any::<bool>(), "[a-zé\"\\\\\n]{0,4}"), 0..12),
    ) {
        let chunks: Vec<Value> = pieces
            .iter()
            .map(|(thought, piece)| delta(if *thought { json!({"reasoning": piece}) } else { json!({"content": piece}) }))
            .collect();
        let lines = told(&mut voice(Way::Chat, true), &chunks);
        let joined = |field: &str| lines.iter().filter_map(|line| line["message"][field].as_str()).collect::<String>();
        let said = |wanted: bool| pieces.iter().filter(|(thought, _)| *thought == wanted).map(|(_, piece)| piece.as_str()).collect::<String>();
        prop_assert_eq!((joined("content"), joined("thinking")), (said(false), said(true)));
        prop_assert_eq!(lines.iter().filter(|line| line["done"] == true).count(), 1);
        prop_assert_eq!(&lines.last().unwrap()["done"], &json!(true));
    }
}
