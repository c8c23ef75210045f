//! OpenAI's Responses API as an upstream, for models that have no other: asked and told in the words of chat completions.
//!
//! Nothing is stored at the provider (`store: false`): a conversation comes whole with each request, as in chats.

mod answer;
mod request;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use reqwest::{Request, Url};
use serde_json::Value;

use self::answer::Answer;
use super::translated::{Translated, known};
use super::{Kind, Model, Protocol, azure};
use crate::store::unix_ms;
use crate::upstream::openai_http::{Malformed, Settings, bearer, join};
use crate::upstream::{UpstreamError, UpstreamRequest};

/// The dialect of the Responses API for one request.
#[derive(Debug)]
pub(super) struct Dialect {
    model: Model,
    protocol: Arc<Protocol>,
    answer: Answer,
}

impl Dialect {
    pub(super) fn new(model: Model, protocol: Arc<Protocol>, request: &UpstreamRequest) -> Self {
        let answer = Answer::new(&request.id, &model.name, unix_ms() / 1000);
        Self { model, protocol, answer }
    }
}

impl Translated for Dialect {
    fn request(&self, body: &[u8]) -> Result<Value, String> {
        request::translate(body, &self.model).map_err(|error| error.to_string())
    }

    fn address(&self, base: &Url, _stream: bool) -> Url {
        match self.protocol.kind {
            Kind::Azure => azure::address(base, self.protocol.api_version.as_deref(), None, "/responses"),
            _ => join(base, "/v1/responses"),
        }
    }

    fn sign(&self, out: &mut Request, settings: &Settings) -> Result<(), UpstreamError> {
        match self.protocol.kind {
            Kind::Azure => azure::sign(out, settings),
            _ => bearer(out, settings),
        }
    }

    fn whole(&mut self, answer: &[u8]) -> Result<Value, Malformed> {
        self.answer.whole(known(answer)?)
    }

    fn chunks(&mut self, event: &[u8]) -> Result<Vec<Value>, Malformed> {
        self.answer.chunks(known(event)?)
    }
}
