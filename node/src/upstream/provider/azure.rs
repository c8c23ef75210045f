//! OpenAI's models as Azure hosts them: other addresses, another header for the key, and filters that speak in
//! the stream.
//!
//! Two forms of address: `/openai/deployments/{deployment}/…?api-version=…`, and the newer `/openai/v1/…` in which the
//! body names the deployment.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use memchr::memmem;
use reqwest::{Request, Url};
use serde_json::Value;

use super::openai::{named, parse, renamed_limit};
use super::thoughts::{Takes, without_thoughts};
use super::{Model, Protocol};
use crate::api::body::Edit;
use crate::api::form;
use crate::upstream::openai_http::{self, Malformed, Settings, post, secret};
use crate::upstream::{UpstreamError, UpstreamRequest};

/// First version that takes `max_completion_tokens` and `stream_options`; versions are dates and compare as text.
const FIRST_MODERN: &str = "2024-09-01";

/// Azure's dialect for one deployment.
#[derive(Debug)]
pub(super) struct Dialect {
    model: Model,
    protocol: Arc<Protocol>,
}

impl Dialect {
    pub(super) fn new(model: Model, protocol: Arc<Protocol>) -> Self {
        Self { model, protocol }
    }
}

impl openai_http::Dialect for Dialect {
    fn outgoing(&self, settings: &Settings, request: &UpstreamRequest) -> Result<Request, UpstreamError> {
        let version = self.protocol.api_version.as_deref();
        let path = request.path.as_str().strip_prefix("/v1").unwrap_or_default();
        let url = address(&settings.base, version, Some(&self.model.name), path);
        if let Some(media) = &request.media {
            let mut out = post(url, request, form::with_model(media, &request.body, &self.model.name));
            sign(&mut out, settings)?;
            return Ok(out);
        }
        let bytes = without_thoughts(&request.body, Takes::Nothing);
        let body = parse(&bytes)?;
        let mut edits = named(&body, &self.model);
        if version.is_none_or(|version| version >= FIRST_MODERN) {
            renamed_limit(&body, request.path, &mut edits);
        } else {
            edits.push(("stream_options", Edit::Remove));
        }
        let mut out = post(url, request, body.rebuild(&edits));
        sign(&mut out, settings)?;
        Ok(out)
    }

    fn whole(&mut self, body: Bytes) -> Result<Bytes, Malformed> {
        Ok(body)
    }

    fn payload(&mut self, payload: Bytes, out: &mut VecDeque<Bytes>) -> Result<(), Malformed> {
        if !is_filter_report(&payload) {
            out.push_back(payload);
        }
        Ok(())
    }
}

/// Returns the URL of a method. `base` is the resource's, with or without `/openai` or `/openai/v1`; `deployment` stands
/// in the older form of address only.
pub(super) fn address(base: &Url, version: Option<&str>, deployment: Option<&str>, path: &str) -> Url {
    let mut url = base.clone();
    let prefix = base.path().trim_end_matches('/');
    let prefix = prefix.strip_suffix("/v1").unwrap_or(prefix);
    let prefix = prefix.strip_suffix("/openai").unwrap_or(prefix);
    match (version, deployment) {
        (None, _) => url.set_path(&format!("{prefix}/openai/v1{path}")),
        (Some(_), Some(name)) => url.set_path(&format!("{prefix}/openai/deployments/{name}{path}")),
        (Some(_), None) => url.set_path(&format!("{prefix}/openai{path}")),
    }
    url.set_query(version.map(|version| format!("api-version={version}")).as_deref());
    url.set_fragment(None);
    url
}

/// Puts the key where Azure looks for it.
///
/// # Errors
/// The key holds characters that no header can carry.
pub(super) fn sign(out: &mut Request, settings: &Settings) -> Result<(), UpstreamError> {
    if let Some(key) = &settings.key {
        out.headers_mut().insert("api-key", secret("", key)?);
    }
    Ok(())
}

/// True for a chunk that only tells what a filter found: it has no choice, or none with a delta, and common clients fall
/// over both.
fn is_filter_report(payload: &[u8]) -> bool {
    let has = |key: &[u8]| memmem::find(payload, key).is_some();
    if !has(b"\"prompt_filter_results\"") && !has(b"\"content_filter_") {
        return false;
    }
    let Ok(chunk) = serde_json::from_slice::<Value>(payload) else { return false };
    let says = |choice: &Value| choice.get("delta").is_some() || !choice["finish_reason"].is_null();
    chunk["usage"].is_null() && !chunk["choices"].as_array().is_some_and(|choices| choices.iter().any(says))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::testing::chat;
    use crate::upstream::ApiPath;
    use crate::upstream::openai_http::Dialect as _;
    use crate::upstream::provider::{Kind, Traits};

    fn dialect(version: Option<&str>) -> Dialect {
        let model = Model { name: "my-gpt".into(), traits: Traits::default() };
        Dialect::new(model, Arc::new(Protocol { kind: Kind::Azure, api_version: version.map(Into::into) }))
    }

    fn sent(base: &str, version: Option<&str>) -> (String, String) {
        let body = Bytes::from_static(
            br#"{"model":"az/my-gpt","max_tokens":5,"stream_options":{"include_usage":true}}"#,
        );
        let request = UpstreamRequest { body, ..chat(true) };
        let out = dialect(version).outgoing(&openai_http::testing_settings(base), &request).unwrap();
        assert_eq!(out.headers()["api-key"], "sk-test");
        assert!(out.headers().get("authorization").is_none());
        let body = out.body().unwrap().as_bytes().unwrap();
        (out.url().to_string(), String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn both_forms_of_address_whatever_the_base_ends_in() {
        for base in [
            "https://x.openai.azure.com",
            "https://x.openai.azure.com/openai/",
            "https://x.openai.azure.com/openai/v1/",
        ] {
            let (url, body) = sent(base, None);
            assert_eq!(url, "https://x.openai.azure.com/openai/v1/chat/completions");
            assert!(
                body.contains(r#""model":"my-gpt""#) && body.contains(r#""max_completion_tokens":5"#),
                "{body}"
            );
            let (url, body) = sent(base, Some("2024-02-01"));
            assert_eq!(
                url,
                "https://x.openai.azure.com/openai/deployments/my-gpt/chat/completions?api-version=2024-02-01"
            );
            assert!(body.contains(r#""max_tokens":5"#) && !body.contains("stream_options"), "{body}");
        }
        assert!(sent("https://x.example", Some("2024-10-21")).1.contains("max_completion_tokens"));
    }

    #[test]
    fn recordings_go_to_their_deployment_in_the_older_form() {
        let media = "multipart/form-data; boundary=b";
        let form = |model: &str| {
            let part = |head: &str, content: &str| {
                format!("--b\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n")
            };
            part("name=\"file\"; filename=\"a.wav\"", "RIFF") + &part("name=\"model\"", model) + "--b--\r\n"
        };
        let settings = openai_http::testing_settings("https://x.openai.azure.com");
        for (path, end) in
            [(ApiPath::Transcriptions, "audio/transcriptions"), (ApiPath::Translations, "audio/translations")]
        {
            let body = Bytes::from(form("az/my-gpt"));
            let request = UpstreamRequest { body, path, media: Some(media.into()), ..chat(false) };
            for (version, address) in [
                (None, format!("https://x.openai.azure.com/openai/v1/{end}")),
                (
                    Some("2024-10-21"),
                    format!(
                        "https://x.openai.azure.com/openai/deployments/my-gpt/{end}?api-version=2024-10-21"
                    ),
                ),
            ] {
                let out = dialect(version).outgoing(&settings, &request).unwrap();
                assert_eq!(out.url().as_str(), address);
                assert_eq!(out.headers()["content-type"], media);
                assert_eq!(out.body().unwrap().as_bytes().unwrap(), form("my-gpt").as_bytes());
            }
        }
    }

    #[test]
    fn a_completion_that_is_no_chat_keeps_the_name_of_its_limit() {
        let body = Bytes::from_static(br#"{"model":"az/my-gpt","max_tokens":5}"#);
        let request = UpstreamRequest { body, path: ApiPath::Completions, ..chat(false) };
        let settings = openai_http::testing_settings("https://x.openai.azure.com");
        let out = dialect(None).outgoing(&settings, &request).unwrap();
        let body = String::from_utf8_lossy(out.body().unwrap().as_bytes().unwrap()).into_owned();
        assert!(body.contains(r#""max_tokens":5"#), "{body}");
    }

    #[test]
    fn what_a_filter_says_alone_is_left_out_of_the_stream() {
        let passes = |payload: &'static str| {
            let mut out = VecDeque::new();
            dialect(None).payload(Bytes::from_static(payload.as_bytes()), &mut out).unwrap();
            !out.is_empty()
        };
        assert!(!passes(
            r#"{"choices":[],"prompt_filter_results":[{"prompt_index":0,"content_filter_results":{}}]}"#
        ));
        assert!(!passes(
            r#"{"choices":[{"index":0,"finish_reason":null,"content_filter_results":{},"content_filter_offsets":{}}]}"#
        ));
        assert!(passes(r#"{"choices":[{"index":0,"delta":{"content":"a"},"content_filter_results":{}}]}"#));
        assert!(passes(r#"{"choices":[{"index":0,"finish_reason":"stop","content_filter_results":{}}]}"#));
        assert!(passes(r#"{"choices":[],"usage":{"prompt_tokens":1},"prompt_filter_results":[]}"#));
        assert!(passes(r#"{"choices":[{"index":0,"delta":{"content":"\"content_filter_\""}}]}"#));
    }
}
