//! From an answer that is not good enough to a stronger model: at most two rungs, and never worse than before.
//!
//! The weaker answer is kept at its commit point while a stronger model is asked, so that a provider that fails, has
//! no budget left or hangs costs time and not the answer. Nothing is spliced: the client gets one of them.

use std::sync::Arc;

use shoal_routing::escalate::gain::{AnswerSignals, Evidence, GainModel};
use shoal_routing::{
    ArmId, Candidates, Choice, Decision, Domain, EscalationPolicy, Features, Grounds, JudgeInput, Permitted,
    Preference, Quality, Score, Verdict, ladder,
};

use super::attempts::{Answered, Attempts};
use super::second::{Heard, Standing};
use super::ticket::Ticket;
use super::watch::Watch;
use crate::api::parse::Parsed;
use crate::upstream::ApiPath;

/// Whom a request may be passed up to.
pub(super) struct Climb {
    decision: Option<Decision>,
    threshold: Option<Score>,
    preference: Preference,
    features: Features,
    domain: Domain,
}

impl Climb {
    /// Looks whether a request may climb at all: a chat with one answer, accepted here, whose client left the model
    /// to us or set a threshold. Who names a model and says nothing else gets that model's answer.
    pub(super) fn new(decision: &Decision, parsed: &Parsed, hop: u32) -> Self {
        let shape = &parsed.shape;
        let threshold = shape.confidence_threshold.and_then(|t| Score::new(t).ok());
        let may = hop == 0
            && parsed.path == ApiPath::ChatCompletions
            && shape.answers == 1
            && (shape.chooses || threshold.is_some())
            && decision.permitted.len() > 1;
        Self {
            decision: may.then(|| decision.clone()),
            threshold,
            preference: shape.preference,
            features: parsed.profile.features,
            domain: parsed.profile.domain,
        }
    }

    /// Makes the watch of an attempt; it holds back only where somebody stronger may be asked.
    pub(super) fn watch(&self, choice: &Choice, parsed: &Parsed) -> Watch {
        let can_climb = self.rungs(choice).is_some_and(|(_, rungs)| !rungs.is_empty());
        let asks = can_climb && choice.offer.model.logprobs == Some(true) && !parsed.shape.needs.logprobs;
        Watch::new(&parsed.shape, can_climb, asks)
    }

    fn rungs(&self, choice: &Choice) -> Option<(Quality, Vec<Arc<Permitted>>)> {
        let ladder = ladder(self.decision.as_ref()?, &choice.arm, choice.offer.is_cloud());
        Some((ladder.answered?.quality, ladder.rungs))
    }

    /// Returns whom the request may go to at all; `None` where it may not climb.
    pub(super) fn permitted(&self) -> Option<&[Arc<Permitted>]> {
        self.decision.as_ref().map(|decision| &decision.permitted[..])
    }

    /// Puts together what is known of an arm's answer.
    pub(super) fn evidence(&self, gains: &GainModel, arm: &ArmId, seen: &AnswerSignals) -> Evidence {
        gains.evidence(arm, self.features, self.domain, seen)
    }

    /// Judges the answer and asks up the ladder until one is good enough, or nobody is left.
    pub(super) async fn until_good_enough(
        &self,
        mut answered: Answered,
        attempts: &mut Attempts<'_>,
        ticket: &mut Ticket,
    ) -> Answered {
        let (mut quality, mut rungs) = self.rungs(&answered.choice).unzip();
        let mut heard: Option<Heard> = None;
        loop {
            let signals = answered.begun.signals();
            let gains = attempts.pipeline.sinks.feedback.learnt().gains.clone();
            let arm = &answered.choice.arm;
            let mut seen =
                AnswerSignals { out_tokens: answered.begun.out_tokens(), ..AnswerSignals::from(&signals) };
            let mut evidence = self.evidence(&gains, arm, &seen);
            let attempt = ticket.judged(evidence.confidence, seen.raw);
            let (Some(expected), Some(left)) = (quality, rungs.as_mut()) else { break };
            if left.is_empty() || !attempts.are_left() {
                break;
            }
            let input = JudgeInput {
                confidence: evidence.confidence,
                handoff: signals.handoff,
                threshold: self.threshold,
                answered: expected,
                learnt: None,
                preference: self.preference,
                // The purse says no by itself, before anything is sent.
                may_spend: true,
                rungs: left,
            };
            if heard.is_none() {
                let body = answered.begun.whole().cloned();
                let standing = Standing { arm, body, seen, gains: &gains, input };
                let said = self.hear(&standing, attempts, ticket).await;
                if let Some(share) = said.share {
                    seen = seen.agreed(share);
                    evidence = self.evidence(&gains, arm, &seen);
                    ticket.judged(evidence.confidence, seen.raw);
                }
                heard = Some(said);
            }
            let verdict = EscalationPolicy.judge(&JudgeInput {
                confidence: evidence.confidence,
                learnt: Some(Grounds { model: &gains, arm, evidence: &evidence }),
                ..input
            });
            let Verdict::Escalate { rung, reason } = verdict else { break };
            let stronger = left[rung].clone();
            left.drain(..=rung);
            let mark = ticket.mark();
            attempts.hurry();
            let given = heard.as_mut().and_then(|heard| heard.answer_of(&stronger));
            let better = match given.map(|given| attempts.take_over(given, self, ticket)) {
                Some(better) => Ok(better),
                None => {
                    let candidates = Candidates::stronger(stronger.offers.clone());
                    attempts.begin(candidates, self, ticket).await
                }
            };
            match better {
                Ok(better) => {
                    metrics::counter!("shoal_escalations_total", "reason" => reason.as_str()).increment(1);
                    ticket.saw_rejected(&answered.choice.arm, &signals, &seen);
                    let weaker = std::mem::replace(&mut answered, better);
                    let price = weaker.choice.offer.price;
                    ticket.rejected(attempt, weaker.begun.reject(), price);
                    ticket.record.escalated = true;
                    ticket.record.escalation = reason.as_str().to_owned();
                    quality = Some(stronger.quality);
                }
                Err(error) => {
                    tracing::debug!(code = %error.code, "nobody stronger answered; the first answer stands");
                    metrics::counter!("shoal_escalations_failed_total").increment(1);
                    ticket.restore(mark);
                    break;
                }
            }
        }
        if let Some(heard) = heard {
            heard.end();
        }
        ticket.show();
        answered
    }
}
