//! Which answers are kept: a bounded table by API key and `Idempotency-Key`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::response::Parts;
use tokio::time::Instant;

use super::IdempotencySettings;
use super::recording::{Reader, Recording};

/// Parts of the memory that one answer may fill.
const SHARE: usize = 4;
/// What an entry takes beside its answer's pieces: headers, keys, bookkeeping.
const ENTRY_BYTES: usize = 2048;

/// Whose key, and its text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) owner: Arc<str>,
    pub(super) name: String,
}

/// What becomes of a request with a key.
pub(super) enum Claim {
    /// It is the first: run it.
    Run(Lease, Reader),
    /// Another one runs or ran: read its answer.
    Share(Reader),
    /// The key belongs to another request.
    Different,
    /// Another one runs, and its start is not kept.
    TooLarge,
    /// No place is free, since everything is under way.
    Full,
}

/// The table; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    settings: IdempotencySettings,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    entries: BTreeMap<Place, Entry>,
    bytes: usize,
    next: u64,
    /// A task waits for the time of the oldest answer to be over.
    is_watched: bool,
}

#[derive(Debug)]
struct Entry {
    /// Tells it from a later one at the same place.
    id: u64,
    hash: [u8; 32],
    recording: Arc<Recording>,
    bytes: usize,
    /// When it ended, and in which order; `None` while it runs.
    ended: Option<(Instant, u64)>,
}

impl Ledger {
    pub(super) fn new(settings: IdempotencySettings) -> Self {
        Self { settings, table: Arc::default() }
    }

    pub(super) fn is_off(&self) -> bool {
        self.settings.entries == 0
    }

    /// Finds the answer at a place, or makes room for it.
    pub(super) fn claim(&self, place: Place, hash: [u8; 32]) -> Claim {
        let mut table = self.lock();
        if let Some(entry) = table.entries.get(&place) {
            if entry.hash != hash {
                return Claim::Different;
            }
            if let Some(reader) = entry.recording.read() {
                return Claim::Share(reader);
            }
            if entry.recording.is_window() && !entry.recording.is_abandoned() {
                return Claim::TooLarge;
            }
            table.remove(&place);
        }
        while table.entries.len() >= self.settings.entries {
            if !table.forget_oldest() {
                return Claim::Full;
            }
        }
        let id = table.number();
        let recording = Recording::new();
        let entry = Entry { id, hash, recording: recording.clone(), bytes: 0, ended: None };
        table.entries.insert(place.clone(), entry);
        // Before anybody else can join, and give the work up by leaving again.
        let reader = recording.read().expect("nothing was recorded yet");
        drop(table);
        let lease = Lease { ledger: self.clone(), place, id, recording };
        lease.reserve(ENTRY_BYTES);
        Claim::Run(lease, reader)
    }

    /// Forgets answers whose time is over, until none is left that has ended.
    async fn watch(&self) {
        loop {
            let next = {
                let mut table = self.lock();
                let next = table.forget_expired(Instant::now(), self.settings.keep);
                table.is_watched = next.is_some();
                next
            };
            let Some(next) = next else { return };
            tokio::time::sleep_until(next).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Lists and numbers: a poisoned lock still holds valid ones.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize) {
        let table = self.lock();
        (table.entries.len(), table.bytes)
    }
}

impl Table {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn remove(&mut self, place: &Place) {
        if let Some(entry) = self.entries.remove(place) {
            self.bytes -= entry.bytes;
        }
    }

    /// The answer that ended first.
    fn oldest(&self) -> Option<(Instant, Place)> {
        let ended = self.entries.iter().filter_map(|(place, entry)| Some((entry.ended?, place)));
        ended.min_by_key(|(at, _)| *at).map(|((at, _), place)| (at, place.clone()))
    }

    /// Forgets the answer that ended first; false when none has ended.
    fn forget_oldest(&mut self) -> bool {
        let Some((_, place)) = self.oldest() else { return false };
        self.remove(&place);
        true
    }

    /// Forgets what ended longer ago than `keep`, and says when the next one's time is over.
    fn forget_expired(&mut self, now: Instant, keep: Duration) -> Option<Instant> {
        while let Some((at, place)) = self.oldest() {
            if at + keep > now {
                return Some(at + keep);
            }
            self.remove(&place);
        }
        None
    }
}

/// The right and duty to record one answer. Dropped before [`keep`](Self::keep), the entry goes and readers see an
/// answer that broke off, unless it has ended.
pub(super) struct Lease {
    ledger: Ledger,
    place: Place,
    id: u64,
    recording: Arc<Recording>,
}

impl Lease {
    /// Waits until nobody has read the answer for the time of grace, and gives it up.
    pub(super) async fn deserted(&self) {
        self.recording.deserted(self.ledger.settings.grace).await;
    }

    pub(super) fn head(&self, head: Parts) {
        self.recording.head(head);
    }

    /// Records a piece; waits for slow readers once the answer is too large to be kept.
    pub(super) async fn piece(&self, piece: Bytes) {
        if !self.recording.is_window() && !self.reserve(piece.len()) {
            self.recording.slide();
        }
        self.recording.push(piece);
        self.recording.room().await;
    }

    /// Says that all of the answer is recorded.
    pub(super) fn end(&self) {
        self.recording.end(true);
    }

    /// Keeps the answer for its time, or until its place is needed. One of all tasks that call this stays to watch the
    /// time, so that an answer kept costs no task of its own.
    pub(super) async fn keep(self) {
        let ledger = {
            let mut table = self.ledger.lock();
            let order = table.number();
            match table.entries.get_mut(&self.place).filter(|entry| entry.id == self.id) {
                Some(entry) if !self.recording.is_window() => entry.ended = Some((Instant::now(), order)),
                _ => return,
            }
            if std::mem::replace(&mut table.is_watched, true) {
                return;
            }
            self.ledger.clone()
        };
        drop(self);
        ledger.watch().await;
    }

    /// Takes bytes of the memory, at the cost of answers that ended; false when the answer may have no more.
    fn reserve(&self, bytes: usize) -> bool {
        let mut table = self.ledger.lock();
        let limit = self.ledger.settings.bytes;
        let Some(own) = table.entries.get(&self.place).filter(|entry| entry.id == self.id) else {
            return false;
        };
        let mut fits = own.bytes + bytes <= limit / SHARE;
        while fits && table.bytes + bytes > limit {
            fits = table.forget_oldest();
        }
        let Some(own) = table.entries.get_mut(&self.place) else { return false };
        if fits {
            own.bytes += bytes;
            table.bytes += bytes;
        } else {
            let given_up = std::mem::take(&mut own.bytes);
            table.bytes -= given_up;
        }
        fits
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.recording.end(false);
        let mut table = self.ledger.lock();
        let is_open = |entry: &Entry| entry.id == self.id && entry.ended.is_none();
        if table.entries.get(&self.place).is_some_and(is_open) {
            table.remove(&self.place);
        }
    }
}
