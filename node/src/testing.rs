//! A pipeline over scripted upstreams, for the tests of everything between a client and an engine; no network.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, stream};
use http::HeaderMap;
use shoal_routing::hedge::MAX_SHARE;
use shoal_routing::{LoadBook, MAX_ATTEMPTS, ModelSpec, Offer, Outcome, Registry, Route, Rules, UpstreamId};
use tokio_util::sync::CancellationToken;

use crate::api::error::ApiError;
use crate::api::front::Front;
use crate::api::idempotency::{Answers, IdempotencySettings};
use crate::api::parse::{self, Floor};
use crate::api::responses::{Away, Elsewhere, Keeper};
use crate::api::serve::SocketLimits;
use crate::cloud::KeyPurses;
use crate::config::Limits;
use crate::feedback;
use crate::inventory::Inventory;
use crate::judging::agreement::SecondOpinion;
use crate::judging::{AgreementSettings, witness};
use crate::pipeline::live::Live;
use crate::pipeline::ticket::Sinks;
use crate::pipeline::{Job, Origin, Pipeline, Purpose, Resolve, RuleBook};
use crate::store::{HistoryWriter, KeyRing, RequestRecord, ResponseShelf, Store};
use crate::upstream::{
    ApiPath, BoxUpstream, Event, ServedBy, UpstreamError, UpstreamFuture, UpstreamRequest, UpstreamResponse,
};

pub(crate) const ROLE: &str = r#"{"choices":[{"delta":{"role":"assistant"}}]}"#;
pub(crate) const WORD: &str = r#"{"choices":[{"delta":{"content":"hi"}}]}"#;
pub(crate) const STOP: &str = r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#;
pub(crate) const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#;
pub(crate) const BODY: &str = r#"{"choices":[{"message":{"content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#;

/// What a scripted upstream does when it is asked.
#[derive(Clone)]
pub(crate) enum Act {
    /// Refuses.
    Fail(UpstreamError),
    /// Never answers.
    Hang,
    /// Answers, beat by beat.
    Play(Vec<Beat>),
}

/// One step of an answer.
#[derive(Clone)]
pub(crate) enum Beat {
    /// A payload, or a part of a whole body.
    Say(Bytes),
    /// The last event.
    End(bool),
    /// An error in the middle.
    Break(UpstreamError),
    /// A pause.
    Wait(Duration),
    /// Nothing more, ever.
    Silence,
}

pub(crate) fn say(text: &str) -> Beat {
    Beat::Say(Bytes::copy_from_slice(text.as_bytes()))
}

/// A good stream: role, word, stop, usage.
pub(crate) fn stream_answer() -> Act {
    Act::Play(vec![say(ROLE), say(WORD), say(STOP), say(USAGE), Beat::End(true)])
}

/// A good whole answer.
pub(crate) fn whole_answer() -> Act {
    Act::Play(vec![say(BODY), Beat::End(true)])
}

pub(crate) fn broken() -> UpstreamError {
    UpstreamError::retryable(502, "upstream_error", "it broke")
}

/// A way to a model: `device/model`, or `device/model@router`.
type Way = String;

/// Acts that several upstreams take from, in the order in which they are asked.
pub(crate) type Shared = Arc<Mutex<std::vec::IntoIter<Act>>>;

/// Decides what an upstream does when it is asked and has no script.
pub(crate) type Improvise = Box<dyn FnMut(&str, &UpstreamRequest) -> Act + Send>;

#[derive(Default)]
struct Stage {
    scripts: BTreeMap<Way, VecDeque<Act>>,
    shared: BTreeMap<Way, Shared>,
    improvise: Option<Improvise>,
    asked: Vec<(Way, UpstreamRequest)>,
}

#[derive(Default)]
struct Scripted {
    stage: Mutex<Stage>,
    /// Answers being worked on; each counts until it is dropped.
    working: Arc<AtomicUsize>,
}

struct Working(Arc<AtomicUsize>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Resolver(Arc<Scripted>);

/// A mesh of nobody else.
struct Alone;

impl Elsewhere for Alone {
    fn fetch<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<Option<Vec<u8>>, Away>> {
        Box::pin(async { Err(Away) })
    }

    fn remove<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<bool, Away>> {
        Box::pin(async { Err(Away) })
    }
}

impl Resolve for Resolver {
    fn resolve(&self, offer: &Offer, route: &Route) -> Option<BoxUpstream> {
        let way = match route {
            Route::Direct => format!("{}/{}", offer.name, offer.model.id),
            Route::Via(router) => format!("{}/{}@{router}", offer.name, offer.model.id),
        };
        Some(BoxUpstream::new(Actor { scripted: self.0.clone(), way }))
    }
}

#[derive(Clone)]
struct Actor {
    scripted: Arc<Scripted>,
    way: Way,
}

impl tower::Service<UpstreamRequest> for Actor {
    type Response = UpstreamResponse;
    type Error = UpstreamError;
    type Future = UpstreamFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: UpstreamRequest) -> UpstreamFuture {
        let model = request.model.to_string();
        let act = {
            let mut stage = self.scripted.stage.lock().unwrap();
            let improvised = stage.improvise.as_mut().map(|improvise| improvise(&self.way, &request));
            stage.asked.push((self.way.clone(), request));
            let scripted = match stage.shared.get(&self.way) {
                Some(shared) => shared.lock().unwrap().next(),
                None => stage.scripts.get_mut(&self.way).and_then(VecDeque::pop_front),
            };
            scripted.or(improvised)
        };
        let act = act.unwrap_or_else(|| panic!("{} has no script left", self.way));
        self.scripted.working.fetch_add(1, Ordering::SeqCst);
        let working = Working(self.scripted.working.clone());
        let way = self.way.clone();
        Box::pin(async move {
            let beats = match act {
                Act::Fail(error) => return Err(error),
                Act::Hang => std::future::pending().await,
                Act::Play(beats) => beats,
            };
            let events = stream::unfold((beats.into_iter(), working), |(mut beats, working)| async move {
                loop {
                    let event = match beats.next()? {
                        Beat::Say(bytes) => Ok(Event::Chunk(bytes)),
                        Beat::End(complete) => Ok(Event::End { complete }),
                        Beat::Break(error) => Err(error),
                        Beat::Silence => std::future::pending().await,
                        Beat::Wait(time) => {
                            tokio::time::sleep(time).await;
                            continue;
                        }
                    };
                    return Some((event, (beats, working)));
                }
            });
            let served_by = ServedBy { upstream: way.clone(), upstream_id: way, model };
            Ok(UpstreamResponse { served_by, media: None, events: events.boxed() })
        })
    }
}

/// A node without a mesh: pipeline, keys and sinks, over scripted upstreams.
pub(crate) struct Scene {
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) front: Front,
    scripted: Arc<Scripted>,
    pub(crate) learning: feedback::Service,
    /// Looks at answers only when a test asks it to.
    pub(crate) witness: Option<witness::Service>,
    pub(crate) store: Store,
    /// Key that clients come with.
    pub(crate) key_id: Arc<str>,
    offers: Vec<Offer>,
    disk: CancellationToken,
    dir: tempfile::TempDir,
}

/// Makes an offer of a device; routers as in `via` after the direct way.
pub(crate) fn offer(device: &str, model: &str, via: &[&str]) -> Offer {
    let mut offer =
        Offer::new(UpstreamId::Device(device.into()), Arc::new(ModelSpec::new(model, "scripted")));
    offer.routes.extend(via.iter().map(|router| Route::Via((*router).into())));
    offer
}

impl Scene {
    pub(crate) fn new(offers: Vec<Offer>) -> Self {
        Self::with_room_for(100, offers)
    }

    pub(crate) fn with_room_for(concurrent_requests: usize, offers: Vec<Offer>) -> Self {
        Self::build(concurrent_requests, offers, Rules::default(), |pipeline| pipeline)
    }

    /// A node that was part of a mesh and has just started.
    pub(crate) fn just_started(offers: Vec<Offer>) -> Self {
        Self::build(100, offers, Rules::default(), |pipeline| pipeline.expecting_a_mesh(true))
    }

    /// A node that may ask another model for its opinion.
    pub(crate) fn with_second_opinion(offers: Vec<Offer>, settings: AgreementSettings) -> Self {
        let second = SecondOpinion::new(settings, "0123abcd".into());
        Self::build(100, offers, Rules::default(), |pipeline| pipeline.with_second_opinion(Some(second)))
    }

    /// A node whose `shoal.toml` holds these rules.
    pub(crate) fn ruled(offers: Vec<Offer>, rules: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shoal.toml");
        std::fs::write(&path, format!("version = 1\n{rules}")).unwrap();
        Self::build(100, offers, crate::config::check_file(&path, &[]).unwrap().rules, |pipeline| pipeline)
    }

    fn build(
        concurrent_requests: usize,
        offers: Vec<Offer>,
        rules: Rules,
        finish: impl FnOnce(Pipeline) -> Pipeline,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (learning, feedback) = feedback::Service::new("me", 1, store.clone()).unwrap();
        // Rows stay in memory, where the tests look for them; nobody waits for the disk.
        let disk = CancellationToken::new();
        let (witness_service, witness) = witness::Service::new(feedback.clone());
        let (history, _) = HistoryWriter::start(store.clone(), 30, disk.clone());
        let sinks = Sinks {
            feedback,
            witness,
            history,
            live: Live::default(),
            totals: Arc::default(),
            lfo_manners: false,
        };
        let registry = Registry::new(offers.clone());
        let is_provider = |offer: &&Offer| matches!(offer.upstream, UpstreamId::Provider(_));
        let providers = offers.iter().filter(is_provider).map(|offer| offer.name.clone()).collect();
        let inventory =
            Arc::new(ArcSwap::from_pointee(Inventory { registry, providers, ..Inventory::default() }));
        let limits = Limits {
            body_bytes: 1 << 20,
            concurrent_requests,
            first_byte: Duration::from_secs(300),
            between_chunks: Duration::from_secs(30),
            history_days: 30,
            max_local_tokens: None,
            sockets: SocketLimits::default(),
            drain: Duration::from_secs(120),
        };
        let scripted = Arc::new(Scripted::default());
        let resolver = Arc::new(Resolver(scripted.clone()));
        let loads = Arc::new(LoadBook::new(1));
        let judged = store.clone();
        let (shelf, _) = ResponseShelf::start(store.clone(), 30, disk.clone());
        let keys = KeyRing::load(store.clone()).unwrap();
        let pipeline = Pipeline::new("me", inventory, loads, sinks, resolver, limits)
            .with_rules(RuleBook::new(rules, keys.clone()))
            .with_purses(KeyPurses::new(keys.clone(), store))
            .with_hedging(MAX_SHARE);
        let pipeline = Arc::new(finish(pipeline));
        let front = Front {
            name: "me".into(),
            short_id: "0123abcd".into(),
            pipeline: pipeline.clone(),
            keys,
            no_auth: true,
            claude_model: Some("auto".into()),
            responses: Keeper::new(shelf, Arc::new(Alone)).unwrap(),
            answers: Answers::new(IdempotencySettings::default()),
        };
        Self {
            pipeline,
            front,
            scripted,
            learning,
            witness: Some(witness_service),
            store: judged,
            key_id: "test".into(),
            offers,
            disk,
            dir,
        }
    }

    /// Adds to what happens on a way.
    pub(crate) fn script(&self, way: &str, acts: impl IntoIterator<Item = Act>) {
        let mut stage = self.scripted.stage.lock().unwrap();
        stage.scripts.entry(way.to_owned()).or_default().extend(acts);
    }

    /// Lets a way take from acts that it shares with others.
    pub(crate) fn script_from(&self, way: &str, acts: Shared) {
        self.scripted.stage.lock().unwrap().shared.insert(way.to_owned(), acts);
    }

    /// Accepts a chat request of a client.
    pub(crate) fn chat(&self, json: &str) -> Result<Job, ApiError> {
        self.chat_until(json, None)
    }

    pub(crate) fn chat_until(
        &self,
        json: &str,
        deadline: Option<tokio::time::Instant>,
    ) -> Result<Job, ApiError> {
        self.chat_from(json, &HeaderMap::new(), Floor::default(), deadline)
    }

    /// Accepts a chat request with all that a client or its key may say beside the body.
    pub(crate) fn chat_from(
        &self,
        json: &str,
        headers: &HeaderMap,
        floor: Floor,
        deadline: Option<tokio::time::Instant>,
    ) -> Result<Job, ApiError> {
        let bytes = Bytes::copy_from_slice(json.as_bytes());
        let is_provider = |name: &str| self.pipeline.is_provider(name);
        let (parsed, request) = parse::parse(
            ApiPath::ChatCompletions,
            None,
            &bytes,
            headers,
            floor,
            self.pipeline.naming(&is_provider),
        )?;
        let origin = Origin {
            id: self.front.new_request_id(),
            hop: 0,
            attempts_left: MAX_ATTEMPTS,
            key_id: self.key_id.clone(),
            deadline,
            purpose: Purpose::Client,
        };
        self.pipeline.accept(parsed, &request, origin)
    }

    /// Lets every way without a script do what `improvise` says.
    pub(crate) fn improvise(&self, improvise: Improvise) {
        self.scripted.stage.lock().unwrap().improvise = Some(improvise);
    }

    /// Takes what was asked so far: the way, and the request.
    pub(crate) fn take_asked(&self) -> Vec<(String, UpstreamRequest)> {
        std::mem::take(&mut self.scripted.stage.lock().unwrap().asked)
    }

    /// Learns from what ended so far, and returns what gossip would carry of it.
    pub(crate) fn gossip(&mut self) -> shoal_cluster::keyspace::Value {
        self.learning.learn_waiting()
    }

    /// Writes no more rows to the disk: for tests of very many requests, which would wait for it.
    pub(crate) fn spare_disk(&self) {
        self.disk.cancel();
    }

    /// Returns the folder in which the node keeps everything.
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Returns the ways that were tried, in order.
    pub(crate) fn tried(&self) -> Vec<String> {
        self.scripted.stage.lock().unwrap().asked.iter().map(|(way, _)| way.clone()).collect()
    }

    /// Returns what the upstreams were asked.
    pub(crate) fn asked(&self) -> Vec<UpstreamRequest> {
        self.scripted.stage.lock().unwrap().asked.iter().map(|(_, request)| request.clone()).collect()
    }

    /// Returns how many answers the upstreams work on.
    pub(crate) fn working(&self) -> usize {
        self.scripted.working.load(Ordering::SeqCst)
    }

    /// Checks that there was one request, that it ended exactly once everywhere, and that nothing is left of
    /// it; returns its record and what was told to learning.
    pub(crate) fn only_outcome(&mut self) -> (RequestRecord, Option<Outcome>) {
        let sinks = &self.pipeline.sinks;
        let totals = &sinks.totals;
        let ends: Vec<(&str, u64)> = ["completed", "failed", "cancelled", "rejected"]
            .into_iter()
            .map(|word| (word, totals.of(word)))
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(totals.of("accepted"), 1);
        let [(word, 1)] = ends[..] else { panic!("one outcome expected, got {ends:?}") };
        assert!(sinks.live.is_empty());
        let mut rows = sinks.history.newest(10).unwrap();
        assert_eq!(rows.len(), 1);
        let row = rows.remove(0);
        assert_eq!(row.outcome, word);
        for offer in &self.offers {
            assert_eq!(self.pipeline.loads.in_flight(&offer.upstream), 0, "{}", offer.name);
        }
        assert_eq!(self.working(), 0, "an upstream still works");
        let mut outcomes = self.learning.waiting();
        assert!(outcomes.len() <= 1);
        (row, outcomes.pop())
    }

    /// Returns true when the load book keeps requests away from a device's model.
    pub(crate) fn is_penalised(&self, device: &str, model: &str) -> bool {
        self.pipeline.loads.load(&UpstreamId::Device(device.into()), model, Instant::now()).penalised
    }
}
