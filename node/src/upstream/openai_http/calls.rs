//! Tool calls as clients expect them: in a stream each call has one index and tells its id and name once, and every
//! call has an id. Servers get all of this wrong.
//!
//! Only a payload that holds calls is parsed, and only one that is wrong is written anew.

use bytes::Bytes;
use memchr::memmem;
use serde_json::{Value, json};

/// Most calls of one answer that are kept apart; further ones pass as they are.
const MAX_CALLS: usize = 128;

/// Where a call holds its name: that of a function, or of a tool that takes free text.
const KINDS: [&str; 2] = ["function", "custom"];

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
    name: String,
    arguments: Progress,
}

/// How far the arguments of a call have come, told by their brackets.
#[derive(Debug, Default)]
struct Progress {
    depth: u32,
    quoted: bool,
    escaped: bool,
    /// The outermost bracket was closed.
    whole: bool,
}

impl Progress {
    fn grow(&mut self, text: &str) {
        for byte in text.bytes() {
            match byte {
                _ if std::mem::take(&mut self.escaped) => {}
                b'\\' if self.quoted => self.escaped = true,
                b'"' => self.quoted = !self.quoted,
                _ if self.quoted => {}
                b'{' | b'[' => self.depth = self.depth.saturating_add(1),
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    self.whole |= self.depth == 0;
                }
                _ => {}
            }
        }
    }
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
                self.known[place].arguments.grow(call["function"]["arguments"].as_str().unwrap_or_default());
                // Clients join the pieces of a text: an id or a name that is told twice becomes another one.
                if let Some(map) = call.as_object_mut() {
                    map.remove("id");
                    map.remove("type");
                }
                for kind in KINDS {
                    if let Some(inner) = call.get_mut(kind).and_then(Value::as_object_mut) {
                        inner.remove("name");
                    }
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
        let (name, arguments) = (name(call), call["function"]["arguments"].as_str().unwrap_or_default());
        let by =
            |test: &dyn Fn(&Call) -> bool| self.known.iter().rposition(|k| k.choice == choice && test(k));
        if !id.is_empty() {
            // Some servers give one id to several calls; their indexes tell them apart.
            let same = by(&|k| k.id == id && (index.is_none() || k.index.is_none() || k.index == index));
            // A new id without a name is a server that makes one up for every piece.
            return if same.is_some() || !name.is_empty() {
                same
            } else {
                by(&|known| known.index == index).or_else(|| by(&|known| known.id == id))
            };
        }
        match index {
            // Some servers send whole calls without ids, all with index 0.
            Some(_) => by(&|known| known.index == index)
                .filter(|place| !self.known[*place].is_followed_by(name, arguments)),
            None if !name.is_empty() => None,
            None => by(&|_| true),
        }
    }

    fn open(&mut self, choice: u64, call: &mut Value, answer: &str) {
        let given = call["id"].as_str().unwrap_or_default().to_owned();
        if given.is_empty() || self.known.iter().any(|known| known.choice == choice && known.id == given) {
            call["id"] = format!("call_{answer}_{}", self.known.len()).into();
        }
        // What is no function, such as a custom tool, has no arguments.
        let own = if call["custom"].is_object() { "custom" } else { "function" };
        if !call["type"].is_string() {
            call["type"] = own.into();
        }
        let mut progress = Progress::default();
        if call["type"] == "function" {
            // Arguments are text; some servers write the object itself.
            let arguments = &mut call["function"]["arguments"];
            match arguments {
                Value::String(_) => {}
                Value::Null => *arguments = json!(""),
                other => *other = other.to_string().into(),
            }
            progress.grow(call["function"]["arguments"].as_str().unwrap_or_default());
        }
        let id = if given.is_empty() { call["id"].as_str().unwrap_or_default().to_owned() } else { given };
        let (index, name) = (call["index"].as_u64(), name(call).to_owned());
        self.known.push(Call { choice, index, id, name, arguments: progress });
    }
}

impl Call {
    /// True when a piece of the same index and without an id is not this call's: it names another tool, or brings
    /// arguments where this call has all of its own.
    fn is_followed_by(&self, name: &str, arguments: &str) -> bool {
        !name.is_empty() && (name != self.name || (self.arguments.whole && !arguments.is_empty()))
    }
}

/// Returns the name that a piece tells, or nothing.
fn name(call: &Value) -> &str {
    KINDS.iter().find_map(|kind| call[kind]["name"].as_str()).unwrap_or_default()
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
    fn one_id_for_two_indexes_is_two_calls() {
        let (c, f, g) = (Some("c"), Some("f"), Some("g"));
        assert_eq!(
            mended(&[
                call(Some(0), c, f, ""),
                call(Some(0), c, None, "{}"),
                call(Some(1), c, g, ""),
                call(Some(1), c, None, "[]"),
            ]),
            [
                said(0, c, f, ""),
                said(0, None, None, "{}"),
                said(1, Some("call_r_1"), g, ""),
                said(1, None, None, "[]"),
            ]
        );
    }

    #[test]
    fn whole_calls_without_ids_are_told_apart_where_all_have_index_0() {
        let (f, g) = (Some("f"), Some("g"));
        let piece = |name, arguments| call(Some(0), None, name, arguments);
        let id = |n: usize| format!("call_r_{n}");
        assert_eq!(
            mended(&[
                piece(f, r#"{"a":"}"}"#),
                piece(f, "{}"),
                piece(g, ""),
                piece(g, "{"),
                piece(None, "}")
            ]),
            [
                said(0, Some(&id(0)), f, r#"{"a":"}"}"#),
                said(1, Some(&id(1)), f, "{}"),
                said(2, Some(&id(2)), g, ""),
                said(2, None, None, "{"),
                said(2, None, None, "}"),
            ]
        );
        // The name told once more, with arguments that are not whole or with none.
        assert_eq!(
            mended(&[piece(f, r#"{"a":"}"#), piece(f, r#""}"#), piece(f, "")]),
            [said(0, Some(&id(0)), f, r#"{"a":"}"#), said(0, None, None, r#""}"#), said(0, None, None, ""),]
        );
    }

    #[test]
    fn a_call_of_a_custom_tool_gets_no_function() {
        let mut calls = Calls::default();
        let mut mend = |piece: Value| {
            let payload = json!({"choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]});
            let out: Value = serde_json::from_slice(&calls.mend(payload.to_string().into(), "r")).unwrap();
            out["choices"][0]["delta"]["tool_calls"][0].clone()
        };
        let first = json!({"index": 0, "id": "c", "type": "custom", "custom": {"name": "p", "input": ""}});
        assert_eq!(mend(first.clone()), first);
        let more = json!({"index": 0, "custom": {"input": "text"}});
        assert_eq!(mend(more.clone()), more);
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
