//! From what `/api/chat` answers to a chat completion, whole or in chunks; pure.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::upstream::openai_http::Malformed;

/// One answer, or one line of a stream.
#[derive(Debug, Deserialize)]
pub(super) struct Told {
    message: Option<Said>,
    #[serde(default)]
    done: bool,
    done_reason: Option<String>,
    prompt_eval_count: Option<u64>,
    eval_count: Option<u64>,
    logprobs: Option<Vec<Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Said {
    content: String,
    thinking: String,
    tool_calls: Vec<Call>,
}

#[derive(Debug, Deserialize)]
struct Call {
    id: Option<String>,
    function: Function,
}

#[derive(Debug, Deserialize)]
struct Function {
    name: String,
    #[serde(default)]
    arguments: Value,
}

/// What an answer's pieces have in common, and what was said of it so far.
#[derive(Debug)]
pub(super) struct Answer {
    id: String,
    model: String,
    created: u64,
    began: bool,
    calls: usize,
}

impl Answer {
    /// Begins an answer; `created` in seconds.
    pub(super) fn new(request: &str, model: &str, created: u64) -> Self {
        let id = format!("chatcmpl-{}", request.strip_prefix("req_").unwrap_or(request));
        Self { id, model: model.to_owned(), created, began: false, calls: 0 }
    }

    /// Translates a whole answer.
    pub(super) fn whole(&mut self, told: Told) -> Result<Value, Malformed> {
        let said = told.message.as_ref().ok_or("an answer without a message")?;
        let calls = self.calls(&said.tool_calls);
        let mut message = json!({"role": "assistant", "content": said.content});
        if !said.thinking.is_empty() {
            message["reasoning_content"] = said.thinking.as_str().into();
        }
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
            if said.content.is_empty() {
                message["content"] = Value::Null;
            }
        }
        let choice = json!({"index": 0, "message": message, "finish_reason": self.finish(&told), "logprobs": logprobs(&told)});
        let mut whole = self.envelope("chat.completion", json!([choice]));
        whole["usage"] = usage(&told);
        Ok(whole)
    }

    /// Translates one line of a stream.
    pub(super) fn chunks(&mut self, told: Told) -> Vec<Value> {
        let mut out = Vec::new();
        let said = told.message.as_ref();
        let mut delta = json!({});
        if !std::mem::replace(&mut self.began, true) {
            delta["role"] = "assistant".into();
        }
        if let Some(said) = said {
            let first = self.calls;
            let mut calls = self.calls(&said.tool_calls);
            for (at, call) in calls.iter_mut().enumerate() {
                call["index"] = (first + at).into();
            }
            if !said.content.is_empty() {
                delta["content"] = said.content.as_str().into();
            }
            if !said.thinking.is_empty() {
                delta["reasoning_content"] = said.thinking.as_str().into();
            }
            if !calls.is_empty() {
                delta["tool_calls"] = calls.into();
            }
        }
        let says_something = delta.as_object().is_some_and(|delta| !delta.is_empty());
        if says_something || told.done {
            let finish = told.done.then(|| self.finish(&told));
            let choice =
                json!({"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs(&told)});
            out.push(self.envelope("chat.completion.chunk", json!([choice])));
        }
        if told.done {
            let mut last = self.envelope("chat.completion.chunk", json!([]));
            last["usage"] = usage(&told);
            out.push(last);
        }
        out
    }

    /// Translates calls; ids are made where the server gives none, unlike each other within the answer.
    fn calls(&mut self, calls: &[Call]) -> Vec<Value> {
        let mut out = Vec::new();
        for Call { id, function } in calls {
            let made = format!("call_{}_{}", self.id.trim_start_matches("chatcmpl-"), self.calls);
            self.calls += 1;
            let arguments = match &function.arguments {
                Value::Null => "{}".to_owned(),
                Value::String(text) => text.clone(),
                object => object.to_string(),
            };
            let id = id.as_deref().filter(|id| !id.is_empty()).unwrap_or(&made);
            out.push(json!({"id": id, "type": "function", "function": {"name": function.name, "arguments": arguments}}));
        }
        out
    }

    fn finish(&self, told: &Told) -> &'static str {
        match told.done_reason.as_deref() {
            Some("length") => "length",
            _ if self.calls > 0 => "tool_calls",
            _ => "stop",
        }
    }

    fn envelope(&self, object: &str, choices: Value) -> Value {
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }
}

fn logprobs(told: &Told) -> Value {
    match &told.logprobs {
        Some(list) if !list.is_empty() => json!({"content": list}),
        _ => Value::Null,
    }
}

/// A prompt that is still in the cache is not evaluated, and then not counted by some versions.
fn usage(told: &Told) -> Value {
    let (prompt, answer) = (told.prompt_eval_count.unwrap_or(0), told.eval_count.unwrap_or(0));
    json!({"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer})
}
