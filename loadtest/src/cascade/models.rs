//! Names of the models of a set, in the order of its arrays.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// What a `*.models.json` says that is needed here.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Models {
    /// Names; their index is the model's number.
    pub(super) models: Vec<String>,
}

impl Models {
    /// Reads the file.
    ///
    /// # Errors
    /// If it cannot be read or names no models.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let models: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is no list of models", path.display()))?;
        if models.models.is_empty() {
            bail!("{} names no model", path.display());
        }
        Ok(models)
    }

    /// Returns the number of a model that is given by number or name.
    ///
    /// # Errors
    /// If there is no such model; the message lists those that there are.
    pub(super) fn index(&self, model: &str) -> Result<usize> {
        let number = model.parse().ok().filter(|index| *index < self.models.len());
        number
            .or_else(|| self.models.iter().position(|name| name == model))
            .with_context(|| format!("no model {model} among {}", self.list()))
    }

    fn list(&self) -> String {
        let named = self.models.iter().enumerate().map(|(index, name)| format!("{index} {name}"));
        named.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_go_by_number_and_by_name() {
        let models = Models { models: vec!["small".into(), "large".into()] };
        assert_eq!(models.index("1").unwrap(), 1);
        assert_eq!(models.index("large").unwrap(), 1);
        assert_eq!(models.index("2").unwrap_err().to_string(), "no model 2 among 0 small, 1 large");
    }
}
