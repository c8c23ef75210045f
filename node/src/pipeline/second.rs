//! A second model's opinion of an answer of which nothing is known: when it is asked for, what it says, and what
//! becomes of its answer.
//!
//! Whole answers only: of a stream the client would wait for two answers before it saw the first word.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use shoal_routing::escalate::gain::{AnswerSignals, Evidence, GainModel};
use shoal_routing::{
    ArmId, Choice, Confidence, EscalationPolicy, Grounds, InFlight, JudgeInput, Offer, Permitted, Prospect,
    Route, RouteReason,
};

use super::attempts::Attempts;
use super::climb::Climb;
use super::exhibit::Answer;
use super::ticket::Ticket;
use crate::judging::agreement::{Opinion, Question, Skipped, compare};
use crate::store::AgreementRecord;

/// Share from which an opinion is counted as the same, and up to which as another, in metrics.
const SAME: f64 = 0.75;
const OTHER: f64 = 0.25;

/// What a second model said.
#[derive(Default)]
pub(super) struct Heard {
    /// How far it says the same, 0 to 1; `None` when nobody said anything that compares.
    pub(super) share: Option<f64>,
    given: Option<Given>,
}

/// A second model's whole answer, as long as it may still be given to the client.
pub(super) struct Given {
    pub(super) offer: Arc<Offer>,
    pub(super) route: Route,
    pub(super) body: Bytes,
    pub(super) guard: InFlight,
}

/// An answer as it is about to be judged.
pub(super) struct Standing<'a> {
    /// Who gave it.
    pub(super) arm: &'a ArmId,
    /// All of it; `None` for a stream.
    pub(super) body: Option<Bytes>,
    pub(super) seen: AnswerSignals,
    pub(super) gains: &'a GainModel,
    /// The judgement without an opinion; its confidence and grounds are filled in here.
    pub(super) input: JudgeInput<'a>,
}

impl Heard {
    /// Takes the answer, if it is the one of the model that is to be asked next: it need not be asked twice.
    pub(super) fn answer_of(&mut self, rung: &Permitted) -> Option<Given> {
        let is_rung = |given: &Given| !rung.cloud && given.offer.model.arm() == rung.arm;
        if self.given.as_ref().is_some_and(is_rung) { self.given.take() } else { None }
    }

    /// Ends what was not given to the client: its host did its part.
    pub(super) fn end(self) {
        if let Some(given) = self.given {
            given.guard.finish(Instant::now(), true);
        }
    }
}

impl Climb {
    /// Asks another model, where that is switched on, nothing is known of the answer and it can turn the decision.
    pub(super) async fn hear(
        &self,
        standing: &Standing<'_>,
        attempts: &Attempts<'_>,
        ticket: &mut Ticket,
    ) -> Heard {
        let Some(second) = attempts.pipeline.second.as_deref() else { return Heard::default() };
        let (Some(body), Confidence::Unknown) = (&standing.body, standing.seen.raw) else {
            return Heard::default();
        };
        let worth = self.worth(standing);
        let Some(permitted) = self.permitted().filter(|_| worth > 0.0) else { return Heard::default() };
        let question = Question {
            id: &ticket.id().clone(),
            parsed: attempts.parsed,
            arm: standing.arm,
            permitted,
            deadline: attempts.deadline(),
            worth,
        };
        let result = second.ask(attempts.pipeline, question).await;
        let (record, heard) = match result {
            Ok(opinion) => self.compared(opinion, body, standing, attempts),
            Err(skipped) => (skip(skipped, AgreementRecord::default()), Heard::default()),
        };
        ticket.record.agreement = Some(Box::new(record));
        heard
    }

    /// Returns what an opinion is worth at the caller's rate of exchange.
    fn worth(&self, standing: &Standing<'_>) -> f64 {
        let evidence = |share: f64| self.evidence(standing.gains, standing.arm, &standing.seen.agreed(share));
        let (now, agreed, disagreed) =
            (self.evidence(standing.gains, standing.arm, &standing.seen), evidence(1.0), evidence(0.0));
        let prospect = Prospect {
            now: standing.input_with(&now),
            agreed: standing.input_with(&agreed),
            disagreed: standing.input_with(&disagreed),
        };
        EscalationPolicy.value_of_opinion(&prospect)
    }

    fn compared(
        &self,
        opinion: Opinion,
        body: &Bytes,
        standing: &Standing<'_>,
        attempts: &Attempts<'_>,
    ) -> (AgreementRecord, Heard) {
        let Opinion { whole, offer, took } = opinion;
        let share = compare(
            &Answer::of_body(body),
            &Answer::of_body(&whole.body),
            attempts.parsed.shape.needs.schema,
        );
        let r = &whole.ticket.record;
        let record = AgreementRecord {
            request_id: r.id.clone(),
            model: r.model.clone(),
            upstream: r.upstream.clone(),
            share,
            tokens: r.prompt_tokens + r.completion_tokens,
            duration_ms: took.as_millis() as u64,
            skipped: String::new(),
        };
        metrics::histogram!("shoal_agreement_seconds").record(took.as_secs_f64());
        let record = match share {
            None => skip(Skipped::Unlike, record),
            Some(share) => {
                metrics::counter!("shoal_agreement_calls_total", "said" => word(share)).increment(1);
                record
            }
        };
        let route = match offer.routes.iter().find(|route| matches!(route, Route::Via(_))) {
            Some(via) if r.target == "peer" => via.clone(),
            _ => Route::Direct,
        };
        let (body, guard) = whole.into_given();
        let is_rung = standing.input.rungs.iter().any(|rung| !rung.cloud && rung.arm == offer.model.arm());
        let heard = Heard { share, given: Some(Given { offer, route, body, guard }) };
        if is_rung {
            return (record, heard);
        }
        heard.end();
        (record, Heard { share, given: None })
    }
}

impl Standing<'_> {
    fn input_with<'b>(&'b self, evidence: &'b Evidence) -> JudgeInput<'b> {
        JudgeInput {
            confidence: evidence.confidence,
            learnt: Some(Grounds { model: self.gains, arm: self.arm, evidence }),
            ..self.input
        }
    }
}

impl Given {
    /// Returns who gave it, as the one that was asked because the first answer was not good enough.
    pub(super) fn choice(&self) -> Choice {
        let (offer, route, arm) = (self.offer.clone(), self.route.clone(), self.offer.model.arm());
        Choice { offer, route, arm, reason: RouteReason::Escalated }
    }
}

fn skip(skipped: Skipped, record: AgreementRecord) -> AgreementRecord {
    metrics::counter!("shoal_agreement_skipped_total", "reason" => skipped.as_str()).increment(1);
    AgreementRecord { skipped: skipped.as_str().to_owned(), ..record }
}

fn word(share: f64) -> &'static str {
    match share {
        same if same >= SAME => "same",
        other if other <= OTHER => "other",
        _ => "partly",
    }
}
