//! Responses that clients may go on from, sealed by whoever hands them in.
//!
//! They wait in memory for the disk, so that an answer's end does not; the next request finds them in either place.
//! Bounded three ways: by age, by number and by size, the oldest go first.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Error, Store, unix_ms};
use crate::tasks::{self, TaskKind};

/// Largest response with its conversation, sealed; what is larger is not kept. A control message carries it whole.
pub const MAX_RESPONSE_BYTES: usize = 3 << 20;
/// Most responses kept.
const MAX_RESPONSES: i64 = 10_000;
/// Most bytes of responses kept.
const MAX_BYTES: i64 = 256 << 20;
/// Most bytes that may wait for the disk; what comes then is not kept.
const MAX_WAITING_BYTES: usize = 32 << 20;
/// Time after which a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Owners whose secret ended with the last run: nobody can open what they kept.
const OF_ONE_RUN: [&str; 2] = ["anonymous", "admin"];

pub(super) const TABLE: &str = "
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, created_ms INTEGER NOT NULL, bytes INTEGER NOT NULL,
    sealed BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS responses_by_time ON responses (created_ms, id, bytes);
";

/// What is kept of one response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptResponse {
    /// `resp_<node8>_<uuidv7>`
    pub id: String,
    /// Id of the API key that may read it.
    pub owner: String,
    /// Conversation and response, readable by the owner's key alone.
    pub sealed: Vec<u8>,
}

/// Where responses are kept; cheap to share.
pub struct ResponseShelf {
    store: Store,
    waiting: Mutex<Waiting>,
    wake: Notify,
    keep_days: u32,
}

#[derive(Default)]
struct Waiting {
    rows: BTreeMap<String, Arc<KeptResponse>>,
    bytes: usize,
    /// Removed while they may have been on their way to the disk.
    removed: Vec<String>,
}

impl ResponseShelf {
    /// Opens the shelf and starts its writer, which ends with `shutdown` after it wrote what waits.
    pub fn start(
        store: Store,
        keep_days: u32,
        shutdown: CancellationToken,
    ) -> (Arc<Self>, tokio::task::JoinHandle<()>) {
        let shelf = Arc::new(Self { store, waiting: Mutex::default(), wake: Notify::new(), keep_days });
        let task = tasks::spawn(TaskKind::Store, write_loop(shelf.clone(), shutdown));
        (shelf, task)
    }

    /// Takes a response; false where it is too large, or too much waits for the disk. Never blocks for the disk.
    pub fn put(&self, response: KeptResponse) -> bool {
        let bytes = response.sealed.len();
        let mut waiting = self.lock();
        if bytes > MAX_RESPONSE_BYTES || waiting.bytes + bytes > MAX_WAITING_BYTES {
            metrics::counter!("shoal_responses_not_kept_total").increment(1);
            return false;
        }
        waiting.bytes += bytes;
        waiting.rows.insert(response.id.clone(), Arc::new(response));
        drop(waiting);
        self.wake.notify_one();
        true
    }

    /// Returns what an owner keeps under an id, sealed. Blocks for the disk.
    ///
    /// # Errors
    /// The disk failed.
    pub fn find(&self, id: &str, owner: &str) -> Result<Option<Vec<u8>>, Error> {
        let here = self.lock().rows.get(id).cloned();
        match here {
            Some(row) => Ok((row.owner == owner).then(|| row.sealed.clone())),
            None => self.store.response(id, owner),
        }
    }

    /// Removes what an owner keeps under an id; false if there is nothing. Blocks for the disk.
    ///
    /// # Errors
    /// The disk failed.
    pub fn remove(&self, id: &str, owner: &str) -> Result<bool, Error> {
        let mut was_waiting = false;
        {
            let mut waiting = self.lock();
            if waiting.rows.get(id).is_some_and(|row| row.owner == owner)
                && let Some(row) = waiting.rows.remove(id)
            {
                waiting.bytes -= row.sealed.len();
                waiting.removed.push(id.to_owned());
                was_waiting = true;
            }
        }
        self.wake.notify_one();
        Ok(self.store.remove_response(id, owner)? || was_waiting)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what waits; it can be found here until the disk has it.
    fn write(&self) -> Result<(), Error> {
        let rows: Vec<Arc<KeptResponse>> = self.lock().rows.values().cloned().collect();
        let oldest = unix_ms().saturating_sub(u64::from(self.keep_days) * 86_400_000);
        self.store.write_responses(&rows, oldest)?;
        let removed = {
            let mut waiting = self.lock();
            for row in &rows {
                if waiting.rows.remove(&row.id).is_some() {
                    waiting.bytes -= row.sealed.len();
                }
            }
            std::mem::take(&mut waiting.removed)
        };
        self.store.remove_responses(&removed)
    }
}

async fn write_loop(shelf: Arc<ResponseShelf>, shutdown: CancellationToken) {
    loop {
        let last = tokio::select! {
            () = shelf.wake.notified() => false,
            () = shutdown.cancelled() => true,
        };
        let writer = shelf.clone();
        let written = tokio::task::spawn_blocking(move || writer.write()).await;
        if !matches!(written, Ok(Ok(()))) {
            tracing::warn!("responses could not be written; they are kept in memory meanwhile");
        }
        if last {
            return;
        }
        if !matches!(written, Ok(Ok(()))) {
            tokio::select! {
                () = tokio::time::sleep(RETRY) => shelf.wake.notify_one(),
                () = shutdown.cancelled() => {}
            }
        }
    }
}

/// Removes what nobody can open any more.
pub(super) fn forget_last_run(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM responses WHERE owner IN (?1, ?2)", OF_ONE_RUN)?;
    Ok(())
}

impl Store {
    fn write_responses(&self, rows: &[Arc<KeptResponse>], oldest_ms: u64) -> Result<(), Error> {
        self.write_responses_within(rows, oldest_ms, MAX_RESPONSES, MAX_BYTES)
    }

    fn write_responses_within(
        &self,
        rows: &[Arc<KeptResponse>],
        oldest_ms: u64,
        most: i64,
        most_bytes: i64,
    ) -> Result<(), Error> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        for row in rows {
            transaction.execute(
                "INSERT OR REPLACE INTO responses (id, owner, created_ms, bytes, sealed) VALUES (?1, ?2, ?3, ?4, ?5)",
                (&row.id, &row.owner, unix_ms() as i64, row.sealed.len() as i64, &row.sealed),
            )?;
        }
        transaction.execute("DELETE FROM responses WHERE created_ms < ?1", [oldest_ms as i64])?;
        transaction.execute(
            "DELETE FROM responses WHERE id IN (SELECT id FROM (
                SELECT id, ROW_NUMBER() OVER newest AS place, SUM(bytes) OVER newest AS total FROM responses
                WINDOW newest AS (ORDER BY created_ms DESC, id DESC))
             WHERE place > ?1 OR total > ?2)",
            (most, most_bytes),
        )?;
        transaction.commit()?;
        Ok(())
    }

    fn response(&self, id: &str, owner: &str) -> Result<Option<Vec<u8>>, Error> {
        let connection = self.lock();
        let found = connection.query_row(
            "SELECT sealed FROM responses WHERE id = ?1 AND owner = ?2",
            (id, owner),
            |row| row.get(0),
        );
        Ok(found.optional()?)
    }

    fn remove_response(&self, id: &str, owner: &str) -> Result<bool, Error> {
        let gone = self.lock().execute("DELETE FROM responses WHERE id = ?1 AND owner = ?2", (id, owner))?;
        Ok(gone > 0)
    }

    fn remove_responses(&self, ids: &[String]) -> Result<(), Error> {
        let connection = self.lock();
        for id in ids {
            connection.execute("DELETE FROM responses WHERE id = ?1", [id])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(id: &str, owner: &str, bytes: usize) -> KeptResponse {
        KeptResponse { id: id.into(), owner: owner.into(), sealed: vec![7; bytes] }
    }

    #[tokio::test]
    async fn what_was_taken_is_found_at_once_and_after_a_restart_by_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let (shelf, task) = ResponseShelf::start(Store::open(dir.path()).unwrap(), 30, stop.clone());
        assert!(shelf.put(kept("resp_1", "ann", 3)) && shelf.put(kept("resp_2", "anonymous", 3)));
        assert_eq!(shelf.find("resp_1", "ann").unwrap(), Some(vec![7; 3]));
        assert_eq!(shelf.find("resp_1", "bob").unwrap(), None);
        stop.cancel();
        task.await.unwrap();
        assert_eq!(shelf.lock().bytes, 0);
        assert_eq!(shelf.find("resp_1", "bob").unwrap(), None);
        let (shelf, _) = ResponseShelf::start(Store::open(dir.path()).unwrap(), 30, CancellationToken::new());
        assert_eq!(shelf.find("resp_1", "ann").unwrap(), Some(vec![7; 3]));
        assert_eq!(shelf.find("resp_2", "anonymous").unwrap(), None, "its secret ended with the run");
    }

    #[tokio::test]
    async fn what_was_removed_stays_away_also_when_it_was_on_its_way_to_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (shelf, _) = ResponseShelf::start(store.clone(), 30, CancellationToken::new());
        shelf.put(kept("resp_1", "ann", 3));
        let on_its_way = shelf.lock().rows["resp_1"].clone();
        assert!(!shelf.remove("resp_1", "bob").unwrap());
        assert!(shelf.remove("resp_1", "ann").unwrap());
        store.write_responses(&[on_its_way], 0).unwrap();
        shelf.write().unwrap();
        assert_eq!(shelf.find("resp_1", "ann").unwrap(), None);
        assert!(!shelf.remove("resp_1", "ann").unwrap());
        assert_eq!(shelf.lock().bytes, 0);
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many_or_too_large_or_too_old() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let write = |names: &[&str], oldest_ms, most, most_bytes| {
            let rows: Vec<_> = names.iter().map(|name| Arc::new(kept(name, "ann", 10))).collect();
            store.write_responses_within(&rows, oldest_ms, most, most_bytes).unwrap();
            ["a", "b", "c"]
                .into_iter()
                .filter(|id| store.response(id, "ann").unwrap().is_some())
                .collect::<Vec<_>>()
        };
        assert_eq!(write(&["a", "b", "c"], 0, 2, 1000), ["b", "c"]);
        assert_eq!(write(&[], 0, 10, 19), ["c"]);
        assert_eq!(write(&[], unix_ms() + 1000, 10, 1000), Vec::<&str>::new());
    }

    #[tokio::test]
    async fn what_is_too_large_or_too_much_at_once_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = ResponseShelf {
            store: Store::open(dir.path()).unwrap(),
            waiting: Mutex::default(),
            wake: Notify::new(),
            keep_days: 30,
        };
        assert!(!shelf.put(kept("resp_0", "ann", MAX_RESPONSE_BYTES + 1)));
        let taken =
            (0..20).filter(|n| shelf.put(kept(&format!("resp_{n}"), "ann", MAX_RESPONSE_BYTES))).count();
        assert_eq!(taken, MAX_WAITING_BYTES / MAX_RESPONSE_BYTES);
    }
}
