//! The text of a request, borrowed from its body: chat messages with their parts, or plain inputs.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use shoal_routing::{Message, MessageRole};

use super::super::body::{Body, Edit, Text};
use super::super::error::ApiError;

/// Most messages of one request; a long agent session has a few hundred.
const MAX_MESSAGES: usize = 10_000;

/// One message or input, and what it holds beyond text.
pub(super) struct Input<'a> {
    pub(super) message: Message<'a>,
    pub(super) vision: bool,
    pub(super) audio: bool,
}

#[derive(Deserialize)]
struct RawMessage<'a> {
    #[serde(borrow)]
    role: Option<Text<'a>>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_calls: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow)]
    r#type: Option<Text<'a>>,
    #[serde(borrow)]
    text: Option<Text<'a>>,
    #[serde(borrow)]
    refusal: Option<Text<'a>>,
    #[serde(borrow)]
    image_url: Option<&'a RawValue>,
    #[serde(borrow)]
    input_audio: Option<&'a RawValue>,
    #[serde(borrow)]
    file: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Image<'a> {
    #[serde(borrow)]
    url: Text<'a>,
}

#[derive(Deserialize)]
struct Audio<'a> {
    #[serde(borrow, rename = "data")]
    _data: Text<'a>,
    #[serde(borrow, rename = "format")]
    _format: Text<'a>,
}

/// Returns `messages` with the role `developer` said as `system`, its older name; `None` if there is no such role.
pub(super) fn without_developer(body: &Body<'_>) -> Option<String> {
    let raw = body.raw("messages")?.get();
    memchr::memmem::find(raw.as_bytes(), b"developer")?;
    let list: Vec<&RawValue> = serde_json::from_str(raw).ok()?;
    let mut found = false;
    let mut out = String::with_capacity(raw.len());
    for message in list {
        out.push(if out.is_empty() { '[' } else { ',' });
        let body = Body::parse(message.get().as_bytes()).ok()?;
        if body.raw("role").is_some_and(|role| role.get() == "\"developer\"") {
            found = true;
            out.push_str(
                std::str::from_utf8(&body.rebuild(&[("role", Edit::Set("\"system\"".into()))])).ok()?,
            );
        } else {
            out.push_str(message.get());
        }
    }
    out.push(']');
    found.then_some(out)
}

pub(super) fn chat_messages<'a>(body: &Body<'a>) -> Result<Vec<Input<'a>>, ApiError> {
    let raw = body.raw("messages").ok_or_else(|| {
        ApiError::invalid(
            "messages",
            "'messages' is missing; send a list such as [{\"role\":\"user\",\"content\":\"Hello\"}]",
        )
    })?;
    let list: Vec<&RawValue> = serde_json::from_str(raw.get())
        .map_err(|_| ApiError::invalid("messages", "'messages' must be a list of objects"))?;
    if list.is_empty() {
        return Err(ApiError::invalid("messages", "'messages' is empty; send at least one message"));
    }
    if list.len() > MAX_MESSAGES {
        return Err(ApiError::invalid(
            "messages",
            format!("'messages' has more than {MAX_MESSAGES} entries"),
        ));
    }
    list.into_iter().enumerate().map(|(index, raw)| chat_message(index, raw)).collect()
}

fn chat_message<'a>(index: usize, raw: &'a RawValue) -> Result<Input<'a>, ApiError> {
    let at = |field: &str| format!("messages[{index}]{field}");
    let message: RawMessage<'a> = serde_json::from_str(raw.get()).map_err(|_| {
        ApiError::invalid(at(""), format!("{} must be an object with 'role' and 'content'", at("")))
    })?;
    let role =
        message.role.ok_or_else(|| ApiError::invalid(at(".role"), format!("{} is missing", at(".role"))))?;
    let role = match role.0.as_ref() {
        "system" | "developer" => MessageRole::System,
        "user" => MessageRole::User,
        "assistant" => MessageRole::Assistant,
        "tool" | "function" => MessageRole::Tool,
        other => {
            let shown: String = other.chars().take(32).collect();
            return Err(ApiError::invalid(
                at(".role"),
                format!(
                    "{} is '{shown}'; it must be system, developer, user, assistant or tool",
                    at(".role")
                ),
            ));
        }
    };
    let Some(content) = message.content.filter(|c| c.get() != "null") else {
        // An assistant's message may consist of tool calls alone.
        if role == MessageRole::Assistant || message.tool_calls.is_some() {
            return Ok(Input {
                message: Message { role, text: Cow::Borrowed("") },
                vision: false,
                audio: false,
            });
        }
        return Err(ApiError::invalid(at(".content"), format!("{} is missing", at(".content"))));
    };
    content_text(content, &at(".content")).map(|(text, vision, audio)| Input {
        message: Message { role, text },
        vision,
        audio,
    })
}

fn content_text<'a>(content: &'a RawValue, at: &str) -> Result<(Cow<'a, str>, bool, bool), ApiError> {
    let text = content.get();
    if text.starts_with('"') {
        let text: Text<'a> = serde_json::from_str(text)
            .map_err(|e| ApiError::invalid(at, format!("{at} is not valid text: {e}")))?;
        return Ok((text.0, false, false));
    }
    let parts: Vec<Part<'a>> = serde_json::from_str(text)
        .map_err(|_| ApiError::invalid(at, format!("{at} must be text or a list of parts with 'type'")))?;
    let (mut joined, mut vision, mut audio) = (Cow::Borrowed(""), false, false);
    for part in parts {
        match part.r#type.as_ref().map(|t| t.0.as_ref()) {
            Some("text") => {
                let Some(text) = part.text else {
                    return Err(ApiError::invalid(at, format!("{at} has a text part without 'text'")));
                };
                if joined.is_empty() {
                    joined = text.0;
                } else {
                    joined.to_mut().push('\n');
                    joined.to_mut().push_str(&text.0);
                }
            }
            Some("refusal") => {
                if let Some(text) = part.refusal {
                    joined.to_mut().push_str(&text.0);
                }
            }
            Some("image_url") => {
                is_image(part.image_url).map_err(|what| ApiError::invalid(at, format!("{at} {what}")))?;
                vision = true;
            }
            Some("input_audio") => {
                let read = part.input_audio.map(|raw| serde_json::from_str::<Audio<'_>>(raw.get()));
                if read.is_none_or(|read| read.is_err()) {
                    let message =
                        format!("{at} has a part 'input_audio' without its 'data' (base64) and 'format'");
                    return Err(ApiError::invalid(at, message));
                }
                audio = true;
            }
            Some("file") if part.file.is_none_or(|raw| !raw.get().starts_with('{')) => {
                return Err(ApiError::invalid(
                    at,
                    format!("{at} has a part 'file' without an object 'file'"),
                ));
            }
            Some("file") => vision = true,
            Some(other) => {
                let shown: String = other.chars().take(32).collect();
                return Err(ApiError::invalid(
                    at,
                    format!("{at} has a part of type '{shown}', which is not known"),
                ));
            }
            None => return Err(ApiError::invalid(at, format!("{at} has a part without 'type'"))),
        }
    }
    Ok((joined, vision, audio))
}

/// Checks that an image is a link or the image itself: no path on the host of whoever answers.
fn is_image(raw: Option<&RawValue>) -> Result<(), &'static str> {
    let image = raw.and_then(|raw| serde_json::from_str::<Image<'_>>(raw.get()).ok());
    let Some(image) = image else { return Err("has a part 'image_url' without 'image_url.url'") };
    let known = ["https://", "http://", "data:image/"];
    let begins =
        |scheme: &&str| image.url.0.get(..scheme.len()).is_some_and(|s| s.eq_ignore_ascii_case(scheme));
    match known.iter().any(begins) {
        true => Ok(()),
        false => Err("has an image whose 'url' is neither http(s):// nor data:image/…;base64,…"),
    }
}

pub(super) fn plain_inputs<'a>(body: &Body<'a>, name: &'static str) -> Result<Vec<Input<'a>>, ApiError> {
    let wrong = || ApiError::invalid(name, format!("'{name}' must be text or a list of texts"));
    let raw = body.raw(name).ok_or_else(|| ApiError::invalid(name, format!("'{name}' is missing")))?;
    let user =
        |text| Input { message: Message { role: MessageRole::User, text }, vision: false, audio: false };
    if raw.get().starts_with('"') {
        let text: Text<'a> = serde_json::from_str(raw.get()).map_err(|_| wrong())?;
        return Ok(vec![user(text.0)]);
    }
    let list: Vec<&'a RawValue> = serde_json::from_str(raw.get()).map_err(|_| wrong())?;
    if list.is_empty() {
        return Err(ApiError::invalid(name, format!("'{name}' is empty")));
    }
    if list.len() > MAX_MESSAGES {
        return Err(ApiError::invalid(name, format!("'{name}' has more than {MAX_MESSAGES} entries")));
    }
    list.into_iter()
        .map(|item| match item.get().as_bytes().first() {
            Some(b'"') => {
                serde_json::from_str::<Text<'a>>(item.get()).map(|t| user(t.0)).map_err(|_| wrong())
            }
            // Token ids: they count as themselves and carry no text.
            Some(b'0'..=b'9' | b'[') => Ok(user(Cow::Borrowed(item.get()))),
            _ => Err(wrong()),
        })
        .collect()
}
