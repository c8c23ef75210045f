//! A streamed answer as a message's events.
//!
//! `message_start`, the blocks, `message_delta` with the stop reason, the usage and our metadata, `message_stop`. The
//! last two wait for the end, so that nothing looks like a good end that is none.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::super::error::ApiError;
use super::super::shape;
use super::super::sse;
use super::answer::{Asked, Choice, Completion, Counted, Usage};
use super::blocks::{Blocks, TooMuch};
use super::stop::Ending;

/// Keeps a silent connection open; clients skip it.
pub(super) const PING: Bytes = Bytes::from_static(b"event: ping\ndata: {\"type\": \"ping\"}\n\n");

/// Frames one event.
pub(super) fn event(name: &str, data: &Value) -> Bytes {
    let frame = sse::frame(data.to_string().as_bytes());
    let mut out = Vec::with_capacity(frame.len() + name.len() + 8);
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.push(b'\n');
    out.extend_from_slice(&frame);
    out.into()
}

/// State of one streamed message.
#[derive(Debug, Default)]
pub(super) struct Telling {
    begun: bool,
    /// An error was told: nothing may follow it.
    over: bool,
    blocks: Blocks,
    finish: Option<String>,
    matched: Option<String>,
    refused: bool,
    usage: Option<Counted>,
    shoal_metadata: Option<Box<RawValue>>,
    lfo_metadata: Option<Box<RawValue>>,
}

impl Telling {
    /// Tells one chunk.
    pub(super) fn chunk(&mut self, payload: &[u8], asked: &Asked<'_>, out: &mut VecDeque<Bytes>) {
        if self.over {
            return;
        }
        // An object of another kind reads as an empty chunk; what does not read may hold a part of the answer.
        let Ok(chunk) = serde_json::from_slice::<Completion<'_>>(payload) else {
            let message = "the device sent a part of its answer that cannot be read; try again";
            return self.fail(&ApiError::new(502, "upstream_error", message), out);
        };
        self.begin(chunk.model.as_ref().map_or(asked.model, |model| &model.0), asked, out);
        self.usage = chunk.usage().or(self.usage);
        if let Some(metadata) = chunk.shoal_metadata {
            self.shoal_metadata = Some(metadata.to_owned());
        }
        if let Some(metadata) = chunk.lfo_metadata {
            self.lfo_metadata = Some(metadata.to_owned());
        }
        if let Some(choice) = chunk.choices.first()
            && self.choice(choice, out) == Err(TooMuch)
        {
            let message = "the answer holds more tool calls at once than can be told; ask for fewer";
            self.fail(&ApiError::new(502, "upstream_error", message), out);
        }
    }

    fn choice(&mut self, choice: &Choice<'_>, out: &mut VecDeque<Bytes>) -> Result<(), TooMuch> {
        if let Some(said) = choice.said() {
            self.blocks.thinking(&said.thinking(), out)?;
            self.blocks.text(&said.text(), out)?;
            let refusal = said.refusal();
            self.refused |= !refusal.is_empty();
            self.blocks.text(&refusal, out)?;
            for call in said.tool_calls.iter().flatten() {
                self.blocks.call(call, out)?;
            }
        }
        if let Some(reason) = &choice.finish_reason {
            self.finish = Some(reason.0.clone().into_owned());
            self.matched = choice.matched();
        }
        Ok(())
    }

    /// Tells the good end.
    pub(super) fn end(&mut self, asked: &Asked<'_>, out: &mut VecDeque<Bytes>) {
        if self.over {
            return;
        }
        self.begin(asked.model, asked, out);
        self.blocks.finish(out);
        let ending = Ending {
            finish: self.finish.as_deref(),
            matched: self.matched.take(),
            called: self.blocks.has_calls(),
            refused: self.refused,
        };
        let (stop_reason, stop_sequence) = ending.told(asked.stops);
        let usage = self.usage.map_or_else(|| Usage::estimated(asked.prompt_tokens, 0), Usage::from);
        let mut data = json!({
            "type": "message_delta",
            "delta": {"stop_reason": stop_reason, "stop_sequence": stop_sequence},
            "usage": usage,
        });
        for (name, metadata) in
            [("shoal_metadata", &self.shoal_metadata), ("lfo_metadata", &self.lfo_metadata)]
        {
            if let Some(metadata) = metadata {
                data[name] = serde_json::from_str(metadata.get()).unwrap_or_default();
            }
        }
        out.push_back(event("message_delta", &data));
        out.push_back(event("message_stop", &json!({"type": "message_stop"})));
        self.over = true;
    }

    /// Tells an error, and nothing after it.
    pub(super) fn fail(&mut self, error: &ApiError, out: &mut VecDeque<Bytes>) {
        if !std::mem::replace(&mut self.over, true) {
            out.push_back(event("error", &shape::anthropic(error)));
        }
    }

    fn begin(&mut self, model: &str, asked: &Asked<'_>, out: &mut VecDeque<Bytes>) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        self.blocks = Blocks::of(asked.id);
        let message = json!({
            "id": asked.id, "type": "message", "role": "assistant", "model": model, "content": [],
            "stop_reason": null, "stop_sequence": null, "usage": Usage::estimated(asked.prompt_tokens, 0),
        });
        out.push_back(event("message_start", &json!({"type": "message_start", "message": message})));
    }
}
