//! Every row of {mode} × {confidence} × {stream or not} × {provider}: what the client gets, and from whom.
//!
//! The table in `docs/escalation.md` is made here; the test fails when the page says something else. To write it
//! anew: `UPDATE_DOCS=1 cargo test -p shoal --no-default-features escalation_ends_as_the_page_says`.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use shoal_routing::{MicroUsd, Price, UpstreamId};

use super::*;
use crate::testing::{Act, Beat, Scene, broken, offer, say};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/escalation.md");
const BEGIN: &str = "<!-- table -->\n";
const END: &str = "<!-- end of table -->";

const MODES: [&str; 3] = ["auto", "local", "cloud"];
const CONFIDENCES: [&str; 3] = ["high", "low", "unknown"];
const PROVIDERS: [&str; 6] = ["up", "429", "5xx", "hang", "reset", "garbage"];

/// A device with a small model and a provider with a strong one.
fn scene() -> Scene {
    let mut weak = offer("phone", "weak-135m", &[]);
    Arc::make_mut(&mut weak.model).logprobs = Some(true);
    let mut strong = offer("cloud", "strong-400b", &[]);
    strong.upstream = UpstreamId::Provider("cloud".into());
    strong.price =
        Some(Price { input_per_million: MicroUsd(1_000_000), output_per_million: MicroUsd(2_000_000) });
    Scene::new(vec![weak, strong])
}

fn logprobs(confidence: &str) -> Value {
    let of = |logprob: f64| {
        let top = [json!({"token": "a", "logprob": logprob}), json!({"token": "b", "logprob": -4.0})];
        json!({"content": [{"token": "a", "logprob": logprob, "top_logprobs": top}]})
    };
    match confidence {
        "high" => of(-0.01),
        "low" => of(-2.5),
        _ => Value::Null,
    }
}

fn answer(text: &str, confidence: &str, stream: bool) -> Act {
    let chunk = |delta: Value, finish: Value, logprobs: Value| {
        say(&json!({"choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}]}).to_string())
    };
    if stream {
        return Act::Play(vec![
            chunk(json!({"role": "assistant"}), Value::Null, Value::Null),
            chunk(json!({"content": text}), Value::Null, logprobs(confidence)),
            chunk(json!({}), json!("stop"), Value::Null),
            Beat::End(true),
        ]);
    }
    let body = json!({"choices": [{"message": {"content": text}, "finish_reason": "stop", "logprobs": logprobs(confidence)}]});
    Act::Play(vec![say(&body.to_string()), Beat::End(true)])
}

fn provider(state: &str, stream: bool) -> Act {
    match state {
        "up" => answer("strong", "unknown", stream),
        "429" => Act::Fail(UpstreamError::retryable(429, "rate_limit_exceeded", "slow down")),
        "5xx" => Act::Fail(UpstreamError::retryable(500, "upstream_error", "it failed")),
        "hang" => Act::Hang,
        "reset" => Act::Play(vec![Beat::Break(broken())]),
        _ if stream => Act::Play(vec![Beat::End(false)]),
        _ => Act::Play(vec![say("<html>"), Beat::End(true)]),
    }
}

/// Runs one row; returns what the client gets in words.
async fn row(mode: &str, confidence: &str, stream: bool, state: &str) -> String {
    let scene = scene();
    scene.script("phone/weak-135m", [answer("weak", confidence, stream)]);
    scene.script("cloud/strong-400b", [provider(state, stream)]);
    let model = if mode == "cloud" { "auto" } else { "weak-135m" };
    let body = json!({
        "model": model, "stream": stream, "messages": [{"role": "user", "content": "x"}],
        "metadata": {"mode": mode, "confidence_threshold": 0.7},
    });
    let job = scene.chat(&body.to_string()).unwrap();
    let (got, ticket_says) = match scene.pipeline.run(job).await {
        Ok(Running::Whole(whole)) => {
            let says = (whole.ticket.record.escalated, whole.ticket.record.target.clone());
            let body = String::from_utf8(whole.body.to_vec()).unwrap();
            whole.complete();
            (body, says)
        }
        Ok(Running::Stream(mut committed)) => {
            let says = (committed.ticket().record.escalated, committed.ticket().record.target.clone());
            let mut all = String::new();
            while let Step::Payload(_, payload) = committed.next().await {
                all.push_str(std::str::from_utf8(&payload).unwrap());
            }
            committed.complete();
            (all, says)
        }
        Ok(Running::Sound(_)) => panic!("sound came unasked"),
        Err(failed) => return format!("error {}", failed.error.status),
    };
    let asked = scene.asked().iter().any(|r| r.body.windows(12).any(|w| w == b"top_logprobs"));
    assert!(
        !asked || !got.contains("top_logprobs"),
        "asked for on our own account, so not to be shown: {got}"
    );
    assert_ne!(got.contains("weak"), got.contains("strong"), "one of them and never both: {got}");
    if mode == "local" {
        assert!(scene.tried().iter().all(|way| !way.starts_with("cloud/")), "local means local");
    }
    let who = if got.contains("strong") { "cloud" } else { "device" };
    assert_eq!(ticket_says.1 == "cloud", who == "cloud");
    assert_eq!(ticket_says.0, who == "cloud" && mode == "auto");
    if ticket_says.0 { format!("{who}, escalated") } else { who.to_owned() }
}

#[tokio::test(start_paused = true)]
async fn escalation_ends_as_the_page_says() {
    let mut table =
        String::from("| mode | confidence | provider | whole answer | stream |\n|---|---|---|---|---|\n");
    for mode in MODES {
        for confidence in CONFIDENCES {
            for state in PROVIDERS {
                let (whole, stream) =
                    (row(mode, confidence, false, state).await, row(mode, confidence, true, state).await);
                writeln!(table, "| {mode} | {confidence} | {state} | {whole} | {stream} |").unwrap();
            }
        }
    }
    for line in
        table.lines().filter(|l| l.contains("| local |") || l.contains("| high |") && l.contains("| auto |"))
    {
        assert!(line.matches("| device ").count() == 2, "{line}");
    }
    let page = std::fs::read_to_string(PAGE).unwrap();
    let (head, rest) = page.split_once(BEGIN).unwrap();
    let (written, tail) = rest.split_once(END).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(PAGE, format!("{head}{BEGIN}{table}{END}{tail}")).unwrap();
        return;
    }
    assert_eq!(written, table, "docs/escalation.md is out of date; see the head of this file");
}

#[tokio::test(start_paused = true)]
async fn who_names_a_model_without_a_threshold_gets_that_model_at_once() {
    let scene = scene();
    scene.script("phone/weak-135m", [answer("weak", "low", true)]);
    let job = scene
        .chat(r#"{"model":"weak-135m","stream":true,"messages":[{"role":"user","content":"x"}]}"#)
        .unwrap();
    assert!(matches!(scene.pipeline.run(job).await.unwrap(), Running::Stream(_)));
    assert_eq!(scene.tried(), ["phone/weak-135m"]);
    let asked = String::from_utf8(scene.asked()[0].body.to_vec()).unwrap();
    assert!(!asked.contains("logprobs"), "nothing is asked for that nobody will judge: {asked}");
}

#[tokio::test(start_paused = true)]
async fn the_held_prefix_adds_at_most_400_ms() {
    let scene = scene();
    let word = json!({"choices": [{"delta": {"content": "weak"}, "logprobs": logprobs("high")}]}).to_string();
    scene.script(
        "phone/weak-135m",
        [Act::Play(vec![say(&word), Beat::Wait(Duration::from_secs(20)), Beat::End(true)])],
    );
    let body = json!({"model": "weak-135m", "stream": true, "messages": [{"role": "user", "content": "x"}],
        "metadata": {"confidence_threshold": 0.7}});
    let job = scene.chat(&body.to_string()).unwrap();
    let asked = tokio::time::Instant::now();
    assert!(matches!(scene.pipeline.run(job).await.unwrap(), Running::Stream(_)));
    assert!(asked.elapsed() <= Duration::from_millis(410), "{:?}", asked.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_rejected_answers_own_confidence_model_and_tokens_are_kept() {
    for stream in [false, true] {
        for (state, ended) in [("up", ["rejected", "ok"]), ("5xx", ["ok", "upstream_error"])] {
            let scene = scene();
            scene.script("phone/weak-135m", [answer("weak", "low", stream)]);
            scene.script("cloud/strong-400b", [provider(state, stream)]);
            let body = json!({"model": "weak-135m", "stream": stream, "messages": [{"role": "user", "content": "x"}],
                "metadata": {"confidence_threshold": 0.7}});
            let job = scene.chat(&body.to_string()).unwrap();
            let running = scene.pipeline.run(job).await.unwrap();
            let live = scene.pipeline.sinks.live.list();
            assert_eq!(live[0].attempt_log[0].ended, ended[0], "seen while the answer still runs");
            let record = match running {
                Running::Whole(whole) => whole.ticket.record.clone(),
                Running::Stream(committed) => committed.ticket().record.clone(),
                Running::Sound(_) => panic!("sound came unasked"),
            };
            let [weak, other] = &record.attempt_log[..] else { panic!("{:?}", record.attempt_log) };
            assert_eq!([weak.ended.as_str(), other.ended.as_str()], ended, "{state}");
            assert_eq!([weak.model.as_str(), other.model.as_str()], ["weak-135m", "strong-400b"]);
            assert!(weak.confidence.is_some_and(|c| c < 0.7) && weak.raw_confidence.is_some());
            if state == "up" {
                assert_eq!(record.confidence, other.confidence, "the request's own is the given answer's");
                assert_ne!(record.confidence, weak.confidence);
                assert!(weak.rejected_tokens.is_some_and(|n| n > 0 && n == record.rejected_tokens));
                assert_eq!(weak.rejected_cost_usd, Some(0.0), "a device costs nothing");
            } else {
                assert_eq!((record.confidence, weak.rejected_tokens), (weak.confidence, None));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_rejected_answer_of_a_provider_is_part_of_the_cost() {
    let price = |n| Some(Price { input_per_million: MicroUsd(0), output_per_million: MicroUsd(n) });
    let (mut weak, mut strong) = (offer("near", "weak-135m", &[]), offer("far", "strong-400b", &[]));
    Arc::make_mut(&mut weak.model).logprobs = Some(true);
    (weak.upstream, weak.price) = (UpstreamId::Provider("near".into()), price(1_000_000));
    (strong.upstream, strong.price) = (UpstreamId::Provider("far".into()), price(2_000_000));
    let scene = Scene::new(vec![weak, strong]);
    scene.script("near/weak-135m", [answer("weak", "low", false)]);
    scene.script("far/strong-400b", [answer("strong", "unknown", false)]);
    let body = json!({"model": "weak-135m", "messages": [{"role": "user", "content": "x"}],
        "metadata": {"confidence_threshold": 0.7}});
    let job = scene.chat(&body.to_string()).unwrap();
    let Running::Whole(whole) = scene.pipeline.run(job).await.unwrap() else { panic!("not streamed") };
    let record = &whole.ticket.record;
    assert!(record.escalated, "{record:?}");
    let rejected = record.attempt_log[0].rejected_cost_usd.unwrap();
    assert!(rejected > 0.0 && record.cost_usd.is_none_or(|all| all > rejected), "{record:?}");
}

/// A call of `weather` for Oslo, of whose name and braces its model was sure.
fn call(city_logprob: f64) -> Act {
    let token =
        |(text, logprob): &(&str, f64)| json!({"token": text, "logprob": logprob, "bytes": text.as_bytes()});
    let tokens = [
        ("<tool_call>{\"name\": \"", -0.01),
        ("weather", -0.01),
        ("\", \"arguments\": {\"city\": \"", -0.01),
        ("Oslo", city_logprob),
        ("\"", -0.01),
        ("}", -0.01),
        ("}", -0.01),
        ("</tool_call>", -0.01),
    ];
    let function = json!({"name": "weather", "arguments": "{\"city\": \"Oslo\"}"});
    let message =
        json!({"content": null, "tool_calls": [{"id": "call_1", "type": "function", "function": function}]});
    let body = json!({"choices": [{"message": message, "finish_reason": "tool_calls",
        "logprobs": {"content": tokens.iter().map(token).collect::<Vec<_>>()}}]});
    Act::Play(vec![say(&body.to_string()), Beat::End(true)])
}

#[tokio::test(start_paused = true)]
async fn a_call_with_a_guessed_value_is_passed_up_though_its_braces_were_sure() {
    for (city_logprob, escalated) in [(-0.05, false), (-1.6, true)] {
        let scene = scene();
        scene.script("phone/weak-135m", [call(city_logprob)]);
        scene.script("cloud/strong-400b", [answer("strong", "unknown", false)]);
        let tool =
            json!({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}});
        let body = json!({"model": "weak-135m", "messages": [{"role": "user", "content": "rain?"}], "tools": [tool],
            "metadata": {"confidence_threshold": 0.7}});
        let job = scene.chat(&body.to_string()).unwrap();
        let Running::Whole(whole) = scene.pipeline.run(job).await.unwrap() else { panic!("not streamed") };
        assert_eq!(whole.ticket.record.escalated, escalated, "{:?}", whole.ticket.record.attempt_log);
        let confidence = whole.ticket.record.attempt_log[0].raw_confidence.unwrap();
        assert_eq!(confidence < 0.3, escalated, "{confidence}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_restricted_request_never_meets_a_provider() {
    for stream in [false, true] {
        let scene = scene();
        scene.script("phone/weak-135m", [answer("weak", "low", stream)]);
        let body = json!({"model": "auto", "stream": stream, "messages": [{"role": "user", "content": "x"}],
            "metadata": {"confidence_threshold": 0.99, "data_class": "restricted"}});
        let job = scene.chat(&body.to_string()).unwrap();
        assert!(scene.pipeline.run(job).await.is_ok());
        assert_eq!(scene.tried(), ["phone/weak-135m"]);
    }
}
