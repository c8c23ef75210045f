//! Tables for people. Names from the mesh are stripped of control characters before they reach a terminal.

use serde_json::Value;

/// Prints a line; a reader that went away (`| head`) ends nothing.
#[allow(clippy::print_stdout)] // output of commands goes to standard output
pub(super) fn line(text: impl AsRef<str>) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{}", text.as_ref());
}

/// Prints pretty JSON.
pub(super) fn json(value: &Value) {
    line(serde_json::to_string_pretty(value).expect("a JSON value serialises"));
}

/// Prints rows under a heading, columns as wide as their widest cell.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = headings.iter().map(|h| h.chars().count()).collect();
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| clean(cell)).collect()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let print = |cells: Vec<&str>| {
        let text: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        line(text.join("  ").trim_end());
    };
    print(headings.to_vec());
    for row in &rows {
        print(row.iter().map(String::as_str).collect());
    }
}

/// Replaces control characters, so that a device's name cannot steer a terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Returns a member as text: strings as they are, absent ones as `-`.
pub(super) fn text(value: &Value, key: &str) -> String {
    match &value[key] {
        Value::String(s) if s.is_empty() => "-".into(),
        Value::String(s) => s.clone(),
        Value::Null => "-".into(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::Array(items) => {
            let items: Vec<String> =
                items.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
            if items.is_empty() { "-".into() } else { items.join(", ") }
        }
        other => other.to_string(),
    }
}

/// Returns a number of milliseconds as `12 ms` or `3.4 s`.
pub(super) fn millis(value: &Value) -> String {
    match value.as_f64() {
        None => "-".into(),
        Some(ms) if ms < 1000.0 => format!("{ms:.0} ms"),
        Some(ms) => format!("{:.1} s", ms / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_name_cannot_steer_the_terminal() {
        assert_eq!(clean("pixel\u{1b}[2J\n7"), "pixel?[2J?7");
    }

    #[test]
    fn members_read_as_people_expect() {
        let v = serde_json::json!({"a": ["x", "y"], "b": true, "c": null, "d": 3, "e": ""});
        let shown: Vec<String> = ["a", "b", "c", "d", "e", "f"].iter().map(|k| text(&v, k)).collect();
        assert_eq!(shown, ["x, y", "yes", "-", "3", "-", "-"]);
    }
}
