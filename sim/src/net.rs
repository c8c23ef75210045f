//! The paths between routers: cuts, one-way cuts, loss, delay, and who is slow.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use crate::scenario::Weather;

/// How long a frame can be overtaken at most.
const OVERTAKEN: u64 = 1_000;

/// All paths.
#[derive(Debug)]
pub(crate) struct Net {
    weather: Weather,
    /// How many faults cut a path, by its ends in order of travel.
    cuts: BTreeMap<(usize, usize), u32>,
    storm: f64,
    slow: BTreeMap<usize, Duration>,
}

impl Net {
    /// Makes a network without cuts.
    pub(crate) fn new(weather: Weather) -> Self {
        Self { weather, cuts: BTreeMap::new(), storm: 0.0, slow: BTreeMap::new() }
    }

    /// Cuts a path, one way.
    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        *self.cuts.entry((from, to)).or_default() += 1;
    }

    /// Takes one cut of a path back.
    pub(crate) fn mend(&mut self, from: usize, to: usize) {
        if let Some(count) = self.cuts.get_mut(&(from, to)) {
            *count -= 1;
            if *count == 0 {
                self.cuts.remove(&(from, to));
            }
        }
    }

    /// Sets what a storm adds to the share that is lost.
    pub(crate) fn set_storm(&mut self, loss: f64) {
        self.storm = loss;
    }

    /// Sets how much later comes what a router sends.
    pub(crate) fn set_slow(&mut self, node: usize, by: Option<Duration>) {
        match by {
            Some(by) => self.slow.insert(node, by),
            None => self.slow.remove(&node),
        };
    }

    /// True when nothing gets from one to the other.
    pub(crate) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cuts.contains_key(&(from, to))
    }

    /// True when a connection between the two can live, which needs both ways.
    pub(crate) fn connects(&self, a: usize, b: usize) -> bool {
        !self.is_cut(a, b) && !self.is_cut(b, a)
    }

    /// Returns after which times copies of a frame arrive: none, one or two.
    pub(crate) fn frame(&self, from: usize, to: usize, rng: &mut StdRng) -> [Option<Duration>; 2] {
        let loss = (self.weather.loss + self.storm).min(0.9);
        if self.is_cut(from, to) || rng.random_bool(loss) {
            return [None, None];
        }
        let first = self.travel(from, rng);
        let second = self.weather.twice > 0.0 && rng.random_bool(self.weather.twice);
        [Some(first), second.then(|| self.travel(from, rng))]
    }

    fn travel(&self, from: usize, rng: &mut StdRng) -> Duration {
        let late = self.weather.late > 0.0 && rng.random_bool(self.weather.late);
        let late = if late { rng.random_range(0..OVERTAKEN) } else { 0 };
        let jitter = self.weather.jitter.mul_f64(rng.random());
        self.direct(from) + jitter + Duration::from_millis(late)
    }

    /// Returns how long a piece of a stream of a router is under way: streams lose and reorder nothing.
    pub(crate) fn direct(&self, from: usize) -> Duration {
        self.weather.delay + self.slow.get(&from).copied().unwrap_or_default()
    }
}
