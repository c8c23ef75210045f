//! Where an issuing node keeps its tokens: only the hash of each secret, never the secret.
//!
//! Only the issuer redeems its tokens, so "used exactly once" needs no agreement between nodes, also
//! while the mesh is split. The node package keeps its book in its database; [`MemoryBook`] is for tests.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use subtle::ConstantTimeEq as _;

use crate::ids::Role;

/// A token as its issuer remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Name of the token.
    pub token_id: [u8; 8],
    /// SHA-256 of the secret.
    pub secret_sha256: [u8; 32],
    /// What joiners become.
    pub role: Role,
    /// Joins that it still allows.
    pub uses_left: u32,
    /// End of validity, seconds since the Unix epoch.
    pub expires_unix_s: u64,
    /// When it was made, seconds since the Unix epoch.
    pub created_unix_s: u64,
    /// True once it was revoked.
    pub revoked: bool,
}

impl TokenRecord {
    /// Checks an attempt and takes one use, without regard to storage. The secret is compared first, and in
    /// constant time, so that who does not know it learns nothing about the token.
    ///
    /// # Errors
    /// The [`Refusal`] that fits; the record is then unchanged.
    pub fn take_use(&mut self, secret_sha256: &[u8; 32], role: Role, now: SystemTime) -> Result<(), Refusal> {
        if !bool::from(self.secret_sha256.ct_eq(secret_sha256)) {
            return Err(Refusal::WrongSecret);
        }
        if self.revoked {
            return Err(Refusal::Revoked);
        }
        if self.role != role {
            return Err(Refusal::WrongRole);
        }
        let now_s = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if now_s >= self.expires_unix_s {
            return Err(Refusal::Expired);
        }
        self.uses_left = self.uses_left.checked_sub(1).ok_or(Refusal::Used)?;
        Ok(())
    }
}

/// Why a token does not let its bearer in. Each text is a sentence for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The issuer has no such token.
    #[error(
        "the node that should have made this token does not know it; make a new one with `shoal token create`"
    )]
    Unknown,
    /// All uses are taken.
    #[error("this token has been used already; make a new one with `shoal token create`")]
    Used,
    /// Too old.
    #[error("this token has expired; make a new one with `shoal token create --ttl 1h`")]
    Expired,
    /// Taken back by an administrator.
    #[error("this token has been revoked; make a new one with `shoal token create`")]
    Revoked,
    /// Made for the other role.
    #[error(
        "this token is for another role; make one with `shoal token create --role router` or `--role device`"
    )]
    WrongRole,
    /// Altered.
    #[error("the secret of this token is wrong; copy it again, or make a new one with `shoal token create`")]
    WrongSecret,
    /// The book could not be written; the token was not used up.
    #[error(
        "the node could not record the use of this token ({0}); check its disk with `shoal doctor` there and try again"
    )]
    Store(String),
}

/// The book could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the token book cannot be used: {0}; check the disk with `shoal doctor`")]
pub struct BookError(pub String);

/// Where an issuing node keeps its tokens. Calls may block for a disk flush; they run off the async workers.
pub trait TokenBook: Send + Sync + 'static {
    /// Records a new token, durably.
    fn insert(&self, token: &TokenRecord) -> Result<(), BookError>;

    /// Checks secret hash, role, expiry, revocation and remaining uses, and takes one use, in one durable
    /// transaction.
    fn consume(
        &self,
        token_id: &[u8; 8],
        secret_sha256: &[u8; 32],
        role: Role,
        now: SystemTime,
    ) -> Result<(), Refusal>;

    /// All tokens, also spent ones.
    fn list(&self) -> Result<Vec<TokenRecord>, BookError>;

    /// Takes a token back; false when there is none of this name.
    fn revoke(&self, token_id: &[u8; 8]) -> Result<bool, BookError>;

    /// API-key records to hand to a joining router (hashes, never secrets).
    fn key_records(&self) -> shoal_proto::KeyRecords;
}

/// A book that forgets when the process ends, for tests and simulations.
#[derive(Debug, Default)]
pub struct MemoryBook {
    tokens: Mutex<BTreeMap<[u8; 8], TokenRecord>>,
    keys: Mutex<shoal_proto::KeyRecords>,
}

impl MemoryBook {
    /// Makes an empty book.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what [`TokenBook::key_records`] returns.
    pub fn set_key_records(&self, keys: shoal_proto::KeyRecords) {
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, BTreeMap<[u8; 8], TokenRecord>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TokenBook for MemoryBook {
    fn insert(&self, token: &TokenRecord) -> Result<(), BookError> {
        self.tokens().insert(token.token_id, token.clone());
        Ok(())
    }

    fn consume(
        &self,
        token_id: &[u8; 8],
        secret_sha256: &[u8; 32],
        role: Role,
        now: SystemTime,
    ) -> Result<(), Refusal> {
        self.tokens().get_mut(token_id).ok_or(Refusal::Unknown)?.take_use(secret_sha256, role, now)
    }

    fn list(&self) -> Result<Vec<TokenRecord>, BookError> {
        Ok(self.tokens().values().cloned().collect())
    }

    fn revoke(&self, token_id: &[u8; 8]) -> Result<bool, BookError> {
        Ok(self.tokens().get_mut(token_id).map(|token| token.revoked = true).is_some())
    }

    fn key_records(&self) -> shoal_proto::KeyRecords {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECRET: [u8; 32] = [5; 32];

    fn book(uses: u32) -> MemoryBook {
        let book = MemoryBook::new();
        let record = TokenRecord {
            token_id: [1; 8],
            secret_sha256: SECRET,
            role: Role::Device,
            uses_left: uses,
            expires_unix_s: 1000,
            created_unix_s: 0,
            revoked: false,
        };
        book.insert(&record).unwrap();
        book
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn each_wrong_attempt_has_its_own_refusal_and_costs_no_use() {
        let book = book(1);
        let check = |id: u8, secret: [u8; 32], role, now, expected: Refusal| {
            assert_eq!(book.consume(&[id; 8], &secret, role, at(now)), Err(expected));
        };
        check(2, SECRET, Role::Device, 1, Refusal::Unknown);
        check(1, [6; 32], Role::Device, 1, Refusal::WrongSecret);
        check(1, SECRET, Role::Router, 1, Refusal::WrongRole);
        check(1, SECRET, Role::Device, 1000, Refusal::Expired);
        assert_eq!(book.consume(&[1; 8], &SECRET, Role::Device, at(999)), Ok(()));
        check(1, SECRET, Role::Device, 1, Refusal::Used);
    }

    #[test]
    fn a_revoked_token_says_so_only_to_who_knows_its_secret() {
        let book = book(3);
        assert_eq!(book.revoke(&[1; 8]), Ok(true));
        assert_eq!(book.revoke(&[2; 8]), Ok(false));
        assert_eq!(book.consume(&[1; 8], &SECRET, Role::Device, at(1)), Err(Refusal::Revoked));
        assert_eq!(book.consume(&[1; 8], &[0; 32], Role::Device, at(1)), Err(Refusal::WrongSecret));
    }
}
