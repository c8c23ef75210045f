//! Errors in the shape of the API that was asked: one place for all of them, whoever refused the request.
//!
//! An [`ApiError`] travels with its response, so that what the key check, the body limit or a panic said is told in
//! the same shape as what the handler said.

use std::borrow::Cow;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, header};
use serde_json::{Value, json};

use super::error::ApiError;
use super::messages;

/// Which API's errors a path has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// `{"error":{message,type,param,code}}`, as they are made.
    OpenAi,
    /// `{"type":"error","error":{type,message}}`
    Anthropic,
    /// `{"error":"message"}`
    Ollama,
}

impl Shape {
    fn of(path: &str, headers: &HeaderMap) -> Self {
        let path = path.strip_prefix("/v1").unwrap_or(path);
        let is_under =
            |root: &str| path.strip_prefix(root).is_some_and(|r| r.is_empty() || r.starts_with('/'));
        if is_under("/messages") || is_under("/models") && messages::models::is_wanted(headers) {
            Shape::Anthropic
        } else if is_under("/api") {
            Shape::Ollama
        } else {
            Shape::OpenAi
        }
    }
}

/// Tells an error in the shape of the path that was asked.
pub async fn tell_errors(request: Request, next: Next) -> Response {
    let shape = Shape::of(request.uri().path(), request.headers());
    let response = next.run(request).await;
    let Some(error) = response.extensions().get::<ApiError>() else { return response };
    let body = match shape {
        Shape::OpenAi => return response,
        Shape::Anthropic => anthropic(error),
        Shape::Ollama => ollama(error),
    };
    let (mut head, _) = response.into_parts();
    head.headers.remove(header::CONTENT_LENGTH);
    if shape == Shape::Anthropic
        && let Some(id) = head.headers.get("x-request-id").cloned()
    {
        head.headers.insert("request-id", id);
    }
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Response::from_parts(head, body.to_string().into())
}

/// Returns an error as Anthropic's clients know it; in a stream it is the data of an `error` event.
pub fn anthropic(error: &ApiError) -> Value {
    let kind = match error.status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        504 => "timeout_error",
        503 | 529 => "overloaded_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    };
    let message = match &*error.code {
        // Anthropic's words, by which agents know that they must shorten the conversation.
        "context_length_exceeded" => format!("prompt is too long: {}", error.message).into(),
        _ => located(error),
    };
    json!({"type": "error", "error": {"type": kind, "message": message, "code": &*error.code}})
}

/// Returns an error as Ollama's clients know it.
pub fn ollama(error: &ApiError) -> Value {
    json!({"error": located(error), "code": &*error.code})
}

/// The sentence of an error, with the field at fault where it does not name it.
fn located(error: &ApiError) -> Cow<'_, str> {
    match &error.param {
        Some(param) if !error.message.contains(param.as_str()) => {
            Cow::Owned(format!("{param}: {}", error.message))
        }
        _ => Cow::Borrowed(&error.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_its_apis_shape() {
        let theirs = HeaderMap::from_iter([(
            "anthropic-version".parse().unwrap(),
            HeaderValue::from_static("2023-06-01"),
        )]);
        assert_eq!(Shape::of("/v1/models/x", &theirs), Shape::Anthropic);
        assert_eq!(Shape::of("/v1/models/x", &HeaderMap::new()), Shape::OpenAi);
        for (path, shape) in [
            ("/v1/messages", Shape::Anthropic),
            ("/messages/count_tokens", Shape::Anthropic),
            ("/v1/messagesque", Shape::OpenAi),
            ("/api/chat", Shape::Ollama),
            ("/v1/chat/completions", Shape::OpenAi),
            ("/shoal/v1/messages", Shape::OpenAi),
        ] {
            assert_eq!(Shape::of(path, &HeaderMap::new()), shape, "{path}");
        }
    }

    #[test]
    fn each_shape_names_the_field() {
        let error = ApiError::invalid("max_tokens", "it is missing");
        assert_eq!(anthropic(&error)["error"]["type"], "invalid_request_error");
        assert_eq!(anthropic(&error)["error"]["message"], "max_tokens: it is missing");
        assert_eq!(ollama(&error)["error"], "max_tokens: it is missing");
    }
}
