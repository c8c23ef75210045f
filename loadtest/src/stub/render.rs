//! Writes a planned answer as OpenAI's JSON: one body, or the payloads of a stream.

use serde_json::{Value, json};

use super::{
    answer::Choice,
    request::{Path, Request},
};
use crate::script::Script;

/// Gap between the logprobs of one alternative and the next, in nats.
const LOGPROB_STEP: f64 = 1.5;

/// One payload of a stream.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Frame {
    /// JSON, without framing.
    pub(super) payload: String,
    /// Tokens sent before this frame goes out, which sets its time.
    pub(super) due: usize,
    /// Tokens it carries.
    pub(super) tokens: u64,
}

/// What is the same in every object of one answer.
pub(super) struct Envelope<'a> {
    pub(super) request: &'a Request,
    pub(super) script: &'a Script,
    pub(super) id: String,
    pub(super) created: u64,
}

impl Envelope<'_> {
    fn object(&self, object: &str, choices: Value) -> Value {
        json!({"id": self.id, "object": object, "created": self.created, "model": self.request.model,
            "system_fingerprint": "fp_stub", "choices": choices})
    }

    fn usage(&self, choices: &[Choice]) -> Value {
        let (prompt, out) = (self.request.prompt_tokens, tokens_of(choices));
        json!({"prompt_tokens": prompt, "completion_tokens": out, "total_tokens": prompt + out})
    }

    /// The whole answer of a request that is not streamed.
    pub(super) fn body(&self, choices: &[Choice]) -> Value {
        let rendered: Vec<Value> = choices.iter().enumerate().map(|(i, c)| self.whole_choice(i, c)).collect();
        let object = match self.request.path {
            Path::Chat | Path::Ollama => "chat.completion",
            _ => "text_completion",
        };
        let mut body = self.object(object, rendered.into());
        body["usage"] = self.usage(choices);
        body
    }

    fn whole_choice(&self, index: usize, choice: &Choice) -> Value {
        let finish = if self.script.no_finish { Value::Null } else { choice.finish.into() };
        let logprobs = self.logprobs(&choice.pieces, 0);
        if self.request.path == Path::Completion {
            return json!({"index": index, "text": choice.text(), "logprobs": logprobs, "finish_reason": finish});
        }
        let mut message = match &choice.tool {
            None => json!({"role": "assistant", "content": choice.text(), "refusal": null}),
            Some(name) => json!({"role": "assistant", "content": null, "tool_calls": [
                {"id": self.call_id(index), "type": "function",
                 "function": {"name": name, "arguments": choice.text()}}]}),
        };
        if !choice.thought.is_empty() {
            message["reasoning_content"] = choice.thought.concat().into();
        }
        json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish})
    }

    /// The payloads of a stream, in order, without `[DONE]`.
    pub(super) fn frames(&self, choices: &[Choice]) -> Vec<Frame> {
        let mut frames = Vec::new();
        if self.request.path == Path::Chat {
            for (index, choice) in choices.iter().enumerate() {
                frames.push(self.frame(index, self.opening(index, choice), Value::Null, Value::Null, 0, 0));
            }
        }
        for (index, choice) in choices.iter().enumerate() {
            for word in &choice.thought {
                let delta = json!({"reasoning_content": word});
                frames.push(self.frame(index, delta, Value::Null, Value::Null, 0, 0));
            }
        }
        let longest = choices.iter().map(|choice| choice.pieces.len()).max().unwrap_or(0);
        let mut offsets = vec![0; choices.len()];
        for at in 0..longest {
            for (index, choice) in choices.iter().enumerate() {
                let Some(piece) = choice.pieces.get(at) else { continue };
                let delta = match &choice.tool {
                    None => json!({"content": piece}),
                    Some(_) => json!({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}),
                };
                let logprobs = self.logprobs(std::slice::from_ref(piece), offsets[index]);
                offsets[index] += piece.len();
                frames.push(self.frame(index, delta, logprobs, Value::Null, at, 1));
            }
        }
        let last = longest.saturating_sub(1);
        if !self.script.no_finish {
            for (index, choice) in choices.iter().enumerate() {
                let delta = if self.request.path == Path::Chat { json!({}) } else { json!({"content": ""}) };
                frames.push(self.frame(index, delta, Value::Null, choice.finish.into(), last, 0));
            }
        }
        if self.request.include_usage {
            let mut payload = self.object(self.chunk_object(), json!([]));
            payload["usage"] = self.usage(choices);
            frames.push(Frame { payload: payload.to_string(), due: last, tokens: 0 });
        }
        frames
    }

    fn opening(&self, index: usize, choice: &Choice) -> Value {
        match &choice.tool {
            None => json!({"role": "assistant", "content": ""}),
            Some(name) => json!({"role": "assistant", "content": null, "tool_calls": [{"index": 0,
                "id": self.call_id(index), "type": "function", "function": {"name": name, "arguments": ""}}]}),
        }
    }

    fn call_id(&self, index: usize) -> String {
        format!("call_{}_{index}", self.id)
    }

    fn chunk_object(&self) -> &'static str {
        match self.request.path {
            Path::Chat | Path::Ollama => "chat.completion.chunk",
            _ => "text_completion",
        }
    }

    fn frame(
        &self,
        index: usize,
        delta: Value,
        logprobs: Value,
        finish: Value,
        due: usize,
        tokens: u64,
    ) -> Frame {
        let choice = match self.request.path {
            Path::Chat | Path::Ollama => {
                json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish})
            }
            _ => {
                json!({"index": index, "text": delta["content"], "logprobs": logprobs, "finish_reason": finish})
            }
        };
        let mut payload = self.object(self.chunk_object(), json!([choice]));
        if self.request.include_usage {
            payload["usage"] = Value::Null;
        }
        Frame { payload: payload.to_string(), due, tokens }
    }

    /// Logprobs of `pieces`, the first of which stands `offset` bytes into the text.
    pub(super) fn logprobs(&self, pieces: &[String], offset: usize) -> Value {
        let (Some(k), false) = (self.request.logprobs, self.script.no_logprobs) else {
            return Value::Null;
        };
        let own = self.script.logprob;
        let alternatives = |piece: &str| {
            (0..k)
                .map(|i| {
                    (
                        if i == 0 { piece.to_owned() } else { format!(" alt{i}") },
                        own - LOGPROB_STEP * i as f64,
                    )
                })
                .collect::<Vec<_>>()
        };
        match self.request.path {
            Path::Chat | Path::Ollama => {
                let content: Vec<Value> = pieces
                    .iter()
                    .map(|piece| {
                        let top: Vec<Value> = alternatives(piece)
                            .into_iter()
                            .map(|(token, lp)| json!({"token": token, "logprob": lp, "bytes": token.as_bytes()}))
                            .collect();
                        json!({"token": piece, "logprob": own, "bytes": piece.as_bytes(), "top_logprobs": top})
                    })
                    .collect();
                json!({"content": content, "refusal": null})
            }
            _ => {
                let top: Vec<Value> = pieces
                    .iter()
                    .map(|piece| {
                        alternatives(piece)
                            .into_iter()
                            .map(|(t, lp)| (t, lp.into()))
                            .collect::<serde_json::Map<_, _>>()
                    })
                    .map(Value::Object)
                    .collect();
                let mut at = offset;
                let offsets: Vec<usize> = pieces
                    .iter()
                    .map(|piece| {
                        at += piece.len();
                        at - piece.len()
                    })
                    .collect();
                json!({"tokens": pieces, "token_logprobs": vec![own; pieces.len()], "top_logprobs": top,
                    "text_offset": offsets})
            }
        }
    }
}

/// Tokens generated over all choices.
pub(super) fn tokens_of(choices: &[Choice]) -> usize {
    choices.iter().map(|choice| choice.pieces.len()).sum()
}
