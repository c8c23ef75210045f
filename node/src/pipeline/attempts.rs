//! The attempts of one request: one candidate after the other, until one gets to its commit point.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use shoal_routing::{
    Asking, Balancer, Candidates, Choice, InFlight, Priority, Route, SoundWork, Tries, UpstreamId, Work,
};

use super::attempt::{self, Begun, Failure, Patience};
use super::climb::Climb;
use super::hedge::Others;
use super::second::Given;
use super::ticket::Ticket;
use super::{GRACE, Origin, Pipeline};
use crate::api::parse::Parsed;
use crate::sound::Bill;
use crate::store::AttemptRecord;
use crate::upstream::pulse::Commitment;
use crate::upstream::{BoxUpstream, UpstreamError, UpstreamRequest, reading_time};

/// Longest wait for a stronger model's first content while a weaker answer is kept.
const HURRIED_STREAM: Duration = Duration::from_secs(20);
/// The same for a whole answer, of which nothing comes before all of it is written.
const HURRIED_WHOLE: Duration = Duration::from_secs(60);

/// How often who waits for a busy host looks for another one.
const LOOK_AROUND: Duration = Duration::from_millis(200);
/// Times that who waits goes elsewhere: each costs a place in a line.
const MAX_MOVES: u32 = 4;

/// Counts the attempts of one request, those for a stronger model included.
pub(super) struct Attempts<'a> {
    pub(super) pipeline: &'a Pipeline,
    pub(super) parsed: &'a Parsed,
    origin: &'a Origin,
    patience: Patience,
    tries: Tries,
}

/// One attempt on its way to the commit point; boxed, since its state is large and two may run at once.
pub(super) type Attempt = BoxFuture<'static, Result<Begun, Failure>>;

/// An answer at its commit point, and who gives it.
pub(super) struct Answered {
    pub(super) begun: Begun,
    pub(super) choice: Choice,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(pipeline: &'a Pipeline, parsed: &'a Parsed, origin: &'a Origin) -> Self {
        let patience = Patience {
            first_byte: pipeline.limits.first_byte
                + reading_time(u64::from(parsed.profile.prompt_tokens.0))
                + GRACE,
            between_chunks: pipeline.limits.between_chunks + GRACE,
            deadline: origin.deadline,
        };
        Self { pipeline, parsed, origin, patience, tries: Tries::new(origin.attempts_left) }
    }

    /// True while another attempt may be made.
    pub(super) fn are_left(&self) -> bool {
        self.tries.are_left()
    }

    /// Returns when the whole request gives up.
    pub(super) fn deadline(&self) -> Option<tokio::time::Instant> {
        self.origin.deadline
    }

    /// Counts an answer that another model gave already as the attempt that it would have been.
    pub(super) fn take_over(&mut self, given: Given, climb: &Climb, ticket: &mut Ticket) -> Answered {
        let choice = given.choice();
        self.tries.begin(&choice.route);
        note(ticket, &choice, None);
        log_attempt(ticket, &choice, "ok");
        let watch = climb.watch(&choice, self.parsed).without_logprobs();
        Answered { begun: Begun::whole_of(given.body, given.guard, self.patience, watch), choice }
    }

    /// Shortens the waits: from here on there is an answer to fall back to.
    pub(super) fn hurry(&mut self) {
        let first_byte = if self.parsed.shape.stream { HURRIED_STREAM } else { HURRIED_WHOLE };
        self.patience.first_byte = self.patience.first_byte.min(first_byte);
        self.patience.between_chunks = self.patience.between_chunks.min(first_byte);
    }

    /// Tries candidates until one commits.
    ///
    /// # Errors
    /// The last attempt's.
    pub(super) async fn begin(
        &mut self,
        mut candidates: Candidates,
        climb: &Climb,
        ticket: &mut Ticket,
    ) -> Result<Answered, UpstreamError> {
        let pipeline = self.pipeline;
        let work = self.parsed.profile.work();
        let balancer = Balancer::for_work(work).with_session(self.parsed.shape.session).that_waits();
        let mut last: Option<Failure> = None;
        let mut full: Option<UpstreamError> = None;
        while self.are_left() {
            let (hop, now) = (self.origin.hop, Instant::now());
            let choice = candidates.next(&pipeline.loads, hop, balancer, now, &mut rand::rng());
            let Some(choice) = choice else { break };
            // Of hosts that are all known to be broken one is asked, since somebody has to find out when they are well; a
            // second try of the same request would only add to what keeps them down.
            if last.is_some() && !pipeline.loads.of(&choice.offer, now).admits {
                metrics::counter!("shoal_retries_refused_total").increment(1);
                break;
            }
            let (choice, passed) = self.pass(choice, &mut candidates, balancer, work).await;
            let guard = match passed {
                Ok(guard) => guard,
                // Nothing was sent, so it is no attempt: another host may have room.
                Err(error) => {
                    log_attempt(ticket, &choice, &error.code);
                    full = Some(error);
                    continue;
                }
            };
            let lateness = self.lateness(&choice, work);
            // Held for this attempt only: one that waits for the next permit must not keep another from it.
            let _permit = match &last {
                None => None,
                Some(failure) => {
                    match pipeline.retry_permit(failure, &choice.offer.upstream, self.origin.deadline).await {
                        Some(permit) => {
                            metrics::counter!("shoal_failovers_total", "code" => failure.label())
                                .increment(1);
                            // All requests of a host that fell silent move at once: the mesh bore them before, so they
                            // are paid for but need not wait for each other.
                            (!failure.error.unheard).then_some(permit)
                        }
                        None => break,
                    }
                }
            };
            // It waited since the decision, and whoever died meanwhile is asked for nothing.
            if !choice.is_open(&pipeline.inventory.load().registry) {
                log_attempt(ticket, &choice, "gone");
                continue;
            }
            let Some(upstream) = pipeline.resolver.resolve(&choice.offer, &choice.route) else {
                self.tries.begin(&choice.route);
                continue;
            };
            let has_more = candidates.has_more(&choice, hop);
            let first = self.prepare(upstream, &choice, guard, climb, has_more, ticket);
            let (choice, result) = self
                .race(
                    choice,
                    first,
                    lateness,
                    Others { candidates: &mut candidates, climb, balancer },
                    ticket,
                )
                .await;
            match result {
                Ok(begun) => {
                    log_attempt(ticket, &choice, "ok");
                    if self.tries.is_first() {
                        pipeline.retries.deposit(&choice.offer.upstream);
                    }
                    return Ok(Answered { begun, choice });
                }
                Err(failure) => {
                    tracing::debug!(upstream = %choice.offer.name, code = %failure.error.code, "attempt failed");
                    log_attempt(ticket, &choice, &failure.error.code);
                    if let Some(pause) = failure.pause() {
                        let (loads, now) = (&pipeline.loads, Instant::now());
                        candidates.throttled(&choice, failure.is_full(), pause, loads, now);
                    }
                    let goes_on = failure.error.retryable;
                    last = Some(failure);
                    if !goes_on {
                        break;
                    }
                }
            }
        }
        Err(last.map(|failure| failure.error).or(full).unwrap_or_else(all_went_away))
    }

    /// Waits for a slot of the chosen host, or takes one that another host has meanwhile, if that is quicker.
    async fn pass(
        &self,
        mut choice: Choice,
        candidates: &mut Candidates,
        balancer: Balancer,
        work: Work,
    ) -> (Choice, Result<InFlight, UpstreamError>) {
        let pipeline = self.pipeline;
        let mut moves = 0;
        loop {
            let offer = choice.offer.clone();
            let mut turn = Box::pin(pipeline.gate.pass(&offer, work, self.asking()));
            let other = loop {
                match tokio::time::timeout(LOOK_AROUND, &mut turn).await {
                    Ok(passed) => return (choice, passed),
                    Err(_) if moves == MAX_MOVES => {}
                    Err(_) => {
                        let (loads, hop, now) = (&pipeline.loads, self.origin.hop, Instant::now());
                        let free =
                            candidates.freed(&choice, loads, hop, balancer, work, now, &mut rand::rng());
                        if let Some(other) = free {
                            break other;
                        }
                    }
                }
            };
            moves += 1;
            metrics::counter!("shoal_moved_while_waiting_total").increment(1);
            drop(turn);
            choice = other;
        }
    }

    /// Counts an attempt and makes the future that runs it to its commit point. `has_more` = others may be asked if it
    /// fails.
    pub(super) fn prepare(
        &mut self,
        upstream: BoxUpstream,
        choice: &Choice,
        guard: InFlight,
        climb: &Climb,
        has_more: bool,
        ticket: &mut Ticket,
    ) -> Attempt {
        let left = self.tries.begin(&choice.route);
        // Of a forwarded request the other router may know another host.
        let may_move = (has_more && self.tries.are_left()) || self.origin.hop > 0;
        let commitment = if may_move { Commitment::default() } else { Commitment::of_last_resort() };
        note(ticket, choice, self.parsed.work);
        let watch = climb.watch(choice, self.parsed);
        let request = UpstreamRequest {
            id: ticket.id().clone(),
            path: self.parsed.path,
            model: choice.offer.model.id.clone(),
            body: self.parsed.body_for(
                &choice.offer.model.id,
                watch.asks_logprobs(),
                matches!(choice.offer.upstream, UpstreamId::Device(_)),
            ),
            media: self.parsed.media.clone(),
            stream: self.parsed.shape.stream,
            deadline: self.origin.deadline,
            data_class: self.parsed.shape.travels_as(),
            hop: self.origin.hop,
            meshes: self.parsed.shape.meshes,
            attempts_left: left,
            device: device(choice),
            egress: ticket.egress().clone(),
            commitment,
            payer: self.pipeline.payer(&choice.offer, self.origin),
        };
        Box::pin(attempt::run(upstream, request, guard, self.patience, watch))
    }

    /// True before the first attempt of a client's own request, at the router where it came in.
    pub(super) fn is_clients_first(&self) -> bool {
        self.tries.is_fresh() && self.origin.hop == 0 && self.origin.purpose.is_client()
    }

    pub(super) fn hop(&self) -> u32 {
        self.origin.hop
    }

    /// Returns what was tried so far, and how much may be.
    pub(super) fn tries(&self) -> Tries {
        self.tries
    }

    pub(super) fn patience(&self) -> Patience {
        self.patience
    }

    /// Who asks for a slot, and until when.
    fn asking(&self) -> Asking {
        let priority = if self.origin.purpose.is_client() { Priority::Client } else { Priority::Background };
        let patience = tokio::time::Instant::now() + self.patience.first_byte;
        let deadline = self.origin.deadline.map_or(patience, |deadline| deadline.min(patience));
        let deadline = Some(deadline.into_std());
        Asking { key: self.origin.key_id.clone(), priority, deadline, cost_ms: 0.0 }
    }
}

/// Returns the device that another router shall use; a provider is named by the model alone.
pub(super) fn device(choice: &Choice) -> Option<Arc<str>> {
    match (&choice.offer.upstream, &choice.route) {
        (UpstreamId::Device(device), Route::Via(_)) => Some(device.clone()),
        (UpstreamId::Device(_) | UpstreamId::Peer(_) | UpstreamId::Provider(_), _) => None,
    }
}

pub(super) fn note(ticket: &mut Ticket, choice: &Choice, work: Option<SoundWork>) {
    let r = &mut ticket.record;
    r.model = choice.offer.model.id.to_string();
    r.upstream = choice.offer.name.to_string();
    r.upstream_id = choice.offer.upstream.name().to_string();
    r.target = match &choice.route {
        _ if choice.offer.is_cloud() => "cloud",
        Route::Direct => "local",
        Route::Via(_) => "peer",
    }
    .to_owned();
    r.local_attempt |= !choice.offer.is_cloud();
    if choice.offer.is_cloud() && matches!(choice.offer.upstream, UpstreamId::Device(_)) {
        ticket.egress().handed_to(&choice.offer.name);
    }
    ticket.attempt(&choice.offer.upstream, choice.arm.clone(), choice.reason);
    ticket.priced(choice.offer.price);
    ticket.billed(choice.offer.price.zip(work).map(|(tokens, work)| Bill {
        tokens,
        sound: choice.offer.sound_price,
        work,
    }));
}

pub(super) fn log_attempt(ticket: &mut Ticket, choice: &Choice, ended: &str) {
    ticket.record.attempt_log.push(AttemptRecord {
        upstream: choice.offer.name.to_string(),
        model: choice.offer.model.id.to_string(),
        ended: ended.to_owned(),
        ..AttemptRecord::default()
    });
}

fn all_went_away() -> UpstreamError {
    let message = "the devices that serve this model went away just now; try again";
    let error = UpstreamError::retryable(503, "no_device", message);
    UpstreamError { retry_after: Some(Duration::from_secs(1)), ..error }
}
