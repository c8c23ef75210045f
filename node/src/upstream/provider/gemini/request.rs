//! From an OpenAI chat request to Gemini's `GenerateContentRequest`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Stop sequences that Gemini takes; dropping the rest would change the answer, so more is refused.
const MAX_STOPS: usize = 5;

/// Thinking budgets, in tokens, for OpenAI's words; as in Google's own compatibility layer.
const EFFORTS: [(&str, u32); 5] =
    [("none", 0), ("minimal", 512), ("low", 1024), ("medium", 8192), ("high", 24_576)];

/// A request that Gemini cannot be asked; the text names the field and quotes nothing of the prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// The body is no chat request.
    #[error("the request is not a chat request")]
    Malformed,
    /// A part of a message has no counterpart.
    #[error("Gemini takes no message part of type '{0}'")]
    Part(String),
    /// Gemini fetches nothing for others, and neither do we.
    #[error("for Gemini an image must be given as a data: URL")]
    RemoteImage,
    /// Too many stop sequences.
    #[error("Gemini takes at most {MAX_STOPS} stop sequences")]
    Stops,
    /// The result of a call that no message made.
    #[error("a tool message answers a call that no earlier message made")]
    UnknownCall,
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
    tool_calls: Option<Vec<ToolCall>>,
    tool_call_id: Option<String>,
}

#[derive(Deserialize)]
struct ToolCall {
    id: Option<String>,
    function: Function,
    #[serde(default)]
    extra_content: Value,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    arguments: Option<String>,
}

/// Translates a request.
pub(super) fn translate(body: &[u8]) -> Result<Value, Error> {
    let chat: Chat = serde_json::from_slice(body).map_err(|_| Error::Malformed)?;
    let (mut system, mut contents) = (Vec::new(), Contents::default());
    // Gemini answers a call by the function's name, OpenAI by the call's id.
    let mut called: BTreeMap<String, String> = BTreeMap::new();
    for message in chat.messages {
        match message.role.as_str() {
            "system" | "developer" => system.extend(parts(&message.content)?),
            "assistant" => {
                let mut parts = parts(&message.content)?;
                for call in message.tool_calls.unwrap_or_default() {
                    called.insert(call.id.clone().unwrap_or_default(), call.function.name.clone());
                    parts.push(function_call(call));
                }
                contents.push("model", parts);
            }
            "tool" => {
                let id = message.tool_call_id.unwrap_or_default();
                let name = called.get(&id).ok_or(Error::UnknownCall)?;
                contents.push("user", vec![function_response(name, &message.content)?]);
            }
            _ => contents.push("user", parts(&message.content)?),
        }
    }
    let mut out = json!({"contents": contents.0});
    if !system.is_empty() {
        out["systemInstruction"] = json!({"parts": system});
    }
    let config = generation_config(&chat.rest)?;
    if !config.is_empty() {
        out["generationConfig"] = config.into();
    }
    let functions = declarations(&chat.rest);
    if !functions.is_empty() {
        out["tools"] = json!([{"functionDeclarations": functions}]);
        if let Some(choice) = chat.rest.get("tool_choice").and_then(calling_config) {
            out["toolConfig"] = json!({"functionCallingConfig": choice});
        }
    }
    Ok(out)
}

/// Contents in which neighbours of one role are one entry, as Gemini wants parallel results to be.
#[derive(Default)]
struct Contents(Vec<Value>);

impl Contents {
    fn push(&mut self, role: &str, parts: Vec<Value>) {
        if parts.is_empty() {
            return;
        }
        match self.0.last_mut() {
            Some(last) if last["role"] == role => {
                if let Some(list) = last["parts"].as_array_mut() {
                    list.extend(parts);
                }
            }
            _ => self.0.push(json!({"role": role, "parts": parts})),
        }
    }
}

fn parts(content: &Value) -> Result<Vec<Value>, Error> {
    match content {
        Value::Null => Ok(Vec::new()),
        Value::String(text) if text.is_empty() => Ok(Vec::new()),
        Value::String(text) => Ok(vec![json!({"text": text})]),
        Value::Array(list) => list.iter().map(part).collect(),
        _ => Err(Error::Malformed),
    }
}

fn part(part: &Value) -> Result<Value, Error> {
    let kind = part["type"].as_str().ok_or(Error::Malformed)?;
    match kind {
        "text" => Ok(json!({"text": part["text"].as_str().ok_or(Error::Malformed)?})),
        "refusal" => Ok(json!({"text": part["refusal"].as_str().ok_or(Error::Malformed)?})),
        "image_url" => {
            let url = part["image_url"]["url"].as_str().ok_or(Error::Malformed)?;
            let (mime, data) = url
                .strip_prefix("data:")
                .and_then(|rest| rest.split_once(";base64,"))
                .ok_or(Error::RemoteImage)?;
            Ok(json!({"inlineData": {"mimeType": mime, "data": data}}))
        }
        "input_audio" => {
            let audio = &part["input_audio"];
            let format = audio["format"].as_str().ok_or(Error::Malformed)?;
            Ok(json!({"inlineData": {"mimeType": format!("audio/{format}"), "data": audio["data"]}}))
        }
        other => Err(Error::Part(other.chars().filter(|c| !c.is_control()).take(32).collect())),
    }
}

fn function_call(call: ToolCall) -> Value {
    // Arguments are text in OpenAI's form and may be what a model garbled; an object is all that Gemini takes.
    let arguments = call.function.arguments.unwrap_or_default();
    let args: Value = serde_json::from_str(&arguments).unwrap_or_default();
    let args = if args.is_object() { args } else { json!({}) };
    let mut part = json!({"functionCall": {"name": call.function.name, "args": args}});
    if let Some(signature) = call.extra_content["google"]["thought_signature"].as_str() {
        part["thoughtSignature"] = signature.into();
    }
    part
}

fn function_response(name: &str, content: &Value) -> Result<Value, Error> {
    let texts = parts(content)?;
    let text: String = texts.iter().filter_map(|part| part["text"].as_str()).collect();
    let parsed: Option<Value> = serde_json::from_str(&text).ok();
    let response = match parsed {
        Some(object @ Value::Object(_)) => object,
        Some(other) => json!({"result": other}),
        None => json!({"result": text}),
    };
    Ok(json!({"functionResponse": {"name": name, "response": response}}))
}

fn generation_config(rest: &Map<String, Value>) -> Result<Map<String, Value>, Error> {
    let mut config = Map::new();
    let known = |name: &str| rest.get(name).filter(|value| !value.is_null());
    for (ours, theirs) in [
        ("temperature", "temperature"),
        ("top_p", "topP"),
        ("top_k", "topK"),
        ("seed", "seed"),
        ("n", "candidateCount"),
        ("presence_penalty", "presencePenalty"),
        ("frequency_penalty", "frequencyPenalty"),
        ("top_logprobs", "logprobs"),
    ] {
        if let Some(value) = known(ours) {
            config.insert(theirs.to_owned(), value.clone());
        }
    }
    if let Some(limit) = known("max_completion_tokens").or_else(|| known("max_tokens")) {
        config.insert("maxOutputTokens".into(), limit.clone());
    }
    if known("logprobs").and_then(Value::as_bool) == Some(true) {
        config.insert("responseLogprobs".into(), true.into());
    } else {
        config.remove("logprobs");
    }
    if let Some(stop) = known("stop") {
        let stops = if stop.is_array() { stop.clone() } else { json!([stop]) };
        if stops.as_array().is_some_and(|list| list.len() > MAX_STOPS) {
            return Err(Error::Stops);
        }
        config.insert("stopSequences".into(), stops);
    }
    if let Some(format) = known("response_format") {
        match format["type"].as_str() {
            Some("json_object") => {
                config.insert("responseMimeType".into(), "application/json".into());
            }
            Some("json_schema") => {
                config.insert("responseMimeType".into(), "application/json".into());
                config.insert("responseJsonSchema".into(), format["json_schema"]["schema"].clone());
            }
            _ => {}
        }
    }
    let effort = known("reasoning_effort").and_then(Value::as_str);
    if let Some((_, budget)) = EFFORTS.iter().find(|(word, _)| Some(*word) == effort) {
        config.insert("thinkingConfig".into(), json!({"thinkingBudget": budget}));
    }
    Ok(config)
}

fn declarations(rest: &Map<String, Value>) -> Vec<Value> {
    let tools = rest.get("tools").and_then(Value::as_array).into_iter().flatten();
    tools
        .filter_map(|tool| tool.get("function"))
        .map(|function| {
            let mut out = json!({"name": function["name"]});
            if let Some(text) = function.get("description").filter(|d| d.is_string()) {
                out["description"] = text.clone();
            }
            if let Some(schema) = function.get("parameters").filter(|p| p.is_object()) {
                out["parametersJsonSchema"] = schema.clone();
            }
            out
        })
        .collect()
}

fn calling_config(choice: &Value) -> Option<Value> {
    match choice {
        Value::String(word) => match word.as_str() {
            "none" => Some(json!({"mode": "NONE"})),
            "required" => Some(json!({"mode": "ANY"})),
            _ => None,
        },
        Value::Object(_) => {
            let name = choice["function"]["name"].as_str()?;
            Some(json!({"mode": "ANY", "allowedFunctionNames": [name]}))
        }
        _ => None,
    }
}
