//! The section of cloud providers: what may leave the mesh, how it fares, and what is left to spend.

use maud::{Markup, html};
use serde_json::Value;

use super::page::{breaker, state};
use super::text;

/// Models shown of one provider; the rest is a number.
const MODELS_OF_PROVIDER: usize = 8;
/// Share of the purse above which the bar warns.
const NEARLY_EMPTY: f64 = 0.8;

/// Renders what stands inside the section's element.
pub(super) fn section(providers: &[Value]) -> Markup {
    html! {
        h2 { "Providers" span.aside { "of this node" } }
        @if providers.is_empty() {
            div.empty {
                p { "No cloud provider: nothing leaves the mesh." }
                p { "To allow one: " code { "shoal cloud add gemini --key-file FILE" } " or, for any compatible server, " code { "shoal cloud add NAME --base-url URL --model MODEL" } }
            }
        }
        ul.cards { @for p in providers { li { (card(p)) } } }
    }
}

fn card(p: &Value) -> Markup {
    html! {
        article.card {
            header { h3 { (text::of(p, "name")) } (health(p)) }
            p.sub { (text::of(p, "kind")) " · " (if p["internal_ok"] == true { "internal data allowed" } else { "public data only" }) }
            (purse(p))
            p.pair {
                span { abbr title="sent by this node since its start" { "Requests" } }
                span.num { (requests(p)) }
            }
            p.pair {
                span { abbr title="half, and 99 of 100, of the newest 512 whole answers took no longer" { "Answer p50 / p99" } }
                span.num { (times(p)) }
            }
            (models(p))
        }
    }
}

fn health(p: &Value) -> Markup {
    let breakers: Vec<&Value> = p["breakers"].as_object().into_iter().flat_map(|b| b.values()).collect();
    let count = |code: &str| breakers.iter().filter(|b| **b == code).count();
    match (count("open"), count("half_open")) {
        (open, _) if open > 0 && open == breakers.len() => state("bad", "failing"),
        (open, _) if open > 0 => state("warn", "partly failing"),
        (_, trial) if trial > 0 => state("warn", "on trial"),
        _ if spent_share(p).is_some_and(|share| share >= 1.0) => state("warn", "purse empty"),
        _ => state("ok", "ready"),
    }
}

fn spent_share(p: &Value) -> Option<f64> {
    let (spent, budget) = (p["spent_usd"].as_f64()?, p["budget_usd"].as_f64()?);
    Some(if budget > 0.0 { (spent / budget).clamp(0.0, 1.0) } else { 1.0 })
}

fn purse(p: &Value) -> Markup {
    let Some(share) = spent_share(p) else {
        return pair("Spent", "unknown: the store cannot be read");
    };
    let monthly = p["budget"].as_str().is_some_and(|text| text.ends_with("/month"));
    let (spent, budget) = (p["spent_usd"].as_f64().unwrap_or(0.0), p["budget_usd"].as_f64().unwrap_or(0.0));
    // Less than a hundredth is drawn as one, so that a little is told from nothing.
    let drawn = if spent > 0.0 { (share * 100.0).max(1.0) } else { 0.0 };
    html! {
        p.pair {
            span { "Spent" }
            span.num { (text::money(spent)) " of " (text::money(budget)) (if monthly { " this month, " } else { " today, " }) (text::percent(share)) }
        }
        svg.bar.full[share >= NEARLY_EMPTY] viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true" {
            rect width=(format!("{drawn:.1}")) height="4" {}
        }
    }
}

fn requests(p: &Value) -> String {
    let n = |key: &str| p[key].as_u64().unwrap_or(0);
    let (all, failed, running) = (n("requests"), n("failed"), n("in_flight"));
    let mut parts = vec![text::count(all)];
    match failed {
        _ if all == 0 => {}
        0 => parts.push("none failed".into()),
        failed => parts.push(format!("{} failed", text::percent(failed as f64 / all as f64))),
    }
    if running > 0 {
        parts.push(format!("{} in progress", text::count(running)));
    }
    parts.join(", ")
}

fn times(p: &Value) -> String {
    match (p["p50_ms"].as_f64(), p["p99_ms"].as_f64()) {
        (Some(half), Some(most)) => format!("{} / {}", text::millis(half), text::millis(most)),
        _ => text::NONE.into(),
    }
}

fn models(p: &Value) -> Markup {
    let ids = text::list(p, "models");
    let prefix = format!("{}/", text::of(p, "name"));
    let breakers = &p["breakers"];
    html! {
        table.small {
            thead { tr {
                th scope="col" { "Model" }
                th.num scope="col" { abbr title="circuit breaker: closed = requests flow" { "Breaker" } }
            } }
            tbody { @for id in ids.iter().take(MODELS_OF_PROVIDER) {
                tr {
                    th scope="row" { (id.strip_prefix(&prefix).unwrap_or(id)) }
                    td.num { (breaker(breakers[id.as_str()].as_str().unwrap_or_default())) }
                }
            } }
        }
        @if ids.len() > MODELS_OF_PROVIDER { p.sub { "and " (ids.len() - MODELS_OF_PROVIDER) " models more" } }
    }
}

fn pair(label: &str, value: &str) -> Markup {
    html! { p.pair { span { (label) } span.num { (value) } } }
}
