//! Tells a chat completion as a response: its beginning, its output, and one of several ends.
//!
//! A whole answer is told like a stream of one chunk whose events nobody hears, so that both say the same.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::value::RawValue;
use shoal_routing::{DataClass, Tokens};

use super::object::{Birth, Standing, Status, Whole};
use super::output::{Output, Said};
use super::request::Telling;
use crate::api::chat_chunk::{Chunk, Usage, read_whole};
use crate::api::error::ApiError;
use crate::api::kept::{Kept, too_large};
use crate::api::voice::Voice;

/// Keeps a finished response under a class; false where it cannot be kept.
pub(super) type Keep = Box<dyn FnOnce(&RawValue, DataClass) -> bool + Send>;

/// The voice of the Responses API.
pub(super) struct Responses {
    birth: Birth,
    telling: Telling,
    keep: Option<Keep>,
    /// Of the request, as far as is known: until it is accepted, the worst.
    data_class: DataClass,
    /// The first events went out.
    begun: bool,
    /// The last event went out.
    over: bool,
    output: Output,
    kept: Kept,
    model: Option<String>,
    finish: Option<String>,
    usage: Option<Usage>,
    metadata: Vec<(&'static str, Box<RawValue>)>,
}

impl Responses {
    pub(super) fn new(birth: Birth, mut telling: Telling, keep: Option<Keep>) -> Self {
        let free_tools = std::mem::take(&mut telling.free_tools);
        let output = Output::new(birth.clone(), telling.summarise, free_tools);
        Self {
            birth,
            telling,
            keep,
            data_class: DataClass::Restricted,
            begun: false,
            over: false,
            output,
            kept: Kept::default(),
            model: None,
            finish: None,
            usage: None,
            metadata: Vec::new(),
        }
    }

    fn hear(&mut self, chunk: Chunk, out: &mut VecDeque<Bytes>) -> Result<(), ApiError> {
        self.kept.chunk(&chunk)?;
        if chunk.model.is_some() {
            self.model = chunk.model;
        }
        self.begin(out);
        if !chunk.reasoning.is_empty() {
            self.output.think(&chunk.reasoning, out);
        }
        if !chunk.text.is_empty() {
            let logprobs = if self.telling.logprobs { chunk.logprobs } else { Vec::new() };
            self.output.say(Said::Text, &chunk.text, logprobs, out);
        }
        if !chunk.refusal.is_empty() {
            self.output.say(Said::Refusal, &chunk.refusal, Vec::new(), out);
        }
        for part in chunk.calls {
            self.output.call(part, out);
        }
        self.finish = chunk.finish.or(self.finish.take());
        self.usage = chunk.usage.or(self.usage);
        if !chunk.metadata.is_empty() {
            self.metadata = chunk.metadata;
        }
        if self.output.is_full() { Err(too_large("changes its mind too often")) } else { Ok(()) }
    }

    fn begin(&mut self, out: &mut VecDeque<Bytes>) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let object = self.object(Standing::InProgress, self.keep.is_some());
        for kind in ["response.created", "response.in_progress"] {
            self.output.log.event(out, kind, |event| {
                event.put("response", &object);
            });
        }
    }

    fn object(&self, standing: Standing<'_>, store: bool) -> Box<RawValue> {
        let whole = Whole {
            birth: &self.birth,
            standing,
            model: self.model.as_deref().unwrap_or(&self.telling.model),
            output: self.output.items(),
            usage: self.usage,
            store,
            echo: &self.telling.echo,
            metadata: &self.metadata,
        };
        whole.json()
    }

    /// Closes everything and returns the response as it is in the end.
    fn conclude(&mut self, out: &mut VecDeque<Bytes>) -> (&'static str, Box<RawValue>) {
        self.over = true;
        let standing = match self.finish.as_deref() {
            Some("length") => Standing::Incomplete("max_output_tokens"),
            Some("content_filter") => Standing::Incomplete("content_filter"),
            _ => Standing::Completed,
        };
        let last =
            if matches!(standing, Standing::Completed) { Status::Completed } else { Status::Incomplete };
        self.output.close_all(last, out);
        let object = match self.keep.take() {
            None => self.object(standing, false),
            Some(keep) => {
                let object = self.object(standing, true);
                if keep(&object, self.data_class) { object } else { self.object(standing, false) }
            }
        };
        (standing.word(), object)
    }
}

impl Voice for Responses {
    fn accepted(&mut self, _: &str, _: Tokens, class: DataClass) {
        self.data_class = class;
    }

    fn whole(&mut self, answer: Bytes) -> Result<Bytes, ApiError> {
        let mut unheard = VecDeque::new();
        self.hear(read_whole(&answer)?, &mut unheard)?;
        let (_, object) = self.conclude(&mut unheard);
        Ok(String::from(Box::<str>::from(object)).into())
    }

    fn payload(&mut self, payload: &[u8], out: &mut VecDeque<Bytes>) {
        if self.over {
            return;
        }
        if let Err(error) = Chunk::read(payload).and_then(|chunk| self.hear(chunk, out)) {
            self.fail(&error, out);
        }
    }

    fn end(&mut self, out: &mut VecDeque<Bytes>) {
        if self.over {
            return;
        }
        self.begin(out);
        let (word, object) = self.conclude(out);
        self.output.log.event(out, &format!("response.{word}"), |event| {
            event.put("response", &object);
        });
    }

    fn fail(&mut self, error: &ApiError, out: &mut VecDeque<Bytes>) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        self.begin(out);
        self.keep = None;
        let object = self.object(Standing::Failed { code: &error.code, message: &error.message }, false);
        self.output.log.event(out, "response.failed", |event| {
            event.put("response", &object);
        });
    }
}
