//! Items of a conversation, as the Responses API has them, become the messages of a chat.
//!
//! What one turn of a model said lies in several items (reasoning, text, calls of tools) and in one message of a chat,
//! since a tool's result must follow the message that called it. Instructions before the first turn become one system
//! message, since many chat templates know only one and only at the beginning.

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::api::body::Text;
use crate::api::chat_body::{Content, File, ImageUrl, Message, Part, ToolCall};
use crate::api::error::ApiError;

/// Items of tools that the vendor runs; here nobody ran them, so what they say cannot be told to a model.
const VENDORS_ITEMS: &[&str] = &[
    "web_search_call",
    "file_search_call",
    "computer_call",
    "computer_call_output",
    "code_interpreter_call",
    "image_generation_call",
    "local_shell_call",
    "local_shell_call_output",
    "shell_call",
    "shell_call_output",
    "apply_patch_call",
    "apply_patch_call_output",
    "mcp_list_tools",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
    "compaction",
];

#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow)]
    r#type: Option<Text<'a>>,
    #[serde(borrow)]
    role: Option<Text<'a>>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    call_id: Option<Text<'a>>,
    #[serde(borrow)]
    name: Option<Text<'a>>,
    #[serde(borrow)]
    arguments: Option<Text<'a>>,
    #[serde(borrow)]
    input: Option<Text<'a>>,
    #[serde(borrow)]
    output: Option<&'a RawValue>,
    #[serde(borrow)]
    summary: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawPart<'a> {
    #[serde(borrow)]
    r#type: Option<Text<'a>>,
    #[serde(borrow)]
    text: Option<Text<'a>>,
    #[serde(borrow)]
    refusal: Option<Text<'a>>,
    #[serde(borrow)]
    image_url: Option<Text<'a>>,
    #[serde(borrow)]
    detail: Option<Text<'a>>,
    #[serde(borrow)]
    filename: Option<Text<'a>>,
    #[serde(borrow)]
    file_data: Option<Text<'a>>,
    #[serde(borrow)]
    input_audio: Option<&'a RawValue>,
}

/// The messages of a chat, item by item.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    messages: Vec<Message>,
    /// Reasoning that belongs to the assistant's next message.
    thought: String,
    /// Kinds of items that were left out.
    left_out: Vec<String>,
}

impl Conversation {
    /// Adds instructions that stand before everything.
    pub(super) fn instruct(&mut self, text: &str) {
        if let [Message { role: "system", content: Some(Content::Text(before)), .. }] = &mut self.messages[..]
        {
            before.push_str("\n\n");
            before.push_str(text);
        } else {
            self.messages.push(Message::text("system", text));
        }
    }

    /// Adds an item; `at` names it in errors, as `input[3]`.
    pub(super) fn add(&mut self, at: &str, raw: &RawValue) -> Result<(), ApiError> {
        let item: Item<'_> = serde_json::from_str(raw.get()).map_err(|_| {
            ApiError::invalid(
                at,
                format!("{at} must be an item such as {{\"role\":\"user\",\"content\":\"Hello\"}}"),
            )
        })?;
        match item.r#type.as_ref().map_or("message", |kind| kind.0.as_ref()) {
            "message" => self.message(at, &item),
            "function_call" => {
                let arguments = item.arguments.as_ref().map_or("{}", |text| text.0.as_ref()).to_owned();
                self.call(at, &item, arguments)
            }
            "custom_tool_call" => {
                let input = required(at, "input", item.input.as_ref())?;
                self.call(at, &item, json!({"input": input}).to_string())
            }
            "function_call_output" | "custom_tool_call_output" => self.result(at, &item),
            "reasoning" => {
                self.reason(&item);
                Ok(())
            }
            kind if VENDORS_ITEMS.contains(&kind) => {
                let kind = kind.to_owned();
                if !self.left_out.contains(&kind) {
                    self.left_out.push(kind);
                }
                Ok(())
            }
            other => {
                let shown: String = other.chars().take(32).collect();
                Err(ApiError::invalid(
                    format!("{at}.type"),
                    format!("{at} is of type '{shown}', which this node cannot tell a model"),
                ))
            }
        }
    }

    /// Returns the messages, and which kinds of items were left out.
    pub(super) fn finish(self) -> (Vec<Message>, Vec<String>) {
        (self.messages, self.left_out)
    }

    fn message(&mut self, at: &str, item: &Item<'_>) -> Result<(), ApiError> {
        let role = required(at, "role", item.role.as_ref())?;
        let field = format!("{at}.content");
        let content =
            item.content.ok_or_else(|| ApiError::invalid(&*field, format!("'{field}' is missing")))?;
        let parts = parts(&field, content)?;
        match role {
            "user" => self.messages.push(Message {
                role: "user",
                content: Some(Content::of(parts)),
                ..Message::default()
            }),
            // Most chat templates know no developer; where one is known, a system message means the same.
            "system" | "developer" if self.messages.iter().all(|m| m.role == "system") => {
                self.instruct(&joined(parts));
            }
            "system" | "developer" => self.messages.push(Message::text("system", joined(parts))),
            "assistant" => {
                let said = joined(parts);
                match &mut self.assistant().content {
                    Some(Content::Text(before)) => {
                        before.push_str("\n\n");
                        before.push_str(&said);
                    }
                    content => *content = Some(Content::Text(said)),
                }
            }
            other => {
                let shown: String = other.chars().take(32).collect();
                return Err(ApiError::invalid(
                    format!("{at}.role"),
                    format!("'{at}.role' is '{shown}'; it must be user, assistant, system or developer"),
                ));
            }
        }
        Ok(())
    }

    fn call(&mut self, at: &str, item: &Item<'_>, arguments: String) -> Result<(), ApiError> {
        let id = required(at, "call_id", item.call_id.as_ref())?.to_owned();
        let name = required(at, "name", item.name.as_ref())?.to_owned();
        self.assistant().tool_calls.push(ToolCall::new(id, name, arguments));
        Ok(())
    }

    fn result(&mut self, at: &str, item: &Item<'_>) -> Result<(), ApiError> {
        let id = required(at, "call_id", item.call_id.as_ref())?.to_owned();
        let field = format!("{at}.output");
        let output =
            item.output.ok_or_else(|| ApiError::invalid(&*field, format!("'{field}' is missing")))?;
        let content = Content::of(parts(&field, output)?);
        self.messages.push(Message {
            role: "tool",
            content: Some(content),
            tool_call_id: Some(id),
            ..Message::default()
        });
        Ok(())
    }

    /// Takes reasoning that can be read; what the vendor encrypted is nobody's but the vendor's.
    fn reason(&mut self, item: &Item<'_>) {
        let readable = |raw: Option<&RawValue>| {
            let parts: Vec<RawPart<'_>> =
                raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
            parts.into_iter().filter_map(|part| part.text).map(|text| text.0).collect::<Vec<_>>().join("\n")
        };
        let content = readable(item.content);
        let thought = if content.is_empty() { readable(item.summary) } else { content };
        match self.messages.last_mut().filter(|message| message.role == "assistant") {
            Some(turn) if !thought.is_empty() => {
                turn.reasoning_content.get_or_insert_default().push_str(&thought);
            }
            _ => self.thought.push_str(&thought),
        }
    }

    /// Returns the message of the assistant's turn, which begins here unless it has begun.
    fn assistant(&mut self) -> &mut Message {
        if self.messages.last().is_none_or(|message| message.role != "assistant") {
            let thought = std::mem::take(&mut self.thought);
            self.messages.push(Message {
                role: "assistant",
                reasoning_content: Some(thought).filter(|thought| !thought.is_empty()),
                ..Message::default()
            });
        }
        self.messages.last_mut().expect("one was just pushed")
    }
}

fn required<'a>(at: &str, field: &str, text: Option<&'a Text<'_>>) -> Result<&'a str, ApiError> {
    text.map(|text| text.0.as_ref())
        .ok_or_else(|| ApiError::invalid(format!("{at}.{field}"), format!("'{at}.{field}' is missing")))
}

/// Reads content: text, or parts.
fn parts(at: &str, raw: &RawValue) -> Result<Vec<Part>, ApiError> {
    if let Ok(text) = serde_json::from_str::<Text<'_>>(raw.get()) {
        return Ok(vec![Part::Text { text: text.0.into_owned() }]);
    }
    let list: Vec<RawPart<'_>> = serde_json::from_str(raw.get())
        .map_err(|_| ApiError::invalid(at, format!("'{at}' must be text or a list of parts with 'type'")))?;
    list.into_iter().enumerate().map(|(place, raw)| part(&format!("{at}[{place}]"), raw)).collect()
}

fn part(at: &str, raw: RawPart<'_>) -> Result<Part, ApiError> {
    let owned = |text: Option<Text<'_>>| text.map(|text| text.0.into_owned());
    let need = |field: &str, why: &str| ApiError::invalid(format!("{at}.{field}"), format!("'{at}' {why}"));
    match raw.r#type.as_ref().map_or("", |kind| kind.0.as_ref()) {
        "input_text" | "output_text" | "text" => {
            let text = owned(raw.text).ok_or_else(|| need("text", "has no 'text'"))?;
            Ok(Part::Text { text })
        }
        "refusal" => Ok(Part::Text { text: owned(raw.refusal).unwrap_or_default() }),
        "input_image" => {
            let url = owned(raw.image_url).ok_or_else(|| {
                need("image_url", "needs 'image_url'; files are not kept here, so no 'file_id'")
            })?;
            Ok(Part::ImageUrl { image_url: ImageUrl { url, detail: owned(raw.detail) } })
        }
        "input_file" => {
            let file_data = owned(raw.file_data).ok_or_else(|| {
                need("file_data", "needs 'file_data'; files are neither kept nor fetched here, so no 'file_id' or 'file_url'")
            })?;
            Ok(Part::File { file: File { filename: owned(raw.filename), file_data } })
        }
        "input_audio" => {
            let input_audio = raw.input_audio.ok_or_else(|| need("input_audio", "has no 'input_audio'"))?;
            Ok(Part::InputAudio { input_audio: input_audio.to_owned() })
        }
        other => {
            let shown: String = other.chars().take(32).collect();
            Err(need("type", &format!("is of type '{shown}', which is not known")))
        }
    }
}

/// Returns the text of parts; nothing else of them is left.
fn joined(parts: Vec<Part>) -> String {
    let texts = parts.into_iter().filter_map(|part| match part {
        Part::Text { text } => Some(text),
        Part::ImageUrl { .. } | Part::InputAudio { .. } | Part::File { .. } => None,
    });
    texts.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn messages(items: Value) -> Result<Value, ApiError> {
        let mut conversation = Conversation::default();
        for (place, item) in items.as_array().unwrap().iter().enumerate() {
            let raw = RawValue::from_string(item.to_string()).unwrap();
            conversation.add(&format!("input[{place}]"), &raw)?;
        }
        Ok(serde_json::to_value(conversation.finish().0).unwrap())
    }

    #[test]
    fn a_turn_of_several_items_is_one_message_and_results_follow_it() {
        let items = json!([
            {"role": "user", "content": "Weather?"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "two cities"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{\"city\":\"Oslo\"}"},
            {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{\"city\":\"Rome\"}"},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
            {"type": "message", "role": "assistant", "content": "Rain and sun."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Thanks"}]},
        ]);
        let call = |id: &str, city: &str| {
            json!({"id": id, "type": "function",
                   "function": {"name": "weather", "arguments": format!("{{\"city\":\"{city}\"}}")}})
        };
        let expected = json!([
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "I look.", "reasoning_content": "two cities",
             "tool_calls": [call("c1", "Oslo"), call("c2", "Rome")]},
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
            {"role": "tool", "tool_call_id": "c2", "content": "sun"},
            {"role": "assistant", "content": "Rain and sun."},
            {"role": "user", "content": "Thanks"},
        ]);
        assert_eq!(messages(items).unwrap(), expected);
    }

    #[test]
    fn what_stands_before_the_first_turn_is_one_system_message() {
        let items = json!([
            {"role": "developer", "content": "Be brief."},
            {"role": "system", "content": [{"type": "input_text", "text": "Be kind."}]},
            {"role": "user", "content": "Hi"},
            {"role": "developer", "content": "Be quick."},
        ]);
        let expected = json!([
            {"role": "system", "content": "Be brief.\n\nBe kind."},
            {"role": "user", "content": "Hi"},
            {"role": "system", "content": "Be quick."},
        ]);
        assert_eq!(messages(items).unwrap(), expected);
    }

    #[test]
    fn pictures_sounds_and_files_go_as_parts() {
        let items = json!([{"role": "user", "content": [
            {"type": "input_text", "text": "What is this?"},
            {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "low"},
            {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"},
            {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
        ]}]);
        let expected = json!([{"role": "user", "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"}},
            {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
        ]}]);
        assert_eq!(messages(items).unwrap(), expected);
    }

    #[test]
    fn free_text_for_a_tool_travels_as_an_argument() {
        let items = json!([
            {"type": "custom_tool_call", "call_id": "c", "name": "apply_patch", "input": "*** \"x\""},
            {"type": "custom_tool_call_output", "call_id": "c", "output": "done"},
        ]);
        let messages = messages(items).unwrap();
        assert_eq!(messages[0]["tool_calls"][0]["function"]["arguments"], r#"{"input":"*** \"x\""}"#);
        assert_eq!(messages[1], json!({"role": "tool", "tool_call_id": "c", "content": "done"}));
    }

    #[test]
    fn a_mistake_is_named_where_it_is() {
        for (item, param) in [
            (json!(7), "input[0]"),
            (json!({"role": "user"}), "input[0].content"),
            (json!({"content": "x"}), "input[0].role"),
            (json!({"role": "robot", "content": "x"}), "input[0].role"),
            (
                json!({"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}),
                "input[0].content[0].image_url",
            ),
            (json!({"role": "user", "content": [{"type": "hologram"}]}), "input[0].content[0].type"),
            (json!({"type": "function_call", "name": "f"}), "input[0].call_id"),
            (json!({"type": "function_call_output", "call_id": "c"}), "input[0].output"),
            (json!({"type": "telepathy"}), "input[0].type"),
        ] {
            let error = messages(json!([item])).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{item}");
        }
    }

    #[test]
    fn items_of_the_vendors_tools_are_left_out_and_named_once() {
        let mut conversation = Conversation::default();
        for _ in 0..2 {
            let raw = RawValue::from_string(r#"{"type":"web_search_call","id":"ws_1"}"#.into()).unwrap();
            conversation.add("input[0]", &raw).unwrap();
        }
        let (messages, left_out) = conversation.finish();
        assert!(messages.is_empty());
        assert_eq!(left_out, ["web_search_call"]);
    }
}
