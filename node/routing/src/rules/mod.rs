//! Rules of the operator, before the learnt policy: names that mean other models, shares, conditions, fallback chains.
//!
//! A rule rewrites what was asked for (which model, where, with what preference); it never admits anything. The
//! router's filter sees every target afterwards, so a rule can keep a request on the devices of the mesh or raise its
//! data class, and can neither lower the class nor send out what must stay. The first route whose conditions all hold
//! decides; without one, an alias of the name that was asked for; without that, nothing changes.

mod draw;
mod plan;
mod tree;
mod when;
mod words;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::class::{DataClass, Mode, Preference};

pub use draw::Sticky;
pub use plan::Plan;
pub use tree::{MAX_FALLBACKS, MAX_TARGETS, Unusable};
pub use when::{Subject, When};
pub use words::Keyword;

/// A model that a rule may send a request to.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// What a client would write as `model`.
    pub model: Arc<str>,
    /// Its part of the requests, relative to the other targets; above 0.
    pub weight: f64,
}

/// Models by what a client would write, or another alias: who is asked, and who if that fails.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Targets {
    /// One of these is picked by weight; empty = the model that was asked for.
    pub split: Vec<Target>,
    /// Tried in this order when none of them may, can or does answer.
    pub fallback: Vec<Arc<str>>,
    /// What keeps a pick the same.
    pub sticky: Sticky,
}

/// A name that stands for other models.
#[derive(Debug, Clone, PartialEq)]
pub struct Alias {
    /// What clients ask for.
    pub name: Arc<str>,
    /// What it stands for; its split is not empty.
    pub targets: Targets,
}

/// What happens to requests that conditions hold for.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Name for `routing_reason`, the history and metrics.
    pub name: Arc<str>,
    /// Conditions; all must hold.
    pub when: When,
    /// Who is asked.
    pub targets: Targets,
    /// Where it must run; the stricter of this and the client's counts.
    pub mode: Option<Mode>,
    /// What matters when the model is ours to choose, in place of the client's.
    pub preference: Option<Preference>,
    /// Raises the data class to this.
    pub data_class: Option<DataClass>,
}

/// Picks and chains with every alias among them replaced by what it stands for.
#[derive(Debug, Clone, Default, PartialEq)]
struct Resolved {
    split: Vec<Target>,
    fallback: Vec<Vec<Target>>,
    sticky: Sticky,
}

/// The rules of a node, checked and ready to be asked.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    routes: Vec<(Route, Resolved)>,
    aliases: BTreeMap<Arc<str>, (Alias, Resolved)>,
}

impl Rules {
    /// Checks rules and resolves the aliases in them.
    ///
    /// # Errors
    /// [`Unusable`] names the rule: a name that occurs twice, an alias that leads back to itself by way of another, more
    /// targets than a decision may look at.
    pub fn new(routes: Vec<Route>, aliases: Vec<Alias>) -> Result<Self, Unusable> {
        let mut names: BTreeMap<Arc<str>, Alias> = BTreeMap::new();
        for alias in aliases {
            if let Some(twice) = names.insert(alias.name.clone(), alias) {
                return Err(Unusable::Twice(twice.name));
            }
        }
        let mut resolved = Vec::with_capacity(routes.len());
        for route in routes {
            if resolved.iter().any(|(other, _): &(Route, Resolved)| other.name == route.name)
                || names.contains_key(&route.name)
            {
                return Err(Unusable::Twice(route.name));
            }
            let targets = tree::resolve(&route.name, &route.targets, &names)?;
            resolved.push((route, targets));
        }
        let aliases = names
            .values()
            .map(|alias| {
                let targets = tree::resolve(&alias.name, &alias.targets, &names)?;
                Ok((alias.name.clone(), (alias.clone(), targets)))
            })
            .collect::<Result<_, Unusable>>()?;
        Ok(Self { routes: resolved, aliases })
    }

    /// True when there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.aliases.is_empty()
    }

    /// Returns the routes in the order in which they are tried.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter().map(|(route, _)| route)
    }

    /// Returns the aliases by name.
    pub fn aliases(&self) -> impl Iterator<Item = &Alias> {
        self.aliases.values().map(|(alias, _)| alias)
    }

    /// Returns what a name stands for in the end, with the share of each model, 0 to 1; empty if it is no rule's.
    pub fn shares(&self, name: &str) -> Vec<(Arc<str>, f64)> {
        let of_alias = self.aliases.get(name).map(|(_, resolved)| resolved);
        let of_route =
            self.routes.iter().find(|(route, _)| &*route.name == name).map(|(_, resolved)| resolved);
        let split = of_alias.or(of_route).map_or(&[][..], |resolved| &resolved.split);
        let total: f64 = split.iter().map(|target| target.weight).sum();
        split.iter().map(|target| (target.model.clone(), target.weight / total)).collect()
    }
}

#[cfg(test)]
mod tests;
