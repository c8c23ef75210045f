//! Requests with an `Idempotency-Key` through the inference endpoints, over scripted upstreams.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::middleware;
use axum::response::Response;
use futures_util::StreamExt;
use http::Request;
use tower::ServiceExt;

use super::{Answers, IdempotencySettings, answer_once};
use crate::api::front::Front;
use crate::api::{auth, inference};
use crate::testing::{Act, Beat, ROLE, STOP, Scene, WORD, broken, offer, say, stream_answer, whole_answer};

fn app(front: &Front) -> Router {
    inference::routes::<Front>()
        .layer(middleware::from_fn_with_state(front.clone(), answer_once))
        .layer(middleware::from_fn_with_state(front.clone(), auth::require_key))
        .with_state(front.clone())
}

fn scene(acts: impl IntoIterator<Item = Act>) -> Scene {
    let scene = Scene::new(vec![offer("a", "m", &[])]);
    scene.script("a/m", acts);
    scene
}

async fn ask(scene: &Scene, name: &str, text: &str, stream: bool) -> Response {
    ask_as(scene, None, name, text, stream).await
}

async fn ask_as(scene: &Scene, key: Option<&str>, name: &str, text: &str, stream: bool) -> Response {
    let body =
        format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}],"stream":{stream}}}"#);
    let mut request = Request::post("/v1/chat/completions").header("idempotency-key", name);
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    app(&scene.front).oneshot(request.body(Body::from(body)).unwrap()).await.unwrap()
}

async fn bytes(response: Response) -> Vec<u8> {
    axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec()
}

fn is_replay(response: &Response) -> bool {
    response.headers().get("x-shoal-idempotent-replay").is_some_and(|value| value == "true")
}

#[tokio::test(start_paused = true)]
async fn a_finished_answer_is_given_again_with_the_same_bytes() {
    for (stream, act) in [(false, whole_answer()), (true, stream_answer())] {
        let scene = scene([act]);
        let first = ask(&scene, "k", "x", stream).await;
        assert!(!is_replay(&first));
        let id = first.headers()["x-request-id"].clone();
        let first = bytes(first).await;
        let second = ask(&scene, "k", "x", stream).await;
        assert!(is_replay(&second));
        assert_eq!(second.headers()["x-request-id"], id);
        assert_eq!(bytes(second).await, first);
        assert_eq!(scene.asked().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_joins_the_stream_that_runs_and_outlives_the_first_client() {
    let pause = Beat::Wait(Duration::from_secs(1));
    let scene = scene([Act::Play(vec![
        say(ROLE),
        say(WORD),
        pause.clone(),
        say(WORD),
        pause,
        say(STOP),
        Beat::End(true),
    ])]);
    let mut first = ask(&scene, "k", "x", true).await.into_body().into_data_stream();
    let head = first.next().await.unwrap().unwrap();
    let second = ask(&scene, "k", "x", true).await;
    assert!(is_replay(&second));
    drop(first);
    let all = bytes(second).await;
    assert!(all.starts_with(&head), "from the start");
    assert!(all.ends_with(b"data: [DONE]\n\n"), "to the end");
    assert_eq!(scene.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_lost_the_connection_comes_back_to_the_same_answer() {
    let pause = Beat::Wait(Duration::from_secs(2));
    let beats = vec![say(ROLE), say(WORD), pause.clone(), say(WORD), pause, say(STOP), Beat::End(true)];
    let scene = scene([Act::Play(beats)]);
    let mut first = ask(&scene, "k", "x", true).await.into_body().into_data_stream();
    let head = first.next().await.unwrap().unwrap();
    drop(first);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let again = ask(&scene, "k", "x", true).await;
    assert!(is_replay(&again));
    let all = bytes(again).await;
    assert!(all.starts_with(&head) && all.ends_with(b"data: [DONE]\n\n"));
    assert_eq!(scene.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn when_nobody_comes_back_the_work_is_cancelled_and_a_retry_runs_anew() {
    let endless = Act::Play(vec![say(ROLE), say(WORD), Beat::Silence]);
    let mut scene = scene([endless, stream_answer()]);
    let mut first = ask(&scene, "k", "x", true).await.into_body().into_data_stream();
    first.next().await.unwrap().unwrap();
    assert_eq!(scene.working(), 1);
    drop(first);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(scene.working(), 1, "the client may come back");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(scene.working(), 0, "the upstream's work is dropped");
    assert_eq!(scene.only_outcome().0.outcome, "cancelled");
    let again = ask(&scene, "k", "x", true).await;
    assert!(!is_replay(&again));
    assert!(bytes(again).await.ends_with(b"data: [DONE]\n\n"));
}

#[tokio::test(start_paused = true)]
async fn failures_are_not_kept() {
    let cut = Act::Play(vec![say(ROLE), say(WORD), Beat::Break(broken())]);
    for (stream, act) in [(false, Act::Fail(broken())), (true, cut)] {
        let scene = scene([act, if stream { stream_answer() } else { whole_answer() }]);
        let failed = bytes(ask(&scene, "k", "x", stream).await).await;
        assert!(String::from_utf8(failed).unwrap().contains("\"error\""));
        // The task that recorded it has a last step of its own.
        tokio::task::yield_now().await;
        let again = ask(&scene, "k", "x", stream).await;
        assert!(again.status().is_success() && !is_replay(&again));
        bytes(again).await;
        assert_eq!(scene.asked().len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn another_body_under_the_same_name_is_refused() {
    let scene = scene([whole_answer()]);
    bytes(ask(&scene, "k", "x", false).await).await;
    let other = ask(&scene, "k", "y", false).await;
    assert_eq!(other.status(), 422);
    let text = String::from_utf8(bytes(other).await).unwrap();
    assert!(text.contains("idempotency_key_reused"), "{text}");
    let unreadable = ask(&scene, &"k".repeat(256), "x", false).await;
    assert_eq!(unreadable.status(), 400);
}

#[tokio::test(start_paused = true)]
async fn a_name_means_nothing_under_another_api_key() {
    let scene = scene([whole_answer(), whole_answer()]);
    let keys = ["one", "two"].map(|name| scene.front.keys.create(name, false, None).unwrap().text);
    for key in &keys {
        let answer = ask_as(&scene, Some(key), "k", "x", false).await;
        assert!(answer.status().is_success() && !is_replay(&answer));
        bytes(answer).await;
    }
    assert!(is_replay(&ask_as(&scene, Some(&keys[0]), "k", "x", false).await));
    assert_eq!(scene.asked().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_is_bounded_in_time_count_and_bytes() {
    let settings = IdempotencySettings {
        keep: Duration::from_secs(60),
        entries: 3,
        bytes: 12 << 10,
        ..Default::default()
    };
    let mut scene = scene((0..6).map(|_| whole_answer()));
    scene.front.answers = Answers::new(settings);
    for name in ["a", "b", "c", "d"] {
        bytes(ask(&scene, name, "x", false).await).await;
        tokio::task::yield_now().await;
    }
    let (entries, held) = scene.front.answers.0.held();
    assert!(entries == 3 && held <= settings.bytes, "{entries} answers, {held} bytes");
    assert!(is_replay(&ask(&scene, "d", "x", false).await));
    assert!(!is_replay(&ask(&scene, "a", "x", false).await), "the oldest went first");
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(scene.front.answers.0.held(), (0, 0));
    assert!(!is_replay(&ask(&scene, "d", "x", false).await));
}

#[tokio::test(start_paused = true)]
async fn kept_answers_share_one_task_that_ends_with_the_last_of_them() {
    let scene = scene((0..30).map(|_| whole_answer()));
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    bytes(ask(&scene, "first", "x", false).await).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    let with_one = tasks();
    for name in 1..30 {
        bytes(ask(&scene, &format!("{name}"), "x", false).await).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((scene.front.answers.0.held().0, tasks()), (30, with_one));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!((scene.front.answers.0.held().0, tasks()), (29, with_one), "each has its own time");
    assert!(is_replay(&ask(&scene, "29", "x", false).await));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!((scene.front.answers.0.held(), tasks()), ((0, 0), with_one - 1));
}

#[tokio::test(start_paused = true)]
async fn an_answer_too_large_to_keep_still_reaches_its_reader() {
    let word = format!(r#"{{"choices":[{{"delta":{{"content":"{}"}}}}]}}"#, "x".repeat(1000));
    let mut beats = vec![say(ROLE)];
    beats.extend((0..1000).map(|_| say(&word)));
    beats.extend([say(STOP), Beat::End(true)]);
    let mut scene = scene([Act::Play(beats), stream_answer()]);
    scene.front.answers = Answers::new(IdempotencySettings { bytes: 64 << 10, ..Default::default() });
    let first = ask(&scene, "k", "x", true).await;
    let second = loop {
        // The window fills and holds the upstream up until somebody reads.
        let second = ask(&scene, "k", "x", true).await;
        if second.status() == 409 {
            break second;
        }
        drop(second);
        tokio::task::yield_now().await;
    };
    assert!(String::from_utf8(bytes(second).await).unwrap().contains("idempotency_in_progress"));
    let all = bytes(first).await;
    assert!(all.len() > 1_000_000 && all.ends_with(b"data: [DONE]\n\n"));
    tokio::task::yield_now().await;
    assert_eq!(scene.front.answers.0.held(), (0, 0));
}
