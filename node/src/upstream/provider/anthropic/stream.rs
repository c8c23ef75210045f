//! From Anthropic's stream events to OpenAI's chunks.

use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Answer, Block, Usage, finish_reason, redacted, thought};
use crate::upstream::openai_http::Malformed;

/// Longest thought that is kept to be told whole with its signature, bytes; a longer one is only streamed.
const MAX_THOUGHT: usize = 1 << 20;

/// One event of a stream. An error event is met before it gets here.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Event {
    MessageStart {
        message: Opening,
    },
    ContentBlockStart {
        content_block: Block,
    },
    ContentBlockDelta {
        delta: Delta,
    },
    ContentBlockStop,
    MessageDelta {
        delta: End,
        #[serde(default)]
        usage: Usage,
    },
    /// `message_stop`, `ping`, and what comes later.
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
pub(super) struct Opening {
    model: Option<String>,
    #[serde(default)]
    usage: Usage,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type")]
pub(super) enum Delta {
    #[serde(rename = "text_delta")]
    Text { text: String },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: String },
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: String },
    #[serde(rename = "signature_delta")]
    Signature { signature: String },
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
pub(super) struct End {
    stop_reason: Option<String>,
}

/// Where a stream is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    opened: bool,
    /// Calls begun so far; the next one's index.
    calls: usize,
    block: Open,
}

/// The block that is being written; Anthropic writes one at a time.
#[derive(Debug, Default)]
enum Open {
    #[default]
    Text,
    /// A call, by index; `input` is what stood in its beginning, `written` says that pieces of it came.
    Call {
        index: usize,
        input: Value,
        written: bool,
    },
    /// The call whose arguments are the answer.
    Answer {
        input: Value,
        written: bool,
    },
    Thought {
        text: String,
        signature: String,
    },
}

impl Answer {
    /// Translates one event into the chunks that say the same.
    pub(super) fn chunks(&mut self, event: Event) -> Result<Vec<Value>, Malformed> {
        let mut out = Vec::new();
        match event {
            Event::MessageStart { message } => {
                if let Some(model) = message.model {
                    self.model = model;
                }
                self.usage.update(message.usage);
                self.open(&mut out);
            }
            Event::ContentBlockStart { content_block } => {
                self.open(&mut out);
                self.begin(content_block, &mut out);
            }
            Event::ContentBlockDelta { delta } => {
                self.open(&mut out);
                out.extend(self.piece(delta).map(|delta| self.chunk(delta, None)));
            }
            Event::ContentBlockStop => out.extend(self.close().map(|delta| self.chunk(delta, None))),
            Event::MessageDelta { delta, usage } => {
                self.usage.update(usage);
                if let Some(reason) = delta.stop_reason {
                    self.open(&mut out);
                    let finish = finish_reason(&reason, self.progress.calls > 0);
                    out.push(self.chunk(json!({}), Some(finish)));
                    let mut counts = self.object("chat.completion.chunk", Vec::new());
                    counts["usage"] = self.usage.to_openai();
                    out.push(counts);
                }
            }
            Event::Other => {}
        }
        Ok(out)
    }

    fn begin(&mut self, block: Block, out: &mut Vec<Value>) {
        self.progress.block = match block {
            Block::Text { text } => {
                if !text.is_empty() {
                    out.push(self.chunk(json!({"content": text}), None));
                }
                Open::Text
            }
            Block::ToolUse { name, input, .. } if self.is_answer(&name) => {
                Open::Answer { input, written: false }
            }
            Block::ToolUse { id, name, input } => {
                let index = self.progress.calls;
                self.progress.calls += 1;
                let call = json!({"index": index, "id": self.call_id(id, index), "type": "function",
                    "function": {"name": name, "arguments": ""}});
                out.push(self.chunk(json!({"tool_calls": [call]}), None));
                Open::Call { index, input, written: false }
            }
            Block::Thinking { thinking, signature } => {
                if !thinking.is_empty() {
                    out.push(self.chunk(json!({"reasoning_content": thinking}), None));
                }
                Open::Thought { text: thinking, signature }
            }
            Block::RedactedThinking { data } => {
                out.push(self.chunk(json!({"thinking_blocks": [redacted(&data)]}), None));
                Open::Text
            }
            Block::Other => Open::Text,
        };
    }

    /// Returns what a piece adds; `None` if nothing that a reader sees.
    fn piece(&mut self, delta: Delta) -> Option<Value> {
        match (delta, &mut self.progress.block) {
            (Delta::Text { text }, _) => Some(json!({"content": text})),
            (Delta::InputJson { partial_json }, _) if partial_json.is_empty() => None,
            (Delta::InputJson { partial_json }, Open::Call { index, written, .. }) => {
                *written = true;
                Some(arguments(*index, &partial_json))
            }
            (Delta::InputJson { partial_json }, Open::Answer { written, .. }) => {
                *written = true;
                Some(json!({"content": partial_json}))
            }
            (Delta::Thinking { thinking }, Open::Thought { text, .. }) => {
                if text.len() < MAX_THOUGHT {
                    text.push_str(&thinking);
                }
                Some(json!({"reasoning_content": thinking}))
            }
            (Delta::Signature { signature: piece }, Open::Thought { signature, .. }) => {
                signature.push_str(&piece);
                None
            }
            _ => None,
        }
    }

    /// Ends the open block: a call of which no piece came has what stood in its beginning.
    fn close(&mut self) -> Option<Value> {
        match std::mem::take(&mut self.progress.block) {
            Open::Call { index, input, written: false } => Some(arguments(index, &object(&input))),
            Open::Answer { input, written: false } => Some(json!({"content": object(&input)})),
            Open::Thought { text, signature } if !signature.is_empty() && text.len() < MAX_THOUGHT => {
                Some(json!({"thinking_blocks": [thought(&text, &signature)]}))
            }
            Open::Text | Open::Call { .. } | Open::Answer { .. } | Open::Thought { .. } => None,
        }
    }

    fn open(&mut self, out: &mut Vec<Value>) {
        if !std::mem::replace(&mut self.progress.opened, true) {
            out.push(self.chunk(json!({"role": "assistant", "content": ""}), None));
        }
    }

    fn chunk(&self, delta: Value, finish: Option<&str>) -> Value {
        let choice = json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish});
        self.object("chat.completion.chunk", vec![choice])
    }
}

fn arguments(index: usize, text: &str) -> Value {
    json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
}

fn object(input: &Value) -> String {
    if input.is_object() { input.to_string() } else { "{}".to_owned() }
}
