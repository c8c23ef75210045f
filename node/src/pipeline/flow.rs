//! A committed answer to a request about sound: its bytes or payloads as they come, and one honest end.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use shoal_routing::InFlight;
use tokio_util::sync::CancellationToken;

use super::attempt::Patience;
use super::delivery::{Events, node_ends};
use super::ticket::Ticket;
use crate::sound::{self, Ear};
use crate::upstream::{Event, UpstreamError};

/// An answer to a request about sound past its commit point.
pub struct Flow {
    first: Option<Bytes>,
    media: Arc<str>,
    events: Events,
    ear: Ear,
    patience: Patience,
    guard: InFlight,
    ticket: Ticket,
    /// Cancelled when the node stops and waits no longer.
    ending: CancellationToken,
}

impl Flow {
    pub(super) fn new(
        first: Bytes,
        media: Arc<str>,
        events: Events,
        patience: Patience,
        guard: InFlight,
        mut ticket: Ticket,
    ) -> Self {
        ticket.first_content();
        let ear = Ear::new(Some(&media));
        ticket.heard(&ear.usage());
        let ending = CancellationToken::new();
        Self { first: Some(first), media, events, ear, patience, guard, ticket, ending }
    }

    /// Ends with an error when the node does.
    pub(super) fn until(self, ending: CancellationToken) -> Self {
        Self { ending, ..self }
    }

    /// Returns the request's ticket.
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// Returns the media type of the answer.
    pub fn media(&self) -> &Arc<str> {
        &self.media
    }

    /// True when the answer comes as payloads of events.
    pub fn is_events(&self) -> bool {
        sound::is_events(Some(&self.media))
    }

    /// Returns the next bytes, or payload; `None` at the end of a whole answer. Safe to cancel. After an end call
    /// [`complete`](Self::complete) or [`fail`](Self::fail).
    ///
    /// # Errors
    /// Why the answer is not whole.
    pub async fn next(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let event = match self.first.take() {
            Some(first) => Some(Ok(Event::Chunk(first))),
            None => tokio::select! {
                biased;
                () = self.ending.cancelled() => return Err(node_ends()),
                event = self.patience.between(self.events.next()) => event?,
            },
        };
        match event {
            Some(Ok(Event::Chunk(bytes))) => {
                self.ear.hear(&bytes);
                self.ticket.heard(&self.ear.usage());
                Ok(Some(bytes))
            }
            Some(Ok(Event::End { complete: true })) => {
                self.ear.end();
                self.ticket.heard(&self.ear.usage());
                Ok(None)
            }
            Some(Ok(Event::End { complete: false })) | None => Err(UpstreamError::new(
                502,
                "upstream_interrupted",
                "the answer was cut off: the upstream ended it before it was whole",
            )),
            Some(Err(error)) => {
                if error.unheard {
                    self.guard.host_is_silent();
                }
                Err(error)
            }
        }
    }

    /// Ends the request: the whole answer was passed on.
    pub fn complete(self) {
        // Whoever waits is let through by the guard, and must find the host's own slot free.
        drop(self.events);
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
