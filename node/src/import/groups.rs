//! Groups of deployments become aliases: a split by weight, and a chain after it.

use serde_json::Value;

use super::litellm::{Deployment, Import, Target};
use super::page::shown;
use super::tables::{Chains, group_aliases};
use crate::config::{FileAlias, FileTarget};

/// Most fallbacks of one alias.
const MAX_CHAIN: usize = 16;

impl Import<'_> {
    /// Makes an alias of each group that is more than the name of its one model.
    pub(super) fn aliases(&mut self, root: &Value) -> Vec<FileAlias> {
        let chains = Chains::of(root);
        let mut aliases = Vec::new();
        for group in self.order.clone() {
            let deployments = &self.groups[&group];
            let first = deployments.iter().map(|deployment| deployment.order).min().unwrap_or(1);
            let (now, later): (Vec<_>, Vec<_>) =
                deployments.iter().partition(|deployment| deployment.order == first);
            let split = self.split(&now);
            let mut fallback: Vec<String> =
                self.split(&later).into_iter().map(|target| target.model).collect();
            fallback.extend(chains.of_group(&group));
            let fallback = self.usable(fallback, &group, root);
            let stands_for_itself = split.len() == 1 && split[0].model == group && fallback.is_empty();
            if stands_for_itself {
                continue;
            }
            if let Some(alias) = self.alias(&group, split, fallback) {
                aliases.push(alias);
            }
        }
        for (name, target) in group_aliases(root) {
            match self.groups.contains_key(&target) && !self.groups.contains_key(&name) {
                true => aliases.extend(self.alias(&name, vec![FileTarget { model: target, weight: 1.0 }], Vec::new())),
                false => self.notes.push(format!(
                    "model_group_alias '{}' is left out: its target is no group of the file, or its own name is one",
                    shown(&name)
                )),
            }
        }
        aliases
    }

    /// Makes the split of deployments of one order: weights relative to one another, equal ones if one has none.
    fn split(&self, deployments: &[&Deployment]) -> Vec<FileTarget> {
        let weights: Option<Vec<f64>> = deployments.iter().map(|deployment| deployment.weight).collect();
        let weights = weights.unwrap_or_else(|| vec![1.0; deployments.len()]);
        let largest = weights.iter().copied().fold(1.0, f64::max);
        let even = weights.iter().all(|weight| *weight == weights[0]);
        let mut split: Vec<FileTarget> = Vec::new();
        for (deployment, weight) in deployments.iter().zip(&weights) {
            let model = match &deployment.target {
                Target::Provider(model) => model.clone(),
                // Hosts of one model are balanced by what they do at the moment, unless somebody weighed them.
                Target::Device { model, .. } if even => model.clone(),
                Target::Device { device, model } => format!("device:{}/{model}", self.devices[*device].name),
            };
            // Large rates (tokens a minute) become small weights in the same proportion.
            let weight = if even {
                1.0
            } else if largest > 1e6 {
                weight / largest
            } else {
                *weight
            };
            match split.iter_mut().find(|target| target.model == model) {
                Some(_) if even => {}
                Some(target) => target.weight += weight,
                None => split.push(FileTarget { model, weight }),
            }
        }
        split
    }

    fn alias(&mut self, name: &str, mut split: Vec<FileTarget>, fallback: Vec<String>) -> Option<FileAlias> {
        let chooses = name == "auto" || name.starts_with("auto:") || name.starts_with("device:");
        if chooses || name.contains('*') || name.len() > 256 || split.is_empty() {
            self.notes.push(format!(
                "the group '{}' has no alias: a pattern, 'auto' and 'device:…' cannot be one; its models are there as provider/model",
                shown(name)
            ));
            return None;
        }
        let single = (split.len() == 1).then(|| split.remove(0).model);
        Some(FileAlias { name: name.to_owned(), model: single, split, fallback, ..FileAlias::default() })
    }

    /// Leaves out of a chain what is nothing here, what occurs twice, and the group itself.
    fn usable(&mut self, chain: Vec<String>, group: &str, root: &Value) -> Vec<String> {
        let names: Vec<String> = group_aliases(root).into_iter().map(|(name, _)| name).collect();
        let mut out: Vec<String> = Vec::new();
        for model in chain {
            let is_group = self.groups.contains_key(&model) || names.contains(&model);
            let is_target = model.contains('/') || model.starts_with("device:");
            if model == group || out.contains(&model) {
                continue;
            }
            if !(is_group || is_target) {
                self.notes.push(format!(
                    "the fallback '{}' of '{}' is left out: it is no group of the file, or was left out itself",
                    shown(&model),
                    shown(group)
                ));
                continue;
            }
            out.push(model);
        }
        if out.len() > MAX_CHAIN {
            self.notes.push(format!(
                "'{}' has more than {MAX_CHAIN} fallbacks; the rest is left out",
                shown(group)
            ));
            out.truncate(MAX_CHAIN);
        }
        out
    }
}
