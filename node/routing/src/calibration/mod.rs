//! Makes a raw confidence mean what it says, per arm and domain, from what was judged.
//!
//! A [`DomainReliability`] counts, in ten bins of raw confidence for each domain, how answers were judged. All of it
//! are sums, so what several nodes observed adds up exactly as [`ArmStats`](crate::ArmStats) do: each origin
//! publishes its own within its [`Testimony`](crate::Testimony), a reader adds the origins. A [`Curve`] is made of the
//! sums when something changed: histogram binning (Zadrozny and Elkan 2001), made monotone by pooling adjacent
//! violators (Ayer et al. 1955), so that calibration never turns the order of two answers of one domain round.
//!
//! Two levels: the arm's curve is drawn towards the identity while there is little evidence, and each domain's towards
//! the arm's, so that a domain of which little was judged is taken for ordinary.

mod bins;
mod curve;

use std::collections::BTreeMap;

use crate::confidence::Confidence;
use crate::domain::Domain;
use crate::ids::ArmId;

pub use bins::{ALL_BINS, BINS, Bin, DomainReliability, Reliability};
pub use curve::{Curve, ENOUGH};

/// Curves of all arms: an immutable snapshot that requests read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Calibration {
    arms: BTreeMap<ArmId, Calibrated>,
}

/// One arm's sums and the curves made of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibrated {
    /// How its answers were judged.
    pub seen: DomainReliability,
    /// Over all domains.
    pub total: Reliability,
    /// The arm's curve.
    pub curve: Curve,
    domains: [Curve; Domain::ALL.len()],
}

impl Calibrated {
    /// Makes the curves of an arm.
    pub fn of(seen: DomainReliability) -> Self {
        let total = seen.total();
        let curve = Curve::of(&total);
        let domains = Domain::ALL.map(|domain| Curve::of_domain(seen.of(domain), &curve));
        Self { seen, total, curve, domains }
    }

    /// Returns the curve of a domain.
    pub fn curve_of(&self, domain: Domain) -> &Curve {
        &self.domains[domain as usize]
    }

    /// Returns the calibration error that is left over all domains, each with its own curve; 0 without evidence.
    pub fn ece(&self) -> f64 {
        let errors = Domain::ALL.iter().map(|domain| {
            let seen = self.seen.of(*domain);
            seen.count() as f64 * seen.ece_with(self.curve_of(*domain))
        });
        if self.total.count() == 0 { 0.0 } else { errors.sum::<f64>() / self.total.count() as f64 }
    }
}

impl Calibration {
    /// Makes the curves of all arms that were judged, from sums over all origins.
    pub fn of(sums: impl IntoIterator<Item = (ArmId, DomainReliability)>) -> Self {
        let judged = sums.into_iter().filter(|(_, seen)| seen.count() > 0);
        Self { arms: judged.map(|(arm, seen)| (arm, Calibrated::of(seen))).collect() }
    }

    /// Returns the calibrated confidence of an answer; unknown stays unknown, an unjudged arm's number as it is.
    pub fn apply(&self, arm: &ArmId, domain: Domain, raw: Confidence) -> Confidence {
        match self.arms.get(arm) {
            Some(calibrated) => raw.map(|score| calibrated.curve_of(domain).apply(score)),
            None => raw,
        }
    }

    /// Returns every judged arm with its sums over the mesh and its curves, sorted, for reliability diagrams.
    pub fn arms(&self) -> impl Iterator<Item = (&ArmId, &Calibrated)> {
        self.arms.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Score;

    fn score(value: f64) -> Score {
        Score::new(value).unwrap()
    }

    /// Answers of a model that says `raw` and is right with `right` of 100.
    fn seen(cases: &[(f64, u32)]) -> Reliability {
        let mut reliability = Reliability::default();
        for (raw, right) in cases {
            for n in 0..100 {
                reliability.record(score(*raw), if n < *right { Score::ONE } else { Score::ZERO });
            }
        }
        reliability
    }

    /// The same answers in one domain.
    fn seen_in(domain: Domain, cases: &[(f64, u32)]) -> DomainReliability {
        let mut all = DomainReliability::default();
        for (raw, right) in cases {
            for n in 0..100 {
                all.record(domain, score(*raw), if n < *right { Score::ONE } else { Score::ZERO });
            }
        }
        all
    }

    #[test]
    fn few_judgements_leave_the_number_as_it_is() {
        let mut few = Reliability::default();
        for _ in 0..ENOUGH - 1 {
            few.record(score(0.9), Score::ZERO);
        }
        assert!(Curve::of(&few).is_identity());
        assert_eq!(Curve::of(&few).apply(score(0.9)), score(0.9));
        few.record(score(0.9), Score::ZERO);
        assert!(Curve::of(&few).apply(score(0.9)).value() < 0.4);
    }

    #[test]
    fn an_overconfident_model_is_believed_less_and_its_error_falls() {
        let boastful = seen(&[(0.95, 50), (0.75, 40), (0.45, 20)]);
        let curve = Curve::of(&boastful);
        assert!((curve.apply(score(0.95)).value() - 0.5).abs() < 0.05);
        assert!((boastful.ece() - (0.45 + 0.35 + 0.25) / 3.0).abs() < 1e-9);
        assert!(boastful.ece_with(&curve) < 0.05, "{}", boastful.ece_with(&curve));
        assert_eq!(Reliability::default().ece(), 0.0);
    }

    #[test]
    fn neighbours_in_the_wrong_order_are_pooled() {
        let curve = Curve::of(&seen(&[(0.55, 80), (0.65, 40), (0.85, 90)]));
        let (low, high) = (curve.apply(score(0.55)).value(), curve.apply(score(0.65)).value());
        assert!((low - high).abs() < 1e-12 && (0.55..0.65).contains(&low), "{low} {high}");
        assert!(curve.apply(score(0.85)).value() > 0.85);
    }

    #[test]
    fn a_model_that_boasts_in_one_domain_is_believed_less_there_alone() {
        let arm = ArmId::new("m", None);
        let mut all = seen_in(Domain::Math, &[(0.95, 20)]);
        all.add(&seen_in(Domain::Code, &[(0.95, 90)]));
        let calibration = Calibration::of([(arm.clone(), all)]);
        let at = |domain| calibration.apply(&arm, domain, Confidence::Known(score(0.95))).value().unwrap();
        assert!(
            at(Domain::Math) < 0.35 && at(Domain::Code) > 0.8,
            "{} {}",
            at(Domain::Math),
            at(Domain::Code)
        );
        let ordinary = at(Domain::Legal);
        assert!((ordinary - 0.55).abs() < 0.05, "nothing was judged there: {ordinary}");
        let (_, calibrated) = calibration.arms().next().unwrap();
        assert!(calibrated.ece() < calibrated.total.ece_with(&calibrated.curve) + 0.07);
        assert!(calibrated.seen.of(Domain::Math).ece_with(calibrated.curve_of(Domain::Math)) < 0.1);
        assert_eq!(calibration.apply(&arm, Domain::Math, Confidence::Unknown), Confidence::Unknown);
    }

    #[test]
    fn few_judgements_of_a_domain_move_it_little() {
        let arm = ArmId::new("m", None);
        let mut all = seen_in(Domain::Code, &[(0.95, 90)]);
        for _ in 0..5 {
            all.record(Domain::Math, score(0.95), Score::ZERO);
        }
        let calibration = Calibration::of([(arm.clone(), all)]);
        let at = |domain| calibration.apply(&arm, domain, Confidence::Known(score(0.95))).value().unwrap();
        let (math, code) = (at(Domain::Math), at(Domain::Code));
        assert!(math < code && math > code - 0.25, "{math} {code}");
    }

    #[test]
    fn impossible_sums_are_refused() {
        let cases = [
            Bin { count: 1, raw_sum: 0.55, score_sum: 2.0 },
            Bin { count: 1, raw_sum: 0.95, score_sum: 1.0 },
            Bin { count: 1, raw_sum: 0.55, score_sum: f64::NAN },
            Bin { count: 0, raw_sum: 0.0, score_sum: 0.5 },
        ];
        assert!(seen_in(Domain::Math, &[(0.55, 50)]).is_plausible());
        for bin in cases {
            let mut all = DomainReliability::default();
            *all.bins_mut().nth(15).unwrap() = bin;
            assert!(!all.is_plausible(), "{bin:?}");
        }
    }
}
