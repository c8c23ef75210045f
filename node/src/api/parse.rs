//! From a client's JSON to a checked request: one parse, every bound checked, a clear error for each mistake.

use std::borrow::Cow;

use bytes::Bytes;
use http::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;
use shoal_routing::{
    DataClass, Message, MessageRole, Mode, ModelChoice, Needs, Preference, Request, RequestProfile, Tokens,
};

use super::body::{Body, Edit, Text};
use super::error::ApiError;
use crate::upstream::ApiPath;

/// Most messages of one request; a long agent session has a few hundred.
const MAX_MESSAGES: usize = 10_000;
/// Most stop sequences; engines differ between 4 and any number.
const MAX_STOPS: usize = 16;
/// Most answers to one prompt.
const MAX_N: u64 = 128;
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
/// Our own keys in `metadata`; they are instructions to us and go no further.
const OUR_METADATA: &[&str] = &["mode", "confidence_threshold", "preference", "data_class"];

/// A request of a client after all checks, owning what the pipeline needs.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// Which API it speaks.
    pub path: ApiPath,
    /// Model as the client wrote it.
    pub model: String,
    /// Features for the router.
    pub profile: RequestProfile,
    /// The same request without its text.
    pub shape: Shape,
    /// Body to send on, but for the model's name; our metadata and denied fields are gone.
    pub body: Bytes,
    /// True when the client asked for usage in the stream.
    pub include_usage: bool,
    /// Denied fields that were left out.
    pub warnings: Vec<String>,
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
    /// Explicit threshold for escalation, 0..1.
    pub confidence_threshold: Option<f64>,
}

impl Parsed {
    /// Returns the body with the chosen model's name in it.
    pub fn body_for(&self, model: &str) -> Bytes {
        if self.model == model {
            return self.body.clone();
        }
        // The body was parsed before and is ours, so it parses again; if not, the upstream will say so.
        match Body::parse(&self.body) {
            Ok(body) => body.rebuild(&[("model", Edit::Set(json_string(model)))]),
            Err(_) => self.body.clone(),
        }
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

/// Parses and checks a body for an API path.
///
/// The request borrows its text from `bytes`; the parsed form owns all that must live longer.
pub fn parse<'a>(
    path: ApiPath,
    bytes: &'a Bytes,
    headers: &HeaderMap,
    floor: Floor,
) -> Result<(Parsed, Request<'a>), ApiError> {
    let body = Body::parse(bytes).map_err(|e| {
        ApiError::new(400, "invalid_request_error", format!("the request body is not a JSON object: {e}"))
    })?;
    let model = required_string(&body, "model")?;
    if model.is_empty() || model.len() > 256 || model.chars().any(char::is_control) {
        return Err(ApiError::invalid("model", "'model' must be a name of 1 to 256 printable characters"));
    }
    let messages = match path {
        ApiPath::ChatCompletions => chat_messages(&body)?,
        ApiPath::Completions => plain_inputs(&body, "prompt")?,
        ApiPath::Embeddings => plain_inputs(&body, "input")?,
    };
    let metadata = Metadata::read(&body)?;
    let stream = optional::<bool>(&body, "stream", "true or false")?.unwrap_or(false);
    let include_usage = stream_options(&body, stream)?;
    check_numbers(&body)?;
    let choice = ModelChoice::parse(&model, &|_| false);
    let data_class = data_class(&metadata, headers, floor)?;
    let shape = Shape {
        stream,
        mode: if floor.local_only { Mode::Local } else { metadata.mode },
        preference: metadata.preference,
        data_class: if floor.local_only { DataClass::Restricted } else { data_class },
        needs: needs(path, &body, &messages),
        max_output: max_output(&body)?,
        confidence_threshold: metadata.threshold,
    };
    let request = Request {
        messages: messages.into_iter().map(|m| m.message).collect(),
        max_output: shape.max_output,
        needs: shape.needs,
        stream,
        choice,
        mode: shape.mode,
        preference: shape.preference,
        data_class: shape.data_class,
        hop: 0,
    };
    let profile = RequestProfile::of(&request);
    let (body, warnings) = upstream_body(&body, &metadata, stream);
    Ok((Parsed { path, model, profile, shape, body, include_usage, warnings }, request))
}

struct Input<'a> {
    message: Message<'a>,
    vision: bool,
    audio: bool,
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
}

fn chat_messages<'a>(body: &Body<'a>) -> Result<Vec<Input<'a>>, ApiError> {
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
            Some("image_url") => vision = true,
            Some("input_audio") => audio = true,
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

fn plain_inputs<'a>(body: &Body<'a>, name: &'static str) -> Result<Vec<Input<'a>>, ApiError> {
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

fn needs(path: ApiPath, body: &Body<'_>, inputs: &[Input<'_>]) -> Needs {
    let nonempty_list = |name: &str| body.raw(name).is_some_and(|v| v.get() != "[]");
    let schema = body.raw("response_format").is_some_and(|v| v.get().contains("json_schema"));
    Needs {
        tools: nonempty_list("tools") || nonempty_list("functions"),
        schema,
        vision: inputs.iter().any(|i| i.vision),
        audio: inputs.iter().any(|i| i.audio),
        embeddings: path == ApiPath::Embeddings,
        logprobs: body.raw("logprobs").is_some_and(|v| v.get() != "false"),
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

fn check_numbers(body: &Body<'_>) -> Result<(), ApiError> {
    for (name, low, high) in [
        ("temperature", 0.0, 2.0),
        ("top_p", 0.0, 1.0),
        ("presence_penalty", -2.0, 2.0),
        ("frequency_penalty", -2.0, 2.0),
    ] {
        if let Some(value) = optional::<f64>(body, name, "a number")?
            && !(low..=high).contains(&value)
        {
            return Err(ApiError::invalid(
                name,
                format!("'{name}' is {value}; it must lie between {low} and {high}"),
            ));
        }
    }
    if let Some(n) = optional::<u64>(body, "n", "a whole number of at least 1")?
        && !(1..=MAX_N).contains(&n)
    {
        return Err(ApiError::invalid("n", format!("'n' is {n}; it must lie between 1 and {MAX_N}")));
    }
    if let Some(top) = optional::<u64>(body, "top_logprobs", "a whole number from 0 to 20")?
        && top > 20
    {
        return Err(ApiError::invalid("top_logprobs", "'top_logprobs' must lie between 0 and 20"));
    }
    if let Some(raw) = body.raw("stop")
        && !raw.get().starts_with('"')
    {
        let stops: Vec<Text<'_>> = serde_json::from_str(raw.get())
            .map_err(|_| ApiError::invalid("stop", "'stop' must be text or a list of texts"))?;
        if stops.len() > MAX_STOPS {
            return Err(ApiError::invalid("stop", format!("'stop' has more than {MAX_STOPS} entries")));
        }
    }
    if let Some(raw) = body.raw("tools")
        && !raw.get().starts_with('[')
    {
        return Err(ApiError::invalid("tools", "'tools' must be a list"));
    }
    Ok(())
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

/// Our instructions in `metadata`, and what is left of it for the upstream.
struct Metadata {
    mode: Mode,
    preference: Preference,
    data_class: Option<DataClass>,
    threshold: Option<f64>,
    /// Other keys as JSON, `None` when nothing is left.
    rest: Option<String>,
    present: bool,
}

impl Metadata {
    fn read(body: &Body<'_>) -> Result<Self, ApiError> {
        let mut out = Self {
            mode: Mode::Auto,
            preference: Preference::Balanced,
            data_class: None,
            threshold: None,
            rest: None,
            present: false,
        };
        let Some(raw) = body.raw("metadata") else { return Ok(out) };
        out.present = true;
        let inner = Body::parse(raw.get().as_bytes())
            .map_err(|_| ApiError::invalid("metadata", "'metadata' must be an object"))?;
        let word = |name: &'static str, allowed: &str| -> Result<Option<String>, ApiError> {
            let Some(raw) = inner.raw(name) else { return Ok(None) };
            serde_json::from_str::<String>(raw.get()).map(Some).map_err(|_| {
                ApiError::invalid(
                    format!("metadata.{name}"),
                    format!("'metadata.{name}' must be one of {allowed}"),
                )
            })
        };
        let refuse = |name: &'static str, allowed: &str| {
            ApiError::invalid(
                format!("metadata.{name}"),
                format!("'metadata.{name}' must be one of {allowed}"),
            )
        };
        if let Some(text) = word("mode", "auto, local, cloud")? {
            out.mode = text.parse().map_err(|_| refuse("mode", "auto, local, cloud"))?;
        }
        if let Some(text) = word("preference", "balanced, cheap, fast, best")? {
            out.preference = text.parse().map_err(|_| refuse("preference", "balanced, cheap, fast, best"))?;
        }
        if let Some(text) = word("data_class", "public, internal, restricted")? {
            out.data_class =
                Some(text.parse().map_err(|_| refuse("data_class", "public, internal, restricted"))?);
        }
        if let Some(raw) = inner.raw("confidence_threshold") {
            // OpenAI's metadata holds text only, so clients send numbers as text too.
            let text = raw.get().trim_matches('"');
            let value: f64 = text.parse().ok().filter(|v| (0.0..=1.0).contains(v)).ok_or_else(|| {
                ApiError::invalid(
                    "metadata.confidence_threshold",
                    "'metadata.confidence_threshold' must lie between 0 and 1",
                )
            })?;
            out.threshold = Some(value);
        }
        let edits: Vec<(&str, Edit)> = OUR_METADATA.iter().map(|k| (*k, Edit::Remove)).collect();
        if inner.names().any(|n| !OUR_METADATA.contains(&n)) {
            out.rest = String::from_utf8(inner.rebuild(&edits).to_vec()).ok();
        }
        Ok(out)
    }
}

fn data_class(metadata: &Metadata, headers: &HeaderMap, floor: Floor) -> Result<DataClass, ApiError> {
    let header = match headers.get("x-shoal-data-class") {
        None => None,
        Some(value) => {
            Some(value.to_str().ok().and_then(|v| v.parse::<DataClass>().ok()).ok_or_else(|| {
                ApiError::invalid(
                    "x-shoal-data-class",
                    "the header 'x-shoal-data-class' must be public, internal or restricted",
                )
            })?)
        }
    };
    // Header, metadata, key and earlier hops can each only raise it.
    Ok(header.max(metadata.data_class).map_or(floor.data_class, |asked| asked.max(floor.data_class)))
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

fn optional<'a, T: Deserialize<'a>>(body: &Body<'a>, name: &str, what: &str) -> Result<Option<T>, ApiError> {
    let Some(raw) = body.raw(name) else { return Ok(None) };
    serde_json::from_str(raw.get()).map(Some).map_err(|_| {
        let shown: String = raw.get().chars().take(32).collect();
        ApiError::invalid(name, format!("'{name}' is {shown}; it must be {what}"))
    })
}

fn json_string(text: &str) -> String {
    serde_json::to_string(text).expect("a string serialises")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(text: &str) -> Result<Parsed, ApiError> {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        parse(ApiPath::ChatCompletions, &bytes, &HeaderMap::new(), Floor::default()).map(|(parsed, _)| parsed)
    }

    #[test]
    fn mistakes_name_the_field() {
        let cases: &[(&str, &str)] = &[
            ("{", "not a JSON object"),
            ("[]", "not a JSON object"),
            (r#"{"messages":[{"role":"user","content":"x"}]}"#, "'model' is missing"),
            (r#"{"model":3,"messages":[{"role":"user","content":"x"}]}"#, "'model' must be text"),
            (r#"{"model":"","messages":[{"role":"user","content":"x"}]}"#, "'model' must be a name"),
            (r#"{"model":"m"}"#, "'messages' is missing"),
            (r#"{"model":"m","messages":[]}"#, "'messages' is empty"),
            (r#"{"model":"m","messages":"hello"}"#, "'messages' must be a list"),
            (r#"{"model":"m","messages":["hello"]}"#, "messages[0] must be an object"),
            (r#"{"model":"m","messages":[{"content":"x"}]}"#, "messages[0].role is missing"),
            (r#"{"model":"m","messages":[{"role":"king","content":"x"}]}"#, "messages[0].role is 'king'"),
            (r#"{"model":"m","messages":[{"role":"user"}]}"#, "messages[0].content is missing"),
            (r#"{"model":"m","messages":[{"role":"user","content":7}]}"#, "messages[0].content must be text"),
            (r#"{"model":"m","messages":[{"role":"user","content":[{"type":"hologram"}]}]}"#, "'hologram'"),
            (
                r#"{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":-1}"#,
                "'max_tokens' is -1",
            ),
            (r#"{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":0}"#, "at least 1"),
            (
                r#"{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":9}"#,
                "between 0 and 2",
            ),
            (
                r#"{"model":"m","messages":[{"role":"user","content":"x"}],"stream":"yes"}"#,
                "'stream' is \"yes\"",
            ),
            (r#"{"model":"m","messages":[{"role":"user","content":"x"}],"n":0}"#, "'n' is 0"),
            (r#"{"model":"m","messages":[{"role":"user","content":"x"}],"stream_options":{}}"#, "only with"),
            (
                r#"{"model":"m","messages":[{"role":"user","content":"x"}],"metadata":{"mode":"moon"}}"#,
                "auto, local, cloud",
            ),
            (
                r#"{"model":"m","messages":[{"role":"user","content":"x"}],"metadata":{"confidence_threshold":3}}"#,
                "between 0 and 1",
            ),
            (r#"{"model":"m","model":"n","messages":[{"role":"user","content":"x"}]}"#, "occurs twice"),
        ];
        for (text, expected) in cases {
            let error = chat(text).map(|_| ()).unwrap_err();
            assert_eq!(error.status, 400, "{text}");
            assert!(
                error.message.contains(expected),
                "{text} gave {:?}, expected {expected:?}",
                error.message
            );
        }
    }

    #[test]
    fn our_instructions_and_denied_fields_go_no_further() {
        let parsed = chat(
            r#"{"model":"m","messages":[{"role":"user","content":"x"}],"api_base":"http://evil","seed":7,
                "metadata":{"mode":"local","confidence_threshold":"0.5","team":"a"}}"#,
        )
        .unwrap();
        let body: serde_json::Value = serde_json::from_slice(&parsed.body).unwrap();
        assert_eq!(body["metadata"], serde_json::json!({"team": "a"}));
        assert!(body.get("api_base").is_none());
        assert_eq!(body["seed"], 7);
        assert_eq!((parsed.shape.mode, parsed.shape.confidence_threshold), (Mode::Local, Some(0.5)));
        assert_eq!(parsed.warnings.len(), 1);
    }

    #[test]
    fn an_empty_metadata_is_not_sent() {
        let parsed =
            chat(r#"{"model":"m","messages":[{"role":"user","content":"x"}],"metadata":{"mode":"auto"}}"#)
                .unwrap();
        assert!(!std::str::from_utf8(&parsed.body).unwrap().contains("metadata"));
    }

    #[test]
    fn a_stream_always_asks_the_upstream_for_usage() {
        let parsed =
            chat(r#"{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true}"#).unwrap();
        let body: serde_json::Value = serde_json::from_slice(&parsed.body).unwrap();
        assert_eq!(body["stream_options"]["include_usage"], true);
        assert!(!parsed.include_usage);
    }

    #[test]
    fn a_client_can_only_raise_the_class_that_its_key_demands() {
        let floor = Floor { data_class: DataClass::Restricted, local_only: false };
        let text =
            r#"{"model":"m","messages":[{"role":"user","content":"x"}],"metadata":{"data_class":"public"}}"#;
        let bytes = Bytes::from_static(text.as_bytes());
        let (parsed, _) = parse(ApiPath::ChatCompletions, &bytes, &HeaderMap::new(), floor).unwrap();
        assert_eq!(parsed.shape.data_class, DataClass::Restricted);
        let mut headers = HeaderMap::new();
        headers.insert("x-shoal-data-class", "restricted".parse().unwrap());
        let (raised, _) = parse(ApiPath::ChatCompletions, &bytes, &headers, Floor::default()).unwrap();
        assert_eq!(raised.shape.data_class, DataClass::Restricted);
    }

    #[test]
    fn the_model_name_is_replaced_without_touching_the_rest() {
        let parsed =
            chat(r#"{"model":"auto","messages":[{"role":"user","content":"x"}],"seed": 1.50}"#).unwrap();
        let body = parsed.body_for("qwen \"x\"");
        assert!(std::str::from_utf8(&body).unwrap().contains(r#""model":"qwen \"x\"","#));
        assert!(std::str::from_utf8(&body).unwrap().contains(r#""seed":1.50"#));
    }
}
