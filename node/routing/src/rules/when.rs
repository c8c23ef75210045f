//! Conditions of a route.

use std::sync::Arc;

use super::words::{self, Keyword};
use crate::class::{DataClass, Mode};
use crate::domain::Domain;
use crate::profile::{Language, RequestProfile, Task};
use crate::request::{MessageRole, Request};
use crate::units::Tokens;

/// What a route is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The model as the client wrote it.
    pub asked: &'a str,
    /// The request.
    pub request: &'a Request<'a>,
    /// Its features.
    pub profile: &'a RequestProfile,
    /// Id of the API key.
    pub key_id: &'a str,
    /// What its owner calls the key; empty if nothing.
    pub key_name: &'a str,
    /// Who asks, in the client's own words.
    pub user: Option<&'a str>,
}

/// Conditions; those that are given must all hold, of each list one entry.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct When {
    /// Names asked for; `*` stands for any characters.
    pub models: Vec<Arc<str>>,
    /// Whole words; where, `Reach` says.
    pub keywords: Vec<Keyword>,
    /// Shortest prompt.
    pub min_prompt: Option<Tokens>,
    /// Longest prompt.
    pub max_prompt: Option<Tokens>,
    /// Fields of knowledge.
    pub domains: Vec<Domain>,
    /// Languages.
    pub languages: Vec<Language>,
    /// What is wanted done.
    pub tasks: Vec<Task>,
    /// Data classes.
    pub data_classes: Vec<DataClass>,
    /// Modes.
    pub modes: Vec<Mode>,
    /// Names or ids of API keys.
    pub keys: Vec<Arc<str>>,
    /// With or without tools.
    pub tools: Option<bool>,
    /// With or without images.
    pub images: Option<bool>,
    /// Only vectors, or, unless it is set, everything else.
    pub embeddings: bool,
}

/// Where keywords are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// In the last message of the user: what is asked now says who should answer.
    LastOfUser,
    /// In every message: each of them leaves with the request, so a word that keeps it here counts wherever it stands.
    Everything,
}

impl When {
    /// Tells whether all conditions hold. The text is read last, and only if all others do.
    pub fn holds(&self, subject: &Subject<'_>, reach: Reach) -> bool {
        let Subject { asked, request, profile, key_id, key_name, .. } = subject;
        let needs = &request.needs;
        let is_key = |key: &Arc<str>| **key == **key_id || **key == **key_name;
        needs.embeddings == self.embeddings
            && any(&self.models, |pattern| fits(pattern, asked))
            && self.min_prompt.is_none_or(|least| profile.prompt_tokens >= least)
            && self.max_prompt.is_none_or(|most| profile.prompt_tokens <= most)
            && any(&self.domains, |domain| *domain == profile.domain)
            && any(&self.languages, |language| *language == profile.language)
            && any(&self.tasks, |task| *task == profile.task)
            && any(&self.data_classes, |class| *class == request.data_class)
            && any(&self.modes, |mode| *mode == request.effective_mode())
            && any(&self.keys, is_key)
            && self.tools.is_none_or(|tools| tools == needs.tools)
            && self.images.is_none_or(|images| images == needs.vision)
            && (self.keywords.is_empty() || self.has_keyword(request, reach))
    }

    fn has_keyword(&self, request: &Request<'_>, reach: Reach) -> bool {
        match reach {
            Reach::LastOfUser => words::contains_any(last_user_text(request), &self.keywords),
            Reach::Everything => {
                request.messages.iter().any(|message| words::contains_any(&message.text, &self.keywords))
            }
        }
    }
}

/// Returns the text of the last message of the user; empty if there is none.
pub(super) fn last_user_text<'a>(request: &'a Request<'_>) -> &'a str {
    let last = request.messages.iter().rev().find(|message| message.role == MessageRole::User);
    last.map(|message| message.text.as_ref()).unwrap_or_default()
}

/// True when the list sets no condition, or one entry fits.
fn any<T>(list: &[T], fits: impl FnMut(&T) -> bool) -> bool {
    list.is_empty() || list.iter().any(fits)
}

/// Matches a name against a pattern in which `*` stands for any characters.
fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name, expected) in [
            ("gpt-4o", "gpt-4o", true),
            ("gpt-4o", "gpt-4o-mini", false),
            ("gpt-*", "gpt-4o", true),
            ("*", "", true),
            ("*-mini", "gpt-4o-mini", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("ab*ba", "aba", false),
            ("", "x", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} on {name}");
        }
    }
}
