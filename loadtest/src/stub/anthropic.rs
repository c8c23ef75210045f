//! Anthropic's Messages API over the same plans and faults, strict where the real one is: what the vendor's own client
//! needs to be content, and what a translation gets wrong.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{ConnectInfo, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};

use super::{
    Shared,
    answer::Choice,
    body::Framing,
    conn::KillSwitch,
    render::{Frame, tokens_of},
    request::{self, Request, Tool},
    vendor::{self, Refused, Vendor},
};
use crate::script::Script;

/// Fields of a request that the real API knows; any other is an error there.
const KNOWN: [&str; 15] = [
    "model",
    "messages",
    "max_tokens",
    "system",
    "stream",
    "stop_sequences",
    "temperature",
    "top_p",
    "top_k",
    "metadata",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "service_tier",
];

/// First version of the API that takes no temperature and the like; versions are dates and compare as text.
const WITHOUT_SAMPLING: &[u8] = b"2026-10-21";

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new().route("/v1/messages", post(create))
}

/// An error as Anthropic writes it.
pub(super) fn error(status: StatusCode, message: &str, wait_s: Option<u64>) -> Response {
    let word = match status.as_u16() {
        400 => "invalid_request_error",
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        _ => "api_error",
    };
    let body =
        json!({"type": "error", "error": {"type": word, "message": message}, "request_id": "req_stub"});
    let mut response = (status, Json(body)).into_response();
    if let Some(seconds) = wait_s {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

async fn create(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(connection): ConnectInfo<KillSwitch>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    vendor::serve::<Anthropic>(shared, connection, parse(&headers, &body)).await
}

struct Anthropic;

impl Vendor for Anthropic {
    const PATH: request::Path = request::Path::Messages;
    const FRAMING: Framing = Framing::Messages;

    fn refusal(why: Refused<'_>) -> Response {
        match why {
            Refused::Malformed(message) => error(StatusCode::BAD_REQUEST, message, None),
            Refused::UnknownModel(model) => error(StatusCode::NOT_FOUND, &format!("model: {model}"), None),
            Refused::Scripted(status, wait_s) => error(status, "scripted error", wait_s),
        }
    }

    fn frames(request: &Request, script: &Script, choices: &[Choice]) -> Vec<Frame> {
        frames(request, script, &choices[0])
    }

    fn whole(request: &Request, choices: &[Choice]) -> Value {
        let choice = &choices[0];
        let mut message = message(request, vec![block(choice)], stop_reason(choice).into());
        message["usage"]["output_tokens"] = tokens_of(&choices[..1]).into();
        message
    }
}

/// Reads what a stub needs, and refuses what the real server refuses.
fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Request, String> {
    let version = headers.get("anthropic-version").ok_or("anthropic-version: header is required")?;
    let body: Value =
        serde_json::from_slice(body).map_err(|_| "The request body is not valid JSON".to_owned())?;
    let map = body.as_object().ok_or("The request body is not a JSON object")?;
    if let Some(name) = map.keys().find(|name| !KNOWN.contains(&name.as_str())) {
        return Err(format!("{name}: Extra inputs are not permitted"));
    }
    let sampling_given = ["temperature", "top_p", "top_k"].into_iter().find(|name| map.contains_key(*name));
    if let Some(name) = sampling_given.filter(|_| version.as_bytes() >= WITHOUT_SAMPLING) {
        return Err(format!("{name}: Extra inputs are not permitted"));
    }
    let max_tokens = body["max_tokens"].as_u64().filter(|limit| *limit > 0);
    let max_tokens = max_tokens.ok_or("max_tokens: Field required")?;
    let (prompt, prompt_tokens) = conversation(&body)?;
    sampling(&body, max_tokens)?;
    let choice = &body["tool_choice"];
    let must_call = match choice["type"].as_str() {
        Some("any") => Some(None),
        Some("tool") => Some(choice["name"].as_str().map(str::to_owned)),
        _ => None,
    };
    let stops = body["stop_sequences"].as_array().into_iter().flatten();
    let mut fields: Vec<String> = map.keys().cloned().collect();
    fields.sort();
    Ok(Request {
        path: request::Path::Messages,
        model: body["model"].as_str().ok_or("model: Field required")?.to_owned(),
        prompt,
        prompt_tokens,
        stream: body["stream"].as_bool().unwrap_or(false),
        include_usage: true,
        max_tokens: usize::try_from(max_tokens).ok(),
        stop: stops.filter_map(|stop| stop.as_str().map(str::to_owned)).collect(),
        n: 1,
        logprobs: None,
        continued: None,
        tools: tools(&body["tools"])?,
        must_call,
        no_thoughts: false,
        fields,
    })
}

/// Checks the turns; returns the user's last text and the words of all.
fn conversation(body: &Value) -> Result<(String, usize), String> {
    let turns = body["messages"].as_array().filter(|list| !list.is_empty());
    let turns = turns.ok_or("messages: at least one message is required")?;
    if turns[0]["role"] != "user" {
        return Err("messages: first message must use the \"user\" role".into());
    }
    let (mut prompt, mut words) = (String::new(), 0);
    let mut open: Vec<&str> = Vec::new();
    for (at, turn) in turns.iter().enumerate() {
        let single = [json!({"type": "text", "text": turn["content"]})];
        let blocks = match &turn["content"] {
            Value::String(_) => &single[..],
            Value::Array(list) => list,
            _ => return Err(format!("messages.{at}.content: Input should be a valid list")),
        };
        let answered: Vec<&str> = blocks.iter().filter_map(|block| block["tool_use_id"].as_str()).collect();
        if open.iter().any(|id| !answered.contains(id)) {
            return Err(format!("messages.{at}: `tool_use` ids were found without `tool_result` blocks"));
        }
        if answered.iter().any(|id| !open.contains(id)) {
            return Err(format!("messages.{at}: unexpected `tool_use_id` found in `tool_result` blocks"));
        }
        let texts: Vec<&str> = blocks.iter().filter_map(|block| block["text"].as_str()).collect();
        if texts.iter().any(|text| text.trim().is_empty()) {
            return Err("messages: text content blocks must contain non-whitespace text".into());
        }
        words += 4 + texts.iter().flat_map(|text| text.split_whitespace()).count();
        match turn["role"].as_str() {
            Some("user") if !texts.is_empty() => prompt = texts.join("\n"),
            Some("user" | "assistant") => {}
            _ => return Err(format!("messages.{at}.role: Input should be 'user' or 'assistant'")),
        }
        let calls = turns[at]["content"].as_array().into_iter().flatten();
        open = calls
            .filter(|block| block["type"] == "tool_use")
            .filter_map(|block| block["id"].as_str())
            .collect();
        if !open.is_empty() && body["tools"].as_array().is_none_or(|tools| tools.is_empty()) {
            return Err("Requests which include `tool_use` blocks must define tools".into());
        }
    }
    Ok((prompt, words))
}

fn sampling(body: &Value, max_tokens: u64) -> Result<(), String> {
    let (temperature, top_p) = (body["temperature"].as_f64(), body["top_p"].as_f64());
    if temperature.is_some_and(|value| !(0.0..=1.0).contains(&value)) {
        return Err("temperature: range: 0..1".into());
    }
    if temperature.is_some() && top_p.is_some() {
        return Err("`temperature` and `top_p` cannot both be specified for this model.".into());
    }
    if body["thinking"]["type"] == "enabled" {
        let budget = body["thinking"]["budget_tokens"].as_u64().unwrap_or(0);
        if !(1024..max_tokens).contains(&budget) {
            return Err(
                "`max_tokens` must be greater than `thinking.budget_tokens`, which is at least 1024".into()
            );
        }
        if temperature.is_some_and(|value| value < 1.0) {
            return Err("`temperature` may only be set to 1 when thinking is enabled".into());
        }
        if matches!(body["tool_choice"]["type"].as_str(), Some("any" | "tool")) {
            return Err("Thinking may not be enabled when tool_choice forces tool use.".into());
        }
    }
    Ok(())
}

fn tools(tools: &Value) -> Result<Vec<Tool>, String> {
    let tool = |tool: &Value| {
        let name = tool["name"].as_str().ok_or("tools.0.name: Field required")?;
        let schema = tool["input_schema"].is_object().then(|| tool["input_schema"].clone());
        let parameters = schema.ok_or("tools.0.input_schema: Field required")?;
        Ok(Tool { name: name.to_owned(), parameters })
    };
    tools.as_array().into_iter().flatten().map(tool).collect()
}

fn block(choice: &Choice) -> Value {
    match &choice.tool {
        None => json!({"type": "text", "text": choice.text()}),
        Some(name) => {
            let input: Value = serde_json::from_str(&choice.text()).unwrap_or_default();
            json!({"type": "tool_use", "id": "toolu_stub", "name": name, "input": input})
        }
    }
}

fn stop_reason(choice: &Choice) -> &'static str {
    match choice.finish {
        "length" => "max_tokens",
        "tool_calls" => "tool_use",
        _ => "end_turn",
    }
}

fn message(request: &Request, content: Vec<Value>, stop_reason: Value) -> Value {
    json!({"id": "msg_stub", "type": "message", "role": "assistant", "model": request.model, "content": content,
        "stop_reason": stop_reason, "stop_sequence": null,
        "usage": {"input_tokens": request.prompt_tokens, "output_tokens": 1}})
}

/// The events of a stream; one block, of text or of a call.
fn frames(request: &Request, script: &Script, choice: &Choice) -> Vec<Frame> {
    let frame = |payload: Value, due: usize, tokens: u64| Frame { payload: payload.to_string(), due, tokens };
    let opening = message(request, Vec::new(), Value::Null);
    let mut begun = block(choice);
    match &choice.tool {
        None => begun["text"] = "".into(),
        Some(_) => begun["input"] = json!({}),
    }
    let mut frames = vec![
        frame(json!({"type": "message_start", "message": opening}), 0, 0),
        frame(json!({"type": "content_block_start", "index": 0, "content_block": begun}), 0, 0),
        frame(json!({"type": "ping"}), 0, 0),
    ];
    for (at, piece) in choice.pieces.iter().enumerate() {
        let delta = match choice.tool {
            None => json!({"type": "text_delta", "text": piece}),
            Some(_) => json!({"type": "input_json_delta", "partial_json": piece}),
        };
        frames.push(frame(json!({"type": "content_block_delta", "index": 0, "delta": delta}), at, 1));
    }
    let last = choice.pieces.len().saturating_sub(1);
    frames.push(frame(json!({"type": "content_block_stop", "index": 0}), last, 0));
    if !script.no_finish {
        let delta = json!({"stop_reason": stop_reason(choice), "stop_sequence": null});
        let usage = json!({"output_tokens": choice.pieces.len()});
        frames.push(frame(json!({"type": "message_delta", "delta": delta, "usage": usage}), last, 0));
        frames.push(frame(json!({"type": "message_stop"}), last, 0));
    }
    frames
}
