//! What hosts have read before: engines keep the keys and values of prompts, and read only what is new of the next one.
//!
//! A prompt is known by hashes of its beginnings: after each of its messages, and at powers of two of its length, so
//! that both the next turn of a conversation and another question under the same instructions find what they share with
//! an earlier one. A host is remembered to hold the beginnings of the prompts that it read for this node in the last
//! minutes. Whether it truly does is not ours to see, so how much of the expected saving comes true is learnt for each
//! model on each host: an engine without such a cache teaches that it saves nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::balance::affinity::mix;
use crate::request::{Message, MessageRole};
use crate::units::Tokens;

/// Beginnings of a prompt that are remembered: the first of a long conversation and its last ones.
const MARKS: usize = 12;

/// Of those, the first ones that stay: instructions that many conversations share.
const FIRST: usize = 4;

/// Shortest beginning worth remembering, bytes: some hundred tokens, a tenth of a second on a phone.
const SHORTEST: usize = 512;

/// Length in bytes from which on each doubling is a beginning, too.
const FIRST_DOUBLING: usize = 4_096;

/// Bytes of a prompt that are looked at: the hash of all of it takes some 50 µs.
const LONGEST: usize = 512 * 1_024;

/// Beginnings that one model on one host is remembered to hold: some twenty conversations. Engines hold fewer the longer
/// those are, which the learnt worth makes up for.
const HELD: usize = 256;

/// How long that is believed: engines keep what was used last, and others use them, too.
const HELD_FOR: Duration = Duration::from_secs(300);

/// Share of the expected saving that is believed before any was seen, and the weight of one that was.
const FIRST_WORTH: f64 = 0.5;
const WORTH_WEIGHT: f64 = 0.2;

/// Saving below which a measurement tells nothing of it, milliseconds.
const LEAST_SAVING_MS: f64 = 20.0;

/// One beginning of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Mark {
    hash: u64,
    tokens: Tokens,
}

/// Beginnings of a prompt, the shortest first. Hashes only, and only of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Prefix {
    marks: [Mark; MARKS],
    len: usize,
}

impl Prefix {
    /// A prompt of which nothing is known.
    pub const UNKNOWN: Self = Self { marks: [Mark { hash: 0, tokens: Tokens(0) }; MARKS], len: 0 };

    /// Marks the beginnings of a prompt of so many tokens.
    pub fn of(messages: &[Message<'_>], prompt: Tokens) -> Self {
        let bytes: usize = messages.iter().map(|message| message.text.len()).sum();
        let (mut prefix, mut hash, mut seen, mut next) = (Self::UNKNOWN, 0, 0, FIRST_DOUBLING);
        let tokens_at =
            |seen: usize| Tokens((f64::from(prompt.0) * seen as f64 / bytes.max(1) as f64) as u32);
        for message in messages {
            hash = mix(hash ^ role(message.role));
            let mut text = message.text.as_bytes();
            while seen + text.len() >= next && next <= LONGEST {
                let (head, tail) = text.split_at(next - seen);
                (hash, seen, text, next) = (hashed(hash, head), next, tail, next * 2);
                prefix.push(Mark { hash, tokens: tokens_at(seen) }, seen);
            }
            if seen + text.len() > LONGEST {
                break;
            }
            (hash, seen) = (hashed(hash, text), seen + text.len());
            prefix.push(Mark { hash, tokens: tokens_at(seen) }, seen);
        }
        prefix
    }

    fn push(&mut self, mark: Mark, bytes: usize) {
        if bytes < SHORTEST || self.marks().last() == Some(&mark) {
            return;
        }
        if self.len == MARKS {
            self.marks.copy_within(FIRST + 1.., FIRST);
            self.len -= 1;
        }
        self.marks[self.len] = mark;
        self.len += 1;
    }

    fn marks(&self) -> &[Mark] {
        &self.marks[..self.len]
    }
}

/// Beginnings that one model on one host holds, and what they turned out to be worth.
#[derive(Debug)]
pub(super) struct Held {
    read_at: BTreeMap<u64, Instant>,
    worth: f64,
}

impl Default for Held {
    fn default() -> Self {
        Self { read_at: BTreeMap::new(), worth: FIRST_WORTH }
    }
}

/// Times to a first token that tell what a held beginning is worth, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Saving {
    /// If the whole prompt is read.
    pub(super) whole_ms: f64,
    /// If nothing is read of what is held.
    pub(super) rest_ms: f64,
}

impl Held {
    /// Returns the tokens of the longest beginning of a prompt that the host read lately.
    pub(super) fn longest(&self, prefix: &Prefix, now: Instant) -> f64 {
        let fresh = |mark: &&Mark| {
            let read_at = self.read_at.get(&mark.hash);
            read_at.is_some_and(|at| now.saturating_duration_since(*at) < HELD_FOR)
        };
        prefix.marks().iter().rev().find(fresh).map_or(0.0, |mark| f64::from(mark.tokens.0))
    }

    /// Returns the share of a held beginning that is expected not to be read again, 0 to 1.
    pub(super) fn worth(&self) -> f64 {
        self.worth
    }

    /// Notes that the host has read a prompt.
    pub(super) fn read(&mut self, prefix: &Prefix, now: Instant) {
        for mark in prefix.marks() {
            self.read_at.insert(mark.hash, now);
        }
        while self.read_at.len() > HELD {
            let oldest = self.read_at.iter().min_by_key(|(_, at)| **at).map(|(hash, _)| *hash);
            oldest.map(|hash| self.read_at.remove(&hash));
        }
    }

    /// Takes in how long the first token of a prompt took of which a beginning was held.
    pub(super) fn learn(&mut self, saving: Saving, took_ms: f64) {
        let most = saving.whole_ms - saving.rest_ms;
        if most >= LEAST_SAVING_MS {
            let seen = ((saving.whole_ms - took_ms) / most).clamp(0.0, 1.0);
            self.worth += WORTH_WEIGHT * (seen - self.worth);
        }
    }
}

fn role(role: MessageRole) -> u64 {
    match role {
        MessageRole::System => 1,
        MessageRole::User => 2,
        MessageRole::Assistant => 3,
        MessageRole::Tool => 4,
    }
}

/// Carries a hash on over bytes, eight at a time: spread is wanted at the speed of memory, not secrecy.
fn hashed(mut hash: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        hash = (hash ^ u64::from_le_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32;
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(hash ^ u64::from_le_bytes(last) ^ bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    fn says(role: MessageRole, text: &str) -> Message<'_> {
        Message { role, text: text.into() }
    }

    fn held(held: &Held, messages: &[Message<'_>], tokens: u32) -> f64 {
        held.longest(&Prefix::of(messages, Tokens(tokens)), start())
    }

    #[test]
    fn the_next_turn_finds_the_whole_last_one() {
        let (system, first, answer) = ("s".repeat(2_000), "a".repeat(1_000), "b".repeat(1_000));
        let mut talk = vec![says(MessageRole::System, &system), says(MessageRole::User, &first)];
        let mut host = Held::default();
        assert_eq!(held(&host, &talk, 750), 0.0);
        host.read(&Prefix::of(&talk, Tokens(750)), start());
        talk.extend([says(MessageRole::Assistant, &answer), says(MessageRole::User, "and now?")]);
        let share = held(&host, &talk, 1_002) / 1_002.0;
        assert!((share - 3_000.0 / 4_008.0).abs() < 0.01, "{share}");
    }

    #[test]
    fn another_question_under_the_same_instructions_finds_those() {
        let system = "s".repeat(3_000);
        let ask = |text| [says(MessageRole::System, &system), says(MessageRole::User, text)];
        let mut host = Held::default();
        host.read(&Prefix::of(&ask("What is the time?"), Tokens(800)), start());
        let found = held(&host, &ask("Who are you, who were you, and why?"), 800);
        assert!((750.0..800.0).contains(&found), "{found}");
        let other = "t".repeat(3_000);
        let stranger = [says(MessageRole::System, &other), says(MessageRole::User, "What is the time?")];
        assert_eq!(held(&host, &stranger, 800), 0.0);
    }

    #[test]
    fn one_long_message_is_found_by_its_beginning() {
        let (one, other) = ("x".repeat(20_000) + "1", "x".repeat(20_000) + "2");
        let mut host = Held::default();
        host.read(&Prefix::of(&[says(MessageRole::User, &one)], Tokens(5_000)), start());
        let found = held(&host, &[says(MessageRole::User, &other)], 5_000);
        assert!((found - 5_000.0 * 16_384.0 / 20_001.0).abs() < 2.0, "{found}");
    }

    #[test]
    fn long_talks_keep_their_first_and_their_last_beginnings() {
        let texts: Vec<String> = (0..40).map(|n| format!("{n} ").repeat(300)).collect();
        let talk: Vec<Message<'_>> = texts.iter().map(|text| says(MessageRole::User, text)).collect();
        let mut host = Held::default();
        host.read(&Prefix::of(&talk[..39], Tokens(3_900)), start());
        assert!(held(&host, &talk, 4_000) > 3_700.0);
        assert!(held(&host, &talk[..1], 100) > 0.0);
        assert_eq!(Prefix::of(&talk, Tokens(4_000)).marks().len(), MARKS);
    }

    #[test]
    fn what_is_held_is_bounded_and_forgotten() {
        let (text, mut host) = ("y".repeat(2_000), Held::default());
        let old = [says(MessageRole::System, &text)];
        host.read(&Prefix::of(&old, Tokens(500)), start());
        assert!(host.longest(&Prefix::of(&old, Tokens(500)), start() + HELD_FOR) < 1.0);
        for n in 0..2 * HELD {
            let text = format!("{n} ").repeat(500);
            let later = start() + Duration::from_millis(n as u64 + 1);
            host.read(&Prefix::of(&[says(MessageRole::User, &text)], Tokens(500)), later);
        }
        assert_eq!(host.read_at.len(), HELD);
        assert_eq!(held(&host, &old, 500), 0.0, "the oldest go first");
    }

    #[test]
    fn a_host_without_a_cache_teaches_that_nothing_is_saved() {
        let saving = Saving { whole_ms: 1_000.0, rest_ms: 100.0 };
        let mut host = Held::default();
        (0..20).for_each(|_| host.learn(saving, 1_000.0));
        assert!(host.worth() < 0.01);
        (0..20).for_each(|_| host.learn(saving, 150.0));
        assert!(host.worth() > 0.9);
    }
}
