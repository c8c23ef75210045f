//! What a reader refuses to believe of a testimony that came in, and for how long it remembers.
//!
//! A refused testimony changes nothing: the last one believed stays. The bound on growth is an allowance that fills
//! with the reader's clock, so a node that comes back out of a long partition may have counted a lot, and an honest
//! one that was refused in a burst is believed when it is offered again a little later.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bandit::evidence::testimony::Testimony;

/// Most observations that one origin can make in a second: more requests than one router process can carry.
const PER_SECOND: f64 = 10_000.0;

/// Observations that an origin may be ahead of its allowance: two publishing intervals of the busiest node.
const BURST: f64 = 100_000.0;

/// How long an origin is believed less after it was caught.
pub const FLAGGED_FOR: Duration = Duration::from_secs(600);

/// Why a testimony is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Suspicion {
    /// Honest counting cannot lead to these sums.
    #[error("the sums are impossible")]
    Impossible,
    /// More observations since the last testimony than there can have been traffic.
    #[error("the counts grow faster than traffic can")]
    TooFast,
    /// Another testimony with the same number was believed before.
    #[error("the origin signed two states under one version")]
    TwoStates,
}

impl Suspicion {
    /// Returns the word under which it is counted.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Impossible => "impossible",
            Self::TooFast => "too_fast",
            Self::TwoStates => "two_states",
        }
    }
}

/// Memory of a reader about the origins it heard.
#[derive(Debug, Clone, Default)]
pub struct Scrutiny {
    marks: BTreeMap<Arc<str>, Mark>,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    /// Observations that the origin may still add; fills with time.
    allowance: f64,
    filled_at: Instant,
    caught_at: Option<Instant>,
}

impl Scrutiny {
    /// Examines a testimony before it is kept; `known` is the one believed of the same origin.
    ///
    /// A first testimony has no pace. The counts of an origin that starts from nothing again may fall.
    ///
    /// # Errors
    /// The [`Suspicion`]; the origin is flagged from `now` on for [`FLAGGED_FOR`].
    pub fn examine(
        &mut self,
        origin: &Arc<str>,
        known: Option<&Testimony>,
        offered: &Testimony,
        now: Instant,
    ) -> Result<(), Suspicion> {
        let fresh = Mark { allowance: BURST, filled_at: now, caught_at: None };
        let mark = self.marks.entry(origin.clone()).or_insert(fresh);
        mark.allowance += PER_SECOND * now.saturating_duration_since(mark.filled_at).as_secs_f64();
        mark.filled_at = now;
        let growth = known.map_or(0, |known| offered.version.saturating_sub(known.version)) as f64;
        let same_number =
            |known: &Testimony| (known.generation, known.version) == (offered.generation, offered.version);
        let suspicion = if !offered.is_plausible() {
            Some(Suspicion::Impossible)
        } else if known.is_some_and(|known| same_number(known) && known != offered) {
            Some(Suspicion::TwoStates)
        } else if growth > mark.allowance {
            Some(Suspicion::TooFast)
        } else {
            None
        };
        if let Some(suspicion) = suspicion {
            mark.caught_at = Some(now);
            return Err(suspicion);
        }
        mark.allowance -= growth;
        Ok(())
    }

    /// Returns the origins that were caught lately.
    pub fn flagged(&self, now: Instant) -> BTreeSet<Arc<str>> {
        let lately =
            |mark: &Mark| mark.caught_at.is_some_and(|at| now.saturating_duration_since(at) < FLAGGED_FOR);
        self.marks.iter().filter(|(_, mark)| lately(mark)).map(|(origin, _)| origin.clone()).collect()
    }

    /// Forgets an origin.
    pub fn forget(&mut self, origin: &str) {
        self.marks.remove(origin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bandit::Reward;
    use crate::ids::ArmId;
    use crate::testing::start;

    fn counted(generation: u64, version: u64) -> Testimony {
        let mut testimony = Testimony { generation, ..Testimony::default() };
        let arm = ArmId::new("m", None);
        testimony.record_end(&arm, Reward::Valid, None);
        let stats = &mut testimony.arms.get_mut(&arm).unwrap().stats;
        (stats.count, stats.version) = (version, version);
        testimony.version = version;
        testimony
    }

    #[test]
    fn growth_is_bounded_by_time_and_a_burst_is_believed_later() {
        let (mut scrutiny, origin, now) = (Scrutiny::default(), Arc::from("a"), start());
        let first = counted(1, 5_000_000);
        assert_eq!(scrutiny.examine(&origin, None, &first, now), Ok(()));
        let burst = counted(1, 5_150_000);
        assert_eq!(scrutiny.examine(&origin, Some(&first), &burst, now), Err(Suspicion::TooFast));
        assert!(scrutiny.flagged(now).contains("a"));
        let later = now + Duration::from_secs(10);
        assert_eq!(scrutiny.examine(&origin, Some(&first), &burst, later), Ok(()));
        let again = counted(1, 5_250_000);
        assert_eq!(scrutiny.examine(&origin, Some(&burst), &again, later), Err(Suspicion::TooFast));
        assert!(scrutiny.flagged(later + FLAGGED_FOR).is_empty());
    }

    #[test]
    fn a_node_that_lost_its_disk_may_start_from_nothing() {
        let (mut scrutiny, origin, now) = (Scrutiny::default(), Arc::from("a"), start());
        let (old, new) = (counted(1, 5_000), counted(2, 3));
        assert_eq!(scrutiny.examine(&origin, Some(&old), &new, now), Ok(()));
    }

    #[test]
    fn impossible_sums_and_two_states_of_one_version_are_refused() {
        let (mut scrutiny, origin, now) = (Scrutiny::default(), Arc::from("a"), start());
        let good = counted(1, 5);
        let mut bad = good.clone();
        bad.arms.values_mut().for_each(|arm| arm.stats.failures = 6);
        assert_eq!(scrutiny.examine(&origin, None, &bad, now), Err(Suspicion::Impossible));
        let mut more = good.clone();
        more.version = 4;
        assert_eq!(scrutiny.examine(&origin, None, &more, now), Err(Suspicion::Impossible));
        let mut other = good.clone();
        other.arms.values_mut().for_each(|arm| arm.stats.failures = 1);
        assert_eq!(scrutiny.examine(&origin, Some(&good), &other, now), Err(Suspicion::TwoStates));
        assert_eq!(scrutiny.examine(&origin, Some(&good), &good.clone(), now), Ok(()));
    }
}
