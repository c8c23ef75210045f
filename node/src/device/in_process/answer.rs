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
    /// Text so far, of a body; of a stream only its length matters.
    text: String,
    offset: usize,
    collected: Vec<Token>,
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
            text: String::new(),
            offset: 0,
            collected: Vec::new(),
        }
    }

    /// The chunk that opens a streamed chat.
    pub(super) fn opening(&self) -> Option<Bytes> {
        let delta = json!({ "delta": { "role": "assistant", "content": "" } });
        self.chat.then(|| self.choice_chunk(delta, Value::Null, None))
    }

    /// The chunk of one token; none if it shows nothing.
    pub(super) fn chunk(&mut self, token: Token) -> Option<Bytes> {
        if token.text.is_empty() && !self.logprobs {
            return None;
        }
        let logprobs = self.logprobs.then(|| self.logprobs_of(std::slice::from_ref(&token)));
        self.offset += token.text.chars().count();
        let text = if self.chat {
            json!({ "delta": { "content": token.text } })
        } else {
            json!({ "text": token.text })
        };
        Some(self.choice_chunk(text, Value::Null, logprobs))
    }

    /// The chunks that end a stream.
    pub(super) fn closing(&self, summary: Summary) -> Vec<Bytes> {
        let empty = if self.chat { json!({ "delta": {} }) } else { json!({ "text": "" }) };
        let mut chunks = vec![self.choice_chunk(empty, finish_reason(summary.finish), None)];
        if self.include_usage {
            let mut usage = self.envelope(true);
            usage.insert("choices".to_owned(), json!([]));
            usage.insert("usage".to_owned(), usage_of(summary));
            chunks.push(bytes_of(usage));
        }
        chunks
    }

    /// Keeps a token for the body.
    pub(super) fn collect(&mut self, token: Token) {
        self.text.push_str(&token.text);
        if self.logprobs {
            self.collected.push(token);
        }
    }

    /// The body of an answer that is not streamed.
    pub(super) fn body(self, summary: Summary) -> Bytes {
        let mut choice = if self.chat {
            json!({ "message": { "role": "assistant", "content": self.text, "refusal": null } })
        } else {
            json!({ "text": self.text })
        };
        choice["index"] = json!(0);
        choice["logprobs"] = if self.logprobs { self.logprobs_of(&self.collected) } else { Value::Null };
        choice["finish_reason"] = finish_reason(summary.finish);
        let mut body = self.envelope(false);
        body.insert("choices".to_owned(), json!([choice]));
        body.insert("usage".to_owned(), usage_of(summary));
        bytes_of(body)
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
        choice["index"] = json!(0);
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
        let mut offset = self.offset;
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
        Finish::Length => json!("length"),
        Finish::Cancelled => Value::Null,
    }
}

fn usage_of(summary: Summary) -> Value {
    let Summary { prompt_tokens, completion_tokens, .. } = summary;
    json!({
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    })
}

fn bytes_of(object: Map<String, Value>) -> Bytes {
    Bytes::from(Value::Object(object).to_string())
}
