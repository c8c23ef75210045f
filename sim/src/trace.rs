//! What happened, as one number: equal seeds give equal traces, to the bit. Printed on demand.

use std::fmt::Write as _;

use crate::events::At;
use crate::scenario::Scenario;

/// Lines that are kept of the time before a violation.
const LAST: usize = 400;

/// A running hash of everything of note, and the lines themselves where somebody wants to read them.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    /// Begins a trace; `keep` keeps the lines, too.
    pub(crate) fn new(keep: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, lines: keep.then(Vec::new) }
    }

    /// Notes that something happened to `who`, with a number that says more.
    pub(crate) fn note(&mut self, at: At, what: &'static str, who: usize, more: u64) {
        for word in
            [at.as_micros() as u64, what.len() as u64 + u64::from(what.as_bytes()[0]), who as u64, more]
        {
            self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
        if let Some(lines) = &mut self.lines {
            let mut line = String::new();
            let _ = write!(line, "{:>9.4} {what} {who} {more}", at.as_secs_f64());
            lines.push(line);
        }
    }

    /// Begins the lines with what the seed stands for.
    pub(crate) fn describe(&mut self, scenario: &Scenario) {
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:?}", Scenario { faults: Vec::new(), ..scenario.clone() }));
            lines.extend(scenario.faults.iter().map(|trouble| format!("{trouble:?}")));
        }
    }

    /// Returns the number.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// Returns the lines, the last few hundred of them unless `all`.
    pub(crate) fn lines(&self, all: bool) -> Vec<String> {
        let lines = self.lines.clone().unwrap_or_default();
        let skip = if all { 0 } else { lines.len().saturating_sub(LAST) };
        lines[skip..].to_vec()
    }
}
