//! What another policy would have earned on this node's own decisions.
//!
//! The decision log is the request history: which models were weighed at which price, which was chosen with what
//! probability, what the prompt looked like, and the score that a client gave. Whatever the policy or the pack, it is
//! shown each decision with what could be known without it: the log is cut in two, each half is decided with the
//! judgements of the other half and of other nodes. So a policy cannot remember the answers, and the present policy
//! is measured by the same rule as the one that might replace it.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use shoal_routing::bandit::Placed;
use shoal_routing::bandit::offpolicy::{Estimate, Evaluation, Logged};
use shoal_routing::{
    ArmId, ArmStats, ArmView, ClassPriors, Discriminant, Features, MicroUsd, Pack, Posterior, QualitySums,
    SizeClass, Thompson,
};

use crate::feedback::Learnt;
use crate::store::Decided;

/// Parts that the log is cut in.
const FOLDS: usize = 2;

/// Most decisions of an evaluation, the newest: a few seconds of work.
pub const MAX_DECISIONS: usize = 50_000;

/// A way of choosing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// As a node does.
    Thompson,
    /// The highest expected utility.
    Greedy,
    /// One mean per model, blind to the prompt.
    Blind,
    /// Any model.
    Random,
    /// Always this arm or model, where it may be chosen; else as a node does.
    Fixed(String),
}

impl std::str::FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "thompson" => Ok(Self::Thompson),
            "greedy" => Ok(Self::Greedy),
            "blind" => Ok(Self::Blind),
            "random" => Ok(Self::Random),
            other => match other.strip_prefix("fixed:") {
                Some(model) if !model.is_empty() => Ok(Self::Fixed(model.to_owned())),
                _ => Err(format!(
                    "'{other}' is no policy; one of thompson, greedy, blind, random, fixed:MODEL"
                )),
            },
        }
    }
}

/// What is known besides the log itself.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Judgements of other nodes.
    pub others: BTreeMap<ArmId, QualitySums>,
    /// The priors that the node uses now.
    pub present: Pack,
}

impl Known {
    /// Takes what other nodes judged out of a snapshot.
    pub fn of(learnt: &Learnt, me: &str, present: Pack) -> Self {
        let mut others: BTreeMap<ArmId, QualitySums> = BTreeMap::new();
        for state in learnt.origins.iter().filter(|state| *state.origin != *me && !state.flagged) {
            for (arm, evidence) in &state.testimony.arms {
                others.entry(arm.clone()).or_default().add(&evidence.quality, 1.0);
            }
        }
        Self { others, present }
    }
}

/// A policy to be measured.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// How it chooses.
    pub choice: Choice,
    /// The priors that it would use.
    pub pack: Pack,
}

/// What a policy is estimated to earn.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// In quality less price and waiting, at the rate of exchange of each request: what the router maximises.
    pub utility: Evaluation,
    /// In plain scores.
    pub quality: Evaluation,
    /// Share of the decisions that would go to each arm.
    pub shares: BTreeMap<ArmId, f64>,
}

/// Evaluates a policy; `None` if no decision of the log can be used.
pub fn evaluate(log: &[Decided], known: &Known, candidate: &Candidate) -> Option<Verdict> {
    let mut utility = Vec::with_capacity(log.len());
    let mut quality = Vec::with_capacity(log.len());
    let mut shares: BTreeMap<ArmId, f64> = BTreeMap::new();
    for fold in 0..FOLDS {
        let elsewhere =
            || log.iter().enumerate().filter(move |(at, _)| at % FOLDS != fold).map(|(_, row)| row);
        let model = Beliefs::new(known, elsewhere(), &known.present, false);
        let target = Beliefs::new(known, elsewhere(), &candidate.pack, candidate.choice == Choice::Blind);
        for (at, row) in log.iter().enumerate().filter(|(at, _)| at % FOLDS == fold) {
            let Some(logged) = row.considered.iter().position(|seen| seen.arm == row.arm) else { continue };
            let chances = target.chances(row, &candidate.choice, at as u64);
            let expected: Vec<f64> = model.means(row);
            let entry = |price: f64| {
                let worth = |at: usize| expected[at] - price * row.considered[at].penalty;
                Logged {
                    propensity: row.propensity,
                    reward: row.score.value() - price * row.considered[logged].penalty,
                    target: chances[logged].min(1.0),
                    modelled: worth(logged),
                    expected: chances.iter().enumerate().map(|(at, chance)| chance * worth(at)).sum(),
                }
            };
            utility.push(entry(1.0));
            quality.push(entry(0.0));
            for (seen, chance) in row.considered.iter().zip(&chances) {
                *shares.entry(seen.arm.clone()).or_default() += chance / log.len() as f64;
            }
        }
    }
    Some(Verdict { utility: Evaluation::of(&utility)?, quality: Evaluation::of(&quality)?, shares })
}

/// What would be believed without the decisions of one fold.
struct Beliefs {
    posterior: Posterior,
    blind: bool,
}

impl Beliefs {
    fn new<'a>(known: &Known, log: impl Iterator<Item = &'a Decided>, pack: &Pack, blind: bool) -> Self {
        let mut sums = known.others.clone();
        for row in log {
            let features = if blind { Features::default() } else { row.features };
            sums.entry(row.arm.clone()).or_default().record(&features, row.score);
        }
        for arm in pack.arms.keys() {
            if let Some(prior) = pack.prior_of(arm) {
                sums.entry(arm.clone()).or_default().add(&prior.quality, 1.0);
            }
        }
        let no_classes = ClassPriors::default();
        let classes = if blind { &no_classes } else { &pack.classes };
        let qualities = Discriminant::fit_with(&sums, classes);
        Self { posterior: Posterior::default().with_qualities(qualities), blind }
    }

    fn place(&self, row: &Decided) -> Placed {
        let features = if self.blind { Features::default() } else { row.features };
        self.posterior.qualities().place(&features)
    }

    fn means(&self, row: &Decided) -> Vec<f64> {
        let placed = self.place(row);
        row.considered.iter().map(|seen| self.posterior.answer(&seen.arm, seen.size, &placed).mean).collect()
    }

    /// Returns the probability with which each of the models is chosen.
    fn chances(&self, row: &Decided, choice: &Choice, seed: u64) -> Vec<f64> {
        let count = row.considered.len();
        let fixed = |at: usize| (0..count).map(|other| if other == at { 1.0 } else { 0.0 }).collect();
        let placed = self.place(row);
        let views: Vec<ArmView<'_>> = row
            .considered
            .iter()
            .map(|seen| ArmView {
                arm: &seen.arm,
                size: seen.size,
                // What is judged is the answer, so each arm is taken to give one.
                stats: ArmStats { count: 1_000_000_000, ..ArmStats::default() },
                answer: self.posterior.answer(&seen.arm, seen.size, &placed),
                cost: MicroUsd(0),
                latency_ms: 0.0,
                penalty: seen.penalty,
            })
            .collect();
        let thompson = || Thompson::default().shares(&views, &mut StdRng::seed_from_u64(seed));
        match choice {
            Choice::Thompson | Choice::Blind => thompson(),
            Choice::Random => vec![1.0 / count as f64; count],
            Choice::Greedy => {
                let worth = |at: &usize| views[*at].answer.mean - views[*at].penalty;
                (0..count).max_by(|a, b| worth(a).total_cmp(&worth(b))).map_or_else(Vec::new, fixed)
            }
            Choice::Fixed(model) => {
                let is_it = |seen: &Weighed| {
                    let name = seen.arm.as_str();
                    name == model || name.split('@').next() == Some(model)
                };
                row.considered.iter().position(is_it).map_or_else(thompson, fixed)
            }
        }
    }
}

/// A model that was weighed in a logged decision.
#[derive(Debug, Clone, PartialEq)]
pub struct Weighed {
    /// Its arm.
    pub arm: ArmId,
    /// How large it is.
    pub size: SizeClass,
    /// What price and waiting took from its quality.
    pub penalty: f64,
}

/// Returns a verdict as JSON: the stable form of `shoal router eval --json`.
pub fn verdict_json(verdict: &Verdict) -> Value {
    json!({
        "decisions": verdict.utility.decisions,
        "effective": verdict.utility.effective,
        "too_few": verdict.utility.is_thin(),
        "utility": evaluation_json(&verdict.utility),
        "quality": evaluation_json(&verdict.quality),
        "shares": verdict.shares.iter().map(|(arm, share)| (arm.as_str().to_owned(), json!(share)))
            .collect::<serde_json::Map<_, _>>(),
    })
}

fn evaluation_json(evaluation: &Evaluation) -> Value {
    let estimate =
        |estimate: &Estimate| json!({"value": estimate.value, "low": estimate.low, "high": estimate.high});
    json!({
        "logged": estimate(&evaluation.logged),
        "ips": estimate(&evaluation.ips),
        "snips": estimate(&evaluation.snips),
        "doubly_robust": estimate(&evaluation.robust),
        "gain": estimate(&evaluation.gain),
    })
}

#[cfg(test)]
mod tests {
    use rand::{Rng, RngExt};
    use shoal_routing::Score;

    use super::*;

    fn arm(name: &str) -> ArmId {
        ArmId::new(name, None)
    }

    /// A log of random choices between two models: each is right on its own side of the first feature, the second costs
    /// `penalty`.
    fn log(seed: u64, count: usize, penalty: f64) -> Vec<Decided> {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..count).map(|_| decided(&mut rng, penalty)).collect()
    }

    fn decided(rng: &mut impl Rng, penalty: f64) -> Decided {
        let at: f64 = rng.random_range(-1.7..1.7);
        let mut values = *Features::default().values();
        values[1] = at;
        let second = rng.random::<bool>();
        let good = rng.random::<f64>() < if (at > 0.0) == second { 0.9 } else { 0.2 };
        let seen = |name: &str, penalty| Weighed { arm: arm(name), size: SizeClass::Medium, penalty };
        Decided {
            features: Features::from_values(values).unwrap(),
            arm: arm(if second { "b" } else { "a" }),
            propensity: 0.5,
            score: Score::clamped(if good { 1.0 } else { 0.0 }),
            considered: vec![seen("a", 0.0), seen("b", penalty)],
        }
    }

    fn verdict(log: &[Decided], choice: Choice, pack: Pack) -> Verdict {
        evaluate(log, &Known::default(), &Candidate { choice, pack }).unwrap()
    }

    fn holds(estimate: &Estimate, truth: f64) -> bool {
        estimate.low <= truth && truth <= estimate.high
    }

    #[test]
    fn known_policies_are_worth_what_they_are_worth() {
        let log = log(1, 4_000, 0.1);
        let random = verdict(&log, Choice::Random, Pack::default());
        assert!(holds(&random.quality.robust, 0.55) && holds(&random.utility.robust, 0.5), "{random:?}");
        let fixed = verdict(&log, Choice::Fixed("b".into()), Pack::default());
        assert!(holds(&fixed.quality.snips, 0.55) && holds(&fixed.utility.ips, 0.45), "{fixed:?}");
        assert!((fixed.shares[&arm("b")] - 1.0).abs() < 1e-9);
        let learnt = verdict(&log, Choice::Greedy, Pack::default());
        assert!(learnt.quality.robust.low > 0.8, "{learnt:?}");
        assert!(learnt.utility.gain.low > 0.2);
        assert!(!learnt.utility.is_thin());
        let blind = verdict(&log, Choice::Blind, Pack::default());
        assert!(blind.quality.robust.high < 0.6, "{blind:?}");
    }

    #[test]
    fn a_pack_that_knows_the_prompts_helps_where_the_log_is_short() {
        let long: Vec<crate::pack::rows::Row> = log(2, 3_000, 0.0)
            .iter()
            .map(|row| crate::pack::rows::Row {
                features: row.features,
                scores: BTreeMap::from([(row.arm.clone(), row.score)]),
            })
            .collect();
        let (pack, _) = crate::pack::train::train(&long, false);
        let short = log(3, 200, 0.0);
        let (with, without) =
            (verdict(&short, Choice::Greedy, pack), verdict(&short, Choice::Greedy, Pack::default()));
        assert!(with.quality.robust.value > without.quality.robust.value + 0.03, "{with:?} {without:?}");
    }

    #[test]
    fn a_log_without_decisions_says_nothing_and_a_short_one_that_it_is_short() {
        let candidate = Candidate { choice: Choice::Thompson, pack: Pack::default() };
        assert_eq!(evaluate(&[], &Known::default(), &candidate), None);
        let few = verdict(&log(4, 20, 0.0), Choice::Thompson, Pack::default());
        assert!(few.utility.is_thin());
        assert_eq!(verdict_json(&few)["too_few"], json!(true));
    }

    #[test]
    fn policies_have_names() {
        assert_eq!("fixed:gpt-4o".parse(), Ok(Choice::Fixed("gpt-4o".into())));
        assert_eq!("blind".parse(), Ok(Choice::Blind));
        assert!("best".parse::<Choice>().unwrap_err().contains("thompson"));
        assert!("fixed:".parse::<Choice>().is_err());
    }
}
