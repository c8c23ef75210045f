//! One request over scripted upstreams: where attempts go, what ends them, and that each ends exactly once.

use std::collections::BTreeSet;

use shoal_routing::UpstreamId;

use super::*;
use crate::testing::{
    Act, BODY, Beat, ROLE, STOP, Scene, WORD, broken, offer, say, stream_answer, whole_answer,
};

const NAMED: &str = r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#;
const STREAM: &str = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}"#;
const AUTO: &str = r#"{"model":"auto","messages":[{"role":"user","content":"x"}]}"#;

/// Runs a request and reads its answer to the end; the error code is that of the attempt or of the cut.
async fn play(scene: &Scene, json: &str) -> Result<(), String> {
    let job = scene.chat(json).map_err(|e| e.code.to_string())?;
    match scene.pipeline.run(job).await.map_err(|failed| failed.error.code.to_string())? {
        Running::Whole(answer) => {
            answer.complete();
            Ok(())
        }
        Running::Sound(_) => panic!("sound came unasked"),
        Running::Stream(mut stream) => loop {
            match stream.next().await {
                Step::Payload(..) => {}
                Step::End(Ok(())) => {
                    stream.complete();
                    return Ok(());
                }
                Step::End(Err(error)) => {
                    stream.fail(&error.code);
                    return Err(error.code.to_string());
                }
            }
        },
    }
}

fn two_hosts() -> Scene {
    Scene::new(vec![offer("a", "m", &[]), offer("b", "m", &[])])
}

/// Checks that whichever host does `bad` first, the other one answers and the client never knows.
async fn fails_over(json: &str, what: &str, bad: Act, good: Act, blamed: bool) {
    let mut scene = two_hosts();
    // Both hosts hold both acts; only the order in which they are asked is random.
    let acts = Arc::new(std::sync::Mutex::new(vec![bad, good].into_iter()));
    for way in ["a/m", "b/m"] {
        scene.script_from(way, acts.clone());
    }
    assert_eq!(play(&scene, json).await, Ok(()), "{what}");
    let (row, outcome) = scene.only_outcome();
    assert_eq!((row.outcome.as_str(), row.attempts, row.attempt_log.len()), ("completed", 2, 2), "{what}");
    assert_eq!(row.attempt_log[1].ended, "ok");
    assert_eq!(row.completion_tokens, 4, "{what}");
    let tried: BTreeSet<String> = scene.tried().into_iter().collect();
    assert_eq!(tried.len(), 2, "{what}: the second attempt goes to another host");
    assert_eq!(outcome.unwrap().attempts, 2);
    let first = scene.tried().remove(0);
    let load = scene.pipeline.loads.load(
        &UpstreamId::Device(first.split('/').next().unwrap().into()),
        "m",
        Instant::now(),
    );
    assert_eq!(load.penalised, blamed, "{what}");
}

#[tokio::test(start_paused = true)]
async fn a_whole_answer_that_fails_moves_to_another_host() {
    let bad: Vec<(&str, Act)> = vec![
        ("refused", Act::Fail(broken())),
        ("silent", Act::Hang),
        ("silent in the middle", Act::Play(vec![say("{"), Beat::Silence])),
        ("cut", Act::Play(vec![say(BODY), Beat::End(false)])),
        ("ends without an end", Act::Play(vec![say(BODY)])),
        ("breaks in the middle", Act::Play(vec![say("{"), Beat::Break(broken())])),
        ("not JSON", Act::Play(vec![say("<html>"), Beat::End(true)])),
        ("an array", Act::Play(vec![say(r#"[[],null,null,null]"#), Beat::End(true)])),
        ("no answer in it", Act::Play(vec![say("{}"), Beat::End(true)])),
        ("empty", Act::Play(vec![Beat::End(true)])),
        ("an error object", Act::Play(vec![say(r#"{"error":{"message":"boom"}}"#), Beat::End(true)])),
    ];
    for (what, act) in bad {
        fails_over(NAMED, what, act, whole_answer(), true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_fails_before_content_moves_to_another_host() {
    let error = r#"{"error":{"message":"boom","code":500}}"#;
    let bad: Vec<(&str, Act)> = vec![
        ("refused", Act::Fail(broken())),
        ("silent", Act::Hang),
        ("silent after the role", Act::Play(vec![say(ROLE), Beat::Silence])),
        ("ends after the role", Act::Play(vec![say(ROLE), Beat::End(true)])),
        ("cut after the role", Act::Play(vec![say(ROLE)])),
        ("breaks after the role", Act::Play(vec![say(ROLE), Beat::Break(broken())])),
        ("an error object", Act::Play(vec![say(ROLE), say(error), Beat::End(true)])),
        ("a flood without content", Act::Play(vec![say(ROLE); 300])),
    ];
    for (what, act) in bad {
        fails_over(STREAM, what, act, stream_answer(), true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_asks_for_less_is_left_alone_for_a_while() {
    let mut slow_down = UpstreamError::retryable(429, "rate_limited", "later");
    slow_down.retry_after = Some(Duration::from_secs(20));
    let full = UpstreamError::retryable(503, "overloaded", "full");
    for error in [slow_down, full] {
        fails_over(NAMED, &error.code.clone(), Act::Fail(error), whole_answer(), true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_prefill_after_the_role_is_no_failure() {
    let mut scene = Scene::new(vec![offer("a", "m", &[])]);
    let prefill = Beat::Wait(Duration::from_secs(299));
    scene.script("a/m", [Act::Play(vec![say(ROLE), prefill, say(WORD), say(STOP), Beat::End(true)])]);
    assert_eq!(play(&scene, STREAM).await, Ok(()));
    assert_eq!(scene.only_outcome().0.outcome, "completed");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_tried_again_after_the_commit_point() {
    let error = r#"{"error":{"message":"boom"}}"#;
    let cuts: Vec<(&str, Vec<Beat>)> = vec![
        ("upstream_error", vec![say(WORD), Beat::Break(broken())]),
        ("upstream_error", vec![say(WORD), say(error), Beat::End(true)]),
        ("upstream_interrupted", vec![say(WORD), Beat::End(false)]),
        ("upstream_interrupted", vec![say(WORD), Beat::End(true)]),
        ("upstream_interrupted", vec![say(WORD)]),
        ("upstream_timeout", vec![say(WORD), Beat::Silence]),
    ];
    for (code, beats) in cuts {
        let mut scene = two_hosts();
        for way in ["a/m", "b/m"] {
            scene.script(way, [Act::Play(beats.clone())]);
        }
        assert_eq!(play(&scene, STREAM).await, Err(code.to_owned()));
        assert_eq!(scene.tried().len(), 1, "{code}");
        let (row, outcome) = scene.only_outcome();
        assert_eq!((row.outcome.as_str(), row.error.as_str(), row.completion_tokens), ("failed", code, 1));
        assert!(outcome.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_with_its_finish_reason_is_whole_whatever_follows() {
    for after in [Beat::Break(broken()), Beat::End(false), Beat::Silence] {
        let mut scene = Scene::new(vec![offer("a", "m", &[])]);
        scene.script("a/m", [Act::Play(vec![say(WORD), say(STOP), after])]);
        assert_eq!(play(&scene, STREAM).await, Ok(()));
        let row = scene.only_outcome().0;
        assert_eq!((row.outcome.as_str(), row.finish_reason.as_str()), ("completed", "stop"));
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_answers_both_must_finish_unless_the_upstream_says_that_it_is_all() {
    const TWO: &str = r#"{"model":"m","stream":true,"n":2,"messages":[{"role":"user","content":"x"}]}"#;
    let other = STOP.replace("{\"delta\"", "{\"index\":1,\"delta\"");
    let cut = || Err("upstream_interrupted".to_owned());
    for (beats, expected) in [
        (vec![say(STOP), Beat::End(false)], cut()),
        (vec![say(STOP), say(STOP), Beat::End(false)], cut()),
        (vec![say(STOP), say(&other), Beat::End(false)], Ok(())),
        (vec![say(STOP), Beat::End(true)], Ok(())),
    ] {
        let scene = Scene::new(vec![offer("a", "m", &[])]);
        scene.script("a/m", [Act::Play([vec![say(WORD)], beats].concat())]);
        assert_eq!(play(&scene, TWO).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fault_of_the_request_is_not_tried_again_and_blames_nobody() {
    let mut scene = two_hosts();
    for way in ["a/m", "b/m"] {
        scene.script(way, [Act::Fail(UpstreamError::new(400, "invalid_request_error", "no such option"))]);
    }
    assert_eq!(play(&scene, NAMED).await, Err("invalid_request_error".into()));
    assert_eq!(scene.tried().len(), 1);
    assert_eq!(scene.only_outcome().0.status, 400);
    assert!(!scene.is_penalised("a", "m") && !scene.is_penalised("b", "m"));
}

#[tokio::test(start_paused = true)]
async fn three_attempts_are_all() {
    let names = ["a", "b", "c", "d", "e"];
    let mut scene = Scene::new(names.iter().map(|name| offer(name, "m", &[])).collect());
    for name in names {
        scene.script(&format!("{name}/m"), [Act::Fail(broken())]);
    }
    assert_eq!(play(&scene, NAMED).await, Err("upstream_error".into()));
    assert_eq!(scene.tried().into_iter().collect::<BTreeSet<_>>().len(), 3);
    assert_eq!(scene.tried().len(), 3);
    let attempts: Vec<u32> = scene.asked().iter().map(|r| r.attempts_left).collect();
    assert_eq!(attempts, [3, 2, 1]);
    assert_eq!(scene.only_outcome().0.attempts, 3);
}

#[tokio::test(start_paused = true)]
async fn another_host_comes_before_another_way_to_the_same() {
    let mut scene = Scene::new(vec![offer("a", "m", &["router"]), offer("b", "m", &[])]);
    for way in ["a/m", "b/m"] {
        scene.script(way, [Act::Fail(broken())]);
    }
    scene.script("a/m@router", [whole_answer()]);
    assert_eq!(play(&scene, NAMED).await, Ok(()));
    let tried = scene.tried();
    assert_eq!(tried[2], "a/m@router", "{tried:?}");
    assert_eq!(scene.asked()[2].device.as_deref(), Some("a"), "the other router is told which device");
    assert_eq!(scene.only_outcome().0.target, "peer");
}

#[tokio::test(start_paused = true)]
async fn another_model_stands_in_only_where_it_was_ours_to_choose() {
    for (json, expected) in [(AUTO, Ok(())), (NAMED, Err("upstream_error".to_owned()))] {
        // Two models on one host: the second may work where the first does not.
        let mut scene = Scene::new(vec![offer("a", "m", &[]), offer("a", "other", &[])]);
        let acts = Arc::new(std::sync::Mutex::new(vec![Act::Fail(broken()), whole_answer()].into_iter()));
        for way in ["a/m", "a/other"] {
            scene.script_from(way, acts.clone());
        }
        assert_eq!(play(&scene, json).await, expected);
        let (row, _) = scene.only_outcome();
        assert_eq!(row.routing_reason, if expected.is_ok() { "fallback" } else { "named" });
        assert_eq!(scene.tried().len(), if expected.is_ok() { 2 } else { 1 });
    }
}

#[tokio::test(start_paused = true)]
async fn a_spent_budget_ends_the_request_after_a_short_wait() {
    let mut scene = two_hosts();
    for way in ["a/m", "b/m"] {
        scene.script(way, [Act::Fail(broken())]);
    }
    let held: Vec<_> = std::iter::from_fn(|| {
        scene.pipeline.retries.try_retry(RetryKind::Transient, &UpstreamId::Device("a".into()))
    })
    .collect();
    let began = tokio::time::Instant::now();
    assert_eq!(play(&scene, NAMED).await, Err("upstream_error".into()));
    assert!(began.elapsed() >= RETRY_WAIT && began.elapsed() < RETRY_WAIT * 2);
    assert_eq!(scene.tried().len(), 1);
    assert_eq!(scene.only_outcome().0.outcome, "failed");
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn where_everything_fails_errors_are_given_back_at_once() {
    let scene = two_hosts();
    for way in ["a/m", "b/m"] {
        scene.script(way, [Act::Fail(broken())]);
    }
    let (budget, device) = (&scene.pipeline.retries, UpstreamId::Device("a".into()));
    while !budget.is_spent(RetryKind::Transient, &device) {
        drop(budget.try_retry(RetryKind::Transient, &device).expect("paid for, and nobody else retries"));
    }
    let began = tokio::time::Instant::now();
    assert_eq!(play(&scene, NAMED).await, Err("upstream_error".into()));
    assert!(began.elapsed() < RETRY_WAIT, "{:?}", began.elapsed());
    assert_eq!(scene.tried().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_second_retry_does_not_hold_on_to_the_permit_of_the_first() {
    let mut scene = Scene::new(["a", "b", "c"].map(|name| offer(name, "m", &[])).into());
    let acts = vec![Act::Fail(broken()), Act::Fail(broken()), whole_answer()].into_iter();
    let acts = Arc::new(std::sync::Mutex::new(acts));
    for way in ["a/m", "b/m", "c/m"] {
        scene.script_from(way, acts.clone());
    }
    // One permit is left of the few that a quiet node has.
    let held: Vec<_> = (0..2)
        .map_while(|_| {
            scene.pipeline.retries.try_retry(RetryKind::Transient, &UpstreamId::Device("a".into()))
        })
        .collect();
    let began = tokio::time::Instant::now();
    assert_eq!(play(&scene, NAMED).await, Ok(()));
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!((held.len(), scene.only_outcome().0.attempts), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_cancels_in_every_phase() {
    let phases: Vec<(&str, Act)> = vec![
        (STREAM, Act::Hang),
        (STREAM, Act::Play(vec![say(ROLE), Beat::Silence])),
        (STREAM, Act::Play(vec![say(WORD), say(WORD), Beat::Silence])),
        (NAMED, Act::Hang),
        (NAMED, Act::Play(vec![say("{"), Beat::Silence])),
    ];
    for (json, act) in phases {
        let mut scene = Scene::new(vec![offer("a", "m", &[])]);
        scene.script("a/m", [act]);
        let left = tokio::time::timeout(Duration::from_secs(5), play(&scene, json)).await;
        assert!(left.is_err());
        let (row, outcome) = scene.only_outcome();
        assert_eq!((row.outcome.as_str(), row.status), ("cancelled", 499));
        assert_eq!(outcome.unwrap().attempts, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_before_anything_ran_is_counted_too() {
    let mut scene = two_hosts();
    drop(scene.chat(NAMED).unwrap());
    let (row, _) = scene.only_outcome();
    assert_eq!((row.outcome.as_str(), row.attempts), ("cancelled", 0));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_serves_is_rejected_and_counted() {
    let mut scene = two_hosts();
    let error = scene.chat(r#"{"model":"n","messages":[{"role":"user","content":"x"}]}"#).err().unwrap();
    assert_eq!((error.status, &*error.code, error.param.as_deref()), (404, "model_not_found", Some("model")));
    let (row, outcome) = scene.only_outcome();
    assert_eq!((row.outcome.as_str(), row.status), ("rejected", 404));
    assert_eq!(outcome.unwrap().arm, None);
}

#[tokio::test(start_paused = true)]
async fn a_full_node_sheds_with_a_time_to_come_back() {
    let mut scene = Scene::with_room_for(1, vec![offer("a", "m", &[])]);
    let first = scene.chat(NAMED).unwrap();
    let error = scene.chat(NAMED).err().unwrap();
    assert_eq!((error.status, &*error.code), (503, "overloaded"));
    assert!(error.retry_after.is_some());
    drop(first);
    // What was shed was never accepted.
    scene.only_outcome();
    assert!(scene.chat(NAMED).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_passed_is_not_tried_again() {
    let mut scene = two_hosts();
    for way in ["a/m", "b/m"] {
        scene.script(way, [Act::Hang]);
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(3);
    let job = scene.chat_until(NAMED, Some(deadline)).unwrap();
    let failed = scene.pipeline.run(job).await.err().unwrap();
    assert_eq!((failed.error.status, &*failed.error.code), (504, "upstream_timeout"));
    assert_eq!(tokio::time::Instant::now(), deadline);
    assert_eq!(scene.tried().len(), 1);
    assert_eq!(scene.only_outcome().0.status, 504);
}

#[tokio::test(start_paused = true)]
async fn what_left_the_mesh_is_said_whoever_answered_in_the_end() {
    let mut cloudy = offer("a", "m", &[]);
    Arc::make_mut(&mut cloudy.model).remote = true;
    let mut scene = Scene::new(vec![cloudy]);
    scene.script("a/m", [Act::Fail(broken())]);
    let failed = scene.pipeline.run(scene.chat(NAMED).unwrap()).await.err().unwrap();
    assert_eq!(failed.egress, "a");
    let row = scene.only_outcome().0;
    assert_eq!((row.egress.as_str(), row.target.as_str()), ("a", "cloud"));
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_usage_is_estimated_and_not_taken_for_empty() {
    let mut scene = Scene::new(vec![offer("a", "m", &[])]);
    let body = r#"{"choices":[{"message":{"content":"a longer answer"},"finish_reason":"stop"}]}"#;
    scene.script("a/m", [Act::Play(vec![say(body), Beat::End(true)])]);
    assert_eq!(play(&scene, NAMED).await, Ok(()));
    let (row, outcome) = scene.only_outcome();
    assert!(row.completion_tokens > 0);
    let outcome = outcome.unwrap();
    assert_eq!(shoal_routing::Reward::from(&outcome), shoal_routing::Reward::Valid);
    assert_eq!(outcome.ttft_ms, None, "nobody saw a first token");
}
