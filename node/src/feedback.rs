//! The task that owns what the node has learnt: outcomes in, posterior snapshots out.
//!
//! The node counts and gossips only what it observed itself; totals are formed when read, by adding the origins.
//! A full queue drops the observation and counts it: a client never waits for learning.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use shoal_cluster::ClusterView;
use shoal_cluster::keyspace::Value;
use shoal_routing::{
    ArmId, ArmStats, Calibration, Confidence, Features, Observations, Outcome, Posterior, Reliabilities,
    Reward, Score,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::replication;
use crate::store::Store;

/// Outcomes that may wait: a few seconds of the busiest node.
const QUEUE: usize = 4096;
/// Most outcomes taken between two snapshots.
const BATCH: usize = 256;
/// How often changed sums are stored and published.
const PUBLISH_EVERY: Duration = Duration::from_secs(1);

/// Cheap handle: hands outcomes in, reads snapshots.
#[derive(Clone)]
pub struct FeedbackHandle {
    queue: mpsc::Sender<Evidence>,
    snapshot: Arc<ArcSwap<Learnt>>,
}

/// Something to learn from.
#[derive(Debug)]
enum Evidence {
    /// How a request ended.
    Outcome(Outcome),
    /// How good its answer was.
    Judgement(Judgement),
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
    /// The arm that answered.
    pub arm: ArmId,
    /// How good.
    pub score: Score,
    /// The confidence that the answer had before calibration.
    pub raw: Confidence,
    /// What the request looked like; `None` when its record does not say.
    pub features: Option<Features>,
    /// Who says so.
    pub by: JudgedBy,
}

/// What the mesh has learnt, as this node sees it now.
#[derive(Debug, Default)]
pub struct Learnt {
    /// Sums over all origins, for decisions.
    pub posterior: Posterior,
    /// How far the models' confidence can be trusted, from feedback on this node.
    pub calibration: Calibration,
    /// Who contributed to each arm, for people: origin and its outcomes.
    pub origins: Vec<(Arc<str>, ArmId, ArmStats)>,
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
        if self.queue.send(Evidence::Judgement(judgement)).await.is_err() {
            metrics::counter!("shoal_feedback_lost_total").increment(1);
        }
    }

    /// Returns the newest snapshot.
    pub fn learnt(&self) -> Arc<Learnt> {
        self.snapshot.load_full()
    }
}

/// The owning task.
pub struct Service {
    me: Arc<str>,
    generation: u64,
    observations: Observations,
    reliabilities: Reliabilities,
    dirty: bool,
    store: Store,
    queue: mpsc::Receiver<Evidence>,
    snapshot: Arc<ArcSwap<Learnt>>,
}

impl Service {
    /// Makes the service; own sums of earlier runs continue from the store.
    pub fn new(
        me: &str,
        generation: u64,
        store: Store,
    ) -> Result<(Self, FeedbackHandle), crate::store::Error> {
        let me: Arc<str> = me.into();
        let mut observations = Observations::default();
        for (arm, stats) in store.read_statistics()? {
            // Read back plausible or not at all: the store checks.
            let _ = observations.put(&me, generation, &arm, stats);
        }
        let snapshot =
            Arc::new(ArcSwap::from_pointee(snapshot_of(&observations, &Reliabilities::default(), &[])));
        let (sender, queue) = mpsc::channel(QUEUE);
        let handle = FeedbackHandle { queue: sender, snapshot: snapshot.clone() };
        Ok((
            Self {
                me,
                generation,
                observations,
                reliabilities: Reliabilities::default(),
                dirty: true,
                store,
                queue,
                snapshot,
            },
            handle,
        ))
    }

    /// Runs until shutdown; then stores what is left.
    pub async fn run(
        mut self,
        mut view: watch::Receiver<Arc<ClusterView>>,
        publish: impl Fn(Value) + Send,
        shutdown: CancellationToken,
    ) {
        let mut tick = tokio::time::interval(PUBLISH_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut others: Vec<Arc<str>> = Vec::new();
        let mut mesh_runs = true;
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                n = self.queue.recv_many(&mut batch, BATCH) => {
                    if n == 0 { break }
                    self.take(batch);
                }
                changed = view.changed(), if mesh_runs => {
                    // A mesh that stopped brings nothing new; learning from own requests goes on.
                    mesh_runs = changed.is_ok();
                    let now = view.borrow_and_update().clone();
                    replication::observe_view(&mut self.observations, &now);
                    others = now.members.keys().filter(|id| **id != now.me).map(|id| id.as_str().into()).collect();
                }
                _ = tick.tick() => {
                    if std::mem::take(&mut self.dirty) {
                        publish(Value::Stats(replication::summaries(self.observations.of(&self.me))));
                        self.save().await;
                    }
                    continue;
                }
                () = shutdown.cancelled() => break,
            }
            let mut origins = others.clone();
            origins.push(self.me.clone());
            self.snapshot.store(Arc::new(snapshot_of(&self.observations, &self.reliabilities, &origins)));
        }
        let mut rest = Vec::new();
        while let Ok(evidence) = self.queue.try_recv() {
            rest.push(evidence);
        }
        self.take(rest);
        self.save().await;
    }

    fn take(&mut self, evidence: Vec<Evidence>) {
        for evidence in evidence {
            let (arm, reward, ttft_ms) = match evidence {
                Evidence::Outcome(outcome) => {
                    let reward = Reward::from(&outcome);
                    let Some(arm) = outcome.arm else { continue };
                    (arm, reward, outcome.ttft_ms)
                }
                Evidence::Judgement(Judgement { arm, score, raw, .. }) => {
                    self.reliabilities.record(&self.me, self.generation, &arm, raw, score);
                    (arm, Reward::Scored(score), None)
                }
            };
            self.observations.record(&self.me, self.generation, &arm, reward, ttft_ms);
            self.dirty = true;
        }
    }

    /// Takes the outcomes that wait, without learning from them.
    #[cfg(test)]
    pub(crate) fn waiting(&mut self) -> Vec<Outcome> {
        let evidence = std::iter::from_fn(|| self.queue.try_recv().ok());
        evidence
            .filter_map(|e| match e {
                Evidence::Outcome(outcome) => Some(outcome),
                Evidence::Judgement(_) => None,
            })
            .collect()
    }

    /// Learns from what waits, and returns what would be published.
    #[cfg(test)]
    pub(crate) fn learn_waiting(&mut self) -> Value {
        let evidence = std::iter::from_fn(|| self.queue.try_recv().ok()).collect();
        self.take(evidence);
        Value::Stats(replication::summaries(self.observations.of(&self.me)))
    }

    async fn save(&self) {
        let rows: Vec<(ArmId, ArmStats)> =
            self.observations.of(&self.me).map(|(a, s)| (a.clone(), *s)).collect();
        let store = self.store.clone();
        let written = tokio::task::spawn_blocking(move || store.write_statistics(&rows)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "statistics could not be stored; they stay in memory");
        }
    }
}

fn snapshot_of(observations: &Observations, reliabilities: &Reliabilities, origins: &[Arc<str>]) -> Learnt {
    let origins = origins
        .iter()
        .flat_map(|o| observations.of(o).map(move |(arm, stats)| (o.clone(), arm.clone(), *stats)))
        .collect();
    Learnt { posterior: observations.posterior(), calibration: reliabilities.calibration(), origins }
}
