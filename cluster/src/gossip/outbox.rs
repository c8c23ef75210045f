//! What this router wants the others to know: pure bookkeeping of what must be (re-)signed and written when.
//!
//! Changes are collected and written at most once a gossip interval, so a value that changes a thousand
//! times a second costs one signature an interval. Sizes are bounded when a value is handed in, because
//! chitchat silently stops at a value that does not fit.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::ledger::MAX_KEYS;
use crate::keyspace::{self, Key, MAX_NODE_BYTES, MAX_VALUE_BYTES, Origin, Refusal, Value};

/// A value is written again after so long even if it did not change: a member that was kept from it by
/// another (deltas do not prove that they are complete) has it then.
const REFRESH_AFTER: Duration = Duration::from_secs(60);

/// A value that is too large to replicate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} takes {size} bytes of at most {limit}")]
pub struct TooLarge {
    /// The value's key, or "this node".
    pub what: String,
    /// Bytes of keys and texts.
    pub size: usize,
    /// The bound.
    pub limit: usize,
}

/// What is to be replicated.
pub(super) struct Outbox {
    origin: Origin,
    entries: BTreeMap<Key, Entry>,
}

struct Entry {
    /// `None` is a withdrawal that was not written yet.
    value: Option<Value>,
    size: usize,
    dirty: bool,
    written_at: Instant,
}

impl Outbox {
    /// Makes an outbox; `origin` is only used to measure.
    pub(super) fn new(origin: Origin) -> Self {
        Self { origin, entries: BTreeMap::new() }
    }

    /// Puts a value in, to be written next time.
    ///
    /// # Errors
    /// [`TooLarge`] when the value, or all together, are over the bound; nothing changes then.
    pub(super) fn put(&mut self, key: Key, value: Value, now: Instant) -> Result<(), TooLarge> {
        let what = key.to_string();
        let size = what.len() + self.measure(&key, &value)?;
        let others: usize =
            self.entries.iter().filter(|(other, _)| **other != key).map(|(_, e)| e.size).sum();
        if others + size > MAX_NODE_BYTES {
            return Err(TooLarge {
                what: "this node".to_owned(),
                size: others + size,
                limit: MAX_NODE_BYTES,
            });
        }
        if !self.entries.contains_key(&key) && self.entries.len() >= MAX_KEYS / 2 {
            return Err(TooLarge { what, size: self.entries.len(), limit: MAX_KEYS / 2 });
        }
        let same = self.entries.get(&key).is_some_and(|entry| entry.value.as_ref() == Some(&value));
        if !same {
            let entry = Entry { value: Some(value), size, dirty: true, written_at: now };
            self.entries.insert(key, entry);
        }
        Ok(())
    }

    /// Takes a value back. Unknown keys are nothing to take back.
    pub(super) fn withdraw(&mut self, key: &Key) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.value = None;
            entry.dirty = true;
            entry.size = 0;
        }
    }

    /// Has everything written again, for a new life.
    pub(super) fn renew_all(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.dirty = true);
    }

    /// Takes what must be written now; `None` withdraws the key.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<(Key, Option<Value>)> {
        let mut due = Vec::new();
        self.entries.retain(|key, entry| {
            let old = now.saturating_duration_since(entry.written_at) >= REFRESH_AFTER;
            if entry.dirty || old {
                due.push((key.clone(), entry.value.clone()));
                entry.dirty = false;
                entry.written_at = now;
            }
            entry.value.is_some()
        });
        due
    }

    /// Length of the value's text if every number in its envelope were the largest.
    fn measure(&self, key: &Key, value: &Value) -> Result<usize, TooLarge> {
        let widest = Origin { generation: u64::MAX, ..self.origin.clone() };
        match keyspace::seal(&widest, key, u64::MAX, u64::MAX, Some(value), |_| vec![0; 64]) {
            Ok(text) => Ok(text.len()),
            Err(Refusal::Oversized | _) => {
                let size = value.encode().len().div_ceil(3) * 4;
                Err(TooLarge { what: key.to_string(), size, limit: MAX_VALUE_BYTES })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeId;
    use shoal_proto::{ArmSummaries, DeviceInfo, NodeInfo};

    fn outbox() -> Outbox {
        Outbox::new(Origin { id: NodeId::from_spki(b"me"), generation: 1, addr: ([127, 0, 0, 1], 1).into() })
    }

    fn device(n: usize, name_len: usize) -> (Key, Value) {
        let id = NodeId::from_spki(&n.to_be_bytes());
        let info = DeviceInfo { id: id.to_string(), name: "n".repeat(name_len), ..DeviceInfo::default() };
        (Key::Device(id), Value::Device(info))
    }

    #[test]
    fn changes_of_one_key_are_written_once() {
        let (mut outbox, now) = (outbox(), Instant::now());
        for name in ["a", "b", "c"] {
            let value = Value::Node(NodeInfo { name: name.into(), ..NodeInfo::default() });
            outbox.put(Key::Node, value, now).unwrap();
        }
        let due = outbox.take_due(now);
        assert!(matches!(&due[..], [(Key::Node, Some(Value::Node(info)))] if info.name == "c"));
        assert!(outbox.take_due(now).is_empty());
        let same = Value::Node(NodeInfo { name: "c".into(), ..NodeInfo::default() });
        outbox.put(Key::Node, same, now).unwrap();
        assert!(outbox.take_due(now).is_empty(), "nothing changed");
        assert_eq!(outbox.take_due(now + REFRESH_AFTER).len(), 1);
    }

    #[test]
    fn a_withdrawal_is_written_once() {
        let (mut outbox, now) = (outbox(), Instant::now());
        outbox.put(Key::Stats, Value::Stats(ArmSummaries::default()), now).unwrap();
        outbox.take_due(now);
        outbox.withdraw(&Key::Stats);
        outbox.withdraw(&Key::Lease);
        assert_eq!(outbox.take_due(now), vec![(Key::Stats, None)]);
        assert!(outbox.take_due(now + REFRESH_AFTER).is_empty());
    }

    #[test]
    fn too_large_values_are_refused_and_change_nothing() {
        let (mut outbox, now) = (outbox(), Instant::now());
        let (key, value) = device(0, MAX_VALUE_BYTES);
        assert!(outbox.put(key, value, now).is_err());
        let accepted = (1..100).take_while(|n| {
            let (key, value) = device(*n, 4_000);
            outbox.put(key, value, now).is_ok()
        });
        assert!((7..10).contains(&accepted.count()), "48 KiB hold eight values of 5.5 KiB");
        let size: usize = outbox.entries.values().map(|entry| entry.size).sum();
        assert!(size <= MAX_NODE_BYTES);
        let (key, _) = device(1, 0);
        outbox.withdraw(&key);
        let (key, value) = device(200, 4_000);
        assert!(outbox.put(key, value, now).is_ok(), "a withdrawn value makes room");
    }
}
