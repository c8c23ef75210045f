//! From a chat completion's body to the body of `/api/chat`; pure.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Bytes of a prompt's text that make at least one token: low, so that a window is rather too large.
const BYTES_PER_TOKEN: u32 = 3;
/// Tokens that an image takes in the models that Ollama runs, at most.
const TOKENS_PER_IMAGE: u32 = 1024;
/// Tokens kept for an answer of which no length is asked.
const ANSWER: u32 = 1024;

/// Fields of the body that mean the same number or list under `options`.
const OPTIONS: [&str; 8] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "repeat_penalty",
];
/// Fields that pass as they are.
const PASSED: [&str; 4] = ["tools", "keep_alive", "logprobs", "top_logprobs"];
/// Fields that only the OpenAI API of Ollama knows, or that at least it answers for.
const ELSEWHERE: [&str; 5] = ["logit_bias", "functions", "function_call", "audio", "prediction"];

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    content: Option<Value>,
    reasoning_content: Option<Value>,
    tool_calls: Option<Vec<Call>>,
    tool_call_id: Option<String>,
    name: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Call {
    id: Option<String>,
    function: Function,
}

#[derive(Debug, Deserialize)]
struct Function {
    name: String,
    arguments: Option<String>,
}

/// Translates a body; `None` where it says something that `/api/chat` cannot be told.
pub(super) fn translate(body: &[u8]) -> Option<Value> {
    let body: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let given = |name: &str| body.get(name).filter(|value| !value.is_null());
    if ELSEWHERE.iter().any(|name| given(name).is_some()) || given("n").is_some_and(|n| n != 1) {
        return None;
    }
    // It can call tools or not; a certain one cannot be demanded.
    let without_tools = match given("tool_choice") {
        None => false,
        Some(choice) => match choice.as_str()? {
            "auto" => false,
            "none" => true,
            _ => return None,
        },
    };
    let mut out = Map::new();
    out.insert("model".into(), given("model")?.clone());
    out.insert("stream".into(), json!(given("stream") == Some(&Value::Bool(true))));
    out.insert("messages".into(), messages(given("messages")?)?);
    for name in PASSED {
        if let Some(value) = given(name).filter(|_| !(without_tools && name == "tools")) {
            out.insert(name.into(), value.clone());
        }
    }
    if let Some(think) = given("think").cloned().or_else(|| given("reasoning_effort").map(think)) {
        out.insert("think".into(), think);
    }
    if let Some(format) = given("response_format") {
        match format["type"].as_str()? {
            "text" => {}
            "json_object" => drop(out.insert("format".into(), "json".into())),
            "json_schema" => drop(out.insert("format".into(), format["json_schema"]["schema"].clone())),
            _ => return None,
        }
    }
    let mut options = given("options").and_then(Value::as_object).cloned().unwrap_or_default();
    for name in OPTIONS {
        if let Some(value) = given(name) {
            options.insert(name.into(), value.clone());
        }
    }
    if let Some(most) = given("max_completion_tokens").or_else(|| given("max_tokens")) {
        options.insert("num_predict".into(), most.clone());
    }
    if let Some(stop) = given("stop") {
        options.insert("stop".into(), if stop.is_string() { json!([stop]) } else { stop.clone() });
    }
    out.insert("options".into(), options.into());
    Some(out.into())
}

/// Tells the effort in Ollama's way: off, or a level that models without levels take for "on". It knows three levels and
/// refuses any other word.
fn think(effort: &Value) -> Value {
    match effort.as_str() {
        Some("none") => false.into(),
        Some("minimal") => "low".into(),
        Some("xhigh") => "high".into(),
        Some("low" | "medium" | "high") => effort.clone(),
        _ => true.into(),
    }
}

fn messages(list: &Value) -> Option<Value> {
    let mut names = BTreeMap::new();
    let mut out = Vec::new();
    for raw in list.as_array()? {
        let message: Message = serde_json::from_value(raw.clone()).ok()?;
        let role = match &*message.role {
            "developer" => "system",
            "function" => "tool",
            role => role,
        };
        let (text, images) = content(message.content.as_ref())?;
        let mut told = json!({"role": role, "content": text});
        if !images.is_empty() {
            told["images"] = images.into();
        }
        if let Some(thinking) = message.reasoning_content.filter(Value::is_string) {
            told["thinking"] = thinking;
        }
        if let Some(calls) = message.tool_calls.filter(|calls| !calls.is_empty()) {
            let mut list = Vec::new();
            for Call { id, function } in calls {
                let arguments = function.arguments.filter(|text| !text.trim().is_empty());
                let arguments: Value = match arguments {
                    Some(text) => serde_json::from_str(&text).ok()?,
                    None => json!({}),
                };
                if let Some(id) = id {
                    names.insert(id, function.name.clone());
                }
                list.push(json!({"function": {"name": function.name, "arguments": arguments}}));
            }
            told["tool_calls"] = list.into();
        }
        let called = message.tool_call_id.as_ref().and_then(|id| names.get(id)).or(message.name.as_ref());
        if let Some(name) = called.filter(|_| role == "tool") {
            told["tool_name"] = name.as_str().into();
        }
        out.push(told);
    }
    Some(out.into())
}

/// Joins texts and gathers images; `None` for a part that has no place in Ollama's messages.
fn content(content: Option<&Value>) -> Option<(String, Vec<Value>)> {
    let parts = match content {
        None | Some(Value::Null) => return Some((String::new(), Vec::new())),
        Some(Value::String(text)) => return Some((text.clone(), Vec::new())),
        Some(parts) => parts.as_array()?,
    };
    let (mut texts, mut images) = (Vec::new(), Vec::new());
    for part in parts {
        match part["type"].as_str()? {
            "text" => texts.push(part["text"].as_str()?),
            "refusal" => texts.push(part["refusal"].as_str()?),
            "image_url" => {
                let url = part["image_url"]["url"].as_str()?;
                let (head, data) = url.split_once(',')?;
                if !(head.starts_with("data:") && head.ends_with(";base64")) {
                    return None;
                }
                images.push(data.into());
            }
            _ => return None,
        }
    }
    Some((texts.join("\n"), images))
}

/// Estimates the window that a translated body needs, tokens.
pub(super) fn tokens_needed(body: &Value) -> u32 {
    let text = |value: &Value| serde_json::to_string(value).map_or(0, |text| text.len());
    let (mut bytes, mut images) = (text(&body["tools"]), 0);
    for message in body["messages"].as_array().map_or(&[][..], Vec::as_slice) {
        bytes += message["content"].as_str().map_or(0, str::len) + text(&message["tool_calls"]);
        images += message["images"].as_array().map_or(0, Vec::len);
    }
    let number = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
    let answer =
        body["options"]["num_predict"].as_u64().map_or(ANSWER, |n| u32::try_from(n).unwrap_or(u32::MAX));
    (number(bytes) / BYTES_PER_TOKEN)
        .saturating_add(number(images).saturating_mul(TOKENS_PER_IMAGE))
        .saturating_add(answer)
}
