//! Makes a raw confidence mean what it says, per arm, from what was judged.
//!
//! A [`Reliability`] counts, in ten bins of raw confidence, how answers were judged. All of it are sums, so what
//! several nodes observed adds up exactly as [`ArmStats`](crate::ArmStats) do: each origin publishes its own,
//! newest life wins, a reader adds the origins. A [`Curve`] is made of the sums when something changed: histogram
//! binning (Zadrozny and Elkan 2001), drawn towards the identity while there is little evidence and made monotone
//! by pooling adjacent violators (Ayer et al. 1955), so that calibration never turns the order of two answers round.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::bandit::Implausible;
use crate::confidence::Confidence;
use crate::ids::ArmId;
use crate::units::Score;

/// Bins of raw confidence, equally wide. More would need more judgements than people give.
pub const BINS: usize = 10;

/// Judgements of an arm below which its raw numbers are left as they are.
pub const ENOUGH: u64 = 20;

/// Judgements that the identity weighs in each bin.
const PRIOR: f64 = 4.0;

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
    fn mean_raw(&self) -> Option<f64> {
        (self.count > 0).then(|| self.raw_sum / self.count as f64)
    }

    fn mean_score(&self) -> Option<f64> {
        (self.count > 0).then(|| self.score_sum / self.count as f64)
    }
}

/// How answers of one arm were judged, by raw confidence. All fields are sums, so those of several origins add up.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Reliability {
    /// The bins, lowest confidence first.
    pub bins: [Bin; BINS],
}

impl Reliability {
    /// Counts a judgement of an answer that had this raw confidence.
    pub fn record(&mut self, raw: Score, score: Score) {
        let bin = &mut self.bins[bin_of(raw)];
        bin.count = bin.count.saturating_add(1);
        bin.raw_sum += raw.value();
        bin.score_sum += score.value();
    }

    /// Adds the sums of another origin; counts saturate.
    pub fn add(&mut self, other: &Self) {
        for (ours, theirs) in self.bins.iter_mut().zip(&other.bins) {
            ours.count = ours.count.saturating_add(theirs.count);
            ours.raw_sum += theirs.raw_sum;
            ours.score_sum += theirs.score_sum;
        }
    }

    /// Returns the number of judged answers.
    pub fn count(&self) -> u64 {
        self.bins.iter().fold(0, |sum, bin| sum.saturating_add(bin.count))
    }

    /// True when honest counting can lead here.
    pub fn is_plausible(&self) -> bool {
        let near = |count: u64| 1e-6 * (1.0 + count as f64);
        self.bins.iter().enumerate().all(|(index, bin)| {
            let width = 1.0 / BINS as f64;
            let (low, high) = (index as f64 * width, (index + 1) as f64 * width);
            let (count, slack) = (bin.count as f64, near(bin.count));
            bin.raw_sum >= count * low - slack
                && bin.raw_sum <= count * high + slack
                && bin.score_sum >= 0.0
                && bin.score_sum <= count + slack
        })
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

    /// Orders two states of the same origin and arm. Total, so that every reader keeps the same one.
    fn newness(&self, other: &Self) -> Ordering {
        let sums = |s: &Self| s.bins.map(|bin| bin.count);
        let parts = self
            .bins
            .iter()
            .zip(&other.bins)
            .map(|(a, b)| a.raw_sum.total_cmp(&b.raw_sum).then(a.score_sum.total_cmp(&b.score_sum)));
        let by_sums = parts.fold(Ordering::Equal, Ordering::then);
        self.count().cmp(&other.count()).then_with(|| sums(self).cmp(&sums(other))).then(by_sums)
    }
}

fn bin_of(raw: Score) -> usize {
    ((raw.value() * BINS as f64) as usize).min(BINS - 1)
}

/// Maps raw confidence to the judgement to expect. Never decreases, stays within 0 and 1.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Curve {
    /// Raw confidence and what to expect there, both rising. Empty = identity.
    points: Vec<(f64, f64)>,
}

impl Curve {
    /// Makes the curve of an arm; the identity below [`ENOUGH`] judgements.
    pub fn of(reliability: &Reliability) -> Self {
        if reliability.count() < ENOUGH {
            return Self::default();
        }
        let points = reliability.bins.iter().enumerate().map(|(index, bin)| {
            let raw = bin.mean_raw().unwrap_or((index as f64 + 0.5) / BINS as f64);
            let weight = bin.count as f64 + PRIOR;
            Point { raw, expected: (bin.score_sum + PRIOR * raw) / weight, weight }
        });
        Self { points: pooled(points.collect()) }
    }

    /// True when raw numbers are left as they are.
    pub fn is_identity(&self) -> bool {
        self.points.is_empty()
    }

    /// Returns the judgement to expect of an answer with this raw confidence.
    pub fn apply(&self, raw: Score) -> Score {
        Score::clamped(self.at(raw.value()))
    }

    /// Interpolates between the points; level before the first and after the last.
    fn at(&self, raw: f64) -> f64 {
        let above = self.points.partition_point(|point| point.0 <= raw);
        match (above.checked_sub(1).and_then(|below| self.points.get(below)), self.points.get(above)) {
            (None, None) => raw,
            (Some(end), None) | (None, Some(end)) => end.1,
            (Some(low), Some(high)) => {
                let share = (raw - low.0) / (high.0 - low.0);
                (low.1 + share * (high.1 - low.1)).clamp(low.1, high.1)
            }
        }
    }
}

/// One bin on its way to a curve.
struct Point {
    raw: f64,
    expected: f64,
    weight: f64,
}

/// Makes expectations rise by replacing neighbours in the wrong order by their weighted mean.
fn pooled(points: Vec<Point>) -> Vec<(f64, f64)> {
    let raws: Vec<f64> = points.iter().map(|point| point.raw).collect();
    // Each block: expectation, weight, number of points that it stands for.
    let mut blocks: Vec<(f64, f64, usize)> = Vec::with_capacity(points.len());
    for point in points {
        let mut block = (point.expected, point.weight, 1);
        while let Some(last) = blocks.pop_if(|last| last.0 >= block.0) {
            let weight = last.1 + block.1;
            block = ((last.0 * last.1 + block.0 * block.1) / weight, weight, last.2 + block.2);
        }
        blocks.push(block);
    }
    let expected = blocks.iter().flat_map(|block| std::iter::repeat_n(block.0.clamp(0.0, 1.0), block.2));
    raws.into_iter().zip(expected).collect()
}

/// What each origin observed of reliability, newest life only: a join-semilattice like
/// [`Observations`](crate::Observations), so gossip may lose, repeat and reorder.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reliabilities {
    origins: BTreeMap<Arc<str>, Life>,
}

/// One life of an origin: from a start of the process to its next.
#[derive(Debug, Clone, PartialEq, Default)]
struct Life {
    generation: u64,
    arms: BTreeMap<ArmId, Reliability>,
}

impl Reliabilities {
    /// Counts an own judgement. Nothing is learnt about answers of unknown confidence.
    pub fn record(&mut self, origin: &Arc<str>, generation: u64, arm: &ArmId, raw: Confidence, score: Score) {
        if let (Some(raw), Some(life)) = (raw.score(), self.life(origin, generation)) {
            life.arms.entry(arm.clone()).or_default().record(raw, score);
        }
    }

    /// Takes in what an origin says it observed of an arm; older states than the one known change nothing.
    ///
    /// # Errors
    /// [`Implausible`] for sums that honest counting cannot reach; they are not kept.
    pub fn put(
        &mut self,
        origin: &Arc<str>,
        generation: u64,
        arm: &ArmId,
        seen: Reliability,
    ) -> Result<(), Implausible> {
        if !seen.is_plausible() {
            return Err(Implausible { origin: origin.clone(), arm: arm.clone() });
        }
        if let Some(life) = self.life(origin, generation) {
            life.keep_newer(arm, &seen);
        }
        Ok(())
    }

    /// Takes in everything that another set knows.
    pub fn merge(&mut self, other: &Self) {
        for (origin, theirs) in &other.origins {
            let Some(ours) = self.life(origin, theirs.generation) else { continue };
            for (arm, seen) in &theirs.arms {
                ours.keep_newer(arm, seen);
            }
        }
    }

    /// Returns what one origin observed, in its newest life.
    pub fn of(&self, origin: &str) -> impl Iterator<Item = (&ArmId, &Reliability)> {
        self.origins.get(origin).into_iter().flat_map(|life| &life.arms)
    }

    /// Adds the origins up and makes the curves.
    pub fn calibration(&self) -> Calibration {
        let mut sums: BTreeMap<ArmId, Reliability> = BTreeMap::new();
        for life in self.origins.values() {
            for (arm, seen) in &life.arms {
                sums.entry(arm.clone()).or_default().add(seen);
            }
        }
        let arms = sums.into_iter().map(|(arm, seen)| (arm, (seen, Curve::of(&seen)))).collect();
        Calibration { arms }
    }

    fn life(&mut self, origin: &Arc<str>, generation: u64) -> Option<&mut Life> {
        let life = self.origins.entry(origin.clone()).or_insert_with(|| Life::new(generation));
        match generation.cmp(&life.generation) {
            Ordering::Less => return None,
            Ordering::Equal => {}
            Ordering::Greater => *life = Life::new(generation),
        }
        Some(life)
    }
}

impl Life {
    fn new(generation: u64) -> Self {
        Self { generation, arms: BTreeMap::new() }
    }

    fn keep_newer(&mut self, arm: &ArmId, seen: &Reliability) {
        let known = self.arms.entry(arm.clone()).or_insert(*seen);
        if seen.newness(known) == Ordering::Greater {
            *known = *seen;
        }
    }
}

/// Curves of all arms: an immutable snapshot that requests read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Calibration {
    arms: BTreeMap<ArmId, (Reliability, Curve)>,
}

impl Calibration {
    /// Returns the calibrated confidence of an answer; unknown stays unknown, an unjudged arm's number as it is.
    pub fn apply(&self, arm: &ArmId, raw: Confidence) -> Confidence {
        match self.arms.get(arm) {
            Some((_, curve)) => raw.map(|score| curve.apply(score)),
            None => raw,
        }
    }

    /// Returns every judged arm with its sums over the mesh and its curve, sorted, for reliability diagrams.
    pub fn arms(&self) -> impl Iterator<Item = (&ArmId, &Reliability, &Curve)> {
        self.arms.iter().map(|(arm, (seen, curve))| (arm, seen, curve))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn origins_add_up_and_the_newest_life_counts() {
        let (a, b, arm) = (Arc::from("a"), Arc::from("b"), ArmId::new("m", None));
        let mut all = Reliabilities::default();
        for _ in 0..3 {
            all.put(&a, 1, &arm, seen(&[(0.95, 50)])).unwrap();
            all.put(&b, 1, &arm, seen(&[(0.95, 30)])).unwrap();
        }
        let calibration = all.calibration();
        let (_, sums, _) = calibration.arms().next().unwrap();
        assert_eq!((sums.count(), sums.bins[9].score_sum), (200, 80.0));
        let known = calibration.apply(&arm, Confidence::Known(score(0.95))).value().unwrap();
        assert!((known - 0.4).abs() < 0.05, "{known}");
        assert_eq!(calibration.apply(&arm, Confidence::Unknown), Confidence::Unknown);
        all.record(&a, 2, &arm, Confidence::Unknown, Score::ONE);
        assert_eq!(all.calibration().arms().next().unwrap().1.count(), 100);
    }

    #[test]
    fn impossible_sums_are_refused() {
        let (a, arm) = (Arc::from("a"), ArmId::new("m", None));
        let with = |bin: Bin| {
            let mut reliability = Reliability::default();
            reliability.bins[5] = bin;
            reliability
        };
        let cases = [
            Bin { count: 1, raw_sum: 0.55, score_sum: 2.0 },
            Bin { count: 1, raw_sum: 0.95, score_sum: 1.0 },
            Bin { count: 1, raw_sum: 0.55, score_sum: f64::NAN },
            Bin { count: 0, raw_sum: 0.0, score_sum: 0.5 },
        ];
        for bin in cases {
            assert!(Reliabilities::default().put(&a, 1, &arm, with(bin)).is_err(), "{bin:?}");
        }
    }
}
