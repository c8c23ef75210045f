//! What an answer may be asked to be, and the grammar that says so: JSON of a schema, calls of tools, either of them.
//!
//! Grammars are written in llguidance's Lark dialect. Schemas stay schemas inside it (`%json`), each with a root of its
//! own, so that `$ref` finds its definitions. Whitespace between JSON's parts is a single space or one indented line:
//! small models that may write any of it write nothing else until the limit.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::Error;
use crate::calls::{CallFormat, MAX_CALLS, arguments};
use crate::tokenizer::Tokenizer;

/// Bytes of all schemas of a request together, as JSON.
const MAX_SCHEMA_BYTES: usize = 256 << 10;

/// Bytes of a regular expression in a schema.
const MAX_PATTERN_BYTES: usize = 1 << 10;

/// Tools of a request.
const MAX_TOOLS: usize = 128;

/// Characters of a tool's name, as in the OpenAI API.
const MAX_NAME: usize = 64;

/// Whitespace between the parts of JSON; at most one match in a place.
const WHITESPACE: &str = r"\x20|\x0A\x20{0,32}";

/// Numbers up to here are exact in every reader of JSON (2^53 - 1).
const LARGEST_NUMBER: i64 = 9_007_199_254_740_991;

/// JSON that an answer must be.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonForm {
    /// The JSON schema.
    pub schema: Value,
    /// Refuses a schema with parts that cannot be enforced; otherwise those parts are left out.
    pub strict: bool,
}

impl JsonForm {
    /// Any JSON object.
    pub fn any_object() -> Self {
        let value = json!({ "$ref": "#/$defs/value" });
        let object = json!({ "type": "object", "additionalProperties": value });
        let plain = ["null", "boolean", "number", "string"].map(|kind| json!({ "type": kind }));
        let mut kinds = plain.to_vec();
        kinds.extend([json!({ "type": "array", "items": value }), object.clone()]);
        let mut schema = object;
        schema["$defs"] = json!({ "value": { "anyOf": kinds } });
        Self { schema, strict: true }
    }
}

/// A tool that an answer may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name: letters, digits, `_` and `-`, up to 64.
    pub name: String,
    /// JSON schema of its arguments; `null` takes any object.
    pub parameters: Value,
    /// As in [`JsonForm`].
    pub strict: bool,
}

/// Which calls an answer may hold.
#[derive(Debug, Clone, PartialEq)]
pub struct CallRules {
    /// The tools that may be called; calls of others are text.
    pub tools: Vec<Tool>,
    /// The answer must be calls and nothing else.
    pub required: bool,
    /// More than one call may be made.
    pub parallel: bool,
}

/// A grammar, and the token from which on it holds if not from the start.
pub(crate) struct Grammar {
    pub(crate) text: String,
    pub(crate) trigger: Option<u32>,
}

/// Writes the grammar of an answer; `None` if its text is free.
///
/// Calls that a model may make or not are held to their form from the marker that opens one; in a format without
/// markers they are free, since nothing tells a call's first token from text.
pub(crate) fn grammar(
    json: Option<&JsonForm>,
    calls: Option<&CallRules>,
    format: Option<CallFormat>,
    tokenizer: &Tokenizer,
) -> Result<Option<Grammar>, Error> {
    check(json, calls)?;
    let mut rules = String::new();
    if let Some(form) = json {
        writeln!(rules, "json: {}", json_rule(&form.schema, form.strict)).map_err(written)?;
    }
    let format = match (calls, format) {
        (Some(calls), Some(format)) => Some((calls, format)),
        (Some(CallRules { required: true, .. }), None) => {
            return Err(Error::Form("it is not known how this model calls tools".to_owned()));
        }
        _ => None,
    };
    let Some((calls, format)) = format else {
        let text = format!("start: json\n{rules}");
        return Ok(json.map(|_| Grammar { text, trigger: None }));
    };
    let trigger = format.markers().and_then(|(open, _)| tokenizer.id_of(open));
    if json.is_none() && !calls.required && trigger.is_none() {
        return Ok(None);
    }
    call_rules(&mut rules, calls, format, tokenizer)?;
    let more = MAX_CALLS - 1;
    let list = match (calls.parallel, format) {
        (false, _) | (true, CallFormat::Llama) => "calls: call\n".to_owned(),
        (true, CallFormat::Hermes) => format!("calls: call (\"\\n\" call){{0,{more}}}\n"),
        (true, CallFormat::FunctionGemma) => format!("calls: call{{1,{MAX_CALLS}}}\n"),
    };
    let (start, trigger) = match json {
        Some(_) if calls.required => ("start: calls\n", None),
        Some(_) => ("start: json | calls\n", None),
        None if calls.required => ("start: calls\n", None),
        None => ("start: call\n", trigger),
    };
    let list = if trigger.is_some() { String::new() } else { list };
    Ok(Some(Grammar { text: format!("{start}{list}{rules}"), trigger }))
}

fn call_rules(
    rules: &mut String,
    calls: &CallRules,
    format: CallFormat,
    tokenizer: &Tokenizer,
) -> Result<(), Error> {
    let names = (0..calls.tools.len()).map(|index| format!("tool{index}")).collect::<Vec<_>>().join(" | ");
    let marker = |text: &str| match tokenizer.id_of(text) {
        Some(id) => format!("<[{id}]>"),
        None => literal(text),
    };
    match format.markers() {
        Some((open, close)) => {
            let gap = if format == CallFormat::Hermes { "\"\\n\"" } else { "" };
            writeln!(rules, "call: {} {gap} ({names}) {gap} {}", marker(open), marker(close))
        }
        None => writeln!(rules, "call: {names}"),
    }
    .map_err(written)?;
    for (index, tool) in calls.tools.iter().enumerate() {
        let key = match format {
            CallFormat::Hermes => "arguments",
            CallFormat::Llama => "parameters",
            CallFormat::FunctionGemma => {
                let start = literal(&format!("call:{}", tool.name));
                writeln!(rules, "tool{index}: {start} tool{index}_0").map_err(written)?;
                let escape = marker(CallFormat::ESCAPE);
                arguments::rules(rules, &format!("tool{index}"), &escape, tool)?;
                continue;
            }
        };
        let start = literal(&format!("{{\"name\": \"{}\", \"{key}\": ", tool.name));
        let schema = json_rule(&object(&tool.parameters), tool.strict);
        writeln!(rules, "tool{index}: {start} tool{index}_0 \"}}\"\ntool{index}_0: {schema}")
            .map_err(written)?;
    }
    Ok(())
}

fn check(json: Option<&JsonForm>, calls: Option<&CallRules>) -> Result<(), Error> {
    let tools = calls.map(|calls| calls.tools.as_slice()).unwrap_or_default();
    if calls.is_some() && tools.is_empty() || tools.len() > MAX_TOOLS {
        return Err(Error::Form(format!("it takes 1 to {MAX_TOOLS} tools, not {}", tools.len())));
    }
    let named = |name: &str| {
        (1..=MAX_NAME).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    };
    if tools.iter().any(|tool| !named(&tool.name)) {
        let message = format!("a tool's name is 1 to {MAX_NAME} letters, digits, '_' and '-'");
        return Err(Error::InvalidRequest(message));
    }
    let schemas = tools.iter().map(|tool| &tool.parameters).chain(json.map(|form| &form.schema));
    let mut bytes = 0;
    for schema in schemas {
        bytes += schema.to_string().len();
        if bytes > MAX_SCHEMA_BYTES {
            return Err(Error::Form(format!("its schemas are larger than {} KiB", MAX_SCHEMA_BYTES >> 10)));
        }
        if !schema.is_object() && !schema.is_null() {
            return Err(Error::InvalidRequest("a schema must be an object".to_owned()));
        }
        if longest_pattern(schema) > MAX_PATTERN_BYTES {
            return Err(Error::Form(format!(
                "a pattern in its schema is longer than {MAX_PATTERN_BYTES} bytes"
            )));
        }
    }
    Ok(())
}

fn longest_pattern(schema: &Value) -> usize {
    match schema {
        Value::Object(members) => members.iter().fold(0, |longest, (key, value)| {
            let own = match value {
                Value::String(text) if key == "pattern" => text.len(),
                Value::Object(patterns) if key == "patternProperties" => {
                    patterns.keys().map(String::len).max().unwrap_or(0)
                }
                _ => 0,
            };
            longest.max(own).max(longest_pattern(value))
        }),
        Value::Array(items) => items.iter().map(longest_pattern).max().unwrap_or(0),
        _ => 0,
    }
}

fn json_rule(schema: &Value, strict: bool) -> String {
    let mut schema = if schema.is_object() { schema.clone() } else { json!({}) };
    let closes = !combines(&schema);
    narrow(&mut schema, closes);
    // The request's own options of the library, if it names any, are replaced. Of alternatives one must fit; that no
    // other does as well (`oneOf`) cannot be said by a grammar.
    schema["x-guidance"] =
        json!({ "whitespace_pattern": WHITESPACE, "lenient": !strict, "coerce_one_of": true });
    format!("%json {schema}")
}

/// The schema of a tool's arguments: they are an object, whatever it says.
fn object(parameters: &Value) -> Value {
    let mut schema = parameters.as_object().cloned().unwrap_or_default();
    if !["type", "$ref", "anyOf", "oneOf", "allOf"].iter().any(|key| schema.contains_key(*key)) {
        schema.insert("type".to_owned(), json!("object"));
    }
    Value::Object(schema)
}

/// Narrows a schema where it leaves more open than a small model can stand; an answer that fits still fits the original.
///
/// Members that it does not name are left out where it says nothing of them (`closes`), since a model that may invent
/// members does not stop to. Numbers without a bound stay within [`LARGEST_NUMBER`].
fn narrow(schema: &mut Value, closes: bool) {
    let Some(members) = schema.as_object_mut() else { return };
    for key in ["items", "additionalProperties"] {
        if let Some(inner @ Value::Object(_)) = members.get_mut(key) {
            narrow(inner, closes);
        }
    }
    for key in ["properties", "patternProperties", "$defs", "definitions"] {
        if let Some(Value::Object(inner)) = members.get_mut(key) {
            inner.values_mut().for_each(|inner| narrow(inner, closes));
        }
    }
    for key in ["anyOf", "oneOf", "allOf", "prefixItems"] {
        if let Some(Value::Array(inner)) = members.get_mut(key) {
            inner.iter_mut().for_each(|inner| narrow(inner, closes));
        }
    }
    let has = |keys: &[&str]| keys.iter().any(|key| members.contains_key(*key));
    if closes
        && !has(&["additionalProperties", "patternProperties", "minProperties"])
        && names_its_members(members)
    {
        members.insert("additionalProperties".to_owned(), json!(false));
    }
    bound_numbers(members);
}

/// Says whether parts of the schema hold together for one value; then closing one would shut out what another names.
fn combines(schema: &Value) -> bool {
    match schema {
        Value::Object(members) => {
            let has = |key: &str| members.contains_key(key);
            has("allOf")
                || has("properties") && (has("anyOf") || has("oneOf") || has("$ref"))
                || members.values().any(combines)
        }
        Value::Array(items) => items.iter().any(combines),
        _ => false,
    }
}

/// Gives numbers a bound where the schema gives none; a number of a thousand digits is JSON, and no reader takes it.
fn bound_numbers(schema: &mut Map<String, Value>) {
    let is_number = |kind: &Value| kind == "number" || kind == "integer";
    let numbers = match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(is_number),
        Some(kind) => is_number(kind),
        None => false,
    };
    if !numbers || schema.contains_key("enum") || schema.contains_key("const") {
        return;
    }
    let given = |keys: [&str; 2]| keys.iter().find_map(|key| schema.get(*key)?.as_f64());
    let least = given(["minimum", "exclusiveMinimum"]);
    let most = given(["maximum", "exclusiveMaximum"]);
    let largest = LARGEST_NUMBER as f64;
    if least.is_none() && most.is_none_or(|most| most > -largest) {
        schema.insert("minimum".to_owned(), json!(-LARGEST_NUMBER));
    }
    if most.is_none() && least.is_none_or(|least| least < largest) {
        schema.insert("maximum".to_owned(), json!(LARGEST_NUMBER));
    }
}

fn names_its_members(schema: &Map<String, Value>) -> bool {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return false };
    let required = schema.get("required").and_then(Value::as_array);
    let known = |name: &Value| name.as_str().is_some_and(|name| properties.contains_key(name));
    !properties.is_empty() && required.is_none_or(|required| required.iter().all(known))
}

/// A text as a literal of the grammar.
pub(crate) fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// Writing to a string cannot fail; the error is passed on rather than assumed away.
pub(crate) fn written(error: std::fmt::Error) -> Error {
    Error::Compute(error.to_string())
}
