//! Answers that break off and go on elsewhere, where that was asked for and only where it can be done unseen.

use serde_json::Value;
use shoal_routing::ModelSpec;

use super::*;
use crate::testing::{Act, Beat, Scene, broken, offer, say};

fn ask(more: &str) -> String {
    format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}],"stream":true,"max_tokens":9{more}}}"#
    )
}

const WANTED: &str = r#","metadata":{"resume":true}"#;

fn device(name: &str, engine: &str, digest: Option<&str>) -> Offer {
    let spec = ModelSpec { digest: digest.map(Into::into), ..ModelSpec::new("m", engine) };
    Offer { model: Arc::new(spec), ..offer(name, "m", &[]) }
}

fn chunk(id: &str, delta: &str) -> Beat {
    say(&format!(r#"{{"id":"{id}","choices":[{{"index":0,"delta":{delta}}}]}}"#))
}

fn breaks_off() -> Act {
    let opening = chunk("first", r#"{"role":"assistant","content":""}"#);
    let words = [r#"{"content":"one"}"#, r#"{"content":" two"}"#].map(|delta| chunk("first", delta));
    Act::Play([vec![opening], words.to_vec(), vec![Beat::Break(broken())]].concat())
}

fn goes_on() -> Act {
    let stop = r#"{"id":"second","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
    let usage = r#"{"id":"second","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":1}}"#;
    Act::Play(vec![
        chunk("second", r#"{"role":"assistant","content":""}"#),
        chunk("second", r#"{"content":" three"}"#),
        say(stop),
        say(usage),
        Beat::End(true),
    ])
}

fn half_a_call() -> Act {
    Act::Play(vec![
        chunk("first", r#"{"content":"let me see"}"#),
        chunk("first", r#"{"tool_calls":[{"index":0,"function":{"name":"f"}}]}"#),
        Beat::Break(broken()),
    ])
}

/// The acts in the order in which devices are asked, whichever they are.
fn scene(offers: Vec<Offer>, acts: Vec<Act>) -> Scene {
    let ways: Vec<String> = offers.iter().map(|offer| format!("{}/m", offer.name)).collect();
    let scene = Scene::new(offers);
    let acts = Arc::new(std::sync::Mutex::new(acts.into_iter()));
    for way in ways {
        scene.script_from(&way, acts.clone());
    }
    scene
}

fn twins() -> Vec<Offer> {
    vec![device("a", "llama.cpp", Some("d1")), device("b", "llama.cpp", Some("d1"))]
}

/// The text, the ids of the payloads, and whether it ended well.
async fn read(scene: &mut Scene, more: &str) -> (String, Vec<String>, bool) {
    let job = scene.chat(&ask(more)).unwrap();
    let Ok(Running::Stream(mut stream)) = scene.pipeline.run(job).await else { panic!("a stream") };
    let (mut text, mut ids) = (String::new(), Vec::new());
    let whole = loop {
        match stream.next().await {
            Step::Payload(_, payload) => {
                let value: Value = serde_json::from_slice(&payload).unwrap();
                text += value["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
                ids.push(value["id"].as_str().unwrap_or_default().to_owned());
            }
            Step::End(Ok(())) => break true,
            Step::End(Err(_)) => break false,
        }
    };
    if whole {
        stream.complete()
    } else {
        stream.fail("upstream_interrupted")
    }
    (text, ids, whole)
}

#[tokio::test(start_paused = true)]
async fn a_twin_goes_on_and_the_client_sees_one_answer() {
    let mut scene = scene(twins(), vec![breaks_off(), goes_on()]);
    let (text, ids, whole) = read(&mut scene, WANTED).await;
    assert_eq!((text.as_str(), whole), ("one two three", true));
    assert!(ids.iter().all(|id| id == "first"), "{ids:?}");
    assert_eq!(ids.len(), 6, "one beginning");
    let asked = scene.asked();
    let body: Value = serde_json::from_slice(&asked[1].body).unwrap();
    assert_eq!(body["messages"][1], serde_json::json!({"role": "assistant", "content": "one two"}));
    assert_eq!(
        (&body["continue_final_message"], &body["add_generation_prompt"]),
        (&true.into(), &false.into())
    );
    assert_eq!((&body["max_tokens"], &body["metadata"]), (&7.into(), &Value::Null));
    assert_ne!(scene.tried()[0], scene.tried()[1]);
    let record = scene.only_outcome().0;
    assert_eq!((record.outcome.as_str(), record.resumed, record.attempts), ("completed", 1, 2));
    assert_eq!((record.prompt_tokens, record.completion_tokens), (5, 3));
    let ends: Vec<&str> = record.attempt_log.iter().map(|one| &*one.ended).collect();
    assert_eq!(ends, ["upstream_error", "ok"]);
}

#[tokio::test(start_paused = true)]
async fn a_twin_that_fails_or_breaks_off_too_leaves_what_is_left_of_three_attempts() {
    let mut one = device("c", "llama.cpp", Some("d1"));
    one.name = "c".into();
    let mut triple = scene([twins(), vec![one]].concat(), vec![breaks_off(), Act::Fail(broken()), goes_on()]);
    assert_eq!(read(&mut triple, WANTED).await.0, "one two three");
    let mut twice = scene(twins(), vec![breaks_off(), Act::Fail(broken())]);
    let (text, _, whole) = read(&mut twice, WANTED).await;
    assert_eq!((text.as_str(), whole), ("one two", false));
}

#[tokio::test(start_paused = true)]
async fn nobody_goes_on_unasked_or_with_other_weights_or_with_more_than_text() {
    let tools = r#","tools":[{"type":"function","function":{"name":"f"}}]"#;
    let tools = format!("{WANTED}{tools}");
    let n = format!(r#"{WANTED},"n":2"#);
    let pair =
        |engine: &str, other: Option<&str>| vec![device("a", engine, Some("d1")), device("b", engine, other)];
    for (why, offers, more) in [
        ("unasked", twins(), ""),
        ("no digest", pair("llama.cpp", None), WANTED),
        ("an engine that begins anew", pair("ollama", Some("d1")), WANTED),
        ("tools", twins(), tools.as_str()),
        ("two answers", twins(), n.as_str()),
    ] {
        let mut scene = scene(offers, vec![breaks_off(), breaks_off()]);
        let (text, _, whole) = read(&mut scene, more).await;
        assert_eq!((text.as_str(), whole), ("one two", false), "{why}");
        assert_eq!(scene.asked().len(), 1, "{why}");
    }
    // Of another digest is another arm: the choice never mixes the two.
    let mut other = scene(pair("llama.cpp", Some("d2")), vec![breaks_off(), breaks_off()]);
    assert!(!read(&mut other, WANTED).await.2);
    let mut call = scene(twins(), vec![half_a_call(), goes_on()]);
    assert!(!read(&mut call, WANTED).await.2);
    assert_eq!(call.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_host_is_left_early_only_while_another_can_go_on_for_it() {
    for (why, acts, more, expected) in [
        ("its twin can, and nobody for the twin", vec![breaks_off(), goes_on()], WANTED, vec![false, true]),
        ("nobody goes on in a call", vec![half_a_call()], WANTED, vec![true]),
        ("unasked", vec![goes_on()], "", vec![true]),
    ] {
        let mut scene = scene(twins(), acts);
        read(&mut scene, more).await;
        let committed: Vec<bool> =
            scene.asked().iter().map(|asked| asked.commitment.is_committed()).collect();
        assert_eq!(committed, expected, "{why}");
    }
}
