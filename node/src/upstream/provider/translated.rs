//! APIs that are not OpenAI's: a chat is translated into theirs, and their answers into OpenAI's words.

use std::collections::VecDeque;

use bytes::Bytes;
use reqwest::{Request, Url};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::upstream::openai_http::{Dialect, Malformed, Settings, post};
use crate::upstream::{ApiPath, UpstreamError, UpstreamRequest};

/// What differs between such APIs.
pub(super) trait Translated: Send + Sync {
    /// Translates the body of a chat.
    ///
    /// # Errors
    /// What the API cannot say.
    fn request(&self, body: &[u8]) -> Result<Value, String>;

    /// Returns the URL of the method.
    fn address(&self, base: &Url, stream: bool) -> Url;

    /// Puts the key, and what else stands in headers, where the API looks for it.
    ///
    /// # Errors
    /// The key holds characters that no header can carry.
    fn sign(&self, out: &mut Request, settings: &Settings) -> Result<(), UpstreamError>;

    /// Translates a whole answer.
    ///
    /// # Errors
    /// It is none.
    fn whole(&mut self, answer: &[u8]) -> Result<Value, Malformed>;

    /// Translates an event of a stream into any number of chunks.
    ///
    /// # Errors
    /// It is none.
    fn chunks(&mut self, event: &[u8]) -> Result<Vec<Value>, Malformed>;
}

impl<T: Translated> Dialect for T {
    fn outgoing(&self, settings: &Settings, request: &UpstreamRequest) -> Result<Request, UpstreamError> {
        if request.path != ApiPath::ChatCompletions {
            let message = format!("this model of {} serves chat completions only", settings.name);
            return Err(UpstreamError::retryable(400, "unsupported", message));
        }
        let body = self
            .request(&request.body)
            .map_err(|message| UpstreamError::retryable(400, "invalid_request_error", message))?;
        let mut out = post(self.address(&settings.base, request.stream), request, bytes(&body));
        self.sign(&mut out, settings)?;
        Ok(out)
    }

    fn whole(&mut self, body: Bytes) -> Result<Bytes, Malformed> {
        Translated::whole(self, &body).map(|answer| bytes(&answer))
    }

    fn payload(&mut self, payload: Bytes, out: &mut VecDeque<Bytes>) -> Result<(), Malformed> {
        out.extend(self.chunks(&payload)?.iter().map(bytes));
        Ok(())
    }
}

/// Reads an answer, or an event of one.
///
/// # Errors
/// It has not the form that the API promises.
pub(super) fn known<T: DeserializeOwned>(json: &[u8]) -> Result<T, Malformed> {
    serde_json::from_slice(json).map_err(|_| "an answer of a form that is not known")
}

fn bytes(value: &Value) -> Bytes {
    serde_json::to_vec(value).expect("a JSON value serialises").into()
}
