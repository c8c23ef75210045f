//! The task that lets another model of a device answer what a client was answered already, to learn how they compare.
//!
//! One at a time, in the hours' allowance, where a slot is free; nobody gets the answer but the judges. The request
//! passes the policy filter like any other, under a class that no provider is admitted to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use shoal_routing::{ArmId, DataClass, ModelChoice, RouteReason};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::allowance::Allowance;
use super::background::{self, Aside};
use super::settings::LearningSettings;
use crate::api::parse::{Floor, Parsed};
use crate::pipeline::{Job, Pipeline, Purpose, Running, Step};

/// Requests that may wait, at most 256 KiB each. A request that waits long is worth no more than the next one.
const QUEUE: usize = 4;
/// Longest shadow call: on a slow device a long answer takes minutes.
const TIMEOUT: Duration = Duration::from_secs(300);

/// A request that another model may answer, too.
pub struct Candidate {
    /// The client's request.
    pub(super) id: Arc<str>,
    /// The arm that answered it.
    pub(super) arm: ArmId,
    pub(super) parsed: Parsed,
}

/// The owning task.
pub struct Service {
    pipeline: Arc<Pipeline>,
    short_id: Arc<str>,
    allowance: Allowance,
    queue: mpsc::Receiver<Candidate>,
}

impl Service {
    /// Makes the service.
    pub fn new(
        settings: &LearningSettings,
        pipeline: Arc<Pipeline>,
        short_id: Arc<str>,
    ) -> (Self, mpsc::Sender<Candidate>) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let allowance = Allowance::new(settings.shadow_per_hour, Instant::now());
        (Self { pipeline, short_id, allowance, queue }, sender)
    }

    /// Runs until shutdown; a call that runs then is cancelled.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let candidate = tokio::select! {
                candidate = self.queue.recv() => match candidate { Some(candidate) => candidate, None => return },
                () = shutdown.cancelled() => return,
            };
            tokio::select! {
                () = self.serve(candidate) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Does what waits, for tests.
    #[cfg(test)]
    pub(super) async fn work(&mut self) {
        while let Ok(candidate) = self.queue.try_recv() {
            self.serve(candidate).await;
        }
    }

    async fn serve(&mut self, candidate: Candidate) {
        match self.call(candidate).await {
            Ok(()) => metrics::counter!("shoal_shadow_calls_total").increment(1),
            Err(reason) => {
                metrics::counter!("shoal_shadow_skipped_total", "reason" => reason).increment(1);
            }
        }
    }

    /// Makes one call; an error is the word that says why there was none, or no answer.
    async fn call(&mut self, candidate: Candidate) -> Result<(), &'static str> {
        if !self.allowance.take(Instant::now()) {
            return Err("allowance");
        }
        let Candidate { id, arm, parsed } = candidate;
        let class = parsed.shape.travels_as();
        let floor = Floor { data_class: DataClass::Restricted, local_only: true };
        let pipeline = &self.pipeline;
        let (read, mut request) = background::read(pipeline, &parsed.body, floor).ok_or("unreadable")?;
        request.choice = ModelChoice::AutoLocal;
        let decision = pipeline.decide(&read, &request).map_err(|_| "no_route")?;
        let mut others = background::by_rank(decision);
        others.retain(|(other, _)| *other != arm);
        if others.is_empty() {
            self.allowance.give_back();
            return Err("no_other_model");
        }
        let propensity = 1.0 / others.len() as f64;
        let (_, offers) = others.swap_remove(rand::rng().random_range(0..others.len()));
        let Some(offer) = background::with_room(&offers, &pipeline.loads, Instant::now()) else {
            self.allowance.give_back();
            return Err("busy");
        };
        let decision = background::decided(offer.clone(), propensity, RouteReason::Shadow);
        let origin = background::origin(&self.short_id, Purpose::Shadow { of: id, class });
        let job = pipeline.accept_decided(read, decision, origin).map_err(|_| "busy")?;
        match background::aside(&pipeline.loads, &offer, TIMEOUT, Box::pin(to_the_end(pipeline, job))).await {
            Ok(true) => Ok(()),
            Ok(false) => Err("failed"),
            Err(Aside::Crowded) => Err("busy"),
            Err(Aside::Late) => Err("late"),
        }
    }
}

/// Runs a request and reads its answer to the end; true if it was whole.
async fn to_the_end(pipeline: &Pipeline, job: Job) -> bool {
    match Box::pin(pipeline.run(job)).await {
        Err(_) => false,
        Ok(Running::Whole(whole)) => {
            whole.complete();
            true
        }
        // Shadows are chats.
        Ok(Running::Sound(_)) => false,
        Ok(Running::Stream(mut stream)) => loop {
            match stream.next().await {
                Step::Payload(..) => {}
                Step::End(Ok(())) => {
                    stream.complete();
                    return true;
                }
                Step::End(Err(error)) => {
                    stream.fail(&error.code);
                    return false;
                }
            }
        },
    }
}
