//! Upstream for any HTTP server that speaks the OpenAI API: local engines and OpenAI-compatible providers.
//!
//! The future resolves once the answer has truly begun: for a stream with its first payload, otherwise with the
//! whole body. So every error before that is a plain `Err` after which another upstream may be tried, also
//! one that hides inside a stream of status 200. Requests are built anew; no header of a client is copied.
//! Dropping the future or the events closes the connection, which is how engines learn of a cancel.

use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream;
use http::header;
use reqwest::{Client, Response, Url};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;

use super::sse::{self, Decoder, Framing, Item};
use super::{
    Event, ServedBy, UpstreamError, UpstreamFuture, UpstreamRequest, UpstreamResponse, reading_time_of,
};
use calls::Calls;
use cost::{billed, with_cost};
use failure::Context;

mod calls;
mod cost;
mod dialect;
mod failure;
mod scan;
mod sound;
#[cfg(test)]
mod sound_tests;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use dialect::testing_settings;
pub(crate) use dialect::{Dialect, HOPS, Line, Malformed, OpenAi, bearer, post, secret};

/// Largest answer that is not streamed.
pub const MAX_BODY: usize = 32 * 1024 * 1024;

/// Most bytes read of the body of an error answer.
const MAX_ERROR_BODY: usize = 64 * 1024;

/// Longest wait for the orderly end of a body after `[DONE]`: long enough for a server on the network to
/// finish it, so that the connection can serve again, short enough to hold up nobody.
const FAREWELL: Duration = Duration::from_millis(100);

/// A role chunk often precedes a long prefill, so only the second payload proves that tokens flow.
const PAYLOADS_BEFORE_FLOW: u32 = 2;

/// Choices of a stream whose end is remembered: as many as can be asked for.
const MAX_CHOICES: usize = 128;

/// Longest silences that are taken as life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdleTimeouts {
    /// Until tokens flow: queueing, loading the model and prefill. Default 300 s, for local engines.
    pub first_byte: Duration,
    /// Between any two reads after that; comments count. Default 30 s.
    pub between_chunks: Duration,
}

impl Default for IdleTimeouts {
    fn default() -> Self {
        Self { first_byte: Duration::from_secs(300), between_chunks: Duration::from_secs(30) }
    }
}

/// What to call and how to present it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Base URL, with or without `/v1`.
    pub base: Url,
    /// Bearer key, if the server wants one.
    pub key: Option<SecretString>,
    /// Display name for people.
    pub name: String,
    /// Stable id.
    pub id: String,
    /// Longest silences.
    pub timeouts: IdleTimeouts,
}

/// An OpenAI-compatible HTTP server as an upstream; cheap to clone.
#[derive(Debug, Clone)]
pub struct OpenAiHttp {
    client: Client,
    settings: Arc<Settings>,
}

impl OpenAiHttp {
    /// Makes the upstream; nothing is sent yet. `client` comes from [`super::http_client::build`].
    pub fn new(client: Client, settings: Settings) -> Self {
        Self { client, settings: Arc::new(settings) }
    }
}

impl tower::Service<UpstreamRequest> for OpenAiHttp {
    type Response = UpstreamResponse;
    type Error = UpstreamError;
    type Future = UpstreamFuture;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), UpstreamError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: UpstreamRequest) -> UpstreamFuture {
        exchange(Line::Mesh(self.client.clone()), self.settings.clone(), Box::new(OpenAi), request)
    }
}

/// Runs one request over a line, in a dialect.
pub(crate) fn exchange(
    line: Line,
    settings: Arc<Settings>,
    dialect: Box<dyn Dialect>,
    request: UpstreamRequest,
) -> UpstreamFuture {
    Box::pin(Exchange { settings, dialect, request }.run(line))
}

/// Joins a base URL, with or without `/v1`, and an API path that starts with `/`.
pub(crate) fn join(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    let prefix = base.path().trim_end_matches('/');
    let prefix = prefix.strip_suffix("/v1").unwrap_or(prefix);
    url.set_path(&format!("{prefix}{path}"));
    url.set_query(None);
    url.set_fragment(None);
    url
}

/// One request and its answer.
struct Exchange {
    settings: Arc<Settings>,
    dialect: Box<dyn Dialect>,
    request: UpstreamRequest,
}

impl Exchange {
    fn context(&self) -> Context<'_> {
        Context {
            upstream: &self.settings.name,
            model: &self.request.model,
            key: self.settings.key.as_ref().map(ExposeSecret::expose_secret),
            request: &self.request.body,
        }
    }

    /// Longest silence before tokens flow: longer for a longer prompt.
    fn first_byte(&self) -> Duration {
        self.settings.timeouts.first_byte + reading_time_of(&self.request.body)
    }

    fn served_by(&self) -> ServedBy {
        ServedBy {
            upstream: self.settings.name.clone(),
            upstream_id: self.settings.id.clone(),
            model: self.request.model.to_string(),
        }
    }

    async fn run(self, line: Line) -> Result<UpstreamResponse, UpstreamError> {
        let began = Instant::now();
        let first_byte = self.first_byte();
        let outgoing = self.dialect.outgoing(&self.settings, &self.request)?;
        let sent = self.within(first_byte, began, line.send(outgoing)).await?;
        let response = sent.map_err(|error| self.context().unsent(&error))?;
        if !response.status().is_success() {
            return Err(self.refusal(response).await);
        }
        let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let kind = content_type.unwrap_or_default().to_ascii_lowercase();
        if kind.starts_with("text/html") {
            return Err(self.context().malformed("a web page: its address is probably not that of an API"));
        }
        if self.request.path.is_sound() {
            return self.sound(response, began).await;
        }
        let streams = match self.dialect.framing() {
            Framing::Events => kind.starts_with("text/event-stream"),
            Framing::Lines => kind.contains("ndjson"),
        };
        match (self.request.stream, streams, kind.contains("json")) {
            (true, false, true) => {
                let body = self.read_body(response, began, MAX_ERROR_BODY).await?;
                let error = self.context().error_object(&body);
                Err(error
                    .unwrap_or_else(|| self.context().malformed("a whole body where a stream was asked for")))
            }
            (true, ..) => Reading::new(self, response, began).begin().await,
            (false, true, _) => Err(self.context().malformed("a stream where none was asked for")),
            (false, false, _) => self.whole(response, began).await,
        }
    }

    /// Waits for `future`, but not past `limit` from `since`, nor past the request's deadline.
    async fn within<F: Future>(
        &self,
        limit: Duration,
        since: Instant,
        future: F,
    ) -> Result<F::Output, UpstreamError> {
        let silence = since + limit;
        let until = self.request.deadline.map_or(silence, |deadline| deadline.min(silence));
        tokio::time::timeout_at(until, future).await.map_err(|_| {
            if until == silence { self.context().silent(limit) } else { self.context().past_deadline() }
        })
    }

    async fn refusal(&self, response: Response) -> UpstreamError {
        let (status, headers) = (response.status(), response.headers().clone());
        let body = self.read_body(response, Instant::now(), MAX_ERROR_BODY).await.unwrap_or_default();
        self.context().refused(status, &headers, &body)
    }

    /// Reads a body to its end, or until it exceeds `cap`.
    async fn read_body(
        &self,
        mut response: Response,
        began: Instant,
        cap: usize,
    ) -> Result<Bytes, UpstreamError> {
        let timeouts = self.settings.timeouts;
        let (mut limit, mut since) = (self.first_byte(), began);
        let mut body = BytesMut::new();
        loop {
            let chunk = self.within(limit, since, response.chunk()).await?;
            match chunk.map_err(|error| self.context().broken(&error, true))? {
                None => return Ok(body.freeze()),
                Some(chunk) if body.len() + chunk.len() > cap => {
                    return Err(self.context().malformed(&format!("more than {} KiB", cap / 1024)));
                }
                Some(chunk) => body.extend_from_slice(&chunk),
            }
            (limit, since) = (timeouts.between_chunks, Instant::now());
        }
    }

    async fn whole(mut self, response: Response, began: Instant) -> Result<UpstreamResponse, UpstreamError> {
        let billed = billed(response.headers());
        let body = self.read_body(response, began, MAX_BODY).await?;
        let is_object = body.trim_ascii_start().first() == Some(&b'{')
            && serde_json::from_slice::<&serde_json::value::RawValue>(&body).is_ok();
        if !is_object {
            return Err(self.context().malformed("something other than JSON"));
        }
        // Only an answer without choices or embeddings can be an error; do not parse those in full.
        if scan::may_be_error(&body)
            && let Some(error) = self.context().error_object(&body)
        {
            return Err(error);
        }
        let body = self.dialect.whole(body).map_err(|what| self.context().malformed(what))?;
        let body = Calls::mend_whole(body, &self.request.id);
        let body = match billed {
            Some(usd) => with_cost(body, usd),
            None => body,
        };
        let events = stream::iter([Ok(Event::Chunk(body)), Ok(Event::End { complete: true })]);
        Ok(UpstreamResponse { served_by: self.served_by(), media: None, events: events.boxed() })
    }
}

/// Where a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// The last event was delivered; the body may still have to be read to its end.
    Ended,
    /// The last event was delivered and nothing is left to read.
    Over,
}

/// What told that a stream has ended.
#[derive(Debug, Default)]
struct Ended {
    /// Indexes of the choices that told their finish reason.
    choices: BTreeSet<u64>,
    /// `[DONE]` came after content.
    said_so: bool,
}

impl Ended {
    fn saw(&mut self, chunk: &[u8]) {
        if scan::has_finish_reason(chunk) && self.choices.len() < MAX_CHOICES {
            self.choices.extend(scan::finished(chunk).into_iter().take(MAX_CHOICES));
        }
    }

    /// True when as many choices finished as `request` asks for.
    fn all(&self, request: &[u8]) -> bool {
        !self.choices.is_empty() && self.choices.len() as u64 >= scan::answers_asked(request)
    }
}

/// A stream being read.
struct Reading {
    exchange: Exchange,
    response: Response,
    decoder: Decoder,
    /// Chunks made of a payload that were not delivered yet.
    ready: VecDeque<Bytes>,
    calls: Calls,
    phase: Phase,
    payloads: u32,
    ended: Ended,
    last_read: Instant,
}

impl Reading {
    fn new(exchange: Exchange, response: Response, began: Instant) -> Self {
        Self {
            decoder: Decoder::of(exchange.dialect.framing()),
            exchange,
            response,
            ready: VecDeque::new(),
            calls: Calls::default(),
            phase: Phase::Open,
            payloads: 0,
            ended: Ended::default(),
            last_read: began,
        }
    }

    /// Waits for the first payload, so that a failure before it is the future's.
    async fn begin(mut self) -> Result<UpstreamResponse, UpstreamError> {
        let first = match self.next_event().await? {
            Event::End { complete: false } => {
                return Err(self.exchange.context().malformed("a stream that ended before it began"));
            }
            event => event,
        };
        let served_by = self.exchange.served_by();
        let rest = stream::unfold(self, |mut reading| async move {
            let event = reading.step().await?;
            Some((event, reading))
        });
        Ok(UpstreamResponse { served_by, media: None, events: stream::iter([Ok(first)]).chain(rest).boxed() })
    }

    /// Next event, or `None` once the last was delivered.
    async fn step(&mut self) -> Option<Result<Event, UpstreamError>> {
        match self.phase {
            Phase::Open => {
                let event = self.next_event().await;
                if event.is_err() {
                    self.phase = Phase::Over;
                }
                Some(event)
            }
            Phase::Ended => {
                self.phase = Phase::Over;
                let drained = async { while matches!(self.response.chunk().await, Ok(Some(_))) {} };
                let _ = tokio::time::timeout(FAREWELL, drained).await;
                None
            }
            Phase::Over => None,
        }
    }

    async fn next_event(&mut self) -> Result<Event, UpstreamError> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                self.payloads = self.payloads.saturating_add(1);
                self.ended.saw(&chunk);
                return Ok(Event::Chunk(self.calls.mend(chunk, &self.exchange.request.id)));
            }
            let item = self.decoder.next_item().map_err(|error: sse::Error| {
                UpstreamError::retryable(502, "upstream_error", format!("{}: {error}", self.name()))
            })?;
            match item {
                Some(Item::Comment) => {}
                Some(Item::Data(payload)) => {
                    if let Some(event) = self.take_payload(payload)? {
                        return Ok(event);
                    }
                }
                None => {
                    if let Some(end) = self.read().await? {
                        return Ok(end);
                    }
                }
            }
        }
    }

    /// Reads once; an event if that was the end.
    async fn read(&mut self) -> Result<Option<Event>, UpstreamError> {
        let timeouts = self.exchange.settings.timeouts;
        let flows = self.payloads >= PAYLOADS_BEFORE_FLOW;
        let limit = if flows { timeouts.between_chunks } else { self.exchange.first_byte() };
        let read = self.exchange.within(limit, self.last_read, self.response.chunk()).await?;
        self.last_read = Instant::now();
        match read {
            Ok(Some(bytes)) => {
                self.decoder.push(bytes);
                Ok(None)
            }
            Ok(None) => Ok(Some(self.end(Phase::Over))),
            // The content was whole; only the farewell (usage, [DONE]) is lost.
            Err(_) if self.is_whole() => Ok(Some(self.end(Phase::Over))),
            Err(error) => Err(self.exchange.context().broken(&error, self.payloads > 0)),
        }
    }

    fn take_payload(&mut self, payload: Bytes) -> Result<Option<Event>, UpstreamError> {
        let text = payload.trim_ascii();
        if text.is_empty() {
            return Ok(None);
        }
        if text == b"[DONE]" {
            self.ended.said_so = self.payloads > 0;
            return Ok(Some(self.end(Phase::Ended)));
        }
        if scan::may_be_error(text)
            && let Some(error) = self.exchange.context().error_object(text)
        {
            return Err(error);
        }
        if text[0] != b'{' {
            return Err(self.exchange.context().malformed("a stream of something other than JSON"));
        }
        // A line feed between JSON tokens (several `data` lines) would break the framing of whoever sends it on.
        let payload = if text.contains(&b'\n') {
            text.iter().map(|byte| if *byte == b'\n' { b' ' } else { *byte }).collect()
        } else {
            payload
        };
        let exchange = &mut self.exchange;
        let taken = exchange.dialect.payload(payload, &mut self.ready);
        taken.map_err(|what| exchange.context().malformed(what))?;
        Ok(None)
    }

    fn end(&mut self, phase: Phase) -> Event {
        self.phase = phase;
        Event::End { complete: self.is_whole() }
    }

    /// True when each answer that was asked for is whole, or the server says that nothing more comes.
    fn is_whole(&self) -> bool {
        self.ended.said_so || self.ended.all(&self.exchange.request.body)
    }

    fn name(&self) -> &str {
        &self.exchange.settings.name
    }
}
