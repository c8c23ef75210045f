//! What judging an answer costs: `cargo bench -p shoal-routing --bench gain`.
//!
//! Six arms with a thousand judged answers each. Timed are the judgement of an answer against two rungs, calibration
//! and both expectations included, which is on the path of a request; and what is not: taking a judgement in, and
//! fitting all arms anew. Bars: p99 of a judgement 10 µs, p50 of the fits 1 ms.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark reads the clock and prints")]

mod common;

use std::hint::black_box;
use std::sync::Arc;

use common::{PROMPTS, prompt, time};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_routing::escalate::gain::{AnswerSignals, GainModel};
use shoal_routing::{
    ArmId, Confidence, EscalationPolicy, Grounds, JudgeInput, Judged, MicroUsd, Permitted, Preference,
    Quality, RequestProfile, Score, Testimony,
};

/// Arms, and judged answers of each.
const ARMS: usize = 6;
const JUDGED: usize = 1_000;

fn main() {
    let judged: Vec<Judged> = (0..PROMPTS).map(judged).collect();
    let mut own = history(&judged);
    let model = GainModel::fit(&own.arms);
    let rungs = [rung(4), rung(5)];
    let quality = Quality { of_request: Score::clamped(0.5), of_answer: Score::clamped(0.5), judged: 1_000 };
    let local = arm(0);
    time("judgement against two rungs", 300, |call| {
        let Judged { features, domain, signals } = black_box(&judged[call % PROMPTS]);
        let evidence = model.evidence(&local, features.unwrap_or_default(), *domain, signals);
        black_box(EscalationPolicy.judge(&JudgeInput {
            confidence: evidence.confidence,
            handoff: false,
            threshold: None,
            answered: quality,
            learnt: Some(Grounds { model: &model, arm: &local, evidence: &evidence }),
            preference: Preference::Balanced,
            may_spend: true,
            rungs: &rungs,
        }));
    });
    time("  taking a judgement in", 300, |call| {
        own.record_judgement(&local, black_box(&judged[call % PROMPTS]), Score::ONE, &model);
    });
    time("  fitting six arms", 300, |_| {
        black_box(GainModel::fit(black_box(&own.arms)));
    });
}

fn arm(n: usize) -> ArmId {
    ArmId::new(&format!("model-{n}"), None)
}

/// An answer to a prompt of its own, more or less sure.
fn judged(seed: usize) -> Judged {
    let profile = RequestProfile::of_text(&prompt(300, seed), None);
    let raw = Confidence::Known(Score::clamped((seed % 10) as f64 / 10.0 + 0.05));
    let signals = AnswerSignals { raw, out_tokens: Some(100.0 + seed as f64) };
    Judged { features: Some(profile.features), domain: profile.domain, signals }
}

/// A rung that is dear enough not to be taken at once, so that the next one is looked at, too.
fn rung(n: usize) -> Arc<Permitted> {
    let quality = Score::clamped(0.7);
    Arc::new(Permitted {
        model: arm(n).as_str().into(),
        arm: arm(n),
        offers: Vec::new(),
        cloud: true,
        quality: Quality { of_request: quality, of_answer: quality, judged: 1_000 },
        cost: MicroUsd(1_000_000),
        latency_ms: 20_000.0,
    })
}

fn history(judged: &[Judged]) -> Testimony {
    let (mut rng, mut own, mut model) =
        (StdRng::seed_from_u64(1), Testimony::default(), GainModel::default());
    for answer in 0..JUDGED {
        for n in 0..ARMS {
            let chance = 0.4 + 0.08 * n as f64;
            let score = if rng.random::<f64>() < chance { Score::ONE } else { Score::ZERO };
            own.record_judgement(&arm(n), &judged[answer % judged.len()], score, &model);
        }
        if answer == 100 {
            model = GainModel::fit(&own.arms);
        }
    }
    own
}
