//! How good each arm's answer to a given request will be: a linear discriminant per arm, drawn towards a common one.
//!
//! From the sums of an arm ([`QualitySums`]) follow the means of the features over its good and over its bad answers
//! and their common covariance; with them the log-odds of a good answer are linear in the features (Fisher 1936).
//! Three choices, each measured on public outcomes with whole subjects left out:
//!
//! * **Log-odds, not a linear probability.** A strong and a weak model both fail on hard prompts and both do well on
//!   easy ones; what counts is the *difference*, and that is largest in the middle. Odds say so, a linear
//!   probability does not (area under the gain curve .68 against .66, on unseen subjects .60 against .56).
//! * **Arms share what they have in common.** Hard prompts are hard for all. An arm's slopes are drawn towards slopes
//!   fitted to all arms together, the less the more its own judgements contradict those (empirical Bayes; Morris 1983):
//!   an arm with few judgements differs from its neighbours in level only, and a new one is a discriminant at once.
//!   The common slopes themselves are drawn to zero as much as the judgements ask for (`shrinkage`).
//!   A pack of outcomes from elsewhere ([`ClassPriors`]) takes part in the common slopes as a few more arms do.
//! * **Strangers are ordinary.** A request unlike all that was judged is moved towards the mean of what was, the
//!   more the farther it lies: far outside, only the arms' levels speak, which is the best fixed choice.
//!
//! Fitting costs some 30 µs for an arm, and as much once for what they have in common. It is done when sums change,
//! never in a request; a request costs one quadratic form for each arm.

use std::collections::BTreeMap;

use crate::bandit::linear::{Matrix, SIDE, Vector, dot};
use crate::bandit::pack::ClassPriors;
use crate::bandit::pairs::Found;
use crate::bandit::shrinkage;
use crate::bandit::sums::{QualitySums, at};
use crate::features::Features;
use crate::ids::ArmId;
use crate::units::Score;

/// Judgements that the common slopes weigh against an arm's own, at least and at most: the strength of the ridge.
const SHRINK: (f64, f64) = (20.0, 3_000.0);

/// What an arm's contradiction must exceed its expectation by before it counts: one standard deviation of it.
const CHANCE: f64 = 6.8;

/// Judgements that stand behind slopes which nobody contradicted, for what is not known of them.
const TRUSTED: f64 = 1_000.0;

/// Made-up judgements of ordinary requests in each arm: they keep the fit finite while there are few.
const PRIOR: f64 = 20.0;

/// Least variance of a score: that of an arm which is right in 98 of 100 cases.
const LEAST_VARIANCE: f64 = 0.02;

/// Squared distance from the mean, in multiples of its expectation, from which a request is a stranger.
const STRANGE: f64 = 2.5;

/// Added to the common covariance, so that a feature which never varied is no wall.
const FLOOR: f64 = 0.05;

/// What is expected of an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Belief {
    /// Mean quality, 0 to 1.
    pub mean: f64,
    /// Its standard deviation: what is not known of the mean, not the spread of the answers.
    pub deviation: f64,
}

/// What to believe of an arm's level before its own judgements: as if `weight` ordinary requests had scored `quality`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// Mean score.
    pub quality: Score,
    /// Judgements that it weighs, above 0.
    pub weight: f64,
}

/// Discriminants of all judged arms: an immutable snapshot that requests read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Discriminant {
    arms: BTreeMap<ArmId, Fit>,
    common: Option<Common>,
}

/// What all arms have in common.
#[derive(Debug, Clone, PartialEq)]
struct Common {
    slopes: Vector,
    mean: Vector,
    inverse_covariance: Matrix,
}

/// One arm's discriminant.
#[derive(Debug, Clone, PartialEq)]
struct Fit {
    weight: f64,
    good: f64,
    slopes: Vector,
    /// Log-odds of the point midway between good and bad, under even odds.
    offset: f64,
    /// Inverse of the regularised Gram matrix over `variance`, without the constant's row.
    uncertainty: Matrix,
    mean: Vector,
    variance: f64,
}

impl Discriminant {
    /// Fits all arms to their sums.
    pub fn fit<'a>(sums: impl IntoIterator<Item = (&'a ArmId, &'a QualitySums)>) -> Self {
        Self::fit_with(sums, &ClassPriors::default())
    }

    /// Fits all arms to their sums; what is known of models of their size elsewhere speaks for the common slopes, so
    /// that a node without any judgement knows which prompts are hard.
    pub fn fit_with<'a>(
        sums: impl IntoIterator<Item = (&'a ArmId, &'a QualitySums)>,
        classes: &ClassPriors,
    ) -> Self {
        let judged: Vec<(&ArmId, Moments)> = sums
            .into_iter()
            .filter(|(_, sums)| sums.weight() > 0.0)
            .map(|(arm, sums)| (arm, Moments::of(sums)))
            .filter(|(_, moments)| moments.is_sound())
            .collect();
        let elsewhere: Vec<Moments> = classes.weighed().map(|sums| Moments::of(&sums)).collect();
        let everything = judged.iter().map(|(_, moments)| moments).chain(&elsewhere);
        let Some(common) = Common::of(everything) else {
            return Self::default();
        };
        let arms =
            judged.into_iter().filter_map(|(arm, moments)| Some((arm.clone(), Fit::new(&moments, &common)?)));
        Self { arms: arms.collect(), common: Some(common) }
    }

    /// Returns the features as the arms are shown them: a stranger moved towards the mean of what was judged.
    pub fn place(&self, features: &Features) -> Placed {
        let x = Vector::of(features);
        let found = Found::default();
        let Some(common) = &self.common else { return Placed { x, strange: false, found } };
        let away = x.minus(&common.mean);
        let distance = common.inverse_covariance.quadratic(&away);
        let radius = STRANGE * SIDE as f64;
        if distance <= radius {
            return Placed { x, strange: false, found };
        }
        Placed { x: common.mean.plus(&away, radius / distance), strange: true, found }
    }

    /// Returns what to expect of an arm's answer to a request; from `level` alone while nobody judged any arm.
    pub fn expect(&self, arm: &ArmId, placed: &Placed, level: Level) -> Belief {
        let quality = level.quality.value().clamp(0.01, 0.99);
        let (good, bad) = (quality * level.weight, (1.0 - quality) * level.weight);
        let (odds, spread) = match (self.arms.get(arm), &self.common) {
            (Some(fit), _) => {
                let odds = ((fit.good + good) / (fit.weight - fit.good + bad)).ln();
                let away = placed.x.minus(&fit.mean);
                let level = 1.0 / (fit.weight + level.weight) / fit.variance;
                (odds + fit.offset + dot(&fit.slopes, &placed.x), level + fit.uncertainty.quadratic(&away))
            }
            (None, Some(common)) => {
                let away = placed.x.minus(&common.mean);
                let variance = quality * (1.0 - quality);
                (
                    (good / bad).ln() + dot(&common.slopes, &away),
                    (1.0 / level.weight + dot(&away, &away) / TRUSTED) / variance,
                )
            }
            (None, None) => ((good / bad).ln(), 1.0 / level.weight / (quality * (1.0 - quality))),
        };
        let mean = 1.0 / (1.0 + (-odds).exp());
        Belief { mean, deviation: mean * (1.0 - mean) * spread.sqrt() }
    }

    /// Returns the judgements that an arm's fit rests on, forgetting included.
    pub fn weight(&self, arm: &ArmId) -> f64 {
        self.arms.get(arm).map_or(0.0, |fit| fit.weight)
    }
}

/// Features of a request, placed among those that were judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placed {
    pub(super) x: Vector,
    /// The request is unlike what was judged and was moved towards it.
    pub strange: bool,
    /// Pairs of its words that some arm has something to tell of.
    pub(super) found: Found,
}

/// Moments of one arm's judged answers, with the made-up ones.
struct Moments {
    /// Judgements without the made-up ones, and the good ones among them.
    own: f64,
    own_good: f64,
    count: f64,
    good: f64,
    bad: f64,
    /// Means of the features over good and over bad answers.
    mean_good: Vector,
    mean_bad: Vector,
    /// Covariance within good and within bad answers.
    within: Matrix,
    /// Σ x and Σ x xᵀ of the judged requests.
    sum: Vector,
    gram: Matrix,
}

impl Moments {
    fn of(sums: &QualitySums) -> Self {
        let count = sums.weight() + PRIOR;
        let good = sums.reward[0].clamp(0.0, sums.weight()) + PRIOR / 2.0;
        let bad = count - good;
        let sum = Vector::from_fn(|i| sums.gram[at(i + 1, 0)]);
        let mean_good = Vector::from_fn(|i| sums.reward[i + 1] / good);
        let mean_bad = Vector::from_fn(|i| (sum.0[i] - sums.reward[i + 1]) / bad);
        let gram = Matrix::symmetric(|row, column| sums.gram[at(row + 1, column + 1)]);
        let within = Matrix::symmetric(|row, column| {
            let made_up = if row == column { PRIOR } else { 0.0 };
            let between =
                good * mean_good.0[row] * mean_good.0[column] + bad * mean_bad.0[row] * mean_bad.0[column];
            (gram.0[row][column] + made_up - between) / count
        });
        let (own, own_good) = (sums.weight(), sums.reward[0].clamp(0.0, sums.weight()));
        Self { own, own_good, count, good, bad, mean_good, mean_bad, within, sum, gram }
    }

    /// True when the covariance within is one; sums that are none must not spoil the fit of the others.
    fn is_sound(&self) -> bool {
        let mut within = self.within.clone();
        within.add_diagonal(FLOOR);
        within.inverse().is_some()
    }

    fn between(&self) -> Vector {
        self.mean_good.minus(&self.mean_bad)
    }
}

impl Common {
    /// Pools arms, each weighed by what it can tell: judgements × share of good × share of bad.
    fn of<'a>(arms: impl Iterator<Item = &'a Moments>) -> Option<Self> {
        let (mut within, mut between) = (Matrix::default(), Vector::default());
        let (mut gram, mut sum, mut count) = (Matrix::default(), Vector::default(), 0.0);
        for arm in arms {
            let weight = arm.good * arm.bad / arm.count;
            within.add(&arm.within, weight);
            between = between.plus(&arm.between(), weight);
            gram.add(&arm.gram, 1.0);
            sum = sum.plus(&arm.sum, 1.0);
            count += arm.own;
        }
        if count <= 0.0 {
            return None;
        }
        within.add_diagonal(shrinkage::likeliest(&within, &between));
        let slopes = within.inverse()?.times(&between);
        let mean = sum.scaled(1.0 / count);
        // Until enough is known of what is ordinary, the features' own scale stands for it.
        let total = count + PRIOR * SIDE as f64;
        let covariance = Matrix::symmetric(|row, column| {
            let made_up = if row == column { total - count } else { 0.0 };
            let floor = if row == column { FLOOR } else { 0.0 };
            (gram.0[row][column] - count * mean.0[row] * mean.0[column] + made_up) / total + floor
        });
        Some(Self { slopes, mean, inverse_covariance: covariance.inverse()? })
    }
}

impl Fit {
    fn new(moments: &Moments, common: &Common) -> Option<Self> {
        let strength = strength(moments, common)?;
        let shrink = strength / moments.count;
        let mut within = moments.within.clone();
        within.add_diagonal(shrink);
        let slopes = within.inverse()?.times(&moments.between().plus(&common.slopes, shrink));
        let midway = moments.mean_good.plus(&moments.mean_bad, 1.0).scaled(0.5);
        let share = moments.good / moments.count;
        let variance = (share * (1.0 - share)).max(LEAST_VARIANCE);
        let mean = moments.sum.scaled(1.0 / moments.count);
        let mut centred = moments.gram.clone();
        centred.add_outer(&mean, -moments.count);
        centred.add_diagonal(strength.min(TRUSTED));
        let uncertainty = centred.inverse()?.scaled(1.0 / variance);
        let offset = -dot(&midway, &slopes);
        Some(Self {
            weight: moments.own,
            good: moments.own_good,
            slopes,
            offset,
            uncertainty,
            mean,
            variance,
        })
    }
}

/// Returns how many judgements the common slopes weigh against an arm's own.
///
/// If they held for the arm, the distance between its good and its bad answers would differ from theirs by chance
/// alone, and the square of that difference, in standard deviations, would be as large as the number of features.
/// What is beyond is evidence against them.
fn strength(moments: &Moments, common: &Common) -> Option<f64> {
    let difference = moments.between().minus(&moments.within.times(&common.slopes));
    let mut within = moments.within.clone();
    within.add_diagonal(FLOOR);
    let square = within.inverse()?.quadratic(&difference) * moments.good * moments.bad / moments.count;
    let beyond = square - SIDE as f64 - CHANCE;
    let strength = moments.count * SIDE as f64 / beyond.max(f64::MIN_POSITIVE);
    Some(strength.clamp(SHRINK.0, SHRINK.1))
}

#[cfg(test)]
mod tests {
    use rand::{Rng, RngExt};

    use super::*;
    use crate::features::{EMBEDDED, SURFACE};
    use crate::testing::seeded;

    const LEVEL: Level = Level { quality: Score::ONE, weight: 10.0 };

    fn level(quality: f64) -> Level {
        Level { quality: Score::clamped(quality), weight: 10.0 }
    }

    fn arm(name: &str) -> ArmId {
        ArmId::new(name, None)
    }

    fn request(rng: &mut impl Rng) -> Features {
        let embedding: [f32; EMBEDDED] = std::array::from_fn(|_| rng.random_range(-1.7..1.7));
        let surface = [4.42, 0.032, 0.113, 1.65, 0.54, 4.71, 4.23];
        Features::new(&embedding, &surface)
    }

    /// Judges `count` answers whose chance of being good is `odds(first dimension)`.
    fn judged(seed: u64, count: usize, chance: impl Fn(f64) -> f64) -> QualitySums {
        let mut rng = seeded(seed);
        let mut sums = QualitySums::default();
        for _ in 0..count {
            let features = request(&mut rng);
            let good = rng.random::<f64>() < chance(features.values()[1]);
            sums.record(&features, if good { Score::ONE } else { Score::ZERO });
        }
        sums
    }

    fn at_first(value: f32) -> Features {
        let mut embedding = [0.0; EMBEDDED];
        embedding[0] = value;
        Features::new(&embedding, &[4.42, 0.032, 0.113, 1.65, 0.54, 4.71, 4.23])
    }

    fn expect(model: &Discriminant, name: &str, features: &Features) -> Belief {
        model.expect(&arm(name), &model.place(features), level(0.5))
    }

    #[test]
    fn an_arm_is_believed_where_it_was_good() {
        let sums = [(arm("m"), judged(1, 4_000, |x| if x > 0.0 { 0.9 } else { 0.3 }))];
        let model = Discriminant::fit(sums.iter().map(|(a, s)| (a, s)));
        let (good, bad) = (expect(&model, "m", &at_first(1.0)), expect(&model, "m", &at_first(-1.0)));
        assert!(good.mean > 0.8 && bad.mean < 0.4, "{good:?} {bad:?}");
        assert!(good.deviation < 0.05 && good.deviation > 0.0);
    }

    #[test]
    fn slopes_are_found_where_prompts_hardly_differ() {
        // Prompts of one subject: the first dimension says everything, and varies by a third of what mixed ones do.
        let mut rng = seeded(8);
        let mut sums = QualitySums::default();
        for _ in 0..600 {
            let value = rng.random_range(-0.5..0.5);
            let good = rng.random::<f64>() < if value < 0.25 { 0.98 } else { 0.02 };
            sums.record(&at_first(value), if good { Score::ONE } else { Score::ZERO });
        }
        let model = Discriminant::fit([(&arm("m"), &sums)]);
        let (good, bad) = (expect(&model, "m", &at_first(0.0)), expect(&model, "m", &at_first(0.45)));
        assert!(good.mean > 0.75 && bad.mean < 0.45, "{good:?} {bad:?}");
    }

    #[test]
    fn a_new_arm_follows_the_others_at_its_own_level() {
        let sums = [(arm("known"), judged(2, 3_000, |x| if x > 0.0 { 0.9 } else { 0.3 }))];
        let model = Discriminant::fit(sums.iter().map(|(a, s)| (a, s)));
        let at = |value| model.expect(&arm("new"), &model.place(&at_first(value)), level(0.8)).mean;
        assert!(at(1.0) > at(0.0) && at(0.0) > at(-1.0));
        assert!((at(0.0) - 0.8).abs() < 0.05, "{}", at(0.0));
    }

    #[test]
    fn few_judgements_differ_in_level_only() {
        let few = judged(3, 30, |x| if x > 0.0 { 0.1 } else { 0.9 });
        let many = judged(4, 3_000, |_| 0.6);
        let sums = [(arm("few"), few), (arm("many"), many)];
        let model = Discriminant::fit(sums.iter().map(|(a, s)| (a, s)));
        let difference =
            expect(&model, "few", &at_first(1.0)).mean - expect(&model, "few", &at_first(-1.0)).mean;
        assert!(difference.abs() < 0.15, "{difference}");
        assert!(
            expect(&model, "few", &at_first(0.0)).deviation
                > expect(&model, "many", &at_first(0.0)).deviation
        );
    }

    #[test]
    fn a_stranger_is_taken_for_ordinary() {
        let sums = [(arm("m"), judged(5, 4_000, |x| if x > 0.0 { 0.9 } else { 0.3 }))];
        let model = Discriminant::fit(sums.iter().map(|(a, s)| (a, s)));
        let ordinary = expect(&model, "m", &at_first(0.0)).mean;
        let far = Features::new(&[4.0; EMBEDDED], &[1e3; SURFACE]);
        assert!(model.place(&far).strange && !model.place(&at_first(1.0)).strange);
        let stranger = expect(&model, "m", &far).mean;
        let near = expect(&model, "m", &at_first(2.0)).mean;
        assert!((stranger - ordinary).abs() < (near - ordinary).abs(), "{stranger} {near} {ordinary}");
    }

    #[test]
    fn with_nothing_judged_only_the_level_speaks() {
        let model = Discriminant::default();
        let belief = model.expect(&arm("m"), &model.place(&Features::default()), level(0.7));
        assert!((belief.mean - 0.7).abs() < 1e-9 && belief.deviation > 0.05);
        let sure = model.expect(&arm("m"), &model.place(&Features::default()), LEVEL);
        assert!(sure.mean < 1.0);
        assert_eq!(Discriminant::fit([(&arm("m"), &QualitySums::default())]), Discriminant::default());
    }

    #[test]
    fn perfect_and_hopeless_arms_stay_finite() {
        let sums = [(arm("good"), judged(6, 500, |_| 1.0)), (arm("bad"), judged(7, 500, |_| 0.0))];
        let model = Discriminant::fit(sums.iter().map(|(a, s)| (a, s)));
        let (good, bad) = (expect(&model, "good", &at_first(0.5)), expect(&model, "bad", &at_first(0.5)));
        assert!(good.mean > 0.95 && bad.mean < 0.05, "{good:?} {bad:?}");
        assert!(good.deviation.is_finite() && bad.deviation.is_finite());
    }
}
