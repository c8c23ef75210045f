//! What another policy would have earned on decisions that were logged: inverse propensity, self-normalised, doubly
//! robust.
//!
//! The log holds the outcome of the chosen arm only, and with what probability it was chosen. Weighing each outcome
//! by how much likelier the other policy was to make that choice gives an estimate without bias, of large variance
//! (IPS; Horvitz and Thompson 1952). Dividing by the weights' sum trades a little bias for much less variance (SNIPS;
//! Swaminathan and Joachims 2015). A model of the rewards that predicts and is corrected by the weighted residuals
//! does better still where the model is any good, and no worse in the mean where it is not (DR; Dudík, Langford and
//! Li 2011). The model must not have seen the row that it predicts.
//!
//! Intervals are normal approximations. They hold while enough decisions stand behind them: see
//! [`Evaluation::is_thin`].

/// Normal quantile of a two-sided 95 % interval.
const Z: f64 = 1.959_964;

/// Decisions that must effectively be left before intervals are worth reading.
pub const ENOUGH: f64 = 50.0;

/// A logged decision, as an estimator needs it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Logged {
    /// Probability with which the logged choice was made, above 0.
    pub propensity: f64,
    /// What it earned.
    pub reward: f64,
    /// Probability with which the other policy makes the same choice.
    pub target: f64,
    /// What a model of the rewards expects of the logged choice.
    pub modelled: f64,
    /// What the model expects of the other policy in this place: its choices' expectations, weighed by their
    /// probabilities.
    pub expected: f64,
}

impl Logged {
    fn weight(&self) -> f64 {
        self.target / self.propensity
    }

    fn is_usable(&self) -> bool {
        let numbers = [self.propensity, self.reward, self.target, self.modelled, self.expected];
        numbers.iter().all(|number| number.is_finite())
            && self.propensity > 0.0
            && self.propensity <= 1.0
            && (0.0..=1.0).contains(&self.target)
    }
}

/// A mean with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Estimated mean reward of a decision.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

impl Estimate {
    fn new(value: f64, error: f64) -> Self {
        Self { value, low: value - Z * error, high: value + Z * error }
    }

    /// Estimates the mean of independent numbers, at least one.
    fn of_mean(numbers: impl Iterator<Item = f64> + Clone) -> Self {
        let count = numbers.clone().count() as f64;
        let mean = numbers.clone().sum::<f64>() / count;
        let squares: f64 = numbers.map(|number| (number - mean).powi(2)).sum();
        Self::new(mean, (squares / (count - 1.0).max(1.0) / count).sqrt())
    }
}

/// What a policy is estimated to earn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Decisions that were used.
    pub decisions: usize,
    /// Decisions of the same weight that would say as much (Kish 1965): far fewer where the policies differ.
    pub effective: f64,
    /// What the logged policy earned.
    pub logged: Estimate,
    /// By inverse propensity.
    pub ips: Estimate,
    /// The same, self-normalised.
    pub snips: Estimate,
    /// Doubly robust.
    pub robust: Estimate,
    /// Doubly robust, above what the logged policy earned; both on the same decisions, so narrower than their
    /// difference looks.
    pub gain: Estimate,
}

impl Evaluation {
    /// Evaluates a policy on the logged decisions; those with impossible numbers are left out, `None` if none is left.
    pub fn of(log: &[Logged]) -> Option<Self> {
        let rows: Vec<&Logged> = log.iter().filter(|row| row.is_usable()).collect();
        if rows.is_empty() {
            return None;
        }
        let mean = |f: fn(&Logged) -> f64| Estimate::of_mean(rows.iter().map(move |row| f(row)));
        let weights: f64 = rows.iter().map(|row| row.weight()).sum();
        let squares: f64 = rows.iter().map(|row| row.weight().powi(2)).sum();
        let snips = if weights > 0.0 {
            let value = rows.iter().map(|row| row.weight() * row.reward).sum::<f64>() / weights;
            // The delta method, for a ratio of two means.
            let spread: f64 = rows.iter().map(|row| (row.weight() * (row.reward - value)).powi(2)).sum();
            Estimate::new(value, spread.sqrt() / weights)
        } else {
            Estimate::new(0.0, f64::INFINITY)
        };
        Some(Self {
            decisions: rows.len(),
            effective: if squares > 0.0 { weights * weights / squares } else { 0.0 },
            logged: mean(|row| row.reward),
            ips: mean(|row| row.weight() * row.reward),
            snips,
            robust: mean(robust),
            gain: mean(|row| robust(row) - row.reward),
        })
    }

    /// True when too few decisions stand behind the estimates to act on them.
    pub fn is_thin(&self) -> bool {
        self.effective < ENOUGH
    }
}

fn robust(row: &Logged) -> f64 {
    row.expected + row.weight() * (row.reward - row.modelled)
}

#[cfg(test)]
mod tests {
    use rand::{Rng, RngExt};

    use super::*;
    use crate::testing::seeded;

    const ARMS: usize = 3;

    /// Chance of reward of each arm where the context is `x`, 0 to 1.
    fn truth(x: f64) -> [f64; ARMS] {
        [0.2 + 0.6 * x, 0.8 - 0.6 * x, 0.45]
    }

    /// Likes the arm that is worse.
    fn logging(x: f64) -> [f64; ARMS] {
        if x > 0.5 { [0.15, 0.65, 0.2] } else { [0.65, 0.15, 0.2] }
    }

    /// Likes the arm that is better.
    fn target(x: f64) -> [f64; ARMS] {
        if x > 0.5 { [0.8, 0.1, 0.1] } else { [0.1, 0.8, 0.1] }
    }

    fn value_of(policy: fn(f64) -> [f64; ARMS]) -> f64 {
        let steps = 10_000;
        let at = |step: u32| {
            let x = (f64::from(step) + 0.5) / f64::from(steps);
            policy(x).iter().zip(truth(x)).map(|(share, worth)| share * worth).sum::<f64>()
        };
        (0..steps).map(at).sum::<f64>() / f64::from(steps)
    }

    fn log(rng: &mut impl Rng, count: usize, model: fn(f64) -> [f64; ARMS]) -> Vec<Logged> {
        (0..count)
            .map(|_| {
                let x: f64 = rng.random();
                let shares = logging(x);
                let mut point = rng.random::<f64>();
                let arm = (0..ARMS)
                    .find(|arm| {
                        point -= shares[*arm];
                        point < 0.0
                    })
                    .unwrap_or(ARMS - 1);
                let reward = if rng.random::<f64>() < truth(x)[arm] { 1.0 } else { 0.0 };
                Logged {
                    propensity: shares[arm],
                    reward,
                    target: target(x)[arm],
                    modelled: model(x)[arm],
                    expected: target(x).iter().zip(model(x)).map(|(share, q)| share * q).sum(),
                }
            })
            .collect()
    }

    fn check_coverage(model: fn(f64) -> [f64; ARMS]) -> [f64; 3] {
        let (worth, seeds) = (value_of(target), 400);
        let (mut covered, mut widths) = ([0; 3], [0.0; 3]);
        for seed in 0..seeds {
            let evaluation = Evaluation::of(&log(&mut seeded(seed), 600, model)).unwrap();
            let estimates = [evaluation.ips, evaluation.snips, evaluation.robust];
            for ((estimate, covered), width) in estimates.iter().zip(&mut covered).zip(&mut widths) {
                *covered += u32::from(estimate.low <= worth && worth <= estimate.high);
                *width += (estimate.high - estimate.low) / seeds as f64;
            }
            assert!(!evaluation.is_thin());
            assert!(evaluation.logged.high < worth, "what was logged earns less");
        }
        for covered in covered {
            let share = f64::from(covered) / seeds as f64;
            assert!((0.92..=0.985).contains(&share), "{share}");
        }
        widths
    }

    #[test]
    fn intervals_hold_the_truth_as_often_as_they_say_and_a_good_model_narrows_them() {
        let [ips, snips, robust] = check_coverage(truth);
        assert!(robust < snips && snips < ips, "{robust} {snips} {ips}");
    }

    #[test]
    fn a_wrong_model_of_the_rewards_costs_width_and_no_truth() {
        check_coverage(|_| [0.9, 0.1, 0.0]);
    }

    #[test]
    fn a_policy_is_worth_on_its_own_log_what_it_earned() {
        let mut rows = log(&mut seeded(1), 500, truth);
        for row in &mut rows {
            (row.target, row.expected) = (row.propensity, row.modelled);
        }
        let evaluation = Evaluation::of(&rows).unwrap();
        assert!((evaluation.effective - 500.0).abs() < 1e-6);
        for estimate in [evaluation.ips, evaluation.snips, evaluation.robust] {
            assert!((estimate.value - evaluation.logged.value).abs() < 1e-9);
        }
        assert!(evaluation.gain.value.abs() < 1e-9);
    }

    #[test]
    fn a_policy_that_makes_other_choices_is_thinly_supported() {
        let mut rows = log(&mut seeded(2), 500, truth);
        for (number, row) in rows.iter_mut().enumerate() {
            row.target = if number % 50 == 0 { 1.0 } else { 0.0 };
        }
        let evaluation = Evaluation::of(&rows).unwrap();
        assert!(evaluation.is_thin() && evaluation.effective <= 10.0);
        rows.iter_mut().for_each(|row| row.target = 0.0);
        let evaluation = Evaluation::of(&rows).unwrap();
        assert!(evaluation.is_thin() && evaluation.snips.high.is_infinite());
    }

    #[test]
    fn impossible_rows_are_left_out() {
        let good = log(&mut seeded(3), 2, truth);
        let bad = [
            Logged { propensity: 0.0, ..good[0] },
            Logged { reward: f64::NAN, ..good[0] },
            Logged { target: 1.5, ..good[0] },
        ];
        assert_eq!(Evaluation::of(&bad), None);
        let mixed: Vec<Logged> = good.iter().chain(&bad).copied().collect();
        assert_eq!(Evaluation::of(&mixed).unwrap().decisions, 2);
    }
}
