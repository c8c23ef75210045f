//! Turns judged answers into a pack, and says how much the prompt's features are worth.
//!
//! Deterministic: equal rows in equal order give equal bytes. A random fifth of the rows (by a fixed seed) is held
//! out for the report and then trained on too.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_routing::bandit::{Discriminant, Posterior};
use shoal_routing::{ArmEvidence, ArmId, Features, Pack, QualitySums, Score};

use super::rows::Row;
use super::{of_arms, size_of};

/// Share of the rows that is held out.
const HELD_OUT: f64 = 0.2;

/// Seed of the dealing.
const SEED: u64 = 20;

/// What training says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Arms, by name.
    pub arms: Vec<ArmReport>,
    /// Prompts of the held-out fifth for which every arm's score is known: only these show what choosing is worth.
    pub compared: Option<Compared>,
}

/// One arm of a report.
#[derive(Debug, Clone, PartialEq)]
pub struct ArmReport {
    /// Its name.
    pub arm: ArmId,
    /// Judged answers.
    pub judged: usize,
    /// Their mean score.
    pub mean: f64,
    /// Share of the held-out squared error of the arm's mean that the features explain; below 0 they mislead.
    pub explained: Option<f64>,
}

/// Mean scores on the held-out prompts that every arm answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compared {
    /// Prompts.
    pub prompts: usize,
    /// Taking the arm that is expected to do best, whatever it costs.
    pub chosen: f64,
    /// Always the arm that was best in training.
    pub best_fixed: f64,
    /// The best answer to each prompt.
    pub oracle: f64,
}

/// Makes a pack of rows. With `classes_only` it holds no single arm.
pub fn train(rows: &[Row], classes_only: bool) -> (Pack, Report) {
    let mut rng = StdRng::seed_from_u64(SEED);
    let held: Vec<bool> = rows.iter().map(|_| rng.random::<f64>() < HELD_OUT).collect();
    let part =
        |wanted: bool| rows.iter().zip(&held).filter(move |(_, held)| **held == wanted).map(|(row, _)| row);
    let report = report(rows, &sums(part(false)), &part(true).collect::<Vec<_>>());
    let evidence = |(arm, quality)| (arm, ArmEvidence { quality, ..ArmEvidence::default() });
    let mut pack = of_arms(sums(rows.iter()).into_iter().map(evidence).collect());
    if classes_only {
        pack.arms.clear();
    }
    (pack, report)
}

fn sums<'a>(rows: impl Iterator<Item = &'a Row>) -> BTreeMap<ArmId, QualitySums> {
    let mut sums: BTreeMap<ArmId, QualitySums> = BTreeMap::new();
    for row in rows {
        for (arm, score) in &row.scores {
            sums.entry(arm.clone()).or_default().record(&row.features, *score);
        }
    }
    sums
}

fn report(rows: &[Row], trained: &BTreeMap<ArmId, QualitySums>, held: &[&Row]) -> Report {
    let posterior = Posterior::default().with_qualities(Discriminant::fit(trained));
    let believed = |arm: &ArmId, features: &Features| {
        posterior.answer(arm, size_of(arm), &posterior.qualities().place(features)).mean
    };
    let names: std::collections::BTreeSet<&ArmId> = rows.iter().flat_map(|row| row.scores.keys()).collect();
    let arms = names.iter().map(|arm| {
        let scores: Vec<f64> =
            rows.iter().filter_map(|row| row.scores.get(*arm)).map(|s| s.value()).collect();
        let mean = trained.get(*arm).and_then(QualitySums::mean);
        let (mut plain, mut featured) = (0.0, 0.0);
        for (row, score) in held.iter().filter_map(|row| Some((row, row.scores.get(*arm)?))) {
            plain += (score.value() - mean.unwrap_or(0.5)).powi(2);
            featured += (score.value() - believed(arm, &row.features)).powi(2);
        }
        ArmReport {
            arm: (*arm).clone(),
            judged: scores.len(),
            mean: scores.iter().sum::<f64>() / scores.len().max(1) as f64,
            explained: (plain > 0.0 && mean.is_some()).then(|| 1.0 - featured / plain),
        }
    });
    Report { arms: arms.collect(), compared: compared(&names, trained, held, believed) }
}

fn compared(
    names: &std::collections::BTreeSet<&ArmId>,
    trained: &BTreeMap<ArmId, QualitySums>,
    held: &[&Row],
    believed: impl Fn(&ArmId, &Features) -> f64,
) -> Option<Compared> {
    let full: Vec<&&Row> = held.iter().filter(|row| row.scores.len() == names.len()).collect();
    let mean_of = |arm: &ArmId| trained.get(arm).and_then(QualitySums::mean).unwrap_or_default();
    let fixed = names.iter().max_by(|a, b| mean_of(a).total_cmp(&mean_of(b)))?;
    if full.is_empty() || names.len() < 2 {
        return None;
    }
    let mean = |score: &dyn Fn(&Row) -> Score| {
        full.iter().map(|row| score(row).value()).sum::<f64>() / full.len() as f64
    };
    let chosen = |row: &Row| {
        let best = row
            .scores
            .keys()
            .max_by(|a, b| believed(a, &row.features).total_cmp(&believed(b, &row.features)));
        best.map_or(Score::ZERO, |arm| row.scores[arm])
    };
    let best = |row: &Row| row.scores.values().copied().reduce(|a, b| if b > a { b } else { a });
    Some(Compared {
        prompts: full.len(),
        chosen: mean(&chosen),
        best_fixed: mean(&|row| row.scores[*fixed]),
        oracle: mean(&|row| best(row).unwrap_or(Score::ZERO)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two arms, each good where the other is not; `at` is the first dimension of the embedding.
    fn rows(count: usize) -> Vec<Row> {
        let mut rng = StdRng::seed_from_u64(1);
        (0..count)
            .map(|_| {
                let at: f64 = rng.random_range(-1.7..1.7);
                let mut values = *Features::default().values();
                values[1] = at;
                let score = |good: bool| Score::clamped(if good { 1.0 } else { 0.0 });
                let scores = [
                    (ArmId::new("left-8b", None), score(at < 0.2)),
                    (ArmId::new("right-70b", None), score(at > 0.0)),
                ];
                Row { features: Features::from_values(values).unwrap(), scores: scores.into() }
            })
            .collect()
    }

    #[test]
    fn training_finds_who_is_good_at_what_and_says_so_beside_the_best_fixed_arm() {
        let (pack, report) = train(&rows(2_000), false);
        assert!(pack.is_plausible());
        assert_eq!((pack.arms.len(), pack.classes.0.len()), (2, 2));
        let compared = report.compared.unwrap();
        assert!(compared.chosen > compared.best_fixed + 0.2, "{compared:?}");
        assert!(compared.oracle >= compared.chosen);
        assert!(report.arms.iter().all(|arm| arm.judged == 2_000 && arm.explained.unwrap() > 0.2));
    }

    #[test]
    fn training_is_repeatable_and_can_leave_single_arms_out() {
        assert_eq!(train(&rows(300), false), train(&rows(300), false));
        assert!(train(&rows(300), true).0.arms.is_empty());
    }

    #[test]
    fn one_arms_judgements_show_no_choice() {
        let mut rows = rows(200);
        rows.iter_mut().for_each(|row| {
            row.scores.pop_last();
        });
        assert_eq!(train(&rows, false).1.compared, None);
        assert!(train(&[], false).0.is_plausible());
    }
}
