//! What a decision costs, whole: profile, policy and balance. `cargo bench -p shoal-routing --bench decision`.
//!
//! A mesh with history: six arms on eight devices, two of them at two providers too, each arm with a thousand judged
//! answers and 32 pairs of words that are believed, each host with measured times. Prints p50 and p99 of single calls over prompts that differ. Bars: 15 and
//! 60 µs at 200 bytes, 100 and 250 µs at 32 KiB.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark reads the clock and prints")]

mod common;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{PROMPTS, prompt, time};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_routing::bandit::pairs::{Foreseen, MAX_PAIRS};
use shoal_routing::{
    ArmId, Balancer, Discriminant, LoadBook, MicroUsd, ModelSpec, Observations, Offer, PairSalt, PairSearch,
    PairSums, Price, QualitySums, Registry, Request, RequestProfile, Reward, Router, Score, Snapshot,
    Telling, Thompson, Tokens, UpstreamId,
};

/// Judged answers of each arm.
const JUDGED: usize = 1_000;

/// Arms, the devices that serve each (of eight), and whether a provider serves it.
const ARMS: [(&str, &[usize], Option<&str>); 6] = [
    ("llama-3.2-1b-instruct", &[0, 1, 2, 3], None),
    ("llama-3.2-3b-instruct", &[2, 3, 4], None),
    ("qwen2.5-7b-instruct", &[4, 5, 6], None),
    ("gemma-3-12b-it", &[6, 7], None),
    ("llama-3.3-70b-instruct", &[7], Some("openrouter")),
    ("gpt-4o", &[], Some("openai")),
];

fn main() {
    let start = Instant::now();
    let registry = Registry::new(offers());
    let loads = measured(&registry, start);
    let posterior = history();
    let router = Router::new(Thompson::default());
    let snapshot = Snapshot { registry: &registry, posterior: &posterior, loads: &loads };
    for bytes in [200, 32 * 1024] {
        let prompts: Vec<String> = (0..PROMPTS).map(|seed| prompt(bytes, seed)).collect();
        let requests: Vec<Request<'_>> = prompts.iter().map(|text| Request::of_text(text)).collect();
        let profiles: Vec<RequestProfile> = requests.iter().map(RequestProfile::of).collect();
        let mut rng = StdRng::seed_from_u64(1);
        let now = start + Duration::from_secs(1);
        let mut decide = |request: &Request<'_>, profile: &RequestProfile| {
            let decision = router.decide(request, profile, &snapshot, now, &mut rng).expect("devices serve");
            let balancer = Balancer::for_output(profile.expected_output);
            let host = balancer.pick(&decision.offers, &loads, now, &mut rng, &[]);
            black_box((decision, host));
        };
        time("profile, policy and balance", bytes, |call| {
            let request = black_box(&requests[call % PROMPTS]);
            decide(request, &RequestProfile::of(request));
        });
        time("  profile", bytes, |call| {
            black_box(RequestProfile::of(black_box(&requests[call % PROMPTS])));
        });
        time("  policy and balance", bytes, |call| {
            decide(black_box(&requests[call % PROMPTS]), black_box(&profiles[call % PROMPTS]));
        });
    }
}

fn offers() -> Vec<Offer> {
    let price = Price { input_per_million: MicroUsd(2_500_000), output_per_million: MicroUsd(10_000_000) };
    let of = |(name, devices, provider): &(&str, &[usize], Option<&str>)| {
        let spec = ModelSpec { context: Some(Tokens(131_072)), ..ModelSpec::new(*name, "bench") };
        let model = Arc::new(spec);
        let on_device = |device: &usize| {
            let upstream = UpstreamId::Device(format!("device-{device}").into());
            Offer { slots: 4, ..Offer::new(upstream, model.clone()) }
        };
        let in_cloud = |provider: &str| {
            let upstream = UpstreamId::Provider(provider.into());
            Offer { price: Some(price), ..Offer::new(upstream, model.clone()) }
        };
        devices.iter().map(on_device).chain(provider.iter().map(|name| in_cloud(name))).collect::<Vec<_>>()
    };
    ARMS.iter().flat_map(of).collect()
}

/// Lets every offer answer once.
fn measured(registry: &Registry, now: Instant) -> LoadBook {
    let loads = LoadBook::new(1);
    for (at, offer) in (0u64..).zip(registry.offers()) {
        let mut guard = loads.started(&offer.upstream, &offer.model.id, now);
        for token in 0..10 {
            guard.token(now + Duration::from_millis(300 + 20 * at + (20 + at) * token));
        }
        guard.finish(now + Duration::from_millis(900), true);
    }
    loads
}

/// Judges answers of every arm to prompts of all kinds.
fn history() -> shoal_routing::Posterior {
    let mut rng = StdRng::seed_from_u64(2);
    let mut sums: BTreeMap<ArmId, QualitySums> = BTreeMap::new();
    let (mut pairs, mut search) = (BTreeMap::<ArmId, PairSums>::new(), PairSearch::default());
    // Nothing that was expected of the prompts that are timed came true, so their pairs of words tell a lot.
    let missed = Foreseen { weight: 100.0, linear: 0.9, answer: 0.9, spoken: None };
    let mut seen = Observations::default();
    let node: Arc<str> = "node".into();
    for (strength, (name, ..)) in (0u32..).zip(ARMS) {
        let arm = ArmId::new(name, None);
        for answer in 0..JUDGED {
            let text = prompt(300, answer);
            let features = RequestProfile::of(&Request::of_text(&text)).features;
            let chance = 0.55 + 0.06 * f64::from(strength) + 0.05 * features.values()[1 + answer % 2];
            let score = if rng.random::<f64>() < chance { Score::ONE } else { Score::ZERO };
            sums.entry(arm.clone()).or_default().record(&features, score);
            seen.record(&node, 1, &arm, Reward::Valid, Some(400));
            seen.record(&node, 1, &arm, Reward::Scored(score), None);
            let words = RequestProfile::of_text(&prompt(200, answer % PROMPTS), None).words;
            let _ = search.record(&arm, pairs.entry(arm.clone()).or_default(), &words, Score::ZERO, &missed);
        }
        assert_eq!(pairs[&arm].len(), MAX_PAIRS);
    }
    let pairs = Telling::of(PairSalt::default(), &pairs);
    seen.posterior().with_qualities(Discriminant::fit(&sums)).with_pairs(pairs)
}
