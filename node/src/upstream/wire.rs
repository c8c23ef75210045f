//! Inferences and errors as they travel over the mesh, in both directions; what a peer claims is bounded here.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use shoal_proto::{DataClass as WireClass, InferError, InferRequest};
use shoal_routing::DataClass;
use tokio::time::Instant;

use super::{UpstreamError, UpstreamRequest};

/// Longest message of a peer that is passed on, in characters.
const MAX_MESSAGE: usize = 500;
/// Longest media type that is passed on, in bytes; a form's boundary has at most 70.
const MAX_MEDIA: usize = 256;
/// Longest error code of a peer that is passed on, in bytes.
const MAX_CODE: usize = 64;
/// Longest `retry_after` that a peer may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// Longest deadline that is taken literally; more is as good as none.
const MAX_DEADLINE_MS: u64 = 24 * 3600 * 1000;

/// The request as it travels.
pub fn to_wire(request: &UpstreamRequest) -> InferRequest {
    let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now()).as_millis();
    InferRequest {
        request_id: request.id.to_string(),
        path: request.path.as_str().to_owned(),
        model: request.model.to_string(),
        body: request.body.clone(),
        // Zero would mean that there is no limit.
        deadline_ms: request
            .deadline
            .map_or(0, |deadline| u64::try_from(left(deadline)).unwrap_or(u64::MAX).max(1)),
        hop: request.hop,
        meshes: request.meshes,
        data_class: match request.data_class {
            DataClass::Public => WireClass::Public,
            DataClass::Internal => WireClass::Internal,
            DataClass::Restricted => WireClass::Restricted,
        }
        .into(),
        attempts_left: request.attempts_left,
        stream: request.stream,
        device: request.device.as_deref().unwrap_or_default().to_owned(),
        content_type: request.media.as_deref().unwrap_or_default().to_owned(),
    }
}

/// The request as upstreams take it.
///
/// # Errors
/// The path is not an inference.
pub fn from_wire(request: InferRequest) -> Result<UpstreamRequest, UpstreamError> {
    let deadline_ms = request.deadline_ms.min(MAX_DEADLINE_MS);
    Ok(UpstreamRequest {
        egress: Default::default(),
        commitment: Default::default(),
        payer: None,
        path: request.path.parse()?,
        // A class that is missing, or that this version does not know, is taken as the strictest.
        data_class: match WireClass::try_from(request.data_class) {
            Ok(WireClass::Public) => DataClass::Public,
            Ok(WireClass::Internal) => DataClass::Internal,
            Ok(WireClass::Restricted | WireClass::Unspecified) | Err(_) => DataClass::Restricted,
        },
        id: Arc::from(request.request_id),
        model: Arc::from(request.model),
        body: request.body,
        media: media_from_wire(&request.content_type),
        stream: request.stream,
        deadline: (deadline_ms > 0).then(|| Instant::now() + Duration::from_millis(deadline_ms)),
        hop: request.hop,
        meshes: request.meshes,
        attempts_left: request.attempts_left,
        device: (!request.device.is_empty()).then(|| Arc::from(request.device)),
    })
}

/// A media type as a peer worded it, bounded: it will stand in a header. Nothing, and nonsense, is `None`.
pub fn media_from_wire(text: &str) -> Option<Arc<str>> {
    let is_media = (1..=MAX_MEDIA).contains(&text.len()) && text.bytes().all(|b| (b' '..=b'~').contains(&b));
    is_media.then(|| Arc::from(text))
}

/// An error as it travels.
pub fn error_to_wire(error: &UpstreamError) -> InferError {
    InferError {
        status: error.status.into(),
        code: error.code.to_string(),
        message: error.message.clone(),
        retryable: error.retryable,
        retry_after_ms: error
            .retry_after
            .map_or(0, |wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
        egress: String::new(),
        unanswered: error.unanswered,
    }
}

/// An error as a peer worded it, bounded: a peer is trusted to answer, not to flood.
pub fn error_from_wire(error: InferError) -> UpstreamError {
    let status = u16::try_from(error.status).ok().filter(|status| (400..600).contains(status)).unwrap_or(502);
    let is_word = |code: &str| {
        !code.is_empty()
            && code.len() <= MAX_CODE
            && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    let retry_after = Duration::from_millis(error.retry_after_ms).min(MAX_RETRY_AFTER);
    UpstreamError {
        status,
        code: if is_word(&error.code) { Cow::Owned(error.code) } else { Cow::Borrowed("upstream_error") },
        message: error.message.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect(),
        retryable: error.retryable,
        retry_after: (!retry_after.is_zero()).then_some(retry_after),
        unanswered: error.unanswered,
        unheard: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_that_nobody_names_is_the_strictest() {
        for (wire, expected) in [
            (WireClass::Public.into(), DataClass::Public),
            (WireClass::Internal.into(), DataClass::Internal),
            (0, DataClass::Restricted),
            (77, DataClass::Restricted),
        ] {
            let request = InferRequest {
                path: "/v1/chat/completions".into(),
                data_class: wire,
                deadline_ms: u64::MAX,
                ..InferRequest::default()
            };
            assert_eq!(from_wire(request).unwrap().data_class, expected, "{wire}");
        }
    }

    #[test]
    fn what_a_peer_says_of_its_failure_is_bounded() {
        let error = error_from_wire(InferError {
            status: 200,
            code: "Not A Word".into(),
            message: format!("\u{1b}{}", "x".repeat(10_000)),
            retryable: true,
            retry_after_ms: u64::MAX,
            ..InferError::default()
        });
        assert_eq!((error.status, &*error.code, error.message.len()), (502, "upstream_error", MAX_MESSAGE));
        assert_eq!(error.retry_after, Some(MAX_RETRY_AFTER));
    }
}
