//! How long a caller can wait, from the signs that its request carries.

use std::time::Duration;

use crate::class::Preference;
use crate::request::Request;

/// Time limits up to this one leave no room for a slow model.
const SHORT: Duration = Duration::from_secs(15);

/// How much a late answer hurts. Ordered: more is more patient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Tolerance {
    /// Speed is what the caller asked for, or the time limit is short.
    Tight,
    /// Somebody watches the answer appear.
    #[default]
    Watching,
    /// A program waits for a whole answer.
    Patient,
}

impl Tolerance {
    /// Returns the word used in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tight => "tight",
            Self::Watching => "watching",
            Self::Patient => "patient",
        }
    }

    pub(super) fn of(request: &Request<'_>) -> Self {
        let is_short = request.time_limit.is_some_and(|limit| limit <= SHORT);
        match request.effective_preference() {
            _ if is_short => Self::Tight,
            Preference::Fast => Self::Tight,
            Preference::Balanced | Preference::Cheap | Preference::Best if request.stream => Self::Watching,
            Preference::Balanced | Preference::Cheap | Preference::Best => Self::Patient,
        }
    }
}
