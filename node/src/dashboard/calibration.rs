//! How far the models' confidence can be trusted, drawn: what was said across, what came true upwards.
//!
//! A reliability diagram for each model over all domains, and a small one for each domain in which it was judged. The
//! diagonal is a confidence that means what it says; dots are what was observed, the larger the more answers; the line is
//! what a confidence is corrected to.

use maud::{Markup, html};
use serde_json::Value;

use super::text;

/// Models drawn; a table of more says nothing that `shoal router calibration` does not say better.
const MAX_ARMS: usize = 24;

/// Radius of a dot for few answers, and what the fullest bin adds to it, in hundredths of the diagram.
const DOT: f64 = 1.6;
const FULL_DOT: f64 = 3.4;

/// A bin of a diagram: 0 to 1, and the answers in it.
struct Point {
    said: f64,
    good: f64,
    corrected: f64,
    count: f64,
}

/// Renders what stands inside the section.
pub(super) fn section(arms: &[Value]) -> Markup {
    html! {
        h2 { "Confidence" span.aside { "what was said of answers, and how many were good" } }
        @if arms.is_empty() {
            div.empty {
                p { "No answer with a known confidence was judged yet. Say how good one was: " code { "POST /v1/feedback" } " with its " code { "request_id" } " and a " code { "score" } "." }
            }
        } @else {
            ul.cards { @for arm in arms.iter().take(MAX_ARMS) { li { (card(arm)) } } }
            p.hint {
                "Across: the confidence of an answer. Upwards: the mean score of those judged. "
                span.key { i.dot {} "observed" } " " span.key { i.line {} "corrected to" } " " span.key { i.ideal {} "if it meant what it says" }
            }
            @if arms.len() > MAX_ARMS { p.sub { "and " (arms.len() - MAX_ARMS) " models more: " code { "shoal router calibration" } } }
        }
    }
}

fn card(arm: &Value) -> Markup {
    let domains: &[Value] = arm["domains"].as_array().map_or(&[], Vec::as_slice);
    html! {
        article.card {
            header { h3 { (text::of(arm, "arm")) } small { (judged(arm)) } }
            div.reliability {
                (diagram(arm, "diagram"))
                dl {
                    div { dt { abbr title="expected calibration error: how far the confidence is from what came true, on average" { "Error" } " as observed" } dd { (text::share(arm["ece"].as_f64())) } }
                    div { dt { "Error corrected" } dd { (text::share(arm["ece_calibrated"].as_f64())) } }
                }
            }
            @if domains.len() > 1 {
                ul.domains { @for domain in domains { li {
                    (diagram(domain, "diagram"))
                    span { (text::of(domain, "domain")) }
                    small { (judged(domain)) ", error " (text::share(domain["ece_calibrated"].as_f64())) }
                } } }
            }
        }
    }
}

fn judged(of: &Value) -> String {
    format!("{} judged", text::count(of["judged"].as_u64().unwrap_or(0)))
}

fn points(of: &Value) -> Vec<Point> {
    let unit = |value: &Value| value.as_f64().filter(|n| n.is_finite()).map(|n| n.clamp(0.0, 1.0));
    let bins: &[Value] = of["bins"].as_array().map_or(&[], Vec::as_slice);
    let point = |bin: &Value| {
        let said = unit(&bin["mean_confidence"])?;
        let (good, corrected) = (unit(&bin["mean_score"])?, unit(&bin["calibrated"])?);
        Some(Point { said, good, corrected, count: bin["count"].as_u64()? as f64 })
    };
    bins.iter().filter_map(point).collect()
}

fn diagram(of: &Value, class: &str) -> Markup {
    let points = points(of);
    let most = points.iter().map(|point| point.count).fold(1.0, f64::max);
    let corrected: Vec<String> =
        points.iter().map(|p| format!("{:.1},{:.1}", p.said * 100.0, 100.0 - p.corrected * 100.0)).collect();
    html! {
        svg.(class) viewBox="-4 -4 108 108" role="img" aria-label=(words(&points)) {
            rect x="0" y="0" width="100" height="100" {}
            line.ideal x1="0" y1="100" x2="100" y2="0" {}
            polyline points=(corrected.join(" ")) {}
            @for p in &points {
                circle cx=(format!("{:.1}", p.said * 100.0)) cy=(format!("{:.1}", 100.0 - p.good * 100.0))
                    r=(format!("{:.1}", DOT + FULL_DOT * (p.count / most).sqrt())) {}
            }
        }
    }
}

/// The diagram in words, for who does not see it.
fn words(points: &[Point]) -> String {
    let of = |p: &Point| {
        format!(
            "of {} answers at {} the mean score was {}",
            text::count(p.count as u64),
            text::share(Some(p.said)),
            text::share(Some(p.good))
        )
    };
    let parts: Vec<String> = points.iter().map(of).collect();
    if parts.is_empty() { "nothing judged yet".into() } else { parts.join("; ") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn arm() -> Value {
        let none = json!({"count": 0, "mean_confidence": null, "mean_score": null, "calibrated": null});
        let bins =
            json!([none, {"count": 30, "mean_confidence": 0.95, "mean_score": 0.5, "calibrated": 0.52}]);
        let domain = |name: &str| json!({"domain": name, "judged": 15, "ece": 0.4, "ece_calibrated": 0.1, "bins": bins});
        json!({"arm": "weak-135m", "judged": 30, "ece": 0.45, "ece_calibrated": 0.02, "bins": bins,
            "domains": [domain("math"), domain("code")]})
    }

    #[test]
    fn what_was_judged_is_drawn_and_said() {
        let html = section(&[arm()]).into_string();
        for shown in [
            "weak-135m",
            "30 judged",
            "0.45",
            "0.02",
            "cx=\"95.0\"",
            "cy=\"50.0\"",
            "points=\"95.0,48.0\"",
            "of 30 answers at 0.95 the mean score was 0.50",
            "math",
            "15 judged, error 0.10",
        ] {
            assert!(html.contains(shown), "{shown}: {html}");
        }
        assert_eq!(html.matches("<svg").count(), 3, "all, and each domain");
        assert_eq!(html.matches("<circle").count(), 3, "an empty bin is no dot");
    }

    #[test]
    fn numbers_beyond_belief_stay_in_the_frame() {
        let mut wild = arm();
        wild["bins"] = json!([{"count": u64::MAX, "mean_confidence": 7.0, "mean_score": -3.0, "calibrated": 1e300},
            {"count": "x", "mean_confidence": "<b>"}]);
        let html = section(&[wild]).into_string();
        assert!(html.contains("cx=\"100.0\" cy=\"100.0\"") && !html.contains("<b>"), "{html}");
    }

    #[test]
    fn without_judgements_the_next_step_is_named() {
        assert!(section(&[]).into_string().contains("POST /v1/feedback"));
    }
}
