//! One request from acceptance to its outcome.
//!
//! [`Pipeline::accept`] opens a ticket and asks the pure core for a decision; [`Pipeline::run`] makes attempts
//! until one commits: a stream at its first byte of content, a whole answer at its end. Before that point a
//! failure moves silently to the next candidate; after it nothing is ever spliced.

mod attempt;
pub mod tap;
pub mod ticket;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use shoal_routing::{
    ArmId, Balancer, Decision, LoadBook, MAX_ATTEMPTS, NoRoute, Offer, Registry, Request, RetryBudget,
    RetryKind, Route, RouteReason, Router, Snapshot as RouterSnapshot, UpstreamId,
};
use tokio::sync::Semaphore;

use self::attempt::Failure;
pub use self::attempt::{Answer, Running};
use self::ticket::{Sinks, Ticket};
use crate::api::error::ApiError;
use crate::api::parse::Parsed;
use crate::config::Limits;
use crate::inventory::Snapshot;
use crate::store::{AttemptRecord, Considered, RequestRecord, unix_ms};
use crate::upstream::{BoxUpstream, UpstreamRequest};

/// Longest time that a request waits for its turn in the retry budget before it gives the error back.
const RETRY_WAIT: Duration = Duration::from_secs(2);
/// Pause between two tries to get a retry permit, or before a throttled candidate is asked.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Extra time that this node waits beyond the limits that the engine's own host applies, so that the host's
/// error, which knows more, comes first.
const GRACE: Duration = Duration::from_secs(2);

/// Turns an offer and a route into something that can be called.
pub trait Resolve: Send + Sync {
    /// Returns the upstream; `None` when it is gone since the decision.
    fn resolve(&self, offer: &Offer, route: &Route) -> Option<BoxUpstream>;
}

/// Where a request comes from and what it may still do.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Request id: ours, or the one of the router that forwarded it.
    pub id: Arc<str>,
    /// Routers that forwarded it before.
    pub hop: u32,
    /// Attempts that it may still make.
    pub attempts_left: u32,
    /// Id of the API key.
    pub key_id: Arc<str>,
    /// When the whole request gives up.
    pub deadline: Option<tokio::time::Instant>,
}

/// An accepted request with its decision, ready to run.
pub struct Job {
    parsed: Parsed,
    decision: Decision,
    origin: Origin,
    ticket: Ticket,
}

/// Everything that requests need; one per node.
pub struct Pipeline {
    /// Name of this node, for records.
    pub name: Arc<str>,
    /// Who has which model.
    pub inventory: Snapshot,
    /// Measured loads of upstreams.
    pub loads: Arc<LoadBook>,
    /// Where ended requests are told, and what is learnt.
    pub sinks: Sinks,
    /// Turns offers into upstreams.
    pub resolver: Arc<dyn Resolve>,
    /// Bounds.
    pub limits: Limits,
    router: Router,
    retries: RetryBudget,
    slots: Arc<Semaphore>,
}

impl Pipeline {
    /// Puts a pipeline together.
    pub fn new(
        name: &str,
        inventory: Snapshot,
        loads: Arc<LoadBook>,
        sinks: Sinks,
        resolver: Arc<dyn Resolve>,
        limits: Limits,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(limits.concurrent_requests));
        Self {
            name: name.into(),
            inventory,
            loads,
            sinks,
            resolver,
            limits,
            router: Router::default(),
            retries: RetryBudget::default(),
            slots,
        }
    }

    /// Asks the router where a request would go, without sending it.
    pub fn decide(&self, parsed: &Parsed, request: &Request<'_>) -> Result<Decision, NoRoute> {
        let inventory = self.inventory.load();
        let learnt = self.sinks.feedback.learnt();
        let snapshot = RouterSnapshot {
            registry: &inventory.registry,
            posterior: &learnt.posterior,
            loads: &self.loads,
        };
        self.router.decide(request, &parsed.profile, &snapshot, Instant::now(), &mut rand::rng())
    }

    /// Accepts a request: from here on it has exactly one outcome.
    pub fn accept(&self, parsed: Parsed, request: &Request<'_>, origin: Origin) -> Result<Job, ApiError> {
        let Ok(permit) = self.slots.clone().try_acquire_owned() else {
            metrics::counter!("shoal_shed_total").increment(1);
            let message = "this node has as many requests in progress as it may; try again, or another node";
            return Err(ApiError::new(503, "overloaded", message).after(Duration::from_secs(1)));
        };
        let record = RequestRecord {
            id: origin.id.to_string(),
            started_ms: unix_ms(),
            node: self.name.to_string(),
            path: parsed.path.as_str().to_owned(),
            model_requested: parsed.model.clone(),
            stream: parsed.shape.stream,
            prompt_tokens: u64::from(parsed.profile.prompt_tokens.0),
            data_class: parsed.shape.data_class.as_str().to_owned(),
            egress: "none".into(),
            cost_usd: Some(0.0),
            key_id: origin.key_id.to_string(),
            ..RequestRecord::default()
        };
        let ticket = Ticket::open(record, origin.hop, parsed.shape.data_class, self.sinks.clone(), permit);
        self.route(parsed, request, origin, ticket)
    }

    fn route(
        &self,
        parsed: Parsed,
        request: &Request<'_>,
        origin: Origin,
        mut ticket: Ticket,
    ) -> Result<Job, ApiError> {
        let started = Instant::now();
        let decided = self.decide(&parsed, request);
        metrics::histogram!("shoal_decision_seconds").record(started.elapsed().as_secs_f64());
        match decided {
            Ok(decision) => {
                ticket.record.propensity = Some(decision.propensity);
                ticket.record.considered = decision
                    .considered
                    .iter()
                    .map(|(model, score)| Considered { model: model.to_string(), score: *score })
                    .collect();
                Ok(Job { parsed, decision, origin, ticket })
            }
            Err(no) => {
                let error = no_route(&no, &self.inventory.load().registry);
                ticket.reject(error.status, &error.code);
                Err(error)
            }
        }
    }

    /// Makes attempts until one commits. Dropping the future, or the answer, cancels the work.
    pub async fn run(&self, job: Job) -> Result<Running, ApiError> {
        let Job { parsed, decision, origin, mut ticket } = job;
        let _active = self.retries.enter();
        let mut candidates = Candidates::new(decision);
        let allowed = origin.attempts_left.min(MAX_ATTEMPTS);
        let mut last: Option<Failure> = None;
        let mut permit = None;
        for attempt in 0..allowed {
            let Some(choice) = candidates.next(&self.loads, origin.hop, parsed.profile.expected_output)
            else {
                break;
            };
            if let Some(failure) = &last {
                permit = self.retry_permit(failure).await;
                if permit.is_none() {
                    break;
                }
            }
            let Some(upstream) = self.resolver.resolve(&choice.offer, &choice.route) else { continue };
            self.note(&mut ticket, &choice);
            let request = UpstreamRequest {
                id: ticket.id().clone(),
                path: parsed.path,
                model: choice.offer.model.id.clone(),
                body: parsed.body_for(&choice.offer.model.id),
                stream: parsed.shape.stream,
                deadline: origin.deadline,
                data_class: parsed.shape.data_class,
                hop: origin.hop,
                attempts_left: allowed - attempt,
                device: matches!(choice.route, Route::Via(_)).then(|| choice.offer.upstream.name().clone()),
            };
            let guard = self.loads.started(&choice.offer.upstream, &choice.offer.model.id, Instant::now());
            match attempt::run(upstream, request, guard, self.first_byte(), self.between_chunks()).await {
                Ok(begun) => {
                    ticket
                        .record
                        .attempt_log
                        .push(AttemptRecord { upstream: choice.offer.name.to_string(), ended: "ok".into() });
                    if attempt == 0 {
                        self.retries.deposit();
                    }
                    drop(permit);
                    return Ok(begun.into_running(ticket));
                }
                Err(failure) => {
                    metrics::counter!("shoal_failovers_total", "code" => failure.error.code.to_string())
                        .increment(1);
                    tracing::debug!(upstream = %choice.offer.name, code = %failure.error.code, "attempt failed");
                    let ended = failure.error.code.to_string();
                    ticket
                        .record
                        .attempt_log
                        .push(AttemptRecord { upstream: choice.offer.name.to_string(), ended });
                    if let Some(pause) = failure.pause() {
                        self.loads.penalise(
                            &choice.offer.upstream,
                            &choice.offer.model.id,
                            Instant::now(),
                            pause,
                        );
                    }
                    let goes_on = failure.error.retryable;
                    last = Some(failure);
                    if !goes_on {
                        break;
                    }
                }
            }
        }
        let error = match last {
            Some(failure) => ApiError::from(failure.error),
            None => ApiError::new(
                503,
                "no_device",
                "the devices that serve this model went away just now; try again",
            )
            .after(Duration::from_secs(1)),
        };
        ticket.fail(error.status, &error.code);
        Err(error)
    }

    fn first_byte(&self) -> Duration {
        self.limits.first_byte + GRACE
    }

    fn between_chunks(&self) -> Duration {
        self.limits.between_chunks + GRACE
    }

    async fn retry_permit(&self, failure: &Failure) -> Option<shoal_routing::RetryPermit> {
        let kind = if failure.is_throttle() { RetryKind::Throttle } else { RetryKind::Transient };
        let give_up = tokio::time::Instant::now() + RETRY_WAIT;
        loop {
            if let Some(permit) = self.retries.try_retry(kind) {
                return Some(permit);
            }
            if tokio::time::Instant::now() >= give_up {
                metrics::counter!("shoal_retries_refused_total").increment(1);
                return None;
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    fn note(&self, ticket: &mut Ticket, choice: &Choice) {
        let r = &mut ticket.record;
        r.model = choice.offer.model.id.to_string();
        r.upstream = choice.offer.name.to_string();
        r.upstream_id = choice.offer.upstream.name().to_string();
        r.target = match (&choice.offer.upstream, &choice.route) {
            (UpstreamId::Provider(_), _) => "cloud",
            (_, Route::Direct) => "local",
            (_, Route::Via(_)) => "peer",
        }
        .to_owned();
        ticket.attempt(&choice.offer.upstream, choice.arm.clone(), choice.reason);
    }
}

/// One attempt's target.
struct Choice {
    offer: Arc<Offer>,
    route: Route,
    arm: ArmId,
    reason: RouteReason,
}

/// The decision's candidates in the order in which they are tried.
struct Candidates {
    decision: Decision,
    reason: RouteReason,
    tried: Vec<(UpstreamId, Route)>,
    rng: StdRng,
}

impl Candidates {
    fn new(decision: Decision) -> Self {
        let reason = decision.reason;
        Self { decision, reason, tried: Vec::new(), rng: StdRng::from_rng(&mut rand::rng()) }
    }

    /// Returns the next candidate: another host of the model first, then the next model where it was ours to
    /// choose. A host with a second way to it is tried by that way too.
    fn next(&mut self, loads: &LoadBook, hop: u32, expected_output: shoal_routing::Tokens) -> Option<Choice> {
        loop {
            let exhausted: Vec<UpstreamId> = self
                .decision
                .offers
                .iter()
                .filter(|o| self.untried(o, hop).is_none())
                .map(|o| o.upstream.clone())
                .collect();
            // A host that failed by one way comes after hosts that did not fail at all.
            let failed: Vec<UpstreamId> =
                self.tried.iter().map(|(u, _)| u.clone()).chain(exhausted.iter().cloned()).collect();
            let balancer = Balancer::for_output(expected_output);
            let now = Instant::now();
            let offers = &self.decision.offers;
            let picked = balancer
                .pick(offers, loads, now, &mut self.rng, &failed)
                .or_else(|| balancer.pick(offers, loads, now, &mut self.rng, &exhausted));
            if let Some(offer) = picked {
                let route = self.untried(&offer, hop)?;
                self.tried.push((offer.upstream.clone(), route.clone()));
                let arm = offer.model.arm();
                return Some(Choice { offer, route, arm, reason: self.reason });
            }
            if self.decision.fallback_models.is_empty() {
                return None;
            }
            let next = self.decision.fallback_models.remove(0);
            self.decision.offers = next.offers;
            self.reason = RouteReason::Fallback;
        }
    }

    fn untried(&self, offer: &Offer, hop: u32) -> Option<Route> {
        offer
            .routes_at(hop)
            .find(|route| !self.tried.iter().any(|(u, r)| *u == offer.upstream && r == *route))
            .cloned()
    }
}

/// Turns the core's refusal into an error for the client.
pub fn no_route(no: &NoRoute, registry: &Registry) -> ApiError {
    let wait = Duration::from_secs(1);
    let (status, retry) = match no {
        NoRoute::UnknownModel { .. } => (404, false),
        NoRoute::ContextTooLong { .. } | NoRoute::Unsupported { .. } => (400, false),
        NoRoute::NoDevice { .. } | NoRoute::NoLocalCapacity => (503, true),
        NoRoute::PolicyBlocked { .. } => (403, false),
    };
    let mut message = no.to_string();
    if registry.models().is_empty() && status != 403 {
        message = "no device of the mesh serves a model yet; join one with `shoal token create` here and `shoal join <token>` there, or start with `shoal up --embedded`".into();
    }
    let status = if registry.models().is_empty() && status == 404 { 503 } else { status };
    let code = if status == 503 && no.code() == "model_not_found" { "no_device" } else { no.code() };
    let error = ApiError {
        param: (status == 404).then(|| "model".to_owned()),
        ..ApiError::new(status, code, message)
    };
    if retry || status == 503 { error.after(wait) } else { error }
}
