//! What the judges are shown of a chat: its request, and its answer as it passed by.
//!
//! On the path of a stream only the text is copied out of each payload, found by its key without parsing the rest;
//! everything that thinks happens later, off the path. Bounded: of a long answer the beginning and the end are kept.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock, OnceLock};

use bytes::Bytes;
use memchr::memchr2;
use memchr::memmem::Finder;
use serde::Deserialize;
use serde_json::value::RawValue;
use shoal_routing::Fingerprint;

use crate::api::parse::Parsed;

/// Largest request that is shown, bytes; larger ones hold images, or more than a judge reads.
pub(super) const MAX_REQUEST: usize = 256 << 10;
/// Bytes kept of the beginning and of the end of a streamed answer: loops show at the end.
const MAX_HEAD: usize = 32 << 10;
const MAX_TAIL: usize = 16 << 10;
/// Largest whole body that is shown.
const MAX_BODY: usize = 256 << 10;
/// Most calls of one answer, and most bytes of their arguments together.
const MAX_CALLS: usize = 64;
const MAX_ARGUMENTS: usize = 64 << 10;

static CONTENT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"content\""));
static REFUSAL: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"refusal\""));
static TOOL_CALLS: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"tool_calls\""));

/// What a question looks like, once the witness has looked; empty for what is no question of a user.
pub(crate) type Looks = Arc<OnceLock<Arc<Fingerprint>>>;

/// A chat as the judges are shown it.
pub(crate) struct Exhibit {
    /// The request.
    pub(crate) parsed: Parsed,
    /// What it looks like, to notice that it is asked again; `None` for what the node asks itself.
    pub(crate) looks: Option<Looks>,
    /// Id of the key that asked.
    pub(crate) who: Arc<str>,
    seen: Seen,
}

impl Exhibit {
    pub(super) fn new(parsed: Parsed, looks: Option<Looks>, who: Arc<str>) -> Self {
        Self { parsed, looks, who, seen: Seen::Stream(Passed::default()) }
    }

    /// Looks at a payload of a stream with content.
    pub(super) fn payload(&mut self, payload: &[u8]) {
        if let Seen::Stream(passed) = &mut self.seen {
            passed.take(payload);
        }
    }

    /// Takes a whole body.
    pub(super) fn body(&mut self, body: &Bytes) {
        self.seen = if body.len() <= MAX_BODY {
            Seen::Body(body.clone())
        } else {
            Seen::Stream(Passed { cut: true, ..Passed::default() })
        };
    }

    /// Returns the bytes held.
    pub(crate) fn bytes(&self) -> usize {
        let seen = match &self.seen {
            Seen::Body(body) => body.len(),
            Seen::Stream(passed) => passed.head.capacity() + passed.tail.capacity() + passed.argument_bytes,
        };
        self.parsed.body.len() + seen
    }

    /// Reads the answer. Parses: off the path only.
    pub(crate) fn answer(&mut self) -> Answer {
        match std::mem::take(&mut self.seen) {
            Seen::Stream(passed) => passed.into_answer(),
            Seen::Body(body) => Answer::of_body(&body),
        }
    }
}

/// An answer, read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    /// Its text; a part of it unless [`whole`](Self::whole).
    pub(crate) text: String,
    /// True when nothing was left out.
    pub(crate) whole: bool,
    /// Calls of tools.
    pub(crate) calls: Vec<Call>,
    /// It said by a field of its own that it refuses.
    pub(crate) refused: bool,
}

/// A call of a tool.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Call {
    /// Name of the tool.
    pub(crate) name: String,
    /// Arguments, as JSON if the model did it right.
    pub(crate) arguments: String,
}

enum Seen {
    Stream(Passed),
    Body(Bytes),
}

impl Default for Seen {
    fn default() -> Self {
        Self::Stream(Passed::default())
    }
}

/// What passed of a stream.
#[derive(Default)]
struct Passed {
    head: String,
    tail: String,
    cut: bool,
    calls: Vec<(u64, Call)>,
    argument_bytes: usize,
    refused: bool,
}

#[derive(Deserialize)]
struct View<'a> {
    #[serde(default, borrow)]
    choices: Vec<Choice<'a>>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    delta: Option<Part<'a>>,
    #[serde(borrow)]
    message: Option<Part<'a>>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(default, borrow)]
    content: Option<&'a RawValue>,
    #[serde(default, borrow)]
    refusal: Option<Cow<'a, str>>,
    #[serde(default)]
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Deserialize)]
struct CallDelta {
    #[serde(default)]
    index: u64,
    #[serde(default)]
    function: FunctionDelta,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct FunctionDelta {
    name: Option<String>,
    arguments: Option<String>,
}

impl Passed {
    fn take(&mut self, payload: &[u8]) {
        if let Some(text) = text_at(payload, &CONTENT).filter(|text| !text.is_empty()) {
            self.text(&text);
            if TOOL_CALLS.find(payload).is_none() {
                // Nearly every payload; the others' keys need not be looked for.
                return;
            }
        }
        self.refused |= text_at(payload, &REFUSAL).is_some_and(|text| !text.is_empty());
        if TOOL_CALLS.find(payload).is_some() {
            self.calls(payload);
        }
    }

    fn text(&mut self, text: &str) {
        if self.head.len() + text.len() <= MAX_HEAD && self.tail.is_empty() {
            self.head.push_str(text);
            return;
        }
        self.tail.push_str(text);
        if self.tail.len() > 2 * MAX_TAIL {
            self.cut = true;
            let from = self.tail.ceil_char_boundary(self.tail.len() - MAX_TAIL);
            self.tail.drain(..from);
        }
    }

    fn calls(&mut self, payload: &[u8]) {
        let Ok(view) = serde_json::from_slice::<View<'_>>(payload) else { return };
        let delta = view.choices.into_iter().next().and_then(|choice| choice.delta);
        for part in delta.and_then(|delta| delta.tool_calls).into_iter().flatten() {
            let place = match self.calls.iter().position(|(index, _)| *index == part.index) {
                Some(place) => place,
                None if self.calls.len() < MAX_CALLS => {
                    self.calls.push((part.index, Call::default()));
                    self.calls.len() - 1
                }
                None => {
                    self.cut = true;
                    continue;
                }
            };
            let call = &mut self.calls[place].1;
            if let Some(name) = part.function.name.filter(|_| call.name.is_empty()) {
                call.name = name;
            }
            let arguments = part.function.arguments.unwrap_or_default();
            if self.argument_bytes + arguments.len() > MAX_ARGUMENTS {
                self.cut = true;
                continue;
            }
            self.argument_bytes += arguments.len();
            call.arguments.push_str(&arguments);
        }
    }

    fn into_answer(self) -> Answer {
        let mut text = self.head;
        text.push_str(&self.tail);
        let calls = self.calls.into_iter().map(|(_, call)| call).collect();
        Answer { text, whole: !self.cut, calls, refused: self.refused }
    }
}

impl Answer {
    /// Reads the body of an answer that was not streamed; what is no answer is not whole.
    pub(crate) fn of_body(body: &[u8]) -> Self {
        let Ok(view) = serde_json::from_slice::<View<'_>>(body) else { return Self::default() };
        let part = view.choices.into_iter().next().and_then(|choice| choice.message.or(choice.delta));
        let Some(part) = part else { return Self::default() };
        // Content may also be a list of parts; those are no text that could be judged as one.
        let text = part.content.and_then(|raw| serde_json::from_str::<Option<String>>(raw.get()).ok());
        let calls = part.tool_calls.unwrap_or_default().into_iter();
        let calls = calls.map(|call| Call {
            name: call.function.name.unwrap_or_default(),
            arguments: call.function.arguments.unwrap_or_default(),
        });
        Self {
            whole: text.is_some() || part.content.is_none(),
            text: text.flatten().unwrap_or_default(),
            calls: calls.collect(),
            refused: part.refusal.is_some_and(|refusal| !refusal.is_empty()),
        }
    }
}

/// Returns the string that stands at a key, if one does. A key inside a string would have escaped quotes around it.
fn text_at<'a>(payload: &'a [u8], key: &Finder<'_>) -> Option<Cow<'a, str>> {
    let after = key.find(payload)? + key.needle().len();
    let rest = payload[after..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
    let inside = rest.strip_prefix(b"\"")?;
    let end = memchr2(b'"', b'\\', inside)?;
    if inside[end] == b'"' {
        return std::str::from_utf8(&inside[..end]).ok().map(Cow::Borrowed);
    }
    let mut end = end;
    while inside.get(end)? != &b'"' {
        end += if inside[end] == b'\\' { 2 } else { 1 };
    }
    serde_json::from_slice(&rest[..end + 2]).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streamed(payloads: &[&str]) -> Answer {
        let mut passed = Passed::default();
        payloads.iter().for_each(|payload| passed.take(payload.as_bytes()));
        passed.into_answer()
    }

    #[test]
    fn text_is_found_by_its_key_with_and_without_escapes() {
        let answer = streamed(&[
            r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#,
            r#"{"choices":[{"delta":{"content":"say "},"logprobs":{"content":[{"token":"x"}]}}]}"#,
            r#"{"choices": [{"delta": {"content": "\"hi\"\né \\"}}]}"#,
            r#"{"choices":[{"delta":{"content":"\"content\":\"no\""}}]}"#,
            r#"{"choices":[{"delta":{"reasoning_content":"hm","content":null}}]}"#,
            r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#,
        ]);
        assert_eq!(answer.text, "say \"hi\"\né \\\"content\":\"no\"");
        assert!(answer.whole && answer.calls.is_empty() && !answer.refused);
    }

    #[test]
    fn calls_and_refusals_are_put_together() {
        let answer = streamed(&[
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"f","arguments":"{\"a\""}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":":1}"}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":1,"function":{"name":"g"}}],"refusal":"I can't"}}]}"#,
        ]);
        let call = |name: &str, arguments: &str| Call { name: name.into(), arguments: arguments.into() };
        assert_eq!(answer.calls, [call("f", "{\"a\":1}"), call("g", "")]);
        assert!(answer.refused);
    }

    #[test]
    fn of_a_long_answer_both_ends_are_kept() {
        let payload = |text: &str| format!(r#"{{"choices":[{{"delta":{{"content":"{text}"}}}}]}}"#);
        let mut passed = Passed::default();
        passed.take(payload("begin").as_bytes());
        for _ in 0..2_000 {
            passed.take(payload(&"x".repeat(100)).as_bytes());
        }
        passed.take(payload("end").as_bytes());
        assert!(passed.head.capacity() + passed.tail.capacity() < 4 * (MAX_HEAD + MAX_TAIL));
        let answer = passed.into_answer();
        assert!(!answer.whole && answer.text.starts_with("begin") && answer.text.ends_with("end"));
        assert!(answer.text.len() <= MAX_HEAD + 2 * MAX_TAIL + 100);
    }

    #[test]
    fn a_body_is_read_like_a_stream() {
        let body = br#"{"choices":[{"message":{"content":null,"refusal":"no","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]}}]}"#;
        let answer = Answer::of_body(body);
        assert!(answer.refused && answer.calls.len() == 1 && answer.whole);
        assert_eq!(Answer::of_body(br#"{"choices":[{"message":{"content":"hi"}}]}"#).text, "hi");
        assert!(
            !Answer::of_body(br#"{"choices":[{"message":{"content":[{"type":"text","text":"x"}]}}]}"#).whole
        );
    }
}
