//! How an API tells an answer: the last step before the wire, and the only one in which the APIs differ.
//!
//! Behind the edge every request is a chat completion. A voice is shown what an OpenAI client would be shown (payload
//! by payload, metadata in its place) and says it in its API's own events, so that routing, escalation, cancelling and
//! the honest end are the same behind all of them. A voice is a pure translation: it reads no clock and owns no socket.

use std::collections::VecDeque;

use bytes::Bytes;
use http::HeaderValue;
use shoal_routing::{DataClass, Tokens};

use super::error::ApiError;
use super::idempotency::Verdict;
use super::sse;

/// Says one answer in the words of one API.
pub trait Voice: Send {
    /// Learns of the request that is to be answered, before anything is told: its id, the tokens of its prompt as
    /// counted here, and the class under which it travels, which no word of what was said may ever fall below.
    fn accepted(&mut self, _request_id: &str, _prompt_tokens: Tokens, _class: DataClass) {}

    /// Returns a whole answer. `answer` is the body of a chat completion, with our metadata in it.
    ///
    /// # Errors
    /// The answer is none that this API can tell.
    fn whole(&mut self, answer: Bytes) -> Result<Bytes, ApiError>;

    /// Adds the frames of one payload of a stream, the JSON of a chat completion's chunk.
    fn payload(&mut self, payload: &[u8], out: &mut VecDeque<Bytes>);

    /// Adds the frames that end a stream which was told whole.
    fn end(&mut self, out: &mut VecDeque<Bytes>);

    /// Adds the frames of an error that ends a stream; after it nothing may look like a good end.
    fn fail(&mut self, error: &ApiError, out: &mut VecDeque<Bytes>);

    /// Returns what keeps a silent connection open without a client seeing it; `None` where the API has nothing.
    fn keep_alive(&self) -> Option<Bytes> {
        Some(sse::KEEP_ALIVE)
    }

    /// Returns the media type of a stream.
    fn stream_type(&self) -> HeaderValue {
        HeaderValue::from_static("text/event-stream")
    }
}

/// Another voice that also notes whether a stream ended with an error.
pub(super) struct Noting {
    pub(super) voice: Box<dyn Voice>,
    pub(super) verdict: Verdict,
}

impl Voice for Noting {
    fn accepted(&mut self, request_id: &str, prompt_tokens: Tokens, class: DataClass) {
        self.voice.accepted(request_id, prompt_tokens, class);
    }

    fn whole(&mut self, answer: Bytes) -> Result<Bytes, ApiError> {
        self.voice.whole(answer)
    }

    fn payload(&mut self, payload: &[u8], out: &mut VecDeque<Bytes>) {
        self.voice.payload(payload, out);
    }

    fn end(&mut self, out: &mut VecDeque<Bytes>) {
        self.voice.end(out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut VecDeque<Bytes>) {
        self.verdict.failed();
        self.voice.fail(error, out);
    }

    fn keep_alive(&self) -> Option<Bytes> {
        self.voice.keep_alive()
    }

    fn stream_type(&self) -> HeaderValue {
        self.voice.stream_type()
    }
}

/// OpenAI's own API: everything passes as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenAi;

impl Voice for OpenAi {
    fn whole(&mut self, answer: Bytes) -> Result<Bytes, ApiError> {
        Ok(answer)
    }

    fn payload(&mut self, payload: &[u8], out: &mut VecDeque<Bytes>) {
        out.push_back(sse::frame(payload));
    }

    fn end(&mut self, out: &mut VecDeque<Bytes>) {
        out.push_back(sse::DONE);
    }

    fn fail(&mut self, error: &ApiError, out: &mut VecDeque<Bytes>) {
        out.push_back(sse::frame(&error.body()));
    }
}
