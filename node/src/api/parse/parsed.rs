//! A request after all checks, and the body that goes on.

use std::sync::Arc;

use bytes::Bytes;
use shoal_routing::{DataClass, Mode, Needs, Preference, RequestProfile, SoundWork, Tokens};

use super::super::body::{Body, Edit};
use super::super::form;
use super::input;
use crate::upstream::ApiPath;

/// Likeliest tokens asked for at each place of an answer that will be judged: margin and entropy need a few.
const JUDGED_TOP_LOGPROBS: u8 = 5;

/// A request of a client after all checks, owning what the pipeline needs.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// Which API it speaks.
    pub path: ApiPath,
    /// Model as the client wrote it.
    pub model: String,
    /// Features for the router.
    pub profile: Box<RequestProfile>,
    /// The same request without its text.
    pub shape: Shape,
    /// Body to send on, but for the model's name; our metadata and denied fields are gone.
    pub body: Bytes,
    /// Media type of the body, with the boundary of a form; `None` = JSON.
    pub media: Option<Arc<str>>,
    /// How much of sound there is, in requests about it.
    pub work: Option<SoundWork>,
    /// True when the client asked for usage in the stream.
    pub include_usage: bool,
    /// Who asks, in the client's own words: the `user` field.
    pub user: Option<String>,
    /// Denied fields that were left out.
    pub warnings: Vec<String>,
}

impl Shape {
    /// Returns the class under which the request is handed on: what must stay local goes nowhere as anything less
    /// than restricted, so that no later hop and no egress can send it on.
    pub fn travels_as(&self) -> DataClass {
        if self.mode == Mode::Local { DataClass::Restricted } else { self.data_class }
    }
}

/// A request's properties that policy and filters look at.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Streamed answer wanted.
    pub stream: bool,
    /// Where it may go.
    pub mode: Mode,
    /// What matters to the client.
    pub preference: Preference,
    /// How far the content may travel.
    pub data_class: DataClass,
    /// What the model must be able to do.
    pub needs: Needs,
    /// Longest answer wanted.
    pub max_output: Option<Tokens>,
    /// Answers wanted to one prompt, at least 1.
    pub answers: u64,
    /// Explicit threshold for escalation, 0..1.
    pub confidence_threshold: Option<f64>,
    /// Another device goes on with an answer that breaks off; `None` = as the node is set.
    pub resume: Option<bool>,
    /// The model is ours to choose.
    pub chooses: bool,
    /// How many meshes it came through before this one.
    pub meshes: u32,
    /// Hash of the conversation, where a host may have it in its cache.
    pub session: Option<u64>,
}

impl Parsed {
    /// Returns the body with the chosen model's name in it, and with log probabilities asked for where the answer
    /// will be judged by them.
    ///
    /// `plain` is for engines, which know the fields of a few years ago: the role `developer` is said as `system`, and a
    /// limit as `max_tokens` too, or their templates would refuse the one and their samplers pass over the other.
    pub fn body_for(&self, model: &str, ask_logprobs: bool, plain: bool) -> Bytes {
        if let Some(media) = &self.media {
            return form::with_model(media, &self.body, model);
        }
        let mut edits = Vec::new();
        if plain && let Ok(body) = Body::parse(&self.body) {
            edits.extend(input::without_developer(&body).map(|messages| ("messages", Edit::Set(messages))));
            if let Some(limit) =
                body.raw("max_completion_tokens").filter(|_| body.raw("max_tokens").is_none())
            {
                edits.push(("max_tokens", Edit::Set(limit.get().to_owned())));
            }
        }
        if self.model != model {
            edits.push(("model", Edit::Set(json_string(model))));
        }
        if ask_logprobs {
            edits.push(("logprobs", Edit::Set("true".into())));
            edits.push(("top_logprobs", Edit::Set(JUDGED_TOP_LOGPROBS.to_string())));
        }
        if edits.is_empty() {
            return self.body.clone();
        }
        // The body was parsed before and is ours, so it parses again; if not, the upstream will say so.
        Body::parse(&self.body).map_or_else(|_| self.body.clone(), |body| body.rebuild(&edits))
    }
}

fn json_string(text: &str) -> String {
    serde_json::to_string(text).expect("a string serialises")
}
