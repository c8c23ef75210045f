//! Requests about sound: a form with a recording, or JSON with a text to read aloud.
//!
//! The body goes on as it came, but for the model's name and for what is meant for us. A form says what is meant for us
//! as JSON does, in `metadata`: one field of JSON, or `metadata[data_class]` and the like, as SDKs write nested fields.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, header};
use serde_json::{Map, Value};
use shoal_routing::{Message, MessageRole, Needs, SoundWork};

use super::super::body::{Body, Text};
use super::super::error::ApiError;
use super::super::form::{self, Change, Form, MAX_TEXT};
use super::metadata::Metadata;
use super::{Asked, DENIED, Naming, checked_name, optional, upstream_body};
use crate::sound;
use crate::upstream::ApiPath;

/// Longest text to be read aloud, characters: OpenAI takes 4,096, other servers whole chapters.
const MAX_INPUT: usize = 100_000;

/// What was read of either kind of body.
struct Heard<'a> {
    model: String,
    /// Text that the rules and the profile may look at.
    text: Option<Cow<'a, str>>,
    metadata: Metadata,
    stream: bool,
    user: Option<String>,
    work: SoundWork,
    body: Bytes,
    warnings: Vec<String>,
}

/// Reads and checks a request about sound.
///
/// # Errors
/// What is wrong with it, with the field at fault.
pub(super) fn read<'a>(
    path: ApiPath,
    media: Option<&str>,
    bytes: &'a Bytes,
    naming: Naming<'_>,
) -> Result<Asked<'a>, ApiError> {
    let heard = match path {
        ApiPath::Speech => read_text(bytes, naming)?,
        _ => read_form(media, bytes, naming)?,
    };
    let Heard { model, text, metadata, stream, user, work, body, warnings } = heard;
    checked_name(&model)?;
    let is_speech = path == ApiPath::Speech;
    Ok(Asked {
        path,
        model,
        messages: text.map(|text| Message { role: MessageRole::User, text }).into_iter().collect(),
        needs: Needs { speech: is_speech, transcription: !is_speech, ..Needs::default() },
        stream,
        include_usage: false,
        max_output: None,
        answers: 1,
        session: None,
        user,
        // Recordings are neither judged by confidence nor gone on with elsewhere.
        metadata: Metadata { threshold: None, resume: None, ..metadata },
        body,
        media: (!is_speech).then(|| media.map(Into::into)).flatten(),
        work: Some(work),
        warnings,
    })
}

/// Returns the media type of a client's body; `None` where it says none.
pub(in super::super) fn media(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::CONTENT_TYPE)?.to_str().ok()
}

fn read_text<'a>(bytes: &'a Bytes, naming: Naming<'_>) -> Result<Heard<'a>, ApiError> {
    let body = Body::parse(bytes).map_err(|e| {
        ApiError::new(400, "invalid_request_error", format!("the request body is not a JSON object: {e}"))
    })?;
    let model = naming.model(&body)?;
    let input = optional::<Text<'a>>(&body, "input", "the text to read aloud")?.map(|text| text.0);
    let input = input.filter(|input| !input.trim().is_empty());
    let input = input
        .ok_or_else(|| ApiError::invalid("input", "'input' is missing; it is the text to read aloud"))?;
    let chars = input.chars().count();
    if chars > MAX_INPUT {
        let message = format!("'input' has {chars} characters; at most {MAX_INPUT} are taken");
        return Err(ApiError::invalid("input", message));
    }
    let format = optional::<Text<'_>>(&body, "stream_format", "\"audio\" or \"sse\"")?;
    let stream = match format.as_ref().map(|format| &*format.0) {
        None | Some("audio") => false,
        Some("sse") => true,
        Some(_) => {
            return Err(ApiError::invalid("stream_format", "'stream_format' must be \"audio\" or \"sse\""));
        }
    };
    optional::<Text<'_>>(&body, "response_format", "text such as \"mp3\" or \"wav\"")?;
    optional::<f64>(&body, "speed", "a number")?;
    let metadata = Metadata::read(&body)?;
    let user = optional::<Text<'_>>(&body, "user", "text")?.map(|text| text.0.into_owned());
    let (out, warnings) = upstream_body(&body, &metadata, false);
    let work = sound::spoken(chars as u64);
    Ok(Heard { model, text: Some(input), metadata, stream, user, work, body: out, warnings })
}

fn read_form<'a>(media: Option<&str>, bytes: &'a Bytes, naming: Naming<'_>) -> Result<Heard<'a>, ApiError> {
    let Some(media) = media.filter(|media| form::is_form(media)) else {
        let message = "a recording is sent as multipart/form-data, with the fields 'file' and 'model'";
        return Err(ApiError::new(415, "unsupported_media_type", message));
    };
    let broken = |what| ApiError::new(400, "invalid_request_error", format!("the form {what}"));
    let form = Form::parse(media, bytes).map_err(broken)?;
    let text = |name: &'static str| -> Result<Option<&'a str>, ApiError> {
        let at =
            form.only(name).map_err(|what| ApiError::invalid(name, format!("the form {what}: '{name}'")))?;
        let Some(at) = at else { return Ok(None) };
        let refuse = || ApiError::invalid(name, format!("'{name}' must be text of at most {MAX_TEXT} bytes"));
        form.parts[at].text().map(Some).ok_or_else(refuse)
    };
    let model = match text("model")? {
        None if naming.lfo_manners => "auto",
        None => return Err(ApiError::invalid("model", "'model' is missing")),
        Some(model) => model,
    };
    form.only(sound::FILE).map_err(|_| ApiError::invalid(sound::FILE, "the form has several files"))?;
    let file = form.file(sound::FILE);
    let file = file.ok_or_else(|| {
        ApiError::invalid(sound::FILE, "'file' is missing; it is the recording, sent as a file with a name")
    })?;
    if file.is_empty() {
        return Err(ApiError::invalid(sound::FILE, "'file' is empty"));
    }
    let stream = match text("stream")?.map(str::trim) {
        None | Some("" | "false" | "False" | "0") => false,
        Some("true" | "True" | "1") => true,
        Some(_) => return Err(ApiError::invalid("stream", "'stream' must be true or false")),
    };
    let metadata = ours(&form)?;
    let mut changes = Vec::new();
    let mut warnings = Vec::new();
    for (at, part) in form.parts.iter().enumerate() {
        if DENIED.contains(&&*part.name) {
            changes.push((at, Change::Remove));
            warnings.push(format!("'{}' is not allowed and was left out", part.name));
        } else if is_metadata(&part.name) {
            changes.push((at, Change::Remove));
        }
    }
    if metadata.rest.is_some() {
        warnings.push("'metadata' of a form is read here and not passed on".into());
    }
    let user = text("user")?.map(str::to_owned);
    let prompt = text("prompt")?.filter(|prompt| !prompt.is_empty()).map(Cow::Borrowed);
    Ok(Heard {
        model: model.to_owned(),
        text: prompt,
        metadata,
        stream,
        user,
        work: sound::heard(file),
        body: form.rebuilt(bytes, &changes),
        warnings,
    })
}

fn is_metadata(name: &str) -> bool {
    name == "metadata" || name.starts_with("metadata[")
}

/// Reads what a form says to us.
fn ours(form: &Form<'_>) -> Result<Metadata, ApiError> {
    let bad =
        || ApiError::invalid("metadata", "'metadata' must be an object, or fields such as metadata[mode]");
    let mut told = Map::new();
    for part in form.parts.iter().filter(|part| is_metadata(&part.name)) {
        let text = part.text().ok_or_else(bad)?;
        let more = match part.name.strip_prefix("metadata[") {
            Some(rest) => {
                let key = rest.strip_suffix(']').ok_or_else(bad)?;
                Map::from_iter([(key.to_owned(), Value::from(text))])
            }
            None => {
                // Keys that stand twice are refused before they are lost in a map.
                Body::parse(text.as_bytes()).map_err(|_| bad())?;
                serde_json::from_str(text).map_err(|_| bad())?
            }
        };
        for (key, value) in more {
            if told.insert(key, value).is_some() {
                return Err(bad());
            }
        }
    }
    let told =
        if told.is_empty() { Map::new() } else { Map::from_iter([("metadata".to_owned(), told.into())]) };
    let json = Value::from(told).to_string();
    Metadata::read(&Body::parse(json.as_bytes()).map_err(|_| bad())?)
}

#[cfg(test)]
#[path = "sound_tests.rs"]
mod tests;
