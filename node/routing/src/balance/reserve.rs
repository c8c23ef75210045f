//! When the requests of this node on one host are expected to end, so that the wait for a slot can be told.

use std::time::Instant;

use crate::balance::cell::millis;

/// Share of its time so far that a request which outlived its forecast is given more: lengths of answers have heavy
/// tails, and who has lasted long will last longer.
const OVERTIME: f64 = 0.25;

/// Requests that are ranked; beyond that the wait is past every patience.
const MAX_RANKED: usize = 64;

/// One request under way.
#[derive(Debug, Clone, Copy)]
struct Reservation {
    id: u64,
    started: Instant,
    ends: Instant,
}

/// The requests under way on one host.
#[derive(Debug, Default)]
pub(super) struct Reservations {
    next_id: u64,
    held: Vec<Reservation>,
}

impl Reservations {
    /// Adds a request that is expected to end at `ends`.
    pub(super) fn add(&mut self, started: Instant, ends: Instant) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.held.push(Reservation { id, started, ends });
        id
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.held.retain(|reservation| reservation.id != id);
    }

    /// Returns the time until `ahead` of `total` requests on the host have ended, milliseconds.
    ///
    /// Those of other routers are taken to be spread among ours. `None` when none is ours.
    pub(super) fn wait_ms(&self, ahead: u32, total: u32, now: Instant) -> Option<f64> {
        let mut remaining = [0.0f64; MAX_RANKED];
        let known = self.held.len().min(MAX_RANKED);
        if known == 0 || ahead == 0 || total == 0 {
            return None;
        }
        for (slot, reservation) in remaining.iter_mut().zip(&self.held) {
            let left = millis(reservation.ends.saturating_duration_since(now));
            let overtime = OVERTIME * millis(now.saturating_duration_since(reservation.started));
            *slot = left.max(overtime);
        }
        let ranked = &mut remaining[..known];
        let rank = f64::from(ahead) * known as f64 / f64::from(total.max(ahead));
        let place = (rank.ceil() as usize).clamp(1, known) - 1;
        let (_, wait, _) = ranked.select_nth_unstable_by(place, f64::total_cmp);
        Some(*wait)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::start;

    fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn the_wait_lasts_until_enough_have_ended() {
        let (mut held, now) = (Reservations::default(), start());
        let ids: Vec<u64> = [40, 10, 30, 20].map(|end| held.add(now, now + s(end))).into();
        assert_eq!(held.wait_ms(1, 4, now), Some(10_000.0));
        assert_eq!(held.wait_ms(3, 4, now), Some(30_000.0));
        // Eight run there and four are ours: the second to end is the first of ours.
        assert_eq!(held.wait_ms(2, 8, now), Some(10_000.0));
        held.remove(ids[1]);
        assert_eq!(held.wait_ms(1, 3, now), Some(20_000.0));
    }

    #[test]
    fn a_request_that_outlived_its_forecast_is_not_taken_to_end_at_once() {
        let (mut held, now) = (Reservations::default(), start());
        held.add(now, now + s(10));
        assert_eq!(held.wait_ms(1, 1, now + s(40)), Some(10_000.0));
        assert_eq!(Reservations::default().wait_ms(1, 1, now), None);
    }
}
