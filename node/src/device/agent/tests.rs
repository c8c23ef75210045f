//! The agent, its engines and the tunnel, over an in-memory mesh: both ends of an inference as one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::Router;
use axum::response::IntoResponse;
use axum::routing::any;
use bytes::Bytes;
use shoal_cluster::ids::{NodeId, Peer, Role};
use shoal_proto::infer_frame::Kind;
use shoal_proto::{InferEnd, InferFrame, InferHead, ModelInfo};
use shoal_routing::DataClass;
use tokio::sync::oneshot;
use tower::ServiceExt;

use super::*;
use crate::device::detect::EngineKind;
use crate::device::engine::EngineStatus;
use crate::device::testing::{self, Ending, PATIENCE, TellsDrop, chat, collect, event_stream};
use crate::tasks::{self, TaskKind};
use crate::upstream::openai_http::{self, OpenAiHttp};
use crate::upstream::reply::{Gone, MAX_CHUNK};
use crate::upstream::tunnel::{Frames, Interrupted, Opener, Tunnel};
use crate::upstream::{Event, UpstreamError, UpstreamRequest, http_client};

const ROLE: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const WORD: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\n";
const STOP: &str = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";

/// The responder's end of an in-memory stream.
#[derive(Debug)]
struct Sender {
    frames: mpsc::Sender<InferFrame>,
    finished: Option<oneshot::Sender<()>>,
}

/// The opener's end.
#[derive(Debug)]
struct Receiver {
    frames: mpsc::Receiver<InferFrame>,
    finished: oneshot::Receiver<()>,
}

fn pair() -> (Sender, Receiver) {
    let (frames, received) = mpsc::channel(1);
    let (finish, finished) = oneshot::channel();
    (Sender { frames, finished: Some(finish) }, Receiver { frames: received, finished })
}

impl Respond for Sender {
    async fn send(&mut self, frame: InferFrame) -> Result<(), Gone> {
        self.frames.send(frame).await.map_err(|_| Gone)
    }

    async fn finish(mut self) -> Result<(), Gone> {
        self.finished.take().unwrap().send(()).map_err(|()| Gone)
    }

    async fn cancelled(&mut self) {
        self.frames.closed().await;
    }
}

impl Frames for Receiver {
    async fn next(&mut self) -> Result<Option<InferFrame>, Interrupted> {
        match self.frames.recv().await {
            Some(frame) => Ok(Some(frame)),
            None => self.finished.try_recv().map(|()| None).map_err(|_| Interrupted("reset".to_owned())),
        }
    }
}

/// Opens streams straight into an agent's queue.
#[derive(Clone)]
struct Wire(mpsc::Sender<Work<Sender>>);

impl Opener for Wire {
    type Frames = Receiver;

    async fn open(&self, _: Peer, request: InferRequest) -> Result<Receiver, UpstreamError> {
        let (responder, receiver) = pair();
        self.0
            .send(Work { request, responder })
            .await
            .map_err(|_| UpstreamError::new(502, "upstream_error", "gone"))?;
        Ok(receiver)
    }
}

#[derive(Debug)]
struct FakeMesh {
    said: watch::Sender<DeviceAnnounce>,
    routers: watch::Receiver<Vec<&'static str>>,
}

impl Mesh for FakeMesh {
    type Router = &'static str;

    fn announce(&self, announce: DeviceAnnounce) {
        self.said.send_replace(announce);
    }

    fn routers(&self) -> watch::Receiver<Vec<&'static str>> {
        self.routers.clone()
    }
}

/// A running agent as the mesh sees it.
struct Running {
    wire: Wire,
    said: watch::Receiver<DeviceAnnounce>,
    routers: watch::Sender<Vec<&'static str>>,
    remembered: mpsc::UnboundedReceiver<Vec<&'static str>>,
    shutdown: CancellationToken,
    ended: tokio::task::JoinHandle<()>,
}

fn run(engines: Vec<Engine>, max_slots: Option<u32>) -> Running {
    run_with_drain(engines, max_slots, PATIENCE)
}

fn run_with_drain(engines: Vec<Engine>, max_slots: Option<u32>, drain: Duration) -> Running {
    let settings = Settings {
        id: "device-id".to_owned(),
        name: "box".to_owned(),
        version: "0".to_owned(),
        generation: 7,
        max_slots,
        drain,
    };
    let (said, heard) = watch::channel(DeviceAnnounce::default());
    let (routers, known) = watch::channel(Vec::new());
    let (send, work) = mpsc::channel(4);
    let (remember, remembered) = mpsc::unbounded_channel();
    let shutdown = CancellationToken::new();
    let agent =
        Agent::new(settings, engines, watch::channel(Power::default()).1, FakeMesh { said, routers: known });
    let keep = move |routers: &[&'static str]| remember.send(routers.to_vec()).unwrap();
    let ended = tasks::spawn(TaskKind::Agent, agent.run(work, keep, shutdown.clone()));
    Running { wire: Wire(send), said: heard, routers, remembered, shutdown, ended }
}

impl Running {
    fn tunnel(&self) -> Tunnel<Wire> {
        let to = Peer { role: Role::Device, id: NodeId::from_spki(b"device") };
        Tunnel::new(self.wire.clone(), to, "box")
    }

    async fn ask(
        &self,
        request: UpstreamRequest,
    ) -> Result<crate::upstream::UpstreamResponse, UpstreamError> {
        tokio::time::timeout(PATIENCE, self.tunnel().oneshot(request)).await.expect("the future resolves")
    }

    async fn hears(&mut self, what: &str, mut wanted: impl FnMut(&DeviceInfo, bool) -> bool) {
        let heard = self
            .said
            .wait_for(|said| said.device.as_ref().is_some_and(|device| wanted(device, said.leaving)));
        tokio::time::timeout(PATIENCE, heard)
            .await
            .unwrap_or_else(|_| panic!("never heard: {what}"))
            .unwrap();
    }
}

/// An engine at a scripted server, with a status that the test sets.
async fn engine_at(router: Router, slots: u32, models: &[&str]) -> (Engine, watch::Sender<EngineStatus>) {
    let base = testing::serve(router).await;
    let settings = openai_http::Settings {
        base,
        key: None,
        name: "engine".to_owned(),
        id: "engine".to_owned(),
        timeouts: openai_http::IdleTimeouts::default(),
    };
    let client = http_client::build(http_client::Reach::Lan).unwrap();
    let (status, watched) = watch::channel(serving(slots, models));
    let upstream = BoxUpstream::new(OpenAiHttp::new(client, settings));
    (Engine::new("engine", watched, upstream), status)
}

fn serving(slots: u32, models: &[&str]) -> EngineStatus {
    let model = |id: &&str| ModelInfo { id: (*id).to_owned(), ..ModelInfo::default() };
    EngineStatus {
        kind: Some(EngineKind::OpenAi),
        models: models.iter().map(model).collect(),
        slots,
        ..EngineStatus::default()
    }
}

fn streaming(parts: &'static [&'static str], ending: Ending) -> Router {
    Router::new().fallback(any(move || async move { event_stream(parts, ending) }))
}

fn chunk(line: &'static str) -> Event {
    Event::Chunk(Bytes::from_static(line.strip_prefix("data: ").unwrap().trim_end().as_bytes()))
}

#[tokio::test]
async fn an_answer_crosses_the_mesh_unchanged_and_signed_by_the_device() {
    let (engine, _status) = engine_at(streaming(&[WORD, STOP], Ending::Clean), 2, &["m"]).await;
    let running = run(vec![engine], None);
    let answer = running.ask(chat(true)).await.unwrap();
    assert_eq!((&*answer.served_by.upstream, &*answer.served_by.upstream_id), ("box", "device-id"));
    let (events, error) = collect(answer).await;
    assert!(error.is_none());
    assert_eq!(events, [chunk(WORD), chunk(STOP), Event::End { complete: true }]);
}

#[tokio::test]
async fn a_cut_answer_stays_cut_across_the_mesh() {
    let (engine, _status) = engine_at(streaming(&[WORD], Ending::Clean), 2, &["m"]).await;
    let (events, _) = collect(run(vec![engine], None).ask(chat(true)).await.unwrap()).await;
    assert_eq!(events, [chunk(WORD), Event::End { complete: false }]);
    let (engine, _status) = engine_at(streaming(&[WORD], Ending::Cut), 2, &["m"]).await;
    let (_, error) = collect(run(vec![engine], None).ask(chat(true)).await.unwrap()).await;
    assert_eq!(&*error.unwrap().code, "upstream_interrupted");
}

#[tokio::test]
async fn a_large_body_crosses_in_parts() {
    let body = format!("{{\"choices\":[\"{}\"]}}", "x".repeat(2 * MAX_CHUNK));
    let answer = body.clone();
    let router = Router::new().fallback(any(move || async move { answer.into_response() }));
    let (engine, _status) = engine_at(router, 1, &["m"]).await;
    let (events, error) = collect(run(vec![engine], None).ask(chat(false)).await.unwrap()).await;
    assert!(error.is_none());
    let mut whole = Vec::new();
    for event in &events {
        if let Event::Chunk(part) = event {
            assert!(part.len() <= MAX_CHUNK);
            whole.extend_from_slice(part);
        }
    }
    assert_eq!(whole, body.as_bytes());
    assert_eq!(events.last(), Some(&Event::End { complete: true }));
}

#[tokio::test]
async fn errors_cross_the_mesh_with_their_meaning() {
    let busy =
        || async { (axum::http::StatusCode::TOO_MANY_REQUESTS, [("retry-after", "3")]).into_response() };
    let (engine, _status) = engine_at(Router::new().fallback(any(busy)), 2, &["m"]).await;
    let running = run(vec![engine], None);
    let error = running.ask(chat(true)).await.unwrap_err();
    assert_eq!((error.status, &*error.code, error.retryable), (429, "rate_limit_exceeded", true));
    assert_eq!(error.retry_after, Some(Duration::from_secs(3)));
    let other = UpstreamRequest { model: Arc::from("other"), ..chat(true) };
    let error = running.ask(other).await.unwrap_err();
    assert_eq!((error.status, &*error.code, error.retryable), (404, "model_not_found", true));
}

#[tokio::test]
async fn beyond_its_slots_the_device_refuses_and_a_slot_comes_back_with_the_cancel() {
    let (engine, _status) = engine_at(streaming(&[WORD], Ending::Silence), 5, &["m"]).await;
    let mut running = run(vec![engine], Some(1));
    let first = running.ask(chat(true)).await.unwrap();
    running.hears("one in flight", |device, _| device.in_flight == 1 && device.slots == 1).await;
    let refused = running.ask(chat(true)).await.unwrap_err();
    assert_eq!((refused.status, &*refused.code, refused.retryable), (503, "overloaded", true));
    drop(first);
    running.hears("none in flight", |device, _| device.in_flight == 0).await;
    running.ask(chat(true)).await.unwrap();
}

#[tokio::test]
async fn each_engine_keeps_to_its_own_slots() {
    let (one, _first) = engine_at(streaming(&[WORD], Ending::Silence), 1, &["m"]).await;
    let (two, _second) = engine_at(streaming(&[WORD], Ending::Silence), 1, &["m", "n"]).await;
    let running = run(vec![one, two], None);
    let _held = (running.ask(chat(true)).await.unwrap(), running.ask(chat(true)).await.unwrap());
    assert_eq!(running.ask(chat(true)).await.unwrap_err().status, 503);
}

#[tokio::test]
async fn an_engine_that_dies_before_its_first_word_is_replaced_by_the_next() {
    let deaths = Arc::new(AtomicU32::new(0));
    for ending in [Ending::Clean, Ending::Cut] {
        let counter = deaths.clone();
        let dies = move || {
            counter.fetch_add(1, Ordering::SeqCst);
            async move { event_stream(&[ROLE], ending) }
        };
        let (dead, _dead) = engine_at(Router::new().fallback(any(dies)), 9, &["m"]).await;
        let (good, _good) = engine_at(streaming(&[WORD, STOP], Ending::Clean), 9, &["m"]).await;
        let running = run(vec![dead, good], None);
        for _ in 0..4 {
            let (events, error) = collect(running.ask(chat(true)).await.unwrap()).await;
            assert!(error.is_none());
            assert_eq!(events, [chunk(WORD), chunk(STOP), Event::End { complete: true }]);
        }
    }
    assert!(deaths.load(Ordering::SeqCst) >= 4, "each round has to meet the dead one");
}

#[tokio::test]
async fn when_no_engine_is_left_the_failure_of_the_last_is_told() {
    let fails = || async { axum::http::StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    let (one, _one) = engine_at(Router::new().fallback(any(fails)), 1, &["m"]).await;
    let (two, _two) = engine_at(Router::new().fallback(any(fails)), 1, &["m"]).await;
    let running = run(vec![one, two], None);
    for stream in [true, false] {
        let error = running.ask(chat(stream)).await.unwrap_err();
        assert_eq!((&*error.code, error.retryable), ("upstream_error", true));
    }
}

#[tokio::test]
async fn a_cancel_reaches_the_engine_in_prefill_and_in_decode() {
    let (told, mut words) = mpsc::unbounded_channel();
    let prefill = move || {
        let guard = TellsDrop(told.clone(), "cancelled");
        async move {
            guard.0.send("prefill").unwrap();
            let _guard = guard;
            std::future::pending::<axum::response::Response>().await
        }
    };
    let (engine, _status) = engine_at(Router::new().fallback(any(prefill)), 2, &["m"]).await;
    let mut running = run(vec![engine], None);
    let asking = tasks::spawn(TaskKind::Relay, running.tunnel().oneshot(chat(true)));
    assert_eq!(words.recv().await, Some("prefill"));
    asking.abort();
    assert_eq!(tokio::time::timeout(PATIENCE, words.recv()).await.unwrap(), Some("cancelled"));
    running.hears("the slot is free", |device, _| device.in_flight == 0).await;

    let (told, mut words) = mpsc::unbounded_channel();
    let decode = move || {
        let guard = TellsDrop(told.clone(), "cancelled");
        async move {
            let parts = stream::iter([Ok::<_, std::io::Error>(WORD)]).chain(stream::pending());
            let body = axum::body::Body::from_stream(parts.inspect(move |_| {
                let _held_by_the_body = &guard;
            }));
            ([("content-type", "text/event-stream")], body).into_response()
        }
    };
    let (engine, _status) = engine_at(Router::new().fallback(any(decode)), 2, &["m"]).await;
    let mut answer = run(vec![engine], None).ask(chat(true)).await.unwrap();
    assert_eq!(answer.events.next().await.unwrap().unwrap(), chunk(WORD));
    drop(answer);
    assert_eq!(tokio::time::timeout(PATIENCE, words.recv()).await.unwrap(), Some("cancelled"));
}

#[tokio::test]
async fn a_change_of_an_engine_is_announced_and_routers_are_remembered() {
    let (one, first) = engine_at(Router::new(), 2, &["m"]).await;
    let (two, _second) = engine_at(Router::new(), 3, &["n", "m"]).await;
    let mut running = run(vec![one, two], None);
    let names = |device: &DeviceInfo| device.models.iter().map(|model| model.id.clone()).collect::<Vec<_>>();
    running.hears("both", |device, _| device.slots == 5 && names(device) == ["m", "n"]).await;
    let before = running.said.borrow().device.clone().unwrap();
    assert_eq!((&*before.id, &*before.name, before.generation), ("device-id", "box", 7));
    first.send_replace(EngineStatus::default());
    running.hears("one left", |device, _| device.slots == 3 && device.seq > before.seq).await;
    running.routers.send_replace(vec!["somewhere"]);
    assert_eq!(running.remembered.recv().await, Some(vec!["somewhere"]));
}

#[tokio::test]
async fn a_crowd_of_models_is_cut_to_what_gossip_can_carry() {
    let names: Vec<String> = (0..500).map(|n| format!("model-with-a-rather-long-name-{n:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (engine, _status) = engine_at(Router::new(), 1, &names).await;
    let mut running = run(vec![engine], None);
    running
        .hears("some", |device, _| !device.models.is_empty() && device.encoded_len() <= MAX_DESCRIPTION)
        .await;
}

#[tokio::test]
async fn restricted_content_is_not_given_to_a_remote_model() {
    let (engine, status) = engine_at(streaming(&[WORD, STOP], Ending::Clean), 1, &["m"]).await;
    status.send_modify(|status| status.models[0].remote = true);
    let running = run(vec![engine], None);
    let restricted = UpstreamRequest { data_class: DataClass::Restricted, ..chat(true) };
    let error = running.ask(restricted).await.unwrap_err();
    assert_eq!((error.status, &*error.code), (403, "policy_blocked"));
    running.ask(chat(true)).await.unwrap();
}

#[tokio::test]
async fn a_leaving_device_says_so_refuses_and_ends_when_its_time_is_over() {
    let (engine, _status) = engine_at(streaming(&[WORD], Ending::Silence), 4, &["m"]).await;
    let mut running = run_with_drain(vec![engine], None, Duration::from_secs(1));
    let answer = running.ask(chat(true)).await.unwrap();
    running.shutdown.cancel();
    running.hears("leaving", |_, leaving| leaving).await;
    let refused = running.ask(chat(true)).await.unwrap_err();
    assert_eq!((refused.status, refused.retryable), (503, true));
    let (events, error) = collect(answer).await;
    assert_eq!(events, [chunk(WORD)]);
    assert_eq!(&*error.unwrap().code, "upstream_interrupted");
    tokio::time::timeout(PATIENCE, running.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_idle_device_leaves_at_once_and_a_running_answer_is_finished_first() {
    let (engine, _status) = engine_at(streaming(&[WORD, STOP], Ending::Clean), 4, &["m"]).await;
    let running = run(vec![engine], None);
    let answer = running.ask(chat(true)).await.unwrap();
    running.shutdown.cancel();
    let (events, error) = collect(answer).await;
    assert!(error.is_none());
    assert_eq!(events.last(), Some(&Event::End { complete: true }));
    tokio::time::timeout(PATIENCE, running.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn frames_out_of_order_are_an_error() {
    let head = Kind::Head(InferHead::default());
    let word = Kind::Chunk(Bytes::from_static(b"{}"));
    let end = Kind::End(InferEnd { complete: true });
    let answered = async |kinds: Vec<Option<Kind>>, finish: bool| {
        let (work, mut queue) = mpsc::channel::<Work<Sender>>(1);
        let far_end = tasks::spawn(TaskKind::InboundInfer, async move {
            let mut responder = queue.recv().await.unwrap().responder;
            for kind in kinds {
                let _ = responder.send(InferFrame { kind }).await;
            }
            if finish {
                let _ = responder.finish().await;
            }
        });
        let to = Peer { role: Role::Router, id: NodeId::from_spki(b"router") };
        let result = match Tunnel::new(Wire(work), to, "far").oneshot(chat(true)).await {
            Ok(answer) => {
                let (events, error) = collect(answer).await;
                (events, error.map(|error| error.code.to_string()))
            }
            Err(error) => (Vec::new(), Some(format!("early {}", error.code))),
        };
        far_end.await.unwrap();
        result
    };
    let [head, word, end] = [head, word, end].map(Some);
    let check = |found: (Vec<Event>, Option<String>), events: usize, error: Option<&str>| {
        assert_eq!((found.0.len(), found.1.as_deref()), (events, error));
    };
    check(answered(vec![word.clone()], true).await, 0, Some("early upstream_error"));
    check(answered(vec![end.clone()], true).await, 0, Some("early upstream_error"));
    check(answered(vec![None], true).await, 0, Some("early upstream_error"));
    check(answered(vec![], true).await, 0, Some("early upstream_interrupted"));
    check(answered(vec![], false).await, 0, Some("early upstream_interrupted"));
    check(answered(vec![head.clone(), head.clone()], true).await, 0, Some("upstream_error"));
    check(answered(vec![head.clone(), word.clone()], true).await, 1, Some("upstream_interrupted"));
    check(answered(vec![head.clone(), word.clone()], false).await, 1, Some("upstream_interrupted"));
    check(answered(vec![head.clone(), word.clone(), end.clone(), word.clone()], true).await, 2, None);
}
