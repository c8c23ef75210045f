//! Tokens of a request that is only counted.
//!
//! Everything that a chat template shows the model counts: text, calls, tools. The table is the router's own
//! (`shoal_routing::tokens`), some per cent off for other families; a template's marks are estimated.

use serde::Deserialize;
use serde_json::value::RawValue;
use shoal_routing::tokens::estimate_tokens;
use shoal_routing::{Tokens, count_tokens};

use super::super::body::Text;

/// Tokens that a template spends on one message besides its text.
const MESSAGE_TOKENS: u32 = 4;
/// Tokens that prime the answer.
const REPLY_TOKENS: u32 = 3;
/// Tokens of an image: vision models spend 250 to 1,600 on a usual one, and its size is not looked at here.
const IMAGE_TOKENS: u32 = 1_000;
/// Bytes of one text up to which every token is counted, about 2 ms; longer ones are sampled, within 5 %.
const EXACT_BYTES: usize = 256 * 1024;

#[derive(Deserialize)]
struct Chat<'a> {
    #[serde(borrow)]
    messages: Vec<Message<'a>>,
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_calls: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow)]
    text: Option<Text<'a>>,
}

/// Counts the prompt of a chat completion's body, which is ours and so well-formed.
pub(super) fn tokens(chat: &[u8]) -> Tokens {
    let Ok(chat) = serde_json::from_slice::<Chat<'_>>(chat) else { return Tokens(0) };
    let messages: Tokens = chat.messages.iter().map(message).sum();
    messages + chat.tools.map_or(Tokens(0), |tools| text(tools.get())) + Tokens(REPLY_TOKENS)
}

fn message(message: &Message<'_>) -> Tokens {
    let calls = message.tool_calls.map_or(Tokens(0), |calls| text(calls.get()));
    Tokens(MESSAGE_TOKENS) + calls + message.content.map_or(Tokens(0), content)
}

fn content(raw: &RawValue) -> Tokens {
    if let Ok(Text(whole)) = serde_json::from_str(raw.get()) {
        return text(&whole);
    }
    let parts: Vec<Part<'_>> = serde_json::from_str(raw.get()).unwrap_or_default();
    parts.iter().map(|part| part.text.as_ref().map_or(Tokens(IMAGE_TOKENS), |Text(part)| text(part))).sum()
}

fn text(text: &str) -> Tokens {
    if text.len() <= EXACT_BYTES { count_tokens(text) } else { estimate_tokens(text).0 }
}
