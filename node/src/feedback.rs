//! The task that owns what the node has learnt: outcomes and judgements in, posterior snapshots out.
//!
//! The node counts and publishes only what it observed itself; totals are formed when read, by adding the origins.
//! A full queue drops the observation and counts it: a client never waits for learning.

mod agreement;
mod service;

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use shoal_cluster::keyspace::Value;
use shoal_proto::SignedBlob;
use shoal_routing::escalate::gain::{AnswerSignals, GainModel};
use shoal_routing::{
    ArmEvidence, ArmId, Domain, Features, Outcome, Pack, Posterior, QualitySums, Score, Testimony, Words,
};
use tokio::sync::{mpsc, oneshot};

pub use agreement::Agreement;
pub use service::Service;

/// Cheap handle: hands outcomes in, reads snapshots.
#[derive(Clone)]
pub struct FeedbackHandle {
    queue: mpsc::Sender<Evidence>,
    snapshot: Arc<ArcSwap<Learnt>>,
}

/// Something to learn from.
#[derive(Debug)]
enum Evidence {
    /// How a request ended, and what it looked like.
    Outcome(Outcome),
    /// How good its answer was.
    Judgement(Box<Judgement>),
    /// What other origins observed, each proven by its signature; the sender hears when it was dealt with.
    Testimonies(Vec<SignedBlob>, oneshot::Sender<()>),
    /// What was learnt elsewhere, in the place of what was known before; the sender hears when decisions use it.
    Priors(Arc<Pack>, oneshot::Sender<()>),
}

/// Who judged an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JudgedBy {
    /// A person or program, by `POST /v1/feedback`.
    Client,
    /// What anyone can see of the answer: broken JSON, a refusal, a loop, a retry at once.
    Signs,
    /// The evaluator model.
    Evaluator,
}

/// How good one answer was.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// The request that it answered.
    pub request: Arc<str>,
    /// The arm that answered.
    pub arm: ArmId,
    /// How good.
    pub score: Score,
    /// What was seen of the answer: its confidence before calibration, and its length.
    pub seen: AnswerSignals,
    /// What the request looked like; `None` when its record does not say.
    pub features: Option<Features>,
    /// The words that it was about; none where they are no longer known, or must not be.
    pub words: Words,
    /// Its field of knowledge.
    pub domain: Domain,
    /// Who says so.
    pub by: JudgedBy,
}

/// What the mesh has learnt, as this node sees it now.
#[derive(Debug, Default)]
pub struct Learnt {
    /// Sums over all origins, each within its influence, for decisions.
    pub posterior: Posterior,
    /// Judgements by features over all origins, each within its influence, and the arms of an adopted pack, for
    /// decisions.
    pub quality: BTreeMap<ArmId, QualitySums>,
    /// How far the models' confidence can be trusted, and what a stronger model is expected to gain.
    pub gains: Arc<GainModel>,
    /// Plain sums over all origins: the same on every node that heard the same.
    pub totals: BTreeMap<ArmId, ArmEvidence>,
    /// Who contributed what, this node included.
    pub origins: Vec<OriginState>,
    /// The newest testimony of each origin as it was signed, for other nodes.
    pub blobs: BTreeMap<Arc<str>, Arc<SignedBlob>>,
    /// What was learnt elsewhere.
    pub priors: Arc<Pack>,
    /// How near the evaluator is to explicit feedback, on this node.
    pub agreement: Agreement,
}

/// What one origin contributes.
#[derive(Debug, Clone)]
pub struct OriginState {
    /// Its node id.
    pub origin: Arc<str>,
    /// When it said so, by its own clock, milliseconds since the Unix epoch; 0 = not published yet.
    pub issued_ms: u64,
    /// It was lately caught at what honest counting cannot reach.
    pub flagged: bool,
    /// What it observed.
    pub testimony: Arc<Testimony>,
}

/// The mesh, as far as what was learnt is told to it.
pub trait Announce: Send {
    /// Replicates a value by gossip.
    fn publish(&self, value: Value);

    /// Signs a testimony of this node, so that others may keep it and pass it on; `None` if that failed.
    fn seal(&self, generation: u64, version: u64, payload: Vec<u8>) -> Option<SignedBlob>;
}

impl FeedbackHandle {
    /// Hands an outcome in; drops and counts it when the queue is full.
    pub fn observe(&self, outcome: Outcome) {
        if self.queue.try_send(Evidence::Outcome(outcome)).is_err() {
            metrics::counter!("shoal_feedback_lost_total").increment(1);
        }
    }

    /// Hands a judgement of an arm's answer in; waits for room, since a person gave it.
    pub async fn judge(&self, judgement: Judgement) {
        if self.queue.send(Evidence::Judgement(Box::new(judgement))).await.is_err() {
            metrics::counter!("shoal_feedback_lost_total").increment(1);
        }
    }

    /// Hands in what other origins observed, after their signatures were verified; returns when the snapshot shows
    /// what was believed of it.
    pub async fn testify(&self, blobs: Vec<SignedBlob>) {
        let (done, heard) = oneshot::channel();
        if self.queue.send(Evidence::Testimonies(blobs, done)).await.is_ok() {
            // An error means that the task has ended: nothing is learnt any more.
            let _ = heard.await;
        }
    }

    /// Replaces what was learnt elsewhere; returns when decisions use it.
    pub async fn begin_with(&self, pack: Arc<Pack>) {
        let (done, heard) = oneshot::channel();
        if self.queue.send(Evidence::Priors(pack, done)).await.is_ok() {
            // An error means that the task has ended: nothing is decided any more.
            let _ = heard.await;
        }
    }

    /// Returns the newest snapshot.
    pub fn learnt(&self) -> Arc<Learnt> {
        self.snapshot.load_full()
    }
}
