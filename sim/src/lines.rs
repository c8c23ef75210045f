//! Who waits for a busy host: Shoal's lines, with events where the node's gate has tasks.

use std::time::Duration;

use shoal_routing::admission::Host;
use shoal_routing::{Asking, Forecast, InFlight, Priority, UpstreamId};

use crate::request::Stage;
use crate::serving::{DEADLINE, FIRST_PIECE, GRACE};
use crate::world::World;

/// Whether a host takes a request at once.
pub(crate) enum Passed {
    /// It does.
    Goes(InFlight),
    /// It takes it later; the place in line.
    Waits(InFlight, u64),
    /// Neither.
    Shed,
}

impl World {
    /// The way to a host, as the node's gate has it: at once, in line, or not at all.
    pub(crate) fn pass(&mut self, id: u64, offer: &shoal_routing::Offer) -> Passed {
        let now = self.instant();
        let job = &self.jobs[&id];
        let work = self.clients[job.client].profile.work();
        let patience = FIRST_PIECE + if job.hop == 0 { GRACE } else { Duration::ZERO };
        let deadline = Some(now + patience.min((job.began + DEADLINE).saturating_sub(self.now)));
        let key = if job.hop == 0 { format!("key {}", job.client % 3) } else { "peer".to_owned() };
        let node = job.node;
        let router = &mut self.nodes[node];
        if offer.slots == 0 {
            return Passed::Goes(router.loads.begin(offer, work, now));
        }
        let load = router.loads.for_work(offer, &work, now);
        let forecast = Forecast::of(work, offer, &load).unwrap_or_default();
        let cost_ms = forecast.total_ms() - forecast.queue_ms;
        let asking = Asking { key: key.into(), priority: Priority::Client, deadline, cost_ms };
        let queue = router.lines.entry(offer.upstream.clone()).or_default();
        queue.slots = offer.slots;
        if queue.line.is_empty() && load.in_flight < queue.slots {
            queue.line.charge(&asking);
            return Passed::Goes(router.loads.begin(offer, work, now));
        }
        let host = Host { slots: queue.slots, wait_ms: forecast.queue_ms };
        let Ok(entered) = queue.line.enter(asking, host, now) else { return Passed::Shed };
        let displaced = entered.displaced.and_then(|place| queue.turns.remove(&place));
        queue.turns.insert(entered.id, id);
        let guard = router.loads.queue(offer, work, now);
        self.displaced.extend(displaced);
        Passed::Waits(guard, entered.id)
    }

    /// A job lost its place in line: nothing was sent, so it is no attempt.
    fn turned_away(&mut self, id: u64) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        drop(job.attempt.take());
        job.is_full = true;
        self.advance(id);
    }

    /// Lets those through whose host has a slot again.
    pub(crate) fn serve_freed(&mut self) {
        loop {
            for id in std::mem::take(&mut self.displaced) {
                self.turned_away(id);
            }
            let freed: Vec<(usize, UpstreamId)> =
                std::mem::take(&mut *self.freed.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
            if freed.is_empty() && self.displaced.is_empty() {
                return;
            }
            for (node, upstream) in freed {
                self.freed(node, &upstream);
            }
        }
    }

    /// Looks at all lines of a router: time frees hosts, too.
    pub(crate) fn look_again(&mut self, node: usize) {
        let hosts: Vec<UpstreamId> = self.nodes[node].lines.keys().cloned().collect();
        for upstream in hosts {
            self.freed(node, &upstream);
        }
    }

    fn freed(&mut self, node: usize, upstream: &UpstreamId) {
        let now = self.instant();
        let router = &mut self.nodes[node];
        let Some(queue) = router.lines.get_mut(upstream) else { return };
        let late: Vec<u64> =
            queue.line.expire(now).iter().filter_map(|place| queue.turns.remove(place)).collect();
        let requests = router.loads.requests(upstream, now);
        let mut called = Vec::new();
        while requests.saturating_sub(queue.line.len() as u32) < queue.slots {
            let Some(next) = queue.line.call_next() else { break };
            called.extend(queue.turns.remove(&next));
        }
        if queue.line.is_empty() && router.loads.in_flight(upstream) == 0 {
            router.lines.remove(upstream);
        }
        for id in late {
            self.turned_away(id);
        }
        for id in called {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            let work = self.clients[job.client].profile.work();
            let Some(attempt) = &mut job.attempt else { continue };
            attempt.stage = Stage::Sent;
            if let Some(guard) = &mut attempt.guard {
                guard.sent(&attempt.choice.offer, work, now);
            }
            self.ask_permit(id);
        }
    }
}
