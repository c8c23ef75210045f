//! From stream events of the Responses API to chunks of chat completions.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Answer, Item, Response, ending};
use crate::upstream::openai_http::Malformed;

/// Most calls in one answer; more is no answer that a client could use.
const MAX_CALLS: usize = 128;

/// One event of a stream.
#[derive(Debug, Deserialize)]
#[serde(tag = "type")]
pub(super) enum Event {
    #[serde(rename = "response.created")]
    Created { response: Response },
    #[serde(rename = "response.output_text.delta")]
    Text {
        delta: String,
        #[serde(default)]
        logprobs: Vec<Value>,
    },
    #[serde(rename = "response.refusal.delta")]
    Refusal { delta: String },
    #[serde(rename = "response.reasoning_summary_text.delta")]
    Reasoning { delta: String },
    #[serde(rename = "response.output_item.added")]
    Added { output_index: u64, item: Item },
    #[serde(rename = "response.function_call_arguments.delta")]
    Arguments { output_index: u64, delta: String },
    #[serde(rename = "response.output_item.done")]
    Done { output_index: u64, item: Item },
    #[serde(rename = "response.completed", alias = "response.incomplete", alias = "response.failed")]
    Ended { response: Response },
    #[serde(rename = "error")]
    Error,
    #[serde(other)]
    Other,
}

/// Where a stream is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    opened: bool,
    /// Calls by their place in the output: their own number, and whether arguments came.
    calls: BTreeMap<u64, (usize, bool)>,
}

impl Answer {
    /// Translates one event into the chunks that say the same.
    pub(super) fn chunks(&mut self, event: Event) -> Result<Vec<Value>, Malformed> {
        let mut out = Vec::new();
        match event {
            Event::Created { response } => {
                self.note(&response);
                self.open(&mut out);
            }
            Event::Text { delta, logprobs } => {
                self.open(&mut out);
                let logprobs = (!logprobs.is_empty()).then(|| json!({"content": logprobs, "refusal": null}));
                out.push(self.chunk(json!({"content": delta}), logprobs, None));
            }
            Event::Refusal { delta } => self.say(json!({"refusal": delta}), &mut out),
            Event::Reasoning { delta } => self.say(json!({"reasoning_content": delta}), &mut out),
            Event::Added { output_index, item } => self.begin(output_index, item, &mut out)?,
            Event::Arguments { output_index, delta } => {
                if let Some((number, written)) = self.progress.calls.get_mut(&output_index) {
                    *written = true;
                    let delta = arguments(*number, &delta);
                    self.say(delta, &mut out);
                }
            }
            Event::Done { output_index, item: Item::FunctionCall { arguments: all, .. } } => {
                if let Some((number, false)) = self.progress.calls.get(&output_index) {
                    let delta = arguments(*number, &all);
                    self.say(delta, &mut out);
                }
            }
            Event::Ended { response } => {
                let (finish, usage) = ending(&response)?;
                self.open(&mut out);
                let called = !self.progress.calls.is_empty() && finish == "stop";
                out.push(self.chunk(json!({}), None, Some(if called { "tool_calls" } else { finish })));
                if let Some(usage) = usage {
                    let mut counts = self.object("chat.completion.chunk", Vec::new());
                    counts["usage"] = usage;
                    out.push(counts);
                }
            }
            Event::Error => return Err("an error in the middle of a stream"),
            Event::Done { .. } | Event::Other => {}
        }
        Ok(out)
    }

    fn begin(&mut self, place: u64, item: Item, out: &mut Vec<Value>) -> Result<(), Malformed> {
        let Item::FunctionCall { call_id, name, .. } = item else { return Ok(()) };
        let number = self.progress.calls.len();
        if number == MAX_CALLS {
            return Err("more tool calls than anybody could answer");
        }
        self.progress.calls.insert(place, (number, false));
        let id = self.call_id(call_id, number);
        let call = json!({"index": number, "id": id, "type": "function",
            "function": {"name": name, "arguments": ""}});
        self.say(json!({"tool_calls": [call]}), out);
        Ok(())
    }

    fn say(&mut self, delta: Value, out: &mut Vec<Value>) {
        self.open(out);
        out.push(self.chunk(delta, None, None));
    }

    fn open(&mut self, out: &mut Vec<Value>) {
        if !std::mem::replace(&mut self.progress.opened, true) {
            out.push(self.chunk(json!({"role": "assistant", "content": ""}), None, None));
        }
    }

    fn chunk(&self, delta: Value, logprobs: Option<Value>, finish: Option<&str>) -> Value {
        let choice = json!({"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish});
        self.object("chat.completion.chunk", vec![choice])
    }
}

fn arguments(number: usize, text: &str) -> Value {
    json!({"tool_calls": [{"index": number, "function": {"arguments": text}}]})
}
