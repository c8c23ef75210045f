//! What a client of the Responses API sees, through the routes, over scripted upstreams.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::middleware;
use axum::response::Response;
use http::{Method, Request};
use serde_json::{Value, json};
use shoal_routing::{ModelSpec, Offer, UpstreamId};
use tower::ServiceExt;

use super::routes;
use crate::api::auth;
use crate::api::shape::tell_errors;
use crate::testing::{
    Act, BODY, Beat, ROLE, STOP, Scene, USAGE, WORD, broken, offer, say, stream_answer, whole_answer,
};

fn app(scene: &Scene) -> Router {
    routes()
        .layer(middleware::from_fn_with_state(scene.front.clone(), auth::require_key))
        .layer(middleware::from_fn(tell_errors))
        .with_state(scene.front.clone())
}

fn scene(acts: impl IntoIterator<Item = Act>) -> Scene {
    let scene = Scene::new(vec![offer("a", "m", &[])]);
    scene.script("a/m", acts);
    scene
}

async fn ask(scene: &Scene, method: Method, path: &str, key: &str, body: Value) -> Response {
    let mut request = Request::builder().method(method).uri(path);
    if !key.is_empty() {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    app(scene).oneshot(request.body(body).unwrap()).await.unwrap()
}

async fn create(scene: &Scene, body: Value) -> Response {
    ask(scene, Method::POST, "/v1/responses", "", body).await
}

async fn get(scene: &Scene, path: &str, key: &str) -> (u16, Value) {
    json_of(ask(scene, Method::GET, path, key, Value::Null).await).await
}

async fn text_of(response: Response) -> String {
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn json_of(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    (status, serde_json::from_str(&text_of(response).await).unwrap())
}

fn asked(scene: &Scene, place: usize) -> Value {
    serde_json::from_slice(&scene.asked()[place].body).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_response_carries_its_text_and_our_metadata() {
    let mut scene = scene([whole_answer()]);
    let tools = json!([{"type": "web_search"}]);
    let response = create(&scene, json!({"model": "m", "input": "x", "tools": tools, "store": false})).await;
    assert!(response.headers()["x-shoal-warnings"].to_str().unwrap().contains("web_search"));
    assert_eq!(response.headers()["x-shoal-model"], "m");
    let (status, body) = json_of(response).await;
    assert_eq!((status, &body["object"], &body["status"]), (200, &json!("response"), &json!("completed")));
    assert_eq!(body["output"][0]["content"][0]["text"], "hi");
    assert_eq!(body["usage"]["total_tokens"], 7);
    assert_eq!(body["shoal_metadata"]["upstream"], "a");
    assert_eq!(body["tools"], tools, "as the client sent them");
    assert_eq!(asked(&scene, 0)["messages"], json!([{"role": "user", "content": "x"}]));
    assert_eq!(scene.only_outcome().0.outcome, "completed");
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_the_response_and_its_metadata() {
    let mut scene = scene([stream_answer()]);
    let response = create(&scene, json!({"model": "m", "input": "x", "stream": true})).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = text_of(response).await;
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: response.")).collect();
    assert_eq!((names[0], names.last()), ("created", Some(&"completed")));
    let last: Value =
        serde_json::from_str(text.lines().rev().find_map(|line| line.strip_prefix("data: ")).unwrap())
            .unwrap();
    assert_eq!(last["response"]["output"][0]["content"][0]["text"], "hi");
    assert_eq!(last["response"]["usage"]["output_tokens"], 4);
    assert_eq!(last["response"]["shoal_metadata"]["target"], "local");
    assert!(!text.contains("[DONE]"));
    assert_eq!(scene.only_outcome().0.outcome, "completed");
}

#[tokio::test(start_paused = true)]
async fn a_cut_stream_fails_in_band_and_nothing_of_it_is_kept() {
    let beats = vec![say(ROLE), say(WORD), Beat::Break(broken())];
    let mut scene = scene([Act::Play(beats)]);
    let text = text_of(create(&scene, json!({"model": "m", "input": "x", "stream": true})).await).await;
    assert!(text.contains("event: response.failed") && !text.contains("response.completed"));
    assert!(text.contains("upstream_interrupted"));
    let first: Value =
        serde_json::from_str(text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap()).unwrap();
    let id = first["response"]["id"].as_str().unwrap();
    assert_eq!(get(&scene, &format!("/v1/responses/{id}"), "").await.0, 404);
    assert_eq!(scene.only_outcome().0.outcome, "failed");
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_announced_by_comments_that_no_client_sees() {
    let wait = Beat::Wait(Duration::from_secs(15));
    let scene = scene([Act::Play(vec![say(ROLE), wait, say(WORD), say(STOP), say(USAGE), Beat::End(true)])]);
    let text = text_of(create(&scene, json!({"model": "m", "input": "x", "stream": true})).await).await;
    assert!(text.starts_with(": keep-alive\n\nevent: response.created\n"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_conversation_goes_on_from_what_was_kept() {
    let scene = scene([whole_answer(), stream_answer(), whole_answer()]);
    let (_, first) =
        json_of(create(&scene, json!({"model": "m", "input": "one", "instructions": "Be brief."})).await)
            .await;
    assert_eq!(first["store"], true);
    let next = json!({"model": "m", "input": "two", "previous_response_id": first["id"], "stream": true});
    let text = text_of(create(&scene, next).await).await;
    let said = |role: &str, text: &str| json!({"role": role, "content": text});
    let expected = json!([said("user", "one"), said("assistant", "hi"), said("user", "two")]);
    assert_eq!(asked(&scene, 1)["messages"], expected, "instructions are not carried over");
    let second: Value =
        serde_json::from_str(text.lines().rev().find_map(|line| line.strip_prefix("data: ")).unwrap())
            .unwrap();
    let second = &second["response"];
    assert_eq!(second["previous_response_id"], first["id"]);

    let reference = json!({"type": "item_reference", "id": first["output"][0]["id"]});
    let third = json!({"model": "m", "previous_response_id": second["id"], "input": [reference, {"role": "user", "content": "three"}]});
    assert_eq!(create(&scene, third).await.status(), 200);
    let roles: Vec<Value> =
        asked(&scene, 2)["messages"].as_array().unwrap().iter().map(|m| m["role"].clone()).collect();
    assert_eq!(json!(roles), json!(["user", "assistant", "user", "assistant", "user"]));
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_is_shown_and_deleted_and_belongs_to_one_key() {
    let mut scene = scene([whole_answer(), whole_answer()]);
    scene.front.no_auth = false;
    let mine = scene.front.keys.create("mine", false, None).unwrap().text;
    let other = scene.front.keys.create("other", false, None).unwrap().text;
    let made = ask(&scene, Method::POST, "/v1/responses", &mine, json!({"model": "m", "input": "x"})).await;
    let (_, made) = json_of(made).await;
    let path = format!("/v1/responses/{}", made["id"].as_str().unwrap());
    assert_eq!(get(&scene, &path, &mine).await, (200, made.clone()));
    assert_eq!(get(&scene, &path, &other).await.0, 404);
    let go_on = json!({"model": "m", "input": "y", "previous_response_id": made["id"]});
    let (status, error) = json_of(ask(&scene, Method::POST, "/v1/responses", &other, go_on).await).await;
    assert_eq!((status, &error["error"]["code"]), (404, &json!("previous_response_not_found")));

    let (_, items) = get(&scene, &format!("{path}/input_items"), &mine).await;
    assert_eq!(items["data"][0]["content"], json!([{"type": "input_text", "text": "x"}]));
    assert!(items["data"][0]["id"].is_string());

    let delete = |key| ask(&scene, Method::DELETE, &path, key, Value::Null);
    assert_eq!(delete(&other).await.status(), 404);
    assert_eq!(json_of(delete(&mine).await).await.1["deleted"], true);
    assert_eq!(get(&scene, &path, &mine).await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn the_disk_holds_nothing_that_was_said() {
    let secret = "the-launch-code-is-0000";
    let beats = vec![say(&BODY.replace("\"hi\"", "\"an-answer-for-your-eyes\"")), Beat::End(true)];
    let mut scene = scene([Act::Play(beats)]);
    scene.front.no_auth = false;
    let key = scene.front.keys.create("k", false, None).unwrap().text;
    let made = ask(&scene, Method::POST, "/v1/responses", &key, json!({"model": "m", "input": secret})).await;
    let (_, made) = json_of(made).await;
    assert_eq!(made["store"], true);
    let file = scene.folder().join("shoal.db");
    let (id, folder) = (made["id"].as_str().unwrap().to_owned(), scene.folder().to_owned());
    let on_disk = || {
        let count = "SELECT count(*) FROM responses WHERE id = ?1";
        rusqlite::Connection::open(&file)
            .unwrap()
            .query_row(count, [&id], |row| row.get::<_, i64>(0))
            .unwrap()
            == 1
    };
    while !on_disk() {
        tokio::task::yield_now().await;
    }
    for entry in std::fs::read_dir(folder).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        for said in [secret, "an-answer-for-your-eyes", key.as_str()] {
            assert!(!bytes.windows(said.len()).any(|part| part == said.as_bytes()), "{said}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_must_stay_here_goes_nowhere_else_one_turn_later() {
    let marks =
        [json!({"data_class": "restricted"}), json!({"mode": "local"}), json!({"data_class": "internal"})];
    for (place, mark) in marks.into_iter().enumerate() {
        let spec = ModelSpec::new("openai/gpt-4o", "openai");
        let cloud = Offer::new(UpstreamId::Provider("openai".into()), Arc::new(spec));
        let scene = Scene::new(vec![offer("a", "m", &[]), cloud]);
        scene.script("a/m", [whole_answer()]);
        let turn = json!({"model": "m", "input": "the salaries", "metadata": mark});
        let (_, first) = json_of(create(&scene, turn).await).await;
        assert_eq!(first["store"], true);
        let reference = json!([{"type": "item_reference", "id": first["output"][0]["id"]}, {"role": "user", "content": "go on"}]);
        for more in [
            json!({"model": "openai/gpt-4o", "input": "go on", "previous_response_id": first["id"]}),
            json!({"model": "openai/gpt-4o", "input": reference}),
        ] {
            scene.script("openai/openai/gpt-4o", [whole_answer()]);
            let (status, answer) = json_of(create(&scene, more).await).await;
            let expected = if place == 2 { 200 } else { 403 };
            assert_eq!(status, expected, "{place} {answer}");
        }
        assert_eq!(scene.asked().len(), if place == 2 { 3 } else { 1 });
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_to_be_stored_is_not_kept() {
    let scene = scene([whole_answer()]);
    let (_, made) = json_of(create(&scene, json!({"model": "m", "input": "x", "store": false})).await).await;
    assert_eq!(made["store"], false);
    assert_eq!(get(&scene, &format!("/v1/responses/{}", made["id"].as_str().unwrap()), "").await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn a_response_of_a_node_that_is_away_names_the_node() {
    let scene = scene([]);
    let id = format!("resp_zz99zz99_{}", "0".repeat(32));
    let (status, error) =
        json_of(create(&scene, json!({"model": "m", "input": "x", "previous_response_id": id})).await).await;
    assert_eq!((status, &error["error"]["code"]), (503, &json!("node_away")));
    assert!(error["error"]["message"].as_str().unwrap().contains("zz99zz99"));
    let (status, error) =
        json_of(create(&scene, json!({"model": "m", "input": "x", "previous_response_id": "resp_1"})).await)
            .await;
    assert_eq!((status, &error["error"]["param"]), (404, &json!("previous_response_id")));
}

#[tokio::test(start_paused = true)]
async fn mistakes_are_told_before_anything_is_accepted() {
    let scene = scene([]);
    for (body, param) in [
        (json!({"model": "m"}), "input"),
        (json!({"input": "x"}), "model"),
        (json!({"model": "m", "input": "x", "background": true}), "background"),
        (json!({"model": "m", "input": "x", "temperature": 9}), "temperature"),
    ] {
        let (status, error) = json_of(create(&scene, body).await).await;
        assert_eq!((status, &error["error"]["param"]), (400, &json!(param)));
    }
    assert_eq!(scene.pipeline.sinks.totals.of("accepted"), 0);
    let (status, _) =
        json_of(ask(&scene, Method::POST, "/responses/resp_1/cancel", "", Value::Null).await).await;
    assert_eq!(status, 400);
    let (status, error) =
        json_of(ask(&scene, Method::POST, "/v1/responses/compact", "", json!({"input": "x"})).await).await;
    assert_eq!((status, &error["error"]["code"]), (400, &json!("unsupported")));
}
