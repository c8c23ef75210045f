//! The table as Markdown for people and as JSON for programs.

use std::fmt;

use serde_json::{Value, json};

use super::tally::Tally;
use super::{Line, SetTable};

/// Every policy over every set; its `Display` is Markdown.
#[derive(Debug)]
pub struct Table {
    pub(super) splits: u32,
    pub(super) seed: u64,
    pub(super) sets: Vec<SetTable>,
}

impl Table {
    /// Returns the table as one JSON object.
    pub fn json(&self) -> Value {
        let sets: Vec<Value> = self.sets.iter().map(SetTable::json).collect();
        json!({ "splits": self.splits, "seed": self.seed, "sets": sets })
    }

    fn mean_a_split(&self, sum: f64) -> f64 {
        sum / f64::from(self.splits)
    }
}

impl SetTable {
    fn json(&self) -> Value {
        let cloud = self.cloud_cost();
        let lines: Vec<Value> = self.lines.iter().map(|line| line.json(cloud)).collect();
        let ceiling = &self.ceiling;
        json!({
            "set": self.name, "models": self.models, "local": self.local, "cloud": self.cloud, "policies": lines,
            "ceiling": {
                "calls": ceiling.calls, "local": ceiling.local, "most": ceiling.most, "useful_calls": ceiling.useful,
            },
        })
    }

    fn cloud_cost(&self) -> f64 {
        self.lines.first().map_or(0.0, |line| line.total.mean_cost())
    }
}

impl Line {
    fn json(&self, cloud_cost: f64) -> Value {
        let total = &self.total;
        json!({
            "policy": self.policy,
            "requests": total.requests().round(),
            "cost_share": share_of(total, cloud_cost),
            "usd_per_1000": total.mean_cost() / 1e3,
            "latency_ms": total.mean_latency_ms(),
            "accuracy": total.accuracy(),
            "accuracy_unseen_domains": total.unseen_accuracy(),
            "restricted": total.restricted.round(),
            "restricted_leaked": total.leaked,
            "points_above_best_fixed_mix": self.above,
            "points_above_best_fixed_mix_unrestricted": self.above_free,
        })
    }
}

/// Returns a policy's cost as a share of the cloud's.
fn share_of(total: &Tally, cloud_cost: f64) -> f64 {
    if cloud_cost > 0.0 { total.mean_cost() / cloud_cost } else { 0.0 }
}

/// Writes the mean over splits with the least and the most.
fn spread(points: &[f64]) -> String {
    let mean = points.iter().sum::<f64>() / points.len().max(1) as f64;
    let least = points.iter().copied().fold(f64::INFINITY, f64::min);
    let most = points.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{mean:+.1} ({least:+.1} to {most:+.1} by split)")
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| outcomes | policy | share of the cloud's cost | USD per 1,000 | latency | right | in unseen domains | restricted leaked |"
        )?;
        writeln!(f, "|---|---|--:|--:|--:|--:|--:|--:|")?;
        for set in &self.sets {
            let cloud = set.cloud_cost();
            for line in &set.lines {
                let total = &line.total;
                writeln!(
                    f,
                    "| {}, {} models | {} | {:.1} % | {:.3} | {:.1} s | {:.1} % | {:.1} % | {:.0} of {:.0} |",
                    set.name,
                    set.models,
                    line.policy,
                    100.0 * share_of(total, cloud),
                    total.mean_cost() / 1e3,
                    total.mean_latency_ms() / 1e3,
                    100.0 * total.accuracy(),
                    100.0 * total.unseen_accuracy(),
                    self.mean_a_split(total.leaked),
                    self.mean_a_split(total.restricted),
                )?;
            }
        }
        for set in &self.sets {
            let requests = set.lines.first().map_or(0.0, |line| self.mean_a_split(line.total.requests()));
            writeln!(
                f,
                "\n{}: local is {}, cloud is {}; means over {} splits (seeds from {}) of {requests:.0} requests each.\n",
                set.name, set.local, set.cloud, self.splits, self.seed,
            )?;
            for line in set.lines.iter().filter(|line| !line.above.is_empty()) {
                writeln!(
                    f,
                    "- {} against the best fixed mix at its cost: {} points; {} over the requests that may leave the devices.",
                    line.policy,
                    spread(&line.above),
                    spread(&line.above_free),
                )?;
            }
            let ceiling = &set.ceiling;
            writeln!(
                f,
                "- Two models: at most {:.1} % at {:.1} % calls (local alone {:.1} %; an oracle has a use for {:.1} % calls).",
                100.0 * ceiling.most,
                100.0 * ceiling.calls,
                100.0 * ceiling.local,
                100.0 * ceiling.useful,
            )?;
        }
        Ok(())
    }
}
