//! Writes OpenAI answers for an engine in this process: chunks of a stream, or one body.

use std::time::SystemTime;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::parse::Parsed;
use super::{Finish, Summary, Token};
use crate::upstream::{ApiPath, UpstreamRequest};

/// Writes one answer.
#[derive(Debug)]
pub(super) struct Writer {
    chat: bool,
    id: String,
    model: String,
    created: u64,
    logprobs: bool,
    include_usage: bool,
    /// Choices that were asked for.
    wanted: usize,
    /// Choices that are complete, of a body; of a stream they are counted.
    choices: Vec<Value>,
    index: usize,
    prompt_tokens: usize,
    completion_tokens: usize,
    open: Choice,
}

/// The choice that is being written.
#[derive(Debug, Default)]
struct Choice {
    /// Text so far, of a body; of a stream only its length matters.
    text: String,
    offset: usize,
    collected: Vec<Token>,
    /// Calls so far, of a body; of a stream they are counted.
    calls: Vec<Value>,
    called: usize,
}

impl Writer {
    pub(super) fn new(request: &UpstreamRequest, parsed: &Parsed, now: SystemTime) -> Self {
        let chat = request.path == ApiPath::ChatCompletions;
        Self {
            chat,
            id: format!("{}-{}", if chat { "chatcmpl" } else { "cmpl" }, request.id),
            model: request.model.to_string(),
            created: now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            logprobs: parsed.generation.top_logprobs.is_some(),
            include_usage: parsed.include_usage,
            wanted: parsed.choices,
            choices: Vec::new(),
            index: 0,
            prompt_tokens: 0,
            completion_tokens: 0,
            open: Choice::default(),
        }
    }

    /// The chunk that opens a choice of a streamed chat.
    pub(super) fn opening(&self) -> Option<Bytes> {
        let delta = json!({ "delta": { "role": "assistant", "content": "" } });
        self.chat.then(|| self.choice_chunk(delta, Value::Null, None))
    }

    /// The chunk of one token; none if it shows nothing.
    pub(super) fn chunk(&mut self, token: Token) -> Option<Bytes> {
        if token.text.is_empty() && token.calls.is_empty() && !self.logprobs {
            return None;
        }
        let logprobs = self.logprobs.then(|| self.logprobs_of(std::slice::from_ref(&token)));
        self.open.offset += token.text.chars().count();
        let mut text = match self.chat {
            true if token.text.is_empty() && !token.calls.is_empty() => json!({ "delta": {} }),
            true => json!({ "delta": { "content": token.text } }),
            false => json!({ "text": token.text }),
        };
        if !token.calls.is_empty() {
            text["delta"]["tool_calls"] = self.calls_of(&token, true);
        }
        Some(self.choice_chunk(text, Value::Null, logprobs))
    }

    /// The chunks that end a choice of a stream and open the next.
    pub(super) fn closing(&mut self, summary: Summary) -> Vec<Bytes> {
        let empty = if self.chat { json!({ "delta": {} }) } else { json!({ "text": "" }) };
        let mut chunks = vec![self.choice_chunk(empty, finish_reason(summary.finish), None)];
        self.count(summary);
        self.open = Choice::default();
        self.index += 1;
        if self.index < self.wanted {
            chunks.extend(self.opening());
        }
        chunks
    }

    /// The last chunk of a stream, if the usage was asked for.
    pub(super) fn usage(&self) -> Option<Bytes> {
        let mut usage = self.envelope(true);
        usage.insert("choices".to_owned(), json!([]));
        usage.insert("usage".to_owned(), self.usage_of());
        self.include_usage.then(|| bytes_of(usage))
    }

    /// Keeps a token for the body.
    pub(super) fn collect(&mut self, token: Token) {
        self.open.text.push_str(&token.text);
        if let Value::Array(calls) = self.calls_of(&token, false) {
            self.open.calls.extend(calls);
        }
        if self.logprobs {
            self.open.collected.push(token);
        }
    }

    /// Completes a choice of the body.
    pub(super) fn choice(&mut self, summary: Summary) {
        let open = std::mem::take(&mut self.open);
        let mut choice = if self.chat {
            json!({ "index": self.index, "message": { "role": "assistant", "content": open.text, "refusal": null } })
        } else {
            json!({ "index": self.index, "text": open.text })
        };
        if !open.calls.is_empty() {
            let message = &mut choice["message"];
            if open.text.is_empty() {
                message["content"] = Value::Null;
            }
            message["tool_calls"] = Value::Array(open.calls);
        }
        choice["logprobs"] = if self.logprobs { self.logprobs_of(&open.collected) } else { Value::Null };
        choice["finish_reason"] = finish_reason(summary.finish);
        self.choices.push(choice);
        self.count(summary);
        self.index += 1;
    }

    /// The body of an answer that is not streamed.
    pub(super) fn body(mut self) -> Bytes {
        let choices = std::mem::take(&mut self.choices);
        let mut body = self.envelope(false);
        body.insert("choices".to_owned(), Value::Array(choices));
        body.insert("usage".to_owned(), self.usage_of());
        bytes_of(body)
    }

    /// The prompt is the same for all choices and counts once.
    fn count(&mut self, summary: Summary) {
        self.prompt_tokens = summary.prompt_tokens;
        self.completion_tokens += summary.completion_tokens;
    }

    /// Calls as the API writes them; a chunk's say which of the choice's calls they are.
    fn calls_of(&mut self, token: &Token, chunk: bool) -> Value {
        let mut calls = Vec::new();
        for call in &token.calls {
            let mut written = json!({
                // Below 40 characters: providers that are told of the call later take no longer ones.
                "id": format!("call_{}", uuid::Uuid::now_v7().simple()),
                "type": "function",
                "function": { "name": call.name, "arguments": call.arguments },
            });
            if chunk {
                written["index"] = json!(self.open.called);
            }
            calls.push(written);
            self.open.called += 1;
        }
        Value::Array(calls)
    }

    fn usage_of(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        })
    }

    fn envelope(&self, chunk: bool) -> Map<String, Value> {
        let object = match (self.chat, chunk) {
            (true, true) => "chat.completion.chunk",
            (true, false) => "chat.completion",
            (false, _) => "text_completion",
        };
        let fields = [
            ("id", json!(self.id)),
            ("object", json!(object)),
            ("created", json!(self.created)),
            ("model", json!(self.model)),
        ];
        fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    fn choice_chunk(&self, mut choice: Value, finish_reason: Value, logprobs: Option<Value>) -> Bytes {
        choice["index"] = json!(self.index);
        choice["logprobs"] = logprobs.unwrap_or(Value::Null);
        choice["finish_reason"] = finish_reason;
        let mut chunk = self.envelope(true);
        chunk.insert("choices".to_owned(), json!([choice]));
        bytes_of(chunk)
    }

    fn logprobs_of(&self, tokens: &[Token]) -> Value {
        if self.chat {
            let content: Vec<Value> = tokens.iter().map(chat_logprob).collect();
            return json!({ "content": content, "refusal": null });
        }
        let mut offset = self.open.offset;
        let offsets: Vec<usize> = tokens
            .iter()
            .map(|token| {
                let at = offset;
                offset += token.text.chars().count();
                at
            })
            .collect();
        let top = |token: &Token| -> Map<String, Value> {
            token.top.iter().map(|(text, logprob)| (text.clone(), json!(logprob))).collect()
        };
        json!({
            "tokens": tokens.iter().map(spelling).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
            "text_offset": offsets,
        })
    }
}

fn chat_logprob(token: &Token) -> Value {
    let top = |(text, logprob): &(String, f32)| json!({ "token": text, "logprob": logprob, "bytes": text.as_bytes() });
    json!({
        "token": spelling(token),
        "logprob": token.logprob,
        "bytes": token.bytes,
        "top_logprobs": token.top.iter().map(top).collect::<Vec<_>>(),
    })
}

/// What a token stands for by itself; its text may already belong to a character that began earlier.
fn spelling(token: &Token) -> String {
    if token.bytes.is_empty() {
        token.text.clone()
    } else {
        String::from_utf8_lossy(&token.bytes).into_owned()
    }
}

fn finish_reason(finish: Finish) -> Value {
    match finish {
        Finish::Stop => json!("stop"),
        Finish::Calls => json!("tool_calls"),
        Finish::Length => json!("length"),
        Finish::Cancelled => Value::Null,
    }
}

fn bytes_of(object: Map<String, Value>) -> Bytes {
    Bytes::from(Value::Object(object).to_string())
}
