//! What was spent at providers, by account (a provider, or `key:<id>`) and period: the one number that may never be too small.
//!
//! A reservation is booked as spent before a request goes out, and corrected afterwards. So whatever dies in
//! between, this process included, the books err on the side of too much.

use super::{Error, Store};

impl Store {
    /// Books `amount` if the sum stays within `limit`; false, and nothing booked, if it would not.
    ///
    /// One conditional statement: of any number of concurrent reservations only as many succeed as fit. All
    /// amounts are micro-USD.
    pub fn reserve_spend(
        &self,
        provider: &str,
        period: &str,
        amount: u64,
        limit: u64,
    ) -> Result<bool, Error> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        transaction.execute(
            "INSERT OR IGNORE INTO spend (provider, period, micro_usd) VALUES (?1, ?2, 0)",
            (provider, period),
        )?;
        let booked = transaction.execute(
            "UPDATE spend SET micro_usd = micro_usd + ?3
             WHERE provider = ?1 AND period = ?2 AND micro_usd + ?3 <= ?4",
            (provider, period, signed(amount), signed(limit)),
        )?;
        transaction.commit()?;
        Ok(booked == 1)
    }

    /// Replaces a reservation by what was truly spent.
    pub fn settle_spend(&self, provider: &str, period: &str, reserved: u64, spent: u64) -> Result<(), Error> {
        self.lock().execute(
            "UPDATE spend SET micro_usd = MAX(0, micro_usd - ?3 + ?4) WHERE provider = ?1 AND period = ?2",
            (provider, period, signed(reserved), signed(spent)),
        )?;
        Ok(())
    }

    /// Returns what is booked, reservations included.
    pub fn spend(&self, provider: &str, period: &str) -> Result<u64, Error> {
        use rusqlite::OptionalExtension;
        let booked: Option<i64> = self
            .lock()
            .query_row(
                "SELECT micro_usd FROM spend WHERE provider = ?1 AND period = ?2",
                (provider, period),
                |row| row.get(0),
            )
            .optional()?;
        Ok(u64::try_from(booked.unwrap_or(0)).unwrap_or(0))
    }
}

/// SQLite's integers are signed; amounts beyond a quarter of them would be nonsense anyway, and sums must not wrap.
fn signed(micro_usd: u64) -> i64 {
    i64::try_from(micro_usd).unwrap_or(i64::MAX).min(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_outlives_a_crash_and_a_settlement_corrects_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert!(store.reserve_spend("p", "d", 60, 100).unwrap());
        assert!(!store.reserve_spend("p", "d", 41, 100).unwrap());
        assert!(store.reserve_spend("p", "e", 41, 100).unwrap(), "another period has its own money");
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.spend("p", "d").unwrap(), 60);
        store.settle_spend("p", "d", 60, 10).unwrap();
        assert_eq!(store.spend("p", "d").unwrap(), 10);
        store.settle_spend("p", "d", u64::MAX, 0).unwrap();
        assert_eq!(store.spend("p", "d").unwrap(), 0, "books never run below nothing");
    }

    #[test]
    fn parallel_reservations_never_pass_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let wins: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| (0..10).filter(|_| store.reserve_spend("p", "d", 7, 100).unwrap()).count())
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(wins, 14);
        assert_eq!(store.spend("p", "d").unwrap(), 98);
    }
}
