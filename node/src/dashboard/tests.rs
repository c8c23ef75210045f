//! The pages with hostile names, and the routes on a real node.

use axum::body::Body;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use shoal_cluster::identity::Identity;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::gather::Facts;
use super::*;
use crate::config::{Config, Flags};
use crate::device::set::EngineSet;
use crate::node::{Parts, Started, lock_data_dir};
use crate::store::{AttemptRecord, Considered, REJECTED, RequestRecord};

const EVIL: &str = "<script>alert(1)</script>\"'><img src=x onerror=y>\r\ndata: z\u{202e}";

fn evil_record(outcome: &str) -> RequestRecord {
    let evil = || EVIL.to_owned();
    RequestRecord {
        id: format!("req_{EVIL}"),
        node: evil(),
        path: evil(),
        model_requested: format!("{EVIL}2"),
        model: evil(),
        target: evil(),
        upstream: evil(),
        routing_reason: evil(),
        considered: vec![Considered { model: evil(), score: f64::NAN, ..Considered::default() }],
        outcome: outcome.into(),
        error: evil(),
        escalated: true,
        escalation: evil(),
        finish_reason: evil(),
        attempt_log: vec![AttemptRecord {
            upstream: evil(),
            model: evil(),
            ended: evil(),
            confidence: Some(f64::NAN),
            rejected_cost_usd: Some(f64::MAX),
            ..AttemptRecord::default()
        }],
        data_class: evil(),
        egress: evil(),
        key_id: evil(),
        ..RequestRecord::default()
    }
}

fn evil_facts() -> Facts {
    Facts {
        status: json!({"node": {"name": EVIL}, "statistics": [{"arm": EVIL, "count": 3}]}),
        nodes: vec![
            json!({"name": EVIL, "api_url": "javascript:alert(1)", "version": EVIL, "devices": [EVIL]}),
        ],
        devices: vec![json!({
            "name": EVIL, "platform": EVIL, "nodes": [EVIL], "slots": u64::MAX, "in_flight": u64::MAX,
            "models": [{"id": EVIL, "breaker": EVIL}],
        })],
        models: vec![json!({"id": EVIL, "devices": [EVIL], "quantization": EVIL})],
        providers: vec![json!({
            "name": EVIL, "kind": EVIL, "models": [EVIL], "breakers": {EVIL: EVIL}, "budget": format!("1usd/{EVIL}"),
            "budget_usd": 1.0, "spent_usd": f64::MAX, "requests": u64::MAX, "failed": u64::MAX, "p50_ms": f64::MAX,
        })],
        calibration: vec![
            json!({"arm": EVIL, "judged": u64::MAX, "ece": f64::MAX, "domains": [{"domain": EVIL}, {"domain": EVIL}]}),
        ],
        active: vec![evil_record("in progress")],
        recent: vec![evil_record(EVIL)],
        now_ms: 1_700_000_000_000,
    }
}

fn assert_harmless(html: &str) {
    for raw in ["<script>alert", "<img src=x", "\"'>", "\r", "\u{202e}", "href=\"javascript"] {
        assert!(!html.contains(raw), "{raw:?} came through");
    }
    assert!(html.contains("&lt;script&gt;alert(1)"), "the name is shown, escaped");
}

#[test]
fn hostile_names_stay_text_on_every_page() {
    assert_harmless(&page::overview(&evil_facts()).into_string());
    assert_harmless(&request_page::render(&evil_record("failed"), 0).into_string());
    assert_harmless(&request_page::missing(EVIL, EVIL).into_string());
}

#[test]
fn pages_need_nothing_inline_and_nothing_from_elsewhere() {
    let pages = [
        page::overview(&evil_facts()),
        request_page::render(&evil_record("failed"), 0),
        page::logged_out(page::Refusal::BadCode),
    ];
    for html in pages.map(maud::Markup::into_string) {
        for forbidden in [" style=", "<style", " onclick=", "src=\"http", "href=\"http", "href=\"//"] {
            assert!(!html.contains(forbidden), "{forbidden}");
        }
    }
    assert!(!include_str!("assets/style.css").contains("url("));
}

#[test]
fn states_are_words_and_empty_sections_name_the_next_command() {
    let empty = page::overview(&Facts::default()).into_string();
    for command in ["shoal token create", "shoal join", "shoal chat", "shoal pull", "shoal cloud add"] {
        assert!(empty.contains(command), "{command}");
    }
    let facts = Facts {
        nodes: vec![
            json!({"alive": true}),
            json!({"alive": false}),
            json!({"alive": true, "draining": true}),
        ],
        devices: vec![
            json!({"name": "d", "slots": 2, "in_flight": 1, "models": [{"id": "m", "breaker": "half_open", "ttft_ms": 41.2}]}),
        ],
        ..Facts::default()
    };
    let html = page::overview(&facts).into_string();
    for word in ["alive", "away", "draining", "on trial", "half open", "41 ms", "1 of 2"] {
        assert!(html.contains(word), "{word}");
    }
}

fn provider(breakers: &Value, spent_usd: f64) -> String {
    let models: Vec<&String> = breakers.as_object().unwrap().keys().collect();
    let provider = json!({
        "name": "own", "kind": "gemini", "models": models, "breakers": breakers, "internal_ok": true,
        "budget": "2usd/month", "budget_usd": 2.0, "spent_usd": spent_usd,
        "requests": 40, "failed": 3, "in_flight": 1, "p50_ms": 120.0, "p99_ms": 2400.0,
    });
    page::overview(&Facts { providers: vec![provider], ..Facts::default() }).into_string()
}

#[test]
fn a_provider_tells_its_state_its_purse_and_its_answers() {
    let html = provider(&json!({"own/a": "closed", "own/b": "open"}), 0.5);
    for shown in [
        "partly failing",
        "internal data allowed",
        "$0.50 of $2.00 this month, 25 %",
        "width=\"25.0\"",
        "40, 8 % failed, 1 in progress",
        "120 ms / 2.4 s",
        ">a<",
    ] {
        assert!(html.contains(shown), "{shown}: {html}");
    }
    assert!(provider(&json!({"own/a": "open"}), 0.0).contains("</i>failing"));
    assert!(provider(&json!({"own/a": "half_open"}), 0.0).contains("on trial"));
    assert!(provider(&json!({"own/a": "closed"}), 2.0).contains("purse empty"));
    assert!(provider(&json!({"own/a": "closed"}), 0.0).contains("ready"));
}

#[test]
fn an_escalated_request_says_why_and_what_was_rejected() {
    let record = RequestRecord {
        escalated: true,
        escalation: "low_confidence".into(),
        rejected_tokens: 1234,
        attempt_log: vec![
            AttemptRecord {
                upstream: "phone".into(),
                model: "weak-135m".into(),
                ended: REJECTED.into(),
                confidence: Some(0.17),
                rejected_tokens: Some(16),
                ..AttemptRecord::default()
            },
            AttemptRecord { upstream: "own".into(), ended: "ok".into(), ..AttemptRecord::default() },
        ],
        confidence: Some(0.41),
        raw_confidence: Some(0.52),
        cost_usd: Some(0.0021),
        ..RequestRecord::default()
    };
    let html = request_page::render(&record, 0).into_string();
    for shown in [
        "low confidence",
        "1\u{202f}234 tokens",
        "not good enough",
        "weak-135m, confidence 0.17, 16 tokens",
        "0.41 calibrated, 0.52 as observed",
    ] {
        assert!(html.contains(shown), "{shown}");
    }
    let row = page::overview(&Facts { recent: vec![record], ..Facts::default() }).into_string();
    assert!(row.contains("escalated") && row.contains("low confidence") && row.contains("$0.002100"));
}

#[test]
fn a_request_page_says_where_why_and_how_it_ended() {
    let record = RequestRecord {
        id: "req_ab12cd34_1".into(),
        model: "small".into(),
        upstream: "phone".into(),
        target: "peer".into(),
        routing_reason: "auto:thompson".into(),
        considered: vec![
            Considered { model: "small".into(), score: 0.75, ..Considered::default() },
            Considered { model: "large".into(), score: 0.5, ..Considered::default() },
        ],
        outcome: "completed".into(),
        status: 200,
        prompt_tokens: 12,
        completion_tokens: 101,
        ttft_ms: Some(100),
        duration_ms: 2100,
        attempts: 2,
        attempt_log: vec![
            AttemptRecord {
                upstream: "laptop".into(),
                ended: "upstream_timeout".into(),
                ..AttemptRecord::default()
            },
            AttemptRecord { upstream: "phone".into(), ended: "ok".into(), ..AttemptRecord::default() },
        ],
        confidence: Some(0.834),
        ..RequestRecord::default()
    };
    let html = request_page::render(&record, 0).into_string();
    for shown in [
        "req_ab12cd34_1",
        "completed",
        "phone",
        "peer",
        "learnt choice",
        "large",
        "0.500",
        "taken",
        "laptop",
        "upstream_timeout",
        "answered",
        "100 ms",
        "2.1 s",
        "20 ms",
        "0.83",
        "shoal explain req_ab12cd34_1",
    ] {
        assert!(html.contains(shown), "{shown}");
    }
    assert!(!html.contains("http-equiv"), "a finished request does not reload");
}

#[test]
fn only_names_of_this_machine_pass_without_login() {
    for good in ["localhost:8080", "LOCALHOST", "127.0.0.1:8080", "127.9.9.9", "[::1]:8080"] {
        assert!(is_this_machine(good), "{good}");
    }
    for bad in ["", "evil.example", "127.0.0.1.evil.example:8080", "192.168.1.2", "0.0.0.0", "localhost.evil"]
    {
        assert!(!is_this_machine(bad), "{bad}");
    }
}

struct Bench {
    started: Started,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn start(no_auth: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let flags = Flags {
            data_dir: Some(dir.path().to_owned()),
            listen: Some(([127, 0, 0, 1], 0).into()),
            mesh: Some(([127, 0, 0, 1], 0).into()),
            name: Some("bench".into()),
            no_detect: true,
            no_auth,
            ..Flags::default()
        };
        let config = Config::load(flags, &[]).unwrap();
        let shutdown = CancellationToken::new();
        let parts = Parts {
            identity: Identity::create_mesh(&dir.path().join("identity"), "bench").unwrap(),
            seeds: Vec::new(),
            keys: Default::default(),
            engines: EngineSet::for_router(&config, shutdown.clone()).unwrap(),
            lock: lock_data_dir(dir.path()).unwrap(),
            shutdown,
            metrics: metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder().handle(),
        };
        Self { started: Started::start(config, parts).await.unwrap(), _dir: dir }
    }

    async fn ask(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        self.send("GET", path, headers).await
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = http::Request::builder().method(method).uri(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        crate::api::public(self.started.node.clone()).oneshot(request).await.unwrap()
    }

    fn link(&self) -> String {
        let url = self.started.node.dashboard_url();
        url.strip_prefix(&self.started.node.api_url).unwrap().to_owned()
    }

    async fn log_in(&self) -> String {
        let response = self.ask(&self.link(), &[]).await;
        let cookie = response.headers()[header::SET_COOKIE].to_str().unwrap();
        cookie.split(';').next().unwrap().to_owned()
    }
}

async fn text_of(response: Response) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn a_link_logs_in_once_and_nothing_is_shown_without_it() {
    let bench = Bench::start(false).await;
    for path in
        ["/dashboard", "/dashboard/events", "/dashboard/requests/req_ab12cd34_1", "/dashboard?code=00"]
    {
        let response = bench.ask(path, &[("cookie", "shoal_session=1")]).await;
        assert_eq!(response.status(), 401, "{path}");
        assert!(!response.headers().contains_key(header::SET_COOKIE));
        let html = text_of(response).await;
        assert!(html.contains("shoal dashboard") && !html.contains("bench"), "{path}: {html}");
    }

    let link = bench.link();
    assert_eq!(bench.send("HEAD", &link, &[]).await.status(), 401, "a preview does not use the link up");
    let response = bench.ask(&link, &[]).await;
    assert_eq!(response.status(), 303);
    assert_eq!(response.headers()[header::LOCATION], "/dashboard");
    let cookie = response.headers()[header::SET_COOKIE].to_str().unwrap().to_owned();
    assert!(cookie.contains("; HttpOnly; SameSite=Strict") && !cookie.contains("Secure"), "{cookie}");
    assert_eq!(bench.ask(&link, &[]).await.status(), 401, "used");

    let cookie = cookie.split(';').next().unwrap();
    let page = bench.ask("/dashboard", &[("cookie", cookie)]).await;
    assert_eq!(page.status(), 200);
    assert!(text_of(page).await.contains("<strong>bench</strong>"));
    assert_eq!(
        bench.ask(&link, &[("cookie", cookie)]).await.status(),
        303,
        "a reload is no reason to log out"
    );
    let missing = bench.ask("/dashboard/requests/nonsense", &[("cookie", cookie)]).await;
    assert_eq!(missing.status(), 400);
    assert!(text_of(missing).await.contains("No such request"));
}

#[tokio::test]
async fn a_link_followed_from_another_site_goes_on_by_itself() {
    let bench = Bench::start(false).await;
    let response = bench.ask(&bench.link(), &[("sec-fetch-site", "cross-site")]).await;
    assert_eq!(response.status(), 200);
    assert!(response.headers().contains_key(header::SET_COOKIE));
    assert!(text_of(response).await.contains("http-equiv=\"refresh\""));
}

#[tokio::test]
async fn every_answer_carries_the_content_policy_and_is_read_only() {
    let bench = Bench::start(false).await;
    let cookie = bench.log_in().await;
    for path in [
        "/dashboard",
        "/dashboard/style.css",
        "/dashboard/script.js",
        "/dashboard/icon.svg",
        "/dashboard/events",
    ] {
        let response = bench.ask(path, &[("cookie", &cookie)]).await;
        assert_eq!(response.status(), 200, "{path}");
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"));
        assert_eq!(response.headers()[header::REFERRER_POLICY], "no-referrer");
        assert_eq!(bench.send("POST", path, &[("cookie", &cookie)]).await.status(), 405, "{path}");
    }
    let api = bench.ask("/shoal/v1/status", &[("cookie", &cookie)]).await;
    assert_eq!(api.status(), 401, "the cookie opens the dashboard alone");
}

#[tokio::test]
async fn without_login_only_this_machines_names_are_served() {
    let bench = Bench::start(true).await;
    assert_eq!(bench.link(), "/dashboard");
    assert_eq!(bench.ask("/dashboard", &[]).await.status(), 200);
    let request =
        http::Request::get("/dashboard").header("host", "evil.example").body(Body::empty()).unwrap();
    let response = crate::api::public(bench.started.node.clone()).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 421);
}

#[tokio::test]
async fn streams_are_bounded_and_end_when_the_node_stops() {
    let bench = Bench::start(false).await;
    let cookie = bench.log_in().await;
    let app = crate::api::public(bench.started.node.clone());
    let open = || {
        let request = http::Request::get("/dashboard/events").header("cookie", &cookie).body(Body::empty());
        app.clone().oneshot(request.unwrap())
    };
    let mut streams = Vec::new();
    for _ in 0..events::MAX_VIEWERS {
        let response = open().await.unwrap();
        assert_eq!(response.status(), 200);
        streams.push(response.into_body());
    }
    assert_eq!(open().await.unwrap().status(), 503);
    drop(streams.pop());
    streams.push(open().await.unwrap().into_body());

    let first = streams[0].frame().await.unwrap().unwrap().into_data().unwrap();
    let first = String::from_utf8(first.to_vec()).unwrap();
    let sections: serde_json::Value =
        serde_json::from_str(first.trim().strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(sections.as_object().unwrap().len(), page::Section::ALL.len());
    assert!(sections["requests"].as_str().unwrap().contains("No request yet"));

    bench.started.node.shutdown.cancel();
    let ended = async {
        for stream in streams {
            stream.collect().await.unwrap();
        }
        bench.started.finish().await;
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), ended)
        .await
        .expect("no stream outlives the node");
}
