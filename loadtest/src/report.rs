//! Sums up a load: counts by verdict and by URL, and quantiles of latency.

use std::{collections::BTreeMap, fmt, time::Duration};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::check::{Answer, Verdict};

/// Three significant digits: 0.1 % of any latency.
const DIGITS: u8 = 3;

/// Longest latency told apart, in microseconds: an hour. Longer ones count as this.
const MAX_MICROS: u64 = 3_600_000_000;

/// Counts of one URL, or of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests sent.
    pub requests: u64,
    /// Of them streamed.
    pub streamed: u64,
    /// Whole answers.
    pub ok: u64,
    /// HTTP errors and failed connections, by code.
    pub failed: BTreeMap<String, u64>,
    /// Answers that ended early and said so, by code.
    pub cut_marked: BTreeMap<String, u64>,
    /// Answers that ended early and looked complete, by what was missing. Must stay empty.
    pub cut_unmarked: BTreeMap<String, u64>,
    /// Answers with lost, repeated, reordered or foreign words. Must stay empty.
    pub corrupt: BTreeMap<String, u64>,
}

impl Counts {
    fn add(&mut self, stream: bool, verdict: &Verdict) {
        self.requests += 1;
        self.streamed += u64::from(stream);
        let (table, code) = match verdict {
            Verdict::Ok => {
                self.ok += 1;
                return;
            }
            Verdict::Refused { status, code } => (&mut self.failed, format!("{status} {code}")),
            Verdict::NoAnswer(kind) => (&mut self.failed, kind.clone()),
            Verdict::CutMarked(code) => (&mut self.cut_marked, code.clone()),
            Verdict::CutUnmarked(why) => (&mut self.cut_unmarked, why.clone()),
            Verdict::Corrupt(why) => (&mut self.corrupt, why.clone()),
        };
        *table.entry(code).or_default() += 1;
    }

    fn merge(&mut self, other: Counts) {
        self.requests += other.requests;
        self.streamed += other.streamed;
        self.ok += other.ok;
        for (mine, theirs) in [
            (&mut self.failed, other.failed),
            (&mut self.cut_marked, other.cut_marked),
            (&mut self.cut_unmarked, other.cut_unmarked),
            (&mut self.corrupt, other.corrupt),
        ] {
            for (code, count) in theirs {
                *mine.entry(code).or_default() += count;
            }
        }
    }

    fn json(&self) -> Value {
        json!({"requests": self.requests, "streamed": self.streamed, "ok": self.ok, "failed": self.failed,
            "cut_marked": self.cut_marked, "cut_looked_complete": sum(&self.cut_unmarked),
            "cut_looked_complete_by": self.cut_unmarked, "corrupt": sum(&self.corrupt), "corrupt_by": self.corrupt})
    }
}

fn sum(table: &BTreeMap<String, u64>) -> u64 {
    table.values().sum()
}

/// The result of a load.
#[derive(Clone, Debug)]
pub struct Report {
    /// All URLs together.
    pub all: Counts,
    /// By base URL.
    pub by_url: BTreeMap<String, Counts>,
    /// Wall time.
    pub elapsed: Duration,
    latency_us: Histogram<u64>,
    ttft_us: Histogram<u64>,
}

impl Default for Report {
    fn default() -> Self {
        let histogram =
            || Histogram::new_with_bounds(1, MAX_MICROS, DIGITS).expect("the bounds are in order");
        Self {
            all: Counts::default(),
            by_url: BTreeMap::new(),
            elapsed: Duration::ZERO,
            latency_us: histogram(),
            ttft_us: histogram(),
        }
    }
}

impl Report {
    /// Counts one answer from `url`; its times count only if it is whole.
    pub fn add(&mut self, url: &str, stream: bool, answer: &Answer) {
        self.all.add(stream, &answer.verdict);
        self.by_url.entry(url.to_owned()).or_default().add(stream, &answer.verdict);
        if answer.verdict == Verdict::Ok {
            self.latency_us.saturating_record(micros(answer.total));
            if let Some(first) = answer.first_token {
                self.ttft_us.saturating_record(micros(first));
            }
        }
    }

    /// Adds the counts and times of another part of the same load.
    pub fn merge(&mut self, other: Report) {
        self.all.merge(other.all);
        for (url, counts) in other.by_url {
            self.by_url.entry(url).or_default().merge(counts);
        }
        for (mine, theirs) in [(&mut self.latency_us, &other.latency_us), (&mut self.ttft_us, &other.ttft_us)]
        {
            mine.add(theirs).expect("both have the same bounds");
        }
    }

    /// Requests that did not end in a whole answer.
    pub fn not_ok(&self) -> u64 {
        self.all.requests - self.all.ok
    }

    /// Answers that no router may ever give: silently cut or corrupt.
    pub fn forbidden(&self) -> u64 {
        sum(&self.all.cut_unmarked) + sum(&self.all.corrupt)
    }

    /// The stable JSON form.
    pub fn json(&self) -> Value {
        let mut value = self.all.json();
        let urls: BTreeMap<_, _> = self.by_url.iter().map(|(url, counts)| (url, counts.json())).collect();
        value["by_url"] = json!(urls);
        value["elapsed_s"] = self.elapsed.as_secs_f64().into();
        value["latency_ms"] = quantiles(&self.latency_us);
        value["ttft_ms"] = quantiles(&self.ttft_us);
        value
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn quantiles(histogram: &Histogram<u64>) -> Value {
    let at = |q: f64| histogram.value_at_quantile(q) as f64 / 1000.0;
    json!({"count": histogram.len(), "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1.0)})
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, name: &str, counts: &Counts| {
            writeln!(
                f,
                "{name:<32} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
                counts.requests,
                counts.ok,
                sum(&counts.failed),
                sum(&counts.cut_marked),
                sum(&counts.cut_unmarked),
                sum(&counts.corrupt)
            )
        };
        writeln!(
            f,
            "{:<32} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
            "", "requests", "ok", "failed", "cut", "silent", "corrupt"
        )?;
        for (url, counts) in &self.by_url {
            row(f, url, counts)?;
        }
        row(f, "all", &self.all)?;
        let tables = [
            ("failed", &self.all.failed),
            ("cut, with an error", &self.all.cut_marked),
            ("cut, looked complete", &self.all.cut_unmarked),
            ("corrupt", &self.all.corrupt),
        ];
        for (name, table) in tables {
            for (code, count) in table {
                writeln!(f, "  {name}: {count} x {code}")?;
            }
        }
        for (name, histogram) in [("latency", &self.latency_us), ("first token", &self.ttft_us)] {
            let at = |q: f64| histogram.value_at_quantile(q) as f64 / 1000.0;
            writeln!(
                f,
                "{name:<12} ms  p50 {:.1}  p90 {:.1}  p99 {:.1}  max {:.1}  ({} answers)",
                at(0.5),
                at(0.9),
                at(0.99),
                at(1.0),
                histogram.len()
            )?;
        }
        writeln!(f, "{:.2} s", self.elapsed.as_secs_f64())
    }
}
