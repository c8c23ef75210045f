//! The part of an OpenAI request that a stub reads, checked as the real servers check it.

use serde_json::Value;

/// Which of the generating paths was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    Chat,
    Completion,
    Gemini,
    Messages,
    Responses,
    Ollama,
}

impl Path {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Path::Chat => "/v1/chat/completions",
            Path::Completion => "/v1/completions",
            Path::Gemini => "/v1beta/models",
            Path::Messages => "/v1/messages",
            Path::Responses => "/v1/responses",
            Path::Ollama => "/api/chat",
        }
    }
}

/// A tool of the request: its name and the schema of its arguments.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tool {
    pub(super) name: String,
    pub(super) parameters: Value,
}

/// A checked request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Request {
    pub(super) path: Path,
    pub(super) model: String,
    /// Text of the last user message, or the prompt: what the answer's words are bound to.
    pub(super) prompt: String,
    /// Words in the whole input: the stub's idea of prompt tokens.
    pub(super) prompt_tokens: usize,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) max_tokens: Option<usize>,
    pub(super) stop: Vec<String>,
    pub(super) n: usize,
    /// `Some(k)`: logprobs asked for, with `k` alternatives.
    pub(super) logprobs: Option<usize>,
    /// Text of the assistant's last message, to be gone on with (`continue_final_message`).
    pub(super) continued: Option<String>,
    pub(super) tools: Vec<Tool>,
    /// `tool_choice` demands a call; of this tool, if it names one.
    pub(super) must_call: Option<Option<String>>,
    /// The client wants no thoughts.
    pub(super) no_thoughts: bool,
    pub(super) fields: Vec<String>,
}

/// Why a request is refused: the message and the field at fault.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) String, pub(super) Option<&'static str>);

impl Request {
    pub(super) fn parse(path: Path, body: &[u8]) -> Result<Self, Refusal> {
        let body: Value = serde_json::from_slice(body).map_err(|error| {
            Refusal(format!("We could not parse the JSON body of your request: {error}"), None)
        })?;
        let Value::Object(map) = &body else {
            return Err(Refusal("The body must be a JSON object.".into(), None));
        };
        let model = body["model"].as_str().ok_or_else(|| wrong("model", "a string"))?.to_owned();
        let (prompt, prompt_tokens) = match path {
            Path::Chat | Path::Ollama => chat_prompt(&body["messages"])?,
            _ => completion_prompt(&body["prompt"])?,
        };
        let mut fields: Vec<String> = map.keys().cloned().collect();
        fields.sort();
        Ok(Self {
            path,
            model,
            prompt,
            prompt_tokens,
            stream: boolean(&body, "stream")?,
            include_usage: body["stream_options"]["include_usage"].as_bool().unwrap_or(false),
            max_tokens: positive(&body, "max_completion_tokens")?.or(positive(&body, "max_tokens")?),
            stop: stop(&body["stop"])?,
            n: positive(&body, "n")?.unwrap_or(1).min(16),
            logprobs: logprobs(path, &body)?,
            continued: continued(&body)?,
            tools: tools(&body["tools"])?,
            must_call: must_call(&body["tool_choice"]),
            no_thoughts: body["reasoning_effort"] == "none" || body["think"] == false,
            fields,
        })
    }
}

fn wrong(field: &'static str, want: &str) -> Refusal {
    Refusal(format!("Invalid value for '{field}': expected {want}."), Some(field))
}

fn boolean(body: &Value, field: &'static str) -> Result<bool, Refusal> {
    match &body[field] {
        Value::Null => Ok(false),
        Value::Bool(value) => Ok(*value),
        _ => Err(wrong(field, "a boolean")),
    }
}

fn positive(body: &Value, field: &'static str) -> Result<Option<usize>, Refusal> {
    match &body[field] {
        Value::Null => Ok(None),
        value => match value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0) {
            Some(n) => Ok(Some(n)),
            None => Err(wrong(field, "a positive integer")),
        },
    }
}

fn text_of(content: &Value) -> Result<String, Refusal> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Null => Ok(String::new()),
        Value::Array(parts) => {
            Ok(parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n"))
        }
        _ => Err(wrong("messages", "text or parts as content")),
    }
}

fn chat_prompt(messages: &Value) -> Result<(String, usize), Refusal> {
    let messages = messages.as_array().ok_or_else(|| wrong("messages", "an array"))?;
    if messages.is_empty() {
        return Err(Refusal("'messages' must not be empty.".into(), Some("messages")));
    }
    let (mut prompt, mut tokens) = (String::new(), 0);
    for message in messages {
        let role = message["role"].as_str().ok_or_else(|| wrong("messages", "a role in each message"))?;
        let text = text_of(&message["content"])?;
        tokens += 4 + text.split_whitespace().count();
        if role == "user" {
            prompt = text;
        }
    }
    Ok((prompt, tokens))
}

fn continued(body: &Value) -> Result<Option<String>, Refusal> {
    if !boolean(body, "continue_final_message")? {
        return Ok(None);
    }
    if body["add_generation_prompt"] != false {
        return Err(wrong("add_generation_prompt", "false beside continue_final_message"));
    }
    let last = body["messages"].as_array().and_then(|messages| messages.last());
    match last.filter(|message| message["role"] == "assistant") {
        Some(message) => text_of(&message["content"]).map(Some),
        None => Err(wrong("continue_final_message", "an assistant's message to go on with")),
    }
}

fn completion_prompt(prompt: &Value) -> Result<(String, usize), Refusal> {
    let text = match prompt {
        Value::String(text) => text,
        Value::Array(parts) if parts.len() == 1 => {
            parts[0].as_str().ok_or_else(|| wrong("prompt", "a string"))?
        }
        _ => return Err(wrong("prompt", "a string")),
    };
    Ok((text.to_owned(), text.split_whitespace().count()))
}

fn stop(stop: &Value) -> Result<Vec<String>, Refusal> {
    let words = match stop {
        Value::Null => Vec::new(),
        Value::String(word) => vec![word.clone()],
        Value::Array(words) if words.len() <= 4 => words
            .iter()
            .map(|word| word.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or_else(|| wrong("stop", "strings"))?,
        _ => return Err(wrong("stop", "a string or up to four strings")),
    };
    Ok(words.into_iter().filter(|word| !word.is_empty()).collect())
}

fn logprobs(path: Path, body: &Value) -> Result<Option<usize>, Refusal> {
    match path {
        Path::Completion | Path::Gemini | Path::Messages | Path::Responses => match &body["logprobs"] {
            Value::Null => Ok(None),
            value => {
                let k = value.as_u64().filter(|k| *k <= 20).ok_or_else(|| wrong("logprobs", "0 to 20"))?;
                Ok(Some(k as usize))
            }
        },
        Path::Chat | Path::Ollama => {
            let top = match &body["top_logprobs"] {
                Value::Null => 0,
                value => {
                    value.as_u64().filter(|k| *k <= 20).ok_or_else(|| wrong("top_logprobs", "0 to 20"))?
                }
            };
            Ok(boolean(body, "logprobs")?.then_some(top as usize))
        }
    }
}

fn tools(tools: &Value) -> Result<Vec<Tool>, Refusal> {
    let Some(tools) = tools.as_array() else {
        return if tools.is_null() { Ok(Vec::new()) } else { Err(wrong("tools", "an array")) };
    };
    tools
        .iter()
        .map(|tool| {
            let function = &tool["function"];
            let name = function["name"].as_str().ok_or_else(|| wrong("tools", "a function name"))?;
            Ok(Tool { name: name.to_owned(), parameters: function["parameters"].clone() })
        })
        .collect()
}

fn must_call(choice: &Value) -> Option<Option<String>> {
    match choice {
        Value::String(word) if word == "required" => Some(None),
        Value::Object(_) => choice["function"]["name"].as_str().map(|name| Some(name.to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(body: &str) -> Option<&'static str> {
        Request::parse(Path::Chat, body.as_bytes()).expect_err(body).1
    }

    #[test]
    fn the_field_at_fault_is_named() {
        assert_eq!(refusal("{"), None);
        assert_eq!(refusal("[]"), None);
        assert_eq!(refusal(r#"{"model":3}"#), Some("model"));
        assert_eq!(refusal(r#"{"model":"m"}"#), Some("messages"));
        assert_eq!(refusal(r#"{"model":"m","messages":[]}"#), Some("messages"));
        let with =
            |more: &str| format!(r#"{{"model":"m","messages":[{{"role":"user","content":"a"}}],{more}}}"#);
        assert_eq!(refusal(&with(r#""max_tokens":-1"#)), Some("max_tokens"));
        assert_eq!(refusal(&with(r#""stream":"yes""#)), Some("stream"));
        assert_eq!(refusal(&with(r#""stop":[1]"#)), Some("stop"));
        assert_eq!(refusal(&with(r#""logprobs":true,"top_logprobs":99"#)), Some("top_logprobs"));
    }

    #[test]
    fn the_prompt_is_the_last_user_text_also_from_parts() {
        let body = r#"{"model":"m","messages":[{"role":"system","content":"be kind"},
            {"role":"user","content":[{"type":"text","text":"a b"}]},{"role":"assistant","content":"c"}]}"#;
        let request = Request::parse(Path::Chat, body.as_bytes()).expect("valid");
        assert_eq!(request.prompt, "a b");
        assert_eq!(request.prompt_tokens, 12 + 2 + 2 + 1);
    }
}
