//! How often a request may be tried again, so that retries never become the load that keeps a host down.
//!
//! Two bounds hold together: a token bucket per class of fault and quota group (the AWS SDKs' scheme: a retry costs, a success
//! pays back a little), and a share of the requests under way (Envoy's retry budget). Both live at the entry
//! node; a router that was forwarded to does not retry beyond what it was told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::ids::UpstreamId;

/// Upstreams that one request may try.
pub const MAX_ATTEMPTS: u32 = 3;

/// Times that a request may be handed on: entry router to another router, router to device.
pub const MAX_HOPS: u32 = 2;

/// Tokens of a full bucket.
const CAPACITY: u32 = 500;

/// Retries allowed at any load: a quiet node must be able to fail over.
const MIN_RETRIES: u32 = 3;

/// Retries per hundred requests under way.
const MAX_RETRY_PERCENT: u32 = 20;

/// Shortest and longest range of the pause before a retry.
const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// Why a request is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RetryKind {
    /// The upstream broke, could not be reached or did not answer in time.
    Transient,
    /// The upstream asked for less traffic.
    Throttle,
}

impl RetryKind {
    /// Returns the tokens that a retry takes from the bucket of its class.
    pub fn cost(self) -> u32 {
        match self {
            Self::Transient => 14,
            Self::Throttle => 5,
        }
    }
}

/// Quota groups with a bucket of their own; more share one.
const MAX_GROUPS: usize = 256;

/// The bucket of groups beyond [`MAX_GROUPS`].
const OTHERS: &str = "";

/// The group of the mesh's own devices: what they have in common is the mesh.
const DEVICES: &str = "devices";

#[derive(Debug, Default)]
struct Budget {
    /// Tokens left, by quota group and kind; a group that is missing has full buckets.
    tokens: BTreeMap<Arc<str>, [u32; 2]>,
    active: u32,
    retrying: u32,
}

impl Budget {
    fn bucket(&mut self, group: &str) -> &mut [u32; 2] {
        let is_known = self.tokens.contains_key(group);
        let group = if is_known || self.tokens.len() < MAX_GROUPS { group } else { OTHERS };
        self.tokens.entry(group.into()).or_insert([CAPACITY; 2])
    }
}

/// What shares a quota with an upstream: all models of a provider its account, all devices the mesh.
fn group_of(upstream: &UpstreamId) -> &str {
    match upstream {
        UpstreamId::Provider(name) => name,
        UpstreamId::Device(_) | UpstreamId::Peer(_) => DEVICES,
    }
}

/// Budget of retries that all requests of a node share. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct RetryBudget {
    state: Arc<Mutex<Budget>>,
}

impl RetryBudget {
    /// Counts a request as under way until the guard drops.
    pub fn enter(&self) -> ActiveRequest {
        let mut budget = self.lock();
        budget.active = budget.active.saturating_add(1);
        ActiveRequest { budget: self.clone() }
    }

    /// Pays one token back into the buckets of an upstream's group: call it for each request that succeeded there at its
    /// first attempt.
    pub fn deposit(&self, upstream: &UpstreamId) {
        for tokens in self.lock().bucket(group_of(upstream)) {
            *tokens = (*tokens + 1).min(CAPACITY);
        }
    }

    /// Asks for a retry at an upstream. `None` = the budget of its group is spent; give the client the error at once.
    ///
    /// The retry counts as under way until the permit drops.
    pub fn try_retry(&self, kind: RetryKind, upstream: &UpstreamId) -> Option<RetryPermit> {
        let mut budget = self.lock();
        let allowed = (budget.active.saturating_mul(MAX_RETRY_PERCENT) / 100).max(MIN_RETRIES);
        if budget.retrying >= allowed {
            return None;
        }
        let tokens = &mut budget.bucket(group_of(upstream))[kind as usize];
        *tokens = tokens.checked_sub(kind.cost())?;
        budget.retrying += 1;
        Some(RetryPermit { budget: self.clone() })
    }

    /// True when no retry of this kind is paid for at an upstream: only requests that succeed at once bring one, so waiting
    /// does not.
    pub fn is_spent(&self, kind: RetryKind, upstream: &UpstreamId) -> bool {
        self.lock().bucket(group_of(upstream))[kind as usize] < kind.cost()
    }

    fn lock(&self) -> MutexGuard<'_, Budget> {
        // Arithmetic that cannot panic: a poisoned lock still holds a valid budget.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request under way.
#[derive(Debug)]
pub struct ActiveRequest {
    budget: RetryBudget,
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        let mut budget = self.budget.lock();
        budget.active = budget.active.saturating_sub(1);
    }
}

/// A retry under way.
#[derive(Debug)]
pub struct RetryPermit {
    budget: RetryBudget,
}

impl Drop for RetryPermit {
    fn drop(&mut self) {
        let mut budget = self.budget.lock();
        budget.retrying = budget.retrying.saturating_sub(1);
    }
}

/// Returns the pause before attempt `attempt` (2 = the first retry): full jitter under a doubling ceiling.
///
/// `jitter` is between 0 and 1. The pause is never below 50 ms, never above 2 s.
pub fn backoff(attempt: u32, jitter: f64) -> Duration {
    let doublings = attempt.saturating_sub(1).min(16);
    let ceiling = (MIN_PAUSE * 2u32.pow(doublings)).min(MAX_PAUSE);
    MIN_PAUSE + (ceiling - MIN_PAUSE).mul_f64(jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> UpstreamId {
        UpstreamId::Device("d".into())
    }

    #[test]
    fn a_provider_that_is_down_spends_its_own_bucket_alone() {
        let (budget, provider) = (RetryBudget::default(), UpstreamId::Provider("openai".into()));
        while budget.try_retry(RetryKind::Transient, &provider).is_some() {}
        assert!(budget.try_retry(RetryKind::Transient, &device()).is_some());
        assert!(budget.try_retry(RetryKind::Transient, &UpstreamId::Provider("groq".into())).is_some());
        budget.deposit(&device());
        assert!(budget.try_retry(RetryKind::Transient, &provider).is_none());
        for n in 0..2 * MAX_GROUPS {
            budget.try_retry(RetryKind::Throttle, &UpstreamId::Provider(format!("p{n}").into()));
        }
        assert!(budget.lock().tokens.len() <= MAX_GROUPS + 1);
    }

    #[test]
    fn a_quiet_node_may_retry_but_only_a_few_at_once() {
        let budget = RetryBudget::default();
        let permits: Vec<_> =
            (0..5).map_while(|_| budget.try_retry(RetryKind::Transient, &device())).collect();
        assert_eq!(permits.len(), MIN_RETRIES as usize);
        drop(permits);
        assert!(budget.try_retry(RetryKind::Transient, &device()).is_some());
    }

    #[test]
    fn retries_under_way_are_a_fifth_of_the_requests_under_way() {
        let budget = RetryBudget::default();
        let active: Vec<_> = (0..100).map(|_| budget.enter()).collect();
        let permits: Vec<_> =
            (0..100).map_while(|_| budget.try_retry(RetryKind::Throttle, &device())).collect();
        assert_eq!(permits.len(), 20);
        drop((active, permits));
        assert_eq!(budget.lock().active, 0);
        assert_eq!(budget.lock().retrying, 0);
    }

    #[test]
    fn an_empty_bucket_refuses_its_own_class_until_successes_refill_it() {
        let budget = RetryBudget::default();
        let spent =
            (0..1_000).take_while(|_| budget.try_retry(RetryKind::Transient, &device()).is_some()).count();
        assert_eq!(spent, (CAPACITY / RetryKind::Transient.cost()) as usize);
        assert!(budget.is_spent(RetryKind::Transient, &device()));
        assert!(!budget.is_spent(RetryKind::Throttle, &device()));
        assert!(budget.try_retry(RetryKind::Throttle, &device()).is_some());
        for _ in 0..RetryKind::Transient.cost() {
            budget.deposit(&device());
        }
        assert!(budget.try_retry(RetryKind::Transient, &device()).is_some());
    }

    #[test]
    fn pauses_grow_and_stay_within_bounds() {
        assert_eq!(backoff(2, 0.0), MIN_PAUSE);
        assert_eq!(backoff(2, 1.0), Duration::from_millis(100));
        assert_eq!(backoff(3, 1.0), Duration::from_millis(200));
        assert_eq!(backoff(u32::MAX, 1.0), MAX_PAUSE);
    }
}
