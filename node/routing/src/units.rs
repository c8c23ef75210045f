//! Numbers with a unit, so that a token count is never added to a price.

use std::fmt;
use std::iter::Sum;
use std::ops::Add;

/// Tokens per million, the unit in which providers quote prices.
const TOKENS_PER_QUOTE: u128 = 1_000_000;

/// A count of tokens. Sums saturate: a wrapped count would make an endless prompt look short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tokens(pub u32);

impl Tokens {
    /// Makes a count from a length, saturating at 2^32 − 1.
    pub fn from_len(len: usize) -> Self {
        Self(u32::try_from(len).unwrap_or(u32::MAX))
    }
}

impl Add for Tokens {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sum for Tokens {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self(0), Add::add)
    }
}

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Money in millionths of a US dollar. Sums saturate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MicroUsd(pub u64);

impl MicroUsd {
    /// Returns the amount in US dollars, for display and for answers.
    pub fn as_usd(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

impl Add for MicroUsd {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

/// What a provider charges, in micro-USD per million tokens (2.50 USD per million = 2,500,000).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Price {
    /// For tokens of the prompt.
    pub input_per_million: MicroUsd,
    /// For generated tokens.
    pub output_per_million: MicroUsd,
}

impl Price {
    /// Returns what a request costs, rounded up to a whole micro-USD, so that a budget is never passed by rounding.
    pub fn cost(&self, input: Tokens, output: Tokens) -> MicroUsd {
        let quoted = u128::from(self.input_per_million.0) * u128::from(input.0)
            + u128::from(self.output_per_million.0) * u128::from(output.0);
        MicroUsd(u64::try_from(quoted.div_ceil(TOKENS_PER_QUOTE)).unwrap_or(u64::MAX))
    }

    /// Returns the higher of two prices, of prompt and answer each.
    pub fn max_of_each(self, other: Self) -> Self {
        Self {
            input_per_million: self.input_per_million.max(other.input_per_million),
            output_per_million: self.output_per_million.max(other.output_per_million),
        }
    }
}

/// Milliseconds of a minute, by which sound is charged.
const MILLIS_PER_MINUTE: u128 = 60_000;

/// What a provider charges for sound, heard or spoken, in micro-USD. 0 = not by this measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SoundPrice {
    /// For a minute of it.
    pub per_minute: MicroUsd,
    /// For a million characters that are read aloud.
    pub per_million_chars: MicroUsd,
}

/// How much there is of what sound is charged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SoundWork {
    /// Length of the recording, milliseconds.
    pub millis: u64,
    /// Characters that are read aloud.
    pub chars: u64,
}

impl SoundPrice {
    /// Returns what the work costs, rounded up to a whole micro-USD; `None` where neither measure is charged.
    pub fn cost(&self, work: SoundWork) -> Option<MicroUsd> {
        let rounded = |rate: MicroUsd, amount: u64, per: u128| {
            let cost = (u128::from(rate.0) * u128::from(amount)).div_ceil(per);
            MicroUsd(u64::try_from(cost).unwrap_or(u64::MAX))
        };
        let is_charged = *self != Self::default();
        is_charged.then(|| {
            rounded(self.per_minute, work.millis, MILLIS_PER_MINUTE)
                + rounded(self.per_million_chars, work.chars, TOKENS_PER_QUOTE)
        })
    }

    /// Returns the higher of two prices, by each measure.
    pub fn max_of_each(self, other: Self) -> Self {
        Self {
            per_minute: self.per_minute.max(other.per_minute),
            per_million_chars: self.per_million_chars.max(other.per_million_chars),
        }
    }
}

/// A quality or confidence between 0 (worthless) and 1 (perfect).
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
pub struct Score(f64);

/// A number that is not between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{0} is not between 0 and 1")]
pub struct OutOfRange(pub f64);

impl Score {
    /// The worst score.
    pub const ZERO: Self = Self(0.0);
    /// The best score.
    pub const ONE: Self = Self(1.0);

    /// Makes a score.
    ///
    /// # Errors
    /// [`OutOfRange`] for anything below 0, above 1 or not a number.
    pub fn new(value: f64) -> Result<Self, OutOfRange> {
        if (0.0..=1.0).contains(&value) { Ok(Self(value)) } else { Err(OutOfRange(value)) }
    }

    /// Makes a score of a computed number that rounding may have carried outside; what is no number is 0.
    pub fn clamped(value: f64) -> Self {
        if value.is_nan() { Self::ZERO } else { Self(value.clamp(0.0, 1.0)) }
    }

    /// Returns the number, 0 to 1.
    pub fn value(self) -> f64 {
        self.0
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn score_refuses_what_lies_outside_and_what_is_no_number() {
        assert_eq!(Score::new(0.7).unwrap().value(), 0.7);
        for bad in [-0.01, 1.01, f64::NAN, f64::INFINITY] {
            assert!(Score::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sound_costs_by_the_minute_or_by_the_character() {
        let work = SoundWork { millis: 90_000, chars: 1_000 };
        assert_eq!(SoundPrice::default().cost(work), None);
        let heard = SoundPrice { per_minute: MicroUsd(6_000), ..SoundPrice::default() };
        assert_eq!(heard.cost(work), Some(MicroUsd(9_000)));
        let spoken = SoundPrice { per_million_chars: MicroUsd(15_000_001), ..SoundPrice::default() };
        assert_eq!(spoken.cost(work), Some(MicroUsd(15_001)), "rounded up");
    }

    #[test]
    fn cost_counts_both_directions_and_rounds_up() {
        let price =
            Price { input_per_million: MicroUsd(2_500_000), output_per_million: MicroUsd(10_000_000) };
        assert_eq!(price.cost(Tokens(1_000), Tokens(100)), MicroUsd(3_500));
        assert_eq!(price.cost(Tokens(1), Tokens(0)), MicroUsd(3));
        assert_eq!(Price::default().cost(Tokens(u32::MAX), Tokens(u32::MAX)), MicroUsd(0));
    }

    #[test]
    fn sums_saturate() {
        assert_eq!(Tokens(u32::MAX) + Tokens(1), Tokens(u32::MAX));
        assert_eq!(MicroUsd(u64::MAX) + MicroUsd(1), MicroUsd(u64::MAX));
    }
}
