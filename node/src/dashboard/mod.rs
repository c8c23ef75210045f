//! The dashboard: what the mesh is doing, in a browser, read-only.
//!
//! Pages are rendered here and complete without a script; a small script then takes over sections that changed,
//! from a stream of events. Everything comes from this node: no CDN, no font, nothing inline, so that the content
//! policy can forbid all else. Names come from the mesh and are hostile: templates escape them, and `text::clean`
//! takes out what would steer a reader's eye.

mod calibration;
mod events;
mod gather;
mod login;
mod page;
mod providers;
mod request_page;
mod text;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Path, Query, Request, State};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde::Deserialize;

pub use self::login::{CODE_LIFE, Door, SESSION_LIFE};
use crate::api::auth;
use crate::node::Node;

/// What a page may load and where it may appear: ourselves alone, and in no frame.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'";
const SECURITY_HEADERS: [(HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, CONTENT_POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Builds the dashboard's routes; each checks its visitor, but for the stylesheet, the script and the icon.
pub fn routes(node: &Arc<Node>) -> Router<Arc<Node>> {
    let viewers = events::Viewers::default();
    let private = Router::new()
        .route("/dashboard/events", get(events::stream))
        .route("/dashboard/requests/{id}", get(request))
        .layer(axum::Extension(viewers))
        .layer(middleware::from_fn_with_state(node.clone(), require_session));
    let open = Router::new()
        .route("/dashboard", get(overview))
        .route("/dashboard/style.css", asset("text/css; charset=utf-8", include_str!("assets/style.css")))
        .route(
            "/dashboard/script.js",
            asset("text/javascript; charset=utf-8", include_str!("assets/script.js")),
        )
        .route("/dashboard/icon.svg", asset("image/svg+xml", include_str!("assets/icon.svg")));
    private
        .merge(open)
        .layer(middleware::from_fn_with_state(node.clone(), refuse_foreign_host))
        .layer(middleware::map_response(add_security_headers))
}

fn asset(kind: &'static str, text: &'static str) -> axum::routing::MethodRouter<Arc<Node>> {
    get(move || async move { ([(header::CONTENT_TYPE, kind)], text) })
}

async fn add_security_headers(mut response: Response) -> Response {
    for (name, value) in SECURITY_HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[derive(Deserialize)]
struct Login {
    code: Option<String>,
}

/// `GET /dashboard`: the page, the way in, or how to get a way in.
async fn overview(
    State(node): State<Arc<Node>>,
    Query(login): Query<Login>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    // A code that comes twice, by a reload or the back button, is no reason to turn a logged-in person away.
    let admitted = admits(&node, &headers);
    let Some(code) = login.code else {
        return if admitted { show(&node).await } else { logged_out(page::Refusal::NoSession) };
    };
    // HEAD is what previews and link checkers send; it must not use the code up.
    let secret = (method == Method::GET).then(|| node.door.redeem(&code, Instant::now())).flatten();
    match secret {
        Some(secret) => welcome(&node, &secret, &headers),
        None if admitted => see_dashboard(),
        None => logged_out(page::Refusal::BadCode),
    }
}

async fn show(node: &Arc<Node>) -> Response {
    match gather::overview(node).await {
        Ok(facts) => Html(page::overview(&facts).into_string()).into_response(),
        Err(error) => error.into_response(),
    }
}

fn see_dashboard() -> Response {
    (StatusCode::SEE_OTHER, [(header::LOCATION, "/dashboard")]).into_response()
}

fn welcome(node: &Node, secret: &str, headers: &HeaderMap) -> Response {
    let name = login::cookie_name(node.mesh.node_id().short());
    let cookie = login::cookie(&name, secret, node.api_url.starts_with("https://"));
    let cookie = HeaderValue::from_str(&cookie).expect("a cookie of hexadecimal digits is a valid header");
    // Followed from another site's page, a redirect would come without the strict cookie just set; a page of our
    // own that goes on by itself does not.
    let from_elsewhere = headers.get("sec-fetch-site").is_some_and(|v| v == "cross-site");
    let mut response =
        if from_elsewhere { Html(page::going_on().into_string()).into_response() } else { see_dashboard() };
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    response
}

fn logged_out(why: page::Refusal) -> Response {
    (StatusCode::UNAUTHORIZED, Html(page::logged_out(why).into_string())).into_response()
}

/// `GET /dashboard/requests/{id}`
async fn request(State(node): State<Arc<Node>>, Path(id): Path<String>) -> Response {
    match gather::request(&node, &id).await {
        Ok(record) => {
            Html(request_page::render(&record, crate::store::unix_ms()).into_string()).into_response()
        }
        Err(error) => {
            let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            (status, Html(request_page::missing(&id, &error.message).into_string())).into_response()
        }
    }
}

async fn require_session(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    if admits(&node, request.headers()) {
        return next.run(request).await;
    }
    logged_out(page::Refusal::NoSession)
}

/// A session's cookie, or an API key, which may read the same as JSON.
fn admits(node: &Node, headers: &HeaderMap) -> bool {
    if node.config.no_auth {
        return true;
    }
    let name = login::cookie_name(node.mesh.node_id().short());
    login::from_headers(headers, &name).is_some_and(|secret| node.door.admits(secret, Instant::now()))
        || auth::has_key(&node.front, headers)
}

/// Without login, a foreign site could point its own name at this machine and read the page as its own.
async fn refuse_foreign_host(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    let host = request
        .uri()
        .authority()
        .map(ToString::to_string)
        .or_else(|| request.headers().get(header::HOST).and_then(|v| v.to_str().ok()).map(str::to_owned));
    if node.config.no_auth && !host.as_deref().is_some_and(is_this_machine) {
        return (StatusCode::MISDIRECTED_REQUEST, Html(page::wrong_host().into_string())).into_response();
    }
    next.run(request).await
}

fn is_this_machine(host: &str) -> bool {
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests;
