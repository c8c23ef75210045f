//! Rules as users of other routers know them: which one speaks, and what it says.

use super::*;
use crate::choice::ModelChoice;
use crate::profile::RequestProfile;
use crate::request::{Message, MessageRole, Request};
use crate::testing::seeded;
use crate::units::Tokens;

fn targets(split: &[(&str, f64)], fallback: &[&str]) -> Targets {
    Targets {
        split: split
            .iter()
            .map(|(model, weight)| Target { model: (*model).into(), weight: *weight })
            .collect(),
        fallback: fallback.iter().map(|model| (*model).into()).collect(),
        sticky: Sticky::Off,
    }
}

fn alias(name: &str, split: &[(&str, f64)], fallback: &[&str]) -> Alias {
    Alias { name: name.into(), targets: targets(split, fallback) }
}

fn route(name: &str, when: When, split: &[(&str, f64)]) -> Route {
    Route {
        name: name.into(),
        when,
        targets: targets(split, &[]),
        mode: None,
        preference: None,
        data_class: None,
    }
}

fn keywords(words: &[&str]) -> When {
    When { keywords: words.iter().map(|word| Keyword::new(word).unwrap()).collect(), ..When::default() }
}

fn plan_for(rules: &Rules, asked: &str, request: &Request<'_>, seed: u64) -> Option<Plan> {
    let profile = RequestProfile::of(request);
    let subject =
        Subject { asked, request, profile: &profile, key_id: "k1", key_name: "ci", user: Some("ann") };
    rules.plan(&subject, &mut seeded(seed))
}

fn plan(rules: &Rules, asked: &str, text: &str) -> Option<Plan> {
    plan_for(rules, asked, &Request::of_text(text), 1)
}

fn models(plan: &Plan) -> Vec<&str> {
    plan.targets.iter().map(|target| &*target.model).collect()
}

#[test]
fn the_first_route_that_holds_speaks_and_an_alias_only_where_none_does() {
    let long = When { min_prompt: Some(Tokens(200)), ..When::default() };
    let routes = vec![
        route("law", keywords(&["contract"]), &[("big", 1.0)]),
        route("long", long, &[("cheap", 1.0)]),
        route(
            "ci",
            When { keys: vec!["ci".into()], models: vec!["gpt-*".into()], ..When::default() },
            &[("m", 1.0)],
        ),
    ];
    let rules = Rules::new(routes, vec![alias("smart", &[("big", 1.0)], &["auto:local"])]).unwrap();
    let said = |asked: &str, text: &str| plan(&rules, asked, text).map(|plan| plan.rule.to_string());
    let long = "word ".repeat(300);
    assert_eq!(said("auto", "Read this Contract, please").as_deref(), Some("law"));
    assert_eq!(said("auto", &format!("{long} contract")).as_deref(), Some("law"), "the first of two");
    assert_eq!(said("auto", &long).as_deref(), Some("long"));
    assert_eq!(said("gpt-4o", "hello").as_deref(), Some("ci"));
    assert_eq!(said("smart", "hello").as_deref(), Some("smart"));
    assert_eq!(said("auto", "hello"), None);
    let plan = plan(&rules, "smart", "hello").unwrap();
    assert_eq!((models(&plan), &*plan.fallback), (vec!["big"], &[Arc::from("auto:local")][..]));
}

#[test]
fn only_the_last_message_of_the_user_is_searched_for_words_that_steer() {
    let rules = Rules::new(vec![route("law", keywords(&["contract"]), &[("big", 1.0)])], vec![]).unwrap();
    let message = |role, text: &'static str| Message { role, text: text.into() };
    let mut request = Request::of_text("hello");
    request.messages = vec![
        message(MessageRole::User, "a contract"),
        message(MessageRole::Assistant, "a contract"),
        message(MessageRole::User, "and now the weather"),
    ];
    assert_eq!(plan_for(&rules, "auto", &request, 1), None);
    request.messages.push(message(MessageRole::User, "the contract"));
    assert!(plan_for(&rules, "auto", &request, 1).is_some());
}

#[test]
fn a_word_that_keeps_a_request_here_counts_in_every_message() {
    let law = |mode, data_class| Route { mode, data_class, ..route("law", keywords(&["contract"]), &[]) };
    let keeping = [(Some(Mode::Local), None), (None, Some(DataClass::Restricted))];
    for role in [MessageRole::System, MessageRole::User, MessageRole::Assistant, MessageRole::Tool] {
        let mut request = Request::of_text("and now the weather");
        request.messages.insert(0, Message { role, text: "a contract".into() });
        for (mode, class) in keeping {
            let rules = Rules::new(vec![law(mode, class)], vec![]).unwrap();
            assert!(plan_for(&rules, "auto", &request, 1).is_some(), "{role:?} {mode:?} {class:?}");
        }
        let steering = Rules::new(vec![law(Some(Mode::Cloud), None)], vec![]).unwrap();
        assert_eq!(plan_for(&steering, "auto", &request, 1), None, "what only steers keeps to the last one");
    }
}

#[test]
fn a_rule_makes_a_request_stricter_and_never_looser() {
    let rule = |mode, class| {
        let route = Route { mode, data_class: class, ..route("r", When::default(), &[]) };
        Rules::new(vec![route], vec![]).unwrap()
    };
    let request = |mode, data_class| Request { mode, data_class, ..Request::of_text("hello") };
    let result = |mode, class, asked: &Request<'_>| {
        plan_for(&rule(mode, class), "auto", asked, 1).map(|plan| (plan.mode, plan.data_class))
    };
    use DataClass::{Internal, Public, Restricted};
    let (auto, local, cloud) = (Mode::Auto, Mode::Local, Mode::Cloud);
    let (to_cloud, to_local) = (Some(cloud), Some(local));
    assert_eq!(result(to_local, None, &request(cloud, Internal)), Some((local, Internal)));
    assert_eq!(result(to_cloud, None, &request(auto, Public)), Some((cloud, Public)));
    assert_eq!(result(None, Some(Public), &request(auto, Internal)), Some((auto, Internal)), "never lowered");
    assert_eq!(result(None, Some(Restricted), &request(auto, Public)), Some((auto, Restricted)));
    for stays in [request(local, Internal), request(auto, Restricted)] {
        assert_eq!(result(to_cloud, None, &stays), None, "a rule to the cloud is not about {stays:?}");
    }
    let pinned = Request { choice: ModelChoice::AutoLocal, ..request(auto, Internal) };
    assert_eq!(result(to_cloud, None, &pinned), None);
}

#[test]
fn a_sticky_split_keeps_its_pick_and_a_loose_one_follows_the_weights() {
    let with = |sticky| {
        let mut alias = alias("ab", &[("a", 3.0), ("b", 1.0)], &[]);
        alias.targets.sticky = sticky;
        Rules::new(vec![], vec![alias]).unwrap()
    };
    let share_of_a = |rules: &Rules, text: &dyn Fn(u64) -> String| {
        let picks = (0..2000).map(|n| {
            let text = text(n);
            plan_for(rules, "ab", &Request::of_text(&text), n).unwrap()
        });
        picks.filter(|plan| &*plan.targets[0].model == "a").count() as f64 / 2000.0
    };
    let same = |_: u64| "hello".to_owned();
    let other = |n: u64| format!("hello {n}");
    assert!((share_of_a(&with(Sticky::Off), &same) - 0.75).abs() < 0.05);
    assert!((share_of_a(&with(Sticky::Prompt), &other) - 0.75).abs() < 0.05);
    assert!((share_of_a(&with(Sticky::Conversation), &other) - 0.75).abs() < 0.05);
    for (sticky, text) in
        [(Sticky::User, &other as &dyn Fn(u64) -> String), (Sticky::Key, &other), (Sticky::Prompt, &same)]
    {
        let share = share_of_a(&with(sticky), text);
        assert!(share == 0.0 || share == 1.0, "{sticky:?} moved: {share}");
    }
}

#[test]
fn aliases_of_aliases_are_resolved_with_their_shares_and_chains() {
    let rules = Rules::new(
        vec![route("code", keywords(&["code"]), &[("fast", 1.0), ("smart", 3.0)])],
        vec![
            alias("fast", &[("small", 1.0)], &["tiny"]),
            alias("smart", &[("big", 1.0), ("huge", 1.0)], &["fast"]),
            // The name of a model that it stands for.
            alias("small", &[("small", 9.0), ("mid", 1.0)], &[]),
        ],
    )
    .unwrap();
    let shares = |name: &str| {
        rules.shares(name).into_iter().map(|(model, share)| (model.to_string(), share)).collect::<Vec<_>>()
    };
    let expected = |list: &[(&str, f64)]| list.iter().map(|(m, s)| ((*m).to_owned(), *s)).collect::<Vec<_>>();
    assert_eq!(shares("small"), expected(&[("small", 0.9), ("mid", 0.1)]));
    assert_eq!(
        shares("code"),
        expected(&[("small", 0.225), ("mid", 0.025), ("big", 0.375), ("huge", 0.375)])
    );
    let plan = plan(&rules, "auto", "write code").unwrap();
    let chain: Vec<&str> = plan.fallback.iter().map(|model| &**model).collect();
    assert_eq!(chain.len(), 3);
    assert_eq!(chain[0], "tiny");
    assert!(chain[1..].contains(&"small") && chain[1..].contains(&"mid"), "{chain:?}");
}

#[test]
fn a_route_without_models_leaves_the_name_to_its_alias() {
    let stay = Route { mode: Some(Mode::Local), ..route("stay", keywords(&["secret"]), &[]) };
    let rules = Rules::new(vec![stay], vec![alias("smart", &[("big", 1.0)], &["small"])]).unwrap();
    let plan = plan(&rules, "smart", "a secret").unwrap();
    assert_eq!((&*plan.rule, plan.mode, models(&plan)), ("stay", Mode::Local, vec!["big"]));
    assert_eq!(plan.fallback, [Arc::from("small")]);
}

#[test]
fn rules_that_cannot_be_meant_are_refused() {
    let one = |name: &str, to: &str| alias(name, &[(to, 1.0)], &[]);
    let refused = |routes, aliases| Rules::new(routes, aliases).map(|_| ()).unwrap_err();
    assert_eq!(refused(vec![], vec![one("a", "x"), one("a", "y")]), Unusable::Twice("a".into()));
    let same = vec![route("a", When::default(), &[("x", 1.0)])];
    assert_eq!(refused(same, vec![one("a", "x")]), Unusable::Twice("a".into()));
    assert!(matches!(refused(vec![], vec![one("a", "b"), one("b", "a")]), Unusable::Circle(_)));
    let wide = |name: &str, to: &str| {
        let split: Vec<(String, f64)> = (0..8).map(|n| (format!("{to}{n}"), 1.0)).collect();
        let split: Vec<(&str, f64)> = split.iter().map(|(model, weight)| (model.as_str(), *weight)).collect();
        alias(name, &split, &[])
    };
    let mut many: Vec<Alias> = (0..8).map(|n| wide(&format!("b{n}"), &format!("c{n}-"))).collect();
    many.push(wide("a", "b"));
    assert_eq!(refused(vec![], many), Unusable::TooMany("a".into()));
}
