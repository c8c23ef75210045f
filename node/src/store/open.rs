//! Opening the database, its schema, and what happens when the file is damaged.

use std::path::Path;

use rusqlite::Connection;

use super::{Error, unix_ms};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS routers (addr TEXT PRIMARY KEY, seen_ms INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS tokens (
    token_id BLOB PRIMARY KEY, secret_sha256 BLOB NOT NULL, role TEXT NOT NULL, uses_left INTEGER NOT NULL,
    expires_s INTEGER NOT NULL, created_s INTEGER NOT NULL, revoked INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, sha256 BLOB NOT NULL, name TEXT NOT NULL, local_only INTEGER NOT NULL,
    created_ms INTEGER NOT NULL, revoked_ms INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS key_budgets (key_id TEXT PRIMARY KEY, budget TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS requests (
    id TEXT PRIMARY KEY, started_ms INTEGER NOT NULL, model TEXT NOT NULL, upstream TEXT NOT NULL,
    outcome TEXT NOT NULL, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS feedback (
    request_id TEXT PRIMARY KEY, score REAL NOT NULL, comment TEXT NOT NULL, given_ms INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS spend (
    provider TEXT NOT NULL, period TEXT NOT NULL, micro_usd INTEGER NOT NULL, PRIMARY KEY (provider, period));
CREATE INDEX IF NOT EXISTS requests_by_time ON requests (started_ms);
";

/// Tables that are worth saving out of a damaged file: without them people cannot get in, or pay twice.
const PRECIOUS: &[&str] = &["keys", "key_budgets", "tokens", "routers", "meta", "spend"];

pub(super) fn open_or_set_aside(path: &Path) -> Result<Connection, Error> {
    let failed = |message: String| Error::Open { path: path.to_owned(), message };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(|e| failed(e.to_string()))?;
    }
    let damage = match open(path) {
        Ok(connection) => return Ok(connection),
        Err(error) if is_damage(&error) => error,
        Err(error) => return Err(failed(error.to_string())),
    };
    let aside = path.with_file_name(format!("shoal.damaged-{}.db", unix_ms()));
    std::fs::rename(path, &aside).map_err(|e| failed(e.to_string()))?;
    for suffix in ["-wal", "-shm"] {
        let from = path.with_file_name(format!("shoal.db{suffix}"));
        if from.exists() {
            let to = aside.with_file_name(format!(
                "{}{suffix}",
                aside.file_name().and_then(|n| n.to_str()).unwrap_or("shoal.damaged.db")
            ));
            std::fs::rename(from, to).map_err(|e| failed(e.to_string()))?;
        }
    }
    tracing::warn!(%damage, aside = %aside.display(), "the store is damaged; it is set aside and a new one begun");
    let connection = open(path).map_err(|e| failed(e.to_string()))?;
    let saved = salvage(&connection, &aside);
    tracing::warn!(rows = saved, "rows saved from the damaged store");
    Ok(connection)
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    // FULL: an API key or a used token must not come back after a power cut.
    connection
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY;")?;
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
            Some(verdict),
        ));
    }
    connection.execute_batch(SCHEMA)?;
    connection.execute_batch(&super::statistics::create_table())?;
    super::learning::create_tables(&connection)?;
    super::packs::create_table(&connection)?;
    add_column(&connection, "requests", "features", "BLOB")?;
    add_column(&connection, "learnt", "answers", "BLOB")?;
    connection.execute_batch(super::evaluations::TABLE)?;
    connection.execute_batch(super::responses::TABLE)?;
    super::responses::forget_last_run(&connection)?;
    Ok(connection)
}

/// Adds a column to a table of an earlier version; its old rows have NULL there.
fn add_column(connection: &Connection, table: &str, column: &str, kind: &str) -> rusqlite::Result<()> {
    let known: bool = connection.query_row(
        "SELECT count(*) > 0 FROM pragma_table_info(?1) WHERE name = ?2",
        (table, column),
        |row| row.get(0),
    )?;
    if known {
        return Ok(());
    }
    connection.execute_batch(&format!("ALTER TABLE {table} ADD COLUMN {column} {kind};"))
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase)
    )
}

/// Copies what is readable of the precious tables; damage in one table does not stop the others.
fn salvage(into: &Connection, from: &Path) -> usize {
    let path = from.to_string_lossy();
    if into.execute("ATTACH DATABASE ?1 AS old", [path.as_ref()]).is_err() {
        return 0;
    }
    let saved = PRECIOUS
        .iter()
        .map(|table| {
            into.execute(&format!("INSERT OR IGNORE INTO main.{table} SELECT * FROM old.{table}"), [])
                .unwrap_or(0)
        })
        .sum();
    // Detaching fails only if the attach did; the connection is fresh either way.
    let _ = into.execute("DETACH DATABASE old", []);
    saved
}
