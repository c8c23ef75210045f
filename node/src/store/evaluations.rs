//! Grades that a model gave to answers: numbers only, so that a restart knows the judge's love of length and how far
//! it agrees with people.

use rusqlite::OptionalExtension;

use super::{Error, Store, unix_ms};

/// Grades that are kept; far more than the judge's memory is long.
const KEPT: i64 = 20_000;

pub(super) const TABLE: &str = "CREATE TABLE IF NOT EXISTS evaluations (
    request_id TEXT PRIMARY KEY, arm TEXT NOT NULL, prompt TEXT NOT NULL, model TEXT NOT NULL,
    tokens INTEGER NOT NULL, grade REAL NOT NULL, corrected REAL NOT NULL, given_ms INTEGER NOT NULL);";

/// A grade of one answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// The request that was answered.
    pub request_id: String,
    /// The arm that answered.
    pub arm: String,
    /// Version of the prompt that asked for the grade.
    pub prompt: String,
    /// The model that gave it.
    pub model: String,
    /// Length of the answer.
    pub tokens: u64,
    /// The grade, 0 to 1.
    pub grade: f64,
    /// The same without the judge's love of length.
    pub corrected: f64,
}

impl Store {
    /// Keeps a grade; a second one of the same answer replaces the first.
    pub fn keep_evaluation(&self, e: &Evaluation) -> Result<(), Error> {
        self.lock().execute(
            "INSERT OR REPLACE INTO evaluations
             (request_id, arm, prompt, model, tokens, grade, corrected, given_ms) VALUES (?1,?2,?3,?4,?5,?6,?7,?8)",
            (
                &e.request_id,
                &e.arm,
                &e.prompt,
                &e.model,
                i64::try_from(e.tokens).unwrap_or(i64::MAX),
                e.grade,
                e.corrected,
                unix_ms() as i64,
            ),
        )?;
        Ok(())
    }

    /// Returns the corrected grade of an answer.
    pub fn corrected_grade(&self, request_id: &str) -> Result<Option<f64>, Error> {
        let sql = "SELECT corrected FROM evaluations WHERE request_id = ?1";
        Ok(self.lock().query_row(sql, [request_id], |row| row.get(0)).optional()?)
    }

    /// Returns the score that a person gave to an answer.
    pub fn explicit_score(&self, request_id: &str) -> Result<Option<f64>, Error> {
        let sql = "SELECT score FROM feedback WHERE request_id = ?1";
        Ok(self.lock().query_row(sql, [request_id], |row| row.get(0)).optional()?)
    }

    /// Returns the newest grades of a judge, oldest first, each with the score that a person gave to the same answer.
    /// Drops those beyond the kept number.
    pub fn evaluations(&self, prompt: &str, limit: usize) -> Result<Vec<(Evaluation, Option<f64>)>, Error> {
        let connection = self.lock();
        connection.execute(
            "DELETE FROM evaluations WHERE request_id NOT IN
             (SELECT request_id FROM evaluations ORDER BY given_ms DESC LIMIT ?1)",
            [KEPT],
        )?;
        let mut statement = connection.prepare(
            "SELECT e.request_id, e.arm, e.prompt, e.model, e.tokens, e.grade, e.corrected, f.score
             FROM evaluations e LEFT JOIN feedback f ON f.request_id = e.request_id
             WHERE e.prompt = ?1 ORDER BY e.given_ms DESC, e.rowid DESC LIMIT ?2",
        )?;
        let rows = statement.query_map((prompt, limit as i64), |row| {
            let evaluation = Evaluation {
                request_id: row.get(0)?,
                arm: row.get(1)?,
                prompt: row.get(2)?,
                model: row.get(3)?,
                tokens: row.get::<_, i64>(4)? as u64,
                grade: row.get(5)?,
                corrected: row.get(6)?,
            };
            Ok((evaluation, row.get(7)?))
        })?;
        let mut found: Vec<_> = rows.collect::<Result<_, _>>()?;
        found.reverse();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grades_come_back_in_order_with_what_people_said() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for n in 0..5_u32 {
            let evaluation = Evaluation {
                request_id: format!("req_{n}"),
                arm: "m".into(),
                prompt: if n == 0 { "v0" } else { "v1" }.into(),
                model: "judge".into(),
                tokens: 10,
                grade: f64::from(n) / 10.0,
                corrected: 0.5,
            };
            store.keep_evaluation(&evaluation).unwrap();
        }
        store.keep_score("req_3", 1.0, "").unwrap();
        let found = store.evaluations("v1", 3).unwrap();
        let ids: Vec<(&str, Option<f64>)> = found.iter().map(|(e, s)| (e.request_id.as_str(), *s)).collect();
        assert_eq!(ids, [("req_2", None), ("req_3", Some(1.0)), ("req_4", None)]);
        assert_eq!(store.corrected_grade("req_4").unwrap(), Some(0.5));
        assert_eq!(store.explicit_score("req_4").unwrap(), None);
    }
}
