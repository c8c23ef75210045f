//! Tools of a request: functions pass, free-form tools become functions of one text, the vendor's own are left out.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::api::body::Text;
use crate::api::chat_body::{Function, Tool};
use crate::api::error::ApiError;

/// What a model is told that a free-form tool takes.
const FREE_TEXT: &str = r#"{"type":"object","properties":{"input":{"type":"string"}},"required":["input"],"additionalProperties":false}"#;

/// The tools of a request, as a chat has them.
#[derive(Debug, Default)]
pub(super) struct Tools {
    /// Functions that may be called.
    pub(super) functions: Vec<Tool>,
    /// Names of those that take free text.
    pub(super) free: BTreeSet<String>,
    /// Which must be called; absent where the model is free.
    pub(super) choice: Option<Value>,
    /// Kinds of tools that were left out.
    pub(super) left_out: Vec<String>,
}

#[derive(Deserialize)]
struct RawTool<'a> {
    #[serde(borrow)]
    r#type: Option<Text<'a>>,
    #[serde(borrow)]
    name: Option<Text<'a>>,
    #[serde(borrow)]
    description: Option<Text<'a>>,
    #[serde(borrow)]
    parameters: Option<&'a RawValue>,
    strict: Option<bool>,
    #[serde(borrow)]
    format: Option<Format<'a>>,
}

#[derive(Deserialize)]
struct Format<'a> {
    #[serde(borrow)]
    syntax: Option<Text<'a>>,
    #[serde(borrow)]
    definition: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct RawChoice<'a> {
    #[serde(borrow)]
    r#type: Option<Text<'a>>,
    #[serde(borrow)]
    name: Option<Text<'a>>,
    #[serde(borrow)]
    mode: Option<Text<'a>>,
    #[serde(borrow)]
    tools: Option<Vec<RawChoice<'a>>>,
}

impl Tools {
    /// Reads `tools` and `tool_choice`.
    pub(super) fn read(tools: Option<&RawValue>, choice: Option<&RawValue>) -> Result<Self, ApiError> {
        let mut out = Self::default();
        if let Some(raw) = tools {
            let list: Vec<RawTool<'_>> = serde_json::from_str(raw.get()).map_err(|_| {
                ApiError::invalid("tools", "'tools' must be a list of objects with 'type', such as {\"type\":\"function\",\"name\":\"f\"}")
            })?;
            for (place, tool) in list.into_iter().enumerate() {
                out.add(place, tool)?;
            }
        }
        if let Some(raw) = choice {
            out.choose(raw)?;
        }
        if out.functions.is_empty() {
            out.choice = None;
        }
        Ok(out)
    }

    fn add(&mut self, place: usize, tool: RawTool<'_>) -> Result<(), ApiError> {
        let kind = tool.r#type.as_ref().map_or("function", |kind| kind.0.as_ref());
        if !matches!(kind, "function" | "custom") {
            let kind: String = kind.chars().filter(|c| c.is_ascii_graphic()).take(40).collect();
            if !self.left_out.contains(&kind) {
                self.left_out.push(kind);
            }
            return Ok(());
        }
        let is_free = kind == "custom";
        let name = tool.name.map(|name| name.0.into_owned()).ok_or_else(|| {
            ApiError::invalid(
                format!("tools[{place}].name"),
                format!("'tools[{place}].name' is missing; here a tool's name stands beside its 'type'"),
            )
        })?;
        let mut description = tool.description.map(|text| text.0.into_owned());
        let mut parameters = tool.parameters.map(ToOwned::to_owned);
        if is_free {
            parameters = RawValue::from_string(FREE_TEXT.into()).ok();
            if let Some(Format { syntax, definition: Some(definition) }) = tool.format {
                let syntax = syntax.map_or_else(|| "this".into(), |syntax| syntax.0);
                let text = description.get_or_insert_default();
                text.push_str(&format!("\n\nThe input follows {syntax} grammar:\n{}", definition.0));
            }
            self.free.insert(name.clone());
        }
        let function = Function { name, description, parameters, strict: tool.strict };
        self.functions.push(Tool { r#type: "function", function });
        Ok(())
    }

    fn choose(&mut self, raw: &RawValue) -> Result<(), ApiError> {
        let wrong = || {
            ApiError::invalid(
                "tool_choice",
                "'tool_choice' must be none, auto, required, or name a tool: {\"type\":\"function\",\"name\":\"f\"}",
            )
        };
        if let Ok(word) = serde_json::from_str::<Text<'_>>(raw.get()) {
            if !matches!(word.0.as_ref(), "none" | "auto" | "required") {
                return Err(wrong());
            }
            if word.0 == "required" && self.functions.is_empty() && !self.left_out.is_empty() {
                return Err(self.cannot_run(&self.left_out[0]));
            }
            self.choice = Some(word.0.into_owned().into());
            return Ok(());
        }
        let choice: RawChoice<'_> = serde_json::from_str(raw.get()).map_err(|_| wrong())?;
        let kind = choice.r#type.as_ref().ok_or_else(wrong)?.0.as_ref();
        match kind {
            "function" | "custom" => {
                let name = choice.name.ok_or_else(wrong)?.0;
                if !self.functions.iter().any(|tool| tool.function.name == name) {
                    let shown: String = name.chars().take(64).collect();
                    return Err(ApiError::invalid("tool_choice", format!("no tool is named '{shown}'")));
                }
                self.choice = Some(json!({"type": "function", "function": {"name": name}}));
                Ok(())
            }
            "allowed_tools" => {
                let allowed: BTreeSet<String> = choice
                    .tools
                    .ok_or_else(wrong)?
                    .into_iter()
                    .filter_map(|tool| tool.name)
                    .map(|name| name.0.into_owned())
                    .collect();
                self.functions.retain(|tool| allowed.contains(&tool.function.name));
                self.choice =
                    Some(choice.mode.map_or_else(|| "auto".into(), |mode| mode.0.into_owned().into()));
                Ok(())
            }
            other => Err(self.cannot_run(&other.chars().take(40).collect::<String>())),
        }
    }

    fn cannot_run(&self, kind: &str) -> ApiError {
        let message = format!(
            "'{kind}' is a tool that the vendor runs, and nobody runs it here; offer a function instead"
        );
        ApiError { param: Some("tool_choice".into()), ..ApiError::new(400, "unsupported", message) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(tools: &str, choice: Option<&str>) -> Result<Tools, ApiError> {
        let raw = |text: &str| RawValue::from_string(text.into()).unwrap();
        Tools::read(Some(&raw(tools)), choice.map(raw).as_deref())
    }

    const F: &str = r#"{"type":"function","name":"f","strict":true,"parameters":{"type":"object","properties":{"z":{},"a":{}}}}"#;

    #[test]
    fn a_function_keeps_its_schema_and_a_free_form_tool_takes_one_text() {
        let custom = r#"{"type":"custom","name":"patch","description":"Patches.","format":{"type":"grammar","syntax":"lark","definition":"start: x"}}"#;
        let tools = read(&format!("[{F},{custom},{{\"type\":\"web_search\"}}]"), Some(r#""auto""#)).unwrap();
        let json = serde_json::to_string(&tools.functions).unwrap();
        assert!(json.starts_with(
            r#"[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"z":{},"a":{}}},"strict":true}}"#
        ), "{json}");
        assert_eq!(
            tools.functions[1].function.description.as_deref(),
            Some("Patches.\n\nThe input follows lark grammar:\nstart: x")
        );
        assert_eq!(tools.free.iter().collect::<Vec<_>>(), ["patch"]);
        assert_eq!((tools.choice, tools.left_out), (Some(json!("auto")), vec!["web_search".to_owned()]));
    }

    #[test]
    fn a_choice_that_can_be_kept_is_kept() {
        let g = F.replace("\"f\"", "\"g\"");
        let both = format!("[{F},{g}]");
        let named = read(&both, Some(r#"{"type":"function","name":"g"}"#)).unwrap();
        assert_eq!(named.choice, Some(json!({"type": "function", "function": {"name": "g"}})));
        let allowed =
            r#"{"type":"allowed_tools","mode":"required","tools":[{"type":"function","name":"g"}]}"#;
        let allowed = read(&both, Some(allowed)).unwrap();
        assert_eq!((allowed.functions.len(), allowed.choice), (1, Some(json!("required"))));
        assert_eq!(
            read("[]", Some(r#""auto""#)).unwrap().choice,
            None,
            "without tools there is nothing to choose"
        );
    }

    #[test]
    fn a_choice_that_cannot_be_kept_is_refused() {
        for (tools, choice) in [
            ("[]", r#""sometimes""#),
            ("[]", r#"{"type":"function","name":"f"}"#),
            (r#"[{"type":"web_search"}]"#, r#"{"type":"web_search"}"#),
            (r#"[{"type":"web_search"}]"#, r#""required""#),
            ("[]", "7"),
        ] {
            let error = read(tools, Some(choice)).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some("tool_choice")), "{choice}");
        }
        assert_eq!(
            read(r#"[{"type":"function","function":{"name":"f"}}]"#, None).unwrap_err().param.as_deref(),
            Some("tools[0].name")
        );
    }
}
