//! OpenAI chats to LFO's completion request, and its answer back.
//!
//! LFO knows messages whose content is text, a token limit, a temperature and tools. What it cannot express is
//! refused as retryable, so that another device may serve the request, rather than dropped without a word. The
//! phone counts no tokens: usage is estimated at four characters a token, as LFO itself does, and marked.

use std::time::SystemTime;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::upstream::{UpstreamError, UpstreamRequest};

/// Field of a body or content chunk in which the phone's own judgement travels:
/// `{"confidence": 0..1 or null, "cloud_handoff": bool, "total_time_ms": number or null}`.
pub const PHONE_FIELD: &str = "shoal_phone";

/// Token limit unless the client gives one; LFO's own.
const DEFAULT_MAX_TOKENS: u64 = 512;

/// Temperature unless the client gives one; LFO's own.
const DEFAULT_TEMPERATURE: f64 = 0.7;

/// Largest request that LFO's bridge takes.
const MAX_REQUEST: usize = 2 * 1024 * 1024;

/// Most calls taken from one answer; more is a model in a loop.
const MAX_CALLS: usize = 64;

/// A chat, translated.
#[derive(Debug)]
pub(super) struct Question {
    /// The request as LFO takes it: one line of JSON, without its end.
    pub(super) line: Vec<u8>,
    stop: Vec<String>,
    include_usage: bool,
    prompt_chars: usize,
}

#[derive(Deserialize)]
struct Body {
    messages: Vec<WireMessage>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    temperature: Option<f64>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    stop: Option<OneOrMany>,
    n: Option<u64>,
    response_format: Option<Format>,
    stream_options: Option<StreamOptions>,
}

#[derive(Deserialize)]
struct Format {
    r#type: String,
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct WireMessage {
    role: String,
    content: Option<Content>,
    tool_calls: Option<Vec<Value>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    text: Option<String>,
}

fn invalid(message: impl Into<String>) -> UpstreamError {
    UpstreamError::new(400, "invalid_request_error", message)
}

/// Something that the phone cannot do, but another device may.
fn unsupported(what: &str) -> UpstreamError {
    UpstreamError::retryable(400, "invalid_request_error", format!("LFO's phone host does not take {what}"))
}

impl Question {
    /// Translates the body of a chat completion.
    pub(super) fn read(body: &[u8]) -> Result<Self, UpstreamError> {
        let body: Body = serde_json::from_slice(body)
            .map_err(|error| invalid(format!("the request is not a chat completion: {error}")))?;
        if body.messages.is_empty() {
            return Err(invalid("'messages' must be a list with at least one message"));
        }
        if body.n.is_some_and(|n| n != 1) {
            return Err(unsupported("several answers at once ('n')"));
        }
        if body.response_format.is_some_and(|format| format.r#type != "text") {
            return Err(unsupported("a 'response_format'"));
        }
        let messages = body.messages.into_iter().map(message).collect::<Result<Vec<_>, _>>()?;
        let prompt_chars = messages.iter().map(|(_, content)| content.chars().count()).sum();
        let messages: Vec<Value> =
            messages.into_iter().map(|(role, content)| json!({ "role": role, "content": content })).collect();
        let mut request = json!({
            "messages": messages,
            "max_tokens": body.max_completion_tokens.or(body.max_tokens).unwrap_or(DEFAULT_MAX_TOKENS),
            "temperature": body.temperature.unwrap_or(DEFAULT_TEMPERATURE),
        });
        let wants_tools = body.tool_choice.is_none_or(|choice| choice != "none");
        if let Some(tools) = body.tools.filter(|tools| wants_tools && !tools.is_empty()) {
            request["tools"] = Value::Array(tools);
        }
        // Strings escape line breaks, so the whole is one line.
        let line = request.to_string().into_bytes();
        if line.len() > MAX_REQUEST {
            return Err(unsupported("requests above 2 MiB"));
        }
        let stop = match body.stop {
            None => Vec::new(),
            Some(OneOrMany::One(text)) => vec![text],
            Some(OneOrMany::Many(texts)) => texts,
        };
        let include_usage = body.stream_options.and_then(|options| options.include_usage).unwrap_or(false);
        Ok(Self { line, stop, include_usage, prompt_chars })
    }
}

fn message(message: WireMessage) -> Result<(String, String), UpstreamError> {
    let text = match message.content {
        None => String::new(),
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => {
            let texts: Option<Vec<String>> = parts.into_iter().map(|part| part.text).collect();
            texts.ok_or_else(|| unsupported("images or audio"))?.join("\n")
        }
    };
    // LFO's messages have no place for calls, and a model that forgets what it called repeats it.
    let calls = message.tool_calls.filter(|calls| text.is_empty() && !calls.is_empty());
    let text = calls.map_or(text, |calls| {
        let functions: Vec<&Value> = calls.iter().map(|call| &call["function"]).collect();
        json!(functions).to_string()
    });
    Ok((message.role, text))
}

/// What the phone answered.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reply {
    text: String,
    calls: Vec<Call>,
    confidence: Option<f64>,
    cloud_handoff: bool,
    total_time_ms: Option<f64>,
}

#[derive(Debug, Clone, PartialEq)]
struct Call {
    name: String,
    /// JSON text, as the OpenAI API wants it.
    arguments: String,
}

/// Why a phone's line is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoReply {
    /// Not a JSON object, or fields of another type.
    Malformed,
    /// `{"error": …}`. Its text may quote the prompt, so it is not handed on.
    Refused,
    /// Neither text nor calls.
    Empty {
        /// The phone asked for a stronger model.
        cloud_handoff: bool,
    },
}

impl Reply {
    /// Reads the JSON of an answer.
    pub(super) fn read(line: &[u8]) -> Result<Self, NoReply> {
        let Ok(Value::Object(fields)) = serde_json::from_slice::<Value>(line) else {
            return Err(NoReply::Malformed);
        };
        let field = |name: &str| fields.get(name).filter(|value| !value.is_null());
        if field("error").is_some() {
            return Err(NoReply::Refused);
        }
        let text = match field("text") {
            None => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(_) => return Err(NoReply::Malformed),
        };
        let calls = match field("function_calls") {
            None => Vec::new(),
            Some(Value::Array(calls)) if calls.len() <= MAX_CALLS => {
                calls.iter().map(Call::read).collect::<Option<_>>().ok_or(NoReply::Malformed)?
            }
            Some(_) => return Err(NoReply::Malformed),
        };
        let cloud_handoff = field("cloud_handoff").and_then(Value::as_bool).unwrap_or(false);
        if text.is_empty() && calls.is_empty() {
            return Err(NoReply::Empty { cloud_handoff });
        }
        // A number outside 0..1 is no confidence; unknown is its own value, never one in the middle.
        let confidence = field("confidence").and_then(Value::as_f64).filter(|c| (0.0..=1.0).contains(c));
        let total_time_ms = field("total_time_ms").and_then(Value::as_f64).filter(|ms| *ms >= 0.0);
        Ok(Self { text, calls, confidence, cloud_handoff, total_time_ms })
    }
}

impl Call {
    fn read(value: &Value) -> Option<Self> {
        let name = value["name"].as_str().filter(|name| !name.is_empty())?.to_owned();
        let arguments = match &value["arguments"] {
            Value::Null => "{}".to_owned(),
            Value::String(text) => text.clone(),
            object @ Value::Object(_) => object.to_string(),
            _ => return None,
        };
        Some(Self { name, arguments })
    }
}

/// Writes the OpenAI answer.
pub(super) struct Writer<'a> {
    request: &'a UpstreamRequest,
    question: &'a Question,
    reply: Reply,
    created: u64,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        request: &'a UpstreamRequest,
        question: &'a Question,
        mut reply: Reply,
        now: SystemTime,
    ) -> Self {
        // The app knows no stop texts, so the answer is cut here.
        let cut = question.stop.iter().filter(|s| !s.is_empty()).filter_map(|s| reply.text.find(s)).min();
        if let Some(at) = cut {
            reply.text.truncate(at);
        }
        let created = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self { request, question, reply, created }
    }

    /// The body of an answer that is not streamed.
    pub(super) fn body(&self) -> Bytes {
        let mut message = json!({ "role": "assistant", "content": self.content(), "refusal": null });
        if !self.reply.calls.is_empty() {
            message["tool_calls"] = Value::Array(self.calls(false));
        }
        let choice = json!({ "index": 0, "message": message, "logprobs": null, "finish_reason": self.finish_reason() });
        let mut body = self.envelope("chat.completion");
        body.insert("choices".into(), json!([choice]));
        body.insert("usage".into(), self.usage());
        body.insert("shoal_usage_estimated".into(), json!(true));
        body.insert(PHONE_FIELD.into(), self.phone());
        bytes_of(body)
    }

    /// The chunks of a stream: the whole content, the end, and the usage if it was asked for.
    pub(super) fn chunks(&self) -> Vec<Bytes> {
        let mut delta = json!({ "role": "assistant", "content": self.content() });
        if !self.reply.calls.is_empty() {
            delta["tool_calls"] = Value::Array(self.calls(true));
        }
        let mut content = self.chunk(json!([choice(delta, Value::Null)]));
        content.insert(PHONE_FIELD.into(), self.phone());
        let mut chunks = vec![content, self.chunk(json!([choice(json!({}), json!(self.finish_reason()))]))];
        if self.question.include_usage {
            let mut usage = self.chunk(json!([]));
            usage.insert("usage".into(), self.usage());
            usage.insert("shoal_usage_estimated".into(), json!(true));
            chunks.push(usage);
        }
        chunks.into_iter().map(bytes_of).collect()
    }

    fn content(&self) -> Option<&str> {
        (!self.reply.text.is_empty() || self.reply.calls.is_empty()).then_some(self.reply.text.as_str())
    }

    fn finish_reason(&self) -> &'static str {
        if self.reply.calls.is_empty() { "stop" } else { "tool_calls" }
    }

    /// The calls; ids are the request's, since the phone gives none.
    fn calls(&self, indexed: bool) -> Vec<Value> {
        let call = |(index, call): (usize, &Call)| {
            let mut value = json!({
                "id": format!("call_{}_{index}", self.request.id),
                "type": "function",
                "function": { "name": call.name, "arguments": call.arguments },
            });
            if indexed {
                value["index"] = json!(index);
            }
            value
        };
        self.reply.calls.iter().enumerate().map(call).collect()
    }

    fn phone(&self) -> Value {
        json!({
            "confidence": self.reply.confidence,
            "cloud_handoff": self.reply.cloud_handoff,
            "total_time_ms": self.reply.total_time_ms,
        })
    }

    fn usage(&self) -> Value {
        let calls: usize = self.reply.calls.iter().map(|c| c.name.len() + c.arguments.chars().count()).sum();
        let prompt = self.question.prompt_chars.div_ceil(4);
        let completion = (self.reply.text.chars().count() + calls).div_ceil(4);
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        })
    }

    fn envelope(&self, object: &str) -> Map<String, Value> {
        let fields = [
            ("id", json!(format!("chatcmpl-{}", self.request.id))),
            ("object", json!(object)),
            ("created", json!(self.created)),
            ("model", json!(&*self.request.model)),
        ];
        fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    fn chunk(&self, choices: Value) -> Map<String, Value> {
        let mut chunk = self.envelope("chat.completion.chunk");
        chunk.insert("choices".into(), choices);
        chunk
    }
}

fn choice(delta: Value, finish_reason: Value) -> Value {
    json!({ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason })
}

fn bytes_of(object: Map<String, Value>) -> Bytes {
    Bytes::from(Value::Object(object).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::testing;

    fn question(body: &str) -> Question {
        Question::read(body.as_bytes()).unwrap()
    }

    #[test]
    fn a_chat_becomes_what_lfo_reads() {
        let question = question(
            r#"{"model":"m","messages":[{"role":"system","content":"Be\nbrief"},
                {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
                {"role":"assistant","content":null,"tool_calls":[{"id":"1","function":{"name":"f","arguments":"{}"}}]},
                {"role":"tool","tool_call_id":"1","content":"42"}],
                "max_tokens":9,"temperature":0,"tools":[{"type":"function"}]}"#,
        );
        assert!(!question.line.contains(&b'\n'));
        let sent: Value = serde_json::from_slice(&question.line).unwrap();
        let expected = json!({
            "messages": [
                {"role": "system", "content": "Be\nbrief"},
                {"role": "user", "content": "a\nb"},
                {"role": "assistant", "content": "[{\"name\":\"f\",\"arguments\":\"{}\"}]"},
                {"role": "tool", "content": "42"},
            ],
            "max_tokens": 9,
            "temperature": 0.0,
            "tools": [{"type": "function"}],
        });
        assert_eq!(sent, expected);
    }

    #[test]
    fn defaults_are_lfos_and_unwanted_tools_stay_here() {
        let question = question(
            r#"{"messages":[{"role":"user","content":"x"}],"tools":[{"type":"function"}],"tool_choice":"none"}"#,
        );
        let sent: Value = serde_json::from_slice(&question.line).unwrap();
        assert_eq!((&sent["max_tokens"], &sent["temperature"]), (&json!(512), &json!(0.7)));
        assert!(sent.get("tools").is_none());
    }

    #[test]
    fn what_the_phone_cannot_do_is_left_to_others() {
        for body in [
            r#"{"messages":[{"role":"user","content":"x"}],"n":2}"#,
            r#"{"messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_object"}}"#,
            r#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]}"#,
        ] {
            assert!(Question::read(body.as_bytes()).unwrap_err().retryable, "{body}");
        }
        for body in ["", "[]", r#"{"messages":[]}"#, r#"{"messages":"x"}"#] {
            assert!(!Question::read(body.as_bytes()).unwrap_err().retryable, "{body}");
        }
    }

    #[test]
    fn unknown_confidence_is_not_a_number_in_the_middle() {
        for (line, expected) in [
            (r#"{"text":"a","confidence":0.5}"#, Some(0.5)),
            (r#"{"text":"a","confidence":1}"#, Some(1.0)),
            (r#"{"text":"a"}"#, None),
            (r#"{"text":"a","confidence":null}"#, None),
            (r#"{"text":"a","confidence":7}"#, None),
            (r#"{"text":"a","confidence":-0.1}"#, None),
            (r#"{"text":"a","confidence":"high"}"#, None),
        ] {
            assert_eq!(Reply::read(line.as_bytes()).unwrap().confidence, expected, "{line}");
        }
    }

    #[test]
    fn a_line_that_is_no_answer_says_why() {
        for (line, expected) in [
            ("", NoReply::Malformed),
            ("[]", NoReply::Malformed),
            ("<html>", NoReply::Malformed),
            (r#"{"text":5}"#, NoReply::Malformed),
            (r#"{"function_calls":[{"name":""}]}"#, NoReply::Malformed),
            (r#"{"function_calls":[{"name":"f","arguments":[1]}]}"#, NoReply::Malformed),
            (r#"{"error":"boom"}"#, NoReply::Refused),
            (r#"{"text":"","function_calls":[]}"#, NoReply::Empty { cloud_handoff: false }),
            (r#"{"cloud_handoff":true}"#, NoReply::Empty { cloud_handoff: true }),
        ] {
            assert_eq!(Reply::read(line.as_bytes()), Err(expected), "{line}");
        }
    }

    #[test]
    fn calls_get_ids_and_the_judgement_travels_with_them() {
        let reply = Reply::read(
            br#"{"function_calls":[{"name":"f","arguments":{"a":1}},{"name":"g"}],"confidence":0.25,
                "cloud_handoff":true,"total_time_ms":31}"#,
        );
        let (request, question) =
            (testing::chat(false), question(r#"{"messages":[{"role":"user","content":"12345"}]}"#));
        let writer = Writer::new(&request, &question, reply.unwrap(), SystemTime::UNIX_EPOCH);
        let body: Value = serde_json::from_slice(&writer.body()).unwrap();
        let message = &body["choices"][0]["message"];
        assert_eq!(message["content"], Value::Null);
        assert_eq!(message["tool_calls"][0]["function"], json!({"name": "f", "arguments": "{\"a\":1}"}));
        assert_eq!(message["tool_calls"][1]["id"], "call_req_test_1_1");
        assert_eq!(message["tool_calls"][1]["function"]["arguments"], "{}");
        assert_eq!(body["choices"][0]["finish_reason"], "tool_calls");
        assert_eq!(
            body[PHONE_FIELD],
            json!({"confidence": 0.25, "cloud_handoff": true, "total_time_ms": 31.0})
        );
        assert_eq!(body["usage"]["prompt_tokens"], 2);
    }

    #[test]
    fn a_stop_text_ends_the_answer() {
        let request = testing::chat(false);
        let question = question(r#"{"messages":[{"role":"user","content":"x"}],"stop":["END","b"]}"#);
        let reply = Reply::read(br#"{"text":"aEND b"}"#).unwrap();
        let writer = Writer::new(&request, &question, reply, SystemTime::UNIX_EPOCH);
        let body: Value = serde_json::from_slice(&writer.body()).unwrap();
        assert_eq!(body["choices"][0]["message"]["content"], "a");
    }
}
