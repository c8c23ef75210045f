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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::ModelChoice;
    use crate::testing::request;

    #[test]
    fn patience_shows_in_the_stream_the_preference_and_the_time_limit() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let cases = [
            (true, Preference::Balanced, None, Tolerance::Watching),
            (false, Preference::Balanced, None, Tolerance::Patient),
            (true, Preference::Best, seconds(600), Tolerance::Watching),
            (false, Preference::Fast, None, Tolerance::Tight),
            (false, Preference::Cheap, seconds(10), Tolerance::Tight),
            (false, Preference::Cheap, seconds(16), Tolerance::Patient),
        ];
        for (stream, preference, time_limit, expected) in cases {
            let request = Request { stream, preference, time_limit, ..request(vec![]) };
            assert_eq!(Tolerance::of(&request), expected, "{stream} {preference} {time_limit:?}");
        }
        let named = Request { choice: ModelChoice::Auto(Preference::Fast), ..request(vec![]) };
        assert_eq!(Tolerance::of(&named), Tolerance::Tight);
    }
}
