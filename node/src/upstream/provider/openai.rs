//! OpenAI and its compatibles: the body passes as it is, but for the names that differ.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::{Request, Url};

use super::thoughts::without_thoughts;
use crate::api::body::{Body, Edit};
use crate::upstream::openai_http::{self, Malformed, OpenAi, Settings};
use crate::upstream::{UpstreamError, UpstreamRequest};

/// The one server that refuses `max_tokens` for its newer models; compatibles know little else.
const OPENAI_HOST: &str = "api.openai.com";

/// OpenAI's dialect for one model of a provider.
#[derive(Debug)]
pub(super) struct Dialect {
    /// The provider's own name for the model.
    pub(super) model: Arc<str>,
}

impl openai_http::Dialect for Dialect {
    fn outgoing(&self, settings: &Settings, request: &UpstreamRequest) -> Result<Request, UpstreamError> {
        let body = adapt(&request.body, &self.model, &settings.base)?;
        OpenAi.outgoing(settings, &UpstreamRequest { body, ..request.clone() })
    }

    fn whole(&mut self, body: Bytes) -> Result<Bytes, Malformed> {
        OpenAi.whole(body)
    }

    fn payload(&mut self, payload: Bytes, out: &mut VecDeque<Bytes>) -> Result<(), Malformed> {
        OpenAi.payload(payload, out)
    }
}

fn adapt(bytes: &Bytes, model: &str, base: &Url) -> Result<Bytes, UpstreamError> {
    let bytes = &without_thoughts(bytes);
    let body = Body::parse(bytes)
        .map_err(|_| UpstreamError::new(400, "invalid_request_error", "the request is not a JSON object"))?;
    let name = serde_json::to_string(model).expect("a string serialises");
    let mut edits = vec![("model", Edit::Set(name))];
    if base.host_str() == Some(OPENAI_HOST)
        && let Some(limit) = body.raw("max_tokens")
    {
        edits.push(("max_tokens", Edit::Remove));
        if body.raw("max_completion_tokens").is_none() {
            edits.push(("max_completion_tokens", Edit::Set(limit.get().to_owned())));
        }
    }
    Ok(body.rebuild(&edits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapted(body: &'static str, base: &str) -> String {
        let bytes = adapt(&Bytes::from_static(body.as_bytes()), "gpt-x", &base.parse().unwrap()).unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn the_model_gets_its_own_name_and_the_rest_keeps_its_bytes() {
        assert_eq!(
            adapted(r#"{"model":"openai/gpt-x","seed": 1.50,"max_tokens":3}"#, "http://box/v1"),
            r#"{"model":"gpt-x","seed":1.50,"max_tokens":3}"#
        );
    }

    #[test]
    fn openai_itself_gets_the_newer_name_of_the_limit() {
        let base = "https://api.openai.com/v1";
        assert_eq!(
            adapted(r#"{"model":"m","max_tokens":3}"#, base),
            r#"{"model":"gpt-x","max_completion_tokens":3}"#
        );
        assert_eq!(
            adapted(r#"{"model":"m","max_tokens":3,"max_completion_tokens":2}"#, base),
            r#"{"model":"gpt-x","max_completion_tokens":2}"#
        );
    }
}
