//! What this node has learnt: own sums per arm, exact, and what other origins signed.
//!
//! Others' testimonies would come again from the mesh; they are kept so that a node that starts alone still knows what
//! the mesh knew. Rows that make no sense are left out, and a table of another shape is set aside.

use prost::Message;
use rusqlite::Connection;
use shoal_proto::SignedBlob;
use shoal_routing::bandit::sums::PACKED;
use shoal_routing::calibration::{ALL_BINS, BINS, Bin};
use shoal_routing::escalate::gain::AnswerSums;
use shoal_routing::{ArmEvidence, ArmId, DomainReliability, PairKey, PairSum, PairSums, QualitySums};

use super::{Error, Store, unix_ms};
use crate::feedback::Agreement;

/// Tables and their columns; those of one name and another shape are set aside.
const TABLES: [(&str, &str); 4] = [
    (
        "learnt",
        "arm TEXT PRIMARY KEY, quality_version INTEGER NOT NULL, quality BLOB NOT NULL, bins BLOB NOT NULL, \
         answers BLOB",
    ),
    ("testimonies", "origin TEXT PRIMARY KEY, issued_ms INTEGER NOT NULL, blob BLOB NOT NULL"),
    ("evaluator", "id INTEGER PRIMARY KEY CHECK (id = 1), pairs REAL NOT NULL, error REAL NOT NULL"),
    ("word_pairs", "arm TEXT PRIMARY KEY, sums BLOB NOT NULL"),
];

/// What a node knows when it starts.
#[derive(Debug, Default)]
pub struct Learning {
    /// What it observed itself.
    pub own: Vec<(ArmId, ArmEvidence)>,
    /// What others observed, as they signed it.
    pub others: Vec<SignedBlob>,
    /// How near the evaluator was to explicit feedback.
    pub agreement: Agreement,
}

/// Makes the tables.
pub(super) fn create_tables(connection: &Connection) -> rusqlite::Result<()> {
    for (table, columns) in TABLES {
        connection.execute_batch(&format!("CREATE TABLE IF NOT EXISTS {table} ({columns});"))?;
    }
    Ok(())
}

impl Store {
    /// Reads what was learnt; what cannot be read is left out.
    pub fn read_learning(&self) -> Result<Learning, Error> {
        let stats = self.read_statistics()?;
        let sums = self.read_or_set_aside(0, |connection| {
            let mut statement =
                connection.prepare("SELECT arm, quality_version, quality, bins, answers FROM learnt")?;
            let rows = statement.query_map([], |row| {
                let arm: String = row.get(0)?;
                let version = row.get::<_, i64>(1)? as u64;
                let answers = row.get::<_, Option<Vec<u8>>>(4)?.unwrap_or_default();
                let (quality, bins): (Vec<u8>, Vec<u8>) = (row.get(2)?, row.get(3)?);
                Ok((arm, sums_of(version, &quality, &bins, &answers)))
            })?;
            rows.collect::<Result<Vec<_>, _>>()
        })?;
        let others = self.read_or_set_aside(1, |connection| {
            let mut statement = connection.prepare("SELECT blob FROM testimonies")?;
            let rows = statement.query_map([], |row| row.get::<_, Vec<u8>>(0))?;
            rows.collect::<Result<Vec<_>, _>>()
        })?;
        let agreement = self.read_or_set_aside(2, |connection| {
            let mut statement = connection.prepare("SELECT pairs, error FROM evaluator")?;
            let rows = statement.query_map([], |row| {
                Ok(Agreement { pairs: row.get::<_, f64>(0)?.max(0.0), error: row.get::<_, f64>(1)?.max(0.0) })
            })?;
            rows.collect::<Result<Vec<_>, _>>()
        })?;
        let pairs = self.read_or_set_aside(3, |connection| {
            let mut statement = connection.prepare("SELECT arm, sums FROM word_pairs")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<Result<Vec<(String, Vec<u8>)>, _>>()
        })?;
        let mut own: Vec<(ArmId, ArmEvidence)> = stats
            .into_iter()
            .map(|(arm, stats)| (arm, ArmEvidence { stats, ..ArmEvidence::default() }))
            .collect();
        for (arm, sums) in sums {
            let Some(sums) = sums else {
                tracing::warn!(arm, "stored sums of an arm make no sense; they are left out");
                continue;
            };
            let known = own.iter().position(|(known, _)| known.as_str() == arm);
            let index = known.unwrap_or_else(|| {
                own.push((ArmId(arm.into()), ArmEvidence::default()));
                own.len() - 1
            });
            let stats = own[index].1.stats;
            own[index].1 = ArmEvidence { stats, ..sums };
        }
        for (arm, sums) in pairs {
            let known = own.iter_mut().find(|(known, _)| known.as_str() == arm);
            if let Some((_, evidence)) = known
                && let Some(pairs) = pairs_of(&sums, evidence.stats.scored)
            {
                evidence.pairs = pairs;
            }
        }
        let others = others.iter().filter_map(|blob| SignedBlob::decode(blob.as_slice()).ok()).collect();
        Ok(Learning { own, others, agreement: agreement.first().copied().unwrap_or_default() })
    }

    /// Writes arms and testimonies that changed in one transaction, and drops those of origins that are forgotten.
    pub fn write_learning(&self, changed: &Learning, forgotten: &[impl AsRef<str>]) -> Result<(), Error> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        for (arm, evidence) in &changed.own {
            super::statistics::write_row(&transaction, arm, &evidence.stats)?;
            let sums = evidence.quality.gram.iter().chain(&evidence.quality.reward);
            let bins = evidence.reliability.bins();
            let bins = bins.flat_map(|bin| [bin.count as f64, bin.raw_sum, bin.score_sum]);
            transaction.execute(
                "INSERT OR REPLACE INTO learnt (arm, quality_version, quality, bins, answers)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                (
                    arm.as_str(),
                    evidence.quality.version as i64,
                    packed(sums.copied()),
                    packed(bins),
                    packed(evidence.answers.numbers().iter().copied()),
                ),
            )?;
            let pairs = evidence.pairs.iter();
            let pairs = pairs.flat_map(|(key, s)| [f64::from(key.0), s.count, s.score, s.expected]);
            transaction.execute(
                "INSERT OR REPLACE INTO word_pairs (arm, sums) VALUES (?1, ?2)",
                (arm.as_str(), packed(pairs)),
            )?;
        }
        for blob in &changed.others {
            transaction.execute(
                "INSERT OR REPLACE INTO testimonies (origin, issued_ms, blob) VALUES (?1, ?2, ?3)",
                (&blob.origin, blob.issued_unix_ms as i64, blob.encode_to_vec()),
            )?;
        }
        for origin in forgotten {
            transaction.execute("DELETE FROM testimonies WHERE origin = ?1", [origin.as_ref()])?;
        }
        transaction.execute(
            "INSERT OR REPLACE INTO evaluator (id, pairs, error) VALUES (1, ?1, ?2)",
            (changed.agreement.pairs, changed.agreement.error),
        )?;
        transaction.commit()?;
        Ok(())
    }

    fn read_or_set_aside<T>(
        &self,
        table: usize,
        read: impl FnOnce(&Connection) -> rusqlite::Result<Vec<T>>,
    ) -> Result<Vec<T>, Error> {
        let connection = self.lock();
        let error = match read(&connection) {
            Ok(rows) => return Ok(rows),
            Err(error) => error,
        };
        let (table, _) = TABLES[table];
        tracing::warn!(%error, table, "a table of what was learnt cannot be read; it is set aside");
        let aside = format!("{table}_damaged_{}_{}", unix_ms(), uuid::Uuid::now_v7().simple());
        connection.execute_batch(&format!("ALTER TABLE {table} RENAME TO {aside};"))?;
        create_tables(&connection)?;
        Ok(Vec::new())
    }
}

fn packed(numbers: impl Iterator<Item = f64>) -> Vec<u8> {
    numbers.flat_map(f64::to_le_bytes).collect()
}

fn unpacked(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()
}

/// Reads pairs of words back; `None` unless honest counting of `judged` answers can lead to them.
fn pairs_of(sums: &[u8], judged: u64) -> Option<PairSums> {
    let mut pairs = PairSums::default();
    for [key, count, score, expected] in unpacked(sums).as_chunks().0 {
        pairs.insert(PairKey(*key as u32), PairSum { count: *count, score: *score, expected: *expected });
    }
    pairs.is_plausible(judged).then_some(pairs)
}

/// Reads sums back; `None` unless honest counting can lead to them.
///
/// Earlier versions knew ten bins of no domain, and nothing of what was seen of the answers.
fn sums_of(version: u64, quality: &[u8], bins: &[u8], answers: &[u8]) -> Option<ArmEvidence> {
    let (sums, bins, answers) = (unpacked(quality), unpacked(bins), unpacked(answers));
    let (gram, reward) = sums.split_at_checked(PACKED)?;
    let quality = QualitySums { version, gram: gram.try_into().ok()?, reward: reward.try_into().ok()? };
    let bins: &[[f64; 3]] = bins.as_chunks().0;
    let first = match bins.len() {
        BINS => ALL_BINS - BINS,
        ALL_BINS => 0,
        _ => return None,
    };
    let mut reliability = DomainReliability::default();
    for (bin, [count, raw_sum, score_sum]) in reliability.bins_mut().skip(first).zip(bins) {
        *bin = Bin { count: *count as u64, raw_sum: *raw_sum, score_sum: *score_sum };
    }
    let answers = match answers.is_empty() {
        true => AnswerSums::default(),
        false => AnswerSums::from_numbers(answers.try_into().ok()?),
    };
    let plausible = quality.is_plausible() && reliability.is_plausible() && answers.is_plausible(&quality);
    plausible.then(|| ArmEvidence { quality, reliability, answers, ..ArmEvidence::default() })
}

#[cfg(test)]
mod tests {
    use shoal_routing::escalate::gain::{AnswerSignals, GainModel};
    use shoal_routing::{Confidence, Domain, Features, Judged, Reward, Score, Testimony};

    use super::*;

    fn learnt() -> Vec<(ArmId, ArmEvidence)> {
        let mut testimony = Testimony::default();
        for name in ["a", "b"] {
            let arm = ArmId::new(name, None);
            let signals = AnswerSignals { raw: Confidence::Known(Score::clamped(0.8)), out_tokens: None };
            let judged = Judged { features: Some(Features::default()), domain: Domain::Math, signals };
            testimony.record_judgement(&arm, &judged, Score::clamped(0.3), &GainModel::default());
            testimony.record_end(&arm, Reward::Valid, Some(12));
            let pairs = &mut testimony.arms.get_mut(&arm).unwrap().pairs;
            pairs.insert(PairKey(u32::MAX), PairSum { count: 1.0, score: 0.3, expected: 0.7 });
        }
        testimony.arms.into_iter().collect()
    }

    fn blob(origin: &str, version: u64) -> SignedBlob {
        SignedBlob { origin: origin.into(), version, payload: vec![1, 2, 3], ..SignedBlob::default() }
    }

    const NOBODY: [&str; 0] = [];

    #[test]
    fn what_was_learnt_here_and_elsewhere_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let agreement = Agreement { pairs: 3.0, error: 0.5 };
        let learning = Learning { own: learnt(), others: vec![blob("x", 1), blob("y", 1)], agreement };
        Store::open(dir.path()).unwrap().write_learning(&learning, &NOBODY).unwrap();
        let newer = Learning { others: vec![blob("x", 2)], ..learning };
        let store = Store::open(dir.path()).unwrap();
        store.write_learning(&newer, &["y"]).unwrap();
        let read = Store::open(dir.path()).unwrap().read_learning().unwrap();
        assert_eq!(read.own, learnt());
        assert_eq!((read.others, read.agreement), (vec![blob("x", 2)], agreement));
    }

    #[test]
    fn sums_without_sense_are_left_out_and_a_table_of_another_shape_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut own = learnt();
        own[0].1.quality.reward[0] = f64::NAN;
        store.write_learning(&Learning { own, ..Learning::default() }, &NOBODY).unwrap();
        store.lock().execute("UPDATE word_pairs SET sums = zeroblob(32) WHERE arm = 'b'", []).unwrap();
        let read = store.read_learning().unwrap().own;
        assert!(read[1].1.pairs.is_empty() && !read[0].1.pairs.is_empty(), "pairs without answers");
        assert_eq!((read[0].1.quality.version, read[1].1.quality.version), (0, 1));
        assert_eq!(read[0].1.stats.scored, 1, "what ended well is counted elsewhere");
        store.lock().execute_batch("DROP TABLE learnt; CREATE TABLE learnt (nonsense BLOB);").unwrap();
        assert_eq!(store.read_learning().unwrap().own.len(), 2);
        store.write_learning(&Learning { own: learnt(), ..Learning::default() }, &NOBODY).unwrap();
        assert_eq!(store.read_learning().unwrap().own, learnt());
    }
}
