//! Time: is this clock possible, and how long is the certificate good.
//!
//! There is no outside time to ask, but a clock that runs before something which has already happened is wrong:
//! the begin of our own certificate, the newest row of the store, the last start of another node.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shoal_cluster::Identity;
use shoal_cluster::identity::leaf_facts;

use super::check::Check;
use super::live::Live;
use super::place::StoreFacts;

/// Difference between clocks that is nothing to worry about; certificates are back-dated by more.
const TOLERANCE: Duration = Duration::from_secs(60);

/// When an approaching end is told: time to act without hurry.
const EXPIRY_NOTICE: Duration = Duration::from_secs(30 * 86_400);

/// Moments that a sane clock lies between.
#[derive(Debug, Clone)]
pub(super) struct Times {
    /// This clock.
    pub(super) now: SystemTime,
    /// Begin and end of our certificate.
    pub(super) certificate: Option<(SystemTime, SystemTime)>,
    /// What has already happened, and when.
    pub(super) past: Vec<(String, SystemTime)>,
}

impl Times {
    pub(super) fn gather(identity: Option<&Identity>, store: &StoreFacts, live: Option<&Live>) -> Self {
        let facts = identity.and_then(|identity| leaf_facts(identity.chain_der().first()?).ok());
        let at = |ms: u64| UNIX_EPOCH + Duration::from_millis(ms);
        let row = store.newest_ms.map(|ms| ("the newest request in the store".to_owned(), at(ms)));
        let starts = live.map(Live::starts_of_others).unwrap_or_default();
        let starts = starts.into_iter().map(|(name, ms)| (format!("the start of node '{name}'"), at(ms)));
        Self {
            now: SystemTime::now(),
            certificate: facts.map(|facts| (facts.valid_from, facts.expires)),
            past: row.into_iter().chain(starts).collect(),
        }
    }
}

pub(super) fn clock(times: &Times) -> Check {
    const NAME: &str = "clock";
    let next = "set the clock, or switch on its synchronisation (`timedatectl set-ntp true`)";
    let issued = times.certificate.map(|(from, _)| ("the issue of this node's certificate".to_owned(), from));
    let behind = |at: SystemTime| at.duration_since(times.now).ok().filter(|by| *by > TOLERANCE);
    let latest = issued
        .into_iter()
        .chain(times.past.iter().cloned())
        .filter_map(|(what, at)| Some((behind(at)?, what)))
        .max_by_key(|(by, _)| *by);
    match latest {
        Some((by, what)) => Check::bad(NAME, format!("it is {} before {what}", span(by)), next),
        None if times.certificate.is_none() && times.past.is_empty() => {
            Check::ok(NAME, "there is nothing yet to compare it with")
        }
        None => Check::ok(NAME, "it fits the certificate, the store and the other nodes"),
    }
}

pub(super) fn certificate(times: &Times) -> Check {
    const NAME: &str = "certificate";
    let Some((from, expires)) = times.certificate else {
        return Check::ok(NAME, "there is none yet; `shoal up` or `shoal join` gets one");
    };
    let age = times.now.duration_since(from).unwrap_or_default();
    let rejoin = "make a token on another node, move the folder identity/ away, and `shoal join <token>`";
    match expires.duration_since(times.now) {
        Err(past) => {
            let cause =
                format!("it expired {} ago, so no other node lets this one in", span(past.duration()));
            Check::bad(NAME, cause, rejoin)
        }
        Ok(left) if left < EXPIRY_NOTICE => {
            Check::warn(NAME, format!("it expires in {}", span(left)), rejoin)
        }
        Ok(left) => Check::ok(NAME, format!("{} old, good for {}", span(age), span(left))),
    }
}

/// A length of time in its largest unit.
fn span(length: Duration) -> String {
    let seconds = length.as_secs();
    let (n, unit) = match seconds {
        172_800.. => (seconds / 86_400, "days"),
        7200.. => (seconds / 3600, "hours"),
        120.. => (seconds / 60, "minutes"),
        _ => (seconds, "seconds"),
    };
    format!("{n} {unit}")
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn times(from: Duration, expires: Duration, past: &[Duration]) -> Times {
        Times {
            now: UNIX_EPOCH + 100 * DAY,
            certificate: Some((UNIX_EPOCH + from, UNIX_EPOCH + expires)),
            past: past.iter().map(|at| ("a thing".to_owned(), UNIX_EPOCH + *at)).collect(),
        }
    }

    #[test]
    fn a_clock_before_the_past_is_wrong() {
        let minute = Duration::from_secs(60);
        for (from, past, verdict) in [
            (99 * DAY, vec![98 * DAY], Verdict::Ok),
            (100 * DAY + minute, vec![100 * DAY + minute], Verdict::Ok),
            (101 * DAY, vec![], Verdict::Bad),
            (99 * DAY, vec![98 * DAY, 100 * DAY + 2 * minute], Verdict::Bad),
        ] {
            assert_eq!(clock(&times(from, 400 * DAY, &past)).verdict, verdict, "{from:?} {past:?}");
        }
        let check = clock(&times(103 * DAY, 400 * DAY, &[101 * DAY]));
        assert!(check.cause.contains("3 days before the issue"), "the worst is told: {}", check.cause);
    }

    #[test]
    fn a_certificate_is_told_before_it_ends() {
        for (expires, verdict) in
            [(465, Verdict::Ok), (129, Verdict::Warn), (100, Verdict::Warn), (99, Verdict::Bad)]
        {
            assert_eq!(certificate(&times(DAY, expires * DAY, &[])).verdict, verdict, "{expires}");
        }
        let none = Times { certificate: None, ..times(DAY, DAY, &[]) };
        assert_eq!(certificate(&none).verdict, Verdict::Ok);
    }

    #[test]
    fn spans_read_well() {
        for (seconds, text) in
            [(5, "5 seconds"), (150, "2 minutes"), (86_400, "24 hours"), (172_800, "2 days")]
        {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }
}
