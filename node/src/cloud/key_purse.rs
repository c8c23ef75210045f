//! Money of API keys: a purse for each key that has a budget, opened when it is first used.
//!
//! It is this node's book: a key works on every node, and each node counts what clients spent by way of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use shoal_routing::MicroUsd;

use super::purse::{Owner, Purse};
use crate::store::{KeyRing, Store};

/// The purses of a node's keys.
pub struct KeyPurses {
    keys: Arc<KeyRing>,
    store: Store,
    /// One purse a key, so that all its requests see the same book. Bounded by the number of keys.
    open: Mutex<BTreeMap<String, Purse>>,
}

impl KeyPurses {
    /// Opens no purse yet.
    pub fn new(keys: Arc<KeyRing>, store: Store) -> Self {
        Self { keys, store, open: Mutex::default() }
    }

    /// Returns the purse of a key; `None` if it has no budget of its own.
    pub fn of(&self, key_id: &str) -> Option<Purse> {
        let budget = self.keys.find(key_id)?.budget?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(purse) = open.get(key_id).filter(|purse| purse.budget() == budget) {
            return Some(purse.clone());
        }
        let purse = Purse::new(Owner::Key(key_id.into()), budget, self.store.clone());
        open.insert(key_id.to_owned(), purse.clone());
        Some(purse)
    }

    /// Returns what a key may still spend; `None` if it has no budget of its own. Nothing, if the book cannot be read.
    pub fn left(&self, key_id: &str) -> Option<MicroUsd> {
        let purse = self.of(key_id)?;
        Some(purse.left().unwrap_or_else(|error| {
            tracing::error!(%error, key = key_id, "the purse of a key cannot be read; it spends nothing");
            MicroUsd(0)
        }))
    }
}
