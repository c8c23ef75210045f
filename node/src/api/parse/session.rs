//! Which conversation a request belongs to, as a number: its turns go to the host that has it in its cache.
//!
//! Clients that name their conversation are believed. For others the first messages tell, which all turns repeat. The
//! hash has no secret: every router must come to the same one, and all that a collision costs is a cache miss.

use http::HeaderMap;
use shoal_routing::{Message, MessageRole};

use super::super::body::Body;

/// Headers in which clients name a conversation, the most telling first.
const HEADERS: [&str; 3] = ["x-session-id", "x-conversation-id", "x-claude-code-session-id"];

/// Bytes of the first messages that are looked at: beyond them a session has parted from all others.
const MAX_HASHED: usize = 16 << 10;

/// Bytes of prompt above which even the first turn of a conversation is worth finding again.
const WORTH_FINDING: usize = 4 << 10;

/// Returns the hash of the conversation; `None` for a short question without history, of which no host has anything.
pub(super) fn of(headers: &HeaderMap, body: &Body<'_>, messages: &[Message<'_>]) -> Option<u64> {
    let named = HEADERS.into_iter().find_map(|name| headers.get(name)).map(|value| value.as_bytes());
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        return Some(Fnv::default().bytes(b"name").bytes(named).0);
    }
    let goes_on = messages.iter().any(|m| matches!(m.role, MessageRole::Assistant | MessageRole::Tool));
    let length: usize = messages.iter().map(|message| message.text.len()).sum();
    if !goes_on && length < WORTH_FINDING {
        return None;
    }
    let first_user = messages.iter().position(|message| message.role == MessageRole::User)?;
    // One application sends the same instructions for all its users; who asks tells them apart.
    let user = body.raw("user").map_or(&[][..], |user| user.get().as_bytes());
    let mut hash = Fnv::default().bytes(b"text").bytes(&user[..user.len().min(MAX_HASHED)]);
    let mut left = MAX_HASHED;
    for message in &messages[..=first_user] {
        let text = message.text.as_bytes();
        let taken = &text[..text.len().min(left)];
        left -= taken.len();
        hash = hash.bytes(&[message.role as u8]).bytes(taken);
    }
    Some(hash.0)
}

/// FNV-1a: spread is wanted, not secrecy.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    /// Takes in a part, with its end, so that parts cannot run together.
    fn bytes(self, bytes: &[u8]) -> Self {
        let parts = bytes.iter().chain(&[0xff]);
        Self(parts.fold(self.0, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderValue;

    use super::*;

    fn session(headers: &[(&'static str, &'static str)], messages: &[(MessageRole, &str)]) -> Option<u64> {
        let bytes = Bytes::from_static(br#"{"user":"ann"}"#);
        let map = headers
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
        let messages: Vec<Message<'_>> =
            messages.iter().map(|(role, text)| Message { role: *role, text: (*text).into() }).collect();
        of(&map.collect(), &Body::parse(&bytes).unwrap(), &messages)
    }

    const SYSTEM: (MessageRole, &str) = (MessageRole::System, "Be kind.");
    const ASK: (MessageRole, &str) = (MessageRole::User, "How far is the moon?");
    const TOLD: (MessageRole, &str) = (MessageRole::Assistant, "384,400 km.");

    #[test]
    fn all_turns_of_a_conversation_have_one_hash_and_others_another() {
        let second = session(&[], &[SYSTEM, ASK, TOLD, (MessageRole::User, "And the sun?")]);
        let third = session(&[], &[SYSTEM, ASK, TOLD, (MessageRole::User, "And Mars?"), TOLD, ASK]);
        assert!(second.is_some());
        assert_eq!(second, third);
        let other = session(&[], &[SYSTEM, (MessageRole::User, "Who are you?"), TOLD, ASK]);
        assert_ne!(second, other);
    }

    #[test]
    fn a_first_question_is_worth_finding_again_only_when_it_is_long() {
        assert_eq!(session(&[], &[SYSTEM, ASK]), None);
        let long = "x".repeat(WORTH_FINDING);
        let first = session(&[], &[SYSTEM, (MessageRole::User, &long)]);
        assert!(first.is_some());
        assert_eq!(first, session(&[], &[SYSTEM, (MessageRole::User, &long), TOLD, ASK]));
    }

    #[test]
    fn a_client_that_names_its_conversation_is_believed() {
        let named = session(&[("x-session-id", "s1")], &[ASK]);
        assert!(named.is_some());
        assert_eq!(named, session(&[("x-session-id", "s1")], &[SYSTEM, ASK, TOLD, ASK]));
        assert_ne!(named, session(&[("x-session-id", "s2")], &[ASK]));
        assert!(session(&[("x-claude-code-session-id", "c")], &[ASK]).is_some());
    }
}
