//! Anthropic's Messages API, told in OpenAI's words.
//!
//! The translations ([`request`], [`answer`]) are pure; this file only says where they go on the wire.

mod answer;
mod blocks;
mod request;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use bytes::Bytes;
use http::HeaderValue;
use reqwest::Request;

use self::answer::Answer;
use super::Model;
use crate::store::unix_ms;
use crate::upstream::openai_http::{self, Malformed, Settings, join, post, secret};
use crate::upstream::{ApiPath, UpstreamError, UpstreamRequest};

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

impl openai_http::Dialect for Dialect {
    fn outgoing(&self, settings: &Settings, request: &UpstreamRequest) -> Result<Request, UpstreamError> {
        if request.path != ApiPath::ChatCompletions {
            let message = format!("{} serves chat completions only", settings.name);
            return Err(UpstreamError::retryable(400, "unsupported", message));
        }
        let body = request::translate(&request.body, &self.model)
            .map_err(|error| UpstreamError::retryable(400, "invalid_request_error", error.to_string()))?;
        let body = serde_json::to_vec(&body).expect("a JSON value serialises");
        let mut out = post(join(&settings.base, "/v1/messages"), request, body.into());
        out.headers_mut().insert("anthropic-version", VERSION);
        if let Some(key) = &settings.key {
            out.headers_mut().insert("x-api-key", secret("", key)?);
        }
        Ok(out)
    }

    fn whole(&mut self, body: Bytes) -> Result<Bytes, Malformed> {
        let body = serde_json::from_slice(&body).map_err(|_| "an answer of a form that is not known")?;
        let whole = self.answer.whole(body)?;
        Ok(serde_json::to_vec(&whole).expect("a JSON value serialises").into())
    }

    fn payload(&mut self, payload: Bytes, out: &mut VecDeque<Bytes>) -> Result<(), Malformed> {
        let event = serde_json::from_slice(&payload).map_err(|_| "a stream of a form that is not known")?;
        for chunk in self.answer.chunks(event)? {
            out.push_back(serde_json::to_vec(&chunk).expect("a JSON value serialises").into());
        }
        Ok(())
    }
}
