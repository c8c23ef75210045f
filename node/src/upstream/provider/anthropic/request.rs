//! From an OpenAI chat request to Anthropic's `POST /v1/messages`.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use shoal_routing::Tokens;

use super::blocks::{Conversation, Message};
use crate::upstream::provider::{Model, Traits};

/// Tool whose arguments are the answer where a JSON schema is wanted of a model that cannot be held to one otherwise.
pub(super) const ANSWER_TOOL: &str = "structured_answer";

/// Limit on an answer without one; the field is required. The purse sets one before this, so it is rarely used.
const DEFAULT_OUTPUT: u32 = 4096;

/// Thinking budgets, in tokens, for OpenAI's words.
const EFFORTS: [(&str, u32); 5] =
    [("minimal", 1024), ("low", 1024), ("medium", 8192), ("high", 24_576), ("xhigh", 49_152)];

/// Smallest thinking budget that the API takes.
const MIN_BUDGET: u32 = 1024;

/// What is said to a model that should answer in JSON of no particular form; the API has no switch for it.
const JSON_ONLY: &str = "Answer with one JSON object and nothing else: no text around it, no code fence.";

/// A request that Anthropic cannot be asked; the text names the field and quotes nothing of the prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// The body is no chat request.
    #[error("the request is not a chat request")]
    Malformed,
    /// A part of a message has no counterpart.
    #[error("Anthropic takes no message part of type '{0}'")]
    Part(String),
    /// A call or its result lacks its id.
    #[error("a tool call and its result need an id for Anthropic")]
    NoCallId,
    /// A stop sequence of white space alone.
    #[error("Anthropic takes no stop sequence of white space alone")]
    BlankStop,
    /// Several answers at once.
    #[error("Anthropic gives one answer to a request; ask with n = 1")]
    Several,
    /// The form of tools before `tools`.
    #[error("'functions' is not translated for Anthropic; use 'tools'")]
    Functions,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Message>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// True when the answer to this body will come as arguments of [`ANSWER_TOOL`].
pub(super) fn answers_by_tool(body: &[u8], traits: &Traits) -> bool {
    #[derive(Deserialize)]
    struct Wish {
        response_format: Option<Value>,
    }
    let wish: Option<Wish> = serde_json::from_slice(body).ok();
    let format = wish.and_then(|wish| wish.response_format).unwrap_or_default();
    format["type"] == "json_schema" && traits.schema != Some(true)
}

/// Translates a request for `model`.
pub(super) fn translate(body: &[u8], model: &Model) -> Result<Value, Error> {
    let Chat { messages, rest } = serde_json::from_slice(body).map_err(|_| Error::Malformed)?;
    let known = |name: &str| rest.get(name).filter(|value| !value.is_null());
    if known("n").is_some_and(|n| n != 1) {
        return Err(Error::Several);
    }
    if known("functions").and_then(Value::as_array).is_some_and(|list| !list.is_empty()) {
        return Err(Error::Functions);
    }
    let by_tool = answers_by_tool(body, &model.traits);
    let mut conversation = Conversation::of(messages)?;
    let (mut config, format) = (Map::new(), known("response_format"));
    match format.and_then(|format| format["type"].as_str()) {
        Some("json_schema") if !by_tool => {
            let schema = format.map(|format| format["json_schema"]["schema"].clone());
            config.insert("format".into(), json!({"type": "json_schema", "schema": schema}));
        }
        Some("json_object") => conversation.system.push(json!({"type": "text", "text": JSON_ONLY})),
        _ => {}
    }
    let limit = limit(&rest, model);
    let may_budget = !conversation.calls_without_thoughts();
    let mut out = json!({"model": &*model.name, "max_tokens": limit, "messages": conversation.turns});
    if !conversation.system.is_empty() {
        out["system"] = conversation.system.into();
    }
    if known("stream").and_then(Value::as_bool) == Some(true) {
        out["stream"] = true.into();
    }
    if let Some(stop) = known("stop") {
        out["stop_sequences"] = json!(stops(stop)?);
    }
    if let Some(user) = known("user") {
        out["metadata"] = json!({"user_id": user});
    }
    tools(&mut out, &rest, &conversation.called, by_tool.then_some(format).flatten());
    // A call that is forced leaves no room for thoughts; the API refuses both together.
    let forced = matches!(out["tool_choice"]["type"].as_str(), Some("any" | "tool"));
    if !forced {
        // Half of the answer's limit stays for the answer: thoughts count against it.
        let budget = may_budget.then_some(limit / 2);
        think(&mut out, &mut config, &rest, budget, &model.traits);
    }
    sampling(&mut out, &rest, &model.traits);
    if !config.is_empty() {
        out["output_config"] = config.into();
    }
    Ok(out)
}

/// Returns the longest answer in tokens: as asked, but no longer than the model can.
fn limit(rest: &Map<String, Value>, model: &Model) -> u32 {
    let asked = ["max_completion_tokens", "max_tokens"].iter().find_map(|name| rest.get(*name)?.as_u64());
    let asked = asked.map_or(DEFAULT_OUTPUT, |limit| u32::try_from(limit).unwrap_or(u32::MAX));
    model.traits.max_output.map_or(asked, |Tokens(longest)| asked.min(longest))
}

fn stops(stop: &Value) -> Result<Vec<&Value>, Error> {
    let list: Vec<&Value> = stop.as_array().map_or_else(|| vec![stop], |list| list.iter().collect());
    let blank = |word: &&Value| word.as_str().is_none_or(|word| word.trim().is_empty());
    if list.iter().any(blank) { Err(Error::BlankStop) } else { Ok(list) }
}

fn tools(out: &mut Value, rest: &Map<String, Value>, called: &[String], answer: Option<&Value>) {
    let offered = rest.get("tools").and_then(Value::as_array).into_iter().flatten();
    let mut tools: Vec<Value> = offered.filter_map(declaration).collect();
    let choice = rest.get("tool_choice").unwrap_or(&Value::Null);
    let mut choice = if tools.is_empty() { None } else { tool_choice(choice) };
    if let Some(format) = answer {
        let schema = &format["json_schema"]["schema"];
        // With tools of the caller's own, the model calls one of those or answers.
        choice = match (tools.is_empty(), &choice) {
            (false, Some(choice)) if choice["type"] == "tool" => Some(choice.clone()),
            (false, Some(choice)) if choice["type"] != "none" => Some(json!({"type": "any"})),
            (false, None) => Some(json!({"type": "any"})),
            _ => Some(json!({"type": "tool", "name": ANSWER_TOOL})),
        };
        tools.push(json!({"name": ANSWER_TOOL, "description": "Gives the answer to the user.",
            "input_schema": schema}));
    } else if tools.is_empty() && !called.is_empty() {
        // A conversation with calls in it is refused unless their tools are declared; none of them may be called now.
        tools = called.iter().map(|name| json!({"name": name, "input_schema": {"type": "object"}})).collect();
        choice = Some(json!({"type": "none"}));
    }
    if tools.is_empty() {
        return;
    }
    out["tools"] = tools.into();
    let one_at_a_time = rest.get("parallel_tool_calls").and_then(Value::as_bool) == Some(false);
    if one_at_a_time && choice.as_ref().is_none_or(|choice| choice["type"] != "none") {
        choice.get_or_insert_with(|| json!({"type": "auto"}))["disable_parallel_tool_use"] = true.into();
    }
    if let Some(choice) = choice {
        out["tool_choice"] = choice;
    }
}

fn declaration(tool: &Value) -> Option<Value> {
    let function = tool.get("function")?;
    let mut out = json!({"name": function["name"]});
    if let Some(text) = function.get("description").filter(|text| text.is_string()) {
        out["description"] = text.clone();
    }
    let schema = function.get("parameters").filter(|schema| schema.is_object()).cloned();
    out["input_schema"] = schema.unwrap_or_else(|| json!({"type": "object", "properties": {}}));
    if let Some(mark) = tool.get("cache_control").filter(|mark| mark.is_object()) {
        out["cache_control"] = mark.clone();
    }
    Some(out)
}

fn tool_choice(choice: &Value) -> Option<Value> {
    match choice {
        Value::String(word) => match word.as_str() {
            "none" => Some(json!({"type": "none"})),
            "required" => Some(json!({"type": "any"})),
            _ => None,
        },
        Value::Object(_) => {
            let name = choice["function"]["name"].as_str()?;
            Some(json!({"type": "tool", "name": name}))
        }
        _ => None,
    }
}

/// Asks for thoughts: Anthropic's own field as it is, OpenAI's word as an effort, or as a budget for older models, of
/// `longest` tokens at most; `None` where the conversation rules one out.
fn think(
    out: &mut Value,
    config: &mut Map<String, Value>,
    rest: &Map<String, Value>,
    longest: Option<u32>,
    traits: &Traits,
) {
    if let Some(own) = rest.get("thinking").filter(|thinking| thinking.is_object()) {
        out["thinking"] = own.clone();
        return;
    }
    let Some(word) = rest.get("reasoning_effort").and_then(Value::as_str) else { return };
    let Some((_, budget)) = EFFORTS.iter().find(|(known, _)| *known == word) else { return };
    if traits.adaptive_thinking {
        out["thinking"] = json!({"type": "adaptive"});
        config.insert("effort".into(), if word == "minimal" { "low" } else { word }.into());
        return;
    }
    let budget = longest.map_or(0, |longest| longest.min(*budget));
    if budget >= MIN_BUDGET {
        out["thinking"] = json!({"type": "enabled", "budget_tokens": budget});
    }
}

/// Sets temperature or, without one, `top_p`: newer models refuse both together, and thinking refuses either.
fn sampling(out: &mut Value, rest: &Map<String, Value>, traits: &Traits) {
    let thinks = out.get("thinking").is_some_and(|thinking| thinking["type"] != "disabled");
    if thinks || !traits.sampling {
        return;
    }
    let number = |name: &str| rest.get(name).filter(|value| value.is_number());
    if let Some(value) = number("temperature").and_then(Value::as_f64) {
        // OpenAI's goes to 2, Anthropic's to 1.
        out["temperature"] = value.clamp(0.0, 1.0).into();
    } else if let Some(value) = number("top_p") {
        out["top_p"] = value.clone();
    }
    if let Some(value) = number("top_k") {
        out["top_k"] = value.clone();
    }
}
