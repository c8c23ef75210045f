//! Plans an answer: which pieces of text or of a tool call, and why it ends.

use serde_json::{Value, json};

use super::request::{Path, Request, Tool};
use crate::{
    script::Script,
    words::{Words, broken_off_at},
};

/// Characters of a tool call's arguments in one piece of a stream.
const ARGUMENT_PIECE: usize = 8;

/// One choice of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Choice {
    /// Tokens, in order; their concatenation is the text, or the arguments of the tool call.
    pub(super) pieces: Vec<String>,
    /// Words of the thought before it, in order.
    pub(super) thought: Vec<String>,
    /// Name of the tool called, if the answer is a call.
    pub(super) tool: Option<String>,
    /// `stop`, `length` or `tool_calls`.
    pub(super) finish: &'static str,
}

impl Choice {
    pub(super) fn text(&self) -> String {
        self.pieces.concat()
    }
}

/// The choices for `request` under `script`; `seq` makes the nonces of attempts differ.
pub(super) fn plan(request: &Request, script: &Script, nonce: u16) -> Vec<Choice> {
    let thinks = matches!(request.path, Path::Chat | Path::Ollama) && !request.no_thoughts;
    let thought: Vec<String> =
        (0..if thinks { script.think } else { 0 }).map(|i| format!("hm{i} ")).collect();
    (0..request.n)
        .map(|index| match called_tool(request, script) {
            Some(tool) => call(tool),
            None => text(request, script, nonce.wrapping_add(index as u16)),
        })
        .map(|choice| Choice { thought: thought.clone(), ..choice })
        .collect()
}

fn called_tool<'a>(request: &'a Request, script: &Script) -> Option<&'a Tool> {
    match &request.must_call {
        Some(Some(name)) => request.tools.iter().find(|tool| tool.name == *name),
        Some(None) => request.tools.first(),
        None if script.tool => request.tools.first(),
        None => None,
    }
}

fn text(request: &Request, script: &Script, nonce: u16) -> Choice {
    // Greedy engines with the same weights would go on alike; here the words are told to by their nonce.
    let (nonce, begun) = request.continued.as_deref().and_then(broken_off_at).unwrap_or((nonce, 0));
    let words = Words::new(&request.prompt, nonce);
    let allowed = request.max_tokens.unwrap_or(usize::MAX);
    let wanted = script.say.as_ref().map_or(script.tokens, |text| text.split_inclusive(' ').count());
    let mut pieces: Vec<String> = match &script.say {
        Some(text) => text.split_inclusive(' ').take(allowed).map(str::to_owned).collect(),
        None => (begun..wanted.min(allowed.saturating_add(begun)))
            .map(|i| if i == 0 { words.word(i) } else { format!(" {}", words.word(i)) })
            .collect(),
    };
    let whole = pieces.concat();
    let stop_at = request.stop.iter().filter_map(|word| whole.find(word.as_str())).min();
    let finish = match stop_at {
        Some(at) => {
            truncate(&mut pieces, at);
            "stop"
        }
        None if allowed.saturating_add(begun) < wanted => "length",
        None => "stop",
    };
    Choice { pieces, thought: Vec::new(), tool: None, finish }
}

/// Keeps the first `at` bytes; the text is ASCII, so any cut is a character's edge.
fn truncate(pieces: &mut Vec<String>, at: usize) {
    let mut left = at;
    pieces.retain_mut(|piece| {
        piece.truncate(left.min(piece.len()));
        left -= piece.len();
        !piece.is_empty()
    });
}

fn call(tool: &Tool) -> Choice {
    let arguments = sample(&tool.parameters).to_string();
    let characters: Vec<char> = arguments.chars().collect();
    Choice {
        pieces: characters.chunks(ARGUMENT_PIECE).map(|piece| piece.iter().collect()).collect(),
        thought: Vec::new(),
        tool: Some(tool.name.clone()),
        finish: "tool_calls",
    }
}

/// A value that fits a JSON schema well enough for a caller to parse: every listed property, of its type.
fn sample(schema: &Value) -> Value {
    if let Some(first) = schema["enum"].as_array().and_then(|values| values.first()) {
        return first.clone();
    }
    match schema["type"].as_str() {
        Some("string") => json!("stub"),
        Some("integer") => json!(1),
        Some("number") => json!(1.5),
        Some("boolean") => json!(true),
        Some("array") => json!([sample(&schema["items"])]),
        _ => {
            let properties = schema["properties"].as_object().into_iter().flatten();
            Value::Object(properties.map(|(name, schema)| (name.clone(), sample(schema))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(more: Value) -> Request {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        for (key, value) in more.as_object().expect("an object") {
            body[key] = value.clone();
        }
        Request::parse(Path::Chat, body.to_string().as_bytes()).expect("valid")
    }

    fn script(tokens: usize) -> Script {
        Script { tokens, ..Script::default() }
    }

    #[test]
    fn max_tokens_ends_with_length_and_the_end_of_the_script_with_stop() {
        let choices = plan(&request(json!({"max_tokens": 3})), &script(8), 1);
        assert_eq!((choices[0].pieces.len(), choices[0].finish), (3, "length"));
        let choices = plan(&request(json!({"max_tokens": 8})), &script(8), 1);
        assert_eq!((choices[0].pieces.len(), choices[0].finish), (8, "stop"));
    }

    #[test]
    fn a_scripted_text_is_said_word_by_word() {
        let mut script = script(8);
        script.apply("say={\"grade\":_7}").expect("a text");
        let choice = plan(&request(json!({})), &script, 1).remove(0);
        assert_eq!(
            (choice.text().as_str(), choice.pieces.len(), choice.finish),
            ("{\"grade\": 7}", 2, "stop")
        );
        let cut = plan(&request(json!({"max_tokens": 1})), &script, 1).remove(0);
        assert_eq!((cut.pieces.len(), cut.finish), (1, "length"));
    }

    #[test]
    fn a_stop_word_cuts_before_itself() {
        let choices = plan(&request(json!({"stop": ["w0003"]})), &script(8), 1);
        assert_eq!(crate::words::verify("hi", &choices[0].text()), Ok(3));
        assert_eq!(choices[0].finish, "stop");
    }

    #[test]
    fn a_begun_answer_is_gone_on_with_in_its_own_words() {
        let whole = plan(&request(json!({})), &script(8), 7)[0].text();
        let begun: String = whole.split_inclusive(' ').take(3).collect();
        let going_on = |more: Value| {
            let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": begun.trim_end()}]);
            let mut fields =
                json!({"messages": messages, "continue_final_message": true, "add_generation_prompt": false});
            for (key, value) in more.as_object().expect("an object") {
                fields[key] = value.clone();
            }
            plan(&request(fields), &script(8), 8).remove(0)
        };
        let rest = going_on(json!({}));
        assert_eq!((format!("{}{}", begun.trim_end(), rest.text()), rest.finish), (whole, "stop"));
        let cut = going_on(json!({"max_tokens": 2}));
        assert_eq!((cut.pieces.len(), cut.finish), (2, "length"));
    }

    #[test]
    fn choices_of_one_answer_are_different_attempts() {
        let choices = plan(&request(json!({"n": 2})), &script(4), 1);
        assert_eq!(choices.len(), 2);
        assert_ne!(choices[0].text(), choices[1].text());
    }

    #[test]
    fn a_tool_is_called_when_the_script_or_the_choice_asks() {
        let tools = json!([{"type": "function", "function": {"name": "weather", "parameters":
            {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}}]);
        let asked = |choice: Value, tool: bool| {
            let request = request(json!({"tools": tools, "tool_choice": choice}));
            plan(&request, &Script { tool, ..script(4) }, 1).remove(0)
        };
        assert_eq!(asked(json!("auto"), false).tool, None);
        let call = asked(json!("auto"), true);
        assert_eq!((call.tool.as_deref(), call.finish), (Some("weather"), "tool_calls"));
        let arguments: Value = serde_json::from_str(&call.text()).expect("JSON");
        assert_eq!(arguments, json!({"city": "stub", "days": 1}));
        assert!(asked(json!("required"), false).tool.is_some());
        assert!(asked(json!({"type": "function", "function": {"name": "weather"}}), false).tool.is_some());
    }
}
