//! What must hold for every input: laws of merging, balancing, averaging, breaking and routing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use shoal_routing::request::{Message, MessageRole, Needs};
use shoal_routing::{
    Admission, ArmId, ArmStats, Balancer, CircuitBreaker, DataClass, Decision, LoadBook, MicroUsd, Mode,
    ModelChoice, ModelSpec, Observations, Offer, PeakEwma, Posterior, Preference, Price, Registry, Request,
    RequestProfile, Route, Router, Snapshot, Thompson, Tokens, UpstreamId, ladder,
};

#[expect(
    clippy::disallowed_methods,
    reason = "an Instant has no other origin; tests only look at differences"
)]
fn start() -> Instant {
    Instant::now()
}

fn arb_observations() -> impl Strategy<Value = Observations> {
    let entry = (0..4u8, 0..3u64, 0..3u8, 0..20u64, 0..20u64);
    vec(entry, 0..24).prop_map(|entries| {
        let mut observations = Observations::default();
        for (origin, generation, arm, count, failures) in entries {
            // An honest origin's state is a function of its version.
            let stats = ArmStats {
                count: count + failures,
                failures,
                scored: count,
                reward_sum: count as f64 * 0.5,
                version: count * 100 + failures,
                ..ArmStats::default()
            };
            let origin = Arc::from(format!("n{origin}"));
            observations
                .put(&origin, generation, &ArmId::new(&format!("m{arm}"), None), stats)
                .expect("the sums are possible");
        }
        observations
    })
}

fn merged(a: &Observations, b: &Observations) -> Observations {
    let mut both = a.clone();
    both.merge(b);
    both
}

proptest! {
    #[test]
    fn merging_commutes_associates_and_is_idempotent(
        a in arb_observations(), b in arb_observations(), c in arb_observations(),
    ) {
        prop_assert_eq!(merged(&a, &b), merged(&b, &a));
        prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
        prop_assert_eq!(merged(&a, &a), a.clone());
        prop_assert_eq!(merged(&merged(&a, &b), &b).posterior(), merged(&a, &b).posterior());
    }

    #[test]
    fn an_average_stays_within_its_samples(samples in vec((0..60_000u64, 0.0..1e6f64), 1..200)) {
        let (mut now, mut ewma) = (start(), PeakEwma::new(Duration::from_secs(10)));
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for (pause_ms, sample) in samples {
            now += Duration::from_millis(pause_ms);
            ewma.observe(now, sample);
            (low, high) = (low.min(sample), high.max(sample));
            let estimate = ewma.estimate_ms().unwrap();
            prop_assert!((low..=high).contains(&estimate), "{} not in {}..={}", estimate, low, high);
        }
    }

    #[test]
    fn a_breaker_has_at_most_one_probe_out(steps in vec((0..20_000u64, 0..4u8, 0.0..1.0f64), 1..300)) {
        let (mut now, mut breaker) = (start(), CircuitBreaker::default());
        let mut out: Vec<Admission> = Vec::new();
        for (pause_ms, step, jitter) in steps {
            now += Duration::from_millis(pause_ms);
            match (step, out.pop()) {
                (0, Some(admission)) => breaker.record(now, admission, true, jitter),
                (1, Some(admission)) => breaker.record(now, admission, false, jitter),
                (2, Some(admission)) => breaker.abandon(admission),
                (_, popped) => {
                    out.extend(popped);
                    let would = breaker.would_admit(now);
                    let admitted = breaker.admit(now);
                    prop_assert_eq!(would, admitted.is_some());
                    out.extend(admitted);
                }
            }
            prop_assert!(out.iter().filter(|admission| **admission == Admission::Probe).count() <= 1);
        }
    }

    #[test]
    fn a_pick_is_one_of_the_offers_and_never_an_excluded_one(
        hosts in vec((0..4u32, 0..5u32, any::<bool>(), any::<bool>()), 0..12), seed in any::<u64>(),
    ) {
        let (now, book) = (start(), LoadBook::default());
        let model: Arc<str> = Arc::from("m");
        let spec = Arc::new(ModelSpec::new("m", "test"));
        let (mut offers, mut excluded, mut guards) = (Vec::new(), Vec::new(), Vec::new());
        for (index, (slots, in_flight, exclude, broken)) in hosts.into_iter().enumerate() {
            let upstream = UpstreamId::Device(format!("d{index}").into());
            guards.extend((0..in_flight).map(|_| book.started(&upstream, &model, now)));
            if broken {
                for _ in 0..5 {
                    book.started(&upstream, &model, now).finish(now, false);
                }
            }
            if exclude {
                excluded.push(upstream.clone());
            }
            offers.push(Arc::new(Offer { slots, ..Offer::new(upstream, spec.clone()) }));
        }
        let mut rng = StdRng::seed_from_u64(seed);
        let mut tried = excluded;
        while let Some(picked) = Balancer::default().pick(&offers, &book, now, &mut rng, &tried) {
            prop_assert!(!tried.contains(&picked.upstream));
            prop_assert!(offers.iter().any(|offer| Arc::ptr_eq(offer, &picked)));
            tried.push(picked.upstream.clone());
        }
        // Failover that excludes what it tried reaches every host, also full and broken ones.
        prop_assert_eq!(tried.len(), offers.len());
    }

    #[test]
    fn two_equal_hosts_are_both_reached(seed in any::<u64>()) {
        // One candidate drawn twice would show here as a host that never gets a request.
        let (now, book) = (start(), LoadBook::default());
        let spec = Arc::new(ModelSpec::new("m", "test"));
        let offer = |name: &str| Arc::new(Offer::new(UpstreamId::Device(name.into()), spec.clone()));
        let offers = [offer("a"), offer("b")];
        let _busy = book.started(&offers[0].upstream, &Arc::from("m"), now);
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..20 {
            let picked = Balancer::default().pick(&offers, &book, now, &mut rng, &[]).unwrap();
            prop_assert_eq!(&picked.upstream, &offers[1].upstream);
        }
    }

    #[test]
    fn requests_under_way_return_to_none(steps in vec((0..3u8, 0..2u8, 0..5u8, 0..5_000u64), 1..200)) {
        let (mut now, book) = (start(), LoadBook::default());
        let ids = ["a", "b", "c"].map(|name| UpstreamId::Device(name.into()));
        let models: [Arc<str>; 2] = ["m1".into(), "m2".into()];
        let mut guards = Vec::new();
        for (upstream, model, step, pause_ms) in steps {
            now += Duration::from_millis(pause_ms);
            match (step, guards.pop()) {
                (0, Some(guard)) => drop(guard),
                (1, Some(guard)) => shoal_routing::InFlight::finish(guard, now, true),
                (2, Some(guard)) => shoal_routing::InFlight::finish(guard, now, false),
                (3, Some(mut guard)) => {
                    guard.token(now);
                    guards.push(guard);
                }
                (_, popped) => {
                    guards.extend(popped);
                    let (upstream, model) = (&ids[usize::from(upstream)], &models[usize::from(model)]);
                    guards.push(book.started(upstream, model, now));
                }
            }
            let total: u32 = ids.iter().map(|id| book.in_flight(id)).sum();
            prop_assert_eq!(total as usize, guards.len());
        }
        drop(guards);
        for id in &ids {
            prop_assert_eq!(book.in_flight(id), 0);
        }
    }
}

fn arb_offer() -> impl Strategy<Value = Offer> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (0..3u8, 0..5u8, 0..4u8, 0..3u8, flags).prop_map(|(kind, upstream, model, routes, flags)| {
        let (remote, draining, internal_ok) = flags;
        let id: Arc<str> = format!("u{upstream}").into();
        let upstream = match kind {
            0 => UpstreamId::Device(id),
            1 => UpstreamId::Peer(id),
            _ => UpstreamId::Provider(id),
        };
        let mut spec = ModelSpec::new(format!("m{model}"), "test");
        spec.remote = remote;
        // From 0.2 to 200 billion parameters, so that some models are stronger than others.
        spec.size_bytes = Some(100_000_000 * 10u64.pow(u32::from(model)));
        let price = matches!(upstream, UpstreamId::Provider(_)).then(|| Price {
            input_per_million: MicroUsd(1_000_000),
            output_per_million: MicroUsd(1_000_000 * (1 + u64::from(model * 7 % 5))),
        });
        let routes = match routes {
            0 => vec![],
            1 => vec![Route::Direct],
            _ => vec![Route::Via("n2".into())],
        };
        Offer { routes, draining, internal_ok, price, ..Offer::new(upstream, Arc::new(spec)) }
    })
}

fn arb_request() -> impl Strategy<Value = Request<'static>> {
    let choice = prop_oneof![
        Just("auto"),
        Just("auto:best"),
        Just("auto:local"),
        Just("m0"),
        Just("m1"),
        Just("device:u1/m1"),
        Just("u2/m2"),
        Just("nobody"),
    ];
    let mode = prop_oneof![Just(Mode::Auto), Just(Mode::Local), Just(Mode::Cloud)];
    let class = prop_oneof![Just(DataClass::Public), Just(DataClass::Internal), Just(DataClass::Restricted)];
    let limit = proptest::option::of(0..20u32);
    (choice, mode, class, 0..4u32, limit).prop_map(|(choice, mode, data_class, hop, limit)| Request {
        messages: vec![Message { role: MessageRole::User, text: "hello".into() }],
        max_output: Some(Tokens(10)),
        needs: Needs::default(),
        stream: false,
        choice: ModelChoice::parse(choice, &|name| name.starts_with('u')),
        mode,
        preference: Preference::Balanced,
        data_class,
        hop,
        max_local_tokens: limit.map(Tokens),
        time_limit: None,
        budget_left: None,
        session: None,
    })
}

/// Checks what may be asked after the answer of each offer of a decision.
fn check_ladder(decision: &Decision, request: &Request<'_>) -> Result<(), TestCaseError> {
    let local = request.mode == Mode::Local || request.choice == ModelChoice::AutoLocal;
    for offer in &decision.offers {
        let ladder = ladder(decision, &offer.model.arm(), offer.is_cloud());
        prop_assert!(ladder.rungs.len() <= 2);
        prop_assert!(ladder.is_empty() || request.mode == Mode::Auto);
        prop_assert!(ladder.rungs.is_sorted_by_key(|rung| (rung.cloud, rung.cost)));
        let cloud = ladder.rungs.iter().any(|rung| rung.cloud || rung.offers.iter().any(|o| o.is_cloud()));
        prop_assert!(!cloud || !(local || request.data_class == DataClass::Restricted));
        let floor = ladder.answered.as_ref().map(|one| one.quality.of_request);
        prop_assert!(ladder.rungs.iter().all(|rung| Some(rung.quality.of_request) > floor));
        prop_assert!(ladder.rungs.iter().all(|rung| rung.arm != offer.model.arm()));
    }
    Ok(())
}

/// The policy, written a second time and as plainly as possible.
fn is_forbidden(offer: &Offer, request: &Request<'_>) -> bool {
    let cloud = offer.model.remote || matches!(offer.upstream, UpstreamId::Provider(_));
    let must_be_local = request.mode == Mode::Local || request.choice == ModelChoice::AutoLocal;
    let peer = matches!(offer.upstream, UpstreamId::Peer(_));
    (cloud && request.data_class == DataClass::Restricted)
        || (cloud && request.data_class == DataClass::Internal && !offer.internal_ok)
        || (cloud && must_be_local)
        || (!cloud && !must_be_local && request.mode == Mode::Cloud)
        || (request.hop >= 1 && (peer || !offer.routes.contains(&Route::Direct)))
        || request.hop >= 2
        || offer.draining
        || offer.routes.is_empty()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_decision_never_holds_a_forbidden_offer_and_is_never_missing_when_one_is_allowed(
        offers in vec(arb_offer(), 0..12), request in arb_request(), seed in any::<u64>(),
    ) {
        let registry = Registry::new(offers);
        let (posterior, loads) = (Posterior::default(), LoadBook::default());
        let snapshot = Snapshot { registry: &registry, posterior: &posterior, loads: &loads };
        let profile = RequestProfile::of(&request);
        let mut rng = StdRng::seed_from_u64(seed);
        let decided = Router::<Thompson>::default().decide(&request, &profile, &snapshot, start(), &mut rng);
        let allowed = registry.offers().iter().any(|offer| !is_forbidden(offer, &request));
        match decided {
            Ok(decision) => {
                let fallbacks = decision.fallback_models.iter().flat_map(|fallback| &fallback.offers);
                let permitted = decision.permitted.iter().flat_map(|permitted| &permitted.offers);
                for offer in decision.offers.iter().chain(fallbacks).chain(permitted) {
                    prop_assert!(!is_forbidden(offer, &request), "{:?} for {:?}", offer, request);
                }
                prop_assert!(!decision.offers.is_empty());
                check_ladder(&decision, &request)?;
                prop_assert!(decision.propensity > 0.0 && decision.propensity <= 1.0 + 1e-9);
            }
            Err(error) => prop_assert!(!(request.choice.is_auto() && allowed), "{}", error),
        }
    }
}
