//! Counts answers that run at once, and refuses more.
//!
//! Not a semaphore, because the limit belongs to engines that come and go, and because a change of the count is
//! news: it goes into the device's announcement. The guard gives its slot back when dropped, so a
//! cancelled or panicking answer does too.

use std::sync::Arc;

use tokio::sync::watch;

/// How many slots are in use; cheap to clone, all clones count together.
#[derive(Debug, Clone)]
pub struct Slots {
    usage: Arc<watch::Sender<Usage>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Usage {
    taken: u32,
    closed: bool,
}

impl Default for Slots {
    fn default() -> Self {
        Self { usage: Arc::new(watch::Sender::new(Usage::default())) }
    }
}

impl Slots {
    /// Takes a slot if fewer than `limit` are taken and the counter is not closed.
    pub fn try_take(&self, limit: u32) -> Option<Slot> {
        let taken = self.usage.send_if_modified(|usage| {
            let free = !usage.closed && usage.taken < limit;
            usage.taken += u32::from(free);
            free
        });
        taken.then(|| Slot { slots: self.clone() })
    }

    /// Returns how many slots are taken now.
    pub fn taken(&self) -> u32 {
        self.usage.borrow().taken
    }

    /// Refuses from now on; slots that are taken stay so until they are given back.
    pub fn close(&self) {
        self.usage.send_modify(|usage| usage.closed = true);
    }

    /// Tells whether [`close`](Self::close) was called.
    pub fn is_closed(&self) -> bool {
        self.usage.borrow().closed
    }

    /// Calls for attention at every change; one watcher per receiver.
    pub fn changes(&self) -> Changes {
        Changes { usage: self.usage.subscribe() }
    }
}

/// Waits for changes of a [`Slots`].
#[derive(Debug)]
pub struct Changes {
    usage: watch::Receiver<Usage>,
}

impl Changes {
    /// Resolves at the next change that was not seen yet. Safe to cancel.
    pub async fn next(&mut self) {
        if self.usage.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Resolves once no slot is taken.
    pub async fn idle(&mut self) {
        let _ = self.usage.wait_for(|usage| usage.taken == 0).await;
    }
}

/// A slot that is taken until this is dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Slots,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.usage.send_modify(|usage| usage.taken = usage.taken.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_bounded_returned_and_closed() {
        let slots = Slots::default();
        let first = slots.try_take(2).unwrap();
        let _second = slots.try_take(2).unwrap();
        assert!(slots.try_take(2).is_none());
        assert!(slots.try_take(3).is_some(), "a higher limit admits more");
        drop(first);
        assert_eq!(slots.taken(), 1);
        slots.close();
        assert!(slots.try_take(2).is_none());
        assert_eq!(slots.taken(), 1);
    }

    #[tokio::test]
    async fn a_refusal_is_no_change() {
        let slots = Slots::default();
        let mut changes = slots.changes();
        assert!(slots.try_take(0).is_none());
        assert!(!changes.usage.has_changed().unwrap());
        let slot = slots.try_take(1);
        changes.next().await;
        drop(slot);
        changes.idle().await;
    }
}
