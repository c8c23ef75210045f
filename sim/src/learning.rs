//! What a router learns and hears: Shoal's testimonies, evidence and scrutiny, driven as the node's task drives them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_node::mesh::statistics::Plan;
use shoal_node::replication::statistics;
use shoal_proto::{ArmSummaries, SignedBlob};
use shoal_routing::{ArmEvidence, ArmId, Evidence, Posterior, Scrutiny, Testimony};

use crate::breakage::Breakage;
use crate::events::{At, Blob};

/// How often changed sums are published, as the node does.
const PUBLISH_EVERY: Duration = Duration::from_secs(5);

/// How often decisions learn of news here; a node does it at once, which changes no invariant and costs time.
const SHOW_EVERY: Duration = Duration::from_secs(3);

/// What one router knows of all arms.
pub(crate) struct Learning {
    me: Arc<str>,
    pub(crate) own: Testimony,
    pub(crate) evidence: Evidence,
    scrutiny: Scrutiny,
    /// The newest testimony of each router as it is passed on.
    pub(crate) blobs: BTreeMap<usize, Arc<Blob>>,
    /// Their positions, by name.
    pub(crate) positions: BTreeMap<Arc<str>, (u64, u64)>,
    published: Option<(u64, At)>,
    pub(crate) posterior: Posterior,
    shown: Option<(At, u64)>,
    news: u64,
    pub(crate) plan: Plan,
    /// Questions that were not answered yet.
    pub(crate) pulls: usize,
}

impl Learning {
    /// Carries the sums of earlier lives on.
    pub(crate) fn new(
        me: Arc<str>,
        generation: u64,
        own: BTreeMap<ArmId, ArmEvidence>,
        now: Instant,
    ) -> Self {
        Self {
            me,
            own: Testimony::resume(generation, own),
            evidence: Evidence::default(),
            scrutiny: Scrutiny::default(),
            blobs: BTreeMap::new(),
            positions: BTreeMap::new(),
            published: None,
            posterior: Posterior::default(),
            shown: None,
            news: 0,
            plan: Plan::new(now),
            pulls: 0,
        }
    }

    /// Returns what is to be published now, if anything is.
    pub(crate) fn publish(&mut self, number: usize, at: At, issued_ms: u64) -> Option<ArmSummaries> {
        let is_news = self.published.is_none_or(|(version, _)| version != self.own.version);
        let is_due = self.published.is_none_or(|(_, last)| at - last >= PUBLISH_EVERY);
        if !is_news || !is_due || self.own.arms.is_empty() {
            return None;
        }
        let testimony = self.own.published();
        self.published = Some((self.own.version, at));
        let blob = blob(number, &self.me, &testimony, issued_ms);
        self.keep(number, Arc::new(blob));
        self.evidence.put(&self.me, Arc::new(testimony.clone()));
        self.news += 1;
        Some(statistics::summaries(&testimony))
    }

    /// Positions of what is held, as they are asked with.
    pub(crate) fn known(&self) -> Vec<(usize, u64, u64)> {
        self.blobs.iter().map(|(who, blob)| (*who, blob.blob.generation, blob.blob.version)).collect()
    }

    /// Keeps a testimony to pass on.
    fn keep(&mut self, number: usize, blob: Arc<Blob>) {
        let position = (blob.blob.generation, blob.blob.version);
        self.positions.insert(blob.blob.origin.as_str().into(), position);
        self.blobs.insert(number, blob);
    }

    /// Returns what somebody with these positions lacks.
    pub(crate) fn newer_than(&self, known: &[(usize, u64, u64)], caller: usize) -> Vec<Arc<Blob>> {
        let lacks = |who: &usize, blob: &Blob| {
            let at = known.iter().find(|entry| entry.0 == *who).map_or((0, 0), |entry| (entry.1, entry.2));
            *who != caller && (blob.blob.generation, blob.blob.version) > at
        };
        self.blobs.iter().filter(|(who, blob)| lacks(who, blob)).map(|(_, blob)| blob.clone()).collect()
    }

    /// Takes in what another router observed, unless it is old, not signed by it, or beyond belief.
    pub(crate) fn believe(&mut self, blob: &Arc<Blob>, now: Instant, broken: Option<Breakage>) {
        let origin: Arc<str> = blob.blob.origin.as_str().into();
        let is_signed = blob.signer == blob.origin;
        if origin == self.me || (!is_signed && broken != Some(Breakage::ForeignOwner)) {
            return;
        }
        let Some(testimony) = &blob.testimony else { return };
        let known = self.evidence.of(&origin);
        let held = self.blobs.get(&blob.origin);
        let same = held.is_some_and(|held| held.blob.payload == blob.blob.payload);
        let (position, newest) =
            ((blob.blob.generation, blob.blob.version), known.map(|known| (known.generation, known.version)));
        if broken == Some(Breakage::OlderTestimony) && newest.is_some_and(|newest| position < newest) {
            self.evidence.forget(&origin);
        } else if newest.is_some_and(|newest| position < newest || (position == newest && same))
            || self.scrutiny.examine(&origin, known.map(Arc::as_ref), testimony, now).is_err()
        {
            return;
        }
        self.evidence.put(&origin, testimony.clone());
        self.keep(blob.origin, blob.clone());
        self.news += 1;
        if broken == Some(Breakage::CountTwice) {
            for (arm, evidence) in &testimony.arms {
                self.own.arms.entry(arm.clone()).or_default().add(evidence);
                self.own.version += evidence.version();
            }
        }
    }

    /// Lets decisions know what is known, now and then.
    pub(crate) fn show(&mut self, at: At, now: Instant) {
        let is_due = self.shown.is_none_or(|(last, news)| at - last >= SHOW_EVERY && news != self.news);
        if !is_due {
            return;
        }
        self.shown = Some((at, self.news));
        let flagged = self.scrutiny.flagged(now);
        let believed = self.evidence.posterior(&self.me, &self.own, &flagged);
        self.posterior =
            Posterior::of(believed.into_iter().map(|(arm, evidence)| (arm, evidence.stats)).collect());
    }
}

/// Puts a testimony into the form in which it travels, signed by its origin.
pub(crate) fn blob(number: usize, origin: &Arc<str>, testimony: &Testimony, issued_ms: u64) -> Blob {
    let blob = SignedBlob {
        origin: origin.to_string(),
        generation: testimony.generation,
        version: testimony.version,
        issued_unix_ms: issued_ms,
        payload: statistics::testimony_to_bytes(testimony),
        ..SignedBlob::default()
    };
    let testimony = statistics::testimony_from_blob(&blob).map(Arc::new);
    Blob { origin: number, signer: number, blob, testimony }
}
