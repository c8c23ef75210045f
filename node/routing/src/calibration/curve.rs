//! What to expect of an answer with a raw confidence: histogram binning, made monotone.

use crate::units::Score;

use super::bins::{BINS, Reliability};

/// Judgements of an arm below which its raw numbers are left as they are.
pub const ENOUGH: u64 = 20;

/// Judgements that the identity weighs in each bin of an arm.
const PRIOR: f64 = 4.0;

/// Judgements that the arm's curve weighs in each bin of a domain: a domain needs some before it differs.
const ARM_PRIOR: f64 = 20.0;

/// Judgements that a bin without any weighs in the pool, however firm its prior: it must not hold up those with some.
const EMPTY: f64 = 1.0;

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
        Self::drawn_towards(|raw| raw, PRIOR, reliability)
    }

    /// Makes the curve of one domain of an arm, drawn towards the arm's own; that one where nothing was judged.
    pub fn of_domain(reliability: &Reliability, arm: &Self) -> Self {
        if arm.is_identity() || reliability.count() == 0 {
            return arm.clone();
        }
        Self::drawn_towards(|raw| arm.at(raw), ARM_PRIOR, reliability)
    }

    fn drawn_towards(prior: impl Fn(f64) -> f64, weight: f64, reliability: &Reliability) -> Self {
        let points = reliability.bins.iter().enumerate().map(|(index, bin)| {
            let raw = bin.mean_raw().unwrap_or((index as f64 + 0.5) / BINS as f64);
            let expected = (bin.score_sum + weight * prior(raw)) / (bin.count as f64 + weight);
            Point { raw, expected, weight: bin.count as f64 + EMPTY }
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
    pub(super) fn at(&self, raw: f64) -> f64 {
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
