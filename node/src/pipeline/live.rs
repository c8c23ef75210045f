//! Requests in progress, as people may look at them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::{RequestRecord, unix_ms};

/// Requests in progress, for `shoal ps`.
///
/// By a running number: two attempts of another router may bring the same request here twice.
#[derive(Debug, Clone, Default)]
pub struct Live(Arc<Mutex<Running>>);

#[derive(Debug, Default)]
struct Running {
    next: u64,
    records: BTreeMap<u64, RequestRecord>,
}

impl Live {
    /// Returns the records of all requests in progress, oldest first.
    pub fn list(&self) -> Vec<RequestRecord> {
        let now = unix_ms();
        self.lock().records.values().map(|record| running(record, now)).collect()
    }

    /// Returns the number of requests in progress.
    pub fn len(&self) -> usize {
        self.lock().records.len()
    }

    /// Returns true when nothing is in progress.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns one record.
    pub fn find(&self, id: &str) -> Option<RequestRecord> {
        self.lock().records.values().find(|r| r.id == id).map(|record| running(record, unix_ms()))
    }

    pub(super) fn insert(&self, record: RequestRecord) -> u64 {
        let mut running = self.lock();
        let number = running.next;
        running.next += 1;
        running.records.insert(number, record);
        number
    }

    /// Shows a newer state of a request.
    pub(super) fn update(&self, number: u64, record: &RequestRecord) {
        if let Some(shown) = self.lock().records.get_mut(&number) {
            shown.clone_from(record);
        }
    }

    pub(super) fn remove(&self, number: u64) {
        self.lock().records.remove(&number);
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a request that runs still is shown as having ended.
pub const IN_PROGRESS: &str = "in progress";

/// A record as it is shown while its request runs.
fn running(record: &RequestRecord, now_ms: u64) -> RequestRecord {
    RequestRecord {
        outcome: IN_PROGRESS.into(),
        duration_ms: now_ms.saturating_sub(record.started_ms),
        ..record.clone()
    }
}
