//! Anthropic's Messages API, told in OpenAI's words.
//!
//! The translations ([`request`], [`answer`]) are pure; this file only says where they go on the wire.

mod answer;
mod blocks;
mod request;
mod stream;
#[cfg(test)]
mod tests;

use http::HeaderValue;
use reqwest::{Request, Url};
use serde_json::Value;

use self::answer::Answer;
use super::Model;
use super::translated::{Translated, known};
use crate::store::unix_ms;
use crate::upstream::openai_http::{Malformed, Settings, join, secret};
use crate::upstream::{UpstreamError, UpstreamRequest};

/// Version of the API that is spoken. It is kept as it is; the newer one of 2026-10-21 takes no temperature any more,
/// which clients of OpenAI's API send and some models still heed.
const VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");

/// Anthropic's dialect for one request.
#[derive(Debug)]
pub(super) struct Dialect {
    model: Model,
    answer: Answer,
}

impl Dialect {
    pub(super) fn new(model: Model, request: &UpstreamRequest) -> Self {
        let unwraps = request::answers_by_tool(&request.body, &model.traits);
        let answer = Answer::new(&request.id, &model.name, unix_ms() / 1000, unwraps);
        Self { model, answer }
    }
}

impl Translated for Dialect {
    fn request(&self, body: &[u8]) -> Result<Value, String> {
        request::translate(body, &self.model).map_err(|error| error.to_string())
    }

    fn address(&self, base: &Url, _stream: bool) -> Url {
        join(base, "/v1/messages")
    }

    fn sign(&self, out: &mut Request, settings: &Settings) -> Result<(), UpstreamError> {
        out.headers_mut().insert("anthropic-version", VERSION);
        if let Some(key) = &settings.key {
            out.headers_mut().insert("x-api-key", secret("", key)?);
        }
        Ok(())
    }

    fn whole(&mut self, answer: &[u8]) -> Result<Value, Malformed> {
        self.answer.whole(known(answer)?)
    }

    fn chunks(&mut self, event: &[u8]) -> Result<Vec<Value>, Malformed> {
        self.answer.chunks(known(event)?)
    }
}
