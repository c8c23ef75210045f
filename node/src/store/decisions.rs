//! The decision log: judged requests of the history that were the router's own choice.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};
use shoal_routing::{ArmId, Features, Score, SizeClass};

use super::history::unpacked;
use super::record::RequestRecord;
use super::{Error, Store};
use crate::evaluate::Weighed;

/// A choice of the router with what it was worth.
#[derive(Debug, Clone, PartialEq)]
pub struct Decided {
    /// What the request looked like.
    pub features: Features,
    /// The arm that was chosen.
    pub arm: ArmId,
    /// Probability with which it was.
    pub propensity: f64,
    /// What the client said of the answer.
    pub score: Score,
    /// All models that were weighed.
    pub considered: Vec<Weighed>,
}

/// What of the history can be learnt from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DecisionLog {
    /// Decisions, oldest first.
    pub decisions: Vec<Decided>,
    /// Judged answers by features, oldest first: of every request, also where the client named the model.
    pub judged: Vec<(ArmId, Features, Score)>,
    /// Judged requests that were no choice: the client named the model, or one only could serve it.
    pub no_choice: usize,
    /// Judged requests whose answer is not the chosen model's alone: another one took over.
    pub taken_over: usize,
    /// Judged requests whose row does not say enough; those of earlier versions.
    pub incomplete: usize,
}

impl Store {
    /// Reads the judged requests since a moment, the newest `limit` of them.
    pub fn decision_log(&self, since_ms: u64, limit: usize) -> Result<DecisionLog, Error> {
        read(&self.lock(), since_ms, limit)
    }
}

/// Reads the log of a data directory without opening it for writing: its node may run, or not.
///
/// # Errors
/// [`Error::Open`] if there is no store.
pub fn decision_log_at(data_dir: &Path, since_ms: u64, limit: usize) -> Result<DecisionLog, Error> {
    let path = data_dir.join("shoal.db");
    let failed = |e: rusqlite::Error| Error::Open { path: path.clone(), message: e.to_string() };
    let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    let features = "SELECT count(*) FROM pragma_table_info('requests') WHERE name = 'features'";
    if connection.query_row(features, (), |row| row.get::<_, i64>(0))? == 0 {
        let message =
            "its rows are of an earlier version; start the node once ('shoal up'), then try again".into();
        return Err(Error::Open { path, message });
    }
    read(&connection, since_ms, limit)
}

fn read(connection: &Connection, since_ms: u64, limit: usize) -> Result<DecisionLog, Error> {
    let mut statement = connection.prepare(
        "SELECT record, features, score FROM (
             SELECT r.record, r.features, f.score, r.started_ms, r.id FROM requests r
             JOIN feedback f ON f.request_id = r.id
             WHERE r.started_ms >= ?1 AND r.outcome = 'completed' ORDER BY r.started_ms DESC, r.id DESC LIMIT ?2)
         ORDER BY started_ms, id",
    )?;
    let since = i64::try_from(since_ms).unwrap_or(i64::MAX);
    let rows = statement.query_map((since, limit as i64), |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, Option<Vec<u8>>>(1)?, row.get::<_, f64>(2)?))
    })?;
    let mut log = DecisionLog::default();
    for row in rows {
        let (record, features, score) = row?;
        // A row of a future version that does not parse is skipped, not fatal.
        let record = serde_json::from_str::<RequestRecord>(&record).ok();
        let features = features.as_deref().and_then(unpacked);
        let (Some(record), Some(features), Ok(score)) = (record, features, Score::new(score)) else {
            log.incomplete += 1;
            continue;
        };
        log.take(&record, features, score);
    }
    Ok(log)
}

impl DecisionLog {
    fn take(&mut self, record: &RequestRecord, features: Features, score: Score) {
        if record.arm.is_empty() {
            self.incomplete += 1;
            return;
        }
        let arm = ArmId(record.arm.as_str().into());
        self.judged.push((arm.clone(), features, score));
        if record.considered.len() < 2 {
            self.no_choice += 1;
            return;
        }
        let weighed = record.considered.iter().map(|seen| {
            let size = SizeClass::of_word(&seen.size)?;
            let penalty = seen.penalty.filter(|penalty| penalty.is_finite() && !seen.arm.is_empty())?;
            Some(Weighed { arm: ArmId(seen.arm.as_str().into()), size, penalty })
        });
        let (Some(considered), Some(propensity)) =
            (weighed.collect::<Option<Vec<_>>>(), record.propensity.filter(|p| *p > 0.0 && *p <= 1.0))
        else {
            self.incomplete += 1;
            return;
        };
        if record.attempts != 1 || record.escalated || !considered.iter().any(|seen| seen.arm == arm) {
            self.taken_over += 1;
            return;
        }
        self.decisions.push(Decided { features, arm, propensity, score, considered });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Considered;

    fn record(id: &str, started_ms: u64) -> RequestRecord {
        let considered = ["a", "b"].map(|name| Considered {
            model: name.into(),
            score: 0.5,
            arm: name.into(),
            size: "medium".into(),
            penalty: Some(0.1),
            ..Considered::default()
        });
        RequestRecord {
            id: id.into(),
            started_ms,
            arm: "a".into(),
            outcome: "completed".into(),
            propensity: Some(0.4),
            attempts: 1,
            considered: considered.into(),
            features: Some(Box::new(Features::default())),
            ..RequestRecord::default()
        }
    }

    #[test]
    fn the_log_holds_judged_choices_and_counts_what_it_leaves_out() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let rows = [
            record("req_old", 1),
            record("req_good", 10),
            RequestRecord { considered: Vec::new(), ..record("req_named", 11) },
            RequestRecord { escalated: true, ..record("req_escalated", 12) },
            RequestRecord { attempts: 2, ..record("req_failed_over", 13) },
            RequestRecord { features: None, ..record("req_early_version", 14) },
            RequestRecord { propensity: None, ..record("req_unknown_chance", 15) },
            RequestRecord { outcome: "failed".into(), ..record("req_failed", 16) },
        ];
        for row in &rows {
            store.keep_score(&row.id, 0.75, "").unwrap();
        }
        store.write_history(&rows).unwrap();
        store.write_history(&[record("req_unjudged", 20)]).unwrap();
        let log = store.decision_log(5, 100).unwrap();
        assert_eq!((log.no_choice, log.taken_over, log.incomplete), (1, 2, 2));
        assert_eq!(log.judged.len(), 5);
        let [decision] = log.decisions.as_slice() else { panic!("{:?}", log.decisions) };
        assert_eq!((decision.arm.as_str(), decision.propensity, decision.score.value()), ("a", 0.4, 0.75));
        assert_eq!(decision.considered[1].penalty, 0.1);
        assert_eq!(decision_log_at(dir.path(), 5, 100).unwrap(), log);
        assert_eq!(store.decision_log(0, 6).unwrap().judged.len(), 5, "the newest are kept");
        assert!(matches!(decision_log_at(&dir.path().join("none"), 0, 1), Err(Error::Open { .. })));
    }
}
