//! Answers to requests about sound: recordings as their bytes come, texts when they are whole, events by payload.
//!
//! Whatever the form, the first event is only told once the answer has truly begun, so that an error before it is one
//! after which another upstream may be asked. Texts are read to their end first, since they are short and a text that
//! breaks off can then still be had elsewhere.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::header;
use memchr::memmem;
use reqwest::Response;
use tokio::time::Instant;

use super::{Exchange, MAX_BODY, scan};
use crate::sound;
use crate::upstream::sse::{Decoder, Item};
use crate::upstream::wire::media_from_wire;
use crate::upstream::{ApiPath, Event, UpstreamError, UpstreamResponse};

/// Longest recording in an answer, bytes: hours of speech, or 25 minutes as raw samples.
const MAX_RECORDING: usize = 256 << 20;

/// Types of the events that end a stream which was told whole.
const LAST: [&[u8]; 2] = [b"\"transcript.text.done\"", b"\"speech.audio.done\""];

impl Exchange {
    /// Reads the answer to a request about sound.
    pub(super) async fn sound(
        self,
        response: Response,
        began: Instant,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let told = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media: Arc<str> =
            told.and_then(media_from_wire).unwrap_or_else(|| "application/octet-stream".into());
        let served_by = self.served_by();
        let is_events = sound::is_events(Some(&media));
        let is_json = media.to_ascii_lowercase().contains("json");
        if !is_events && (is_json || self.request.path != ApiPath::Speech) {
            let body = self.read_body(response, began, MAX_BODY).await?;
            if is_json
                && scan::may_be_error(&body)
                && let Some(error) = self.context().error_object(&body)
            {
                return Err(error);
            }
            if is_json && serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_err() {
                return Err(self.context().malformed("broken JSON"));
            }
            if is_json && self.request.path == ApiPath::Speech {
                return Err(self.context().malformed("a text where a recording was asked for"));
            }
            let events = stream::iter([Ok(Event::Chunk(body)), Ok(Event::End { complete: true })]);
            return Ok(UpstreamResponse { served_by, media: Some(media), events: events.boxed() });
        }
        let mut reading = Reading {
            exchange: self,
            response,
            decoder: is_events.then(Decoder::new),
            said_last: false,
            bytes: 0,
            over: false,
            last_read: began,
        };
        let first = match reading.next_event().await? {
            Event::End { .. } => {
                return Err(reading.exchange.context().malformed("nothing"));
            }
            chunk => chunk,
        };
        let rest = stream::unfold(reading, |mut reading| async move {
            if reading.over {
                return None;
            }
            let event = reading.next_event().await;
            reading.over = !matches!(event, Ok(Event::Chunk(_)));
            Some((event, reading))
        });
        let events = stream::iter([Ok(first)]).chain(rest).boxed();
        Ok(UpstreamResponse { served_by, media: Some(media), events })
    }
}

/// A recording or a stream of events being read.
struct Reading {
    exchange: Exchange,
    response: Response,
    /// `None` = the bytes are the answer.
    decoder: Option<Decoder>,
    said_last: bool,
    bytes: usize,
    over: bool,
    last_read: Instant,
}

impl Reading {
    async fn next_event(&mut self) -> Result<Event, UpstreamError> {
        loop {
            if let Some(payload) = self.payload()? {
                return Ok(Event::Chunk(payload));
            }
            let Some(bytes) = self.read().await? else {
                return Ok(Event::End { complete: self.decoder.is_none() || self.said_last });
            };
            match &mut self.decoder {
                Some(decoder) => decoder.push(bytes),
                None if bytes.is_empty() => {}
                None => return Ok(Event::Chunk(bytes)),
            }
        }
    }

    /// Returns the next payload of what was read; `None` if more has to be read.
    fn payload(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let Some(decoder) = &mut self.decoder else { return Ok(None) };
        let context = self.exchange.context();
        loop {
            let item = decoder.next_item().map_err(|error| context.malformed(&error.to_string()))?;
            let payload = match item {
                None => return Ok(None),
                Some(Item::Comment) => continue,
                Some(Item::Data(payload)) => payload,
            };
            let text = payload.trim_ascii();
            if text.is_empty() {
                continue;
            }
            if text == b"[DONE]" {
                self.said_last = true;
                return Ok(Some(payload));
            }
            if scan::may_be_error(text)
                && let Some(error) = context.error_object(text)
            {
                return Err(error);
            }
            if text[0] != b'{' || text.contains(&b'\n') {
                return Err(context.malformed("a stream of something other than JSON"));
            }
            self.said_last |= LAST.iter().any(|last| memmem::find(text, last).is_some());
            return Ok(Some(payload));
        }
    }

    async fn read(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let timeouts = self.exchange.settings.timeouts;
        let has_begun = self.bytes > 0;
        let limit = if has_begun { timeouts.between_chunks } else { timeouts.first_byte };
        let read = self.exchange.within(limit, self.last_read, self.response.chunk()).await?;
        self.last_read = Instant::now();
        match read {
            Ok(Some(bytes)) => {
                self.bytes = self.bytes.saturating_add(bytes.len());
                if self.bytes > MAX_RECORDING {
                    return Err(self.exchange.context().malformed("more than 256 MiB"));
                }
                Ok(Some(bytes))
            }
            Ok(None) => Ok(None),
            Err(_) if self.said_last => Ok(None),
            Err(error) => Err(self.exchange.context().broken(&error, has_begun)),
        }
    }
}
