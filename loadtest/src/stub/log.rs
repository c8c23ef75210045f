//! What a stub saw: one entry a request, and how it ended.
//!
//! The entry is a guard: dropped without an end, the client went away. That is exactly when the HTTP server
//! drops a handler or a body, so no path can forget to say so.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;

/// Requests kept; the oldest go first. Counts go on for ever.
const MAX_ENTRIES: usize = 10_000;

/// How far a request had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waits for a slot.
    Queued,
    /// Has a slot, no token yet.
    Prefill,
    /// Tokens flow.
    Decode,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Goes on.
    Open,
    /// The whole answer was handed to the connection.
    Completed,
    /// The request was refused: bad input or a scripted status.
    Refused,
    /// A scripted fault ended it.
    Fault,
    /// The client went away first.
    ClientGone,
}

/// One request.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Number of the request, from 1.
    pub seq: u64,
    /// Path.
    pub path: &'static str,
    /// Model asked for.
    pub model: String,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// `tag` of the script.
    pub tag: Option<String>,
    /// Text of the last user message, if the script shows it.
    pub prompt: Option<String>,
    /// Top-level fields of the body, sorted: what reached the upstream.
    pub fields: Vec<String>,
    /// How far it came.
    pub phase: Phase,
    /// How it ended.
    pub end: End,
    /// Tokens handed to the connection.
    pub tokens_sent: u64,
    /// HTTP status answered, 0 while open.
    pub status: u16,
}

/// Sums over all requests.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Counts {
    /// All requests seen.
    pub requests: u64,
    /// Requests that go on.
    pub open: u64,
    /// Most requests open at once.
    pub peak_open: u64,
    /// Ended as [`End::Completed`].
    pub completed: u64,
    /// Ended as [`End::Refused`].
    pub refused: u64,
    /// Ended as [`End::Fault`].
    pub fault: u64,
    /// Ended as [`End::ClientGone`].
    pub client_gone: u64,
}

/// Everything, as `GET /stub/log` answers it.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// Sums.
    pub counts: Counts,
    /// The latest requests, oldest first.
    pub requests: Vec<Entry>,
}

#[derive(Debug, Default)]
struct State {
    counts: Counts,
    entries: VecDeque<Entry>,
    next_seq: u64,
}

/// The log of one stub.
#[derive(Debug, Default)]
pub struct Log {
    state: Mutex<State>,
}

impl Log {
    /// A copy of everything.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        Snapshot { counts: state.counts, requests: state.entries.iter().cloned().collect() }
    }

    /// Requests of a tag, oldest first.
    pub fn tagged(&self, tag: &str) -> Vec<Entry> {
        self.lock().entries.iter().filter(|entry| entry.tag.as_deref() == Some(tag)).cloned().collect()
    }

    /// Forgets finished requests and sums.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        state.entries.retain(|entry| entry.end == End::Open);
        let open = state.entries.len() as u64;
        state.counts = Counts { requests: open, open, peak_open: open, ..Counts::default() };
    }

    pub(super) fn open(self: &Arc<Self>, mut entry: Entry) -> Guard {
        let mut state = self.lock();
        state.next_seq += 1;
        let seq = state.next_seq;
        entry.seq = seq;
        state.counts.requests += 1;
        state.counts.open += 1;
        state.counts.peak_open = state.counts.peak_open.max(state.counts.open);
        if state.entries.len() >= MAX_ENTRIES {
            state.entries.pop_front();
        }
        state.entries.push_back(entry);
        drop(state);
        Guard { log: Arc::clone(self), seq, ended: false }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain values: a panic elsewhere cannot leave them half-changed in a way that matters to a log.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, seq: u64, change: impl FnOnce(&mut Entry)) {
        let mut state = self.lock();
        let at = state.entries.binary_search_by_key(&seq, |entry| entry.seq);
        if let Some(entry) = at.ok().and_then(|at| state.entries.get_mut(at)) {
            change(entry);
        }
    }

    fn end(&self, seq: u64, end: End, status: u16) {
        self.update(seq, |entry| {
            entry.end = end;
            entry.status = status;
        });
        let mut state = self.lock();
        state.counts.open = state.counts.open.saturating_sub(1);
        match end {
            End::Open => {}
            End::Completed => state.counts.completed += 1,
            End::Refused => state.counts.refused += 1,
            End::Fault => state.counts.fault += 1,
            End::ClientGone => state.counts.client_gone += 1,
        }
    }
}

/// An open request; dropped without [`Guard::end`], its client has gone.
#[derive(Debug)]
pub(super) struct Guard {
    log: Arc<Log>,
    seq: u64,
    ended: bool,
}

impl Guard {
    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    pub(super) fn phase(&self, phase: Phase) {
        self.log.update(self.seq, |entry| entry.phase = phase);
    }

    pub(super) fn sent(&self, tokens: u64) {
        self.log.update(self.seq, |entry| entry.tokens_sent = tokens);
    }

    pub(super) fn end(&mut self, end: End, status: u16) {
        if !self.ended {
            self.ended = true;
            self.log.end(self.seq, end, status);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.end(End::ClientGone, 0);
    }
}
