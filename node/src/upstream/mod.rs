//! Whatever a node forwards an inference to: a device engine, another router, a provider.
//!
//! Each is a `tower::Service` from [`UpstreamRequest`] to [`UpstreamResponse`], so that the pipeline has one
//! code path for a device on this host, a device behind a tunnel, and a device of another router. Dropping
//! the answer (or the future that will produce it) cancels the work on every one of them.

pub mod http_client;
pub mod ollama;
pub mod openai_http;
pub mod provider;
pub mod pulse;
pub mod reply;
pub mod sse;
pub mod tunnel;
pub mod wire;

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use shoal_routing::DataClass;
use tokio::time::Instant;

use self::pulse::Commitment;
use crate::cloud::purse::Purse;
use crate::egress::EgressMark;

/// Tokens of a prompt that are read within the wait for a first byte as it is set.
const USUAL_PROMPT: u64 = 4096;
/// Time that each further one adds: what a phone takes that reads 40 in a second.
const READING: Duration = Duration::from_millis(25);
/// Longest addition; images count as text here, and would wait for days.
const MAX_READING: Duration = Duration::from_secs(1800);
/// Bytes of a body that are taken for a token, where nobody has counted.
const BYTES_PER_TOKEN: u64 = 4;

/// Returns what a long prompt adds to the wait for the first byte.
pub fn reading_time(prompt_tokens: u64) -> Duration {
    let more = prompt_tokens.saturating_sub(USUAL_PROMPT).min(u64::from(u32::MAX));
    READING.saturating_mul(more as u32).min(MAX_READING)
}

/// As [`reading_time`], of a body that nobody has read.
pub fn reading_time_of(body: &Bytes) -> Duration {
    reading_time(body.len() as u64 / BYTES_PER_TOKEN)
}

/// API path that an inference body belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ApiPath {
    /// `/v1/chat/completions`
    ChatCompletions,
    /// `/v1/completions`
    Completions,
    /// `/v1/embeddings`
    Embeddings,
    /// `/v1/audio/transcriptions`
    Transcriptions,
    /// `/v1/audio/translations`
    Translations,
    /// `/v1/audio/speech`
    Speech,
}

impl ApiPath {
    /// Returns the path as clients type it.
    pub fn as_str(self) -> &'static str {
        match self {
            ApiPath::ChatCompletions => "/v1/chat/completions",
            ApiPath::Completions => "/v1/completions",
            ApiPath::Embeddings => "/v1/embeddings",
            ApiPath::Transcriptions => "/v1/audio/transcriptions",
            ApiPath::Translations => "/v1/audio/translations",
            ApiPath::Speech => "/v1/audio/speech",
        }
    }

    /// True for what takes or makes recordings: such an answer may be of any media type.
    pub fn is_sound(self) -> bool {
        match self {
            ApiPath::Transcriptions | ApiPath::Translations | ApiPath::Speech => true,
            ApiPath::ChatCompletions | ApiPath::Completions | ApiPath::Embeddings => false,
        }
    }
}

impl FromStr for ApiPath {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        match text {
            "/v1/chat/completions" => Ok(ApiPath::ChatCompletions),
            "/v1/completions" => Ok(ApiPath::Completions),
            "/v1/embeddings" => Ok(ApiPath::Embeddings),
            "/v1/audio/transcriptions" => Ok(ApiPath::Transcriptions),
            "/v1/audio/translations" => Ok(ApiPath::Translations),
            "/v1/audio/speech" => Ok(ApiPath::Speech),
            _ => Err(UpstreamError::new(404, "not_found", "this API path is not served here")),
        }
    }
}

/// One inference, as handed to whatever will run it.
#[derive(Clone)]
pub struct UpstreamRequest {
    /// Id of the client's request, `req_<node8>_<uuidv7>`.
    pub id: Arc<str>,
    /// Which API the body speaks.
    pub path: ApiPath,
    /// Served model name; the body carries the same.
    pub model: Arc<str>,
    /// OpenAI JSON, or a form where `media` says so.
    pub body: Bytes,
    /// Media type of the body, with the boundary of a form; `None` = JSON.
    pub media: Option<Arc<str>>,
    /// True when the answer is wanted as a stream.
    pub stream: bool,
    /// When the whole request gives up; `None` = no total cap.
    pub deadline: Option<Instant>,
    /// How far the content may travel.
    pub data_class: DataClass,
    /// How many routers have forwarded it.
    pub hop: u32,
    /// How many meshes it came through before this one.
    pub meshes: u32,
    /// Attempts that may still be made, this one included.
    pub attempts_left: u32,
    /// Device that must serve, by id.
    pub device: Option<Arc<str>>,
    /// Written by egress when the request leaves the mesh.
    pub egress: EgressMark,
    /// Whether another host may still take over.
    pub commitment: Commitment,
    /// Money of the key that asks, where it has a budget; what a provider bills is taken from it, too.
    pub payer: Option<Purse>,
}

impl fmt::Debug for UpstreamRequest {
    /// Leaves the body out: prompts are never logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamRequest")
            .field("id", &self.id)
            .field("path", &self.path.as_str())
            .field("model", &self.model)
            .field("bytes", &self.body.len())
            .field("stream", &self.stream)
            .field("hop", &self.hop)
            .finish_non_exhaustive()
    }
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedBy {
    /// Display name of the device or provider.
    pub upstream: String,
    /// Its id.
    pub upstream_id: String,
    /// Model that runs.
    pub model: String,
}

/// An answer that has begun.
pub struct UpstreamResponse {
    /// Who answers.
    pub served_by: ServedBy,
    /// Media type of an answer to a request about sound; `None` = JSON, or a stream of it.
    pub media: Option<Arc<str>>,
    /// The answer as it comes; see [`Event`]. Dropping it cancels the work.
    pub events: BoxStream<'static, Result<Event, UpstreamError>>,
}

impl fmt::Debug for UpstreamResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamResponse").field("served_by", &self.served_by).finish_non_exhaustive()
    }
}

/// One step of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Streamed: the bytes of one SSE `data:` payload, never `[DONE]`. Not streamed: JSON, maybe in parts. Of an answer
    /// to a request about sound: a payload, `[DONE]` included, where its media type is that of events; else bytes.
    Chunk(Bytes),
    /// The last event of a good answer.
    End {
        /// False when the upstream stopped without a finish reason or `[DONE]`: the answer was cut.
        complete: bool,
    },
}

/// Why an upstream gave no (further) answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct UpstreamError {
    /// HTTP status that fits the cause.
    pub status: u16,
    /// Machine-readable cause: `upstream_error`, `overloaded`, `model_not_found`, `upstream_timeout`, ...
    pub code: Cow<'static, str>,
    /// Sentence for the client; holds no prompt text and no key.
    pub message: String,
    /// True when another upstream may succeed.
    pub retryable: bool,
    /// When this upstream may be asked again.
    pub retry_after: Option<Duration>,
    /// True when the request may have arrived and nothing was said of it: whoever bills may bill it.
    pub unanswered: bool,
    /// True when the host fell silent in the middle of it: the way to it may be at fault, or a radio that sleeps.
    pub unheard: bool,
}

impl UpstreamError {
    /// Makes an error that no other upstream would answer better.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code: Cow::Borrowed(code),
            message: message.into(),
            retryable: false,
            retry_after: None,
            unanswered: false,
            unheard: false,
        }
    }

    /// Says that the request may have arrived although no answer came.
    pub fn without_answer(self) -> Self {
        Self { unanswered: true, ..self }
    }

    /// Makes an error after which another upstream may be tried.
    pub fn retryable(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { retryable: true, ..Self::new(status, code, message) }
    }
}

/// Future of an upstream's answer; dropping it cancels.
pub type UpstreamFuture = Pin<Box<dyn Future<Output = Result<UpstreamResponse, UpstreamError>> + Send>>;

/// Any upstream, its kind erased.
pub type BoxUpstream = tower::util::BoxCloneSyncService<UpstreamRequest, UpstreamResponse, UpstreamError>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_prompts_are_given_their_time_within_a_bound() {
        assert_eq!(reading_time(4096), Duration::ZERO);
        assert_eq!(reading_time(4096 + 40_000), Duration::from_secs(1000));
        assert_eq!(reading_time(u64::MAX), MAX_READING);
        assert_eq!(reading_time_of(&Bytes::from(vec![b' '; 20_000])), READING * 904);
    }
}
