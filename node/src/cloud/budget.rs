//! How much may be spent in which time: `5usd/day`, `20usd/month`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use shoal_routing::MicroUsd;
use time::OffsetDateTime;

/// Largest budget that is believed, US dollars: beyond it somebody mistook the unit.
const MAX_USD: f64 = 1_000_000.0;

/// Time over which a budget lasts; both begin at midnight UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// A day.
    Day,
    /// A calendar month.
    Month,
}

/// Money for one period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The whole amount of a period.
    pub amount: MicroUsd,
    /// When it starts anew.
    pub period: Period,
}

/// Text that is no budget.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a budget; write for example 5usd/day or 20usd/month")]
pub struct NotABudget(String);

impl Default for Budget {
    /// One US dollar a day: enough to try things out, little enough to be no shock.
    fn default() -> Self {
        Self { amount: MicroUsd(1_000_000), period: Period::Day }
    }
}

impl Budget {
    /// Nothing at all: what a budget that cannot be read is taken for.
    pub const NOTHING: Self = Self { amount: MicroUsd(0), period: Period::Month };

    /// Returns the name of the period that a moment lies in, `2026-11-22` or `2026-11`.
    pub fn period_at(self, unix_ms: u64) -> String {
        let seconds = i64::try_from(unix_ms / 1000).unwrap_or_default();
        let date = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH).date();
        let month = format!("{:04}-{:02}", date.year(), u8::from(date.month()));
        match self.period {
            Period::Month => month,
            Period::Day => format!("{month}-{:02}", date.day()),
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let period = match self.period {
            Period::Day => "day",
            Period::Month => "month",
        };
        write!(f, "{}usd/{period}", self.amount.as_usd())
    }
}

impl FromStr for Budget {
    type Err = NotABudget;

    fn from_str(text: &str) -> Result<Self, NotABudget> {
        let wrong = || NotABudget(text.chars().filter(|c| !c.is_control()).take(32).collect());
        let (amount, period) = text.split_once('/').ok_or_else(wrong)?;
        let period = match period {
            "day" => Period::Day,
            "month" => Period::Month,
            _ => return Err(wrong()),
        };
        let usd: f64 = amount.strip_suffix("usd").and_then(|n| n.parse().ok()).ok_or_else(wrong)?;
        if !(0.0..=MAX_USD).contains(&usd) {
            return Err(wrong());
        }
        Ok(Self { amount: MicroUsd((usd * 1e6).round() as u64), period })
    }
}

impl Serialize for Budget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Budget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_survive_text_and_nonsense_is_refused() {
        for text in ["5usd/day", "0.25usd/month", "0usd/day"] {
            assert_eq!(text.parse::<Budget>().unwrap().to_string(), text);
        }
        for bad in
            ["", "5", "5usd", "5eur/day", "-1usd/day", "NaNusd/day", "infusd/day", "5usd/week", "usd/day"]
        {
            assert!(bad.parse::<Budget>().is_err(), "{bad}");
        }
    }

    #[test]
    fn periods_begin_at_midnight_utc() {
        let day = Budget::default();
        let month = Budget { period: Period::Month, ..day };
        let last_ms_of_2026 = 1_798_761_599_999;
        assert_eq!(day.period_at(last_ms_of_2026), "2026-12-31");
        assert_eq!(day.period_at(last_ms_of_2026 + 1), "2027-01-01");
        assert_eq!(month.period_at(last_ms_of_2026), "2026-12");
    }
}
