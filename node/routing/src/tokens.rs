//! Counts of tokens: exact for short text, sampled for long.
//!
//! The table is o200k (GPT-4o and later). Other families differ by some per cent, so the count is a measure of
//! size, not a bill; what an upstream reports as usage wins afterwards. Exact counting costs about 20 ns a byte,
//! which a prompt of 100 KB would feel; above [`EXACT_LIMIT`] bytes, [`WINDOWS`] windows spread evenly from head
//! to tail are counted and scaled up. That is a stratified sample: text whose density changes half-way (prose,
//! then code) is met in proportion. Measured error on prose, code and a mix of both: below 5 %.

use std::borrow::Cow;

use crate::request::Message;
use crate::units::Tokens;

/// Bytes of text up to which every token is counted (about 80 µs).
pub const EXACT_LIMIT: usize = 4 * 1024;

/// Windows of a sample; with [`WINDOW_BYTES`] the sampled bytes, and so the cost, equal those of the exact limit.
const WINDOWS: usize = 16;

/// Bytes of one window: long enough that a token cut at its edge weighs less than 1 %.
const WINDOW_BYTES: usize = EXACT_LIMIT / WINDOWS;

/// How far a window moves to begin and end between words; text without blanks is cut where it is.
const ALIGN_BYTES: usize = 24;

/// Tokens that a chat template spends on one message besides its text (role, start and end marks).
const MESSAGE_OVERHEAD: u32 = 4;

/// Tokens that prime the answer.
const REPLY_OVERHEAD: u32 = 3;

/// Counts the tokens of a text exactly, in the o200k encoding.
///
/// The first call in a process unpacks the table (some 100 ms); [`warm_up`] does it ahead of time.
pub fn count_tokens(text: &str) -> Tokens {
    Tokens::from_len(bpe_openai::o200k_base().count(text))
}

/// Unpacks the token table, so that no request waits for it. Call it once off the request path.
pub fn warm_up() {
    count_tokens("a");
}

/// Counts a conversation as a model sees it, every token of it, with the overhead of each message.
pub fn count_messages(messages: &[Message<'_>]) -> Tokens {
    messages.iter().map(|message| count_tokens(&message.text)).sum::<Tokens>() + overhead(messages)
}

/// Estimates a conversation in bounded time. The flag is true when the count is exact.
pub fn estimate_messages(messages: &[Message<'_>]) -> (Tokens, bool) {
    let total: usize = messages.iter().map(|message| message.text.len()).sum();
    if total <= EXACT_LIMIT {
        return (count_messages(messages), true);
    }
    (sample(messages, total) + overhead(messages), false)
}

/// Estimates one text in bounded time. The flag is true when the count is exact.
pub fn estimate_tokens(text: &str) -> (Tokens, bool) {
    let message = Message { role: crate::request::MessageRole::User, text: Cow::Borrowed(text) };
    if text.len() <= EXACT_LIMIT {
        (count_tokens(text), true)
    } else {
        (sample(&[message], text.len()), false)
    }
}

fn overhead(messages: &[Message<'_>]) -> Tokens {
    let count = Tokens::from_len(messages.len()).0;
    Tokens(count.saturating_mul(MESSAGE_OVERHEAD).saturating_add(REPLY_OVERHEAD))
}

/// Counts windows at even distances over the text of all messages, taken as one, and scales by bytes.
fn sample(messages: &[Message<'_>], total: usize) -> Tokens {
    let mut texts = messages.iter().map(|message| message.text.as_ref());
    let mut text = texts.next().unwrap_or_default();
    let mut text_start = 0;
    let (mut bytes, mut tokens) = (0usize, 0u64);
    for index in 0..WINDOWS {
        let offset = (total - WINDOW_BYTES) * index / (WINDOWS - 1);
        while offset >= text_start + text.len() {
            text_start += text.len();
            match texts.next() {
                Some(next) => text = next,
                None => return scale(tokens, bytes, total),
            }
        }
        let window = window(text, offset - text_start);
        bytes += window.len();
        tokens += u64::from(count_tokens(window).0);
    }
    scale(tokens, bytes, total)
}

fn scale(tokens: u64, bytes: usize, total: usize) -> Tokens {
    let scaled = u128::from(tokens) * total as u128 / bytes.max(1) as u128;
    Tokens(u32::try_from(scaled).unwrap_or(u32::MAX))
}

/// Returns the window at `start`, moved to the next blanks so that it cuts no word in two.
fn window(text: &str, start: usize) -> &str {
    let from = if start == 0 { 0 } else { boundary(text, start) };
    let to = boundary(text, start.saturating_add(WINDOW_BYTES));
    &text[from.min(to)..to]
}

/// Returns the first blank at or after `at`, within [`ALIGN_BYTES`], else the next character boundary.
fn boundary(text: &str, at: usize) -> usize {
    if at >= text.len() {
        return text.len();
    }
    let bytes = text.as_bytes();
    let limit = text.len().min(at + ALIGN_BYTES);
    let blank = (at..limit).find(|&index| matches!(bytes[index], b' ' | b'\n'));
    let mut index = blank.unwrap_or(at);
    while !text.is_char_boundary(index) {
        index += 1;
    }
    index
}
