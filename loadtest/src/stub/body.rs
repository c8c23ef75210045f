//! The body of a streamed answer: frames at their time, and the scripted faults between them.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, stream};
use serde_json::{Value, json};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{
    log::{End, Guard, Phase},
    render::Frame,
};
use crate::script::Script;

/// A stream on its way out. Dropping it frees the slot and tells the log that the client has gone.
pub(super) struct Outgoing {
    pub(super) script: Script,
    pub(super) frames: std::vec::IntoIter<Frame>,
    pub(super) guard: Guard,
    /// Held until the answer ends, as a real server's slot is.
    pub(super) _slot: OwnedSemaphorePermit,
    /// When the first token was due.
    pub(super) first: Instant,
    /// How payloads are framed.
    pub(super) framing: Framing,
}

/// How a server frames the payloads of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// `data:` lines alone.
    Data,
    /// One payload a line, not server-sent events, as Ollama does.
    Lines,
    /// The payload's type as `event:` too, as Anthropic does.
    Messages,
    /// The same, as OpenAI's Responses API does.
    Responses,
}

impl Framing {
    /// An error in the middle of a stream.
    fn error(self) -> Value {
        match self {
            Framing::Data | Framing::Lines => {
                json!({"error": {"message": "scripted error", "type": "server_error", "param": null,
                "code": "scripted"}})
            }
            Framing::Messages => {
                json!({"type": "error", "error": {"type": "api_error", "message": "scripted error"}})
            }
            Framing::Responses => {
                json!({"type": "error", "code": "server_error", "message": "scripted error", "param": null})
            }
        }
    }

    /// The line that names a payload's event, if this server writes one.
    fn event(self, payload: &str, end: &str) -> String {
        if matches!(self, Framing::Data | Framing::Lines) {
            return String::new();
        }
        let kind = serde_json::from_str::<Value>(payload).ok();
        let kind = kind.as_ref().and_then(|payload| payload["type"].as_str());
        kind.map_or_else(String::new, |kind| format!("event: {kind}{end}"))
    }
}

/// A fault that breaks the connection.
#[derive(Debug, thiserror::Error)]
#[error("the script cuts this answer")]
pub(super) struct Cut;

struct State {
    out: Outgoing,
    sent: usize,
    pending: VecDeque<Bytes>,
    after: After,
}

/// What follows once the pending pieces are out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    Frames,
    Cut,
    End(End),
}

/// Streams the frames as server-sent events.
pub(super) fn events(out: Outgoing) -> impl Stream<Item = Result<Bytes, Cut>> + Send {
    let state = State { out, sent: 0, pending: VecDeque::new(), after: After::Frames };
    stream::unfold(Some(state), |state| async move {
        let mut state = state?;
        loop {
            if let Some(piece) = state.pending.pop_front() {
                return Some((Ok(piece), Some(state)));
            }
            match state.after {
                After::Frames => state.advance().await,
                After::Cut => {
                    flushed().await;
                    state.out.guard.end(End::Fault, 200);
                    return Some((Err(Cut), None));
                }
                After::End(end) => {
                    state.out.guard.end(end, 200);
                    return None;
                }
            }
        }
    })
}

impl State {
    /// Makes the next pieces pending, or sets what follows.
    async fn advance(&mut self) {
        let script = &self.out.script;
        if script.cut.is_some_and(|at| self.sent >= at) {
            self.after = After::Cut;
            return;
        }
        if script.hang.is_some_and(|at| self.sent >= at) {
            return std::future::pending().await;
        }
        if script.inband.is_some_and(|at| self.sent >= at) {
            let error = self.out.framing.error();
            self.after = After::End(End::Fault);
            return self.write(&error.to_string());
        }
        let Some(frame) = self.out.frames.next() else {
            self.after = After::End(End::Completed);
            if !(script.no_done || self.out.framing == Framing::Lines) {
                self.write("[DONE]");
            }
            return;
        };
        tokio::time::sleep_until(self.out.first + pace(script.itl, frame.due)).await;
        if script.garbage && self.sent == 1 {
            self.write("{\"choices\": [garbage");
        }
        self.sent += frame.tokens as usize;
        self.write(&frame.payload);
        if frame.tokens > 0 {
            self.out.guard.phase(Phase::Decode);
            self.out.guard.sent(self.sent as u64);
        }
    }

    fn write(&mut self, payload: &str) {
        let script = &self.out.script;
        let end = if script.crlf { "\r\n" } else { "\n" };
        let mut text = String::new();
        if self.out.framing == Framing::Lines {
            text.push_str(&format!("{payload}{end}"));
        } else {
            if script.noise {
                text.push_str(&format!(": comment{end}event: message{end}id: {}{end}", self.sent));
            }
            text.push_str(&self.out.framing.event(payload, end));
            text.push_str(&format!("data: {payload}{end}{end}"));
        }
        match script.split {
            None => self.pending.push_back(text.into()),
            Some(size) => {
                self.pending.extend(text.as_bytes().chunks(size).map(Bytes::copy_from_slice));
            }
        }
    }
}

/// Lets the server write out what it holds: it flushes whenever the body is not ready.
pub(super) async fn flushed() {
    tokio::task::yield_now().await;
}

/// Time from the first token to the one at index `due`.
pub(super) fn pace(itl: Duration, due: usize) -> Duration {
    itl * u32::try_from(due).unwrap_or(u32::MAX)
}
