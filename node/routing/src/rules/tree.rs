//! Aliases of aliases, resolved once when the rules are read: a decision looks at plain models only.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Alias, Resolved, Target, Targets};

/// Most models of one split, aliases resolved: each is looked at in a decision.
pub const MAX_TARGETS: usize = 32;
/// Most steps of one fallback chain: a request makes three attempts, the rest are for models that are not there.
pub const MAX_FALLBACKS: usize = 16;

/// A set of rules that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Two rules have the same name.
    #[error("two rules are called '{0}'; give each its own name")]
    Twice(Arc<str>),
    /// An alias stands for itself by way of others.
    #[error("the alias '{0}' leads back to itself; let one of the aliases on the way name a model")]
    Circle(Arc<str>),
    /// There are more targets than a decision may look at.
    #[error(
        "the rule '{0}' has more than {MAX_TARGETS} models or {MAX_FALLBACKS} fallbacks, aliases resolved; use fewer"
    )]
    TooMany(Arc<str>),
}

type Names = BTreeMap<Arc<str>, Alias>;

/// Replaces the aliases among a rule's targets by what they stand for.
pub(super) fn resolve(rule: &Arc<str>, targets: &Targets, names: &Names) -> Result<Resolved, Unusable> {
    let too_many = || Unusable::TooMany(rule.clone());
    let mut way = vec![rule.clone()];
    let mut split = Vec::new();
    let mut chain: Vec<Arc<str>> = targets.fallback.clone();
    let mut sticky = targets.sticky;
    for target in &targets.split {
        expand(target, 1.0, names, &mut way, &mut split)?;
        // What an alias falls back to counts for who names it, after its own chain.
        if let Some(alias) = names.get(&target.model).filter(|alias| alias.name != *rule) {
            chain.extend(alias.targets.fallback.iter().cloned());
            if targets.split.len() == 1 && sticky == super::Sticky::Off {
                sticky = alias.targets.sticky;
            }
        }
    }
    let mut fallback: Vec<Vec<Target>> = Vec::new();
    for model in chain {
        let mut group = Vec::new();
        expand(&Target { model, weight: 1.0 }, 1.0, names, &mut way, &mut group)?;
        if !fallback.contains(&group) {
            fallback.push(group);
        }
    }
    if split.len() > MAX_TARGETS || fallback.len() > MAX_FALLBACKS {
        return Err(too_many());
    }
    Ok(Resolved { split, fallback, sticky })
}

/// Adds the models of a target at `scale` times their weight.
fn expand(
    target: &Target,
    scale: f64,
    names: &Names,
    way: &mut Vec<Arc<str>>,
    into: &mut Vec<Target>,
) -> Result<(), Unusable> {
    let (here, weight) = (way.last().cloned(), scale * target.weight);
    // An alias may bear the name of a model that it stands for.
    let alias = names.get(&target.model).filter(|alias| here.as_ref() != Some(&alias.name));
    let Some(alias) = alias else {
        match into.iter_mut().find(|other| other.model == target.model) {
            Some(other) => other.weight += weight,
            None => into.push(Target { model: target.model.clone(), weight }),
        }
        return Ok(());
    };
    if way.contains(&alias.name) {
        return Err(Unusable::Circle(alias.name.clone()));
    }
    if into.len() > MAX_TARGETS {
        return Err(Unusable::TooMany(way[0].clone()));
    }
    let total: f64 = alias.targets.split.iter().map(|target| target.weight).sum();
    way.push(alias.name.clone());
    for inner in &alias.targets.split {
        expand(inner, weight / total, names, way, into)?;
    }
    way.pop();
    Ok(())
}
