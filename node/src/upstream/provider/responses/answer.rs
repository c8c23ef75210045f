//! From answers of the Responses API to those of chat completions.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::upstream::openai_http::Malformed;

/// A whole response, or what the last event of a stream tells of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Response {
    model: Option<String>,
    status: Option<String>,
    output: Vec<Item>,
    usage: Option<Usage>,
    incomplete_details: Option<Incomplete>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Incomplete {
    reason: Option<String>,
}

/// One thing that a model put out; what only hosted tools make is not told apart.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Item {
    Message {
        #[serde(default)]
        content: Vec<Part>,
    },
    FunctionCall {
        #[serde(default)]
        call_id: String,
        name: String,
        #[serde(default)]
        arguments: String,
    },
    Reasoning {
        #[serde(default)]
        summary: Vec<Summary>,
    },
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Part {
    OutputText {
        text: String,
        #[serde(default)]
        logprobs: Vec<Value>,
    },
    Refusal {
        refusal: String,
    },
    #[serde(other)]
    Other,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Summary {
    text: String,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct Usage {
    input_tokens: u64,
    output_tokens: u64,
    input_tokens_details: InputDetails,
    output_tokens_details: OutputDetails,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct InputDetails {
    cached_tokens: u64,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct OutputDetails {
    reasoning_tokens: u64,
}

/// State of one answer's translation.
#[derive(Debug)]
pub(super) struct Answer {
    id: String,
    model: String,
    created: u64,
    pub(super) progress: super::stream::Progress,
}

impl Answer {
    pub(super) fn new(request: &str, model: &str, created: u64) -> Self {
        let id = format!("chatcmpl-{request}");
        Self { id, model: model.to_owned(), created, progress: Default::default() }
    }

    /// Translates a whole answer.
    pub(super) fn whole(&mut self, response: Response) -> Result<Value, Malformed> {
        self.note(&response);
        let (mut text, mut refusal, mut thoughts) = (String::new(), String::new(), String::new());
        let (mut calls, mut logprobs) = (Vec::new(), Vec::new());
        let (finish, usage) = ending(&response)?;
        for item in response.output {
            match item {
                Item::Message { content } => {
                    for part in content {
                        match part {
                            Part::OutputText { text: more, logprobs: more_logprobs } => {
                                text.push_str(&more);
                                logprobs.extend(more_logprobs);
                            }
                            Part::Refusal { refusal: more } => refusal.push_str(&more),
                            Part::Other => {}
                        }
                    }
                }
                Item::FunctionCall { call_id, name, arguments } => {
                    let id = self.call_id(call_id, calls.len());
                    calls.push(json!({"id": id, "type": "function",
                        "function": {"name": name, "arguments": arguments}}));
                }
                Item::Reasoning { summary } => {
                    let summary: Vec<String> = summary.into_iter().map(|part| part.text).collect();
                    thoughts.push_str(&summary.join("\n\n"));
                }
                Item::Other => {}
            }
        }
        let finish = if calls.is_empty() || finish != "stop" { finish } else { "tool_calls" };
        let some = |text: String| (!text.is_empty()).then_some(text);
        let mut message = json!({"role": "assistant", "content": some(text), "refusal": some(refusal)});
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        if let Some(thoughts) = some(thoughts) {
            message["reasoning_content"] = thoughts.into();
        }
        let logprobs = (!logprobs.is_empty()).then(|| json!({"content": logprobs, "refusal": null}));
        let choice = json!({"index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish});
        let mut whole = self.object("chat.completion", vec![choice]);
        if let Some(usage) = usage {
            whole["usage"] = usage;
        }
        Ok(whole)
    }

    pub(super) fn note(&mut self, response: &Response) {
        if let Some(model) = &response.model {
            self.model.clone_from(model);
        }
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

/// Returns the finish reason, `tool_calls` not told from `stop`, and the usage in OpenAI's older words.
///
/// # Errors
/// The response did not end.
pub(super) fn ending(response: &Response) -> Result<(&'static str, Option<Value>), Malformed> {
    let finish = match response.status.as_deref() {
        Some("completed") | None => "stop",
        Some("incomplete") => {
            let details = response.incomplete_details.as_ref();
            let filtered = details.and_then(|details| details.reason.as_deref()) == Some("content_filter");
            if filtered { "content_filter" } else { "length" }
        }
        Some(_) => return Err("a response that failed"),
    };
    Ok((finish, response.usage.map(usage_of)))
}

fn usage_of(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.input_tokens_details.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.output_tokens_details.reasoning_tokens},
    })
}
