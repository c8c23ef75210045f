//! What a model thought in earlier turns: OpenAI and Azure refuse the fields of it, and most others have no use for it.
//! Only what an assistant thought before it called tools is demanded back, by DeepSeek and whoever follows it.

use bytes::Bytes;
use memchr::memmem;
use serde_json::value::RawValue;

use crate::api::body::{Body, Edit};

/// The fields of a message that hold thoughts, each where it is taken away.
const FIELDS: [&str; 3] = [THOUGHTS, "reasoning", "thinking_blocks"];
/// The field that some servers demand back.
const THOUGHTS: &str = "reasoning_content";

/// What a server takes of earlier thoughts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// No field that OpenAI does not know.
    Nothing,
    /// What belongs to calls, and fields of its own that a client got from it.
    OfCalls,
}

/// Returns a chat's body without the thoughts that the server does not take; what is no chat stays as it is.
pub(super) fn without_thoughts(bytes: &Bytes, takes: Takes) -> Bytes {
    let fields = if takes == Takes::Nothing { &FIELDS[..] } else { &FIELDS[..1] };
    let has = |field: &&str| memmem::find(bytes, format!("\"{field}\"").as_bytes()).is_some();
    if !fields.iter().any(has) {
        return bytes.clone();
    }
    let Ok(body) = Body::parse(bytes) else { return bytes.clone() };
    let messages =
        body.raw("messages").and_then(|raw| serde_json::from_str::<Vec<&RawValue>>(raw.get()).ok());
    let Some(messages) = messages else { return bytes.clone() };
    let list: Vec<String> = messages.into_iter().map(|message| told(message.get(), fields, takes)).collect();
    body.rebuild(&[("messages", Edit::Set(format!("[{}]", list.join(","))))])
}

/// Returns one message without `fields`.
fn told(text: &str, fields: &[&'static str], takes: Takes) -> String {
    let Ok(message) = Body::parse(text.as_bytes()) else { return text.to_owned() };
    let calls = message.raw("tool_calls").is_some_and(|calls| calls.get() != "[]");
    if calls && takes == Takes::OfCalls {
        return text.to_owned();
    }
    let edits: Vec<(&str, Edit)> = fields.iter().map(|field| (*field, Edit::Remove)).collect();
    String::from_utf8(message.rebuild(&edits).to_vec()).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &'static str, takes: Takes, expected: &str) {
        let out = without_thoughts(&Bytes::from_static(text.as_bytes()), takes);
        assert_eq!(std::str::from_utf8(&out).unwrap(), expected);
    }

    #[test]
    fn thoughts_go_and_nothing_else_does() {
        for takes in [Takes::Nothing, Takes::OfCalls] {
            check(
                r#"{"messages":[{"role":"user","content":"reasoning_content"},{"role":"assistant","reasoning_content":"hm","content":"x","tool_calls":[]}],"n":1}"#,
                takes,
                r#"{"messages":[{"role":"user","content":"reasoning_content"},{"role":"assistant","content":"x","tool_calls":[]}],"n":1}"#,
            );
            for same in [
                r#"{"messages": [ 1 ] }"#,
                r#"{"input":"reasoning_content"}"#,
                r#"{"input":{"reasoning_content":1}}"#,
                r#"{"messages":"reasoning_content"}"#,
            ] {
                check(same, takes, same);
            }
        }
    }

    #[test]
    fn openai_gets_none_and_others_those_of_calls() {
        let text = r#"{"messages":[{"role":"assistant","reasoning_content":"a","reasoning":"b","thinking_blocks":[],"tool_calls":[{"id":"c"}]}],"reasoning":{"effort":"low"}}"#;
        check(
            text,
            Takes::Nothing,
            r#"{"messages":[{"role":"assistant","tool_calls":[{"id":"c"}]}],"reasoning":{"effort":"low"}}"#,
        );
        check(text, Takes::OfCalls, text);
        let text = r#"{"messages":[{"role":"assistant","reasoning":"b","content":"x"}]}"#;
        check(text, Takes::Nothing, r#"{"messages":[{"role":"assistant","content":"x"}]}"#);
        check(text, Takes::OfCalls, text);
    }
}
