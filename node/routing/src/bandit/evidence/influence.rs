//! How much each origin weighs in what a node believes.
//!
//! The totals of a mesh are plain sums, and a plain mean has a breakdown point of 0: one origin that invents
//! judgements decides. A median over origins would cost what a small mesh has to learn from. So two bounds apply
//! instead, from four origins up, to each arm and each kind of evidence by itself:
//!
//! * **Weight.** No foreign origin weighs more than the larger of what this node observed itself and the second most
//!   that any origin did: what one alone tells of an arm is believed by nobody else. Origins that know nothing of the
//!   arm are counted too: an arm that is rightly left alone is known to few, and that is where a lie pays most.
//! * **Agreement.** Whoever's mean lies farther from that of all others than traffic and chance explain is believed
//!   less, and soon not at all. Lies within honest difference remain, and move a decision by no more than that.
//!
//! With three origins neither could tell the honest busy node from a liar. An origin that was caught lying never weighs
//! more than own evidence, however few the origins are.

use std::collections::BTreeMap;

use crate::bandit::evidence::testimony::ArmEvidence;
use crate::bandit::pairs::{PairKey, PairSums};
use crate::bandit::stats::ArmStats;
use crate::bandit::sums::QualitySums;
use crate::calibration::{BINS, DomainReliability, Reliability};
use crate::domain::Domain;
use crate::escalate::gain::AnswerSums;

/// Origins from which bounds apply.
const CAPPED_FROM: usize = 4;

/// How far the mean of an honest origin's traffic may lie from that of all others.
const HONEST: f64 = 0.15;

/// Standard deviations by which chance may move it further.
const DEVIATIONS: f64 = 2.0;

/// How far beyond both belief has faded to nothing.
const FADES: f64 = 0.1;

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

/// What an origin claims of one arm, of one kind of evidence.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Claim {
    /// Observations.
    pub weight: f64,
    /// Of those, the good ones, or the sum of their scores: 0 to `weight`.
    pub good: f64,
}

impl Claim {
    fn part(&self, share: f64) -> Self {
        Self { weight: share * self.weight, good: share * self.good }
    }

    fn plus(&self, other: &Self) -> Self {
        Self { weight: self.weight + other.weight, good: self.good + other.good }
    }

    fn without(&self, other: &Self) -> Self {
        Self { weight: (self.weight - other.weight).max(0.0), good: (self.good - other.good).max(0.0) }
    }

    /// Returns how much farther this lies from what others say than honest difference reaches; 0 or less = within.
    ///
    /// Origins differ in what they are asked, so claims may differ, too; and few observations say little.
    fn beyond(&self, others: &Self) -> f64 {
        if self.weight <= 0.0 || others.weight <= 0.0 {
            return 0.0;
        }
        // Agresti and Coull (1998): two successes and two failures more, or a first answer would be certain.
        let usual = (others.good + 2.0) / (others.weight + 4.0);
        let spread =
            (usual * (1.0 - usual) * (1.0 / (others.weight + 4.0) + 1.0 / (self.weight + 4.0))).sqrt();
        (self.good / self.weight - usual).abs() - HONEST - DEVIATIONS * spread
    }
}

/// Works out at which share of its weight each voice counts, by one kind of evidence; `origins` are all that were heard,
/// those that know nothing of the arm included.
fn shares(voices: &[Voice<'_>], origins: usize, claim: impl Fn(&ArmEvidence) -> Claim) -> Vec<f64> {
    let claims: Vec<Claim> = voices.iter().map(|voice| claim(voice.evidence)).collect();
    let own = voices.iter().position(|voice| voice.standing == Standing::Own);
    let own = own.map_or(0.0, |at| claims[at].weight);
    let influence = Influence::of(own, origins, claims.iter().map(|claim| claim.weight));
    let within = |(voice, claim): (&Voice<'_>, &Claim)| match voice.standing {
        Standing::Own => 1.0,
        Standing::Good => influence.share(claim.weight, false),
        Standing::Flagged => influence.share(claim.weight, true),
    };
    let shares: Vec<f64> = voices.iter().zip(&claims).map(within).collect();
    if origins < CAPPED_FROM {
        return shares;
    }
    let agreed = agreements(voices, &claims, &shares);
    shares.iter().zip(agreed).map(|(share, agreement)| share * agreement).collect()
}

/// Works out how far each voice is believed beside all others, 0 to 1, by what each counts at.
///
/// Whoever contradicts the others most is taken out of what the rest are held against, then the next: beside a liar
/// who weighs as much as they do the honest would seem to be wrong, too. At most a third are taken out: beyond
/// that nobody could say who the others are.
fn agreements(voices: &[Voice<'_>], claims: &[Claim], shares: &[f64]) -> Vec<f64> {
    let parts: Vec<Claim> = claims.iter().zip(shares).map(|(claim, share)| claim.part(*share)).collect();
    let mut believed = parts.iter().fold(Claim::default(), |sum, part| sum.plus(part));
    let mut is_out = vec![false; claims.len()];
    let is_foreign = |at: &usize| voices[*at].standing != Standing::Own;
    let beyond = |at: usize, believed: &Claim, is_out: &[bool]| {
        let others = if is_out[at] { *believed } else { believed.without(&parts[at]) };
        claims[at].beyond(&others)
    };
    for _ in 0..claims.len() / 3 {
        let inside = (0..claims.len()).filter(is_foreign).filter(|at| !is_out[*at]);
        let worst = inside.map(|at| (at, beyond(at, &believed, &is_out))).max_by(|a, b| a.1.total_cmp(&b.1));
        let Some((worst, _)) = worst.filter(|(_, beyond)| *beyond > 0.0) else { break };
        believed = believed.without(&parts[worst]);
        is_out[worst] = true;
    }
    let agreement = |at: usize| {
        if is_foreign(&at) { (1.0 - beyond(at, &believed, &is_out) / FADES).clamp(0.0, 1.0) } else { 1.0 }
    };
    (0..claims.len()).map(agreement).collect()
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
    /// Works the bounds out from what this node observed, how many origins there are, and the weights of those that know
    /// the arm, this one included.
    pub fn of(own: f64, origins: usize, weights: impl Iterator<Item = f64>) -> Self {
        let [_, second] = weights.fold([0.0; 2], two_most);
        let cap = if origins >= CAPPED_FROM { own.max(second) } else { f64::INFINITY };
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

/// Keeps the two largest numbers, the largest first.
fn two_most([first, second]: [f64; 2], weight: f64) -> [f64; 2] {
    if weight > first { [weight, first] } else { [first, second.max(weight)] }
}

/// Adds up what the origins say of one arm, each within its bounds.
pub(super) fn weighed(voices: &[Voice<'_>], origins: usize) -> ArmEvidence {
    // Requests that ended and answers that were judged differ by orders of magnitude: each kind has its own bounds.
    let ends = shares(voices, origins, |ArmEvidence { stats, .. }| Claim {
        weight: stats.count as f64,
        good: stats.count.saturating_sub(stats.failures) as f64,
    });
    let scores = shares(voices, origins, |ArmEvidence { stats, .. }| Claim {
        weight: stats.scored as f64,
        good: stats.reward_sum,
    });
    let quality = shares(voices, origins, |ArmEvidence { quality, .. }| Claim {
        weight: quality.weight(),
        good: quality.reward[0],
    });
    let curves = Curves::of(voices, origins);
    let pairs = pair_caps(voices, origins);
    let mut sum = ArmEvidence::default();
    for (at, voice) in voices.iter().enumerate() {
        let evidence = voice.evidence;
        sum.stats.add(&lighter_stats(&evidence.stats, ends[at], scores[at]));
        if let Some(curves) = &curves {
            sum.reliability
                .add(&lighter_reliability(&evidence.reliability, |domain| curves.share(domain, at)));
        }
        // The same judgements, so at the same share: together they are moments.
        if evidence.quality.version > 0 {
            sum.quality.add(&evidence.quality, quality[at]);
            sum.answers.add(&evidence.answers, quality[at]);
        }
        sum.pairs.add(&evidence.pairs, |key| match voice.standing {
            Standing::Own => 1.0,
            Standing::Good | Standing::Flagged => {
                let count = evidence.pairs.get(key).map_or(0.0, |sum| sum.count);
                let is_flagged = voice.standing == Standing::Flagged;
                pairs.get(&key).map_or(0.0, |cap| cap.share(count, is_flagged)).min(quality[at])
            }
        });
    }
    sum
}

/// At which shares curves of confidence count: each domain has one of its own, and bounds over all of them stay, since
/// of a domain that few know there are none.
struct Curves {
    all: Vec<f64>,
    domains: Vec<Vec<f64>>,
}

impl Curves {
    /// `None` while nobody has any.
    fn of(voices: &[Voice<'_>], origins: usize) -> Option<Self> {
        if voices.iter().all(|voice| voice.evidence.reliability.count() == 0) {
            return None;
        }
        let claim = |bins: &Reliability| Claim { weight: bins.count() as f64, good: bins.score_sum() };
        let of = |domain: Domain| {
            shares(voices, origins, move |evidence: &ArmEvidence| claim(evidence.reliability.of(domain)))
        };
        let all = shares(voices, origins, |evidence| claim(&evidence.reliability.total()));
        Some(Self { all, domains: Domain::ALL.into_iter().map(of).collect() })
    }

    fn share(&self, domain: usize, voice: usize) -> f64 {
        self.domains[domain][voice].min(self.all[voice])
    }
}

/// Works out how much of each pair a foreign origin may weigh.
fn pair_caps(voices: &[Voice<'_>], origins: usize) -> BTreeMap<PairKey, Influence> {
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
            known.most = two_most(known.most, sum.count);
        }
    }
    let bounds = |Known { own, most }: Known| Influence::of(own, origins, most.into_iter());
    known.into_iter().map(|(key, known)| (key, bounds(known))).collect()
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
    fn three_origins_count_in_full_and_of_four_none_outweighs_the_next() {
        let influence = Influence::of(10.0, 3, [10.0, 20.0, 9_000.0].into_iter());
        assert_eq!(influence.share(9_000.0, false), 1.0);
        let influence = Influence::of(10.0, 4, [10.0, 20.0, 30.0, 9_000.0].into_iter());
        assert!((influence.share(9_000.0, false) * 9_000.0 - 30.0).abs() < 1e-9);
        assert_eq!(influence.share(30.0, false), 1.0);
        let alone = Influence::of(0.0, 5, [9_000.0].into_iter());
        assert_eq!(alone.share(9_000.0, false), 0.0, "four others never heard of the arm");
    }

    /// Judgements of an arm, so many with this mean.
    fn judged(count: u64, mean: f64) -> ArmEvidence {
        let (scored, reward_sum) = (count, count as f64 * mean);
        let stats = ArmStats { count, scored, reward_sum, version: 2 * count, ..ArmStats::default() };
        ArmEvidence { stats, ..ArmEvidence::default() }
    }

    /// What is believed of an arm by the first of these origins.
    fn believed(said: &[ArmEvidence]) -> ArmStats {
        let standing = |at: usize| if at == 0 { Standing::Own } else { Standing::Good };
        let voice = |(at, evidence)| Voice { evidence, standing: standing(at) };
        let voices: Vec<Voice<'_>> = said.iter().enumerate().map(voice).collect();
        weighed(&voices, said.len()).stats
    }

    #[test]
    fn who_contradicts_all_others_beyond_honest_difference_is_not_believed() {
        let honest = [judged(5, 0.4), judged(8, 0.25), judged(6, 0.5), judged(4, 0.25)];
        let with = |fifth: ArmEvidence| {
            let mut said = honest.to_vec();
            said.push(fifth);
            believed(&said)
        };
        let among_themselves = believed(&honest);
        assert_eq!(among_themselves.scored, 5 + 6 + 6 + 4, "small numbers differ by chance");
        let mean = |stats: ArmStats| stats.reward_sum / stats.scored as f64;
        let poisoned = with(judged(1_000_000_000, 1.0));
        assert!((mean(poisoned) - mean(among_themselves)).abs() < 0.02, "{poisoned:?}");
        let many = [judged(300, 0.6), judged(300, 0.7), judged(300, 0.65), judged(300, 0.55)];
        assert_eq!(believed(&many).scored, 1_200, "other traffic, other means");
        let denied = [judged(300, 0.8), judged(300, 0.8), judged(300, 0.8), judged(300, 0.0)];
        assert_eq!(believed(&denied).scored, 900, "blame is no better than praise");
    }

    #[test]
    fn failures_that_nobody_else_saw_are_not_believed() {
        let fails = |failures| {
            let mut evidence = judged(400, 0.5);
            evidence.stats.failures = failures;
            evidence
        };
        let stats = believed(&[fails(4), fails(8), fails(2), fails(400)]);
        assert_eq!((stats.count, stats.failures), (1_200, 14));
    }

    #[test]
    fn own_evidence_lifts_the_cap_and_bounds_a_flagged_origin() {
        let influence = Influence::of(500.0, 4, [500.0, 1.0, 2.0, 9_000.0].into_iter());
        assert_eq!(influence.share(9_000.0, false) * 9_000.0, 500.0);
        let influence = Influence::of(5.0, 2, [5.0, 9_000.0].into_iter());
        assert!((influence.share(9_000.0, true) * 9_000.0 - 5.0).abs() < 1e-9);
        let nothing = Influence::of(0.0, 2, [9_000.0].into_iter());
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
        let believed = weighed(&voices, 5).reliability;
        assert_eq!(believed.of(Domain::Code).count(), 4 * 200 + 105, "in all as much as another one knows");
        assert_eq!(believed.of(Domain::Math).count(), 4 * 10 + 10, "as much as another one knows of it");
        let alone = known(Domain::Legal, 1_000);
        voices[4].evidence = &alone;
        assert_eq!(weighed(&voices, 5).reliability.of(Domain::Legal).count(), 0, "nobody else knows any");
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
            weighed(&voices, voices.len()).pairs.get(PairKey(1)).map_or(0.0, |sum| sum.count)
        };
        assert_eq!(believed(&[0.0, 0.0, 150.0], Standing::Good), 150.0, "three trust each other");
        assert_eq!(believed(&[0.0, 0.0, 0.0, 150.0], Standing::Good), 0.0);
        assert_eq!(believed(&[0.0, 0.0, 20.0, 150.0], Standing::Good), 20.0 + 20.0, "as much as the second");
        assert_eq!(believed(&[30.0, 0.0, 0.0, 150.0], Standing::Good), 30.0 + 30.0);
        assert_eq!(believed(&[30.0, 0.0, 0.0, 150.0], Standing::Flagged), 30.0 + 30.0, "as much as own ones");
        assert_eq!(believed(&[0.0, 150.0], Standing::Flagged), 0.0);
    }
}
