//! Reads OpenAI request bodies for an engine in this process.
//!
//! What the engine cannot do at all is refused with the name of the parameter; unknown fields are ignored, as the
//! API's clients expect. Ranges are those of the OpenAI API.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::form::{self, CallRules};
use super::{GenerateError, Generation, Generator, Message};
use crate::upstream::UpstreamError;

/// Most tokens of an answer unless the request says otherwise; also a small model that rambles then ends.
const DEFAULT_MAX_TOKENS: u64 = 1024;

/// Temperature when the request names none. The API's own default of 1 makes models of this size ramble: asked for
/// the capital of France, SmolLM2-135M says "Paris" at 0.2 (its authors' setting) and anything at 1.
const DEFAULT_TEMPERATURE: f32 = 0.2;

/// Most stop texts; the API allows four, other servers more.
const MAX_STOPS: usize = 16;

/// Most answers to one request; they are made one after the other.
const MAX_CHOICES: usize = 16;

/// Most entries of `logit_bias`, as in the API.
const MAX_BIASES: usize = 300;

/// A request, ready to be run.
#[derive(Debug)]
pub(super) struct Parsed {
    /// What to go on from.
    pub(super) prompt: Prompt,
    /// How; its prompt is still empty.
    pub(super) generation: Generation,
    /// Answers to make, 1 or more.
    pub(super) choices: usize,
    /// Whether a stream should end with the usage.
    pub(super) include_usage: bool,
}

/// What to go on from.
#[derive(Debug)]
pub(super) enum Prompt {
    /// A conversation, to be rendered by the model's template.
    Chat(Vec<Message>, Option<Value>),
    /// A conversation whose last message is the beginning of the answer.
    Begun(Vec<Message>, Option<Value>, String),
    /// A text as it is.
    Text(String),
}

impl Prompt {
    /// Turns it into the model's input; costs a template run, so it belongs on the blocking thread.
    pub(super) fn render(&self, generator: &dyn Generator) -> Result<String, GenerateError> {
        match self {
            Prompt::Chat(messages, tools) => generator.render_chat(messages, tools.as_ref()),
            // The template opens the answer; what was said of it follows as it is, not closed as a turn would be.
            Prompt::Begun(messages, tools, begun) => {
                Ok(generator.render_chat(messages, tools.as_ref())? + begun)
            }
            Prompt::Text(text) => Ok(text.clone()),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Body {
    messages: Option<Vec<WireMessage>>,
    prompt: Option<OneOrMany>,
    tools: Option<Value>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    functions: Option<Value>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    n: Option<u64>,
    best_of: Option<u64>,
    echo: Option<bool>,
    suffix: Option<String>,
    /// A boolean in chats, a number in completions.
    logprobs: Option<Value>,
    top_logprobs: Option<u8>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    response_format: Option<Value>,
    stream_options: Option<StreamOptions>,
    continue_final_message: Option<bool>,
    add_generation_prompt: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            OneOrMany::One(text) => vec![text],
            OneOrMany::Many(texts) => texts,
        }
    }
}

#[derive(Debug, Deserialize)]
struct WireMessage {
    role: String,
    content: Option<Content>,
    name: Option<String>,
    tool_calls: Option<Value>,
    tool_call_id: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
struct Part {
    text: Option<String>,
}

pub(super) fn invalid(message: impl Into<String>) -> UpstreamError {
    UpstreamError::new(400, "invalid_request_error", message)
}

/// Something the engine cannot do, but another may.
pub(super) fn unsupported(what: &str) -> UpstreamError {
    UpstreamError::retryable(
        400,
        "invalid_request_error",
        format!("the embedded engine does not support {what}"),
    )
}

/// Reads the body of a chat completion.
pub(super) fn chat(body: &[u8]) -> Result<Parsed, UpstreamError> {
    let mut body = read(body)?;
    let messages = body
        .messages
        .take()
        .filter(|list| !list.is_empty())
        .ok_or_else(|| invalid("'messages' must be a list with at least one message"))?;
    let messages = messages.into_iter().map(message).collect::<Result<Vec<_>, _>>()?;
    if body.functions.as_ref().is_some_and(|functions| !functions.is_null()) {
        return Err(unsupported("'functions'; use 'tools'"));
    }
    let tools = body.tools.take().filter(|tools| tools.as_array().is_some_and(|list| !list.is_empty()));
    let parallel = body.parallel_tool_calls.unwrap_or(true);
    let calls = form::calls(tools.as_ref(), body.tool_choice.as_ref(), parallel)?;
    // Tools that may not be called are not shown either.
    let tools = tools.filter(|_| calls.is_some());
    let top_logprobs = match (&body.logprobs, body.top_logprobs) {
        (Some(Value::Bool(true)), top) => Some(top.unwrap_or(0)),
        (None | Some(Value::Bool(false) | Value::Null), None | Some(0)) => None,
        (None | Some(Value::Bool(false) | Value::Null), Some(_)) => {
            return Err(invalid("'top_logprobs' needs 'logprobs': true"));
        }
        _ => return Err(invalid("'logprobs' must be true or false")),
    };
    let prompt = prompt(messages, tools, body.continue_final_message, body.add_generation_prompt)?;
    finish(body, prompt, calls, top_logprobs)
}

/// Takes the beginning of the answer out of a conversation that ends with it, as vLLM's API tells it.
fn prompt(
    mut messages: Vec<Message>,
    tools: Option<Value>,
    continues: Option<bool>,
    opens: Option<bool>,
) -> Result<Prompt, UpstreamError> {
    if continues != Some(true) {
        return Ok(Prompt::Chat(messages, tools));
    }
    if opens == Some(true) {
        return Err(invalid("'continue_final_message' needs 'add_generation_prompt': false"));
    }
    let last = messages.pop().filter(|last| last.role == "assistant" && last.tool_calls.is_none());
    match last {
        Some(last) if !messages.is_empty() => Ok(Prompt::Begun(messages, tools, last.content)),
        _ => Err(invalid("'continue_final_message' needs an assistant's text as the last message")),
    }
}

/// Reads the body of a plain completion.
pub(super) fn completion(body: &[u8]) -> Result<Parsed, UpstreamError> {
    let mut body = read(body)?;
    let mut prompts = body.prompt.take().map(OneOrMany::into_vec).unwrap_or_default();
    let (Some(prompt), true) = (prompts.pop(), prompts.is_empty()) else {
        return Err(invalid("'prompt' must be one text"));
    };
    if body.best_of.is_some_and(|best_of| best_of > 1) {
        return Err(unsupported("'best_of' above 1"));
    }
    if body.echo == Some(true) || body.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
        return Err(unsupported("'echo' and 'suffix'"));
    }
    let top_logprobs = match &body.logprobs {
        None | Some(Value::Null) => None,
        Some(value) => match value.as_u64().and_then(|top| u8::try_from(top).ok()) {
            Some(top) => Some(top),
            None => return Err(invalid("'logprobs' must be a number from 0 to 20")),
        },
    };
    finish(body, Prompt::Text(prompt), None, top_logprobs)
}

fn read(body: &[u8]) -> Result<Body, UpstreamError> {
    // The parser's own words may quote the request, so only the place is told.
    serde_json::from_slice(body).map_err(|error| {
        invalid(format!("the request body is not as the API wants it, near column {}", error.column()))
    })
}

fn message(message: WireMessage) -> Result<Message, UpstreamError> {
    let content = match message.content {
        None => String::new(),
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => {
            let texts =
                parts.into_iter().map(|part| part.text.ok_or_else(|| unsupported("parts other than text")));
            texts.collect::<Result<Vec<_>, _>>()?.join("\n")
        }
    };
    let WireMessage { role, name, tool_calls, tool_call_id, .. } = message;
    Ok(Message { role, content, name, tool_calls, tool_call_id })
}

fn finish(
    body: Body,
    prompt: Prompt,
    calls: Option<CallRules>,
    top_logprobs: Option<u8>,
) -> Result<Parsed, UpstreamError> {
    let choices = match body.n.unwrap_or(1) {
        0 => return Err(invalid("'n' must be at least 1")),
        n => usize::try_from(n)
            .ok()
            .filter(|n| *n <= MAX_CHOICES)
            .ok_or_else(|| unsupported(&format!("'n' above {MAX_CHOICES}")))?,
    };
    let max_tokens = body.max_completion_tokens.or(body.max_tokens).unwrap_or(DEFAULT_MAX_TOKENS);
    if max_tokens == 0 {
        return Err(invalid("'max_tokens' must be at least 1"));
    }
    if top_logprobs.is_some_and(|top| top > 20) {
        return Err(invalid("'top_logprobs' must be from 0 to 20"));
    }
    let stop: Vec<String> = body.stop.map(OneOrMany::into_vec).unwrap_or_default();
    if stop.len() > MAX_STOPS || stop.iter().any(String::is_empty) {
        return Err(invalid(format!("'stop' takes up to {MAX_STOPS} texts, none of them empty")));
    }
    let generation = Generation {
        prompt: String::new(),
        max_tokens: usize::try_from(max_tokens).unwrap_or(usize::MAX),
        temperature: within("temperature", body.temperature, DEFAULT_TEMPERATURE, 0.0, 2.0)?,
        top_p: within("top_p", body.top_p, 1.0, 0.0, 1.0)?,
        seed: body.seed.map(i64::cast_unsigned),
        stop,
        top_logprobs,
        frequency_penalty: within("frequency_penalty", body.frequency_penalty, 0.0, -2.0, 2.0)?,
        presence_penalty: within("presence_penalty", body.presence_penalty, 0.0, -2.0, 2.0)?,
        logit_bias: logit_bias(body.logit_bias.unwrap_or_default())?,
        json: form::json(body.response_format.as_ref())?,
        calls,
    };
    let include_usage = body.stream_options.and_then(|options| options.include_usage) == Some(true);
    Ok(Parsed { prompt, generation, choices, include_usage })
}

fn logit_bias(entries: BTreeMap<String, f32>) -> Result<Vec<(u32, f32)>, UpstreamError> {
    let wrong =
        || invalid(format!("'logit_bias' maps up to {MAX_BIASES} token ids to numbers from -100 to 100"));
    if entries.len() > MAX_BIASES {
        return Err(wrong());
    }
    let entry = |(id, bias): (String, f32)| match id.parse() {
        Ok(id) if (-100.0..=100.0).contains(&bias) => Ok((id, bias)),
        _ => Err(wrong()),
    };
    entries.into_iter().map(entry).collect()
}

fn within(name: &str, value: Option<f32>, default: f32, least: f32, most: f32) -> Result<f32, UpstreamError> {
    let value = value.unwrap_or(default);
    let fits = (least..=most).contains(&value);
    if fits { Ok(value) } else { Err(invalid(format!("'{name}' must be from {least} to {most}"))) }
}
