//! Who waits for a busy host, in which order they get it, and who is sent away at once.
//!
//! One [`Line`] for each host. Order: what somebody waits for before what runs in the background; then fair shares of
//! the host's time between keys, by start-time fair queueing (Goyal, Vin, Cheng 1996) over the predicted times of their
//! requests; then the earliest deadline. A line is short on purpose: a client that is told at once to come back later is
//! better off than one that waits in vain, and a request whose answer would come too late takes time from others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Requests that wait for a host, for each of its slots.
const WAITING_PER_SLOT: usize = 2;

/// Longest wait.
pub const MAX_WAIT: Duration = Duration::from_secs(30);

/// Bounds of the time after which those who are sent away are told to come back.
const MIN_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(120);

/// Keys whose share of the past is remembered; those furthest behind are forgotten first, which costs them nothing.
const MAX_KEYS: usize = 1_024;

/// For whom a request runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A client waits for it.
    Client,
    /// Nobody does: judges, comparisons.
    Background,
}

/// A request that asks to wait.
#[derive(Debug, Clone)]
pub struct Asking {
    /// Whose share it counts against.
    pub key: Arc<str>,
    /// For whom it runs.
    pub priority: Priority,
    /// When its caller is gone.
    pub deadline: Option<Instant>,
    /// Time that it is predicted to take, without the wait, milliseconds.
    pub cost_ms: f64,
}

/// What the line leads to.
#[derive(Debug, Clone, Copy)]
pub struct Host {
    /// Requests that it runs at once, at least 1.
    pub slots: u32,
    /// Time until a request at the end of the line gets a slot, milliseconds, as predicted.
    pub wait_ms: f64,
}

/// A place in the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entered {
    /// Number of the request in this line.
    pub id: u64,
    /// A request that lost its place to it.
    pub displaced: Option<u64>,
}

/// Sent away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the host is busy for longer than a request may wait; try again in {} s", retry_after.as_secs())]
pub struct Shed {
    /// When it is worth coming back, 1 to 120 s.
    pub retry_after: Duration,
}

#[derive(Debug, Clone)]
struct Entry {
    id: u64,
    asking: Asking,
    gives_up: Instant,
}

/// The requests that wait for one host.
#[derive(Debug, Default)]
pub struct Line {
    waiting: Vec<Entry>,
    /// Where each key stands: the host's time that it was given, in the line's virtual time, milliseconds.
    shares: BTreeMap<Arc<str>, f64>,
    /// Virtual time: where the key stands that was served last.
    virtual_ms: f64,
    next_id: u64,
}

impl Line {
    /// Returns how many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// True when nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Counts a request that found a free slot against its key's share.
    pub fn charge(&mut self, asking: &Asking) {
        let start = self.standing(&asking.key);
        self.advance(&asking.key, start, asking.cost_ms);
    }

    /// Takes a place.
    ///
    /// In a full line a request displaces the last one of the key that holds most places, if its own key holds fewer;
    /// a client's displaces a background one.
    ///
    /// # Errors
    /// When the line is full, or the wait would outlast 30 s or the request's deadline.
    pub fn enter(&mut self, asking: Asking, host: Host, now: Instant) -> Result<Entered, Shed> {
        let bound = WAITING_PER_SLOT * host.slots.max(1) as usize;
        let gives_up = asking.deadline.map_or(now + MAX_WAIT, |deadline| deadline.min(now + MAX_WAIT));
        let wait_s = if host.wait_ms.is_finite() { host.wait_ms.clamp(0.0, 1e9) / 1e3 } else { 0.0 };
        let waiting = self.waiting.len();
        // Who goes before others waits that much shorter than who comes last.
        let after =
            |ahead: usize| Duration::from_secs_f64(wait_s * (ahead + 1) as f64 / (waiting + 1) as f64);
        let entry = Entry { id: self.next_id, asking, gives_up };
        let ahead = self.waiting.iter().filter(|other| self.order(other) <= self.order(&entry)).count();
        let shed = || Shed { retry_after: after(ahead).clamp(MIN_RETRY, MAX_RETRY) };
        if now + after(ahead) > gives_up {
            return Err(shed());
        }
        let displaced = if waiting < bound {
            None
        } else {
            let victim = self.displaced_by(&entry.asking).ok_or_else(shed)?;
            self.leave(victim);
            Some(victim)
        };
        self.next_id += 1;
        let id = entry.id;
        self.waiting.push(entry);
        Ok(Entered { id, displaced })
    }

    /// Takes out whose turn it is.
    pub fn call_next(&mut self) -> Option<u64> {
        let first = self.waiting.iter().min_by(|a, b| {
            let (a, b) = (self.order(a), self.order(b));
            a.partial_cmp(&b).unwrap_or(std::cmp::Ordering::Equal)
        })?;
        let (id, key, cost_ms) = (first.id, first.asking.key.clone(), first.asking.cost_ms);
        let start = self.standing(&key);
        self.leave(id);
        self.virtual_ms = self.virtual_ms.max(start);
        self.advance(&key, start, cost_ms);
        Some(id)
    }

    /// Gives a place up; false when it was not held.
    pub fn leave(&mut self, id: u64) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|entry| entry.id != id);
        self.waiting.len() < before
    }

    /// Takes out those who waited too long.
    pub fn expire(&mut self, now: Instant) -> Vec<u64> {
        let late = self.waiting.iter().filter(|entry| entry.gives_up <= now).map(|entry| entry.id).collect();
        self.waiting.retain(|entry| entry.gives_up > now);
        late
    }

    /// What decides whose turn it is, the lowest first.
    fn order(&self, entry: &Entry) -> (Priority, f64, Instant, u64) {
        let before = |other: &&Entry| other.asking.key == entry.asking.key && goes_before(other, entry);
        let queued: f64 = self.waiting.iter().filter(before).map(|other| other.asking.cost_ms).sum();
        (entry.asking.priority, self.standing(&entry.asking.key) + queued, entry.gives_up, entry.id)
    }

    /// Where a key stands: nobody saves up time by being silent.
    fn standing(&self, key: &str) -> f64 {
        self.shares.get(key).copied().unwrap_or(0.0).max(self.virtual_ms)
    }

    fn advance(&mut self, key: &Arc<str>, start: f64, cost_ms: f64) {
        let cost = if cost_ms.is_finite() { cost_ms.max(1.0) } else { 1.0 };
        self.shares.insert(key.clone(), start + cost);
        let virtual_ms = self.virtual_ms;
        self.shares.retain(|_, share| *share > virtual_ms);
        if self.shares.len() > MAX_KEYS {
            let least = self.shares.iter().min_by(|a, b| a.1.total_cmp(b.1)).map(|(key, _)| key.clone());
            least.map(|key| self.shares.remove(&key));
        }
    }

    /// The request that has to go so that `asking` may wait.
    fn displaced_by(&self, asking: &Asking) -> Option<u64> {
        let last = |of: &dyn Fn(&&Entry) -> bool| self.waiting.iter().filter(of).map(|entry| entry.id).max();
        if asking.priority == Priority::Client
            && let Some(id) = last(&|entry| entry.asking.priority == Priority::Background)
        {
            return Some(id);
        }
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        for entry in self.waiting.iter().filter(|entry| entry.asking.priority >= asking.priority) {
            *places.entry(&entry.asking.key).or_default() += 1;
        }
        let own = places.get(&*asking.key).copied().unwrap_or(0);
        let (most, count) = places.into_iter().max_by_key(|(_, count)| *count)?;
        // With one place more they would hold as many as the other still does.
        (own + 1 < count)
            .then(|| last(&|entry| *entry.asking.key == *most && entry.asking.priority >= asking.priority))
            .flatten()
    }
}

/// True when of two requests of one key the first has its turn before the second.
fn goes_before(a: &Entry, b: &Entry) -> bool {
    (a.asking.priority, a.gives_up, a.id) < (b.asking.priority, b.gives_up, b.id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::start;

    const HOST: Host = Host { slots: 4, wait_ms: 1_000.0 };

    fn asking(key: &str, cost_ms: f64) -> Asking {
        Asking { key: key.into(), priority: Priority::Client, deadline: None, cost_ms }
    }

    /// Serves all that wait and returns the names by which they entered.
    fn served(line: &mut Line, names: &[(u64, &'static str)]) -> String {
        let name = |id: u64| names.iter().find(|(known, _)| *known == id).map_or("?", |(_, name)| name);
        std::iter::from_fn(|| line.call_next()).map(name).collect()
    }

    fn enter(line: &mut Line, asking: Asking, name: &'static str) -> (u64, &'static str) {
        (line.enter(asking, HOST, start()).unwrap().id, name)
    }

    #[test]
    fn a_key_with_many_requests_does_not_hold_up_one_with_few() {
        let mut line = Line::default();
        let mut names: Vec<_> =
            ["a", "b", "c", "d"].map(|name| enter(&mut line, asking("busy", 100.0), name)).into();
        names.push(enter(&mut line, asking("calm", 100.0), "X"));
        names.push(enter(&mut line, asking("calm", 100.0), "Y"));
        assert_eq!(served(&mut line, &names), "aXbYcd");
    }

    #[test]
    fn shares_are_of_time_and_nobody_saves_them_up() {
        let mut line = Line::default();
        let mut names: Vec<_> = ["L", "M"].map(|name| enter(&mut line, asking("long", 300.0), name)).into();
        names.extend(["a", "b", "c", "d"].map(|name| enter(&mut line, asking("short", 100.0), name)));
        assert_eq!(served(&mut line, &names), "LabcMd");
        // A key that was silent meanwhile starts level with the others.
        let names = [("late", "x"), ("late", "y"), ("late", "z"), ("short", "e"), ("short", "f")]
            .map(|(key, name)| enter(&mut line, asking(key, 100.0), name));
        assert_eq!(served(&mut line, &names), "xyezf");
    }

    #[test]
    fn clients_come_before_background_and_early_deadlines_before_late_ones() {
        let (mut line, now) = (Line::default(), start());
        let by = |seconds| Asking { deadline: Some(now + Duration::from_secs(seconds)), ..asking("k", 1.0) };
        let background = Asking { priority: Priority::Background, ..asking("k", 1.0) };
        let names = [(background, "b"), (by(20), "2"), (by(10), "1")].map(|(asking, name)| {
            let entered = line.enter(asking, HOST, now).unwrap();
            (entered.id, name)
        });
        assert_eq!(served(&mut line, &names), "12b");
    }

    #[test]
    fn a_wait_that_outlasts_patience_or_deadline_is_refused_at_once_with_its_length() {
        let (mut line, now) = (Line::default(), start());
        let hurried = Asking { deadline: Some(now + Duration::from_millis(900)), ..asking("k", 1.0) };
        assert_eq!(line.enter(hurried, HOST, now), Err(Shed { retry_after: Duration::from_secs(1) }));
        let after = |s: u32| Host { wait_ms: f64::from(s) * 1e3, ..HOST };
        assert!(line.enter(asking("k", 1.0), after(16), now).is_ok());
        let too_long = line.enter(asking("k", 1.0), after(32), now);
        assert_eq!(too_long, Err(Shed { retry_after: Duration::from_secs(32) }));
        assert_eq!(line.expire(now + Duration::from_secs(29)), []);
        assert_eq!(line.expire(now + Duration::from_secs(30)), [0]);
        assert!(line.is_empty());
    }

    #[test]
    fn a_full_line_makes_room_for_a_key_that_has_less_and_for_no_other() {
        let (mut line, now) = (Line::default(), start());
        for _ in 0..8 {
            line.enter(asking("busy", 1.0), HOST, now).unwrap();
        }
        assert!(line.enter(asking("busy", 1.0), HOST, now).is_err());
        assert_eq!(line.enter(asking("calm", 1.0), HOST, now).unwrap().displaced, Some(7));
        let background = Asking { priority: Priority::Background, ..asking("third", 1.0) };
        assert!(line.enter(background, HOST, now).is_err(), "no client loses its place to the background");
        assert_eq!(line.len(), 8);
    }

    proptest! {
        /// Whatever happens: the bound holds, each request leaves once, and backlogged keys get equal time.
        #[test]
        fn the_line_is_bounded_fair_and_loses_nobody(
            steps in proptest::collection::vec((0u8..10, 0u8..4, 1u32..400), 1..300),
            slots in 1u32..6,
        ) {
            let (mut line, now) = (Line::default(), start());
            let host = Host { slots, wait_ms: 1.0 };
            let mut held = std::collections::BTreeSet::new();
            for (what, key, cost) in steps {
                match what {
                    0..=5 => {
                        let asking = asking(["a", "b", "c", "d"][usize::from(key)], f64::from(cost));
                        if let Ok(entered) = line.enter(asking, host, now) {
                            prop_assert!(held.insert(entered.id));
                            if let Some(displaced) = entered.displaced {
                                prop_assert!(held.remove(&displaced));
                            }
                        }
                    }
                    6 => {
                        let some = held.pop_first();
                        prop_assert_eq!(some.is_some_and(|id| line.leave(id)), some.is_some());
                    }
                    _ => {
                        let next = line.call_next();
                        prop_assert_eq!(next.is_some(), !held.is_empty());
                        if let Some(id) = next {
                            prop_assert!(held.remove(&id));
                        }
                    }
                }
                prop_assert_eq!(line.len(), held.len());
                prop_assert!(held.len() <= 2 * slots as usize);
            }
        }

        /// Keys that always have something waiting get the same time within two of the longest requests.
        #[test]
        fn backlogged_keys_get_equal_time(costs in proptest::collection::vec(1u32..400, 4), rounds in 20usize..100) {
            let (mut line, now) = (Line::default(), start());
            let host = Host { slots: 8, wait_ms: 1.0 };
            let keys = ["a", "b", "c", "d"];
            let mut of = BTreeMap::new();
            let mut time = [0.0; 4];
            for key in 0..4 {
                for _ in 0..2 {
                    let entered = line.enter(asking(keys[key], f64::from(costs[key])), host, now).unwrap();
                    of.insert(entered.id, key);
                }
            }
            for _ in 0..rounds {
                let key = of[&line.call_next().unwrap()];
                time[key] += f64::from(costs[key]);
                let entered = line.enter(asking(keys[key], f64::from(costs[key])), host, now).unwrap();
                of.insert(entered.id, key);
            }
            let most = time.iter().copied().fold(0.0, f64::max);
            let least = time.iter().copied().fold(f64::INFINITY, f64::min);
            let longest = f64::from(costs.iter().copied().max().unwrap());
            prop_assert!(most - least <= 2.0 * longest, "{time:?} {costs:?}");
        }
    }
}
