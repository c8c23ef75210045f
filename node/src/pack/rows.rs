//! Judged answers to train from: JSON lines, one prompt each.
//!
//! `{"prompt", "in_tok"?, "model", "score"}` is one model's judged answer; `{"prompt", "in_tok"?, "y": [..]}` is every
//! model's, in the order of a models file (`{"models": [..]}`). A prompt is read once, for its features.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use shoal_routing::{ArmId, Features, RequestProfile, Score, Tokens};

/// One prompt with what is known of the answers to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What the prompt looks like.
    pub features: Features,
    /// Score by arm.
    pub scores: BTreeMap<ArmId, Score>,
}

#[derive(Deserialize)]
struct Line {
    prompt: String,
    in_tok: Option<u32>,
    model: Option<String>,
    score: Option<f64>,
    y: Option<Vec<f64>>,
}

#[derive(Deserialize)]
struct Models {
    models: Vec<String>,
}

/// Reads a file; `models` names the order of `y`, by default the file `X.models.json` beside `X.jsonl`.
///
/// # Errors
/// Whatever is wrong, with file and line.
pub fn read(path: &Path, models: Option<&Path>) -> Result<Vec<Row>> {
    let beside = beside(path);
    let models = models.or_else(|| beside.as_deref().filter(|path| path.is_file()));
    let names = models.map(read_models).transpose()?;
    let file = std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut rows = Vec::new();
    for (at, line) in std::io::BufReader::new(file).lines().enumerate() {
        let place = || format!("{} line {}", path.display(), at + 1);
        let line = line.with_context(place)?;
        if !line.trim().is_empty() {
            rows.push(parse(&line, names.as_deref()).with_context(place)?);
        }
    }
    Ok(rows)
}

fn beside(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    Some(path.with_file_name(format!("{}.models.json", name.strip_suffix(".jsonl")?)))
}

fn read_models(path: &Path) -> Result<Vec<ArmId>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let file: Models =
        serde_json::from_str(&text).with_context(|| format!("{} is no models file", path.display()))?;
    Ok(file.models.iter().map(|name| ArmId::new(name, None)).collect())
}

fn parse(line: &str, names: Option<&[ArmId]>) -> Result<Row> {
    let line: Line = serde_json::from_str(line).context("the line is no such JSON object")?;
    let score = |value: f64| {
        Score::new(value).ok().with_context(|| format!("{value} is no score; scores lie between 0 and 1"))
    };
    let scores = match (line.model, line.score, line.y, names) {
        (Some(model), Some(value), None, _) => BTreeMap::from([(ArmId::new(&model, None), score(value)?)]),
        (None, None, Some(y), Some(names)) if y.len() == names.len() => {
            let pairs = names.iter().zip(y).map(|(arm, value)| Ok((arm.clone(), score(value)?)));
            pairs.collect::<Result<_>>()?
        }
        (None, None, Some(y), Some(names)) => bail!("{} scores for {} models", y.len(), names.len()),
        (None, None, Some(_), None) => bail!("'y' needs the order of the models: give it with --models FILE"),
        _ => bail!("a line has either 'model' and 'score', or 'y'"),
    };
    let features = RequestProfile::of_text(&line.prompt, line.in_tok.map(Tokens)).features;
    Ok(Row { features, scores })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_lines_are_read() {
        let names = [ArmId::new("a", None), ArmId::new("b", None)];
        let row = parse(r#"{"id": "x", "prompt": "Why?", "y": [0, 0.5]}"#, Some(&names)).unwrap();
        assert_eq!(row.scores.values().map(|score| score.value()).collect::<Vec<_>>(), [0.0, 0.5]);
        let row = parse(r#"{"prompt": "Why?", "model": "b", "score": 1}"#, None).unwrap();
        assert_eq!(row.scores[&names[1]], Score::ONE);
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said() {
        let names = [ArmId::new("a", None)];
        let wrong = [
            (r#"{"model": "a", "score": 1}"#, "no such JSON"),
            (r#"{"prompt": "?", "model": "a", "score": 2}"#, "between 0 and 1"),
            (r#"{"prompt": "?", "y": [1, 1]}"#, "2 scores for 1 models"),
            (r#"{"prompt": "?", "model": "a"}"#, "either"),
        ];
        for (line, expected) in wrong {
            let error = format!("{:#}", parse(line, Some(&names)).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
        assert!(parse(r#"{"prompt": "?", "y": [1]}"#, None).unwrap_err().to_string().contains("--models"));
    }
}
