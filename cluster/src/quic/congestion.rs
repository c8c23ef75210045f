//! How much may be under way on a connection: Cubic, with a floor.
//!
//! Answers are small and their words come one by one, so a connection here is hardly ever what fills a path. On a radio
//! that loses or reorders some packets in a hundred, Cubic takes each for a sign of congestion and ends at two packets a
//! round trip, for all requests of the connection together: a first word then waits behind others' words for seconds.
//! The floor is what any connection may send before it knows anything of its path (RFC 6928), so it hurts no path more
//! than a new connection does; above it Cubic decides.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// Packets that may be under way whatever was lost.
const FLOOR_PACKETS: u64 = 10;

/// Makes controllers for the mesh's connections.
#[derive(Debug, Default)]
pub(super) struct FlooredCubic(Arc<CubicConfig>);

impl ControllerFactory for FlooredCubic {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let cubic = self.0.clone().build(now, current_mtu);
        Box::new(Floored { cubic, floor: FLOOR_PACKETS * u64::from(current_mtu) })
    }
}

struct Floored {
    cubic: Box<dyn Controller>,
    /// Bytes.
    floor: u64,
}

impl Controller for Floored {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        self.cubic.on_congestion_event(now, sent, is_persistent, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.cubic.on_mtu_update(new_mtu);
        self.floor = FLOOR_PACKETS * u64::from(new_mtu);
    }

    fn window(&self) -> u64 {
        self.cubic.window().max(self.floor)
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.cubic.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { cubic: self.cubic.clone_box(), floor: self.floor })
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn losses_take_the_window_to_the_floor_and_not_below() {
        const MTU: u16 = 1_200;
        let mut now = Instant::now();
        let mut bare = Arc::new(CubicConfig::default()).build(now, MTU);
        let mut floored = Arc::new(FlooredCubic::default()).build(now, MTU);
        for _ in 0..20 {
            now += Duration::from_secs(1);
            for controller in [&mut bare, &mut floored] {
                controller.on_congestion_event(now, now, false, u64::from(MTU));
            }
        }
        assert!(bare.window() <= 2 * u64::from(MTU), "{}: the floor would not be needed", bare.window());
        assert_eq!(floored.window(), FLOOR_PACKETS * u64::from(MTU));
        assert_eq!(floored.clone_box().window(), floored.window());
        floored.on_mtu_update(1_400);
        assert_eq!(floored.window(), FLOOR_PACKETS * 1_400);
    }
}
