//! Goes on with a committed answer on another device, where the client asked for that: the same weights, byte for
//! byte the text so far, no second beginning.
//!
//! It is the one exception from "nothing is spliced", and so narrow that what the client gets is what one host could
//! have said: only a device with the same digest of the model, only text (no tools, no schema, no log probabilities,
//! one answer), only engines that take a partial answer as the assistant's last message and go on in it. A host that
//! cannot is never asked; if none can, the stream ends with the error that it would have ended with anyway.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;
use shoal_routing::{
    Asking, Balancer, Choice, Decision, InFlight, LoadBook, Offer, Priority, RetryBudget, RetryKind, Tries,
    UpstreamId,
};

use super::attempt::{self, Patience};
use super::attempts::{Answered, device};
use super::delivery::Events;
use super::gate::Gate;
use super::watch::Watch;
use super::{Origin, Pipeline, Resolve};
use crate::api::body::{Body, Edit};
use crate::api::parse::Parsed;
use crate::egress::EgressMark;
use crate::upstream::pulse::Commitment;
use crate::upstream::{ApiPath, Event, UpstreamError, UpstreamRequest};

/// Engines that go on in an assistant's last message.
const CONTINUING: [&str; 3] = ["embedded", "llama.cpp", "vllm"];
/// Longest text that is carried over, bytes; beyond it an answer is not resumed.
const MAX_TEXT: usize = 1 << 20;
/// Longest wait for a slot of another device while a client looks at half an answer.
const SLOT_WAIT: Duration = Duration::from_secs(5);

/// What it takes to go on with one answer elsewhere.
pub(super) struct Resume {
    loads: Arc<LoadBook>,
    resolver: Arc<dyn Resolve>,
    retries: RetryBudget,
    gate: Gate,
    offers: Vec<Arc<Offer>>,
    failed: Vec<UpstreamId>,
    current: Choice,
    parsed: Parsed,
    origin: Origin,
    patience: Patience,
    egress: EgressMark,
    tries: Tries,
    so_far: SoFar,
    /// That of the attempt whose answer the client reads.
    commitment: Commitment,
}

/// An answer that goes on.
pub(super) struct Resumed {
    pub(super) held: std::collections::VecDeque<Bytes>,
    pub(super) events: Events,
    pub(super) guard: InFlight,
    pub(super) choice: Choice,
}

/// What the client has of the answer.
#[derive(Debug, Clone, Default)]
struct SoFar {
    text: String,
    payloads: u64,
    /// Something came that a text cannot carry over.
    is_more_than_text: bool,
    /// `id`, `created`, `model` and the like of its first payload.
    identity: Vec<(String, Value)>,
}

impl Resume {
    /// Prepares for a break, if the request asked for that and its answer can be gone on with.
    pub(super) fn new(
        pipeline: &Pipeline,
        parsed: &Parsed,
        origin: &Origin,
        decision: &Decision,
        answered: &Answered,
        (patience, tries): (Patience, Tries),
        egress: &EgressMark,
    ) -> Option<Box<Self>> {
        let (shape, offer) = (&parsed.shape, &answered.choice.offer);
        let wanted = shape.resume.unwrap_or(pipeline.resumes);
        let is_text = shape.stream
            && parsed.path == ApiPath::ChatCompletions
            && shape.answers == 1
            && !(shape.needs.tools || shape.needs.schema || shape.needs.logprobs);
        if !(wanted && is_text && origin.hop == 0 && can_continue(offer) && tries.are_left()) {
            return None;
        }
        let same = |other: &&Arc<Offer>| {
            can_continue(other)
                && other.model.id == offer.model.id
                && other.model.digest == offer.model.digest
                && other.model.quantization == offer.model.quantization
                && other.upstream != offer.upstream
        };
        let offers: Vec<_> = decision.offers.iter().filter(same).cloned().collect();
        (!offers.is_empty()).then(|| {
            Box::new(Self {
                loads: pipeline.loads.clone(),
                resolver: pipeline.resolver.clone(),
                retries: pipeline.retries.clone(),
                gate: pipeline.gate.clone(),
                offers,
                failed: Vec::new(),
                current: answered.choice.clone(),
                parsed: parsed.clone(),
                origin: origin.clone(),
                patience,
                egress: egress.clone(),
                tries,
                so_far: SoFar::default(),
                commitment: Commitment::default(),
            })
        })
    }

    /// Takes the commitment of the attempt that the client reads now: its host is waited for like any other once
    /// nobody can go on for it.
    pub(super) fn holding(mut self: Box<Self>, commitment: Commitment) -> Box<Self> {
        self.commitment = commitment;
        self.settle();
        self
    }

    /// Notes a payload that the client was given.
    pub(super) fn gave(&mut self, payload: &[u8]) {
        self.so_far.gave(payload);
        if self.so_far.is_more_than_text {
            self.commitment.commit();
        }
    }

    fn settle(&self) {
        let is_left = |offer: &Arc<Offer>| {
            offer.upstream != self.current.offer.upstream && !self.failed.contains(&offer.upstream)
        };
        if !self.tries.are_left() || !self.offers.iter().any(is_left) {
            self.commitment.commit();
        }
    }

    /// Asks other devices to go on, one after the other. Returns itself for the next break, and what goes on.
    pub(super) async fn go_on(mut self: Box<Self>) -> (Box<Self>, Option<Resumed>) {
        let resumed = self.try_all().await;
        let outcome = if resumed.is_some() { "resumed" } else { "not_resumed" };
        metrics::counter!("shoal_resumes_total", "outcome" => outcome).increment(1);
        (self, resumed)
    }

    async fn try_all(&mut self) -> Option<Resumed> {
        let body = self.so_far.continuation(&self.parsed, &self.current.offer.model.id)?;
        self.failed.push(self.current.offer.upstream.clone());
        while self.tries.are_left() {
            let (choice, guard) = self.next_host().await?;
            let _permit = self.retries.try_retry(RetryKind::Transient, &choice.offer.upstream)?;
            let left = self.tries.begin(&choice.route);
            let commitment = Commitment::default();
            let upstream = self.resolver.resolve(&choice.offer, &choice.route)?;
            let request = UpstreamRequest {
                id: self.origin.id.clone(),
                path: self.parsed.path,
                model: choice.offer.model.id.clone(),
                body: body.clone(),
                media: None,
                stream: true,
                deadline: self.origin.deadline,
                data_class: self.parsed.shape.travels_as(),
                hop: self.origin.hop,
                meshes: self.parsed.shape.meshes,
                attempts_left: left,
                device: device(&choice),
                egress: self.egress.clone(),
                commitment: commitment.clone(),
                payer: None,
            };
            let watch = Watch::new(&self.parsed.shape, false, false);
            match attempt::run(upstream, request, guard, self.patience, watch).await {
                Ok(begun) => {
                    let (held, events, guard) = begun.into_stream()?;
                    let rewriter = self.so_far.clone();
                    let held = held.into_iter().filter_map(|payload| rewriter.rewritten(payload)).collect();
                    let events = events.filter_map(move |event| {
                        let event = match event {
                            Ok(Event::Chunk(payload)) => {
                                rewriter.rewritten(payload).map(|p| Ok(Event::Chunk(p)))
                            }
                            other => Some(other),
                        };
                        std::future::ready(event)
                    });
                    self.current = choice.clone();
                    self.commitment = commitment;
                    self.settle();
                    return Some(Resumed { held, events: events.boxed(), guard, choice });
                }
                Err(failure) => {
                    tracing::debug!(upstream = %choice.offer.name, code = %failure.error.code, "did not go on");
                    self.failed.push(choice.offer.upstream.clone());
                }
            }
        }
        None
    }

    /// Another device that has not failed, with a slot of it.
    async fn next_host(&mut self) -> Option<(Choice, InFlight)> {
        let work = self.parsed.profile.work();
        let balancer = Balancer::for_work(work).with_session(self.parsed.shape.session);
        loop {
            let left: Vec<Arc<Offer>> =
                self.offers.iter().filter(|offer| !self.failed.contains(&offer.upstream)).cloned().collect();
            let mut rng = StdRng::from_rng(&mut rand::rng());
            let offer = balancer.pick(&left, &self.loads, Instant::now(), &mut rng, &self.failed)?;
            let route = offer.routes_at(self.origin.hop).next().cloned();
            let asking = Asking {
                key: self.origin.key_id.clone(),
                priority: Priority::Client,
                deadline: Some((tokio::time::Instant::now() + SLOT_WAIT).into_std()),
                cost_ms: 0.0,
            };
            let passed = self.gate.pass(&offer, work, asking).await;
            match (route, passed) {
                (Some(route), Ok(guard)) => {
                    let (arm, reason) = (self.current.arm.clone(), self.current.reason);
                    return Some((Choice { offer, route, arm, reason }, guard));
                }
                _ => self.failed.push(offer.upstream.clone()),
            }
        }
    }
}

fn can_continue(offer: &Offer) -> bool {
    matches!(offer.upstream, UpstreamId::Device(_))
        && !offer.is_cloud()
        && offer.model.digest.is_some()
        && CONTINUING.contains(&&*offer.model.engine)
}

impl SoFar {
    fn gave(&mut self, payload: &[u8]) {
        let Ok(Value::Object(chunk)) = serde_json::from_slice::<Value>(payload) else {
            self.is_more_than_text = true;
            return;
        };
        if self.identity.is_empty() {
            let kept = ["id", "created", "model", "system_fingerprint"];
            let found = kept.iter().filter_map(|name| Some(((*name).to_owned(), chunk.get(*name)?.clone())));
            self.identity = found.collect();
        }
        let choice = &chunk.get("choices").map_or(&Value::Null, |choices| &choices[0]);
        let Some(delta) = choice["delta"].as_object() else { return };
        for (name, value) in delta {
            match (name.as_str(), value) {
                ("role", _) | (_, Value::Null) => {}
                ("content", Value::String(text)) => {
                    self.payloads += u64::from(!text.is_empty());
                    self.text.push_str(text);
                }
                // A thought, a call, a refusal: no engine goes on in those.
                (_, Value::String(text)) if text.is_empty() => {}
                (_, Value::Array(list)) if list.is_empty() => {}
                _ => self.is_more_than_text = true,
            }
        }
        self.is_more_than_text |= self.text.len() > MAX_TEXT;
    }

    /// The request for the rest of the answer; `None` where nobody can go on, or nothing is left to say.
    fn continuation(&self, parsed: &Parsed, model: &str) -> Option<Bytes> {
        if self.is_more_than_text || self.text.is_empty() {
            return None;
        }
        let plain = parsed.body_for(model, false, true);
        let body = Body::parse(&plain).ok()?;
        let said = serde_json::json!({"role": "assistant", "content": self.text}).to_string();
        let messages = body.raw("messages")?.get().trim_end().strip_suffix(']')?;
        let mut edits = vec![
            ("messages", Edit::Set(format!("{messages},{said}]"))),
            ("continue_final_message", Edit::Set("true".into())),
            ("add_generation_prompt", Edit::Set("false".into())),
        ];
        for name in ["max_tokens", "max_completion_tokens"] {
            let limit = body.raw(name).and_then(|raw| raw.get().parse::<u64>().ok());
            if let Some(limit) = limit {
                let left = limit.checked_sub(self.payloads).filter(|left| *left > 0)?;
                edits.push((name, Edit::Set(left.to_string())));
            }
        }
        Some(body.rebuild(&edits))
    }

    /// A payload of the rest as one of the answer that the client has begun to read; `None` for a second beginning.
    fn rewritten(&self, payload: Bytes) -> Option<Bytes> {
        let Ok(Value::Object(mut chunk)) = serde_json::from_slice::<Value>(&payload) else {
            return Some(payload);
        };
        for (name, value) in &self.identity {
            if chunk.contains_key(name) {
                chunk.insert(name.clone(), value.clone());
            }
        }
        if let Some(Value::Object(usage)) = chunk.get_mut("usage") {
            let count =
                |usage: &serde_json::Map<String, Value>, name: &str| usage.get(name).and_then(Value::as_u64);
            let prompt = count(usage, "prompt_tokens").unwrap_or(0).saturating_sub(self.payloads);
            let answer = count(usage, "completion_tokens").unwrap_or(0) + self.payloads;
            usage.insert("prompt_tokens".into(), prompt.into());
            usage.insert("completion_tokens".into(), answer.into());
            usage.insert("total_tokens".into(), (prompt + answer).into());
        }
        let choices = chunk.get_mut("choices").and_then(Value::as_array_mut);
        let mut says_nothing = false;
        for choice in choices.into_iter().flatten() {
            let is_last = choice["finish_reason"].as_str().is_some_and(|reason| !reason.is_empty());
            let Some(delta) = choice.get_mut("delta").and_then(Value::as_object_mut) else { continue };
            let was_opening = delta.remove("role").is_some();
            let is_empty = delta.values().all(|value| value.is_null() || value.as_str() == Some(""));
            says_nothing |= was_opening && is_empty && !is_last;
        }
        if says_nothing {
            return None;
        }
        serde_json::to_vec(&chunk).ok().map(Bytes::from)
    }
}

/// Tells whether an answer that broke off like this may be gone on with. A deadline that passed (504, for good) is over
/// everywhere.
pub(super) fn may_go_on(cut: &UpstreamError) -> bool {
    cut.status >= 500 && (cut.retryable || cut.status != 504)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn so_far(payloads: &[&str]) -> SoFar {
        let mut so_far = SoFar::default();
        payloads.iter().for_each(|payload| so_far.gave(payload.as_bytes()));
        so_far
    }

    const FIRST: &str =
        r#"{"id":"a","created":1,"model":"m","choices":[{"delta":{"role":"assistant","content":""}}]}"#;

    #[test]
    fn the_rest_reads_as_if_the_first_had_gone_on() {
        let so_far = so_far(&[
            FIRST,
            r#"{"id":"a","choices":[{"delta":{"content":"one"}}]}"#,
            r#"{"id":"a","choices":[{"delta":{"content":" two"}}]}"#,
        ]);
        assert_eq!((so_far.text.as_str(), so_far.payloads, so_far.is_more_than_text), ("one two", 2, false));
        let rewritten = |text: &'static str| so_far.rewritten(Bytes::from_static(text.as_bytes()));
        let opening = r#"{"id":"b","created":2,"choices":[{"delta":{"role":"assistant","content":""}}]}"#;
        assert_eq!(rewritten(opening), None, "no second beginning");
        let word = r#"{"id":"b","created":2,"choices":[{"delta":{"role":"assistant","content":" three"}}]}"#;
        assert_eq!(
            rewritten(word).unwrap(),
            r#"{"id":"a","created":1,"choices":[{"delta":{"content":" three"}}]}"#
        );
        let usage =
            r#"{"id":"b","choices":[],"usage":{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15}}"#;
        let told: Value = serde_json::from_slice(&rewritten(usage).unwrap()).unwrap();
        assert_eq!(
            told["usage"],
            serde_json::json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15})
        );
    }

    #[test]
    fn calls_thoughts_and_nonsense_are_not_gone_on_with() {
        for delta in [
            r#"{"tool_calls":[{"index":0}]}"#,
            r#"{"reasoning_content":"hm"}"#,
            r#"{"refusal":"no"}"#,
            r#"{"content":[1]}"#,
        ] {
            let so_far = so_far(&[FIRST, &format!(r#"{{"choices":[{{"delta":{delta}}}]}}"#)]);
            assert!(so_far.is_more_than_text, "{delta}");
        }
        assert!(
            !so_far(&[FIRST, r#"{"choices":[{"delta":{"content":"x","refusal":null,"tool_calls":[]}}]}"#])
                .is_more_than_text
        );
    }
}
