//! What the inference endpoints need of a node: enough to accept a request and answer it, and nothing of the mesh.

use std::sync::Arc;

use axum::extract::FromRef;

use super::idempotency::Answers;
use super::responses::Keeper;
use crate::node::Node;
use crate::pipeline::Pipeline;
use crate::store::KeyRing;

/// The part of a node that clients' requests meet; cheap to clone.
#[derive(Clone)]
pub struct Front {
    /// Display name of the node.
    pub name: Arc<str>,
    /// First characters of the node's id; they begin the ids of requests that it accepts.
    pub short_id: Arc<str>,
    /// Requests.
    pub pipeline: Arc<Pipeline>,
    /// API keys.
    pub keys: Arc<KeyRing>,
    /// Serves without a key.
    pub no_auth: bool,
    /// What a `claude-…` name means that nobody serves; `None` = nothing.
    pub claude_model: Option<Arc<str>>,
    /// Responses that clients may go on from.
    pub responses: Keeper,
    /// Answers that clients may ask for again by `Idempotency-Key`.
    pub answers: Answers,
}

impl Front {
    /// Makes a request id: which node accepted it is part of it, so that any node knows whom to ask.
    pub fn new_request_id(&self) -> Arc<str> {
        format!("req_{}_{}", self.short_id, uuid::Uuid::now_v7().simple()).into()
    }
}

impl FromRef<Arc<Node>> for Front {
    fn from_ref(node: &Arc<Node>) -> Self {
        node.front.clone()
    }
}
