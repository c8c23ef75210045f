//! What was judged on one node decides on another whether an answer is passed up.

use std::sync::Arc;

use serde_json::json;
use shoal_proto::SignedBlob;
use shoal_routing::escalate::gain::AnswerSignals;
use shoal_routing::{ArmId, Confidence, Domain, Features, MicroUsd, Price, Score, UpstreamId, Words};

use super::*;
use crate::feedback::{JudgedBy, Judgement};
use crate::replication::statistics::testimony_to_bytes;
use crate::store::RequestRecord;
use crate::testing::{Act, Beat, Scene, offer, say};

/// Requests until one is surely sent to the device first: one in a hundred explores.
const TRIES: usize = 8;

/// A small model on a device, and a provider whose price keeps it the second choice.
fn scene() -> Scene {
    let mut weak = offer("phone", "weak-1b", &[]);
    Arc::make_mut(&mut weak.model).logprobs = Some(true);
    let mut strong = offer("cloud", "strong-400b", &[]);
    strong.upstream = UpstreamId::Provider("cloud".into());
    strong.price = Some(Price { input_per_million: MicroUsd(0), output_per_million: MicroUsd(50_000_000) });
    Scene::new(vec![weak, strong])
}

/// An answer of one token that its model gave about half of the probability.
fn answer(text: &str) -> Act {
    let top = [json!({"token": "a", "logprob": -0.5}), json!({"token": "b", "logprob": -1.5})];
    let logprobs = json!({"content": [{"token": "a", "logprob": -0.5, "top_logprobs": top}]});
    let body =
        json!({"choices": [{"message": {"content": text}, "finish_reason": "stop", "logprobs": logprobs}]});
    Act::Play(vec![say(&body.to_string()), Beat::End(true)])
}

/// Asks until the device was asked first, and returns that request's record.
async fn asked(scene: &Scene) -> RequestRecord {
    for n in 0..TRIES {
        scene.script("phone/weak-1b", [answer("weak")]);
        scene.script("cloud/strong-400b", [answer("strong")]);
        let body = json!({"model": "auto:cheap", "messages": [{"role": "user", "content": format!("question {n}")}]});
        let job = scene.chat(&body.to_string()).unwrap();
        let Running::Whole(whole) = scene.pipeline.run(job).await.unwrap() else { panic!("not streamed") };
        let record = whole.ticket.record.clone();
        whole.complete();
        if record.local_attempt {
            return *record;
        }
    }
    panic!("the device was never asked first")
}

/// Judges answers on a node: the small model is right where it was sure and wrong where it was not.
async fn judge(scene: &mut Scene) {
    for n in 0..120_u32 {
        let sure = n % 2 == 0;
        let raw = if sure { 0.95 } else { 0.3 + f64::from(n % 5) / 10.0 };
        for (arm, raw, score) in [
            ("weak-1b", Confidence::Known(Score::clamped(raw)), if sure { Score::ONE } else { Score::ZERO }),
            ("strong-400b", Confidence::Unknown, Score::ONE),
        ] {
            let judgement = Judgement {
                request: format!("req_{arm}_{n}").into(),
                arm: ArmId::new(arm, None),
                score,
                seen: AnswerSignals { raw, out_tokens: None },
                features: Some(Features::default()),
                words: Words::default(),
                domain: Domain::General,
                by: JudgedBy::Client,
            };
            scene.pipeline.sinks.feedback.judge(judgement).await;
        }
        scene.gossip();
    }
}

/// What a node would sign, as another one gets it.
fn told(scene: &Scene) -> SignedBlob {
    let learnt = scene.pipeline.sinks.feedback.learnt();
    let testimony = &learnt.origins[0].testimony;
    SignedBlob {
        origin: "a".into(),
        generation: testimony.generation,
        version: testimony.version,
        payload: testimony_to_bytes(testimony),
        ..SignedBlob::default()
    }
}

#[tokio::test(start_paused = true)]
async fn what_one_node_was_told_makes_another_pass_an_answer_up() {
    let (mut a, mut b) = (scene(), scene());
    let before = asked(&b).await;
    assert!(!before.escalated && before.raw_confidence.is_some(), "{before:?}");
    judge(&mut a).await;
    let feedback = b.pipeline.sinks.feedback.clone();
    tokio::join!(feedback.testify(vec![told(&a)]), async { b.gossip() });
    let local = ArmId::new("weak-1b", None);
    let strong = ArmId::new("strong-400b", None);
    let learnt = b.pipeline.sinks.feedback.learnt();
    let gain = |raw: f64| {
        let seen = AnswerSignals { raw: Confidence::Known(Score::clamped(raw)), out_tokens: None };
        let evidence = learnt.gains.evidence(&local, Features::default(), Domain::General, &seen);
        learnt.gains.gain(&local, &strong, &evidence).unwrap().value()
    };
    assert!(gain(0.5) > 0.8 && gain(0.95) < 0.2, "{} {}", gain(0.5), gain(0.95));
    let after = asked(&b).await;
    assert_eq!((after.escalated, after.escalation.as_str()), (true, "expected_gain"), "{after:?}");
    assert!(after.attempt_log[0].confidence.unwrap() < before.confidence.unwrap() - 0.2);
    assert!(b.pipeline.sinks.feedback.learnt().origins.iter().any(|origin| &*origin.origin == "a"));
}
