//! Ollama's own `/api/chat` over the same plans and faults: JSON lines, options, objects as arguments.

use serde_json::{Map, Value, json};

use super::{
    answer::Choice,
    render::{Envelope, Frame, tokens_of},
    request::{Path, Refusal, Request},
};

/// Reads a body of `/api/chat` by way of the OpenAI body that means the same.
pub(super) fn parse(body: &[u8]) -> Result<Request, Refusal> {
    let body: Value = serde_json::from_slice(body).map_err(|error| Refusal(error.to_string(), None))?;
    let mut out = Map::new();
    for name in ["model", "messages", "tools", "logprobs", "top_logprobs"] {
        if let Some(value) = body.get(name).filter(|value| !value.is_null()) {
            out.insert(name.into(), value.clone());
        }
    }
    // It streams unless it is told not to.
    out.insert("stream".into(), (body["stream"] != false).into());
    let options = &body["options"];
    if let Some(most) = options["num_predict"].as_u64() {
        out.insert("max_tokens".into(), most.into());
    }
    if options["stop"].is_array() {
        out.insert("stop".into(), options["stop"].clone());
    }
    let mut request = Request::parse(Path::Chat, Value::from(out).to_string().as_bytes())?;
    request.no_thoughts = body["think"] == false;
    let mut fields: Vec<String> =
        body.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect();
    fields.extend(options.as_object().into_iter().flatten().map(|(name, _)| format!("options.{name}")));
    fields.sort();
    request.fields = fields;
    request.path = Path::Ollama;
    Ok(request)
}

/// The whole answer of a request that is not streamed.
pub(super) fn body(envelope: &Envelope<'_>, choices: &[Choice]) -> Value {
    let choice = &choices[0];
    let mut body = line(envelope, said(choice, &choice.text()));
    if !choice.thought.is_empty() {
        body["message"]["thinking"] = choice.thought.concat().into();
    }
    finish(&mut body, envelope, choices);
    logprobs(&mut body, envelope, &choice.pieces);
    body
}

/// The lines of a stream; a call comes whole.
pub(super) fn frames(envelope: &Envelope<'_>, choices: &[Choice]) -> Vec<Frame> {
    let choice = &choices[0];
    let mut frames = Vec::new();
    for word in &choice.thought {
        let payload =
            line(envelope, json!({"role": "assistant", "content": "", "thinking": word})).to_string();
        frames.push(Frame { payload, due: 0, tokens: 0 });
    }
    if choice.tool.is_some() {
        let payload = line(envelope, said(choice, &choice.text())).to_string();
        frames.push(Frame { payload, due: 0, tokens: choice.pieces.len() as u64 });
    } else {
        for (due, piece) in choice.pieces.iter().enumerate() {
            let mut one = line(envelope, said(choice, piece));
            logprobs(&mut one, envelope, std::slice::from_ref(piece));
            frames.push(Frame { payload: one.to_string(), due, tokens: 1 });
        }
    }
    if !envelope.script.no_finish {
        let mut last = line(envelope, json!({"role": "assistant", "content": ""}));
        finish(&mut last, envelope, choices);
        frames.push(Frame {
            payload: last.to_string(),
            due: choice.pieces.len().saturating_sub(1),
            tokens: 0,
        });
    }
    frames
}

fn line(envelope: &Envelope<'_>, message: Value) -> Value {
    json!({"model": envelope.request.model, "created_at": "2025-01-01T00:00:00Z", "message": message, "done": false})
}

fn said(choice: &Choice, text: &str) -> Value {
    match &choice.tool {
        None => json!({"role": "assistant", "content": text}),
        Some(name) => {
            let arguments: Value = serde_json::from_str(text).unwrap_or_default();
            json!({"role": "assistant", "content": "",
                "tool_calls": [{"function": {"name": name, "arguments": arguments}}]})
        }
    }
}

fn finish(body: &mut Value, envelope: &Envelope<'_>, choices: &[Choice]) {
    body["done"] = true.into();
    body["done_reason"] = if choices[0].finish == "length" { "length" } else { "stop" }.into();
    body["prompt_eval_count"] = envelope.request.prompt_tokens.into();
    body["eval_count"] = tokens_of(choices).into();
    body["total_duration"] = 1_000_000.into();
}

fn logprobs(body: &mut Value, envelope: &Envelope<'_>, pieces: &[String]) {
    let told = envelope.logprobs(pieces, 0);
    if told["content"].is_array() {
        body["logprobs"] = told["content"].clone();
    }
}
