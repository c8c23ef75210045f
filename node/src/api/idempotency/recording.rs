//! One answer while it is told: pieces in, any number of readers out, each from the start.
//!
//! An answer that outgrows its share of the memory goes on for those who read it already, through a window that the
//! slowest of them holds up; nobody else may join it.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::response::Parts;
use tokio::sync::watch;
use tokio::time::Instant;

use super::ApiError;
use crate::api::unread::Unread;

/// Bytes that an answer too large to keep may be ahead of its slowest reader.
const WINDOW: usize = 256 * 1024;

/// An answer and who reads it.
#[derive(Debug)]
pub(super) struct Recording {
    state: Mutex<State>,
    /// Counts changes, for whoever waits for one.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    head: Option<Parts>,
    /// Pieces from number `first` on.
    pieces: VecDeque<Bytes>,
    first: usize,
    bytes: usize,
    end: Option<End>,
    /// Nobody came back to it before the end.
    is_abandoned: bool,
    /// Pieces are dropped once every reader has them.
    is_window: bool,
    /// Next piece of each reader.
    readers: BTreeMap<u64, usize>,
    next_reader: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// All of it is there, whatever it says.
    Whole,
    /// It broke off.
    Broken,
}

impl Recording {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changes: watch::Sender::new(0) })
    }

    /// Adds a reader; `None` when the start is gone, or the work is being given up.
    pub(super) fn read(self: &Arc<Self>) -> Option<Reader> {
        let mut state = self.lock();
        if state.is_window || state.is_abandoned || state.end == Some(End::Broken) {
            return None;
        }
        let id = state.next_reader;
        state.next_reader += 1;
        state.readers.insert(id, 0);
        drop(state);
        self.changed();
        Some(Reader { recording: self.clone(), id })
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.lock().is_abandoned
    }

    /// Waits until nobody has read it for `grace` and gives it up; at once where nobody could join any more.
    pub(super) async fn deserted(&self, grace: Duration) {
        let mut changes = self.changes.subscribe();
        let mut until: Option<Instant> = None;
        loop {
            changes.borrow_and_update();
            {
                // Under the lock, so that nobody joins what is being given up.
                let mut state = self.lock();
                let now = Instant::now();
                until = state.is_deserted().then(|| until.unwrap_or(now + grace));
                if until.is_some_and(|until| until <= now || state.is_window) {
                    state.is_abandoned = true;
                    return;
                }
            }
            // The sender lives as long as the recording, which is borrowed here.
            match until {
                Some(until) => drop(tokio::time::timeout_at(until, changes.changed()).await),
                None => drop(changes.changed().await),
            }
        }
    }

    pub(super) fn is_window(&self) -> bool {
        self.lock().is_window
    }

    pub(super) fn head(&self, head: Parts) {
        self.lock().head = Some(head);
        self.changed();
    }

    /// Adds a piece.
    pub(super) fn push(&self, piece: Bytes) {
        let mut state = self.lock();
        state.bytes += piece.len();
        state.pieces.push_back(piece);
        drop(state);
        self.changed();
    }

    /// Gives up keeping the start.
    pub(super) fn slide(&self) {
        self.lock().is_window = true;
    }

    /// Waits until the slowest reader of a window is near enough.
    pub(super) async fn room(&self) {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            {
                let mut state = self.lock();
                state.trim();
                if !state.is_window || state.bytes <= WINDOW {
                    return;
                }
            }
            // The sender lives as long as the recording, which is borrowed here.
            let _ = changes.changed().await;
        }
    }

    /// Ends the answer; the first end stands.
    pub(super) fn end(&self, whole: bool) {
        let end = if whole { End::Whole } else { End::Broken };
        self.lock().end.get_or_insert(end);
        self.changed();
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Lists and numbers: a poisoned lock still holds valid ones.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_deserted(&self) -> bool {
        self.readers.is_empty() && self.end.is_none()
    }

    fn trim(&mut self) {
        let slowest = self.readers.values().copied().min();
        while self.is_window && slowest.is_some_and(|at| at > self.first) {
            let Some(piece) = self.pieces.pop_front() else { break };
            self.bytes -= piece.len();
            self.first += 1;
        }
    }
}

/// One reader of an answer; dropped before the end as the last one, it leaves the work to its time of grace.
#[derive(Debug)]
pub(super) struct Reader {
    recording: Arc<Recording>,
    id: u64,
}

impl Reader {
    pub(super) fn has_ended(&self) -> bool {
        self.recording.lock().end.is_some()
    }

    /// Waits for the head and returns the answer as a response, which is lost to whoever reads none of it for
    /// `write_idle`.
    ///
    /// # Errors
    /// The work ended without one.
    pub(super) async fn respond(self, write_idle: Duration) -> Result<Response, ApiError> {
        let mut changes = self.recording.changes.subscribe();
        let head = loop {
            changes.borrow_and_update();
            {
                let state = self.recording.lock();
                if let Some(head) = &state.head {
                    break head.clone();
                }
                if state.end.is_some() {
                    let message = "the node failed on this request; its log says more";
                    return Err(ApiError::new(500, "internal_error", message));
                }
            }
            // The sender lives as long as the recording, which this reader holds.
            let _ = changes.changed().await;
        };
        let pieces = stream::unfold(self, |mut reader| async move {
            let piece = reader.next().await?;
            Some((piece, reader))
        });
        Ok(Response::from_parts(head, Body::from_stream(Unread::limited(Box::pin(pieces), write_idle))))
    }

    /// Returns the next piece; an error for an answer that broke off, which then must not look whole.
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        let mut changes = self.recording.changes.subscribe();
        loop {
            changes.borrow_and_update();
            match self.step() {
                Step::Piece(piece) => return Some(Ok(piece)),
                Step::Broken => return Some(Err(io::Error::other("the answer broke off"))),
                Step::Over => return None,
                Step::Wait => {
                    // The sender lives as long as the recording, which this reader holds.
                    let _ = changes.changed().await;
                }
            }
        }
    }

    fn step(&mut self) -> Step {
        let mut state = self.recording.lock();
        let Some(at) = state.readers.get(&self.id).copied() else { return Step::Over };
        let found = at.checked_sub(state.first).and_then(|at| state.pieces.get(at)).cloned();
        match (found, state.end) {
            (Some(piece), _) => {
                state.readers.insert(self.id, at + 1);
                let slides = state.is_window;
                drop(state);
                if slides {
                    self.recording.changed();
                }
                Step::Piece(piece)
            }
            (None, Some(End::Whole)) => Step::Over,
            (None, Some(End::Broken)) => {
                // Once; after it the stream is over.
                state.readers.remove(&self.id);
                Step::Broken
            }
            (None, None) => Step::Wait,
        }
    }
}

enum Step {
    Piece(Bytes),
    Broken,
    Over,
    Wait,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.recording.lock().readers.remove(&self.id);
        self.recording.changed();
    }
}
