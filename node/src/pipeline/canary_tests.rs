//! Ten thousand requests with a canary in each prompt, through every fault, in every mode: what must stay on the
//! mesh's devices stays, and no prompt shows in any text that the node keeps, tells or sends about requests.
//!
//! The scripted upstreams echo the prompt wherever an upstream can: in answers, in errors, as a finish reason.
//! Without the filter of classes, or of modes, or the class that a request of mode `local` travels with, it fails within
//! its first scene.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::HeaderMap;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use shoal_routing::{DataClass, MicroUsd, Price, UpstreamId};
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::api::parse::Floor;
use crate::testing::{Act, Beat, Scene, broken, offer, say};
use crate::upstream::UpstreamRequest;

/// Nodes that live one after the other, so that retry budgets and penalties do not end up refusing everything.
const SCENES: u64 = 64;
/// Requests of one node; their rows all fit into the history that is kept in memory.
const REQUESTS: u64 = 240;
/// Requests in progress at once.
const AT_ONCE: u64 = 12;
/// Begins every canary and no other text.
const CANARY: &str = "kanarie";
/// What a prompt ends with; the scripted upstreams echo from the canary up to here.
const DIGITS: usize = 8;

fn priced(mut offer: Offer) -> Offer {
    offer.price =
        Some(Price { input_per_million: MicroUsd(1_000_000), output_per_million: MicroUsd(2_000_000) });
    offer
}

fn provider(name: &str, model: &str, internal_ok: bool) -> Offer {
    let upstream = UpstreamId::Provider(name.into());
    priced(Offer { upstream, internal_ok, ..offer(name, model, &[]) })
}

/// Devices reached directly and through routers, one whose engine sends its model's requests on, two providers.
fn offers() -> Vec<Offer> {
    let mut phone = offer("phone", "weak-135m", &["r1"]);
    Arc::make_mut(&mut phone.model).logprobs = Some(true);
    let mut far = offer("far", "weak-135m", &["r2"]);
    far.routes = vec![Route::Via("r1".into()), Route::Via("r2".into())];
    let mut cloudy = offer("ollama", "cloudy-120b", &["r1"]);
    Arc::make_mut(&mut cloudy.model).remote = true;
    let own = offer("ollama", "middle-8b", &[]);
    // The same name at a device and at a provider: naming a model says nothing of where it may run.
    vec![
        phone,
        far,
        cloudy,
        own,
        provider("cloud", "strong-400b", true),
        provider("stranger", "weak-135m", false),
    ]
}

/// Whether a way leaves the devices of the mesh.
fn leaves(way: &str) -> bool {
    ["cloud/", "stranger/", "ollama/cloudy-120b"].iter().any(|outside| way.starts_with(outside))
}

/// What a client asks, and how far it may go.
struct Ask {
    body: String,
    headers: HeaderMap,
    floor: Floor,
    class: DataClass,
    /// Nobody outside the mesh's devices may see it.
    stays: bool,
    gives_up: Option<Duration>,
    canary: String,
}

fn one_of<T: Copy>(rng: &mut StdRng, of: &[T]) -> T {
    of[rng.random_range(0..of.len())]
}

fn ask(rng: &mut StdRng, number: u64) -> Ask {
    let canary = format!("{CANARY}{number:0DIGITS$}");
    // Half of the requests name nobody outside, so that few of those that must stay end before they begin.
    let inside =
        ["auto", "auto", "auto:best", "auto:local", "weak-135m", "weak-135m", "device:phone/weak-135m"];
    let outside = [
        "auto",
        "middle-8b",
        "strong-400b",
        "cloudy-120b",
        "cloud/strong-400b",
        "stranger/weak-135m",
        "device:ollama/cloudy-120b",
        "no-such",
    ];
    let model = if rng.random_bool(0.6) { one_of(rng, &inside) } else { one_of(rng, &outside) };
    let classes = [DataClass::Public, DataClass::Internal, DataClass::Internal, DataClass::Restricted];
    let mode = one_of(rng, &["auto", "auto", "auto", "auto", "local", "local", "cloud"]);
    let (said, header) = (one_of(rng, &classes), one_of(rng, &classes));
    let floor = Floor {
        data_class: one_of(
            rng,
            &[DataClass::Public, DataClass::Public, DataClass::Internal, DataClass::Restricted],
        ),
        local_only: rng.random_bool(0.1),
    };
    let (mut class, mut headers, mut metadata) =
        (floor.data_class, HeaderMap::new(), json!({ "mode": mode }));
    if rng.random_bool(0.5) {
        metadata["data_class"] = json!(said.as_str());
        class = class.max(said);
    }
    if rng.random_bool(0.2) {
        headers.insert("x-shoal-data-class", header.as_str().parse().unwrap());
        class = class.max(header);
    }
    if rng.random_bool(0.5) {
        metadata["confidence_threshold"] = json!(one_of(rng, &[0.1, 0.7, 0.99]));
    }
    let text = format!("Tell nobody: {canary} is the word.");
    let content = if rng.random_bool(0.5) { json!(text) } else { json!([{"type": "text", "text": text}]) };
    let mut body = json!({
        "model": model, "metadata": metadata,
        "messages": [{"role": "system", "content": text}, {"role": "user", "content": content}],
        "stream": rng.random_bool(0.5),
    });
    match rng.random_range(0..24) {
        // Faults of the client, near its text.
        0 => body["messages"][1]["content"] = json!([{"text": text}]),
        1 => body["messages"][1]["content"] = json!({ "text": text }),
        2 => body["tools"] = json!([{"type": "function", "function": {"name": "f", "description": text}}]),
        _ => {}
    }
    let gives_up = rng.random_bool(0.25).then(|| Duration::from_millis(rng.random_range(0..2000)));
    let stays =
        class == DataClass::Restricted || mode == "local" || model == "auto:local" || floor.local_only;
    Ask { body: body.to_string(), headers, floor, class, stays, gives_up, canary }
}

/// The canary in what an upstream was asked.
fn canary_of(request: &UpstreamRequest) -> String {
    let body = std::str::from_utf8(&request.body).unwrap();
    body[body.find(CANARY).unwrap()..][..CANARY.len() + DIGITS].to_owned()
}

/// What an upstream does: half of the time it answers.
fn act(rng: &mut StdRng, request: &UpstreamRequest) -> Act {
    let echo = canary_of(request);
    let logprobs = match one_of(rng, &[None, Some(-0.01), Some(-2.5)]) {
        None => Value::Null,
        Some(logprob) => {
            let top = [json!({"token": "a", "logprob": logprob}), json!({"token": "b", "logprob": -4.0})];
            json!({"content": [{"token": echo, "logprob": logprob, "top_logprobs": top}]})
        }
    };
    let part = |text: &str, finish: Value| {
        let inner = if request.stream { "delta" } else { "message" };
        say(&json!({"choices": [{"index": 0, inner: {"content": text}, "finish_reason": finish,
            "logprobs": logprobs}]})
        .to_string())
    };
    let in_band = say(&json!({"error": {"message": echo, "code": echo, "type": echo}}).to_string());
    let pause = Beat::Wait(Duration::from_millis(rng.random_range(0..900)));
    let word = part(&echo, Value::Null);
    match rng.random_range(0..22) {
        0..10 if request.stream => Act::Play(vec![word, pause, part("", json!("stop")), Beat::End(true)]),
        0..10 => Act::Play(vec![pause, part(&echo, json!("stop")), Beat::End(true)]),
        10 => Act::Fail(broken()),
        11 => Act::Fail(UpstreamError::retryable(429, "rate_limit_exceeded", "slow down")),
        12 => Act::Fail(UpstreamError::retryable(503, "overloaded", "full")),
        13 => Act::Fail(UpstreamError::new(400, "invalid_request_error", "no")),
        14 => Act::Hang,
        15 => Act::Play(vec![word, Beat::Silence]),
        16 => Act::Play(vec![word, Beat::End(false)]),
        17 => Act::Play(vec![word, pause, Beat::Break(broken())]),
        18 => Act::Play(vec![in_band, Beat::End(true)]),
        19 => Act::Play(vec![word, in_band, Beat::End(true)]),
        20 => Act::Play(vec![say(&format!("<html>{echo}")), Beat::End(true)]),
        _ => Act::Play(vec![part(&echo, json!(echo)), Beat::End(true)]),
    }
}

/// Everything that is written while it is subscribed to.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Fails if a text holds anybody's canary.
fn clean(what: &str, text: &[u8]) {
    if let Some(at) = memchr::memmem::find(text, CANARY.as_bytes()) {
        let around = &text[at.saturating_sub(300)..text.len().min(at + 100)];
        panic!("a prompt shows in {what}: {}", String::from_utf8_lossy(around));
    }
}

/// Lets one request run to its end, or as far as its client waits.
async fn client(scene: &Scene, ask: &Ask) -> &'static str {
    let job = match scene.chat_from(&ask.body, &ask.headers, ask.floor, None) {
        Ok(job) => job,
        Err(error) => {
            clean("an error of acceptance", &error.body());
            clean("an error of acceptance", format!("{error:?}").as_bytes());
            return "refused";
        }
    };
    let told = async {
        let mut stream = match scene.pipeline.run(job).await {
            Err(failed) => {
                clean("an error", format!("{failed:?}").as_bytes());
                return "failed";
            }
            Ok(Running::Whole(whole)) => {
                clean("the metadata", &whole.ticket.metadata());
                whole.complete();
                return "answered";
            }
            Ok(Running::Stream(stream)) => stream,
            Ok(Running::Sound(_)) => panic!("sound came unasked"),
        };
        loop {
            match stream.next().await {
                Step::Payload(..) => clean("the metadata", &stream.ticket().metadata()),
                Step::End(Ok(())) => {
                    stream.complete();
                    return "answered";
                }
                Step::End(Err(error)) => {
                    clean("an error in a stream", format!("{error:?}").as_bytes());
                    stream.fail(&error.code);
                    return "cut";
                }
            }
        }
    };
    match ask.gives_up {
        None => told.await,
        Some(patience) => tokio::time::timeout(patience, told).await.unwrap_or("left"),
    }
}

/// What happened, so that a run in which nothing happened is no proof.
type Tally = BTreeMap<&'static str, u64>;

/// Lives through one node's requests; adds to the tally.
async fn live(seed: u64, tally: &mut Tally) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut scene = Scene::new(offers());
    let mut acting = StdRng::seed_from_u64(rng.random());
    if seed > 1 {
        scene.spare_disk();
    }
    scene.improvise(Box::new(move |_, request| act(&mut acting, request)));
    for batch in 0..REQUESTS / AT_ONCE {
        let asks: Vec<Ask> =
            (0..AT_ONCE).map(|n| ask(&mut rng, seed * REQUESTS + batch * AT_ONCE + n)).collect();
        let ends = futures_util::future::join_all(asks.iter().map(|ask| client(&scene, ask))).await;
        for end in ends {
            *tally.entry(end).or_default() += 1;
        }
        for (way, request) in scene.take_asked() {
            let canary = canary_of(&request);
            let ask = asks.iter().find(|ask| ask.canary == canary).unwrap();
            let outside = leaves(&way);
            assert!(!(outside && ask.stays), "seed {seed}: {way} was asked for {}", ask.body);
            let forbidden = way.starts_with("stranger/") && ask.class > DataClass::Public;
            assert!(!forbidden, "seed {seed}: a stranger was asked for {}", ask.body);
            // Whoever it is handed to checks again, and can know it from this alone.
            assert!(request.data_class >= ask.class, "{way}: {}", ask.body);
            assert!(!ask.stays || request.data_class == DataClass::Restricted, "{way}: {}", ask.body);
            let kind = match (outside, ask.stays, way.contains('@')) {
                (true, ..) => "asked outside",
                (_, true, true) => "kept, by a router",
                (_, true, false) => "kept, direct",
                _ => "asked inside",
            };
            *tally.entry(kind).or_default() += 1;
        }
        clean("requests in progress", &serde_json::to_vec(&scene.pipeline.sinks.live.list()).unwrap());
        clean("gossip", format!("{:?}", scene.gossip()).as_bytes());
    }
    assert_eq!(scene.working(), 0, "seed {seed}: an upstream still works");
    let rows = scene.pipeline.sinks.history.newest(REQUESTS as usize).unwrap();
    clean("history", &serde_json::to_vec(&rows).unwrap());
    let escalated = rows.iter().filter(|row| row.escalated).count();
    *tally.entry("escalated").or_default() += escalated as u64;
    for row in rows.iter().filter(|row| row.data_class == "restricted") {
        assert_eq!((row.egress.as_str(), row.target == "cloud"), ("none", false), "{row:?}");
    }
    for file in std::fs::read_dir(scene.folder()).unwrap() {
        clean("the store", &std::fs::read(file.unwrap().path()).unwrap());
    }
}

#[test]
fn what_must_stay_stays_and_no_prompt_shows_anywhere() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let (shown, log, mut tally) = (recorder.handle(), Log::default(), Tally::new());
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(log.clone())
        .finish();
    // Both are this thread's alone, and so is the runtime.
    let _recording = metrics::set_default_local_recorder(&recorder);
    let _subscribed = tracing::subscriber::set_default(subscriber);
    for seed in 1..=SCENES {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(Box::pin(live(seed, &mut tally)));
        let written = std::mem::take(&mut *log.0.lock().unwrap());
        clean("the log", &written);
        for line in ["attempt failed", "nobody stronger answered"] {
            *tally.entry(line).or_default() +=
                memchr::memmem::find_iter(&written, line.as_bytes()).count() as u64;
        }
    }
    let text = shown.render();
    clean("the metrics", text.as_bytes());
    assert!(text.contains("shoal_requests_total") && text.contains("shoal_escalations_total"));
    let accepted: u64 = ["answered", "cut", "failed", "left"].into_iter().map(|end| tally[end]).sum();
    assert!(accepted >= 10_000, "{tally:?}");
    let least = [
        ("refused", 500),
        ("failed", 300),
        ("cut", 200),
        ("left", 300),
        ("answered", 2000),
        ("asked outside", 500),
        ("kept, by a router", 300),
        ("kept, direct", 500),
        ("asked inside", 500),
        ("attempt failed", 1000),
        ("nobody stronger answered", 10),
        ("escalated", 30),
    ];
    for (what, least) in least {
        assert!(
            tally.get(what).copied().unwrap_or(0) >= least,
            "{what}: too few to prove anything: {tally:?}"
        );
    }
}
