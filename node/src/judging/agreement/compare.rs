//! Whether two answers to the same request say the same: calls by tool and arguments, JSON by value, text by
//! [`likeness`](shoal_routing::confidence::likeness()).

use std::collections::BTreeSet;

use serde_json::Value;
use shoal_routing::confidence::{is_refusal, likeness};

use crate::pipeline::exhibit::Answer;

/// Most leaves of a JSON answer that are compared.
const MAX_LEAVES: usize = 512;

/// Returns the share of what `first` says that `second` says, too, 0 to 1; `None` where that cannot be told: one is
/// not whole, the second refuses, or one is no JSON where JSON was asked for.
pub(crate) fn compare(first: &Answer, second: &Answer, wants_json: bool) -> Option<f64> {
    if !(first.whole && second.whole) || second.refused {
        return None;
    }
    match (first.calls.is_empty(), second.calls.is_empty()) {
        (false, false) => return Some(calls(first, second)),
        // One acts and the other talks.
        (false, true) | (true, false) => return Some(0.0),
        (true, true) => {}
    }
    let json = |answer: &Answer| serde_json::from_str::<Value>(unfenced(&answer.text)).ok();
    match (json(first), json(second)) {
        (Some(first), Some(second)) if wants_json || (is_nested(&first) && is_nested(&second)) => {
            values(&first, &second)
        }
        _ if wants_json => None,
        _ if is_refusal(&second.text) && !is_refusal(&first.text) => None,
        _ => likeness(&first.text, &second.text),
    }
}

fn is_nested(value: &Value) -> bool {
    value.is_object() || value.is_array()
}

/// Takes a fence of Markdown off a text that is one block.
fn unfenced(text: &str) -> &str {
    let text = text.trim();
    let inside = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    let Some(inside) = inside else { return text };
    inside.split_once('\n').map_or(inside, |(_, body)| body).trim()
}

/// Returns the share of calls that both make, whatever their order.
fn calls(first: &Answer, second: &Answer) -> f64 {
    let read = |answer: &Answer| -> Vec<(String, Value)> {
        let read = |arguments: &str| match arguments.trim() {
            "" => Value::Object(serde_json::Map::new()),
            text => serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())),
        };
        answer.calls.iter().map(|call| (call.name.clone(), read(&call.arguments))).collect()
    };
    let (first, mut second) = (read(first), read(second));
    let all = first.len().max(second.len());
    let mut same = 0;
    for (name, arguments) in &first {
        let found = second.iter().position(|(other, value)| name == other && equal(arguments, value));
        if let Some(at) = found {
            second.swap_remove(at);
            same += 1;
        }
    }
    f64::from(same) / all as f64
}

/// Compares values: 1 and 1.0 are equal, and so are objects with their keys in another order.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        (Value::String(a), Value::String(b)) => a.trim().eq_ignore_ascii_case(b.trim()),
        (a, b) => a == b,
    }
}

/// Returns the mean likeness of the leaves that either has; `None` for too many of them.
fn values(first: &Value, second: &Value) -> Option<f64> {
    if equal(first, second) {
        return Some(1.0);
    }
    let mut paths = BTreeSet::new();
    leaves(first, &mut String::new(), &mut paths);
    leaves(second, &mut String::new(), &mut paths);
    if paths.is_empty() || paths.len() > MAX_LEAVES {
        return None;
    }
    let alike = |path: &String| match (first.pointer(path), second.pointer(path)) {
        (Some(a), Some(b)) if equal(a, b) => 1.0,
        (Some(Value::String(a)), Some(Value::String(b))) => likeness(a, b).unwrap_or_default(),
        _ => 0.0,
    };
    Some(paths.iter().map(alike).sum::<f64>() / paths.len() as f64)
}

/// Collects the JSON pointers of all leaves, up to one too many. What was parsed is at most 128 levels deep.
fn leaves(value: &Value, path: &mut String, paths: &mut BTreeSet<String>) {
    if paths.len() > MAX_LEAVES {
        return;
    }
    let before = path.len();
    let mut enter = |key: &str, value: &Value, paths: &mut BTreeSet<String>| {
        path.push('/');
        path.push_str(&key.replace('~', "~0").replace('/', "~1"));
        leaves(value, path, paths);
        path.truncate(before);
    };
    match value {
        Value::Object(map) if !map.is_empty() => map.iter().for_each(|(key, value)| enter(key, value, paths)),
        Value::Array(list) if !list.is_empty() => {
            list.iter().enumerate().for_each(|(at, value)| enter(&at.to_string(), value, paths));
        }
        _ => {
            paths.insert(path.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::exhibit::Call;

    fn text(text: &str) -> Answer {
        Answer { text: text.into(), whole: true, ..Answer::default() }
    }

    fn call(calls: &[(&str, &str)]) -> Answer {
        let call =
            |(name, arguments): &(&str, &str)| Call { name: (*name).into(), arguments: (*arguments).into() };
        Answer { calls: calls.iter().map(call).collect(), whole: true, ..Answer::default() }
    }

    #[test]
    fn calls_agree_by_tool_and_values_of_arguments() {
        let weather = call(&[("weather", r#"{"city":"Oslo","days":3}"#)]);
        let cases = [
            (call(&[("weather", r#"{ "days": 3.0, "city": "oslo" }"#)]), 1.0),
            (call(&[("weather", r#"{"city":"Rome","days":3}"#)]), 0.0),
            (call(&[("news", r#"{"city":"Oslo","days":3}"#)]), 0.0),
            (call(&[("weather", r#"{"city":"Oslo","days":3}"#), ("news", "")]), 0.5),
            (text("It rains in Oslo."), 0.0),
        ];
        for (other, expected) in cases {
            assert_eq!(compare(&weather, &other, false), Some(expected), "{other:?}");
            assert_eq!(compare(&other, &weather, false), Some(expected), "{other:?}");
        }
        assert_eq!(compare(&call(&[("now", "")]), &call(&[("now", "{}")]), false), Some(1.0));
    }

    #[test]
    fn json_agrees_by_value_and_in_part() {
        let first = text(r#"{"name":"Ada","born":1815,"tags":["x"]}"#);
        let cases = [
            ("```json\n{\"born\": 1815.0, \"tags\": [\"x\"], \"name\": \"ada\"}\n```", Some(1.0)),
            (r#"{"name":"Ada","born":1816,"tags":["x"]}"#, Some(2.0 / 3.0)),
            (r#"{"name":"Ada","born":1815,"tags":["x","y"]}"#, Some(0.75)),
            (r#"{"title":"none"}"#, Some(0.0)),
            ("no JSON at all", None),
        ];
        for (other, expected) in cases {
            assert_eq!(compare(&first, &text(other), true), expected, "{other}");
        }
        let deep = format!("{{\"a\":[{}0]}}", "1,".repeat(MAX_LEAVES));
        assert_eq!(compare(&text(&deep), &text(r#"{"a":[1]}"#), true), None, "too many leaves");
    }

    #[test]
    fn texts_agree_by_likeness_and_a_refusal_says_nothing() {
        assert_eq!(compare(&text("Paris."), &text("paris"), false), Some(1.0));
        assert_eq!(compare(&text("7"), &text("8"), false), Some(0.0));
        assert_eq!(compare(&text("7"), &text("I'm sorry, but I can't help with that."), false), None);
        let refused = Answer { refused: true, ..text("") };
        assert_eq!(compare(&text("7"), &refused, false), None);
        let cut = Answer { whole: false, ..text("7") };
        assert_eq!(compare(&cut, &text("7"), false), None);
    }
}
