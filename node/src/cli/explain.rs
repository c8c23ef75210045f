//! `shoal explain`: one request, in words: where it went, why, and who else was looked at.

use serde_json::Value;

use super::args::ExplainArgs;
use super::client::NodeClient;
use super::exit::{CliError, Exit};
use super::show;

/// `shoal explain`
pub(super) async fn explain(args: &ExplainArgs) -> Result<(), CliError> {
    let valid = args.id.starts_with("req_")
        && args.id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if !valid {
        return Err(CliError::new(
            Exit::Usage,
            "a request id looks like req_ab12cd34_…; the header x-request-id and `shoal ps` show it",
        ));
    }
    let v = NodeClient::find(&args.client)?.get(&format!("/shoal/v1/requests/{}", args.id)).await?;
    if args.client.json {
        show::json(&v);
        return Ok(());
    }
    for (label, key) in [
        ("request", "id"),
        ("accepted by", "node"),
        ("ran for", "kind"),
        ("about", "about"),
        ("asked for", "model_requested"),
        ("answered by", "upstream"),
        ("model", "model"),
        ("where", "target"),
        ("why", "routing_reason"),
        ("rule", "rule"),
        ("outcome", "outcome"),
        ("finish", "finish_reason"),
        ("error", "error"),
        ("attempts", "attempts"),
        ("data class", "data_class"),
        ("left the mesh", "egress"),
        ("prompt tokens", "prompt_tokens"),
        ("answer tokens", "completion_tokens"),
        ("cost usd", "cost_usd"),
        ("confidence", "confidence"),
    ] {
        show::line(format!("{label:<14} {}", show::clean(&show::text(&v, key))));
    }
    show::line(format!("{:<14} {}", "first token", show::millis(&v["ttft_ms"])));
    show::line(format!("{:<14} {}", "total", show::millis(&v["duration_ms"])));
    for attempt in v["attempt_log"].as_array().into_iter().flatten() {
        show::line(format!("{:<14} {}", "attempt", show::clean(&attempt_line(attempt))));
    }
    if let Some(line) = opinion_line(&v["agreement"]) {
        show::line(format!("{:<14} {}", "second opinion", show::clean(&line)));
    }
    explain_choice(&v);
    Ok(())
}

/// Says what the request was taken for, who was weighed with what, and who was not and why.
fn explain_choice(v: &Value) {
    let say = |label: &str, text: String| show::line(format!("{label:<14} {}", show::clean(&text)));
    if let Some(profile) = v["profile"].as_object() {
        let word = |key: &str| profile.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let strange = profile.get("strange").and_then(Value::as_bool).unwrap_or_default();
        let unlike = if strange { "; unlike what was judged before" } else { "" };
        let text = format!(
            "{}, {}, {}, {}{unlike}",
            word("domain"),
            word("task"),
            word("language"),
            word("tolerance")
        );
        say("taken for", text);
    }
    if let Some(propensity) = v["propensity"].as_f64() {
        let explored = if v["explored"].as_bool().unwrap_or_default() { ", in order to learn" } else { "" };
        say("chosen", format!("with probability {propensity:.2}{explored}"));
    }
    for other in v["considered"].as_array().into_iter().flatten() {
        let number = |key: &str| other[key].as_f64();
        let mut text =
            format!("{}: score {:.3}", show::text(other, "model"), number("score").unwrap_or(f64::NAN));
        if let (Some(quality), Some(deviation)) = (number("quality"), number("deviation")) {
            let pair =
                if other["by_pair"].as_bool().unwrap_or_default() { "; a pair of words spoke" } else { "" };
            let judged = show::text(other, "judged");
            text += &format!(", quality {quality:.2} ± {deviation:.2} ({judged} judged{pair})");
        }
        if let (Some(cost), Some(latency)) = (number("cost_usd"), number("latency_ms")) {
            text += &format!(", {cost:.6} usd, {:.1} s", latency / 1e3);
        }
        say("considered", text);
    }
    for removed in v["removed"].as_array().into_iter().flatten() {
        let at = show::text(removed, "upstream");
        let at = if at.is_empty() || at == "-" { String::new() } else { format!(" at {at}") };
        say("left out", format!("{}{at}: {}", show::text(removed, "model"), show::text(removed, "why")));
    }
}

/// What another model said of the first answer, and what that cost in tokens and time.
fn opinion_line(agreement: &Value) -> Option<String> {
    let skipped = agreement["skipped"].as_str()?;
    let cost = format!("{} tokens, {}", agreement["tokens"], show::millis(&agreement["duration_ms"]));
    let who = format!("{} on {}", show::text(agreement, "model"), show::text(agreement, "upstream"));
    Some(match (agreement["share"].as_f64(), skipped) {
        (Some(share), _) => format!("{who} says {:.0} % of it, too; {cost}", share * 100.0),
        (None, "unlike") => format!("{who} said what does not compare; {cost}"),
        (None, why) => format!("none: {}", why.replace('_', " ")),
    })
}

/// Who was asked, how it ended, and what is known of an answer that was not good enough.
fn attempt_line(attempt: &Value) -> String {
    let mut line = format!("{}: {}", show::text(attempt, "upstream"), show::text(attempt, "ended"));
    let model =
        attempt["model"].as_str().filter(|model| !model.is_empty()).map(|model| format!("by {model}"));
    let confidence = attempt["confidence"].as_f64().map(|c| format!("confidence {c:.2}"));
    let tokens = attempt["rejected_tokens"].as_u64().map(|n| format!("{n} tokens"));
    let cost = attempt["rejected_cost_usd"].as_f64().filter(|c| *c > 0.0).map(|c| format!("{c:.6} USD"));
    for part in [model, confidence, tokens, cost].into_iter().flatten() {
        line.push_str(", ");
        line.push_str(&part);
    }
    line
}
