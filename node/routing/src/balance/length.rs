//! How long answers turn out to be: by model, by what the prompt wants done, and by the bound that was asked for.
//!
//! The time of an answer is mostly its length, and models differ in it by a factor of ten: a small one says yes, one
//! that thinks fills pages. Means that fade, each drawn towards a coarser one by a few answers' weight: of an answer's own
//! kind, of all with such a bound, of all of the model, of all chat traffic.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::profile::Task;
use crate::units::Tokens;

/// Answers that a mean remembers.
const MEMORY: f64 = 64.0;

/// Answers that the coarser mean weighs.
const DRAWN: f64 = 4.0;

/// Bounds, in tokens, up to which answers are counted together; above, and without one, is a kind of its own.
const BOUNDS: [u32; 3] = [64, 256, 1_024];

/// Most models of which lengths are remembered.
const MODELS: usize = 256;

/// What is known of an answer's length before it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    /// What the prompt wants done.
    pub(super) task: Task,
    /// Longest answer that was asked for.
    pub(super) most: Option<Tokens>,
}

impl Kind {
    fn bound(&self) -> usize {
        let most = self.most.map_or(u32::MAX, |most| most.0);
        BOUNDS.iter().position(|bound| most <= *bound).unwrap_or(BOUNDS.len())
    }
}

/// Lengths of the answers of all models.
#[derive(Debug, Default)]
pub(super) struct Lengths {
    models: BTreeMap<Arc<str>, Model>,
}

#[derive(Debug, Default)]
struct Model {
    all: Mean,
    bounds: [Mean; BOUNDS.len() + 1],
    kinds: [[Mean; Task::ALL.len()]; BOUNDS.len() + 1],
}

#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    weight: f64,
    sum: f64,
}

impl Mean {
    fn add(&mut self, tokens: f64) {
        let keep = 1.0 - 1.0 / MEMORY;
        (self.weight, self.sum) = (self.weight * keep + 1.0, self.sum * keep + tokens);
    }

    fn drawn_to(&self, coarser: f64) -> f64 {
        (self.sum + DRAWN * coarser) / (self.weight + DRAWN)
    }
}

impl Lengths {
    /// Takes in the length of a whole answer.
    pub(super) fn record(&mut self, model: &Arc<str>, kind: Kind, tokens: Tokens) {
        if !self.models.contains_key(model) && self.models.len() >= MODELS {
            return;
        }
        let (known, tokens) = (self.models.entry(model.clone()).or_default(), f64::from(tokens.0));
        known.all.add(tokens);
        known.bounds[kind.bound()].add(tokens);
        known.kinds[kind.bound()][kind.task as usize].add(tokens);
    }

    /// Returns the length to expect; `typical` is what is expected of a model of which nothing is known.
    pub(super) fn expected(&self, model: &str, kind: Kind, typical: f64) -> f64 {
        let most = kind.most.map_or(f64::INFINITY, |most| f64::from(most.0));
        let learnt = self.models.get(model).map_or(typical, |known| {
            let all = known.all.drawn_to(typical);
            let bound = known.bounds[kind.bound()].drawn_to(all.min(most));
            known.kinds[kind.bound()][kind.task as usize].drawn_to(bound)
        });
        learnt.min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(task: Task, most: u32) -> Kind {
        Kind { task, most: (most > 0).then_some(Tokens(most)) }
    }

    #[test]
    fn lengths_are_learnt_by_model_task_and_bound() {
        let (mut lengths, short, long): (_, Arc<str>, Arc<str>) =
            (Lengths::default(), "tiny".into(), "thinks".into());
        for _ in 0..60 {
            lengths.record(&short, kind(Task::Chat, 0), Tokens(20));
            lengths.record(&long, kind(Task::Chat, 0), Tokens(900));
            lengths.record(&long, kind(Task::Code, 0), Tokens(3_000));
            lengths.record(&long, kind(Task::Chat, 200), Tokens(200));
        }
        let expected = |model: &str, task, most| lengths.expected(model, kind(task, most), 256.0);
        assert!((20.0..45.0).contains(&expected("tiny", Task::Chat, 0)));
        assert!((850.0..1_100.0).contains(&expected("thinks", Task::Chat, 0)));
        assert!((2_600.0..3_000.0).contains(&expected("thinks", Task::Code, 0)));
        assert!((190.0..=200.0).contains(&expected("thinks", Task::Chat, 200)));
        assert_eq!(expected("thinks", Task::Code, 10), 10.0, "never more than was asked for");
        assert_eq!(expected("unknown", Task::Chat, 0), 256.0);
        let elsewhere = expected("thinks", Task::Translate, 0);
        assert!((900.0..2_500.0).contains(&elsewhere), "a task never seen goes by the model: {elsewhere}");
    }

    #[test]
    fn a_change_is_noticed_and_the_number_of_models_bounded() {
        let (mut lengths, model): (_, Arc<str>) = (Lengths::default(), "m".into());
        (0..200).for_each(|_| lengths.record(&model, kind(Task::Chat, 0), Tokens(100)));
        (0..200).for_each(|_| lengths.record(&model, kind(Task::Chat, 0), Tokens(500)));
        assert!(lengths.expected("m", kind(Task::Chat, 0), 256.0) > 450.0);
        for n in 0..2 * MODELS {
            lengths.record(&n.to_string().into(), kind(Task::Chat, 0), Tokens(1));
        }
        assert_eq!(lengths.models.len(), MODELS);
    }
}
