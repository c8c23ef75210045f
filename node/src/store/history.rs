//! The request log: one row for each accepted request, written in batches off the hot path.
//!
//! Rows hold no prompt and no answer. Under pressure a row may be lost, and that loss is counted; counters and
//! statistics are taken elsewhere and never depend on it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::OptionalExtension;
use shoal_routing::{Features, Words};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::record::RequestRecord;
use super::{Error, Store, unix_ms};

/// Rows that may wait for the disk: about 10 s at 400 requests a second; more is dropped and counted.
const QUEUE: usize = 4096;
/// Rows of one transaction; larger ones gain nothing and delay readers.
const BATCH: usize = 500;
/// Finished requests kept in memory: they are asked for right after their answer, before the disk has them.
const RECENT: usize = 512;
/// Finished requests whose words are kept in memory, for a judgement that comes later: 2 MiB. They never reach the disk.
const WORDS: usize = 8192;
/// Longest time that a row waits for company.
const LINGER: Duration = Duration::from_millis(200);

/// Words of finished requests by id, oldest first.
type KeptWords = VecDeque<(Box<str>, Words)>;

/// Where finished requests are handed in. Never blocks.
#[derive(Clone)]
pub struct HistoryWriter {
    queue: mpsc::Sender<RequestRecord>,
    lost: Arc<AtomicU64>,
    recent: Arc<Mutex<VecDeque<RequestRecord>>>,
    words: Arc<Mutex<KeptWords>>,
    store: Store,
}

impl HistoryWriter {
    /// Starts the writer; it drains the queue and ends when `shutdown` is cancelled.
    pub fn start(
        store: Store,
        keep_days: u32,
        shutdown: CancellationToken,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (queue, rows) = mpsc::channel(QUEUE);
        let task = crate::tasks::spawn(
            crate::tasks::TaskKind::Store,
            write_loop(store.clone(), keep_days, rows, shutdown),
        );
        (Self { queue, lost: Arc::default(), recent: Arc::default(), words: Arc::default(), store }, task)
    }

    /// Hands a row in; drops and counts it when the queue is full.
    pub fn record(&self, row: RequestRecord) {
        {
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            if recent.len() == RECENT {
                recent.pop_front();
            }
            recent.push_back(row.clone());
        }
        if let Some(words) = row.words.as_deref().filter(|_| row.outcome == "completed") {
            let mut kept = self.words.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == WORDS {
                kept.pop_front();
            }
            kept.push_back((row.id.as_str().into(), *words));
        }
        if self.queue.try_send(row).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            metrics::counter!("shoal_history_rows_lost_total").increment(1);
        }
    }

    /// Finds a finished request, in memory or on disk. Blocks for the disk: use it off the hot path.
    pub fn find(&self, id: &str) -> Result<Option<RequestRecord>, Error> {
        let recent = {
            let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            recent.iter().rev().find(|r| r.id == id).cloned()
        };
        match recent {
            Some(record) => Ok(Some(record)),
            None => {
                let words = self.words_of(id).map(Box::new);
                Ok(self.store.request(id)?.map(|record| RequestRecord { words, ..record }))
            }
        }
    }

    /// Returns the words of a finished request, while they are kept.
    fn words_of(&self, id: &str) -> Option<Words> {
        let kept = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().rev().find(|(known, _)| **known == *id).map(|(_, words)| *words)
    }

    /// Returns the newest finished requests, newest first, those included that the disk does not have yet.
    pub fn newest(&self, limit: usize) -> Result<Vec<RequestRecord>, Error> {
        let mut rows: Vec<RequestRecord> = {
            let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            recent.iter().rev().take(limit).cloned().collect()
        };
        if rows.len() < limit {
            let stored = self.store.recent_requests(limit)?;
            rows.extend(
                stored.into_iter().filter(|s| !rows.iter().any(|r| r.id == s.id)).collect::<Vec<_>>(),
            );
            rows.truncate(limit);
        }
        Ok(rows)
    }

    /// Returns how many rows were lost since the start.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

async fn write_loop(
    store: Store,
    keep_days: u32,
    mut rows: mpsc::Receiver<RequestRecord>,
    shutdown: CancellationToken,
) {
    let mut prune = tokio::time::interval(Duration::from_secs(3600));
    loop {
        let mut batch = Vec::new();
        tokio::select! {
            n = rows.recv_many(&mut batch, BATCH) => if n == 0 { return },
            _ = prune.tick() => {
                let store = store.clone();
                let pruned = tokio::task::spawn_blocking(move || store.prune_history(keep_days)).await;
                if let Ok(Err(error)) = pruned {
                    tracing::warn!(%error, "old history rows could not be removed");
                }
                continue;
            }
            () = shutdown.cancelled() => {
                rows.close();
                while rows.recv_many(&mut batch, BATCH).await > 0 {
                    write(&store, std::mem::take(&mut batch)).await;
                }
                return;
            }
        }
        // Rows come in bursts: wait a little so that one transaction takes many.
        let deadline = tokio::time::sleep(LINGER);
        tokio::pin!(deadline);
        while batch.len() < BATCH {
            tokio::select! {
                row = rows.recv() => match row { Some(row) => batch.push(row), None => break },
                () = &mut deadline => break,
                () = shutdown.cancelled() => break,
            }
        }
        write(&store, batch).await;
    }
}

async fn write(store: &Store, batch: Vec<RequestRecord>) {
    let lost = batch.len() as u64;
    let store = store.clone();
    let written = tokio::task::spawn_blocking(move || store.write_history(&batch)).await;
    if !matches!(written, Ok(Ok(()))) {
        tracing::warn!(rows = lost, "history rows could not be written");
        metrics::counter!("shoal_history_rows_lost_total").increment(lost);
    }
}

/// Packs features in 32 bits each: 96 bytes a row.
fn packed(features: &Features) -> Vec<u8> {
    features.values().iter().flat_map(|value| (*value as f32).to_le_bytes()).collect()
}

pub(super) fn unpacked(bytes: &[u8]) -> Option<Features> {
    let values: Vec<f64> =
        bytes.as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect();
    Features::from_values(values.try_into().ok()?)
}

impl Store {
    pub(super) fn write_history(&self, rows: &[RequestRecord]) -> Result<(), Error> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        for r in rows {
            let json = serde_json::to_string(r).expect("a record has only plain fields");
            transaction.execute(
                "INSERT OR REPLACE INTO requests (id, started_ms, model, upstream, outcome, record, features)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                (
                    &r.id,
                    r.started_ms as i64,
                    &r.model,
                    &r.upstream,
                    &r.outcome,
                    json,
                    r.features.as_deref().map(packed),
                ),
            )?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Returns the newest rows, newest first.
    pub fn recent_requests(&self, limit: usize) -> Result<Vec<RequestRecord>, Error> {
        let connection = self.lock();
        let mut statement =
            connection.prepare("SELECT record FROM requests ORDER BY started_ms DESC, id DESC LIMIT ?1")?;
        let rows = statement.query_map([limit as i64], |row| row.get::<_, String>(0))?;
        let mut records = Vec::new();
        for row in rows {
            // A row of a future version that does not parse is skipped, not fatal.
            if let Ok(record) = serde_json::from_str(&row?) {
                records.push(record);
            }
        }
        Ok(records)
    }

    /// Returns one row by its id.
    pub fn request(&self, id: &str) -> Result<Option<RequestRecord>, Error> {
        let connection = self.lock();
        let row: Option<(String, Option<Vec<u8>>)> = connection
            .query_row("SELECT record, features FROM requests WHERE id = ?1", [id], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        Ok(row.and_then(|(json, features)| {
            let record: RequestRecord = serde_json::from_str(&json).ok()?;
            Some(RequestRecord { features: features.as_deref().and_then(unpacked).map(Box::new), ..record })
        }))
    }

    fn prune_history(&self, keep_days: u32) -> Result<usize, Error> {
        let oldest = unix_ms().saturating_sub(u64::from(keep_days) * 86_400_000);
        Ok(self.lock().execute("DELETE FROM requests WHERE started_ms < ?1", [oldest as i64])?)
    }

    #[cfg(test)]
    pub(super) fn test_history_row(&self, n: u64) {
        let row = RequestRecord { id: format!("req_{n}"), started_ms: n, ..RequestRecord::default() };
        self.write_history(&[row]).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rows_handed_in_before_shutdown_reach_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let shutdown = CancellationToken::new();
        let (writer, task) = HistoryWriter::start(store.clone(), 30, shutdown.clone());
        for n in 0..700_u64 {
            writer.record(RequestRecord {
                id: format!("req_{n}"),
                started_ms: unix_ms(),
                ..Default::default()
            });
        }
        shutdown.cancel();
        task.await.unwrap();
        assert_eq!(store.recent_requests(1000).unwrap().len(), 700);
        assert_eq!(store.request("req_42").unwrap().unwrap().id, "req_42");
        assert_eq!(writer.lost(), 0);
    }

    #[test]
    fn words_of_a_finished_request_are_kept_in_memory_alone() {
        let words = shoal_routing::RequestProfile::of_text("chest pain and shortness of breath", None).words;
        let row = |n: usize| RequestRecord {
            id: format!("req_{n}"),
            outcome: "completed".into(),
            words: Some(Box::new(words)),
            ..Default::default()
        };
        assert!(!serde_json::to_string(&row(0)).unwrap().contains("words"));
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _guard = runtime.enter();
        let (history, _task) = HistoryWriter::start(store.clone(), 30, CancellationToken::new());
        store.write_history(&[row(0)]).unwrap();
        (0..=RECENT).for_each(|n| history.record(row(n)));
        let found = history.find("req_0").unwrap().unwrap();
        assert_eq!(found.words.as_deref(), Some(&words), "the row came from the disk, its words did not");
        assert_eq!(store.request("req_0").unwrap().unwrap().words, None);
        (0..WORDS).for_each(|n| history.record(row(RECENT + 1 + n)));
        assert_eq!(history.find("req_0").unwrap().unwrap().words, None, "newer ones took its place");
    }

    #[test]
    fn a_row_keeps_the_features_of_its_request_and_shows_them_to_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let features =
            Features::from_values(std::array::from_fn(|i| if i == 0 { 1.0 } else { 0.3 })).unwrap();
        let row =
            RequestRecord { id: "req_1".into(), features: Some(Box::new(features)), ..Default::default() };
        assert!(!serde_json::to_string(&row).unwrap().contains("features"));
        store.write_history(&[row]).unwrap();
        let read = store.request("req_1").unwrap().unwrap().features.unwrap();
        for (kept, known) in read.values().iter().zip(features.values()) {
            assert!((kept - known).abs() < 1e-6);
        }
        store.lock().execute("UPDATE requests SET features = x'00'", []).unwrap();
        assert_eq!(store.request("req_1").unwrap().unwrap().features, None);
    }

    #[test]
    fn the_history_of_an_earlier_version_is_read_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let old = rusqlite::Connection::open(dir.path().join("shoal.db")).unwrap();
        old.execute_batch(
            "CREATE TABLE requests (id TEXT PRIMARY KEY, started_ms INTEGER NOT NULL, model TEXT NOT NULL,
             upstream TEXT NOT NULL, outcome TEXT NOT NULL, record TEXT NOT NULL);
             INSERT INTO requests VALUES ('req_1', 1, 'm', 'u', 'completed', '{\"id\": \"req_1\"}');",
        )
        .unwrap();
        drop(old);
        let store = Store::open(dir.path()).unwrap();
        store.test_history_row(2);
        let found = |id: &str| store.request(id).unwrap().unwrap();
        assert_eq!((found("req_1").features, found("req_2").features), (None, None));
    }

    #[test]
    fn old_rows_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.test_history_row(1);
        assert_eq!(store.prune_history(30).unwrap(), 1);
        assert!(store.request("req_1").unwrap().is_none());
    }
}
