//! The owning task without a network: what is believed, refused, kept and published when.

use std::sync::Mutex;

use shoal_routing::escalate::gain::AnswerSignals;
use shoal_routing::{Confidence, Domain, Features, Judged, OutcomeStatus, Score, Words};

use super::*;
use crate::feedback::JudgedBy;

/// A mesh that writes down what it is told.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<(u64, u64)>>>);

impl Announce for Notes {
    fn publish(&self, value: Value) {
        let Value::Stats(summaries) = value else { panic!("only statistics are published here") };
        self.0.lock().unwrap().push((summaries.generation, summaries.version));
    }

    fn seal(&self, generation: u64, version: u64, payload: Vec<u8>) -> Option<SignedBlob> {
        Some(SignedBlob { origin: "me".into(), generation, version, payload, ..SignedBlob::default() })
    }
}

fn service(folder: &tempfile::TempDir, generation: u64) -> (Service, FeedbackHandle) {
    Service::new("me", generation, Store::open(folder.path()).unwrap()).unwrap()
}

fn arm() -> ArmId {
    ArmId::new("m", None)
}

fn judgement(n: usize, by: JudgedBy) -> Evidence {
    Evidence::Judgement(Box::new(Judgement {
        request: format!("req_{n}").into(),
        arm: arm(),
        score: Score::clamped(0.5),
        seen: AnswerSignals { raw: Confidence::Known(Score::clamped(0.8)), out_tokens: Some(40.0) },
        features: Some(Features::default()),
        words: Words::default(),
        domain: Domain::default(),
        by,
    }))
}

fn judgements(count: usize) -> Vec<Evidence> {
    (0..count).map(|n| judgement(n, JudgedBy::Client)).collect()
}

/// What another origin testifies after `count` judgements.
fn testimony(generation: u64, count: u64) -> Testimony {
    let mut testimony = Testimony { generation, ..Testimony::default() };
    for _ in 0..count {
        let signals = AnswerSignals::default();
        let judged = Judged { features: Some(Features::default()), domain: Domain::default(), signals };
        testimony.record_judgement(&arm(), &judged, Score::ONE, &GainModel::default());
    }
    testimony
}

fn blob(origin: &str, testimony: &Testimony) -> SignedBlob {
    SignedBlob {
        origin: origin.into(),
        generation: testimony.generation,
        version: testimony.version,
        issued_unix_ms: testimony.version,
        payload: statistics::testimony_to_bytes(testimony),
        ..SignedBlob::default()
    }
}

fn weight(learnt: &Learnt) -> f64 {
    learnt.totals.get(&arm()).map_or(0.0, |evidence| evidence.quality.weight())
}

fn ended(status: OutcomeStatus) -> Outcome {
    Outcome {
        request_id: "req_1".into(),
        upstream: None,
        arm: Some(arm()),
        status,
        finish_reason: None,
        prompt_tokens: shoal_routing::Tokens(1),
        completion_tokens: shoal_routing::Tokens(1),
        ttft_ms: None,
        duration_ms: 1,
        attempts: 1,
        hop: 0,
        data_class: shoal_routing::DataClass::Internal,
        escalated: false,
        propensity: 1.0,
        reason: shoal_routing::RouteReason::Named,
    }
}

#[tokio::test]
async fn fifty_judgements_are_published_at_once_and_what_is_published_is_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let (mut service, handle) = service(&folder, 7);
    let notes = Notes::default();
    service.keep_up(&notes).await;
    assert!(notes.0.lock().unwrap().is_empty(), "nothing was learnt");
    service.take(judgements(1));
    service.keep_up(&notes).await;
    service.take(judgements(49));
    service.keep_up(&notes).await;
    assert_eq!(*notes.0.lock().unwrap(), [(7, 2)], "49 more may wait");
    service.take(judgements(1));
    service.keep_up(&notes).await;
    assert_eq!(*notes.0.lock().unwrap(), [(7, 2), (7, 102)]);
    service.keep_up(&notes).await;
    assert_eq!(notes.0.lock().unwrap().len(), 2, "nothing changed");
    let published = handle.learnt().blobs["me"].version;
    drop(service);
    let (next_life, _) = self::service(&folder, 8);
    assert_eq!((next_life.own.generation, next_life.own.version), (8, published));
}

#[test]
fn lies_and_old_news_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (mut service, handle) = service(&folder, 1);
    let honest = testimony(3, 10);
    service.believe(blob("other", &honest));
    let mut impossible = testimony(3, 11);
    impossible.arms.get_mut(&arm()).unwrap().quality.reward[0] = 1e9;
    let mut too_fast = testimony(3, 11);
    too_fast.version = 1_000_000_000;
    let garbage = SignedBlob { payload: vec![0xff; 9], ..blob("other", &testimony(3, 12)) };
    let mine = testimony(u64::MAX, 500);
    for (offered, what) in [
        (blob("other", &impossible), "impossible sums"),
        (blob("other", &too_fast), "counts faster than traffic"),
        (garbage, "not a testimony"),
        (blob("other", &testimony(3, 9)), "older"),
        (blob("other", &testimony(2, 99)), "an older life"),
        (blob("me", &mine), "somebody speaks for this node"),
    ] {
        service.believe(offered);
        service.show();
        assert_eq!(weight(&handle.learnt()).round(), 10.0, "{what}");
    }
    let learnt = handle.learnt();
    assert!(learnt.origins.iter().any(|state| &*state.origin == "other" && state.flagged));
    assert!(learnt.quality[&arm()].weight() < 1e-9, "who was caught weighs no more than own evidence");
    service.believe(blob("other", &testimony(4, 2)));
    service.show();
    assert_eq!(weight(&handle.learnt()).round(), 2.0, "a new life replaces the old one");
}

#[test]
fn other_origins_are_bounded_and_those_that_spoke_last_stay() {
    let folder = tempfile::tempdir().unwrap();
    let (mut service, handle) = service(&folder, 1);
    for n in 1..=MAX_ORIGINS as u64 + 20 {
        service.believe(blob(&format!("n{n}"), &testimony(1, n)));
    }
    service.show();
    let learnt = handle.learnt();
    assert_eq!(learnt.blobs.len(), MAX_ORIGINS);
    assert!(!learnt.blobs.contains_key("n20") && learnt.blobs.contains_key("n21"));
    assert_eq!(service.scrutiny.flagged(Instant::now()).len(), 0);
}

#[test]
fn a_failure_counts_as_none_answered_and_not_as_a_bad_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (mut service, handle) = service(&folder, 1);
    service.take(judgements(1));
    let before = handle.learnt().totals[&arm()].clone();
    let failed = OutcomeStatus::Failed { code: "upstream_error".into() };
    service.take(
        [OutcomeStatus::Completed, failed, OutcomeStatus::Cancelled]
            .map(|s| Evidence::Outcome(ended(s)))
            .into(),
    );
    service.show();
    let evidence = handle.learnt().totals[&arm()].clone();
    assert_eq!((evidence.stats.count, evidence.stats.failures), (2, 1));
    assert_eq!(evidence.quality, before.quality);
}

#[tokio::test]
async fn many_outcomes_make_few_snapshots_and_none_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let (mut service, handle) = service(&folder, 1);
    let mut snapshots = std::collections::BTreeSet::new();
    for _ in 0..200 {
        service.take(vec![Evidence::Outcome(ended(OutcomeStatus::Completed))]);
        snapshots.insert(handle.learnt().totals.get(&arm()).map_or(0, |evidence| evidence.stats.count));
    }
    assert!(snapshots.len() < 100, "{} snapshots", snapshots.len());
    service.keep_up(&Notes::default()).await;
    assert_eq!(handle.learnt().totals[&arm()].stats.count, 200);
}

#[test]
fn whoever_judges_is_counted_once_by_features_by_level_and_for_calibration() {
    let folder = tempfile::tempdir().unwrap();
    let (mut service, handle) = service(&folder, 1);
    service.take((0..8).map(|n| judgement(n, JudgedBy::Signs)).collect());
    let evidence = handle.learnt().totals[&arm()].clone();
    assert_eq!((evidence.stats.scored, evidence.reliability.count(), evidence.quality.version), (8, 8, 8));
    assert!((evidence.quality.weight() - 8.0).abs() < 1e-2);
}

#[test]
fn a_pair_of_words_that_bad_answers_have_in_common_changes_decisions_also_in_the_next_life() {
    let folder = tempfile::tempdir().unwrap();
    let (mut service, handle) = service(&folder, 1);
    let words = |text: &str| shoal_routing::RequestProfile::of_text(text, None).words;
    let both = |n: usize| words(&format!("chest pain and shortness of breath, day{n}x"));
    let one = |n: usize| words(&format!("chest pain and a headache, day{n}x"));
    for n in 0..150 {
        let (words, score) = if n % 3 == 0 { (both(n), 0.0) } else { (one(n), 1.0) };
        let Evidence::Judgement(judged) = judgement(n, JudgedBy::Client) else { unreachable!() };
        let score = Score::clamped(score);
        service.take(vec![Evidence::Judgement(Box::new(Judgement { words, score, ..*judged }))]);
    }
    let believed = |learnt: &Learnt, words: Words| {
        let placed = learnt.posterior.place(&Features::default(), &words);
        learnt.posterior.answer(&arm(), shoal_routing::SizeClass::Medium, &placed).mean
    };
    let first = handle.learnt();
    assert!(believed(&first, both(99)) < 0.3, "{}", believed(&first, both(99)));
    assert!(believed(&first, one(99)) > 0.6, "{}", believed(&first, one(99)));
    assert!(first.totals[&arm()].pairs.len() <= shoal_routing::bandit::pairs::MAX_PAIRS);
    let own = service.own.arms.iter().map(|(arm, evidence)| (arm.clone(), evidence.clone())).collect();
    let learning = Learning { own, ..Learning::default() };
    service.store.write_learning(&learning, &[""; 0]).unwrap();
    drop(service);
    let (_next_life, handle) = self::service(&folder, 2);
    assert_eq!(believed(&handle.learnt(), both(99)), believed(&first, both(99)));
}

#[test]
fn a_pack_is_believed_beside_the_origins_but_never_told_to_the_mesh() {
    let folder = tempfile::tempdir().unwrap();
    let (service, handle) = service(&folder, 1);
    let mut evidence = ArmEvidence::default();
    for _ in 0..50 {
        evidence.quality.record(&Features::default(), Score::ONE);
    }
    let pack = Pack { arms: [(arm(), evidence)].into(), ..Pack::default() };
    let mut service = service.with_priors(Arc::new(pack));
    let learnt = handle.learnt();
    assert!((learnt.quality[&arm()].weight() - 50.0).abs() < 0.2);
    assert!(learnt.totals.is_empty() && service.own.published().arms.is_empty());
    let (done, _) = tokio::sync::oneshot::channel();
    service.take(vec![Evidence::Priors(Arc::default(), done)]);
    assert!(handle.learnt().quality.is_empty(), "a removed pack leaves nothing behind");
}

#[test]
fn sizes_of_a_pack_tell_easy_prompts_from_hard_ones_before_anything_was_judged() {
    let folder = tempfile::tempdir().unwrap();
    let (service, handle) = service(&folder, 1);
    let mut sums = shoal_routing::QualitySums::default();
    let at = |value: f64| {
        let mut values = *Features::default().values();
        values[1] = value;
        Features::from_values(values).unwrap()
    };
    for n in 0..400_u32 {
        let value = f64::from(n % 21) / 10.0 - 1.0;
        sums.record(&at(value), Score::clamped(if value < 0.0 { 1.0 } else { 0.0 }));
    }
    let classes = [(shoal_routing::SizeClass::Medium, sums)].into();
    let pack = Pack { classes: shoal_routing::ClassPriors(classes), ..Pack::default() };
    let believed = |learnt: &Learnt, value: f64| {
        let placed = learnt.posterior.qualities().place(&at(value));
        learnt.posterior.answer(&arm(), shoal_routing::SizeClass::Huge, &placed).mean
    };
    assert_eq!(believed(&handle.learnt(), -0.9), believed(&handle.learnt(), 0.9));
    let _service = service.with_priors(Arc::new(pack));
    assert!(believed(&handle.learnt(), -0.9) > believed(&handle.learnt(), 0.9) + 0.1);
}
