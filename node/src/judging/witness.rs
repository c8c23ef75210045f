//! The task that looks at answers: visible signs, questions asked again at once, and who else is to judge.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use rand::{Rng, RngExt};
use shoal_routing::escalate::gain::AnswerSignals;
use shoal_routing::{
    ArmId, Confidence, Domain, Features, Fingerprint, FinishReason, Flaw, Form, Proportion, RequestProfile,
    RetryBook, Score, Sign, SignKind, SignalFold, Signals, Words,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::evaluator::{self, Sample};
use super::form::form_of;
use super::prompt::MAX_ANSWER;
use super::shadow::Candidate;
use crate::api::parse;
use crate::feedback::{FeedbackHandle, JudgedBy, Judgement};
use crate::pipeline::Purpose;
use crate::pipeline::exhibit::{Answer, Exhibit, Looks};

/// Events that may wait: a second of the busiest node.
const QUEUE: usize = 1024;
/// Bytes of prompts and answers that may wait to be looked at; more are passed over, and counted.
const MAX_WAITING: usize = 32 << 20;
/// Arms of which the share of flagged answers is known.
const MAX_ARMS: usize = 256;

/// Cheap handle; never waits and never blocks.
#[derive(Clone)]
pub struct WitnessHandle {
    queue: mpsc::Sender<Event>,
    waiting: Arc<AtomicUsize>,
}

/// An answer that was given whole.
pub(crate) struct Answered {
    pub(crate) id: Arc<str>,
    pub(crate) arm: ArmId,
    pub(crate) exhibit: Box<Exhibit>,
    pub(crate) finish: Option<FinishReason>,
    pub(crate) tokens: u64,
    pub(crate) raw: Confidence,
    pub(crate) purpose: Purpose,
}

impl Answered {
    fn seen(&self) -> AnswerSignals {
        let out_tokens = (self.tokens > 0).then_some(self.tokens as f64);
        AnswerSignals { raw: self.raw, out_tokens }
    }
}

enum Event {
    Asked { who: Arc<str>, body: Bytes, looks: Looks },
    Answered(Box<Answered>),
    Rejected { arm: ArmId, asked: Box<Asked>, signals: Signals, seen: AnswerSignals },
    Judged { arm: ArmId },
    Explicit { id: Arc<str>, arm: ArmId, score: Score },
}

impl WitnessHandle {
    /// Tells that somebody asks; what the question looks like is found out later, and left in `looks`.
    pub(crate) fn asked(&self, who: Arc<str>, body: Bytes, looks: Looks) {
        self.tell_bounded(body.len(), Event::Asked { who, body, looks });
    }

    /// Shows an answer that was given whole.
    pub(crate) fn answered(&self, answered: Answered) {
        self.tell_bounded(answered.exhibit.bytes(), Event::Answered(Box::new(answered)));
    }

    fn tell_bounded(&self, bytes: usize, event: Event) {
        let waiting = self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if waiting > MAX_WAITING {
            metrics::counter!("shoal_witness_passed_over_total").increment(1);
        }
        if waiting > MAX_WAITING || !self.tell(event) {
            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Tells of an answer that was given up for a stronger model's; what was seen of it counts.
    pub(crate) fn rejected(
        &self,
        arm: ArmId,
        profile: &RequestProfile,
        signals: Signals,
        seen: AnswerSignals,
    ) {
        self.tell(Event::Rejected { arm, asked: Box::new(Asked::of(profile)), signals, seen });
    }

    /// Tells that an answer of an arm was judged by somebody who judges good answers too.
    pub(super) fn judged(&self, arm: ArmId) {
        self.tell(Event::Judged { arm });
    }

    /// Tells what a person said of an answer.
    pub fn explicit(&self, id: &str, arm: ArmId, score: Score) {
        self.tell(Event::Explicit { id: id.into(), arm, score });
    }

    fn tell(&self, event: Event) -> bool {
        let told = self.queue.try_send(event).is_ok();
        if !told {
            metrics::counter!("shoal_witness_passed_over_total").increment(1);
        }
        told
    }
}

/// What a retry speaks against.
#[derive(Debug)]
struct Told {
    arm: ArmId,
    seen: AnswerSignals,
    asked: Asked,
}

/// What a request looked like, as far as it is learnt from.
#[derive(Debug, Clone, Copy)]
struct Asked {
    features: Features,
    words: Words,
    domain: Domain,
}

impl Asked {
    fn of(profile: &RequestProfile) -> Self {
        Self { features: profile.features, words: profile.words, domain: profile.domain }
    }
}

/// The owning task.
pub struct Service {
    feedback: FeedbackHandle,
    queue: mpsc::Receiver<Event>,
    waiting: Arc<AtomicUsize>,
    /// Keys this run's fingerprints.
    seed: u64,
    retries: RetryBook<Told>,
    proportions: BTreeMap<ArmId, Proportion>,
    evaluator: Option<(f64, mpsc::Sender<evaluator::Event>)>,
    shadow: Option<(f64, mpsc::Sender<Candidate>)>,
}

impl Service {
    /// Makes the service; it judges by signs alone until it is given others.
    pub fn new(feedback: FeedbackHandle) -> (Self, WitnessHandle) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let waiting = Arc::new(AtomicUsize::new(0));
        let handle = WitnessHandle { queue: sender, waiting: waiting.clone() };
        let service = Self {
            feedback,
            queue,
            waiting,
            seed: rand::rng().next_u64(),
            retries: RetryBook::default(),
            proportions: BTreeMap::new(),
            evaluator: None,
            shadow: None,
        };
        (service, handle)
    }

    /// Shows a share of the answers to an evaluator.
    pub fn graded_by(mut self, share: f64, evaluator: mpsc::Sender<evaluator::Event>) -> Self {
        self.evaluator = Some((share, evaluator));
        self
    }

    /// Offers a share of the requests to another model, too.
    pub fn shadowed_by(mut self, share: f64, shadow: mpsc::Sender<Candidate>) -> Self {
        self.shadow = Some((share, shadow));
        self
    }

    /// Runs until shutdown; what waits then is forgotten.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let event = tokio::select! {
                event = self.queue.recv() => match event { Some(event) => event, None => return },
                () = shutdown.cancelled() => return,
            };
            self.take(event, Instant::now()).await;
        }
    }

    /// Looks at what waits, for tests.
    #[cfg(test)]
    pub(crate) async fn look(&mut self) {
        while let Ok(event) = self.queue.try_recv() {
            self.take(event, tokio::time::Instant::now().into_std()).await;
        }
    }

    async fn take(&mut self, event: Event, now: Instant) {
        match event {
            Event::Asked { who, body, looks } => {
                self.waiting.fetch_sub(body.len(), Ordering::Relaxed);
                let messages = parse::messages(&body).unwrap_or_default();
                let Some(fingerprint) = Fingerprint::of(&messages, self.seed).map(Arc::new) else { return };
                // Set once, here: each question is told once.
                let _ = looks.set(fingerprint.clone());
                if let Some(told) = self.retries.asked(&who, &fingerprint, now) {
                    self.learn(&told.arm, told.seen, told.asked, Sign::of(SignKind::Retried)).await;
                }
            }
            Event::Answered(answered) => {
                let bytes = answered.exhibit.bytes();
                self.look_at(*answered, now).await;
                self.waiting.fetch_sub(bytes, Ordering::Relaxed);
            }
            Event::Rejected { arm, asked, signals, seen: confidence } => {
                self.proportion(&arm).answered();
                // Given up before its end: that it seems empty or cut says nothing.
                let seen = Signals { truncated: false, ..signals };
                if seen.flaw != Some(Flaw::Empty)
                    && let Some(sign) = Sign::of_answer(&seen, Form::Free)
                {
                    self.learn(&arm, confidence, *asked, sign).await;
                }
            }
            Event::Judged { arm } => self.proportion(&arm).judged(),
            Event::Explicit { id, arm, score } => {
                self.proportion(&arm).judged();
                if let Some((_, evaluator)) = &self.evaluator {
                    // Full: one comparison less, nothing worse.
                    let _ = evaluator.try_send(evaluator::Event::Explicit { id, score });
                }
            }
        }
    }

    async fn look_at(&mut self, mut answered: Answered, now: Instant) {
        let answer = answered.exhibit.answer();
        let asked = Asked::of(&answered.exhibit.parsed.profile);
        self.proportion(&answered.arm).answered();
        if let Some(sign) = sign_of(&answered, &answer) {
            self.learn(&answered.arm, answered.seen(), asked, sign).await;
        }
        if let Some(fingerprint) = answered.exhibit.looks.take().and_then(|looks| looks.get().cloned()) {
            let told = Told { arm: answered.arm.clone(), seen: answered.seen(), asked };
            self.retries.answered(&answered.exhibit.who, fingerprint, told, now);
        }
        self.pass_on(answered, answer);
    }

    /// Draws who else is to judge. A shadow's answer is always graded, and so is the one that it is compared with.
    fn pass_on(&self, answered: Answered, answer: Answer) {
        let is_gradable = answer.whole
            && answer.calls.is_empty()
            && !answer.text.trim().is_empty()
            && answer.text.len() <= MAX_ANSWER
            && answered.finish != Some(FinishReason::ContentFilter);
        let Some((share, evaluator)) = self.evaluator.as_ref().filter(|_| is_gradable) else { return };
        let mut rng = rand::rng();
        let shape = &answered.exhibit.parsed.shape;
        let shadow = self.shadow.as_ref().filter(|(share, _)| {
            answered.purpose.is_client()
                && shape.chooses
                && !shape.needs.tools
                && rng.random::<f64>() < *share
        });
        if let Some((_, shadow)) = shadow {
            let candidate = Candidate {
                id: answered.id.clone(),
                arm: answered.arm.clone(),
                parsed: answered.exhibit.parsed.clone(),
            };
            if shadow.try_send(candidate).is_err() {
                metrics::counter!("shoal_shadow_skipped_total", "reason" => "queue").increment(1);
            }
        }
        if shadow.is_none() && answered.purpose.is_client() && rng.random::<f64>() >= *share {
            return;
        }
        let Answered { id, arm, exhibit, tokens, raw, purpose: answered_for, .. } = answered;
        // A shadow's call travels as restricted; its question is the client's, and has the client's class.
        let class = match &answered_for {
            Purpose::Shadow { class, .. } => *class,
            Purpose::Client | Purpose::Agreement { .. } | Purpose::Evaluation { .. } => {
                exhibit.parsed.shape.travels_as()
            }
        };
        let sample = Sample { id, arm, class, parsed: exhibit.parsed, answer: answer.text, tokens, raw };
        if evaluator.try_send(evaluator::Event::Sample(Box::new(sample))).is_err() {
            metrics::counter!("shoal_evaluations_skipped_total", "reason" => "queue").increment(1);
        }
    }

    async fn learn(&mut self, arm: &ArmId, seen: AnswerSignals, asked: Asked, sign: Sign) {
        metrics::counter!("shoal_signs_total", "sign" => sign.kind.as_str()).increment(1);
        let is_due = !sign.kind.is_one_sided() || self.proportion(arm).admits();
        if is_due && rand::rng().random::<f64>() < sign.weight {
            let by = JudgedBy::Signs;
            // Nobody compares signs with what people say, so the request need not be named.
            let request = Arc::from("");
            metrics::counter!("shoal_judgements_total", "by" => "signs").increment(1);
            self.feedback
                .judge(Judgement {
                    request,
                    arm: arm.clone(),
                    score: sign.score,
                    seen,
                    features: Some(asked.features),
                    words: asked.words,
                    domain: asked.domain,
                    by,
                })
                .await;
        }
    }

    fn proportion(&mut self, arm: &ArmId) -> &mut Proportion {
        if self.proportions.len() >= MAX_ARMS && !self.proportions.contains_key(arm) {
            // So many models at once are no mesh that exists; start over rather than grow.
            self.proportions.clear();
        }
        self.proportions.entry(arm.clone()).or_default()
    }
}

fn sign_of(answered: &Answered, answer: &Answer) -> Option<Sign> {
    let limit_was_asked = answered.exhibit.parsed.shape.max_output.is_some();
    let mut fold = SignalFold::new();
    fold.text(&answer.text);
    if !answer.calls.is_empty() {
        fold.tool_call();
    }
    if answer.refused {
        fold.flaw(Flaw::Refusal);
    }
    fold.finish(answered.finish, limit_was_asked);
    let mut signals = fold.signals();
    // An empty answer without tokens was counted as a failure; one of which not all was seen, or that a limit cut
    // while the model still thought, is none.
    let was_cut = limit_was_asked && answered.finish == Some(FinishReason::Length);
    if signals.flaw == Some(Flaw::Empty) && (answered.tokens == 0 || !answer.whole || was_cut) {
        signals.flaw = None;
    }
    if answered.finish == Some(FinishReason::ContentFilter) {
        return None;
    }
    Sign::of_answer(&signals, form_of(&answered.exhibit.parsed.body, answer, answered.finish))
}
