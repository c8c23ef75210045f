//! When a whole answer would be there: waiting, loading, reading the prompt, writing the answer.
//!
//! The sum is what a host is judged by. Each part comes from what the host says of itself and from what was measured
//! on it; a part that nothing is known of is left out, and a host that was never measured has no forecast.

use crate::balance::load::Load;
use crate::balance::prefix::Prefix;
use crate::profile::Task;
use crate::registry::Offer;
use crate::units::Tokens;

/// Answer length for which completion is predicted when nothing is known of the request.
pub(super) const TYPICAL_OUTPUT: Tokens = Tokens(256);

/// Time to load a model whose size is not known, milliseconds: a few gigabytes from a laptop's disk.
const UNKNOWN_LOAD_MS: f64 = 5_000.0;

/// Time that starting an engine on a model takes beside reading its weights, milliseconds.
const ENGINE_START_MS: f64 = 1_000.0;

/// Bytes of weights read in a millisecond: a solid-state disk.
const BYTES_PER_MS: f64 = 1e6;

/// How much work a request is, as far as it is known before it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Tokens of the prompt; 0 = not known.
    pub prompt: Tokens,
    /// Tokens of the answer to expect of a model of which nothing is known; 0 = the answer is no text.
    pub output: Tokens,
    /// Longest answer that was asked for.
    pub most: Option<Tokens>,
    /// What the prompt wants done.
    pub task: Task,
    /// How the prompt begins.
    pub prefix: Prefix,
}

impl Work {
    /// A request of which nothing is known.
    pub const UNKNOWN: Self = Self {
        prompt: Tokens(0),
        output: TYPICAL_OUTPUT,
        most: None,
        task: Task::Chat,
        prefix: Prefix::UNKNOWN,
    };
}

/// Predicted times of one request on one host, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Forecast {
    /// Until a slot is free.
    pub queue_ms: f64,
    /// Until the model is in memory.
    pub load_ms: f64,
    /// From there to the first token.
    pub prefill_ms: f64,
    /// From there to the last.
    pub decode_ms: f64,
}

impl Forecast {
    /// Predicts `work` on a host, whose `load` was read for it ([`LoadBook::for_work`](super::LoadBook::for_work));
    /// `None` when it was never measured.
    pub fn of(work: Work, offer: &Offer, load: &Load) -> Option<Self> {
        let token_ms = token_ms(offer, load);
        if token_ms.is_none() && load.in_flight > load.waiting {
            // Its first answer is being written: how fast, nobody knows yet.
            return None;
        }
        let decode_ms = load.output.unwrap_or(f64::from(work.output.0)) * token_ms.unwrap_or(0.0);
        let prefill_ms = match load.prefill.filter(|_| work.prompt.0 > 0) {
            // Prompts that are being read share the processor with this one, or come before it.
            Some(line) => {
                let unread = (f64::from(work.prompt.0) - load.cached_tokens).max(0.0);
                line.at(unread + load.pending_tokens) + load.overdue_ms
            }
            None => load.ttft_ms? * f64::from(load.waiting.saturating_add(1)),
        };
        let load_ms = if offer.resident == Some(false) { cold_load_ms(offer) } else { 0.0 };
        let queue_ms = match load.ahead {
            0 => 0.0,
            // Nothing of ours runs there: the requests of other routers are taken to be like this one.
            ahead => load.wait_ms.unwrap_or_else(|| {
                f64::from(ahead) * (prefill_ms + decode_ms) / f64::from(offer.slots.max(1))
            }),
        };
        Some(Self { queue_ms, load_ms, prefill_ms, decode_ms })
    }

    /// Returns the time to the whole answer.
    pub fn total_ms(&self) -> f64 {
        self.queue_ms + self.load_ms + self.prefill_ms + self.decode_ms
    }
}

/// Time per token in the company that the request would have.
fn token_ms(offer: &Offer, load: &Load) -> Option<f64> {
    let others = match offer.slots {
        0 => load.in_flight,
        slots => load.in_flight.min(slots - 1),
    };
    let learnt = load.decode.map(|line| line.at(f64::from(others)));
    learnt.or(load.ms_per_token)
}

fn cold_load_ms(offer: &Offer) -> f64 {
    let read = |bytes: u64| ENGINE_START_MS + bytes as f64 / BYTES_PER_MS;
    offer.model.size_bytes.map_or(UNKNOWN_LOAD_MS, read)
}
