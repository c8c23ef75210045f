//! Live connections by address and purpose, with at most one dial under way for each.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::{Alpn, Error, Link};
use crate::ids::NodeId;

/// Where a dial's result appears for all who wait for it.
pub(super) type Outcome = watch::Receiver<Option<Result<Link, Error>>>;
/// How the dialling task hands its result over.
pub(super) type Promise = watch::Sender<Option<Result<Link, Error>>>;

/// Dead entries are swept when the pool reaches this size, and again at each doubling.
const SWEEP_AT: usize = 64;

/// What a caller gets from the pool.
pub(super) enum Found {
    /// A live connection.
    Open(Link),
    /// Someone dials already: wait for this.
    Dialling(Outcome),
    /// The caller must dial, and keep the promise.
    Dial(Promise, Outcome),
}

enum Slot {
    Open(Link),
    Dialling(Outcome),
}

impl Slot {
    fn is_alive(&self) -> bool {
        match self {
            Slot::Open(link) => link.is_open(),
            // The sender goes away without a word only when the runtime dropped the dialling task.
            Slot::Dialling(outcome) => outcome.has_changed().is_ok(),
        }
    }
}

/// The connections of one endpoint. The lock is held for map operations only.
#[derive(Default)]
pub(super) struct Pool {
    slots: Mutex<HashMap<(SocketAddr, Alpn), Slot>>,
}

impl Pool {
    /// Finds a connection, a dial under way, or the duty to dial.
    pub(super) fn find(&self, addr: SocketAddr, alpn: Alpn) -> Found {
        let mut slots = self.lock();
        match slots.get(&(addr, alpn)) {
            Some(slot) if slot.is_alive() => match slot {
                Slot::Open(link) => Found::Open(link.clone()),
                Slot::Dialling(outcome) => Found::Dialling(outcome.clone()),
            },
            _ => {
                sweep(&mut slots);
                let (promise, outcome) = watch::channel(None);
                slots.insert((addr, alpn), Slot::Dialling(outcome.clone()));
                Found::Dial(promise, outcome)
            }
        }
    }

    /// Finds a live connection to a node, whatever its address.
    pub(super) fn find_peer(&self, id: &NodeId, alpn: Alpn) -> Option<Link> {
        self.lock().iter().find_map(|((_, purpose), slot)| match slot {
            Slot::Open(link) if *purpose == alpn && link.peer.id == *id && link.is_open() => {
                Some(link.clone())
            }
            _ => None,
        })
    }

    /// Enters an accepted connection. It replaces an older one: the caller may have restarted.
    pub(super) fn accepted(&self, alpn: Alpn, link: &Link) {
        let mut slots = self.lock();
        sweep(&mut slots);
        slots.insert((link.remote(), alpn), Slot::Open(link.clone()));
    }

    /// Records how a dial ended, and tells all who wait.
    pub(super) fn dialled(
        &self,
        addr: SocketAddr,
        alpn: Alpn,
        promise: &Promise,
        result: Result<Link, Error>,
    ) {
        {
            let mut slots = self.lock();
            let accepted_meanwhile =
                matches!(slots.get(&(addr, alpn)), Some(slot @ Slot::Open(_)) if slot.is_alive());
            match &result {
                _ if accepted_meanwhile => {}
                Ok(link) => {
                    slots.insert((addr, alpn), Slot::Open(link.clone()));
                }
                Err(_) => {
                    slots.remove(&(addr, alpn));
                }
            }
        }
        promise.send_replace(Some(result));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(SocketAddr, Alpn), Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sweep(slots: &mut HashMap<(SocketAddr, Alpn), Slot>) {
    if slots.len() >= SWEEP_AT && slots.len().is_power_of_two() {
        slots.retain(|_, slot| slot.is_alive());
    }
}
