//! The owning task: takes evidence in, keeps it on disk, tells the mesh.
//!
//! Own sums are written before they are published, so that what others know of this node is never ahead of its disk
//! and a node that is killed goes on where the mesh left it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use shoal_cluster::keyspace::Value;
use shoal_proto::SignedBlob;
use shoal_routing::escalate::gain::GainModel;
use shoal_routing::{
    ArmEvidence, ArmId, Discriminant, Evidence as Origins, Judged, Outcome, Pack, PairSalt, PairSearch,
    Posterior, Reward, Scrutiny, Telling, Testimony,
};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::agreement::Pairs;
use super::{Announce, Evidence, FeedbackHandle, Judgement, Learnt, OriginState};
use crate::pack::size_of;
use crate::replication::statistics;
use crate::store::{Error, Learning, Store};

/// Evidence that may wait: a few seconds of the busiest node.
const QUEUE: usize = 4096;
/// Most evidence taken between two snapshots.
const BATCH: usize = 256;
/// How often the task looks whether something must be stored or published: a round of gossip.
const TICK: Duration = Duration::from_millis(200);
/// Shortest time between two snapshots for outcomes alone: each adds all origins up, and one more outcome among
/// hundreds a second changes no decision. Judgements and news of others show at once.
const SHOW_EVERY: Duration = Duration::from_millis(50);
/// How often changed sums are stored: what a node that loses its power forgets.
const STORE_EVERY: Duration = Duration::from_secs(1);
/// How often changed sums are published.
const PUBLISH_EVERY: Duration = Duration::from_secs(5);
/// Own judgements after which they are published at once.
const PUBLISH_JUDGEMENTS: u64 = 50;
/// Most other origins that are kept, here and on disk: the mesh is meant for a hundred, and some have died.
const MAX_ORIGINS: usize = 128;

/// The owning task.
pub struct Service {
    me: Arc<str>,
    /// Own sums, exact; what is published is rounded.
    own: Testimony,
    /// Key of the mesh's pairs of words, and where they are looked for.
    salt: PairSalt,
    search: PairSearch,
    pairs: Pairs,
    /// Everybody's, own ones as published.
    origins: Origins,
    scrutiny: Scrutiny,
    /// What was learnt elsewhere: believed beside the origins, never published.
    priors: Arc<Pack>,
    blobs: BTreeMap<Arc<str>, Arc<SignedBlob>>,
    /// Arms of own sums that the disk does not have yet.
    unsaved_arms: BTreeSet<ArmId>,
    unsaved_origins: BTreeSet<Arc<str>>,
    judged_since: u64,
    published: Option<(u64, Instant)>,
    stored_at: Instant,
    shown_at: Instant,
    /// Outcomes were taken that the snapshot does not show.
    is_stale: bool,
    /// Judgements were taken that the snapshot does not show: its fits are out of date.
    is_news: bool,
    store: Store,
    queue: mpsc::Receiver<Evidence>,
    snapshot: Arc<ArcSwap<Learnt>>,
}

impl Service {
    /// Makes the service; own sums of earlier runs, and what was known of other origins, continue from the store.
    pub fn new(me: &str, generation: u64, store: Store) -> Result<(Self, FeedbackHandle), Error> {
        let me: Arc<str> = me.into();
        let stored = store.read_learning()?;
        let (sender, queue) = mpsc::channel(QUEUE);
        let snapshot = Arc::new(ArcSwap::from_pointee(Learnt::default()));
        let handle = FeedbackHandle { queue: sender, snapshot: snapshot.clone() };
        let mut service = Self {
            own: Testimony::resume(generation, stored.own.into_iter().collect()),
            salt: PairSalt::default(),
            search: PairSearch::default(),
            pairs: Pairs::new(stored.agreement),
            origins: Origins::default(),
            scrutiny: Scrutiny::default(),
            priors: Arc::default(),
            blobs: BTreeMap::new(),
            unsaved_arms: BTreeSet::new(),
            unsaved_origins: BTreeSet::new(),
            judged_since: 0,
            published: None,
            stored_at: Instant::now(),
            shown_at: Instant::now(),
            is_stale: false,
            is_news: true,
            store,
            queue,
            snapshot,
            me,
        };
        for blob in stored.others {
            service.believe(blob);
        }
        service.unsaved_origins.clear();
        service.show();
        Ok((service, handle))
    }

    /// Tells pairs of words apart under the key of this mesh.
    pub fn with_salt(mut self, salt: PairSalt) -> Self {
        (self.salt, self.search) = (salt, PairSearch::new(salt));
        self.show();
        self
    }

    /// Begins with what was learnt elsewhere.
    pub fn with_priors(mut self, pack: Arc<Pack>) -> Self {
        self.priors = pack;
        self.show();
        self
    }

    /// Runs until shutdown; then stores what is left.
    pub async fn run(mut self, mesh: impl Announce, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                n = self.queue.recv_many(&mut batch, BATCH) => {
                    if n == 0 { break }
                    self.take(batch);
                }
                _ = tick.tick() => self.keep_up(&mesh).await,
                () = shutdown.cancelled() => break,
            }
        }
        let mut rest = Vec::new();
        while let Ok(evidence) = self.queue.try_recv() {
            rest.push(evidence);
        }
        self.take(rest);
        self.save().await;
    }

    /// Stores and publishes what is due.
    async fn keep_up(&mut self, mesh: &impl Announce) {
        let now = Instant::now();
        if self.is_stale {
            self.show();
        }
        let news = self.published.is_none_or(|(version, _)| version != self.own.version);
        let long_ago = self.published.is_none_or(|(_, at)| now.duration_since(at) >= PUBLISH_EVERY);
        if news && !self.own.arms.is_empty() && (long_ago || self.judged_since >= PUBLISH_JUDGEMENTS) {
            if self.save().await {
                self.publish(mesh, now);
            }
            return;
        }
        let unsaved = !self.unsaved_arms.is_empty() || !self.unsaved_origins.is_empty();
        if unsaved && now.duration_since(self.stored_at) >= STORE_EVERY {
            self.save().await;
        }
    }

    fn publish(&mut self, mesh: &impl Announce, now: Instant) {
        let testimony = self.own.published();
        let payload = statistics::testimony_to_bytes(&testimony);
        self.published = Some((self.own.version, now));
        self.judged_since = 0;
        let Some(blob) = mesh.seal(testimony.generation, testimony.version, payload) else {
            return;
        };
        self.blobs.insert(self.me.clone(), Arc::new(blob));
        // Whoever hears of it may ask for it at once.
        self.show();
        mesh.publish(Value::Stats(statistics::summaries(&testimony)));
    }

    fn take(&mut self, evidence: Vec<Evidence>) {
        let mut heard = Vec::new();
        let is_pressing = evidence.iter().any(|evidence| !matches!(evidence, Evidence::Outcome(..)));
        for evidence in evidence {
            match evidence {
                Evidence::Outcome(outcome) => self.take_outcome(&outcome),
                Evidence::Judgement(judgement) => self.take_judgement(&judgement),
                Evidence::Testimonies(blobs, done) => {
                    for blob in blobs {
                        self.believe(blob);
                    }
                    heard.push(done);
                }
                Evidence::Priors(pack, done) => {
                    self.priors = pack;
                    heard.push(done);
                }
            }
        }
        self.is_news |= is_pressing;
        if is_pressing || self.shown_at.elapsed() >= SHOW_EVERY {
            self.show();
        } else {
            self.is_stale = true;
        }
        for done in heard {
            // Whoever asked may have gone.
            let _ = done.send(());
        }
    }

    fn take_outcome(&mut self, outcome: &Outcome) {
        let Some(arm) = &outcome.arm else { return };
        let reward = Reward::from(outcome);
        self.own.record_end(arm, reward, outcome.ttft_ms);
        if reward != Reward::Unknown {
            self.unsaved_arms.insert(arm.clone());
        }
    }

    fn take_judgement(&mut self, judgement: &Judgement) {
        let Judgement { request, arm, score, seen, features, words, domain, by } = judgement;
        self.pairs.note(request, *by, *score);
        let mut judged = Judged { features: *features, domain: *domain, signals: *seen };
        // What decisions rested on, or nearly: the newest snapshot.
        let shown = self.snapshot.load();
        if let Some(features) = features {
            let told = &mut self.own.arms.entry(arm.clone()).or_default().pairs;
            let placed = shown.posterior.place(features, words);
            let foreseen = shown.posterior.foresee(arm, size_of(arm), &placed);
            if !self.search.record(arm, told, words, *score, &foreseen) {
                judged.features = None;
            }
        }
        self.own.record_judgement(arm, &judged, *score, &shown.gains);
        self.judged_since += 1;
        self.unsaved_arms.insert(arm.clone());
    }

    /// Takes in what another origin observed, unless it is old or beyond belief.
    fn believe(&mut self, blob: SignedBlob) {
        let origin: Arc<str> = blob.origin.as_str().into();
        let known = self.origins.of(&origin);
        let position = (blob.generation, blob.version);
        let same = self.blobs.get(&origin).is_some_and(|known| known.payload == blob.payload);
        let old = known.is_some_and(|known| {
            let newest = (known.generation, known.version);
            position < newest || (position == newest && same)
        });
        if origin == self.me || old {
            return;
        }
        let Some(testimony) = statistics::testimony_from_blob(&blob) else {
            return refused(&origin, "undecodable");
        };
        if let Err(suspicion) =
            self.scrutiny.examine(&origin, known.map(Arc::as_ref), &testimony, Instant::now())
        {
            return refused(&origin, suspicion.as_str());
        }
        self.origins.put(&origin, Arc::new(testimony));
        self.blobs.insert(origin.clone(), Arc::new(blob));
        self.unsaved_origins.insert(origin);
        self.forget_oldest();
    }

    /// Keeps the origins bounded: those that spoke last stay, the same on every node that heard the same.
    fn forget_oldest(&mut self) {
        let others = self.blobs.iter().filter(|(origin, _)| **origin != self.me);
        if others.clone().count() <= MAX_ORIGINS {
            return;
        }
        let oldest = others.min_by_key(|(_, blob)| blob.issued_unix_ms).map(|(origin, _)| origin.clone());
        if let Some(oldest) = oldest {
            self.origins.forget(&oldest);
            self.scrutiny.forget(&oldest);
            self.blobs.remove(&oldest);
            self.unsaved_origins.insert(oldest);
        }
    }

    /// Makes the snapshot that everybody reads.
    fn show(&mut self) {
        (self.shown_at, self.is_stale) = (Instant::now(), false);
        self.origins.put(&self.me, Arc::new(self.own.published()));
        let flagged = self.scrutiny.flagged(Instant::now());
        let mut believed = self.origins.posterior(&self.me, &self.own, &flagged);
        for arm in self.priors.arms.keys() {
            if let Some(prior) = self.priors.prior_of(arm) {
                believed.entry(arm.clone()).or_default().add(&prior);
            }
        }
        let (mut stats, mut quality) = (BTreeMap::new(), BTreeMap::new());
        for (arm, ArmEvidence { stats: ends, quality: judged, .. }) in &believed {
            stats.insert(arm.clone(), *ends);
            if judged.version > 0 {
                quality.insert(arm.clone(), judged.clone());
            }
        }
        // Fitting is some 30 µs for an arm, of either kind; most batches hold outcomes only.
        let shown = self.snapshot.load();
        let is_same = shown.quality == quality && Arc::ptr_eq(&shown.priors, &self.priors);
        let gains =
            if is_same && !self.is_news { shown.gains.clone() } else { Arc::new(GainModel::fit(&believed)) };
        self.is_news = false;
        let qualities = if is_same {
            shown.posterior.qualities().clone()
        } else {
            Discriminant::fit_with(&quality, &self.priors.classes)
        };
        let pairs = Telling::of(self.salt, believed.iter().map(|(arm, evidence)| (arm, &evidence.pairs)));
        let issued = |origin| self.blobs.get(origin).map_or(0, |blob| blob.issued_unix_ms);
        let origins = self.origins.origins().map(|(origin, testimony)| OriginState {
            origin: origin.clone(),
            issued_ms: issued(origin),
            flagged: flagged.contains(origin),
            testimony: testimony.clone(),
        });
        self.snapshot.store(Arc::new(Learnt {
            posterior: Posterior::of(stats).with_qualities(qualities).with_pairs(pairs),
            quality,
            gains,
            totals: self.origins.totals(),
            origins: origins.collect(),
            blobs: self.blobs.clone(),
            priors: self.priors.clone(),
            agreement: self.pairs.agreement(),
        }));
    }

    /// Stores what changed; tells whether it is on disk.
    async fn save(&mut self) -> bool {
        self.stored_at = Instant::now();
        let arms = std::mem::take(&mut self.unsaved_arms);
        let origins = std::mem::take(&mut self.unsaved_origins);
        let own =
            arms.iter().filter_map(|arm| Some((arm.clone(), self.own.arms.get(arm)?.clone()))).collect();
        let others = origins.iter().filter_map(|origin| self.blobs.get(origin));
        let others = others.map(|blob| blob.as_ref().clone()).collect();
        let gone: Vec<Arc<str>> =
            origins.iter().filter(|origin| !self.blobs.contains_key(*origin)).cloned().collect();
        let learning = Learning { own, others, agreement: self.pairs.agreement() };
        let store = self.store.clone();
        let written = tokio::task::spawn_blocking(move || store.write_learning(&learning, &gone)).await;
        let stored = matches!(written, Ok(Ok(())));
        if !stored {
            if let Ok(Err(error)) = written {
                tracing::warn!(%error, "statistics could not be stored; they stay in memory, and are not published");
            }
            self.unsaved_arms.extend(arms);
            self.unsaved_origins.extend(origins);
        }
        stored
    }

    /// Takes the outcomes that wait, without learning from them.
    #[cfg(test)]
    pub(crate) fn waiting(&mut self) -> Vec<Outcome> {
        let evidence = std::iter::from_fn(|| self.queue.try_recv().ok());
        evidence
            .filter_map(|e| match e {
                Evidence::Outcome(outcome) => Some(outcome),
                Evidence::Judgement(_) | Evidence::Testimonies(..) | Evidence::Priors(..) => None,
            })
            .collect()
    }

    /// Learns from what waits, and returns what would be published.
    #[cfg(test)]
    pub(crate) fn learn_waiting(&mut self) -> Value {
        let evidence = std::iter::from_fn(|| self.queue.try_recv().ok()).collect();
        self.take(evidence);
        Value::Stats(statistics::summaries(&self.own.published()))
    }
}

fn refused(origin: &str, reason: &'static str) {
    metrics::counter!("shoal_statistics_refused_total", "reason" => reason).increment(1);
    tracing::warn!(origin, reason, "statistics of another node are not believed; its last ones stay");
}

#[cfg(test)]
mod tests;
