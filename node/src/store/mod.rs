//! The node's embedded database: request history, statistics, join tokens, API keys and sealed responses in one SQLite
//! file.
//!
//! Identity files are kept apart, since they must survive whatever happens here. Tokens and keys are written
//! with a full sync before the caller goes on; history is written in batches by one thread and may lose its
//! last moment; a damaged file or table is set aside and never keeps the node from starting.

mod decisions;
pub mod evaluations;
mod history;
mod judgements;
mod keys;
mod learning;
mod open;
mod packs;
mod record;
mod responses;
mod spend;
mod statistics;
mod tokens;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension};

pub use decisions::{Decided, DecisionLog, decision_log_at};
pub use evaluations::Evaluation;
pub use history::HistoryWriter;
pub use keys::{KeyRecord, KeyRing, NewKey};
pub use learning::Learning;
pub use packs::AdoptedPack;
pub use record::{
    AgreementRecord, AttemptRecord, Considered, EvaluationRecord, ProfileRecord, REJECTED, Removed,
    RequestRecord,
};
pub use responses::{KeptResponse, MAX_RESPONSE_BYTES, ResponseShelf};
pub use tokens::StoreBook;

/// A failed operation on the database.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory or the file cannot be used.
    #[error(
        "cannot open the store {path}: {message}; check the directory's owner and free space, or choose another with --data-dir"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        message: String,
    },
    /// SQLite refused a statement.
    #[error("the store failed: {0}")]
    Sqlite(#[from] rusqlite::Error),
}

/// Handle to the database; cheap to clone. Calls block for a disk write at most: use them off the hot path.
#[derive(Clone)]
pub struct Store {
    connection: Arc<Mutex<Connection>>,
    path: Arc<Path>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens or makes `<data dir>/shoal.db`; a damaged file is set aside and its tokens and keys saved.
    pub fn open(data_dir: &Path) -> Result<Self, Error> {
        let path = data_dir.join("shoal.db");
        let connection = open::open_or_set_aside(&path)?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), path: path.into() })
    }

    /// Returns the start number for this run: grows at every start, also when the clock stepped back.
    pub fn next_generation(&self) -> Result<u64, Error> {
        let connection = self.lock();
        let last: Option<i64> = connection
            .query_row("SELECT value FROM meta WHERE name = 'generation'", [], |row| row.get(0))
            .optional()?;
        let next = (unix_ms() as i64).max(last.unwrap_or(0) + 1);
        connection.execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('generation', ?1)", [next])?;
        Ok(next as u64)
    }

    /// Returns the routers that were known at the last run, as `node_id@host:port`.
    pub fn known_routers(&self) -> Result<Vec<String>, Error> {
        let connection = self.lock();
        let mut statement = connection.prepare("SELECT addr FROM routers ORDER BY seen_ms DESC LIMIT 64")?;
        let rows = statement.query_map([], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Remembers routers, so that a restart finds the mesh without a token.
    pub fn remember_routers(&self, routers: &[String]) -> Result<(), Error> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        for addr in routers {
            transaction.execute(
                "INSERT OR REPLACE INTO routers (addr, seen_ms) VALUES (?1, ?2)",
                (addr, unix_ms() as i64),
            )?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic while the lock was held leaves SQLite itself consistent: its transactions roll back.
        self.connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Returns the wall clock in milliseconds since the Unix epoch.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_grows_at_every_start() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::open(dir.path()).unwrap().next_generation().unwrap();
        let second = Store::open(dir.path()).unwrap().next_generation().unwrap();
        assert!(second > first);
    }

    #[test]
    fn routers_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        Store::open(dir.path()).unwrap().remember_routers(&["a@127.0.0.1:1".into()]).unwrap();
        assert_eq!(Store::open(dir.path()).unwrap().known_routers().unwrap(), ["a@127.0.0.1:1"]);
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_the_node_starts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shoal.db");
        std::fs::write(&path, b"this is not a database, it is a poem about fish ".repeat(200)).unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert!(store.next_generation().unwrap() > 0);
        let aside = std::fs::read_dir(dir.path())
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains("damaged"))
            .count();
        assert_eq!(aside, 1);
    }

    #[test]
    fn keys_are_saved_out_of_a_file_with_damaged_pages() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shoal.db");
        let key = {
            let store = Store::open(dir.path()).unwrap();
            let ring = KeyRing::load(store.clone()).unwrap();
            let key = ring.create("first", false, None).unwrap();
            for n in 0..2000 {
                store.test_history_row(n);
            }
            key
        };
        let mut bytes = std::fs::read(&path).unwrap();
        let half = bytes.len() / 2;
        let end = bytes.len();
        bytes[half..end].fill(0xAA);
        std::fs::write(&path, bytes).unwrap();
        let ring = KeyRing::load(Store::open(dir.path()).unwrap()).unwrap();
        assert!(ring.authenticate(&key.text).is_some(), "the key must survive damage elsewhere in the file");
    }
}
