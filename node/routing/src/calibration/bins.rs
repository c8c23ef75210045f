//! How judged answers of an arm are counted: by raw confidence, and by the domain of their requests. Sums.

use crate::domain::Domain;
use crate::units::Score;

use super::curve::Curve;

/// Bins of raw confidence, equally wide. More would need more judgements than people give.
pub const BINS: usize = 10;

/// Bins of an arm over all domains.
pub const ALL_BINS: usize = Domain::ALL.len() * BINS;

/// How answers of one range of raw confidence were judged. Sums.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Bin {
    /// Judged answers.
    pub count: u64,
    /// Sum of their raw confidences, each 0 to 1.
    pub raw_sum: f64,
    /// Sum of their scores, each 0 to 1.
    pub score_sum: f64,
}

impl Bin {
    pub(super) fn mean_raw(&self) -> Option<f64> {
        (self.count > 0).then(|| self.raw_sum / self.count as f64)
    }

    fn mean_score(&self) -> Option<f64> {
        (self.count > 0).then(|| self.score_sum / self.count as f64)
    }

    fn add(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        self.raw_sum += other.raw_sum;
        self.score_sum += other.score_sum;
    }

    /// True when honest counting can lead here, `index` being the place of the bin.
    fn is_plausible(&self, index: usize) -> bool {
        let width = 1.0 / BINS as f64;
        let (low, high) = (index as f64 * width, (index + 1) as f64 * width);
        let (count, slack) = (self.count as f64, 1e-6 * (1.0 + self.count as f64));
        self.raw_sum >= count * low - slack
            && self.raw_sum <= count * high + slack
            && self.score_sum >= 0.0
            && self.score_sum <= count + slack
    }
}

/// How answers were judged, by raw confidence. All fields are sums, so those of several origins add up.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Reliability {
    /// The bins, lowest confidence first.
    pub bins: [Bin; BINS],
}

impl Reliability {
    /// Counts a judgement of an answer that had this raw confidence.
    pub fn record(&mut self, raw: Score, score: Score) {
        self.bins[bin_of(raw)].add(&Bin { count: 1, raw_sum: raw.value(), score_sum: score.value() });
    }

    /// Adds the sums of another origin or domain; counts saturate.
    pub fn add(&mut self, other: &Self) {
        self.bins.iter_mut().zip(&other.bins).for_each(|(ours, theirs)| ours.add(theirs));
    }

    /// Returns the number of judged answers.
    pub fn count(&self) -> u64 {
        self.bins.iter().fold(0, |sum, bin| sum.saturating_add(bin.count))
    }

    /// Returns the sum of their scores.
    pub fn score_sum(&self) -> f64 {
        self.bins.iter().map(|bin| bin.score_sum).sum()
    }

    /// Returns the expected calibration error of the raw numbers, 0 (honest) to 1; 0 without evidence.
    ///
    /// The mean distance between confidence and judgement over the bins, weighed by their answers (Naeini et al. 2015).
    pub fn ece(&self) -> f64 {
        self.error_of(|raw| raw)
    }

    /// Returns the expected calibration error that is left when a curve is applied to the raw numbers.
    pub fn ece_with(&self, curve: &Curve) -> f64 {
        self.error_of(|raw| curve.at(raw))
    }

    fn error_of(&self, map: impl Fn(f64) -> f64) -> f64 {
        let total = self.count();
        let errors = self
            .bins
            .iter()
            .filter_map(|bin| Some(bin.count as f64 * (map(bin.mean_raw()?) - bin.mean_score()?).abs()));
        if total == 0 { 0.0 } else { errors.sum::<f64>() / total as f64 }
    }
}

fn bin_of(raw: Score) -> usize {
    ((raw.value() * BINS as f64) as usize).min(BINS - 1)
}

/// How answers of one arm were judged, domain by domain. Sums; most bins of most arms are empty.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DomainReliability {
    domains: [Reliability; Domain::ALL.len()],
}

impl DomainReliability {
    /// Counts a judgement of an answer to a request of this domain.
    pub fn record(&mut self, domain: Domain, raw: Score, score: Score) {
        self.domains[domain as usize].record(raw, score);
    }

    /// Adds the sums of another origin; counts saturate.
    pub fn add(&mut self, other: &Self) {
        self.domains.iter_mut().zip(&other.domains).for_each(|(ours, theirs)| ours.add(theirs));
    }

    /// Returns the sums of one domain.
    pub fn of(&self, domain: Domain) -> &Reliability {
        &self.domains[domain as usize]
    }

    /// Returns the sums over all domains.
    pub fn total(&self) -> Reliability {
        let mut total = Reliability::default();
        self.domains.iter().for_each(|domain| total.add(domain));
        total
    }

    /// Returns the number of judged answers.
    pub fn count(&self) -> u64 {
        self.domains.iter().fold(0, |sum, domain| sum.saturating_add(domain.count()))
    }

    /// Returns all bins, domain by domain, lowest confidence first.
    pub fn bins(&self) -> impl Iterator<Item = &Bin> {
        self.domains.iter().flat_map(|domain| &domain.bins)
    }

    /// The same, to change.
    pub fn bins_mut(&mut self) -> impl Iterator<Item = &mut Bin> {
        self.domains.iter_mut().flat_map(|domain| &mut domain.bins)
    }

    /// True when honest counting can lead here.
    pub fn is_plausible(&self) -> bool {
        self.bins().enumerate().all(|(at, bin)| bin.is_plausible(at % BINS))
    }
}
