//! The form of an answer as a request puts it: `response_format`, `tools`, `tool_choice`.

use serde::Deserialize;
use serde_json::Value;

use super::parse::{invalid, unsupported};
use crate::upstream::UpstreamError;

/// JSON that an answer must be.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonForm {
    /// The schema; `None` takes any object.
    pub schema: Option<Value>,
    /// Refuses a schema with parts that cannot be enforced instead of leaving those parts out.
    pub strict: bool,
}

/// A tool that an answer may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// JSON schema of its arguments; `null` takes any object.
    pub parameters: Value,
    /// As in [`JsonForm`].
    pub strict: bool,
}

/// Which tools an answer may call.
#[derive(Debug, Clone, PartialEq)]
pub struct CallRules {
    /// At least one; calls of others are text.
    pub tools: Vec<Tool>,
    /// The answer must be calls.
    pub required: bool,
    /// More than one call may be made.
    pub parallel: bool,
}

/// A call that an answer makes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Call {
    /// The tool's name.
    pub name: String,
    /// Its arguments: the text of a JSON object.
    pub arguments: String,
}

#[derive(Deserialize)]
struct WireTool {
    r#type: String,
    function: Option<WireFunction>,
}

#[derive(Deserialize)]
struct WireFunction {
    name: String,
    #[serde(default)]
    parameters: Value,
    strict: Option<bool>,
}

#[derive(Deserialize)]
struct WireFormat {
    r#type: String,
    json_schema: Option<WireSchema>,
}

#[derive(Deserialize)]
struct WireSchema {
    schema: Option<Value>,
    strict: Option<bool>,
}

/// Reads `response_format`; `None` leaves the text free.
pub(super) fn json(format: Option<&Value>) -> Result<Option<JsonForm>, UpstreamError> {
    let Some(format) = format.filter(|format| !format.is_null()) else { return Ok(None) };
    let wrong = || {
        invalid("'response_format' must have a type, and for 'json_schema' a 'json_schema' with a 'schema'")
    };
    let format = WireFormat::deserialize(format).map_err(|_| wrong())?;
    match format.r#type.as_str() {
        "text" => Ok(None),
        "json_object" => Ok(Some(JsonForm { schema: None, strict: true })),
        "json_schema" => {
            let WireSchema { schema, strict } = format.json_schema.ok_or_else(wrong)?;
            let schema = schema.filter(Value::is_object).ok_or_else(wrong)?;
            Ok(Some(JsonForm { schema: Some(schema), strict: strict == Some(true) }))
        }
        _ => Err(unsupported("'response_format' other than text, json_object and json_schema")),
    }
}

/// Reads `tools` and `tool_choice`; `None` if no tool may be called.
pub(super) fn calls(
    tools: Option<&Value>,
    choice: Option<&Value>,
    parallel: bool,
) -> Result<Option<CallRules>, UpstreamError> {
    let wrong = || invalid("'tools' must be a list of functions, each with a name");
    let mut tools = match tools {
        Some(tools) => Vec::<WireTool>::deserialize(tools).map_err(|_| wrong())?,
        None => Vec::new(),
    }
    .into_iter()
    .map(|tool| match tool.function {
        _ if tool.r#type != "function" => Err(unsupported("tools other than functions")),
        Some(WireFunction { name, parameters, strict }) => {
            Ok(Tool { name, parameters, strict: strict == Some(true) })
        }
        None => Err(wrong()),
    })
    .collect::<Result<Vec<_>, _>>()?;
    let required = match choice {
        None | Some(Value::Null) => false,
        Some(Value::String(word)) => match word.as_str() {
            "auto" => false,
            "none" => return Ok(None),
            "required" => true,
            _ => return Err(invalid("'tool_choice' must be none, auto, required or a function")),
        },
        Some(named) => {
            let Some(name) = named["function"]["name"].as_str().filter(|_| named["type"] == "function")
            else {
                return Err(unsupported("this kind of 'tool_choice'"));
            };
            tools.retain(|tool| tool.name == name);
            if tools.is_empty() {
                return Err(invalid("'tool_choice' names a function that is not among 'tools'"));
            }
            return Ok(Some(CallRules { tools, required: true, parallel: false }));
        }
    };
    match tools.is_empty() {
        true if required => Err(invalid("'tool_choice' needs 'tools'")),
        true => Ok(None),
        false => Ok(Some(CallRules { tools, required, parallel })),
    }
}
