//! `metadata`: our own instructions are read and taken out, the client's other keys go on to the upstream.

use shoal_routing::{DataClass, Mode, Preference};

use super::super::body::{Body, Edit};
use super::super::error::ApiError;

/// Our own keys in `metadata`; they are instructions to us and go no further.
pub(in super::super) const OUR_METADATA: &[&str] =
    &["mode", "confidence_threshold", "preference", "data_class", "resume"];

/// Our instructions in `metadata`, and what is left of it for the upstream.
pub(super) struct Metadata {
    pub(super) mode: Mode,
    pub(super) preference: Preference,
    pub(super) data_class: Option<DataClass>,
    pub(super) threshold: Option<f64>,
    pub(super) resume: Option<bool>,
    /// Other keys as JSON, `None` when nothing is left.
    pub(super) rest: Option<String>,
    pub(super) present: bool,
}

impl Metadata {
    pub(super) fn read(body: &Body<'_>) -> Result<Self, ApiError> {
        let mut out = Self {
            mode: Mode::Auto,
            preference: Preference::Balanced,
            data_class: None,
            threshold: None,
            resume: None,
            rest: None,
            present: false,
        };
        let Some(raw) = body.raw("metadata") else { return Ok(out) };
        out.present = true;
        let inner = Body::parse(raw.get().as_bytes())
            .map_err(|_| ApiError::invalid("metadata", "'metadata' must be an object"))?;
        let word = |name: &'static str, allowed: &str| -> Result<Option<String>, ApiError> {
            let Some(raw) = inner.raw(name) else { return Ok(None) };
            serde_json::from_str::<String>(raw.get()).map(Some).map_err(|_| {
                ApiError::invalid(
                    format!("metadata.{name}"),
                    format!("'metadata.{name}' must be one of {allowed}"),
                )
            })
        };
        let refuse = |name: &'static str, allowed: &str| {
            ApiError::invalid(
                format!("metadata.{name}"),
                format!("'metadata.{name}' must be one of {allowed}"),
            )
        };
        if let Some(text) = word("mode", "auto, local, cloud")? {
            out.mode = text.parse().map_err(|_| refuse("mode", "auto, local, cloud"))?;
        }
        if let Some(text) = word("preference", "balanced, cheap, fast, best")? {
            out.preference = text.parse().map_err(|_| refuse("preference", "balanced, cheap, fast, best"))?;
        }
        if let Some(text) = word("data_class", "public, internal, restricted")? {
            out.data_class =
                Some(text.parse().map_err(|_| refuse("data_class", "public, internal, restricted"))?);
        }
        if let Some(raw) = inner.raw("confidence_threshold") {
            // OpenAI's metadata holds text only, so clients send numbers as text too.
            let text = raw.get().trim_matches('"');
            let value: f64 = text.parse().ok().filter(|v| (0.0..=1.0).contains(v)).ok_or_else(|| {
                ApiError::invalid(
                    "metadata.confidence_threshold",
                    "'metadata.confidence_threshold' must lie between 0 and 1",
                )
            })?;
            out.threshold = Some(value);
        }
        if let Some(raw) = inner.raw("resume") {
            out.resume = Some(match raw.get().trim_matches('"') {
                "true" => true,
                "false" => false,
                _ => return Err(refuse("resume", "true, false")),
            });
        }
        let edits: Vec<(&str, Edit)> = OUR_METADATA.iter().map(|k| (*k, Edit::Remove)).collect();
        if inner.names().any(|n| !OUR_METADATA.contains(&n)) {
            out.rest = String::from_utf8(inner.rebuild(&edits).to_vec()).ok();
        }
        Ok(out)
    }
}
