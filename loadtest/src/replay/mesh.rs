//! Routers that share what they learn: each keeps the newest sums of every origin and adds them up when it decides, each
//! origin within its influence, as nodes do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::{Rng, RngExt};
use shoal_routing::{
    ArmEvidence, ArmId, Discriminant, Evidence, Pack, PairSalt, PairSearch, Posterior, QualitySums, Score,
    SizeClass, Telling, Testimony,
};

use super::lines::Looks;

/// Whom a router shares with when its turn has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// All others.
    All,
    /// One other, drawn at random; it hands on what it knows of third ones.
    Push,
}

/// Sums of all arms, from one origin.
type Origin = BTreeMap<ArmId, ArmEvidence>;

/// Some routers with what each knows.
pub(super) struct Mesh {
    routers: Vec<Router>,
    sync: usize,
    mode: Mode,
    pack: Pack,
}

struct Router {
    /// Newest known state of each router, this one's own among them.
    origins: Vec<Origin>,
    search: PairSearch,
    since_shared: usize,
    posterior: Posterior,
    stale: bool,
}

impl Router {
    /// Adds up what all origins say that are known to `me`, this router.
    fn believed(&self, me: usize) -> Origin {
        let name = |at: usize| Arc::from(at.to_string());
        let own = Testimony::resume(1, self.origins[me].clone());
        let mut heard = Evidence::default();
        for (at, arms) in self.origins.iter().enumerate().filter(|(at, arms)| *at != me && !arms.is_empty()) {
            heard.put(&name(at), Arc::new(Testimony::resume(1, arms.clone())));
        }
        heard.posterior(&name(me), &own, &BTreeSet::new())
    }
}

impl Mesh {
    pub(super) fn new(nodes: usize, sync: usize, mode: Mode, pack: Pack) -> Self {
        let router = |_| Router {
            origins: vec![Origin::new(); nodes],
            search: PairSearch::default(),
            since_shared: 0,
            posterior: Posterior::default(),
            stale: true,
        };
        Self { routers: (0..nodes).map(router).collect(), sync, mode, pack }
    }

    pub(super) fn nodes(&self) -> usize {
        self.routers.len()
    }

    /// Returns what a router believes now.
    pub(super) fn posterior(&mut self, node: usize) -> &Posterior {
        let router = &mut self.routers[node];
        if router.stale {
            let (mut totals, mut pairs) = (BTreeMap::<ArmId, QualitySums>::new(), BTreeMap::new());
            for (arm, believed) in router.believed(node) {
                pairs.insert(arm.clone(), believed.pairs);
                totals.insert(arm, believed.quality);
            }
            for arm in self.pack.arms.keys() {
                if let Some(prior) = self.pack.prior_of(arm) {
                    totals.entry(arm.clone()).or_default().add(&prior.quality, 1.0);
                }
            }
            let fitted = Discriminant::fit_with(&totals, &self.pack.classes);
            router.posterior = Posterior::default()
                .with_qualities(fitted)
                .with_pairs(Telling::of(PairSalt::default(), &pairs));
            router.stale = false;
        }
        &router.posterior
    }

    pub(super) fn learn(&mut self, node: usize, arm: &ArmId, size: SizeClass, looks: &Looks, score: Score) {
        let router = &mut self.routers[node];
        let sums = router.origins[node].entry(arm.clone()).or_default();
        let placed = router.posterior.place(&looks.features, &looks.words);
        let foreseen = router.posterior.foresee(arm, size, &placed);
        let teaches = router.search.record(arm, &mut sums.pairs, &looks.words, score, &foreseen);
        // What teaches nothing still makes a newer state.
        let weight = if teaches { 1.0 } else { 0.0 };
        sums.quality.record_weighted(&looks.features, score, weight);
        router.stale = true;
    }

    /// Counts a request that a router served, and shares when its turn has come.
    pub(super) fn served(&mut self, node: usize, rng: &mut impl Rng) {
        let nodes = self.nodes();
        let router = &mut self.routers[node];
        router.since_shared += 1;
        if self.sync == 0 || nodes == 1 || router.since_shared < self.sync {
            return;
        }
        router.since_shared = 0;
        match self.mode {
            Mode::All => (0..nodes).filter(|to| *to != node).for_each(|to| self.hand_over(node, to)),
            Mode::Push => self.hand_over(node, (node + rng.random_range(1..nodes)) % nodes),
        }
    }

    /// Lets every router know everything, unless they never share.
    pub(super) fn share_all(&mut self) {
        let nodes = self.nodes();
        if self.sync > 0 {
            (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to))).for_each(|(from, to)| {
                if from != to {
                    self.hand_over(from, to);
                }
            });
        }
    }

    /// Hands the newest known states on; older ones than those known change nothing.
    fn hand_over(&mut self, from: usize, to: usize) {
        let sent = self.routers[from].origins.clone();
        let router = &mut self.routers[to];
        for (origin, state) in sent.into_iter().enumerate() {
            for (arm, sums) in state {
                let known = router.origins[origin].entry(arm).or_default();
                if sums.quality.newness(&known.quality).is_gt() {
                    *known = sums;
                    router.stale = true;
                }
            }
        }
    }
}
