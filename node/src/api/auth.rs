//! One extractor for credentials: whatever header they come in, they are checked in one place.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use shoal_routing::DataClass;

use super::error::ApiError;
use super::front::Front;
use super::parse::Floor;

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Id of the API key; `admin` on the admin socket, `anonymous` without keys.
    pub key_id: Arc<str>,
    /// What the key demands of every request.
    pub floor: Floor,
}

impl Caller {
    /// Somebody on the node's own machine, through the admin socket.
    pub fn admin() -> Self {
        Self { key_id: "admin".into(), floor: Floor::default() }
    }
}

/// Refuses requests without a valid key; puts the [`Caller`] into the extensions.
pub async fn require_key(State(front): State<Front>, mut request: Request, next: Next) -> Response {
    let caller = match check(&front, request.headers()) {
        Ok(caller) => caller,
        Err(error) => {
            metrics::counter!("shoal_unauthorised_total").increment(1);
            return error.into_response();
        }
    };
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// Lets everyone in as the admin: the admin socket is protected by the file system.
pub async fn admit_admin(mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(Caller::admin());
    next.run(request).await
}

fn check(front: &Front, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let Some(text) = credential(headers) else {
        if front.no_auth {
            return Ok(Caller { key_id: "anonymous".into(), floor: Floor::default() });
        }
        return Err(ApiError::new(
            401,
            "invalid_api_key",
            "no API key; send 'Authorization: Bearer sk-shoal-…'. The key was printed at the node's first start; make another with `shoal keys create`",
        ));
    };
    match front.keys.authenticate(text) {
        Some(key) => Ok(Caller {
            key_id: key.id.into(),
            floor: Floor { data_class: DataClass::Internal, local_only: key.local_only },
        }),
        None if front.no_auth => Ok(Caller { key_id: "anonymous".into(), floor: Floor::default() }),
        None => Err(ApiError::new(
            401,
            "invalid_api_key",
            "this API key is not valid here; `shoal keys ls` on a node lists the valid ones, `shoal keys create` makes one",
        )),
    }
}

/// Returns true when the headers carry a valid key.
pub(crate) fn has_key(front: &Front, headers: &HeaderMap) -> bool {
    credential(headers).is_some_and(|text| front.keys.authenticate(text).is_some())
}

/// Returns the key that the headers carry, valid or not.
pub(super) fn credential(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(http::header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| {
        let (scheme, rest) = v.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| rest.trim())
    });
    bearer
        .or_else(|| headers.get("x-api-key").and_then(|v| v.to_str().ok()).map(str::trim))
        .filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_headers_carry_a_credential_and_nothing_else_does() {
        let cases: &[(&str, &str, Option<&str>)] = &[
            ("authorization", "Bearer sk-1", Some("sk-1")),
            ("authorization", "bearer  sk-1 ", Some("sk-1")),
            ("authorization", "Basic sk-1", None),
            ("authorization", "Bearer ", None),
            ("x-api-key", "sk-2", Some("sk-2")),
            ("api-key", "sk-3", None),
        ];
        for (name, value, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(*name, value.parse().unwrap());
            assert_eq!(credential(&headers), *expected, "{name}: {value}");
        }
    }
}
