//! The way to a host: at once where a slot is free, else in line, with a bound on its length and on the wait.
//!
//! The order of the line is [`shoal_routing::Line`]'s; here it meets tasks and clocks. A request that waits is counted
//! as load of its host from the start, so that others see the line. Whoever goes away while waiting gives place and
//! count back by dropping the future.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use shoal_routing::admission::Host;
use shoal_routing::{Asking, Forecast, InFlight, Line, LoadBook, MAX_WAIT, Offer, Shed, UpstreamId, Work};
use tokio::sync::oneshot;

use crate::upstream::UpstreamError;

/// How often who waits looks at its line without being called.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Lets requests through to hosts. Clones share the lines.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    lines: Arc<Mutex<Lines>>,
    loads: Arc<LoadBook>,
}

type Lines = BTreeMap<UpstreamId, Queue>;
type Turn = Result<(), Shed>;

/// Who waits for one host, and what the keys were given of it since it was idle last.
#[derive(Debug, Default)]
struct Queue {
    slots: u32,
    line: Line,
    turns: BTreeMap<u64, oneshot::Sender<Turn>>,
}

/// A place in a line, given up when dropped.
struct Place {
    gate: Gate,
    upstream: UpstreamId,
    id: u64,
}

impl Gate {
    pub(super) fn new(loads: Arc<LoadBook>) -> Self {
        let gate = Self { lines: Arc::default(), loads: loads.clone() };
        // Weak, since the book would otherwise keep itself alive.
        let (lines, book) = (Arc::downgrade(&gate.lines), Arc::downgrade(&loads));
        loads.tell_when_freed(move |upstream| {
            if let (Some(lines), Some(loads)) = (lines.upgrade(), book.upgrade()) {
                Self { lines, loads }.freed(upstream);
            }
        });
        gate
    }

    /// Waits for a slot of the host, if it has slots and none is free. Dropping the future gives the place up.
    ///
    /// # Errors
    /// When the line is full, the wait too long, or a request with a better claim took the place.
    pub(super) async fn pass(
        &self,
        offer: &Offer,
        work: Work,
        mut asking: Asking,
    ) -> Result<InFlight, UpstreamError> {
        let now = Instant::now();
        if offer.slots == 0 {
            return Ok(self.loads.begin(offer, work, now));
        }
        let (mut guard, place, mut turn) = {
            let mut lines = self.lock();
            let load = self.loads.for_work(offer, &work, now);
            let forecast = Forecast::of(work, offer, &load).unwrap_or_default();
            asking.cost_ms = forecast.total_ms() - forecast.queue_ms;
            let queue = lines.entry(offer.upstream.clone()).or_default();
            queue.slots = offer.slots;
            if queue.line.is_empty() && load.in_flight < queue.slots {
                queue.line.charge(&asking);
                return Ok(self.loads.begin(offer, work, now));
            }
            let host = Host { slots: queue.slots, wait_ms: forecast.queue_ms };
            let entered = queue.line.enter(asking, host, clock()).map_err(|shed| full(offer, shed))?;
            if let Some(turn) = entered.displaced.and_then(|id| queue.turns.remove(&id)) {
                let _ = turn.send(Err(Shed { retry_after: MAX_WAIT }));
            }
            let (sender, turn) = oneshot::channel();
            queue.turns.insert(entered.id, sender);
            let place = Place { gate: self.clone(), upstream: offer.upstream.clone(), id: entered.id };
            (self.loads.queue(offer, work, now), place, turn)
        };
        metrics::gauge!("shoal_waiting_requests").increment(1.0);
        let turn = loop {
            match tokio::time::timeout(LOOK_AGAIN, &mut turn).await {
                Ok(turn) => break turn,
                // Time frees a host too: that it is full is believed for a while only.
                Err(_) => self.freed(&offer.upstream),
            }
        };
        metrics::histogram!("shoal_wait_seconds").record(now.elapsed().as_secs_f64());
        drop(place);
        match turn {
            Ok(Ok(())) => {
                guard.sent(offer, work, Instant::now());
                Ok(guard)
            }
            Ok(Err(shed)) => Err(full(offer, shed)),
            // Its sender is dropped when the wait is over.
            Err(_) => Err(full(offer, Shed { retry_after: MAX_WAIT })),
        }
    }

    /// Lets those through whose turn it is.
    fn freed(&self, upstream: &UpstreamId) {
        let mut lines = self.lock();
        let Some(queue) = lines.get_mut(upstream) else { return };
        for late in queue.line.expire(clock()) {
            queue.turns.remove(&late);
        }
        let requests = self.loads.requests(upstream, Instant::now());
        while requests.saturating_sub(queue.line.len() as u32) < queue.slots {
            let Some(next) = queue.line.call_next() else { break };
            // One that is gone takes no slot: its count is taken back by its own guard, which calls here again.
            if let Some(turn) = queue.turns.remove(&next) {
                let _ = turn.send(Ok(()));
            }
        }
        if queue.line.is_empty() && self.loads.in_flight(upstream) == 0 {
            lines.remove(upstream);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        // Lists and numbers: a poisoned lock still holds valid ones.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        metrics::gauge!("shoal_waiting_requests").decrement(1.0);
        let mut lines = self.gate.lock();
        if let Some(queue) = lines.get_mut(&self.upstream) {
            queue.line.leave(self.id);
            queue.turns.remove(&self.id);
        }
    }
}

/// The moment by the clock that deadlines are kept by.
fn clock() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn full(offer: &Offer, shed: Shed) -> UpstreamError {
    metrics::counter!("shoal_shed_total").increment(1);
    let message = format!(
        "all slots of {} are taken and others wait already; try again later, or add a device with this model",
        offer.name
    );
    UpstreamError {
        retry_after: Some(shed.retry_after),
        ..UpstreamError::retryable(503, "overloaded", message)
    }
}
