//! Tool calls as clients expect them: in a stream each call has one index and tells its id and name once, and every
//! call has an id. Servers get all of this wrong.
//!
//! Only a payload that holds calls is parsed, and only one that is wrong is written anew.

use bytes::Bytes;
use memchr::memmem;
use serde_json::{Value, json};

/// Most calls of one answer that are kept apart; further ones pass as they are.
const MAX_CALLS: usize = 128;

/// Calls of one answer, by choice.
#[derive(Debug, Default)]
pub(super) struct Calls {
    known: Vec<Call>,
}

#[derive(Debug)]
struct Call {
    choice: u64,
    /// Index that the server gave it; `None` where it gives none.
    index: Option<u64>,
    /// Id that the server gave it, or one of ours.
    id: String,
}

impl Calls {
    /// Returns the payload of a stream with its calls put right. `answer` makes ids where there are none.
    pub(super) fn mend(&mut self, payload: Bytes, answer: &str) -> Bytes {
        self.mended(&payload, "delta", answer).unwrap_or(payload)
    }

    /// Returns a whole answer with its calls put right.
    pub(super) fn mend_whole(body: Bytes, answer: &str) -> Bytes {
        Self::default().mended(&body, "message", answer).unwrap_or(body)
    }

    fn mended(&mut self, payload: &[u8], part: &str, answer: &str) -> Option<Bytes> {
        if !holds_calls(payload) {
            return None;
        }
        let mut value: Value = serde_json::from_slice(payload).ok()?;
        let mut changed = false;
        for choice in value.get_mut("choices")?.as_array_mut()? {
            let number = choice["index"].as_u64().unwrap_or(0);
            let calls = choice.get_mut(part).and_then(|part| part.get_mut("tool_calls"));
            for call in calls.and_then(Value::as_array_mut).into_iter().flatten() {
                changed |= match part {
                    "delta" => self.piece(number, call, answer),
                    _ => self.whole(number, call, answer),
                };
            }
        }
        changed.then(|| serde_json::to_vec(&value).expect("a JSON value serialises").into())
    }

    /// Puts one piece right; returns whether it was wrong.
    fn piece(&mut self, choice: u64, call: &mut Value, answer: &str) -> bool {
        if !is_call(call) {
            return false;
        }
        let before = call.clone();
        let place = match self.find(choice, call) {
            Some(place) => {
                // Clients join the pieces of a text: an id or a name that is told twice becomes another one.
                if let Some(map) = call.as_object_mut() {
                    map.remove("id");
                    map.remove("type");
                }
                if let Some(function) = call.get_mut("function").and_then(Value::as_object_mut) {
                    function.remove("name");
                }
                place
            }
            None if self.known.len() >= MAX_CALLS => return false,
            None => {
                self.open(choice, call, answer);
                self.known.len() - 1
            }
        };
        let index = self.known[..place].iter().filter(|known| known.choice == choice).count();
        call["index"] = index.into();
        *call != before
    }

    fn whole(&mut self, choice: u64, call: &mut Value, answer: &str) -> bool {
        if self.known.len() >= MAX_CALLS || !is_call(call) {
            return false;
        }
        let before = call.clone();
        self.open(choice, call, answer);
        *call != before
    }

    /// Finds the call that a piece continues.
    fn find(&self, choice: u64, call: &Value) -> Option<usize> {
        let (index, id) = (call["index"].as_u64(), call["id"].as_str().unwrap_or_default());
        let named = call["function"]["name"].as_str().is_some_and(|name| !name.is_empty());
        let of_choice = |known: &Call| known.choice == choice;
        let by = |test: &dyn Fn(&Call) -> bool| self.known.iter().rposition(|k| of_choice(k) && test(k));
        if !id.is_empty() {
            let same = by(&|known| known.id == id);
            // A new id without a name is a server that makes one up for every piece.
            return if same.is_some() || named { same } else { by(&|known| known.index == index) };
        }
        match index {
            Some(_) => by(&|known| known.index == index),
            None if named => None,
            None => by(&|_| true),
        }
    }

    fn open(&mut self, choice: u64, call: &mut Value, answer: &str) {
        if call["id"].as_str().is_none_or(str::is_empty) {
            call["id"] = format!("call_{answer}_{}", self.known.len()).into();
        }
        if !call["type"].is_string() {
            call["type"] = "function".into();
        }
        // Arguments are text; some servers write the object itself.
        let arguments = &mut call["function"]["arguments"];
        match arguments {
            Value::String(_) => {}
            Value::Null => *arguments = json!(""),
            other => *other = other.to_string().into(),
        }
        let id = call["id"].as_str().unwrap_or_default().to_owned();
        self.known.push(Call { choice, index: call["index"].as_u64(), id });
    }
}

/// True when a payload holds calls; many servers write `null` or an empty list into every chunk.
fn holds_calls(payload: &[u8]) -> bool {
    const KEY: &[u8] = b"\"tool_calls\"";
    memmem::find_iter(payload, KEY).any(|at| {
        let rest = payload[at + KEY.len()..].trim_ascii_start();
        let value = rest.strip_prefix(b":").map_or(&b"null"[..], <[u8]>::trim_ascii_start);
        let empty = value.strip_prefix(b"[").is_some_and(|list| list.trim_ascii_start().starts_with(b"]"));
        !(empty || value.starts_with(b"null"))
    })
}

/// True for what can be put right at all.
fn is_call(call: &Value) -> bool {
    call.is_object() && call.get("function").is_none_or(Value::is_object)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Index, id, name and arguments of each piece after mending.
    fn mended(pieces: &[Value]) -> Vec<(u64, Option<String>, Option<String>, String)> {
        let mut calls = Calls::default();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let read = |piece: &Value| {
            let payload = json!({"choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]});
            let out = calls.mend(payload.to_string().into(), "r");
            let out: Value = serde_json::from_slice(&out).unwrap();
            let call = &out["choices"][0]["delta"]["tool_calls"][0];
            let arguments = text(&call["function"]["arguments"]).unwrap_or_default();
            (call["index"].as_u64().unwrap(), text(&call["id"]), text(&call["function"]["name"]), arguments)
        };
        pieces.iter().map(read).collect()
    }

    fn call(index: Option<u64>, id: Option<&str>, name: Option<&str>, arguments: &str) -> Value {
        let mut out = json!({"function": {"arguments": arguments}});
        if let Some(index) = index {
            out["index"] = index.into();
        }
        if let Some(id) = id {
            out["id"] = id.into();
            out["type"] = "function".into();
        }
        if let Some(name) = name {
            out["function"]["name"] = name.into();
        }
        out
    }

    fn said(
        index: u64,
        id: Option<&str>,
        name: Option<&str>,
        arguments: &str,
    ) -> (u64, Option<String>, Option<String>, String) {
        (index, id.map(Into::into), name.map(Into::into), arguments.into())
    }

    #[test]
    fn what_is_right_keeps_its_bytes() {
        let mut calls = Calls::default();
        let right = [
            r#"{"choices": [{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":""}}]}}]}"#,
            r#"{"choices": [{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]}}]}"#,
            r#"{"choices":[{"delta":{"content":"x"}}]}"#,
        ];
        for payload in right {
            assert_eq!(calls.mend(Bytes::from_static(payload.as_bytes()), "r"), payload);
        }
    }

    #[test]
    fn a_payload_without_calls_is_not_parsed() {
        for (payload, holds) in [
            (r#"{"choices":[{"delta":{"content":"x","tool_calls":null}}]}"#, false),
            (r#"{"choices":[{"delta":{"tool_calls" : [ ]}}]}"#, false),
            (r#"{"choices":[{"finish_reason":"tool_calls"}]}"#, false),
            (r#"{"choices":[{"delta":{"tool_calls":null}},{"delta":{"tool_calls": [{}]}}]}"#, true),
        ] {
            assert_eq!(holds_calls(payload.as_bytes()), holds, "{payload}");
        }
    }

    #[test]
    fn every_servers_way_becomes_the_same_two_calls() {
        let expected = vec![
            said(0, Some("a"), Some("f"), ""),
            said(0, None, None, "{}"),
            said(1, Some("b"), Some("g"), ""),
            said(1, None, None, "[]"),
        ];
        let (a, b, f, g) = (Some("a"), Some("b"), Some("f"), Some("g"));
        let ways = [
            (
                "no index",
                [
                    call(None, a, f, ""),
                    call(None, None, None, "{}"),
                    call(None, b, g, ""),
                    call(None, None, None, "[]"),
                ],
            ),
            (
                "always 0",
                [
                    call(Some(0), a, f, ""),
                    call(Some(0), a, None, "{}"),
                    call(Some(0), b, g, ""),
                    call(Some(0), b, None, "[]"),
                ],
            ),
            (
                "from 1",
                [
                    call(Some(1), a, f, ""),
                    call(Some(1), None, None, "{}"),
                    call(Some(2), b, g, ""),
                    call(Some(2), None, None, "[]"),
                ],
            ),
            (
                "all told again",
                [
                    call(Some(0), a, f, ""),
                    call(Some(0), a, f, "{}"),
                    call(Some(1), b, g, ""),
                    call(Some(1), b, g, "[]"),
                ],
            ),
            (
                "an id a piece",
                [
                    call(Some(0), a, f, ""),
                    call(Some(0), Some("x"), None, "{}"),
                    call(Some(1), b, g, ""),
                    call(Some(1), Some("y"), None, "[]"),
                ],
            ),
        ];
        for (way, pieces) in ways {
            assert_eq!(mended(&pieces), expected, "{way}");
        }
    }

    #[test]
    fn ids_are_made_and_arguments_become_text() {
        let pieces = [call(None, None, Some("f"), "{}"), call(None, Some(""), Some("f"), "{}")];
        assert_eq!(
            mended(&pieces),
            [said(0, Some("call_r_0"), Some("f"), "{}"), said(1, Some("call_r_1"), Some("f"), "{}")]
        );
        let body =
            br#"{"choices":[{"message":{"tool_calls":[{"function":{"name":"f","arguments":{"a":1}}}]}}]}"#;
        let out: Value = serde_json::from_slice(&Calls::mend_whole(Bytes::from_static(body), "r")).unwrap();
        let call = &out["choices"][0]["message"]["tool_calls"][0];
        assert_eq!(
            *call,
            json!({"id": "call_r_0", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}})
        );
    }
}
