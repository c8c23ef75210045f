//! One request's own page: where it went, why, what else was looked at, and how it ended.

use maud::{Markup, html};

use super::page::{brand, document, outcome, state};
use super::text;
use crate::pipeline::live::IN_PROGRESS;
use crate::store::{AgreementRecord, AttemptRecord, REJECTED, RequestRecord};

/// Renders the page of a request.
pub(super) fn render(r: &RequestRecord, now_ms: u64) -> Markup {
    let running = r.outcome == IN_PROGRESS;
    let took = if running { now_ms.saturating_sub(r.started_ms) } else { r.duration_ms };
    let body = html! {
        (top())
        main #main {
            div.title {
                h1 { "Request" }
                code.id { (text::clean(&r.id)) }
                (outcome(&r.outcome))
            }
            dl.figures {
                (figure("First token", &text::maybe_millis(r.ttft_ms.map(|n| n as f64))))
                (figure("Total", &text::millis(took as f64)))
                (figure("Prompt tokens", &text::count(r.prompt_tokens)))
                (figure("Answer tokens", &text::count(r.completion_tokens)))
                (figure("Per token", &text::maybe_millis(per_token_ms(r))))
                (figure("Confidence", &text::share(r.confidence)))
                (figure("Cost", &text::usd(r.cost_usd)))
            }
            div.columns {
                section { h2 { "Where and why" } (where_and_why(r)) }
                section { h2 { "What was asked" } (asked(r)) }
                section { h2 { "Attempts" } (attempts(r, running)) }
                section { h2 { "Candidates" } (candidates(r)) }
            }
            p.hint { "The same in a terminal, on any node: " code { "shoal explain " (text::clean(&r.id)) } }
        }
    };
    let head = html! { @if running { meta http-equiv="refresh" content="3"; } };
    document("Request · Shoal", head, body)
}

fn where_and_why(r: &RequestRecord) -> Markup {
    html! {
        dl.facts {
            (fact("Model", &text::or_none(&r.model)))
            (fact("Upstream", &text::or_none(&r.upstream)))
            (fact("Reached as", &text::or_none(&r.target)))
            (fact("Reason", &text::reason(&r.routing_reason)))
            (fact("Chance of this choice", &text::share(r.propensity)))
            div {
                dt { "Escalated" }
                dd { @if r.escalated { (state("up", &text::escalation(&r.escalation))) } @else { "no" } }
            }
            @if r.rejected_tokens > 0 {
                (fact("Rejected", &format!("{} tokens of answers that were not good enough", text::count(r.rejected_tokens))))
            }
            (fact("Confidence", &confidence(r)))
            @if let Some(agreement) = &r.agreement { (fact("Second opinion", &opinion(agreement))) }
            (fact("Left the mesh", match r.egress.as_str() { "" | "none" => "no".to_owned(), to => format!("to {}", text::clean(to)) }.as_str()))
            (fact("Finish", &text::or_none(&r.finish_reason)))
            @if !r.error.is_empty() { (fact("Error", &text::clean(&r.error))) }
        }
    }
}

/// Both numbers, since their difference is what feedback has taught.
fn confidence(r: &RequestRecord) -> String {
    match (r.confidence, r.raw_confidence) {
        (None, None) => "unknown".into(),
        (calibrated, raw) => {
            format!("{} calibrated, {} as observed", text::share(calibrated), text::share(raw))
        }
    }
}

/// What another model said of the first answer, and what that cost.
fn opinion(a: &AgreementRecord) -> String {
    let cost = format!("{} tokens, {}", text::count(a.tokens), text::millis(a.duration_ms as f64));
    let who = text::or_none(&a.model);
    match (a.share, a.skipped.as_str()) {
        (Some(share), _) => format!("{who} says {:.0} % of it, too ({cost})", share * 100.0),
        (None, "unlike") => format!("{who} said what does not compare ({cost})"),
        (None, why) => format!("none: {}", text::clean(&why.replace('_', " "))),
    }
}

fn asked(r: &RequestRecord) -> Markup {
    html! {
        dl.facts {
            (fact("Model asked for", &text::or_none(&r.model_requested)))
            @if let Some(p) = &r.profile {
                (fact("Taken for", &format!("{}, {}, {}", p.domain, p.task, p.language)))
            }
            (fact("Path", &text::or_none(&r.path)))
            (fact("Streamed", if r.stream { "yes" } else { "no" }))
            (fact("Status", &if r.status == 0 { text::NONE.to_owned() } else { r.status.to_string() }))
            (fact("Data class", &text::or_none(&r.data_class)))
            (fact("Accepted by", &text::or_none(&r.node)))
            (fact("Accepted at", &text::moment(r.started_ms)))
            (fact("Key", &text::or_none(&r.key_id)))
        }
    }
}

fn attempts(r: &RequestRecord, running: bool) -> Markup {
    html! {
        @if r.attempt_log.is_empty() {
            p.hint { @if running { (r.attempts) " so far; how each ended is known at the end." } @else { "No upstream was tried." } }
        } @else {
            ol.attempts { @for a in &r.attempt_log {
                li {
                    span.name { (text::or_none(&a.upstream)) }
                    (attempt_end(&a.ended))
                    @if let Some(detail) = attempt_detail(a) { small.block { (detail) } }
                }
            } }
        }
    }
}

fn attempt_end(ended: &str) -> Markup {
    match ended {
        "ok" | "completed" => state("ok", "answered"),
        "cancelled" => state("off", "cancelled"),
        REJECTED => state("off", "not good enough"),
        other => state("bad", &text::or_none(other)),
    }
}

/// Who wrote it, how good it was thought to be and, for a rejected answer, how much of it there was.
fn attempt_detail(a: &AttemptRecord) -> Option<String> {
    let model = (!a.model.is_empty()).then(|| text::clean(&a.model));
    let confidence = a.confidence.map(|_| format!("confidence {}", text::share(a.confidence)));
    let tokens = a.rejected_tokens.map(|n| format!("{} tokens", text::count(n)));
    let cost = a.rejected_cost_usd.filter(|usd| *usd > 0.0).map(|usd| text::usd(Some(usd)));
    let parts: Vec<String> = [model, confidence, tokens, cost].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn candidates(r: &RequestRecord) -> Markup {
    html! {
        @if r.considered.is_empty() {
            p.hint { "No other model was looked at." }
        } @else {
            table.small {
                thead { tr { th scope="col" { "Model" } th.num scope="col" { "Quality" } th.num scope="col" { "Cost" } th.num scope="col" { "Score" } th scope="col" { span.unseen { "Choice" } } } }
                tbody { @for c in &r.considered {
                    tr {
                        th.name scope="row" { (text::or_none(&c.model)) }
                        td.num { @if let (Some(q), Some(d)) = (c.quality, c.deviation) { (format!("{q:.2} ± {d:.2}")) } }
                        td.num { @if let Some(cost) = c.cost_usd { (text::usd(Some(cost))) } }
                        td.num { (format!("{:.3}", c.score)) }
                        td { @if c.model == r.model { (state("ok", "taken")) } }
                    }
                } }
            }
        }
        @if !r.removed.is_empty() {
            p.hint { "Left out: " @for (at, one) in r.removed.iter().enumerate() {
                @if at > 0 { ", " } (text::or_none(&one.model)) @if !one.upstream.is_empty() { " at " (one.upstream) } " (" (one.why) ")"
            } "." }
        }
    }
}

/// Mean time of each token after the first, milliseconds.
fn per_token_ms(r: &RequestRecord) -> Option<f64> {
    let further = r.completion_tokens.checked_sub(1).filter(|n| *n > 0)?;
    Some(r.duration_ms.checked_sub(r.ttft_ms?)? as f64 / further as f64)
}

fn figure(label: &str, number: &str) -> Markup {
    html! { div { dt { (label) } dd { (number) } } }
}

fn fact(label: &str, value: &str) -> Markup {
    html! { div { dt { (label) } dd { (value) } } }
}

fn top() -> Markup {
    html! { header.top { (brand()) p.where { a href="/dashboard#requests" { "← All requests" } } } }
}

/// Renders the page of an id that nobody knows.
pub(super) fn missing(id: &str, why: &str) -> Markup {
    let body = html! {
        (top())
        main #main.note {
            h1 { "No such request" }
            p { code.id { (text::clean(id)) } }
            p { (text::clean(why)) }
            p.hint { "A request that ended a moment ago may take a second to appear." }
        }
    };
    document("No such request · Shoal", html! {}, body)
}
