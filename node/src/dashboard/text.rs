//! Values as people read them, one way on every page.

use serde_json::Value;
use time::OffsetDateTime;

/// What stands where nothing is known.
pub(super) const NONE: &str = "–";
/// Longest name shown, in characters; ids and names of models are shorter.
const MAX_CHARS: usize = 120;

/// Takes out what a hostile name could steer a page with: control characters and marks of writing direction.
pub(super) fn clean(text: &str) -> String {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}')
    };
    let mut shown: String =
        text.chars().take(MAX_CHARS).map(|c| if steers(c) { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

/// A member as clean text; absent or empty is [`NONE`].
pub(super) fn of(value: &Value, key: &str) -> String {
    value[key].as_str().map_or_else(|| NONE.into(), or_none)
}

/// Clean text, or [`NONE`] when empty.
pub(super) fn or_none(text: &str) -> String {
    if text.is_empty() { NONE.into() } else { clean(text) }
}

/// Members of a list as clean text.
pub(super) fn list(value: &Value, key: &str) -> Vec<String> {
    value[key].as_array().into_iter().flatten().filter_map(Value::as_str).map(clean).collect()
}

/// Whole milliseconds below a second, then seconds, then minutes.
pub(super) fn millis(ms: f64) -> String {
    match ms {
        ms if !ms.is_finite() => NONE.into(),
        // Whole numbers were measured in whole milliseconds.
        ms if ms < 9.95 && ms.fract() != 0.0 => format!("{ms:.1} ms"),
        ms if ms < 999.5 => format!("{ms:.0} ms"),
        ms if ms < 59_950.0 => format!("{:.1} s", ms / 1000.0),
        ms => duration((ms / 1000.0) as u64),
    }
}

/// As [`millis`], for what may be absent.
pub(super) fn maybe_millis(value: Option<f64>) -> String {
    value.map_or_else(|| NONE.into(), millis)
}

/// The two largest units: `4 min 10 s`, `2 h 5 min`, `3 d 4 h`.
pub(super) fn duration(seconds: u64) -> String {
    let units = [
        ("d", seconds / 86_400),
        ("h", seconds / 3600 % 24),
        ("min", seconds / 60 % 60),
        ("s", seconds % 60),
    ];
    let first = units.iter().position(|(_, n)| *n > 0).unwrap_or(3);
    let parts: Vec<String> = units[first..]
        .iter()
        .take(2)
        .filter(|(_, n)| *n > 0)
        .map(|(unit, n)| format!("{n} {unit}"))
        .collect();
    if parts.is_empty() { "0 s".into() } else { parts.join(" ") }
}

/// How long ago, in one unit, since more only flickers.
pub(super) fn ago(then_ms: u64, now_ms: u64) -> String {
    match now_ms.saturating_sub(then_ms) / 1000 {
        0..=1 => "now".into(),
        s @ 2..=59 => format!("{s} s ago"),
        s @ 60..=3599 => format!("{} min ago", s / 60),
        s @ 3600..=86_399 => format!("{} h ago", s / 3600),
        s => format!("{} d ago", s / 86_400),
    }
}

/// The moment in UTC, to the second.
pub(super) fn moment(unix_ms: u64) -> String {
    let Ok(t) = OffsetDateTime::from_unix_timestamp((unix_ms / 1000) as i64) else { return NONE.into() };
    let (hour, minute, second) = t.to_hms();
    format!("{} {hour:02}:{minute:02}:{second:02} UTC", t.date())
}

/// Digits in groups of three, by a thin space that does not break.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    grouped
}

/// A size in GB or MB.
pub(super) fn bytes(n: u64) -> String {
    match n {
        n if n >= 1_000_000_000 => format!("{:.1} GB", n as f64 / 1e9),
        n if n >= 1_000_000 => format!("{:.0} MB", n as f64 / 1e6),
        n => format!("{} kB", n.div_ceil(1000)),
    }
}

/// A cost; local answers cost nothing and unknown is not nothing.
pub(super) fn usd(cost: Option<f64>) -> String {
    match cost {
        None => NONE.into(),
        Some(0.0) => "0".into(),
        Some(usd) if usd < 0.01 => format!("${usd:.6}"),
        Some(usd) => format!("${usd:.4}"),
    }
}

/// An amount of money in cents, finer where it is less than one.
pub(super) fn money(usd: f64) -> String {
    match usd {
        0.0 => "$0".into(),
        usd if usd < 0.000_1 => "under $0.0001".into(),
        usd if usd < 0.1 => format!("${usd:.4}"),
        usd => format!("${usd:.2}"),
    }
}

/// A share of one in percent; a little is told from nothing, and almost all from all.
pub(super) fn percent(share: f64) -> String {
    match share * 100.0 {
        0.0 => "0 %".into(),
        p if p < 1.0 => "under 1 %".into(),
        p if p < 100.0 => format!("{} %", (p.round() as u64).min(99)),
        _ => "100 %".into(),
    }
}

/// Why a stronger model took over, in words.
pub(super) fn escalation(code: &str) -> String {
    match code {
        "" => "reason unknown".into(),
        "cloud_handoff" => "the phone passed it on".into(),
        "expected_gain" => "a better answer was worth its price".into(),
        other => clean(&other.replace('_', " ")),
    }
}

/// A share of one, such as a confidence.
pub(super) fn share(value: Option<f64>) -> String {
    value.map_or_else(|| NONE.into(), |v| format!("{v:.2}"))
}

/// The router's reason in words.
pub(super) fn reason(code: &str) -> String {
    match code {
        "" | "none" => NONE.into(),
        "named" => "model named".into(),
        "pinned_device" => "device named".into(),
        "pinned_provider" => "provider named".into(),
        "auto:thompson" => "learnt choice".into(),
        rule if rule.starts_with("rule:") => clean(&rule.replacen(":", " ", 1)),
        "only_candidate" => "only candidate".into(),
        "fallback" => "fallback".into(),
        other => clean(&other.replace('_', " ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_as_people_expect() {
        let times = [
            (4.26, "4.3 ms"),
            (0.0, "0 ms"),
            (41.0, "41 ms"),
            (999.7, "1.0 s"),
            (1234.0, "1.2 s"),
            (61_000.0, "1 min 1 s"),
        ];
        for (ms, expected) in times {
            assert_eq!(millis(ms), expected);
        }
        assert_eq!(millis(f64::NAN), NONE);
        assert_eq!(duration(0), "0 s");
        assert_eq!(duration(3600), "1 h");
        assert_eq!(duration(90_061), "1 d 1 h");
        assert_eq!(ago(5_000, 4_000), "now");
        assert_eq!(ago(0, 125_000), "2 min ago");
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(count(12), "12");
        assert_eq!(moment(1_700_000_000_000), "2023-11-14 22:13:20 UTC");
        assert_eq!(usd(Some(0.0)), "0");
        assert_eq!(usd(None), NONE);
        assert_eq!(bytes(386_000_000), "386 MB");
        assert_eq!(
            [money(0.0), money(0.012), money(0.000_05), money(5.0)],
            ["$0", "$0.0120", "under $0.0001", "$5.00"]
        );
        assert_eq!(
            [percent(0.0), percent(0.001), percent(0.999), percent(1.0)],
            ["0 %", "under 1 %", "99 %", "100 %"]
        );
    }

    #[test]
    fn names_cannot_steer_the_page() {
        assert_eq!(clean("a\u{202e}b\nc\u{7}"), "a\u{fffd}b\u{fffd}c\u{fffd}");
        assert_eq!(clean(&"x".repeat(500)).chars().count(), MAX_CHARS + 1);
    }
}
