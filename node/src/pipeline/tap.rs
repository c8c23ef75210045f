//! Reads what we must know of an answer as it passes: content, finish reason, usage, errors.
//!
//! Before the commit point each payload is parsed, since the decision to commit depends on it. After it a
//! payload is searched for three keys (a key inside a string would be followed by `\"`, so there are no false
//! hits) and parsed only when one of them holds more than `null` or an empty text.

use std::borrow::Cow;
use std::collections::BTreeSet;

use memchr::memmem;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use shoal_routing::MicroUsd;

/// Most choices whose end is remembered: as many as can be asked for.
const MAX_FINISHED: usize = 128;

/// Tokens of an answer as the upstream counted them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
    /// More on the prompt, where the upstream tells it.
    #[serde(rename = "prompt_tokens_details")]
    pub prompt_details: Option<PromptDetails>,
    /// What the provider bills, where it says so: OpenRouter's `usage.cost`, in US dollars.
    #[serde(rename = "cost", deserialize_with = "billed")]
    pub billed: Option<MicroUsd>,
}

/// Highest cost of one answer that is believed, US dollars.
const MAX_BILLED_USD: f64 = 10_000.0;

/// Reads a cost; what is no number, or cannot be one, is none.
fn billed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<MicroUsd>, D::Error> {
    let told = Value::deserialize(deserializer)?.as_f64();
    let cost = told.filter(|usd| (0.0..=MAX_BILLED_USD).contains(usd));
    // Digits that floating point adds must not round a cost up.
    Ok(cost.map(|usd| MicroUsd((usd * 1e6 - 1e-6).ceil().max(0.0) as u64)))
}

/// What an upstream tells of a prompt's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct PromptDetails {
    /// Of them, those that were written into a cache.
    pub cache_write_tokens: u64,
}

impl Usage {
    /// Tokens of the prompt to pay for: those written into a cache count twice, as much as the dearest cache charges.
    pub fn billed_prompt_tokens(&self) -> u64 {
        let written = self.prompt_details.map_or(0, |details| details.cache_write_tokens);
        self.prompt_tokens.saturating_add(written)
    }
}

/// What one payload of a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// Nothing that a reader would see: the role, an empty delta.
    Lifecycle,
    /// Text, a tool call, a refusal.
    Content,
    /// Carries a finish reason (and maybe content).
    Finish,
    /// Carries usage and no choice.
    Usage,
    /// An error object inside a stream that began well.
    Error,
    /// No JSON object at all: a client that was given it would fall over it.
    Broken,
}

/// Facts of one answer, gathered payload by payload.
#[derive(Debug, Clone, Default)]
pub struct Tap {
    /// Last finish reason seen.
    pub finish_reason: Option<String>,
    /// Usage, once the upstream told it.
    pub usage: Option<Usage>,
    /// Payloads with content, close to the number of tokens for engines that send one at a time; for a whole
    /// body its estimated tokens.
    pub content_payloads: u64,
    /// True once a payload had something a reader would see.
    pub content_seen: bool,
    /// Indexes of the choices that said their finish reason; several where `n` was.
    finished: BTreeSet<u64>,
    /// True when the payload looked at last carried usage.
    pub usage_here: bool,
}

#[derive(Deserialize)]
struct View<'a> {
    #[serde(default, borrow)]
    choices: Vec<Choice<'a>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    index: Option<u64>,
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
    #[serde(borrow)]
    message: Option<Delta<'a>>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
}

impl Choice<'_> {
    /// Returns why it ended. Some servers write an empty reason into every chunk: that is none.
    fn reason(&self) -> Option<&str> {
        self.finish_reason.as_deref().filter(|reason| !reason.is_empty())
    }
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_calls: Option<&'a RawValue>,
    #[serde(borrow)]
    refusal: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning: Option<&'a RawValue>,
    #[serde(borrow)]
    function_call: Option<&'a RawValue>,
}

impl<'a> Delta<'a> {
    /// Returns what a reader would see of it. Some servers tell a thought under both of its names; it is one.
    fn parts(&self) -> impl Iterator<Item = &'a str> {
        let thought = self.reasoning_content.filter(|raw| !is_nothing(raw.get())).or(self.reasoning);
        let parts = [self.content, self.tool_calls, self.function_call, self.refusal, thought];
        parts.into_iter().flatten().map(RawValue::get).filter(|json| !is_nothing(json))
    }

    /// Estimates the tokens of a whole message.
    fn estimated_tokens(&self) -> u64 {
        self.parts().map(estimated_tokens).sum()
    }

    fn says_something(&self) -> bool {
        self.parts().next().is_some()
    }
}

/// True for JSON that holds nothing to read.
fn is_nothing(json: &str) -> bool {
    matches!(json, "null" | "\"\"" | "[]" | "{}")
}

impl Tap {
    /// Looks at one payload of a stream.
    pub fn inspect(&mut self, payload: &[u8]) -> Payload {
        self.usage_here = false;
        // JSON is UTF-8; reading past a text does not look, and clients fall over what is not.
        if std::str::from_utf8(payload).is_err() {
            return Payload::Broken;
        }
        if self.content_seen && !worth_parsing(payload) {
            if !is_object(payload) {
                return Payload::Broken;
            }
            self.content_payloads += 1;
            return Payload::Content;
        }
        let Ok(view) = serde_json::from_slice::<View<'_>>(payload) else {
            if !is_object(payload) {
                return Payload::Broken;
            }
            // Not an object we know: it passes, and counts as content so that nothing is held back for ever.
            self.content_seen = true;
            return Payload::Content;
        };
        if view.error.is_some_and(|e| e.get() != "null") && view.choices.is_empty() {
            return Payload::Error;
        }
        self.read_usage(view.usage);
        let content = view.choices.iter().any(|c| {
            c.delta.as_ref().or(c.message.as_ref()).is_some_and(Delta::says_something)
                || c.text.is_some_and(|t| !matches!(t.get(), "null" | "\"\""))
        });
        if content {
            self.content_seen = true;
            self.content_payloads += 1;
        }
        if let Some(reason) = view.choices.iter().filter_map(Choice::reason).next_back() {
            self.finish_reason = Some(reason.to_owned());
            for choice in view.choices.iter().filter(|choice| choice.reason().is_some()) {
                if self.finished.len() < MAX_FINISHED {
                    self.finished.insert(choice.index.unwrap_or(0));
                }
            }
            return Payload::Finish;
        }
        match (content, view.choices.is_empty(), view.usage.is_some_and(|u| u.get() != "null")) {
            (true, _, _) => Payload::Content,
            (false, true, true) => Payload::Usage,
            _ => Payload::Lifecycle,
        }
    }

    /// Looks at the whole body of an answer that is not streamed; `None` if it is no answer at all.
    pub fn inspect_body(&mut self, body: &[u8]) -> Option<Payload> {
        if body.trim_ascii_start().first() != Some(&b'{') {
            return None;
        }
        let view = serde_json::from_slice::<View<'_>>(body).ok()?;
        if view.choices.is_empty() && view.data.is_none() {
            return view.error.is_some_and(|e| e.get() != "null").then_some(Payload::Error);
        }
        self.read_usage(view.usage);
        self.finish_reason = view.choices.iter().filter_map(Choice::reason).next_back().map(str::to_owned);
        for choice in &view.choices {
            let message = choice.message.as_ref().or(choice.delta.as_ref());
            self.content_payloads += message.map_or(0, Delta::estimated_tokens)
                + choice.text.map_or(0, |text| estimated_tokens(text.get()));
        }
        self.content_seen = self.content_payloads > 0;
        Some(Payload::Content)
    }

    /// True when `answers` choices of a stream have said their finish reason.
    pub fn all_finished(&self, answers: u64) -> bool {
        self.finished.len() as u64 >= answers
    }

    /// Returns the tokens of the answer: as the upstream counted them, else as they were seen to pass.
    pub fn completion_tokens(&self) -> u64 {
        self.usage.map_or(self.content_payloads, |u| u.completion_tokens)
    }

    fn read_usage(&mut self, usage: Option<&RawValue>) {
        if let Some(raw) = usage
            && let Ok(Some(usage)) = serde_json::from_str::<Option<Usage>>(raw.get())
        {
            self.usage = Some(usage);
            self.usage_here = true;
        }
    }
}

/// Estimates the tokens of a JSON value, four bytes each; an empty one has none.
fn estimated_tokens(json: &str) -> u64 {
    if is_nothing(json) { 0 } else { (json.len() as u64).div_ceil(4) }
}

/// True for a JSON object, whatever is in it. Reading past its values takes less than a microsecond.
fn is_object(payload: &[u8]) -> bool {
    payload.trim_ascii_start().first() == Some(&b'{')
        && serde_json::from_slice::<serde::de::IgnoredAny>(payload).is_ok()
}

/// True when a payload has one of the keys we read with more than `null` or an empty text in it.
fn worth_parsing(payload: &[u8]) -> bool {
    [&b"\"finish_reason\""[..], b"\"usage\"", b"\"error\""].iter().any(|key| {
        memmem::find_iter(payload, key).any(|at| {
            let rest = payload[at + key.len()..].trim_ascii_start();
            rest.strip_prefix(b":")
                .map(<[u8]>::trim_ascii_start)
                .is_some_and(|value| !value.starts_with(b"null") && !value.starts_with(b"\"\""))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_that_is_told_is_read_and_nonsense_is_none() {
        for (cost, billed) in [
            ("0.00123", Some(1_230)),
            ("0", Some(0)),
            ("-1", None),
            ("1e9", None),
            ("{\"total_cost\":1}", None),
            ("\"3\"", None),
        ] {
            let mut tap = Tap::default();
            let usage = format!(r#"{{"prompt_tokens":3,"completion_tokens":4,"cost":{cost}}}"#);
            tap.inspect(format!(r#"{{"choices":[],"usage":{usage}}}"#).as_bytes());
            let usage = tap.usage.expect("usage was told");
            assert_eq!((usage.completion_tokens, usage.billed), (4, billed.map(MicroUsd)), "{cost}");
        }
    }

    #[test]
    fn payloads_are_told_apart() {
        let cases: &[(&str, Payload)] = &[
            (
                r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
                Payload::Lifecycle,
            ),
            (
                r#"{"choices":[{"delta":{"content":"Hi"},"finish_reason":null}],"usage":null}"#,
                Payload::Content,
            ),
            (r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#, Payload::Content),
            (r#"{"choices":[{"delta":{"content":"","reasoning":"hm"}}]}"#, Payload::Content),
            (r#"{"choices":[{"delta":{"reasoning_content":"","reasoning":"hm"}}]}"#, Payload::Content),
            (r#"{"choices":[{"delta":{"function_call":{"name":"f"}}}]}"#, Payload::Content),
            (r#"{"choices":[{"delta":{"function_call":null,"reasoning":""}}]}"#, Payload::Lifecycle),
            (r#"{"choices":[{"text":"Hi","finish_reason":null}]}"#, Payload::Content),
            (r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#, Payload::Finish),
            (r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#, Payload::Usage),
            (r#"{"error":{"message":"boom"}}"#, Payload::Error),
            (r#"{"novel":[1,2]}"#, Payload::Lifecycle),
            (r#"{"choices": [garbage"#, Payload::Broken),
            (r#"{"choices": [garbage], "finish_reason": "stop"}"#, Payload::Broken),
            ("[]", Payload::Broken),
            ("<html>", Payload::Broken),
            ("", Payload::Broken),
        ];
        for (text, expected) in cases {
            assert_eq!(Tap::default().inspect(text.as_bytes()), *expected, "fresh: {text}");
            let mut late = Tap { content_seen: true, ..Tap::default() };
            let late_kind = late.inspect(text.as_bytes());
            if *expected != Payload::Lifecycle {
                assert_eq!(late_kind, *expected, "after content: {text}");
            }
        }
    }

    #[test]
    fn what_is_no_utf8_is_broken_before_content_and_after() {
        let bytes = b"{\"choices\":[{\"delta\":{\"content\":\"\xff\xc3\"}}]}";
        assert_eq!(Tap::default().inspect(bytes), Payload::Broken);
        assert_eq!(Tap { content_seen: true, ..Tap::default() }.inspect(bytes), Payload::Broken);
    }

    #[test]
    fn a_quoted_key_inside_the_answer_is_not_a_finish() {
        let mut tap = Tap { content_seen: true, ..Tap::default() };
        let text =
            r#"{"choices":[{"delta":{"content":"say \"finish_reason\": \"stop\""},"finish_reason":null}]}"#;
        assert_eq!(tap.inspect(text.as_bytes()), Payload::Content);
        assert_eq!(tap.finish_reason, None);
    }

    #[test]
    fn an_empty_reason_is_none() {
        let text = br#"{"choices":[{"delta":{"content":"x"},"finish_reason":""}]}"#;
        for mut tap in [Tap::default(), Tap { content_seen: true, ..Tap::default() }] {
            assert_eq!(tap.inspect(text), Payload::Content);
            assert!(tap.finish_reason.is_none() && !tap.all_finished(1));
        }
        let mut tap = Tap::default();
        tap.inspect_body(br#"{"choices":[{"message":{"content":"x"},"finish_reason":""}]}"#);
        assert_eq!(tap.finish_reason, None);
    }

    #[test]
    fn each_choice_finishes_once() {
        let mut tap = Tap::default();
        for (index, both) in [(0, false), (0, false), (1, true)] {
            tap.inspect(format!(r#"{{"choices":[{{"index":{index},"finish_reason":"stop"}}]}}"#).as_bytes());
            assert_eq!((tap.all_finished(1), tap.all_finished(2)), (true, both));
        }
    }

    #[test]
    fn thoughts_and_older_calls_count_as_tokens_once() {
        let tokens = |message: &str| {
            let mut tap = Tap::default();
            tap.inspect_body(format!(r#"{{"choices":[{{"message":{message}}}]}}"#).as_bytes());
            tap.completion_tokens()
        };
        assert_eq!(tokens(r#"{"content":null,"reasoning":"sixsix"}"#), 2);
        assert_eq!(tokens(r#"{"reasoning_content":"sixsix","reasoning":"sixsix"}"#), 2);
        assert_eq!(tokens(r#"{"function_call":{"name":"f"}}"#), 3);
    }

    #[test]
    fn usage_and_reason_are_kept() {
        let mut tap = Tap::default();
        tap.inspect(br#"{"choices":[{"delta":{"content":"x"}}]}"#);
        tap.inspect(br#"{"choices":[{"delta":{},"finish_reason":"length"}]}"#);
        tap.inspect(br#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}"#);
        assert_eq!(tap.finish_reason.as_deref(), Some("length"));
        let usage = Usage { prompt_tokens: 3, completion_tokens: 4, ..Usage::default() };
        assert_eq!(tap.usage, Some(usage));
        tap.inspect(
            br#"{"choices":[],"usage":{"prompt_tokens":3,"prompt_tokens_details":{"cache_write_tokens":2}}}"#,
        );
        assert_eq!(tap.usage.unwrap().billed_prompt_tokens(), 5);
    }
}
