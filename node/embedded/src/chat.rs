//! From chat messages to the prompt text that a model was trained on, by the template inside its file.
//!
//! Templates are Jinja programs written for Hugging Face's renderer, so the environment offers what that one does:
//! trimmed blocks, Python's string methods, `raise_exception`, and a `tojson` that writes as Python does, with a space
//! behind each comma and colon. `strftime_now` is left out: templates then take the date of
//! their training, and the same conversation gives the same prompt. They come from the internet, so fuel bounds their
//! loops.

use std::collections::HashMap;
use std::io::Write;

use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, context};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Error;
use crate::calls::CallFormat;

/// Steps that a template may take; a conversation of 1,000 messages needs some 100,000.
const FUEL: u64 = 5_000_000;

/// Template of models that bring none: ChatML.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// The instruction without which FunctionGemma calls nothing; its authors say to give it word for word.
const FUNCTION_GEMMA: &str = "You are a model that can do function calling with the following functions";

/// One message of a conversation.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or `tool`; `developer` is read as `system`.
    pub role: String,
    /// The text; empty for an assistant's message that only calls tools.
    #[serde(default)]
    pub content: String,
    /// Name of the author or of the tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Calls that the assistant made, as in the OpenAI API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Value>,
    /// The call that a tool's message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl ChatMessage {
    /// Makes a message with a role and a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }
}

/// A model's chat template, parsed.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    begin: String,
    end: String,
    calls: Option<CallFormat>,
}

impl ChatTemplate {
    /// Parses `source`, or takes ChatML if there is none; `begin` and `end` are the texts of those tokens.
    pub(crate) fn new(source: Option<&str>, begin: &str, end: &str) -> Result<Self, Error> {
        let source = source.unwrap_or(CHATML);
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("tojson", to_json);
        environment.add_template_owned("chat", source.to_owned()).map_err(template_error)?;
        let calls = CallFormat::of_template(source);
        Ok(Self { environment, begin: begin.to_owned(), end: end.to_owned(), calls })
    }

    /// Returns how the model was taught to call tools, if it is known.
    pub(crate) fn calls(&self) -> Option<CallFormat> {
        self.calls
    }

    /// Renders the conversation and the opening of the assistant's answer.
    pub(crate) fn render(&self, messages: &[ChatMessage], tools: Option<&Value>) -> Result<String, Error> {
        let mut messages: Vec<Value> = messages.iter().map(plain).collect::<Result<_, _>>()?;
        name_results(&mut messages);
        let template = self.environment.get_template("chat").map_err(template_error)?;
        let tools = tools.filter(|tools| tools.as_array().is_some_and(|list| !list.is_empty()));
        let instructed = messages.first().is_some_and(|message| message["role"] == "system");
        if self.calls == Some(CallFormat::FunctionGemma) && tools.is_some() && !instructed {
            messages.insert(0, json!({ "role": "developer", "content": FUNCTION_GEMMA }));
        }
        template
            .render(context! {
                messages,
                tools,
                add_generation_prompt => true,
                bos_token => self.begin,
                eos_token => self.end,
            })
            .map_err(template_error)
    }
}

/// Turns a message into what templates expect: a known role, and the arguments of tool calls as objects, not as text.
fn plain(message: &ChatMessage) -> Result<Value, Error> {
    let mut value = serde_json::to_value(message).map_err(|error| Error::Template(error.to_string()))?;
    if message.role == "developer" {
        value["role"] = Value::from("system");
    }
    let calls = value.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        if let Some(arguments) = call.pointer_mut("/function/arguments")
            && let Some(parsed) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok())
        {
            *arguments = parsed;
        }
    }
    Ok(value)
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=…)`: what models saw in training; minijinja's own filter leaves the
/// spaces out and escapes for HTML.
fn to_json(value: minijinja::Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let mut text = Vec::new();
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, Spaced)),
    };
    let failed = |error: String| minijinja::Error::new(ErrorKind::BadSerialization, error);
    written.map_err(|error| failed(error.to_string()))?;
    String::from_utf8(text).map_err(|error| failed(error.to_string()))
}

/// JSON on one line with Python's spaces.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Names the tool in each result by the call that it answers: some templates want the name, the API gives the call's id.
fn name_results(messages: &mut [Value]) {
    let mut names: HashMap<String, Value> = HashMap::new();
    for message in messages {
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            if let Some(id) = call["id"].as_str() {
                names.insert(id.to_owned(), call["function"]["name"].clone());
            }
        }
        if message["role"] == "tool"
            && message["name"].is_null()
            && let Some(name) = message["tool_call_id"].as_str().and_then(|id| names.get(id))
        {
            message["name"] = name.clone();
        }
    }
}

fn template_error(error: minijinja::Error) -> Error {
    match error.detail() {
        Some(detail) => Error::Template(detail.to_owned()),
        None => Error::Template(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITH_TOOLS: &str = "{%- if tools %}\n    {{- '<tools>' }}\n    {%- for tool in tools %}{{ tool | tojson }}{% endfor %}\n    {{- '</tools>' }}\n{%- endif %}\n{%- for message in messages %}\n{%- if message.role == 'tool' and not message.content.startswith('ok') %}{{ raise_exception('a tool must say ok') }}{% endif %}\n{%- if message.tool_calls %}{% for call in message.tool_calls %}[{{ call.function.name }} {{ call.function.arguments.city }}]{% endfor %}{% else %}{{ bos_token + message.content.strip() }}{% endif %}\n{%- endfor %}";

    fn template() -> ChatTemplate {
        ChatTemplate::new(Some(WITH_TOOLS), "<s>", "</s>").expect("a template")
    }

    #[test]
    fn tools_and_calls_reach_the_template_as_values() {
        let call = json!([{"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\":\"Oslo\"}"}}]);
        let mut assistant = ChatMessage::new("assistant", "");
        assistant.tool_calls = Some(call);
        let tools = json!([{"type": "function", "function": {"name": "weather"}}]);
        let text = template()
            .render(&[ChatMessage::new("user", " hi "), assistant], Some(&tools))
            .expect("a prompt");
        assert_eq!(
            text,
            "<tools>{\"type\": \"function\", \"function\": {\"name\": \"weather\"}}</tools><s>hi[weather Oslo]"
        );
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let source = "{% for m in messages %}{{ m.tool_calls | tojson }}|{{ m.tool_calls | tojson(indent=4) }}{% endfor %}";
        let template = ChatTemplate::new(Some(source), "", "").expect("a template");
        let mut message = ChatMessage::new("assistant", "");
        message.tool_calls = Some(json!([{ "b": [1, "<\u{e9}>"], "a": {} }]));
        let one_line = "[{\"b\": [1, \"<\u{e9}>\"], \"a\": {}}]";
        let indented = "[\n    {\n        \"b\": [\n            1,\n            \"<\u{e9}>\"\n        ],\n        \"a\": {}\n    }\n]";
        assert_eq!(template.render(&[message], None).expect("a prompt"), format!("{one_line}|{indented}"));
    }

    #[test]
    fn a_result_carries_the_name_of_the_tool_that_was_called() {
        let source = "{% for m in messages %}{{ m.role }}:{{ m.name }};{% endfor %}";
        let template = ChatTemplate::new(Some(source), "", "").expect("a template");
        let mut assistant = ChatMessage::new("assistant", "");
        assistant.tool_calls =
            Some(json!([{ "id": "c1", "function": { "name": "now", "arguments": "{}" } }]));
        let mut result = ChatMessage::new("tool", "12:00");
        result.tool_call_id = Some("c1".to_owned());
        let mut unknown = result.clone();
        unknown.tool_call_id = Some("c2".to_owned());
        let text = template.render(&[assistant, result, unknown], None).expect("a prompt");
        assert_eq!(text, "assistant:;tool:now;tool:;");
    }

    #[test]
    fn no_tools_and_an_empty_list_of_them_are_the_same() {
        let messages = [ChatMessage::new("user", "hi")];
        let none = template().render(&messages, None).expect("a prompt");
        assert_eq!(none, template().render(&messages, Some(&json!([]))).expect("a prompt"));
        assert_eq!(none, "<s>hi");
    }

    #[test]
    fn what_a_template_refuses_is_passed_on_in_its_words() {
        let error = template().render(&[ChatMessage::new("tool", "no")], None).expect_err("a refusal");
        assert_eq!(error.to_string(), "the model's chat template failed: a tool must say ok");
    }
}
