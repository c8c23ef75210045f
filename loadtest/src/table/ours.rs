//! What a node does: profile, filter, learnt quality, prices and policy, through the code that serves requests.
//!
//! Models on devices are offered by devices, the others by providers at the set's own prices. A restricted request is
//! marked as a client would mark it; that it stays on devices is the filter's doing and not this file's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_routing::{
    ArmId, DataClass, Discriminant, LoadBook, ModelChoice, ModelSpec, Observations, Offer, PairSalt,
    PairSearch, PairSums, Posterior, Preference, QualitySums, Registry, Request, RequestProfile, Reward,
    Router, Score, SizeClass, Snapshot, Telling, Thompson, Tokens, UpstreamId,
};

use super::PREFERENCES;
use super::rows::{Asked, Row, Set};

/// Outcomes between two fits: a node takes them in by batches too.
const BATCH: usize = 16;

/// A node with what it has learnt.
#[derive(Clone)]
pub(super) struct Learnt {
    registry: Arc<Registry>,
    arms: BTreeMap<ArmId, (usize, SizeClass)>,
    router: Router,
    loads: Arc<LoadBook>,
    /// Nothing is ever measured here, so the time stands still.
    now: Instant,
    max_output: Tokens,
    seen: Observations,
    sums: BTreeMap<ArmId, QualitySums>,
    pairs: BTreeMap<ArmId, PairSums>,
    search: PairSearch,
    posterior: Posterior,
    since_fitted: usize,
}

impl Learnt {
    /// Serves the training rows for callers with all preferences, and learns from the chosen models' outcomes.
    pub(super) fn from_training(set: &Set, train: &[usize], seed: u64) -> Self {
        let mut node = Self::new(set, train);
        let mut rng = StdRng::seed_from_u64(seed);
        for index in train {
            let row = &set.rows[*index];
            let preference = PREFERENCES[rng.random_range(0..PREFERENCES.len())].0;
            node.ask(row, preference, DataClass::Internal, &mut rng);
        }
        node.fit();
        node
    }

    /// Serves requests, learning on; returns the arm of each.
    pub(super) fn serve(
        mut self,
        set: &Set,
        stream: &[Asked],
        preference: Preference,
        seed: u64,
    ) -> Vec<usize> {
        let mut rng = StdRng::seed_from_u64(seed);
        let serve = |asked: &Asked| {
            let class = if asked.restricted { DataClass::Restricted } else { DataClass::Internal };
            self.ask(&set.rows[asked.row], preference, class, &mut rng)
        };
        stream.iter().map(serve).collect()
    }

    fn new(set: &Set, train: &[usize]) -> Self {
        let offer = |(arm, price): (&crate::replay::models::Arm, &Option<shoal_routing::Price>)| {
            let name = arm.id.as_str();
            let upstream = match arm.local {
                true => UpstreamId::Device(format!("device-{name}").into()),
                false => UpstreamId::Provider(format!("provider-{name}").into()),
            };
            Offer { price: *price, ..Offer::new(upstream, Arc::new(ModelSpec::new(name, "replay"))) }
        };
        let registry = Registry::new(set.arms.iter().zip(&set.prices).map(offer));
        // Clients of such tasks bound the answer: by the mean length of all models' answers.
        let lengths = || train.iter().flat_map(|row| &set.rows[*row].out_tok);
        let mean =
            lengths().map(|tokens| u64::from(*tokens)).sum::<u64>().div_ceil(lengths().count().max(1) as u64);
        Self {
            registry: Arc::new(registry),
            arms: set.arms.iter().enumerate().map(|(at, arm)| (arm.id.clone(), (at, arm.size))).collect(),
            router: Router::new(Thompson::default()),
            loads: Arc::default(),
            now: Instant::now(),
            max_output: Tokens::from_len(usize::try_from(mean).unwrap_or(usize::MAX)),
            seen: Observations::default(),
            sums: BTreeMap::new(),
            pairs: BTreeMap::new(),
            search: PairSearch::default(),
            posterior: Posterior::default(),
            since_fitted: 0,
        }
    }

    /// Decides for a request and takes in what the choice was worth.
    fn ask(&mut self, row: &Row, preference: Preference, data_class: DataClass, rng: &mut StdRng) -> usize {
        let max_output = Some(self.max_output);
        let choice = ModelChoice::Auto(preference);
        let request = Request { max_output, choice, preference, data_class, ..Request::of_text(&row.prompt) };
        // The rows hold long prompts in part, and the length of the whole.
        let profile = RequestProfile {
            max_output,
            expected_output: self.max_output,
            ..RequestProfile::of_text(&row.prompt, Some(Tokens(row.in_tok)))
        };
        let snapshot = Snapshot { registry: &self.registry, posterior: &self.posterior, loads: &self.loads };
        let decision = self
            .router
            .decide(&request, &profile, &snapshot, self.now, rng)
            .expect("devices serve every class of data");
        let (arm, size) = self.arms[&decision.arm];
        self.learn(&decision.arm, size, &profile, Score::clamped(row.y[arm]));
        arm
    }

    fn learn(&mut self, arm: &ArmId, size: SizeClass, profile: &RequestProfile, score: Score) {
        let placed = self.posterior.place(&profile.features, &profile.words);
        let foreseen = self.posterior.foresee(arm, size, &placed);
        let told = self.pairs.entry(arm.clone()).or_default();
        let teaches = self.search.record(arm, told, &profile.words, score, &foreseen);
        let origin: Arc<str> = "node".into();
        self.seen.record(&origin, 1, arm, Reward::Valid, None);
        self.seen.record(&origin, 1, arm, Reward::Scored(score), None);
        let weight = if teaches { 1.0 } else { 0.0 };
        self.sums.entry(arm.clone()).or_default().record_weighted(&profile.features, score, weight);
        self.since_fitted += 1;
        if self.since_fitted >= BATCH {
            self.fit();
        }
    }

    fn fit(&mut self) {
        let pairs = Telling::of(PairSalt::default(), &self.pairs);
        self.posterior =
            self.seen.posterior().with_qualities(Discriminant::fit(&self.sums)).with_pairs(pairs);
        self.since_fitted = 0;
    }
}
