//! Requests of Ollama's API become requests of OpenAI's.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::api::body::{Body, Text};
use crate::api::chat_body::{Content, ImageUrl, Message, Object, Part, ToolCall};
use crate::api::error::ApiError;
use crate::api::parse::optional;

/// Most messages of one request, as elsewhere.
const MAX_MESSAGES: usize = 10_000;
/// Options that mean the same in a chat completion, or that engines know by the same name.
const SAME_OPTIONS: &[&str] = &[
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "repeat_penalty",
    "repeat_last_n",
];
/// Fields of a chat that pass as they are.
const SAME_FIELDS: &[&str] = &["tools", "logprobs", "top_logprobs", "metadata", "keep_alive"];

/// What a request turned out to want.
#[derive(Debug)]
pub(super) enum Wanted {
    /// An answer.
    Answer(Translated),
    /// Only that the model is loaded, or unloaded: that is the devices' own affair.
    Load {
        /// Model as it was asked for.
        model: String,
    },
}

/// A request in OpenAI's words, and what is needed to tell its answer.
#[derive(Debug)]
pub(super) struct Translated {
    /// OpenAI's JSON.
    pub(super) body: Bytes,
    /// Model as it was asked for.
    pub(super) model: String,
    /// Thinking is told.
    pub(super) thinks: bool,
    /// What was left out.
    pub(super) warnings: Vec<String>,
}

/// Translates a body of `/api/chat`; `name` tells which served model a name means.
///
/// # Errors
/// A field is wrong or cannot be followed here.
pub(super) fn chat(bytes: &[u8], name: impl Fn(&str) -> String) -> Result<Wanted, ApiError> {
    let body = parse(bytes)?;
    let model = model(&body)?;
    let raw: Vec<RawMessage<'_>> =
        optional(&body, "messages", "a list such as [{\"role\":\"user\",\"content\":\"Hello\"}]")?
            .unwrap_or_default();
    if raw.is_empty() {
        return Ok(Wanted::Load { model });
    }
    if raw.len() > MAX_MESSAGES {
        return Err(ApiError::invalid(
            "messages",
            format!("'messages' has more than {MAX_MESSAGES} entries"),
        ));
    }
    let messages = messages(raw)?;
    finish(&body, model, &messages, name)
}

/// Translates a body of `/api/generate`.
///
/// # Errors
/// As with [`chat`].
pub(super) fn generate(bytes: &[u8], name: impl Fn(&str) -> String) -> Result<Wanted, ApiError> {
    let body = parse(bytes)?;
    let model = model(&body)?;
    for (field, instead) in [
        ("raw", "/v1/completions takes a prompt as it is"),
        ("suffix", "put what follows into the prompt"),
        ("template", "a model's own template is used; put your text into the prompt"),
    ] {
        if body.raw(field).is_some_and(|raw| !matches!(raw.get(), "false" | "\"\"")) {
            let error =
                ApiError::new(400, "unsupported", format!("'{field}' is not supported here; {instead}"));
            return Err(ApiError { param: Some(field.into()), ..error });
        }
    }
    let prompt: Option<Text<'_>> = optional(&body, "prompt", "text")?;
    let images: Option<Vec<Text<'_>>> = optional(&body, "images", "a list of base64 texts")?;
    let prompt = prompt.map(|text| text.0).unwrap_or_default();
    let images = images.unwrap_or_default();
    if prompt.is_empty() && images.is_empty() {
        return Ok(Wanted::Load { model });
    }
    let mut messages = Vec::new();
    let system: Option<Text<'_>> = optional(&body, "system", "text")?;
    if let Some(system) = system.filter(|text| !text.0.is_empty()) {
        messages.push(Message::text("system", system.0));
    }
    let content = Some(with_images(prompt.into_owned(), &images));
    messages.push(Message { role: "user", content, ..Message::default() });
    finish(&body, model, &messages, name)
}

/// Translates a body of `/api/embed`, or of its predecessor `/api/embeddings`; `field` is where the input is.
///
/// # Errors
/// As with [`chat`].
pub(super) fn embed(
    bytes: &[u8],
    field: &str,
    name: impl Fn(&str) -> String,
) -> Result<Translated, ApiError> {
    let body = parse(bytes)?;
    let model = model(&body)?;
    let input = body.raw(field).ok_or_else(|| ApiError::invalid(field, format!("'{field}' is missing")))?;
    let mut out = Object::default();
    out.put("model", &name(&model)).put("input", input).put_some("dimensions", body.raw("dimensions"));
    let mut warnings = Vec::new();
    if body.raw("options").is_some_and(|raw| raw.get() != "{}") {
        warnings.push("'options' was left out: embeddings have none here".into());
    }
    Ok(Translated { body: out.finish(), model, thinks: false, warnings })
}

/// Reads the model's name from a body of `/api/show` and the like.
///
/// # Errors
/// There is none.
pub(super) fn only_model(bytes: &[u8]) -> Result<String, ApiError> {
    model(&parse(bytes)?)
}

fn parse(bytes: &[u8]) -> Result<Body<'_>, ApiError> {
    Body::parse(bytes).map_err(|e| {
        ApiError::new(400, "invalid_request_error", format!("the request body is not a JSON object: {e}"))
    })
}

fn model(body: &Body<'_>) -> Result<String, ApiError> {
    // `name` is what the field was called before.
    let field = if body.raw("model").is_some() { "model" } else { "name" };
    let model: Option<String> = optional(body, field, "the name of a model")?;
    model.filter(|name| !name.is_empty()).ok_or_else(|| ApiError::invalid("model", "'model' is missing"))
}

#[derive(Deserialize)]
struct RawMessage<'a> {
    #[serde(borrow)]
    role: Option<Text<'a>>,
    #[serde(borrow)]
    content: Option<Text<'a>>,
    #[serde(borrow)]
    thinking: Option<Text<'a>>,
    #[serde(borrow)]
    images: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    tool_calls: Option<Vec<RawCall<'a>>>,
    #[serde(borrow)]
    tool_call_id: Option<Text<'a>>,
    #[serde(borrow)]
    tool_name: Option<Text<'a>>,
    #[serde(borrow)]
    name: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct RawCall<'a> {
    #[serde(borrow)]
    id: Option<Text<'a>>,
    #[serde(borrow)]
    function: RawFunction<'a>,
}

#[derive(Deserialize)]
struct RawFunction<'a> {
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
}

fn messages(raw: Vec<RawMessage<'_>>) -> Result<Vec<Message>, ApiError> {
    // Ollama's calls have no ids; results belong to the calls before them by name, else in their order.
    let mut unanswered: VecDeque<(String, String)> = VecDeque::new();
    let mut calls = 0;
    let translate = |(place, raw): (usize, RawMessage<'_>)| {
        let text = raw.content.map(|text| text.0.into_owned());
        let role = raw.role.as_ref().map_or("", |role| role.0.as_ref());
        match role {
            "system" => Ok(Message::text("system", text.unwrap_or_default())),
            "user" => {
                let content = with_images(text.unwrap_or_default(), &raw.images.unwrap_or_default());
                Ok(Message { role: "user", content: Some(content), ..Message::default() })
            }
            "assistant" => {
                let mut message = Message { role: "assistant", ..Message::default() };
                for call in raw.tool_calls.unwrap_or_default() {
                    let id = call.id.map_or_else(|| format!("call_{calls}"), |id| id.0.into_owned());
                    calls += 1;
                    let name = call.function.name.0.into_owned();
                    unanswered.push_back((id.clone(), name.clone()));
                    let arguments =
                        call.function.arguments.map_or_else(|| "{}".into(), |raw| raw.get().to_owned());
                    message.tool_calls.push(ToolCall::new(id, name, arguments));
                }
                message.reasoning_content =
                    raw.thinking.map(|text| text.0.into_owned()).filter(|text| !text.is_empty());
                // An assistant that only called tools said nothing.
                message.content =
                    text.filter(|text| !text.is_empty() || message.tool_calls.is_empty()).map(Content::Text);
                Ok(message)
            }
            "tool" => {
                let name = raw.tool_name.or(raw.name);
                let place = match (&raw.tool_call_id, &name) {
                    (Some(id), _) => unanswered.iter().position(|(known, _)| *known == id.0),
                    (None, Some(name)) => unanswered.iter().position(|(_, known)| *known == name.0),
                    (None, None) => None,
                };
                let answered = unanswered.remove(place.unwrap_or(0)).map(|(id, _)| id);
                let id = raw
                    .tool_call_id
                    .map(|id| id.0.into_owned())
                    .or(answered)
                    .unwrap_or_else(|| "call_unknown".into());
                Ok(Message { tool_call_id: Some(id), ..Message::text("tool", text.unwrap_or_default()) })
            }
            other => {
                let shown: String = other.chars().take(32).collect();
                let message = format!(
                    "'messages[{place}].role' is '{shown}'; it must be system, user, assistant or tool"
                );
                Err(ApiError::invalid(format!("messages[{place}].role"), message))
            }
        }
    };
    raw.into_iter().enumerate().map(translate).collect()
}

/// Returns text with pictures, which come as base64 alone; their first bytes tell what they are.
fn with_images(text: String, images: &[Text<'_>]) -> Content {
    let mut parts = Vec::new();
    if !text.is_empty() || images.is_empty() {
        parts.push(Part::Text { text });
    }
    parts.extend(images.iter().map(|image| {
        let data = image.0.as_ref();
        let kind = match data {
            _ if data.starts_with("/9j/") => "jpeg",
            _ if data.starts_with("R0lGOD") => "gif",
            _ if data.starts_with("UklGR") => "webp",
            _ => "png",
        };
        let url = if data.starts_with("data:") {
            data.to_owned()
        } else {
            format!("data:image/{kind};base64,{data}")
        };
        Part::ImageUrl { image_url: ImageUrl { url, detail: None } }
    }));
    Content::of(parts)
}

fn finish(
    body: &Body<'_>,
    model: String,
    messages: &[Message],
    name: impl Fn(&str) -> String,
) -> Result<Wanted, ApiError> {
    let mut warnings = Vec::new();
    let stream = optional(body, "stream", "true or false")?.unwrap_or(true);
    let mut out = Object::default();
    out.put("model", &name(&model)).put("messages", messages).put("stream", &stream);
    if stream {
        out.put("stream_options", &json!({"include_usage": true}));
    }
    for field in SAME_FIELDS {
        out.put_some(field, body.raw(field));
    }
    options(body, &mut out, &mut warnings)?;
    if let Some(format) = body.raw("format") {
        put_format(format, &mut out)?;
    }
    let thinks = put_think(body, &mut out)?;
    if body.raw("context").is_some() {
        warnings.push("'context' was left out: no state of an engine is kept here; use /api/chat".into());
    }
    Ok(Wanted::Answer(Translated { body: out.finish(), model, thinks, warnings }))
}

fn options(body: &Body<'_>, out: &mut Object, warnings: &mut Vec<String>) -> Result<(), ApiError> {
    let Some(raw) = body.raw("options") else { return Ok(()) };
    let options = Body::parse(raw.get().as_bytes())
        .map_err(|_| ApiError::invalid("options", "'options' must be an object"))?;
    for option in options.names() {
        let Some(value) = options.raw(option) else { continue };
        if option == "num_predict" {
            // Negative numbers mean no limit.
            let limit: f64 = serde_json::from_str(value.get()).map_err(|_| {
                ApiError::invalid("options.num_predict", "'options.num_predict' must be a number")
            })?;
            if limit >= 1.0 {
                out.put("max_tokens", &(limit as u64));
            }
        } else if SAME_OPTIONS.contains(&option) {
            out.put(option, value);
        } else {
            // How a model is loaded is set on the device that runs it.
            let shown: String = option.chars().filter(char::is_ascii_graphic).take(40).collect();
            warnings.push(format!("the option '{shown}' was left out: it is set on the device"));
        }
    }
    Ok(())
}

fn put_format(raw: &RawValue, out: &mut Object) -> Result<(), ApiError> {
    match raw.get() {
        "\"\"" => {}
        "\"json\"" => {
            out.put("response_format", &json!({"type": "json_object"}));
        }
        schema if schema.starts_with('{') => {
            let mut named = Object::default();
            named.put("name", "answer").put("schema", raw);
            let mut format = Object::default();
            format.put("type", "json_schema").put("json_schema", &named.into_raw());
            out.put("response_format", &format.into_raw());
        }
        _ => return Err(ApiError::invalid("format", "'format' must be \"json\" or a JSON schema")),
    }
    Ok(())
}

/// Puts how hard to think; returns whether thinking is told.
fn put_think(body: &Body<'_>, out: &mut Object) -> Result<bool, ApiError> {
    let effort = match body.raw("think").map(RawValue::get) {
        None => return Ok(true),
        Some("true") => "medium",
        Some("false") => "none",
        Some("\"low\"") => "low",
        Some("\"medium\"") => "medium",
        Some("\"high\"") => "high",
        Some(_) => {
            return Err(ApiError::invalid("think", "'think' must be true, false, low, medium or high"));
        }
    };
    out.put("reasoning_effort", effort);
    Ok(effort != "none")
}
