//! A chat completion's answer as it is read here, whole or a chunk of it, and a whole one as a message.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shoal_routing::tokens::estimate_tokens;

use super::super::body::Text;
use super::super::error::ApiError;
use super::stop::{Ending, StopReason};

/// A body of a chat completion, or a chunk of its stream.
#[derive(Deserialize)]
pub(super) struct Completion<'a> {
    #[serde(borrow)]
    pub(super) model: Option<Text<'a>>,
    #[serde(default, borrow)]
    pub(super) choices: Vec<Choice<'a>>,
    #[serde(borrow)]
    usage: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) shoal_metadata: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) lfo_metadata: Option<&'a RawValue>,
}

impl Completion<'_> {
    /// Returns the tokens, where the upstream counted them.
    pub(super) fn usage(&self) -> Option<Counted> {
        self.usage.and_then(|raw| serde_json::from_str::<Option<Counted>>(raw.get()).ok()?)
    }
}

/// One answer; only the first is asked for.
#[derive(Deserialize)]
pub(super) struct Choice<'a> {
    #[serde(borrow)]
    delta: Option<Said<'a>>,
    #[serde(borrow)]
    message: Option<Said<'a>>,
    #[serde(borrow)]
    pub(super) finish_reason: Option<Text<'a>>,
    /// The stop sequence that was met, as vLLM tells it; a token's number where it was one.
    #[serde(borrow)]
    stop_reason: Option<&'a RawValue>,
    /// The same, as SGLang tells it.
    #[serde(borrow)]
    matched_stop: Option<&'a RawValue>,
}

impl<'a> Choice<'a> {
    /// Returns what was said: a piece in a stream, else all of it.
    pub(super) fn said(&self) -> Option<&Said<'a>> {
        self.delta.as_ref().or(self.message.as_ref())
    }

    /// Returns the stop sequence that ended the answer, where the engine tells it.
    pub(super) fn matched(&self) -> Option<String> {
        let told = self.stop_reason.or(self.matched_stop)?;
        serde_json::from_str(told.get()).ok()
    }
}

/// What the model said, or a piece of it.
#[derive(Deserialize)]
pub(super) struct Said<'a> {
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning_content: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning: Option<&'a RawValue>,
    #[serde(borrow)]
    refusal: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) tool_calls: Option<Vec<CallDelta<'a>>>,
}

impl<'a> Said<'a> {
    /// Returns the text, empty where there is none.
    pub(super) fn text(&self) -> Cow<'a, str> {
        words(self.content)
    }

    /// Returns the reasoning; servers call it by two names, and some send both.
    pub(super) fn thinking(&self) -> Cow<'a, str> {
        let thinking = words(self.reasoning_content);
        if thinking.is_empty() { words(self.reasoning) } else { thinking }
    }

    /// Returns what the model said instead of an answer.
    pub(super) fn refusal(&self) -> Cow<'a, str> {
        words(self.refusal)
    }
}

fn words(raw: Option<&RawValue>) -> Cow<'_, str> {
    raw.and_then(|raw| serde_json::from_str::<Text<'_>>(raw.get()).ok())
        .map_or(Cow::Borrowed(""), |Text(text)| text)
}

/// A tool call, or a piece of one.
#[derive(Deserialize)]
pub(super) struct CallDelta<'a> {
    pub(super) index: Option<u64>,
    #[serde(borrow)]
    pub(super) id: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) function: Option<FunctionDelta<'a>>,
}

/// Its name and arguments.
#[derive(Deserialize)]
pub(super) struct FunctionDelta<'a> {
    #[serde(borrow)]
    pub(super) name: Option<Text<'a>>,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
}

impl<'a> FunctionDelta<'a> {
    /// Returns the arguments' text; a few servers send the object itself.
    pub(super) fn arguments(&self) -> Cow<'a, str> {
        match self.arguments {
            Some(raw) if raw.get().starts_with('{') => Cow::Borrowed(raw.get()),
            raw => words(raw),
        }
    }
}

/// Tokens as the upstream counted them.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(super) struct Counted {
    prompt_tokens: u64,
    completion_tokens: u64,
    prompt_tokens_details: Option<PromptDetails>,
    completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct PromptDetails {
    cached_tokens: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct CompletionDetails {
    reasoning_tokens: Option<u64>,
}

/// Tokens as a message tells them: what was read from a cache is not among `input_tokens`.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Usage {
    input_tokens: u64,
    output_tokens: u64,
    cache_creation_input_tokens: u64,
    cache_read_input_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_tokens_details: Option<OutputDetails>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct OutputDetails {
    thinking_tokens: u64,
}

impl Usage {
    /// Tokens that were counted here, for want of better.
    pub(super) fn estimated(prompt_tokens: u32, output_tokens: u64) -> Self {
        Counted {
            prompt_tokens: prompt_tokens.into(),
            completion_tokens: output_tokens,
            ..Counted::default()
        }
        .into()
    }
}

impl From<Counted> for Usage {
    fn from(counted: Counted) -> Self {
        let cached = counted.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0);
        let thinking = counted.completion_tokens_details.and_then(|details| details.reasoning_tokens);
        Self {
            input_tokens: counted.prompt_tokens.saturating_sub(cached),
            output_tokens: counted.completion_tokens,
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: cached,
            output_tokens_details: thinking
                .filter(|tokens| *tokens > 0)
                .map(|thinking_tokens| OutputDetails { thinking_tokens }),
        }
    }
}

/// A whole message.
#[derive(Serialize)]
struct Message<'a> {
    id: &'a str,
    r#type: &'static str,
    role: &'static str,
    model: &'a str,
    content: Vec<Block<'a>>,
    stop_reason: StopReason,
    stop_sequence: Option<String>,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    shoal_metadata: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lfo_metadata: Option<&'a RawValue>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block<'a> {
    Thinking { thinking: Cow<'a, str>, signature: &'static str },
    Text { text: Cow<'a, str> },
    ToolUse { id: Cow<'a, str>, name: Cow<'a, str>, input: Box<RawValue> },
}

/// What is known of an answer beside its body.
pub(super) struct Asked<'a> {
    /// Id of the message.
    pub(super) id: &'a str,
    /// Model that was asked for, told where the upstream names none.
    pub(super) model: &'a str,
    /// Stop sequences that were asked for.
    pub(super) stops: &'a [String],
    /// Tokens of the prompt, as counted here.
    pub(super) prompt_tokens: u32,
}

/// Tells a whole answer as a message.
///
/// # Errors
/// 502 where the answer is none, or calls a tool with what is not JSON: a message cannot hold that.
pub(super) fn message(body: &[u8], asked: &Asked<'_>) -> Result<Bytes, ApiError> {
    let no_answer =
        || ApiError::new(502, "upstream_error", "the device's answer is no chat completion; try again");
    let answer: Completion<'_> = serde_json::from_slice(body).map_err(|_| no_answer())?;
    let choice = answer.choices.first().ok_or_else(no_answer)?;
    let said = choice.said().ok_or_else(no_answer)?;
    let finish = choice.finish_reason.as_ref().map(|reason| reason.0.as_ref());
    let mut content = Vec::new();
    let (thinking, text, refusal) = (said.thinking(), said.text(), said.refusal());
    let length = thinking.len() + text.len() + refusal.len();
    if !thinking.is_empty() {
        content.push(Block::Thinking { thinking, signature: "" });
    }
    let refused = !refusal.is_empty();
    for text in [text, refusal].into_iter().filter(|text| !text.is_empty()) {
        content.push(Block::Text { text });
    }
    let calls = said.tool_calls.as_deref().unwrap_or_default();
    for (index, call) in calls.iter().enumerate() {
        content.push(tool_use(call, index, asked.id, finish == Some("length"))?);
    }
    let ending = Ending { finish, matched: choice.matched(), called: !calls.is_empty(), refused };
    let (stop_reason, stop_sequence) = ending.told(asked.stops);
    let message = Message {
        id: asked.id,
        r#type: "message",
        role: "assistant",
        model: answer.model.as_ref().map_or(asked.model, |model| &model.0),
        content,
        stop_reason,
        stop_sequence,
        usage: answer.usage().map_or_else(|| estimated(said, length, asked.prompt_tokens), Usage::from),
        shoal_metadata: answer.shoal_metadata,
        lfo_metadata: answer.lfo_metadata,
    };
    Ok(serde_json::to_vec(&message).expect("text and raw JSON serialise").into())
}

/// Counts an answer whose upstream did not.
fn estimated(said: &Said<'_>, length: usize, prompt_tokens: u32) -> Usage {
    let mut text = String::with_capacity(length);
    for part in [said.thinking(), said.text(), said.refusal()] {
        text.push_str(&part);
    }
    for function in said.tool_calls.iter().flatten().filter_map(|call| call.function.as_ref()) {
        text.push_str(&function.arguments());
    }
    Usage::estimated(prompt_tokens, u64::from(estimate_tokens(&text).0.0))
}

fn tool_use<'a>(
    call: &CallDelta<'a>,
    index: usize,
    message_id: &str,
    cut: bool,
) -> Result<Block<'a>, ApiError> {
    let garbled = || {
        let message =
            "the model called a tool with arguments that are no JSON object; try again, or ask another model";
        ApiError::new(502, "upstream_error", message)
    };
    let function = call.function.as_ref().ok_or_else(garbled)?;
    let arguments = function.arguments();
    let arguments = match arguments.trim() {
        "" | "null" => "{}",
        other => other,
    };
    let input = match RawValue::from_string(arguments.to_owned()) {
        Ok(raw) if raw.get().starts_with('{') => raw,
        // The stop reason tells why it is not whole.
        _ if cut => RawValue::from_string("{}".to_owned()).expect("an empty object is JSON"),
        _ => return Err(garbled()),
    };
    let id = call.id.as_ref().map(|id| id.0.clone()).filter(|id| !id.is_empty());
    Ok(Block::ToolUse {
        id: id.unwrap_or_else(|| call_id(message_id, index).into()),
        name: function.name.as_ref().map_or(Cow::Borrowed(""), |name| name.0.clone()),
        input,
    })
}

/// Makes an id for a call that came without one.
pub(super) fn call_id(message_id: &str, index: usize) -> String {
    format!("toolu_{}_{index}", message_id.trim_start_matches("msg_"))
}
