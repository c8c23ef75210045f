//! Which model answered the turn before, for conversations in the middle of a tool loop.
//!
//! A model that reads the results of tools it did not call itself makes more mistakes than one that goes on, so a change
//! costs something there. A conversation is known again by the hash of the messages that its last answer followed: no
//! text is kept, and nothing where no tools are offered.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shoal_routing::ArmId;
use shoal_routing::request::{Message, MessageRole, Request};

/// Turns that are remembered: ten minutes of a busy node's agents.
const CAPACITY: usize = 4096;
/// How long a turn is remembered; a tool that takes longer leaves the choice free.
const LIFE: Duration = Duration::from_secs(600);

/// Turns that lately called tools, or could have.
#[derive(Debug, Default)]
pub(super) struct Turns {
    hashes: RandomState,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    arms: HashMap<u64, ArmId>,
    order: VecDeque<(u64, Instant)>,
}

impl Turns {
    /// Returns the arm whose tool calls the request brings the results of.
    pub(super) fn previous(&self, request: &Request<'_>, now: Instant) -> Option<ArmId> {
        let before = request.messages.iter().rposition(|message| message.role != MessageRole::Tool)?;
        let is_result = before + 1 < request.messages.len();
        if !is_result || request.messages[before].role != MessageRole::Assistant {
            return None;
        }
        let hash = self.hash(&request.messages[..before]);
        let mut known = self.lock();
        known.forget(now);
        known.arms.get(&hash).cloned()
    }

    /// Remembers which arm answers a request, if it may call tools.
    pub(super) fn note(&self, request: &Request<'_>, arm: &ArmId, now: Instant) {
        if !request.needs.tools {
            return;
        }
        let hash = self.hash(&request.messages);
        let mut known = self.lock();
        known.forget(now);
        if known.arms.insert(hash, arm.clone()).is_none() {
            known.order.push_back((hash, now));
        }
    }

    fn hash(&self, messages: &[Message<'_>]) -> u64 {
        let mut hasher = self.hashes.build_hasher();
        for message in messages {
            (message.role as u8).hash(&mut hasher);
            message.text.hash(&mut hasher);
        }
        hasher.finish()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn forget(&mut self, now: Instant) {
        while let Some((hash, noted)) = self.order.front() {
            if self.order.len() < CAPACITY && now.saturating_duration_since(*noted) < LIFE {
                return;
            }
            self.arms.remove(hash);
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: (MessageRole, &str) = (MessageRole::User, "What is the weather in Oslo?");
    const CALL: (MessageRole, &str) = (MessageRole::Assistant, "");
    const RESULT: (MessageRole, &str) = (MessageRole::Tool, "rain");

    fn request(messages: &[(MessageRole, &'static str)]) -> Request<'static> {
        let mut request = Request::of_text("");
        request.needs.tools = true;
        request.messages =
            messages.iter().map(|(role, text)| Message { role: *role, text: (*text).into() }).collect();
        request
    }

    #[test]
    fn the_results_of_tools_lead_back_to_who_called_them() {
        let (turns, now, arm) = (Turns::default(), Instant::now(), ArmId::new("m", None));
        turns.note(&request(&[USER]), &arm, now);
        let back = request(&[USER, CALL, RESULT, RESULT]);
        assert_eq!(turns.previous(&back, now), Some(arm.clone()));
        turns.note(&back, &arm, now);
        let again = request(&[USER, CALL, RESULT, RESULT, CALL, RESULT]);
        assert_eq!(turns.previous(&again, now), Some(arm));
        assert_eq!(turns.previous(&back, now + LIFE), None, "long ago");
    }

    #[test]
    fn other_conversations_and_turns_without_results_lead_nowhere() {
        let (turns, now, arm) = (Turns::default(), Instant::now(), ArmId::new("m", None));
        turns.note(&request(&[USER]), &arm, now);
        for messages in
            [&[USER][..], &[USER, CALL, USER], &[RESULT], &[(MessageRole::User, "?"), CALL, RESULT]]
        {
            assert_eq!(turns.previous(&request(messages), now), None);
        }
        let mut plain = request(&[RESULT, USER]);
        plain.needs.tools = false;
        turns.note(&plain, &arm, now);
        assert_eq!(
            turns.previous(&request(&[RESULT, USER, CALL, RESULT]), now),
            None,
            "no tools were offered"
        );
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (turns, now, arm) = (Turns::default(), Instant::now(), ArmId::new("m", None));
        for n in 0..2 * CAPACITY {
            let mut one = request(&[USER]);
            one.messages[0].text = n.to_string().into();
            turns.note(&one, &arm, now);
        }
        let known = turns.lock();
        assert!(known.arms.len() <= CAPACITY && known.order.len() == known.arms.len());
    }
}
