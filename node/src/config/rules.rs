//! The `[[aliases]]` and `[[routes]]` tables: rules that come before the learnt choice.

use serde::{Deserialize, Serialize};
use shoal_routing::rules::{MAX_FALLBACKS, MAX_TARGETS, Route};
use shoal_routing::{
    Alias, DataClass, Domain, Keyword, Language, Mode, ModelChoice, Preference, Rules, Sticky, Target,
    Targets, Task, Tokens, When,
};

use super::Error;

/// Most routes: each is looked at for each request.
const MAX_ROUTES: usize = 256;
/// Most aliases.
const MAX_ALIASES: usize = 1024;
/// Most entries of one list of conditions.
const MAX_CONDITIONS: usize = 256;
/// Longest name of a model, an alias or a keyword, bytes; as long as the API takes them.
const MAX_NAME: usize = 256;
/// Largest weight; beyond it somebody mistook the unit.
const MAX_WEIGHT: f64 = 1e6;

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

/// Checks the two tables and makes the rules of them.
///
/// # Errors
/// [`Error::Invalid`] names the rule and the key.
pub(crate) fn check(routes: Vec<FileRoute>, aliases: Vec<FileAlias>) -> Result<Rules, Error> {
    for (what, count, most) in [("routes", routes.len(), MAX_ROUTES), ("aliases", aliases.len(), MAX_ALIASES)]
    {
        if count > most {
            return Err(wrong(what, format!("there are {count}; {what} may be at most {most}")));
        }
    }
    let routes = routes.into_iter().map(FileRoute::check).collect::<Result<_, _>>()?;
    let aliases = aliases.into_iter().map(FileAlias::check).collect::<Result<_, _>>()?;
    Rules::new(routes, aliases).map_err(|unusable| wrong("routes and aliases", unusable.to_string()))
}

fn wrong(origin: impl Into<String>, message: impl Into<String>) -> Error {
    Error::Invalid { origin: origin.into(), message: message.into() }
}

impl FileAlias {
    fn check(self) -> Result<Alias, Error> {
        let place = format!("the alias '{}'", shown(&self.name));
        is_model(&place, "name", &self.name)?;
        if ModelChoice::parse(&self.name, &|_| false) != ModelChoice::Named(self.name.clone()) {
            let message = "a name that chooses already, such as auto or device:…, cannot stand for something else; \
                           write a route with when.models for it";
            return Err(wrong(format!("{place}.name"), message));
        }
        let targets = targets(&place, self.model, self.split, self.fallback, self.sticky)?;
        if targets.split.is_empty() {
            return Err(wrong(place, "it stands for nothing; name a model, or several under split"));
        }
        Ok(Alias { name: self.name.into(), targets })
    }
}

impl FileRoute {
    fn check(self) -> Result<Route, Error> {
        let place = format!("the route '{}'", shown(&self.name));
        super::valid_name(self.name.clone()).map_err(|_| {
            wrong(format!("{place}.name"), "a route's name has 1 to 64 letters, digits, '-', '_' or '.'")
        })?;
        let targets = targets(&place, self.model, self.split, self.fallback, self.sticky)?;
        let mode = word::<Mode>(&place, "mode", self.mode)?;
        let preference = word::<Preference>(&place, "preference", self.preference)?;
        let data_class = word::<DataClass>(&place, "data_class", self.data_class)?;
        let does = !targets.split.is_empty() || !targets.fallback.is_empty() || mode.is_some();
        if !(does || preference.is_some() || data_class.is_some()) {
            let message =
                "it does nothing; give it a model, a split, a fallback, a mode, a preference or a data_class";
            return Err(wrong(place, message));
        }
        Ok(Route {
            name: self.name.into(),
            when: self.when.check(&place)?,
            targets,
            mode,
            preference,
            data_class,
        })
    }
}

impl FileWhen {
    fn check(self, place: &str) -> Result<When, Error> {
        let at = |key: &str| format!("{place}.when.{key}");
        let lists = [
            ("models", &self.models),
            ("keywords", &self.keywords),
            ("keys", &self.keys),
            ("domains", &self.domains),
            ("languages", &self.languages),
            ("tasks", &self.tasks),
            ("data_classes", &self.data_classes),
            ("modes", &self.modes),
        ];
        for (key, list) in lists {
            let fits =
                |text: &String| (1..=MAX_NAME).contains(&text.len()) && !text.chars().any(char::is_control);
            if list.len() > MAX_CONDITIONS || !list.iter().all(fits) {
                let message =
                    format!("it may have {MAX_CONDITIONS} entries of 1 to {MAX_NAME} printable characters");
                return Err(wrong(at(key), message));
            }
        }
        if let (Some(least), Some(most)) = (self.min_prompt_tokens, self.max_prompt_tokens)
            && least > most
        {
            let message = format!("it is {least}, above max_prompt_tokens ({most}): no prompt is both");
            return Err(wrong(at("min_prompt_tokens"), message));
        }
        let keyword = |text: &String| {
            Keyword::new(text).ok_or_else(|| {
                let message = format!(
                    "'{}' cannot be found as a word; begin and end it with a letter or digit",
                    shown(text)
                );
                wrong(at("keywords"), message)
            })
        };
        Ok(When {
            keywords: self.keywords.iter().map(keyword).collect::<Result<_, _>>()?,
            min_prompt: self.min_prompt_tokens.map(Tokens),
            max_prompt: self.max_prompt_tokens.map(Tokens),
            domains: known(&at("domains"), &self.domains, &Domain::ALL, Domain::as_str)?,
            languages: known(&at("languages"), &self.languages, &Language::ALL, Language::as_str)?,
            tasks: known(&at("tasks"), &self.tasks, &Task::ALL, Task::as_str)?,
            data_classes: words(&at("data_classes"), &self.data_classes)?,
            modes: words(&at("modes"), &self.modes)?,
            models: self.models.into_iter().map(Into::into).collect(),
            keys: self.keys.into_iter().map(Into::into).collect(),
            tools: self.tools,
            images: self.images,
            embeddings: self.embeddings,
        })
    }
}

fn targets(
    place: &str,
    model: Option<String>,
    split: Vec<FileTarget>,
    fallback: Vec<String>,
    sticky: Option<FileSticky>,
) -> Result<Targets, Error> {
    if model.is_some() && !split.is_empty() {
        return Err(wrong(place, "it has a model and a split; leave one of them out"));
    }
    if split.len() > MAX_TARGETS || fallback.len() > MAX_FALLBACKS {
        let message =
            format!("it may have {MAX_TARGETS} models in its split and {MAX_FALLBACKS} in its fallback");
        return Err(wrong(place, message));
    }
    let single = model.map(|model| FileTarget { model, weight: 1.0 });
    let target = |target: FileTarget| {
        is_model(place, "model", &target.model)?;
        if !(target.weight > 0.0 && target.weight <= MAX_WEIGHT) {
            let message = format!(
                "{} is no weight of '{}'; it lies above 0, up to {MAX_WEIGHT}; leave out who is to get nothing",
                target.weight,
                shown(&target.model)
            );
            return Err(wrong(format!("{place}.weight"), message));
        }
        Ok(Target { model: target.model.into(), weight: target.weight })
    };
    for model in &fallback {
        is_model(place, "fallback", model)?;
    }
    Ok(Targets {
        split: single.into_iter().chain(split).map(target).collect::<Result<_, _>>()?,
        fallback: fallback.into_iter().map(Into::into).collect(),
        sticky: match sticky {
            None | Some(FileSticky::Off) => Sticky::Off,
            Some(FileSticky::User) => Sticky::User,
            Some(FileSticky::Conversation) => Sticky::Conversation,
            Some(FileSticky::Prompt) => Sticky::Prompt,
            Some(FileSticky::Key) => Sticky::Key,
        },
    })
}

fn is_model(place: &str, key: &str, name: &str) -> Result<(), Error> {
    if (1..=MAX_NAME).contains(&name.len()) && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(wrong(format!("{place}.{key}"), format!("a model's name has 1 to {MAX_NAME} printable characters")))
}

fn word<T: std::str::FromStr<Err = shoal_routing::UnknownWord>>(
    place: &str,
    key: &str,
    text: Option<String>,
) -> Result<Option<T>, Error> {
    text.map(|text| text.parse())
        .transpose()
        .map_err(|e: T::Err| wrong(format!("{place}.{key}"), e.to_string()))
}

fn words<T: std::str::FromStr<Err = shoal_routing::UnknownWord>>(
    at: &str,
    list: &[String],
) -> Result<Vec<T>, Error> {
    list.iter().map(|text| text.parse().map_err(|e: T::Err| wrong(at, e.to_string()))).collect()
}

/// Looks words up among those that there are.
fn known<T: Copy>(
    at: &str,
    list: &[String],
    all: &[T],
    as_str: impl Fn(T) -> &'static str,
) -> Result<Vec<T>, Error> {
    let look = |text: &String| {
        let found = all.iter().copied().find(|value| as_str(*value) == text);
        let words = || all.iter().map(|value| as_str(*value)).collect::<Vec<_>>().join(", ");
        found.ok_or_else(|| wrong(at, format!("'{}' is not known; use one of {}", shown(text), words())))
    };
    list.iter().map(look).collect()
}

/// Makes a name fit to stand in a message.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, FileConfig, check_file};

    fn checked(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shoal.toml");
        std::fs::write(&path, format!("version = 1\n{text}")).unwrap();
        check_file(&path, &[]).map_err(|e| e.to_string())
    }

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
