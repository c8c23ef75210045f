//! The grammar of FunctionGemma's arguments, which are no JSON: keys are bare and texts stand between escape tokens.
//!
//! It is made from the JSON schema of the tool. Members come in the order of the alphabet, as the model's chat template
//! writes them. Where a schema says more than this form can be held to (patterns, bounds of numbers), a strict tool is
//! refused; otherwise the type is enforced and the rest is left to the model.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::Error;
use crate::form::{Tool, literal, written};

/// Nesting of a schema, and rules of one tool.
const MAX_DEPTH: usize = 16;
const MAX_RULES: usize = 2_000;

/// Keywords that are followed or say nothing of the form.
const FOLLOWED: [&str; 17] = [
    "type",
    "enum",
    "const",
    "properties",
    "required",
    "items",
    "anyOf",
    "oneOf",
    "additionalProperties",
    "title",
    "description",
    "default",
    "examples",
    "nullable",
    "minLength",
    "maxLength",
    "$schema",
];

/// Adds the rules of a tool's arguments, the first of them called `{prefix}_0`; `escape` is the token around texts.
pub(crate) fn rules(rules: &mut String, prefix: &str, escape: &str, tool: &Tool) -> Result<(), Error> {
    let mut writer = Writer { rules, prefix, escape, count: 0, strict: tool.strict };
    let root = writer.object(tool.parameters.as_object().unwrap_or(&Map::new()), MAX_DEPTH)?;
    match root == format!("{prefix}_0") {
        true => Ok(()),
        false => Err(Error::Compute("the grammar of a tool has no first rule".to_owned())),
    }
}

struct Writer<'a> {
    rules: &'a mut String,
    prefix: &'a str,
    escape: &'a str,
    count: usize,
    strict: bool,
}

impl Writer<'_> {
    /// Writes a rule for a value of that schema and returns its name.
    fn value(&mut self, schema: &Value, depth: usize) -> Result<String, Error> {
        let Some(left) = depth.checked_sub(1) else {
            return Err(Error::Form(format!("the arguments of a tool are nested deeper than {MAX_DEPTH}")));
        };
        let empty = Map::new();
        let schema = schema.as_object().unwrap_or(&empty);
        self.check(schema)?;
        if let Some(values) = schema.get("enum").and_then(Value::as_array) {
            let values = values.iter().map(|value| self.exactly(value)).collect::<Vec<_>>().join(" | ");
            return self.rule(&values);
        }
        if let Some(value) = schema.get("const") {
            let value = self.exactly(value);
            return self.rule(&value);
        }
        if let Some(list) = ["anyOf", "oneOf"].iter().find_map(|key| schema.get(*key)?.as_array()) {
            return self.one_of(list.iter(), left);
        }
        match schema.get("type") {
            Some(Value::String(kind)) => self.of_type(kind, schema, left),
            Some(Value::Array(kinds)) => {
                let kinds: Vec<&str> = kinds.iter().filter_map(Value::as_str).collect();
                let names = kinds.into_iter().map(|kind| self.of_type(kind, schema, left)).collect::<Result<
                    Vec<_>,
                    _,
                >>(
                )?;
                self.rule(&names.join(" | "))
            }
            _ if schema.contains_key("properties") => self.object(schema, left),
            _ => {
                let kinds = ["string", "number", "boolean", "null"];
                let kinds = kinds.map(|kind| Value::from_iter([("type", kind)]));
                self.one_of(kinds.iter(), left)
            }
        }
    }

    fn one_of<'v>(
        &mut self,
        schemas: impl Iterator<Item = &'v Value>,
        depth: usize,
    ) -> Result<String, Error> {
        let names = schemas.map(|schema| self.value(schema, depth)).collect::<Result<Vec<_>, _>>()?;
        self.rule(&names.join(" | "))
    }

    fn of_type(&mut self, kind: &str, schema: &Map<String, Value>, depth: usize) -> Result<String, Error> {
        match kind {
            "string" => {
                let number = |key: &str| schema.get(key).and_then(Value::as_u64);
                let (least, most) = (number("minLength").unwrap_or(0), number("maxLength"));
                let escape = self.escape;
                // No lexeme may be empty, so an empty text is no lexeme at all.
                let maybe = if least == 0 { "?" } else { "" };
                let text = match most {
                    Some(0) => String::new(),
                    Some(most) => format!("/(.|\\n){{{},{most}}}/{maybe}", least.max(1)),
                    None => format!("/(.|\\n){{{},}}/{maybe}", least.max(1)),
                };
                self.rule(&format!("{escape} {text} {escape}"))
            }
            "integer" => self.rule("/-?(0|[1-9][0-9]{0,17})/"),
            "number" => self.rule("/-?(0|[1-9][0-9]{0,17})(\\.[0-9]{1,17})?/"),
            "boolean" => self.rule("\"true\" | \"false\""),
            "null" => self.rule("\"null\""),
            "array" => {
                let any = Value::Null;
                let item = self.value(schema.get("items").unwrap_or(&any), depth)?;
                self.rule(&format!("\"[\" ({item} (\",\" {item})*)? \"]\""))
            }
            "object" => self.object(schema, depth),
            other => Err(Error::Form(format!("a tool's schema names the type {}", literal(other)))),
        }
    }

    /// Members in their order, each optional one with a way past it: `first` rules stand where no member was written yet,
    /// `rest` rules where the next one needs a comma.
    fn object(&mut self, schema: &Map<String, Value>, depth: usize) -> Result<String, Error> {
        self.check(schema)?;
        let own = self.name()?;
        let empty = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if let Some(unknown) = required.iter().find(|name| !properties.contains_key(**name)) {
            return Err(Error::Form(format!(
                "a tool requires {}, which it does not describe",
                literal(unknown)
            )));
        }
        let mut members: Vec<(&String, &Value)> = properties.iter().collect();
        members.sort_unstable_by_key(|(name, _)| name.to_lowercase());
        let mut first = String::from("\"\"");
        let mut rest = String::from("\"\"");
        for (name, schema) in members.into_iter().rev() {
            if name.contains([':', ',', '{', '}', '[', ']']) {
                return Err(Error::Form(format!("a tool's argument cannot be called {}", literal(name))));
            }
            let value = self.value(schema, depth)?;
            let member = format!("{} {value} {rest}", literal(&format!("{name}:")));
            let with_comma = format!("\",\" {member}");
            let optional = !required.contains(&name.as_str());
            first = self.rule(&if optional { format!("{member} | {first}") } else { member })?;
            rest = self.rule(&if optional { format!("{with_comma} | {rest}") } else { with_comma })?;
        }
        writeln!(self.rules, "{own}: \"{{\" {first} \"}}\"").map_err(written)?;
        Ok(own)
    }

    fn exactly(&self, value: &Value) -> String {
        match value {
            Value::String(text) => format!("{0} {1} {0}", self.escape, literal(text)),
            other => literal(&other.to_string()),
        }
    }

    fn check(&self, schema: &Map<String, Value>) -> Result<(), Error> {
        let unknown = schema.keys().find(|key| !FOLLOWED.contains(&key.as_str()));
        match unknown {
            Some(key) if self.strict || key == "$ref" || key == "allOf" => Err(Error::Form(format!(
                "{} in a tool's schema is not supported for this model",
                literal(key)
            ))),
            _ => Ok(()),
        }
    }

    fn rule(&mut self, body: &str) -> Result<String, Error> {
        let name = self.name()?;
        writeln!(self.rules, "{name}: {body}").map_err(written)?;
        Ok(name)
    }

    fn name(&mut self) -> Result<String, Error> {
        if self.count == MAX_RULES {
            return Err(Error::Form("the arguments of a tool are too many".to_owned()));
        }
        self.count += 1;
        Ok(format!("{}_{}", self.prefix, self.count - 1))
    }
}
