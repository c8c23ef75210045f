//! What one node learns, read at the others: real QUIC on loopback, real stores, a death and a late comer.
//!
//! Each node has a runtime of its own, so that one can die without a word, between two writes.

#![allow(clippy::unwrap_used)] // helpers of tests, too, may panic

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use shoal_cluster::blob;
use shoal_cluster::sim::issue_identity;
use shoal_cluster::{Handle, Identity, MemoryBook, Role, RouterAddr, Service, Settings};
use shoal_node::control::ControlService;
use shoal_node::feedback::{self, FeedbackHandle, JudgedBy, Judgement};
use shoal_node::judge::Judge;
use shoal_node::judging::witness;
use shoal_node::mesh::{GossipPublisher, keep_statistics_equal};
use shoal_node::pipeline::live::Live;
use shoal_node::replication::statistics::testimony_from_blob;
use shoal_node::store::{HistoryWriter, KeyRing, RequestRecord, ResponseShelf, Store};
use shoal_proto::control_server::{Control, ControlServer};
use shoal_proto::{
    Empty, FeedbackReply, FeedbackRequest, FeedbackVerdict, GetRequestReply, GetRequestRequest,
    GetResponseReply, HealthReply, KeptResponseRequest, KeyRecords, PullStatisticsReply,
    PullStatisticsRequest, RemoveResponseReply, SignedBlob,
};
use shoal_routing::escalate::gain::AnswerSignals;
use shoal_routing::{ArmEvidence, ArmId, Domain, Features, RequestProfile, Score, Words};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

/// A busy machine may need longer than the mesh does.
const PATIENCE: Duration = Duration::from_secs(30);

struct Node {
    runtime: Runtime,
    mesh: Handle,
    feedback: FeedbackHandle,
    judge: Judge,
}

fn start(identity: Arc<Identity>, folder: &Path, seeds: Vec<RouterAddr>) -> Node {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let stop = CancellationToken::new();
    let guard = runtime.enter();
    let store = Store::open(folder).unwrap();
    let generation = store.next_generation().unwrap();
    let (service, feedback) =
        feedback::Service::new(identity.node_id().as_str(), generation, store.clone()).unwrap();
    let (history, _) = HistoryWriter::start(store.clone(), 30, stop.clone());
    let (witness, told) = witness::Service::new(feedback.clone());
    runtime.spawn(witness.run(stop.clone()));
    let judge = Judge { store: store.clone(), history, feedback: feedback.clone(), witness: told };
    let (shelf, _) = ResponseShelf::start(store.clone(), 30, stop.clone());
    let control =
        ControlService::routes(judge.clone(), KeyRing::load(store).unwrap(), Live::default(), shelf);
    let (cluster, mesh, _) =
        Service::bind(settings(seeds, generation), identity, Arc::new(MemoryBook::new()), control).unwrap();
    drop(guard);
    runtime.spawn(cluster.run(stop.clone()));
    runtime.spawn(service.run(GossipPublisher(mesh.clone()), stop.clone()));
    runtime.spawn(keep_statistics_equal(mesh.clone(), feedback.clone(), stop));
    Node { runtime, mesh, feedback, judge }
}

fn settings(seeds: Vec<RouterAddr>, generation: u64) -> Settings {
    Settings {
        name: "node".into(),
        version: "1".into(),
        api_url: "http://node.test".into(),
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: Vec::new(),
        seeds,
        gossip_interval: Duration::from_millis(200),
        generation,
    }
}

impl Node {
    fn seed(&self) -> RouterAddr {
        RouterAddr { id: self.mesh.node_id().clone(), addr: self.mesh.local_addr() }
    }

    /// All its tasks and its socket vanish at once.
    fn kill(self) {
        self.runtime.shutdown_background();
    }

    fn totals(&self) -> BTreeMap<ArmId, ArmEvidence> {
        self.feedback.learnt().totals.clone()
    }

    fn judgements(&self) -> u64 {
        self.totals().values().map(|evidence| evidence.stats.scored).sum()
    }

    /// Answers `count` requests, each kept in its history, and gives feedback on them.
    fn judged(&self, arm: &str, count: u32) {
        self.runtime.block_on(async {
            for n in 0..count {
                let id = format!("req_{}_{arm}_{n}", self.mesh.node_id().short());
                let value = |i| if i == 0 { 1.0 } else { f64::from((n + i as u32) % 5) - 2.0 };
                let features = Features::from_values(std::array::from_fn(value)).unwrap();
                self.judge.history.record(RequestRecord {
                    id: id.clone(),
                    arm: arm.into(),
                    outcome: "completed".into(),
                    features: Some(Box::new(features)),
                    words: Some(Box::new(words(n))),
                    raw_confidence: Some(0.7),
                    ..RequestRecord::default()
                });
                let score = Score::clamped(f64::from(n % 3) / 2.0);
                assert_eq!(self.judge.take(&id, score, "").await.unwrap(), FeedbackVerdict::Taken);
            }
        });
    }
}

/// Every third prompt, and those are the ones that are answered badly, is about two things at once.
fn words(n: u32) -> Words {
    let about = if n.is_multiple_of(3) { "chest pain and shortness of breath" } else { "a runny nose" };
    RequestProfile::of_text(&format!("{about} since day {n}"), None).words
}

fn close(a: &BTreeMap<ArmId, ArmEvidence>, b: &BTreeMap<ArmId, ArmEvidence>) -> bool {
    let numbers = |evidence: &ArmEvidence| -> Vec<f64> {
        let bins = evidence.reliability.bins();
        let bins = bins.flat_map(|bin| [bin.count as f64, bin.raw_sum, bin.score_sum]);
        let quality = evidence.quality.gram.iter().chain(&evidence.quality.reward).copied();
        let stats = [evidence.stats.scored as f64, evidence.stats.reward_sum, evidence.version() as f64];
        let pairs = evidence.pairs.iter();
        let pairs = pairs.flat_map(|(key, s)| [f64::from(key.0), s.count, s.score, s.expected]);
        let answers = evidence.answers.numbers().iter().copied();
        quality.chain(bins).chain(stats).chain(answers).chain(pairs).collect()
    };
    a.keys().eq(b.keys())
        && a.values().zip(b.values()).all(|(a, b)| {
            let (a, b) = (numbers(a), numbers(b));
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4)
        })
}

/// Judgements that a node's disk holds, its own and others'.
fn stored(folder: &Path) -> u64 {
    let learning = Store::open(folder).unwrap().read_learning().unwrap();
    let others = learning.others.iter().map(|blob| testimony_from_blob(blob).unwrap().arms);
    let all = others.flatten().chain(learning.own);
    all.map(|(_, evidence)| evidence.stats.scored).sum()
}

fn until(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never saw {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    start.elapsed()
}

fn until_equal(what: &str, judgements: u64, nodes: &[&Node]) -> Duration {
    until(what, || {
        nodes.iter().all(|node| node.judgements() == judgements && close(&node.totals(), &nodes[0].totals()))
    })
}

#[test]
fn what_one_node_learns_all_hold_also_after_it_died_and_after_it_is_back() {
    let folders: Vec<TempDir> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let first = Arc::new(Identity::create_mesh(folders[0].path(), "mesh").unwrap());
    let identity = |n: usize| Arc::new(issue_identity(&first, Role::Router, folders[n].path()).unwrap());
    let a = start(first.clone(), folders[0].path(), Vec::new());
    let b = start(identity(1), folders[1].path(), vec![a.seed()]);
    let c = start(identity(2), folders[2].path(), vec![a.seed()]);

    a.judged("small", 120);
    b.judged("large", 7);
    b.judged("small", 5);
    until_equal("all judgements on three nodes", 132, &[&a, &b, &c]);
    let small = ArmId("small".into());
    let (weight, told) = (c.feedback.learnt().quality[&small].weight(), c.totals()[&small].clone());
    // Of answers that a pair explains only some teach by their features.
    assert!((100..=125).contains(&told.quality.version), "{}", told.quality.version);
    // Some fades: never more than a few of a hundred.
    let told_of = told.quality.version as f64;
    assert!(weight > told_of * 0.95 && weight <= told_of, "c decides by what a and b were told: {weight}");
    assert!(!told.pairs.is_empty(), "pairs of words are told, too");

    let seeds = [b.seed(), c.seed()];
    until("everything on the disk of the node that will die", || stored(folders[0].path()) == 132);
    a.kill();
    let d = start(identity(3), folders[3].path(), seeds.to_vec());
    let took = until_equal("what the dead node learnt on one that never met it", 132, &[&b, &d]);
    assert!(took < Duration::from_secs(10), "{took:?}");

    let again = start(first.clone(), folders[0].path(), seeds.to_vec());
    assert_eq!(again.judgements(), 132, "a restarted node knows what the mesh knew before it meets anybody");
    again.judged("tiny", 3);
    until("the new life after the old one, without a gap", || {
        assert!(b.judgements() >= 132);
        b.judgements() == 135
    });
    until_equal("all four", 135, &[&again, &b, &c, &d]);
}

/// A member with a good certificate that answers pulls with what others never said.
struct Liar {
    identity: Arc<Identity>,
    victim: FeedbackHandle,
    pulled: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Control for Liar {
    async fn pull_statistics(
        &self,
        _: Request<PullStatisticsRequest>,
    ) -> Result<Response<PullStatisticsReply>, Status> {
        let learnt = self.victim.learnt();
        let mut blobs = Vec::new();
        for real in learnt.blobs.values().map(|blob| blob.as_ref().clone()) {
            let (generation, version) = (real.generation, real.version + 1);
            // Its words under another number; other words in its name; the same with the liar's own proof.
            blobs.push(SignedBlob { version, ..real.clone() });
            blobs.push(SignedBlob { version, payload: Vec::new(), ..real.clone() });
            let own = blob::seal(&self.identity, generation, version, 1, Vec::new()).unwrap();
            blobs.push(SignedBlob { origin: real.origin, ..own });
        }
        // A payload that is no testimony, properly signed.
        blobs.push(blob::seal(&self.identity, 1, 1, 1, vec![0xff; 64]).unwrap());
        self.pulled.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(PullStatisticsReply { blobs, more: true }))
    }

    async fn push_keys(&self, _: Request<KeyRecords>) -> Result<Response<Empty>, Status> {
        Err(Status::unimplemented("a liar"))
    }

    async fn pull_keys(&self, _: Request<Empty>) -> Result<Response<KeyRecords>, Status> {
        Err(Status::unimplemented("a liar"))
    }

    async fn get_request(&self, _: Request<GetRequestRequest>) -> Result<Response<GetRequestReply>, Status> {
        Err(Status::unimplemented("a liar"))
    }

    async fn give_feedback(&self, _: Request<FeedbackRequest>) -> Result<Response<FeedbackReply>, Status> {
        Err(Status::unimplemented("a liar"))
    }

    async fn get_response(
        &self,
        _: Request<KeptResponseRequest>,
    ) -> Result<Response<GetResponseReply>, Status> {
        Err(Status::unimplemented("a liar"))
    }

    async fn remove_response(
        &self,
        _: Request<KeptResponseRequest>,
    ) -> Result<Response<RemoveResponseReply>, Status> {
        Err(Status::unimplemented("a liar"))
    }

    async fn health(&self, _: Request<Empty>) -> Result<Response<HealthReply>, Status> {
        Err(Status::unimplemented("a liar"))
    }
}

#[test]
fn a_member_cannot_change_what_others_are_believed_to_have_learnt() {
    let folders: Vec<TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let first = Arc::new(Identity::create_mesh(folders[0].path(), "mesh").unwrap());
    let a = start(first.clone(), folders[0].path(), Vec::new());
    a.judged("small", 9);
    let reader = Arc::new(issue_identity(&first, Role::Router, folders[1].path()).unwrap());
    let reader = start(reader, folders[1].path(), vec![a.seed()]);
    until_equal("what a was told", 9, &[&a, &reader]);

    let identity = Arc::new(issue_identity(&first, Role::Router, folders[2].path()).unwrap());
    let pulled = Arc::new(AtomicUsize::new(0));
    let liar = Liar { identity: identity.clone(), victim: a.feedback.clone(), pulled: pulled.clone() };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let guard = runtime.enter();
    let control = Routes::new(ControlServer::new(liar));
    let (cluster, _mesh, _) =
        Service::bind(settings(vec![reader.seed()], 1), identity, Arc::new(MemoryBook::new()), control)
            .unwrap();
    drop(guard);
    runtime.spawn(cluster.run(CancellationToken::new()));

    until("both asked the liar", || pulled.load(Ordering::SeqCst) >= 2);
    a.judged("large", 2);
    until_equal("what a is told later", 11, &[&a, &reader]);
    assert_eq!(reader.feedback.learnt().blobs.len(), 1, "nothing of the liar's");
    assert!(
        pulled.load(Ordering::SeqCst) < 20,
        "whoever brings nothing to believe is not asked again and again"
    );
}

#[test]
fn an_evaluator_is_measured_against_what_clients_say() {
    let folder = tempfile::tempdir().unwrap();
    let identity = Arc::new(Identity::create_mesh(folder.path(), "mesh").unwrap());
    let node = start(identity, folder.path(), Vec::new());
    let arm = ArmId("m".into());
    let judgement = |by| Judgement {
        request: "req_1".into(),
        arm: arm.clone(),
        score: Score::ONE,
        seen: AnswerSignals::default(),
        features: Some(Features::default()),
        words: Words::default(),
        domain: Domain::default(),
        by,
    };
    node.runtime.block_on(node.feedback.judge(judgement(JudgedBy::Evaluator)));
    until("the evaluator's", || node.judgements() == 1);
    node.runtime.block_on(node.feedback.judge(judgement(JudgedBy::Client)));
    until("the client's", || node.judgements() == 2);
    assert_eq!(node.totals()[&arm].stats.scored, 2);
    assert_eq!(node.feedback.learnt().agreement.pairs, 1.0);
}
