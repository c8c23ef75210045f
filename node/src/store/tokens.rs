//! Join tokens of this node: kept as hashes, each use taken in one durable transaction.

use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{OptionalExtension, TransactionBehavior};
use shoal_cluster::ids::Role;
use shoal_cluster::{BookError, Refusal, TokenBook, TokenRecord};
use subtle::ConstantTimeEq;

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
        let row: Option<([u8; 32], String, u32, i64, bool)> = transaction
            .query_row(
                "SELECT secret_sha256, role, uses_left, expires_s, revoked FROM tokens WHERE token_id = ?1",
                [&token_id[..]],
                |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?)),
            )
            .optional()
            .map_err(store_error)?;
        let Some((secret, stored_role, uses_left, expires_s, revoked)) = row else {
            return Err(Refusal::Unknown);
        };
        let now_s = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
        // The secret comes first: without it nothing about the token may be learnt.
        if !bool::from(secret.ct_eq(secret_sha256)) {
            return Err(Refusal::WrongSecret);
        }
        if revoked {
            return Err(Refusal::Revoked);
        }
        if expires_s <= now_s {
            return Err(Refusal::Expired);
        }
        if stored_role != role.as_str() {
            return Err(Refusal::WrongRole);
        }
        if uses_left == 0 {
            return Err(Refusal::Used);
        }
        transaction
            .execute("UPDATE tokens SET uses_left = uses_left - 1 WHERE token_id = ?1", [&token_id[..]])
            .map_err(store_error)?;
        transaction.commit().map_err(store_error)
    }

    fn list(&self) -> Result<Vec<TokenRecord>, BookError> {
        let connection = self.store.lock();
        let mut statement = connection
            .prepare("SELECT token_id, secret_sha256, role, uses_left, expires_s, created_s, revoked FROM tokens ORDER BY created_s")
            .map_err(book_error)?;
        let rows = statement
            .query_map([], |r| {
                let role: String = r.get(2)?;
                Ok(TokenRecord {
                    token_id: r.get(0)?,
                    secret_sha256: r.get(1)?,
                    role: if role == Role::Router.as_str() { Role::Router } else { Role::Device },
                    uses_left: r.get(3)?,
                    expires_unix_s: r.get::<_, i64>(4)? as u64,
                    created_unix_s: r.get::<_, i64>(5)? as u64,
                    revoked: r.get(6)?,
                })
            })
            .map_err(book_error)?;
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

fn book_error(error: rusqlite::Error) -> BookError {
    BookError(error.to_string())
}
