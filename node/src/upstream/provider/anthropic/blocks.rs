//! OpenAI's messages as Anthropic's turns of content blocks.
//!
//! Anthropic wants user and assistant to alternate, a turn of the user to begin with the results of the calls before
//! it, and no empty text anywhere.

use serde::Deserialize;
use serde_json::{Value, json};

use super::request::Error;

/// Text that opens a conversation which an assistant's message begins; the API takes none that does.
const OPENING: &str = ".";

/// One message of an OpenAI chat. Clients write `null` for what a message does not have.
#[derive(Deserialize)]
pub(super) struct Message {
    role: String,
    #[serde(default)]
    content: Value,
    tool_calls: Option<Vec<ToolCall>>,
    tool_call_id: Option<String>,
    /// A model's thoughts with their signatures, as [`super::answer`] hands them out.
    thinking_blocks: Option<Vec<Value>>,
}

#[derive(Deserialize)]
struct ToolCall {
    id: Option<String>,
    function: Function,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    arguments: Option<String>,
}

/// A conversation in Anthropic's form.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    /// Blocks of the system prompt.
    pub(super) system: Vec<Value>,
    /// Turns, alternating.
    pub(super) turns: Vec<Value>,
    /// Names of the tools that were called in it.
    pub(super) called: Vec<String>,
}

impl Conversation {
    /// Translates messages, oldest first.
    pub(super) fn of(messages: Vec<Message>) -> Result<Self, Error> {
        let mut out = Self::default();
        for message in messages {
            match message.role.as_str() {
                "system" | "developer" => out.system.extend(blocks(&message.content)?),
                "assistant" => out.assistant(message)?,
                "tool" => out.result(&message)?,
                _ => out.push("user", blocks(&message.content)?),
            }
        }
        if out.turns.first().is_none_or(|turn| turn["role"] != "user") {
            out.turns.insert(0, json!({"role": "user", "content": [{"type": "text", "text": OPENING}]}));
        }
        out.trim_prefill();
        Ok(out)
    }

    fn assistant(&mut self, message: Message) -> Result<(), Error> {
        let thoughts = message.thinking_blocks.unwrap_or_default();
        let mut content: Vec<Value> = thoughts.into_iter().filter(is_thought).collect();
        content.extend(blocks(&message.content)?);
        for call in message.tool_calls.unwrap_or_default() {
            // Arguments are text in OpenAI's form and may be what a model garbled; an object is all that is taken.
            let arguments = call.function.arguments.unwrap_or_default();
            let input: Value = serde_json::from_str(&arguments).unwrap_or_default();
            let input = if input.is_object() { input } else { json!({}) };
            content.push(json!({"type": "tool_use", "id": id(&call.id.unwrap_or_default())?, "name": call.function.name,
                "input": input}));
            if !self.called.contains(&call.function.name) {
                self.called.push(call.function.name);
            }
        }
        self.push("assistant", content);
        Ok(())
    }

    fn result(&mut self, message: &Message) -> Result<(), Error> {
        let id = id(message.tool_call_id.as_deref().unwrap_or_default())?;
        let mut block = json!({"type": "tool_result", "tool_use_id": id});
        let content = blocks(&message.content)?;
        if !content.is_empty() {
            block["content"] = content.into();
        }
        self.push("user", vec![block]);
        Ok(())
    }

    /// True when the last turn of the assistant calls tools and does not begin with its thoughts. A model that thinks by
    /// budget is then refused with them: other models wrote none, and most clients do not send them back.
    pub(super) fn calls_without_thoughts(&self) -> bool {
        let last = self.turns.iter().rev().find(|turn| turn["role"] == "assistant");
        let blocks = last.and_then(|turn| turn["content"].as_array()).map_or(&[][..], Vec::as_slice);
        blocks.iter().any(|block| block["type"] == "tool_use") && !blocks.first().is_some_and(is_thought)
    }

    /// Appends blocks to the turn of the same role, or begins one.
    fn push(&mut self, role: &str, blocks: Vec<Value>) {
        if blocks.is_empty() {
            return;
        }
        match self.turns.last_mut() {
            Some(last) if last["role"] == role => {
                let Some(list) = last["content"].as_array_mut() else { return };
                for block in blocks {
                    let at = if block["type"] == "tool_result" { results(list) } else { list.len() };
                    list.insert(at, block);
                }
            }
            _ => self.turns.push(json!({"role": role, "content": blocks})),
        }
    }

    /// An answer begun by the caller may not end in white space.
    fn trim_prefill(&mut self) {
        let Some(last) = self.turns.last_mut().filter(|turn| turn["role"] == "assistant") else { return };
        let block = last["content"].as_array_mut().and_then(|list| list.last_mut());
        if let Some(Value::String(text)) = block.and_then(|block| block.get_mut("text")) {
            text.truncate(text.trim_end().len());
        }
    }
}

fn results(blocks: &[Value]) -> usize {
    blocks.iter().take_while(|block| block["type"] == "tool_result").count()
}

fn is_thought(block: &Value) -> bool {
    matches!(block["type"].as_str(), Some("thinking" | "redacted_thinking"))
}

/// Returns the id of a call with the letters that Anthropic takes; other providers put more into theirs.
fn id(text: &str) -> Result<String, Error> {
    let fits = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') { c } else { '_' };
    if text.is_empty() { Err(Error::NoCallId) } else { Ok(text.chars().map(fits).collect()) }
}

fn blocks(content: &Value) -> Result<Vec<Value>, Error> {
    match content {
        Value::Null => Ok(Vec::new()),
        Value::String(text) if text.trim().is_empty() => Ok(Vec::new()),
        Value::String(text) => Ok(vec![json!({"type": "text", "text": text})]),
        Value::Array(list) => list.iter().filter_map(|part| block(part).transpose()).collect(),
        _ => Err(Error::Malformed),
    }
}

/// Translates one part; `None` for an empty text.
fn block(part: &Value) -> Result<Option<Value>, Error> {
    let kind = part["type"].as_str().ok_or(Error::Malformed)?;
    let mut block = match kind {
        "text" | "refusal" => {
            let text = part[kind].as_str().ok_or(Error::Malformed)?;
            if text.trim().is_empty() {
                return Ok(None);
            }
            json!({"type": "text", "text": text})
        }
        "image_url" => {
            let url = part["image_url"]["url"].as_str().ok_or(Error::Malformed)?;
            json!({"type": "image", "source": source(url)})
        }
        "file" => {
            let data =
                part["file"]["file_data"].as_str().ok_or_else(|| Error::Part("file without data".into()))?;
            json!({"type": "document", "source": source(data)})
        }
        other => {
            return Err(Error::Part(other.chars().filter(|c| !c.is_control()).take(32).collect()));
        }
    };
    // Not OpenAI's, but what clients of several providers write where a prompt is worth keeping.
    if let Some(mark) = part.get("cache_control").filter(|mark| mark.is_object()) {
        block["cache_control"] = mark.clone();
    }
    Ok(Some(block))
}

/// A `data:` URL is unpacked; any other is Anthropic's to fetch.
fn source(url: &str) -> Value {
    match url.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")) {
        Some((mime, data)) => json!({"type": "base64", "media_type": mime, "data": data}),
        None => json!({"type": "url", "url": url}),
    }
}
