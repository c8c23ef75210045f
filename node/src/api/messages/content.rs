//! The conversation: `system` and `messages` with their blocks, as messages of a chat completion.
//!
//! One of their user messages may become several of ours: results of tools are messages of their own there, and must
//! follow the calls at once. Their thinking is left out: engines think anew, and its signatures mean nothing here.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::super::body::Text;
use super::super::error::ApiError;
use super::request::Warnings;
use super::shown::{Block, Content, Part, Place, blocks, joined, missing, part, plain_text, together};

/// Most messages of one request, as for chat completions.
const MAX_MESSAGES: usize = 10_000;
/// Begins what an agent tells the model in the user's place.
const REMINDER: &str = "<system-reminder>";

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Option<Text<'a>>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct Said<'a> {
    role: &'static str,
    content: Option<Content<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<Cow<'a, str>>,
}

impl<'a> Said<'a> {
    fn new(role: &'static str, content: Content<'a>) -> Self {
        Self { role, content: Some(content), tool_calls: Vec::new(), tool_call_id: None }
    }
}

#[derive(Serialize)]
struct Call<'a> {
    id: Cow<'a, str>,
    r#type: &'static str,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    name: Cow<'a, str>,
    /// The input's own bytes, as text.
    arguments: &'a str,
}

/// Returns the messages of a chat completion, as JSON.
///
/// # Errors
/// 400 with the place at fault, such as `messages.3.content.0`.
pub(super) fn messages(
    system: Option<&RawValue>,
    list: &RawValue,
    warnings: &mut Warnings,
) -> Result<String, ApiError> {
    let list: Vec<Message<'_>> = serde_json::from_str(list.get())
        .map_err(|_| ApiError::invalid("messages", "'messages' must be a list of objects"))?;
    if list.is_empty() {
        return Err(ApiError::invalid("messages", "'messages' is empty; send at least one message"));
    }
    if list.len() > MAX_MESSAGES {
        let message = format!("'messages' has more than {MAX_MESSAGES} entries");
        return Err(ApiError::invalid("messages", message));
    }
    let mut out = Vec::with_capacity(list.len() + 1);
    if let Some(system) = system {
        let text = plain_text(system, "system")?;
        if !text.is_empty() {
            out.push(Said::new("system", Content::Text(text)));
        }
    }
    for (index, message) in list.iter().enumerate() {
        let at = format!("messages.{index}");
        let content =
            message.content.filter(|raw| raw.get() != "null").ok_or_else(|| missing(&at, "content"))?;
        let content_at = format!("{at}.content");
        match message.role.as_ref().map(|role| role.0.as_ref()) {
            Some("user") => user(content, &content_at, warnings, &mut out)?,
            Some("assistant") => assistant(content, &content_at, warnings, &mut out)?,
            Some("system") => instruction(content, &content_at, warnings, &mut out)?,
            Some(other) => {
                let shown: String = other.chars().take(32).collect();
                let message = format!("'{at}.role' is '{shown}'; it must be user, assistant or system");
                return Err(ApiError::invalid(format!("{at}.role"), message));
            }
            None => return Err(missing(&at, "role")),
        }
    }
    Ok(serde_json::to_string(&out).expect("text and raw JSON serialise"))
}

/// An instruction within the conversation. Many chat templates refuse a system message that is not the first, and two
/// of the user's in a row; so a later one is said as agents say it elsewhere, in a tag at the end of what it follows.
/// Then the last question is still the last that the user said, and results of tools still follow their calls.
fn instruction<'a>(
    content: &'a RawValue,
    at: &str,
    warnings: &mut Warnings,
    out: &mut Vec<Said<'a>>,
) -> Result<(), ApiError> {
    let mut texts = Vec::new();
    for block in blocks(content, at)? {
        match (block.r#type.as_ref().map_or("", |kind| kind.0.as_ref()), block.text) {
            ("text", Some(Text(text))) => texts.push(text),
            // Tools that come and go: all that are defined are offered, always.
            (other, _) => warnings.add(&format!("a block of type '{other}' of the system was left out")),
        }
    }
    let text = joined(texts);
    if text.is_empty() {
        return Ok(());
    }
    if out.is_empty() {
        out.push(Said::new("system", Content::Text(text)));
        return Ok(());
    }
    remind(format!("{REMINDER}\n{text}\n</system-reminder>").into(), out);
    Ok(())
}

/// Adds a reminder to the message before it, or makes one of the user's behind what the assistant said.
fn remind<'a>(text: Cow<'a, str>, out: &mut Vec<Said<'a>>) {
    match out.last_mut().filter(|last| last.role != "assistant").and_then(|last| last.content.as_mut()) {
        Some(Content::Text(before)) => {
            let before = before.to_mut();
            before.push_str("\n\n");
            before.push_str(&text);
        }
        Some(Content::Parts(parts)) => parts.push(Part::Text { text }),
        None => out.push(Said::new("user", Content::Text(text))),
    }
}

fn user<'a>(
    content: &'a RawValue,
    at: &str,
    warnings: &mut Warnings,
    out: &mut Vec<Said<'a>>,
) -> Result<(), ApiError> {
    let (mut parts, mut results) = (Vec::new(), 0);
    for (index, block) in blocks(content, at)?.into_iter().enumerate() {
        let at = format!("{at}.{index}");
        if block.r#type.as_ref().is_some_and(|kind| kind.0 == "tool_result") {
            out.push(result(block, &at, warnings, &mut parts)?);
            results += 1;
        } else {
            part(block, &at, Place::User, warnings, &mut parts)?;
        }
    }
    let reminds = |part: &Part<'_>| matches!(part, Part::Text { text } if text.starts_with(REMINDER));
    if results > 0 && parts.iter().all(reminds) {
        // The user said nothing: the turn is still that of the tools.
        for part in parts {
            if let Part::Text { text } = part {
                remind(text, out);
            }
        }
        return Ok(());
    }
    out.push(Said::new("user", together(parts)));
    Ok(())
}

/// A tool's result. Its images go to the user's message behind it, since ours are text alone.
fn result<'a>(
    block: Block<'a>,
    at: &str,
    warnings: &mut Warnings,
    images: &mut Vec<Part<'a>>,
) -> Result<Said<'a>, ApiError> {
    let id = block.tool_use_id.ok_or_else(|| missing(at, "tool_use_id"))?.0;
    let (mut texts, mut seen) = (Vec::new(), Vec::new());
    if let Some(content) = block.content.filter(|raw| raw.get() != "null") {
        let at = format!("{at}.content");
        for (index, block) in blocks(content, &at)?.into_iter().enumerate() {
            part(block, &format!("{at}.{index}"), Place::Result, warnings, &mut seen)?;
        }
    }
    for part in seen {
        match part {
            Part::Text { text } => texts.push(text),
            image @ Part::ImageUrl { .. } => {
                images.push(Part::Text { text: format!("[image from the result of {id}]").into() });
                images.push(image);
            }
        }
    }
    let mut text = joined(texts);
    if block.is_error == Some(true) && !text.starts_with("Error") {
        text = format!("Error: {text}").into();
    }
    Ok(Said { tool_call_id: Some(id), ..Said::new("tool", Content::Text(text)) })
}

fn assistant<'a>(
    content: &'a RawValue,
    at: &str,
    warnings: &mut Warnings,
    out: &mut Vec<Said<'a>>,
) -> Result<(), ApiError> {
    let (mut texts, mut tool_calls) = (Vec::new(), Vec::new());
    for (index, block) in blocks(content, at)?.into_iter().enumerate() {
        let at = format!("{at}.{index}");
        match block.r#type.as_ref().map_or("", |kind| kind.0.as_ref()) {
            "text" => texts.push(block.text.ok_or_else(|| missing(&at, "text"))?.0),
            "tool_use" => tool_calls.push(call(block, &at)?),
            "thinking" | "redacted_thinking" => {}
            "" => return Err(missing(&at, "type")),
            // What other servers did on the way to an answer; the answer is here too.
            other => warnings.add(&format!("a block of type '{other}' of the assistant was left out")),
        }
    }
    if texts.is_empty() && tool_calls.is_empty() {
        return Ok(());
    }
    let content = (!texts.is_empty()).then(|| Content::Text(joined(texts)));
    out.push(Said { role: "assistant", content, tool_calls, tool_call_id: None });
    Ok(())
}

fn call<'a>(block: Block<'a>, at: &str) -> Result<Call<'a>, ApiError> {
    let id = block.id.ok_or_else(|| missing(at, "id"))?.0;
    let name = block.name.ok_or_else(|| missing(at, "name"))?.0;
    let arguments = block.input.map_or("{}", RawValue::get);
    if !arguments.starts_with('{') {
        return Err(ApiError::invalid(format!("{at}.input"), format!("'{at}.input' must be an object")));
    }
    Ok(Call { id, r#type: "function", function: Function { name, arguments } })
}
