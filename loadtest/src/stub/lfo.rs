//! LFO's phone host: the HTTP bridge (`POST /completion`) and the app's own socket (a JSON line each way).
//!
//! As the real ones: one context, so one answer at a time; no streaming; with tools the answer is a call and has no
//! text; the socket takes one request a connection and closes after its answer; the bridge has no health path and
//! turns every failure of the phone into 502 with `{"error": …}`.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{ConnectInfo, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use super::{
    MAX_BODY_BYTES, Shared,
    conn::KillSwitch,
    log::{End, Entry, Guard, Phase},
};
use crate::{
    script::Script,
    words::{Words, fnv1a},
};

/// Token limit unless the request has one; the app's own.
const DEFAULT_MAX_TOKENS: u64 = 256;

/// Routes of the bridge.
pub(super) fn bridge() -> Router<Arc<Shared>> {
    Router::new().route("/completion", post(completion))
}

/// What a request comes to.
enum Outcome {
    /// The answer.
    Answer(Value),
    /// An error of the phone, in its words.
    Error(&'static str),
    /// Bytes that no app writes.
    Garbage,
    /// Half of an answer, then the end of the connection.
    Cut(Value),
    /// The end of the connection.
    Drop,
}

struct Question {
    messages: Vec<Value>,
    max_tokens: u64,
    tools: Vec<Value>,
    fields: Vec<String>,
}

impl Question {
    fn read(body: &[u8]) -> Result<Self, &'static str> {
        let body: Map<String, Value> = serde_json::from_slice(body).map_err(|_| "Invalid JSON")?;
        let Some(Value::Array(messages)) = body.get("messages") else {
            return Err("messages must be an array");
        };
        let mut fields: Vec<String> = body.keys().cloned().collect();
        fields.sort();
        Ok(Self {
            messages: messages.clone(),
            max_tokens: body.get("max_tokens").and_then(Value::as_u64).unwrap_or(DEFAULT_MAX_TOKENS),
            tools: body.get("tools").and_then(Value::as_array).cloned().unwrap_or_default(),
            fields,
        })
    }

    /// What the words of the answer are bound to: the last user message, as in the other stubs.
    fn prompt(&self) -> String {
        let last = self.messages.iter().rev().find(|message| message["role"] == "user");
        last.and_then(|message| message["content"].as_str()).unwrap_or_default().to_owned()
    }
}

/// Runs one request to its outcome; dropping the future means that the client went away.
async fn run(shared: &Shared, path: &'static str, body: &[u8]) -> (Outcome, Guard, Option<u16>) {
    let open = |question: Option<&Question>, script: Option<&Script>| {
        shared.log.open(Entry {
            seq: 0,
            path,
            model: String::new(),
            stream: false,
            tag: script.and_then(|script| script.tag.clone()),
            prompt: None,
            fields: question.map(|question| question.fields.clone()).unwrap_or_default(),
            phase: Phase::Queued,
            end: End::Open,
            tokens_sent: 0,
            status: 0,
        })
    };
    let question = match Question::read(body) {
        Ok(question) => question,
        Err(message) => return (Outcome::Error(message), open(None, None), Some(400)),
    };
    let prompt = question.prompt();
    let Ok(script) = shared.options.script.for_prompt(&prompt) else {
        return (Outcome::Error("a stub script cannot be read"), open(Some(&question), None), Some(400));
    };
    let guard = open(Some(&question), Some(&script));
    let _slot = shared.slots.acquire().await.expect("the semaphore is never closed");
    guard.phase(Phase::Prefill);
    if script.drop {
        return (Outcome::Drop, guard, None);
    }
    if script.hang.is_some() {
        return std::future::pending().await;
    }
    tokio::time::sleep(script.ttft).await;
    if let Some(status) = script.status {
        return (Outcome::Error("scripted error"), guard, Some(status));
    }
    guard.phase(Phase::Decode);
    let tokens = script.tokens.min(usize::try_from(question.max_tokens).unwrap_or(usize::MAX));
    let took = script.itl * u32::try_from(tokens).unwrap_or(u32::MAX);
    tokio::time::sleep(took).await;
    guard.sent(tokens as u64);
    let mut answer = if let Some(tool) = question.tools.first() {
        let name = tool["function"]["name"].as_str().or(tool["name"].as_str()).unwrap_or("tool");
        json!({ "function_calls": [{ "name": name, "arguments": { "stub": true } }] })
    } else {
        let nonce = fnv1a(format!("{}{}", shared.started_unix, guard.seq()).as_bytes()) as u16;
        let words = Words::new(&prompt, nonce);
        let text: Vec<String> = (0..tokens).map(|index| words.word(index)).collect();
        json!({ "text": text.join(" ") })
    };
    if let Some(confidence) = script.confidence {
        answer["confidence"] = json!(confidence);
    }
    answer["total_time_ms"] = json!((script.ttft + took).as_millis() as u64);
    answer["cloud_handoff"] = json!(script.handoff);
    let outcome = match (script.garbage || script.html, script.cut.is_some()) {
        (true, _) => Outcome::Garbage,
        (_, true) => Outcome::Cut(answer),
        _ => Outcome::Answer(answer),
    };
    (outcome, guard, None)
}

async fn completion(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(connection): ConnectInfo<KillSwitch>,
    body: Bytes,
) -> Response {
    let (outcome, mut guard, status) = run(&shared, "/completion", &body).await;
    match outcome {
        Outcome::Answer(answer) => {
            guard.end(End::Completed, 200);
            Json(answer).into_response()
        }
        Outcome::Error(message) => {
            // A bad request is the bridge's own word; whatever fails behind it is a bad gateway.
            let status = if status == Some(400) { StatusCode::BAD_REQUEST } else { StatusCode::BAD_GATEWAY };
            guard.end(End::Refused, status.as_u16());
            (status, Json(json!({ "error": message }))).into_response()
        }
        Outcome::Garbage => {
            guard.end(End::Fault, 200);
            ([(header::CONTENT_TYPE, "text/html")], "<html>garbage</html>").into_response()
        }
        Outcome::Cut(_) | Outcome::Drop => {
            guard.end(End::Fault, 0);
            connection.kill();
            StatusCode::NO_CONTENT.into_response()
        }
    }
}

/// Serves the app's socket until `kill`.
pub(super) async fn app(listener: TcpListener, shared: Arc<Shared>, kill: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = kill.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, _)) = accepted else { continue };
        let (shared, kill) = (Arc::clone(&shared), kill.clone());
        // Ends with its client or with the stub.
        drop(crate::tasks::spawn_named("stub-app", async move {
            // A client that goes away is an ordinary end of a connection.
            let _ = kill.run_until_cancelled(serve(socket, &shared)).await;
        }));
    }
}

async fn serve(socket: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut socket = BufReader::new(socket);
    let mut line = Vec::new();
    (&mut socket).take(MAX_BODY_BYTES as u64).read_until(b'\n', &mut line).await?;
    if line.last() != Some(&b'\n') {
        return Ok(());
    }
    let mut byte = [0];
    let (outcome, mut guard, _) = tokio::select! {
        outcome = run(shared, "tcp", &line) => outcome,
        // Nothing more is due from the client: a read ends only when it goes away.
        _ = socket.read(&mut byte) => return Ok(()),
    };
    let (text, end, status) = match outcome {
        Outcome::Answer(answer) => (format!("{answer}\n"), End::Completed, 200),
        Outcome::Error(message) => (format!("{}\n", json!({ "error": message })), End::Refused, 0),
        Outcome::Garbage => ("<html>garbage</html>\n".to_owned(), End::Fault, 0),
        Outcome::Cut(answer) => {
            let mut text = answer.to_string();
            text.truncate(text.len() / 2);
            (text, End::Fault, 0)
        }
        Outcome::Drop => (String::new(), End::Fault, 0),
    };
    socket.write_all(text.as_bytes()).await?;
    socket.shutdown().await?;
    guard.end(end, status);
    Ok(())
}
