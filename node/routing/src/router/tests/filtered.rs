//! Who may serve a request, and who can: what the filter leaves.

use super::*;

#[test]
fn restricted_data_stays_on_devices_even_where_the_engine_is_remote() {
    let mut restricted = request("auto");
    restricted.data_class = DataClass::Restricted;
    let mut offers = mesh();
    offers.push(on_device("gpu", ModelSpec { remote: true, ..spec("gpt-oss:120b-cloud") }));
    for seed in 0..50 {
        let decision = decide_with(offers.clone(), &restricted, &Posterior::default(), seed).unwrap();
        let models = reachable(&decision);
        assert!(models.iter().all(|model| matches!(*model, "llama3.2:1b" | "qwen2.5:32b")), "{models:?}");
    }
    for named in ["openai/gpt-4o", "gpt-oss:120b-cloud"] {
        restricted.choice = request(named).choice;
        assert_eq!(decide(offers.clone(), &restricted).unwrap_err().code(), "policy_blocked", "{named}");
    }
}

#[test]
fn internal_data_goes_only_to_providers_that_are_marked_for_it() {
    let mut offer = at_provider("openai", "openai/gpt-4o");
    offer.internal_ok = false;
    assert_eq!(decide(vec![offer.clone()], &request("auto")).unwrap_err().code(), "policy_blocked");
    let mut public = request("auto");
    public.data_class = DataClass::Public;
    assert!(decide(vec![offer], &public).is_ok());
}

#[test]
fn local_means_local_and_cloud_means_cloud() {
    let cloud_only = || vec![at_provider("openai", "openai/gpt-4o")];
    let mut local = request("auto");
    local.mode = Mode::Local;
    assert_eq!(decide(cloud_only(), &local).unwrap_err(), NoRoute::NoLocalCapacity);
    assert_eq!(decide(cloud_only(), &request("auto:local")).unwrap_err(), NoRoute::NoLocalCapacity);
    let decision = decide(mesh(), &request("auto:local")).unwrap();
    assert!(!reachable(&decision).contains(&"openai/gpt-4o"));
    let mut cloud = request("auto");
    cloud.mode = Mode::Cloud;
    assert_eq!(reachable(&decide(mesh(), &cloud).unwrap()), ["openai/gpt-4o"]);
    cloud.choice = request("device:gpu/llama3.2:1b").choice;
    assert_eq!(decide(mesh(), &cloud).unwrap_err().code(), "policy_blocked");
}

#[test]
fn mode_cloud_puts_a_provider_in_the_place_of_a_model_of_devices() {
    let mut cloud = request("llama3.2:1b");
    cloud.mode = Mode::Cloud;
    let decision = decide(mesh(), &cloud).unwrap();
    assert_eq!((reachable(&decision), decision.reason), (vec!["openai/gpt-4o"], RouteReason::ModeCloud));
    let devices = || mesh().into_iter().filter(|offer| !offer.is_cloud()).collect();
    assert_eq!(decide(devices(), &cloud).unwrap_err().code(), "policy_blocked");
    cloud.data_class = DataClass::Restricted;
    assert_eq!(decide(mesh(), &cloud).unwrap_err().code(), "policy_blocked");
    let mut unknown = cloud.clone();
    unknown.choice = request("nobody-serves-this").choice;
    assert_eq!(decide(mesh(), &unknown).unwrap_err().code(), "model_not_found");
    let mut pinned = request("openai/gpt-4o");
    for mode in [Mode::Auto, Mode::Cloud] {
        pinned.mode = mode;
        assert_eq!(decide(mesh(), &pinned).unwrap().reason, RouteReason::PinnedProvider);
    }
    pinned.mode = Mode::Local;
    assert_eq!(decide(mesh(), &pinned).unwrap_err(), NoRoute::NoLocalCapacity);
}

#[test]
fn a_prompt_that_fits_no_device_goes_to_the_cloud_where_that_is_permitted() {
    let small = || on_device("a", ModelSpec { context: Some(Tokens(100)), ..spec("small") });
    let both = || vec![small(), at_provider("openai", "openai/gpt-4o")];
    for choice in ["small", "auto"] {
        let mut long = request(choice);
        long.max_output = Some(Tokens(200));
        assert_eq!(reachable(&decide(both(), &long).unwrap()), ["openai/gpt-4o"], "{choice}");
        assert_eq!(decide(vec![small()], &long).unwrap_err().code(), "context_length_exceeded");
        long.data_class = DataClass::Restricted;
        assert_eq!(decide(both(), &long).unwrap_err().code(), "context_length_exceeded");
        long.data_class = DataClass::Internal;
        long.mode = Mode::Local;
        assert_eq!(decide(both(), &long).unwrap_err().code(), "context_length_exceeded");
    }
    let mut named = request("small");
    named.max_output = Some(Tokens(200));
    assert_eq!(decide(both(), &named).unwrap().reason, RouteReason::PromptTooLong);
}

#[test]
fn prompts_above_the_limit_for_devices_go_to_the_cloud_and_stay_where_there_is_none() {
    for choice in ["llama3.2:1b", "auto"] {
        let mut long = request(choice);
        let prompt = RequestProfile::of(&long).prompt_tokens;
        let local = |decision: Decision| decision.offers.iter().all(|offer| !offer.is_cloud());
        let goes = |request: &Request<'_>| local(decide(mesh(), request).unwrap());
        long.max_local_tokens = Some(Tokens(prompt.0 - 1));
        assert!(!goes(&long), "{choice}");
        let devices = mesh().into_iter().filter(|offer| !offer.is_cloud()).collect();
        assert!(local(decide(devices, &long).unwrap()), "{choice}");
        let restricted = Request { data_class: DataClass::Restricted, ..long.clone() };
        assert!(goes(&restricted), "{choice}");
        let forced = Request { mode: Mode::Local, ..long.clone() };
        assert!(goes(&forced), "{choice}");
    }
    let mut fits = request("llama3.2:1b");
    fits.max_local_tokens = Some(RequestProfile::of(&fits).prompt_tokens);
    assert_eq!(decide(mesh(), &fits).unwrap().reason, RouteReason::Named);
}

#[test]
fn every_permitted_arm_is_carried_for_escalation_in_mode_auto_only() {
    let permitted = |request: &Request<'_>| {
        let decision = decide(mesh(), request).unwrap();
        decision.permitted.iter().map(|one| (one.model.to_string(), one.cloud)).collect::<Vec<_>>()
    };
    let [small, gpt, big] = [("llama3.2:1b", false), ("openai/gpt-4o", true), ("qwen2.5:32b", false)]
        .map(|(model, cloud)| (model.to_owned(), cloud));
    for choice in ["llama3.2:1b", "auto"] {
        let asked = request(choice);
        assert_eq!(permitted(&asked), [small.clone(), gpt.clone(), big.clone()], "{choice}");
        let restricted = Request { data_class: DataClass::Restricted, ..asked.clone() };
        assert_eq!(permitted(&restricted), [small.clone(), big.clone()], "{choice}");
        for none in [
            Request { mode: Mode::Local, ..asked.clone() },
            Request { mode: Mode::Cloud, ..asked.clone() },
            Request { hop: 1, ..asked.clone() },
        ] {
            assert_eq!(permitted(&none), [], "{choice} {:?} hop {}", none.mode, none.hop);
        }
    }
    for pinned in ["device:gpu/llama3.2:1b", "openai/gpt-4o", "auto:local"] {
        assert_eq!(permitted(&request(pinned)), [], "{pinned}");
    }
}

#[test]
fn a_forwarded_request_uses_only_what_this_router_reaches_itself() {
    let mut offers = mesh();
    offers[1].routes = vec![Route::Via("n2".into())];
    let mut forwarded = request("llama3.2:1b");
    forwarded.hop = 1;
    let decision = decide(offers.clone(), &forwarded).unwrap();
    assert_eq!(decision.offers.len(), 1);
    assert_eq!(decision.offers[0].upstream, UpstreamId::Device("laptop".into()));
    assert_eq!(decide(vec![offers[1].clone()], &forwarded).unwrap_err().code(), "no_device");
    forwarded.hop = MAX_HOPS;
    assert_eq!(decide(offers, &forwarded).unwrap_err().code(), "policy_blocked");
}

#[test]
fn devices_that_drain_or_left_take_nothing() {
    let mut offers = vec![on_device("a", spec("m")), on_device("b", spec("m"))];
    offers[0].draining = true;
    offers[1].routes.clear();
    let error = decide(offers.clone(), &request("m")).unwrap_err();
    assert_eq!(error, NoRoute::NoDevice { model: Some("m".into()) });
    assert_eq!(decide(offers.clone(), &request("auto")).unwrap_err(), NoRoute::NoDevice { model: None });
    offers[0].draining = false;
    assert_eq!(decide(offers, &request("m")).unwrap().offers.len(), 1);
    assert_eq!(decide(vec![], &request("auto")).unwrap_err(), NoRoute::NoDevice { model: None });
}

#[test]
fn prompt_and_answer_must_fit_the_context() {
    let small = ModelSpec { context: Some(Tokens(100)), ..spec("small") };
    let large = ModelSpec { context: Some(Tokens(1_000)), ..spec("large") };
    let offers = || vec![on_device("a", small.clone()), on_device("a", large.clone())];
    let mut long = request("auto");
    long.max_output = Some(Tokens(200));
    assert_eq!(reachable(&decide(offers(), &long).unwrap()), ["large"]);
    long.max_output = Some(Tokens(5_000));
    let error = decide(offers(), &long).unwrap_err();
    assert!(
        matches!(error, NoRoute::ContextTooLong { limit: Tokens(1_000), tokens } if tokens > Tokens(5_000)),
        "{error:?}"
    );
}

#[test]
fn an_estimate_near_the_limit_is_counted_exactly() {
    let text = "seven plain words make up this sentence. ".repeat(500);
    let mut long = request("m");
    long.messages[0].text = text.into();
    let exact = crate::tokens::count_messages(&long.messages);
    assert!(!RequestProfile::of(&long).exact);
    for (limit, fits) in [(exact, true), (Tokens(exact.0 - 1), false)] {
        let offer = on_device("a", ModelSpec { context: Some(limit), ..spec("m") });
        assert_eq!(decide(vec![offer], &long).is_ok(), fits, "{limit}");
    }
}

#[test]
fn what_a_model_is_known_to_lack_rules_it_out_and_the_unknown_is_tried_last() {
    let with_tools = |model: &str, tools| on_device("a", ModelSpec { tools, ..spec(model) });
    let mut needy = request("auto");
    needy.needs.tools = true;
    let lacking = with_tools("no", Some(false));
    assert_eq!(decide(vec![lacking.clone()], &needy).unwrap_err(), NoRoute::Unsupported { what: "tools" });
    let unknown = with_tools("perhaps", None);
    assert_eq!(reachable(&decide(vec![lacking.clone(), unknown.clone()], &needy).unwrap()), ["perhaps"]);
    let knowing = with_tools("yes", Some(true));
    assert_eq!(reachable(&decide(vec![lacking, unknown.clone(), knowing], &needy).unwrap()), ["yes"]);
    needy.choice = request("perhaps").choice;
    assert!(decide(vec![unknown], &needy).is_ok());
}

#[test]
fn a_model_that_makes_vectors_is_not_asked_to_chat_nor_the_other_way_round() {
    let offers = || vec![on_device("a", spec("nomic-embed-text")), on_device("a", spec("llama3.2:1b"))];
    assert_eq!(reachable(&decide(offers(), &request("auto")).unwrap()), ["llama3.2:1b"]);
    let mut vectors = request("auto");
    vectors.needs.embeddings = true;
    assert_eq!(reachable(&decide(offers(), &vectors).unwrap()), ["nomic-embed-text"]);
    let mut two = offers();
    two.push(on_device("b", spec("bge-m3")));
    for seed in 0..20 {
        let decision = decide_with(two.clone(), &vectors, &Posterior::default(), seed).unwrap();
        assert_eq!(reachable(&decision), ["bge-m3"], "vectors of two models cannot be compared");
    }
    let chat_only = vec![on_device("a", spec("llama3.2:1b"))];
    assert_eq!(decide(chat_only, &vectors).unwrap_err(), NoRoute::Unsupported { what: "embeddings" });
}
