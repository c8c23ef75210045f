//! Progress of long work: a bar on a terminal, a plain line now and then otherwise.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Plain lines appear each time this share of the whole was done, in percent.
const LINE_EVERY_PERCENT: u64 = 10;

/// Writes a line to standard error, where it does not mix with a command's result.
pub(super) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Progress of one download.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    label: String,
    total: Option<u64>,
    done: u64,
    next_line_percent: u64,
}

impl Progress {
    /// Starts at `done` of `total` bytes.
    pub(super) fn bytes(label: &str, done: u64, total: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
            let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_message(label.to_owned());
            bar.set_position(done);
            bar
        });
        if bar.is_none() {
            let size = total.map_or_else(String::new, |total| format!(" ({} MB)", total / 1_000_000));
            say(&format!("fetching {label}{size}"));
        }
        Self { bar, label: label.to_owned(), total, done, next_line_percent: LINE_EVERY_PERCENT }
    }

    /// Starts work whose end is not known.
    pub(super) fn spinner(label: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_message(label.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            say(label);
        }
        Self { bar, label: label.to_owned(), total: None, done: 0, next_line_percent: LINE_EVERY_PERCENT }
    }

    /// Counts `bytes` more.
    pub(super) fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        match (&self.bar, self.total) {
            (Some(bar), _) => bar.set_position(self.done),
            (None, Some(total)) if total > 0 => {
                let percent = self.done.saturating_mul(100) / total;
                if percent >= self.next_line_percent && percent < 100 {
                    say(&format!("{}: {percent} %", self.label));
                    self.next_line_percent = percent - percent % LINE_EVERY_PERCENT + LINE_EVERY_PERCENT;
                }
            }
            (None, _) => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
