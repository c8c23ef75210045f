//! One request from acceptance to its outcome.
//!
//! [`Pipeline::accept`] opens a ticket and asks the pure core for a decision; [`Pipeline::run`] makes attempts
//! until one commits: a stream at its first byte of content, a whole answer at its end. Before that point a
//! failure moves silently to the next candidate; after it nothing is ever spliced.

mod attempt;
mod attempts;
mod call_watch;
#[cfg(test)]
mod canary_tests;
mod climb;
#[cfg(test)]
mod climb_tests;
mod delivery;
pub(crate) mod exhibit;
mod flow;
#[cfg(test)]
mod gain_tests;
mod gate;
#[cfg(test)]
mod gate_tests;
mod hedge;
#[cfg(test)]
mod hedge_tests;
pub mod live;
#[cfg(test)]
mod outage_tests;
pub mod purpose;
mod resume;
#[cfg(test)]
mod resume_tests;
mod ruled;
#[cfg(test)]
mod ruled_tests;
mod second;
mod starting;
pub mod tap;
#[cfg(test)]
mod tests;
pub mod ticket;
mod turns;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_routing::hedge::Hedges;
use shoal_routing::{
    Candidates, DataClass, Decision, LoadBook, NoRoute, Offer, Plan, Registry, Request, RetryBudget,
    RetryKind, RetryPermit, Route, Router, Snapshot as RouterSnapshot, UpstreamId,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::attempt::Failure;
use self::attempts::Attempts;
use self::climb::Climb;
pub use self::delivery::{Committed, Running, Step, Whole};
use self::exhibit::{Exhibit, Looks, MAX_REQUEST};
pub use self::flow::Flow;
use self::gate::Gate;
pub use self::purpose::Purpose;
use self::resume::Resume;
pub use self::ruled::RuleBook;
use self::starting::Starting;
use self::ticket::{Sinks, Ticket};
use self::turns::Turns;
use crate::api::error::ApiError;
use crate::api::parse::{Naming, Parsed};
use crate::cloud::KeyPurses;
use crate::config::Limits;
use crate::inventory::Snapshot;
use crate::judging::agreement::SecondOpinion;
use crate::store::{Considered, ProfileRecord, Removed, RequestRecord, unix_ms};
use crate::upstream::{ApiPath, BoxUpstream, UpstreamError};

/// Longest time that a request waits while too many others retry, before it gives the error back. A device that dies
/// leaves all its requests to be retried at once, and each holds its permit until its new host has said something.
const RETRY_WAIT: Duration = Duration::from_secs(10);
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
    /// For whom it runs.
    pub purpose: Purpose,
}

/// An accepted request with its decision, ready to run.
pub struct Job {
    parsed: Parsed,
    decision: Decision,
    origin: Origin,
    ticket: Ticket,
}

impl Job {
    /// Returns the class under which the request is handed on, after what the rules said.
    pub fn travels_as(&self) -> DataClass {
        self.parsed.shape.travels_as()
    }
}

/// A request that no upstream answered.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{error}")]
pub struct Failed {
    /// The last attempt's error.
    pub error: UpstreamError,
    /// Where the request left the mesh to, `none` if it did not.
    pub egress: String,
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
    /// What comes before the learnt choice.
    pub rules: RuleBook,
    /// Money of API keys; `None` = no key has a budget.
    pub purses: Option<KeyPurses>,
    /// When a second device is asked beside one that is late.
    pub hedges: Hedges,
    /// Answers that break off are gone on with elsewhere, where the request does not say.
    pub resumes: bool,
    /// Cancelled when the time for running answers is over: the node stops, and says so.
    pub ending: CancellationToken,
    /// Asks another model whether it says the same; `None` = nobody does.
    pub second: Option<Box<SecondOpinion>>,
    router: Router,
    turns: Turns,
    gate: Gate,
    retries: RetryBudget,
    slots: Arc<Semaphore>,
    starting: Starting,
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
            gate: Gate::new(loads.clone()),
            loads,
            sinks,
            resolver,
            limits,
            rules: RuleBook::default(),
            purses: None,
            hedges: Hedges::new(0.0),
            resumes: false,
            ending: CancellationToken::new(),
            second: None,
            router: Router::default(),
            turns: Turns::default(),
            retries: RetryBudget::default(),
            slots,
            starting: Starting::default(),
        }
    }

    /// Says that the node was part of a mesh before: what it has not heard of yet may exist.
    pub fn expecting_a_mesh(self, expects: bool) -> Self {
        let starting = if expects { Starting::expecting(Instant::now()) } else { Starting::default() };
        Self { starting, ..self }
    }

    /// Turns the core's refusal into an error for the client. A model that nobody was heard to serve is not said to be
    /// unknown while the mesh has hardly been heard, or when it was served lately: clients take that for final.
    pub fn refusal(&self, no: &NoRoute) -> ApiError {
        let inventory = self.inventory.load();
        let is_starting = self.starting.is_on(inventory.heard_at, Instant::now());
        if is_starting && matches!(no, NoRoute::UnknownModel { .. }) {
            let message =
                "this node has just started and has not heard of all of its mesh yet; try again in a second";
            return ApiError::new(503, "starting", message).after(Duration::from_secs(1));
        }
        // The core knows what is served now. A model whose last device went away a moment ago does exist.
        match no {
            NoRoute::UnknownModel { model, .. } if inventory.has_departed(model.as_str(), Instant::now()) => {
                no_route(&NoRoute::NoDevice { model: Some(model.clone()) }, &inventory.registry)
            }
            no => no_route(no, &inventory.registry),
        }
    }

    /// Puts rules before the learnt choice.
    pub fn with_rules(self, rules: RuleBook) -> Self {
        Self { rules, ..self }
    }

    /// Lets keys spend what is in their purses only.
    pub fn with_purses(self, purses: KeyPurses) -> Self {
        Self { purses: Some(purses), ..self }
    }

    /// Hedges a share of the streamed requests.
    pub fn with_hedging(self, share: f64) -> Self {
        Self { hedges: Hedges::new(share), ..self }
    }

    /// Says whether answers that break off are gone on with where the request does not say.
    pub fn resuming(self, resumes: bool) -> Self {
        Self { resumes, ..self }
    }

    /// Lets another model say whether it says the same.
    pub fn with_second_opinion(self, second: Option<SecondOpinion>) -> Self {
        Self { second: second.map(Box::new), ..self }
    }

    /// Tells whether this node, or one that it has heard of lately, has a provider of that name.
    pub fn is_provider(&self, name: &str) -> bool {
        self.inventory.load().providers.contains(name)
    }

    /// Returns what clients' names of models mean here.
    pub fn naming<'a>(&self, is_provider: &'a dyn Fn(&str) -> bool) -> Naming<'a> {
        Naming { is_provider, lfo_manners: self.sinks.lfo_manners }
    }

    /// Asks the router where a request would go by itself, without the rules.
    pub fn decide(&self, parsed: &Parsed, request: &Request<'_>) -> Result<Decision, NoRoute> {
        let inventory = self.inventory.load();
        let learnt = self.sinks.feedback.learnt();
        let snapshot = RouterSnapshot {
            registry: &inventory.registry,
            posterior: &learnt.posterior,
            loads: &self.loads,
        };
        let now = Instant::now();
        let previous = self.turns.previous(request, now);
        self.router.decide_after(
            previous.as_ref(),
            request,
            &parsed.profile,
            &snapshot,
            now,
            &mut rand::rng(),
        )
    }

    /// Accepts a request: from here on it has exactly one outcome.
    pub fn accept(&self, mut parsed: Parsed, request: &Request<'_>, origin: Origin) -> Result<Job, ApiError> {
        // First of all: what a rule keeps here, no judge and no record may take for less.
        let plan = self.plan(&mut parsed, request, &origin);
        let mut ticket = self.open(&parsed, &origin)?;
        ticket.attach(self.exhibit(&parsed, &origin));
        self.route(parsed, plan.as_ref(), request, origin, ticket)
    }

    /// Accepts a request of the node itself, whose way was decided before.
    pub(crate) fn accept_decided(
        &self,
        parsed: Parsed,
        decision: Decision,
        origin: Origin,
    ) -> Result<Job, ApiError> {
        let mut ticket = self.open(&parsed, &origin)?;
        ticket.attach(self.exhibit(&parsed, &origin));
        Ok(Self::job(parsed, decision, origin, ticket))
    }

    /// Makes what the judges are shown, and tells them that somebody asks; `None` for what is not judged here: the
    /// router where the client connected does that, and vectors and several answers at once have no single quality.
    fn exhibit(&self, parsed: &Parsed, origin: &Origin) -> Option<Box<Exhibit>> {
        let is_judged = match origin.purpose {
            Purpose::Client | Purpose::Shadow { .. } => {
                origin.hop == 0
                    && parsed.path == ApiPath::ChatCompletions
                    && parsed.shape.answers == 1
                    && parsed.body.len() <= MAX_REQUEST
            }
            Purpose::Agreement { .. } | Purpose::Evaluation { .. } => false,
        };
        if !is_judged {
            return None;
        }
        let looks = origin.purpose.is_client().then(Looks::default);
        if let Some(looks) = &looks {
            self.sinks.witness.asked(origin.key_id.clone(), parsed.body.clone(), looks.clone());
        }
        Some(Box::new(Exhibit::new(parsed.clone(), looks, origin.key_id.clone())))
    }

    fn open(&self, parsed: &Parsed, origin: &Origin) -> Result<Ticket, ApiError> {
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
            features: Some(Box::new(parsed.profile.features)),
            words: (!parsed.profile.words.is_empty()).then(|| Box::new(parsed.profile.words)),
            kind: origin.purpose.as_str().into(),
            about: origin.purpose.of().into(),
            ..RequestRecord::default()
        };
        Ok(Ticket::open(record, origin, parsed.shape.data_class, self.sinks.clone(), permit))
    }

    fn route(
        &self,
        parsed: Parsed,
        plan: Option<&Plan>,
        request: &Request<'_>,
        origin: Origin,
        ticket: Ticket,
    ) -> Result<Job, ApiError> {
        let started = Instant::now();
        let decided = self.decide_under(plan, &parsed, request, &origin);
        metrics::histogram!("shoal_decision_seconds").record(started.elapsed().as_secs_f64());
        match decided {
            Ok(decision) => {
                self.turns.note(request, &decision.arm, started);
                self.rules.count(&decision);
                Ok(Self::job(parsed, decision, origin, ticket))
            }
            Err(no) => {
                let mut error = self.refusal(&no);
                if let Some(plan) = plan {
                    error.message += &format!(" (by the rule '{}')", plan.rule);
                }
                ticket.reject(error.status, &error.code);
                Err(error)
            }
        }
    }

    fn job(parsed: Parsed, decision: Decision, origin: Origin, mut ticket: Ticket) -> Job {
        ticket.record.propensity = Some(decision.propensity);
        ticket.under(decision.rule.as_deref());
        ticket.record.considered = decision.considered.iter().map(Considered::from).collect();
        ticket.record.removed = decision.removed.iter().map(Removed::from).collect();
        ticket.record.explored = decision.explored;
        ticket.record.profile = Some(ProfileRecord::new(&parsed.profile, decision.strange));
        Job { parsed, decision, origin, ticket }
    }

    /// Makes attempts until one commits, and asks a stronger model where the answer is not good enough. Dropping
    /// the future, or the answer, cancels the work.
    ///
    /// # Errors
    /// The last attempt's, when no attempt got to its commit point.
    pub async fn run(&self, job: Job) -> Result<Running, Failed> {
        let Job { parsed, decision, origin, mut ticket } = job;
        let _active = self.retries.enter();
        let mut attempts = Attempts::new(self, &parsed, &origin);
        let climb = Climb::new(&decision, &parsed, origin.hop);
        let begun = tokio::select! {
            biased;
            () = self.ending.cancelled() => Err(stopping()),
            // Boxed: it is held by every future above this one.
            begun = Box::pin(attempts.begin(Candidates::new(&decision), &climb, &mut ticket)) => begun,
        };
        match begun {
            Ok(answered) => {
                let answered = Box::pin(climb.until_good_enough(answered, &mut attempts, &mut ticket)).await;
                let state = (attempts.patience(), attempts.tries());
                let egress = ticket.egress().clone();
                let resume = Resume::new(self, &parsed, &origin, &decision, &answered, state, &egress);
                Ok(answered.begun.into_running(ticket, resume, self.ending.clone()))
            }
            Err(error) => {
                let egress = ticket.egress().text();
                ticket.fail(error.status, &error.code);
                Err(Failed { error, egress })
            }
        }
    }

    async fn retry_permit(
        &self,
        failure: &Failure,
        next: &UpstreamId,
        deadline: Option<tokio::time::Instant>,
    ) -> Option<RetryPermit> {
        let kind = if failure.is_throttle() { RetryKind::Throttle } else { RetryKind::Transient };
        let patience = tokio::time::Instant::now() + RETRY_WAIT;
        let give_up = deadline.map_or(patience, |deadline| deadline.min(patience));
        loop {
            if let Some(permit) = self.retries.try_retry(kind, next) {
                return Some(permit);
            }
            // Where everything fails, a wait would only be one more: errors are given back at once.
            if self.retries.is_spent(kind, next) || tokio::time::Instant::now() >= give_up {
                metrics::counter!("shoal_retries_refused_total").increment(1);
                return None;
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

/// What a request is told that the node's end overtook.
fn stopping() -> UpstreamError {
    let error = UpstreamError::retryable(503, "overloaded", "this node is stopping; ask another one");
    UpstreamError { retry_after: Some(Duration::from_secs(1)), ..error }
}

/// Words the core's refusal for the client.
fn no_route(no: &NoRoute, registry: &Registry) -> ApiError {
    let wait = Duration::from_secs(1);
    let (status, retry) = match no {
        NoRoute::UnknownModel { .. } => (404, false),
        NoRoute::ContextTooLong { .. } | NoRoute::Unsupported { .. } => (400, false),
        NoRoute::NoDevice { .. } | NoRoute::ProviderAway { .. } | NoRoute::NoLocalCapacity => (503, true),
        NoRoute::PolicyBlocked { .. } => (403, false),
        NoRoute::KeyBudget => (429, false),
    };
    let mut message = no.to_string();
    if registry.models().is_empty() && status != 403 && status != 429 {
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
