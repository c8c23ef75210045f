//! From Anthropic's messages to OpenAI's answers; the state that whole answers and streams have in common.

use serde::Deserialize;
use serde_json::{Value, json};

use super::request::ANSWER_TOOL;
use crate::upstream::openai_http::Malformed;

/// A whole message.
#[derive(Debug, Deserialize)]
pub(super) struct Message {
    content: Vec<Block>,
    model: Option<String>,
    stop_reason: Option<String>,
    #[serde(default)]
    usage: Usage,
}

/// A block of an answer; what only servers' tools make is not told apart.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Block {
    Text {
        #[serde(default)]
        text: String,
    },
    ToolUse {
        #[serde(default)]
        id: String,
        name: String,
        #[serde(default)]
        input: Value,
    },
    Thinking {
        #[serde(default)]
        thinking: String,
        #[serde(default)]
        signature: String,
    },
    RedactedThinking {
        #[serde(default)]
        data: String,
    },
    #[serde(other)]
    Other,
}

/// Counts; a stream tells them in parts, each later one for the whole answer so far.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(super) struct Usage {
    input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    output_tokens_details: Option<Details>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct Details {
    thinking_tokens: Option<u64>,
}

impl Usage {
    /// Takes over what a later part tells.
    pub(super) fn update(&mut self, later: Usage) {
        self.input_tokens = later.input_tokens.or(self.input_tokens);
        self.cache_creation_input_tokens =
            later.cache_creation_input_tokens.or(self.cache_creation_input_tokens);
        self.cache_read_input_tokens = later.cache_read_input_tokens.or(self.cache_read_input_tokens);
        self.output_tokens = later.output_tokens.or(self.output_tokens);
        self.output_tokens_details = later.output_tokens_details.or(self.output_tokens_details);
    }

    /// Anthropic counts the prompt in three parts, OpenAI as one with details.
    pub(super) fn to_openai(self) -> Value {
        let (read, written) =
            (self.cache_read_input_tokens.unwrap_or(0), self.cache_creation_input_tokens.unwrap_or(0));
        let prompt = self.input_tokens.unwrap_or(0) + read + written;
        let completion = self.output_tokens.unwrap_or(0);
        let thoughts = self.output_tokens_details.and_then(|details| details.thinking_tokens);
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
            "completion_tokens_details": {"reasoning_tokens": thoughts.unwrap_or(0)},
        })
    }
}

/// State of one answer's translation.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) id: String,
    pub(super) model: String,
    created: u64,
    /// The arguments of [`ANSWER_TOOL`] are the answer's text.
    unwraps: bool,
    pub(super) usage: Usage,
    pub(super) progress: super::stream::Progress,
}

impl Answer {
    pub(super) fn new(request: &str, model: &str, created: u64, unwraps: bool) -> Self {
        Self {
            id: format!("chatcmpl-{request}"),
            model: model.to_owned(),
            created,
            unwraps,
            usage: Usage::default(),
            progress: Default::default(),
        }
    }

    /// Translates a whole answer.
    pub(super) fn whole(&mut self, message: Message) -> Result<Value, Malformed> {
        if let Some(model) = message.model {
            self.model = model;
        }
        self.usage.update(message.usage);
        let (mut text, mut thoughts): (Option<String>, Option<String>) = (None, None);
        let (mut kept, mut calls) = (Vec::new(), Vec::new());
        for block in message.content {
            match block {
                Block::Text { text: more } => text.get_or_insert_with(String::new).push_str(&more),
                Block::ToolUse { name, input, .. } if self.is_answer(&name) => {
                    text.get_or_insert_with(String::new).push_str(&input.to_string());
                }
                Block::ToolUse { id, name, input } => {
                    let id = self.call_id(id, calls.len());
                    let input = if input.is_null() { json!({}) } else { input };
                    calls.push(json!({"id": id, "type": "function",
                        "function": {"name": name, "arguments": input.to_string()}}));
                }
                Block::Thinking { thinking, signature } => {
                    thoughts.get_or_insert_with(String::new).push_str(&thinking);
                    kept.push(thought(&thinking, &signature));
                }
                Block::RedactedThinking { data } => kept.push(redacted(&data)),
                Block::Other => {}
            }
        }
        let finish = finish_reason(message.stop_reason.as_deref().unwrap_or("end_turn"), !calls.is_empty());
        let text = text.filter(|text| !text.is_empty());
        let mut message = json!({"role": "assistant", "content": text, "refusal": null});
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        if let Some(thoughts) = thoughts {
            message["reasoning_content"] = thoughts.into();
        }
        if !kept.is_empty() {
            message["thinking_blocks"] = kept.into();
        }
        let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": finish});
        let mut whole = self.object("chat.completion", vec![choice]);
        whole["usage"] = self.usage.to_openai();
        Ok(whole)
    }

    pub(super) fn is_answer(&self, tool: &str) -> bool {
        self.unwraps && tool == ANSWER_TOOL
    }

    /// Returns a call's id, made up where the server gave none.
    pub(super) fn call_id(&self, id: String, number: usize) -> String {
        let own = || format!("call_{}_{number}", self.id.trim_start_matches("chatcmpl-"));
        if id.is_empty() { own() } else { id }
    }

    pub(super) fn object(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }
}

/// A thought as it must come back with the next turn of a tool loop: its signature proves that it was not changed.
pub(super) fn thought(text: &str, signature: &str) -> Value {
    json!({"type": "thinking", "thinking": text, "signature": signature})
}

pub(super) fn redacted(data: &str) -> Value {
    json!({"type": "redacted_thinking", "data": data})
}

/// Translates a stop reason; `called` says that the answer has tool calls for the caller.
pub(super) fn finish_reason(reason: &str, called: bool) -> &'static str {
    match reason {
        "tool_use" | "end_turn" if called => "tool_calls",
        // The answer stands unfinished: its limit, the context's end, or a server's tool that would go on.
        "max_tokens" | "model_context_window_exceeded" | "pause_turn" => "length",
        "refusal" => "content_filter",
        // end_turn, stop_sequence, the answer tool's use, and what comes later.
        _ => "stop",
    }
}
