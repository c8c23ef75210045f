//! Tools and the choice among them.

use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::super::body::{Body, Edit, Text};
use super::super::error::ApiError;
use super::request::{Warnings, read, set};

/// Most tools of one request; an agent with several tool servers has some hundred.
const MAX_TOOLS: usize = 2048;

#[derive(Deserialize)]
struct Tool<'a> {
    #[serde(borrow)]
    r#type: Option<Text<'a>>,
    #[serde(borrow)]
    name: Option<Text<'a>>,
    #[serde(borrow)]
    description: Option<Text<'a>>,
    #[serde(borrow)]
    input_schema: Option<&'a RawValue>,
    strict: Option<bool>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    r#type: Option<Text<'a>>,
    #[serde(borrow)]
    name: Option<Text<'a>>,
    disable_parallel_tool_use: Option<bool>,
}

#[derive(Serialize)]
struct Wrapped<'a> {
    r#type: &'static str,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    parameters: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<bool>,
}

/// Adds the edits for `tools` and `tool_choice`.
///
/// Tools that Anthropic runs or has trained its models on are left out with a warning. Where nothing else is left,
/// or the choice demands one, the request asks for what cannot be had, and says so instead of being answered without.
pub(super) fn translate(
    body: &Body<'_>,
    edits: &mut Vec<(&str, Edit)>,
    warnings: &mut Warnings,
) -> Result<(), ApiError> {
    let list: Vec<Tool<'_>> = read(body, "tools", "a list of objects")?.unwrap_or_default();
    if list.len() > MAX_TOOLS {
        return Err(ApiError::invalid("tools", format!("'tools' has more than {MAX_TOOLS} entries")));
    }
    let (mut functions, mut foreign) = (Vec::new(), Vec::new());
    for (index, tool) in list.iter().enumerate() {
        let at = |field: &str| format!("tools.{index}.{field}");
        let name = tool.name.as_ref().map_or("", |name| name.0.as_ref());
        if let Some(kind) = tool.r#type.as_ref().map(|kind| kind.0.as_ref()).filter(|kind| *kind != "custom")
        {
            warnings.add(&format!(
                "the tool '{name}' of type '{kind}' exists at Anthropic only and was left out"
            ));
            foreign.push(if name.is_empty() { kind } else { name });
            continue;
        }
        if name.is_empty() {
            return Err(ApiError::invalid(at("name"), format!("'{}' is missing", at("name"))));
        }
        let wrong = || {
            let at = at("input_schema");
            ApiError::invalid(at.as_str(), format!("'{at}' must be a JSON schema, an object"))
        };
        let parameters = tool.input_schema.filter(|raw| raw.get().starts_with('{')).ok_or_else(wrong)?;
        let description = tool.description.as_ref().map(|text| text.0.as_ref());
        let strict = tool.strict.filter(|strict| *strict);
        functions.push(Wrapped {
            r#type: "function",
            function: Function { name, description, parameters, strict },
        });
    }
    edits.push(("tools", if functions.is_empty() { Edit::Remove } else { set(&functions) }));
    if functions.is_empty() && !foreign.is_empty() {
        return Err(only_foreign("tools", foreign[0]));
    }
    choice(body, &functions, &foreign, edits)
}

fn choice(
    body: &Body<'_>,
    functions: &[Wrapped<'_>],
    foreign: &[&str],
    edits: &mut Vec<(&str, Edit)>,
) -> Result<(), ApiError> {
    let asked: Option<Choice<'_>> = read(body, "tool_choice", "an object with 'type'")?;
    let Some(asked) = asked.filter(|_| !functions.is_empty()) else {
        edits.push(("tool_choice", Edit::Remove));
        return Ok(());
    };
    let chosen = match asked.r#type.as_ref().map(|kind| kind.0.as_ref()) {
        Some("auto") => json!("auto"),
        Some("any") => json!("required"),
        Some("none") => json!("none"),
        Some("tool") => {
            let name = asked.name.as_ref().map_or("", |name| name.0.as_ref());
            if foreign.contains(&name) {
                return Err(only_foreign("tool_choice", name));
            }
            if !functions.iter().any(|wrapped| wrapped.function.name == name) {
                let message = "'tool_choice.name' is none of the tools of this request";
                return Err(ApiError::invalid("tool_choice.name", message));
            }
            json!({"type": "function", "function": {"name": name}})
        }
        _ => {
            let message = "'tool_choice.type' must be auto, any, tool or none";
            return Err(ApiError::invalid("tool_choice.type", message));
        }
    };
    edits.push(("tool_choice", set(&chosen)));
    if asked.disable_parallel_tool_use == Some(true) {
        edits.push(("parallel_tool_calls", Edit::Set("false".into())));
    }
    Ok(())
}

fn only_foreign(param: &str, name: &str) -> ApiError {
    let name: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
    ApiError::invalid(
        param,
        format!("the tool '{name}' exists at Anthropic only; send tools with a 'name' and an 'input_schema'"),
    )
}
