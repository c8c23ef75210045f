//! Errors as OpenAI clients know them: a status, and a body `{"error":{message,type,param,code}}`.

use std::borrow::Cow;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::egress::EgressMark;
use crate::upstream::UpstreamError;

/// An error for a client.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// Machine-readable cause.
    pub code: Cow<'static, str>,
    /// Field of the request that is at fault, where one is.
    pub param: Option<String>,
    /// Sentence: the cause and the next step. Holds no prompt text.
    pub message: String,
    /// When to come back.
    pub retry_after: Option<Duration>,
    /// Where the request was sent before it failed.
    pub egress: EgressMark,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: &'a str,
}

impl ApiError {
    /// Makes an error without a parameter.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code: Cow::Borrowed(code),
            param: None,
            message: message.into(),
            retry_after: None,
            egress: EgressMark::default(),
        }
    }

    /// Makes a 400 that names the field at fault.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(400, "invalid_request_error", message) }
    }

    /// Adds when to come back.
    pub fn after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Returns the `type` that OpenAI's clients expect for the status.
    pub fn kind(&self) -> &'static str {
        match self.status {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            503 => "overloaded_error",
            _ => "server_error",
        }
    }

    /// Returns the JSON body; the same object goes in-band into a stream that already began.
    pub fn body(&self) -> Vec<u8> {
        let inner = Inner {
            message: &self.message,
            r#type: self.kind(),
            param: self.param.as_deref(),
            code: &self.code,
        };
        serde_json::to_vec(&Envelope { error: inner }).expect("plain strings serialise")
    }
}

/// Pause for who met an upstream that is full and did not say for how long.
const FULL_PAUSE: Duration = Duration::from_secs(1);

impl From<UpstreamError> for ApiError {
    fn from(error: UpstreamError) -> Self {
        // Clients hammer where they are told nothing. An empty purse fills in no moment.
        let is_full = matches!(error.status, 429 | 503) && error.code != "insufficient_quota";
        Self {
            retry_after: error.retry_after.or(is_full.then_some(FULL_PAUSE)),
            status: error.status,
            code: error.code,
            param: None,
            message: error.message,
            egress: EgressMark::default(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, self.body()).into_response();
        // Who serves an API with errors of another shape finds the error itself there, whoever made it.
        response.extensions_mut().insert(self.clone());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(egress) = HeaderValue::from_str(&self.egress.text()) {
            headers.insert("x-shoal-egress", egress);
        }
        if let Some(wait) = self.retry_after {
            // Whole seconds, never zero: a client that comes back at once gains nothing.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_told_to_come_back_is_told_when() {
        let header = |status, code| {
            let error = UpstreamError::retryable(status, code, "no");
            let response = ApiError::from(error).into_response();
            response.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(header(429, "rate_limit_exceeded").as_deref(), Some("1"));
        assert_eq!(header(503, "overloaded").as_deref(), Some("1"));
        assert_eq!(header(429, "insufficient_quota"), None);
        assert_eq!(header(502, "upstream_error"), None);
        let told = UpstreamError {
            retry_after: Some(Duration::from_secs(7)),
            ..UpstreamError::new(503, "overloaded", "no")
        };
        assert_eq!(ApiError::from(told).into_response().headers()[header::RETRY_AFTER], "7");
    }
}
