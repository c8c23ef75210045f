//! OpenAI and its compatibles: the body passes as it is, but for the names that differ.

use std::collections::VecDeque;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use reqwest::{Request, Url};

use super::Model;
use super::thoughts::{Takes, without_thoughts};
use crate::api::body::{Body, Edit};
use crate::api::form;
use crate::upstream::openai_http::{self, Malformed, OpenAi, Settings};
use crate::upstream::{ApiPath, UpstreamError, UpstreamRequest};

/// The one server that refuses `max_tokens` for its newer models; compatibles know little else.
const OPENAI_HOST: &str = "api.openai.com";
/// Wants to know which application asks, and is asked for usage in words of its own.
const OPENROUTER_HOST: &str = "openrouter.ai";
/// The application that OpenRouter is told of: this program, whoever uses it.
const APPLICATION: [(&str, HeaderValue); 2] = [
    ("http-referer", HeaderValue::from_static(env!("CARGO_PKG_REPOSITORY"))),
    ("x-title", HeaderValue::from_static("Shoal")),
];
/// How long an engine is to keep a model loaded, in Ollama's API: no provider's affair, and OpenAI refuses it.
const ENGINES_OWN: &str = "keep_alive";
/// Settings of the dice, which reasoning models refuse to be given.
pub(super) const SAMPLING: [&str; 4] = ["temperature", "top_p", "presence_penalty", "frequency_penalty"];

/// OpenAI's dialect for one model of a provider.
#[derive(Debug)]
pub(super) struct Dialect {
    pub(super) model: Model,
}

impl openai_http::Dialect for Dialect {
    fn outgoing(&self, settings: &Settings, request: &UpstreamRequest) -> Result<Request, UpstreamError> {
        let body = match &request.media {
            Some(media) => form::with_model(media, &request.body, &self.model.name),
            None => adapt(&request.body, request.path, &self.model, &settings.base)?,
        };
        let mut out = OpenAi.outgoing(settings, &UpstreamRequest { body, ..request.clone() })?;
        let host = settings.base.host_str();
        if host == Some(OPENROUTER_HOST) {
            let application = APPLICATION.map(|(name, value)| (HeaderName::from_static(name), value));
            out.headers_mut().extend(application);
        }
        Ok(out)
    }

    fn whole(&mut self, body: Bytes) -> Result<Bytes, Malformed> {
        OpenAi.whole(body)
    }

    fn payload(&mut self, payload: Bytes, out: &mut VecDeque<Bytes>) -> Result<(), Malformed> {
        OpenAi.payload(payload, out)
    }
}

fn adapt(bytes: &Bytes, path: ApiPath, model: &Model, base: &Url) -> Result<Bytes, UpstreamError> {
    let takes = if base.host_str().is_some_and(is_strict) { Takes::Nothing } else { Takes::OfCalls };
    let body = without_thoughts(bytes, takes);
    let body = parse(&body)?;
    let mut edits = named(&body, model);
    match base.host_str() {
        Some(OPENAI_HOST) => renamed_limit(&body, path, &mut edits),
        Some(OPENROUTER_HOST) if !path.is_sound() => {
            edits.push(("usage", Edit::Set("{\"include\":true}".into())))
        }
        _ => {}
    }
    Ok(body.rebuild(&edits))
}

/// True for OpenAI's hosts and Azure's, which refuse a field of a message that they do not know.
fn is_strict(host: &str) -> bool {
    host == OPENAI_HOST || host.ends_with(".api.openai.com") || host.ends_with(".openai.azure.com")
}

/// Parses a request's body.
///
/// # Errors
/// It is no JSON object.
pub(super) fn parse(bytes: &Bytes) -> Result<Body<'_>, UpstreamError> {
    Body::parse(bytes)
        .map_err(|_| UpstreamError::new(400, "invalid_request_error", "the request is not a JSON object"))
}

/// Sets the provider's own name for the model, and takes away what the model refuses.
pub(super) fn named(body: &Body<'_>, model: &Model) -> Vec<(&'static str, Edit)> {
    let name = serde_json::to_string(&*model.name).expect("a string serialises");
    let mut edits = vec![("model", Edit::Set(name))];
    if body.raw(ENGINES_OWN).is_some() {
        edits.push((ENGINES_OWN, Edit::Remove));
    }
    if !model.traits.sampling {
        edits.extend(SAMPLING.into_iter().filter(|name| body.raw(name).is_some()).map(|n| (n, Edit::Remove)));
    }
    edits
}

/// Gives the limit of a chat's answer its newer name; the older API for completions knows the older one alone.
pub(super) fn renamed_limit(body: &Body<'_>, path: ApiPath, edits: &mut Vec<(&'static str, Edit)>) {
    if let Some(limit) = body.raw("max_tokens").filter(|_| path == ApiPath::ChatCompletions) {
        edits.push(("max_tokens", Edit::Remove));
        if body.raw("max_completion_tokens").is_none() {
            edits.push(("max_completion_tokens", Edit::Set(limit.get().to_owned())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::testing::chat;
    use crate::upstream::openai_http::Dialect as _;
    use crate::upstream::provider::Traits;

    fn model(sampling: bool) -> Model {
        Model { name: "gpt-x".into(), traits: Traits { sampling, ..Traits::default() } }
    }

    fn adapted(body: &'static str, base: &str) -> String {
        adapted_for(ApiPath::ChatCompletions, body, base)
    }

    fn adapted_for(path: ApiPath, body: &'static str, base: &str) -> String {
        let body = Bytes::from_static(body.as_bytes());
        let bytes = adapt(&body, path, &model(true), &base.parse().unwrap()).unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn the_model_gets_its_own_name_and_the_rest_keeps_its_bytes() {
        assert_eq!(
            adapted(
                r#"{"model":"openai/gpt-x","keep_alive":"5m","seed": 1.50,"max_tokens":3}"#,
                "http://box/v1"
            ),
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
        assert_eq!(
            adapted_for(ApiPath::Completions, r#"{"model":"m","max_tokens":3}"#, base),
            r#"{"model":"gpt-x","max_tokens":3}"#
        );
    }

    #[test]
    fn only_openai_and_azure_are_sent_no_thoughts_of_calls() {
        let body =
            r#"{"model":"m","messages":[{"role":"assistant","reasoning_content":"hm","tool_calls":[{}]}]}"#;
        for (base, sent) in [
            ("https://api.openai.com/v1", false),
            ("https://eu.api.openai.com/v1", false),
            ("https://x.openai.azure.com/openai/v1", false),
            ("https://api.deepseek.com", true),
        ] {
            assert_eq!(adapted(body, base).contains("reasoning_content"), sent, "{base}");
        }
    }

    #[test]
    fn a_reasoning_model_is_not_given_what_it_refuses() {
        let body = Bytes::from_static(br#"{"model":"m","temperature":0.2,"top_p":1,"seed":3}"#);
        let out =
            adapt(&body, ApiPath::ChatCompletions, &model(false), &"http://box/v1".parse().unwrap()).unwrap();
        assert_eq!(&out[..], br#"{"model":"gpt-x","seed":3}"#);
    }

    #[test]
    fn openrouter_learns_the_programs_name_and_is_asked_for_usage() {
        let sent = |base: &str| {
            let settings = openai_http::testing_settings(base);
            Dialect { model: model(true) }.outgoing(&settings, &chat(true)).unwrap()
        };
        let out = sent("https://openrouter.ai/api/v1");
        assert_eq!(out.url().as_str(), "https://openrouter.ai/api/v1/chat/completions");
        assert_eq!(
            (&out.headers()["x-title"], &out.headers()["authorization"]),
            (&"Shoal".parse().unwrap(), &"Bearer sk-test".parse().unwrap())
        );
        let body = out.body().unwrap().as_bytes().unwrap();
        assert!(String::from_utf8_lossy(body).ends_with(r#""usage":{"include":true}}"#));
        assert!(out.headers().get("x-shoal-hops").is_none(), "a vendor is no router that could loop");
        let other = sent("http://127.0.0.1:4000/v1");
        assert!(other.headers().get("x-title").is_none());
        assert_eq!(other.headers()["x-shoal-hops"], "1");
    }
}
