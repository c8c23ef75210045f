//! From a Messages request to a chat completion's: the top-level fields.
//!
//! What both APIs call by one name, and what neither of us knows, keeps its bytes.

use bytes::Bytes;
use data_encoding::HEXLOWER;
use ring::digest;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::super::body::{Body, Edit, Text};
use super::super::error::ApiError;
use super::super::parse::OUR_METADATA;
use super::{content, tools};

/// Most stop sequences, as for chat completions.
const MAX_STOPS: usize = 16;
/// Longest `user` that OpenAI takes, in bytes.
const MAX_USER: usize = 64;
/// Most lines of warnings: they travel in one header.
const MAX_WARNINGS: usize = 12;

/// Fields without a meaning here, left out with a warning: the client may have counted on them.
const LEFT_OUT: &[&str] =
    &["container", "context_management", "inference_geo", "mcp_servers", "n", "functions", "function_call"];
/// Fields that concern Anthropic's own service and change no answer: left out in silence, since agents send them
/// with every request.
const DROPPED: &[&str] = &[
    "anthropic_beta",
    "anthropic_version",
    "betas",
    "cache_control",
    "diagnostics",
    "speed",
    "user_profile_id",
    "workspace_id",
];

/// A translated request.
#[derive(Debug)]
pub(super) struct Chat {
    /// Body of a chat completion.
    pub(super) body: Bytes,
    /// Model that is asked for; empty where the client named none.
    pub(super) model: String,
    /// Longest answer that is asked for, tokens; 0 where nothing is to be answered.
    pub(super) max_tokens: u64,
    /// Stop sequences, to tell which one ended the answer.
    pub(super) stops: Vec<String>,
    /// What was left out, a sentence each, fit for a header.
    pub(super) warnings: Vec<String>,
}

/// What models are called here.
#[derive(Clone, Copy)]
pub(super) struct Names<'a> {
    /// What a `claude-…` name means that nobody serves; `None` = nothing, it is an unknown model.
    pub(super) claude: Option<&'a str>,
    /// Tells whether a model of that name is served.
    pub(super) serves: &'a dyn Fn(&str) -> bool,
}

/// What was left out on the way, for the client to read.
#[derive(Debug, Default)]
pub(super) struct Warnings(Vec<String>);

impl Warnings {
    /// Notes a sentence, once, as a header can carry it.
    pub(super) fn add(&mut self, sentence: &str) {
        let fit: String = sentence.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(160).collect();
        if self.0.len() < MAX_WARNINGS && !self.0.contains(&fit) {
            self.0.push(fit);
        }
    }
}

#[derive(Deserialize)]
struct OutputConfig<'a> {
    #[serde(borrow)]
    effort: Option<&'a RawValue>,
    #[serde(borrow)]
    format: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Format<'a> {
    #[serde(borrow)]
    r#type: Option<Text<'a>>,
    #[serde(borrow)]
    schema: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Thinking<'a> {
    #[serde(borrow)]
    r#type: Option<Text<'a>>,
}

/// Translates a request.
///
/// # Errors
/// 400 with the field at fault, for what has no counterpart and cannot be left out without changing the question.
pub(super) fn translate(bytes: &[u8], names: Names<'_>) -> Result<Chat, ApiError> {
    let body = object(bytes)?;
    let limit: Option<u64> = read(&body, "max_tokens", "a whole number of at least 1")?;
    match limit {
        Some(limit @ 1..) => Ok(Chat { max_tokens: limit, ..chat(&body, names)? }),
        Some(0) => Err(ApiError::invalid("max_tokens", "'max_tokens' is 0; it must be at least 1")),
        None => {
            let message = "'max_tokens' is missing; say how long the answer may be, for example 1024";
            Err(ApiError::invalid("max_tokens", message))
        }
    }
}

impl Chat {
    /// Lowers the limit of the answer.
    pub(super) fn lower_limit(&mut self, limit: u64) {
        let lowered = Body::parse(&self.body).map(|body| body.rebuild(&[("max_tokens", set(&limit))]));
        // Our own body reads; were it not so, it would be refused a step later.
        if let Ok(body) = lowered {
            self.body = body;
            self.warnings
                .push(format!("'max_tokens' was lowered to {limit}, which is what the context leaves"));
        }
    }
}

/// Translates what is to be counted only: no limit is needed, and the model may be any.
///
/// # Errors
/// As [`translate`].
pub(super) fn translate_to_count(bytes: &[u8]) -> Result<Chat, ApiError> {
    chat(&object(bytes)?, Names { claude: None, serves: &|_| true })
}

fn object(bytes: &[u8]) -> Result<Body<'_>, ApiError> {
    Body::parse(bytes).map_err(|e| {
        ApiError::new(400, "invalid_request_error", format!("the request body is not a JSON object: {e}"))
    })
}

fn chat(body: &Body<'_>, names: Names<'_>) -> Result<Chat, ApiError> {
    let mut warnings = Warnings::default();
    let mut edits: Vec<(&str, Edit)> = Vec::new();

    let mut model: String = read(body, "model", "text")?.unwrap_or_default();
    if let Some(meant) = names.claude
        && model.starts_with("claude-")
        && !(names.serves)(&model)
    {
        meant.clone_into(&mut model);
        edits.push(("model", set(&model)));
    }

    let messages = body.raw("messages").ok_or_else(|| {
        ApiError::invalid(
            "messages",
            "'messages' is missing; send a list such as [{\"role\":\"user\",\"content\":\"Hello\"}]",
        )
    })?;
    let messages = content::messages(body.raw("system"), messages, &mut warnings)?;
    edits.push(("system", Edit::Remove));
    edits.push(("messages", Edit::Set(messages)));

    let stops: Vec<String> = read(body, "stop_sequences", "a list of texts")?.unwrap_or_default();
    if stops.len() > MAX_STOPS {
        let message = format!("'stop_sequences' has more than {MAX_STOPS} entries");
        return Err(ApiError::invalid("stop_sequences", message));
    }
    edits.push(("stop_sequences", Edit::Remove));
    if !stops.is_empty() {
        edits.push(("stop", set(&stops)));
    }

    tools::translate(body, &mut edits, &mut warnings)?;
    metadata(body, &mut edits, &mut warnings)?;
    output_config(body, &mut edits, &mut warnings)?;
    thinking(body, &mut edits, &mut warnings)?;

    if let Some(tier) = body.raw("service_tier") {
        let tier = if tier.get() == "\"standard_only\"" { "\"default\"" } else { tier.get() };
        edits.push(("service_tier", Edit::Set(tier.into())));
    }
    let stream: bool = read(body, "stream", "true or false")?.unwrap_or(false);
    let options = if stream { set(&json!({"include_usage": true})) } else { Edit::Remove };
    edits.push(("stream_options", options));

    for name in LEFT_OUT {
        if body.raw(name).is_some_and(|raw| raw.get() != "[]") {
            warnings.add(&format!("'{name}' has no meaning here and was left out"));
        }
    }
    edits.extend(LEFT_OUT.iter().chain(DROPPED).map(|name| (*name, Edit::Remove)));
    Ok(Chat { body: body.rebuild(&edits), model, max_tokens: 0, stops, warnings: warnings.0 })
}

/// Their `metadata` names the end user; ours gives instructions. Nothing else is known to either.
fn metadata(body: &Body<'_>, edits: &mut Vec<(&str, Edit)>, warnings: &mut Warnings) -> Result<(), ApiError> {
    let Some(raw) = body.raw("metadata") else { return Ok(()) };
    let inner = Body::parse(raw.get().as_bytes())
        .map_err(|_| ApiError::invalid("metadata", "'metadata' must be an object"))?;
    if let Some(user) = inner.raw("user_id") {
        let user: Text<'_> = serde_json::from_str(user.get())
            .map_err(|_| ApiError::invalid("metadata.user_id", "'metadata.user_id' must be text"))?;
        edits.push(("user", set(&user_name(&user.0))));
    }
    let foreign: Vec<String> =
        inner.names().filter(|name| !OUR_METADATA.contains(name)).map(str::to_owned).collect();
    for name in foreign.iter().filter(|name| *name != "user_id") {
        warnings.add(&format!("'metadata.{name}' is not known and was left out"));
    }
    let removals: Vec<(&str, Edit)> = foreign.iter().map(|name| (name.as_str(), Edit::Remove)).collect();
    let ours = inner.rebuild(&removals);
    let ours = if &ours[..] == b"{}" { None } else { String::from_utf8(ours.to_vec()).ok() };
    edits.push(("metadata", ours.map_or(Edit::Remove, Edit::Set)));
    Ok(())
}

/// Returns the end user as OpenAI takes it. Agents send names that are longer and hold an account's id; their hash
/// tells users apart as well and says less.
fn user_name(user: &str) -> String {
    if user.len() <= MAX_USER {
        return user.to_owned();
    }
    HEXLOWER.encode(digest::digest(&digest::SHA256, user.as_bytes()).as_ref())
}

/// The schema of an answer, under its present name and its former one.
fn output_config(
    body: &Body<'_>,
    edits: &mut Vec<(&str, Edit)>,
    warnings: &mut Warnings,
) -> Result<(), ApiError> {
    let config: Option<OutputConfig<'_>> = read(body, "output_config", "an object")?;
    edits.push(("output_config", Edit::Remove));
    edits.push(("output_format", Edit::Remove));
    if config.as_ref().is_some_and(|config| config.effort.is_some()) {
        warnings
            .add("'output_config.effort' was left out: not every model can think; send 'reasoning_effort'");
    }
    let format = config.and_then(|config| config.format).or_else(|| body.raw("output_format"));
    let Some(format) = format.filter(|raw| raw.get() != "null") else { return Ok(()) };
    let at = "output_config.format";
    let wrong = || ApiError::invalid(at, format!("'{at}' must be of type json_schema with a 'schema'"));
    let format: Format<'_> = serde_json::from_str(format.get()).map_err(|_| wrong())?;
    if format.r#type.is_none_or(|kind| kind.0 != "json_schema") {
        return Err(wrong());
    }
    let schema = format.schema.ok_or_else(wrong)?;
    let text = format!(
        r#"{{"type":"json_schema","json_schema":{{"name":"answer","strict":true,"schema":{}}}}}"#,
        schema.get()
    );
    edits.push(("response_format", Edit::Set(text)));
    Ok(())
}

/// Some servers refuse a wish to think for models that cannot, and with `auto` nobody knows yet which model it will
/// be; so the wish goes only where a client sends OpenAI's own field.
fn thinking(body: &Body<'_>, edits: &mut Vec<(&str, Edit)>, warnings: &mut Warnings) -> Result<(), ApiError> {
    let asked: Option<Thinking<'_>> = read(body, "thinking", "an object with 'type'")?;
    edits.push(("thinking", Edit::Remove));
    if asked.and_then(|asked| asked.r#type).is_some_and(|kind| kind.0 != "disabled") {
        warnings.add("'thinking' was left out: not every model can think; send 'reasoning_effort'");
    }
    Ok(())
}

/// Reads a field, or says what it must be; `null` counts as absent.
pub(super) fn read<'a, T: Deserialize<'a>>(
    body: &Body<'a>,
    name: &str,
    what: &str,
) -> Result<Option<T>, ApiError> {
    let Some(raw) = body.raw(name) else { return Ok(None) };
    serde_json::from_str(raw.get())
        .map(Some)
        .map_err(|_| ApiError::invalid(name, format!("'{name}' must be {what}")))
}

/// Makes an edit of anything that serialises.
pub(super) fn set(value: &impl serde::Serialize) -> Edit {
    Edit::Set(serde_json::to_string(value).expect("plain values serialise"))
}
