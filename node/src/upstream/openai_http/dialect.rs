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

/// Hosts of vendors, which are no routers that could go round in a circle, and need not know of any.
const VENDORS: [&str; 4] =
    ["api.openai.com", "openrouter.ai", "api.anthropic.com", "generativelanguage.googleapis.com"];

/// End of the hosts under which Azure serves models.
const AZURE: &str = ".azure.com";

fn is_vendor(url: &reqwest::Url) -> bool {
    url.host_str().is_some_and(|host| VENDORS.contains(&host) || host.ends_with(AZURE))
}

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

/// Builds a POST of a request's body without a key, which says how many meshes the request came through: whatever API it speaks, the
/// server may be a router itself, of this mesh even. No header of a client is copied.
pub(crate) fn post(url: reqwest::Url, request: &UpstreamRequest, body: Bytes) -> Request {
    let is_vendor = is_vendor(&url);
    let mut out = Request::new(Method::POST, url);
    let accept = match (request.path.is_sound(), request.stream) {
        (true, _) => "*/*",
        (false, true) => "text/event-stream",
        (false, false) => "application/json",
    };
    let media = request.media.as_deref().and_then(|media| HeaderValue::from_str(media).ok());
    let headers = out.headers_mut();
    headers.insert(header::CONTENT_TYPE, media.unwrap_or(HeaderValue::from_static("application/json")));
    headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
    if let Ok(id) = HeaderValue::from_str(&request.id) {
        headers.insert("x-request-id", id);
    }
    if !is_vendor {
        headers.insert(HOPS, HeaderValue::from(request.meshes.saturating_add(1)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::testing::chat;

    #[test]
    fn every_server_but_a_vendors_learns_how_many_meshes_there_were() {
        let request = UpstreamRequest { meshes: 2, ..chat(false) };
        let hops = |url: &str| {
            let out = post(url.parse().unwrap(), &request, Bytes::new());
            out.headers().get(HOPS).map(|value| value.to_str().unwrap().to_owned())
        };
        for router in ["http://10.0.0.2:8080/v1/messages", "https://notazure.com/v1/responses"] {
            assert_eq!(hops(router).as_deref(), Some("3"), "{router}");
        }
        for vendor in [
            "https://api.openai.com/v1/responses",
            "https://openrouter.ai/api/v1/chat/completions",
            "https://api.anthropic.com/v1/messages",
            "https://generativelanguage.googleapis.com/v1beta/models/m:generateContent",
            "https://my.openai.azure.com/openai/v1/responses",
        ] {
            assert_eq!(hops(vendor), None, "{vendor}");
        }
    }
}
