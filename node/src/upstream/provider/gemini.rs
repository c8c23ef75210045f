//! Google's Gemini API: `generateContent` and `streamGenerateContent`, told in OpenAI's words.
//!
//! The translations ([`request`], [`answer`]) are pure; this file only says where they go on the wire. The key
//! travels in a header, never in the URL, since URLs end up in logs.

mod answer;
mod request;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::{Request, Url};

use self::answer::Answer;
use crate::store::unix_ms;
use crate::upstream::openai_http::{self, Malformed, Settings, post, secret};
use crate::upstream::{ApiPath, UpstreamError, UpstreamRequest};

/// Version of the API; the one that has all that is used here.
const VERSION: &str = "v1beta";

/// Gemini's dialect for one request.
#[derive(Debug)]
pub(super) struct Dialect {
    model: Arc<str>,
    answer: Answer,
}

impl Dialect {
    pub(super) fn new(model: Arc<str>, request: &UpstreamRequest) -> Self {
        let answer = Answer::new(&request.id, &model, unix_ms() / 1000);
        Self { model, answer }
    }
}

impl openai_http::Dialect for Dialect {
    fn outgoing(&self, settings: &Settings, request: &UpstreamRequest) -> Result<Request, UpstreamError> {
        if request.path != ApiPath::ChatCompletions {
            let message = format!("{} serves chat completions only", settings.name);
            return Err(UpstreamError::retryable(400, "unsupported", message));
        }
        let body = request::translate(&request.body)
            .map_err(|error| UpstreamError::retryable(400, "invalid_request_error", error.to_string()))?;
        let body = serde_json::to_vec(&body).expect("a JSON value serialises");
        let mut out = post(url(&settings.base, &self.model, request.stream), request, body.into());
        if let Some(key) = &settings.key {
            out.headers_mut().insert("x-goog-api-key", secret("", key)?);
        }
        Ok(out)
    }

    fn whole(&mut self, body: Bytes) -> Result<Bytes, Malformed> {
        let body = serde_json::from_slice(&body).map_err(|_| "an answer of a form that is not known")?;
        let whole = self.answer.whole(body)?;
        Ok(serde_json::to_vec(&whole).expect("a JSON value serialises").into())
    }

    fn payload(&mut self, payload: Bytes, out: &mut VecDeque<Bytes>) -> Result<(), Malformed> {
        let payload = serde_json::from_slice(&payload).map_err(|_| "a stream of a form that is not known")?;
        for chunk in self.answer.chunks(payload)? {
            out.push_back(serde_json::to_vec(&chunk).expect("a JSON value serialises").into());
        }
        Ok(())
    }
}

/// Returns the URL of a model's method; the base may or may not end in the version.
fn url(base: &Url, model: &str, stream: bool) -> Url {
    let mut url = base.clone();
    let prefix = base.path().trim_end_matches('/');
    let prefix = prefix.strip_suffix(VERSION).unwrap_or(prefix).trim_end_matches('/');
    let model = model.strip_prefix("models/").unwrap_or(model);
    let method = if stream { "streamGenerateContent" } else { "generateContent" };
    url.set_path(&format!("{prefix}/{VERSION}/models/{model}:{method}"));
    url.set_query(stream.then_some("alt=sse"));
    url.set_fragment(None);
    url
}
