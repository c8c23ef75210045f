//! What the rules say to one request.

use std::sync::Arc;

use rand::{Rng, RngExt};

use super::draw::{self, Sticky};
use super::when::{Reach, Subject, last_user_text};
use super::{Route, Rules, Target};
use crate::choice::ModelChoice;
use crate::class::{DataClass, Mode, Preference};
use crate::registry::Craft;
use crate::request::{MessageRole, Request};

/// What the rules say to one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Name of the rule.
    pub rule: Arc<str>,
    /// Models in the order of the draw, the pick first; empty = the model that was asked for.
    pub targets: Vec<Target>,
    /// Models to try after them, in this order.
    pub fallback: Vec<Arc<str>>,
    /// Where the request may run from here on.
    pub mode: Mode,
    /// What matters, in place of what the client said.
    pub preference: Option<Preference>,
    /// How far the request may travel from here on.
    pub data_class: DataClass,
}

impl Rules {
    /// Returns what the rules say to a request; `None` if no rule is about it.
    ///
    /// `rng` draws where a pick is to be made anew for each request.
    pub fn plan(&self, subject: &Subject<'_>, rng: &mut impl Rng) -> Option<Plan> {
        let request = subject.request;
        let alias = self.aliases.get(subject.asked);
        let holds = |route: &Route| may_follow(route, request) && route.when.holds(subject, route.reach());
        let route = self.routes.iter().find(|(route, _)| holds(route));
        let none: &[Vec<Target>] = &[];
        let (rule, from, chain, more) = match (route, alias) {
            // A route that names no model leaves the name to its alias.
            (Some((route, own)), Some((_, alias))) if own.split.is_empty() => {
                (&route.name, alias, &own.fallback[..], &alias.fallback[..])
            }
            (Some((route, own)), _) => (&route.name, own, &own.fallback[..], none),
            (None, Some((alias, own))) => (&alias.name, own, &own.fallback[..], none),
            (None, None) => return None,
        };
        let key = seed(from.sticky, subject, rule, rng);
        let in_order = |group: &Vec<Target>| draw::order(group, key);
        let (mode, preference, data_class) = match route {
            Some((route, _)) => route.applied_to(request),
            None => (request.mode, None, request.data_class),
        };
        Some(Plan {
            rule: rule.clone(),
            targets: draw::order(&from.split, key),
            fallback: chain.iter().chain(more).flat_map(in_order).map(|target| target.model).collect(),
            mode,
            preference,
            data_class,
        })
    }
}

impl Plan {
    /// Returns the request as it goes on: asking for `choice`, where and how far the rule lets it.
    pub fn narrowed<'a>(&self, request: &'a Request<'_>, choice: ModelChoice) -> Request<'a> {
        let choice = match (choice, self.preference) {
            (ModelChoice::Auto(_), Some(preference)) => ModelChoice::Auto(preference),
            (choice, _) => choice,
        };
        Request {
            choice,
            mode: self.mode,
            preference: self.preference.unwrap_or(request.preference),
            data_class: self.data_class,
            ..request.borrowed()
        }
    }
}

impl Route {
    /// Returns where the keywords are looked for: everywhere, if the route makes a request stricter.
    fn reach(&self) -> Reach {
        let keeps = self.mode == Some(Mode::Local) || self.data_class.is_some();
        if keeps { Reach::Everything } else { Reach::LastOfUser }
    }

    /// Returns mode, preference and data class of a request under this rule: never less strict than before.
    fn applied_to(&self, request: &Request<'_>) -> (Mode, Option<Preference>, DataClass) {
        let mode = match (request.mode, self.mode) {
            (Mode::Local, _) | (_, Some(Mode::Local)) => Mode::Local,
            (Mode::Cloud, _) | (_, Some(Mode::Cloud)) => Mode::Cloud,
            (Mode::Auto, None | Some(Mode::Auto)) => Mode::Auto,
        };
        let class = request.data_class;
        (mode, self.preference, self.data_class.map_or(class, |raised| class.raised_to(raised)))
    }
}

/// False for what a rule is not about: a request that must not leave the devices, if the route leads to the cloud, and
/// sound, if it names models to chat with for whatever comes. One that keeps requests here is about all of them.
fn may_follow(route: &Route, request: &Request<'_>) -> bool {
    let stays = request.effective_mode() == Mode::Local || request.data_class == DataClass::Restricted;
    let is_sound = matches!(request.needs.craft(), Craft::Transcripts | Craft::Speech);
    let leads_to_chat = !route.targets.split.is_empty() && route.when.models.is_empty();
    let keeps = route.reach() == Reach::Everything;
    !(stays && route.mode == Some(Mode::Cloud) || is_sound && leads_to_chat && !keeps)
}

/// Makes the number that a draw begins with.
fn seed(sticky: Sticky, subject: &Subject<'_>, rule: &Arc<str>, rng: &mut impl Rng) -> u64 {
    let request = subject.request;
    let of = |text: &str| draw::hash(text.as_bytes());
    let kept = match sticky {
        Sticky::Off => return rng.random(),
        Sticky::User => of(subject.user.unwrap_or(subject.key_id)),
        Sticky::Key => of(subject.key_id),
        Sticky::Prompt => of(last_user_text(request)),
        Sticky::Conversation => {
            let first = request.messages.iter().position(|message| message.role == MessageRole::User);
            let beginning = &request.messages[..first.map_or(0, |at| at + 1)];
            beginning.iter().fold(0, |hash, message| draw::mix(hash ^ of(&message.text)))
        }
    };
    // Of two rules, the same user falls into unrelated parts.
    draw::mix(kept ^ of(rule).rotate_left(32))
}
