//! A response as clients know it: its ids, its items, and the settings that it repeats.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::api::chat_body::Object;
use crate::api::chat_chunk::Usage;

/// How the ids of items begin that clients sent.
pub(super) const INPUT: &str = "in_";

/// Which response this is. All its ids hold the node that gave it, so that any node knows whom to ask.
#[derive(Debug, Clone)]
pub(super) struct Birth {
    /// `<node8>_<uuid>`
    pub(super) suffix: String,
    /// Seconds since the Unix epoch.
    pub(super) created_s: u64,
}

impl Birth {
    /// Returns the id of the response.
    pub(super) fn id(&self) -> String {
        format!("resp_{}", self.suffix)
    }

    /// Returns the id of one of its items; see [`place_of`].
    pub(super) fn item(&self, kind: &str, place: usize) -> String {
        format!("{kind}_{}_{place}", self.suffix)
    }
}

/// Returns the response that an item of ours came with, and its place in the output, or in the input ([`INPUT`]).
pub(super) fn place_of(item: &str) -> Option<(String, usize)> {
    let (_, rest) = item.split_once('_')?;
    let (suffix, place) = rest.rsplit_once('_')?;
    Some((format!("resp_{suffix}"), place.parse().ok()?))
}

/// One item of an output.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Item {
    /// What the model thought.
    Reasoning {
        id: String,
        summary: Vec<Thought>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        content: Vec<Thought>,
        status: Status,
    },
    /// What it said.
    Message { id: String, status: Status, role: &'static str, content: Vec<Part> },
    /// What it wants called.
    FunctionCall { id: String, call_id: String, name: String, arguments: String, status: Status },
    /// The same, with free text.
    CustomToolCall { id: String, call_id: String, name: String, input: String, status: Status },
}

/// How far an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    InProgress,
    Completed,
    Incomplete,
}

/// A piece of reasoning.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Thought {
    SummaryText { text: String },
    ReasoningText { text: String },
}

/// A part of a message.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Part {
    OutputText { annotations: [(); 0], logprobs: Vec<Box<RawValue>>, text: String },
    Refusal { refusal: String },
}

impl Item {
    pub(super) fn set_status(&mut self, new: Status) {
        match self {
            Self::Reasoning { status, .. }
            | Self::Message { status, .. }
            | Self::FunctionCall { status, .. }
            | Self::CustomToolCall { status, .. } => *status = new,
        }
    }
}

/// How a response stands.
#[derive(Debug, Clone, Copy)]
pub(super) enum Standing<'a> {
    InProgress,
    Completed,
    /// Cut, and by what.
    Incomplete(&'static str),
    Failed {
        code: &'a str,
        message: &'a str,
    },
}

impl Standing<'_> {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete(_) => "incomplete",
            Self::Failed { .. } => "failed",
        }
    }
}

/// Settings of a request that its response repeats, in the order in which they are told.
pub(super) type Echo = Vec<(&'static str, Box<RawValue>)>;

/// All of a response at one moment.
pub(super) struct Whole<'a, I: Iterator<Item = &'a Item>> {
    pub(super) birth: &'a Birth,
    pub(super) standing: Standing<'a>,
    pub(super) model: &'a str,
    pub(super) output: I,
    pub(super) usage: Option<Usage>,
    pub(super) store: bool,
    pub(super) echo: &'a Echo,
    pub(super) metadata: &'a [(&'static str, Box<RawValue>)],
}

impl<'a, I: Iterator<Item = &'a Item>> Whole<'a, I> {
    pub(super) fn json(self) -> Box<RawValue> {
        #[derive(Serialize)]
        struct Error<'a> {
            code: &'a str,
            message: &'a str,
        }
        #[derive(Serialize)]
        struct Details {
            reason: &'static str,
        }
        let mut object = Object::default();
        let (error, details) = match self.standing {
            Standing::Failed { code, message } => (Some(Error { code, message }), None),
            Standing::Incomplete(reason) => (None, Some(Details { reason })),
            Standing::InProgress | Standing::Completed => (None, None),
        };
        object
            .put("id", &self.birth.id())
            .put("object", "response")
            .put("created_at", &self.birth.created_s)
            .put("status", self.standing.word())
            .put("background", &false)
            .put("error", &error)
            .put("incomplete_details", &details)
            .put("model", self.model)
            .put("output", &self.output.collect::<Vec<_>>())
            .put("usage", &self.usage.map(usage))
            .put("store", &self.store);
        for (name, value) in self.echo {
            object.put(name, value);
        }
        for (name, value) in self.metadata {
            object.put(name, value);
        }
        object.into_raw()
    }
}

fn usage(usage: Usage) -> impl Serialize {
    #[derive(Serialize)]
    struct Told {
        input_tokens: u64,
        input_tokens_details: Cached,
        output_tokens: u64,
        output_tokens_details: Reasoned,
        total_tokens: u64,
    }
    #[derive(Serialize)]
    struct Cached {
        cached_tokens: u64,
    }
    #[derive(Serialize)]
    struct Reasoned {
        reasoning_tokens: u64,
    }
    Told {
        input_tokens: usage.prompt,
        input_tokens_details: Cached { cached_tokens: usage.cached },
        output_tokens: usage.completion,
        output_tokens_details: Reasoned { reasoning_tokens: usage.reasoning },
        total_tokens: usage.prompt.saturating_add(usage.completion),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_leads_back_to_its_response() {
        let birth = Birth { suffix: "ab12cd34_0123".into(), created_s: 1 };
        let item = birth.item("msg", 7);
        assert_eq!(item, "msg_ab12cd34_0123_7");
        assert_eq!(place_of(&item), Some((birth.id(), 7)));
        for foreign in ["", "msg", "msg_1", "rs_a_b_c"] {
            assert_eq!(place_of(foreign), None, "{foreign}");
        }
    }
}
