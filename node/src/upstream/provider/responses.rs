//! OpenAI's Responses API as an upstream, for models that have no other: asked and told in the words of chat completions.
//!
//! Nothing is stored at the provider (`store: false`): a conversation comes whole with each request, as in chats.

mod answer;
mod request;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::Request;

use self::answer::Answer;
use super::{Kind, Model, Protocol, azure};
use crate::store::unix_ms;
use crate::upstream::openai_http::{self, Malformed, Settings, bearer, join, post};
use crate::upstream::{ApiPath, UpstreamError, UpstreamRequest};

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

impl openai_http::Dialect for Dialect {
    fn outgoing(&self, settings: &Settings, request: &UpstreamRequest) -> Result<Request, UpstreamError> {
        if request.path != ApiPath::ChatCompletions {
            let message = format!("this model of {} serves chats only", settings.name);
            return Err(UpstreamError::retryable(400, "unsupported", message));
        }
        let body = request::translate(&request.body, &self.model)
            .map_err(|error| UpstreamError::retryable(400, "invalid_request_error", error.to_string()))?;
        let body = serde_json::to_vec(&body).expect("a JSON value serialises");
        let azure = self.protocol.kind == Kind::Azure;
        let url = if azure {
            azure::address(&settings.base, self.protocol.api_version.as_deref(), None, "/responses")
        } else {
            join(&settings.base, "/v1/responses")
        };
        let mut out = post(url, request, body.into());
        if azure {
            azure::sign(&mut out, settings)?
        } else {
            bearer(&mut out, settings)?
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
