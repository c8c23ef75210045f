//! A second device beside one that is late: who wins, who is dropped, and what it may cost.

use std::time::Duration;

use super::*;
use crate::testing::{Act, Beat, ROLE, STOP, Scene, WORD, broken, offer, say};

const ASK: &str = r#"{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true}"#;

fn device(name: &str) -> Offer {
    Offer { slots: 4, ..offer(name, "m", &[]) }
}

fn after(wait: Duration) -> Act {
    Act::Play(vec![Beat::Wait(wait), say(ROLE), say(WORD), say(STOP), Beat::End(true)])
}

/// Two devices that usually answer as forecast, and a budget for two hedges.
fn scene(slow: Act, quick: Act) -> Scene {
    let scene = Scene::new(vec![device("a"), device("b")]);
    let hedges = &scene.pipeline.hedges;
    (0..100).for_each(|_| hedges.request());
    for name in ["a", "b"] {
        let upstream = UpstreamId::Device(name.into());
        (0..30).for_each(|_| hedges.first_token(&upstream, &"m".into(), 100.0, Duration::from_millis(100)));
    }
    // Whoever is asked first is the late one.
    let acts = Arc::new(std::sync::Mutex::new(vec![slow, quick].into_iter()));
    for way in ["a/m", "b/m"] {
        scene.script_from(way, acts.clone());
    }
    scene
}

async fn answered(scene: &mut Scene) -> (Vec<String>, crate::store::RequestRecord) {
    let job = scene.chat(ASK).unwrap();
    let Ok(Running::Stream(mut stream)) = scene.pipeline.run(job).await else { panic!("a stream") };
    while let Step::Payload(..) = stream.next().await {}
    stream.complete();
    assert_eq!(scene.working(), 0, "the loser's work is dropped");
    let record = scene.only_outcome().0;
    (scene.tried(), record)
}

#[tokio::test(start_paused = true)]
async fn the_second_device_answers_when_the_first_is_late() {
    let mut scene = scene(after(Duration::from_secs(60)), after(Duration::ZERO));
    let (tried, record) = answered(&mut scene).await;
    assert_eq!(tried.len(), 2);
    assert_ne!(tried[0], tried[1]);
    assert_eq!(format!("{}/m", record.upstream), tried[1]);
    let ends: Vec<&str> = record.attempt_log.iter().map(|one| &*one.ended).collect();
    assert_eq!(ends, ["outrun", "ok"]);
    assert!(record.duration_ms < 1_000 && record.attempts == 2, "{record:?}");
}

#[tokio::test(start_paused = true)]
async fn the_first_device_may_still_win_and_then_is_the_one_that_is_told() {
    let mut scene = scene(after(Duration::from_secs(1)), after(Duration::from_secs(60)));
    let (tried, record) = answered(&mut scene).await;
    assert_eq!(tried.len(), 2);
    assert_eq!(format!("{}/m", record.upstream), tried[0]);
}

#[tokio::test(start_paused = true)]
async fn a_second_device_that_fails_leaves_the_first_alone() {
    let mut scene = scene(after(Duration::from_secs(1)), Act::Fail(broken()));
    let (tried, record) = answered(&mut scene).await;
    assert_eq!((tried.len(), record.outcome.as_str()), (2, "completed"));
    assert_eq!(format!("{}/m", record.upstream), tried[0]);
}

#[tokio::test(start_paused = true)]
async fn nobody_else_is_asked_in_time_without_budget_or_without_a_free_slot() {
    let mut in_time = scene(after(Duration::ZERO), after(Duration::ZERO));
    assert_eq!(answered(&mut in_time).await.0.len(), 1);

    let late = || scene(after(Duration::from_secs(1)), after(Duration::ZERO));
    let mut poor = late();
    while poor.pipeline.hedges.try_spend() {}
    assert_eq!(answered(&mut poor).await.0.len(), 1);

    let mut busy = late();
    let work = shoal_routing::Work::UNKNOWN;
    let taken: Vec<_> = ["a", "b"]
        .iter()
        .flat_map(|name| (0..3).map(|_| busy.pipeline.loads.begin(&device(name), work, Instant::now())))
        .collect();
    let more = busy.pipeline.loads.begin(&device("b"), work, Instant::now());
    assert_eq!(answered_beside(&mut busy).await, 1);
    drop((taken, more));
}

/// As [`answered`], while other requests run.
async fn answered_beside(scene: &mut Scene) -> usize {
    let job = scene.chat(ASK).unwrap();
    let Ok(Running::Stream(mut stream)) = scene.pipeline.run(job).await else { panic!("a stream") };
    while let Step::Payload(..) = stream.next().await {}
    stream.complete();
    scene.tried().len()
}
