//! `shoal router calibration`: how far the models' confidence can be trusted, as tables.

use serde_json::Value;

use super::args::RouterCalibrationArgs;
use super::client::NodeClient;
use super::exit::CliError;
use super::show as print;

/// Characters of the bar that draws a bin's mean score.
const BAR: usize = 20;

pub(super) async fn show(args: &RouterCalibrationArgs) -> Result<(), CliError> {
    let v = NodeClient::find(&args.client)?.get("/shoal/v1/router").await?;
    let mut arms: Vec<&Value> = v["calibration"].as_array().into_iter().flatten().collect();
    if let Some(model) = &args.model {
        arms.retain(|arm| arm["arm"].as_str().is_some_and(|name| is_of(name, model)));
    }
    if args.client.json {
        print::json(&Value::Array(arms.into_iter().cloned().collect()));
        return Ok(());
    }
    if arms.is_empty() {
        let of = args.model.as_ref().map_or_else(String::new, |model| format!(" of {}", print::clean(model)));
        print::line(format!(
            "no answer{of} with a known confidence was judged yet; say how good one was: POST /v1/feedback"
        ));
        return Ok(());
    }
    for (at, arm) in arms.into_iter().enumerate() {
        if at > 0 {
            print::line("");
        }
        print::line(heading(&print::text(arm, "arm"), arm));
        table(arm);
        for domain in arm["domains"].as_array().into_iter().flatten() {
            print::line(heading(&format!("  {}", print::text(domain, "domain")), domain));
            if args.domains {
                table(domain);
            }
        }
    }
    Ok(())
}

/// True for the model of an arm: an arm's name may carry the build behind it.
fn is_of(arm: &str, model: &str) -> bool {
    arm.strip_prefix(model).is_some_and(|rest| rest.is_empty() || rest.starts_with('@'))
}

fn heading(name: &str, of: &Value) -> String {
    let error = |key: &str| of[key].as_f64().map_or("-".into(), |error| format!("{error:.3}"));
    format!(
        "{}: {} judged, calibration error {} as observed, {} corrected",
        print::clean(name),
        of["judged"],
        error("ece"),
        error("ece_calibrated")
    )
}

fn table(of: &Value) {
    print::table(&["CONFIDENCE", "JUDGED", "SAID", "GOOD", "CORRECTED TO", ""], &rows(of));
}

/// One row for each bin that has answers.
fn rows(of: &Value) -> Vec<Vec<String>> {
    let bins: &[Value] = of["bins"].as_array().map_or(&[], Vec::as_slice);
    let count = bins.len().max(1) as f64;
    let number = |value: &Value| value.as_f64().map_or("-".into(), |n| format!("{n:.2}"));
    let row = |(at, bin): (usize, &Value)| {
        if bin["count"].as_u64().unwrap_or_default() == 0 {
            return None;
        }
        let good = bin["mean_score"].as_f64().unwrap_or_default().clamp(0.0, 1.0);
        Some(vec![
            format!("{:.1}-{:.1}", at as f64 / count, (at + 1) as f64 / count),
            bin["count"].to_string(),
            number(&bin["mean_confidence"]),
            number(&bin["mean_score"]),
            number(&bin["calibrated"]),
            "█".repeat((good * BAR as f64).round() as usize),
        ])
    };
    bins.iter().enumerate().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bin_with_answers_is_a_row() {
        let mut bins = vec![json!({"count": 0, "mean_confidence": null}); 10];
        bins[9] = json!({"count": 12, "mean_confidence": 0.95, "mean_score": 0.5, "calibrated": 0.55});
        let of = json!({"judged": 12, "ece": 0.45, "ece_calibrated": 0.05, "bins": bins});
        let rows = rows(&of);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0], ["0.9-1.0", "12", "0.95", "0.50", "0.55", &"█".repeat(10)]);
        assert_eq!(heading("m", &of), "m: 12 judged, calibration error 0.450 as observed, 0.050 corrected");
    }

    #[test]
    fn a_model_is_found_by_its_name_without_its_build() {
        assert!(is_of("llama3", "llama3") && is_of("llama3@1f2e", "llama3"));
        assert!(!is_of("llama3:70b", "llama3") && !is_of("llama", "llama3"));
    }
}
