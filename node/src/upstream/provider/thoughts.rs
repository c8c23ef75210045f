//! What a model thought in earlier turns stays in the mesh: providers refuse a field that they do not know, or know it
//! only of their own models.

use bytes::Bytes;
use memchr::memmem;
use serde_json::value::RawValue;

use crate::api::body::{Body, Edit};

/// The field of a message.
const FIELD: &str = "reasoning_content";

/// Returns a chat's body without what its assistants thought; what is no chat stays as it is.
pub(super) fn without_thoughts(bytes: &Bytes) -> Bytes {
    if memmem::find(bytes, FIELD.as_bytes()).is_none() {
        return bytes.clone();
    }
    let Ok(body) = Body::parse(bytes) else { return bytes.clone() };
    let messages =
        body.raw("messages").and_then(|raw| serde_json::from_str::<Vec<&RawValue>>(raw.get()).ok());
    let Some(messages) = messages else { return bytes.clone() };
    let mut list = String::from("[");
    for (place, message) in messages.into_iter().enumerate() {
        if place > 0 {
            list.push(',');
        }
        let rebuilt =
            Body::parse(message.get().as_bytes()).map(|message| message.rebuild(&[(FIELD, Edit::Remove)]));
        match rebuilt.ok().and_then(|rebuilt| String::from_utf8(rebuilt.to_vec()).ok()) {
            Some(rebuilt) => list.push_str(&rebuilt),
            None => list.push_str(message.get()),
        }
    }
    list.push(']');
    body.rebuild(&[("messages", Edit::Set(list))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thoughts_go_and_nothing_else_does() {
        let check = |text: &'static str, expected: &str| {
            let out = without_thoughts(&Bytes::from_static(text.as_bytes()));
            assert_eq!(std::str::from_utf8(&out).unwrap(), expected);
        };
        check(
            r#"{"messages":[{"role":"user","content":"reasoning_content"},{"role":"assistant","reasoning_content":"hm","content":"x"}],"n":1}"#,
            r#"{"messages":[{"role":"user","content":"reasoning_content"},{"role":"assistant","content":"x"}],"n":1}"#,
        );
        for same in [
            r#"{"messages": [ 1 ] }"#,
            r#"{"input":"reasoning_content"}"#,
            r#"{"messages":"reasoning_content"}"#,
        ] {
            check(same, same);
        }
    }
}
