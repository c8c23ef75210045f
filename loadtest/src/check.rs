//! Judges one answer: whole, refused, cut with an explicit error, or cut and looking complete.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use serde_json::Value;

use crate::{script::Script, sse, words};

/// How a request ended, as its client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A whole answer.
    Ok,
    /// An HTTP error, by its code.
    Refused {
        /// HTTP status.
        status: u16,
        /// `error.code` of the body, or `none`.
        code: String,
    },
    /// The connection failed or the request ran out of time before the head, or before the end of a plain body.
    NoAnswer(String),
    /// The answer ended early and said so: an error object in the stream, or a broken connection.
    CutMarked(String),
    /// The answer ended early or is not whole, and a client would take it for complete.
    CutUnmarked(String),
    /// The answer's words are not those of one attempt at this prompt, in order.
    Corrupt(String),
}

/// One request as measured.
#[derive(Clone, Debug)]
pub struct Answer {
    /// How it ended.
    pub verdict: Verdict,
    /// From sending to the end.
    pub total: Duration,
    /// From sending to the first content, in a stream.
    pub first_token: Option<Duration>,
    /// Pieces of content in a stream.
    pub chunks: u64,
    /// Text of the first choice.
    pub text: String,
    /// Headers of the answer that start with `x-`, and `retry-after`.
    pub headers: BTreeMap<String, String>,
}

/// What the answer is judged against.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// Text of the last user message.
    pub prompt: &'a str,
    /// Limit sent with the request.
    pub max_tokens: Option<usize>,
    /// Whether a stream was asked for.
    pub stream: bool,
}

/// Reads and judges the answer to a request sent at `sent`.
pub async fn judge(
    response: reqwest::Result<reqwest::Response>,
    sent: Instant,
    expected: Expected<'_>,
) -> Answer {
    let mut answer = Answer {
        verdict: Verdict::Ok,
        total: Duration::ZERO,
        first_token: None,
        chunks: 0,
        text: String::new(),
        headers: BTreeMap::new(),
    };
    answer.verdict = match response {
        Err(error) => Verdict::NoAnswer(kind_of(&error).to_owned()),
        Ok(response) => {
            answer.headers = extra_headers(&response);
            let status = response.status().as_u16();
            if status != 200 {
                refused(status, response).await
            } else if expected.stream {
                let mut stream = Streamed::new(sent);
                let verdict = stream.read(response.bytes_stream()).await;
                (answer.first_token, answer.chunks) = (stream.first_token, stream.chunks);
                answer.text = stream.text;
                verdict.unwrap_or_else(|| words_verdict(&answer.text, expected))
            } else {
                whole(response, expected, &mut answer.text).await
            }
        }
    };
    answer.total = sent.elapsed();
    answer
}

fn extra_headers(response: &reqwest::Response) -> BTreeMap<String, String> {
    response
        .headers()
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("x-") || *name == http::header::RETRY_AFTER)
        .filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())))
        .collect()
}

fn kind_of(error: &reqwest::Error) -> &'static str {
    if error.is_timeout() {
        "timeout"
    } else if error.is_connect() {
        "connect"
    } else {
        "transport"
    }
}

async fn refused(status: u16, response: reqwest::Response) -> Verdict {
    let body: Value = response.json().await.unwrap_or(Value::Null);
    let code = body["error"]["code"].as_str().unwrap_or("none").to_owned();
    Verdict::Refused { status, code }
}

async fn whole(response: reqwest::Response, expected: Expected<'_>, text: &mut String) -> Verdict {
    let body = match response.bytes().await {
        Ok(body) => body,
        // Nothing of a body that is not streamed is of use before its end: to its client this is no answer.
        Err(error) => return Verdict::NoAnswer(format!("body {}", kind_of(&error))),
    };
    let Ok(body) = serde_json::from_slice::<Value>(&body) else {
        return Verdict::CutUnmarked("body is no JSON".to_owned());
    };
    let choice = &body["choices"][0];
    *text = choice["message"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default().to_owned();
    if choice["finish_reason"].is_null() {
        return Verdict::CutUnmarked("no finish_reason".to_owned());
    }
    words_verdict(text, expected)
}

/// A stub's answer must be whole and unharmed; of another text nothing more is known.
fn words_verdict(text: &str, expected: Expected<'_>) -> Verdict {
    let Ok(script) = Script::default().for_prompt(expected.prompt) else { return Verdict::Ok };
    let planned = crate::script::marker(expected.prompt)
        .is_some_and(|marker| marker.contains(" n=") && !script.tool && script.say.is_none())
        .then(|| script.tokens.min(expected.max_tokens.unwrap_or(usize::MAX)));
    if !words::looks_like_words(text) {
        return match planned {
            Some(planned) if planned > 0 && text.is_empty() => {
                Verdict::CutUnmarked(format!("0 of {planned} words"))
            }
            Some(planned) if planned > 0 => Verdict::Corrupt(words::Fault::NotWords.to_string()),
            _ => Verdict::Ok,
        };
    }
    match (words::verify(expected.prompt, text), planned) {
        (Err(fault), _) => Verdict::Corrupt(fault.to_string()),
        (Ok(count), Some(planned)) if count != planned => {
            Verdict::CutUnmarked(format!("{count} of {planned} words"))
        }
        (Ok(_), _) => Verdict::Ok,
    }
}

struct Streamed {
    sent: Instant,
    reader: sse::Reader,
    first_token: Option<Duration>,
    chunks: u64,
    text: String,
    finished: bool,
    done: bool,
}

impl Streamed {
    fn new(sent: Instant) -> Self {
        Self {
            sent,
            reader: sse::Reader::default(),
            first_token: None,
            chunks: 0,
            text: String::new(),
            finished: false,
            done: false,
        }
    }

    /// Reads to the end; `None` when the stream is formally whole.
    async fn read(&mut self, stream: impl Stream<Item = reqwest::Result<Bytes>>) -> Option<Verdict> {
        let mut stream = std::pin::pin!(stream);
        let mut events = Vec::new();
        while let Some(bytes) = stream.next().await {
            let bytes = match bytes {
                Ok(bytes) => bytes,
                Err(error) => return Some(Verdict::CutMarked(kind_of(&error).to_owned())),
            };
            if let Err(error) = self.reader.push(&bytes, &mut events) {
                return Some(Verdict::Corrupt(error.to_string()));
            }
            for event in events.drain(..) {
                if let Some(verdict) = self.event(&event) {
                    return Some(verdict);
                }
            }
        }
        match (self.finished, self.done) {
            (true, true) if !self.reader.is_mid_event() => None,
            (true, true) => Some(Verdict::CutUnmarked("stopped inside an event".to_owned())),
            (false, _) => Some(Verdict::CutUnmarked("no finish_reason".to_owned())),
            (true, false) => Some(Verdict::CutUnmarked("no [DONE]".to_owned())),
        }
    }

    fn event(&mut self, event: &str) -> Option<Verdict> {
        if self.done {
            return Some(Verdict::Corrupt("data after [DONE]".to_owned()));
        }
        if event == "[DONE]" {
            self.done = true;
            return None;
        }
        let Ok(chunk) = serde_json::from_str::<Value>(event) else {
            return Some(Verdict::Corrupt("chunk is no JSON".to_owned()));
        };
        if let Some(error) = chunk.get("error").filter(|error| !error.is_null()) {
            return Some(Verdict::CutMarked(error["code"].as_str().unwrap_or("error").to_owned()));
        }
        for choice in chunk["choices"].as_array().into_iter().flatten() {
            let text = choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default();
            if choice["index"].as_u64().unwrap_or(0) == 0 {
                if !text.is_empty() && self.finished {
                    return Some(Verdict::Corrupt("content after finish_reason".to_owned()));
                }
                self.text.push_str(text);
                self.finished |= !choice["finish_reason"].is_null();
            }
            if !text.is_empty() || !choice["delta"]["tool_calls"].is_null() {
                self.chunks += 1;
                self.first_token.get_or_insert_with(|| self.sent.elapsed());
            }
        }
        None
    }
}
