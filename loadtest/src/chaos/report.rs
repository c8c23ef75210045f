//! The report of a run: a table for people, JSON for programs, and a page that stands by itself.

use std::{fmt, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::row::{Figure, Row, Standing};

/// Everything that was played.
#[derive(Debug)]
pub struct Report {
    pub(super) seed: u64,
    pub(super) full: bool,
    pub(super) rows: Vec<Row>,
}

impl Report {
    /// Rows in which an invariant broke or a figure was missed by more than noise.
    pub fn failed(&self) -> usize {
        self.rows.iter().filter(|row| row.failed()).count()
    }

    /// The stable JSON form.
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        json!({"seed": self.seed, "set": if self.full { "full" } else { "quick" }, "failed": self.failed(),
            "rows": rows})
    }

    /// Writes `report.json` and `report.html` into a folder.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        for (name, text) in [("report.json", format!("{:#}\n", self.json())), ("report.html", self.html())] {
            let place = folder.join(name);
            std::fs::write(&place, text).with_context(|| format!("writing {}", place.display()))?;
        }
        Ok(())
    }

    fn html(&self) -> String {
        let mut rows = String::new();
        for row in &self.rows {
            for (at, cells) in lines(row).into_iter().enumerate() {
                let class = cells[4].split(' ').next().unwrap_or_default().to_lowercase();
                let class = if at == 0 { format!("{class} first") } else { class };
                rows.push_str(&format!("<tr class=\"{class}\">"));
                for cell in cells {
                    rows.push_str(&format!("<td>{}</td>", escape(&cell)));
                }
                rows.push_str("</tr>\n");
            }
        }
        format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Shoal under faults</title><style>\
             body{{font:15px/1.4 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem}}\
             table{{border-collapse:collapse;width:100%}}td,th{{padding:.2rem .6rem;text-align:left;vertical-align:top}}\
             .first td{{border-top:1px solid #999}}.met td:last-child{{color:#176f2c}}.late td:last-child{{color:#8a5a00}}\
             .missed td,.broken td{{color:#b00020}}.skipped td,.note td{{color:#666}}</style>\
             <h1>Shoal under faults</h1><p>Set: {}, seed {}. Rows that failed: {} of {}.</p>\
             <table><thead><tr><th>fault</th><th>figure</th><th>target</th><th>reached</th><th></th></tr></thead>\n{rows}</table></html>\n",
            if self.full { "full" } else { "quick" },
            self.seed,
            self.failed(),
            self.rows.len(),
        )
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Cells of a row: fault, figure, target, reached, standing.
fn lines(row: &Row) -> Vec<[String; 5]> {
    let mut lines: Vec<[String; 5]> = row.figures.iter().map(figure).collect();
    for (texts, standing) in [(&row.broken, "BROKEN"), (&row.notes, "note")] {
        lines.extend(texts.iter().map(|text| {
            [String::new(), text.replace('\n', " "), String::new(), String::new(), standing.to_owned()]
        }));
    }
    if let Some(why) = &row.skipped {
        lines.push([String::new(), why.clone(), String::new(), String::new(), "skipped".to_owned()]);
    }
    if lines.is_empty() {
        lines.push([
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            "BROKEN nothing measured".to_owned(),
        ]);
    }
    lines[0][0] = format!("{} {}", row.number, row.name);
    lines
}

fn figure(one: &Figure) -> [String; 5] {
    let unit = if one.unit.is_empty() { String::new() } else { format!(" {}", one.unit) };
    [
        String::new(),
        one.name.clone(),
        format!("{} {}{unit}", one.sense, number(one.target)),
        format!("{}{unit}", number(one.value)),
        match one.standing() {
            Standing::Late => format!("late (noise to {}{unit})", number(one.bound)),
            standing @ (Standing::Met | Standing::Missed) => standing.to_string(),
        },
    ]
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

/// A row as lines of the table.
pub(super) fn text(row: &Row) -> Vec<String> {
    let line = |[fault, figure, target, reached, standing]: [String; 5]| {
        if target.is_empty() {
            format!("{fault:<24} {standing}: {figure}")
        } else {
            format!("{fault:<24} {figure:<58} {target:>12} {reached:>12}  {standing}")
        }
    };
    lines(row).into_iter().map(line).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<24} {:<58} {:>12} {:>12}  ", "fault", "figure", "target", "reached")?;
        for line in self.rows.iter().flat_map(text) {
            writeln!(f, "{line}")?;
        }
        let skipped = self.rows.iter().filter(|row| row.skipped.is_some()).count();
        writeln!(
            f,
            "{} rows, {} skipped, {} failed (seed {})",
            self.rows.len(),
            skipped,
            self.failed(),
            self.seed
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn report() -> Report {
        let mut good = Row { number: 1, name: "kill_router", ..Row::default() };
        good.most("lost <words>", 0, 0);
        good.time("re-attached", Duration::from_secs(2), Duration::from_secs(5));
        let bad = Row { number: 2, name: "other", broken: vec!["I1: 3 of 4 ended".into()], ..Row::default() };
        let skipped =
            Row { number: 12, name: "disk_full", skipped: Some("not root".into()), ..Row::default() };
        Report { seed: 9, full: false, rows: vec![good, bad, skipped] }
    }

    #[test]
    fn the_table_says_what_was_met_broken_and_skipped() {
        let text = report().to_string();
        for part in [
            "1 kill_router",
            "met",
            "BROKEN: I1: 3 of 4 ended",
            "skipped: not root",
            "3 rows, 1 skipped, 1 failed",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn the_page_is_escaped_and_the_json_counts_failures() {
        let report = report();
        assert!(report.html().contains("lost &lt;words&gt;"));
        assert_eq!(report.json()["failed"], 1);
        assert_eq!(report.json()["rows"][0]["figures"][1]["standing"], "met");
    }
}
