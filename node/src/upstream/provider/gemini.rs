//! Google's Gemini API: `generateContent` and `streamGenerateContent`, told in OpenAI's words.
//!
//! The translations ([`request`], [`answer`]) are pure; this file only says where they go on the wire. The key
//! travels in a header, never in the URL, since URLs end up in logs.

mod answer;
mod request;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use reqwest::{Request, Url};
use serde_json::Value;

use self::answer::Answer;
use super::translated::{Translated, known};
use crate::store::unix_ms;
use crate::upstream::openai_http::{Malformed, Settings, secret};
use crate::upstream::{UpstreamError, UpstreamRequest};

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

impl Translated for Dialect {
    fn request(&self, body: &[u8]) -> Result<Value, String> {
        request::translate(body).map_err(|error| error.to_string())
    }

    fn address(&self, base: &Url, stream: bool) -> Url {
        url(base, &self.model, stream)
    }

    fn sign(&self, out: &mut Request, settings: &Settings) -> Result<(), UpstreamError> {
        if let Some(key) = &settings.key {
            out.headers_mut().insert("x-goog-api-key", secret("", key)?);
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
