//! A committed answer on its way to whoever asked: a client of this node, or the router that forwarded.
//!
//! Both relays read the same steps, so they agree on what a whole answer is and end the ticket by the same rule.
//! Dropping an answer cancels the upstream's work and records the cancellation.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use shoal_routing::{InFlight, Tokens};
use tokio_util::sync::CancellationToken;

use super::attempt::{Patience, broken, in_band};
use super::attempts::{log_attempt, note};
use super::flow::Flow;
use super::resume::{self, Resume, Resumed};
use super::tap::{Payload, Tap};
use super::ticket::Ticket;
use super::watch::Unasked;
use crate::upstream::{Event, UpstreamError};

/// Events of an upstream's answer.
pub(super) type Events = BoxStream<'static, Result<Event, UpstreamError>>;

/// The way from an answer that broke off to one that goes on.
type GoingOn = BoxFuture<'static, (Box<Resume>, Option<Resumed>)>;

/// A committed request: this attempt's bytes are what the asker gets, and no other's.
pub enum Running {
    /// The whole body is here.
    Whole(Whole),
    /// The first content is here.
    Stream(Committed),
    /// The first bytes are here, of a request about sound.
    Sound(Flow),
}

impl Running {
    /// Returns the request's ticket.
    pub fn ticket(&self) -> &Ticket {
        match self {
            Self::Whole(whole) => &whole.ticket,
            Self::Stream(stream) => &stream.ticket,
            Self::Sound(flow) => flow.ticket(),
        }
    }
}

/// A whole body.
pub struct Whole {
    /// The body as the upstream sent it.
    pub body: Bytes,
    /// The request's ticket.
    pub ticket: Ticket,
    guard: InFlight,
}

impl Whole {
    pub(super) fn new(body: Bytes, tap: &Tap, guard: InFlight, mut ticket: Ticket) -> Self {
        ticket.read(tap);
        ticket.saw_body(&body);
        Self { body, ticket, guard }
    }

    /// Ends the request: the body was handed over.
    pub fn complete(self) {
        self.guard.finish(Instant::now(), true);
        self.ticket.complete();
    }

    /// Ends a request of the node's own whose answer may yet be given to a client: returns it, and its load.
    pub(super) fn into_given(self) -> (Bytes, InFlight) {
        self.ticket.complete();
        (self.body, self.guard)
    }

    /// Ends the request without an answer: the body cannot be told in the asker's API.
    pub fn fail(self, code: &str) {
        self.guard.finish(Instant::now(), false);
        self.ticket.fail(502, code);
    }
}

/// What comes next in a stream.
#[derive(Debug)]
pub enum Step {
    /// A payload to pass on.
    Payload(Payload, Bytes),
    /// Nothing more comes. An error says why the answer is not whole.
    End(Result<(), UpstreamError>),
}

/// A stream past its commit point.
pub struct Committed {
    held: VecDeque<Bytes>,
    events: Events,
    /// Boxed, as whatever is large beside a whole answer.
    tap: Box<Tap>,
    patience: Patience,
    guard: InFlight,
    ticket: Ticket,
    unasked: Unasked,
    /// Answers that were asked for (`n`).
    answers: u64,
    /// What goes on with the answer elsewhere if it breaks off.
    resume: Option<Box<Resume>>,
    /// Cancelled when the node stops and waits no longer.
    ending: CancellationToken,
    /// The way to whoever goes on, with the error that stands if it leads nowhere. Kept here so that `next` may be
    /// cancelled.
    resuming: Option<Box<(UpstreamError, GoingOn)>>,
}

/// What a running answer ends with when the node waits no longer.
pub(super) fn node_ends() -> UpstreamError {
    let message = "the answer was cut off: the node is stopping; what came so far is not whole";
    UpstreamError::new(502, "upstream_interrupted", message)
}

impl Committed {
    pub(super) fn new(
        held: VecDeque<Bytes>,
        events: Events,
        patience: Patience,
        guard: InFlight,
        mut ticket: Ticket,
        unasked: Unasked,
        answers: u64,
    ) -> Self {
        ticket.first_content();
        // The held payloads are read once more as they leave, so the tap starts afresh.
        Self {
            held,
            events,
            tap: Box::default(),
            patience,
            guard,
            ticket,
            unasked,
            answers,
            resume: None,
            resuming: None,
            ending: CancellationToken::new(),
        }
    }

    /// Ends with an error when the node does.
    pub(super) fn until(self, ending: CancellationToken) -> Self {
        Self { ending, ..self }
    }

    pub(super) fn resumable(self, resume: Option<Box<Resume>>) -> Self {
        Self { resume, ..self }
    }

    /// Returns the request's ticket.
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// Returns what was read of the payloads that were passed on.
    pub fn tap(&self) -> &Tap {
        &self.tap
    }

    /// Returns the next step. Safe to cancel. After an end, call [`complete`](Self::complete) or
    /// [`fail`](Self::fail).
    pub async fn next(&mut self) -> Step {
        let ending = self.ending.clone();
        tokio::select! {
            biased;
            () = ending.cancelled() => {
                self.end(node_ends())
            }
            step = self.next_of_any_host() => step,
        }
    }

    async fn next_of_any_host(&mut self) -> Step {
        loop {
            if let Some(broken_off) = &mut self.resuming {
                let (cut, resuming) = &mut **broken_off;
                let (resume, resumed) = resuming.as_mut().await;
                let cut = cut.clone();
                self.resuming = None;
                match resumed {
                    Some(resumed) => self.go_on(resume, resumed, &cut),
                    None => return self.end(cut),
                }
            }
            match self.next_of_host().await {
                Step::End(Err(cut)) if resume::may_go_on(&cut) && self.resume.is_some() => {
                    let resume = self.resume.take().map(Resume::go_on);
                    self.resuming = resume.map(|resuming| Box::new((cut, Box::pin(resuming) as GoingOn)));
                }
                step => return step,
            }
        }
    }

    /// Takes over from another device.
    fn go_on(&mut self, resume: Box<Resume>, resumed: Resumed, cut: &UpstreamError) {
        let Resumed { held, events, guard, choice } = resumed;
        std::mem::replace(&mut self.guard, guard).finish(Instant::now(), false);
        self.ticket.resumed(&cut.code);
        // Only text is resumed, which is never work on sound.
        note(&mut self.ticket, &choice, None);
        log_attempt(&mut self.ticket, &choice, "ok");
        (self.held, self.events, self.resume) = (held, events, Some(resume));
    }

    async fn next_of_host(&mut self) -> Step {
        if let Some(payload) = self.held.pop_front() {
            // The load knows the time of the first token already.
            return self.step(payload, false);
        }
        let event = self.patience.between(self.events.next()).await;
        let cut = match event {
            Ok(Some(Ok(Event::Chunk(payload)))) => return self.step(payload, true),
            // Servers that know no `n` give one answer and say that it was all.
            Ok(Some(Ok(Event::End { complete: true }))) if self.tap.finish_reason.is_some() => {
                return Step::End(Ok(()));
            }
            Ok(Some(Ok(Event::End { .. })) | None) => UpstreamError::new(
                502,
                "upstream_interrupted",
                "the answer was cut off: the upstream ended without a finish reason; what came so far is not whole",
            ),
            Ok(Some(Err(error))) | Err(error) => error,
        };
        if cut.unheard {
            self.guard.host_is_silent();
        }
        self.end(cut)
    }

    fn step(&mut self, payload: Bytes, timed: bool) -> Step {
        let kind = self.tap.inspect(&payload);
        match kind {
            Payload::Error => return self.end(in_band(&payload)),
            Payload::Broken => return self.end(broken()),
            Payload::Lifecycle | Payload::Content | Payload::Finish | Payload::Usage => {}
        }
        if timed && kind == Payload::Content {
            self.guard.token(Instant::now());
        }
        self.ticket.read(&self.tap);
        if matches!(kind, Payload::Content | Payload::Finish) {
            self.ticket.saw_payload(&payload);
        }
        if let Some(resume) = &mut self.resume {
            resume.gave(&payload);
        }
        Step::Payload(kind, self.unasked.removed_from(payload))
    }

    /// With its finish reason an answer is whole, whatever the connection did afterwards; of several, each has its own.
    fn end(&self, cut: UpstreamError) -> Step {
        Step::End(if self.tap.all_finished(self.answers) { Ok(()) } else { Err(cut) })
    }

    /// Ends the request: the whole answer was passed on.
    pub fn complete(mut self) {
        // Whoever waits is let through by the guard, and must find the host's own slot free.
        drop(self.events);
        let tokens = self.tap.completion_tokens() / self.answers.max(1);
        self.guard.answered(Tokens(u32::try_from(tokens).unwrap_or(u32::MAX)));
        self.guard.finish(Instant::now(), true);
        self.ticket.complete();
    }

    /// Ends the request: the upstream broke off.
    pub fn fail(self, code: &str) {
        metrics::counter!("shoal_streams_interrupted_total").increment(1);
        drop(self.events);
        self.guard.finish(Instant::now(), false);
        self.ticket.fail(502, code);
    }
}
