//! How much each origin weighs in what a node believes.
//!
//! The totals of a mesh are plain sums, and a plain mean has a breakdown point of 0: one origin that invents
//! judgements decides. A median over origins would cost what a small mesh has to learn from. So weight is capped
//! instead, for each arm by itself: from four origins up no foreign one weighs more than the larger of what this node
//! observed itself and twice the median of all origins. With three origins a cap could not tell the honest busy node
//! from a liar; from four up a lone liar moves the median by one place at most, and gains no more than two honest
//! nodes have. Of a pair of words most origins know nothing, so there a foreign origin weighs no more than twice the
//! second most that any observed of it: what one alone tells is believed by nobody else. An origin that was caught lying never weighs more than own evidence, however few the origins are.

use std::collections::BTreeMap;

use crate::bandit::evidence::testimony::ArmEvidence;
use crate::bandit::pairs::{PairKey, PairSums};
use crate::bandit::stats::ArmStats;
use crate::bandit::sums::QualitySums;
use crate::calibration::{BINS, DomainReliability};
use crate::domain::Domain;
use crate::escalate::gain::AnswerSums;

/// Origins of an arm from which caps apply.
const CAPPED_FROM: usize = 4;

/// Medians that a foreign origin may weigh: traffic is seldom even, and an honest node with twice its share counts
/// in full.
const MEDIANS: f64 = 2.0;

/// What sums of shares fall short of a whole answer by arithmetic alone.
const ROUNDING: f64 = 1e-6;

/// In what regard an origin stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// This node.
    Own,
    /// Another node.
    Good,
    /// Another node that lately sent what honest counting cannot reach.
    Flagged,
}

/// What one origin says of an arm.
#[derive(Debug, Clone, Copy)]
pub(super) struct Voice<'a> {
    pub evidence: &'a ArmEvidence,
    pub standing: Standing,
}

/// Bounds on the weight of foreign origins, of one arm and one kind of evidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Influence {
    /// Most that a foreign origin may weigh.
    pub cap: f64,
    /// Most that a flagged one may.
    pub flagged: f64,
}

impl Influence {
    /// Works the bounds out from what this node observed and the weights of all origins, this one included.
    pub fn of(own: f64, weights: impl Iterator<Item = f64>) -> Self {
        let mut weights: Vec<f64> = weights.filter(|weight| *weight > 0.0).collect();
        weights.sort_by(f64::total_cmp);
        let cap = match weights.get(weights.len().saturating_sub(1) / 2) {
            // The lower of two medians: half of an even number may be one liar and whom it speaks for.
            Some(median) if weights.len() >= CAPPED_FROM => own.max(MEDIANS * median),
            _ => f64::INFINITY,
        };
        Self { cap, flagged: own.min(cap) }
    }

    /// Returns the share of its weight at which a foreign origin counts, 0 to 1.
    pub fn share(&self, weight: f64, is_flagged: bool) -> f64 {
        let cap = if is_flagged { self.flagged } else { self.cap };
        match weight > cap {
            true => (cap / weight).clamp(0.0, 1.0),
            // What weighs nothing is no way past a cap of nothing.
            false if cap <= 0.0 => 0.0,
            false => 1.0,
        }
    }
}

/// Adds up what the origins say of one arm, each within its bounds.
pub(super) fn weighed(voices: &[Voice<'_>]) -> ArmEvidence {
    // Requests that ended and answers that were judged differ by orders of magnitude: each kind has its own bounds.
    let ends = shares(voices, |evidence| evidence.stats.count as f64);
    let scores = shares(voices, |evidence| evidence.stats.scored as f64);
    let judged = shares(voices, |evidence| evidence.reliability.count() as f64);
    let quality = shares(voices, |evidence| evidence.quality.weight());
    // Each domain has a curve of its own. The bounds over all of them stay: of a domain that few know there are none.
    let domains = Domain::ALL
        .map(|domain| shares(voices, move |evidence| evidence.reliability.of(domain).count() as f64));
    let pairs = pair_caps(voices);
    let mut sum = ArmEvidence::default();
    for voice in voices {
        let evidence = voice.evidence;
        sum.stats.add(&lighter_stats(&evidence.stats, ends(voice), scores(voice)));
        let known = |domain: usize| domains[domain](voice).min(judged(voice));
        sum.reliability.add(&lighter_reliability(&evidence.reliability, known));
        // The same judgements, so at the same share: together they are moments.
        sum.quality.add(&evidence.quality, quality(voice));
        sum.answers.add(&evidence.answers, quality(voice));
        sum.pairs.add(&evidence.pairs, |key| match voice.standing {
            Standing::Own => 1.0,
            Standing::Good | Standing::Flagged => {
                let count = evidence.pairs.get(key).map_or(0.0, |sum| sum.count);
                let is_flagged = voice.standing == Standing::Flagged;
                pairs.get(&key).map_or(0.0, |cap| cap.share(count, is_flagged)).min(quality(voice))
            }
        });
    }
    sum
}

/// Works out how much of each pair a foreign origin may weigh.
fn pair_caps(voices: &[Voice<'_>]) -> BTreeMap<PairKey, Influence> {
    #[derive(Default)]
    struct Known {
        own: f64,
        most: [f64; 2],
    }
    let mut known: BTreeMap<PairKey, Known> = BTreeMap::new();
    for voice in voices {
        for (key, sum) in voice.evidence.pairs.iter() {
            let known = known.entry(key).or_default();
            if voice.standing == Standing::Own {
                known.own = sum.count;
            }
            let [first, second] = known.most;
            known.most = match sum.count {
                count if count > first => [count, first],
                count => [first, second.max(count)],
            };
        }
    }
    let is_capped = voices.len() >= CAPPED_FROM;
    let bounds = |Known { own, most: [_, second] }: Known| {
        let cap = if is_capped { own.max(MEDIANS * second) } else { f64::INFINITY };
        Influence { cap, flagged: own.min(cap) }
    };
    known.into_iter().map(|(key, known)| (key, bounds(known))).collect()
}

/// Returns the share at which a voice counts, by one kind of evidence.
fn shares(voices: &[Voice<'_>], weigh: impl Fn(&ArmEvidence) -> f64) -> impl Fn(&Voice<'_>) -> f64 {
    let own = voices.iter().find(|voice| voice.standing == Standing::Own);
    let own = own.map_or(0.0, |voice| weigh(voice.evidence));
    let influence = Influence::of(own, voices.iter().map(|voice| weigh(voice.evidence)));
    move |voice| match voice.standing {
        Standing::Own => 1.0,
        Standing::Good => influence.share(weigh(voice.evidence), false),
        Standing::Flagged => influence.share(weigh(voice.evidence), true),
    }
}

impl ArmEvidence {
    /// Returns the same at a share of its weight, 0 to 1; what cannot be made lighter than one is left out.
    pub fn lighter(&self, share: f64) -> Self {
        let (mut quality, mut answers, mut pairs) =
            (QualitySums::default(), AnswerSums::default(), PairSums::default());
        quality.add(&self.quality, share);
        answers.add(&self.answers, share);
        pairs.add(&self.pairs, |_| share);
        Self {
            stats: lighter_stats(&self.stats, share, share),
            reliability: lighter_reliability(&self.reliability, |_| share),
            quality,
            answers,
            pairs,
        }
    }
}

/// Takes a count down to a share of it; returns it with the exact share that is left.
fn lighter(count: u64, share: f64) -> (u64, f64) {
    if share >= 1.0 || count == 0 {
        return (count, 1.0);
    }
    let left = (count as f64 * share).floor();
    (left as u64, left / count as f64)
}

fn lighter_stats(stats: &ArmStats, ends: f64, scores: f64) -> ArmStats {
    let (count, end_share) = lighter(stats.count, ends);
    let (scored, score_share) = lighter(stats.scored, scores);
    let (ttft_count, ttft_share) = lighter(stats.ttft_count, ends);
    ArmStats {
        count,
        failures: ((stats.failures as f64 * end_share).round() as u64).min(count),
        scored,
        reward_sum: stats.reward_sum * score_share,
        ttft_count,
        ttft_ms_sum: stats.ttft_ms_sum * ttft_share,
        version: stats.version,
    }
}

/// Makes each domain lighter by its share. What a bin loses to whole answers the next one of its domain gets: rounding
/// each down would lose an answer for each of ten bins, rounding to the nearest could exceed the share.
fn lighter_reliability(reliability: &DomainReliability, share: impl Fn(usize) -> f64) -> DomainReliability {
    let (mut lighter_one, mut carried) = (*reliability, 0.0);
    for (at, bin) in lighter_one.bins_mut().enumerate() {
        if at % BINS == 0 {
            carried = ROUNDING;
        }
        let share = share(at / BINS);
        if share >= 1.0 || bin.count == 0 {
            continue;
        }
        let left = bin.count as f64 * share + carried;
        let count = left.floor();
        carried = left - count;
        let share = count / bin.count as f64;
        bin.count = count as u64;
        bin.raw_sum *= share;
        bin.score_sum *= share;
    }
    lighter_one
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bandit::pairs::PairSum;
    use crate::units::Score;

    #[test]
    fn three_origins_count_in_full_and_of_four_none_outweighs_two_others() {
        let influence = Influence::of(10.0, [10.0, 20.0, 9_000.0].into_iter());
        assert_eq!(influence.share(9_000.0, false), 1.0);
        let influence = Influence::of(10.0, [10.0, 20.0, 30.0, 9_000.0].into_iter());
        assert_eq!(influence.share(9_000.0, false) * 9_000.0, 40.0);
        assert_eq!(influence.share(30.0, false), 1.0);
    }

    #[test]
    fn own_evidence_lifts_the_cap_and_bounds_a_flagged_origin() {
        let influence = Influence::of(500.0, [500.0, 1.0, 2.0, 9_000.0].into_iter());
        assert_eq!(influence.share(9_000.0, false) * 9_000.0, 500.0);
        let influence = Influence::of(5.0, [5.0, 9_000.0].into_iter());
        assert!((influence.share(9_000.0, true) * 9_000.0 - 5.0).abs() < 1e-9);
        let nothing = Influence::of(0.0, [9_000.0].into_iter());
        assert_eq!((nothing.share(9_000.0, true), nothing.share(0.0, true)), (0.0, 0.0));
    }

    #[test]
    fn what_is_made_lighter_keeps_its_means_and_stays_possible() {
        let stats = ArmStats {
            count: 1_000,
            failures: 500,
            scored: 400,
            reward_sum: 300.0,
            ttft_count: 10,
            ttft_ms_sum: 5_000.0,
            version: 1_400,
        };
        let light = lighter_stats(&stats, 0.0105, 0.01);
        assert_eq!((light.count, light.failures, light.scored, light.reward_sum), (10, 5, 4, 3.0));
        assert_eq!((light.ttft_count, light.ttft_ms_sum), (0, 0.0));
        assert!(light.is_plausible());
    }

    /// Answers of one domain, as many in each bin.
    fn known(domain: Domain, each: usize) -> ArmEvidence {
        let mut evidence = ArmEvidence::default();
        for n in 0..BINS * each {
            let raw = Score::clamped((n % BINS) as f64 / 10.0 + 0.05);
            evidence.reliability.record(domain, raw, Score::ONE);
        }
        evidence
    }

    #[test]
    fn whole_answers_of_bins_never_exceed_the_share() {
        for (each, share, left) in [(1, 0.55, 5), (3, 0.25, 7), (7, 0.1, 7), (1, 0.05, 0), (9, 1.0, 90)] {
            let light = known(Domain::Math, each).lighter(share).reliability;
            assert_eq!(light.count(), left, "{each} at {share}");
            assert!(light.is_plausible());
        }
    }

    #[test]
    fn an_origin_is_capped_in_each_domain_by_what_is_known_of_that() {
        let mut liar = known(Domain::Math, 20);
        liar.reliability.add(&known(Domain::Code, 20).reliability);
        let honest: Vec<ArmEvidence> = (0..4)
            .map(|_| {
                let mut all = known(Domain::Code, 20);
                all.reliability.add(&known(Domain::Math, 1).reliability);
                all
            })
            .collect();
        let mut voices: Vec<Voice<'_>> =
            honest.iter().map(|evidence| Voice { evidence, standing: Standing::Good }).collect();
        voices[0].standing = Standing::Own;
        voices.push(Voice { evidence: &liar, standing: Standing::Good });
        let believed = weighed(&voices).reliability;
        assert_eq!(believed.of(Domain::Code).count(), 1_000, "as much as the others");
        assert_eq!(believed.of(Domain::Math).count(), 4 * 10 + 20, "twice the median");
        // Of a domain that nobody else knows the bounds over all of them are left.
        let alone = known(Domain::Legal, 1_000);
        voices[4].evidence = &alone;
        assert_eq!(weighed(&voices).reliability.of(Domain::Legal).count(), 2 * 210);
    }

    /// An arm that was judged bad where a pair of words occurred, `count` times; 0 = never.
    fn heard(count: f64) -> ArmEvidence {
        let mut evidence = ArmEvidence::default();
        (0..10).for_each(|_| evidence.quality.record(&crate::features::Features::default(), Score::ONE));
        if count > 0.0 {
            evidence.pairs.insert(PairKey(1), PairSum { count, score: 0.0, expected: count });
        }
        evidence
    }

    #[test]
    fn of_four_origins_a_pair_that_one_alone_tells_of_is_not_believed() {
        let believed = |counts: &[f64], standing: Standing| {
            let heard: Vec<ArmEvidence> = counts.iter().map(|count| heard(*count)).collect();
            let mut voices: Vec<Voice<'_>> =
                heard.iter().map(|evidence| Voice { evidence, standing: Standing::Good }).collect();
            voices[0].standing = Standing::Own;
            voices.last_mut().unwrap().standing = standing;
            weighed(&voices).pairs.get(PairKey(1)).map_or(0.0, |sum| sum.count)
        };
        assert_eq!(believed(&[0.0, 0.0, 150.0], Standing::Good), 150.0, "three trust each other");
        assert_eq!(believed(&[0.0, 0.0, 0.0, 150.0], Standing::Good), 0.0);
        assert_eq!(believed(&[0.0, 0.0, 20.0, 150.0], Standing::Good), 20.0 + 40.0, "twice the second");
        assert_eq!(believed(&[30.0, 0.0, 0.0, 150.0], Standing::Good), 30.0 + 60.0);
        assert_eq!(believed(&[30.0, 0.0, 0.0, 150.0], Standing::Flagged), 30.0 + 30.0, "as much as own ones");
        assert_eq!(believed(&[0.0, 150.0], Standing::Flagged), 0.0);
    }
}
