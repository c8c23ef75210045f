//! What a request about sound costs at a provider.

use shoal_routing::{MicroUsd, Price, SoundPrice, SoundWork, Tokens};

use super::SoundUsage;

/// Set aside, for each ten minutes begun, for a request to a model whose price for sound is not known: more than they
/// cost anywhere.
pub const FLAT: MicroUsd = MicroUsd(100_000);
const TEN_MINUTES_MS: u64 = 600_000;

/// Prices of a model, and how much of it a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bill {
    /// By the token, for models that count them.
    pub tokens: Price,
    /// By the minute or the character.
    pub sound: SoundPrice,
    /// How much there is.
    pub work: SoundWork,
}

impl Bill {
    /// Returns what is set aside before the request is sent, and what it is taken to cost if its answer says nothing.
    pub fn most(&self) -> MicroUsd {
        let is_free = self.tokens == Price::default();
        let flat = MicroUsd(FLAT.0.saturating_mul(self.work.millis.div_ceil(TEN_MINUTES_MS).max(1)));
        self.sound.cost(self.work).unwrap_or(if is_free { MicroUsd(0) } else { flat })
    }

    /// Returns the cost by what the answer says.
    pub fn settled(&self, usage: &SoundUsage) -> MicroUsd {
        if let Some((input, output)) = usage.tokens.filter(|_| self.tokens != Price::default()) {
            return self.tokens.cost(input, output);
        }
        match usage.millis {
            Some(millis) => {
                let work = SoundWork { millis, ..self.work };
                self.sound.cost(work).unwrap_or_else(|| self.most())
            }
            None => self.most(),
        }
    }
}

/// The tokens that an answer says it took, of the request and of the answer.
pub(super) type TokensTold = (Tokens, Tokens);

#[cfg(test)]
mod tests {
    use super::*;

    fn bill(tokens: Price, per_minute: u64) -> Bill {
        let sound = SoundPrice { per_minute: MicroUsd(per_minute), ..SoundPrice::default() };
        Bill { tokens, sound, work: SoundWork { millis: 120_000, chars: 0 } }
    }

    #[test]
    fn what_the_answer_says_counts_and_else_what_was_set_aside() {
        let by_token =
            Price { input_per_million: MicroUsd(6_000_000), output_per_million: MicroUsd(10_000_000) };
        let counted = SoundUsage { tokens: Some((Tokens(100), Tokens(10))), millis: None };
        let timed = SoundUsage { tokens: None, millis: Some(30_000) };
        let silent = SoundUsage::default();
        let both = bill(by_token, 6_000);
        assert_eq!(both.most(), MicroUsd(12_000));
        assert_eq!(both.settled(&counted), MicroUsd(700));
        assert_eq!(both.settled(&timed), MicroUsd(3_000));
        assert_eq!(both.settled(&silent), MicroUsd(12_000));
        let unknown = bill(by_token, 0);
        assert_eq!((unknown.most(), unknown.settled(&timed)), (FLAT, FLAT));
        let hour = Bill { work: SoundWork { millis: 3_600_001, chars: 0 }, ..unknown };
        assert_eq!(hour.most(), MicroUsd(7 * FLAT.0));
        let by_minute = bill(Price::default(), 6_000);
        assert_eq!(by_minute.settled(&counted), MicroUsd(12_000), "tokens cost nothing there");
        assert_eq!(bill(Price::default(), 0).most(), MicroUsd(0), "a server of one's own, priced at nothing");
    }
}
