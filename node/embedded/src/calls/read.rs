//! Reads calls in each form; text that is no sound call gives `None`.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{CallFormat, MAX_CALLS, ToolCall};

/// Nesting of FunctionGemma's arguments.
const MAX_DEPTH: usize = 32;

#[derive(Deserialize)]
struct Written<'a> {
    name: String,
    #[serde(borrow, alias = "parameters")]
    arguments: Option<&'a RawValue>,
}

/// Reads what stands between the markers, or the whole answer in a form without any.
pub(super) fn calls(format: CallFormat, text: &str) -> Option<Vec<ToolCall>> {
    let text = text.trim();
    let calls = match format {
        CallFormat::FunctionGemma => vec![function_gemma(text)?],
        CallFormat::Hermes => hermes(text)?,
        CallFormat::Llama => llama(text.strip_prefix(CallFormat::PYTHON_TAG).unwrap_or(text))?,
    };
    (1..=MAX_CALLS).contains(&calls.len()).then_some(calls)
}

fn hermes(text: &str) -> Option<Vec<ToolCall>> {
    // SmolLM2 writes a list between one pair of markers.
    let written: Vec<Written<'_>> = match text.starts_with('[') {
        true => serde_json::from_str(text).ok()?,
        false => vec![serde_json::from_str(text).ok()?],
    };
    written.into_iter().map(of_json).collect()
}

fn llama(text: &str) -> Option<Vec<ToolCall>> {
    let mut calls = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Written<'_>>();
        calls.push(of_json(values.next()?.ok()?)?);
        rest = rest[values.byte_offset()..].trim_start_matches(|c: char| c == ';' || c.is_whitespace());
        if calls.len() > MAX_CALLS {
            return None;
        }
    }
    Some(calls)
}

fn of_json(written: Written<'_>) -> Option<ToolCall> {
    let arguments = match written.arguments.map(RawValue::get) {
        None | Some("null") => "{}".to_owned(),
        Some(object) if object.starts_with('{') => object.to_owned(),
        // Some models quote the object, as the API itself does.
        Some(text) => {
            let inner: String = serde_json::from_str(text).ok()?;
            serde_json::from_str::<Map<String, Value>>(&inner).ok()?;
            inner
        }
    };
    Some(ToolCall { name: written.name, arguments })
}

/// Reads `call:name{key:value,…}`.
fn function_gemma(text: &str) -> Option<ToolCall> {
    let (name, arguments) = text.strip_prefix("call:")?.split_once('{')?;
    let mut reader = Reader { rest: arguments };
    let members = reader.members(MAX_DEPTH)?;
    let whole = reader.rest.trim().is_empty();
    whole.then(|| ToolCall { name: name.trim().to_owned(), arguments: Value::Object(members).to_string() })
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    /// Reads members up to and with the closing brace; the opening one was read.
    fn members(&mut self, depth: usize) -> Option<Map<String, Value>> {
        let mut members = Map::new();
        if self.eats("}") {
            return Some(members);
        }
        loop {
            let key = match self.quoted() {
                Some(key) => {
                    self.eats(":").then_some(())?;
                    key
                }
                None => {
                    let (key, rest) = self.rest.split_once(':')?;
                    self.rest = rest;
                    key.trim()
                }
            };
            let sound = !key.is_empty() && !key.contains(['{', '}', '[', ']', ',']);
            sound.then_some(())?;
            members.insert(key.to_owned(), self.value(depth.checked_sub(1)?)?);
            if self.eats("}") {
                return Some(members);
            }
            self.eats(",").then_some(())?;
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if let Some(text) = self.quoted() {
            return Some(Value::from(text));
        }
        if self.eats("{") {
            return self.members(depth).map(Value::Object);
        }
        if self.eats("[") {
            let mut items = Vec::new();
            if self.eats("]") {
                return Some(Value::Array(items));
            }
            loop {
                items.push(self.value(depth.checked_sub(1)?)?);
                if self.eats("]") {
                    return Some(Value::Array(items));
                }
                self.eats(",").then_some(())?;
            }
        }
        let end = self.rest.find([',', '}', ']'])?;
        let (bare, rest) = self.rest.split_at(end);
        self.rest = rest;
        let bare = bare.trim();
        match serde_json::from_str(bare) {
            Ok(scalar) => Some(scalar),
            // A text whose quotes the model forgot.
            Err(_) if !bare.is_empty() && !bare.contains(['<', '{', '[', ':']) => Some(Value::from(bare)),
            Err(_) => None,
        }
    }

    fn quoted(&mut self) -> Option<&'a str> {
        let inner = self.rest.trim_start().strip_prefix(CallFormat::ESCAPE)?;
        let (text, rest) = inner.split_once(CallFormat::ESCAPE)?;
        self.rest = rest;
        Some(text)
    }

    fn eats(&mut self, text: &str) -> bool {
        match self.rest.trim_start().strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(format: CallFormat, text: &str, expected: &[(&str, &str)]) {
        let found: Vec<(String, String)> = calls(format, text)
            .unwrap_or_default()
            .into_iter()
            .map(|call| (call.name, call.arguments))
            .collect();
        let expected: Vec<(String, String)> =
            expected.iter().map(|(name, arguments)| ((*name).to_owned(), (*arguments).to_owned())).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn calls_of_function_gemma() {
        let check = |text, expected: &[(&str, &str)]| check(CallFormat::FunctionGemma, text, expected);
        check(
            "call:get_current_weather{location:<escape>Tokyo, Japan<escape>}",
            &[("get_current_weather", r#"{"location":"Tokyo, Japan"}"#)],
        );
        check("call:now{}", &[("now", "{}")]);
        check(
            "call:f{a:1,b:-2.5,c:true,d:null,e:[1,<escape>x]<escape>],f:{g:<escape>}{<escape>,h:{}},i:[]}",
            &[("f", r#"{"a":1,"b":-2.5,"c":true,"d":null,"e":[1,"x]"],"f":{"g":"}{","h":{}},"i":[]}"#)],
        );
        check("call:f{<escape>a b<escape>:<escape>\"q\"\n<escape>}", &[("f", r#"{"a b":"\"q\"\n"}"#)]);
        check("call:f{city:Paris}", &[("f", r#"{"city":"Paris"}"#)]);
        for broken in [
            "call:f",
            "call:f{a:1",
            "call:f{a:<escape>open}",
            "call:f{a 1}",
            "call:f{a:1,}",
            "call:f{a:1}x",
            "f{a:1}",
            "call:f{:1}",
            "call:f{a:}",
        ] {
            check(broken, &[]);
        }
        check(&format!("call:f{{a:{}", "[".repeat(100_000)), &[]);
    }

    #[test]
    fn calls_of_hermes() {
        let check = |text, expected: &[(&str, &str)]| check(CallFormat::Hermes, text, expected);
        check(
            "\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\", \"n\": 1.50}}\n",
            &[("get_weather", r#"{"city": "Oslo", "n": 1.50}"#)],
        );
        check(r#"{"arguments": {}, "name": "now"}"#, &[("now", "{}")]);
        check(r#"{"name": "now"}"#, &[("now", "{}")]);
        check(r#"{"name": "f", "arguments": "{\"a\": 1}"}"#, &[("f", r#"{"a": 1}"#)]);
        check(r#"[{"name":"f","arguments":{}},{"name":"g","arguments":{}}]"#, &[("f", "{}"), ("g", "{}")]);
        for broken in [
            "",
            "{}",
            "[]",
            r#"{"name": 1}"#,
            r#"{"name": "f", "arguments": [1]}"#,
            r#"{"name": "f", "arguments": "no"}"#,
            r#"{"name": "f", "arguments": {}"#,
            r#"{"name": "f"} and more"#,
        ] {
            check(broken, &[]);
        }
    }

    #[test]
    fn calls_of_llama() {
        let check = |text, expected: &[(&str, &str)]| check(CallFormat::Llama, text, expected);
        check(r#"{"name": "f", "parameters": {"a": 1}}"#, &[("f", r#"{"a": 1}"#)]);
        check(r#"<|python_tag|>{"name": "f", "parameters": {}}"#, &[("f", "{}")]);
        check(
            r#"{"name": "f", "parameters": {}}; {"type": "function", "name": "g", "parameters": {"b": []}}"#,
            &[("f", "{}"), ("g", r#"{"b": []}"#)],
        );
        for broken in ["", r#"{"answer": 1}"#, r#"{"name": "f"} hello"#, r#"<|python_tag|>f.call(1)"#] {
            check(broken, &[]);
        }
    }
}
