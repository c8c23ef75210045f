//! A table of option probabilities: for each row and local model `pmax`, `margin`, `entropy`, and `ok` of all models.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, bail};

use super::signals::SignalFields;

/// One row of the table, for one pair of models.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LogitRow {
    /// Name of the row.
    pub(super) id: String,
    /// Signals of the local answer.
    pub(super) signals: SignalFields,
    /// 1 if the local answer was right, 0 if not.
    pub(super) local: Option<f64>,
    /// The same of the strong answer.
    pub(super) strong: Option<f64>,
}

/// Reads the columns `LOCAL:pmax`, `LOCAL:margin`, `LOCAL:entropy`, `LOCAL:ok` and `STRONG:ok`, those that are there.
///
/// # Errors
/// If the file cannot be read, has no signal of the local model, or a field is no number.
pub(super) fn read(path: &Path, local: &str, strong: &str) -> Result<Vec<LogitRow>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&text, local, strong).with_context(|| path.display().to_string())
}

fn parse(text: &str, local: &str, strong: &str) -> Result<Vec<LogitRow>> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let (_, header) = lines.next().context("no header")?;
    let columns: BTreeMap<&str, usize> =
        header.split(',').enumerate().map(|(index, name)| (name.trim(), index)).collect();
    let column = |model: &str, what: &str| columns.get(format!("{model}:{what}").as_str()).copied();
    let id = *columns.get("id").context("no column id")?;
    let [pmax, margin, entropy] = ["pmax", "margin", "entropy"].map(|what| column(local, what));
    if [pmax, margin, entropy].iter().all(Option::is_none) {
        let known: Vec<&str> = columns.keys().filter_map(|name| name.strip_suffix(":margin")).collect();
        bail!("no signals of {local}; there are those of {}", known.join(", "));
    }
    let (local, strong) = (column(local, "ok"), column(strong, "ok"));
    lines
        .map(|(index, line)| {
            let fields: Vec<&str> = line.split(',').map(str::trim).collect();
            let number = |column: Option<usize>| -> Result<Option<f64>> {
                let field = column.and_then(|column| fields.get(column)).filter(|field| !field.is_empty());
                field
                    .map(|field| {
                        field.parse().with_context(|| format!("line {}: {field} is no number", index + 1))
                    })
                    .transpose()
            };
            let id = fields.get(id).filter(|id| !id.is_empty());
            Ok(LogitRow {
                id: (*id.with_context(|| format!("line {}: no id", index + 1))?).to_owned(),
                signals: SignalFields {
                    margin: number(margin)?,
                    pmax: number(pmax)?,
                    entropy: number(entropy)?,
                    ..SignalFields::default()
                },
                local: number(local)?,
                strong: number(strong)?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "id,a:pmax,a:margin,a:entropy,a:ok,B:ok\nx,0.9,0.8,0.4,1,0\ny,0.5,,1.1,0,1\n";

    #[test]
    fn columns_are_found_by_the_names_of_the_models() {
        let rows = parse(TABLE, "a", "B").unwrap();
        assert_eq!(
            (rows[0].signals.margin, rows[0].local, rows[0].strong),
            (Some(0.8), Some(1.0), Some(0.0))
        );
        assert_eq!((rows[1].signals.margin, rows[1].signals.entropy), (None, Some(1.1)));
        assert_eq!(parse(TABLE, "a", "c").unwrap()[0].strong, None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str, local: &str| format!("{:#}", parse(text, local, "B").unwrap_err());
        assert_eq!(error(TABLE, "b"), "no signals of b; there are those of a");
        assert!(error("id,a:pmax\nx,many\n", "a").starts_with("line 2: many is no number"));
        assert_eq!(error("", "a"), "no header");
    }
}
