//! Second opinions over scripted devices: who is asked, when, and what becomes of either answer.

use std::time::{Duration, Instant};

use serde_json::json;
use shoal_routing::{DataClass, MicroUsd, Offer, Price, UpstreamId};

use crate::judging::AgreementSettings;
use crate::pipeline::{Running, Whole};
use crate::store::RequestRecord;
use crate::testing::{Act, Beat, Scene, offer, say};

const SETTINGS: AgreementSettings =
    AgreementSettings { per_hour: 1_000_000, max_concurrent: 1, wait: Duration::from_secs(30) };

/// Two small models on devices, and a strong one at a provider.
fn offers() -> Vec<Offer> {
    let mut strong = offer("cloud", "strong-400b", &[]);
    strong.upstream = UpstreamId::Provider("cloud".into());
    strong.price =
        Some(Price { input_per_million: MicroUsd(1_000_000), output_per_million: MicroUsd(2_000_000) });
    vec![offer("phone", "weak-135m", &[]), offer("tablet", "other-135m", &[]), strong]
}

fn answer(text: &str) -> Act {
    let body = json!({"choices": [{"message": {"content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4}});
    Act::Play(vec![say(&body.to_string()), Beat::End(true)])
}

/// A scene in which each of the devices says what it always says.
fn scene(weak: &'static str, other: &'static str, settings: AgreementSettings, offers: Vec<Offer>) -> Scene {
    let scene = Scene::with_second_opinion(offers, settings);
    scene.improvise(Box::new(move |way, _| match way {
        "phone/weak-135m" => answer(weak),
        "tablet/other-135m" => answer(other),
        _ => answer("strong"),
    }));
    scene
}

async fn ask(scene: &Scene, prompt: &str, metadata: serde_json::Value) -> Whole {
    let body = json!({"model": "weak-135m", "messages": [{"role": "user", "content": prompt}], "metadata": metadata});
    let job = scene.chat(&body.to_string()).unwrap();
    let Ok(Running::Whole(whole)) = scene.pipeline.run(job).await else { panic!("a whole answer expected") };
    whole
}

fn text(whole: &Whole) -> String {
    serde_json::from_slice::<serde_json::Value>(&whole.body).unwrap()["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn skipped(record: &RequestRecord) -> &str {
    record.agreement.as_ref().map_or("nobody was wanted", |agreement| &agreement.skipped)
}

#[tokio::test]
async fn two_models_that_agree_keep_the_answer_and_two_that_do_not_pass_it_up() {
    for (other, share, given) in [("paris.", 1.0, "Paris"), ("Lyon", 0.0, "strong")] {
        let scene = scene("Paris", other, SETTINGS, offers());
        let whole = ask(&scene, "capital of France?", json!({"confidence_threshold": 0.5})).await;
        assert_eq!(text(&whole), given);
        let record = whole.ticket.record.clone();
        whole.complete();
        let agreement = record.agreement.as_ref().unwrap();
        assert_eq!((agreement.share, agreement.model.as_str()), (Some(share), "other-135m"));
        assert_eq!(agreement.tokens, 7);
        assert_eq!(record.attempt_log[0].raw_confidence, Some(share));
        assert_eq!(record.escalated, given == "strong");
        let rows = scene.pipeline.sinks.history.newest(10).unwrap();
        let row = rows.iter().find(|row| row.kind == "agreement").unwrap();
        assert_eq!((&row.about, &row.id), (&record.id, &agreement.request_id));
        assert_eq!((row.outcome.as_str(), row.data_class.as_str()), ("completed", "restricted"));
        let totals = &scene.pipeline.sinks.totals;
        assert_eq!((totals.of("accepted"), totals.of("completed")), (1, 1), "only clients' requests count");
        for device in ["phone", "tablet"] {
            assert_eq!(scene.pipeline.loads.in_flight(&UpstreamId::Device(device.into())), 0, "{device}");
        }
    }
}

#[tokio::test]
async fn what_must_stay_is_asked_of_devices_only() {
    let mut offers = offers();
    offers.push(offer("server", "better-70b", &[]));
    let scene = scene("Paris", "Lyon", SETTINGS, offers);
    let metadata = json!({"confidence_threshold": 0.5, "data_class": "restricted"});
    let whole = ask(&scene, "a secret?", metadata).await;
    whole.complete();
    assert!(scene.tried().len() >= 2);
    for (way, request) in scene.take_asked() {
        assert!(!way.starts_with("cloud/"), "{way}");
        assert_eq!(request.data_class, DataClass::Restricted);
    }
}

#[tokio::test]
async fn a_stronger_model_that_was_asked_for_its_opinion_is_not_asked_again() {
    let offers = vec![offer("phone", "weak-135m", &[]), offer("server", "better-70b", &[])];
    // A device of which nothing was measured is expected to need minutes for a model of that size.
    let patient = AgreementSettings { wait: Duration::from_secs(3600), ..SETTINGS };
    let scene = scene("Paris", "", patient, offers);
    let whole = ask(&scene, "capital of Norway?", json!({"confidence_threshold": 0.5})).await;
    assert_eq!(text(&whole), "strong", "what every other model here says");
    assert!(whole.ticket.record.escalated);
    let [weak, better] = &whole.ticket.record.attempt_log[..] else { panic!("two attempts expected") };
    assert_eq!((weak.ended.as_str(), better.ended.as_str()), ("rejected", "ok"));
    whole.complete();
    assert_eq!(scene.tried(), ["phone/weak-135m", "server/better-70b"]);
    assert_eq!(scene.pipeline.loads.in_flight(&UpstreamId::Device("server".into())), 0);
}

#[tokio::test]
async fn nobody_is_asked_beyond_the_budget_or_where_a_client_would_wait_for_the_slot() {
    let once = AgreementSettings { per_hour: 1, ..SETTINGS };
    let scene = scene("Paris", "Lyon", once, offers());
    for (n, expected) in ["", "allowance"].into_iter().enumerate() {
        let whole = ask(&scene, &format!("question {n}"), json!({"confidence_threshold": 0.5})).await;
        assert_eq!(skipped(&whole.ticket.record), expected);
        whole.complete();
    }
    let mut few = offers();
    few[1].slots = 1;
    let upstream = few[1].upstream.clone();
    let scene = self::scene("Paris", "Lyon", SETTINGS, few);
    let _client = scene.pipeline.loads.started(&upstream, &"other-135m".into(), Instant::now());
    let whole = ask(&scene, "a busy day?", json!({"confidence_threshold": 0.5})).await;
    assert_eq!((skipped(&whole.ticket.record), text(&whole).as_str()), ("busy", "Paris"));
    whole.complete();
}

#[tokio::test(start_paused = true)]
async fn a_client_waits_no_longer_than_the_setting_says() {
    let scene =
        Scene::with_second_opinion(offers(), AgreementSettings { wait: Duration::from_secs(15), ..SETTINGS });
    scene.script("phone/weak-135m", [answer("Paris")]);
    scene.script("tablet/other-135m", [Act::Hang]);
    let asked = tokio::time::Instant::now();
    let whole = ask(&scene, "a slow one?", json!({"confidence_threshold": 0.5})).await;
    assert_eq!((skipped(&whole.ticket.record), text(&whole).as_str()), ("late", "Paris"));
    assert!(asked.elapsed() <= Duration::from_secs(16), "{:?}", asked.elapsed());
    whole.complete();
    assert_eq!(scene.working(), 0, "the call was given up");
}

#[tokio::test]
async fn nobody_is_asked_where_it_changes_nothing() {
    let offers_without_cloud = || vec![offer("phone", "weak-135m", &[]), offer("tablet", "other-135m", &[])];
    let cases = [
        // The client named the model and set no threshold.
        (offers(), json!({})),
        (offers(), json!({"confidence_threshold": 0.5, "mode": "local"})),
        // Nobody stronger.
        (offers_without_cloud(), json!({"confidence_threshold": 0.5})),
    ];
    for (offers, metadata) in cases {
        let scene = scene("Paris", "Lyon", SETTINGS, offers);
        let whole = ask(&scene, "anything", metadata.clone()).await;
        assert_eq!(skipped(&whole.ticket.record), "nobody was wanted", "{metadata}");
        whole.complete();
        assert_eq!(scene.tried(), ["phone/weak-135m"], "{metadata}");
    }
}

#[tokio::test]
async fn an_answer_that_says_something_of_itself_and_a_stream_need_no_opinion() {
    let scene = Scene::with_second_opinion(offers(), SETTINGS);
    let logprobs = json!({"content": [{"token": "a", "logprob": -0.01}]});
    let body = json!({"choices": [{"message": {"content": "Paris"}, "finish_reason": "stop", "logprobs": logprobs}]});
    scene.script("phone/weak-135m", [Act::Play(vec![say(&body.to_string()), Beat::End(true)])]);
    ask(&scene, "sure?", json!({"confidence_threshold": 0.5})).await.complete();
    scene.script("phone/weak-135m", [crate::testing::stream_answer()]);
    let body = json!({"model": "weak-135m", "stream": true, "messages": [{"role": "user", "content": "streamed?"}],
        "metadata": {"confidence_threshold": 0.5}});
    let job = scene.chat(&body.to_string()).unwrap();
    assert!(matches!(scene.pipeline.run(job).await, Ok(Running::Stream(_))));
    assert_eq!(scene.tried(), ["phone/weak-135m"; 2]);
}
