//! What differs between servers on one and the same exchange: who may open the socket, and how the API is spelt.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, header};
use reqwest::{Client, Request, Response};
use secrecy::{ExposeSecret, SecretString};

use super::{Settings, join};
use crate::egress::{self, Egress, EgressPermit};
use crate::upstream::sse::Framing;
use crate::upstream::{UpstreamError, UpstreamRequest};

/// The way by which one request leaves.
#[derive(Debug)]
pub(crate) enum Line {
    /// To an engine that belongs to the mesh.
    Mesh(Client),
    /// To a provider, with leave for this one request.
    Out {
        /// The only holder of provider sockets.
        egress: Arc<Egress>,
        /// Its leave.
        permit: EgressPermit,
    },
}

impl Line {
    pub(super) async fn send(self, request: Request) -> Result<Response, egress::Error> {
        match self {
            Line::Mesh(client) => Ok(client.execute(request).await?),
            Line::Out { egress, permit } => egress.send(permit, request).await,
        }
    }
}

/// An answer that is not what the API promises; completes the sentence "… answered with".
pub(crate) type Malformed = &'static str;

/// How one server spells requests and answers; the exchange itself (time-outs, framing, errors) is the same.
pub(crate) trait Dialect: Send + Sync {
    /// Builds the request: URL, headers, key and body.
    ///
    /// # Errors
    /// The API cannot say what the client asked for.
    fn outgoing(&self, settings: &Settings, request: &UpstreamRequest) -> Result<Request, UpstreamError>;

    /// Turns a whole answer into OpenAI's form.
    fn whole(&mut self, body: Bytes) -> Result<Bytes, Malformed>;

    /// Turns one payload of a stream into OpenAI's chunks.
    fn payload(&mut self, payload: Bytes, out: &mut VecDeque<Bytes>) -> Result<(), Malformed>;

    /// Says how a stream's payloads are laid out.
    fn framing(&self) -> Framing {
        Framing::Events
    }
}

/// OpenAI's own API: everything passes as it is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OpenAi;

impl Dialect for OpenAi {
    fn outgoing(&self, settings: &Settings, request: &UpstreamRequest) -> Result<Request, UpstreamError> {
        let mut out = post(join(&settings.base, request.path.as_str()), request, request.body.clone());
        bearer(&mut out, settings)?;
        // The server may be a router itself, of this mesh even.
        out.headers_mut().insert(HOPS, HeaderValue::from(request.meshes.saturating_add(1)));
        Ok(out)
    }

    fn whole(&mut self, body: Bytes) -> Result<Bytes, Malformed> {
        Ok(body)
    }

    fn payload(&mut self, payload: Bytes, out: &mut VecDeque<Bytes>) -> Result<(), Malformed> {
        out.push_back(payload);
        Ok(())
    }
}

/// Says to another router how many meshes a request came through, so that it goes round in no circle.
pub(crate) const HOPS: &str = "x-shoal-hops";

/// Puts the key where OpenAI looks for it.
///
/// # Errors
/// The key holds characters that no header can carry.
pub(crate) fn bearer(out: &mut Request, settings: &Settings) -> Result<(), UpstreamError> {
    if let Some(key) = &settings.key {
        out.headers_mut().insert(header::AUTHORIZATION, secret("Bearer ", key)?);
    }
    Ok(())
}

/// Builds a POST of JSON without a key. No header of a client is copied.
pub(crate) fn post(url: reqwest::Url, request: &UpstreamRequest, body: Bytes) -> Request {
    let mut out = Request::new(Method::POST, url);
    let accept = if request.stream { "text/event-stream" } else { "application/json" };
    let headers = out.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
    if let Ok(id) = HeaderValue::from_str(&request.id) {
        headers.insert("x-request-id", id);
    }
    *out.body_mut() = Some(body.into());
    out
}

/// Makes a header value of a key, marked so that no log of headers shows it.
///
/// # Errors
/// The key holds characters that no header can carry.
pub(crate) fn secret(prefix: &str, key: &SecretString) -> Result<HeaderValue, UpstreamError> {
    let mut value = HeaderValue::from_str(&format!("{prefix}{}", key.expose_secret())).map_err(|_| {
        let message = "the key that Shoal has for this upstream holds characters that no key can have";
        UpstreamError::retryable(502, "upstream_error", message)
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Settings of a server at `base`, with a key.
#[cfg(test)]
pub(crate) fn testing_settings(base: &str) -> Settings {
    Settings {
        base: base.parse().unwrap(),
        key: Some("sk-test".to_owned().into()),
        name: "box".into(),
        id: "box".into(),
        timeouts: Default::default(),
    }
}
