//! Join tokens of this node: kept as hashes, each use taken in one durable transaction.

use std::time::SystemTime;

use rusqlite::{OptionalExtension, Row, TransactionBehavior};
use shoal_cluster::ids::Role;
use shoal_cluster::{BookError, Refusal, TokenBook, TokenRecord};

use super::{KeyRing, Store};

/// The issuing side's book of tokens, on the store.
pub struct StoreBook {
    store: Store,
    keys: std::sync::Arc<KeyRing>,
}

impl StoreBook {
    /// Makes the book over a store; `keys` are handed to joining routers.
    pub fn new(store: Store, keys: std::sync::Arc<KeyRing>) -> Self {
        Self { store, keys }
    }
}

impl TokenBook for StoreBook {
    fn insert(&self, token: &TokenRecord) -> Result<(), BookError> {
        self.store
            .lock()
            .execute(
                "INSERT INTO tokens (token_id, secret_sha256, role, uses_left, expires_s, created_s, revoked)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0)",
                (
                    &token.token_id[..],
                    &token.secret_sha256[..],
                    token.role.as_str(),
                    token.uses_left,
                    token.expires_unix_s as i64,
                    token.created_unix_s as i64,
                ),
            )
            .map_err(book_error)?;
        Ok(())
    }

    fn consume(
        &self,
        token_id: &[u8; 8],
        secret_sha256: &[u8; 32],
        role: Role,
        now: SystemTime,
    ) -> Result<(), Refusal> {
        let store_error = |e: rusqlite::Error| Refusal::Store(e.to_string());
        let mut connection = self.store.lock();
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(store_error)?;
        let mut record = transaction
            .query_row(&format!("{SELECT} WHERE token_id = ?1"), [&token_id[..]], read)
            .optional()
            .map_err(store_error)?
            .ok_or(Refusal::Unknown)?;
        record.take_use(secret_sha256, role, now)?;
        transaction
            .execute("UPDATE tokens SET uses_left = uses_left - 1 WHERE token_id = ?1", [&token_id[..]])
            .map_err(store_error)?;
        transaction.commit().map_err(store_error)
    }

    fn list(&self) -> Result<Vec<TokenRecord>, BookError> {
        let connection = self.store.lock();
        let mut statement =
            connection.prepare(&format!("{SELECT} ORDER BY created_s")).map_err(book_error)?;
        let rows = statement.query_map([], read).map_err(book_error)?;
        rows.collect::<Result<_, _>>().map_err(book_error)
    }

    fn revoke(&self, token_id: &[u8; 8]) -> Result<bool, BookError> {
        let changed = self
            .store
            .lock()
            .execute("UPDATE tokens SET revoked = 1 WHERE token_id = ?1", [&token_id[..]])
            .map_err(book_error)?;
        Ok(changed > 0)
    }

    fn key_records(&self) -> shoal_proto::KeyRecords {
        shoal_proto::KeyRecords {
            keys: self.keys.list().into_iter().map(crate::replication::key_to_proto).collect(),
        }
    }
}

const SELECT: &str =
    "SELECT token_id, secret_sha256, role, uses_left, expires_s, created_s, revoked FROM tokens";

fn read(row: &Row<'_>) -> rusqlite::Result<TokenRecord> {
    let role: String = row.get(2)?;
    Ok(TokenRecord {
        token_id: row.get(0)?,
        secret_sha256: row.get(1)?,
        role: if role == Role::Router.as_str() { Role::Router } else { Role::Device },
        uses_left: row.get(3)?,
        expires_unix_s: row.get::<_, i64>(4)? as u64,
        created_unix_s: row.get::<_, i64>(5)? as u64,
        revoked: row.get(6)?,
    })
}

fn book_error(error: rusqlite::Error) -> BookError {
    BookError(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_use_is_taken_for_good_also_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let store = Store::open(dir.path()).unwrap();
            StoreBook::new(store.clone(), KeyRing::load(store).unwrap())
        };
        let (id, secret, now) = ([1; 8], [2; 32], SystemTime::now());
        let expires = now + Duration::from_secs(60);
        let unix_s = |t: SystemTime| t.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let token = TokenRecord {
            token_id: id,
            secret_sha256: secret,
            role: Role::Device,
            uses_left: 1,
            expires_unix_s: unix_s(expires),
            created_unix_s: unix_s(now),
            revoked: false,
        };
        let book = open();
        book.insert(&token).unwrap();
        assert_eq!(book.consume(&[9; 8], &secret, Role::Device, now), Err(Refusal::Unknown));
        assert_eq!(book.consume(&id, &[0; 32], Role::Device, now), Err(Refusal::WrongSecret));
        assert_eq!(book.consume(&id, &secret, Role::Router, now), Err(Refusal::WrongRole));
        assert_eq!(book.consume(&id, &secret, Role::Device, expires), Err(Refusal::Expired));
        assert_eq!(book.consume(&id, &secret, Role::Device, now), Ok(()));
        drop(book);
        let book = open();
        assert_eq!(book.consume(&id, &secret, Role::Device, now), Err(Refusal::Used));
        assert!(book.revoke(&id).unwrap());
        assert_eq!(book.consume(&id, &secret, Role::Device, now), Err(Refusal::Revoked));
    }
}
