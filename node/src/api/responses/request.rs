//! A request of the Responses API becomes a chat completion, in two steps: what it needs of earlier responses is read
//! first, and with that at hand the rest is a pure translation.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use shoal_routing::DataClass;

use super::items::Conversation;
use super::object::Echo;
use super::tools::Tools;
use crate::api::body::{Body, Text};
use crate::api::chat_body::Object;
use crate::api::error::ApiError;
use crate::api::parse::optional;

/// Most items of one request, earlier turns included; as with messages.
const MAX_ITEMS: usize = 10_000;
/// Most earlier responses that one request may refer to by their items.
const MAX_REFERENCES: usize = 64;
/// Fields that are read here.
const KNOWN: &[&str] = &[
    "model",
    "input",
    "instructions",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "text",
    "reasoning",
    "max_output_tokens",
    "max_tool_calls",
    "top_logprobs",
    "include",
    "metadata",
    "store",
    "previous_response_id",
    "truncation",
    "stream",
    "stream_options",
    "background",
    "conversation",
    "prompt",
    "context_management",
];
/// Fields that mean something in a chat completion which a response could not tell.
const ALIEN: &[&str] = &[
    "messages",
    "n",
    "functions",
    "function_call",
    "logprobs",
    "response_format",
    "max_tokens",
    "max_completion_tokens",
    "modalities",
    "audio",
    "prediction",
    "web_search_options",
];
/// Other settings that a response repeats.
const REPEATED: &[&str] =
    &["temperature", "top_p", "user", "service_tier", "prompt_cache_key", "safety_identifier"];

/// A request that was read, before it is known what it goes on from.
pub(super) struct Draft<'a> {
    body: Body<'a>,
    /// The response that it goes on from.
    pub(super) previous: Option<String>,
    /// Ids of items that it only refers to.
    pub(super) references: BTreeSet<String>,
    /// The client wants to go on from this one.
    pub(super) store: bool,
    stream: bool,
    /// Its own items.
    items: Vec<Own<'a>>,
}

enum Own<'a> {
    Sent(&'a RawValue),
    /// Text alone, as the item that it stands for.
    Made(Box<RawValue>),
    Reference(String),
}

/// What earlier responses give; by default nothing, and nothing is secret.
#[derive(Debug)]
pub(super) struct Past {
    /// Items that come before the request's own.
    pub(super) items: Vec<Box<RawValue>>,
    /// Items that it refers to, by their ids.
    pub(super) referred: BTreeMap<String, Box<RawValue>>,
    /// Highest class of the responses that all this comes from.
    pub(super) data_class: DataClass,
}

impl Default for Past {
    fn default() -> Self {
        Self { items: Vec::new(), referred: BTreeMap::new(), data_class: DataClass::Public }
    }
}

/// A chat completion, and what is needed to tell its answer.
#[derive(Debug)]
pub(super) struct Translated {
    /// Body of the chat completion.
    pub(super) body: Bytes,
    /// What the client should know.
    pub(super) warnings: Vec<String>,
    /// What the voice must know.
    pub(super) telling: Telling,
    /// All items of the input as a JSON list, to be kept.
    pub(super) input: Box<RawValue>,
}

/// What of a request its answer depends on.
#[derive(Debug, Default)]
pub(super) struct Telling {
    /// Model as it was asked for.
    pub(super) model: String,
    /// Settings to repeat.
    pub(super) echo: Echo,
    /// Tools that take free text.
    pub(super) free_tools: BTreeSet<String>,
    /// Reasoning is told as a summary, since one was asked for.
    pub(super) summarise: bool,
    /// Log probabilities are told.
    pub(super) logprobs: bool,
}

impl<'a> Draft<'a> {
    /// Reads what can be read without the past.
    ///
    /// # Errors
    /// The request is none, or wants what no node does.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, ApiError> {
        let body = Body::parse(bytes).map_err(|e| {
            ApiError::new(400, "invalid_request_error", format!("the request body is not a JSON object: {e}"))
        })?;
        refuse_what_nobody_does(&body)?;
        let previous: Option<String> = optional(&body, "previous_response_id", "the id of a response")?;
        let mut items = Vec::new();
        let mut references = BTreeSet::new();
        if let Some(input) = body.raw("input") {
            read_input(input, &mut items, &mut references)?;
        }
        if items.is_empty() && previous.is_none() {
            let message =
                "'input' is missing; send text, or items such as [{\"role\":\"user\",\"content\":\"Hello\"}]";
            return Err(ApiError::invalid("input", message));
        }
        if references.len() > MAX_REFERENCES {
            return Err(ApiError::invalid("input", format!("more than {MAX_REFERENCES} item references")));
        }
        let store = optional(&body, "store", "true or false")?.unwrap_or(true);
        let stream = optional(&body, "stream", "true or false")?.unwrap_or(false);
        Ok(Self { body, previous, references, store, stream, items })
    }

    /// Makes a chat completion of it.
    ///
    /// # Errors
    /// A field is wrong; the error names it as the client wrote it.
    pub(super) fn translate(&self, past: &Past) -> Result<Translated, ApiError> {
        let mut warnings = Vec::new();
        let mut conversation = Conversation::default();
        let instructions: Option<Text<'_>> = optional(&self.body, "instructions", "text")?;
        if let Some(text) = instructions.as_ref().filter(|text| !text.0.is_empty()) {
            conversation.instruct(&text.0);
        }
        let own = self.own_items(past)?;
        if past.items.len() + own.len() > MAX_ITEMS {
            let message = format!("the conversation has more than {MAX_ITEMS} items; begin a new one");
            return Err(ApiError::invalid("input", message));
        }
        for (place, item) in past.items.iter().enumerate() {
            conversation.add(&format!("previous_response_id: item {place}"), item)?;
        }
        for (place, item) in own.iter().enumerate() {
            conversation.add(&format!("input[{place}]"), item)?;
        }
        let (messages, left_out) = conversation.finish();
        if messages.is_empty() {
            return Err(ApiError::invalid("input", "'input' holds nothing that a model could answer"));
        }
        warnings.extend(left_out.iter().map(|kind| format!("items of type '{kind}' were left out")));

        let mut chat = Object::default();
        chat.put_some("model", self.body.raw("model")).put("messages", &messages).put("stream", &self.stream);
        if self.stream {
            chat.put("stream_options", &json!({"include_usage": true}));
        }
        let tools = Tools::read(self.body.raw("tools"), self.body.raw("tool_choice"))?;
        if !tools.functions.is_empty() {
            chat.put("tools", &tools.functions).put_some("tool_choice", tools.choice.as_ref());
            chat.put_some("parallel_tool_calls", self.body.raw("parallel_tool_calls"));
        }
        warnings.extend(
            tools.left_out.iter().map(|kind| format!("the tool '{kind}' was left out: nobody runs it here")),
        );
        let format = self.settings(&mut chat, &mut warnings)?;
        let summarise = self.reasoning(&mut chat)?;
        let logprobs = self.logprobs(&mut chat)?;
        for name in self.body.names() {
            let Some(raw) = self.body.raw(name).filter(|_| !KNOWN.contains(&name)) else { continue };
            if ALIEN.contains(&name) {
                warnings.push(format!("'{name}' is no field of this API and was left out"));
            } else {
                chat.put(name, raw);
            }
        }
        let telling = Telling {
            model: optional(&self.body, "model", "the name of a model")?.unwrap_or_default(),
            echo: self.echo(format),
            free_tools: tools.free,
            summarise,
            logprobs,
        };
        let all: Vec<&RawValue> = past.items.iter().map(AsRef::as_ref).chain(own).collect();
        let input = to_raw_value(&all).expect("raw JSON serialises");
        Ok(Translated { body: chat.finish(), warnings, telling, input })
    }

    fn own_items<'b>(&'b self, past: &'b Past) -> Result<Vec<&'b RawValue>, ApiError> {
        let item = |(place, own): (usize, &'b Own<'a>)| match own {
            Own::Sent(raw) => Ok(*raw),
            Own::Made(raw) => Ok(raw.as_ref()),
            Own::Reference(id) => past.referred.get(id).map(AsRef::as_ref).ok_or_else(|| {
                let message = format!(
                    "the item that 'input[{place}]' refers to is not kept here; send the item itself"
                );
                let error = ApiError::new(404, "not_found", message);
                ApiError { param: Some(format!("input[{place}].id")), ..error }
            }),
        };
        self.items.iter().enumerate().map(item).collect()
    }

    /// Puts settings that only have another name in a chat; returns the format of the answer, as the client wrote it.
    fn settings(
        &self,
        chat: &mut Object,
        warnings: &mut Vec<String>,
    ) -> Result<Option<&'a RawValue>, ApiError> {
        #[derive(Deserialize)]
        struct TextSettings<'a> {
            #[serde(borrow)]
            format: Option<&'a RawValue>,
            #[serde(borrow)]
            verbosity: Option<&'a RawValue>,
        }
        if let Some(limit) = optional::<u64>(&self.body, "max_output_tokens", "a whole number of at least 1")?
        {
            if limit == 0 {
                return Err(ApiError::invalid(
                    "max_output_tokens",
                    "'max_output_tokens' is 0; it must be at least 1",
                ));
            }
            chat.put("max_tokens", &limit);
        }
        chat.put_some("metadata", self.body.raw("metadata"));
        if self.body.raw("truncation").is_some_and(|raw| raw.get() != "\"disabled\"") {
            warnings.push("'truncation' was left out: nothing of an input is dropped here".into());
        }
        if self.body.raw("context_management").is_some() {
            warnings.push("'context_management' was left out: nothing of an input is dropped here".into());
        }
        let Some(text) = optional::<TextSettings<'a>>(
            &self.body,
            "text",
            "an object such as {\"format\":{\"type\":\"text\"}}",
        )?
        else {
            return Ok(None);
        };
        chat.put_some("verbosity", text.verbosity);
        if let Some(format) = text.format
            && let Some(format) = response_format(format)?
        {
            chat.put("response_format", &format);
        }
        Ok(text.format)
    }

    /// Puts how hard to think; returns true when a summary of it is wanted.
    fn reasoning(&self, chat: &mut Object) -> Result<bool, ApiError> {
        #[derive(Deserialize)]
        struct Reasoning<'a> {
            #[serde(borrow)]
            effort: Option<&'a RawValue>,
            #[serde(borrow)]
            summary: Option<Text<'a>>,
            #[serde(borrow)]
            generate_summary: Option<Text<'a>>,
        }
        let reasoning: Option<Reasoning<'_>> =
            optional(&self.body, "reasoning", "an object such as {\"effort\":\"low\"}")?;
        let Some(reasoning) = reasoning else { return Ok(false) };
        chat.put_some("reasoning_effort", reasoning.effort);
        let summary = reasoning.summary.or(reasoning.generate_summary);
        Ok(summary.is_some_and(|summary| summary.0 != "none"))
    }

    /// Asks for log probabilities; returns true when they are wanted.
    fn logprobs(&self, chat: &mut Object) -> Result<bool, ApiError> {
        let include: Vec<Text<'_>> = optional(&self.body, "include", "a list of words")?.unwrap_or_default();
        let top: Option<u64> = optional(&self.body, "top_logprobs", "a whole number from 0 to 20")?;
        let wanted = include.iter().any(|word| word.0 == "message.output_text.logprobs")
            || top.is_some_and(|top| top > 0);
        if wanted {
            chat.put("logprobs", &true).put_some("top_logprobs", top.as_ref());
        }
        Ok(wanted)
    }

    fn echo(&self, format: Option<&RawValue>) -> Echo {
        let made = |value: Value| to_raw_value(&value).expect("a JSON value serialises");
        let sent_or =
            |name: &str, default: Value| self.body.raw(name).map_or_else(|| made(default), ToOwned::to_owned);
        let mut text = Object::default();
        let plain = made(json!({"type": "text"}));
        text.put("format", format.unwrap_or(&plain));
        if let Some(Ok(sent)) = self.body.raw("text").map(|raw| Body::parse(raw.get().as_bytes())) {
            text.put_some("verbosity", sent.raw("verbosity"));
        }
        let mut echo: Echo = vec![
            ("instructions", sent_or("instructions", Value::Null)),
            ("max_output_tokens", sent_or("max_output_tokens", Value::Null)),
            ("max_tool_calls", sent_or("max_tool_calls", Value::Null)),
            ("metadata", sent_or("metadata", json!({}))),
            ("parallel_tool_calls", sent_or("parallel_tool_calls", true.into())),
            ("previous_response_id", sent_or("previous_response_id", Value::Null)),
            ("reasoning", sent_or("reasoning", json!({"effort": null, "summary": null}))),
            ("text", text.into_raw()),
            ("tool_choice", sent_or("tool_choice", "auto".into())),
            ("tools", sent_or("tools", json!([]))),
            ("top_logprobs", sent_or("top_logprobs", 0.into())),
            ("truncation", made("disabled".into())),
        ];
        echo.extend(REPEATED.iter().map(|name| (*name, sent_or(name, Value::Null))));
        echo
    }
}

fn refuse_what_nobody_does(body: &Body<'_>) -> Result<(), ApiError> {
    let unsupported = |name: &str, message: &str| {
        Err(ApiError { param: Some(name.into()), ..ApiError::new(400, "unsupported", message) })
    };
    if body.raw("background").is_some_and(|raw| raw.get() != "false") {
        return unsupported(
            "background",
            "answers in the background are not given here; use \"stream\": true",
        );
    }
    if body.raw("conversation").is_some() {
        return unsupported("conversation", "conversations are not kept here; use 'previous_response_id'");
    }
    if body.raw("prompt").is_some() {
        return unsupported("prompt", "prompt templates are not kept here; send 'instructions' and 'input'");
    }
    Ok(())
}

fn read_input<'a>(
    input: &'a RawValue,
    items: &mut Vec<Own<'a>>,
    references: &mut BTreeSet<String>,
) -> Result<(), ApiError> {
    #[derive(Deserialize)]
    struct Reference<'a> {
        #[serde(borrow)]
        r#type: Option<Text<'a>>,
        #[serde(borrow)]
        role: Option<Text<'a>>,
        #[serde(borrow)]
        id: Option<Text<'a>>,
    }
    if let Ok(text) = serde_json::from_str::<Text<'_>>(input.get()) {
        let item =
            json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": text.0}]});
        items.push(Own::Made(to_raw_value(&item).expect("a JSON value serialises")));
        return Ok(());
    }
    let list: Vec<&'a RawValue> = serde_json::from_str(input.get())
        .map_err(|_| ApiError::invalid("input", "'input' must be text or a list of items"))?;
    for raw in list {
        let id = match serde_json::from_str::<Reference<'_>>(raw.get()) {
            Ok(Reference { r#type: Some(kind), id: Some(id), .. }) if kind.0 == "item_reference" => Some(id),
            // The SDKs may leave the type of a reference out.
            Ok(Reference { r#type: None, role: None, id: Some(id) }) => Some(id),
            _ => None,
        };
        items.push(match id {
            Some(id) => {
                references.insert(id.0.clone().into_owned());
                Own::Reference(id.0.into_owned())
            }
            None => Own::Sent(raw),
        });
    }
    Ok(())
}

/// Returns a chat's `response_format`; plain text has none.
fn response_format(raw: &RawValue) -> Result<Option<Box<RawValue>>, ApiError> {
    let wrong = |message: &str| ApiError::invalid("text.format", message);
    let format = Body::parse(raw.get().as_bytes()).map_err(|_| wrong("'text.format' must be an object"))?;
    let kind: Option<Text<'_>> = optional(&format, "type", "text, json_object or json_schema")?;
    match kind.as_ref().map_or("text", |kind| kind.0.as_ref()) {
        "text" => Ok(None),
        "json_object" => Ok(to_raw_value(&json!({"type": "json_object"})).ok()),
        "json_schema" => {
            if format.raw("schema").is_none() {
                return Err(wrong("'text.format.schema' is missing"));
            }
            let mut schema = Object::default();
            for name in ["name", "description", "schema", "strict"] {
                schema.put_some(name, format.raw(name));
            }
            let mut out = Object::default();
            out.put("type", "json_schema").put("json_schema", &schema.into_raw());
            Ok(Some(out.into_raw()))
        }
        _ => Err(wrong("'text.format.type' must be text, json_object or json_schema")),
    }
}
