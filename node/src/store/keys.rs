//! API keys: made here, shown once, kept as hashes, checked without touching the disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use data_encoding::BASE32_NOPAD;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use subtle::ConstantTimeEq;

use super::{Error, Store, unix_ms};
use crate::cloud::Budget;

const PREFIX: &str = "sk-shoal-";
/// Bytes of secret in a key: 256 bits, out of reach of guessing.
const SECRET_LEN: usize = 32;

/// An API key without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRecord {
    /// Public part, 8 characters; in logs and lists.
    pub id: String,
    /// SHA-256 of the whole key text.
    pub sha256: [u8; 32],
    /// What the owner calls it.
    pub name: String,
    /// Requests with this key never leave the devices of the mesh.
    pub local_only: bool,
    /// Milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// Zero while valid.
    pub revoked_ms: u64,
    /// What requests with this key may cost at providers; `None` = only the providers' own budgets bound it.
    pub budget: Option<Budget>,
}

impl KeyRecord {
    /// Returns what is left of this record once another one of its id came; `None` if that says nothing new.
    ///
    /// A record with a budget gives its budget and nothing else: secret, name and bounds of a known key stay as they
    /// are, whoever says otherwise.
    fn changed_by(&self, other: &Self) -> Option<Self> {
        if self.revoked_ms != 0 {
            return None;
        }
        if other.revoked_ms != 0 {
            return Some(other.clone());
        }
        // A router of an earlier version hands a record on without its budget.
        let is_same = self.sha256 == other.sha256 && self.created_ms == other.created_ms;
        let bounds = self.budget.is_none() && other.budget.is_some() && is_same;
        bounds.then(|| Self { budget: other.budget, ..self.clone() })
    }
}

/// A key just made: the only moment at which its text exists.
pub struct NewKey {
    /// The record that is kept.
    pub record: KeyRecord,
    /// The text to hand out.
    pub text: String,
}

/// All known keys; reads are a snapshot, writes go to the store first.
pub struct KeyRing {
    store: Store,
    keys: ArcSwap<BTreeMap<String, KeyRecord>>,
    /// Held while records are merged: two merges at once would lose what the first one brought.
    merging: Mutex<()>,
    /// A key of the environment: accepted here alone, never stored nor shared.
    foreign: ArcSwapOption<KeyRecord>,
}

impl KeyRing {
    /// Reads all keys of the store.
    pub fn load(store: Store) -> Result<Arc<Self>, Error> {
        let keys = store.read_keys()?;
        Ok(Arc::new(Self {
            store,
            keys: ArcSwap::from_pointee(keys),
            merging: Mutex::default(),
            foreign: ArcSwapOption::empty(),
        }))
    }

    /// Accepts one key of another form, known by its SHA-256; `name` says in the request log where it came from.
    pub fn accept_foreign(&self, name: &str, sha256: [u8; 32]) {
        let record = KeyRecord {
            id: name.to_owned(),
            sha256,
            name: name.to_owned(),
            local_only: false,
            created_ms: unix_ms(),
            revoked_ms: 0,
            budget: None,
        };
        self.foreign.store(Some(Arc::new(record)));
    }

    /// Makes a key, stores its hash durably and returns the text once.
    pub fn create(&self, name: &str, local_only: bool, budget: Option<Budget>) -> Result<NewKey, Error> {
        let mut random = [0_u8; SECRET_LEN + 5];
        SystemRandom::new().fill(&mut random).map_err(|_| Error::Open {
            path: "system random generator".into(),
            message: "gives no random bytes".into(),
        })?;
        let id = BASE32_NOPAD.encode(&random[..5]).to_ascii_lowercase();
        let secret = BASE32_NOPAD.encode(&random[5..]).to_ascii_lowercase();
        let text = format!("{PREFIX}{id}_{secret}");
        let record = KeyRecord {
            id,
            sha256: sha256(&text),
            name: name.to_owned(),
            local_only,
            created_ms: unix_ms(),
            revoked_ms: 0,
            budget,
        };
        self.merge(vec![record.clone()])?;
        Ok(NewKey { record, text })
    }

    /// Returns the record of a valid key. Takes the same time for a wrong secret as for a right one.
    pub fn authenticate(&self, text: &str) -> Option<KeyRecord> {
        let foreign = self.foreign.load();
        if let Some(record) = foreign.as_deref()
            && bool::from(sha256(text).ct_eq(&record.sha256))
        {
            return Some(record.clone());
        }
        let id = text.strip_prefix(PREFIX)?.split('_').next()?;
        let keys = self.keys.load();
        let record = keys.get(id)?;
        let matches = bool::from(sha256(text).ct_eq(&record.sha256));
        (matches && record.revoked_ms == 0).then(|| record.clone())
    }

    /// Returns the record of a key by its id, whether it is valid or not.
    pub fn find(&self, id: &str) -> Option<KeyRecord> {
        self.keys.load().get(id).cloned()
    }

    /// Takes records over, from another router or from here; a revoked record wins over an unrevoked one.
    ///
    /// Returns how many changed something.
    pub fn merge(&self, records: Vec<KeyRecord>) -> Result<usize, Error> {
        let _merging = self.merging.lock().unwrap_or_else(PoisonError::into_inner);
        let mut keys = BTreeMap::clone(&self.keys.load());
        let mut changed = Vec::new();
        for record in records {
            let taken = match keys.get(&record.id) {
                None => record,
                Some(old) => match old.changed_by(&record) {
                    Some(changed) => changed,
                    None => continue,
                },
            };
            keys.insert(taken.id.clone(), taken.clone());
            changed.push(taken);
        }
        self.store.write_keys(&changed)?;
        self.keys.store(Arc::new(keys));
        Ok(changed.len())
    }

    /// Revokes a key by its id; false if there is none.
    pub fn revoke(&self, id: &str) -> Result<bool, Error> {
        let Some(mut record) = self.keys.load().get(id).cloned() else { return Ok(false) };
        record.revoked_ms = unix_ms();
        self.merge(vec![record])?;
        Ok(true)
    }

    /// Returns all records, revoked ones included, by id.
    pub fn list(&self) -> Vec<KeyRecord> {
        self.keys.load().values().cloned().collect()
    }

    /// Returns true when no key was ever made.
    pub fn is_empty(&self) -> bool {
        self.keys.load().is_empty()
    }
}

impl Store {
    fn read_keys(&self) -> Result<BTreeMap<String, KeyRecord>, Error> {
        let connection = self.lock();
        let mut statement = connection.prepare(
            "SELECT id, sha256, name, local_only, created_ms, revoked_ms, budget FROM keys
             LEFT JOIN key_budgets ON key_id = id",
        )?;
        let rows = statement.query_map([], |row| {
            Ok(KeyRecord {
                id: row.get(0)?,
                sha256: row.get(1)?,
                name: row.get(2)?,
                local_only: row.get(3)?,
                created_ms: row.get::<_, i64>(4)? as u64,
                revoked_ms: row.get::<_, i64>(5)? as u64,
                // What cannot be read must not become a key without a bound.
                budget: row.get::<_, Option<String>>(6)?.map(|text| text.parse().unwrap_or(Budget::NOTHING)),
            })
        })?;
        rows.map(|row| row.map(|r| (r.id.clone(), r))).collect::<Result<_, _>>().map_err(Error::from)
    }

    fn write_keys(&self, records: &[KeyRecord]) -> Result<(), Error> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        for r in records {
            transaction.execute(
                "INSERT OR REPLACE INTO keys (id, sha256, name, local_only, created_ms, revoked_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                (&r.id, &r.sha256[..], &r.name, r.local_only, r.created_ms as i64, r.revoked_ms as i64),
            )?;
            if let Some(budget) = r.budget {
                transaction.execute(
                    "INSERT OR REPLACE INTO key_budgets (key_id, budget) VALUES (?1, ?2)",
                    (&r.id, budget.to_string()),
                )?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

fn sha256(text: &str) -> [u8; 32] {
    digest(&SHA256, text.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_key_opens_and_a_revoked_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let ring = KeyRing::load(Store::open(dir.path()).unwrap()).unwrap();
        let key = ring.create("laptop", true, None).unwrap();
        assert!(ring.authenticate(&key.text).unwrap().local_only);
        let mut wrong = key.text.clone();
        wrong.pop();
        for bad in [
            "",
            "sk-shoal-",
            "sk-shoal-x_y",
            wrong.as_str(),
            &format!("{}x", key.text),
            &key.text.to_uppercase(),
        ] {
            assert!(ring.authenticate(bad).is_none(), "{bad}");
        }
        assert!(ring.revoke(&key.record.id).unwrap());
        assert!(ring.authenticate(&key.text).is_none());
        let reloaded = KeyRing::load(Store::open(dir.path()).unwrap()).unwrap();
        assert!(reloaded.authenticate(&key.text).is_none());
    }

    #[test]
    fn a_foreign_key_opens_here_and_is_kept_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let ring = KeyRing::load(Store::open(dir.path()).unwrap()).unwrap();
        assert!(ring.authenticate("my-secret-token").is_none());
        ring.accept_foreign("LFO_AUTH_TOKEN", sha256("my-secret-token"));
        assert_eq!(ring.authenticate("my-secret-token").unwrap().id, "LFO_AUTH_TOKEN");
        for bad in ["", "my-secret-toke", "LFO_AUTH_TOKEN", "sk-shoal-LFO_AUTH_TOKEN_x"] {
            assert!(ring.authenticate(bad).is_none(), "{bad}");
        }
        assert!(ring.is_empty() && ring.list().is_empty());
        let reloaded = KeyRing::load(Store::open(dir.path()).unwrap()).unwrap();
        assert!(reloaded.authenticate("my-secret-token").is_none());
    }

    #[test]
    fn a_revocation_is_not_undone_by_an_older_record() {
        let dir = tempfile::tempdir().unwrap();
        let ring = KeyRing::load(Store::open(dir.path()).unwrap()).unwrap();
        let key = ring.create("laptop", false, None).unwrap();
        ring.revoke(&key.record.id).unwrap();
        assert_eq!(ring.merge(vec![key.record]).unwrap(), 0);
        assert!(ring.authenticate(&key.text).is_none());
    }

    #[test]
    fn a_budget_survives_a_restart_and_a_router_that_does_not_know_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let ring = KeyRing::load(Store::open(dir.path()).unwrap()).unwrap();
        let budget: Budget = "5usd/month".parse().unwrap();
        let key = ring.create("intern", false, Some(budget)).unwrap().record;
        let unbound = KeyRecord { budget: None, ..key.clone() };
        ring.merge(vec![unbound.clone()]).unwrap();
        let reloaded = KeyRing::load(Store::open(dir.path()).unwrap()).unwrap();
        assert_eq!(reloaded.find(&key.id).unwrap().budget, Some(budget));
        let other = tempfile::tempdir().unwrap();
        let other = KeyRing::load(Store::open(other.path()).unwrap()).unwrap();
        other.merge(vec![unbound]).unwrap();
        assert_eq!(other.merge(vec![key.clone()]).unwrap(), 1);
        assert_eq!(other.find(&key.id).unwrap().budget, Some(budget));
    }

    #[test]
    fn a_record_with_a_budget_changes_nothing_else_of_a_known_key() {
        let dir = tempfile::tempdir().unwrap();
        let ring = KeyRing::load(Store::open(dir.path()).unwrap()).unwrap();
        let key = ring.create("laptop", true, None).unwrap();
        let budget = Some("5usd/month".parse().unwrap());
        let looser = KeyRecord { budget, local_only: false, name: "x".into(), ..key.record.clone() };
        for foreign in [
            KeyRecord { sha256: sha256("another"), ..looser.clone() },
            KeyRecord { created_ms: 1, ..looser.clone() },
        ] {
            assert_eq!(ring.merge(vec![foreign]).unwrap(), 0);
        }
        assert_eq!(ring.merge(vec![looser]).unwrap(), 1);
        let reloaded = KeyRing::load(Store::open(dir.path()).unwrap()).unwrap();
        assert_eq!(reloaded.authenticate(&key.text).unwrap(), KeyRecord { budget, ..key.record });
    }

    #[test]
    fn the_store_never_holds_the_key_itself() {
        let dir = tempfile::tempdir().unwrap();
        let ring = KeyRing::load(Store::open(dir.path()).unwrap()).unwrap();
        let key = ring.create("laptop", false, None).unwrap();
        let secret = key.text.split('_').nth(1).unwrap().as_bytes();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            assert!(!bytes.windows(secret.len()).any(|w| w == secret));
        }
    }
}
