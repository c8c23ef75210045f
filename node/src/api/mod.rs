//! The node's HTTP side: OpenAI's endpoints, the mesh's own views, and the admin socket.
//!
//! JSON is parsed here and nowhere behind it; errors become OpenAI-shaped bodies here and nowhere else.

pub mod admin;
mod audio;
pub mod auth;
pub mod body;
pub mod chat_body;
pub mod chat_chunk;
pub(crate) mod clouds;
pub mod error;
mod feedback;
pub mod form;
pub mod front;
pub mod idempotency;
pub mod inference;
mod kept;
mod messages;
mod ollama;
mod packs;
pub mod parse;
mod per_ip;
pub mod relay;
pub mod responses;
pub mod serve;
pub mod shape;
pub mod sse;
mod stall;
#[cfg(test)]
mod tests;
pub mod tls;
mod unread;
pub mod views;
pub mod voice;

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use http::{HeaderName, HeaderValue};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;

use self::error::ApiError;
use self::front::Front;
use crate::node::Node;

/// Builds what the API address serves: everything but health needs a key.
pub fn public(node: Arc<Node>) -> Router {
    // LFO's clients ask at `/health`.
    let open = Router::new()
        .route("/healthz", get(views::healthz))
        .route("/health", get(views::healthz))
        .route("/readyz", get(views::readyz))
        .route("/", get(ollama::greet));
    let keyed = protected(&node).layer(middleware::from_fn_with_state(node.front.clone(), auth::require_key));
    finish(open.merge(keyed).merge(crate::dashboard::routes(&node)), node)
}

/// Builds what the admin socket serves: the same, and what only the node's own machine may do.
pub fn admin(node: Arc<Node>) -> Router {
    let admin = Router::new()
        .route("/healthz", get(views::healthz))
        .route("/readyz", get(views::readyz))
        .route("/admin/v1/tokens", post(admin::create_token).get(admin::list_tokens))
        .route("/admin/v1/tokens/{id}", delete(admin::revoke_token))
        .route("/admin/v1/keys", post(admin::create_key).get(admin::list_keys))
        .route("/admin/v1/keys/{id}", delete(admin::revoke_key))
        .route("/admin/v1/dashboard-link", post(admin::dashboard_link))
        .route("/admin/v1/providers", post(clouds::add))
        .route("/admin/v1/providers/{name}", delete(clouds::remove))
        .route("/admin/v1/router/pack", post(packs::import).delete(packs::remove).layer(packs::body_limit()))
        .route("/admin/v1/router/export", post(packs::export))
        .route("/admin/v1/router/eval", post(packs::eval).layer(packs::body_limit()))
        .route("/admin/v1/shutdown", post(admin::shutdown));
    finish(admin.merge(protected(&node)).layer(middleware::from_fn(auth::admit_admin)), node)
}

fn protected(node: &Arc<Node>) -> Router<Arc<Node>> {
    // The base URL works with and without `/v1`, since clients differ in what they append.
    let mut router = inference::routes()
        .merge(audio::routes())
        .merge(messages::routes())
        .merge(responses::routes())
        .merge(ollama::routes())
        .layer(middleware::from_fn_with_state(node.front.clone(), idempotency::answer_once));
    for prefix in ["/v1", ""] {
        router = router
            .route(&format!("{prefix}/feedback"), post(feedback::give))
            .route(&format!("{prefix}/models"), get(views::models))
            .route(&format!("{prefix}/models/{{*id}}"), get(views::model));
    }
    router
        .route("/metrics", get(views::metrics))
        .route("/shoal/v1/status", get(views::status))
        .route("/shoal/v1/nodes", get(views::nodes))
        .route("/shoal/v1/devices", get(views::devices))
        .route("/shoal/v1/models", get(views::mesh_models))
        .route("/shoal/v1/providers", get(clouds::list))
        .route("/shoal/v1/requests", get(views::requests))
        .route("/shoal/v1/requests/{id}", get(views::request))
        .route("/shoal/v1/router", get(views::router))
        .layer(DefaultBodyLimit::max(node.config.limits.body_bytes))
}

fn finish(router: Router<Arc<Node>>, node: Arc<Node>) -> Router {
    router
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(
            ServiceBuilder::new()
                .layer(middleware::from_fn_with_state(node.front.clone(), name_node))
                .layer(middleware::from_fn(shape::tell_errors))
                .layer(CatchPanicLayer::custom(panicked))
                .layer(middleware::from_fn_with_state(
                    node.config.limits.sockets.body_idle,
                    stall::limit_body_silence,
                )),
        )
        .with_state(node)
}

/// Every answer says which node gave it; detection relies on it to never take a router for a device.
async fn name_node(State(front): State<Front>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if let Ok(name) = HeaderValue::from_str(&front.name) {
        response.headers_mut().insert(HeaderName::from_static("x-shoal-node"), name);
    }
    response
}

async fn not_found(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().filter(|c| !c.is_control()).take(128).collect();
    ApiError::new(
        404,
        "not_found",
        format!("nothing is served at {path}; the API begins at /v1, for example /v1/chat/completions"),
    )
}

async fn wrong_method(request: Request) -> ApiError {
    ApiError::new(405, "method_not_allowed", format!("{} is not possible at this path", request.method()))
}

fn panicked(cause: Box<dyn Any + Send + 'static>) -> Response {
    let text =
        cause.downcast_ref::<&str>().copied().or_else(|| cause.downcast_ref::<String>().map(String::as_str));
    tracing::error!(cause = text.unwrap_or("unknown"), "a request handler panicked");
    metrics::counter!("shoal_panics_total").increment(1);
    ApiError::new(500, "internal_error", "the node failed on this request; its log says more").into_response()
}
