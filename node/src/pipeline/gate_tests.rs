//! Requests at a device whose slots are taken: they wait in turn, within bounds, and leave no trace when they go.

use std::task::Poll;

use futures_util::poll;
use shoal_routing::{Asking, LoadBook, Priority, UpstreamId, Work};

use super::*;
use crate::testing::{Act, Beat, Scene, offer, say, whole_answer};

fn one_slot() -> Offer {
    Offer { slots: 1, ..offer("a", "m", &[]) }
}

fn asking(key: &str) -> Asking {
    Asking { key: key.into(), priority: Priority::Client, deadline: None, cost_ms: 0.0 }
}

fn gate() -> (Gate, Arc<LoadBook>) {
    let loads = Arc::new(LoadBook::new(1));
    (Gate::new(loads.clone()), loads)
}

#[tokio::test(start_paused = true)]
async fn keys_take_turns_at_a_busy_device_and_a_report_can_free_it_too() {
    let ((gate, loads), offer) = (gate(), one_slot());
    let upstream = UpstreamId::Device("a".into());
    let pass = |key: &'static str| Box::pin(gate.pass(&offer, Work::UNKNOWN, asking(key)));
    let first = pass("busy").await.unwrap();
    let (mut second, mut third) = (pass("busy"), pass("calm"));
    assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
    assert_eq!(loads.in_flight(&upstream), 3, "who waits is load");
    drop(first);
    assert!(poll!(&mut second).is_pending(), "the key that was served last waits");
    let Poll::Ready(Ok(calm)) = poll!(&mut third) else { panic!("its turn") };
    // Another router fills the slot before ours is free again.
    loads.report(&upstream, (1, 1), 2, Instant::now());
    drop(calm);
    assert!(poll!(&mut second).is_pending());
    loads.report(&upstream, (1, 2), 0, Instant::now());
    assert!(matches!(poll!(&mut second), Poll::Ready(Ok(_))));
}

#[tokio::test(start_paused = true)]
async fn who_goes_away_while_waiting_holds_up_nobody() {
    let ((gate, loads), offer) = (gate(), one_slot());
    let pass = || Box::pin(gate.pass(&offer, Work::UNKNOWN, asking("k")));
    let first = pass().await.unwrap();
    let (mut gone, mut next) = (pass(), pass());
    assert!(poll!(&mut gone).is_pending() && poll!(&mut next).is_pending());
    drop(gone);
    assert!(poll!(&mut next).is_pending());
    drop(first);
    // Its turn came, and it goes away before it is sent.
    let late = pass();
    drop(next);
    let last = late.await.unwrap();
    assert_eq!(loads.in_flight(&UpstreamId::Device("a".into())), 1);
    drop(last);
    assert_eq!(loads.in_flight(&UpstreamId::Device("a".into())), 0);
}

#[tokio::test(start_paused = true)]
async fn the_line_is_short_and_so_is_the_wait() {
    let ((gate, loads), offer) = (gate(), one_slot());
    let pass = |key: &'static str| Box::pin(gate.pass(&offer, Work::UNKNOWN, asking(key)));
    let _first = pass("k").await.unwrap();
    let (mut second, mut third) = (pass("k"), pass("k"));
    assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
    let refused = pass("k").await.unwrap_err();
    assert_eq!((refused.status, &*refused.code), (503, "overloaded"));
    assert!(refused.retry_after.unwrap() >= Duration::from_secs(1));
    let mut other = pass("other");
    assert!(poll!(&mut other).is_pending(), "a key without a place gets one");
    assert!(third.await.is_err(), "from the key that had two");
    let began = tokio::time::Instant::now();
    assert!(second.await.is_err());
    assert!(began.elapsed() >= shoal_routing::MAX_WAIT);
    drop(other);
    assert_eq!(loads.in_flight(&UpstreamId::Device("a".into())), 1);
}

#[tokio::test(start_paused = true)]
async fn a_device_with_one_slot_is_asked_for_one_answer_at_a_time() {
    const ASK: &str = r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#;
    let scene = Scene::new(vec![one_slot()]);
    let slow =
        Act::Play(vec![Beat::Wait(Duration::from_secs(5)), say(crate::testing::BODY), Beat::End(true)]);
    scene.script("a/m", [slow, whole_answer()]);
    let mut first = Box::pin(scene.pipeline.run(scene.chat(ASK).unwrap()));
    let mut second = Box::pin(scene.pipeline.run(scene.chat(ASK).unwrap()));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    assert_eq!((scene.tried().len(), scene.working()), (1, 1));
    let complete = async |run: &mut (dyn Future<Output = Result<Running, Failed>> + Unpin)| {
        let Ok(Running::Whole(whole)) = run.await else { panic!("an answer") };
        whole.complete();
    };
    tokio::join!(complete(&mut first), complete(&mut second));
    assert_eq!(scene.tried().len(), 2);
    assert_eq!(scene.pipeline.sinks.totals.of("completed"), 2);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_busy_device_takes_another_that_is_free_first() {
    let scene = Scene::new(vec![one_slot(), Offer { slots: 1, ..offer("b", "m", &[]) }]);
    for way in ["a/m", "b/m"] {
        scene.script(way, [Act::Hang, whole_answer()]);
    }
    let run = |text: &str| {
        let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}"#);
        Box::pin(scene.pipeline.run(scene.chat(&body).unwrap()))
    };
    let (mut first, mut second, mut third) = (run("one"), run("two"), run("three"));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    assert!(poll!(&mut third).is_pending());
    let tried = scene.tried();
    assert_eq!(tried.len(), 2, "the third waits");
    assert_ne!(tried[0], tried[1]);
    let waits_at_a = scene.pipeline.loads.in_flight(&UpstreamId::Device("a".into())) == 2;
    // The device that it does not wait for is free.
    let ends_first = (tried[0] == "a/m") != waits_at_a;
    if ends_first {
        drop(first)
    } else {
        drop(second)
    }
    let answered = tokio::time::timeout(Duration::from_secs(5), third).await.expect("it moved");
    assert!(matches!(answered, Ok(Running::Whole(_))));
    assert_eq!(scene.tried()[2], if waits_at_a { "b/m" } else { "a/m" });
}
