//! Whole meshes in seeded virtual time: routing and membership under faults, with invariants checked all the time.
//!
//! One seed draws a mesh of 3 to 100 routers, its devices, clients and bad luck (`scenario`), and lets it live for a
//! minute. Under test is what nodes run: the guard and ledger of gossip, views, the registry made of them, the router,
//! balancer, breakers, lines, retry budget, order of attempts, testimonies and scrutiny. Modelled are what those hang
//! in: chitchat (`gossip`), paths (`net`), keys (`identity`), hosts (`hosts`), purses (`money`), and the pipeline's
//! awaits, which are events here (`serving`). `check` holds the invariants. The same seed gives the same run, to the
//! bit; a run that breaks an invariant says the command that repeats it.

mod breakage;
mod check;
mod device;
mod events;
mod faults;
mod gossip;
mod hostile;
mod hosts;
mod identity;
mod learning;
mod lines;
mod membership;
mod money;
mod net;
mod node;
pub mod poison;
mod request;
mod scenario;
mod serving;
mod trace;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

pub use breakage::Breakage;
pub use scenario::LASTS;

/// How to run a seed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// A deliberate defect.
    pub breakage: Option<Breakage>,
    /// Keep what happened, line by line.
    pub trace: bool,
    /// Most routers of a mesh, at least 3; 0 = 100. The same seed with another bound is another run.
    pub most_nodes: usize,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Routers at the start.
    pub nodes: usize,
    /// Requests that came.
    pub requests: usize,
    /// Most hosts that one request was sent to.
    pub most_sends: u32,
    /// Hash of all that happened.
    pub hash: u64,
    /// The first invariant that did not hold.
    pub violation: Option<String>,
    /// What happened, where it was kept.
    pub lines: Vec<String>,
}

impl Report {
    /// Says what was violated and how to see it again.
    pub fn complaint(&self, options: &Options) -> Option<String> {
        let what = self.violation.as_ref()?;
        let mut broken = options.breakage.map(|breakage| format!(" --break {breakage}")).unwrap_or_default();
        if options.most_nodes > 0 {
            broken += &format!(" --most-nodes {}", options.most_nodes);
        }
        let seed = self.seed;
        Some(format!(
            "seed {seed}, {what}\n  cargo run --release -p shoal-sim -- --seed {seed} --trace{broken}"
        ))
    }
}

/// Runs one seed.
pub fn run(seed: u64, options: &Options) -> Report {
    // An Instant has no other origin; only differences count.
    let mut world = world::World::new(seed, Instant::now(), options);
    world.run();
    Report {
        seed,
        nodes: world.scenario.nodes,
        requests: world.clients.len(),
        most_sends: world.most_sends,
        hash: world.trace.hash(),
        violation: world.violation.clone(),
        lines: world.trace.lines(true),
    }
}

/// Runs seeds from `first` on, on `jobs` threads, until `count` are done or one in `stop_after` violations was found;
/// returns the reports of those that violated something, and the number of requests of all.
pub fn run_many(
    first: u64,
    count: u64,
    jobs: usize,
    stop_after: usize,
    options: &Options,
) -> (Vec<Report>, u64) {
    let (next, requests) = (AtomicU64::new(0), AtomicU64::new(0));
    let found: Mutex<Vec<Report>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let enough = found.lock().unwrap_or_else(PoisonError::into_inner).len() >= stop_after;
                    if at >= count || enough {
                        return;
                    }
                    let report = run(first + at, options);
                    requests.fetch_add(report.requests as u64, Ordering::Relaxed);
                    if report.violation.is_some() {
                        found.lock().unwrap_or_else(PoisonError::into_inner).push(report);
                    }
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by_key(|report| report.seed);
    (found, requests.into_inner())
}
