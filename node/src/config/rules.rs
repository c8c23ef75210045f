//! The `[[aliases]]` and `[[routes]]` tables: rules that come before the learnt choice.

mod check;

use serde::{Deserialize, Serialize};

pub(crate) use check::check;

/// One model of a split.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FileTarget {
    /// What a client would write as `model`: a served name, `provider/model`, `device:<name>/<model>`, `auto:fast`, or
    /// another alias.
    pub model: String,
    /// Its part of the requests, relative to the others. Default 1.
    #[serde(default = "one")]
    pub weight: f64,
}

fn one() -> f64 {
    1.0
}

/// What keeps the pick of a split the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileSticky {
    /// Nothing.
    Off,
    /// The `user` of the body, else the API key.
    User,
    /// The beginning of the conversation.
    Conversation,
    /// The last message of the user.
    Prompt,
    /// The API key.
    Key,
}

/// One `[[aliases]]` entry: a name that stands for other models.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FileAlias {
    /// What clients ask for; may be the name of a model that it stands for.
    pub name: String,
    /// The one model that it stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Several models, in the place of `model`: one is picked by weight among those that can answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub split: Vec<FileTarget>,
    /// What keeps the pick the same: `user`, `conversation`, `prompt`, `key` or `off`. Default off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sticky: Option<FileSticky>,
    /// Models to try in this order when none of them may, can or does answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallback: Vec<String>,
}

/// One `[[routes]]` entry: the first whose conditions hold decides.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FileRoute {
    /// Name for `routing_reason`, the history and metrics.
    pub name: String,
    /// Conditions; without one, every request.
    #[serde(default)]
    pub when: FileWhen,
    /// The one model to ask; without it and without `split`, the model that the client asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Several models, in the place of `model`: one is picked by weight among those that can answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub split: Vec<FileTarget>,
    /// What keeps the pick the same: `user`, `conversation`, `prompt`, `key` or `off`. Default off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sticky: Option<FileSticky>,
    /// Models to try in this order when none of them may, can or does answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallback: Vec<String>,
    /// `local` (devices of the mesh only) or `cloud` (providers only; not for requests that must stay).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// `balanced`, `cheap`, `fast` or `best`, in the place of the client's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preference: Option<String>,
    /// Raises the data class to this; never lowers it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_class: Option<String>,
}

/// Conditions of a route: those that are given must all hold, of each list one entry.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileWhen {
    /// Names asked for; `*` stands for any characters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Whole words, letter case aside, in the last message of the user.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keywords: Vec<String>,
    /// Shortest prompt, tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_prompt_tokens: Option<u32>,
    /// Longest prompt, tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_prompt_tokens: Option<u32>,
    /// Fields of knowledge: code, math, medical, legal, finance, general.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<String>,
    /// Languages by their code: en, de, fr, …
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub languages: Vec<String>,
    /// What is wanted done: chat, code, summarise, translate, extract, creative, math, tool_use.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<String>,
    /// Data classes: public, internal, restricted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data_classes: Vec<String>,
    /// Modes: auto, local, cloud.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modes: Vec<String>,
    /// Names or ids of API keys.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// Only requests with tools, or only those without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<bool>,
    /// Only requests with images, or only those without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<bool>,
    /// Only requests for vectors; else a route is about all others. Default false.
    pub embeddings: bool,
}

#[cfg(test)]
mod tests {
    use crate::config::FileConfig;
    use crate::config::testing::checked;

    #[test]
    fn rules_are_read_as_a_person_writes_them() {
        let config = checked(
            r#"
            [[aliases]]
            name = "gpt-4o-mini"
            split = [{ model = "qwen2.5:7b", weight = 9 }, { model = "openai/gpt-4o-mini" }]
            sticky = "user"
            fallback = ["auto:local"]

            [[routes]]
            name = "contracts-stay-here"
            when = { keywords = ["contract", "non-disclosure"], languages = ["en", "de"], min_prompt_tokens = 10 }
            mode = "local"
            data_class = "restricted"
            "#,
        )
        .unwrap();
        let shares: Vec<(String, f64)> =
            config.rules.shares("gpt-4o-mini").into_iter().map(|(m, s)| (m.to_string(), s)).collect();
        assert_eq!(shares, [("qwen2.5:7b".to_owned(), 0.9), ("openai/gpt-4o-mini".to_owned(), 0.1)]);
        let route = config.rules.routes().next().unwrap();
        assert_eq!((route.when.keywords.len(), route.when.languages.len()), (2, 2));
    }

    #[test]
    fn rules_that_cannot_be_meant_are_refused_with_a_reason() {
        let cases = [
            ("[[aliases]]\nname = \"a\"", "stands for nothing"),
            ("[[aliases]]\nname = \"auto\"\nmodel = \"m\"", "when.models"),
            ("[[aliases]]\nname = \"a\"\nmodle = \"m\"", "did you mean 'model'"),
            ("[[aliases]]\nname = \"a\"\nmodel = \"m\"\nsplit = [{model = \"n\"}]", "leave one of them out"),
            ("[[aliases]]\nname = \"a\"\nsplit = [{model = \"n\", weight = 0}]", "above 0"),
            ("[[aliases]]\nname = \"a\"\nsplit = [{model = \"n\", weight = nan}]", "above 0"),
            (
                "[[aliases]]\nname = \"a\"\nmodel = \"b\"\n[[aliases]]\nname = \"b\"\nmodel = \"a\"",
                "leads back",
            ),
            ("[[aliases]]\nname = \"a\"\nmodel = \"b\"\nsticky = \"always\"", "sticky"),
            ("[[routes]]\nname = \"r\"", "does nothing"),
            ("[[routes]]\nname = \"a b\"\nmodel = \"m\"", "1 to 64 letters"),
            ("[[routes]]\nname = \"r\"\nmode = \"moon\"", "auto, local, cloud"),
            (
                "[[routes]]\nname = \"r\"\nmodel = \"m\"\nwhen = { keyword = [\"x\"] }",
                "did you mean 'keywords'",
            ),
            ("[[routes]]\nname = \"r\"\nmodel = \"m\"\nwhen = { keywords = [\"c++\"] }", "letter or digit"),
            ("[[routes]]\nname = \"r\"\nmodel = \"m\"\nwhen = { domains = [\"law\"] }", "one of code, math"),
            (
                "[[routes]]\nname = \"r\"\nmodel = \"m\"\nwhen = { min_prompt_tokens = 9, max_prompt_tokens = 8 }",
                "no prompt is both",
            ),
        ];
        for (text, expected) in cases {
            let error = checked(text).map(|_| ()).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn the_sample_is_a_configuration_that_can_be_used() {
        let sample = toml::to_string_pretty(&FileConfig::sample()).unwrap();
        assert!(sample.contains("[[aliases]]") && sample.contains("[[routes]]"), "{sample}");
        let sample: FileConfig = toml::from_str(&sample).unwrap();
        assert!(!super::check(sample.routes, sample.aliases).unwrap().is_empty());
    }
}
