//! The items of an output, as they open, grow and close, and the events that tell of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use serde_json::value::RawValue;

use super::object::{Birth, Item, Part, Status, Thought};
use crate::api::chat_body::Object;
use crate::api::chat_chunk::CallPart;
use crate::api::sse;

/// Most items and parts of messages; each takes more memory than what is said in it has to.
const MAX_PARTS: usize = 4096;

/// An output on its way: what was told of it, and what is open.
pub(super) struct Output {
    /// Numbers its events, and those around it.
    pub(super) log: Log,
    birth: Birth,
    /// Reasoning is told as a summary.
    summarise: bool,
    /// Tools that take free text.
    free_tools: BTreeSet<String>,
    told: Vec<Told>,
    /// Items and parts that were opened.
    parts: usize,
    /// Where in the output a call of the chat is.
    calls: BTreeMap<usize, usize>,
    /// Calls whose tool is not named yet.
    nameless: BTreeMap<usize, CallPart>,
}

/// An item, as far as it was told.
struct Told {
    item: Item,
    open: bool,
    /// Its last part is open.
    part_open: bool,
}

/// What a message is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    Text,
    Refusal,
}

/// Numbers the events.
#[derive(Default)]
pub(super) struct Log {
    sequence: u64,
}

impl Log {
    pub(super) fn event(&mut self, out: &mut VecDeque<Bytes>, kind: &str, fill: impl FnOnce(&mut Object)) {
        let mut event = Object::default();
        event.put("type", kind).put("sequence_number", &self.sequence);
        self.sequence += 1;
        fill(&mut event);
        out.push_back(sse::event(kind, &event.finish()));
    }

    /// Tells of one item.
    fn of_item(
        &mut self,
        out: &mut VecDeque<Bytes>,
        kind: &str,
        place: usize,
        fill: impl FnOnce(&mut Object),
    ) {
        self.event(out, kind, |event| {
            event.put("output_index", &place);
            fill(event);
        });
    }
}

impl Output {
    pub(super) fn new(birth: Birth, summarise: bool, free_tools: BTreeSet<String>) -> Self {
        Self {
            log: Log::default(),
            birth,
            summarise,
            free_tools,
            told: Vec::new(),
            parts: 0,
            calls: BTreeMap::new(),
            nameless: BTreeMap::new(),
        }
    }

    /// Returns the items so far.
    pub(super) fn items(&self) -> impl Iterator<Item = &Item> {
        self.told.iter().map(|told| &told.item)
    }

    /// True when it has more items and parts than any honest answer.
    pub(super) fn is_full(&self) -> bool {
        self.parts > MAX_PARTS
    }

    /// Opens an item and returns its place.
    fn open(&mut self, item: Item, out: &mut VecDeque<Bytes>) -> usize {
        self.parts += 1;
        let place = self.told.len();
        self.log.of_item(out, "response.output_item.added", place, |event| {
            event.put("item", &item);
        });
        self.told.push(Told { item, open: true, part_open: false });
        place
    }

    /// Adds to what the model thinks.
    pub(super) fn think(&mut self, delta: &str, out: &mut VecDeque<Bytes>) {
        let is_open =
            self.told.last().is_some_and(|told| told.open && matches!(told.item, Item::Reasoning { .. }));
        if !is_open {
            self.close_prose(out);
            let id = self.birth.item("rs", self.told.len());
            let status = Status::InProgress;
            self.open(Item::Reasoning { id, summary: Vec::new(), content: Vec::new(), status }, out);
        }
        let place = self.told.len() - 1;
        let told = &mut self.told[place];
        let Item::Reasoning { id, summary, content, .. } = &mut told.item else { return };
        let (thoughts, index, added, grew) = if self.summarise {
            (
                summary,
                "summary_index",
                "response.reasoning_summary_part.added",
                "response.reasoning_summary_text.delta",
            )
        } else {
            (content, "content_index", "response.content_part.added", "response.reasoning_text.delta")
        };
        if thoughts.is_empty() {
            let text = String::new();
            let part =
                if self.summarise { Thought::SummaryText { text } } else { Thought::ReasoningText { text } };
            self.log.of_item(out, added, place, |event| {
                event.put("item_id", id).put(index, &0).put("part", &part);
            });
            thoughts.push(part);
            told.part_open = true;
        }
        if let Some(Thought::SummaryText { text } | Thought::ReasoningText { text }) = thoughts.last_mut() {
            text.push_str(delta);
        }
        self.log.of_item(out, grew, place, |event| {
            event.put("item_id", id).put(index, &0).put("delta", delta);
        });
    }

    /// Adds to what it says.
    pub(super) fn say(
        &mut self,
        said: Said,
        delta: &str,
        new: Vec<Box<RawValue>>,
        out: &mut VecDeque<Bytes>,
    ) {
        let is_open =
            self.told.last().is_some_and(|told| told.open && matches!(told.item, Item::Message { .. }));
        if !is_open {
            self.close_prose(out);
            let id = self.birth.item("msg", self.told.len());
            self.open(
                Item::Message { id, status: Status::InProgress, role: "assistant", content: Vec::new() },
                out,
            );
        }
        let place = self.told.len() - 1;
        let other = |part: &Part| matches!(part, Part::Refusal { .. }) != (said == Said::Refusal);
        if let Item::Message { content, .. } = &self.told[place].item
            && content.last().is_none_or(other)
        {
            self.close_part(place, out);
            self.open_part(place, said, out);
        }
        let Item::Message { id, content, .. } = &mut self.told[place].item else { return };
        let at = content.len() - 1;
        match content.last_mut() {
            Some(Part::OutputText { text, logprobs, .. }) => {
                text.push_str(delta);
                self.log.of_item(out, "response.output_text.delta", place, |event| {
                    event
                        .put("item_id", id)
                        .put("content_index", &at)
                        .put("delta", delta)
                        .put("logprobs", &new);
                });
                logprobs.extend(new);
            }
            Some(Part::Refusal { refusal }) => {
                refusal.push_str(delta);
                self.log.of_item(out, "response.refusal.delta", place, |event| {
                    event.put("item_id", id).put("content_index", &at).put("delta", delta);
                });
            }
            None => {}
        }
    }

    fn open_part(&mut self, place: usize, said: Said, out: &mut VecDeque<Bytes>) {
        self.parts += 1;
        let told = &mut self.told[place];
        let Item::Message { id, content, .. } = &mut told.item else { return };
        let part = match said {
            Said::Text => Part::OutputText { annotations: [], logprobs: Vec::new(), text: String::new() },
            Said::Refusal => Part::Refusal { refusal: String::new() },
        };
        self.log.of_item(out, "response.content_part.added", place, |event| {
            event.put("item_id", id).put("content_index", &content.len()).put("part", &part);
        });
        content.push(part);
        told.part_open = true;
    }

    /// Adds to a call of a tool.
    pub(super) fn call(&mut self, part: CallPart, out: &mut VecDeque<Bytes>) {
        let index = part.index;
        let place = match self.calls.get(&index) {
            Some(place) => *place,
            None => {
                let known =
                    self.nameless.entry(index).or_insert_with(|| CallPart { index, ..CallPart::default() });
                known.id = known.id.take().or(part.id);
                known.name = known.name.take().or(part.name);
                known.arguments.push_str(&part.arguments);
                if known.name.is_none() {
                    return;
                }
                let named = self.nameless.remove(&index).unwrap_or_default();
                self.open_call(named, out);
                return;
            }
        };
        self.grow_call(place, &part.arguments, out);
    }

    fn open_call(&mut self, call: CallPart, out: &mut VecDeque<Bytes>) {
        // Several calls may be open at once; what was said before them is said.
        self.close_prose(out);
        let (place, status) = (self.told.len(), Status::InProgress);
        let call_id = call.id.unwrap_or_else(|| self.birth.item("call", place));
        let name = call.name.unwrap_or_default();
        let item = if self.free_tools.contains(&name) {
            Item::CustomToolCall {
                id: self.birth.item("ctc", place),
                call_id,
                name,
                input: String::new(),
                status,
            }
        } else {
            Item::FunctionCall {
                id: self.birth.item("fc", place),
                call_id,
                name,
                arguments: String::new(),
                status,
            }
        };
        self.open(item, out);
        self.calls.insert(call.index, place);
        self.grow_call(place, &call.arguments, out);
    }

    fn grow_call(&mut self, place: usize, delta: &str, out: &mut VecDeque<Bytes>) {
        if delta.is_empty() {
            return;
        }
        match &mut self.told[place].item {
            Item::FunctionCall { id, arguments, .. } => {
                arguments.push_str(delta);
                self.log.of_item(out, "response.function_call_arguments.delta", place, |event| {
                    event.put("item_id", id).put("delta", delta);
                });
            }
            // The text is inside JSON that is not whole yet; it is told when it is.
            Item::CustomToolCall { input, .. } => input.push_str(delta),
            Item::Reasoning { .. } | Item::Message { .. } => {}
        }
    }

    /// Closes what is thought and said. Calls stay open until the end: a text between two pieces of a call ends no call.
    fn close_prose(&mut self, out: &mut VecDeque<Bytes>) {
        for place in 0..self.told.len() {
            if matches!(self.told[place].item, Item::Reasoning { .. } | Item::Message { .. }) {
                self.close(place, Status::Completed, out);
            }
        }
    }

    /// Closes every item; the last one as `status`.
    pub(super) fn close_all(&mut self, status: Status, out: &mut VecDeque<Bytes>) {
        let last = self.told.len().saturating_sub(1);
        for place in 0..self.told.len() {
            self.close(place, if place == last { status } else { Status::Completed }, out);
        }
    }

    fn close_part(&mut self, place: usize, out: &mut VecDeque<Bytes>) {
        let told = &mut self.told[place];
        if !std::mem::replace(&mut told.part_open, false) {
            return;
        }
        let log = &mut self.log;
        match &told.item {
            Item::Message { id, content, .. } => {
                let Some((at, part)) = content.iter().enumerate().next_back() else { return };
                match part {
                    Part::OutputText { text, logprobs, .. } => {
                        log.of_item(out, "response.output_text.done", place, |event| {
                            event.put("item_id", id).put("content_index", &at).put("text", text);
                            event.put("logprobs", logprobs);
                        });
                    }
                    Part::Refusal { refusal } => log.of_item(out, "response.refusal.done", place, |event| {
                        event.put("item_id", id).put("content_index", &at).put("refusal", refusal);
                    }),
                }
                log.of_item(out, "response.content_part.done", place, |event| {
                    event.put("item_id", id).put("content_index", &at).put("part", part);
                });
            }
            Item::Reasoning { id, summary, content, .. } => {
                let Some(part) = summary.last().or(content.last()) else { return };
                let (Thought::SummaryText { text } | Thought::ReasoningText { text }) = part;
                let (index, said, done) = if self.summarise {
                    (
                        "summary_index",
                        "response.reasoning_summary_text.done",
                        "response.reasoning_summary_part.done",
                    )
                } else {
                    ("content_index", "response.reasoning_text.done", "response.content_part.done")
                };
                log.of_item(out, said, place, |event| {
                    event.put("item_id", id).put(index, &0).put("text", text);
                });
                log.of_item(out, done, place, |event| {
                    event.put("item_id", id).put(index, &0).put("part", part);
                });
            }
            Item::FunctionCall { .. } | Item::CustomToolCall { .. } => {}
        }
    }

    fn close(&mut self, place: usize, status: Status, out: &mut VecDeque<Bytes>) {
        if !self.told[place].open {
            return;
        }
        self.close_part(place, out);
        let told = &mut self.told[place];
        told.open = false;
        told.item.set_status(status);
        match &mut told.item {
            Item::FunctionCall { id, name, arguments, .. } => {
                self.log.of_item(out, "response.function_call_arguments.done", place, |event| {
                    event.put("item_id", id).put("name", name).put("arguments", arguments);
                });
            }
            Item::CustomToolCall { id, input, .. } => {
                *input = free_text(std::mem::take(input));
                self.log.of_item(out, "response.custom_tool_call_input.delta", place, |event| {
                    event.put("item_id", id).put("delta", input);
                });
                self.log.of_item(out, "response.custom_tool_call_input.done", place, |event| {
                    event.put("item_id", id).put("input", input);
                });
            }
            Item::Reasoning { .. } | Item::Message { .. } => {}
        }
        self.log.of_item(out, "response.output_item.done", place, |event| {
            event.put("item", &told.item);
        });
    }
}

/// Takes the text out of the arguments of a tool that takes free text; a model that wrote no such JSON wrote the text.
fn free_text(arguments: String) -> String {
    #[derive(serde::Deserialize)]
    struct Arguments {
        input: String,
    }
    serde_json::from_str::<Arguments>(&arguments).map_or(arguments, |arguments| arguments.input)
}
