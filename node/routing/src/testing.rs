//! What the tests of this package share.

use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::choice::ModelChoice;
use crate::class::{DataClass, Mode, Preference};
use crate::request::{Message, Needs, Request};

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

/// Returns a streamed request without wishes.
pub(crate) fn request(messages: Vec<Message<'_>>) -> Request<'_> {
    Request {
        messages,
        max_output: None,
        needs: Needs::default(),
        stream: true,
        choice: ModelChoice::AutoLocal,
        mode: Mode::Auto,
        preference: Preference::Balanced,
        data_class: DataClass::Internal,
        hop: 0,
        max_local_tokens: None,
        time_limit: None,
        budget_left: None,
        session: None,
    }
}
