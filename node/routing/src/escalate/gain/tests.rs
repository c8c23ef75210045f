//! What the gain model must learn, from made-up subjects whose truth is known.

use super::*;
use crate::embed::Embedding;
use crate::features::{EMBEDDED, Features, SURFACE};
use crate::testing::seeded;
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
}

fn evidence(subject: Subject, agreement: Option<f64>, rng: &mut impl Rng) -> Evidence {
    let text =
        format!("{} {}", subject.text(), ["please", "now", "here", "again"][rng.random_range(0..4usize)]);
    let embedding = Embedding::of(&text);
    let signals = AnswerSignals { agreement, ..AnswerSignals::default() };
    Evidence::new(Features::new(embedding.leading(), &[1.0; SURFACE]), embedding, &signals)
}

/// The local model is right as often as others agree; the strong one is good at everything but sums.
fn outcome(subject: Subject, agreement: f64, rng: &mut impl Rng) -> Known {
    let strong = if subject == Subject::Sums { 0.4 } else { 0.9 };
    let score =
        |chance: f64, rng: &mut dyn Rng| Some(if rng.random_bool(chance) { Score::ONE } else { Score::ZERO });
    Known { local: score(0.2 + 0.6 * agreement, &mut *rng), strong: score(strong, &mut *rng) }
}

fn rows(subjects: &[Subject], count: usize, seed: u64) -> Vec<(Evidence, Known)> {
    let mut rng = seeded(seed);
    let row = |_| {
        let subject = subjects[rng.random_range(0..subjects.len())];
        let agreement = f64::from(rng.random_range(0..5u8)) / 4.0;
        (evidence(subject, Some(agreement), &mut rng), outcome(subject, agreement, &mut rng))
    };
    (0..count).map(row).collect()
}

fn trained() -> GainModel {
    let mut model = GainModel::new(Landmarks::new([&Embedding::of(Subject::Law.text())]));
    model.train(&rows(&[Subject::Law, Subject::Sums], 3_000, 1));
    model
}

fn estimate(model: &mut GainModel, subject: Subject, agreement: Option<f64>) -> Estimate {
    let asked = evidence(subject, agreement, &mut seeded(9));
    model.estimate(&asked)
}

#[test]
fn without_a_log_everything_is_a_prior() {
    let mut model = GainModel::default();
    let nothing = estimate(&mut model, Subject::Law, None);
    assert_eq!(nothing.confidence, Confidence::Unknown);
    assert!((nothing.gain - PRIOR_GAIN).abs() < 1e-9 && (nothing.local.value() - PRIOR_QUALITY).abs() < 1e-9);
}

#[test]
fn confidence_means_what_it_says() {
    let mut model = trained();
    for (agreement, right) in [(0.0, 0.2), (0.5, 0.5), (1.0, 0.8)] {
        let said = estimate(&mut model, Subject::Law, Some(agreement)).confidence.value().unwrap();
        assert!((said - right).abs() < 0.06, "{said} for {right}");
    }
    assert!(model.reliability().ece_with(model.curve()) < 0.03);
}

#[test]
fn gain_is_large_where_the_local_answer_is_weak_and_the_strong_model_is_good() {
    let mut model = trained();
    let mut gain = |subject, agreement| estimate(&mut model, subject, Some(agreement)).gain;
    assert!(gain(Subject::Law, 0.0) > gain(Subject::Law, 1.0) + 0.3);
    assert!(gain(Subject::Law, 0.5) > gain(Subject::Sums, 0.5) + 0.15);
}

#[test]
fn an_answer_without_signals_is_judged_by_its_prompt_alone() {
    let mut model = trained();
    let law = estimate(&mut model, Subject::Law, None);
    let sums = estimate(&mut model, Subject::Sums, None);
    assert_eq!(law.confidence, Confidence::Unknown);
    assert!((law.local.value() - 0.5).abs() < 0.06 && law.gain > sums.gain + 0.15);
}

#[test]
fn a_signal_that_nothing_was_learnt_about_changes_nothing() {
    let mut model = trained();
    let embedding = Embedding::of(Subject::Law.text());
    let mut ask = |signals| {
        let features = Features::new(embedding.leading(), &[1.0; SURFACE]);
        model.estimate(&Evidence::new(features, embedding, &signals))
    };
    let known = AnswerSignals { agreement: Some(0.75), ..AnswerSignals::default() };
    assert_eq!(ask(known).gain, ask(AnswerSignals { margin: Some(0.1), ..known }).gain);
}

#[test]
fn outcomes_of_a_new_subject_take_trust_from_what_was_learnt_of_old_ones() {
    let mut model = trained();
    let (mut rng, mut first, mut last) = (seeded(3), 0.0, 0.0);
    for step in 0..600 {
        let asked = evidence(Subject::Birds, Some(0.5), &mut rng);
        let error = (model.estimate(&asked).local.value() - 0.1).abs();
        if step == 0 {
            first = error
        } else {
            last = error
        }
        let score = if rng.random_bool(0.1) { Score::ONE } else { Score::ZERO };
        model.observe(&asked, &Known { local: Some(score), strong: None });
    }
    assert!(first > 0.3 && last < 0.12, "{first} {last}");
}

#[test]
fn a_lone_outcome_of_the_strong_model_moves_the_gain() {
    let mut model = trained();
    let before = estimate(&mut model, Subject::Law, Some(0.5)).gain;
    let mut rng = seeded(4);
    for _ in 0..300 {
        let asked = evidence(Subject::Law, Some(0.5), &mut rng);
        model.observe(&asked, &Known { local: None, strong: Some(Score::ZERO) });
    }
    let after = estimate(&mut model, Subject::Law, Some(0.5)).gain;
    assert!(after < before - 0.5, "{before} {after}");
}

#[test]
fn a_log_may_come_in_any_order() {
    let log = rows(&[Subject::Law, Subject::Sums], 500, 5);
    let (mut ahead, mut back) = (GainModel::default(), GainModel::default());
    ahead.train(&log);
    back.train(log.iter().rev());
    for agreement in [None, Some(0.25)] {
        let (a, b) =
            (estimate(&mut ahead, Subject::Sums, agreement), estimate(&mut back, Subject::Sums, agreement));
        assert!((a.gain - b.gain).abs() < 1e-9 && (a.local.value() - b.local.value()).abs() < 1e-9);
    }
}

#[test]
fn what_origins_saw_lately_adds_up_in_any_order() {
    let log = rows(&[Subject::Birds], 400, 6);
    let saw = |part: &[(Evidence, Known)]| {
        let mut model = trained();
        part.iter().for_each(|(evidence, known)| model.observe(evidence, known));
        model.own().clone()
    };
    let (a, b) = (saw(&log[..200]), saw(&log[200..]));
    let (mut one, mut other) = (trained(), trained());
    one.adopt([&a, &b]);
    other.adopt([&b, &a]);
    other.adopt([&b, &a]);
    let (at_one, at_other) =
        (estimate(&mut one, Subject::Birds, Some(0.5)), estimate(&mut other, Subject::Birds, Some(0.5)));
    assert!((at_one.gain - at_other.gain).abs() < 1e-9);
    let alone = estimate(&mut trained(), Subject::Birds, Some(0.5));
    assert!((at_one.gain - alone.gain).abs() > 0.02, "{} {}", at_one.gain, alone.gain);
    assert_eq!(one.own(), &Late::default());
}

#[test]
fn the_same_vector_length_is_used_everywhere() {
    assert_eq!(Layout::EMBEDDING, 1 + evidence::SIGNALS + SURFACE);
    assert_eq!(Features::default().values().len(), 1 + EMBEDDED + SURFACE);
}
