//! Balancing in virtual time: traces of real traffic over unequal devices, the node's balancer beside its rivals.
//!
//! The balancer is the one that a node runs ([`shoal_routing::Balancer`] and [`shoal_routing::LoadBook`]), fed as a
//! node feeds it: with news that is half a second old, by three routers that do not see each other's requests.

pub mod device;
pub mod play;
pub mod policy;
pub mod trace;

mod summary;

use std::path::PathBuf;

use anyhow::Result;

pub use self::summary::{Report, Row};
use self::{device::Kind, play::Play, policy::Policy};

/// Traces that are played, by file name without `.csv.gz`.
pub const TRACES: [&str; 3] = ["azure2023_conv", "mooncake_conversation", "mooncake_synthetic"];

/// Six unequal devices: the slow one takes ten times as long as the laptop, the phone comes and goes.
pub const FLEET: [Kind; 6] = [
    Kind { name: "workstation", slots: 8, prefill_per_s: 4_000.0, token_s: 0.012, crowd: 0.08, flaps: None },
    Kind { name: "gpu box", slots: 4, prefill_per_s: 3_000.0, token_s: 0.015, crowd: 0.1, flaps: None },
    Kind { name: "desktop", slots: 4, prefill_per_s: 1_500.0, token_s: 0.02, crowd: 0.15, flaps: None },
    Kind { name: "laptop", slots: 2, prefill_per_s: 1_000.0, token_s: 0.025, crowd: 0.25, flaps: None },
    Kind { name: "slow box", slots: 2, prefill_per_s: 100.0, token_s: 0.25, crowd: 0.25, flaps: None },
    Kind {
        name: "flapping",
        slots: 2,
        prefill_per_s: 800.0,
        token_s: 0.03,
        crowd: 0.3,
        flaps: Some((60.0, 30.0)),
    },
];

/// What is played.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder of the traces.
    pub traces: PathBuf,
    /// Seeds to play, from `seed` on.
    pub seeds: u32,
    /// The first seed.
    pub seed: u64,
    /// Requests of each run.
    pub requests: usize,
    /// Shares of the fleet's capacity that arrive on average.
    pub loads: Vec<f64>,
}

/// Plays every trace at every load under every policy.
///
/// # Errors
/// When a trace cannot be read.
pub fn play(options: &Options) -> Result<Report> {
    let mut report = Report::new(options);
    for name in TRACES {
        let trace = trace::read(&options.traces.join(format!("{name}.csv.gz")))?;
        let mean = |of: fn(&trace::Arrival) -> u32| {
            trace.iter().map(|arrival| f64::from(of(arrival))).sum::<f64>() / trace.len() as f64
        };
        let (prompt, output) = (mean(|arrival| arrival.prompt), mean(|arrival| arrival.output));
        let capacity: f64 = FLEET.iter().map(|kind| kind.capacity(prompt, output)).sum();
        for load in &options.loads {
            let mut runs = Vec::new();
            for seed in (options.seed..).take(options.seeds as usize) {
                let spare = trace.len().saturating_sub(options.requests);
                // Windows spread over the trace, by a step that has no factor in common with most lengths.
                let offset = if spare == 0 { 0 } else { (seed as usize).wrapping_mul(7_919) % spare };
                let arrivals = trace::window(&trace, offset, options.requests, load * capacity);
                let run = Play { fleet: &FLEET, arrivals: &arrivals, seed };
                runs.push(Policy::ALL.map(|policy| run.run(policy)));
            }
            report.add(name, *load, load * capacity, &runs);
        }
    }
    Ok(report)
}
