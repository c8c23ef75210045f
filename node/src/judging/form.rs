//! Whether an answer has the form that its request asked for: JSON, a schema, a call of an offered tool.
//!
//! Of JSON schema the part that requests use is checked: types, required and known properties, items, enumerations,
//! alternatives. What is not understood is taken to fit, since a wrong "broken" would teach something false.

use std::cell::Cell;

use serde::Deserialize;
use serde_json::Value;
use shoal_routing::{FinishReason, Form};

use crate::pipeline::exhibit::{Answer, Call};

/// Comparisons of one answer with its schema; what is left then counts as kept. A schema of many alternatives against a long
/// list would keep the judging of all other answers waiting.
const MAX_STEPS: usize = 100_000;
/// Deepest nesting that is checked; below it everything fits.
const MAX_DEPTH: usize = 16;

#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    response_format: Option<Format>,
    #[serde(default)]
    tools: Vec<Tool>,
    #[serde(default)]
    tool_choice: Option<Value>,
}

#[derive(Deserialize)]
struct Format {
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    json_schema: Option<Value>,
}

#[derive(Deserialize)]
struct Tool {
    #[serde(default)]
    function: Option<Function>,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    #[serde(default)]
    parameters: Value,
}

/// Tells whether a whole answer has the form that its request, as OpenAI JSON, asked for.
pub(super) fn form_of(request: &[u8], answer: &Answer, finish: Option<FinishReason>) -> Form {
    // Cut by the caller's own limit or too long to be kept whole: nobody can tell.
    if finish == Some(FinishReason::Length) || !answer.whole {
        return Form::Free;
    }
    let Ok(asked) = serde_json::from_slice::<Asked>(request) else { return Form::Free };
    if !answer.calls.is_empty() {
        return judged(answer.calls.iter().all(|call| fits_a_tool(call, &asked.tools)));
    }
    let must_call = match &asked.tool_choice {
        Some(Value::String(word)) => word == "required",
        Some(Value::Object(_)) => true,
        _ => false,
    };
    if must_call && !asked.tools.is_empty() {
        return Form::Broken;
    }
    let Some(format) = asked.response_format else { return Form::Free };
    let parsed: Result<Value, _> = serde_json::from_str(&answer.text);
    match (format.r#type.as_str(), parsed) {
        ("json_object", parsed) => judged(parsed.is_ok_and(|value| value.is_object())),
        ("json_schema", Err(_)) => Form::Broken,
        ("json_schema", Ok(value)) => {
            let schema = format.json_schema.map(|outer| outer["schema"].clone()).unwrap_or_default();
            judged(fits(&schema, &value, MAX_DEPTH, &Cell::new(MAX_STEPS)))
        }
        _ => Form::Free,
    }
}

fn judged(kept: bool) -> Form {
    if kept { Form::Kept } else { Form::Broken }
}

fn fits_a_tool(call: &Call, tools: &[Tool]) -> bool {
    let offered = tools.iter().filter_map(|tool| tool.function.as_ref()).find(|f| f.name == call.name);
    let Some(function) = offered else { return false };
    let arguments = if call.arguments.trim().is_empty() { "{}" } else { &call.arguments };
    serde_json::from_str::<Value>(arguments)
        .is_ok_and(|value| fits(&function.parameters, &value, MAX_DEPTH, &Cell::new(MAX_STEPS)))
}

fn fits(schema: &Value, value: &Value, depth: usize, steps: &Cell<usize>) -> bool {
    let Some(schema) = schema.as_object().filter(|_| depth > 0) else { return true };
    let listed = schema.get("enum").and_then(Value::as_array);
    let cost = 1 + listed.map_or(0, Vec::len);
    let Some(left) = steps.get().checked_sub(cost) else { return true };
    steps.set(left);
    for alternatives in ["anyOf", "oneOf"] {
        if let Some(list) = schema.get(alternatives).and_then(Value::as_array)
            && !list.iter().any(|one| fits(one, value, depth - 1, steps))
        {
            return false;
        }
    }
    let has_type = match schema.get("type") {
        Some(Value::String(word)) => is_of_type(value, word),
        Some(Value::Array(words)) => {
            words.iter().filter_map(Value::as_str).any(|word| is_of_type(value, word))
        }
        _ => true,
    };
    let is_listed = listed.is_none_or(|values| values.contains(value));
    let is_const = schema.get("const").is_none_or(|only| only == value);
    has_type && is_listed && is_const && members_fit(schema, value, depth, steps)
}

fn members_fit(
    schema: &serde_json::Map<String, Value>,
    value: &Value,
    depth: usize,
    steps: &Cell<usize>,
) -> bool {
    match value {
        Value::Object(object) => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let required = schema.get("required").and_then(Value::as_array);
            let has_required = required
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .all(|name| object.contains_key(name));
            let closed = schema.get("additionalProperties") == Some(&Value::Bool(false));
            has_required
                && object.iter().all(|(name, member)| match properties.and_then(|p| p.get(name)) {
                    Some(schema) => fits(schema, member, depth - 1, steps),
                    None => !closed,
                })
        }
        Value::Array(items) => schema
            .get("items")
            .is_none_or(|schema| items.iter().all(|item| fits(schema, item, depth - 1, steps))),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}

fn is_of_type(value: &Value, word: &str) -> bool {
    match word {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(text: &str) -> Answer {
        Answer { text: text.into(), whole: true, ..Answer::default() }
    }

    fn call(name: &str, arguments: &str) -> Answer {
        let call = Call { name: name.into(), arguments: arguments.into() };
        Answer { calls: vec![call], whole: true, ..Answer::default() }
    }

    fn form(request: &Value, answer: &Answer) -> Form {
        form_of(request.to_string().as_bytes(), answer, Some(FinishReason::Stop))
    }

    fn schema() -> Value {
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
        "type": "object", "required": ["name", "sizes"], "additionalProperties": false,
        "properties": {
            "name": {"type": "string"},
            "sizes": {"type": "array", "items": {"type": "integer"}},
            "kind": {"anyOf": [{"enum": ["a", "b"]}, {"type": "null"}]},
        }}}}})
    }

    #[test]
    fn a_schema_is_kept_or_broken() {
        for kept in [r#"{"name":"x","sizes":[]}"#, r#" {"name":"x","sizes":[1,2.0],"kind":null} "#] {
            assert_eq!(form(&schema(), &text(kept)), Form::Kept, "{kept}");
        }
        let broken = [
            "certainly! {\"name\":\"x\",\"sizes\":[]}",
            r#"{"name":"x"}"#,
            r#"{"name":7,"sizes":[]}"#,
            r#"{"name":"x","sizes":[1.5]}"#,
            r#"{"name":"x","sizes":[],"kind":"c"}"#,
            r#"{"name":"x","sizes":[],"more":1}"#,
            "[]",
        ];
        for broken in broken {
            assert_eq!(form(&schema(), &text(broken)), Form::Broken, "{broken}");
        }
        let object = json!({"response_format": {"type": "json_object"}});
        assert_eq!(form(&object, &text("{}")), Form::Kept);
        assert_eq!(form(&object, &text("3")), Form::Broken);
    }

    #[test]
    fn calls_must_be_of_an_offered_tool_with_arguments_that_fit() {
        let tools = json!([{"type": "function", "function": {"name": "weather", "parameters":
            {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}}}]);
        let request = json!({"tools": tools});
        assert_eq!(form(&request, &call("weather", r#"{"city":"Rome"}"#)), Form::Kept);
        for (name, arguments) in
            [("weather", "{"), ("weather", "{}"), ("weather", ""), ("climate", r#"{"city":"Rome"}"#)]
        {
            assert_eq!(form(&request, &call(name, arguments)), Form::Broken, "{name} {arguments}");
        }
        assert_eq!(form(&request, &text("It rains.")), Form::Free, "a tool may be left unused");
        let required = json!({"tools": tools, "tool_choice": "required"});
        assert_eq!(form(&required, &text("It rains.")), Form::Broken);
    }

    #[test]
    fn where_nothing_was_asked_or_nobody_can_tell_the_form_is_free() {
        assert_eq!(form(&json!({}), &text("hi")), Form::Free);
        assert_eq!(form(&json!({"response_format": {"type": "text"}}), &text("hi")), Form::Free);
        let cut = Answer { whole: false, ..text("{") };
        assert_eq!(form(&schema(), &cut), Form::Free);
        let limited = form_of(schema().to_string().as_bytes(), &text("{"), Some(FinishReason::Length));
        assert_eq!(limited, Form::Free);
    }
}
