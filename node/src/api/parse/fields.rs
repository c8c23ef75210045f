//! Fields beside the messages that have bounds or must agree with one another, checked before anybody is asked.
//!
//! What is checked is passed on byte for byte. What OpenAI's API does not know is not looked at: an engine may.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::body::{Body, Text};
use super::super::error::ApiError;
use super::optional;
use crate::upstream::ApiPath;

/// Most stop sequences; engines differ between 4 and any number.
const MAX_STOPS: usize = 16;
/// Most answers to one prompt.
const MAX_N: u64 = 128;
/// Most tools of one request; OpenAI takes 128, and agents with many servers bring more.
const MAX_TOOLS: usize = 1024;
/// Longest name of a tool or a schema, bytes.
const MAX_NAME: usize = 128;
/// Longest `user`, characters: a hash or an address.
const MAX_USER: usize = 256;

/// What the fields say to the router.
pub(super) struct Fields {
    /// Answers wanted to one prompt.
    pub(super) answers: u64,
    /// The answer must follow a JSON schema.
    pub(super) schema: bool,
    /// Tools are offered.
    pub(super) tools: bool,
    /// Log probabilities are wanted.
    pub(super) logprobs: bool,
    /// Who asks, in the client's own words.
    pub(super) user: Option<String>,
}

/// Checks the fields of a request.
pub(super) fn check(path: ApiPath, body: &Body<'_>) -> Result<Fields, ApiError> {
    numbers(body)?;
    stops(body)?;
    for name in ["parallel_tool_calls", "store", "echo"] {
        optional::<bool>(body, name, "true or false")?;
    }
    optional::<Text<'_>>(body, "service_tier", "text such as \"auto\" or \"default\"")?;
    let user = optional::<Text<'_>>(body, "user", "text")?.map(|text| text.0.into_owned());
    if user.as_ref().is_some_and(|user| user.chars().count() > MAX_USER) {
        return Err(ApiError::invalid("user", format!("'user' has more than {MAX_USER} characters")));
    }
    if body.raw("logit_bias").is_some_and(|raw| !raw.get().starts_with('{')) {
        return Err(ApiError::invalid(
            "logit_bias",
            "'logit_bias' must be an object from token ids to numbers",
        ));
    }
    let tools = tools(body)?;
    let functions = functions(body)?;
    let chat = path == ApiPath::ChatCompletions;
    if chat {
        tool_choice(body, &tools)?;
        function_call(body, &functions)?;
    }
    Ok(Fields {
        answers: answers(body)?,
        schema: response_format(body)?,
        tools: !tools.is_empty() || !functions.is_empty(),
        logprobs: logprobs(chat, body)?,
        user,
    })
}

fn numbers(body: &Body<'_>) -> Result<(), ApiError> {
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
    // Engines use -1 for "any", so the sign is free; a fraction or a text is a mistake everywhere.
    optional::<i64>(body, "seed", "a whole number")?;
    Ok(())
}

fn answers(body: &Body<'_>) -> Result<u64, ApiError> {
    let n = optional::<u64>(body, "n", "a whole number of at least 1")?.unwrap_or(1);
    if !(1..=MAX_N).contains(&n) {
        return Err(ApiError::invalid("n", format!("'n' is {n}; it must lie between 1 and {MAX_N}")));
    }
    Ok(n)
}

fn stops(body: &Body<'_>) -> Result<(), ApiError> {
    let Some(raw) = body.raw("stop") else { return Ok(()) };
    let wrong = || ApiError::invalid("stop", "'stop' must be text or a list of texts");
    if raw.get().starts_with('"') {
        return Ok(());
    }
    let stops: Vec<Text<'_>> = serde_json::from_str(raw.get()).map_err(|_| wrong())?;
    if stops.len() > MAX_STOPS {
        return Err(ApiError::invalid("stop", format!("'stop' has more than {MAX_STOPS} entries")));
    }
    Ok(())
}

/// In a chat a switch with a number beside it, in a completion a number.
fn logprobs(chat: bool, body: &Body<'_>) -> Result<bool, ApiError> {
    let top = optional::<u64>(body, "top_logprobs", "a whole number from 0 to 20")?;
    if top.is_some_and(|top| top > 20) {
        return Err(ApiError::invalid("top_logprobs", "'top_logprobs' must lie between 0 and 20"));
    }
    if !chat {
        let wanted = body.raw("logprobs").is_some_and(|raw| raw.get() != "false");
        return Ok(wanted);
    }
    let wanted = optional::<bool>(body, "logprobs", "true or false")?.unwrap_or(false);
    if top.is_some() && !wanted {
        let message = "'top_logprobs' is allowed only with \"logprobs\": true";
        return Err(ApiError::invalid("top_logprobs", message));
    }
    Ok(wanted)
}

/// Checks the form that is asked for; true when the answer must follow a schema.
fn response_format(body: &Body<'_>) -> Result<bool, ApiError> {
    #[derive(Deserialize)]
    struct Format<'a> {
        #[serde(borrow)]
        r#type: Text<'a>,
        #[serde(borrow)]
        json_schema: Option<&'a RawValue>,
        #[serde(borrow)]
        schema: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Schema<'a> {
        #[serde(borrow)]
        name: Text<'a>,
        #[serde(borrow)]
        schema: Option<&'a RawValue>,
    }
    let wrong = |at: &str, message: &str| Err(ApiError::invalid(format!("response_format{at}"), message));
    let Some(raw) = body.raw("response_format") else { return Ok(false) };
    let Ok(format) = serde_json::from_str::<Format<'_>>(raw.get()) else {
        return wrong(
            "",
            "'response_format' must be an object with a 'type', such as {\"type\": \"json_object\"}",
        );
    };
    let is_object =
        |raw: Option<&RawValue>| raw.is_none_or(|raw| raw.get().starts_with('{') || raw.get() == "null");
    match &*format.r#type.0 {
        "text" => Ok(false),
        // llama.cpp and others take a schema here.
        "json_object" if !is_object(format.schema) => {
            wrong(".schema", "'response_format.schema' must be a JSON schema, an object")
        }
        "json_object" => Ok(format.schema.is_some()),
        "json_schema" => {
            let schema =
                format.json_schema.and_then(|raw| serde_json::from_str::<Schema<'_>>(raw.get()).ok());
            let Some(schema) = schema else {
                let message = "'response_format.json_schema' must be an object with a 'name' and a 'schema'";
                return wrong(".json_schema", message);
            };
            if !is_name(&schema.name.0) {
                let message =
                    "'response_format.json_schema.name' must have 1 to 128 letters, digits, '_', '-' or '.'";
                return wrong(".json_schema.name", message);
            }
            if !is_object(schema.schema) {
                let message = "'response_format.json_schema.schema' must be a JSON schema, an object";
                return wrong(".json_schema.schema", message);
            }
            Ok(true)
        }
        // Engines have forms of their own, such as grammars.
        _ => Ok(false),
    }
}

fn is_name(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(fits)
}

#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    name: Option<Text<'a>>,
}

/// A tool, or a choice of one; what carries the name depends on its type.
#[derive(Deserialize)]
struct Tool<'a> {
    #[serde(borrow)]
    r#type: Option<Text<'a>>,
    #[serde(borrow)]
    function: Option<Named<'a>>,
    #[serde(borrow)]
    custom: Option<Named<'a>>,
}

impl Tool<'_> {
    fn is(&self, kind: &str) -> bool {
        self.r#type.as_ref().is_some_and(|t| t.0 == kind)
    }

    fn name(&self) -> Option<&str> {
        let named = self.function.as_ref().or(self.custom.as_ref())?;
        named.name.as_ref().map(|name| &*name.0)
    }
}

fn tools<'a>(body: &Body<'a>) -> Result<Vec<Tool<'a>>, ApiError> {
    let Some(raw) = body.raw("tools") else { return Ok(Vec::new()) };
    let list: Vec<&'a RawValue> = serde_json::from_str(raw.get())
        .map_err(|_| ApiError::invalid("tools", "'tools' must be a list of objects with a 'type'"))?;
    if list.len() > MAX_TOOLS {
        return Err(ApiError::invalid("tools", format!("'tools' has more than {MAX_TOOLS} entries")));
    }
    let tool = |(at, raw): (usize, &'a RawValue)| {
        let wrong = |what: &str| ApiError::invalid(format!("tools[{at}]"), format!("'tools[{at}]' {what}"));
        let tool: Tool<'a> =
            serde_json::from_str(raw.get()).map_err(|_| wrong("must be an object with a 'type'"))?;
        if tool.is("function") && tool.name().is_none_or(str::is_empty) {
            return Err(wrong("has no 'function.name'; give the function a name"));
        }
        Ok(tool)
    };
    list.into_iter().enumerate().map(tool).collect()
}

/// The choice must be one that the tools leave: else the engine refuses, or makes up a call.
fn tool_choice(body: &Body<'_>, tools: &[Tool<'_>]) -> Result<(), ApiError> {
    let wrong = |message: String| Err(ApiError::invalid("tool_choice", message));
    let Some(raw) = body.raw("tool_choice") else { return Ok(()) };
    let text = raw.get();
    if text.starts_with('"') {
        let word: Text<'_> = serde_json::from_str(text).unwrap_or(Text("".into()));
        return match &*word.0 {
            "none" | "auto" => Ok(()),
            "required" if tools.is_empty() => {
                wrong("'tool_choice' is \"required\", but there are no tools".into())
            }
            "required" => Ok(()),
            other => {
                let shown: String = other.chars().take(32).collect();
                wrong(format!(
                    "'tool_choice' is '{shown}'; it must be \"none\", \"auto\", \"required\" or name a tool as \
                     {{\"type\": \"function\", \"function\": {{\"name\": …}}}}"
                ))
            }
        };
    }
    let Ok(choice) = serde_json::from_str::<Tool<'_>>(text) else {
        return wrong("'tool_choice' must be text or an object with a 'type'".into());
    };
    if !choice.is("function") && !choice.is("custom") {
        return Ok(());
    }
    match choice.name() {
        None => wrong("'tool_choice' names no tool; say which in 'tool_choice.function.name'".into()),
        Some(name) if tools.iter().any(|tool| tool.name() == Some(name)) => Ok(()),
        Some(name) => {
            let shown: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
            let known: Vec<&str> = tools.iter().filter_map(Tool::name).take(8).collect();
            wrong(format!("'tool_choice' names '{shown}', which is none of the tools: {}", known.join(", ")))
        }
    }
}

/// The older form of tools.
fn functions<'a>(body: &Body<'a>) -> Result<Vec<Named<'a>>, ApiError> {
    let Some(raw) = body.raw("functions") else { return Ok(Vec::new()) };
    serde_json::from_str(raw.get())
        .map_err(|_| ApiError::invalid("functions", "'functions' must be a list of objects with a 'name'"))
}

fn function_call(body: &Body<'_>, functions: &[Named<'_>]) -> Result<(), ApiError> {
    let Some(raw) = body.raw("function_call").filter(|raw| raw.get().starts_with('{')) else { return Ok(()) };
    let named: Option<Named<'_>> = serde_json::from_str(raw.get()).ok();
    let name = named.and_then(|named| named.name);
    let is_known = |name: &Text<'_>| functions.iter().any(|f| f.name.as_ref().is_some_and(|n| n.0 == name.0));
    if name.as_ref().is_some_and(is_known) {
        return Ok(());
    }
    Err(ApiError::invalid("function_call", "'function_call' names a function that 'functions' does not have"))
}
