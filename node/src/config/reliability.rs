//! The `[idempotency]`, `[hedging]` and `[resume]` tables: requests that are sent twice, that are late, that break off.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_routing::hedge::MAX_SHARE;

use super::Error;
use crate::api::idempotency::IdempotencySettings;

/// The `[idempotency]` table.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileIdempotency {
    /// Seconds that an answer is kept after its end, 1 to 86,400. Default 600.
    pub keep_s: u64,
    /// Most answers kept or under way, at most 100,000; 0 = the header is ignored. Default 1000.
    pub entries: u64,
    /// Most bytes of all answers together, 1 MiB to 4 GiB. Default 67108864 (64 MiB).
    pub bytes: u64,
    /// Seconds that a request goes on when its client is gone, who may come back for it, at most 60; 0 = none. Default 5.
    pub grace_s: u64,
}

impl Default for FileIdempotency {
    fn default() -> Self {
        let IdempotencySettings { keep, entries, bytes, grace } = IdempotencySettings::default();
        Self {
            keep_s: keep.as_secs(),
            entries: entries as u64,
            bytes: bytes as u64,
            grace_s: grace.as_secs(),
        }
    }
}

impl FileIdempotency {
    pub(super) fn check(self) -> Result<IdempotencySettings, Error> {
        Ok(IdempotencySettings {
            keep: Duration::from_secs(within("idempotency.keep_s", self.keep_s, 1, 86_400)?),
            entries: within("idempotency.entries", self.entries, 0, 100_000)? as usize,
            bytes: within("idempotency.bytes", self.bytes, 1 << 20, 4 << 30)? as usize,
            grace: Duration::from_secs(within("idempotency.grace_s", self.grace_s, 0, 60)?),
        })
    }
}

/// The `[hedging]` table.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileHedging {
    /// Share of streamed chats for which a second device may be asked when the first is late, 0 to 0.02. Default 0.
    pub share: f64,
}

impl FileHedging {
    pub(super) fn check(self) -> Result<f64, Error> {
        if (0.0..=MAX_SHARE).contains(&self.share) {
            return Ok(self.share);
        }
        let message =
            format!("{} is out of range; share lies between 0 and {MAX_SHARE}, 0 = off", self.share);
        Err(Error::Invalid { origin: "hedging.share".into(), message })
    }
}

/// The `[resume]` table.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileResume {
    /// Another device with the same weights goes on with a stream that breaks off, where the request does not say
    /// (`metadata.resume`). Default false.
    pub enabled: bool,
}

/// Checks a number's range.
pub(super) fn within(origin: &str, value: u64, low: u64, high: u64) -> Result<u64, Error> {
    if (low..=high).contains(&value) {
        return Ok(value);
    }
    let name = origin.rsplit('.').next().unwrap_or(origin);
    let message = format!("{value} is out of range; {name} lies between {low} and {high}");
    Err(Error::Invalid { origin: origin.to_owned(), message })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::config::testing::checked;
    use crate::config::{Config, Flags};

    #[test]
    fn nothing_is_hedged_or_resumed_unless_asked_for() {
        let config = checked("").unwrap();
        assert_eq!((config.hedging_share, config.resume), (0.0, false));
        assert_eq!(config.idempotency.keep, Duration::from_secs(600));
        let config = checked("[hedging]\nshare = 0.01\n[resume]\nenabled = true").unwrap();
        assert_eq!((config.hedging_share, config.resume), (0.01, true));
        let env = [("SHOAL_IDEMPOTENCY__ENTRIES".to_owned(), "0".to_owned())];
        assert_eq!(Config::load(Flags::default(), &env).unwrap().idempotency.entries, 0);
    }

    #[test]
    fn settings_out_of_range_are_refused_with_it() {
        for (text, expected) in [
            ("[hedging]\nshare = 0.5", "between 0 and 0.02"),
            ("[idempotency]\nkeep_s = 0", "keep_s lies between 1 and 86400"),
            ("[idempotency]\nbytes = 5", "bytes lies between"),
            ("[resume]\nenable = true", "did you mean 'enabled'"),
        ] {
            let error = checked(text).map(|_| ()).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
