//! Providers end to end on loopback: what leaves, what it costs, and what never shows.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use futures_util::{FutureExt, StreamExt, stream};
use reqwest::Url;
use shoal_routing::{DataClass, MicroUsd, Price};
use tower::ServiceExt;

use super::*;
use crate::device::testing::{self, chat, collect};
use crate::egress::EgressMark;
use crate::upstream::{Event, ServedBy, UpstreamError, UpstreamRequest, UpstreamResponse};

/// A key that must show nowhere.
const CANARY: &str = "sk-canary-7f3a9b";

const ANSWER: &str = r#"{"id":"x","object":"chat.completion","model":"m","choices":[{"index":0,
"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],
"usage":{"prompt_tokens":10,"completion_tokens":20,"total_tokens":30}}"#;

struct Scene {
    clouds: Clouds,
    seen: Arc<AtomicUsize>,
    _dir: tempfile::TempDir,
}

impl Scene {
    /// A provider `own` at a server that answers with `answer`, its one model at 1 and 2 USD per million tokens.
    async fn new(
        internal_ok: bool,
        budget: &str,
        answer: impl Fn(Request) -> Response + Clone + Send + Sync + 'static,
    ) -> Self {
        let seen = Arc::new(AtomicUsize::new(0));
        let count = seen.clone();
        let app = Router::new().fallback(any(move |request: Request| {
            count.fetch_add(1, Ordering::SeqCst);
            let answer = answer.clone();
            async move { answer(request) }
        }));
        let base = testing::serve(app).await;
        Self::at(base, seen, internal_ok, budget)
    }

    fn at(base: Url, seen: Arc<AtomicUsize>, internal_ok: bool, budget: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let entry = FileProvider {
            name: "own".into(),
            base_url: Some(base.to_string()),
            models: vec!["m".into()],
            internal_ok: Some(internal_ok),
            budget: Some(budget.parse().unwrap()),
            ..FileProvider::default()
        };
        let mut settings = entry.check(&[], Source::Config).unwrap();
        settings.key = Some(CANARY.to_owned().into());
        let price = PriceEntry {
            provider: "own".into(),
            model: "m".into(),
            input: 1.0,
            output: 2.0,
            max_output: Some(100),
            ..PriceEntry::default()
        };
        let limits = crate::config::Config::load(Default::default(), &[]).unwrap().limits;
        let store = Store::open(dir.path()).unwrap();
        let clouds = Clouds::new(vec![settings], &[price], dir.path(), store, &limits).unwrap();
        Self { clouds, seen, _dir: dir }
    }

    async fn ask(&self, request: UpstreamRequest) -> Result<UpstreamResponse, UpstreamError> {
        let offer = self.clouds.offers().borrow()[0].clone();
        self.clouds.upstream(&offer).unwrap().oneshot(request).await
    }

    fn spent(&self) -> f64 {
        self.clouds.list()[0].spent_usd.unwrap()
    }

    /// Waits for settlements, which are written in the background.
    async fn spends(&self, usd: f64) {
        let settled = async {
            while (self.spent() - usd).abs() > 1e-9 {
                tokio::task::yield_now().await;
            }
        };
        let done = tokio::time::timeout(testing::PATIENCE, settled).await;
        assert!(done.is_ok(), "spent {} instead of {usd}", self.spent());
    }
}

fn good(_: Request) -> Response {
    ([("content-type", "application/json")], ANSWER).into_response()
}

fn request(data_class: DataClass) -> UpstreamRequest {
    UpstreamRequest { data_class, ..chat(false) }
}

#[tokio::test]
async fn an_answer_is_paid_at_its_price_and_marked() {
    let scene = Scene::new(true, "1usd/day", |request: Request| {
        assert_eq!(request.headers()["authorization"], format!("Bearer {CANARY}"));
        good(request)
    })
    .await;
    let asked = request(DataClass::Internal);
    let mark = asked.egress.clone();
    let (events, error) = collect(scene.ask(asked).await.unwrap()).await;
    assert!(error.is_none() && events.len() == 2);
    assert_eq!(mark.text(), "own");
    scene.spends(50e-6).await;
}

#[tokio::test]
async fn not_one_connection_for_what_may_not_leave() {
    for (class, internal_ok) in [(DataClass::Restricted, true), (DataClass::Internal, false)] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/v1", listener.local_addr().unwrap()).parse().unwrap();
        let scene = Scene::at(base, Arc::default(), internal_ok, "1usd/day");
        let asked = request(class);
        let mark = asked.egress.clone();
        let error = scene.ask(asked).await.unwrap_err();
        assert_eq!((error.status, &*error.code), (403, "policy_blocked"));
        assert_eq!(mark.text(), "none");
        scene.spends(0.0).await;
        let accepted = tokio::time::timeout(Duration::from_millis(20), listener.accept()).await;
        assert!(accepted.is_err(), "a connection was opened for {class}");
    }
}

#[tokio::test]
async fn parallel_requests_never_pass_the_purse() {
    let scene = Scene::new(true, "0.002usd/day", good).await;
    // Each may cost a bit more than 100 output tokens at 2 USD a million: at most nine fit at once.
    let asked = (0..64).map(|_| async {
        let answer = scene.ask(request(DataClass::Public)).await;
        assert!(scene.spent() <= 0.002);
        match answer {
            Ok(answer) => {
                collect(answer).await;
                1
            }
            Err(error) => {
                assert_eq!((error.status, &*error.code), (429, "insufficient_quota"), "{error}");
                assert!(error.message.contains("purse of 'own'"));
                0
            }
        }
    });
    let paid: usize = futures_util::future::join_all(asked).await.into_iter().sum();
    assert_eq!(scene.seen.load(Ordering::SeqCst), paid, "what is not paid for is not sent");
    assert!(paid > 0 && paid <= 40, "{paid}");
    scene.spends(paid as f64 * 50e-6).await;
}

#[tokio::test]
async fn a_key_with_a_budget_pays_beside_the_providers_purse() {
    let scene = Scene::new(true, "1usd/day", good).await;
    let store = scene.clouds.store.clone();
    let keys = crate::store::KeyRing::load(store.clone()).unwrap();
    let budget: Budget = "0.0004usd/month".parse().unwrap();
    let id = keys.create("intern", false, Some(budget)).unwrap().record.id;
    let purses = KeyPurses::new(keys.clone(), store.clone());
    let left = || purses.left(&id).unwrap().0;
    assert_eq!(left(), 400);
    let asked = || UpstreamRequest { payer: purses.of(&id), ..request(DataClass::Public) };
    collect(scene.ask(asked()).await.unwrap()).await;
    scene.spends(50e-6).await;
    let settled = async {
        while left() != 350 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(testing::PATIENCE, settled).await.expect("the key is billed what the answer cost");
    // A restart reads the same book.
    let again = KeyPurses::new(keys, store.clone());
    assert_eq!(again.left(&id), Some(shoal_routing::MicroUsd(350)));
    // Spent but for less than a request may cost: nothing is sent, and the provider's purse gets its part back.
    let account = format!("key:{id}");
    let period = budget.period_at(crate::store::unix_ms());
    assert!(store.reserve_spend(&account, &period, 300, 400).unwrap());
    let error = scene.ask(asked()).await.unwrap_err();
    assert_eq!((error.status, &*error.code, error.retryable), (429, "insufficient_quota", true));
    assert!(error.message.contains(&id) && error.message.contains("keys create"), "{error}");
    assert_eq!(scene.seen.load(Ordering::SeqCst), 1);
    scene.spends(50e-6).await;
}

#[tokio::test]
async fn a_dearer_tier_is_reserved_and_booked_at_its_price() {
    let scene = Scene::new(true, "1usd/day", good).await;
    let body = r#"{"model":"m","messages":[{"role":"user","content":"x"}],"service_tier":"priority"}"#;
    let asked = UpstreamRequest { body: body.into(), ..request(DataClass::Public) };
    collect(scene.ask(asked).await.unwrap()).await;
    scene.spends(100e-6).await;
}

#[tokio::test]
async fn faults_are_mapped_and_refusals_are_free() {
    let cases = [
        (StatusCode::TOO_MANY_REQUESTS, 429, "rate_limit_exceeded"),
        (StatusCode::INTERNAL_SERVER_ERROR, 502, "upstream_error"),
        (StatusCode::SERVICE_UNAVAILABLE, 503, "overloaded"),
        (StatusCode::UNAUTHORIZED, 502, "upstream_error"),
    ];
    for (theirs, status, code) in cases {
        let body = format!("{{\"error\":{{\"message\":\"bad key {CANARY}\"}}}}");
        let scene = Scene::new(true, "1usd/day", move |_| (theirs, body.clone()).into_response()).await;
        let error = scene.ask(request(DataClass::Public)).await.unwrap_err();
        assert_eq!((error.status, &*error.code, error.retryable), (status, code, true));
        assert!(!format!("{error:?}").contains(CANARY), "{error:?}");
        scene.spends(0.0).await;
    }
    let garbage = |_| ([("content-type", "application/json")], "{oops").into_response();
    let scene = Scene::new(true, "1usd/day", garbage).await;
    assert_eq!(scene.ask(request(DataClass::Public)).await.unwrap_err().status, 502);
}

#[tokio::test]
async fn what_a_provider_did_is_counted_and_outlives_new_settings() {
    let turn = Arc::new(AtomicUsize::new(0));
    let scene = Scene::new(false, "1usd/day", move |request| match turn.fetch_add(1, Ordering::SeqCst) {
        0 => good(request),
        1 => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        _ => ([("content-type", "application/json")], "{oops").into_response(),
    })
    .await;
    let (_, error) = collect(scene.ask(request(DataClass::Public)).await.unwrap()).await;
    assert!(error.is_none());
    for _ in 0..2 {
        let _failed = scene.ask(request(DataClass::Public)).await.unwrap_err();
    }
    let blocked = scene.ask(request(DataClass::Internal)).await.unwrap_err();
    assert_eq!(&*blocked.code, "policy_blocked");
    let settings = scene.clouds.providers.load()["own"].settings.clone();
    let told = scene.clouds.add(settings).unwrap();
    assert_eq!((told.requests, told.failed), (3, 2), "what was never sent does not count");
    assert!(told.p50_ms.is_some() && told.p50_ms == told.p99_ms);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere =
        |_| (StatusCode::TEMPORARY_REDIRECT, [("location", "http://127.0.0.1:1/")]).into_response();
    let scene = Scene::new(true, "1usd/day", elsewhere).await;
    let error = scene.ask(request(DataClass::Public)).await.unwrap_err();
    assert_eq!((error.status, scene.seen.load(Ordering::SeqCst)), (502, 1));
}

#[tokio::test]
async fn the_key_shows_in_nothing_that_is_told() {
    let scene = Scene::new(true, "1usd/day", good).await;
    let told = [
        format!("{:?}", scene.clouds),
        serde_json::to_string(&scene.clouds.list()).unwrap(),
        format!("{:?}", scene.clouds.offers().borrow()),
    ];
    for text in told {
        assert!(!text.contains(CANARY), "{text}");
    }
}

#[tokio::test]
async fn providers_come_and_go_and_a_key_stays_with_its_server() {
    let scene = Scene::new(true, "1usd/day", good).await;
    let entry = |base: &str| FileProvider {
        name: "own".into(),
        base_url: Some(base.into()),
        models: vec!["a".into(), "b".into()],
        ..FileProvider::default()
    };
    let same = scene.clouds.list()[0].base_url.clone();
    let changed = scene.clouds.add(entry(&same).check(&[], Source::Added).unwrap()).unwrap();
    assert!(changed.key, "the key is kept for the same server");
    assert_eq!(changed.models, ["own/a", "own/b"]);
    let moved =
        scene.clouds.add(entry("https://evil.example/v1").check(&[], Source::Added).unwrap()).unwrap();
    assert!(!moved.key, "the key goes to no other server");
    scene.clouds.remove("own").unwrap();
    assert!(scene.clouds.offers().borrow().is_empty());
    assert!(matches!(scene.clouds.remove("own"), Err(Error::Unknown(_))));
}

/// The offer of another node's model at a price.
fn priced(price: Price) -> Offer {
    let model = ModelSpec::new("own/m", "openai");
    Offer { price: Some(price), ..Offer::new(UpstreamId::Provider("own".into()), Arc::new(model)) }
}

#[tokio::test]
async fn who_gets_no_answer_pays_for_what_may_have_been_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let price = Price { input_per_million: MicroUsd(1_000_000), output_per_million: MicroUsd(2_000_000) };
    let silent = || UpstreamError::retryable(504, "upstream_timeout", "silence").without_answer();
    let refused = || UpstreamError::retryable(503, "overloaded", "no");
    let body = r#"{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":100}"#;
    let most = body.len() as u64 + 200;
    for (account, sent, error, expected) in
        [("silent", true, silent(), most), ("unsent", false, silent(), 0), ("refused", true, refused(), 0)]
    {
        let purse = Purse::new(Owner::Key(account.into()), "1usd/day".parse().unwrap(), store.clone());
        let way = tower::service_fn(move |request: UpstreamRequest| {
            if sent {
                request.egress.handed_to(&"own".into());
            }
            std::future::ready(Err::<UpstreamResponse, _>(error.clone()))
        });
        let before = EgressMark::default();
        before.handed_to(&"an earlier attempt".into());
        let payer = Some(purse.clone());
        let request = UpstreamRequest { payer, body: body.into(), egress: before.clone(), ..chat(false) };
        Metered::forwarded(way, &priced(price)).oneshot(request).await.unwrap_err();
        assert_eq!(before.text().contains("own"), sent, "the request's own mark learns of it");
        let settled = async {
            while purse.balance().unwrap().spent.0 != expected {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(testing::PATIENCE, settled).await.expect(account);
    }
}

#[tokio::test]
async fn who_goes_away_before_an_answer_pays_for_what_was_sent() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let price = Price { input_per_million: MicroUsd(1_000_000), output_per_million: MicroUsd(2_000_000) };
    // The whole answer at its bound; of a stream the prompt; nothing of what did not leave.
    for (account, sent, stream, expected) in
        [("whole", true, false, 100..=1_000), ("stream", true, true, 1..=99), ("unsent", false, false, 0..=0)]
    {
        let purse = Purse::new(Owner::Key(account.into()), "1usd/day".parse().unwrap(), store.clone());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let silent = tower::service_fn(move |request: UpstreamRequest| {
            if sent {
                request.egress.handed_to(&"own".into());
            }
            count.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<Result<UpstreamResponse, UpstreamError>>()
        });
        let body = r#"{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":100}"#;
        let request = UpstreamRequest { payer: Some(purse.clone()), body: body.into(), ..chat(stream) };
        let mut answer = Metered::forwarded(silent, &priced(price)).oneshot(request);
        while asked.load(Ordering::SeqCst) == 0 {
            assert!((&mut answer).now_or_never().is_none(), "nobody answers");
            tokio::task::yield_now().await;
        }
        let reserved = purse.balance().unwrap().spent.0;
        assert!(reserved > 200, "{account}");
        drop(answer);
        let spent = || purse.balance().unwrap().spent.0;
        if account == "whole" {
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(spent(), reserved);
        }
        let settled = async {
            while !expected.contains(&spent()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(testing::PATIENCE, settled).await.expect(account);
    }
}

#[tokio::test]
async fn a_key_pays_no_more_than_was_set_aside_whatever_another_node_counts() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let purse = Purse::new(Owner::Key("k".into()), "1usd/day".parse().unwrap(), store);
    let price = Price { input_per_million: MicroUsd(1_000_000), output_per_million: MicroUsd(2_000_000) };
    let way = tower::service_fn(move |_: UpstreamRequest| {
        let answer = ANSWER.replace("\"completion_tokens\":20", "\"completion_tokens\":400000");
        let events = [Ok(Event::Chunk(answer.into())), Ok(Event::End { complete: true })];
        let by = ServedBy { upstream: "own".into(), upstream_id: "own".into(), model: "own/m".into() };
        let answer = UpstreamResponse { served_by: by, media: None, events: stream::iter(events).boxed() };
        std::future::ready(Ok::<_, UpstreamError>(answer))
    });
    let body = r#"{"model":"m","messages":[],"max_tokens":100}"#;
    let request = UpstreamRequest { payer: Some(purse.clone()), body: body.into(), ..chat(false) };
    let most = body.len() as u64 + 200;
    collect(Metered::forwarded(way, &priced(price)).oneshot(request).await.unwrap()).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(purse.balance().unwrap().spent, MicroUsd(most));
}

#[tokio::test]
async fn a_key_pays_also_where_another_node_has_the_providers() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let purse = Purse::new(Owner::Key("k".into()), "0.03usd/day".parse().unwrap(), store.clone());
    let price = Price { input_per_million: MicroUsd(1_000_000), output_per_million: MicroUsd(2_000_000) };
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let way = tower::service_fn(move |_: UpstreamRequest| {
        count.fetch_add(1, Ordering::SeqCst);
        let events = [Ok(Event::Chunk(ANSWER.into())), Ok(Event::End { complete: true })];
        let by = ServedBy { upstream: "own".into(), upstream_id: "own".into(), model: "own/m".into() };
        let answer = UpstreamResponse { served_by: by, media: None, events: stream::iter(events).boxed() };
        std::future::ready(Ok::<_, UpstreamError>(answer))
    });
    let ask = |payer: Option<Purse>| {
        Metered::forwarded(way.clone(), &priced(price)).oneshot(UpstreamRequest { payer, ..chat(false) })
    };
    collect(ask(Some(purse.clone())).await.unwrap()).await;
    let settled = async {
        while purse.left().unwrap() != MicroUsd(30_000 - 50) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(testing::PATIENCE, settled).await.expect("the key's purse settles");
    let poor = Purse::new(Owner::Key("poor".into()), "0usd/day".parse().unwrap(), store);
    assert_eq!(&*ask(Some(poor)).await.unwrap_err().code, "insufficient_quota");
    assert_eq!(asked.load(Ordering::SeqCst), 1, "what the key cannot pay is not even forwarded");
    collect(ask(None).await.unwrap()).await;
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}
