//! What the tests of this package share.

use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::StdRng;

/// Returns an instant to count virtual time from. Only differences to it matter.
#[expect(
    clippy::disallowed_methods,
    reason = "an Instant has no other origin; tests only look at differences"
)]
pub(crate) fn start() -> Instant {
    Instant::now()
}

/// Returns a generator that gives the same numbers in each run.
pub(crate) fn seeded(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}
