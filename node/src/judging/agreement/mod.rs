//! A second opinion: another model of a device answers the same, while the client waits, to see whether it says the same.
//!
//! Asked for by the pipeline, and only where nothing is known of an answer, a stronger model may be asked, and the
//! opinion can turn that decision ([`Prospect`](shoal_routing::Prospect)). It has a budget of its own: so many in an
//! hour, so many at once, so long a wait. It runs like the node's other work beside its clients': where a slot is free, given up
//! when a client needs the slot, under a class that no provider is admitted to, and only on models that the client's own
//! request may go to.

mod compare;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use shoal_routing::bandit::Weights;
use shoal_routing::{ArmId, DataClass, MicroUsd, ModelChoice, Offer, Permitted, RouteReason};
use tokio::sync::Semaphore;

pub(crate) use self::compare::compare;
use super::allowance::Allowance;
use super::background::{self, Aside};
use super::settings::AgreementSettings;
use crate::api::parse::{Floor, Parsed};
use crate::pipeline::{Pipeline, Purpose, Running, Whole};

/// Asks for second opinions, within their budget.
#[derive(Debug)]
pub struct SecondOpinion {
    settings: AgreementSettings,
    short_id: Arc<str>,
    allowance: Mutex<Allowance>,
    running: Semaphore,
}

/// An answer of which another model's opinion is wanted.
pub(crate) struct Question<'a> {
    /// The client's request.
    pub(crate) id: &'a Arc<str>,
    pub(crate) parsed: &'a Parsed,
    /// Who answered.
    pub(crate) arm: &'a ArmId,
    /// Whom the client's request may go to.
    pub(crate) permitted: &'a [Arc<Permitted>],
    /// When the client's request gives up.
    pub(crate) deadline: Option<tokio::time::Instant>,
    /// What the opinion is worth, in units of quality: more time than that is not spent.
    pub(crate) worth: f64,
}

/// Another model's answer, not ended yet.
pub(crate) struct Opinion {
    pub(crate) whole: Whole,
    pub(crate) offer: Arc<Offer>,
    pub(crate) took: Duration,
}

/// Why there is no second opinion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Skipped {
    /// The hour's calls are spent, or as many run as may.
    Allowance,
    /// No other model of a device may be asked.
    NoOtherModel,
    /// It would take longer than the client may be kept waiting, or than it is worth.
    Slow,
    /// All slots are in use, or a client needed the one it had.
    Busy,
    /// It was not there in time.
    Late,
    /// The upstream failed.
    Failed,
    /// The answers cannot be compared.
    Unlike,
}

impl Skipped {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Allowance => "allowance",
            Self::NoOtherModel => "no_other_model",
            Self::Slow => "slow",
            Self::Busy => "busy",
            Self::Late => "late",
            Self::Failed => "failed",
            Self::Unlike => "unlike",
        }
    }
}

impl SecondOpinion {
    /// Makes the asker of a node.
    pub fn new(settings: AgreementSettings, short_id: Arc<str>) -> Self {
        Self {
            settings,
            short_id,
            allowance: Mutex::new(Allowance::new(settings.per_hour, Instant::now())),
            running: Semaphore::new(settings.max_concurrent),
        }
    }

    /// Asks another model of a device, the best one that has room. Dropping the future gives the call up.
    ///
    /// Boxed, since the call is a request of its own through the pipeline that wants the opinion.
    pub(crate) fn ask<'a>(
        &'a self,
        pipeline: &'a Pipeline,
        question: Question<'a>,
    ) -> BoxFuture<'a, Result<Opinion, Skipped>> {
        Box::pin(async move {
            let Ok(_running) = self.running.try_acquire() else { return Err(Skipped::Allowance) };
            if !self.lock().take(Instant::now()) {
                return Err(Skipped::Allowance);
            }
            let (parsed, offer, wait) = match self.choose(pipeline, &question) {
                Ok(chosen) => chosen,
                Err(skipped) => {
                    // Nothing was sent.
                    self.lock().give_back();
                    return Err(skipped);
                }
            };
            let decision = background::decided(offer.clone(), 1.0, RouteReason::Agreement);
            let origin = background::origin(&self.short_id, Purpose::Agreement { of: question.id.clone() });
            let job = pipeline.accept_decided(parsed, decision, origin).map_err(|_| Skipped::Busy)?;
            let asked = tokio::time::Instant::now();
            let call = Box::pin(pipeline.run(job));
            match background::aside(&pipeline.loads, &offer, wait, call).await {
                Ok(Ok(Running::Whole(whole))) => Ok(Opinion { whole, offer, took: asked.elapsed() }),
                // `run` gives a stream or a recording only to those who asked for one.
                Ok(Ok(Running::Stream(_) | Running::Sound(_)) | Err(_)) => Err(Skipped::Failed),
                Err(Aside::Crowded) => Err(Skipped::Busy),
                Err(Aside::Late) => Err(Skipped::Late),
            }
        })
    }

    /// Picks who is asked, the request as it is asked, and how long it may take.
    fn choose(
        &self,
        pipeline: &Pipeline,
        question: &Question<'_>,
    ) -> Result<(Parsed, Arc<Offer>, Duration), Skipped> {
        let left = question.deadline.map(|at| at.saturating_duration_since(tokio::time::Instant::now()));
        let wait = left.map_or(self.settings.wait, |left| left.min(self.settings.wait));
        let floor = Floor { data_class: DataClass::Restricted, local_only: true };
        let (parsed, mut request) =
            background::read(pipeline, &question.parsed.body, floor).ok_or(Skipped::NoOtherModel)?;
        request.choice = ModelChoice::AutoLocal;
        let decision = pipeline.decide(&parsed, &request).map_err(|_| Skipped::NoOtherModel)?;
        let mut others = background::by_rank(decision);
        // Both filters: the one of devices alone, and the one of the client's request with its rules and its model.
        others.retain(|(arm, _)| arm != question.arm && permitted(question, arm).is_some());
        if others.is_empty() {
            return Err(Skipped::NoOtherModel);
        }
        let weights = Weights::of(question.parsed.shape.preference);
        others.retain(|(arm, _)| {
            permitted(question, arm).is_some_and(|known| {
                known.latency_ms <= wait.as_secs_f64() * 1e3
                    && weights.penalty(MicroUsd(0), known.latency_ms) < question.worth
            })
        });
        if others.is_empty() {
            return Err(Skipped::Slow);
        }
        let now = Instant::now();
        let with_room =
            |(_, offers): &(ArmId, Vec<Arc<Offer>>)| background::with_room(offers, &pipeline.loads, now);
        let offer = others.iter().find_map(with_room).ok_or(Skipped::Busy)?;
        Ok((parsed, offer, wait))
    }

    fn lock(&self) -> MutexGuard<'_, Allowance> {
        // Numbers: a poisoned lock still holds valid ones.
        self.allowance.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn permitted<'a>(question: &Question<'a>, arm: &ArmId) -> Option<&'a Arc<Permitted>> {
    question.permitted.iter().find(|one| one.arm == *arm && !one.cloud)
}
