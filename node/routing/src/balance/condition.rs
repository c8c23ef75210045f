//! What a host says of its condition, as a factor on its time: power, heat, memory, and how often it fails.
//!
//! Factors, not tiers: a phone on battery that answers in a second is still better than a plugged one that takes ten.

use crate::balance::load::Load;
use crate::registry::{Offer, Power, Zone};

/// What a host behind another router is taken to cost more: enough that equals are reached directly.
const DETOUR: f64 = 1.05;

/// On battery: enough that equals on mains are used. Low: spared unless it is much quicker.
const ON_BATTERY: f64 = 1.15;
const LOW_BATTERY: f64 = 2.0;
const LOW_PERCENT: u8 = 20;

/// Charging: full power, but its heat adds to that of the charge.
const CHARGING: f64 = 1.02;

/// A host that slows itself down against heat: it is slow now, and more work makes it slower.
const THROTTLED: f64 = 2.0;

/// Share of the cache of keys and values above which an engine starts to put requests off or to compute them again.
const KV_TIGHT: f64 = 0.9;
const KV_COST: f64 = 1.5;

/// Share of failures above which a host is taken to fail no more often: it must stay comparable.
const MAX_FAILING: f64 = 0.75;

/// Returns the factor, at least 1.
pub(super) fn factor(offer: &Offer, load: &Load) -> f64 {
    let detour = if offer.zone() == Zone::Peer { DETOUR } else { 1.0 };
    let power = match offer.power {
        Power::Mains | Power::Unknown => 1.0,
        Power::Charging => CHARGING,
        Power::Battery(percent) if percent < LOW_PERCENT => LOW_BATTERY,
        Power::Battery(_) => ON_BATTERY,
    };
    let heat = if offer.throttled { THROTTLED } else { 1.0 };
    let memory = if offer.kv_use.is_some_and(|used| f64::from(used) > KV_TIGHT) { KV_COST } else { 1.0 };
    // One try in 1 / (1 − failing) succeeds, and a failed one may cost an answer that was half written.
    let faults = (1.0 - load.failing.clamp(0.0, MAX_FAILING)).powi(-2);
    detour * power * heat * memory * faults
}
