//! API keys: made here, shown once, kept as hashes, checked without touching the disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use data_encoding::BASE32_NOPAD;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use subtle::ConstantTimeEq;

use super::{Error, Store, unix_ms};

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
}

impl KeyRing {
    /// Reads all keys of the store.
    pub fn load(store: Store) -> Result<Arc<Self>, Error> {
        let keys = store.read_keys()?;
        Ok(Arc::new(Self { store, keys: ArcSwap::from_pointee(keys), merging: Mutex::default() }))
    }

    /// Makes a key, stores its hash durably and returns the text once.
    pub fn create(&self, name: &str, local_only: bool) -> Result<NewKey, Error> {
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
        };
        self.merge(vec![record.clone()])?;
        Ok(NewKey { record, text })
    }

    /// Returns the record of a valid key. Takes the same time for a wrong secret as for a right one.
    pub fn authenticate(&self, text: &str) -> Option<KeyRecord> {
        let id = text.strip_prefix(PREFIX)?.split('_').next()?;
        let keys = self.keys.load();
        let record = keys.get(id)?;
        let matches = bool::from(sha256(text).ct_eq(&record.sha256));
        (matches && record.revoked_ms == 0).then(|| record.clone())
    }

    /// Takes records over, from another router or from here; a revoked record wins over an unrevoked one.
    ///
    /// Returns how many changed something.
    pub fn merge(&self, records: Vec<KeyRecord>) -> Result<usize, Error> {
        let _merging = self.merging.lock().unwrap_or_else(PoisonError::into_inner);
        let mut keys = BTreeMap::clone(&self.keys.load());
        let mut changed = Vec::new();
        for record in records {
            let newer = keys.get(&record.id).is_none_or(|old| old.revoked_ms == 0 && record.revoked_ms != 0);
            if newer {
                keys.insert(record.id.clone(), record.clone());
                changed.push(record);
            }
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
        let mut statement =
            connection.prepare("SELECT id, sha256, name, local_only, created_ms, revoked_ms FROM keys")?;
        let rows = statement.query_map([], |row| {
            Ok(KeyRecord {
                id: row.get(0)?,
                sha256: row.get(1)?,
                name: row.get(2)?,
                local_only: row.get(3)?,
                created_ms: row.get::<_, i64>(4)? as u64,
                revoked_ms: row.get::<_, i64>(5)? as u64,
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
        let key = ring.create("laptop", true).unwrap();
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
    fn a_revocation_is_not_undone_by_an_older_record() {
        let dir = tempfile::tempdir().unwrap();
        let ring = KeyRing::load(Store::open(dir.path()).unwrap()).unwrap();
        let key = ring.create("laptop", false).unwrap();
        ring.revoke(&key.record.id).unwrap();
        assert_eq!(ring.merge(vec![key.record]).unwrap(), 0);
        assert!(ring.authenticate(&key.text).is_none());
    }

    #[test]
    fn the_store_never_holds_the_key_itself() {
        let dir = tempfile::tempdir().unwrap();
        let ring = KeyRing::load(Store::open(dir.path()).unwrap()).unwrap();
        let key = ring.create("laptop", false).unwrap();
        let secret = key.text.split('_').nth(1).unwrap().as_bytes();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            assert!(!bytes.windows(secret.len()).any(|w| w == secret));
        }
    }
}
