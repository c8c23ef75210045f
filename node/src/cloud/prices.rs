//! What models cost: a table kept as data, laid over by the configuration.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_routing::{MicroUsd, Price, SoundPrice, Tokens};

use crate::upstream::provider::Api;

/// The table that comes with the program.
const BUILT_IN: &str = include_str!("../../assets/prices.toml");

/// Returns the table that comes with the program, as text.
pub fn price_list() -> &'static str {
    BUILT_IN
}

/// Highest price that is believed, US dollars per million tokens; above it somebody mistook the unit.
const MAX_USD_PER_MILLION: f64 = 10_000.0;

/// One `[[prices]]` entry.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PriceEntry {
    /// Configured name of the provider.
    pub provider: String,
    /// The provider's name for the model.
    pub model: String,
    /// US dollars per million tokens of the prompt.
    pub input: f64,
    /// US dollars per million generated tokens.
    pub output: f64,
    /// Context length, tokens.
    pub context: Option<u32>,
    /// Longest answer, tokens.
    pub max_output: Option<u32>,
    /// Which of OpenAI's APIs it is asked by. Default: what the provider's `api` says.
    pub api: Option<Api>,
    /// Takes tools. Not said: believed so.
    pub tools: Option<bool>,
    /// Takes images. Like those below: not said = not known, and it may be tried.
    pub vision: Option<bool>,
    /// Takes sound.
    pub audio: Option<bool>,
    /// Can be held to a JSON schema.
    pub schema: Option<bool>,
    /// Tells log probabilities.
    pub logprobs: Option<bool>,
    /// Makes embeddings.
    pub embeddings: Option<bool>,
    /// Writes recordings down. Like the next: not said = what its name says.
    pub transcription: Option<bool>,
    /// Reads texts aloud.
    pub speech: Option<bool>,
    /// US dollars per minute of a recording, in the request or in the answer.
    pub minute: Option<f64>,
    /// US dollars per million characters that are read aloud.
    pub million_chars: Option<f64>,
    /// Takes temperature and the like; reasoning models refuse them. Default true.
    pub sampling: Option<bool>,
    /// Anthropic's: decides itself how long it thinks, by effort. Default false: it is given a budget.
    pub adaptive_thinking: Option<bool>,
}

/// What a model can do; `None` = not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Abilities {
    /// Takes tools.
    pub tools: Option<bool>,
    /// Takes images.
    pub vision: Option<bool>,
    /// Takes sound.
    pub audio: Option<bool>,
    /// Can be held to a JSON schema.
    pub schema: Option<bool>,
    /// Tells log probabilities.
    pub logprobs: Option<bool>,
    /// Makes embeddings.
    pub embeddings: Option<bool>,
    /// Writes recordings down.
    pub transcription: Option<bool>,
    /// Reads texts aloud.
    pub speech: Option<bool>,
}

#[derive(Deserialize)]
struct File {
    version: u32,
    noted: String,
    fallback: Fallback,
    prices: Vec<PriceEntry>,
}

#[derive(Deserialize)]
struct Fallback {
    input: f64,
    output: f64,
}

/// What is known of one model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quote {
    /// What it charges.
    pub price: Price,
    /// What it charges for sound.
    pub sound: SoundPrice,
    /// False when the price is the fallback.
    pub known: bool,
    /// Context length.
    pub context: Option<Tokens>,
    /// Longest answer.
    pub max_output: Option<Tokens>,
    /// What it can do.
    pub abilities: Abilities,
    /// Which of OpenAI's APIs it is asked by, if it matters.
    pub api: Option<Api>,
    /// Takes temperature and the like.
    pub sampling: bool,
    /// Decides itself how long it thinks.
    pub adaptive_thinking: bool,
}

impl Quote {
    /// What is known of a model that stands nowhere: its price, and nothing of what it can do.
    pub fn unknown(price: Price) -> Self {
        Self {
            price,
            sound: SoundPrice::default(),
            known: false,
            context: None,
            max_output: None,
            abilities: Abilities::default(),
            api: None,
            sampling: true,
            adaptive_thinking: false,
        }
    }
}

/// All prices, by provider and model.
#[derive(Debug, Clone)]
pub struct Prices {
    entries: BTreeMap<(String, String), Quote>,
    /// Models in the order of the table: a provider's first is the one to try first.
    order: Vec<(String, String)>,
    fallback: Price,
    /// Month in which the built-in table was checked, `2025-09`.
    pub noted: String,
}

/// A price that cannot be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the price of {provider}/{model} lies outside of 0 to {MAX_USD_PER_MILLION} USD per million tokens")]
pub struct Error {
    provider: String,
    model: String,
}

impl Prices {
    /// Returns the built-in table with `overrides` laid over it.
    ///
    /// # Errors
    /// An override is negative, not a number or absurdly high.
    pub fn with(overrides: &[PriceEntry]) -> Result<Self, Error> {
        let file: File = toml::from_str(BUILT_IN).expect("the built-in price table is checked by a test");
        assert_eq!(file.version, 1, "the built-in price table is of the version that this code reads");
        let fallback = price(file.fallback.input, file.fallback.output)
            .expect("the built-in fallback is checked by a test");
        let mut prices = Self { entries: BTreeMap::new(), order: Vec::new(), fallback, noted: file.noted };
        for entry in file.prices.iter().chain(overrides) {
            prices.put(entry)?;
        }
        Ok(prices)
    }

    fn put(&mut self, entry: &PriceEntry) -> Result<(), Error> {
        let bad = || Error { provider: entry.provider.clone(), model: entry.model.clone() };
        let quote = Quote {
            price: price(entry.input, entry.output).ok_or_else(bad)?,
            sound: SoundPrice {
                per_minute: micro(entry.minute.unwrap_or(0.0)).ok_or_else(bad)?,
                per_million_chars: micro(entry.million_chars.unwrap_or(0.0)).ok_or_else(bad)?,
            },
            known: true,
            context: entry.context.map(Tokens),
            max_output: entry.max_output.map(Tokens),
            abilities: Abilities {
                tools: entry.tools,
                vision: entry.vision,
                audio: entry.audio,
                schema: entry.schema,
                logprobs: entry.logprobs,
                embeddings: entry.embeddings,
                transcription: entry.transcription,
                speech: entry.speech,
            },
            api: entry.api,
            sampling: entry.sampling.unwrap_or(true),
            adaptive_thinking: entry.adaptive_thinking.unwrap_or(false),
        };
        let key = (entry.provider.clone(), entry.model.clone());
        if self.entries.insert(key.clone(), quote).is_none() {
            self.order.push(key);
        }
        Ok(())
    }

    /// Returns what is known of a model; an unknown one costs the fallback.
    pub fn quote(&self, provider: &str, model: &str) -> Quote {
        let key = (provider.to_owned(), model.to_owned());
        self.entries.get(&key).copied().unwrap_or(Quote::unknown(self.fallback))
    }

    /// Returns the models of a provider that have a price, in the table's order.
    pub fn models(&self, provider: &str) -> Vec<String> {
        self.order.iter().filter(|(name, _)| name == provider).map(|(_, model)| model.clone()).collect()
    }
}

fn micro(usd: f64) -> Option<MicroUsd> {
    let fits = (0.0..=MAX_USD_PER_MILLION).contains(&usd);
    fits.then(|| MicroUsd((usd * 1e6).round() as u64))
}

fn price(input: f64, output: f64) -> Option<Price> {
    Some(Price { input_per_million: micro(input)?, output_per_million: micro(output)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_table_reads_and_an_override_wins() {
        let built_in = Prices::with(&[]).unwrap();
        let quote = built_in.quote("openai", "gpt-4o");
        assert_eq!(quote.price.cost(Tokens(1_000_000), Tokens(1_000_000)), MicroUsd(12_500_000));
        assert!(quote.known);
        for provider in ["openai", "anthropic", "gemini", "openrouter"] {
            assert!(!built_in.models(provider).is_empty(), "{provider}");
        }
        let own = PriceEntry {
            provider: "openai".into(),
            model: "gpt-4o".into(),
            input: 1.0,
            output: 0.0,
            ..PriceEntry::default()
        };
        let prices = Prices::with(std::slice::from_ref(&own)).unwrap();
        assert_eq!(
            prices.quote("openai", "gpt-4o").price.cost(Tokens(1_000_000), Tokens(9)),
            MicroUsd(1_000_000)
        );
        for bad in [-1.0, f64::NAN, f64::INFINITY, 1e9] {
            assert!(Prices::with(&[PriceEntry { input: bad, ..own.clone() }]).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_unknown_model_costs_more_than_any_known_one() {
        let prices = Prices::with(&[]).unwrap();
        let unknown = prices.quote("openai", "gpt-99");
        assert!(!unknown.known);
        for (provider, model) in &prices.order {
            let known = prices.quote(provider, model).price;
            assert!(unknown.price.input_per_million >= known.input_per_million, "{provider}/{model}");
            assert!(unknown.price.output_per_million >= known.output_per_million, "{provider}/{model}");
        }
    }
}
