//! The blocks of a streamed message: one after the other, each begun, filled and closed.
//!
//! A chat completion's chunks may mix pieces of several tool calls; a message's blocks may not. So one block is told
//! at a time and what belongs to later ones waits. Text is closed by whatever comes next, a call by the brace that
//! makes its arguments whole: nothing can follow that, so calls in sequence flow as they come and only mixed ones
//! wait.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::{Value, json};

use super::answer::{CallDelta, call_id};
use super::stream::event;

/// Most tool calls of one answer, as many as OpenAI takes tools.
const MAX_CALLS: usize = 128;
/// Most bytes that wait for an earlier call to end.
const MAX_WAITING: usize = 8 << 20;

/// An answer of more calls, or of calls more entangled, than are kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMuch;

/// Blocks of one message, as far as they are known.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    message_id: String,
    /// Index of the block in front.
    index: usize,
    /// The block that is being told, then those that wait.
    queue: VecDeque<Block>,
    calls: Vec<Call>,
    waiting_bytes: usize,
}

#[derive(Debug)]
struct Block {
    kind: Kind,
    begun: bool,
    /// Not told yet.
    waiting: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Thinking,
    /// Position among the calls.
    Call(usize),
}

#[derive(Debug, Default)]
struct Call {
    /// Index in the upstream's chunks.
    index: u64,
    id: String,
    name: String,
    end: ObjectEnd,
}

impl Blocks {
    /// Makes the blocks of a message; calls without an id are named after it.
    pub(super) fn of(message_id: &str) -> Self {
        Self { message_id: message_id.to_owned(), ..Self::default() }
    }

    /// Returns true once a tool is called.
    pub(super) fn has_calls(&self) -> bool {
        !self.calls.is_empty()
    }

    /// Adds text of the answer.
    pub(super) fn text(&mut self, text: &str, out: &mut VecDeque<Bytes>) -> Result<(), TooMuch> {
        self.say(Kind::Text, text, out)
    }

    /// Adds reasoning.
    pub(super) fn thinking(&mut self, text: &str, out: &mut VecDeque<Bytes>) -> Result<(), TooMuch> {
        self.say(Kind::Thinking, text, out)
    }

    /// Adds a piece of a call.
    pub(super) fn call(&mut self, delta: &CallDelta<'_>, out: &mut VecDeque<Bytes>) -> Result<(), TooMuch> {
        let at = self.call_of(delta)?;
        let call = &mut self.calls[at];
        if let Some(id) = delta.id.as_ref().filter(|_| call.id.is_empty()) {
            id.0.as_ref().clone_into(&mut call.id);
        }
        let Some(function) = &delta.function else { return self.advance(out) };
        if let Some(name) = function.name.as_ref().filter(|_| call.name.is_empty()) {
            name.0.as_ref().clone_into(&mut call.name);
        }
        let arguments = function.arguments();
        // Behind the last brace there can only be blanks; the block may be closed by now.
        if call.end.is_whole() {
            return self.advance(out);
        }
        call.end.read(&arguments);
        self.append(Kind::Call(at), &arguments, out)
    }

    /// Tells all that waits, and closes the last block.
    pub(super) fn finish(&mut self, out: &mut VecDeque<Bytes>) {
        while !self.queue.is_empty() {
            self.tell_front(out);
            self.close_front(out);
        }
    }

    fn say(&mut self, kind: Kind, text: &str, out: &mut VecDeque<Bytes>) -> Result<(), TooMuch> {
        if text.is_empty() {
            return Ok(());
        }
        if self.queue.back().is_none_or(|block| block.kind != kind) {
            self.queue.push_back(Block::new(kind));
        }
        self.append(kind, text, out)
    }

    /// Finds the call that a piece belongs to. Some servers number every call 0; a new id then begins a new one.
    fn call_of(&mut self, delta: &CallDelta<'_>) -> Result<usize, TooMuch> {
        let id = delta.id.as_ref().map_or("", |id| id.0.as_ref());
        let index = delta.index.unwrap_or_else(|| match self.calls.last() {
            Some(last) if id.is_empty() || last.id == id => last.index,
            last => last.map_or(0, |last| last.index + 1),
        });
        let known = self.calls.iter().rposition(|call| call.index == index);
        let known =
            known.filter(|at| id.is_empty() || self.calls[*at].id.is_empty() || self.calls[*at].id == id);
        if let Some(at) = known {
            return Ok(at);
        }
        if self.calls.len() == MAX_CALLS {
            return Err(TooMuch);
        }
        self.calls.push(Call { index, ..Call::default() });
        let at = self.calls.len() - 1;
        self.queue.push_back(Block::new(Kind::Call(at)));
        Ok(at)
    }

    fn append(&mut self, kind: Kind, text: &str, out: &mut VecDeque<Bytes>) -> Result<(), TooMuch> {
        if let Some(block) = self.queue.iter_mut().rev().find(|block| block.kind == kind) {
            block.waiting.push_str(text);
            self.waiting_bytes += text.len();
        }
        self.advance(out)?;
        if self.waiting_bytes > MAX_WAITING { Err(TooMuch) } else { Ok(()) }
    }

    /// Tells what can be told now.
    fn advance(&mut self, out: &mut VecDeque<Bytes>) -> Result<(), TooMuch> {
        while let Some(front) = self.queue.front() {
            if let Kind::Call(at) = front.kind {
                // A block begins with the tool's name.
                if self.calls[at].name.is_empty() {
                    break;
                }
            }
            let closes = match front.kind {
                Kind::Text | Kind::Thinking => true,
                Kind::Call(at) => self.calls[at].end.is_whole(),
            };
            self.tell_front(out);
            if self.queue.len() == 1 || !closes {
                break;
            }
            self.close_front(out);
        }
        Ok(())
    }

    fn tell_front(&mut self, out: &mut VecDeque<Bytes>) {
        let Some(front) = self.queue.front_mut() else { return };
        if !std::mem::replace(&mut front.begun, true) {
            let content_block = match front.kind {
                Kind::Text => json!({"type": "text", "text": ""}),
                Kind::Thinking => json!({"type": "thinking", "thinking": "", "signature": ""}),
                Kind::Call(at) => self.calls[at].head(&self.message_id, at),
            };
            let data =
                json!({"type": "content_block_start", "index": self.index, "content_block": content_block});
            out.push_back(event("content_block_start", &data));
        }
        if front.waiting.is_empty() {
            return;
        }
        let text = std::mem::take(&mut front.waiting);
        self.waiting_bytes -= text.len();
        let delta = match front.kind {
            Kind::Text => json!({"type": "text_delta", "text": text}),
            Kind::Thinking => json!({"type": "thinking_delta", "thinking": text}),
            Kind::Call(_) => json!({"type": "input_json_delta", "partial_json": text}),
        };
        let data = json!({"type": "content_block_delta", "index": self.index, "delta": delta});
        out.push_back(event("content_block_delta", &data));
    }

    fn close_front(&mut self, out: &mut VecDeque<Bytes>) {
        if self.queue.pop_front().is_some() {
            let data = json!({"type": "content_block_stop", "index": self.index});
            out.push_back(event("content_block_stop", &data));
            self.index += 1;
        }
    }
}

impl Block {
    fn new(kind: Kind) -> Self {
        Self { kind, begun: false, waiting: String::new() }
    }
}

impl Call {
    fn head(&self, message_id: &str, at: usize) -> Value {
        let id = if self.id.is_empty() { call_id(message_id, at) } else { self.id.clone() };
        json!({"type": "tool_use", "id": id, "name": self.name, "input": {}})
    }
}

/// Finds the brace that ends a JSON object which comes in pieces.
#[derive(Debug, Default)]
struct ObjectEnd {
    depth: u32,
    in_text: bool,
    escaped: bool,
    whole: bool,
}

impl ObjectEnd {
    fn is_whole(&self) -> bool {
        self.whole
    }

    fn read(&mut self, piece: &str) {
        for byte in piece.bytes() {
            if self.escaped {
                self.escaped = false;
            } else if self.in_text {
                match byte {
                    b'\\' => self.escaped = true,
                    b'"' => self.in_text = false,
                    _ => {}
                }
            } else {
                match byte {
                    b'"' => self.in_text = true,
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => {
                        self.depth = self.depth.saturating_sub(1);
                        self.whole |= self.depth == 0;
                    }
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_ends_with_its_own_brace() {
        for (pieces, whole) in [
            (&["{\"a\":", "\"}\"", "}"][..], true),
            (&["{\"a\":\"\\\"", "}\""], false),
            (&["{\"a\":\"\\", "\"}\"}"], true),
            (&["{\"a\":{}", ",\"b\":[{}]"], false),
            (&["{}"], true),
            (&["", " "], false),
            (&["nul", "l"], false),
        ] {
            let mut end = ObjectEnd::default();
            pieces.iter().for_each(|piece| end.read(piece));
            assert_eq!(end.is_whole(), whole, "{pieces:?}");
        }
    }
}
