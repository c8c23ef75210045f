//! Hosts that are broken, alone or missing: what is still tried, and what the client is told.

use super::*;
use crate::inventory::Inventory;
use crate::testing::{Act, Scene, broken, offer, whole_answer};

const NAMED: &str = r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#;
const UNKNOWN: &str = r#"{"model":"of-another-node","messages":[{"role":"user","content":"x"}]}"#;

async fn play(scene: &Scene) -> Result<(), String> {
    let job = scene.chat(NAMED).map_err(|e| e.code.to_string())?;
    match scene.pipeline.run(job).await {
        Ok(Running::Whole(answer)) => {
            answer.complete();
            Ok(())
        }
        Ok(_) => panic!("a whole answer was asked for"),
        Err(failed) => Err(failed.error.code.to_string()),
    }
}

#[tokio::test(start_paused = true)]
async fn of_hosts_that_are_all_known_to_be_broken_one_is_asked_and_the_error_given_back() {
    let scene = Scene::new(vec![offer("a", "m", &[]), offer("b", "m", &[]), offer("c", "m", &[])]);
    scene.improvise(Box::new(|_, _| Act::Fail(broken())));
    for _ in 0..10 {
        assert_eq!(play(&scene).await.unwrap_err(), "upstream_error");
    }
    scene.take_asked();
    for _ in 0..10 {
        assert_eq!(play(&scene).await.unwrap_err(), "upstream_error");
    }
    assert_eq!(scene.take_asked().len(), 10, "one attempt each");
    // One that is well again is found by the requests that go on.
    scene.improvise(Box::new(|_, _| whole_answer()));
    assert_eq!(play(&scene).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn the_last_host_that_may_be_asked_is_waited_for_longer() {
    let last_resorts = async |scene: Scene| -> Vec<bool> {
        scene.improvise(Box::new(|_, _| Act::Fail(broken())));
        play(&scene).await.unwrap_err();
        scene.asked().iter().map(|request| request.commitment.is_last_resort()).collect()
    };
    assert_eq!(last_resorts(Scene::new(vec![offer("a", "m", &[])])).await, [true]);
    let two = Scene::new(vec![offer("a", "m", &[]), offer("b", "m", &[])]);
    assert_eq!(last_resorts(two).await, [false, true]);
    let two_ways = Scene::new(vec![offer("a", "m", &["router"])]);
    assert_eq!(last_resorts(two_ways).await, [false, true]);
}

#[tokio::test]
async fn a_node_that_has_just_started_does_not_say_that_a_model_does_not_exist() {
    let refusal = |scene: &Scene| scene.chat(UNKNOWN).err().expect("nobody serves it");
    let offers = || vec![offer("a", "m", &[])];
    let scene = Scene::just_started(offers());
    let refused = refusal(&scene);
    assert_eq!((refused.status, &*refused.code), (503, "starting"));
    assert_eq!(refused.retry_after, Some(Duration::from_secs(1)));
    assert!(scene.chat(NAMED).is_ok(), "what it knows it serves");
    // The mesh was heard a while ago, and nobody in it has the model.
    let heard_at = Instant::now().checked_sub(Duration::from_secs(5));
    let registry = Registry::new(offers());
    scene.pipeline.inventory.store(Arc::new(Inventory { registry, heard_at, ..Inventory::default() }));
    assert_eq!((refusal(&scene).status, &*refusal(&scene).code), (404, "model_not_found"));
    let alone = refusal(&Scene::new(offers()));
    assert_eq!((alone.status, &*alone.code), (404, "model_not_found"));
}

#[tokio::test(start_paused = true)]
async fn requests_of_a_host_that_fell_silent_move_all_at_once() {
    const REQUESTS: usize = 8;
    let scene = Scene::new(vec![offer("a", "m", &[]), offer("b", "m", &[])]);
    let mut begun = std::collections::BTreeSet::new();
    scene.improvise(Box::new(move |_, request| {
        let lost = UpstreamError { unheard: true, ..broken() };
        if begun.insert(request.id.clone()) { Act::Fail(lost) } else { Act::Hang }
    }));
    let all = futures_util::future::join_all((0..REQUESTS).map(|_| play(&scene)));
    let moved = tokio::time::timeout(Duration::from_millis(1), all).await;
    assert!(moved.is_err(), "they wait for the other host's words");
    assert_eq!(scene.tried().len(), 2 * REQUESTS, "and not for each other");
}
