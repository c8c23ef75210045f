//! Watches an answer before it is committed: how far can it be trusted, and how long may it be held back?
//!
//! Only for requests for which somebody stronger may be asked; all others pass untouched.

use std::borrow::Cow;
use std::time::Instant;

use bytes::Bytes;
use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;
use shoal_routing::{FinishReason, Flaw, HeldPrefix, Hold, SignalFold, Signals, Tokens};

use super::call_watch::CallWatch;
use crate::api::parse::Shape;

/// Field in which a phone host's answer carries what the host says of it.
const PHONE_FIELD: &[u8] = b"\"shoal_phone\"";

/// What was seen of one answer so far.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    fold: SignalFold,
    held: HeldPrefix,
    limit_was_asked: bool,
    wants_json: bool,
    active: bool,
    asks_logprobs: bool,
    answers: u64,
    /// Where tools are offered and somebody stronger may be asked.
    calls: Option<Box<CallWatch>>,
    tokens: u64,
    ended: bool,
}

/// What we asked an upstream for and the client did not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unasked {
    logprobs: bool,
}

impl Unasked {
    /// Returns the payload without what the client did not ask for; most payloads are returned as they are.
    pub(super) fn removed_from(self, payload: Bytes) -> Bytes {
        let phone = memmem::find(&payload, PHONE_FIELD).is_some();
        let logprobs = self.logprobs && tells_confidence(&payload);
        if !(phone || logprobs) {
            return payload;
        }
        let Ok(mut object) = serde_json::from_slice::<serde_json::Value>(&payload) else { return payload };
        if let Some(object) = object.as_object_mut() {
            object.remove("shoal_phone");
        }
        if logprobs {
            // What an upstream sends may have any form; indexing would panic where it is none of ours.
            let choices = object.get_mut("choices").and_then(serde_json::Value::as_array_mut);
            for choice in choices.into_iter().flatten().filter_map(serde_json::Value::as_object_mut) {
                choice.insert("logprobs".into(), serde_json::Value::Null);
            }
        }
        serde_json::to_vec(&object).map_or(payload, Bytes::from)
    }
}

#[derive(Deserialize)]
struct View<'a> {
    #[serde(default, borrow)]
    choices: Vec<Choice<'a>>,
    #[serde(default)]
    shoal_phone: Option<Phone>,
}

/// What a phone host says of its own answer.
#[derive(Deserialize)]
struct Phone {
    confidence: Option<f64>,
    #[serde(default)]
    cloud_handoff: bool,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    delta: Option<Part<'a>>,
    #[serde(borrow)]
    message: Option<Part<'a>>,
    #[serde(borrow)]
    logprobs: Option<&'a RawValue>,
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(default, borrow)]
    content: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    tool_calls: Option<&'a RawValue>,
    #[serde(default, borrow)]
    refusal: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Logprobs<'a> {
    #[serde(borrow)]
    content: Option<Vec<TokenLogprob<'a>>>,
}

#[derive(Deserialize)]
struct TokenLogprob<'a> {
    #[serde(default, borrow)]
    token: Option<Cow<'a, str>>,
    /// Its bytes, where it holds a part of a character only.
    #[serde(default, borrow)]
    bytes: Option<&'a RawValue>,
    logprob: f64,
    #[serde(default)]
    top_logprobs: Vec<TopLogprob>,
}

#[derive(Deserialize)]
struct TopLogprob {
    logprob: f64,
}

#[derive(Deserialize)]
struct Call {
    function: Option<Function>,
}

#[derive(Deserialize)]
struct Function {
    arguments: Option<String>,
}

impl Watch {
    /// Starts to watch an answer; its stream is held back only if somebody stronger may be asked.
    pub(super) fn new(shape: &Shape, can_escalate: bool, asks_logprobs: bool) -> Self {
        Self {
            fold: SignalFold::new(),
            held: HeldPrefix::new(can_escalate),
            limit_was_asked: shape.max_output.is_some(),
            wants_json: shape.needs.schema,
            active: can_escalate,
            asks_logprobs,
            answers: shape.answers,
            calls: (can_escalate && shape.needs.tools).then(Box::default),
            tokens: 0,
            ended: false,
        }
    }

    /// Takes in a payload of a stream; says whether to hold it back.
    pub(super) fn payload(&mut self, payload: &[u8], now: Instant) -> Hold {
        if !self.active {
            // A phone's own number is shown also where nobody is asked because of it.
            if memmem::find(payload, PHONE_FIELD).is_some() {
                self.read(payload, false);
            }
            return Hold::Commit;
        }
        let tokens = self.read(payload, false);
        self.tokens += u64::from(tokens.0);
        self.held.tokens(tokens, now)
    }

    /// Ends the holding because its time is over.
    pub(super) fn give_up_holding(&mut self) {
        self.held.end();
    }

    /// True when the answer will be judged.
    pub(super) fn is_active(&self) -> bool {
        self.active
    }

    /// True when log probabilities are asked for on our own account.
    pub(super) fn asks_logprobs(&self) -> bool {
        self.asks_logprobs
    }

    /// Returns the same for an answer that was asked for without log probabilities.
    pub(super) fn without_logprobs(self) -> Self {
        Self { asks_logprobs: false, ..self }
    }

    /// Returns the tokens of a stream that ended within its held prefix.
    pub(super) fn tokens_at_end(&self) -> Option<u64> {
        self.ended.then_some(self.tokens)
    }

    /// Returns how many answers were asked for.
    pub(super) fn answers(&self) -> u64 {
        self.answers
    }

    /// Returns what must be taken out of the answer again.
    pub(super) fn unasked(&self) -> Unasked {
        Unasked { logprobs: self.asks_logprobs }
    }

    /// Takes in a whole body.
    pub(super) fn body(&mut self, body: &[u8]) {
        self.read(body, true);
    }

    /// Returns what was seen.
    pub(super) fn signals(&self) -> Signals {
        let least_sure = self.calls.as_ref().and_then(|calls| calls.least_sure());
        let Some(least_sure) = least_sure else { return self.fold.signals() };
        let mut fold = self.fold.clone();
        fold.call_values(least_sure);
        fold.signals()
    }

    /// Reads one object; returns how many tokens it brought.
    fn read(&mut self, object: &[u8], whole: bool) -> Tokens {
        let Ok(view) = serde_json::from_slice::<View<'_>>(object) else { return Tokens(1) };
        if let Some(phone) = view.shoal_phone {
            if let Some(confidence) = phone.confidence {
                self.fold.host_confidence(confidence);
            }
            self.fold.handoff(phone.cloud_handoff);
        }
        let Some(choice) = view.choices.into_iter().next() else { return Tokens(0) };
        let mut tokens = 0;
        if let Some(part) = choice.delta.or(choice.message) {
            let text = part.content.as_deref().unwrap_or_default();
            if !text.is_empty() {
                self.fold.text(text);
                tokens = 1;
            }
            if part.refusal.is_some_and(|r| !r.is_empty()) {
                self.fold.flaw(Flaw::Refusal);
            }
            if let Some(calls) = part.tool_calls.filter(|c| !matches!(c.get(), "null" | "[]")) {
                self.fold.tool_call();
                if let Some(seen) = &mut self.calls {
                    seen.calls(calls);
                }
                tokens = 1;
                if whole && !arguments_are_json(calls) {
                    self.fold.flaw(Flaw::InvalidToolArguments);
                }
            }
            if whole && self.wants_json && serde_json::from_str::<&RawValue>(text).is_err() {
                self.fold.flaw(Flaw::InvalidJson);
            }
        }
        tokens = tokens.max(self.logprobs(choice.logprobs));
        if let Some(reason) = choice.finish_reason.filter(|reason| !reason.is_empty()) {
            self.fold.finish(Some(FinishReason::parse(&reason)), self.limit_was_asked);
            self.held.end();
            self.ended = true;
        }
        Tokens(tokens)
    }

    fn logprobs(&mut self, raw: Option<&RawValue>) -> u32 {
        let parsed =
            raw.and_then(|raw| serde_json::from_str::<Option<Logprobs<'_>>>(raw.get()).ok().flatten());
        let tokens = parsed.and_then(|l| l.content).unwrap_or_default();
        for token in &tokens {
            let top: Vec<f64> = token.top_logprobs.iter().map(|t| t.logprob).collect();
            self.fold.token(token.logprob, &top);
            if let Some(calls) = &mut self.calls {
                let bytes =
                    token.bytes.and_then(|raw| serde_json::from_str::<Option<Vec<u8>>>(raw.get()).ok()?);
                let text = token.token.as_deref().unwrap_or_default().as_bytes();
                calls.token(bytes.as_deref().unwrap_or(text), token.logprob, &top);
            }
        }
        u32::try_from(tokens.len()).unwrap_or(u32::MAX)
    }
}

fn arguments_are_json(calls: &RawValue) -> bool {
    let Ok(calls) = serde_json::from_str::<Vec<Call>>(calls.get()) else { return false };
    calls.into_iter().all(|call| {
        let arguments = call.function.and_then(|f| f.arguments).unwrap_or_default();
        arguments.is_empty() || serde_json::from_str::<&RawValue>(&arguments).is_ok()
    })
}

/// True when a whole body says something of its own trustworthiness.
pub(super) fn tells_confidence(body: &[u8]) -> bool {
    memmem::find(body, PHONE_FIELD).is_some()
        || memmem::find_iter(body, b"\"logprobs\"").any(|at| {
            let rest = body[at + b"\"logprobs\"".len()..].trim_ascii_start();
            rest.strip_prefix(b":").is_some_and(|value| value.trim_ascii_start().starts_with(b"{"))
        })
}

#[cfg(test)]
mod tests {
    use shoal_routing::Confidence;

    use super::*;
    use crate::api::parse::Shape;

    fn shape(schema: bool) -> Shape {
        Shape {
            stream: true,
            mode: shoal_routing::Mode::Auto,
            preference: shoal_routing::Preference::Balanced,
            data_class: shoal_routing::DataClass::Internal,
            needs: shoal_routing::Needs { schema, ..Default::default() },
            max_output: None,
            answers: 1,
            confidence_threshold: None,
            resume: None,
            meshes: 0,
            chooses: true,
            session: None,
        }
    }

    fn chunk(text: &str, logprob: f64) -> Vec<u8> {
        serde_json::json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null,
            "logprobs": {"content": [{"token": text, "logprob": logprob,
                "top_logprobs": [{"token": text, "logprob": logprob}, {"token": "x", "logprob": -3.0}]}]}}]})
        .to_string()
        .into_bytes()
    }

    #[test]
    fn a_sure_answer_counts_for_more_than_an_unsure_one_and_silence_is_unknown() {
        let now = Instant::now();
        let confidence = |logprob: f64| {
            let mut watch = Watch::new(&shape(false), true, false);
            for n in 0..8 {
                watch.payload(&chunk(&format!("word{n} "), logprob), now);
            }
            watch.signals().confidence().value().unwrap()
        };
        assert!(confidence(-0.01) > confidence(-1.5));
        let mut silent = Watch::new(&shape(false), true, false);
        silent.payload(br#"{"choices":[{"delta":{"content":"Paris"}}]}"#, now);
        assert_eq!(silent.signals().confidence(), Confidence::Unknown);
    }

    #[test]
    fn sixteen_tokens_or_the_end_commit() {
        let now = Instant::now();
        let mut watch = Watch::new(&shape(false), true, false);
        let holds =
            (0..16).filter(|n| watch.payload(&chunk(&format!("w{n} "), -0.1), now) != Hold::Commit).count();
        assert_eq!(holds, 15);
        let mut short = Watch::new(&shape(false), true, false);
        assert_ne!(short.payload(&chunk("Hi", -0.1), now), Hold::Commit);
        let end = br#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#;
        assert_eq!(short.payload(end, now), Hold::Commit);
        assert_eq!(Watch::new(&shape(false), false, false).payload(&chunk("Hi", -0.1), now), Hold::Commit);
    }

    #[test]
    fn broken_json_and_broken_arguments_are_flaws() {
        let mut json = Watch::new(&shape(true), true, false);
        json.body(br#"{"choices":[{"message":{"content":"{not json"},"finish_reason":"stop"}]}"#);
        assert_eq!(json.signals().flaw, Some(Flaw::InvalidJson));
        let mut call = Watch::new(&shape(false), true, false);
        call.body(br#"{"choices":[{"message":{"tool_calls":[{"function":{"name":"f","arguments":"{"}}]},"finish_reason":"tool_calls"}]}"#);
        assert_eq!(call.signals().flaw, Some(Flaw::InvalidToolArguments));
    }

    #[test]
    fn a_call_is_as_sure_as_its_least_sure_value() {
        let mut shape = shape(false);
        shape.needs.tools = true;
        let confidence = |city: f64| {
            let tokens: Vec<_> =
                [("weather", -0.01), ("{\"city\":\"", -0.01), ("Oslo", city), ("\"}", -0.01)]
                    .iter()
                    .map(|(token, logprob)| serde_json::json!({"token": token, "logprob": logprob}))
                    .collect();
            let body = serde_json::json!({"choices": [{"message": {"content": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\":\"Oslo\"}"}}]},
                "finish_reason": "tool_calls", "logprobs": {"content": tokens}}]});
            let mut watch = Watch::new(&shape, true, true);
            watch.body(body.to_string().as_bytes());
            watch.signals().confidence().value().unwrap()
        };
        assert!(confidence(-0.01) > 0.95);
        assert!(confidence(-2.3) < 0.15, "braces and keys are sure: {}", confidence(-2.3));
    }

    #[test]
    fn an_empty_reason_ends_no_holding() {
        let mut watch = Watch::new(&shape(false), true, false);
        let payload = br#"{"choices":[{"delta":{"content":"Hi"},"finish_reason":""}]}"#;
        assert_ne!(watch.payload(payload, Instant::now()), Hold::Commit);
    }

    #[test]
    fn taking_out_log_probabilities_survives_any_form() {
        let unasked = Unasked { logprobs: true };
        for (text, expected) in [
            (r#"{"choices":[7],"logprobs":{}}"#, r#"{"choices":[7],"logprobs":{}}"#),
            (r#"{"choices":{"logprobs":{}}}"#, r#"{"choices":{"logprobs":{}}}"#),
            (r#"[{"logprobs":{}}]"#, r#"[{"logprobs":{}}]"#),
            (r#"{"choices":[{"logprobs":{"content":[]}}]}"#, r#"{"choices":[{"logprobs":null}]}"#),
        ] {
            assert_eq!(unasked.removed_from(Bytes::from_static(text.as_bytes())), expected);
        }
    }

    #[test]
    fn a_phones_own_number_and_wish_are_heard() {
        let mut watch = Watch::new(&shape(false), true, false);
        watch.body(br#"{"choices":[{"message":{"content":"hm"},"finish_reason":"stop"}],"shoal_phone":{"confidence":0.3,"cloud_handoff":true}}"#);
        let signals = watch.signals();
        assert!(signals.handoff && signals.confidence().value().unwrap() < 0.5);
    }
}
