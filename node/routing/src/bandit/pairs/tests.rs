//! Pairs of words from prompts to beliefs: what is found, what is not invented, and what stays within bounds.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, RngExt};

use super::*;
use crate::bandit::{Discriminant, Posterior, QualitySums, SizeClass};
use crate::class::DataClass;
use crate::features::Features;
use crate::ids::ArmId;
use crate::profile::RequestProfile;
use crate::request::Request;
use crate::testing::seeded;
use crate::units::Score;

const SALT: [u8; 16] = [7; 16];
const TOPICS: [&str; 12] = [
    "headache",
    "throat",
    "fever",
    "rash",
    "nose",
    "stomach",
    "ankle",
    "tooth",
    "dizziness",
    "cough",
    "nausea",
    "knee",
];

/// What one node learns of one arm by answering prompts, all of which look the same to the linear form.
struct Learner {
    arm: ArmId,
    sums: QualitySums,
    told: PairSums,
    search: PairSearch,
    posterior: Posterior,
    answers: usize,
}

impl Learner {
    fn new() -> Self {
        let salt = PairSalt::of_bytes(SALT);
        Self {
            arm: ArmId::new("llama-3.2-3b-instruct", None),
            sums: QualitySums::default(),
            told: PairSums::default(),
            search: PairSearch::new(salt),
            posterior: Posterior::default(),
            answers: 0,
        }
    }

    fn learn(&mut self, prompt: &str, score: Score) {
        let profile = RequestProfile::of_text(prompt, None);
        let placed = self.posterior.place(&Features::default(), &profile.words);
        let foreseen = self.posterior.foresee(&self.arm, SizeClass::Compact, &placed);
        if self.search.record(&self.arm, &mut self.told, &profile.words, score, &foreseen) {
            self.sums.record(&Features::default(), score);
        }
        self.answers += 1;
        // Nodes learn in batches, too.
        if self.answers.is_multiple_of(8) {
            self.posterior = self.believing(&self.told);
        }
    }

    fn believing(&self, told: &PairSums) -> Posterior {
        let qualities = Discriminant::fit([(&self.arm, &self.sums)]);
        let pairs = Telling::of(PairSalt::of_bytes(SALT), [(&self.arm, told)]);
        Posterior::default().with_qualities(qualities).with_pairs(pairs)
    }

    fn expected(&self, posterior: &Posterior, prompt: &str) -> f64 {
        let profile = RequestProfile::of_text(prompt, None);
        let placed = posterior.place(&Features::default(), &profile.words);
        posterior.answer(&self.arm, SizeClass::Compact, &placed).mean
    }
}

/// A prompt of some symptoms; a third have chest pain and breathlessness, a third one of them.
fn complaint(rng: &mut StdRng) -> (String, bool) {
    let (chest, breath) = ("chest pain", "shortness of breath");
    let other = TOPICS[rng.random_range(0..TOPICS.len())];
    let (symptoms, both) = match rng.random_range(0..4) {
        0 => (format!("{chest} and {breath} and {other}"), true),
        1 => (format!("{chest} and {other}"), false),
        2 => (format!("{breath} and {other}"), false),
        _ => (format!("{other} and tiredness"), false),
    };
    (format!("My father has {symptoms} since yesterday. What could it be?"), both)
}

fn chance(rng: &mut impl Rng, good: f64) -> Score {
    if rng.random::<f64>() < good { Score::ONE } else { Score::ZERO }
}

fn triaged(answers: usize) -> Learner {
    let (mut learner, mut rng) = (Learner::new(), seeded(3));
    for _ in 0..answers {
        let (prompt, both) = complaint(&mut rng);
        let score = chance(&mut rng, if both { 0.1 } else { 0.95 });
        learner.learn(&prompt, score);
    }
    learner
}

const BOTH: &str = "I have shortness of breath and chest pain. Is that dangerous?";
const CHEST: &str = "I have chest pain and a headache. Is that dangerous?";
const BREATH: &str = "I have shortness of breath and a fever. Is that dangerous?";

#[test]
fn two_words_that_mean_something_together_are_told_from_each_alone() {
    let learner = triaged(400);
    let expected = |prompt: &str| learner.expected(&learner.posterior, prompt);
    assert!(expected(BOTH) < 0.4, "{}", expected(BOTH));
    assert!(expected(CHEST) > 0.65 && expected(BREATH) > 0.65, "{} {}", expected(CHEST), expected(BREATH));
    let linear = learner.believing(&PairSums::default());
    assert_eq!(
        learner.expected(&linear, BOTH),
        learner.expected(&linear, CHEST),
        "the words make the difference"
    );
}

#[test]
fn the_same_pairs_under_the_key_of_another_mesh_say_nothing() {
    let learner = triaged(400);
    let others = Telling::of(PairSalt::of_bytes([8; 16]), [(&learner.arm, &learner.told)]);
    let posterior = learner.believing(&learner.told).with_pairs(others);
    let linear = learner.believing(&PairSums::default());
    assert_eq!(learner.expected(&posterior, BOTH), learner.expected(&linear, BOTH));
}

#[test]
fn nothing_is_invented_where_words_mean_nothing() {
    let (mut learner, mut rng) = (Learner::new(), seeded(5));
    for _ in 0..1_500 {
        let mut words: Vec<String> =
            (0..10).map(|_| format!("topic{:02}", rng.random_range(0..40))).collect();
        words.push("explain".into());
        learner.learn(&words.join(" "), chance(&mut seeded(rng.random()), 0.7));
    }
    let profile = |at: usize| {
        let words: Vec<String> = (0..10).map(|n| format!("topic{:02}", (at + n * 3) % 40)).collect();
        RequestProfile::of_text(&words.join(" "), None)
    };
    for at in 0..40 {
        let profile = profile(at);
        let placed = learner.posterior.place(&profile.features, &profile.words);
        assert_eq!(learner.posterior.spoken(&learner.arm, &placed), None, "{at}");
    }
}

#[test]
fn a_pair_of_few_answers_is_told_to_nobody() {
    let mut search = PairSearch::new(PairSalt::of_bytes(SALT));
    let (arm, mut told) = (ArmId::new("m", None), PairSums::default());
    let words = RequestProfile::of_text("My aunt Xanthippe collects thimbles", None).words;
    let missed = Foreseen { weight: 100.0, linear: 0.9, answer: 0.9, spoken: None };
    for answers in 1..=5 {
        assert!(search.record(&arm, &mut told, &words, Score::ZERO, &missed), "no pair has spoken");
        assert_eq!(told.is_empty(), answers < 5, "{answers}");
    }
    assert_eq!(told.len(), 6, "all pairs of four words");
}

#[test]
fn of_pairs_that_tell_as_much_the_one_that_is_met_less_often_is_blamed() {
    let mut search = PairSearch::new(PairSalt::of_bytes(SALT));
    let [small, strong] = ["small", "strong"].map(|name| ArmId::new(name, None));
    let (mut told, mut others) = (PairSums::default(), PairSums::default());
    let words = |text: &str| RequestProfile::of_text(text, None).words;
    let foreseen = Foreseen { weight: 100.0, linear: 0.9, answer: 0.9, spoken: None };
    // The small model is asked where both are and nowhere else, so all pairs of the four words tell it is bad.
    for _ in 0..30 {
        let both = words("chest pain and shortness of breath");
        let _ = search.record(&small, &mut told, &both, Score::ZERO, &foreseen);
        let _ = search.record(&strong, &mut others, &words("shortness of breath"), Score::ONE, &foreseen);
        let _ = search.record(&strong, &mut others, &words("chest pain"), Score::ONE, &foreseen);
    }
    let telling = Telling::of(PairSalt::of_bytes(SALT), [(&small, &told)]);
    let spoken = |text: &str| telling.spoken(&small, &telling.find(&words(text)));
    assert!(spoken("pain in the chest, and short breath").is_some(), "chest and breath");
    assert_eq!((spoken("shortness of breath"), spoken("chest pain")), (None, None));
    assert_eq!(told.len(), 4, "those across");
}

#[test]
fn what_is_told_stays_bounded_and_plausible_and_goes_on_after_a_restart() {
    let (mut learner, mut rng) = (Learner::new(), seeded(9));
    for _ in 0..600 {
        let subject = rng.random_range(0..12);
        let words: Vec<String> = (0..8).map(|n| format!("word{subject:02}{n:02}x")).collect();
        learner.learn(&words.join(" "), chance(&mut rng, if subject < 6 { 0.05 } else { 0.95 }));
    }
    assert_eq!(learner.told.len(), MAX_PAIRS);
    assert!(learner.told.rounded().is_plausible(600));
    assert!(!learner.told.is_plausible(3), "no more answers than were judged");
    let (key, before) = learner.told.iter().next().map(|(key, sum)| (key, *sum)).unwrap();
    // A new life knows what it told of, and its candidates are gone.
    learner.search = PairSearch::new(PairSalt::of_bytes(SALT));
    for subject in 0..12 {
        let words: Vec<String> = (0..8).map(|n| format!("word{subject:02}{n:02}x")).collect();
        learner.learn(&words.join(" "), Score::ONE);
    }
    let after = learner.told.get(key).map_or(before.count, |sum| sum.count);
    assert!(after > before.count * 0.99, "{after} after {}", before.count);
}

#[test]
fn restricted_prompts_leave_no_words() {
    let request = |data_class| Request { data_class, ..Request::of_text(BOTH) };
    assert!(RequestProfile::of(&request(DataClass::Restricted)).words.is_empty());
    assert!(!RequestProfile::of(&request(DataClass::Internal)).words.is_empty());
}

#[test]
fn origins_add_up_in_any_order() {
    let parts: Vec<PairSums> = (1..4_u32)
        .map(|n| {
            let mut part = PairSums::default();
            for key in 0..n {
                let count = f64::from(n) * 3.0;
                let sum = PairSum { count, score: 1.0, expected: count / 2.0 };
                part.insert(PairKey(key + 1), sum);
            }
            part
        })
        .collect();
    let sum = |order: [usize; 3]| {
        let mut total = PairSums::default();
        order.iter().for_each(|at| total.add(&parts[*at], |_| 1.0));
        total
    };
    assert_eq!(sum([0, 1, 2]), sum([2, 0, 1]));
    let counts: Vec<f64> = sum([0, 1, 2]).iter().map(|(_, sum)| sum.count).collect();
    assert_eq!(counts, [18.0, 15.0, 9.0]);
}

#[test]
fn sums_that_no_answers_have_are_refused() {
    let good = PairSum { count: 10.0, score: 2.0, expected: 8.0 };
    let lies: BTreeMap<&str, PairSum> = BTreeMap::from([
        ("no answers", PairSum { count: 0.0, score: 0.0, expected: 0.0 }),
        ("more than is remembered", PairSum { count: 400.0, ..good }),
        ("not a number", PairSum { count: f64::NAN, ..good }),
        ("better than all good", PairSum { score: 11.0, ..good }),
        ("worse than all bad", PairSum { score: -1.0, ..good }),
        ("expected beyond one", PairSum { expected: 10.5, ..good }),
        ("infinite", PairSum { expected: f64::INFINITY, ..good }),
    ]);
    let plausible = |sum| {
        let mut sums = PairSums::default();
        sums.insert(PairKey(1), sum);
        sums.is_plausible(1_000)
    };
    assert!(plausible(good));
    for (name, lie) in lies {
        assert!(!plausible(lie), "{name}");
    }
    let mut many = PairSums::default();
    (1..=MAX_PAIRS as u32 + 1).for_each(|key| many.insert(PairKey(key), good));
    assert!(!many.is_plausible(1_000), "too many");
}

#[test]
fn evidence_grows_with_answers_that_were_not_expected() {
    let evidence = |count: f64, score: f64, expected: f64| PairSum { count, score, expected }.evidence();
    assert!(evidence(100.0, 70.0, 70.0) < 1e-9);
    assert!(evidence(5.0, 1.0, 4.0) < BELIEVED_FROM);
    assert!(evidence(25.0, 2.0, 18.0) > BELIEVED_FROM);
    assert!(evidence(20.0, 19.0, 6.0) > BELIEVED_FROM, "better than expected counts as well");
    assert_eq!(evidence(0.0, 0.0, 0.0), 0.0);
}
