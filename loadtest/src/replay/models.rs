//! The models file of a data set: names, order and roles of its arms.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use shoal_routing::ArmId;
use shoal_routing::bandit::SizeClass;

#[derive(Deserialize)]
struct File {
    models: Vec<String>,
    #[serde(default)]
    local: Vec<usize>,
    #[serde(default)]
    cloud: Vec<usize>,
}

/// An arm that may be chosen.
#[derive(Debug)]
pub(crate) struct Arm {
    /// Index in the models file.
    pub(crate) index: usize,
    pub(crate) id: ArmId,
    pub(crate) size: SizeClass,
    /// It runs on devices of the mesh.
    pub(crate) local: bool,
    /// It is what "the cloud" means in this set.
    pub(crate) cloud: bool,
}

/// The arms that may be chosen, in the caller's order.
#[derive(Debug)]
pub(crate) struct Models {
    pub(crate) arms: Vec<Arm>,
}

impl Models {
    pub(crate) fn read(path: &Path, wanted: &[usize]) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let file: File =
            serde_json::from_str(&text).with_context(|| format!("{} is no models file", path.display()))?;
        let wanted = if wanted.is_empty() { (0..file.models.len()).collect() } else { wanted.to_vec() };
        let arms = wanted
            .iter()
            .map(|index| {
                let Some(name) = file.models.get(*index) else {
                    bail!("arm {index}: {} names {} models", path.display(), file.models.len());
                };
                let (id, size) = super::arm_of(name);
                let (local, cloud) = (file.local.contains(index), file.cloud.contains(index));
                Ok(Arm { index: *index, id, size, local, cloud })
            })
            .collect::<Result<Vec<Arm>>>()?;
        let distinct: std::collections::BTreeSet<usize> = wanted.iter().copied().collect();
        if arms.is_empty() || distinct.len() != arms.len() {
            bail!("--arms names no arm, or one twice");
        }
        Ok(Self { arms })
    }

    /// Returns the place of an arm among those that may be chosen.
    pub(crate) fn position(&self, index: usize) -> Result<usize> {
        let position = self.arms.iter().position(|arm| arm.index == index);
        position.with_context(|| format!("arm {index} is not among those that may be chosen"))
    }
}
