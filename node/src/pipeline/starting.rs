//! The first seconds of a node that was part of a mesh before: what it has not heard of yet may exist.
//!
//! Clients take "no such model" for final and do not ask again, so it is not said before the mesh could be heard.

use std::time::{Duration, Instant};

/// Time after the start in which a node may not have heard of its mesh. What is lost longer is lost.
const STARTING: Duration = Duration::from_secs(10);
/// Time from the first word of the mesh until the others have said theirs: some rounds of gossip, a device's first dial.
const SETTLES: Duration = Duration::from_secs(2);

/// When the node started, if it expects to hear of a mesh.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Starting(Option<Instant>);

impl Starting {
    /// A node that started `at` and was part of a mesh.
    pub(super) fn expecting(at: Instant) -> Self {
        Self(Some(at))
    }

    /// True while what was not heard of may exist. `heard_at` is when the first router or device was heard of.
    pub(super) fn is_on(self, heard_at: Option<Instant>, now: Instant) -> bool {
        self.0.is_some_and(|at| now < at + STARTING) && heard_at.is_none_or(|at| now < at + SETTLES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_soon_after_the_first_word_and_after_ten_seconds_without_one() {
        let at = Instant::now();
        let after = |seconds| at + Duration::from_secs(seconds);
        let starting = Starting::expecting(at);
        assert!(starting.is_on(None, at) && starting.is_on(None, after(9)));
        assert!(!starting.is_on(None, after(10)));
        assert!(starting.is_on(Some(after(3)), after(4)));
        assert!(!starting.is_on(Some(after(3)), after(5)));
        assert!(!starting.is_on(Some(after(9)), after(10)));
        assert!(!Starting::default().is_on(None, at), "nobody was expected");
    }
}
