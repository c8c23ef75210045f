//! From a client's JSON to a checked request: one parse, every bound checked, a clear error for each mistake.

mod asked;
mod fields;
mod input;
mod metadata;
mod parsed;
mod session;
mod sound;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use http::HeaderMap;
use serde::Deserialize;
use shoal_routing::{DataClass, Message, ModelChoice, Needs, Request, Tokens};

use self::asked::Asked;
use self::fields::Fields;
use self::input::Input;
use self::metadata::Metadata;
pub(super) use self::metadata::OUR_METADATA;
pub use self::parsed::{Parsed, Shape};
pub(super) use self::sound::media;
use super::body::{Body, Edit};
use super::error::ApiError;
use crate::upstream::ApiPath;

/// Fields that could redirect or corrupt an upstream; a client may never set them.
const DENIED: &[&str] = &[
    "api_base",
    "base_url",
    "api_key",
    "api_version",
    "prompt_embeds",
    "custom_llm_provider",
    "extra_headers",
    "extra_body",
    "kv_transfer_params",
];
/// Name under which LFO offered its choice of a model.
const LFO_AUTO: &str = "lfo-auto";

/// What a key or an earlier hop demands; a client can only raise it.
#[derive(Debug, Clone, Copy)]
pub struct Floor {
    /// Lowest data class.
    pub data_class: DataClass,
    /// True when the request must stay on the mesh's devices.
    pub local_only: bool,
}

impl Default for Floor {
    fn default() -> Self {
        Self { data_class: DataClass::Internal, local_only: false }
    }
}

/// What the `model` field means on this node.
#[derive(Clone, Copy)]
pub struct Naming<'a> {
    /// Tells the providers' names from the first part of a model's own name.
    pub is_provider: &'a dyn Fn(&str) -> bool,
    /// As in LFO, the model may be missing, and it and `lfo-auto` mean `auto`.
    pub lfo_manners: bool,
}

impl Naming<'_> {
    fn model(&self, body: &Body<'_>) -> Result<String, ApiError> {
        let given = body.raw("model").filter(|value| value.get() != "null");
        match given {
            None if self.lfo_manners => Ok("auto".into()),
            _ => required_string(body, "model"),
        }
    }

    /// Reads the name of a model.
    pub fn choice(&self, model: &str) -> ModelChoice {
        let means_auto = self.lfo_manners && model == LFO_AUTO;
        ModelChoice::parse(if means_auto { "auto" } else { model }, self.is_provider)
    }
}

/// Parses and checks a body for an API path; `media` is its content type, which only a recording's matters of.
///
/// The request borrows its text from `bytes`; the parsed form owns all that must live longer.
///
/// # Errors
/// What is wrong with it, with the field at fault.
pub fn parse<'a>(
    path: ApiPath,
    media: Option<&str>,
    bytes: &'a Bytes,
    headers: &HeaderMap,
    floor: Floor,
    naming: Naming<'_>,
) -> Result<(Parsed, Request<'a>), ApiError> {
    if path.is_sound() {
        return sound::read(path, media, bytes, naming)?.under(headers, floor, naming);
    }
    let body = Body::parse(bytes).map_err(|e| {
        ApiError::new(400, "invalid_request_error", format!("the request body is not a JSON object: {e}"))
    })?;
    let model = naming.model(&body)?;
    checked_name(&model)?;
    let inputs = match path {
        ApiPath::ChatCompletions => input::chat_messages(&body)?,
        ApiPath::Completions => input::plain_inputs(&body, "prompt")?,
        _ => input::plain_inputs(&body, "input")?,
    };
    let metadata = Metadata::read(&body)?;
    let stream = optional::<bool>(&body, "stream", "true or false")?.unwrap_or(false);
    let include_usage = stream_options(&body, stream)?;
    let fields = fields::check(path, &body)?;
    let needs = needs(path, &fields, &inputs);
    let messages: Vec<Message<'_>> = inputs.into_iter().map(|input| input.message).collect();
    let session =
        (path == ApiPath::ChatCompletions).then(|| session::of(headers, &body, &messages)).flatten();
    let (out, warnings) = upstream_body(&body, &metadata, stream);
    let asked = Asked {
        path,
        model,
        messages,
        needs,
        stream,
        include_usage,
        max_output: max_output(&body)?,
        answers: fields.answers,
        session,
        user: fields.user,
        metadata,
        body: out,
        media: None,
        work: None,
        warnings,
    };
    asked.under(headers, floor, naming)
}

fn checked_name(model: &str) -> Result<(), ApiError> {
    if model.is_empty() || model.len() > 256 || model.chars().any(char::is_control) {
        return Err(ApiError::invalid("model", "'model' must be a name of 1 to 256 printable characters"));
    }
    Ok(())
}

/// Reads only the messages of a chat body, for who looks at a request that was parsed before.
pub(crate) fn messages(bytes: &[u8]) -> Option<Vec<Message<'_>>> {
    let body = Body::parse(bytes).ok()?;
    Some(input::chat_messages(&body).ok()?.into_iter().map(|input| input.message).collect())
}

fn needs(path: ApiPath, fields: &Fields, inputs: &[Input<'_>]) -> Needs {
    Needs {
        tools: fields.tools,
        schema: fields.schema,
        vision: inputs.iter().any(|i| i.vision),
        audio: inputs.iter().any(|i| i.audio),
        embeddings: path == ApiPath::Embeddings,
        logprobs: fields.logprobs,
        transcription: false,
        speech: false,
    }
}

fn stream_options(body: &Body<'_>, stream: bool) -> Result<bool, ApiError> {
    #[derive(Deserialize)]
    struct Options {
        include_usage: Option<bool>,
    }
    let Some(raw) = body.raw("stream_options") else { return Ok(false) };
    let options: Options = serde_json::from_str(raw.get()).map_err(|_| {
        ApiError::invalid(
            "stream_options",
            "'stream_options' must be an object such as {\"include_usage\": true}",
        )
    })?;
    if !stream {
        return Err(ApiError::invalid(
            "stream_options",
            "'stream_options' is allowed only with \"stream\": true",
        ));
    }
    Ok(options.include_usage.unwrap_or(false))
}

fn max_output(body: &Body<'_>) -> Result<Option<Tokens>, ApiError> {
    let mut found = None;
    for name in ["max_tokens", "max_completion_tokens"] {
        if let Some(value) = optional::<u64>(body, name, "a whole number of at least 1")? {
            if value == 0 {
                return Err(ApiError::invalid(name, format!("'{name}' is 0; it must be at least 1")));
            }
            found = Some(Tokens(u32::try_from(value).unwrap_or(u32::MAX)));
        }
    }
    Ok(found)
}

fn upstream_body(body: &Body<'_>, metadata: &Metadata, stream: bool) -> (Bytes, Vec<String>) {
    let mut edits: Vec<(&str, Edit)> = Vec::new();
    let mut warnings = Vec::new();
    for name in DENIED {
        if body.raw(name).is_some() {
            edits.push((name, Edit::Remove));
            warnings.push(format!("'{name}' is not allowed and was left out"));
        }
    }
    if metadata.present {
        edits.push(("metadata", metadata.rest.clone().map_or(Edit::Remove, Edit::Set)));
    }
    if stream {
        // Always asked of the upstream, so that usage is booked; shown only to clients that asked.
        edits.push(("stream_options", Edit::Set("{\"include_usage\":true}".into())));
    }
    (body.rebuild(&edits), warnings)
}

fn required_string(body: &Body<'_>, name: &'static str) -> Result<String, ApiError> {
    let raw = body.raw(name).ok_or_else(|| ApiError::invalid(name, format!("'{name}' is missing")))?;
    serde_json::from_str(raw.get()).map_err(|_| ApiError::invalid(name, format!("'{name}' must be text")))
}

/// Reads a field that may be missing; `what` says in the error what it must be.
///
/// # Errors
/// It is something else.
pub(super) fn optional<'a, T: Deserialize<'a>>(
    body: &Body<'a>,
    name: &str,
    what: &str,
) -> Result<Option<T>, ApiError> {
    let Some(raw) = body.raw(name) else { return Ok(None) };
    serde_json::from_str(raw.get()).map(Some).map_err(|_| {
        let shown: String = raw.get().chars().take(32).collect();
        ApiError::invalid(name, format!("'{name}' is {shown}; it must be {what}"))
    })
}
