//! What this node has counted itself, per arm, kept across restarts.
//!
//! Rows that make no sense are set aside with
//! their table, since a wrong number in here would be believed by the whole mesh.

use rusqlite::Connection;
use shoal_routing::{ArmId, ArmStats};

use super::{Error, Store, unix_ms};

const COLUMNS: &str = "arm TEXT PRIMARY KEY, count INTEGER NOT NULL, failures INTEGER NOT NULL, \
    scored INTEGER NOT NULL, reward_sum REAL NOT NULL, ttft_count INTEGER NOT NULL, ttft_ms_sum REAL NOT NULL, \
    version INTEGER NOT NULL";

/// Returns the statement that makes the table, used by the schema and after a damaged one was set aside.
pub(super) fn create_table() -> String {
    format!("CREATE TABLE IF NOT EXISTS statistics ({COLUMNS});")
}

impl Store {
    /// Reads all arms; a damaged table is renamed and an empty one takes its place.
    pub fn read_statistics(&self) -> Result<Vec<(ArmId, ArmStats)>, Error> {
        match self.try_read_statistics() {
            Ok(rows) if rows.iter().all(|(_, stats)| stats.is_plausible()) => return Ok(rows),
            Ok(_) => tracing::warn!("stored statistics are implausible; their table is set aside"),
            Err(error) => {
                tracing::warn!(%error, "stored statistics cannot be read; their table is set aside")
            }
        }
        let connection = self.lock();
        // Several damages within one millisecond must not meet under one name.
        let aside = format!("statistics_damaged_{}_{}", unix_ms(), uuid::Uuid::now_v7().simple());
        connection.execute_batch(&format!("ALTER TABLE statistics RENAME TO {aside}; {}", create_table()))?;
        Ok(Vec::new())
    }

    fn try_read_statistics(&self) -> Result<Vec<(ArmId, ArmStats)>, Error> {
        let connection = self.lock();
        let mut statement = connection.prepare(
            "SELECT arm, count, failures, scored, reward_sum, ttft_count, ttft_ms_sum, version
             FROM statistics ORDER BY arm",
        )?;
        let rows = statement.query_map([], |row| {
            let stats = ArmStats {
                count: row.get::<_, i64>(1)? as u64,
                failures: row.get::<_, i64>(2)? as u64,
                scored: row.get::<_, i64>(3)? as u64,
                reward_sum: row.get(4)?,
                ttft_count: row.get::<_, i64>(5)? as u64,
                ttft_ms_sum: row.get(6)?,
                version: row.get::<_, i64>(7)? as u64,
            };
            Ok((ArmId(row.get::<_, String>(0)?.into()), stats))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// Writes one arm.
pub(super) fn write_row(connection: &Connection, arm: &ArmId, s: &ArmStats) -> rusqlite::Result<()> {
    connection.execute(
        "INSERT OR REPLACE INTO statistics
         (arm, count, failures, scored, reward_sum, ttft_count, ttft_ms_sum, version)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        (
            arm.as_str(),
            s.count as i64,
            s.failures as i64,
            s.scored as i64,
            s.reward_sum,
            s.ttft_count as i64,
            s.ttft_ms_sum,
            s.version as i64,
        ),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(arm: &str, scored: u64, reward_sum: f64) -> (ArmId, ArmStats) {
        (ArmId(arm.into()), ArmStats { count: 9, scored, reward_sum, ..ArmStats::default() })
    }

    fn write(store: &Store, (arm, stats): &(ArmId, ArmStats)) {
        write_row(&store.lock(), arm, stats).unwrap();
    }

    #[test]
    fn what_was_learnt_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        write(&Store::open(dir.path()).unwrap(), &row("a", 3, 2.5));
        assert_eq!(Store::open(dir.path()).unwrap().read_statistics().unwrap(), [row("a", 3, 2.5)]);
    }

    #[test]
    fn implausible_statistics_are_set_aside_and_the_rest_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for bad in [row("a", 1, 1e9), row("a", 1, -4.0), row("a", 1, f64::INFINITY)] {
            write(&store, &bad);
            assert!(store.read_statistics().unwrap().is_empty());
        }
        write(&store, &row("b", 1, 1.0));
        assert_eq!(store.read_statistics().unwrap().len(), 1);
    }

    #[test]
    fn a_table_of_another_shape_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store
            .lock()
            .execute_batch("DROP TABLE statistics; CREATE TABLE statistics (nonsense BLOB);")
            .unwrap();
        assert!(store.read_statistics().unwrap().is_empty());
        write(&store, &row("b", 1, 1.0));
    }
}
