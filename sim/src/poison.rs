//! What one router of five costs the others that claims a billion perfect answers of the worst model.
//!
//! The same requests, models and answers four times: all five are honest; the fifth says nothing; it lies of the worst
//! model and is honest of the others; it lies and says nothing else. Each lie is held against the mesh that has as much
//! honest evidence. Decisions are Shoal's, on what its evidence believes; regret is what the best model's expected
//! quality was above the chosen one's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_routing::escalate::gain::{AnswerSignals, GainModel};
use shoal_routing::{
    ArmEvidence, ArmId, ArmStats, ClassPriors, Discriminant, Domain, Evidence, Judged, LoadBook, ModelChoice,
    ModelSpec, Offer, Posterior, Preference, QualitySums, Registry, Request, RequestProfile, Reward, Router,
    Score, Scrutiny, Snapshot, Testimony, Thompson, UpstreamId,
};

/// Routers, the last of which lies, and models.
const ROUTERS: usize = 5;
const MODELS: usize = 5;

/// Requests of a run, over all routers, and between two exchanges of testimonies.
const REQUESTS: usize = 600;
const EXCHANGE_EVERY: usize = 25;

/// What the liar claims to have counted.
const CLAIMED: u64 = 1_000_000_000;

/// Judgements behind its sums by features: as many as an honest origin's memory holds, and more.
const SUMS: usize = 3_000;

/// How much of the clean regret may be added.
const BOUND: f64 = 0.10;

/// Prompt of all requests: the liar is to be told from the honest by nothing but what it says.
const PROMPT: &str = "What is the capital of the country whose flag is a maple leaf?";

static PROFILE: LazyLock<RequestProfile> = LazyLock::new(|| RequestProfile::of(&request()));

/// Judgements that only praise.
static PRAISE: LazyLock<ArmEvidence> = LazyLock::new(|| {
    let mut testimony = Testimony::default();
    let model = GainModel::fit(&BTreeMap::new());
    for _ in 0..SUMS {
        testimony.record_judgement(&arm(0), &judged(), Score::ONE, &model);
    }
    let mut evidence = testimony.arms.remove(&arm(0)).unwrap_or_default();
    let stats = ArmStats { count: CLAIMED, scored: CLAIMED, version: 2 * CLAIMED, ..ArmStats::default() };
    evidence.stats = ArmStats { reward_sum: CLAIMED as f64, ..stats };
    evidence
});

/// Mean regret of a request, by the honest routers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// Seeds.
    pub seeds: u64,
    /// With five honest routers.
    pub clean: f64,
    /// With one that learns and says nothing.
    pub silent: f64,
    /// With one that praises the worst model, and is honest of all others.
    pub poisoned: f64,
    /// With one that praises the worst model and says nothing else.
    pub bare: f64,
}

/// What the fifth router does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fifth {
    /// As the others.
    Honest,
    /// Learns and says nothing.
    Silent,
    /// Praises the worst model, and is honest of all others: it keeps their trust.
    Praises,
    /// Praises the worst model and says nothing else.
    OnlyPraises,
}

impl Fifth {
    const ALL: [Self; 4] = [Self::Honest, Self::Silent, Self::Praises, Self::OnlyPraises];
}

impl Found {
    /// True when the liar adds at most a tenth.
    pub fn is_bounded(&self) -> bool {
        self.poisoned <= self.clean * (1.0 + BOUND) && self.bare <= self.silent * (1.0 + BOUND)
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seeds, clean, silent, poisoned, bare } = self;
        let more = |lies: &f64, honest: &f64| 100.0 * (lies / honest - 1.0);
        let (praises, only) = (more(poisoned, clean), more(bare, silent));
        write!(
            f,
            "regret a request over {seeds} seeds: five honest {clean:.4}, the fifth praises the worst {poisoned:.4} \
             ({praises:+.1} %); the fifth silent {silent:.4}, praises and says nothing else {bare:.4} ({only:+.1} %)"
        )
    }
}

/// Runs seeds four times each, on `jobs` threads.
pub fn compare(first: u64, seeds: u64, jobs: usize) -> Found {
    let next = AtomicU64::new(0);
    let sums: Mutex<BTreeMap<u64, [f64; 4]>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= seeds {
                        return;
                    }
                    let all = Fifth::ALL.map(|fifth| regret(first + at, fifth));
                    sums.lock().unwrap_or_else(PoisonError::into_inner).insert(at, all);
                }
            });
        }
    });
    // In order of seed, so that the sums are the same whichever thread was first.
    let sums = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mean = |which: usize| sums.values().map(|all| all[which]).sum::<f64>() / seeds.max(1) as f64;
    Found { seeds, clean: mean(0), silent: mean(1), poisoned: mean(2), bare: mean(3) }
}

/// One router's knowledge.
struct Learner {
    name: Arc<str>,
    own: Testimony,
    evidence: Evidence,
    scrutiny: Scrutiny,
    posterior: Posterior,
}

impl Learner {
    fn new(number: usize) -> Self {
        Self {
            name: format!("router {number}").into(),
            own: Testimony { generation: 1, ..Testimony::default() },
            evidence: Evidence::default(),
            scrutiny: Scrutiny::default(),
            posterior: Posterior::default(),
        }
    }

    fn hear(&mut self, origin: &Arc<str>, testimony: &Arc<Testimony>, now: Instant) {
        let known = self.evidence.of(origin);
        let is_news = known.is_none_or(|known| testimony.newness(known).is_gt());
        if is_news && self.scrutiny.examine(origin, known.map(Arc::as_ref), testimony, now).is_ok() {
            self.evidence.put(origin, testimony.clone());
        }
    }

    fn show(&mut self, now: Instant) {
        self.evidence.put(&self.name, Arc::new(self.own.published()));
        let flagged: BTreeSet<_> = self.scrutiny.flagged(now);
        let believed = self.evidence.posterior(&self.name, &self.own, &flagged);
        let judged = believed.iter().filter(|(_, evidence)| evidence.quality.version > 0);
        let quality: BTreeMap<ArmId, QualitySums> =
            judged.map(|(arm, evidence)| (arm.clone(), evidence.quality.clone())).collect();
        let stats = believed.into_iter().map(|(arm, evidence)| (arm, evidence.stats)).collect();
        let fitted = Discriminant::fit_with(&quality, &ClassPriors::default());
        self.posterior = Posterior::of(stats).with_qualities(fitted);
    }
}

fn regret(seed: u64, fifth: Fifth) -> f64 {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut qualities: [f64; MODELS] = std::array::from_fn(|_| rng.random_range(0.3..0.9));
    qualities.sort_by(f64::total_cmp);
    let base = Instant::now();
    let registry = Registry::new((0..MODELS).map(|n| {
        let spec = ModelSpec::new(format!("m{n}"), "sim");
        Offer::new(UpstreamId::Device(format!("d{n}").into()), Arc::new(spec))
    }));
    let loads = LoadBook::default();
    let mut learners: Vec<Learner> = (0..ROUTERS).map(Learner::new).collect();
    let (mut regret, mut counted) = (0.0, 0);
    let model = GainModel::fit(&BTreeMap::new());
    for n in 0..REQUESTS {
        let now = base + Duration::from_millis(200) * n as u32;
        if n % EXCHANGE_EVERY == 0 {
            exchange(&mut learners, fifth, now);
        }
        let at = n % ROUTERS;
        let learner = &mut learners[at];
        let snapshot = Snapshot { registry: &registry, posterior: &learner.posterior, loads: &loads };
        let decided = Router::<Thompson>::default().decide(&request(), &PROFILE, &snapshot, now, &mut rng);
        let Ok(decision) = decided else { continue };
        let chosen = (0..MODELS).find(|n| arm(*n) == decision.arm).unwrap_or_default();
        let is_good = rng.random_bool(qualities[chosen]);
        if at == ROUTERS - 1 && matches!(fifth, Fifth::Silent | Fifth::OnlyPraises) {
            continue;
        }
        learner.own.record_end(&decision.arm, Reward::Valid, None);
        let score = if is_good { Score::ONE } else { Score::ZERO };
        learner.own.record_judgement(&decision.arm, &judged(), score, &model);
        if at != ROUTERS - 1 {
            regret += qualities[MODELS - 1] - qualities[chosen];
            counted += 1;
        }
    }
    regret / f64::from(counted.max(1))
}

fn exchange(learners: &mut [Learner], fifth: Fifth, now: Instant) {
    let mut said: Vec<(Arc<str>, Arc<Testimony>)> =
        learners.iter().map(|learner| (learner.name.clone(), Arc::new(learner.own.published()))).collect();
    if matches!(fifth, Fifth::Praises | Fifth::OnlyPraises) {
        let mut arms = learners[ROUTERS - 1].own.arms.clone();
        arms.insert(arm(0), PRAISE.clone());
        said[ROUTERS - 1].1 = Arc::new(Testimony::resume(1, arms).published());
    }
    for learner in learners {
        let me = learner.name.clone();
        for (origin, testimony) in said.iter().filter(|(origin, _)| *origin != me) {
            learner.hear(origin, testimony, now);
        }
        learner.show(now);
    }
}

fn arm(n: usize) -> ArmId {
    ArmId::new(&format!("m{n}"), None)
}

fn judged() -> Judged {
    Judged { features: Some(PROFILE.features), domain: Domain::ALL[0], signals: AnswerSignals::default() }
}

fn request() -> Request<'static> {
    Request { choice: ModelChoice::Auto(Preference::Best), ..Request::of_text(PROMPT) }
}
