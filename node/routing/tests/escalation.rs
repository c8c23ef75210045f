//! Confidence, calibration and escalation: laws that hold for every input, and the table of verdicts.

use std::sync::Arc;
use std::time::Instant;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use shoal_routing::request::{Message, MessageRole, Needs};
use shoal_routing::{
    ArmId, Confidence, Curve, DataClass, EscalationPolicy, Flaw, JudgeInput, LoadBook, MicroUsd, Mode,
    ModelChoice, ModelSpec, Offer, Permitted, Posterior, Preference, Price, Quality, Registry, Reliability,
    Request, RequestProfile, Router, Score, SignalFold, Signals, Snapshot, Thompson, TokenSignals,
    UpstreamId, Verdict, ladder,
};

#[expect(clippy::disallowed_methods, reason = "an Instant has no other origin; no test here depends on it")]
fn start() -> Instant {
    Instant::now()
}

fn arb_score() -> impl Strategy<Value = Score> {
    (0.0..=1.0f64).prop_map(Score::clamped)
}

fn arb_tokens() -> impl Strategy<Value = TokenSignals> {
    (-20.0..=0.0f64, 0.0..=1.0f64, any::<bool>(), 0.0..=1.0f64, 0.0..=1.0f64).prop_map(
        |(min_logprob, part, has_top, margin, entropy)| TokenSignals {
            tokens: 16,
            mean_logprob: min_logprob * part,
            min_logprob,
            mean_margin: has_top.then_some(margin),
            mean_entropy: has_top.then_some(entropy),
        },
    )
}

fn arb_signals() -> impl Strategy<Value = Signals> {
    let flaw = option::of(prop_oneof![Just(Flaw::Loop), Just(Flaw::Refusal), Just(Flaw::InvalidJson)]);
    (option::of(arb_tokens()), 0.0..=1.0f64, any::<bool>(), flaw, option::of(arb_score())).prop_map(
        |(tokens, repetition, truncated, flaw, host)| Signals {
            tokens,
            repetition,
            truncated,
            flaw,
            host,
            handoff: false,
        },
    )
}

fn arb_rung() -> impl Strategy<Value = Arc<Permitted>> {
    (arb_score(), 0..20_000u64, 0.0..60_000.0f64, any::<bool>()).prop_map(
        |(quality, cost, latency_ms, cloud)| {
            let cost = MicroUsd(if cloud { cost } else { 0 });
            Arc::new(rung(quality, cost, latency_ms, cloud))
        },
    )
}

fn rung(quality: Score, cost: MicroUsd, latency_ms: f64, cloud: bool) -> Permitted {
    Permitted {
        model: "strong".into(),
        arm: ArmId::new("strong", None),
        offers: Vec::new(),
        cloud,
        quality: Quality { of_request: quality, of_answer: quality, judged: 0 },
        cost,
        latency_ms,
    }
}

fn arb_preference() -> impl Strategy<Value = Preference> {
    prop_oneof![
        Just(Preference::Balanced),
        Just(Preference::Cheap),
        Just(Preference::Fast),
        Just(Preference::Best),
    ]
}

fn arb_reliability() -> impl Strategy<Value = Reliability> {
    vec((arb_score(), arb_score(), 1..30u8), 0..30).prop_map(|judgements| {
        let mut reliability = Reliability::default();
        for (raw, score, times) in judgements {
            (0..times).for_each(|_| reliability.record(raw, score));
        }
        reliability
    })
}

fn escalates(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Escalate { .. })
}

proptest! {
    #[test]
    fn confidence_is_unknown_exactly_without_evidence(signals in arb_signals()) {
        let evidence = signals.tokens.is_some() || signals.host.is_some() || signals.flaw.is_some();
        prop_assert_eq!(signals.confidence() == Confidence::Unknown, !evidence);
    }

    #[test]
    fn no_signal_that_gets_better_lowers_confidence(signals in arb_signals(), by in 0.0..=1.0f64) {
        let value = |signals: Signals| signals.confidence().value();
        let before = value(signals);
        let better_tokens = |change: &dyn Fn(TokenSignals) -> TokenSignals| {
            value(Signals { tokens: signals.tokens.map(change), ..signals })
        };
        let others = [
            better_tokens(&|t| TokenSignals { mean_logprob: t.mean_logprob * by, ..t }),
            better_tokens(&|t| TokenSignals { min_logprob: t.min_logprob * by, ..t }),
            better_tokens(&|t| TokenSignals { mean_entropy: t.mean_entropy.map(|e| e * by), ..t }),
            better_tokens(&|t| TokenSignals { mean_margin: t.mean_margin.map(|m| m + (1.0 - m) * by), ..t }),
            value(Signals { repetition: signals.repetition * by, ..signals }),
            value(Signals { truncated: false, ..signals }),
            value(Signals { host: signals.host.map(|h| Score::clamped(h.value() + by)), ..signals }),
        ];
        for after in others {
            prop_assert!(before.is_none() == after.is_none());
            prop_assert!(before.unwrap_or(0.0) <= after.unwrap_or(0.0) + 1e-12, "{:?} > {:?}", before, after);
        }
        if let Some(unflawed) = value(Signals { flaw: None, ..signals }) {
            prop_assert!(before.unwrap_or(0.0) <= unflawed);
        }
    }

    #[test]
    fn any_text_and_any_numbers_fold_without_harm(
        pieces in vec(".{0,40}", 0..20), tokens in vec((any::<f64>(), vec(any::<f64>(), 0..5)), 0..20),
    ) {
        let mut fold = SignalFold::new();
        for piece in &pieces {
            fold.text(piece);
        }
        for (logprob, top) in &tokens {
            fold.token(*logprob, top);
        }
        let signals = fold.signals();
        prop_assert!((0.0..=1.0).contains(&signals.repetition));
        if let Some(tokens) = signals.tokens {
            prop_assert!(tokens.min_logprob <= tokens.mean_logprob && tokens.mean_logprob <= 0.0);
            prop_assert!(tokens.mean_margin.is_none_or(|margin| (0.0..=1.0).contains(&margin)));
        }
    }

    #[test]
    fn judge_is_monotone_in_confidence(
        rungs in vec(arb_rung(), 0..3), a in arb_score(), b in arb_score(), threshold in option::of(arb_score()),
        preference in arb_preference(), may_spend in any::<bool>(), handoff in any::<bool>(), own in arb_score(),
    ) {
        let (low, high) = if a <= b { (a, b) } else { (b, a) };
        let answered = Quality { of_request: own, of_answer: own, judged: 50 };
        let verdict = |confidence: Score| EscalationPolicy.judge(&JudgeInput {
            confidence: Confidence::Known(confidence),
            handoff, threshold, answered, learnt: None, preference, may_spend, rungs: &rungs,
        });
        prop_assert!(!escalates(verdict(high)) || escalates(verdict(low)));
        for confidence in [low, high] {
            if let Verdict::Escalate { rung, .. } = verdict(confidence) {
                prop_assert!(may_spend || rungs[rung].cost == MicroUsd(0));
            }
        }
    }

    #[test]
    fn an_explicit_threshold_ignores_price(
        quality in arb_score(), cost in any::<u64>(), preference in arb_preference(),
        confidence in option::of(arb_score()), threshold in arb_score(), own in arb_score(),
    ) {
        let rungs = [Arc::new(rung(quality, MicroUsd(cost / 2), 1e9, true))];
        let verdict = EscalationPolicy.judge(&JudgeInput {
            confidence: confidence.map_or(Confidence::Unknown, Confidence::Known),
            handoff: false,
            threshold: Some(threshold),
            answered: Quality { of_request: own, of_answer: own, judged: 1_000 },
            learnt: None,
            preference,
            may_spend: true,
            rungs: &rungs,
        });
        prop_assert_eq!(escalates(verdict), confidence.is_some_and(|confidence| confidence < threshold));
    }

    #[test]
    fn a_curve_stays_within_bounds_and_never_decreases(seen in arb_reliability(), raws in vec(arb_score(), 2..40)) {
        let curve = Curve::of(&seen);
        let mut raws = raws;
        raws.sort_by(|a, b| a.value().total_cmp(&b.value()));
        let mapped: Vec<f64> = raws.iter().map(|raw| curve.apply(*raw).value()).collect();
        prop_assert!(mapped.iter().all(|value| (0.0..=1.0).contains(value)));
        prop_assert!(mapped.windows(2).all(|pair| pair[0] <= pair[1] + 1e-12), "{:?}", mapped);
        prop_assert!((0.0..=1.0).contains(&seen.ece()) && (0.0..=1.0).contains(&seen.ece_with(&curve)));
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Ends {
    Refused(&'static str),
    Accepted,
    Escalated(&'static str),
}

/// Decides on a mesh of one small model, with or without a provider that may be used, and judges an answer of it.
fn ends(choice: &str, mode: Mode, provider: bool, confidence: Confidence, threshold: Option<f64>) -> Ends {
    let spec = |model: &str| Arc::new(ModelSpec::new(model, "test"));
    let mut offers = vec![Offer::new(UpstreamId::Device("phone".into()), spec("llama3.2:1b"))];
    let price = Price { input_per_million: MicroUsd(2_500_000), output_per_million: MicroUsd(10_000_000) };
    let cloud = Offer::new(UpstreamId::Provider("openai".into()), spec("openai/gpt-4o"));
    offers.push(Offer { price: Some(price), internal_ok: provider, ..cloud });
    let request = Request {
        messages: vec![Message { role: MessageRole::User, text: "Why is the sea salt?".into() }],
        max_output: None,
        needs: Needs::default(),
        stream: false,
        choice: ModelChoice::parse(choice, &|_| false),
        mode,
        preference: Preference::Balanced,
        data_class: DataClass::Internal,
        hop: 0,
        max_local_tokens: None,
        time_limit: None,
        budget_left: None,
        session: None,
    };
    let (registry, posterior, loads) = (Registry::new(offers), Posterior::default(), LoadBook::default());
    let snapshot = Snapshot { registry: &registry, posterior: &posterior, loads: &loads };
    let profile = RequestProfile::of(&request);
    let mut rng = StdRng::seed_from_u64(7);
    let decision =
        match Router::<Thompson>::default().decide(&request, &profile, &snapshot, start(), &mut rng) {
            Ok(decision) => decision,
            Err(no) => return Ends::Refused(no.code()),
        };
    // A request for the cloud is answered there; any other by the phone.
    let (arm, cloud) = match mode {
        Mode::Cloud => ("openai/gpt-4o", true),
        Mode::Auto | Mode::Local => ("llama3.2:1b", false),
    };
    let ladder = ladder(&decision, &ArmId::new(arm, None), cloud);
    let nothing = Quality { of_request: Score::ZERO, of_answer: Score::ZERO, judged: 0 };
    let verdict = EscalationPolicy.judge(&JudgeInput {
        confidence,
        handoff: false,
        threshold: threshold.map(Score::clamped),
        answered: ladder.answered.as_ref().map_or(nothing, |one| one.quality),
        learnt: None,
        preference: request.preference,
        may_spend: true,
        rungs: &ladder.rungs,
    });
    match verdict {
        Verdict::Accept => Ends::Accepted,
        Verdict::Escalate { rung, reason } => {
            assert_eq!(&*ladder.rungs[rung].model, "openai/gpt-4o");
            Ends::Escalated(reason.as_str())
        }
    }
}

#[test]
fn each_mode_confidence_threshold_and_permission_has_its_verdict() {
    use Ends::{Accepted, Escalated, Refused};
    let (accepted, refused) = ([Accepted; 3], [Refused("policy_blocked"); 3]);
    // Mode, explicit threshold, provider permitted; then the end with confidence high, low, unknown.
    let rows = [
        (Mode::Auto, None, true, [Accepted, Escalated("expected_gain"), Accepted]),
        (Mode::Auto, None, false, accepted),
        (Mode::Auto, Some(0.7), true, [Accepted, Escalated("low_confidence"), Accepted]),
        (Mode::Auto, Some(0.7), false, accepted),
        (Mode::Local, None, true, accepted),
        (Mode::Local, None, false, accepted),
        (Mode::Local, Some(0.7), true, accepted),
        (Mode::Local, Some(0.7), false, accepted),
        (Mode::Cloud, None, true, accepted),
        (Mode::Cloud, None, false, refused),
        (Mode::Cloud, Some(0.7), true, accepted),
        (Mode::Cloud, Some(0.7), false, refused),
    ];
    let known = |value| Confidence::Known(Score::clamped(value));
    for (mode, threshold, provider, expected) in rows {
        for (confidence, expected) in [known(0.9), known(0.2), Confidence::Unknown].into_iter().zip(expected)
        {
            for choice in ["auto", "llama3.2:1b"] {
                let end = ends(choice, mode, provider, confidence, threshold);
                assert_eq!(end, expected, "{choice} {mode} {confidence} {threshold:?} provider {provider}");
            }
        }
    }
}
