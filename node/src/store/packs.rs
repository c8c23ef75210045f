//! The adopted router pack: one at most, as the file it came in.

use rusqlite::{Connection, OptionalExtension};

use super::{Error, Store, unix_ms};

/// A pack that the operator adopted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdoptedPack {
    /// Its name.
    pub name: String,
    /// As whose it was adopted: `own_mesh`, `named_key` or `unproven`.
    pub trust: String,
    /// When, milliseconds since the Unix epoch.
    pub adopted_ms: u64,
    /// The file.
    pub bytes: Vec<u8>,
}

/// Makes the table.
pub(super) fn create_table(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS pack (id INTEGER PRIMARY KEY CHECK (id = 1), name TEXT NOT NULL,
         trust TEXT NOT NULL, adopted_ms INTEGER NOT NULL, bytes BLOB NOT NULL);",
    )
}

impl Store {
    /// Returns the adopted pack.
    pub fn adopted_pack(&self) -> Result<Option<AdoptedPack>, Error> {
        let row = |row: &rusqlite::Row<'_>| {
            Ok(AdoptedPack {
                name: row.get(0)?,
                trust: row.get(1)?,
                adopted_ms: row.get::<_, i64>(2)? as u64,
                bytes: row.get(3)?,
            })
        };
        let connection = self.lock();
        Ok(connection.query_row("SELECT name, trust, adopted_ms, bytes FROM pack", [], row).optional()?)
    }

    /// Keeps a pack in the place of the one before.
    pub fn adopt_pack(&self, name: &str, trust: &str, bytes: &[u8]) -> Result<(), Error> {
        self.lock().execute(
            "INSERT OR REPLACE INTO pack (id, name, trust, adopted_ms, bytes) VALUES (1, ?1, ?2, ?3, ?4)",
            (name, trust, unix_ms() as i64, bytes),
        )?;
        Ok(())
    }

    /// Removes the adopted pack; false if there was none.
    pub fn remove_pack(&self) -> Result<bool, Error> {
        Ok(self.lock().execute("DELETE FROM pack", [])? > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pack_is_kept_over_a_restart_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.adopted_pack().unwrap(), None);
        store.adopt_pack("first", "own_mesh", &[1]).unwrap();
        store.adopt_pack("second", "named_key", &[2, 3]).unwrap();
        let kept = Store::open(dir.path()).unwrap().adopted_pack().unwrap().unwrap();
        assert_eq!(
            (kept.name.as_str(), kept.trust.as_str(), kept.bytes),
            ("second", "named_key", vec![2, 3])
        );
        assert!(store.remove_pack().unwrap() && !store.remove_pack().unwrap());
        assert_eq!(store.adopted_pack().unwrap(), None);
    }
}
