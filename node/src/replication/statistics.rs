//! What a node observed, between the routing core's types and what travels; pure.
//!
//! Only shapes and lengths are checked here, whether honest counting can lead to the sums is for
//! [`Scrutiny`](shoal_routing::Scrutiny).

use std::cmp::Reverse;

use prost::Message;
use shoal_proto as proto;
use shoal_routing::bandit::pairs::MAX_PAIRS;
use shoal_routing::bandit::sums::PACKED;
use shoal_routing::calibration::{ALL_BINS, BINS, Bin};
use shoal_routing::escalate::gain::{AnswerSums, LEN};
use shoal_routing::features::DIM;
use shoal_routing::{
    ArmEvidence, ArmId, ArmStats, DomainReliability, PairKey, PairSum, PairSums, QualitySums, Testimony,
};

use super::{NAME_LEN, clean};

/// Most bytes of summaries in a gossip value, before its envelope and base64: 8 KiB of text hold 6,100.
const MAX_SUMMARY_BYTES: usize = 5_500;

/// Encodes a testimony as the payload of a signed blob; its generation and version stand in the envelope.
pub fn testimony_to_bytes(testimony: &Testimony) -> Vec<u8> {
    let arms = testimony.arms.iter().map(|(arm, evidence)| evidence_to_proto(arm, evidence)).collect();
    proto::Testimony { arms }.encode_to_vec()
}

/// Reads the testimony in a blob; `None` if the payload is not one.
pub fn testimony_from_blob(blob: &proto::SignedBlob) -> Option<Testimony> {
    let payload = proto::Testimony::decode(blob.payload.as_slice()).ok()?;
    let arms = payload.arms.into_iter().map(evidence_from_proto).collect::<Option<_>>()?;
    Some(Testimony { generation: blob.generation, version: blob.version, arms })
}

/// Makes the gossip value that announces a testimony: as many arms as fit, those most was observed of first.
pub fn summaries(testimony: &Testimony) -> proto::ArmSummaries {
    let mut arms: Vec<_> = testimony.arms.iter().collect();
    arms.sort_by_key(|(_, evidence)| Reverse(evidence.version()));
    let mut bytes = 0;
    let fits = |summary: &proto::ArmSummary| {
        // A tag and a length go before each.
        bytes += summary.encoded_len() + 3;
        bytes <= MAX_SUMMARY_BYTES
    };
    proto::ArmSummaries {
        arms: arms.into_iter().map(|(arm, evidence)| summary(arm, evidence)).take_while(fits).collect(),
        generation: testimony.generation,
        version: testimony.version,
    }
}

fn summary(arm: &ArmId, evidence: &ArmEvidence) -> proto::ArmSummary {
    let s = &evidence.stats;
    proto::ArmSummary {
        arm: arm.as_str().to_owned(),
        count: s.count,
        reward_sum: s.reward_sum,
        failures: s.failures,
        version: evidence.version(),
        scored: s.scored,
        ttft_count: s.ttft_count,
        ttft_ms_sum: s.ttft_ms_sum,
        quality_weight: evidence.quality.weight() as f32,
        quality_mean: evidence.quality.mean().unwrap_or_default() as f32,
    }
}

/// Encodes what was observed of one arm.
pub(crate) fn evidence_to_proto(arm: &ArmId, evidence: &ArmEvidence) -> proto::ArmEvidence {
    let ArmEvidence { stats, reliability, quality, answers, pairs } = evidence;
    let bins: Vec<(usize, &Bin)> = reliability.bins().enumerate().filter(|(_, bin)| bin.count > 0).collect();
    let total = reliability.total().bins;
    let total: &[Bin] = if bins.is_empty() { &[] } else { &total };
    let judged = quality.version > 0;
    let sums = quality.gram.iter().chain(&quality.reward).map(|number| *number as f32);
    proto::ArmEvidence {
        arm: arm.as_str().to_owned(),
        count: stats.count,
        failures: stats.failures,
        scored: stats.scored,
        reward_sum: stats.reward_sum,
        ttft_count: stats.ttft_count,
        ttft_ms_sum: stats.ttft_ms_sum,
        version: stats.version,
        bin_count: total.iter().map(|bin| bin.count).collect(),
        bin_raw_sum: total.iter().map(|bin| bin.raw_sum as f32).collect(),
        bin_score_sum: total.iter().map(|bin| bin.score_sum as f32).collect(),
        domain_bin_at: bins.iter().map(|(at, _)| *at as u32).collect(),
        domain_bin_count: bins.iter().map(|(_, bin)| bin.count).collect(),
        domain_bin_raw_sum: bins.iter().map(|(_, bin)| bin.raw_sum as f32).collect(),
        domain_bin_score_sum: bins.iter().map(|(_, bin)| bin.score_sum as f32).collect(),
        quality_version: quality.version,
        quality: if judged { sums.collect() } else { Vec::new() },
        answers: match answers.is_empty() {
            true => Vec::new(),
            false => answers.numbers().iter().map(|number| *number as f32).collect(),
        },
        pair_key: pairs.iter().map(|(key, _)| key.0).collect(),
        pair_count: pairs.iter().map(|(_, sum)| sum.count as f32).collect(),
        pair_score: pairs.iter().map(|(_, sum)| sum.score as f32).collect(),
        pair_expected: pairs.iter().map(|(_, sum)| sum.expected as f32).collect(),
    }
}

/// Reads what was observed of one arm; `None` for lengths or names that nobody writes.
pub(crate) fn evidence_from_proto(arm: proto::ArmEvidence) -> Option<(ArmId, ArmEvidence)> {
    let stats = ArmStats {
        count: arm.count,
        failures: arm.failures,
        scored: arm.scored,
        reward_sum: arm.reward_sum,
        ttft_count: arm.ttft_count,
        ttft_ms_sum: arm.ttft_ms_sum,
        version: arm.version,
    };
    let reliability = reliability_from_proto(&arm)?;
    let mut quality = QualitySums { version: arm.quality_version, ..QualitySums::default() };
    if !arm.quality.is_empty() {
        if arm.quality.len() != PACKED + DIM {
            return None;
        }
        let sums = quality.gram.iter_mut().chain(&mut quality.reward);
        sums.zip(&arm.quality).for_each(|(sum, sent)| *sum = f64::from(*sent));
    }
    let mut answers = [0.0; LEN];
    if !arm.answers.is_empty() && arm.answers.len() != LEN {
        return None;
    }
    answers.iter_mut().zip(&arm.answers).for_each(|(sum, sent)| *sum = f64::from(*sent));
    let answers = AnswerSums::from_numbers(answers);
    let pairs = pairs_from_proto(&arm)?;
    let name = clean(&arm.arm, NAME_LEN);
    let evidence = ArmEvidence { stats, reliability, quality, answers, pairs };
    (name == arm.arm).then(|| (ArmId(name.into()), evidence))
}

/// Reads the pairs of words; `None` unless each is named once, in order, and has all its sums.
fn pairs_from_proto(arm: &proto::ArmEvidence) -> Option<PairSums> {
    let lengths = [arm.pair_count.len(), arm.pair_score.len(), arm.pair_expected.len()];
    let in_order = arm.pair_key.is_sorted_by(|a, b| a < b);
    if lengths != [arm.pair_key.len(); 3] || !in_order || arm.pair_key.len() > MAX_PAIRS {
        return None;
    }
    let mut pairs = PairSums::default();
    let sums = arm.pair_count.iter().zip(&arm.pair_score).zip(&arm.pair_expected);
    for (key, ((count, score), expected)) in arm.pair_key.iter().zip(sums) {
        let [count, score, expected] = [*count, *score, *expected].map(f64::from);
        pairs.insert(PairKey(*key), PairSum { count, score, expected });
    }
    Some(pairs)
}

/// Reads the bins; `None` unless each is named once, in order, and has all its sums. Those over all domains are read
/// where no others are: an earlier version wrote them, and they count as those of no domain.
fn reliability_from_proto(arm: &proto::ArmEvidence) -> Option<DomainReliability> {
    let first = (ALL_BINS - BINS) as u32;
    let bare: Vec<u32> =
        if arm.bin_count.is_empty() { Vec::new() } else { (first..ALL_BINS as u32).collect() };
    let (places, counts, raw_sums, score_sums) = match arm.domain_bin_count.is_empty() {
        true => (&bare, &arm.bin_count, &arm.bin_raw_sum, &arm.bin_score_sum),
        false => {
            (&arm.domain_bin_at, &arm.domain_bin_count, &arm.domain_bin_raw_sum, &arm.domain_bin_score_sum)
        }
    };
    let lengths = [counts.len(), raw_sums.len(), score_sums.len()];
    let in_order = places.is_sorted_by(|a, b| a < b) && places.last().is_none_or(|at| *at < ALL_BINS as u32);
    if lengths != [places.len(); 3] || !in_order {
        return None;
    }
    let mut reliability = DomainReliability::default();
    let mut sums = places.iter().zip(counts).zip(raw_sums.iter().zip(score_sums)).peekable();
    for (at, bin) in reliability.bins_mut().enumerate() {
        if let Some(((_, count), (raw, score))) = sums.next_if(|((place, _), _)| **place == at as u32) {
            *bin = Bin { count: *count, raw_sum: f64::from(*raw), score_sum: f64::from(*score) };
        }
    }
    Some(reliability)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_routing::escalate::gain::{AnswerSignals, GainModel};
    use shoal_routing::{Confidence, Domain, Features, Judged, Reward, Score};

    fn learnt(arms: usize) -> Testimony {
        let mut testimony = Testimony { generation: u64::MAX / 2, ..Testimony::default() };
        let mut model = GainModel::default();
        for n in 0..arms {
            let arm = ArmId::new(&format!("meta-llama/Llama-3.1-70B-Instruct-{n}"), Some("0123456789abcdef"));
            for step in 0..50_u32 {
                let values = std::array::from_fn(|i| {
                    if i == 0 { 1.0 } else { f64::from((step * 7 + i as u32) % 5) - 2.0 }
                });
                let features = Features::from_values(values).unwrap();
                let score = Score::clamped(f64::from(step) / 49.0);
                let domain = Domain::ALL[step as usize % Domain::ALL.len()];
                let signals = AnswerSignals { raw: Confidence::Known(score), out_tokens: Some(9.0) };
                let judged = Judged { features: Some(features), domain, signals };
                testimony.record_judgement(&arm, &judged, score, &model);
                testimony.record_end(&arm, Reward::Valid, Some(123));
                if step == 40 && n == 0 {
                    model = GainModel::fit(&testimony.arms);
                }
            }
            let pairs = &mut testimony.arms.get_mut(&arm).unwrap().pairs;
            for key in 1..=MAX_PAIRS as u32 {
                let key = PairKey(key * 0x0765_4321);
                pairs.insert(key, PairSum { count: 49.123_456_789, score: 1.9, expected: 40.1 });
            }
        }
        testimony
    }

    fn blob(testimony: &Testimony) -> proto::SignedBlob {
        proto::SignedBlob {
            generation: testimony.generation,
            version: testimony.version,
            payload: testimony_to_bytes(testimony),
            ..Default::default()
        }
    }

    #[test]
    fn a_published_testimony_survives_the_wire_bit_by_bit() {
        let published = learnt(3).published();
        let read = testimony_from_blob(&blob(&published)).unwrap();
        assert_eq!(read, published);
        assert!(read.is_plausible());
        assert_eq!(testimony_from_blob(&blob(&Testimony::default())), Some(Testimony::default()));
    }

    #[test]
    fn six_arms_take_less_than_20_kb_and_the_most_fit_a_blob() {
        let six = testimony_to_bytes(&learnt(6).published()).len();
        assert!(six <= 19_000, "{six} bytes");
        let widest = widest_bins(learnt(6).published());
        assert!(widest <= 20_000, "{widest} bytes");
        let most = widest_bins(learnt(100).published());
        assert!(most <= shoal_cluster::blob::MAX_PAYLOAD_BYTES, "{most} bytes");
    }

    /// Bytes of a testimony whose arms were judged in all domains at all confidences, some thousand times in each.
    fn widest_bins(mut testimony: Testimony) -> usize {
        for evidence in testimony.arms.values_mut() {
            for (at, bin) in evidence.reliability.bins_mut().enumerate() {
                let raw = (at % BINS) as f64 / 10.0 + 0.05;
                *bin = Bin { count: 9_999, raw_sum: 9_999.0 * raw, score_sum: 5_000.0 };
            }
        }
        testimony_to_bytes(&testimony).len()
    }

    #[test]
    fn a_reader_that_knows_no_domains_finds_ten_bins_over_all() {
        let evidence = &learnt(1).published().arms.into_values().next().unwrap();
        let sent = evidence_to_proto(&ArmId::new("m", None), evidence);
        assert_eq!([sent.bin_count.len(), sent.bin_raw_sum.len(), sent.bin_score_sum.len()], [BINS; 3]);
        assert_eq!(sent.bin_count.iter().sum::<u64>(), evidence.reliability.count());
        assert!(sent.domain_bin_at.len() > BINS);
        let none = evidence_to_proto(&ArmId::new("m", None), &ArmEvidence::default());
        assert!(none.bin_count.is_empty() && none.domain_bin_at.is_empty());
    }

    #[test]
    fn bins_without_domains_are_those_of_no_domain() {
        let mut old =
            proto::Testimony::decode(testimony_to_bytes(&learnt(1).published()).as_slice()).unwrap();
        let arm = &mut old.arms[0];
        arm.domain_bin_at.clear();
        arm.domain_bin_count.clear();
        arm.domain_bin_raw_sum.clear();
        arm.domain_bin_score_sum.clear();
        arm.bin_count = vec![1; BINS];
        arm.bin_raw_sum = (0..BINS).map(|at| at as f32 / 10.0 + 0.05).collect();
        arm.bin_score_sum = vec![1.0; BINS];
        let (_, evidence) = evidence_from_proto(old.arms.remove(0)).unwrap();
        assert_eq!(
            (evidence.reliability.of(Domain::General).count(), evidence.reliability.count()),
            (10, 10)
        );
    }

    #[test]
    fn a_summary_takes_at_most_96_bytes_beside_the_arms_name() {
        let mut widest = learnt(1);
        for evidence in widest.arms.values_mut() {
            let s = &mut evidence.stats;
            for count in [&mut s.count, &mut s.failures, &mut s.scored, &mut s.ttft_count, &mut s.version] {
                *count = u64::MAX;
            }
        }
        let summaries = summaries(&widest);
        let summary = &summaries.arms[0];
        assert!(summary.encoded_len() - summary.arm.len() <= 96, "{} bytes", summary.encoded_len());
    }

    #[test]
    fn many_arms_are_announced_as_far_as_gossip_carries_them() {
        let summaries = summaries(&learnt(100));
        assert!((20..100).contains(&summaries.arms.len()));
        assert!(summaries.encoded_len() <= MAX_SUMMARY_BYTES + 32);
    }

    #[test]
    fn a_payload_of_another_shape_is_not_a_testimony() {
        let published = learnt(1).published();
        let good = proto::Testimony::decode(testimony_to_bytes(&published).as_slice()).unwrap();
        let changes: [fn(&mut proto::ArmEvidence); 11] = [
            |arm| arm.quality.truncate(300),
            |arm| arm.answers.truncate(100),
            |arm| arm.domain_bin_at.reverse(),
            |arm| *arm.domain_bin_at.last_mut().unwrap() = 60,
            |arm| arm.domain_bin_count.truncate(9),
            |arm| arm.domain_bin_raw_sum.clear(),
            |arm| arm.pair_key.swap(0, 1),
            |arm| arm.pair_key[1] = arm.pair_key[0],
            |arm| arm.pair_expected.truncate(3),
            |arm| {
                arm.pair_key.push(u32::MAX);
                arm.pair_count.push(1.0);
                arm.pair_score.push(1.0);
                arm.pair_expected.push(1.0);
            },
            |arm| arm.arm.push('\u{1b}'),
        ];
        for change in changes {
            let mut bad = good.clone();
            change(&mut bad.arms[0]);
            let payload = bad.encode_to_vec();
            assert_eq!(testimony_from_blob(&proto::SignedBlob { payload, ..blob(&published) }), None);
        }
        let garbage = proto::SignedBlob { payload: vec![0xff; 40], ..Default::default() };
        assert_eq!(testimony_from_blob(&garbage), None);
    }
}
