//! From an OpenAI chat request to a request of the Responses API.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::upstream::provider::Model;
use crate::upstream::provider::openai::SAMPLING;

/// Shortest limit on an answer that the API takes, tokens.
const MIN_OUTPUT: u64 = 16;

/// Fields that mean the same in both APIs.
const SAME: [&str; 9] = [
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "metadata",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "service_tier",
    "stream",
];

/// A request that the API cannot be asked; the text names the field and quotes nothing of the prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// The body is no chat request.
    #[error("the request is not a chat request")]
    Malformed,
    /// A part of a message has no counterpart.
    #[error("this model takes no message part of type '{0}'")]
    Part(String),
    /// A field has no counterpart, and leaving it out would change the answer.
    #[error("this model takes no '{0}'")]
    Field(&'static str),
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Message>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Value,
    // Clients write `null` for what a message does not have.
    tool_calls: Option<Vec<Value>>,
    tool_call_id: Option<String>,
}

/// Translates a request for `model`.
pub(super) fn translate(body: &[u8], model: &Model) -> Result<Value, Error> {
    let Chat { messages, rest } = serde_json::from_slice(body).map_err(|_| Error::Malformed)?;
    let known = |name: &str| rest.get(name).filter(|value| !value.is_null());
    if known("stop").is_some_and(|stop| *stop != json!([])) {
        return Err(Error::Field("stop"));
    }
    if known("n").is_some_and(|n| *n != 1) {
        return Err(Error::Field("n"));
    }
    if known("functions").is_some() {
        return Err(Error::Field("functions"));
    }
    let mut input = Vec::new();
    for message in messages {
        items(message, &mut input)?;
    }
    let mut out = json!({"model": &*model.name, "input": input, "store": false});
    for name in SAME {
        let refused = !model.traits.sampling && SAMPLING.contains(&name);
        if let Some(value) = known(name).filter(|_| !refused) {
            out[name] = value.clone();
        }
    }
    let limit = known("max_completion_tokens").or_else(|| known("max_tokens")).and_then(Value::as_u64);
    if let Some(limit) = limit {
        out["max_output_tokens"] = limit.max(MIN_OUTPUT).into();
    }
    if let Some(effort) = known("reasoning_effort") {
        out["reasoning"] = json!({"effort": effort});
    }
    let mut text = Map::new();
    if let Some(format) = known("response_format") {
        text.insert("format".into(), text_format(format));
    }
    if let Some(verbosity) = known("verbosity") {
        text.insert("verbosity".into(), verbosity.clone());
    }
    if !text.is_empty() {
        out["text"] = text.into();
    }
    if known("logprobs").and_then(Value::as_bool) == Some(true) {
        out["include"] = json!(["message.output_text.logprobs"]);
        out["top_logprobs"] = known("top_logprobs").cloned().unwrap_or(0.into());
    }
    tools(&mut out, &rest);
    Ok(out)
}

fn items(message: Message, input: &mut Vec<Value>) -> Result<(), Error> {
    match message.role.as_str() {
        "assistant" => {
            let content = parts(&message.content, "output_text")?;
            if !content.is_empty() {
                input.push(json!({"type": "message", "role": "assistant", "content": content}));
            }
            for call in message.tool_calls.unwrap_or_default() {
                let function = &call["function"];
                let arguments = Some(&function["arguments"]).filter(|text| !text.is_null());
                input.push(json!({"type": "function_call", "call_id": call["id"],
                    "name": function["name"], "arguments": arguments.unwrap_or(&json!("{}"))}));
            }
        }
        "tool" => {
            let output = match &message.content {
                Value::String(text) => json!(text),
                other => parts(other, "input_text")?.into(),
            };
            let id = message.tool_call_id.unwrap_or_default();
            input.push(json!({"type": "function_call_output", "call_id": id, "output": output}));
        }
        role => {
            let content = parts(&message.content, "input_text")?;
            input.push(json!({"type": "message", "role": role, "content": content}));
        }
    }
    Ok(())
}

/// Translates content; `text` is what the API calls a text in this place.
fn parts(content: &Value, text: &str) -> Result<Vec<Value>, Error> {
    match content {
        Value::Null => Ok(Vec::new()),
        Value::String(said) if said.is_empty() => Ok(Vec::new()),
        Value::String(said) => Ok(vec![json!({"type": text, "text": said})]),
        Value::Array(list) => list.iter().map(|part| self::part(part, text)).collect(),
        _ => Err(Error::Malformed),
    }
}

fn part(part: &Value, text: &str) -> Result<Value, Error> {
    let kind = part["type"].as_str().ok_or(Error::Malformed)?;
    match kind {
        "text" => Ok(json!({"type": text, "text": part["text"]})),
        "refusal" => Ok(json!({"type": "refusal", "refusal": part["refusal"]})),
        "image_url" => {
            let image = &part["image_url"];
            let mut out = json!({"type": "input_image", "image_url": image["url"]});
            if let Some(detail) = image.get("detail") {
                out["detail"] = detail.clone();
            }
            Ok(out)
        }
        "file" if part["file"].is_object() => {
            let mut out = part["file"].clone();
            out["type"] = "input_file".into();
            Ok(out)
        }
        other => Err(Error::Part(other.chars().filter(|c| !c.is_control()).take(32).collect())),
    }
}

fn text_format(format: &Value) -> Value {
    let schema = format.get("json_schema").filter(|schema| schema.is_object());
    let mut out = match schema.filter(|_| format["type"] == "json_schema") {
        Some(schema) => schema.clone(),
        None => json!({}),
    };
    out["type"] = format["type"].clone();
    out
}

fn tools(out: &mut Value, rest: &Map<String, Value>) {
    let offered = rest.get("tools").and_then(Value::as_array).into_iter().flatten();
    let tools: Vec<Value> = offered
        .filter_map(|tool| tool.get("function").filter(|function| function.is_object()))
        .map(|function| {
            let mut out = function.clone();
            out["type"] = "function".into();
            // A chat's tools are not strict unless they say so; here they would be.
            if !function["strict"].is_boolean() {
                out["strict"] = false.into();
            }
            out
        })
        .collect();
    if tools.is_empty() {
        return;
    }
    out["tools"] = tools.into();
    match rest.get("tool_choice") {
        Some(word @ Value::String(_)) => out["tool_choice"] = word.clone(),
        Some(choice) if choice["function"]["name"].is_string() => {
            out["tool_choice"] = json!({"type": "function", "name": choice["function"]["name"]});
        }
        _ => {}
    }
}
