//! From a client's JSON to a checked request: one parse, every bound checked, a clear error for each mistake.

mod fields;
mod input;
mod metadata;
mod session;
mod sound;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use serde::Deserialize;
use shoal_routing::{
    DataClass, Message, Mode, ModelChoice, Needs, Preference, Request, RequestProfile, SoundWork, Tokens,
};

use self::fields::Fields;
use self::input::Input;
use self::metadata::Metadata;
pub(super) use self::metadata::OUR_METADATA;
pub(super) use self::sound::media;
use super::body::{Body, Edit};
use super::error::ApiError;
use super::form;
use crate::upstream::ApiPath;
use crate::upstream::openai_http::HOPS;

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
/// Likeliest tokens asked for at each place of an answer that will be judged: margin and entropy need a few.
const JUDGED_TOP_LOGPROBS: u8 = 5;

/// Headers in which the SDKs of OpenAI and Anthropic say how many seconds they wait.
const TIME_LIMITS: [&str; 2] = ["x-stainless-timeout", "x-stainless-read-timeout"];

/// Most meshes that a request may come through before this one.
const MAX_MESHES: u32 = 3;

/// Name under which LFO offered its choice of a model.
const LFO_AUTO: &str = "lfo-auto";

/// A request of a client after all checks, owning what the pipeline needs.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// Which API it speaks.
    pub path: ApiPath,
    /// Model as the client wrote it.
    pub model: String,
    /// Features for the router.
    pub profile: Box<RequestProfile>,
    /// The same request without its text.
    pub shape: Shape,
    /// Body to send on, but for the model's name; our metadata and denied fields are gone.
    pub body: Bytes,
    /// Media type of the body, with the boundary of a form; `None` = JSON.
    pub media: Option<Arc<str>>,
    /// How much of sound there is, in requests about it.
    pub work: Option<SoundWork>,
    /// True when the client asked for usage in the stream.
    pub include_usage: bool,
    /// Who asks, in the client's own words: the `user` field.
    pub user: Option<String>,
    /// Denied fields that were left out.
    pub warnings: Vec<String>,
}

impl Shape {
    /// Returns the class under which the request is handed on: what must stay local goes nowhere as anything less
    /// than restricted, so that no later hop and no egress can send it on.
    pub fn travels_as(&self) -> DataClass {
        if self.mode == Mode::Local { DataClass::Restricted } else { self.data_class }
    }
}

/// A request's properties that policy and filters look at.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Streamed answer wanted.
    pub stream: bool,
    /// Where it may go.
    pub mode: Mode,
    /// What matters to the client.
    pub preference: Preference,
    /// How far the content may travel.
    pub data_class: DataClass,
    /// What the model must be able to do.
    pub needs: Needs,
    /// Longest answer wanted.
    pub max_output: Option<Tokens>,
    /// Answers wanted to one prompt, at least 1.
    pub answers: u64,
    /// Explicit threshold for escalation, 0..1.
    pub confidence_threshold: Option<f64>,
    /// Another device goes on with an answer that breaks off; `None` = as the node is set.
    pub resume: Option<bool>,
    /// The model is ours to choose.
    pub chooses: bool,
    /// How many meshes it came through before this one.
    pub meshes: u32,
    /// Hash of the conversation, where a host may have it in its cache.
    pub session: Option<u64>,
}

impl Parsed {
    /// Returns the body with the chosen model's name in it, and with log probabilities asked for where the answer
    /// will be judged by them.
    ///
    /// `plain` is for engines, which know the fields of a few years ago: the role `developer` is said as `system`, and a
    /// limit as `max_tokens` too, or their templates would refuse the one and their samplers pass over the other.
    pub fn body_for(&self, model: &str, ask_logprobs: bool, plain: bool) -> Bytes {
        if let Some(media) = &self.media {
            return form::with_model(media, &self.body, model);
        }
        let mut edits = Vec::new();
        if plain && let Ok(body) = Body::parse(&self.body) {
            edits.extend(input::without_developer(&body).map(|messages| ("messages", Edit::Set(messages))));
            if let Some(limit) =
                body.raw("max_completion_tokens").filter(|_| body.raw("max_tokens").is_none())
            {
                edits.push(("max_tokens", Edit::Set(limit.get().to_owned())));
            }
        }
        if self.model != model {
            edits.push(("model", Edit::Set(json_string(model))));
        }
        if ask_logprobs {
            edits.push(("logprobs", Edit::Set("true".into())));
            edits.push(("top_logprobs", Edit::Set(JUDGED_TOP_LOGPROBS.to_string())));
        }
        if edits.is_empty() {
            return self.body.clone();
        }
        // The body was parsed before and is ours, so it parses again; if not, the upstream will say so.
        Body::parse(&self.body).map_or_else(|_| self.body.clone(), |body| body.rebuild(&edits))
    }
}

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

/// What was read of a body, in JSON or a form.
struct Asked<'a> {
    path: ApiPath,
    model: String,
    /// Text that the rules and the profile may look at.
    messages: Vec<Message<'a>>,
    needs: Needs,
    stream: bool,
    include_usage: bool,
    max_output: Option<Tokens>,
    answers: u64,
    session: Option<u64>,
    user: Option<String>,
    metadata: Metadata,
    body: Bytes,
    media: Option<Arc<str>>,
    work: Option<SoundWork>,
    warnings: Vec<String>,
}

impl<'a> Asked<'a> {
    /// Makes the request of it, under what headers, key and earlier hops demand.
    ///
    /// # Errors
    /// What is wrong with a header.
    fn under(
        self,
        headers: &HeaderMap,
        floor: Floor,
        naming: Naming<'_>,
    ) -> Result<(Parsed, Request<'a>), ApiError> {
        let Self { path, model, metadata, stream, include_usage, user, body, media, work, warnings, .. } =
            self;
        let choice = naming.choice(&model);
        let is_local = floor.local_only || choice == ModelChoice::AutoLocal;
        let class = data_class(&metadata, headers, floor)?;
        let mut shape = Shape {
            stream,
            mode: if is_local { Mode::Local } else { metadata.mode },
            preference: metadata.preference,
            data_class: if floor.local_only { DataClass::Restricted } else { class },
            needs: self.needs,
            max_output: self.max_output,
            answers: self.answers,
            confidence_threshold: metadata.threshold,
            resume: metadata.resume,
            chooses: choice.is_auto(),
            meshes: meshes(headers)?,
            session: self.session,
        };
        let request = Request {
            messages: self.messages,
            max_output: shape.max_output,
            needs: shape.needs,
            stream,
            choice,
            mode: shape.mode,
            preference: shape.preference,
            data_class: shape.data_class,
            hop: 0,
            max_local_tokens: None,
            time_limit: time_limit(headers),
            budget_left: None,
            session: shape.session,
        };
        // `auto:cheap` says as much as the field does, also to who judges the answer.
        shape.preference = request.effective_preference();
        // Half a kilobyte that would otherwise be moved through every future of the request.
        let profile = Box::new(RequestProfile::of(&request));
        Ok((
            Parsed { path, model, profile, shape, body, media, work, include_usage, user, warnings },
            request,
        ))
    }
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

fn data_class(metadata: &Metadata, headers: &HeaderMap, floor: Floor) -> Result<DataClass, ApiError> {
    let mut class = floor.data_class.max(metadata.data_class.unwrap_or(floor.data_class));
    // Header, metadata, key and earlier hops can each only raise it; so can each of several headers.
    for value in headers.get_all("x-shoal-data-class") {
        let asked = value.to_str().ok().and_then(|v| v.parse::<DataClass>().ok()).ok_or_else(|| {
            ApiError::invalid(
                "x-shoal-data-class",
                "the header 'x-shoal-data-class' must be public, internal or restricted",
            )
        })?;
        class = class.max(asked);
    }
    Ok(class)
}

/// Returns how many meshes a request came through.
///
/// # Errors
/// 508 above [`MAX_MESHES`]: two routers that have each other as a provider would ask in a circle.
fn meshes(headers: &HeaderMap) -> Result<u32, ApiError> {
    let Some(value) = headers.get(HOPS) else { return Ok(0) };
    let count: Option<u32> = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    let count =
        count.ok_or_else(|| ApiError::invalid(HOPS, format!("the header '{HOPS}' must be a number")))?;
    if count > MAX_MESHES {
        let message =
            "the request came through too many routers; probably two of them are each other's provider";
        return Err(ApiError::new(508, "too_many_hops", message));
    }
    Ok(count)
}

/// Returns how long the caller waits; what makes no sense as a time is no limit, since it only informs a guess.
fn time_limit(headers: &HeaderMap) -> Option<Duration> {
    let seconds = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    TIME_LIMITS
        .into_iter()
        .filter_map(seconds)
        .filter(|seconds| *seconds > 0.0)
        .filter_map(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .min()
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

fn json_string(text: &str) -> String {
    serde_json::to_string(text).expect("a string serialises")
}
