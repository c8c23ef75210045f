//! How much of an answer a voice keeps while it tells it: a host that never ends must not fill this node's memory.

use std::collections::BTreeSet;

use super::chat_chunk::{CallPart, Chunk};
use super::error::ApiError;

/// Most bytes of one answer, as many as of one that is not streamed.
const MAX_BYTES: usize = 64 << 20;
/// Most calls of tools in one answer; models make a handful.
const MAX_CALLS: usize = 128;

/// What was kept of one answer so far.
#[derive(Debug, Default)]
pub(super) struct Kept {
    bytes: usize,
    calls: BTreeSet<usize>,
}

impl Kept {
    /// Counts all that a chunk says.
    ///
    /// # Errors
    /// The answer is too large: the upstream is at fault (502).
    pub(super) fn chunk(&mut self, chunk: &Chunk) -> Result<(), ApiError> {
        let logprobs: usize = chunk.logprobs.iter().map(|token| token.get().len()).sum();
        self.bytes += chunk.reasoning.len() + chunk.text.len() + chunk.refusal.len() + logprobs;
        self.calls(&chunk.calls)
    }

    /// Counts pieces of calls alone.
    ///
    /// # Errors
    /// As for [`chunk`](Self::chunk).
    pub(super) fn calls(&mut self, parts: &[CallPart]) -> Result<(), ApiError> {
        for part in parts {
            self.bytes += part.arguments.len();
            self.bytes += [&part.id, &part.name].into_iter().flatten().map(String::len).sum::<usize>();
            self.calls.insert(part.index);
            if self.calls.len() > MAX_CALLS {
                return Err(too_large("calls more than 128 tools"));
            }
        }
        if self.bytes > MAX_BYTES { Err(too_large("is larger than 64 MiB")) } else { Ok(()) }
    }
}

/// The error of an answer that is more than is kept.
pub(super) fn too_large(how: &str) -> ApiError {
    ApiError::new(502, "upstream_error", format!("the device's answer {how}; it was stopped"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(index: usize, arguments: &str) -> CallPart {
        CallPart { index, arguments: arguments.into(), ..CallPart::default() }
    }

    #[test]
    fn calls_are_counted_once_each() {
        let mut kept = Kept::default();
        for index in (0..MAX_CALLS).chain(0..MAX_CALLS) {
            kept.calls(&[part(index, "x")]).unwrap();
        }
        assert_eq!(kept.calls(&[part(MAX_CALLS, "")]).unwrap_err().status, 502);
    }

    #[test]
    fn bytes_are_counted_wherever_they_are() {
        let half = "x".repeat(MAX_BYTES / 2);
        let mut kept = Kept::default();
        kept.chunk(&Chunk { text: half.clone(), ..Chunk::default() }).unwrap();
        kept.chunk(&Chunk { calls: vec![part(0, &half)], ..Chunk::default() }).unwrap();
        assert_eq!(kept.chunk(&Chunk { reasoning: "x".into(), ..Chunk::default() }).unwrap_err().status, 502);
    }
}
