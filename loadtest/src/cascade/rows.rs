//! Rows of a set of outcomes, one JSON object a line.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use anyhow::{Context, Result};
use serde::{Deserialize, de::DeserializeOwned};

/// A prompt with the outcome of every model.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Row {
    /// Name of the row.
    pub(super) id: String,
    /// Prompt, perhaps cut.
    pub(super) prompt: String,
    /// Tokens of the whole prompt.
    pub(super) in_tok: Option<f64>,
    /// Score of each model, 0 to 1.
    pub(super) y: Vec<f64>,
    /// Length of each model's answer in tokens.
    pub(super) out_tok: Option<Vec<f64>>,
    /// What each model chose, one character each; `-` = nothing that could be read.
    pub(super) pred: Option<String>,
}

/// Reads a file of JSON lines; empty lines are passed over.
///
/// # Errors
/// If it cannot be read or a line is not what is expected; the message names the line.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut rows = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let place = || format!("{} line {}", path.display(), index + 1);
        let line = line.with_context(place)?;
        if !line.trim().is_empty() {
            rows.push(serde_json::from_str(&line).with_context(place)?);
        }
    }
    Ok(rows)
}
