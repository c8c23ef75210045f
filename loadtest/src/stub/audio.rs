//! OpenAI's API for recordings: forms read by a library of their own, answers that say what arrived.
//!
//! A transcript names the bytes of the recording and their hash, and a recording repeats the text that it reads, so that
//! a client can tell that nothing was changed on the way.

use std::sync::Arc;

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{ConnectInfo, Multipart, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use data_encoding::BASE64;
use futures_util::{Stream, stream};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Shared,
    body::{Cut, flushed, pace},
    conn::KillSwitch,
    error,
    infer::refuse,
    log::{End, Entry, Guard, Phase},
};
use crate::{script::Script, words::fnv1a};

/// How often a recording repeats its text: enough for several pieces.
const REPEATS: usize = 64;
/// Bytes of a second of every recording, as far as this server is concerned.
const BYTES_PER_SECOND: f64 = 1000.0;

pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/v1/audio/transcriptions", post(transcribe))
        .route("/v1/audio/translations", post(translate))
        .route("/v1/audio/speech", post(speak))
}

type Connection = ConnectInfo<KillSwitch>;

pub(super) async fn transcribe(
    State(shared): State<Arc<Shared>>,
    connection: Connection,
    form: Multipart,
) -> Response {
    heard(shared, connection, "/v1/audio/transcriptions", form).await
}

async fn translate(State(shared): State<Arc<Shared>>, connection: Connection, form: Multipart) -> Response {
    heard(shared, connection, "/v1/audio/translations", form).await
}

/// A form as it arrived.
#[derive(Default)]
struct Heard {
    fields: Vec<String>,
    model: Option<String>,
    prompt: String,
    format: Option<String>,
    stream: bool,
    file: Option<Recording>,
}

/// A recording as it arrived.
struct Recording {
    name: String,
    media: String,
    bytes: Bytes,
}

async fn read(mut form: Multipart) -> Result<Heard, String> {
    let mut heard = Heard::default();
    while let Some(field) = form.next_field().await.map_err(|error| error.body_text())? {
        let name = field.name().unwrap_or_default().to_owned();
        heard.fields.push(name.clone());
        if name == "file" {
            let file = field.file_name().map(str::to_owned);
            let media = field.content_type().unwrap_or_default().to_owned();
            let bytes = field.bytes().await.map_err(|error| error.body_text())?;
            let name = file.ok_or("'file' has no name")?;
            heard.file = Some(Recording { name, media, bytes });
            continue;
        }
        let text = field.text().await.map_err(|error| error.body_text())?;
        match name.as_str() {
            "model" if heard.model.is_some() => return Err("'model' stands twice".to_owned()),
            "model" => heard.model = Some(text),
            "prompt" => heard.prompt = text,
            "response_format" => heard.format = Some(text),
            "stream" => heard.stream = matches!(text.as_str(), "true" | "True" | "1"),
            _ => {}
        }
    }
    heard.fields.sort();
    Ok(heard)
}

async fn heard(shared: Arc<Shared>, connection: Connection, path: &'static str, form: Multipart) -> Response {
    let bad = |message: &str, param| {
        shared.log.open(entry(path, "", false, &[], None)).end(End::Refused, 400);
        error(StatusCode::BAD_REQUEST, message, "invalid_request_error", param)
    };
    let heard = match read(form).await {
        Ok(heard) => heard,
        Err(message) => return bad(&message, None),
    };
    let (Some(model), Some(file)) = (&heard.model, &heard.file) else {
        return bad("'model' and 'file' are required", Some("file"));
    };
    let script = match shared.options.script.for_prompt(&heard.prompt) {
        Ok(script) => script,
        Err(error) => return bad(&error.to_string(), Some("prompt")),
    };
    let entry = entry(path, model, heard.stream, &heard.fields, script.tag.clone());
    let (guard, first) = match admit(&shared, connection, entry, model, &script).await {
        Ok(admitted) => admitted,
        Err(response) => return response,
    };
    let Recording { name, media, bytes } = file;
    let text = format!("heard {} bytes {:016x} of {name} as {media}", bytes.len(), fnv1a(bytes));
    // Older models count time, newer ones tokens, of which only the latter stream.
    let seconds = bytes.len() as f64 / BYTES_PER_SECOND;
    let counts = !model.contains("whisper");
    let usage = if counts {
        json!({"type": "tokens", "input_tokens": bytes.len() / 100, "output_tokens": 7,
            "total_tokens": bytes.len() / 100 + 7})
    } else {
        json!({"type": "duration", "seconds": seconds})
    };
    if heard.stream && counts {
        let words = text.split_inclusive(' ');
        let deltas = words.map(|word| json!({"type": "transcript.text.delta", "delta": word}));
        let done = json!({"type": "transcript.text.done", "text": text, "usage": usage});
        return sent("text/event-stream", events(deltas.chain([done])), script, guard, first);
    }
    let (media, body) = match heard.format.as_deref() {
        None | Some("json") => ("application/json", json!({"text": text, "usage": usage}).to_string()),
        Some("verbose_json") => (
            "application/json",
            json!({"task": "transcribe", "language": "english", "duration": seconds, "text": text,
                "segments": [], "usage": usage})
            .to_string(),
        ),
        Some("text") => ("text/plain; charset=utf-8", format!("{text}\n")),
        Some("srt") => ("text/plain; charset=utf-8", format!("1\n00:00:00,000 --> 00:00:01,000\n{text}\n\n")),
        Some("vtt") => ("text/vtt", format!("WEBVTT\n\n00:00.000 --> 00:01.000\n{text}\n\n")),
        Some(other) => {
            let message = format!("unknown response_format '{other}'");
            let response = error(StatusCode::BAD_REQUEST, &message, "invalid_value", Some("response_format"));
            return refuse(guard, response);
        }
    };
    sent(media, vec![body.into()], script, guard, first)
}

async fn speak(State(shared): State<Arc<Shared>>, connection: Connection, body: Bytes) -> Response {
    let path = "/v1/audio/speech";
    let bad = |message: &str, param| {
        shared.log.open(entry(path, "", false, &[], None)).end(End::Refused, 400);
        error(StatusCode::BAD_REQUEST, message, "invalid_request_error", param)
    };
    let Ok(Value::Object(fields)) = serde_json::from_slice::<Value>(&body) else {
        return bad("We could not parse the JSON body of your request.", None);
    };
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    let (Some(model), Some(input), Some(voice)) = (text("model"), text("input"), text("voice")) else {
        return bad("'model', 'input' and 'voice' are required", Some("input"));
    };
    let script = match shared.options.script.for_prompt(input) {
        Ok(script) => script,
        Err(error) => return bad(&error.to_string(), Some("input")),
    };
    let streams = text("stream_format") == Some("sse");
    let mut names: Vec<String> = fields.keys().cloned().collect();
    names.sort();
    let entry = entry(path, model, streams, &names, script.tag.clone());
    let (guard, first) = match admit(&shared, connection, entry, model, &script).await {
        Ok(admitted) => admitted,
        Err(response) => return response,
    };
    let format = text("response_format").unwrap_or("mp3");
    let media = match format {
        "mp3" => "audio/mpeg",
        "opus" => "audio/ogg",
        "aac" => "audio/aac",
        "flac" => "audio/flac",
        "wav" => "audio/wav",
        "pcm" => "audio/pcm",
        _ => {
            let message = format!("unknown response_format '{format}'");
            let response = error(StatusCode::BAD_REQUEST, &message, "invalid_value", Some("response_format"));
            return refuse(guard, response);
        }
    };
    let head = format!("{format}|{voice}|");
    let spoken = |_| Bytes::from(input.to_owned());
    let pieces: Vec<Bytes> = [head.into()].into_iter().chain((0..REPEATS).map(spoken)).collect();
    if streams {
        let audio = |piece: &Bytes| json!({"type": "speech.audio.delta", "audio": BASE64.encode(piece)});
        let usage = json!({"input_tokens": 14, "output_tokens": 101, "total_tokens": 115});
        let done = json!({"type": "speech.audio.done", "usage": usage});
        let parts: Vec<Value> = pieces.iter().map(audio).collect();
        return sent("text/event-stream", events(parts.into_iter().chain([done])), script, guard, first);
    }
    sent(media, pieces, script, guard, first)
}

/// Takes a slot, and plays the faults that come before an answer.
async fn admit(
    shared: &Arc<Shared>,
    ConnectInfo(connection): Connection,
    entry: Entry,
    model: &str,
    script: &Script,
) -> Result<(Guard, Instant), Response> {
    let mut guard = shared.log.open(entry);
    if !shared.options.models.iter().any(|served| served == model) {
        let message = format!("The model '{model}' does not exist.");
        let response = error(StatusCode::NOT_FOUND, &message, "model_not_found", Some("model"));
        return Err(refuse(guard, response));
    }
    guard.phase(Phase::Prefill);
    if script.drop {
        guard.end(End::Fault, 0);
        connection.kill();
        return Err(StatusCode::NO_CONTENT.into_response());
    }
    let first = Instant::now() + script.ttft;
    tokio::time::sleep_until(first).await;
    if let Some(status) = script.status {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return Err(refuse(guard, error(status, "scripted error", "scripted", None)));
    }
    if script.hang == Some(0) {
        return std::future::pending().await;
    }
    Ok((guard, first))
}

fn events(payloads: impl Iterator<Item = Value>) -> Vec<Bytes> {
    payloads.map(|payload| format!("data: {payload}\n\n").into()).collect()
}

/// An answer of some pieces, each at its time, with the scripted faults between them.
fn sent(media: &'static str, pieces: Vec<Bytes>, script: Script, guard: Guard, first: Instant) -> Response {
    guard.phase(Phase::Decode);
    let body = Body::from_stream(paced(pieces, script, guard, first));
    ([(header::CONTENT_TYPE, media)], body).into_response()
}

fn paced(
    pieces: Vec<Bytes>,
    script: Script,
    guard: Guard,
    first: Instant,
) -> impl Stream<Item = Result<Bytes, Cut>> + Send {
    let state = (pieces.into_iter(), guard, 0_usize);
    stream::unfold(Some(state), move |state| {
        let script = script.clone();
        async move {
            let (mut pieces, mut guard, sent) = state?;
            if script.cut.is_some_and(|at| sent >= at) {
                flushed().await;
                guard.end(End::Fault, 200);
                return Some((Err(Cut), None));
            }
            if script.hang.is_some_and(|at| sent >= at) {
                return std::future::pending().await;
            }
            let Some(piece) = pieces.next() else {
                guard.end(End::Completed, 200);
                return None;
            };
            tokio::time::sleep_until(first + pace(script.itl, sent)).await;
            guard.sent(sent as u64 + 1);
            Some((Ok(piece), Some((pieces, guard, sent + 1))))
        }
    })
}

fn entry(path: &'static str, model: &str, stream: bool, fields: &[String], tag: Option<String>) -> Entry {
    Entry { model: model.to_owned(), stream, tag, fields: fields.to_vec(), ..super::infer::blank(path) }
}
