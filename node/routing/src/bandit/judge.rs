//! What a model's grades of answers are worth: its love of length taken out, its weight by how often people agree.
//!
//! * [`LengthBias`]: judges prefer long answers (Zheng et al. 2023, "verbosity bias"). How much is the slope of the
//!   grade over the length *within* each arm, pooled over the arms; only what a longer answer of the same model gains
//!   is taken for bias, so a model is not punished for being good and long.
//! * [`EvaluatorTrust`]: where a person judged the same answer, how does the mean grade of good answers differ from
//!   that of bad ones? The difference (Youden's J, between -1 and 1) is 1 for a judge who knows and 0 for one who
//!   guesses, also where nearly all answers are good, which plain agreement would reward.
//! * [`Grading`] puts them together. A judge who errs also pulls all arms towards each other; where its errors were
//!   measured a grade is therefore read as the probability that the answer is good, given the arm's own rate of good
//!   answers (Dawid and Skene 1979): on the average over an arm that is the true rate again.

use std::collections::BTreeMap;

use crate::ids::ArmId;
use crate::units::Score;

/// What each new grade leaves of the sums: a memory of some 2,000 grades.
const KEEP_GRADES: f64 = 1.0 - 1.0 / 2_000.0;

/// What each new pair of grade and feedback leaves: a memory of some 200, since people judge rarely.
const KEEP_PAIRS: f64 = 1.0 - 1.0 / 200.0;

/// Longest answer that counts as longer, tokens: one of ten pages must not make the slope alone.
const LONGEST: f64 = 2_000.0;

/// Strength that holds the slope at 0 while little is known: 20 grades of answers 100 tokens from their mean.
const RIDGE: f64 = 20.0 * 100.0 * 100.0;

/// Arms of which sums are kept; a new one beyond that is graded by the sums of all others.
const MAX_ARMS: usize = 256;

/// Grades after which half of the weight is reached: the first ones only measure the love of length.
const HALF_GRADES: f64 = 30.0;

/// Weight of a judge whom nobody checked, and the number of checks that the belief in it weighs.
const UNCHECKED: f64 = 0.5;
const UNCHECKED_PAIRS: f64 = 10.0;

/// Mean grades of good and of bad answers before any was checked, each worth so many checks: a judge is read as it
/// speaks until it is known to err.
const GOOD_GRADE: f64 = 0.95;
const BAD_GRADE: f64 = 0.05;
const RATE_PAIRS: f64 = 3.0;

/// Least weight that is learnt from; below it a judge only adds noise.
const LEAST_WEIGHT: f64 = 0.1;

/// Grades of an arm after which they are read by its own rate alone; before, a grade is taken more and more so. An
/// arm's rate from few grades, magnified by what is known of the errors, would feed on itself.
const SETTLED: f64 = 500.0;

/// Grades that the mean of all arms weighs in that of one arm: a few bad grades, magnified by what is known of the
/// errors, must not make an arm look hopeless before it was tried.
const ARM_PRIOR: f64 = 50.0;

/// Sums of one arm's grades over the lengths of its answers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Sums {
    n: f64,
    length: f64,
    grade: f64,
    length_squared: f64,
    product: f64,
}

impl Sums {
    fn take(&mut self, length: f64, grade: f64) {
        let add = |sum: &mut f64, value: f64| *sum = *sum * KEEP_GRADES + value;
        add(&mut self.n, 1.0);
        add(&mut self.length, length);
        add(&mut self.grade, grade);
        add(&mut self.length_squared, length * length);
        add(&mut self.product, length * grade);
    }
}

/// How much a judge's grade grows with the length of an answer, measured within arms.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LengthBias {
    arms: BTreeMap<ArmId, Sums>,
}

impl LengthBias {
    /// Takes a grade in.
    pub fn take(&mut self, arm: &ArmId, tokens: u64, grade: Score) {
        if !self.arms.contains_key(arm) && self.arms.len() >= MAX_ARMS {
            return;
        }
        self.arms.entry(arm.clone()).or_default().take(bounded(tokens), grade.value());
    }

    /// Returns what one more token adds to a grade.
    pub fn slope(&self) -> f64 {
        let (mut over, mut under) = (0.0, RIDGE);
        for sums in self.arms.values() {
            over += sums.product - sums.length * sums.grade / sums.n;
            under += sums.length_squared - sums.length * sums.length / sums.n;
        }
        over / under
    }

    /// Returns the grade that an answer of ordinary length would have got.
    pub fn corrected(&self, tokens: u64, grade: Score) -> Score {
        let (n, length) = self.arms.values().fold((0.0, 0.0), |(n, sum), arm| (n + arm.n, sum + arm.length));
        if n == 0.0 {
            return grade;
        }
        Score::clamped(grade.value() - self.slope() * (bounded(tokens) - length / n))
    }
}

fn bounded(tokens: u64) -> f64 {
    (tokens as f64).min(LONGEST)
}

/// How well a judge tells good answers from bad ones, by what people said of the same answers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct EvaluatorTrust {
    pairs: f64,
    good: f64,
    good_grades: f64,
    bad: f64,
    bad_grades: f64,
}

impl EvaluatorTrust {
    /// Takes in that a person gave `explicit` to an answer that the judge gave `grade`.
    pub fn take(&mut self, grade: Score, explicit: Score) {
        let (grade, good) = (grade.value(), explicit.value());
        let add = |sum: &mut f64, value: f64| *sum = *sum * KEEP_PAIRS + value;
        add(&mut self.pairs, 1.0);
        add(&mut self.good, good);
        add(&mut self.good_grades, good * grade);
        add(&mut self.bad, 1.0 - good);
        add(&mut self.bad_grades, (1.0 - good) * grade);
    }

    /// Returns the mean grades of good and of bad answers.
    fn rates(&self) -> (f64, f64) {
        let mean = |sum: f64, n: f64, prior: f64| (sum + prior * RATE_PAIRS) / (n + RATE_PAIRS);
        (mean(self.good_grades, self.good, GOOD_GRADE), mean(self.bad_grades, self.bad, BAD_GRADE))
    }

    /// Returns the judge's weight, 0 to 1.
    pub fn weight(&self) -> f64 {
        let (good, bad) = self.rates();
        let known = self.pairs / (self.pairs + UNCHECKED_PAIRS);
        let weight = known * (good - bad).max(0.0) + (1.0 - known) * UNCHECKED;
        if weight < LEAST_WEIGHT { 0.0 } else { weight }
    }

    /// Returns the share of good answers that a mean grade speaks for.
    fn share_of_good(&self, mean_grade: f64) -> f64 {
        let (good, bad) = self.rates();
        ((mean_grade - bad) / (good - bad).max(LEAST_WEIGHT)).clamp(0.1, 0.95)
    }

    /// Returns the probability that an answer is good, given its grade and the arm's share of good answers.
    fn probability(&self, grade: f64, share: f64) -> f64 {
        let (good, bad) = self.rates();
        let given =
            |good: f64, bad: f64| share * good / (share * good + (1.0 - share) * bad).max(f64::MIN_POSITIVE);
        grade * given(good, bad) + (1.0 - grade) * given(1.0 - good, 1.0 - bad)
    }
}

/// What a grade says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// The grade without the love of length: what feedback on the same answer is compared with.
    pub corrected: Score,
    /// The judgement to learn from.
    pub score: Score,
    /// Probability with which it is to be learnt from, 0 to 1.
    pub weight: f64,
}

/// One judge: everything that was learnt about its grades.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Grading {
    length: LengthBias,
    trust: EvaluatorTrust,
    arms: BTreeMap<ArmId, Mean>,
    all: Mean,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Mean {
    n: f64,
    sum: f64,
}

impl Mean {
    fn take(&mut self, value: f64) {
        self.n = self.n * KEEP_GRADES + 1.0;
        self.sum = self.sum * KEEP_GRADES + value;
    }
}

impl Grading {
    /// Takes a grade of an answer of `tokens` length in, and says what to make of it.
    pub fn take(&mut self, arm: &ArmId, tokens: u64, grade: Score) -> Reading {
        self.length.take(arm, tokens, grade);
        let corrected = self.length.corrected(tokens, grade);
        self.all.take(corrected.value());
        let known = self.arms.contains_key(arm) || self.arms.len() < MAX_ARMS;
        let mean = if known { self.arms.entry(arm.clone()).or_default() } else { &mut self.all };
        if known {
            mean.take(corrected.value());
        }
        let of_arm = *mean;
        let of_all = self.all.sum / self.all.n;
        let share = self.trust.share_of_good((of_arm.sum + ARM_PRIOR * of_all) / (of_arm.n + ARM_PRIOR));
        let known_arm = (of_arm.n / SETTLED).min(1.0);
        let probability = self.trust.probability(corrected.value(), share);
        let settled = self.all.n / (self.all.n + HALF_GRADES);
        Reading {
            corrected,
            score: Score::clamped(known_arm * probability + (1.0 - known_arm) * corrected.value()),
            // The root: a grade that is read as a probability says less already.
            weight: settled * self.trust.weight().sqrt(),
        }
    }

    /// Takes in that a person judged an answer of which the corrected grade is known.
    pub fn checked(&mut self, corrected: Score, explicit: Score) {
        self.trust.take(corrected, explicit);
    }

    /// Returns what one more token adds to a grade.
    pub fn length_slope(&self) -> f64 {
        self.length.slope()
    }

    /// Returns the judge's weight, 0 to 1.
    pub fn weight(&self) -> f64 {
        self.trust.weight()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arm(name: &str) -> ArmId {
        ArmId::new(name, None)
    }

    fn score(value: f64) -> Score {
        Score::clamped(value)
    }

    #[test]
    fn the_love_of_length_is_measured_within_arms_and_taken_out() {
        let mut bias = LengthBias::default();
        for n in 0..400_u64 {
            // The long arm is better by 0.2 at equal length, and every 100 tokens gain 0.1.
            let (name, base, quality) = if n % 2 == 0 { ("short", 100, 0.4) } else { ("long", 300, 0.6) };
            let tokens = base + (n / 2 % 5) * 50;
            bias.take(&arm(name), tokens, score(quality + 0.001 * (tokens as f64 - 300.0)));
        }
        assert!((bias.slope() - 0.001).abs() < 1e-4, "{}", bias.slope());
        let at = |tokens, quality: f64| {
            bias.corrected(tokens, score(quality + 0.001 * (tokens as f64 - 300.0))).value()
        };
        assert!((at(300, 0.6) - at(100, 0.4) - 0.2).abs() < 0.03, "what is left is the quality");
        assert!((at(100, 0.4) - at(500, 0.4)).abs() < 0.05);
    }

    #[test]
    fn a_difference_between_arms_alone_is_no_love_of_length() {
        let mut bias = LengthBias::default();
        for n in 0..200 {
            let (name, tokens, grade) = if n % 2 == 0 { ("a", 100, 0.3) } else { ("b", 400, 0.9) };
            bias.take(&arm(name), tokens + n % 7, score(grade));
        }
        assert!(bias.slope().abs() < 1e-5, "{}", bias.slope());
    }

    #[test]
    fn nothing_known_changes_no_grade_and_few_grades_make_no_slope() {
        let mut bias = LengthBias::default();
        assert_eq!(bias.corrected(500, score(0.7)), score(0.7));
        bias.take(&arm("a"), 100, score(0.1));
        bias.take(&arm("a"), 200, score(0.9));
        assert!(bias.slope() < 0.001, "{}", bias.slope());
    }

    fn after(pairs: u32, grade_of: impl Fn(u32, bool) -> f64, bad_every: u32) -> EvaluatorTrust {
        let mut trust = EvaluatorTrust::default();
        for n in 0..pairs {
            let good = n % bad_every != 0;
            trust.take(score(grade_of(n, good)), score(f64::from(u8::from(good))));
        }
        trust
    }

    #[test]
    fn weight_rises_with_agreement_and_falls_with_disagreement() {
        let says = |good: bool| f64::from(u8::from(good));
        assert_eq!(EvaluatorTrust::default().weight(), UNCHECKED);
        let agrees = after(100, |_, good| says(good), 2).weight();
        let errs = after(100, |n, good| says(good != (n / 2 % 10 < 3)), 2).weight();
        let guesses = after(100, |n, _| says(n / 2 % 2 == 0), 2).weight();
        let lies = after(100, |_, good| says(!good), 2).weight();
        assert!(agrees > 0.9, "{agrees}");
        assert!((0.35..0.55).contains(&errs), "{errs}");
        assert!(guesses < 0.15, "{guesses}");
        assert_eq!(lies, 0.0);
    }

    #[test]
    fn praising_everything_earns_no_trust_where_nearly_all_is_good() {
        let praises = after(200, |_, _| 1.0, 10).weight();
        assert!(praises < 0.25, "{praises}");
    }

    #[test]
    fn a_judge_that_got_better_is_trusted_again() {
        let mut trust = after(400, |n, _| f64::from(u8::from(n % 3 == 0)), 2);
        let before = trust.weight();
        for n in 0..400 {
            let good = score(f64::from(n % 2));
            trust.take(good, good);
        }
        assert!(before < 0.2 && trust.weight() > 0.8, "{before} {}", trust.weight());
    }

    #[test]
    fn a_known_error_no_longer_pulls_the_arms_together() {
        let mut grading = Grading::default();
        let says = |good: bool, flipped: bool| score(f64::from(u8::from(good != flipped)));
        for n in 0..300_u32 {
            let good = n % 2 == 0;
            grading.checked(says(good, n / 2 % 10 < 3), says(good, false));
        }
        let mut means = BTreeMap::new();
        for n in 0..4_000_u32 {
            for (name, share) in [("strong", 9), ("weak", 4)] {
                let (good, flipped) = (n % 10 < share, n / 10 % 10 < 3);
                let reading = grading.take(&arm(name), 100, says(good, flipped));
                if n >= 2_000 {
                    *means.entry(name).or_insert(0.0) += reading.score.value() / 2_000.0;
                }
            }
        }
        assert!((means["strong"] - 0.9).abs() < 0.08 && (means["weak"] - 0.4).abs() < 0.08, "{means:?}");
    }

    #[test]
    fn the_first_grades_weigh_little() {
        let mut grading = Grading::default();
        let first = grading.take(&arm("a"), 100, score(1.0)).weight;
        let later = (0..200).map(|_| grading.take(&arm("a"), 100, score(1.0)).weight).last().unwrap();
        assert!(first < 0.05 && later > 0.4, "{first} {later}");
    }
}
