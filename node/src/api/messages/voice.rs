//! The voice of the Messages API.

use std::collections::VecDeque;

use bytes::Bytes;
use shoal_routing::{DataClass, Tokens};

use super::super::error::ApiError;
use super::super::voice::Voice;
use super::answer::{Asked, message};
use super::stream::{PING, Telling};

/// Says one answer as a message, whole or as its events.
#[derive(Debug)]
pub(super) struct Messages {
    id: String,
    model: String,
    stops: Vec<String>,
    prompt_tokens: u32,
    telling: Telling,
}

impl Messages {
    /// Makes the voice for one request: the model that it names, and its stop sequences.
    pub(super) fn new(model: String, stops: Vec<String>) -> Self {
        Self { id: "msg_".into(), model, stops, prompt_tokens: 0, telling: Telling::default() }
    }
}

/// Splits the voice into what was asked and what is being told.
fn split(voice: &mut Messages) -> (Asked<'_>, &mut Telling) {
    let Messages { id, model, stops, prompt_tokens, telling } = voice;
    (Asked { id, model, stops, prompt_tokens: *prompt_tokens }, telling)
}

impl Voice for Messages {
    fn accepted(&mut self, request_id: &str, prompt_tokens: Tokens, _: DataClass) {
        // Whoever has the message has the request: `shoal explain req_…` with the same rest.
        self.id = format!("msg_{}", request_id.trim_start_matches("req_"));
        self.prompt_tokens = prompt_tokens.0;
    }

    fn whole(&mut self, answer: Bytes) -> Result<Bytes, ApiError> {
        message(&answer, &split(self).0)
    }

    fn payload(&mut self, payload: &[u8], out: &mut VecDeque<Bytes>) {
        let (asked, telling) = split(self);
        telling.chunk(payload, &asked, out);
    }

    fn end(&mut self, out: &mut VecDeque<Bytes>) {
        let (asked, telling) = split(self);
        telling.end(&asked, out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut VecDeque<Bytes>) {
        self.telling.fail(error, out);
    }

    fn keep_alive(&self) -> Option<Bytes> {
        Some(PING)
    }
}
