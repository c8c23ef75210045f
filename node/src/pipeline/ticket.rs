//! One accepted request, from acceptance to its single outcome.
//!
//! The ticket is a guard: whoever holds it last ends it, and dropped without an end it says that the client went
//! away. So every accepted request is counted exactly once, on every path.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use serde::Serialize;
use shoal_routing::escalate::gain::AnswerSignals;
use shoal_routing::{
    ArmId, Confidence, DataClass, FinishReason, Outcome, OutcomeStatus, Price, RouteReason, Score, Signals,
    Tokens, UpstreamId,
};
use tokio::sync::OwnedSemaphorePermit;

use super::exhibit::Exhibit;
use super::live::Live;
use super::tap::Tap;
use super::{Origin, Purpose};
use crate::egress::EgressMark;
use crate::feedback::FeedbackHandle;
use crate::judging::witness::{Answered, WitnessHandle};
use crate::sound::{Bill, SoundUsage};
use crate::store::{HistoryWriter, REJECTED, RequestRecord};

/// Where ended requests are told.
#[derive(Clone)]
pub struct Sinks {
    /// Learning.
    pub feedback: FeedbackHandle,
    /// Who looks at answers.
    pub witness: WitnessHandle,
    /// The request log.
    pub history: HistoryWriter,
    /// Requests in progress.
    pub live: Live,
    /// Counts since the start.
    pub totals: Arc<Totals>,
    /// Answers also carry LFO's metadata.
    pub lfo_manners: bool,
}

/// Counts of this node since its start.
#[derive(Debug, Default)]
pub struct Totals {
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Totals {
    fn add(&self, what: &'static str) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_insert(0) += 1;
    }

    /// Returns a count: `accepted`, `completed`, `failed`, `cancelled` or `rejected`.
    pub fn of(&self, what: &str) -> u64 {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).get(what).copied().unwrap_or(0)
    }
}

/// What an answer says about itself, to the client.
#[derive(Debug, Serialize)]
pub struct Metadata<'a> {
    request_id: &'a str,
    target: &'a str,
    model: &'a str,
    upstream: &'a str,
    confidence: Option<f64>,
    routing_reason: &'a str,
    local_attempt: bool,
    escalated: bool,
    attempts: u32,
    cost_usd: Option<f64>,
    data_class: &'a str,
    egress: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    resumed: u32,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Guard of one accepted request.
pub struct Ticket {
    /// What is known of it so far. Boxed: the ticket is held across every await of the request.
    pub record: Box<RequestRecord>,
    id: Arc<str>,
    /// Its number among those in progress.
    live: u64,
    started: Instant,
    hop: u32,
    purpose: Purpose,
    data_class: DataClass,
    exhibit: Option<Box<Exhibit>>,
    reason: RouteReason,
    arm: Option<ArmId>,
    upstream: Option<UpstreamId>,
    price: Option<Price>,
    /// What the present attempt costs, of a request about sound.
    bill: Option<Bill>,
    /// Cost of the answers that were rejected.
    rejected_usd: f64,
    egress: EgressMark,
    sinks: Sinks,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

/// Who answered at some moment.
pub(super) struct Mark {
    model: String,
    upstream: String,
    upstream_id: String,
    target: String,
    reason: RouteReason,
    arm: Option<ArmId>,
    id: Option<UpstreamId>,
    price: Option<Price>,
}

impl Ticket {
    /// Opens the ticket of a request just accepted.
    pub fn open(
        record: RequestRecord,
        origin: &Origin,
        data_class: DataClass,
        sinks: Sinks,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let id: Arc<str> = record.id.as_str().into();
        if origin.purpose.is_client() {
            sinks.totals.add("accepted");
        }
        let live = sinks.live.insert(record.clone());
        Self {
            record: Box::new(record),
            id,
            live,
            started: Instant::now(),
            hop: origin.hop,
            purpose: origin.purpose.clone(),
            data_class,
            exhibit: None,
            reason: RouteReason::None,
            arm: None,
            upstream: None,
            price: None,
            bill: None,
            rejected_usd: 0.0,
            egress: EgressMark::default(),
            sinks,
            ended: false,
            _permit: permit,
        }
    }

    /// Returns the request's id.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// Notes the rule that led here.
    pub(super) fn under(&mut self, rule: Option<&str>) {
        self.record.rule = rule.unwrap_or_default().to_owned();
    }

    fn set_reason(&mut self, reason: RouteReason) {
        self.reason = reason;
        let rule = Some(self.record.rule.as_str()).filter(|rule| !rule.is_empty());
        self.record.routing_reason = reason.under(rule).into_owned();
    }

    /// Notes where an attempt goes.
    pub fn attempt(&mut self, upstream: &UpstreamId, arm: ArmId, reason: RouteReason) {
        self.upstream = Some(upstream.clone());
        self.record.arm = arm.as_str().to_owned();
        self.arm = Some(arm);
        self.set_reason(reason);
        self.record.attempts += 1;
        self.show();
    }

    /// Shows what is known so far to who asks for the request while it runs.
    pub(super) fn show(&self) {
        self.sinks.live.update(self.live, &self.record);
    }

    /// Notes how good the answer of the newest attempt is thought to be; returns that attempt's place in the log.
    pub(super) fn judged(&mut self, confidence: Confidence, raw: Confidence) -> usize {
        self.record.confidence = confidence.value();
        self.record.raw_confidence = raw.value();
        let newest = self.record.attempt_log.len().saturating_sub(1);
        if let Some(attempt) = self.record.attempt_log.get_mut(newest) {
            attempt.confidence = confidence.value();
            attempt.raw_confidence = raw.value();
        }
        newest
    }

    /// Notes that somebody stronger answers instead of an attempt; what was read of it is paid for all the same.
    pub(super) fn rejected(&mut self, attempt: usize, read: u64, price: Option<Price>) {
        let cost = price.map_or(0.0, |p| p.cost(tokens(self.record.prompt_tokens), tokens(read)).as_usd());
        self.rejected_usd += cost;
        self.record.rejected_tokens += read;
        self.record.cost_usd = self.record.cost_usd.map(|known| known + cost);
        if let Some(attempt) = self.record.attempt_log.get_mut(attempt) {
            attempt.ended = REJECTED.to_owned();
            attempt.rejected_tokens = Some(read);
            attempt.rejected_cost_usd = Some(cost);
        }
    }

    /// Notes that another device goes on with the answer, since the one before broke off with `code`.
    pub(super) fn resumed(&mut self, code: &str) {
        self.record.resumed += 1;
        if let Some(broken_off) = self.record.attempt_log.last_mut() {
            broken_off.ended = code.to_owned();
        }
    }

    /// Returns the mark that egress writes when the request leaves the mesh.
    pub fn egress(&self) -> &EgressMark {
        &self.egress
    }

    /// Notes what the present attempt's upstream charges; the cost is unknown until usage is told.
    pub fn priced(&mut self, price: Option<Price>) {
        self.price = price;
        self.record.cost_usd = price.is_none().then_some(self.rejected_usd);
    }

    /// Notes the same of a request about sound.
    pub(super) fn billed(&mut self, bill: Option<Bill>) {
        self.bill = bill;
    }

    /// Takes over what an answer to a request about sound says so far of its own cost.
    pub(super) fn heard(&mut self, usage: &SoundUsage) {
        self.record.egress = self.egress.text();
        if let Some((input, output)) = usage.tokens {
            self.record.prompt_tokens = input.0.into();
            self.record.completion_tokens = output.0.into();
        }
        if let Some(bill) = &self.bill {
            self.record.cost_usd = Some(bill.settled(usage).as_usd());
        }
    }

    /// Remembers who answers now, in case somebody stronger is asked in vain.
    pub(super) fn mark(&self) -> Mark {
        let r = &self.record;
        Mark {
            model: r.model.clone(),
            upstream: r.upstream.clone(),
            upstream_id: r.upstream_id.clone(),
            target: r.target.clone(),
            reason: self.reason,
            arm: self.arm.clone(),
            id: self.upstream.clone(),
            price: self.price,
        }
    }

    /// Returns to who answered at the mark.
    pub(super) fn restore(&mut self, mark: Mark) {
        let r = &mut self.record;
        r.model = mark.model;
        r.upstream = mark.upstream;
        r.upstream_id = mark.upstream_id;
        r.target = mark.target;
        r.arm = mark.arm.as_ref().map(|arm| arm.as_str().to_owned()).unwrap_or_default();
        self.set_reason(mark.reason);
        self.arm = mark.arm;
        self.upstream = mark.id;
        self.priced(mark.price);
    }

    /// Sets what the judges will be shown.
    pub(super) fn attach(&mut self, exhibit: Option<Box<Exhibit>>) {
        self.exhibit = exhibit;
    }

    /// Looks at a payload with content on its way to the client.
    pub(super) fn saw_payload(&mut self, payload: &[u8]) {
        if let Some(exhibit) = &mut self.exhibit {
            exhibit.payload(payload);
        }
    }

    /// Looks at a whole answer.
    pub(super) fn saw_body(&mut self, body: &Bytes) {
        if let Some(exhibit) = &mut self.exhibit {
            exhibit.body(body);
        }
    }

    /// Tells the judges of an answer that was given up for a stronger model's.
    pub(super) fn saw_rejected(&self, arm: &ArmId, signals: &Signals, seen: &AnswerSignals) {
        if let Some(exhibit) = &self.exhibit {
            self.sinks.witness.rejected(arm.clone(), &exhibit.parsed.profile, *signals, *seen);
        }
    }

    /// Notes the first byte of content; later calls change nothing.
    pub fn first_content(&mut self) {
        if self.record.ttft_ms.is_none() {
            self.record.ttft_ms = Some(self.elapsed_ms());
            self.show();
        }
    }

    /// Takes over what the tap read of the answer so far.
    pub fn read(&mut self, tap: &Tap) {
        self.record.egress = self.egress.text();
        if let Some(usage) = tap.usage {
            if let Some(price) = self.price {
                let listed =
                    || price.cost(tokens(usage.billed_prompt_tokens()), tokens(usage.completion_tokens));
                let cost = usage.billed.unwrap_or_else(listed);
                self.record.cost_usd = Some(self.rejected_usd + cost.as_usd());
            }
            self.record.prompt_tokens = usage.prompt_tokens;
        }
        self.record.completion_tokens = tap.completion_tokens();
        if let Some(reason) = &tap.finish_reason {
            // One of the known words: what an upstream writes there instead may be anything, a prompt included.
            self.record.finish_reason = FinishReason::parse(reason).as_str().to_owned();
        }
    }

    /// Returns the metadata that goes with the answer, as JSON.
    pub fn metadata(&self) -> Vec<u8> {
        let r = &self.record;
        let metadata = Metadata {
            request_id: &r.id,
            target: &r.target,
            model: &r.model,
            upstream: &r.upstream,
            confidence: r.confidence,
            routing_reason: &r.routing_reason,
            local_attempt: r.local_attempt,
            escalated: r.escalated,
            attempts: r.attempts,
            cost_usd: r.cost_usd,
            data_class: &r.data_class,
            egress: &r.egress,
            resumed: r.resumed,
        };
        serde_json::to_vec(&metadata).expect("plain fields serialise")
    }

    /// Returns the same in LFO's words, for clients that were written for it; `None` unless its manners are on.
    pub fn lfo_metadata(&self) -> Option<Vec<u8>> {
        let r = &self.record;
        let metadata = serde_json::json!({
            "confidence": r.confidence,
            "routing_reason": r.routing_reason,
            "local_attempt": r.local_attempt,
        });
        self.sinks.lfo_manners.then(|| serde_json::to_vec(&metadata).expect("plain fields serialise"))
    }

    /// Ends the request well.
    pub fn complete(mut self) {
        self.end(OutcomeStatus::Completed, 200, "");
    }

    /// Ends the request with an error.
    pub fn fail(mut self, status: u16, code: &str) {
        let outcome = OutcomeStatus::Failed { code: code.to_owned().into() };
        self.end(outcome, status, code);
    }

    /// Ends the request before any upstream was tried.
    pub fn reject(mut self, status: u16, code: &str) {
        self.end(OutcomeStatus::Rejected, status, code);
    }

    fn elapsed_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn end(&mut self, outcome: OutcomeStatus, status: u16, error: &str) {
        self.ended = true;
        let word = outcome.as_str();
        self.record.egress = self.egress.text();
        self.record.outcome = word.to_owned();
        self.record.status = status;
        self.record.error = error.to_owned();
        self.record.duration_ms = self.elapsed_ms();
        match self.purpose {
            Purpose::Client => self.count(word),
            Purpose::Shadow { .. } | Purpose::Agreement { .. } | Purpose::Evaluation { .. } => {
                let kind = self.purpose.as_str();
                metrics::counter!("shoal_background_requests_total", "kind" => kind, "outcome" => word)
                    .increment(1);
                metrics::counter!("shoal_background_tokens_total", "kind" => kind)
                    .increment(self.record.prompt_tokens + self.record.completion_tokens);
            }
        }
        self.tell_judges(&outcome);
        // The entry node observed the whole request; a router in the middle would count it a second time. A request
        // for a grade is not of the kind that clients send.
        if self.hop == 0 && !matches!(self.purpose, Purpose::Evaluation { .. }) {
            self.sinks.feedback.observe(self.outcome(outcome));
        }
        self.sinks.history.record(*std::mem::take(&mut self.record));
        // Last: who looks among the running and then among the finished misses it at no moment.
        self.sinks.live.remove(self.live);
    }

    fn count(&self, word: &'static str) {
        self.sinks.totals.add(word);
        metrics::counter!("shoal_requests_total", "outcome" => word, "hop" => if self.hop == 0 { "entry" } else { "peer" }).increment(1);
        metrics::histogram!("shoal_request_seconds", "outcome" => word)
            .record(self.started.elapsed().as_secs_f64());
        if let Some(ttft) = self.record.ttft_ms {
            metrics::histogram!("shoal_time_to_first_token_seconds").record(ttft as f64 / 1000.0);
        }
        metrics::counter!("shoal_tokens_total", "type" => "prompt").increment(self.record.prompt_tokens);
        metrics::counter!("shoal_tokens_total", "type" => "completion")
            .increment(self.record.completion_tokens);
    }

    fn tell_judges(&mut self, outcome: &OutcomeStatus) {
        let (Some(exhibit), Some(arm)) = (self.exhibit.take(), self.arm.clone()) else { return };
        if *outcome != OutcomeStatus::Completed {
            return;
        }
        let r = &self.record;
        let raw = r.raw_confidence.and_then(|c| Score::new(c).ok());
        self.sinks.witness.answered(Answered {
            id: self.id.clone(),
            arm,
            exhibit,
            finish: (!r.finish_reason.is_empty()).then(|| FinishReason::parse(&r.finish_reason)),
            tokens: r.completion_tokens,
            raw: raw.map_or(Confidence::Unknown, Confidence::Known),
            purpose: self.purpose.clone(),
        });
    }

    fn outcome(&self, status: OutcomeStatus) -> Outcome {
        let r = &self.record;
        Outcome {
            request_id: self.id.clone(),
            upstream: self.upstream.clone(),
            arm: self.arm.clone(),
            status,
            finish_reason: (!r.finish_reason.is_empty()).then(|| FinishReason::parse(&r.finish_reason)),
            prompt_tokens: tokens(r.prompt_tokens),
            completion_tokens: tokens(r.completion_tokens),
            ttft_ms: r.ttft_ms,
            duration_ms: r.duration_ms,
            attempts: r.attempts,
            hop: self.hop,
            data_class: self.data_class,
            escalated: r.escalated,
            propensity: r.propensity.unwrap_or(1.0),
            reason: self.reason,
        }
    }
}

fn tokens(n: u64) -> Tokens {
    Tokens(u32::try_from(n).unwrap_or(u32::MAX))
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.ended {
            // 499: the client closed the connection; never sent, only recorded.
            self.end(OutcomeStatus::Cancelled, 499, "cancelled");
        }
    }
}
