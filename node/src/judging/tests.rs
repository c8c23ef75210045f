//! Requests through a scripted pipeline, and what their judges make of them.

use std::time::{Duration, Instant};

use http::HeaderMap;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use shoal_cluster::keyspace;
use shoal_routing::{DataClass, MicroUsd, Offer, Price, UpstreamId};

use super::witness;
use super::{EvaluatorSettings, LearningSettings, evaluator, shadow};
use crate::api::parse::Floor;
use crate::pipeline::{Running, Step};
use crate::store::{Evaluation, RequestRecord};
use crate::testing::{Act, Beat, STOP, Scene, offer, say};
use crate::upstream::UpstreamRequest;

const SCHEMA: &str = r#""response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object","required":["a"]}}}"#;

fn settings(model: &str) -> EvaluatorSettings {
    EvaluatorSettings {
        model: model.into(),
        share: 1.0,
        budget: "1usd/day".parse().unwrap(),
        per_hour: 1_000_000,
        max_concurrent: 1,
        timeout: Duration::from_secs(60),
    }
}

fn answer(text: &str) -> Act {
    let body = json!({"choices": [{"message": {"content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 40}});
    Act::Play(vec![say(&body.to_string()), Beat::End(true)])
}

fn streamed(words: &[&str]) -> Act {
    let word = |word: &&str| say(&json!({"choices": [{"delta": {"content": word}}]}).to_string());
    Act::Play(words.iter().map(word).chain([say(STOP), Beat::End(true)]).collect())
}

fn ask(model: &str, prompt: &str, more: &str) -> String {
    let comma = if more.is_empty() { "" } else { "," };
    format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"{prompt}"}}]{comma}{more}}}"#)
}

/// Runs a client's request to its end, and lets the witness look at it.
async fn play(scene: &Scene, witness: &mut witness::Service, json: &str) {
    play_from(scene, json, &HeaderMap::new(), Floor::default()).await;
    witness.look().await;
}

async fn play_from(scene: &Scene, json: &str, headers: &HeaderMap, floor: Floor) {
    let Ok(job) = scene.chat_from(json, headers, floor, None) else { return };
    match scene.pipeline.run(job).await {
        Err(_) => {}
        Ok(Running::Sound(_)) => panic!("sound came unasked"),
        Ok(Running::Whole(answer)) => answer.complete(),
        Ok(Running::Stream(mut stream)) => loop {
            match stream.next().await {
                Step::Payload(..) => {}
                Step::End(Ok(())) => return stream.complete(),
                Step::End(Err(error)) => return stream.fail(&error.code),
            }
        },
    }
}

/// Judgements of an arm that were learnt from, and the sum of their scores.
fn learnt(scene: &mut Scene, arm: &str) -> (u64, f64) {
    let keyspace::Value::Stats(stats) = scene.gossip() else { panic!("statistics expected") };
    let found = stats.arms.iter().find(|summary| summary.arm == arm);
    found.map_or((0, 0.0), |summary| (summary.scored, summary.reward_sum))
}

fn rows(scene: &Scene, kind: &str) -> Vec<RequestRecord> {
    let rows = scene.pipeline.sinks.history.newest(500).unwrap();
    rows.into_iter().filter(|row| row.kind == kind).collect()
}

fn device_scene() -> (Scene, witness::Service) {
    let mut scene = Scene::new(vec![offer("a", "m", &[])]);
    let witness = scene.witness.take().unwrap();
    (scene, witness)
}

#[tokio::test(start_paused = true)]
async fn an_ordinary_answer_teaches_nothing() {
    let (mut scene, mut witness) = device_scene();
    scene.script("a/m", [answer("Paris."), streamed(&["Par", "is."])]);
    play(&scene, &mut witness, &ask("m", "capital?", "")).await;
    play(&scene, &mut witness, &ask("m", "other capital?", r#""stream":true"#)).await;
    assert_eq!(learnt(&mut scene, "m"), (0, 0.0));
}

#[tokio::test(start_paused = true)]
async fn a_loop_is_seen_in_whole_answers_and_in_streams() {
    for stream in [false, true] {
        let (mut scene, mut witness) = device_scene();
        let words = ["I ", "do ", "not ", "know. "].repeat(20);
        scene.script("a/m", [if stream { streamed(&words) } else { answer(&words.concat()) }]);
        play(&scene, &mut witness, &ask("m", "why?", &format!(r#""stream":{stream}"#))).await;
        assert_eq!(learnt(&mut scene, "m"), (1, 0.0), "stream: {stream}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_kept_schema_counts_for_an_arm_and_a_broken_one_against_it() {
    for (text, low, high) in [(r#"{\"a\":1}"#, 0.7, 0.9), ("no", 0.0, 0.0)] {
        let (mut scene, mut witness) = device_scene();
        let text = text.replace('\\', "");
        for n in 0..200 {
            scene.script("a/m", [if n % 2 == 0 { answer(&text) } else { streamed(&[&text]) }]);
            let more = format!(r#"{SCHEMA},"stream":{}"#, n % 2 == 1);
            play(&scene, &mut witness, &ask("m", &format!("object {n}"), &more)).await;
        }
        let (scored, sum) = learnt(&mut scene, "m");
        assert!((15..100).contains(&scored), "a quarter of 200, by chance: {scored}");
        assert!((low..=high).contains(&(sum / scored as f64)), "{text}: {sum} of {scored}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_question_asked_again_at_once_counts_against_the_first_answer_and_later_it_does_not() {
    for (pause, is_retry) in [(5, true), (90, false)] {
        let (mut scene, mut witness) = device_scene();
        for n in 0..60 {
            let question = ask("m", &format!("How many legs has the insect number {n}?"), "");
            for _ in 0..2 {
                scene.script("a/m", [answer("six")]);
                play(&scene, &mut witness, &question).await;
                tokio::time::advance(Duration::from_secs(pause)).await;
            }
        }
        let (scored, sum) = learnt(&mut scene, "m");
        assert_eq!(scored > 0, is_retry, "{pause} s: {scored}");
        assert!((sum - 0.2 * scored as f64).abs() < 1e-9, "{sum} of {scored}");
        assert!(scored <= 12, "no more than their share among the judged: {scored}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_or_failed_answer_is_shown_to_nobody() {
    let (mut scene, mut witness) = device_scene();
    let words = ["I ", "do ", "not ", "know. "].repeat(20);
    scene.script("a/m", [streamed(&words)]);
    let job = scene.chat(&ask("m", "why?", r#""stream":true"#)).unwrap();
    let Ok(Running::Stream(mut stream)) = scene.pipeline.run(job).await else { panic!("a stream expected") };
    for _ in 0..50 {
        stream.next().await;
    }
    drop(stream);
    witness.look().await;
    assert_eq!(learnt(&mut scene, "m"), (0, 0.0));
}

/// A weak model that answers and one that grades, each on a device of its own.
fn with_judge(model: &str, offers: Vec<Offer>) -> (Scene, witness::Service, evaluator::Service) {
    let mut scene = Scene::new(offers);
    let store = scene.store.clone();
    let (service, sender) =
        evaluator::Service::new(settings(model), scene.pipeline.clone(), store, "0123abcd".into()).unwrap();
    let witness = scene.witness.take().unwrap().graded_by(1.0, sender);
    (scene, witness, service)
}

fn text_of(request: &UpstreamRequest) -> String {
    String::from_utf8(request.body.to_vec()).unwrap()
}

#[tokio::test]
async fn a_grade_is_asked_of_the_named_model_kept_with_its_version_and_never_graded_itself() {
    let offers = vec![offer("a", "m", &[]), offer("j", "judge", &[])];
    let (scene, mut witness, mut evaluator) = with_judge("judge", offers);
    scene.script("a/m", [answer("Paris, of course.")]);
    scene.script("j/judge", [answer("{\"grade\": 10}")]);
    play(&scene, &mut witness, &ask("m", "capital of France?", "")).await;
    for _ in 0..3 {
        evaluator.work().await;
        witness.look().await;
    }
    assert_eq!(scene.tried(), ["a/m", "j/judge"]);
    let asked = text_of(&scene.asked()[1]);
    assert!(asked.contains("capital of France?") && asked.contains("Paris, of course."));
    assert!(asked.contains("\"temperature\":0") && asked.contains("json_schema"));
    assert_eq!(scene.asked()[1].data_class, DataClass::Restricted, "a device's judge passes it on to nobody");

    let client = rows(&scene, "client").remove(0);
    let row = rows(&scene, "evaluation").remove(0);
    assert_eq!((row.about.as_str(), row.outcome.as_str()), (client.id.as_str(), "completed"));
    let graded = row.evaluation.unwrap();
    assert_eq!((graded.prompt.as_str(), graded.grade), ("v1", 10.0));
    assert!(graded.weight < 0.1, "the first grades weigh little");
    let kept = scene.store.evaluations("v1 judge", 10).unwrap().remove(0).0;
    assert_eq!((kept.request_id, kept.arm, kept.tokens, kept.grade), (client.id, "m".into(), 40, 1.0));
    let totals = &scene.pipeline.sinks.totals;
    assert_eq!((totals.of("accepted"), totals.of("completed")), (1, 1), "only clients' requests are counted");
}

#[tokio::test]
async fn grades_are_learnt_from_once_there_are_some() {
    let offers = vec![offer("a", "m", &[]), offer("j", "judge", &[])];
    let (mut scene, mut witness, mut evaluator) = with_judge("judge", offers);
    for n in 0..200 {
        scene.script("a/m", [answer("a fair answer")]);
        scene.script("j/judge", [answer("Grade: 9")]);
        play(&scene, &mut witness, &ask("m", &format!("question {n}"), "")).await;
        evaluator.work().await;
    }
    let (scored, sum) = learnt(&mut scene, "m");
    assert!((30..120).contains(&scored), "{scored}");
    assert!(sum / scored as f64 > 0.8, "{sum} of {scored}");
    assert_eq!(learnt(&mut scene, "judge").0, 0);
}

#[tokio::test]
async fn an_engine_without_schemas_is_asked_plainly_and_nonsense_is_no_grade() {
    let offers = vec![offer("a", "m", &[]), offer("j", "judge", &[])];
    let (scene, mut witness, mut evaluator) = with_judge("judge", offers);
    let refuses =
        crate::upstream::UpstreamError::new(400, "invalid_request_error", "no response_format here");
    scene.script("j/judge", [Act::Fail(refuses), answer("8/10"), answer("a poem")]);
    for question in ["first question", "second question"] {
        scene.script("a/m", [answer("yes")]);
        play(&scene, &mut witness, &ask("m", question, "")).await;
        evaluator.work().await;
    }
    let schemas: Vec<bool> = scene
        .asked()
        .iter()
        .filter(|request| &*request.model == "judge")
        .map(|request| text_of(request).contains("response_format"))
        .collect();
    assert_eq!(schemas, [true, false, false]);
    let grades: Vec<Option<f64>> =
        rows(&scene, "evaluation").iter().map(|row| row.evaluation.as_ref().map(|e| e.grade)).collect();
    assert_eq!(grades.iter().flatten().count(), 1, "{grades:?}");
}

#[tokio::test]
async fn auto_local_grades_by_another_model_than_the_one_that_answered_and_alone_not_at_all() {
    let mut cloud = provider("cloud", "strong-400b", true);
    cloud.price = None;
    let offers = vec![offer("a", "m-1b", &[]), offer("j", "judge-70b", &[]), cloud];
    let (scene, mut witness, mut evaluator) = with_judge("auto:local", offers);
    scene.script("a/m-1b", [answer("yes")]);
    scene.script("j/judge-70b", [answer("7")]);
    play(&scene, &mut witness, &ask("m-1b", "really?", "")).await;
    evaluator.work().await;
    assert_eq!(scene.tried(), ["a/m-1b", "j/judge-70b"]);

    let (alone, mut witness, mut evaluator) = with_judge("auto:local", vec![offer("a", "m", &[])]);
    alone.script("a/m", [answer("yes")]);
    play(&alone, &mut witness, &ask("m", "really?", "")).await;
    evaluator.work().await;
    assert_eq!(alone.tried(), ["a/m"]);
}

#[tokio::test]
async fn nobody_is_asked_for_a_grade_where_a_client_would_wait() {
    let judge = Offer { slots: 1, ..offer("j", "judge", &[]) };
    let upstream = judge.upstream.clone();
    let (scene, mut witness, mut evaluator) = with_judge("judge", vec![offer("a", "m", &[]), judge]);
    scene.script("a/m", [answer("yes")]);
    play(&scene, &mut witness, &ask("m", "really?", "")).await;
    let busy = scene.pipeline.loads.started(&upstream, &"judge".into(), Instant::now());
    evaluator.work().await;
    assert_eq!(scene.tried(), ["a/m"]);
    drop(busy);
}

fn provider(name: &str, model: &str, internal_ok: bool) -> Offer {
    let price =
        Some(Price { input_per_million: MicroUsd(1_000_000), output_per_million: MicroUsd(2_000_000) });
    Offer { upstream: UpstreamId::Provider(name.into()), internal_ok, price, ..offer(name, model, &[]) }
}

/// Every mixture of class, mode, key and header; what may not leave the devices never reaches a grading provider.
#[tokio::test]
async fn content_that_must_stay_never_goes_to_an_evaluator_at_a_provider() {
    for internal_ok in [true, false] {
        let mut rng = StdRng::seed_from_u64(7);
        let offers = vec![offer("a", "m", &[]), provider("cloud", "strong-400b", internal_ok)];
        let (scene, mut witness, mut evaluator) = with_judge("cloud/strong-400b", offers);
        scene.improvise(Box::new(|way, _| {
            answer(if way.starts_with("cloud/") { "9" } else { "kanarie too" })
        }));
        let classes = [DataClass::Public, DataClass::Internal, DataClass::Restricted];
        let (mut may, mut seen) = (Vec::new(), 0);
        for n in 0..300 {
            let mut class = classes[rng.random_range(0..3)];
            let floor = Floor { data_class: class, local_only: rng.random_bool(0.2) };
            let (mode, said) = (["auto", "local"][rng.random_range(0..2)], classes[rng.random_range(0..3)]);
            let mut headers = HeaderMap::new();
            headers.insert("x-shoal-data-class", said.as_str().parse().unwrap());
            class = class.max(said);
            let model = ["m", "auto:local"][rng.random_range(0..2)];
            let canary = format!("kanarie{n:08}");
            let leaves = match class {
                DataClass::Public => true,
                DataClass::Internal => internal_ok,
                DataClass::Restricted => false,
            } && mode == "auto"
                && model == "m"
                && !floor.local_only;
            if leaves {
                may.push(canary.clone());
            }
            let json = ask(model, &canary, &format!(r#""metadata":{{"mode":"{mode}"}}"#));
            play_from(&scene, &json, &headers, floor).await;
            witness.look().await;
            evaluator.work().await;
            for (way, request) in scene.take_asked() {
                if way.starts_with("cloud/") {
                    seen += 1;
                    assert!(leaves, "{class} {mode} {model} {floor:?} went to {way}");
                    assert!(text_of(&request).contains(&canary));
                }
            }
        }
        assert!(may.len() >= 5 && seen == may.len(), "{seen} of {}", may.len());
        let shown = serde_json::to_string(&scene.pipeline.sinks.history.newest(500).unwrap()).unwrap();
        assert!(!shown.contains("kanarie"), "no record holds a prompt");
        for entry in std::fs::read_dir(scene.folder()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap_or_default();
            assert!(memchr::memmem::find(&bytes, b"kanarie").is_none(), "nor does a file");
        }
    }
}

#[tokio::test]
async fn a_grade_at_a_provider_is_paid_from_the_evaluators_own_purse_and_stops_with_it() {
    let offers = vec![offer("a", "m", &[]), provider("cloud", "strong-400b", true)];
    let mut scene = Scene::new(offers);
    let small =
        EvaluatorSettings { budget: "0.002usd/day".parse().unwrap(), ..settings("cloud/strong-400b") };
    let (mut evaluator, sender) =
        evaluator::Service::new(small, scene.pipeline.clone(), scene.store.clone(), "0123abcd".into())
            .unwrap();
    let mut witness = scene.witness.take().unwrap().graded_by(1.0, sender);
    scene.improvise(Box::new(|_, _| answer("9")));
    for n in 0..40 {
        play(&scene, &mut witness, &ask("m", &format!("question {n}"), "")).await;
        evaluator.work().await;
    }
    let asked = scene.tried().iter().filter(|way| way.starts_with("cloud/")).count();
    assert!((1..40).contains(&asked), "{asked}");
}

#[tokio::test]
async fn what_is_known_of_a_judge_survives_a_restart() {
    let scene = Scene::new(vec![offer("a", "m", &[])]);
    for n in 0..80 {
        let good = f64::from(n % 2);
        let evaluation = Evaluation {
            request_id: format!("req_{n}"),
            arm: "m".into(),
            prompt: "v1 judge".into(),
            model: "judge".into(),
            tokens: 50,
            grade: 1.0 - good,
            corrected: 1.0 - good,
        };
        scene.store.keep_evaluation(&evaluation).unwrap();
        scene.store.keep_score(&evaluation.request_id, good, "").unwrap();
    }
    let weight_of = |model: &str| {
        let (pipeline, store) = (scene.pipeline.clone(), scene.store.clone());
        evaluator::Service::new(settings(model), pipeline, store, "0123abcd".into()).unwrap().0.weight()
    };
    assert!(weight_of("judge") < 0.1, "it says the opposite of what people say");
    assert!(weight_of("another") > 0.4, "of another model nothing is known");
}

#[tokio::test]
async fn feedback_on_a_graded_answer_changes_the_judges_weight_once() {
    let offers = vec![offer("a", "m", &[]), offer("j", "judge", &[])];
    let (scene, mut witness, mut evaluator) = with_judge("judge", offers);
    let judge = crate::judge::Judge {
        store: scene.store.clone(),
        history: scene.pipeline.sinks.history.clone(),
        feedback: scene.pipeline.sinks.feedback.clone(),
        witness: scene.pipeline.sinks.witness.clone(),
    };
    let before = evaluator.weight();
    for n in 0..30 {
        scene.script("a/m", [answer("fine")]);
        scene.script("j/judge", [answer(if n % 2 == 0 { "10" } else { "1" })]);
        play(&scene, &mut witness, &ask("m", &format!("question {n}"), "")).await;
        let id = rows(&scene, "client").remove(0).id;
        let says = shoal_routing::Score::clamped(f64::from(n % 2));
        // Sometimes people are faster than the judge.
        if n % 3 == 0 {
            judge.take(&id, says, "").await.unwrap();
            evaluator.work().await;
        } else {
            evaluator.work().await;
            judge.take(&id, says, "").await.unwrap();
        }
        witness.look().await;
        evaluator.work().await;
    }
    assert!(before > 0.4 && evaluator.weight() < 0.25, "{before} {}", evaluator.weight());
}

#[tokio::test]
async fn a_shadow_call_goes_to_another_device_and_both_answers_are_graded() {
    let offers = vec![
        offer("a", "m", &[]),
        offer("b", "n", &[]),
        provider("cloud", "strong-400b", true),
        offer("j", "judge", &[]),
    ];
    for stream in [false, true] {
        let (scene, witness, mut evaluator) = with_judge("judge", offers.clone());
        let learning = LearningSettings { shadow_share: 1.0, shadow_per_hour: 1_000 };
        let (mut shadow, sender) = shadow::Service::new(&learning, scene.pipeline.clone(), "0123abcd".into());
        let mut witness = witness.shadowed_by(1.0, sender);
        scene.improvise(Box::new(move |way, request| match way {
            "j/judge" if text_of(request).contains("grade") => answer("8"),
            _ if stream => streamed(&["some ", "answer"]),
            _ => answer("some answer"),
        }));
        play(&scene, &mut witness, &ask("auto", "which one?", &format!(r#""stream":{stream}"#))).await;
        for _ in 0..3 {
            shadow.work().await;
            witness.look().await;
            evaluator.work().await;
        }
        let client = rows(&scene, "client").remove(0);
        let shadows = rows(&scene, "shadow");
        assert_eq!(shadows.len(), 1, "one call, and no shadow of a shadow");
        assert_eq!(
            (shadows[0].about.as_str(), shadows[0].outcome.as_str()),
            (client.id.as_str(), "completed")
        );
        assert!(shadows[0].model != client.model && shadows[0].target == "local", "{:?}", shadows[0]);
        assert_eq!(
            (shadows[0].routing_reason.as_str(), shadows[0].data_class.as_str()),
            ("shadow", "restricted")
        );
        let graded: Vec<String> = rows(&scene, "evaluation").into_iter().map(|row| row.about).collect();
        assert!(graded.contains(&client.id) && graded.contains(&shadows[0].id), "{graded:?}");
        let totals = &scene.pipeline.sinks.totals;
        assert_eq!((totals.of("accepted"), totals.of("completed")), (1, 1));
    }
}

#[tokio::test]
async fn who_names_a_model_gets_no_shadow() {
    let offers = vec![offer("a", "m", &[]), offer("b", "n", &[])];
    let (scene, witness, _evaluator) = with_judge("n", offers);
    let learning = LearningSettings { shadow_share: 1.0, shadow_per_hour: 1_000 };
    let (mut shadow, sender) = shadow::Service::new(&learning, scene.pipeline.clone(), "0123abcd".into());
    let mut witness = witness.shadowed_by(1.0, sender);
    scene.script("a/m", [answer("yes")]);
    play(&scene, &mut witness, &ask("m", "really?", "")).await;
    shadow.work().await;
    assert!(rows(&scene, "shadow").is_empty());
}

#[tokio::test]
async fn nobody_waits_when_the_witness_does_not_look() {
    let (scene, _witness) = device_scene();
    let long = "x".repeat(200_000);
    for n in 0..400 {
        scene.script("a/m", [answer(&long)]);
        play_from(&scene, &ask("m", &format!("question {n}"), ""), &HeaderMap::new(), Floor::default()).await;
    }
    assert_eq!(scene.pipeline.sinks.totals.of("completed"), 400);
    let value: Value = serde_json::to_value(&rows(&scene, "client")[0]).unwrap();
    assert_eq!(value["kind"], "client");
}
