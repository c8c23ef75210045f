//! What the gain model must learn, from made-up subjects whose truth is known.

use super::*;
use crate::bandit::{Judged, QualitySums, Testimony};
use crate::confidence::Confidence;
use crate::embed::Embedding;
use crate::features::SURFACE;
use crate::testing::seeded;
use crate::units::Score;
use rand::{Rng, RngExt};

/// A prompt of one of two known subjects or a new one, which lie apart.
#[derive(Clone, Copy, PartialEq)]
enum Subject {
    Law,
    Sums,
    Birds,
}

impl Subject {
    fn text(self) -> &'static str {
        match self {
            Self::Law => "the court held the landlord liable for negligence under the lease",
            Self::Sums => "integrate the polynomial and find the matrix determinant",
            Self::Birds => "which feathers does a robin moult in autumn",
        }
    }

    fn features(self, rng: &mut impl Rng) -> Features {
        let word = ["please", "now", "here", "again"][rng.random_range(0..4usize)];
        Features::new(Embedding::of(&format!("{} {word}", self.text())).leading(), &[1.0; SURFACE])
    }

    fn domain(self) -> Domain {
        match self {
            Self::Law => Domain::Legal,
            Self::Sums => Domain::Math,
            Self::Birds => Domain::General,
        }
    }
}

const BOTH: [Subject; 2] = [Subject::Law, Subject::Sums];

fn local() -> ArmId {
    ArmId::new("local", None)
}

fn strong() -> ArmId {
    ArmId::new("strong", None)
}

fn seen(raw: Option<f64>) -> AnswerSignals {
    let raw = raw.map_or(Confidence::Unknown, |raw| Confidence::Known(Score::clamped(raw)));
    AnswerSignals { raw, out_tokens: None }
}

fn score(chance: f64, rng: &mut impl Rng) -> Score {
    if rng.random_bool(chance) { Score::ONE } else { Score::ZERO }
}

/// A node that learns: the local model is right as often as 0.2 + 0.6 × its raw confidence says, the strong one is good
/// at everything but sums.
struct Learner {
    own: Testimony,
    model: GainModel,
}

impl Learner {
    fn new() -> Self {
        Self { own: Testimony::default(), model: GainModel::default() }
    }

    fn trained(count: usize, seed: u64) -> Self {
        let mut learner = Self::new();
        learner.live(&BOTH, count, seed);
        learner
    }

    /// Sees requests of some subjects, both answers judged.
    fn live(&mut self, subjects: &[Subject], count: usize, seed: u64) {
        let mut rng = seeded(seed);
        for n in 0..count {
            let subject = subjects[rng.random_range(0..subjects.len())];
            let (features, raw) = (subject.features(&mut rng), f64::from(rng.random_range(0..5u8)) / 4.0);
            let chance = if subject == Subject::Sums { 0.4 } else { 0.9 };
            self.judge(&local(), subject, features, seen(Some(raw)), score(0.2 + 0.6 * raw, &mut rng));
            self.judge(&strong(), subject, features, seen(None), score(chance, &mut rng));
            if n % 25 == 24 {
                self.refit();
            }
        }
        self.refit();
    }

    fn judge(&mut self, arm: &ArmId, subject: Subject, x: Features, signals: AnswerSignals, score: Score) {
        let judged = Judged { features: Some(x), domain: subject.domain(), signals };
        self.own.record_judgement(arm, &judged, score, &self.model);
    }

    fn refit(&mut self) {
        self.model = GainModel::fit(&self.own.arms);
    }

    fn gain(&self, subject: Subject, raw: Option<f64>) -> Gain {
        gain(&self.model, subject, raw)
    }
}

fn gain(model: &GainModel, subject: Subject, raw: Option<f64>) -> Gain {
    let features = subject.features(&mut seeded(9));
    let evidence = model.evidence(&local(), features, subject.domain(), &seen(raw));
    model.gain(&local(), &strong(), &evidence).expect("both arms were judged")
}

#[test]
fn before_enough_answers_of_both_arms_were_judged_nothing_is_said() {
    let mut learner = Learner::new();
    learner.live(&BOTH, ENOUGH as usize - 1, 1);
    let ask = |learner: &Learner| {
        let features = Subject::Law.features(&mut seeded(9));
        let evidence = learner.model.evidence(&local(), features, Domain::Legal, &seen(Some(0.5)));
        learner.model.gain(&local(), &strong(), &evidence)
    };
    assert_eq!(ask(&learner), None);
    learner.live(&BOTH, 2, 2);
    assert!(ask(&learner).is_some());
    learner.own.arms.remove(&strong());
    learner.refit();
    assert_eq!(ask(&learner), None, "one of two is no pair");
}

#[test]
fn the_local_answer_is_worth_what_it_says() {
    let learner = Learner::trained(3_000, 1);
    for (raw, right) in [(0.0, 0.2), (0.5, 0.5), (1.0, 0.8)] {
        let said = learner.gain(Subject::Law, Some(raw)).local;
        assert!((said - right).abs() < 0.08, "{said} for {right}");
    }
}

#[test]
fn gain_is_large_where_the_local_answer_is_weak_and_the_strong_model_is_good() {
    let learner = Learner::trained(3_000, 1);
    let gain = |subject, raw| learner.gain(subject, Some(raw)).value();
    assert!(gain(Subject::Law, 0.0) > gain(Subject::Law, 1.0) + 0.3);
    assert!(gain(Subject::Law, 0.5) > gain(Subject::Sums, 0.5) + 0.2);
}

#[test]
fn more_confidence_never_makes_an_answer_worse() {
    // A liar: sure of what is wrong.
    let (mut learner, mut rng) = (Learner::new(), seeded(3));
    for _ in 0..400 {
        let (x, raw) = (Subject::Law.features(&mut rng), rng.random::<f64>());
        learner.judge(&local(), Subject::Law, x, seen(Some(raw)), score(1.0 - raw, &mut rng));
        learner.judge(&strong(), Subject::Law, x, seen(None), Score::ONE);
    }
    learner.refit();
    for learner in [learner, Learner::trained(500, 4)] {
        let worth: Vec<f64> =
            (0..=20).map(|n| learner.gain(Subject::Law, Some(f64::from(n) / 20.0)).local).collect();
        assert!(worth.windows(2).all(|pair| pair[0] <= pair[1] + 1e-12), "{worth:?}");
    }
}

#[test]
fn an_answer_without_confidence_is_taken_for_ordinary() {
    let learner = Learner::trained(3_000, 1);
    let (law, sums) = (learner.gain(Subject::Law, None), learner.gain(Subject::Sums, None));
    assert!((law.local - 0.5).abs() < 0.08 && law.value() > sums.value() + 0.2, "{law:?} {sums:?}");
}

#[test]
fn an_answer_not_asked_for_yet_is_not_one_without_a_confidence() {
    // Where the strong model says nothing of an answer, that is bad; it seldom says nothing.
    let (mut learner, mut rng) = (Learner::new(), seeded(6));
    for n in 0..500 {
        let x = Subject::Law.features(&mut rng);
        let silent = n % 5 == 0;
        let (raw, right) = if silent { (None, 0.05) } else { (Some(0.9), 0.95) };
        learner.judge(&strong(), Subject::Law, x, seen(raw), score(right, &mut rng));
        learner.judge(&local(), Subject::Law, x, seen(Some(0.5)), score(0.5, &mut rng));
    }
    learner.refit();
    let said = learner.gain(Subject::Law, Some(0.5)).strong;
    assert!((said - 0.77).abs() < 0.08, "{said}");
}

#[test]
fn a_flaw_of_a_model_that_never_told_its_confidence_speaks_for_itself() {
    let (mut learner, mut rng) = (Learner::new(), seeded(5));
    for _ in 0..200 {
        let x = Subject::Law.features(&mut rng);
        learner.judge(&local(), Subject::Law, x, seen(None), score(0.9, &mut rng));
        learner.judge(&strong(), Subject::Law, x, seen(None), score(0.9, &mut rng));
    }
    learner.refit();
    assert!(learner.gain(Subject::Law, Some(0.05)).value() > 0.7);
    assert!(learner.gain(Subject::Law, None).value() < 0.2);
}

#[test]
fn outcomes_of_a_new_subject_take_trust_from_what_was_learnt_of_old_ones() {
    let mut learner = Learner::trained(3_000, 1);
    let (mut rng, first) = (seeded(3), learner.gain(Subject::Birds, Some(0.5)).local);
    for _ in 0..300 {
        let x = Subject::Birds.features(&mut rng);
        learner.judge(&local(), Subject::Birds, x, seen(Some(0.5)), score(0.1, &mut rng));
        learner.refit();
    }
    let last = learner.gain(Subject::Birds, Some(0.5)).local;
    assert!((first - 0.1).abs() > 0.3 && (last - 0.1).abs() < 0.12, "{first} {last}");
}

#[test]
fn judgements_of_the_strong_model_alone_move_the_gain() {
    let mut learner = Learner::trained(1_000, 1);
    let before = learner.gain(Subject::Law, Some(0.5)).value();
    let mut rng = seeded(4);
    for _ in 0..300 {
        let x = Subject::Law.features(&mut rng);
        learner.judge(&strong(), Subject::Law, x, seen(None), Score::ZERO);
        learner.refit();
    }
    let after = learner.gain(Subject::Law, Some(0.5)).value();
    assert!(after < before - 0.5, "{before} {after}");
}

#[test]
fn what_several_origins_saw_adds_up_to_what_one_would_know() {
    let central = Learner::trained(1_200, 7);
    let model = GainModel::default();
    let (mut parts, mut rng) =
        ([Testimony::default(), Testimony::default(), Testimony::default()], seeded(7));
    let mut whole = Testimony::default();
    for n in 0..1_200 {
        let subject = BOTH[rng.random_range(0..2usize)];
        let judged = Judged {
            features: Some(subject.features(&mut rng)),
            domain: subject.domain(),
            signals: seen(Some(rng.random())),
        };
        for arm in [local(), strong()] {
            let score = score(0.6, &mut rng);
            parts[n % 3].record_judgement(&arm, &judged, score, &model);
            whole.record_judgement(&arm, &judged, score, &model);
        }
    }
    let added = |order: [usize; 3]| {
        let mut sums: BTreeMap<ArmId, ArmEvidence> = BTreeMap::new();
        for (arm, evidence) in order.iter().flat_map(|n| parts[*n].published().arms) {
            sums.entry(arm).or_default().add(&evidence);
        }
        GainModel::fit(&sums)
    };
    let whole = GainModel::fit(&whole.arms);
    for raw in [0.1, 0.6] {
        let expected = gain(&whole, Subject::Law, Some(raw)).value();
        for order in [[0, 1, 2], [2, 0, 1]] {
            let found = gain(&added(order), Subject::Law, Some(raw)).value();
            // Forgetting by origin: three origins of 400 remember a little more than one of 1,200.
            assert!((found - expected).abs() < 0.01, "{found} {expected}");
        }
    }
    let differs =
        central.gain(Subject::Law, Some(0.1)).value() - gain(&whole, Subject::Law, Some(0.1)).value();
    assert!(differs.abs() > 0.1, "other answers, another gain");
}

#[test]
fn honest_sums_are_plausible_and_impossible_ones_are_not() {
    let learner = Learner::trained(1_500, 8);
    let honest = learner.own.published();
    assert!(honest.is_plausible());
    let evidence = &honest.arms[&local()];
    let mut several = evidence.clone();
    several.add(evidence);
    assert!(!several.answers.is_plausible(&several.quality), "no one origin remembers so many late answers");
    assert!(
        several.answers.lasting().is_plausible(&several.quality),
        "but a pack of several may hold the rest"
    );
    type Lie = fn(&mut [f64; LEN]);
    let lies: [(&str, Lie); 14] = [
        ("a confidence beyond its bounds", |n| n[3 * 24] = 1e6),
        ("not a number", |n| n[0] = f64::NAN),
        ("correlated beyond one", |n| n[3 * 24 + 1] = 1e5),
        ("more score than answers", |n| n[3 * 24 + 6] = 1e5),
        ("more late answers than are remembered", |n| n[LEN - 13] = 5_000.0),
        ("a domain that was missed by more than a score", |n| n[LEN - 5] = -1.1 * n[LEN - 11]),
        ("a constant that is not one", |n| n[TRUST] = 500.0),
        ("parts that are correlated beyond one", |n| n[TRUST + 1] = 1.3 * n[TRUST].max(n[TRUST + 2])),
        ("scores that no parts have", |n| n[TRUST + 10] = -1.2 * n[TRUST]),
        ("a part of no length with a score", |n| {
            n[TRUST + 2] = 0.0;
            n[TRUST + 11] = n[TRUST];
        }),
        ("confidence beyond one", |n| n[3 * 24] = 1.1 * n[3 * 24 + 2]),
        ("more confidences than answers", |n| {
            n[24] = 3_000.0;
            n[3 * 24 + 2] = 3_000.0;
        }),
        ("a confidence that is half known", |n| n[24] *= 0.7),
        ("a signal that is what it cannot be beside the features", |n| {
            n[1..24].fill(0.0);
            n[3 * 24 + 6] = 0.0;
        }),
    ];
    for (name, lie) in lies {
        let mut numbers = *evidence.answers.numbers();
        lie(&mut numbers);
        assert!(!AnswerSums::from_numbers(numbers).is_plausible(&evidence.quality), "{name}");
    }
}

/// Where the products of parts lie.
const TRUST: usize = 3 * 24 + 6 + 3;

#[test]
fn late_evidence_needs_judgements_of_its_weight() {
    let honest = Learner::trained(300, 8).own.published();
    let evidence = &honest.arms[&local()];
    assert!(evidence.answers.is_plausible(&evidence.quality));
    let version = evidence.quality.version;
    let weightless = QualitySums { version, ..QualitySums::default() };
    let mut late = *evidence.answers.numbers();
    late[..TRUST].fill(0.0);
    assert!(!AnswerSums::from_numbers(late).is_plausible(&weightless), "a version is only a number");
    let mut many = *evidence.answers.numbers();
    many[LEN - 12..LEN - 6].fill(200.0);
    assert!(
        !AnswerSums::from_numbers(many).is_plausible(&evidence.quality),
        "1,200 answers in domains of 300"
    );
}

#[test]
fn what_was_learnt_of_both_arms_decides_over_what_is_known_of_them_in_general() {
    use crate::bandit::Quality;
    use crate::class::Preference;
    use crate::escalate::{EscalationPolicy, Grounds, JudgeInput, Verdict};
    use crate::router::Permitted;
    use crate::units::MicroUsd;

    let learner = Learner::trained(3_000, 1);
    let quality = |value| {
        let value = Score::clamped(value);
        Quality { of_request: value, of_answer: value, judged: 50 }
    };
    let rungs = [std::sync::Arc::new(Permitted {
        model: "strong".into(),
        arm: strong(),
        offers: Vec::new(),
        cloud: false,
        quality: quality(0.8),
        cost: MicroUsd(0),
        latency_ms: 0.0,
    })];
    let escalates = |subject: Subject, model: &GainModel| {
        let features = subject.features(&mut seeded(9));
        let evidence = model.evidence(&local(), features, subject.domain(), &seen(Some(0.5)));
        let verdict = EscalationPolicy.judge(&JudgeInput {
            confidence: evidence.confidence,
            handoff: false,
            threshold: None,
            answered: quality(0.5),
            learnt: Some(Grounds { model, arm: &local(), evidence: &evidence }),
            preference: Preference::Balanced,
            may_spend: true,
            rungs: &rungs,
        });
        verdict != Verdict::Accept
    };
    assert!(escalates(Subject::Law, &learner.model));
    assert!(!escalates(Subject::Sums, &learner.model), "the strong model is no better there");
    for subject in BOTH {
        assert!(escalates(subject, &GainModel::default()), "with nothing learnt the general quality decides");
    }
}
