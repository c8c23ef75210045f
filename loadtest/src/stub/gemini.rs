//! Google's Gemini API over the same plans and faults: what the vendor's own client needs to be content.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{ConnectInfo, Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
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

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new().route("/v1beta/models", get(models)).route("/v1beta/models/{call}", post(call).get(model))
}

/// An error as Google writes it.
pub(super) fn error(
    status: StatusCode,
    message: &str,
    reason: Option<&str>,
    wait_s: Option<u64>,
) -> Response {
    let word = match status.as_u16() {
        400 => "INVALID_ARGUMENT",
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        429 => "RESOURCE_EXHAUSTED",
        503 => "UNAVAILABLE",
        504 => "DEADLINE_EXCEEDED",
        _ => "INTERNAL",
    };
    let mut details = Vec::new();
    if let Some(reason) = reason {
        details.push(json!({"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason,
            "domain": "googleapis.com"}));
    }
    if let Some(seconds) = wait_s {
        let delay = format!("{seconds}s");
        details.push(json!({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}));
    }
    let body =
        json!({"error": {"code": status.as_u16(), "message": message, "status": word, "details": details}});
    (status, Json(body)).into_response()
}

fn describe(shared: &Shared, id: &str) -> Value {
    json!({"name": format!("models/{id}"), "displayName": id, "inputTokenLimit": shared.options.context,
        "outputTokenLimit": 8192, "supportedGenerationMethods": ["generateContent"]})
}

async fn models(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let models: Vec<Value> = shared.options.models.iter().map(|id| describe(&shared, id)).collect();
    Json(json!({"models": models}))
}

async fn model(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    match shared.options.models.contains(&id) {
        true => Json(describe(&shared, &id)).into_response(),
        false => error(StatusCode::NOT_FOUND, "No such model.", None, None),
    }
}

async fn call(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(connection): ConnectInfo<KillSwitch>,
    Path(call): Path<String>,
    body: Bytes,
) -> Response {
    let (model, stream) = match call.split_once(':') {
        Some((model, "generateContent")) => (model, false),
        Some((model, "streamGenerateContent")) => (model, true),
        _ => return error(StatusCode::NOT_FOUND, "No such method.", None, None),
    };
    vendor::serve::<Gemini>(shared, connection, parse(model, stream, &body)).await
}

struct Gemini;

impl Vendor for Gemini {
    const PATH: request::Path = request::Path::Gemini;
    const FRAMING: Framing = Framing::Data;

    fn refusal(why: Refused<'_>) -> Response {
        match why {
            Refused::Malformed(message) => error(StatusCode::BAD_REQUEST, message, None, None),
            Refused::UnknownModel(_) => error(StatusCode::NOT_FOUND, "No such model.", None, None),
            Refused::Scripted(status, wait_s) => error(status, "scripted error", None, wait_s),
        }
    }

    fn frames(request: &Request, script: &Script, choices: &[Choice]) -> Vec<Frame> {
        frames(request, script, choices)
    }

    fn whole(request: &Request, choices: &[Choice]) -> Value {
        let candidates: Vec<Value> =
            choices.iter().enumerate().map(|(i, c)| candidate(i, c, parts(c))).collect();
        let mut out = response(request, candidates);
        out["usageMetadata"] = usage(request, tokens_of(choices));
        out
    }
}

/// Reads what a stub needs, strictly where the real server is strict: an unknown top-level field is an error.
fn parse(model: &str, stream: bool, body: &[u8]) -> Result<Request, String> {
    const KNOWN: [&str; 8] = [
        "contents",
        "systemInstruction",
        "generationConfig",
        "tools",
        "toolConfig",
        "safetySettings",
        "cachedContent",
        "labels",
    ];
    let body: Value =
        serde_json::from_slice(body).map_err(|error| format!("Invalid JSON payload: {error}"))?;
    let map = body.as_object().ok_or("Invalid JSON payload.")?;
    if let Some(name) = map.keys().find(|name| !KNOWN.contains(&name.as_str())) {
        return Err(format!("Invalid JSON payload received. Unknown name \"{name}\": Cannot find field."));
    }
    let contents = body["contents"].as_array().filter(|list| !list.is_empty());
    let contents = contents.ok_or("* GenerateContentRequest.contents: contents is not specified")?;
    let (mut prompt, mut prompt_tokens) = (String::new(), 0);
    for content in contents {
        if !matches!(content["role"].as_str(), Some("user" | "model") | None) {
            return Err("Please use a valid role: user, model.".to_owned());
        }
        let parts = content["parts"].as_array().filter(|parts| !parts.is_empty());
        let parts = parts.ok_or("* GenerateContentRequest.contents.parts: must not be empty")?;
        let text: Vec<&str> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
        prompt_tokens += 4 + text.iter().flat_map(|text| text.split_whitespace()).count();
        if content["role"] != "model" && !text.is_empty() {
            prompt = text.join("\n");
        }
    }
    let config = &body["generationConfig"];
    let number = |name: &str| config[name].as_u64().and_then(|n| usize::try_from(n).ok());
    let stops = config["stopSequences"].as_array().into_iter().flatten();
    let calling = &body["toolConfig"]["functionCallingConfig"];
    let named = calling["allowedFunctionNames"][0].as_str().map(str::to_owned);
    let mut fields: Vec<String> = map.keys().cloned().collect();
    fields
        .extend(config.as_object().into_iter().flatten().map(|(name, _)| format!("generationConfig.{name}")));
    fields.sort();
    Ok(Request {
        path: request::Path::Gemini,
        model: model.to_owned(),
        prompt,
        prompt_tokens,
        stream,
        include_usage: true,
        max_tokens: number("maxOutputTokens"),
        stop: stops.filter_map(|stop| stop.as_str().map(str::to_owned)).collect(),
        n: number("candidateCount").unwrap_or(1).clamp(1, 8),
        logprobs: None,
        continued: None,
        tools: tools(&body["tools"]),
        must_call: (calling["mode"] == "ANY").then_some(named),
        no_thoughts: false,
        fields,
    })
}

fn tools(tools: &Value) -> Vec<Tool> {
    let declared =
        tools.as_array().into_iter().flatten().filter_map(|tool| tool["functionDeclarations"].as_array());
    let tool = |function: &Value| {
        // Google reads both spellings of a name; its own client writes this one in the second.
        let names = ["parametersJsonSchema", "parameters_json_schema", "parameters"];
        let schema = names.map(|name| &function[name]);
        let parameters = schema.into_iter().find(|schema| schema.is_object()).cloned().unwrap_or_default();
        Some(Tool { name: function["name"].as_str()?.to_owned(), parameters })
    };
    declared.flatten().filter_map(tool).collect()
}

fn parts(choice: &Choice) -> Value {
    match &choice.tool {
        None => json!([{"text": choice.text()}]),
        Some(name) => {
            let args: Value = serde_json::from_str(&choice.text()).unwrap_or_default();
            json!([{"functionCall": {"name": name, "args": args}}])
        }
    }
}

fn candidate(index: usize, choice: &Choice, parts: Value) -> Value {
    let finish = if choice.finish == "length" { "MAX_TOKENS" } else { "STOP" };
    json!({"index": index, "content": {"role": "model", "parts": parts}, "finishReason": finish})
}

fn response(request: &Request, candidates: Vec<Value>) -> Value {
    json!({"candidates": candidates, "modelVersion": request.model, "responseId": "stub"})
}

fn usage(request: &Request, out: usize) -> Value {
    json!({"promptTokenCount": request.prompt_tokens, "candidatesTokenCount": out,
        "totalTokenCount": request.prompt_tokens + out})
}

/// The payloads of a stream: a piece each, the last with the reason; a function call comes whole.
fn frames(request: &Request, script: &Script, choices: &[Choice]) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut sent = 0;
    for (index, choice) in choices.iter().enumerate() {
        let pieces: Vec<Value> = match choice.tool {
            Some(_) => vec![parts(choice)],
            None => choice.pieces.iter().map(|piece| json!([{"text": piece}])).collect(),
        };
        let last = pieces.len().saturating_sub(1);
        for (at, parts) in pieces.into_iter().enumerate() {
            sent += 1;
            let mut one = candidate(index, choice, parts);
            if let Some(one) = one.as_object_mut().filter(|_| at < last || script.no_finish) {
                one.remove("finishReason");
            }
            let mut payload = response(request, vec![one]);
            payload["usageMetadata"] = usage(request, sent);
            frames.push(Frame { payload: payload.to_string(), due: at, tokens: 1 });
        }
    }
    frames
}
