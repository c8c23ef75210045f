//! What the blocks of a message show to a model: text and images, whatever they came as.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::super::body::Text;
use super::super::error::ApiError;
use super::request::Warnings;

/// Begins a line of the system prompt in which an agent talks to Anthropic's accounting. It changes from request to
/// request, so that an engine that is shown it can keep nothing of a prompt that is otherwise the same.
const BILLING: &str = "x-anthropic-billing-header:";
/// A block of a message, every kind's fields in one.
#[derive(Deserialize)]
pub(super) struct Block<'a> {
    #[serde(borrow)]
    pub(super) r#type: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) text: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) title: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) source: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) id: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) name: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) input: Option<&'a RawValue>,
    #[serde(borrow)]
    pub(super) tool_use_id: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) content: Option<&'a RawValue>,
    pub(super) is_error: Option<bool>,
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

/// Content of a chat completion's message.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Content<'a> {
    Text(Cow<'a, str>),
    Parts(Vec<Part<'a>>),
}

/// A part of it.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Part<'a> {
    Text { text: Cow<'a, str> },
    ImageUrl { image_url: ImageUrl<'a> },
}

/// Where an image is.
#[derive(Serialize)]
pub(super) struct ImageUrl<'a> {
    pub(super) url: Cow<'a, str>,
}

/// Whether what cannot be shown to a model ends the request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Said by the user: refused.
    User,
    /// Brought by a tool: the model is told instead. An agent that cannot go on without its history would be lost.
    Result,
}

/// A field that must be there and is not.
pub(super) fn missing(at: &str, field: &str) -> ApiError {
    ApiError::invalid(format!("{at}.{field}"), format!("'{at}.{field}' is missing"))
}

/// Reads text, or blocks of nothing but text.
pub(super) fn plain_text<'a>(content: &'a RawValue, at: &str) -> Result<Cow<'a, str>, ApiError> {
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

/// Makes one text of several.
pub(super) fn joined(mut texts: Vec<Cow<'_, str>>) -> Cow<'_, str> {
    if texts.len() == 1 { texts.remove(0) } else { Cow::Owned(texts.join("\n\n")) }
}

/// Reads content as blocks; text alone is one of them.
pub(super) fn blocks<'a>(content: &'a RawValue, at: &str) -> Result<Vec<Block<'a>>, ApiError> {
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

/// Adds what one block shows to a model.
pub(super) fn part<'a>(
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
pub(super) fn together(parts: Vec<Part<'_>>) -> Content<'_> {
    if parts.iter().any(|part| matches!(part, Part::ImageUrl { .. })) {
        return Content::Parts(parts);
    }
    let texts = parts.into_iter().filter_map(|part| match part {
        Part::Text { text } => Some(text),
        Part::ImageUrl { .. } => None,
    });
    Content::Text(joined(texts.collect()))
}
