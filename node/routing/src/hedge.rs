//! When a second host is asked beside one that is late with its first token, and how often.
//!
//! Dean and Barroso ("The Tail at Scale", 2013): ask again only when the answer is later than it nearly always is, and
//! the tail shortens at a few per cent of added load. "Nearly always" is learnt here for each model on each host as the
//! 95th percentile of how much later first tokens came than they were forecast, so that a long prompt is given its
//! time; the budget is a share of all requests, because the tail grows for all at once when the hosts are overloaded,
//! and a copy of everything is the last thing that helps then.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::ids::UpstreamId;

/// Largest share of requests that may be hedged.
pub const MAX_SHARE: f64 = 0.02;

/// Hedges that may be saved up: a quiet node may hedge two requests in a row.
const MAX_CREDIT: f64 = 2.0;

/// First tokens remembered of one model on one host, and how many say something of a 95th percentile.
const REMEMBERED: usize = 64;
const ENOUGH: usize = 20;

/// Hosts and models remembered; beyond it those that come first by name go.
const MAX_HOSTS: usize = 1024;

/// Part of the answers that are not late.
const PERCENTILE: f64 = 0.95;

/// Shortest forecast that a time is compared with, and shortest wait before a second host is asked, milliseconds:
/// below it a hedge gains less than it costs.
const LEAST_MS: f64 = 20.0;

type Host = (UpstreamId, Arc<str>);

/// How late first tokens are, and what may be done about it. Clones share it.
#[derive(Debug, Clone)]
pub struct Hedges {
    share: f64,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    credit: f64,
    /// First tokens' times as multiples of their forecasts, newest last.
    lateness: BTreeMap<Host, VecDeque<f64>>,
}

impl Hedges {
    /// Hedges at most `share` of all requests, 0 to [`MAX_SHARE`]; 0 = none.
    pub fn new(share: f64) -> Self {
        Self { share: share.clamp(0.0, MAX_SHARE), state: Arc::default() }
    }

    /// True when nothing is ever hedged.
    pub fn is_off(&self) -> bool {
        self.share <= 0.0
    }

    /// Counts a request that could be hedged: its part of a hedge is saved up.
    pub fn request(&self) {
        let mut state = self.lock();
        state.credit = (state.credit + self.share).min(MAX_CREDIT);
    }

    /// Notes when a first token came that was forecast for `forecast_ms`.
    pub fn first_token(&self, upstream: &UpstreamId, model: &Arc<str>, forecast_ms: f64, took: Duration) {
        let ratio = took.as_secs_f64() * 1e3 / forecast_ms.max(LEAST_MS);
        if !ratio.is_finite() {
            return;
        }
        let mut state = self.lock();
        let host = (upstream.clone(), model.clone());
        if state.lateness.len() >= MAX_HOSTS && !state.lateness.contains_key(&host) {
            state.lateness.pop_first();
        }
        let ratios = state.lateness.entry(host).or_default();
        if ratios.len() == REMEMBERED {
            ratios.pop_front();
        }
        ratios.push_back(ratio);
    }

    /// Returns after which time a first token is late that was forecast for `forecast_ms`; `None` while too few are
    /// known.
    pub fn late_after(&self, upstream: &UpstreamId, model: &Arc<str>, forecast_ms: f64) -> Option<Duration> {
        let state = self.lock();
        let ratios = state.lateness.get(&(upstream.clone(), model.clone())).filter(|r| r.len() >= ENOUGH)?;
        let mut sorted: Vec<f64> = ratios.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let at = ((sorted.len() as f64 * PERCENTILE).ceil() as usize).clamp(1, sorted.len()) - 1;
        let late_ms = (sorted[at] * forecast_ms.max(LEAST_MS)).max(LEAST_MS);
        Duration::try_from_secs_f64(late_ms / 1e3).ok()
    }

    /// Takes one hedge out of the budget; false when it is spent.
    pub fn try_spend(&self) -> bool {
        let mut state = self.lock();
        let may = state.credit >= 1.0;
        state.credit -= f64::from(u8::from(may));
        may
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Numbers and lists: a poisoned lock still holds valid ones.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> (UpstreamId, Arc<str>) {
        (UpstreamId::Device("a".into()), "m".into())
    }

    #[test]
    fn two_in_a_hundred_and_never_more_than_two_at_once() {
        let hedges = Hedges::new(1.0);
        assert!(!hedges.try_spend());
        let mut spent = 0;
        for _ in 0..10_000 {
            hedges.request();
            spent += u32::from(hedges.try_spend());
        }
        assert!((199..=200).contains(&spent), "{spent}");
        (0..10_000).for_each(|_| hedges.request());
        assert_eq!((0..10).filter(|_| hedges.try_spend()).count(), 2);
        assert!(Hedges::new(0.0).is_off());
    }

    #[test]
    fn late_is_later_than_nineteen_of_twenty_by_their_forecasts() {
        let (upstream, model) = host();
        let hedges = Hedges::new(0.02);
        for n in 1..=20_u32 {
            assert_eq!(hedges.late_after(&upstream, &model, 100.0), None);
            // Twice the forecast but for one, which takes ten times as long; prompts of every length.
            let factor = if n == 7 { 10 } else { 2 };
            let forecast = f64::from(n) * 100.0;
            hedges.first_token(
                &upstream,
                &model,
                forecast,
                Duration::from_millis(u64::from(n * 100 * factor)),
            );
        }
        assert_eq!(hedges.late_after(&upstream, &model, 300.0), Some(Duration::from_millis(600)));
        assert_eq!(hedges.late_after(&upstream, &model, 0.0), Some(Duration::from_millis(40)));
        assert_eq!(hedges.late_after(&upstream, &"other".into(), 300.0), None);
    }

    #[test]
    fn hosts_are_remembered_within_a_bound() {
        let hedges = Hedges::new(0.02);
        for n in 0..2 * MAX_HOSTS {
            let model = format!("m{n}").into();
            hedges.first_token(&host().0, &model, 10.0, Duration::from_millis(5));
        }
        assert_eq!(hedges.lock().lateness.len(), MAX_HOSTS);
    }
}
