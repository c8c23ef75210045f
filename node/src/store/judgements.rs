//! Explicit feedback: one score for each request, the first counts.

use super::{Error, Store, unix_ms};

impl Store {
    /// Keeps a score durably; false if the request was scored before.
    pub fn keep_score(&self, request_id: &str, score: f64, comment: &str) -> Result<bool, Error> {
        let kept = self.lock().execute(
            "INSERT OR IGNORE INTO feedback (request_id, score, comment, given_ms) VALUES (?1, ?2, ?3, ?4)",
            (request_id, score, comment, unix_ms() as i64),
        )?;
        Ok(kept > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_score_counts_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Store::open(dir.path()).unwrap().keep_score("req_1", 1.0, "").unwrap());
        assert!(!Store::open(dir.path()).unwrap().keep_score("req_1", 0.0, "changed my mind").unwrap());
    }
}
