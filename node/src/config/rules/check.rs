//! From the tables of rules to rules that can be used: every bound and word checked, each mistake by its place.

use shoal_routing::rules::{MAX_FALLBACKS, MAX_TARGETS, Route};
use shoal_routing::{
    Alias, DataClass, Domain, Keyword, Language, Mode, ModelChoice, Preference, Rules, Sticky, Target,
    Targets, Task, Tokens, When,
};

use super::{FileAlias, FileRoute, FileSticky, FileTarget, FileWhen};
use crate::config::{Error, valid_name};

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
        valid_name(self.name.clone()).map_err(|_| {
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
