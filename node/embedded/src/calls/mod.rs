//! How families of models call tools, and the calls found in their answers.
//!
//! A model writes a call as text of the form that it was trained on; which form that is, its chat template tells. Names
//! that were not offered and text that is no sound call stay text: nothing that a model said is lost.

pub(crate) mod arguments;
mod read;
mod stream;

pub(crate) use stream::CallStream;

/// Most calls of one answer.
pub(crate) const MAX_CALLS: usize = 16;

/// A call that an answer makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// The tool's name.
    pub name: String,
    /// Its arguments: the text of a JSON object.
    pub arguments: String,
}

/// The form in which a family of models writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallFormat {
    /// `<start_function_call>call:name{key:<escape>text<escape>,other:1}<end_function_call>`.
    FunctionGemma,
    /// `<tool_call>`, a line `{"name": …, "arguments": {…}}`, `</tool_call>`: Hermes, Qwen, SmolLM2.
    Hermes,
    /// The answer as a whole is `{"name": …, "parameters": {…}}`, maybe behind `<|python_tag|>`: Llama 3.
    Llama,
}

impl CallFormat {
    /// Quotes texts in FunctionGemma's form.
    pub(crate) const ESCAPE: &str = "<escape>";

    /// Opens a call of Llama 3 where the model does not write it bare.
    const PYTHON_TAG: &str = "<|python_tag|>";

    /// Tells the form from the source of a chat template; `None` if it shows no tools, or asks for another form.
    pub(crate) fn of_template(source: &str) -> Option<Self> {
        let says = |text: &str| source.contains(text);
        match () {
            () if !says("tools") => None,
            () if says("<start_function_call>") => Some(Self::FunctionGemma),
            // Qwen 3 Coder puts its arguments into tags of their own.
            () if says("<tool_call>") && !says("<function=") => Some(Self::Hermes),
            () if says("\"parameters\"") && (says(Self::PYTHON_TAG) || says("ipython")) => Some(Self::Llama),
            () => None,
        }
    }

    /// What opens and closes a call; `None` where it is the whole answer.
    pub(crate) fn markers(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::FunctionGemma => Some(("<start_function_call>", "<end_function_call>")),
            Self::Hermes => Some(("<tool_call>", "</tool_call>")),
            Self::Llama => None,
        }
    }

    /// All tokens that calls are written with and that may be control tokens.
    pub(crate) fn tokens(self) -> &'static [&'static str] {
        match self {
            Self::FunctionGemma => &["<start_function_call>", "<end_function_call>", Self::ESCAPE],
            Self::Hermes => &["<tool_call>", "</tool_call>"],
            Self::Llama => &[Self::PYTHON_TAG],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_tells_the_form_of_calls() {
        let cases = [
            (
                "{% if tools %}<start_function_declaration>…<start_function_call>call:",
                Some(CallFormat::FunctionGemma),
            ),
            ("{%- if tools %}…<tool_call>\\n{\"name\": <function-name>", Some(CallFormat::Hermes)),
            ("{%- if tools %}…<tool_call>\\n<function=", None),
            (
                "{%- if tools is not none %}Environment: ipython … {\"name\": f, \"parameters\": {}}",
                Some(CallFormat::Llama),
            ),
            ("{%- if tools %}[AVAILABLE_TOOLS]", None),
            ("{% for message in messages %}<tool_call>{% endfor %}", None),
        ];
        for (source, expected) in cases {
            assert_eq!(CallFormat::of_template(source), expected, "{source}");
        }
    }
}
