//! Decisions on small meshes, one rule at a time.

mod filtered;
mod planned;

use std::collections::BTreeSet;

use super::*;
use crate::bandit::{ArmStats, Observations};
use crate::class::{DataClass, Mode, Preference};
use crate::limit::MAX_HOPS;
use crate::registry::{ModelSpec, Route};
use crate::request::{Message, MessageRole, Needs};
use crate::testing::{seeded, start};
use crate::units::{MicroUsd, Price, Tokens};

fn spec(model: &str) -> ModelSpec {
    ModelSpec::new(model, "test")
}

fn on_device(device: &str, spec: ModelSpec) -> Offer {
    Offer::new(UpstreamId::Device(device.into()), Arc::new(spec))
}

fn at_provider(provider: &str, model: &str) -> Offer {
    let price = Price { input_per_million: MicroUsd(2_500_000), output_per_million: MicroUsd(10_000_000) };
    let offer = Offer::new(UpstreamId::Provider(provider.into()), Arc::new(spec(model)));
    Offer { price: Some(price), ..offer }
}

/// Two models on devices and one at a provider.
fn mesh() -> Vec<Offer> {
    vec![
        on_device("laptop", spec("llama3.2:1b")),
        on_device("gpu", spec("llama3.2:1b")),
        on_device("gpu", spec("qwen2.5:32b")),
        at_provider("openai", "openai/gpt-4o"),
    ]
}

fn request(choice: &str) -> Request<'static> {
    Request {
        messages: vec![Message { role: MessageRole::User, text: "Tell me a story".into() }],
        max_output: None,
        needs: Needs::default(),
        stream: false,
        choice: ModelChoice::parse(choice, &|name| name == "openai"),
        mode: Mode::Auto,
        preference: Preference::Balanced,
        data_class: DataClass::Internal,
        hop: 0,
        max_local_tokens: None,
        time_limit: None,
        budget_left: None,
        session: None,
    }
}

fn decide(offers: Vec<Offer>, request: &Request<'_>) -> Result<Decision, NoRoute> {
    decide_with(offers, request, &Posterior::default(), 1)
}

fn decide_with(
    offers: Vec<Offer>,
    request: &Request<'_>,
    posterior: &Posterior,
    seed: u64,
) -> Result<Decision, NoRoute> {
    let (registry, loads) = (Registry::new(offers), LoadBook::default());
    let snapshot = Snapshot { registry: &registry, posterior, loads: &loads };
    let profile = RequestProfile::of(request);
    Router::<Thompson>::default().decide(request, &profile, &snapshot, start(), &mut seeded(seed))
}

/// Returns the models that a decision may end up at, the chosen one first.
fn reachable(decision: &Decision) -> Vec<&str> {
    let fallbacks = decision.fallback_models.iter().map(|fallback| &*fallback.model);
    std::iter::once(&*decision.model).chain(fallbacks).collect()
}

#[test]
fn a_named_model_goes_to_everyone_who_serves_it() {
    let decision = decide(mesh(), &request("llama3.2:1b")).unwrap();
    assert_eq!((&*decision.model, decision.offers.len()), ("llama3.2:1b", 2));
    assert_eq!((decision.reason.as_str(), decision.propensity), ("named", 1.0));
    assert!(decision.fallback_models.is_empty());
}

#[test]
fn an_unknown_model_is_answered_with_near_names() {
    let error = decide(mesh(), &request("lama3.2:1b")).unwrap_err();
    assert_eq!(
        error,
        NoRoute::UnknownModel { model: "lama3.2:1b".into(), nearest: vec!["llama3.2:1b".into()] }
    );
    let mut local = request("nothing-like-it-at-all");
    local.mode = Mode::Local;
    assert_eq!(decide(mesh(), &local).unwrap_err().code(), "model_not_found");
}

#[test]
fn without_a_living_device_a_name_that_must_stay_local_is_no_local_capacity() {
    let mut dead = on_device("laptop", spec("other"));
    dead.draining = true;
    for offers in [vec![at_provider("openai", "openai/gpt-4o")], vec![dead.clone()], vec![]] {
        for choice in ["llama3.2:1b", "device:laptop/llama3.2:1b"] {
            let mut local = request(choice);
            assert_eq!(decide(offers.clone(), &local).unwrap_err().code(), "model_not_found", "{choice}");
            local.mode = Mode::Local;
            assert_eq!(decide(offers.clone(), &local).unwrap_err(), NoRoute::NoLocalCapacity, "{choice}");
        }
    }
}

#[test]
fn a_pinned_device_is_the_only_one_by_id_or_by_name() {
    for pin in ["device:gpu/llama3.2:1b", "device:Big Box/llama3.2:1b"] {
        let mut offers = mesh();
        offers[1].name = "Big Box".into();
        let decision = decide(offers, &request(pin)).unwrap();
        assert_eq!(decision.offers.len(), 1, "{pin}");
        assert_eq!(decision.offers[0].upstream, UpstreamId::Device("gpu".into()), "{pin}");
        assert_eq!(decision.reason, RouteReason::PinnedDevice);
    }
    let elsewhere = decide(mesh(), &request("device:laptop/qwen2.5:32b")).unwrap_err();
    assert_eq!(elsewhere.code(), "no_device");
}

#[test]
fn a_providers_model_is_found_with_or_without_its_prefix_in_the_registry() {
    for id in ["openai/gpt-4o", "gpt-4o"] {
        let decision = decide(vec![at_provider("openai", id)], &request("openai/gpt-4o")).unwrap();
        assert_eq!((&*decision.model, decision.reason), (id, RouteReason::PinnedProvider));
    }
    let error = decide(mesh(), &request("openai/gpt-4")).unwrap_err();
    assert_eq!(error.to_string(), "The model 'openai/gpt-4' does not exist. Did you mean openai/gpt-4o?");
}

#[test]
fn auto_weighs_every_model_and_ranks_the_rest_for_failover() {
    let decision = decide(mesh(), &request("auto")).unwrap();
    assert_eq!(decision.reason, RouteReason::AutoThompson);
    assert_eq!(decision.considered.len(), 3);
    assert!(decision.considered.is_sorted_by(|a, b| a.score >= b.score));
    assert!(decision.propensity > 0.0 && decision.propensity < 1.0);
    let mut models = reachable(&decision);
    models.sort_unstable();
    assert_eq!(models, ["llama3.2:1b", "openai/gpt-4o", "qwen2.5:32b"]);
}

#[test]
fn one_candidate_is_certain() {
    let decision = decide(vec![on_device("a", spec("m"))], &request("auto")).unwrap();
    assert_eq!((decision.reason.as_str(), decision.propensity), ("only_candidate", 1.0));
}

#[test]
fn what_the_mesh_learnt_moves_the_choice() {
    let offers = || vec![on_device("a", spec("first:3b")), on_device("a", spec("second:3b"))];
    let mut observations = Observations::default();
    let judged = |mean: f64| ArmStats {
        count: 200,
        scored: 200,
        reward_sum: 200.0 * mean,
        version: 200,
        ..ArmStats::default()
    };
    let origin = Arc::from("n1");
    observations.put(&origin, 1, &ArmId::new("first:3b", None), judged(0.2)).unwrap();
    observations.put(&origin, 1, &ArmId::new("second:3b", None), judged(0.9)).unwrap();
    let posterior = observations.posterior();
    let second = (0..200).filter(|seed| {
        let decision = decide_with(offers(), &request("auto"), &posterior, *seed).unwrap();
        &*decision.model == "second:3b"
    });
    assert!(second.count() > 180);
}

#[test]
fn a_preference_in_the_models_name_wins_over_the_one_in_the_body() {
    let mut asked = request("auto:cheap");
    asked.preference = Preference::Best;
    assert_eq!(asked.effective_preference(), Preference::Cheap);
    asked.choice = request("auto").choice;
    assert_eq!(asked.effective_preference(), Preference::Best);
}

#[test]
fn equal_inputs_and_seeds_give_equal_decisions() {
    let shown = |offers: Vec<Offer>| {
        let decision = decide_with(offers, &request("auto"), &Posterior::default(), 9).unwrap();
        (decision.model.clone(), decision.propensity, decision.considered)
    };
    let mut reversed = mesh();
    reversed.reverse();
    assert_eq!(shown(mesh()), shown(reversed));
}

#[test]
fn a_decision_accounts_for_who_was_left_out_and_why() {
    let mut asking = request("auto");
    asking.data_class = DataClass::Restricted;
    let mut offers = mesh();
    let mut blind = spec("tiny");
    blind.context = Some(Tokens(1));
    offers.push(on_device("watch", blind));
    let decision = decide(offers, &asking).unwrap();
    let removed: Vec<_> = decision.removed.iter().map(|one| (&*one.model, one.why)).collect();
    assert!(removed.contains(&("openai/gpt-4o", Removal::DataClass)), "{removed:?}");
    assert!(removed.contains(&("tiny", Removal::Context)), "{removed:?}");
    let weighed: Vec<&str> = decision.considered.iter().map(|one| &*one.model).collect();
    assert!(!weighed.contains(&"tiny") && !weighed.contains(&"openai/gpt-4o"), "{weighed:?}");
    let first = &decision.considered[0];
    assert!((first.quality * 0.9 - first.penalty - first.score).abs() < 1e-9, "{first:?}");
    assert_eq!(decision.explored, decision.considered[0].model != decision.model);
}

#[test]
fn a_deadline_removes_arms_that_would_miss_it_but_never_the_quickest() {
    let mut asking = request("auto:best");
    let slow = || vec![on_device("laptop", spec("llama3.2:1b")), on_device("gpu", spec("qwen2.5:32b"))];
    assert_eq!(decide(slow(), &asking).unwrap().considered.len(), 2);
    asking.time_limit = Some(std::time::Duration::from_secs(10));
    let decision = decide(slow(), &asking).unwrap();
    assert_eq!(&*decision.model, "llama3.2:1b");
    assert_eq!(decision.removed[0].why, Removal::Deadline);
    asking.time_limit = Some(std::time::Duration::from_millis(1));
    assert_eq!(&*decide(slow(), &asking).unwrap().model, "llama3.2:1b");
}

#[test]
fn the_model_that_called_the_tools_goes_on_unless_it_is_gone() {
    let offers = vec![on_device("laptop", spec("a:7b")), on_device("gpu", spec("b:7b"))];
    let (registry, loads, posterior) = (Registry::new(offers), LoadBook::default(), Posterior::default());
    let snapshot = Snapshot { registry: &registry, posterior: &posterior, loads: &loads };
    let request = request("auto");
    let profile = RequestProfile::of(&request);
    let scores = |previous: Option<&str>| {
        let previous = previous.map(|name| ArmId::new(name, None));
        let decision = Router::<Thompson>::default()
            .decide_after(previous.as_ref(), &request, &profile, &snapshot, start(), &mut seeded(1))
            .unwrap();
        ["a:7b", "b:7b"].map(|name| decision.considered.iter().find(|one| &*one.model == name).unwrap().score)
    };
    let [a, b] = scores(None);
    let [stays, other] = scores(Some("a:7b"));
    assert!((stays - a).abs() < 1e-9 && (b - other - SWITCHING).abs() < 1e-9);
    assert_eq!(scores(Some("gone:7b")), [a, b], "nobody is charged for what cannot be helped");
}

#[test]
fn a_spent_key_keeps_what_costs_nothing() {
    let mut spent = request("auto");
    spent.budget_left = Some(MicroUsd(0));
    for seed in 0..20 {
        let decision = decide_with(mesh(), &spent, &Posterior::default(), seed).unwrap();
        assert!(!reachable(&decision).contains(&"openai/gpt-4o"));
        assert!(decision.permitted.iter().all(|arm| !arm.cloud));
        let why = decision.removed.iter().find(|removed| &*removed.model == "openai/gpt-4o").unwrap().why;
        assert_eq!(why, Removal::KeyBudget);
    }
    spent.budget_left = Some(MicroUsd(1_000_000));
    assert!(reachable(&decide(mesh(), &spent).unwrap()).contains(&"openai/gpt-4o"));
    let mut named = request("openai/gpt-4o");
    // A few tokens of prompt and a typical answer cost about 2,600 millionths.
    for (left, fits) in [(0, false), (100, false), (100_000, true)] {
        named.budget_left = Some(MicroUsd(left));
        assert_eq!(decide(mesh(), &named).map(|_| ()), if fits { Ok(()) } else { Err(NoRoute::KeyBudget) });
    }
}

#[test]
fn a_provider_whose_key_holders_are_away_is_told_as_such() {
    let mut away = at_provider("openai", "openai/gpt-4o");
    away.routes.clear();
    let error = decide(vec![away.clone()], &request("openai/gpt-4o")).unwrap_err();
    assert_eq!(error.code(), "provider_away");
    assert!(error.to_string().contains("'openai'") && error.to_string().contains("shoal nodes"));
    let mut restricted = request("openai/gpt-4o");
    restricted.data_class = DataClass::Restricted;
    assert_eq!(decide(vec![away], &restricted).unwrap_err().code(), "policy_blocked");
}

#[test]
fn a_provider_elsewhere_is_asked_by_the_entry_router_only() {
    let mut far = at_provider("openai", "openai/gpt-4o");
    far.routes = vec![Route::Via("n2".into())];
    let named = request("openai/gpt-4o");
    assert_eq!(decide(vec![far.clone()], &named).unwrap().reason, RouteReason::PinnedProvider);
    let forwarded = Request { hop: 1, ..named };
    assert_eq!(decide(vec![far], &forwarded).unwrap_err().code(), "provider_away");
}

#[test]
fn a_devices_model_may_be_named_like_a_providers() {
    let mut offers = mesh();
    offers.push(on_device("gpu", spec("openai/gpt-oss-20b")));
    let decision = decide(offers, &request("openai/gpt-oss-20b")).unwrap();
    assert_eq!((&*decision.model, decision.reason), ("openai/gpt-oss-20b", RouteReason::Named));
}

#[test]
fn a_provider_heard_of_takes_no_model_from_a_device() {
    let name = "openai/gpt-oss-20b";
    let mut heard_of = at_provider("openai", name);
    heard_of.routes = vec![Route::Via("n2".into())];
    let device = on_device("gpu", spec(name));
    let decision = decide(vec![device.clone(), heard_of.clone()], &request(name)).unwrap();
    assert_eq!((decision.offers.len(), decision.reason), (1, RouteReason::Named));
    assert_eq!(decision.offers[0].upstream, device.upstream);
    let cloud = Request { mode: Mode::Cloud, ..request(name) };
    let decision = decide(vec![device.clone(), heard_of], &cloud).unwrap();
    assert_eq!(decision.reason, RouteReason::PinnedProvider, "the caller asked for the cloud");
    let own = at_provider("openai", name);
    let decision = decide(vec![device, own], &request(name)).unwrap();
    assert_eq!(decision.reason, RouteReason::PinnedProvider, "the operator of this node named it so");
}

#[test]
fn a_schema_is_no_reason_to_leave_the_devices_and_sound_needs_ears() {
    let schema = Request { needs: Needs { schema: true, ..Needs::default() }, ..request("auto") };
    let mut cloud = at_provider("openai", "openai/gpt-4o");
    Arc::make_mut(&mut cloud.model).schema = Some(true);
    let decision = decide(vec![on_device("a", spec("m")), cloud.clone()], &schema).unwrap();
    assert_eq!(reachable(&decision).len(), 2, "who does not say is not left out");
    let deaf = ModelSpec { schema: Some(false), audio: Some(false), ..spec("deaf") };
    assert_eq!(decide(vec![on_device("a", deaf.clone())], &schema).unwrap_err().code(), "unsupported");
    let sound = Request { needs: Needs { audio: true, ..Needs::default() }, ..request("deaf") };
    let error = decide(vec![on_device("a", deaf)], &sound).unwrap_err();
    assert_eq!(error.to_string(), "No model that may serve this request supports sound.");
}

#[test]
fn recordings_go_to_models_that_are_made_for_them_and_chats_to_none_of_those() {
    let heard = Request { needs: Needs { transcription: true, ..Needs::default() }, ..request("auto") };
    let spoken = Request { needs: Needs { speech: true, ..Needs::default() }, ..request("auto") };
    let told = ModelSpec { transcription: Some(true), ..spec("ears-1") };
    let offers = || {
        let models = [spec("m"), spec("whisper-large-v3"), spec("kokoro-82m"), told.clone()];
        models.into_iter().map(|model| on_device("a", model)).collect::<Vec<_>>()
    };
    let models = |request: &Request<'_>| {
        let decision = decide(offers(), request).unwrap();
        decision.considered.iter().map(|c| c.model.to_string()).collect::<BTreeSet<_>>()
    };
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(models(&heard), set(&["ears-1", "whisper-large-v3"]));
    assert_eq!(models(&spoken), set(&["kokoro-82m"]));
    assert_eq!(models(&request("auto")), set(&["m"]));
    let named = Request { choice: request("m").choice, ..heard };
    let error = decide(offers(), &named).unwrap_err();
    assert_eq!(error.to_string(), "No model that may serve this request supports transcription.");
}
