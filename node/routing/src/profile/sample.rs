//! The part of a conversation that is read: bounded, and where the question is.
//!
//! A long prompt would cost more to read than the whole decision may. What a request is about shows at the head and
//! the tail of what its user said last; where that is short ("and in French?"), the user's first words are added.
//! Instructions of the application, earlier answers and tool results are left out: they are the same for thousands of
//! requests, or the model's own words, and would pull all of them to one place.

use crate::request::{Message, MessageRole};

/// Bytes of a turn that are read whole: the size of the benchmark prompts that the learner starts from, with room.
const WHOLE_BYTES: usize = 1024;

/// Bytes of the head and of the tail of a longer turn.
const END_BYTES: usize = WHOLE_BYTES / 2;

/// Bytes of the last turn below which the first one is looked at too.
const SHORT_BYTES: usize = 64;

/// Bytes of the first turn that are read then.
const FIRST_BYTES: usize = 256;

/// Texts borrowed from a conversation, in its order; empty where there is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sample<'a> {
    first: &'a str,
    head: &'a str,
    tail: &'a str,
}

impl<'a> Sample<'a> {
    /// Samples a conversation; one without a user is sampled by its last message.
    pub(crate) fn of(messages: &'a [Message<'_>]) -> Self {
        let mut users = messages.iter().filter(|message| message.role == MessageRole::User);
        let Some(last) = users.next_back().or(messages.last()) else { return Self::of_text("") };
        let sample = Self::of_text(&last.text);
        match users.next() {
            Some(first) if last.text.len() < SHORT_BYTES => {
                Self { first: until(&first.text, FIRST_BYTES), ..sample }
            }
            _ => sample,
        }
    }

    /// Samples one text.
    pub(crate) fn of_text(text: &'a str) -> Self {
        if text.len() <= WHOLE_BYTES {
            return Self { first: "", head: text, tail: "" };
        }
        Self { first: "", head: until(text, END_BYTES), tail: from(text, text.len() - END_BYTES) }
    }

    /// Returns the texts, oldest first.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        [self.first, self.head, self.tail].into_iter().filter(|part| !part.is_empty())
    }

    /// Returns the beginning of the last turn.
    pub(crate) fn head(&self) -> &'a str {
        self.head
    }

    /// Returns the end of the last turn.
    pub(crate) fn end(&self) -> &'a str {
        if self.tail.is_empty() { self.head } else { self.tail }
    }
}

/// Returns what fits into `bytes`, cut between characters.
fn until(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

fn from(text: &str, start: usize) -> &str {
    &text[text.ceil_char_boundary(start)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: MessageRole, text: &str) -> Message<'_> {
        Message { role, text: text.into() }
    }

    fn parts(messages: &[Message<'_>]) -> Vec<String> {
        Sample::of(messages).parts().map(str::to_owned).collect()
    }

    #[test]
    fn the_last_turn_of_the_user_is_what_a_request_is_about() {
        let long = "Explain how a lighthouse is built, stone by stone, in the open sea.";
        let messages = [
            message(MessageRole::System, "You are a pirate."),
            message(MessageRole::User, "Hello there"),
            message(MessageRole::Assistant, "Ahoy"),
            message(MessageRole::User, long),
            message(MessageRole::Tool, "42"),
        ];
        assert_eq!(parts(&messages), [long]);
    }

    #[test]
    fn a_short_last_turn_is_read_with_the_first_one() {
        let messages = [
            message(MessageRole::User, "Write a poem on the sea"),
            message(MessageRole::Assistant, "The sea …"),
            message(MessageRole::User, "And in French?"),
        ];
        assert_eq!(parts(&messages), ["Write a poem on the sea", "And in French?"]);
    }

    #[test]
    fn a_long_turn_is_read_at_both_ends_and_never_beyond_the_bound() {
        let text = format!("a{}z", "é".repeat(100_000));
        let messages = [message(MessageRole::User, &text)];
        let parts = parts(&messages);
        assert!(parts[0].starts_with('a') && parts[1].ends_with('z'));
        assert!(parts.iter().map(String::len).sum::<usize>() <= WHOLE_BYTES);
    }

    #[test]
    fn without_a_user_the_last_message_is_read_and_without_messages_nothing() {
        assert_eq!(parts(&[message(MessageRole::System, "Be kind.")]), ["Be kind."]);
        assert_eq!(parts(&[]), [""; 0]);
    }
}
