//! What happens when: a queue of events in virtual time, equal times in the order in which they were planned.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

use shoal_proto::{DeviceInfo, SignedBlob};

use crate::gossip::Message;
use crate::request::News;

/// Time since the start of a run.
pub(crate) type At = Duration;

/// Something that is going to happen. Whoever it happens to may be gone by then, and says by its life that it is not.
#[derive(Debug)]
pub(crate) enum Event {
    /// A router speaks to some others.
    Round { node: usize, life: u32 },
    /// A router renews its lease.
    Lease { node: usize, life: u32 },
    /// A router looks at what it knows.
    Tick { node: usize, life: u32 },
    /// A hostile router does its worst.
    Mischief { node: usize },
    /// A frame arrives.
    Frame { from: usize, to: usize, message: Message },
    /// The two ends of a connection notice that it is lost, if it still is.
    ConnectionLost { a: usize, b: usize },
    /// A router asks another for statistics, and hears them.
    Pull { from: usize, to: usize, life: u32, known: Vec<(usize, u64, u64)> },
    /// The answer to that.
    Pulled { from: usize, to: usize, life: u32, blobs: Vec<std::sync::Arc<Blob>>, answered: bool },
    /// A device looks after its links and says how it is.
    Announce { device: usize, life: u32 },
    /// That arrives.
    Announced { node: usize, life: u32, device: usize, info: DeviceInfo, leaving: bool },
    /// A client asks.
    Arrival,
    /// A client goes away.
    HangUp { client: usize },
    /// A job that waits for a permit to retry looks again.
    Advance { job: u64, attempt: u32 },
    /// A request arrives where it was sent.
    Asked { job: u64, attempt: u32 },
    /// News of an attempt arrives where it was made.
    Told { job: u64, attempt: u32, news: News },
    /// A run on a host goes on.
    Step { run: u64 },
    /// Whoever works for an attempt hears, or notices, that nobody waits any more.
    Dropped { job: u64, attempt: u32 },
    /// The connection of an attempt is tried.
    Ping { job: u64, attempt: u32 },
    /// The patience of an attempt may be over.
    Patience { job: u64, attempt: u32 },
    /// A fault of the scenario begins, and ends.
    Fault { index: usize },
    /// Its end.
    Mend { index: usize },
    /// Everything is looked at.
    Check,
}

/// A testimony as it is passed on, with who signed it.
#[derive(Debug)]
pub(crate) struct Blob {
    /// Index of the router that it claims to be from.
    pub(crate) origin: usize,
    /// Index of the router that signed it.
    pub(crate) signer: usize,
    /// What travels.
    pub(crate) blob: SignedBlob,
    /// The payload, read once for all readers; `None` if it cannot be.
    pub(crate) testimony: Option<std::sync::Arc<shoal_routing::Testimony>>,
}

struct Planned {
    at: At,
    number: u64,
    event: Event,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// The queue.
#[derive(Default)]
pub(crate) struct Events {
    planned: BinaryHeap<Reverse<Planned>>,
    number: u64,
}

impl Events {
    /// Plans an event.
    pub(crate) fn plan(&mut self, at: At, event: Event) {
        self.number += 1;
        self.planned.push(Reverse(Planned { at, number: self.number, event }));
    }

    /// Takes the next one.
    pub(crate) fn next(&mut self) -> Option<(At, Event)> {
        self.planned.pop().map(|Reverse(planned)| (planned.at, planned.event))
    }
}
