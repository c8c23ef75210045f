//! How long the beginning of a stream is held back, so that a bad answer can still be replaced.
//!
//! After the commit nothing is ever spliced: what a client has seen stays. So the choice falls on a short prefix,
//! and where nobody stronger may be asked nothing is held at all.

use std::time::{Duration, Instant};

use crate::units::Tokens;

/// Tokens that are held: enough for a mean and for a refusal to show, a moment of reading.
pub const HELD_TOKENS: Tokens = Tokens(16);

/// Longest time that a stream is held after its first token: a slow device must not look dead. A client may lose 400 ms
/// to it; 15 of them are left for judging and for the scheduler, since a timer never fires early.
pub const HELD_FOR: Duration = Duration::from_millis(385);

/// What to do with the beginning of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Keep it back.
    Hold {
        /// When to commit at the latest; `None` before the first token.
        until: Option<Instant>,
    },
    /// Judge what was held, then give it and all that follows to the client, or drop it and escalate.
    Commit,
}

/// State of a stream's beginning. Once committed it stays so.
#[derive(Debug, Clone)]
pub struct HeldPrefix {
    tokens: Tokens,
    until: Option<Instant>,
    committed: bool,
}

impl HeldPrefix {
    /// Makes the state of a stream that has given nothing yet. Holds nothing unless a stronger model may be asked.
    pub fn new(can_escalate: bool) -> Self {
        Self { tokens: Tokens(0), until: None, committed: !can_escalate }
    }

    /// Takes in `count` tokens that arrived together at `now`.
    pub fn tokens(&mut self, count: Tokens, now: Instant) -> Hold {
        if count > Tokens(0) {
            self.tokens = self.tokens + count;
            self.until = self.until.or(Some(now + HELD_FOR));
        }
        self.at(now)
    }

    /// Returns what to do at `now`, for the timer that [`Hold::Hold`] asks for.
    pub fn at(&mut self, now: Instant) -> Hold {
        let is_late = self.until.is_some_and(|until| now >= until);
        self.committed |= is_late || self.tokens >= HELD_TOKENS;
        if self.committed { Hold::Commit } else { Hold::Hold { until: self.until } }
    }

    /// Ends the holding: the stream is over, or content came that cannot wait.
    pub fn end(&mut self) -> Hold {
        self.committed = true;
        Hold::Commit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    #[test]
    fn nothing_is_held_where_nobody_stronger_may_be_asked() {
        assert_eq!(HeldPrefix::new(false).at(start()), Hold::Commit);
        assert_eq!(HeldPrefix::new(false).tokens(Tokens(1), start()), Hold::Commit);
    }

    #[test]
    fn sixteen_tokens_commit() {
        let (mut prefix, now) = (HeldPrefix::new(true), start());
        for _ in 0..15 {
            assert_eq!(prefix.tokens(Tokens(1), now), Hold::Hold { until: Some(now + HELD_FOR) });
        }
        assert_eq!(prefix.tokens(Tokens(1), now), Hold::Commit);
        assert_eq!(prefix.at(now), Hold::Commit);
    }

    #[test]
    fn the_time_counts_from_the_first_token() {
        let (mut prefix, now) = (HeldPrefix::new(true), start());
        let later = now + Duration::from_secs(9);
        assert_eq!(prefix.at(later), Hold::Hold { until: None });
        assert_eq!(prefix.tokens(Tokens(0), later), Hold::Hold { until: None });
        prefix.tokens(Tokens(1), later);
        assert_eq!(
            prefix.at(later + HELD_FOR - Duration::from_millis(1)),
            Hold::Hold { until: Some(later + HELD_FOR) }
        );
        assert_eq!(prefix.at(later + HELD_FOR), Hold::Commit);
    }

    #[test]
    fn the_end_of_a_stream_commits() {
        let mut prefix = HeldPrefix::new(true);
        assert_eq!(prefix.end(), Hold::Commit);
        assert_eq!(prefix.at(start()), Hold::Commit);
    }
}
