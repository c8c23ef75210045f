//! Rows of the report: a fault, what was measured under it, and what was to be reached.

use std::{fmt, time::Duration};

use serde_json::{Value, json};

/// Which way a figure is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sense {
    AtMost,
    AtLeast,
}

/// What a figure came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Its target.
    Met,
    /// Not its target, but what a busy machine may excuse.
    Late,
    /// Worse than that.
    Missed,
}

/// One measured figure.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figure {
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) unit: &'static str,
    pub(super) sense: Sense,
    pub(super) target: f64,
    /// Where noise ends; the target itself for counts, which have none.
    pub(super) bound: f64,
}

impl Figure {
    pub(super) fn standing(&self) -> Standing {
        let within = |limit: f64| match self.sense {
            Sense::AtMost => self.value <= limit,
            Sense::AtLeast => self.value >= limit,
        };
        match (within(self.target), within(self.bound)) {
            (true, _) => Standing::Met,
            (false, true) => Standing::Late,
            (false, false) => Standing::Missed,
        }
    }
}

/// Times by which a time may exceed its target: on a busy machine in a quick run, and in a full one.
const NOISE_QUICK: f64 = 10.0;
const NOISE_FULL: f64 = 2.0;

/// What one fault led to.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    pub(super) number: u8,
    pub(super) name: &'static str,
    pub(super) fault: &'static str,
    pub(super) full: bool,
    pub(super) figures: Vec<Figure>,
    /// Invariants that broke, and what kept the scene from being played.
    pub(super) broken: Vec<String>,
    /// What a reader should know beside the figures.
    pub(super) notes: Vec<String>,
    pub(super) skipped: Option<String>,
    pub(super) took: Duration,
}

impl Row {
    /// A count that must not exceed `target`.
    pub(super) fn most(&mut self, name: &str, value: usize, target: usize) {
        self.figure(name, value as f64, "", Sense::AtMost, target as f64, target as f64);
    }

    /// A count that must reach `target`.
    pub(super) fn least(&mut self, name: &str, value: usize, target: usize) {
        self.figure(name, value as f64, "", Sense::AtLeast, target as f64, target as f64);
    }

    /// A time with a target and the noise of a busy machine.
    pub(super) fn time(&mut self, name: &str, value: Duration, target: Duration) {
        let noise = if self.full { NOISE_FULL } else { NOISE_QUICK };
        let target = target.as_secs_f64();
        self.figure(name, value.as_secs_f64(), "s", Sense::AtMost, target, target * noise);
    }

    /// The same with a bound of its own, where the product promises more time than the target.
    pub(super) fn time_within(&mut self, name: &str, value: Duration, target: Duration, bound: Duration) {
        let (value, target, bound) = (value.as_secs_f64(), target.as_secs_f64(), bound.as_secs_f64());
        self.figure(name, value, "s", Sense::AtMost, target, bound);
    }

    pub(super) fn figure(
        &mut self,
        name: &str,
        value: f64,
        unit: &'static str,
        sense: Sense,
        target: f64,
        bound: f64,
    ) {
        self.figures.push(Figure { name: name.to_owned(), value, unit, sense, target, bound });
    }

    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// True when an invariant broke or a figure is worse than noise explains.
    pub(super) fn failed(&self) -> bool {
        !self.broken.is_empty() || self.figures.iter().any(|one| one.standing() == Standing::Missed)
    }

    pub(super) fn json(&self) -> Value {
        let figures: Vec<Value> = self
            .figures
            .iter()
            .map(|one| {
                json!({"name": one.name, "value": one.value, "unit": one.unit, "target": one.target,
                    "bound": one.bound, "sense": one.sense.to_string(), "standing": one.standing().to_string()})
            })
            .collect();
        json!({"row": self.number, "name": self.name, "fault": self.fault, "figures": figures,
            "broken": self.broken, "notes": self.notes, "skipped": self.skipped, "failed": self.failed(),
            "seconds": self.took.as_secs_f64()})
    }
}

impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Sense::AtMost => "≤",
            Sense::AtLeast => "≥",
        })
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Standing::Met => "met",
            Standing::Late => "late",
            Standing::Missed => "MISSED",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_no_noise_and_times_have() {
        let mut row = Row::default();
        row.most("lost", 1, 0);
        assert_eq!(row.figures[0].standing(), Standing::Missed);
        assert!(row.failed());
        let mut row = Row::default();
        row.least("ok", 9, 9);
        row.time("seen", Duration::from_secs(6), Duration::from_secs(5));
        assert_eq!(row.figures[1].standing(), Standing::Late);
        assert!(!row.failed());
        row.full = true;
        row.time("seen", Duration::from_secs(11), Duration::from_secs(5));
        assert!(row.failed());
    }

    #[test]
    fn a_broken_invariant_fails_whatever_the_figures_say() {
        let row = Row { broken: vec!["I1".into()], ..Row::default() };
        assert!(row.failed() && row.json()["failed"] == true);
    }
}
