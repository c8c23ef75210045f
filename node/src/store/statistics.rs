//! What this node has learnt itself, per arm, kept across restarts.
//!
//! Only own observations are stored: others' come again by gossip. Rows that make no sense are set aside with
//! their table, since a wrong number in here would be believed by the whole mesh.

use super::{Error, Store, unix_ms};

/// One arm's sums of this node.
#[derive(Debug, Clone, PartialEq)]
pub struct ArmRow {
    /// Model name, with digest when known.
    pub arm: String,
    /// Finished requests.
    pub count: u64,
    /// Sum of rewards, each 0..1.
    pub reward_sum: f64,
    /// Requests that failed after the model was chosen.
    pub failures: u64,
    /// Grows with each change.
    pub version: u64,
}

impl ArmRow {
    fn plausible(&self) -> bool {
        self.reward_sum.is_finite() && self.reward_sum >= 0.0 && self.reward_sum <= self.count as f64 + 1e-6
    }
}

impl Store {
    /// Reads all arms; a damaged table is renamed and an empty one takes its place.
    pub fn read_statistics(&self) -> Result<Vec<ArmRow>, Error> {
        match self.try_read_statistics() {
            Ok(rows) if rows.iter().all(ArmRow::plausible) => return Ok(rows),
            Ok(_) => tracing::warn!("stored statistics are implausible; their table is set aside"),
            Err(error) => tracing::warn!(%error, "stored statistics cannot be read; their table is set aside"),
        }
        let connection = self.lock();
        connection.execute_batch(&format!(
            "ALTER TABLE statistics RENAME TO statistics_damaged_{};
             CREATE TABLE statistics (
                 arm TEXT PRIMARY KEY, count INTEGER NOT NULL, reward_sum REAL NOT NULL,
                 failures INTEGER NOT NULL, version INTEGER NOT NULL);",
            unix_ms()
        ))?;
        Ok(Vec::new())
    }

    fn try_read_statistics(&self) -> Result<Vec<ArmRow>, Error> {
        let connection = self.lock();
        let mut statement =
            connection.prepare("SELECT arm, count, reward_sum, failures, version FROM statistics ORDER BY arm")?;
        let rows = statement.query_map([], |row| {
            Ok(ArmRow {
                arm: row.get(0)?,
                count: row.get::<_, i64>(1)? as u64,
                reward_sum: row.get(2)?,
                failures: row.get::<_, i64>(3)? as u64,
                version: row.get::<_, i64>(4)? as u64,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Writes arms in one transaction.
    pub fn write_statistics(&self, rows: &[ArmRow]) -> Result<(), Error> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        for r in rows {
            transaction.execute(
                "INSERT OR REPLACE INTO statistics (arm, count, reward_sum, failures, version)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                (&r.arm, r.count as i64, r.reward_sum, r.failures as i64, r.version as i64),
            )?;
        }
        transaction.commit()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(arm: &str, count: u64, reward_sum: f64) -> ArmRow {
        ArmRow { arm: arm.into(), count, reward_sum, failures: 0, version: 1 }
    }

    #[test]
    fn what_was_learnt_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        Store::open(dir.path()).unwrap().write_statistics(&[row("a", 3, 2.5)]).unwrap();
        assert_eq!(Store::open(dir.path()).unwrap().read_statistics().unwrap(), [row("a", 3, 2.5)]);
    }

    #[test]
    fn implausible_statistics_are_set_aside_and_the_rest_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for bad in [row("a", 1, 1e9), row("a", 1, -4.0), row("a", 1, f64::INFINITY)] {
            store.write_statistics(&[bad]).unwrap();
            assert!(store.read_statistics().unwrap().is_empty());
        }
        store.write_statistics(&[row("b", 1, 1.0)]).unwrap();
        assert_eq!(store.read_statistics().unwrap().len(), 1);
    }

    #[test]
    fn a_table_of_another_shape_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.lock().execute_batch("DROP TABLE statistics; CREATE TABLE statistics (nonsense BLOB);").unwrap();
        assert!(store.read_statistics().unwrap().is_empty());
        store.write_statistics(&[row("b", 1, 1.0)]).unwrap();
    }
}
