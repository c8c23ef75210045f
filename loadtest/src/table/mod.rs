//! Routing against its rivals, in one table: what it costs, how long it takes, how often it is right, what it leaks.
//!
//! Played on public outcomes that every model's answer is known for, so that always-cloud, always-local, keyword rules,
//! an oracle and the best fixed mix stand beside what a node does, on the same requests. A node learns from the outcome
//! of the model it chose and from nothing else: first over the training part, then on through the requests that are
//! counted. Whole domains are missing from the training part. All is drawn from a seed, so each run prints the same.

mod ours;
mod print;
mod rivals;
mod rows;
mod tally;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use shoal_routing::Preference;

use self::ours::Learnt;
use self::rows::Set;
use self::tally::Tally;

pub use self::print::Table;

/// Sets of outcomes by file name, with what people call them.
const SETS: [(&str, &str); 2] = [("routellm_mmlu", "MMLU"), ("mmlupro12", "MMLU-Pro")];

/// Preferences that a caller may have; the first one is what `auto` means.
const PREFERENCES: [(Preference, &str); 3] =
    [(Preference::Balanced, "auto"), (Preference::Cheap, "auto:cheap"), (Preference::Best, "auto:best")];

/// Share of requests to the cloud at which the ceiling of two models is told: that of a published claim.
const CEILING_CALLS: f64 = 0.143;

/// What to play.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder `data` of the repository.
    pub data: PathBuf,
    /// Splits to play and average, 1 or more.
    pub splits: u32,
    /// Seed of the first split; the others count up from it.
    pub seed: u64,
}

/// Plays every policy over every set.
///
/// # Errors
/// Whatever is wrong with the files.
pub fn play(options: &Options) -> Result<Table> {
    ensure!(options.splits > 0, "no split to play");
    let sets = SETS
        .iter()
        .map(|(file, name)| {
            let set = Set::read(&options.data.join("routing"), file, name)?;
            Ok(SetTable::play(&set, options))
        })
        .collect::<Result<_>>()?;
    Ok(Table { splits: options.splits, seed: options.seed, sets })
}

/// One policy's line: what it came to over all splits.
#[derive(Debug)]
struct Line {
    policy: String,
    total: Tally,
    /// Points of accuracy above the best fixed mix at the same cost, split by split; empty for rivals.
    above: Vec<f64>,
}

/// The lines of one set.
#[derive(Debug)]
struct SetTable {
    name: String,
    models: usize,
    local: String,
    cloud: String,
    ceiling: rivals::Ceiling,
    lines: Vec<Line>,
}

impl SetTable {
    fn play(set: &Set, options: &Options) -> Self {
        let mut lines: Vec<Line> = Vec::new();
        let mut locals = Vec::new();
        for split in 0..u64::from(options.splits) {
            let seed = options.seed.wrapping_add(split);
            let part = set.split(seed);
            let local = rivals::best_local(set, &part.train);
            locals.push(local);
            let mut note = |at: usize, policy: &str, tally: Tally, above: Option<f64>| {
                if lines.len() == at {
                    lines.push(Line {
                        policy: policy.to_owned(),
                        total: Tally::default(),
                        above: Vec::new(),
                    });
                }
                lines[at].total.merge(&tally);
                lines[at].above.extend(above);
            };
            let fixed = |arm: usize| Tally::of(set, &part.stream, |_| vec![(arm, 1.0)]);
            note(0, "always cloud", fixed(set.cloud), None);
            note(1, "always local", fixed(local), None);
            let rules = Tally::of(set, &part.stream, |asked| {
                let hard = rivals::looks_hard(&set.rows[asked.row]);
                vec![(if hard { set.cloud } else { local }, 1.0)]
            });
            note(2, "keyword rules", rules, None);
            let oracle = |asked: &rows::Asked| vec![(rivals::oracle(set, &set.rows[asked.row]), 1.0)];
            note(3, "oracle", Tally::of(set, &part.stream, oracle), None);
            let learnt = Learnt::from_training(set, &part.train, seed);
            for (place, (preference, word)) in PREFERENCES.into_iter().enumerate() {
                let choices = learnt.clone().serve(set, &part.stream, preference, seed);
                let mut next = choices.iter();
                let ours = Tally::of(set, &part.stream, |_| {
                    next.next().map(|arm| (*arm, 1.0)).into_iter().collect()
                });
                let mix = rivals::best_mix(set, &part.stream, ours.mean_cost());
                let mix = Tally::of(set, &part.stream, |_| mix.clone());
                let lot = rivals::lot(set, &part.stream, local, ours.mean_cost());
                let lot = Tally::of(set, &part.stream, |_| lot.clone());
                let above = 100.0 * (ours.accuracy() - mix.accuracy());
                let at = 4 + 3 * place;
                note(at, &format!("ours, {word}"), ours, Some(above));
                note(at + 1, "best fixed mix at that cost", mix, None);
                note(at + 2, "local or cloud by lot at that cost", lot, None);
            }
        }
        locals.sort_unstable();
        locals.dedup();
        let names: Vec<&str> = locals.iter().map(|arm| set.arms[*arm].id.as_str()).collect();
        Self {
            name: set.name.clone(),
            models: set.arms.len(),
            local: names.join(" or "),
            cloud: set.arms[set.cloud].id.as_str().to_owned(),
            ceiling: rivals::ceiling(set, CEILING_CALLS),
            lines,
        }
    }
}
