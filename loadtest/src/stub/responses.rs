//! OpenAI's Responses API over the same plans and faults: what the vendor's own client needs to be content.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::{ConnectInfo, State},
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use serde_json::{Value, json};

use super::{
    Shared,
    answer::Choice,
    body::Framing,
    conn::KillSwitch,
    error,
    render::Frame,
    request::{self, Request, Tool},
    vendor::{self, Refused, Vendor},
};
use crate::script::Script;

pub(super) async fn create(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(connection): ConnectInfo<KillSwitch>,
    body: Bytes,
) -> Response {
    vendor::serve::<Responses>(shared, connection, parse(&body)).await
}

struct Responses;

impl Vendor for Responses {
    const PATH: request::Path = request::Path::Responses;
    const FRAMING: Framing = Framing::Responses;

    fn refusal(why: Refused<'_>) -> Response {
        match why {
            Refused::Malformed(message) => {
                error(StatusCode::BAD_REQUEST, message, "invalid_request_error", None)
            }
            Refused::UnknownModel(model) => {
                let message = format!("The model '{model}' does not exist.");
                error(StatusCode::NOT_FOUND, &message, "model_not_found", Some("model"))
            }
            Refused::Scripted(status, wait_s) => {
                let mut response = error(status, "scripted error", "scripted", None);
                if let Some(seconds) = wait_s {
                    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
                }
                response
            }
        }
    }

    fn frames(request: &Request, script: &Script, choices: &[Choice]) -> Vec<Frame> {
        frames(request, script, &choices[0])
    }

    fn whole(request: &Request, choices: &[Choice]) -> Value {
        ended(request, &choices[0])
    }
}

fn parse(body: &[u8]) -> Result<Request, String> {
    let body: Value = serde_json::from_slice(body).map_err(|_| "The body is no JSON.".to_owned())?;
    let map = body.as_object().ok_or("The body must be a JSON object.")?;
    if let Some(name) =
        map.keys().find(|name| matches!(name.as_str(), "messages" | "max_tokens" | "stop" | "n"))
    {
        return Err(format!("Unknown parameter: '{name}'."));
    }
    let (mut prompt, mut words) = (String::new(), 0);
    match &body["input"] {
        Value::String(text) => prompt.clone_from(text),
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let text = match &item["content"] {
                    Value::String(text) => text.clone(),
                    Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
                    _ => String::new(),
                };
                words += 4 + text.split_whitespace().count();
                if item["role"] == "user" {
                    prompt = text;
                }
            }
        }
        _ => return Err("Missing required parameter: 'input'.".into()),
    }
    let limit = body["max_output_tokens"].as_u64();
    if limit.is_some_and(|limit| limit < 16) {
        return Err("Invalid 'max_output_tokens': expected a value >= 16.".into());
    }
    let choice = &body["tool_choice"];
    let must_call = match choice {
        Value::String(word) if word == "required" => Some(None),
        Value::Object(_) => Some(choice["name"].as_str().map(str::to_owned)),
        _ => None,
    };
    let tools = body["tools"].as_array().into_iter().flatten();
    let tool = |tool: &Value| {
        Some(Tool { name: tool["name"].as_str()?.to_owned(), parameters: tool["parameters"].clone() })
    };
    let mut fields: Vec<String> = map.keys().cloned().collect();
    fields.sort();
    Ok(Request {
        path: request::Path::Responses,
        model: body["model"].as_str().ok_or("Missing required parameter: 'model'.")?.to_owned(),
        prompt,
        prompt_tokens: words,
        stream: body["stream"].as_bool().unwrap_or(false),
        include_usage: true,
        max_tokens: limit.and_then(|limit| usize::try_from(limit).ok()),
        stop: Vec::new(),
        n: 1,
        logprobs: None,
        continued: None,
        tools: tools.filter_map(tool).collect(),
        must_call,
        no_thoughts: false,
        fields,
    })
}

fn item(choice: &Choice, status: &str) -> Value {
    match &choice.tool {
        None => json!({"type": "message", "id": "msg_stub", "role": "assistant", "status": status,
            "content": [{"type": "output_text", "text": choice.text(), "annotations": []}]}),
        Some(name) => {
            json!({"type": "function_call", "id": "fc_stub", "call_id": "call_stub", "status": status,
            "name": name, "arguments": choice.text()})
        }
    }
}

fn response(request: &Request, status: &str, output: Vec<Value>) -> Value {
    json!({"id": "resp_stub", "object": "response", "created_at": 0, "model": request.model, "status": status,
        "error": null, "incomplete_details": null, "instructions": null, "metadata": {}, "output": output,
        "parallel_tool_calls": true, "tool_choice": "auto", "tools": [], "temperature": 1.0, "top_p": 1.0})
}

fn ended(request: &Request, choice: &Choice) -> Value {
    let cut = choice.finish == "length";
    let mut out =
        response(request, if cut { "incomplete" } else { "completed" }, vec![item(choice, "completed")]);
    if cut {
        out["incomplete_details"] = json!({"reason": "max_output_tokens"});
    }
    let (prompt, written) = (request.prompt_tokens, choice.pieces.len());
    out["usage"] = json!({"input_tokens": prompt, "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": written, "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + written});
    out
}

/// The events of a stream: one item, a message or a call.
fn frames(request: &Request, script: &Script, choice: &Choice) -> Vec<Frame> {
    let mut number = 0;
    let mut frame = |mut payload: Value, due: usize, tokens: u64| {
        payload["sequence_number"] = number.into();
        number += 1;
        Frame { payload: payload.to_string(), due, tokens }
    };
    let empty = Choice { pieces: Vec::new(), ..choice.clone() };
    let begun = response(request, "in_progress", Vec::new());
    let mut frames = vec![
        frame(json!({"type": "response.created", "response": begun}), 0, 0),
        frame(
            json!({"type": "response.output_item.added", "output_index": 0, "item": item(&empty, "in_progress")}),
            0,
            0,
        ),
    ];
    for (at, piece) in choice.pieces.iter().enumerate() {
        let payload = match choice.tool {
            None => json!({"type": "response.output_text.delta", "item_id": "msg_stub", "output_index": 0,
                "content_index": 0, "delta": piece, "logprobs": []}),
            Some(_) => json!({"type": "response.function_call_arguments.delta", "item_id": "fc_stub",
                "output_index": 0, "delta": piece}),
        };
        frames.push(frame(payload, at, 1));
    }
    let last = choice.pieces.len().saturating_sub(1);
    let done =
        json!({"type": "response.output_item.done", "output_index": 0, "item": item(choice, "completed")});
    frames.push(frame(done, last, 0));
    if !script.no_finish {
        let kind = if choice.finish == "length" { "response.incomplete" } else { "response.completed" };
        frames.push(frame(json!({"type": kind, "response": ended(request, choice)}), last, 0));
    }
    frames
}
