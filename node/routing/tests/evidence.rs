//! What must hold of shared evidence however the network treats it: laws of merging, and a mesh in virtual time.

#![allow(clippy::unwrap_used)] // helpers of tests, too, may panic

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use shoal_routing::escalate::gain::{AnswerSignals, GainModel};
use shoal_routing::{
    ArmEvidence, ArmId, Confidence, Domain, Evidence, Features, Judged, Reward, Score, Scrutiny, Suspicion,
    Testimony,
};

#[expect(
    clippy::disallowed_methods,
    reason = "an Instant has no other origin; tests only look at differences"
)]
fn start() -> Instant {
    Instant::now()
}

fn arm(n: usize) -> ArmId {
    ArmId::new(&format!("m{n}"), None)
}

fn features(rng: &mut StdRng) -> Features {
    let value = |i| if i == 0 { 1.0 } else { rng.random_range(-2.0..2.0) };
    Features::from_values(std::array::from_fn(value)).unwrap()
}

/// Lets an origin observe one thing.
fn observe(testimony: &mut Testimony, rng: &mut StdRng) {
    let (arm, score) = (arm(rng.random_range(0..3)), Score::clamped(rng.random()));
    match rng.random_range(0..4) {
        0 => testimony.record_end(&arm, Reward::Valid, Some(rng.random_range(1..900))),
        1 => testimony.record_end(&arm, Reward::Failed, None),
        at => {
            let features = (at == 3).then(|| features(rng));
            testimony.record_judgement(&arm, &judged(features, rng), score, &KNOWN);
        }
    }
}

/// A judged answer of which something was seen.
fn judged(features: Option<Features>, rng: &mut StdRng) -> Judged {
    let raw = Confidence::Known(Score::clamped(rng.random()));
    let domain = Domain::ALL[rng.random_range(0..Domain::ALL.len())];
    Judged { features, domain, signals: AnswerSignals { raw, out_tokens: Some(40.0) } }
}

/// What decisions rest on while origins observe: every arm is known, so that late evidence is taken in, too.
static KNOWN: LazyLock<GainModel> = LazyLock::new(|| {
    let (mut rng, mut testimony) = (StdRng::seed_from_u64(99), Testimony::default());
    for n in 0..300 {
        let judged = judged(Some(features(&mut rng)), &mut rng);
        testimony.record_judgement(&arm(n % 3), &judged, Score::clamped(rng.random()), &GainModel::default());
    }
    GainModel::fit(&testimony.arms)
});

/// The state of an honest origin: a function of its life and of how much it has seen.
fn honest(origin: u8, generation: u64, seen: u64) -> Testimony {
    let mut rng = StdRng::seed_from_u64(u64::from(origin));
    let mut testimony = Testimony { generation, ..Testimony::default() };
    for _ in 0..seen {
        observe(&mut testimony, &mut rng);
    }
    testimony.published()
}

fn arb_evidence() -> impl Strategy<Value = Evidence> {
    vec((0..4u8, 0..3u64, 0..12u64), 0..12).prop_map(|entries| {
        let mut evidence = Evidence::default();
        for (origin, generation, seen) in entries {
            evidence.put(&format!("n{origin}").into(), Arc::new(honest(origin, generation, seen)));
        }
        evidence
    })
}

fn merged(a: &Evidence, b: &Evidence) -> Evidence {
    let mut both = a.clone();
    both.merge(b);
    both
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn merging_evidence_commutes_associates_and_is_idempotent(
        a in arb_evidence(), b in arb_evidence(), c in arb_evidence(),
    ) {
        prop_assert_eq!(merged(&a, &b), merged(&b, &a));
        prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
        prop_assert_eq!(merged(&a, &a), a.clone());
        prop_assert_eq!(merged(&merged(&a, &b), &b).totals(), merged(&a, &b).totals());
    }

    #[test]
    fn two_states_under_one_number_leave_every_reader_with_the_same(seed in any::<u64>()) {
        let mut other = honest(0, 1, 9);
        let mut rng = StdRng::seed_from_u64(seed);
        other.arms.values_mut().for_each(|arm| arm.stats.reward_sum = rng.random());
        let (one, other) = (Arc::new(honest(0, 1, 9)), Arc::new(other));
        let origin: Arc<str> = "liar".into();
        let (mut left, mut right) = (Evidence::default(), Evidence::default());
        left.put(&origin, one.clone());
        left.put(&origin, other.clone());
        right.put(&origin, other);
        right.put(&origin, one);
        prop_assert_eq!(left, right);
    }

}

proptest! {
    // A case is some thousand judgements; 24 take a second or two.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn honest_sums_are_believed_at_whatever_extreme(
        seed in any::<u64>(), seen in 1..4_000u64, known in 0.0..=1.0f64, sides in 1..8u8, blind in 0..400u64,
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut testimony, mut model) = (Testimony::default(), GainModel::default());
        // Prompts at few places and at the bounds, subjects that come one after the other, scores without a middle.
        let places: Vec<Features> = (0..sides).map(|side| extreme(side, &mut rng)).collect();
        for n in 0..seen {
            let raw = match rng.random_bool(known) {
                true => Confidence::Known(Score::clamped(f64::from(rng.random_range(0..3u8)) / 2.0)),
                false => Confidence::Unknown,
            };
            let features = Some(places[rng.random_range(0..places.len())]);
            let domain = Domain::ALL[(n / 700) as usize % Domain::ALL.len()];
            let out_tokens = rng.random_bool(0.5).then(|| f64::from(rng.random_range(0..100_000u32)));
            let judged = Judged { features, domain, signals: AnswerSignals { raw, out_tokens } };
            let score = if rng.random_bool(0.8) == (n / 900 % 2 == 0) { Score::ONE } else { Score::ZERO };
            testimony.record_judgement(&arm(0), &judged, score, &model);
            if n < blind {
                // As if an earlier version had counted, which looked at no answers.
                testimony.arms.get_mut(&arm(0)).unwrap().answers = Default::default();
            }
            if n % 50 == 49 {
                model = GainModel::fit(&testimony.arms);
            }
        }
        prop_assert!(testimony.is_plausible() && testimony.published().is_plausible());
        for share in [0.5, 0.01] {
            let mut light = testimony.clone();
            light.arms.values_mut().for_each(|evidence| *evidence = evidence.lighter(share));
            let answers = |evidence: &ArmEvidence| evidence.answers.is_plausible(&evidence.quality);
            prop_assert!(light.published().arms.values().all(answers), "at a share of {}", share);
        }
    }
}

/// A prompt far out, in directions that hardly any other has.
fn extreme(side: u8, rng: &mut StdRng) -> Features {
    let value = |i: usize| match i {
        0 => 1.0,
        i if i % 5 == usize::from(side) % 5 => {
            if rng.random() {
                4.0
            } else {
                -4.0
            }
        }
        _ => 0.0,
    };
    Features::from_values(std::array::from_fn(value)).unwrap()
}

proptest! {
    // A case is a mesh's whole life; 12 take a second or two.
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_mesh_ends_with_equal_totals_whatever_the_network_did(seed in any::<u64>(), nodes in 3..9usize) {
        let mut mesh = Mesh::new(seed, nodes);
        for _ in 0..400 {
            mesh.step();
        }
        mesh.settle();
        let expected = mesh.observed();
        for node in &mesh.nodes {
            assert_close(&node.evidence.totals(), &expected);
            prop_assert_eq!(node.evidence.totals(), mesh.nodes[0].evidence.totals());
        }
    }
}

fn assert_close(left: &BTreeMap<ArmId, ArmEvidence>, right: &BTreeMap<ArmId, ArmEvidence>) {
    assert!(left.keys().eq(right.keys()));
    for (a, b) in left.values().zip(right.values()) {
        assert_eq!(
            (a.stats.count, a.stats.scored, a.version()),
            (b.stats.count, b.stats.scored, b.version())
        );
        assert!((a.stats.reward_sum - b.stats.reward_sum).abs() < 1e-4);
        let sums = |evidence: &ArmEvidence| {
            let quality = evidence.quality.gram.iter().chain(&evidence.quality.reward);
            quality.chain(evidence.answers.numbers()).copied().collect::<Vec<f64>>()
        };
        for (x, y) in sums(a).into_iter().zip(sums(b)) {
            assert!((x - y).abs() < 1e-4 * (1.0 + y.abs()), "{x} {y}");
        }
    }
}

struct Node {
    origin: Arc<str>,
    own: Testimony,
    /// What its disk holds: a restart goes on from there.
    stored: Testimony,
    evidence: Evidence,
    scrutiny: Scrutiny,
}

/// Nodes over a network that loses, repeats, delays and cuts.
struct Mesh {
    rng: StdRng,
    now: Instant,
    nodes: Vec<Node>,
    under_way: Vec<(usize, Arc<str>, Arc<Testimony>)>,
    /// Nodes below this number do not reach the others.
    cut: usize,
}

impl Mesh {
    fn new(seed: u64, nodes: usize) -> Self {
        let node = |n: usize| Node {
            origin: format!("n{n}").into(),
            own: Testimony { generation: 1, ..Testimony::default() },
            stored: Testimony::default(),
            evidence: Evidence::default(),
            scrutiny: Scrutiny::default(),
        };
        let nodes = (0..nodes).map(node).collect();
        Self { rng: StdRng::seed_from_u64(seed), now: start(), nodes, under_way: Vec::new(), cut: 0 }
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(100);
        let (count, chosen) = (self.nodes.len(), self.rng.random_range(0..self.nodes.len()));
        match self.rng.random_range(0..40) {
            0 => self.cut = self.rng.random_range(0..count),
            1 => self.cut = 0,
            2 => self.restart(chosen),
            3..12 => self.publish(chosen),
            12..20 => self.relay(chosen),
            20..32 => self.deliver(),
            _ => observe(&mut self.nodes[chosen].own, &mut self.rng),
        }
    }

    /// Stores, then publishes: what others know is never ahead of the disk.
    fn publish(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.stored = node.own.clone();
        let state = Arc::new(node.own.published());
        node.evidence.put(&node.origin, state.clone());
        let origin = node.origin.clone();
        self.send_to_all(n, &origin, &state);
    }

    /// Passes on what it knows of somebody else.
    fn relay(&mut self, n: usize) {
        let known: Vec<_> =
            self.nodes[n].evidence.origins().map(|(origin, state)| (origin.clone(), state.clone())).collect();
        if !known.is_empty() {
            let (origin, state) = known[self.rng.random_range(0..known.len())].clone();
            self.send_to_all(n, &origin, &state);
        }
    }

    fn send_to_all(&mut self, from: usize, origin: &Arc<str>, state: &Arc<Testimony>) {
        for to in (0..self.nodes.len()).filter(|to| *to != from) {
            let reaches = (from < self.cut) == (to < self.cut);
            let copies = if reaches { self.rng.random_range(0..3) } else { 0 };
            for _ in 0..copies {
                self.under_way.push((to, origin.clone(), state.clone()));
            }
        }
    }

    /// Delivers any message, not the oldest.
    fn deliver(&mut self) {
        if !self.under_way.is_empty() {
            let which = self.rng.random_range(0..self.under_way.len());
            let (to, origin, state) = self.under_way.swap_remove(which);
            self.nodes[to].hear(&origin, &state, self.now);
        }
    }

    /// The process dies and starts again: own sums from the disk, others' from nobody yet.
    fn restart(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.own = Testimony::resume(node.own.generation + 1, node.stored.arms.clone());
        (node.evidence, node.scrutiny) = (Evidence::default(), Scrutiny::default());
    }

    /// The network heals, traffic stops, everybody publishes and passes on what it knows.
    fn settle(&mut self) {
        self.cut = 0;
        for n in 0..self.nodes.len() {
            self.publish(n);
        }
        while !self.under_way.is_empty() {
            self.deliver();
        }
        for from in 0..self.nodes.len() {
            let known = self.nodes[from].evidence.clone();
            for to in 0..self.nodes.len() {
                for (origin, state) in known.origins() {
                    self.nodes[to].hear(origin, state, self.now);
                }
            }
        }
    }

    fn observed(&self) -> BTreeMap<ArmId, ArmEvidence> {
        let mut all: BTreeMap<ArmId, ArmEvidence> = BTreeMap::new();
        for (arm, evidence) in self.nodes.iter().flat_map(|node| &node.own.arms) {
            all.entry(arm.clone()).or_default().add(evidence);
        }
        all
    }
}

impl Node {
    fn hear(&mut self, origin: &Arc<str>, state: &Arc<Testimony>, now: Instant) {
        if *origin != self.origin {
            let known = self.evidence.of(origin).cloned();
            self.scrutiny.examine(origin, known.as_deref(), state, now).unwrap();
            self.evidence.put(origin, state.clone());
        }
    }
}

#[test]
fn a_new_life_replaces_the_old_one_without_a_gap() {
    let origin: Arc<str> = "a".into();
    let mut evidence = Evidence::default();
    let old = honest(1, 1, 40);
    evidence.put(&origin, Arc::new(old.clone()));
    let mut resumed = Testimony::resume(2, old.arms.clone());
    assert_eq!(resumed.version, old.version);
    let before = evidence.totals();
    evidence.put(&origin, Arc::new(resumed.published()));
    assert_eq!(evidence.totals(), before);
    let unknown = Judged { features: None, domain: Domain::Code, signals: AnswerSignals::default() };
    resumed.record_judgement(&arm(0), &unknown, Score::ONE, &KNOWN);
    evidence.put(&origin, Arc::new(resumed.published()));
    assert!(!evidence.put(&origin, Arc::new(honest(1, 1, 90))), "the old life is over");
    assert_eq!(evidence.totals()[&arm(0)].stats.scored, before[&arm(0)].stats.scored + 1);
}

#[test]
fn a_lone_liar_among_many_moves_the_posterior_little_and_the_totals_as_sums_do() {
    let mut rng = StdRng::seed_from_u64(7);
    let said = |score: f64, count: usize, rng: &mut StdRng| {
        let mut testimony = Testimony { generation: 1, ..Testimony::default() };
        for _ in 0..count {
            let judged = judged(Some(features(rng)), rng);
            testimony.record_judgement(&arm(0), &judged, Score::clamped(score), &KNOWN);
        }
        testimony
    };
    let own = said(0.2, 50, &mut rng);
    let mut evidence = Evidence::default();
    evidence.put(&"me".into(), Arc::new(own.published()));
    for n in 0..4 {
        evidence.put(&format!("n{n}").into(), Arc::new(said(0.2, 50, &mut rng).published()));
    }
    evidence.put(&"liar".into(), Arc::new(said(1.0, 4_000, &mut rng).published()));
    let nobody = BTreeSet::new();
    assert!(evidence.totals()[&arm(0)].quality.mean().unwrap() > 0.9);
    let believed = &evidence.posterior("me", &own, &nobody)[&arm(0)];
    // Its thousands of judgements contradict those of all others.
    assert!((believed.quality.weight() - 250.0).abs() < 3.0, "{}", believed.quality.weight());
    assert!((believed.quality.mean().unwrap() - 0.2).abs() < 1e-6);
    assert_eq!((believed.stats.scored, believed.reliability.count()), (250, 250));
    // One that nobody contradicts weighs as much as another one.
    let mut honest = evidence.clone();
    honest.forget("liar");
    let before = honest.posterior("me", &own, &nobody);
    assert_eq!(
        believed.quality.gram,
        before[&arm(0)].quality.gram,
        "what is not believed leaves nothing behind"
    );
    honest.put(&"busy".into(), Arc::new(said(0.2, 4_000, &mut rng).published()));
    let believed = &honest.posterior("me", &own, &nobody)[&arm(0)];
    assert!((believed.quality.weight() - 300.0).abs() < 3.0, "{}", believed.quality.weight());
    honest.forget("busy");
    assert_eq!(honest.posterior("me", &own, &nobody), before, "whoever is revoked is forgotten at once");
    let flagged = BTreeSet::from([Arc::from("liar")]);
    let believed = &evidence.posterior("me", &own, &flagged)[&arm(0)];
    assert!((believed.quality.weight() - 250.0).abs() < 3.0, "{}", believed.quality.weight());
    let stranger = evidence.posterior("new", &Testimony::default(), &flagged);
    assert!((stranger[&arm(0)].quality.mean().unwrap() - 0.2).abs() < 1e-6, "a caught liar adds nothing");
}

#[test]
fn counts_that_outrun_traffic_are_refused() {
    let (mut scrutiny, origin, now) = (Scrutiny::default(), Arc::from("a"), start());
    let mut state = honest(1, 1, 20);
    scrutiny.examine(&origin, None, &state, now).unwrap();
    let known = state.clone();
    state.version += 1_000_000_000;
    let refused = scrutiny.examine(&origin, Some(&known), &state, now + Duration::from_secs(5));
    assert_eq!(refused, Err(Suspicion::TooFast));
}
