//! The lines of a replay, in both directions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_routing::{Features, RequestProfile, Tokens, Words};

/// The first line: what each arm costs on average.
#[derive(Debug, Deserialize)]
pub(super) struct Head {
    /// Millionths of a US dollar a request, by index in the models file.
    pub(super) mean_cost_uusd: BTreeMap<String, f64>,
}

/// A request.
#[derive(Debug, Deserialize)]
pub(super) struct Request {
    pub(super) id: String,
    pub(super) prompt: String,
    /// Tokens of the whole prompt, of which `prompt` may be a part.
    pub(super) in_tok: Option<u32>,
    /// The router that serves it.
    pub(super) node: Option<usize>,
    /// The outcomes of further arms may be asked for.
    #[serde(default)]
    pub(super) shadow_ok: bool,
}

/// What the chosen arm, and granted shadows, were worth.
#[derive(Debug, Deserialize)]
pub(super) struct Outcome {
    pub(super) id: String,
    #[serde(default, with = "by_arm")]
    pub(super) y: Option<Vec<(usize, f64)>>,
}

/// A choice.
#[derive(Debug, Serialize)]
pub(super) struct Answer<'a> {
    pub(super) id: &'a str,
    pub(super) arm: usize,
    pub(super) scores: &'a [f64],
    #[serde(skip_serializing_if = "<[usize]>::is_empty")]
    pub(super) shadow: &'a [usize],
}

/// What is learnt from and looked at of a prompt.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Looks {
    pub(super) features: Features,
    pub(super) words: Words,
}

impl Looks {
    /// Looks at a prompt that stands for one of `in_tok` tokens.
    pub(super) fn of(prompt: &str, in_tok: Option<u32>) -> Self {
        let profile = RequestProfile::of_text(prompt, in_tok.map(Tokens));
        Self { features: profile.features, words: profile.words }
    }
}

/// Outcomes by arm: the keys of a JSON object are text, and an arm that was not seen may be null.
mod by_arm {
    use std::collections::BTreeMap;

    use serde::de::{Deserialize, Deserializer, Error};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Vec<(usize, f64)>>, D::Error> {
        let Some(map) = Option::<BTreeMap<String, Option<f64>>>::deserialize(from)? else { return Ok(None) };
        let read = |(arm, y): (String, Option<f64>)| {
            let index = arm.parse().map_err(|_| D::Error::custom(format!("'{arm}' is no arm")));
            y.map(|y| Ok((index?, y)))
        };
        map.into_iter().filter_map(read).collect::<Result<_, _>>().map(Some)
    }
}
