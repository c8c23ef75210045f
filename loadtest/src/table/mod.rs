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

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use shoal_routing::Preference;

use self::ours::Learnt;
use self::rows::{Asked, Set, Split};
use self::tally::Tally;

pub use self::print::Table;

/// Sets of outcomes by file name, with what people call them.
const SETS: [(&str, &str); 2] = [("routellm_mmlu", "MMLU"), ("mmlupro12", "MMLU-Pro")];

/// Preferences that a caller may have; the first one is what `auto` means.
const PREFERENCES: [(Preference, &str); 3] =
    [(Preference::Balanced, "auto"), (Preference::Cheap, "auto:cheap"), (Preference::Best, "auto:best")];

/// Share of requests to the cloud at which the ceiling of two models is told: that of a published claim.
const CEILING_CALLS: f64 = 0.143;

/// Lines of a set that come before the node's own.
const RIVALS: usize = 4;

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
    /// The same over the requests that may leave the devices: the mix is blind to the others' class.
    above_free: Vec<f64>,
}

impl Line {
    fn new(policy: &str) -> Self {
        Self { policy: policy.to_owned(), total: Tally::default(), above: Vec::new(), above_free: Vec::new() }
    }
}

/// A node's choices beside mixes by lot that cost as much.
struct Versus {
    ours: Tally,
    mix: Tally,
    lot: Tally,
}

impl Versus {
    fn play(set: &Set, stream: &[Asked], choices: &[usize], local: usize) -> Self {
        let mut choices = choices.iter();
        let ours = Tally::of(set, stream, |_| choices.next().map(|arm| (*arm, 1.0)).into_iter().collect());
        let mix = rivals::best_mix(set, stream, ours.mean_cost());
        let lot = rivals::lot(set, stream, local, ours.mean_cost());
        Self {
            ours,
            mix: Tally::of(set, stream, |_| mix.clone()),
            lot: Tally::of(set, stream, |_| lot.clone()),
        }
    }

    /// Returns the points of accuracy above the best fixed mix.
    fn points(&self) -> f64 {
        100.0 * (self.ours.accuracy() - self.mix.accuracy())
    }
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

/// Collects lines over splits, in the order of the first one.
#[derive(Default)]
struct Lines(Vec<Line>);

impl Lines {
    fn note(&mut self, at: usize, policy: &str, tally: &Tally) -> &mut Line {
        if self.0.len() == at {
            self.0.push(Line::new(policy));
        }
        let line = &mut self.0[at];
        line.total.merge(tally);
        line
    }

    /// Adds what the rivals come to that need no node.
    fn note_rivals(&mut self, set: &Set, stream: &[Asked], local: usize) {
        let row = |asked: &Asked| &set.rows[asked.row];
        let hard = |asked: &Asked| if rivals::looks_hard(row(asked)) { set.cloud } else { local };
        let sure = |arm| vec![(arm, 1.0)];
        self.note(0, "always cloud", &Tally::of(set, stream, |_| sure(set.cloud)));
        self.note(1, "always local", &Tally::of(set, stream, |_| sure(local)));
        self.note(2, "keyword rules", &Tally::of(set, stream, |asked| sure(hard(asked))));
        self.note(3, "oracle", &Tally::of(set, stream, |asked| sure(rivals::oracle(set, row(asked)))));
    }

    /// Adds what a node comes to for callers with each preference, and mixes that cost as much.
    fn note_ours(&mut self, set: &Set, part: &Split, local: usize, seed: u64) {
        let learnt = Learnt::from_training(set, &part.train, seed);
        for (place, (preference, word)) in PREFERENCES.into_iter().enumerate() {
            let choices = learnt.clone().serve(set, &part.stream, preference, seed);
            let (free, free_choices): (Vec<Asked>, Vec<usize>) =
                part.stream.iter().zip(&choices).filter(|(asked, _)| !asked.restricted).unzip();
            let all = Versus::play(set, &part.stream, &choices, local);
            let free = Versus::play(set, &free, &free_choices, local);
            let at = RIVALS + 3 * place;
            let line = self.note(at, &format!("ours, {word}"), &all.ours);
            line.above.push(all.points());
            line.above_free.push(free.points());
            self.note(at + 1, "best fixed mix at that cost", &all.mix);
            self.note(at + 2, "local or cloud by lot at that cost", &all.lot);
        }
    }
}

impl SetTable {
    fn play(set: &Set, options: &Options) -> Self {
        let mut lines = Lines::default();
        let mut locals = BTreeSet::new();
        for split in 0..u64::from(options.splits) {
            let seed = options.seed.wrapping_add(split);
            let part = set.split(seed);
            let local = rivals::best_local(set, &part.train);
            locals.insert(local);
            lines.note_rivals(set, &part.stream, local);
            lines.note_ours(set, &part, local, seed);
        }
        let names: Vec<&str> = locals.iter().map(|arm| set.arms[*arm].id.as_str()).collect();
        Self {
            name: set.name.clone(),
            models: set.arms.len(),
            local: names.join(" or "),
            cloud: set.arms[set.cloud].id.as_str().to_owned(),
            ceiling: rivals::ceiling(set, CEILING_CALLS),
            lines: lines.0,
        }
    }
}
