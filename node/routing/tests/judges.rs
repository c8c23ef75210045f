//! Judges that err, and what they may cost: the policy learns from a sampled, imperfect judge and a little feedback.
//!
//! Three arms whose order of quality is not that of their sizes, so that there is something to learn. The same seed
//! gives the same answers and lengths to every judge, so that only the judge differs.
#![allow(clippy::print_stdout, reason = "the figures are quoted in docs/learning.md")]

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_routing::bandit::{SizeClass, Weights};
use shoal_routing::{
    ArmId, ArmStats, ArmView, Features, Grading, MicroUsd, Observations, Policy, Preference, Reward, Score,
    Thompson,
};

/// Requests of a run; what is learnt is measured over the last half.
const REQUESTS: u32 = 6_000;
const SEEDS: u64 = 24;

/// Shares of answers that people and the evaluator judge.
const FEEDBACK: f64 = 0.05;
const SAMPLED: f64 = 0.3;

struct Arm {
    size: SizeClass,
    quality: f64,
    cost: MicroUsd,
    latency_ms: f64,
    /// Mean length of its answers, tokens.
    length: f64,
}

/// The middle arm is as good as the largest and a third of its price; the smallest writes the most.
const ARMS: [Arm; 3] = [
    Arm { size: SizeClass::Tiny, quality: 0.45, cost: MicroUsd(0), latency_ms: 800.0, length: 320.0 },
    Arm { size: SizeClass::Medium, quality: 0.85, cost: MicroUsd(1_000), latency_ms: 1_500.0, length: 160.0 },
    Arm { size: SizeClass::Large, quality: 0.80, cost: MicroUsd(3_000), latency_ms: 2_000.0, length: 240.0 },
];

/// How a judge grades.
#[derive(Clone, Copy)]
struct Judge {
    /// Its grades of bad and of good answers, but for the rest.
    grades: [f64; 2],
    /// Share of its grades that say the opposite.
    flipped: f64,
    /// What 100 more tokens add to its grade.
    per_100_tokens: f64,
    /// Grades are read by [`Grading`]; else taken as they are.
    read: bool,
}

const HONEST: Judge = Judge { grades: [0.0, 1.0], flipped: 0.0, per_100_tokens: 0.0, read: true };

/// What a run led to, over its last half: mean utility, and the share of each arm.
struct Learnt {
    utility: f64,
    shares: [f64; 3],
}

fn run(judge: Judge, learns: bool, seed: u64) -> Learnt {
    let mut rng = StdRng::seed_from_u64(seed);
    let ids: Vec<ArmId> = ["a", "b", "c"].iter().map(|name| ArmId::new(name, None)).collect();
    let mut stats = [ArmStats::default(); 3];
    let mut grading = Grading::default();
    let weights = Weights::of(Preference::Balanced);
    let mut learnt = Learnt { utility: 0.0, shares: [0.0; 3] };
    for request in 0..REQUESTS {
        // Each request has its own numbers, whatever was drawn for the ones before.
        let mut world = StdRng::seed_from_u64(seed * 1_000_003 + u64::from(request));
        let mut seen = Observations::default();
        for (id, stats) in ids.iter().zip(stats) {
            seen.put(&"me".into(), 1, id, stats).expect("plausible");
        }
        let posterior = seen.posterior();
        let placed = posterior.qualities().place(&Features::default());
        let views: Vec<ArmView<'_>> = ids
            .iter()
            .zip(&ARMS)
            .zip(&stats)
            .map(|((id, arm), stats)| ArmView {
                arm: id,
                size: arm.size,
                stats: *stats,
                answer: posterior.answer(id, arm.size, &placed),
                cost: arm.cost,
                latency_ms: arm.latency_ms,
                penalty: weights.penalty(arm.cost, arm.latency_ms) + weights.again(stats),
            })
            .collect();
        let selection = Thompson::default().select(&views, &mut rng);
        let (index, arm) = (selection.index, &ARMS[selection.index]);
        let good = world.random_bool(arm.quality);
        let tokens = (arm.length * (0.4 + 1.2 * world.random::<f64>())) as u64;
        let (judged, explicit) = (world.random_bool(SAMPLED), world.random_bool(FEEDBACK));
        let flipped = world.random::<f64>() < judge.flipped;
        let learn_at = world.random::<f64>();
        if request >= REQUESTS / 2 {
            let share = 2.0 / f64::from(REQUESTS);
            learnt.utility += share * (arm.quality - weights.penalty(arm.cost, arm.latency_ms));
            learnt.shares[index] += share;
        }
        if !learns {
            continue;
        }
        let score = |value: bool| Score::clamped(f64::from(u8::from(value)));
        stats[index].record(Reward::Valid, None);
        if judged {
            let base = judge.grades[usize::from(good != flipped)];
            let grade = Score::clamped(base + judge.per_100_tokens * (tokens as f64 - 200.0) / 100.0);
            let reading = grading.take(&ids[index], tokens, grade);
            if explicit {
                grading.checked(reading.corrected, score(good));
            }
            let (value, weight) = if judge.read { (reading.score, reading.weight) } else { (grade, 1.0) };
            if learn_at < weight {
                stats[index].record(Reward::Scored(value), None);
            }
        }
        if explicit {
            stats[index].record(Reward::Scored(score(good)), None);
        }
    }
    learnt
}

fn mean(judge: Judge, learns: bool) -> Learnt {
    let mut sum = Learnt { utility: 0.0, shares: [0.0; 3] };
    for seed in 0..SEEDS {
        let one = run(judge, learns, seed);
        sum.utility += one.utility / SEEDS as f64;
        for (total, share) in sum.shares.iter_mut().zip(one.shares) {
            *total += share / SEEDS as f64;
        }
    }
    sum
}

/// Returns the largest change of an arm's share between two judges, in points: the median over the seeds, and how many
/// of them moved by more than two points. A run in which sampling settles on another arm moves all of its share, and a
/// mean over two dozen runs would report that alone.
fn moved(a: Judge, b: Judge) -> (f64, usize) {
    let change = |seed| {
        let (a, b) = (run(a, true, seed), run(b, true, seed));
        a.shares.iter().zip(b.shares).map(|(a, b)| 100.0 * (a - b).abs()).fold(0.0, f64::max)
    };
    let mut changes: Vec<f64> = (0..SEEDS).map(change).collect();
    changes.sort_by(f64::total_cmp);
    (changes[changes.len() / 2], changes.iter().filter(|change| **change > 2.0).count())
}

#[test]
fn a_judge_with_30_percent_of_its_labels_flipped_costs_a_tenth_of_what_is_learnt_at_most() {
    let unlearnt = mean(HONEST, false).utility;
    let honest = mean(HONEST, true).utility - unlearnt;
    let flipped = mean(Judge { flipped: 0.3, ..HONEST }, true).utility - unlearnt;
    let believed = mean(Judge { flipped: 0.3, read: false, ..HONEST }, true).utility - unlearnt;
    println!("learnt utility: honest {honest:.4}, flipped {flipped:.4}, flipped and believed {believed:.4}");
    assert!(honest > 0.01, "there is something to learn: {honest}");
    assert!(flipped >= 0.9 * honest, "{flipped} of {honest}");
}

#[test]
fn a_judge_that_likes_100_more_tokens_moves_the_arms_shares_by_two_points_at_most() {
    // Grades between 0.2 and 0.8 leave room for the love of length on both sides.
    let moderate = Judge { grades: [0.2, 0.8], ..HONEST };
    let wordy = Judge { per_100_tokens: 0.1, ..moderate };
    let (now, runs) = moved(moderate, wordy);
    let unread = |judge| Judge { read: false, ..judge };
    let (without, believed_runs) = moved(unread(moderate), unread(wordy));
    println!(
        "points moved, median of {SEEDS} runs: corrected {now:.2} ({runs} runs above 2), believed {without:.2} \
         ({believed_runs} runs above 2)"
    );
    assert!(now <= 2.0 && runs <= 2, "{now}, {runs} runs");
    assert!(believed_runs > 2 * runs.max(1), "the bias is strong enough to be seen: {believed_runs}");
}
