//! The runs side by side: percentiles over the seeds, and how far each policy is from perfect knowledge.

use std::fmt;

use serde_json::{Value, json};

use super::Options;
use super::play::Played;
use super::policy::Policy;

/// One policy on one trace at one load.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// File name of the trace.
    pub trace: &'static str,
    /// Share of the fleet's capacity that arrives.
    pub load: f64,
    /// Requests a second.
    pub per_s: f64,
    /// Who chose.
    pub policy: Policy,
    /// Seconds to completion, 50th, 95th and 99th percentile: means over the seeds.
    pub percentiles_s: [f64; 3],
    /// The 99th percentile as a multiple of that of perfect knowledge: mean over the seeds, and the worst seed's.
    pub against_perfect: [f64; 2],
    /// Shares of answers cut after their first token, and of requests that failed before it.
    pub cut: f64,
    /// See [`cut`](Self::cut).
    pub failed: f64,
}

/// All rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// In the order in which they were played.
    pub rows: Vec<Row>,
    seeds: u32,
    requests: usize,
}

impl Report {
    pub(super) fn new(options: &Options) -> Self {
        Self { rows: Vec::new(), seeds: options.seeds, requests: options.requests }
    }

    /// Adds the rows of one trace and load; `runs` holds the policies' runs in the order of [`Policy::ALL`].
    pub(super) fn add(
        &mut self,
        trace: &'static str,
        load: f64,
        per_s: f64,
        runs: &[[Played; Policy::ALL.len()]],
    ) {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        for (index, policy) in Policy::ALL.into_iter().enumerate() {
            let over_seeds =
                |of: &dyn Fn(&[Played]) -> f64| -> Vec<f64> { runs.iter().map(|run| of(run)).collect() };
            let at = |share: f64| over_seeds(&|run| percentile(&run[index].completion_s, share));
            let ratios = over_seeds(&|run| {
                percentile(&run[index].completion_s, 0.99) / percentile(&run[0].completion_s, 0.99)
            });
            let share = |of: fn(&Played) -> u32| {
                let all = |played: &Played| {
                    played.completion_s.len() as f64 + f64::from(played.cut + played.failed)
                };
                mean(&over_seeds(&|run| f64::from(of(&run[index])) / all(&run[index]).max(1.0)))
            };
            self.rows.push(Row {
                trace,
                load,
                per_s,
                policy,
                percentiles_s: [0.5, 0.95, 0.99].map(|share| mean(&at(share))),
                against_perfect: [mean(&ratios), ratios.iter().copied().fold(0.0, f64::max)],
                cut: share(|played| played.cut),
                failed: share(|played| played.failed),
            });
        }
    }

    /// The rows for programs.
    pub fn json(&self) -> Value {
        let row = |row: &Row| {
            json!({
                "trace": row.trace, "load": row.load, "per_s": row.per_s, "policy": row.policy.to_string(),
                "p50_s": row.percentiles_s[0], "p95_s": row.percentiles_s[1], "p99_s": row.percentiles_s[2],
                "p99_against_perfect": row.against_perfect[0], "p99_against_perfect_worst_seed": row.against_perfect[1],
                "cut": row.cut, "failed": row.failed,
            })
        };
        json!({ "seeds": self.seeds, "requests": self.requests, "rows": self.rows.iter().map(row).collect::<Vec<_>>() })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} seeds of {} requests each; seconds to completion, means over the seeds\n",
            self.seeds, self.requests
        )?;
        writeln!(
            f,
            "| trace | load | policy | p50 | p95 | p99 | p99 against perfect | worst seed | cut | failed |"
        )?;
        writeln!(f, "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|")?;
        for row in &self.rows {
            let [p50, p95, p99] = row.percentiles_s;
            let [ratio, worst] = row.against_perfect;
            writeln!(
                f,
                "| {} | {:.0} % ({:.2}/s) | {} | {p50:.1} | {p95:.1} | {p99:.1} | {ratio:.2} | {worst:.2} | {:.2} % | {:.2} % |",
                row.trace,
                row.load * 100.0,
                row.per_s,
                row.policy,
                row.cut * 100.0,
                row.failed * 100.0,
            )?;
        }
        Ok(())
    }
}

/// Returns the nearest-rank percentile; infinite when nothing was completed.
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(
            [0.5, 0.95, 0.99, 1.0].map(|share| percentile(&values, share)),
            [100.0, 190.0, 198.0, 200.0]
        );
        assert_eq!(percentile(&[], 0.99), f64::INFINITY);
    }
}
