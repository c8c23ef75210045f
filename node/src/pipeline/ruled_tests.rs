//! Rules and keys' money, from a client's request to where it went.

use shoal_routing::{DataClass, MicroUsd, Price, UpstreamId};

use super::*;
use crate::store::RequestRecord;
use crate::testing::{Act, Scene, broken, offer, whole_answer};

fn at_provider(model: &str) -> Offer {
    let spec = shoal_routing::ModelSpec::new(format!("openai/{model}"), "openai");
    let price = Price { input_per_million: MicroUsd(1_000_000), output_per_million: MicroUsd(2_000_000) };
    let offer = Offer::new(UpstreamId::Provider("openai".into()), Arc::new(spec));
    Offer { price: Some(price), ..offer }
}

fn body(model: &str, text: &str) -> String {
    serde_json::json!({"model": model, "messages": [{"role": "user", "content": text}]}).to_string()
}

async fn ask(scene: &mut Scene, model: &str, text: &str) -> Result<RequestRecord, (u16, String)> {
    let job = scene.chat(&body(model, text)).map_err(|e| (e.status, e.message))?;
    match scene.pipeline.run(job).await {
        Ok(Running::Whole(answer)) => answer.complete(),
        Ok(Running::Stream(_) | Running::Sound(_)) => panic!("a stream came unasked"),
        Err(failed) => return Err((failed.error.status, failed.error.message)),
    }
    Ok(scene.only_outcome().0)
}

#[tokio::test(start_paused = true)]
async fn an_alias_falls_back_along_its_chain_before_the_client_sees_a_fault() {
    let rules = "[[aliases]]\nname = \"x\"\nmodel = \"m\"\nfallback = [\"nobody\", \"n\"]";
    // Three hosts of the first model would use up all attempts; the chain gets the last one.
    let hosts = vec![offer("a", "m", &[]), offer("b", "m", &[]), offer("c", "m", &[]), offer("d", "n", &[])];
    let mut scene = Scene::ruled(hosts, rules);
    for way in ["a/m", "b/m", "c/m"] {
        scene.script(way, [Act::Fail(broken())]);
    }
    scene.script("d/n", [whole_answer()]);
    let row = ask(&mut scene, "x", "hello").await.unwrap();
    assert_eq!((row.model.as_str(), row.routing_reason.as_str(), row.rule.as_str()), ("n", "fallback", "x"));
    assert_eq!((row.attempts, row.model_requested.as_str()), (3, "x"));
}

#[tokio::test(start_paused = true)]
async fn a_rule_shows_in_the_reason_and_its_share_in_the_counts() {
    let rules = "[[aliases]]\nname = \"x\"\nsplit = [{ model = \"m\", weight = 3 }, { model = \"n\" }]";
    let mut scene = Scene::ruled(vec![offer("a", "m", &[]), offer("b", "n", &[])], rules);
    scene.script("a/m", [whole_answer()]);
    scene.script("b/n", [whole_answer()]);
    let row = ask(&mut scene, "x", "hello").await.unwrap();
    assert_eq!(row.routing_reason, "rule:x");
    let odds = if row.model == "m" { 0.75 } else { 0.25 };
    assert_eq!((row.propensity, row.considered.len()), (Some(odds), 2));
    let rule = scene.pipeline.rules.describe().remove(0);
    assert_eq!((rule["requests"].as_u64(), rule["sent"][0]["model"].as_str()), (Some(1), Some(&*row.model)));
    assert_eq!(rule["split"][0], serde_json::json!({"model": "m", "share": 0.75}));
}

#[tokio::test(start_paused = true)]
async fn a_keyword_keeps_a_request_here_on_every_path() {
    let rules = r#"
        [[routes]]
        name = "stay"
        when = { keywords = ["salary"] }
        mode = "local"
        data_class = "restricted"
        fallback = ["openai/gpt-4o"]
        [[routes]]
        name = "out"
        mode = "cloud"
    "#;
    let mut scene = Scene::ruled(vec![offer("a", "m", &[]), at_provider("gpt-4o")], rules);
    scene.script("a/m", [Act::Fail(broken())]);
    let failed = ask(&mut scene, "auto", "what is Ann's SALARY?").await.unwrap_err();
    assert_eq!(failed.0, 502);
    let asked = scene.take_asked();
    assert_eq!(asked.len(), 1, "the fallback is a provider's and may not see it");
    assert_eq!((asked[0].0.as_str(), asked[0].1.data_class), ("a/m", DataClass::Restricted));
    let mut scene = Scene::ruled(vec![offer("a", "m", &[]), at_provider("gpt-4o")], rules);
    scene.script("openai/openai/gpt-4o", [whole_answer()]);
    let row = ask(&mut scene, "auto", "what is a salad?").await.unwrap();
    assert_eq!((row.routing_reason.as_str(), row.target.as_str()), ("rule:out", "cloud"));
}

#[tokio::test(start_paused = true)]
async fn a_rule_is_for_a_key_by_its_name_and_not_for_what_another_router_forwards() {
    let rules = "[[routes]]\nname = \"ci\"\nwhen = { keys = [\"build\"] }\nmodel = \"n\"";
    let offers = || vec![offer("a", "m", &[]), offer("b", "n", &[])];
    let mut scene = Scene::ruled(offers(), rules);
    scene.script("a/m", [whole_answer()]);
    assert_eq!(ask(&mut scene, "m", "hello").await.unwrap().model, "m");
    let mut scene = Scene::ruled(offers(), rules);
    scene.key_id = scene.front.keys.create("build", false, None).unwrap().record.id.into();
    scene.script("b/n", [whole_answer()]);
    assert_eq!(ask(&mut scene, "m", "hello").await.unwrap().model, "n");
    let bytes = bytes::Bytes::from(body("m", "hello"));
    let naming = Naming { is_provider: &|_| false, lfo_manners: false };
    let headers = http::HeaderMap::new();
    let path = ApiPath::ChatCompletions;
    let (mut parsed, request) =
        crate::api::parse::parse(path, None, &bytes, &headers, Default::default(), naming).unwrap();
    let origin = |hop| Origin {
        id: "req_x".into(),
        hop,
        attempts_left: 1,
        key_id: scene.key_id.clone(),
        deadline: None,
        purpose: Purpose::Client,
    };
    let mut model = |hop| scene.pipeline.preview(&mut parsed, &request, &origin(hop)).unwrap().model;
    assert_eq!((&*model(0), &*model(1)), ("n", "m"));
}

#[tokio::test(start_paused = true)]
async fn a_rule_without_a_way_says_which_rule_it_was() {
    let mut scene = Scene::ruled(vec![offer("a", "m", &[])], "[[aliases]]\nname = \"x\"\nmodel = \"gone\"");
    let (status, message) = ask(&mut scene, "x", "hello").await.unwrap_err();
    assert_eq!(status, 404);
    assert!(message.contains("'gone'") && message.contains("rule 'x'"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_spent_key_is_served_by_devices_and_told_so_at_a_provider() {
    let mut scene = Scene::new(vec![offer("a", "m", &[]), at_provider("gpt-4o")]);
    let key = scene.front.keys.create("intern", false, Some("0usd/month".parse().unwrap())).unwrap().record;
    scene.key_id = key.id.into();
    let (status, message) = ask(&mut scene, "openai/gpt-4o", "hello").await.unwrap_err();
    assert_eq!(status, 429);
    assert!(message.contains("budget") && message.contains("shoal keys ls"), "{message}");
    let scene_with = |budget: Option<&str>| {
        let mut scene = Scene::new(vec![offer("a", "m", &[]), at_provider("gpt-4o")]);
        let budget = budget.map(|text| text.parse().unwrap());
        scene.key_id = scene.front.keys.create("intern", false, budget).unwrap().record.id.into();
        scene.script("a/m", [whole_answer()]);
        scene.script("openai/openai/gpt-4o", [whole_answer()]);
        scene
    };
    let mut scene = scene_with(Some("0usd/month"));
    let row = ask(&mut scene, "auto", "hello there").await.unwrap();
    assert_eq!(row.model, "m");
    assert_eq!(row.removed[0].why, "key budget does not cover it");
    // With money left, the purse goes along to whoever bills, and to nobody else.
    let mut scene = scene_with(Some("1usd/month"));
    ask(&mut scene, "openai/gpt-4o", "hello again").await.unwrap();
    assert!(scene.take_asked()[0].1.payer.is_some());
    let mut scene = scene_with(Some("1usd/month"));
    ask(&mut scene, "m", "and again").await.unwrap();
    assert!(scene.take_asked()[0].1.payer.is_none());
}
