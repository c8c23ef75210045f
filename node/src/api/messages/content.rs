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

/// Most messages of one request, as for chat completions.
const MAX_MESSAGES: usize = 10_000;
/// Begins a line of the system prompt in which an agent talks to Anthropic's accounting. It changes from request to
/// request, so that an engine that is shown it can keep nothing of a prompt that is otherwise the same.
const BILLING: &str = "x-anthropic-billing-header:";
/// Begins what an agent tells the model in the user's place.
const REMINDER: &str = "<system-reminder>";

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Option<Text<'a>>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Block<'a> {
    #[serde(borrow)]
    r#type: Option<Text<'a>>,
    #[serde(borrow)]
    text: Option<Text<'a>>,
    #[serde(borrow)]
    title: Option<Text<'a>>,
    #[serde(borrow)]
    source: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    name: Option<Text<'a>>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_use_id: Option<Text<'a>>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    is_error: Option<bool>,
}

/// Where an image or a document comes from.
#[derive(Deserialize)]
struct Source<'a> {
    #[serde(borrow)]
    r#type: Option<Text<'a>>,
    #[serde(borrow)]
    media_type: Option<Text<'a>>,
    #[serde(borrow)]
    data: Option<Text<'a>>,
    #[serde(borrow)]
    url: Option<Text<'a>>,
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
#[serde(untagged)]
enum Content<'a> {
    Text(Cow<'a, str>),
    Parts(Vec<Part<'a>>),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part<'a> {
    Text { text: Cow<'a, str> },
    ImageUrl { image_url: ImageUrl<'a> },
}

#[derive(Serialize)]
struct ImageUrl<'a> {
    url: Cow<'a, str>,
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

/// Whether what cannot be shown to a model ends the request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Said by the user: refused.
    User,
    /// Brought by a tool: the model is told instead. An agent that cannot go on without its history would be lost.
    Result,
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

fn missing(at: &str, field: &str) -> ApiError {
    ApiError::invalid(format!("{at}.{field}"), format!("'{at}.{field}' is missing"))
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

/// Reads text, or blocks of nothing but text.
fn plain_text<'a>(content: &'a RawValue, at: &str) -> Result<Cow<'a, str>, ApiError> {
    let mut texts = Vec::new();
    for block in blocks(content, at)? {
        match block {
            Block { r#type: Some(Text(kind)), text: Some(Text(text)), .. } if kind == "text" => {
                if !text.starts_with(BILLING) {
                    texts.push(text);
                }
            }
            _ => return Err(ApiError::invalid(at, format!("'{at}' must be text or a list of text blocks"))),
        }
    }
    Ok(joined(texts))
}

fn joined(mut texts: Vec<Cow<'_, str>>) -> Cow<'_, str> {
    if texts.len() == 1 { texts.remove(0) } else { Cow::Owned(texts.join("\n\n")) }
}

/// Reads content as blocks; text alone is one of them.
fn blocks<'a>(content: &'a RawValue, at: &str) -> Result<Vec<Block<'a>>, ApiError> {
    let wrong = || ApiError::invalid(at, format!("'{at}' must be text or a list of blocks with 'type'"));
    if content.get().starts_with('"') {
        let text: Text<'a> = serde_json::from_str(content.get()).map_err(|_| wrong())?;
        return Ok(vec![Block {
            r#type: Some(Text(Cow::Borrowed("text"))),
            text: Some(text),
            title: None,
            source: None,
            id: None,
            name: None,
            input: None,
            tool_use_id: None,
            content: None,
            is_error: None,
        }]);
    }
    serde_json::from_str(content.get()).map_err(|_| wrong())
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

/// Adds what one block shows to a model.
fn part<'a>(
    block: Block<'a>,
    at: &str,
    place: Place,
    warnings: &mut Warnings,
    parts: &mut Vec<Part<'a>>,
) -> Result<(), ApiError> {
    let kind = block.r#type.as_ref().map_or("", |kind| kind.0.as_ref());
    match kind {
        "text" => {
            let text = block.text.ok_or_else(|| missing(at, "text"))?.0;
            parts.push(Part::Text { text });
            Ok(())
        }
        "image" => {
            let source = source(&block, at)?;
            match image(source) {
                Some(url) => parts.push(Part::ImageUrl { image_url: ImageUrl { url } }),
                None => unseen("an image that is neither base64 nor a URL", at, place, warnings, parts)?,
            }
            Ok(())
        }
        "document" => document(&block, at, place, warnings, parts),
        "search_result" => {
            let mut texts: Vec<Cow<'a, str>> = block.title.into_iter().map(|title| title.0).collect();
            if let Some(Ok(Text(link))) = block.source.map(|raw| serde_json::from_str(raw.get())) {
                texts.push(link);
            }
            if let Some(content) = block.content {
                texts.push(plain_text(content, &format!("{at}.content"))?);
            }
            parts.push(Part::Text { text: joined(texts) });
            Ok(())
        }
        "" => Err(missing(at, "type")),
        other => {
            let other: String = other.chars().filter(|c| !c.is_control()).take(40).collect();
            unseen(&format!("a block of type '{other}'"), at, place, warnings, parts)
        }
    }
}

fn source<'a>(block: &Block<'a>, at: &str) -> Result<Source<'a>, ApiError> {
    let raw = block.source.ok_or_else(|| missing(at, "source"))?;
    serde_json::from_str(raw.get()).map_err(|_| {
        ApiError::invalid(format!("{at}.source"), format!("'{at}.source' must be an object with 'type'"))
    })
}

/// Returns the URL of an image, `data:` for one that is given whole.
fn image(source: Source<'_>) -> Option<Cow<'_, str>> {
    match source.r#type?.0.as_ref() {
        "url" => Some(source.url?.0),
        "base64" => Some(format!("data:{};base64,{}", source.media_type?.0, source.data?.0).into()),
        _ => None,
    }
}

/// A document is shown by its text; one that would have to be read out of a file is not.
fn document<'a>(
    block: &Block<'a>,
    at: &str,
    place: Place,
    warnings: &mut Warnings,
    parts: &mut Vec<Part<'a>>,
) -> Result<(), ApiError> {
    let source = source(block, at)?;
    let body = match (source.r#type.as_ref().map(|kind| kind.0.as_ref()), source.data, source.content) {
        (Some("text"), Some(Text(text)), _) => vec![Part::Text { text }],
        (Some("content"), _, Some(content)) => {
            let at = format!("{at}.source.content");
            let mut inner = Vec::new();
            for (index, block) in blocks(content, &at)?.into_iter().enumerate() {
                let at = format!("{at}.{index}");
                match block.r#type.as_ref().map(|kind| kind.0.as_ref()) {
                    // Nothing deeper: a document holds text and images.
                    Some("text" | "image") => part(block, &at, place, warnings, &mut inner)?,
                    _ => unseen("a block within a document", &at, place, warnings, &mut inner)?,
                }
            }
            inner
        }
        _ => return unseen("a document that is not text, such as a PDF,", at, place, warnings, parts),
    };
    if let Some(Text(title)) = &block.title {
        parts.push(Part::Text { text: title.clone() });
    }
    parts.extend(body);
    Ok(())
}

/// Deals with what no model here can be shown.
fn unseen(
    what: &str,
    at: &str,
    place: Place,
    warnings: &mut Warnings,
    parts: &mut Vec<Part<'_>>,
) -> Result<(), ApiError> {
    if place == Place::User {
        return Err(ApiError::invalid(
            at,
            format!("'{at}' is {what} which is not taken here; send text or an image"),
        ));
    }
    warnings.add(&format!("'{at}' is {what} and was left out"));
    parts.push(Part::Text {
        text: format!("[{what} was left out here: only text and images can be shown]").into(),
    });
    Ok(())
}

/// Makes one content of several parts: text where there is nothing else, since every server takes that.
fn together(parts: Vec<Part<'_>>) -> Content<'_> {
    if parts.iter().any(|part| matches!(part, Part::ImageUrl { .. })) {
        return Content::Parts(parts);
    }
    let texts = parts.into_iter().filter_map(|part| match part {
        Part::Text { text } => Some(text),
        Part::ImageUrl { .. } => None,
    });
    Content::Text(joined(texts.collect()))
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
