//! Asks a second device beside one that is late with its first token; whoever is first at the commit point answers.
//!
//! Off by default, for streamed chats of clients, before any other attempt, on devices only, within the budget of
//! [`shoal_routing::hedge`]. The loser's future is dropped, which cancels its work; nothing of it was given to anybody.

use std::time::{Duration, Instant};

use shoal_routing::{Balancer, Candidates, Choice, Forecast, LoadBook, UpstreamId, Work};

use super::attempt::{Begun, Failure};
use super::attempts::{Attempt, Attempts, log_attempt};
use super::climb::Climb;
use super::ticket::{Mark, Ticket};

/// How an attempt ended that another one outran.
const OUTRUN: &str = "outrun";

/// Where a second attempt comes from.
pub(super) struct Others<'c> {
    pub(super) candidates: &'c mut Candidates,
    pub(super) climb: &'c Climb,
    pub(super) balancer: Balancer,
}

impl Others<'_> {
    fn beside(&mut self, late: &Choice, loads: &LoadBook, hop: u32) -> Option<Choice> {
        self.candidates.beside(late, loads, hop, self.balancer, Instant::now(), &mut rand::rng())
    }
}

/// What decides whether an attempt is hedged.
pub(super) struct Lateness {
    forecast_ms: f64,
    began: Instant,
    is_watched: bool,
}

impl Attempts<'_> {
    /// Looks at an attempt before it begins. Retries, whole answers and requests of the node itself are not hedged.
    pub(super) fn lateness(&self, choice: &Choice, work: Work) -> Lateness {
        let hedges = &self.pipeline.hedges;
        let is_watched = !hedges.is_off()
            && self.is_clients_first()
            && self.parsed.shape.stream
            && matches!(choice.offer.upstream, UpstreamId::Device(_))
            && !choice.offer.is_cloud();
        let mut lateness = Lateness { forecast_ms: 0.0, began: Instant::now(), is_watched };
        if is_watched {
            hedges.request();
            let load = self.pipeline.loads.for_work(&choice.offer, &work, lateness.began);
            let forecast = Forecast::of(work, &choice.offer, &load).unwrap_or_default();
            lateness.forecast_ms = forecast.load_ms + forecast.prefill_ms;
        }
        lateness
    }

    fn late_after(&self, choice: &Choice, lateness: &Lateness) -> Option<Duration> {
        let (hedges, offer) = (&self.pipeline.hedges, &choice.offer);
        let known = || hedges.late_after(&offer.upstream, &offer.model.id, lateness.forecast_ms);
        lateness.is_watched.then(known).flatten()
    }

    /// Runs an attempt to its commit point, and a second one beside it if it is late. Returns whose result it is.
    pub(super) async fn race(
        &mut self,
        choice: Choice,
        mut first: Attempt,
        lateness: Lateness,
        mut others: Others<'_>,
        ticket: &mut Ticket,
    ) -> (Choice, Result<Begun, Failure>) {
        let late_after = self.late_after(&choice, &lateness);
        let ended = match late_after {
            Some(late_after) => tokio::time::timeout(late_after, &mut first).await.ok(),
            None => Some((&mut first).await),
        };
        let result = match ended {
            Some(result) => result,
            None => match self.second(&choice, &mut others, ticket).await {
                None => first.await,
                Some((mark, other, mut second)) => {
                    let (is_first, result) = tokio::select! {
                        biased;
                        result = &mut first => (true, result),
                        result = &mut second => (false, result),
                    };
                    // One that failed leaves the request to the other.
                    let (is_first, result) = match (is_first, result) {
                        (_, Ok(begun)) => (is_first, Ok(begun)),
                        (true, Err(_)) => (false, second.await),
                        (false, Err(_)) => (true, first.await),
                    };
                    metrics::counter!("shoal_hedges_total", "won" => if is_first { "first" } else { "second" })
                        .increment(1);
                    if is_first {
                        log_attempt(ticket, &other, OUTRUN);
                        ticket.restore(mark);
                        ticket.show();
                    } else {
                        log_attempt(ticket, &choice, OUTRUN);
                        // At least as late as this: left out, the late ones would seem ever rarer.
                        self.note_first_token(&choice, &lateness);
                        return (other, result);
                    }
                    result
                }
            },
        };
        if lateness.is_watched && result.is_ok() {
            self.note_first_token(&choice, &lateness);
        }
        (choice, result)
    }

    fn note_first_token(&self, choice: &Choice, lateness: &Lateness) {
        let (offer, took) = (&choice.offer, lateness.began.elapsed());
        self.pipeline.hedges.first_token(&offer.upstream, &offer.model.id, lateness.forecast_ms, took);
    }

    /// Begins a second attempt, where another device has a free slot and the budgets allow it.
    async fn second(
        &mut self,
        late: &Choice,
        others: &mut Others<'_>,
        ticket: &mut Ticket,
    ) -> Option<(Mark, Choice, Attempt)> {
        let pipeline = self.pipeline;
        if !self.are_left() {
            return None;
        }
        let choice = others.beside(late, &pipeline.loads, self.hop())?;
        let upstream = pipeline.resolver.resolve(&choice.offer, &choice.route)?;
        if !pipeline.hedges.try_spend() {
            others.candidates.give_back(&choice);
            return None;
        }
        tracing::debug!(late = %late.offer.name, other = %choice.offer.name, "a second device is asked");
        let mark = ticket.mark();
        let guard = pipeline.loads.begin(&choice.offer, self.parsed.profile.work(), Instant::now());
        let attempt = self.prepare(upstream, &choice, guard, others.climb, true, ticket);
        Some((mark, choice, attempt))
    }
}
