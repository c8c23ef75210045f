//! The text of a `shoal.toml` that is made by a program and read by people.

use std::fmt::Write;

use crate::config::{FileAlias, FileSticky, FileTarget};

/// Longest piece of another file that a comment repeats, characters.
const MAX_SHOWN: usize = 80;

/// A page being written, with what it has no words for.
#[derive(Default)]
pub(super) struct Page {
    text: String,
    notes: usize,
}

impl Page {
    /// Writes a line as it is.
    pub(super) fn line(&mut self, text: &str) {
        self.text.push_str(text);
        self.text.push('\n');
    }

    /// Writes a comment that is for orientation only.
    pub(super) fn comment(&mut self, text: &str) {
        let _ = writeln!(self.text, "# {}", clean(text));
    }

    /// Writes a comment on something without a counterpart, or with one that differs.
    pub(super) fn note(&mut self, text: &str) {
        self.notes += 1;
        let _ = writeln!(self.text, "# note: {}", clean(text));
    }

    /// Writes a key with a text.
    pub(super) fn set(&mut self, key: &str, value: &str) {
        let _ = writeln!(self.text, "{key} = {}", quoted(value));
    }

    /// Writes a key with a list of texts.
    pub(super) fn list(&mut self, key: &str, values: &[String]) {
        let values: Vec<String> = values.iter().map(|value| quoted(value)).collect();
        let _ = writeln!(self.text, "{key} = [{}]", values.join(", "));
    }

    /// Writes an `[[aliases]]` entry.
    pub(super) fn alias(&mut self, alias: &FileAlias) {
        self.line("\n[[aliases]]");
        self.set("name", &alias.name);
        if let Some(model) = &alias.model {
            self.set("model", model);
        }
        if !alias.split.is_empty() {
            let one = |target: &FileTarget| {
                format!("    {{ model = {}, weight = {:?} }},", quoted(&target.model), target.weight)
            };
            let lines: Vec<String> = alias.split.iter().map(one).collect();
            let _ = writeln!(self.text, "split = [\n{}\n]", lines.join("\n"));
        }
        if alias.sticky == Some(FileSticky::User) {
            self.set("sticky", "user");
        }
        if !alias.fallback.is_empty() {
            self.list("fallback", &alias.fallback);
        }
    }

    /// Returns the text and the number of notes.
    pub(super) fn finish(self) -> (String, usize) {
        (self.text, self.notes)
    }
}

/// Writes a text as TOML does.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Makes a name of another file fit to stand in a comment.
pub(super) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_SHOWN).collect()
}

fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
