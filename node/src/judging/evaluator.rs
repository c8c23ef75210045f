//! The task that asks a model for grades: sampled, within budgets, only where a slot is free, and never where the
//! content may not go.
//!
//! It asks through the node's own pipeline, so policy, purses and breakers hold. A model of devices is asked on
//! devices only, whatever else has its name; a provider only if the setting names it, and then no content that must
//! stay (class `restricted`, mode `local`). Its own requests are never judged, shadowed or escalated.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use rand::RngExt;
use shoal_routing::escalate::gain::AnswerSignals;
use shoal_routing::{ArmId, Confidence, DataClass, Grading, ModelChoice, Offer, Score, Tokens};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::allowance::Allowance;
use super::background::{self, Aside};
use super::grade::Grade;
use super::prompt::{self, MAX_GRADE_TOKENS, PROMPT_VERSION};
use super::settings::EvaluatorSettings;
use crate::api::parse::{Floor, Parsed};
use crate::feedback::{JudgedBy, Judgement};
use crate::pipeline::exhibit::Answer;
use crate::pipeline::{Pipeline, Purpose, Running, Whole};
use crate::store::{Error, Evaluation, EvaluationRecord, Store, unix_ms};

/// Samples that may wait; each holds a prompt and an answer, at most 272 KiB.
const QUEUE: usize = 32;
/// Grades of earlier runs that are read at the start: the judge's memory.
const REMEMBERED: usize = 4_000;
/// Answers of which feedback was compared, so that none is compared twice.
const COMPARED: usize = 1_024;
/// Name of the evaluator's purse; no provider can have it.
const PURSE: &str = "(evaluator)";

/// An answer to grade.
pub(crate) struct Sample {
    pub(crate) id: Arc<str>,
    pub(crate) arm: ArmId,
    /// The class that what the client asked travels with.
    pub(crate) class: DataClass,
    pub(crate) parsed: Parsed,
    pub(crate) answer: String,
    pub(crate) tokens: u64,
    pub(crate) raw: Confidence,
}

/// What the evaluator is told.
pub enum Event {
    /// Grade this.
    #[expect(private_interfaces, reason = "only the witness makes samples")]
    Sample(Box<Sample>),
    /// A person judged an answer.
    Explicit {
        /// Request that was answered.
        id: Arc<str>,
        /// How good they say it was.
        score: Score,
    },
}

/// Why nobody was asked, or no grade came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Skipped {
    /// The hour's calls are spent.
    Allowance,
    /// The content may not go where the evaluator is.
    Policy,
    /// Nobody serves the model for this request.
    NoRoute,
    /// The only model there is would grade itself.
    Itself,
    /// All slots are in use, or a client needed the one it had.
    Busy,
    /// The budget is spent, or cannot be written.
    Budget,
    /// The upstream failed.
    Failed,
    /// No answer in time.
    Late,
    /// The answer held no grade.
    Unreadable,
}

impl Skipped {
    fn as_str(self) -> &'static str {
        match self {
            Self::Allowance => "allowance",
            Self::Policy => "policy",
            Self::NoRoute => "no_route",
            Self::Itself => "itself",
            Self::Busy => "busy",
            Self::Budget => "budget",
            Self::Failed => "failed",
            Self::Late => "late",
            Self::Unreadable => "unreadable",
        }
    }

    /// True when nothing was sent.
    fn is_before_asking(self) -> bool {
        match self {
            Self::Allowance | Self::Policy | Self::NoRoute | Self::Itself | Self::Busy | Self::Budget => true,
            Self::Failed | Self::Late | Self::Unreadable => false,
        }
    }
}

/// A grade, and the answer that it was read from, not ended yet.
struct Graded {
    grade: Grade,
    model: String,
    whole: Whole,
}

type Ended = (Box<Sample>, Result<Graded, Skipped>);

/// The owning task.
pub struct Service {
    asker: Arc<Asker>,
    grading: Grading,
    allowance: Allowance,
    compared: VecDeque<Arc<str>>,
    queue: mpsc::Receiver<Event>,
}

/// What a call needs.
struct Asker {
    settings: EvaluatorSettings,
    pipeline: Arc<Pipeline>,
    store: Store,
    short_id: Arc<str>,
    /// Set once an upstream refused to be held to a schema.
    plain: AtomicBool,
}

impl Service {
    /// Makes the service; what earlier runs learnt of the judge is read from the store.
    ///
    /// # Errors
    /// The store failed.
    pub fn new(
        settings: EvaluatorSettings,
        pipeline: Arc<Pipeline>,
        store: Store,
        short_id: Arc<str>,
    ) -> Result<(Self, mpsc::Sender<Event>), Error> {
        let mut grading = Grading::default();
        for (past, explicit) in store.evaluations(&past_name(&settings), REMEMBERED)? {
            let reading = grading.take(&ArmId(past.arm.into()), past.tokens, Score::clamped(past.grade));
            if let Some(explicit) = explicit {
                grading.checked(reading.corrected, Score::clamped(explicit));
            }
        }
        let (sender, queue) = mpsc::channel(QUEUE);
        let allowance = Allowance::new(settings.per_hour, Instant::now());
        let asker = Asker { settings, pipeline, store, short_id, plain: AtomicBool::new(false) };
        let compared = VecDeque::new();
        Ok((Self { asker: Arc::new(asker), grading, allowance, compared, queue }, sender))
    }

    /// Runs until shutdown; calls that run then are cancelled.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut running: FuturesUnordered<BoxFuture<'static, Ended>> = FuturesUnordered::new();
        loop {
            let has_room = running.len() < self.asker.settings.max_concurrent;
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                Some((sample, ended)) = running.next(), if !running.is_empty() => {
                    self.ended(*sample, ended).await;
                }
                event = self.queue.recv(), if has_room => match event {
                    None => return,
                    Some(Event::Explicit { id, score }) => self.compare(id, score).await,
                    Some(Event::Sample(sample)) if self.allowance.take(Instant::now()) => {
                        let asker = self.asker.clone();
                        running.push(Box::pin(async move {
                            let ended = asker.grade(&sample).await;
                            (sample, ended)
                        }));
                    }
                    Some(Event::Sample(_)) => skip(Skipped::Allowance),
                },
            }
        }
    }

    async fn ended(&mut self, sample: Sample, ended: Result<Graded, Skipped>) {
        match ended {
            Ok(graded) => self.graded(sample, graded).await,
            Err(skipped) => {
                skip(skipped);
                if skipped.is_before_asking() {
                    self.allowance.give_back();
                }
            }
        }
    }

    async fn graded(&mut self, sample: Sample, graded: Graded) {
        let Graded { grade, model, mut whole } = graded;
        let reading = self.grading.take(&sample.arm, sample.tokens, grade.score());
        whole.ticket.record.evaluation = Some(Box::new(EvaluationRecord {
            prompt: PROMPT_VERSION.into(),
            grade: grade.value(),
            corrected: reading.corrected.value(),
            score: reading.score.value(),
            weight: reading.weight,
        }));
        whole.complete();
        metrics::counter!("shoal_evaluations_total").increment(1);
        metrics::gauge!("shoal_evaluator_weight").set(self.grading.weight());
        metrics::gauge!("shoal_evaluator_length_slope").set(self.grading.length_slope());
        let kept = Evaluation {
            request_id: sample.id.to_string(),
            arm: sample.arm.as_str().to_owned(),
            prompt: past_name(&self.asker.settings),
            model,
            tokens: sample.tokens,
            grade: grade.score().value(),
            corrected: reading.corrected.value(),
        };
        let store = self.asker.store.clone();
        let id = sample.id.clone();
        let written = tokio::task::spawn_blocking(move || {
            store.keep_evaluation(&kept)?;
            store.explicit_score(&kept.request_id)
        });
        match written.await {
            Ok(Ok(Some(explicit))) => self.checked(id, reading.corrected, Score::clamped(explicit)),
            Ok(Ok(None)) | Err(_) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "a grade could not be stored; it counts until the restart")
            }
        }
        if rand::rng().random::<f64>() < reading.weight {
            let sinks = &self.asker.pipeline.sinks;
            sinks.witness.judged(sample.arm.clone());
            metrics::counter!("shoal_judgements_total", "by" => "evaluator").increment(1);
            let Sample { id: request, arm, raw, tokens, parsed, .. } = sample;
            let seen = AnswerSignals { raw, out_tokens: (tokens > 0).then_some(tokens as f64) };
            let (features, domain) = (Some(parsed.profile.features), parsed.profile.domain);
            let words = parsed.profile.words;
            let by = JudgedBy::Evaluator;
            let judgement =
                Judgement { request, arm, score: reading.score, seen, features, words, domain, by };
            sinks.feedback.judge(judgement).await;
        }
    }

    /// Compares what a person said with the grade of the same answer, if there is one yet.
    async fn compare(&mut self, id: Arc<str>, explicit: Score) {
        let (store, wanted) = (self.asker.store.clone(), id.clone());
        let grade = tokio::task::spawn_blocking(move || store.corrected_grade(&wanted)).await;
        if let Ok(Ok(Some(corrected))) = grade {
            self.checked(id, Score::clamped(corrected), explicit);
        }
    }

    fn checked(&mut self, id: Arc<str>, corrected: Score, explicit: Score) {
        if self.compared.contains(&id) {
            return;
        }
        if self.compared.len() == COMPARED {
            self.compared.pop_front();
        }
        self.compared.push_back(id);
        self.grading.checked(corrected, explicit);
        metrics::gauge!("shoal_evaluator_weight").set(self.grading.weight());
    }

    /// Does what waits, one after the other, for tests.
    #[cfg(test)]
    pub(super) async fn work(&mut self) {
        while let Ok(event) = self.queue.try_recv() {
            match event {
                Event::Explicit { id, score } => self.compare(id, score).await,
                Event::Sample(sample) if self.allowance.take(Instant::now()) => {
                    let asker = self.asker.clone();
                    let ended = asker.grade(&sample).await;
                    self.ended(*sample, ended).await;
                }
                Event::Sample(_) => skip(Skipped::Allowance),
            }
        }
    }

    /// Returns the judge's weight, for tests.
    #[cfg(test)]
    pub(super) fn weight(&self) -> f64 {
        self.grading.weight()
    }
}

/// The name under which a judge's grades are kept: those of another prompt or another model do not compare.
fn past_name(settings: &EvaluatorSettings) -> String {
    format!("{PROMPT_VERSION} {}", settings.model)
}

fn skip(skipped: Skipped) {
    metrics::counter!("shoal_evaluations_skipped_total", "reason" => skipped.as_str()).increment(1);
}

impl Asker {
    async fn grade(&self, sample: &Sample) -> Result<Graded, Skipped> {
        let schema = !self.plain.load(Ordering::Relaxed);
        match self.ask(sample, schema).await {
            // An engine that knows no schemas says 400; asked plainly, most models still answer with a number.
            Err(Asked::Refused) if schema => {
                let plainly = self.ask(sample, false).await;
                // Only if that helped was it the schema.
                self.plain.fetch_or(plainly.is_ok(), Ordering::Relaxed);
                plainly
            }
            other => other,
        }
        .map_err(|asked| match asked {
            Asked::Skipped(skipped) => skipped,
            Asked::Refused => Skipped::Failed,
        })
    }

    async fn ask(&self, sample: &Sample, schema: bool) -> Result<Graded, Asked> {
        let pipeline = &self.pipeline;
        let choice = ModelChoice::parse(&self.settings.model, &|name| pipeline.is_provider(name));
        let at_provider = matches!(choice, ModelChoice::Provider { .. });
        // What must stay local travels as restricted, whatever class it was given.
        let class = sample.class;
        if at_provider && class == DataClass::Restricted {
            return Err(Skipped::Policy.into());
        }
        let floor = Floor { data_class: class, local_only: !at_provider };
        let (_, asked) = background::read(pipeline, &sample.parsed.body, floor).ok_or(Skipped::Policy)?;
        let mark = uuid::Uuid::now_v7().simple().to_string();
        let question =
            prompt::question(&self.settings.model, &asked.messages, &sample.answer, &mark[20..], schema);
        let body = Bytes::from(question.to_string());
        let (parsed, request) = background::read(pipeline, &body, floor).ok_or(Skipped::Policy)?;
        let decision = pipeline.decide(&parsed, &request).map_err(|_| Skipped::NoRoute)?;
        let reason = decision.reason;
        let mut models = background::by_rank(decision);
        if request.choice.is_auto() {
            // A model that grades itself grades itself well.
            models.retain(|(arm, _)| *arm != sample.arm);
            models.first().ok_or(Skipped::Itself)?;
        }
        let offer = models
            .iter()
            .find_map(|(_, offers)| background::with_room(offers, &pipeline.loads, Instant::now()))
            .ok_or(Skipped::Busy)?;
        let booked = self.book(&offer, parsed.profile.prompt_tokens).await?;
        let purpose = Purpose::Evaluation { of: sample.id.clone() };
        let origin = background::origin(&self.short_id, purpose);
        let decision = background::decided(offer.clone(), 1.0, reason);
        let result = match pipeline.accept_decided(parsed, decision, origin) {
            Ok(job) => {
                background::aside(&pipeline.loads, &offer, self.settings.timeout, Box::pin(pipeline.run(job)))
                    .await
            }
            Err(_) => Err(Aside::Crowded),
        };
        // What was refused, or never came to be asked, cost nothing; what hung may have.
        let unspent = match &result {
            Ok(Err(failed)) => !matches!(&*failed.error.code, "upstream_timeout" | "upstream_interrupted"),
            Err(Aside::Crowded) => true,
            Ok(Ok(_)) | Err(Aside::Late) => false,
        };
        let graded = match result {
            Ok(Ok(Running::Whole(whole))) => read(whole),
            // `run` gives a stream only to those who asked for one.
            Ok(Ok(Running::Stream(_) | Running::Sound(_))) => Err(Skipped::Failed.into()),
            Ok(Err(failed)) if failed.error.status == 400 => Err(Asked::Refused),
            Ok(Err(_)) => Err(Skipped::Failed.into()),
            Err(Aside::Crowded) => Err(Skipped::Busy.into()),
            Err(Aside::Late) => Err(Skipped::Late.into()),
        };
        if let Some(booked) = booked {
            let spent = graded.as_ref().ok().and_then(|g| g.whole.ticket.record.cost_usd);
            booked.settle(&self.store, if unspent { Some(0.0) } else { spent });
        }
        graded
    }

    /// Sets money aside where the offer costs any.
    async fn book(&self, offer: &Offer, prompt: Tokens) -> Result<Option<Booked>, Skipped> {
        let Some(price) = offer.price else { return Ok(None) };
        let budget = self.settings.budget;
        let booked = Booked {
            period: budget.period_at(unix_ms()),
            amount: price.cost(prompt, Tokens(MAX_GRADE_TOKENS)).0,
        };
        let (store, period, amount) = (self.store.clone(), booked.period.clone(), booked.amount);
        let done =
            tokio::task::spawn_blocking(move || store.reserve_spend(PURSE, &period, amount, budget.amount.0));
        match done.await {
            Ok(Ok(true)) => Ok(Some(booked)),
            Ok(Ok(false)) | Err(_) => Err(Skipped::Budget),
            Ok(Err(error)) => {
                tracing::error!(%error, "the evaluator's purse cannot be written; nothing is sent");
                Err(Skipped::Budget)
            }
        }
    }
}

/// How a call ended without a grade.
enum Asked {
    Skipped(Skipped),
    /// The upstream would not take the request as it was.
    Refused,
}

impl From<Skipped> for Asked {
    fn from(skipped: Skipped) -> Self {
        Self::Skipped(skipped)
    }
}

fn read(whole: Whole) -> Result<Graded, Asked> {
    match Grade::read(&Answer::of_body(&whole.body).text) {
        Some(grade) => Ok(Graded { grade, model: whole.ticket.record.model.clone(), whole }),
        None => {
            // The upstream did its part: its answer is whole, only useless here.
            whole.complete();
            Err(Skipped::Unreadable.into())
        }
    }
}

/// Money set aside for one grade.
struct Booked {
    period: String,
    amount: u64,
}

impl Booked {
    /// Books what was spent in its place; what is unknown stays booked in full, which is safe.
    fn settle(self, store: &Store, spent_usd: Option<f64>) {
        let Some(spent) = spent_usd else { return };
        let (store, spent) = (store.clone(), (spent * 1e6).ceil() as u64);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = store.settle_spend(PURSE, &self.period, self.amount, spent) {
                tracing::warn!(%error, "the evaluator's purse keeps a reservation that is no longer due");
            }
        });
    }
}
