//! The overview, and the small pages for those who are not in yet.
//!
//! Each section is rendered alone, so that the page and the stream of events show the same. A state is told by a
//! shape and a word, never by colour alone; an empty section says what to type next.

use maud::{DOCTYPE, Markup, html};
use serde_json::Value;

use super::gather::Facts;
use super::text::{self, NONE};
use super::{calibration, providers};
use crate::pipeline::live::IN_PROGRESS;
use crate::store::RequestRecord;

/// Models shown of one device; an Ollama host may have dozens.
const MODELS_OF_DEVICE: usize = 8;
/// Slots drawn one by one; beyond it the number alone is clearer.
const MAX_PIPS: u64 = 16;

/// A part of the page that is sent again when it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Summary,
    Devices,
    Providers,
    Requests,
    Nodes,
    Models,
    Learnt,
    Confidence,
}

impl Section {
    /// In the page's order.
    pub(super) const ALL: [Self; 8] = [
        Self::Summary,
        Self::Devices,
        Self::Providers,
        Self::Requests,
        Self::Nodes,
        Self::Models,
        Self::Learnt,
        Self::Confidence,
    ];

    /// The element's id, by which the script finds it.
    pub(super) fn id(self) -> &'static str {
        match self {
            Self::Summary => "summary",
            Self::Devices => "devices",
            Self::Providers => "providers",
            Self::Requests => "requests",
            Self::Nodes => "nodes",
            Self::Models => "models",
            Self::Learnt => "learnt",
            Self::Confidence => "confidence",
        }
    }
}

/// Why somebody is shown the way in instead of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No session, or one that has ended.
    NoSession,
    /// A link that was used before or is too old.
    BadCode,
}

/// Renders the whole page.
pub(super) fn overview(facts: &Facts) -> Markup {
    let name = text::of(&facts.status["node"], "name");
    let body = html! {
        header.top {
            (brand())
            p.where { "seen from " strong { (name) } }
            p #live role="status" data-events="/dashboard/events" { "as of " (text::moment(facts.now_ms)) }
        }
        main #main {
            @for part in Section::ALL {
                section id=(part.id()) { (section(part, facts)) }
            }
        }
    };
    document(&format!("{name} · Shoal"), html! {}, body)
}

/// Renders what stands inside one section's element.
pub(super) fn section(section: Section, facts: &Facts) -> Markup {
    match section {
        Section::Summary => summary(facts),
        Section::Devices => devices(&facts.devices),
        Section::Providers => providers::section(&facts.providers),
        Section::Requests => requests(facts),
        Section::Nodes => nodes(&facts.nodes),
        Section::Models => models(&facts.models),
        Section::Learnt => learnt(&facts.status["statistics"]),
        Section::Confidence => calibration::section(&facts.calibration),
    }
}

fn summary(facts: &Facts) -> Markup {
    let (mesh, requests) = (&facts.status["mesh"], &facts.status["requests"]);
    let n = |v: &Value| text::count(v.as_u64().unwrap_or(0));
    let (alive, all) = (mesh["alive"].as_u64().unwrap_or(0), mesh["nodes"].as_u64().unwrap_or(0));
    let failed = requests["failed"].as_u64().unwrap_or(0);
    let up = facts.status["node"]["uptime_s"].as_u64().unwrap_or(0);
    // To the minute once there is one, else this section would be sent every second.
    let since = if up < 60 {
        "here, so far".to_owned()
    } else {
        format!("here, in {}", text::duration(up / 60 * 60))
    };
    html! {
        h2.unseen { "Summary" }
        @if facts.status["node"]["draining"].as_bool() == Some(true) {
            p.notice { (mark("warn")) "This node is stopping: running answers may finish, new requests go elsewhere." }
        }
        dl.figures {
            (figure("Devices", &n(&mesh["devices"]), ""))
            (figure("Nodes", &text::count(alive), &if all < 2 { String::new() } else if alive == all { "all answer".into() } else { format!("of {all} answer") }))
            (figure("Models", &n(&mesh["models"]), ""))
            (figure("In progress", &n(&requests["in_flight"]), ""))
            (figure("Completed", &n(&requests["completed"]), &since))
            (figure("Failed", &text::count(failed), &minor(requests)))
        }
    }
}

fn minor(requests: &Value) -> String {
    let parts = ["rejected", "cancelled"].map(|key| (key, requests[key].as_u64().unwrap_or(0)));
    let parts: Vec<String> =
        parts.iter().filter(|(_, n)| *n > 0).map(|(key, n)| format!("{} {key}", text::count(*n))).collect();
    if parts.is_empty() { String::new() } else { format!("and {}", parts.join(", ")) }
}

fn figure(label: &str, number: &str, note: &str) -> Markup {
    html! {
        div { dt { (label) } dd { (number) @if !note.is_empty() { " " small { (note) } } } }
    }
}

fn devices(devices: &[Value]) -> Markup {
    html! {
        h2 { "Devices" }
        @if devices.is_empty() {
            div.empty {
                p { "No device yet, so nothing can answer." }
                p { "Make a token here: " code { "shoal token create" } " and on the machine that has the model: " code { "shoal join TOKEN" } }
                p { "Or start this node again with " code { "--device http://host:port" } " for an inference server, or " code { "--embedded" } "." }
            }
        }
        ul.cards { @for d in devices { li { (device(d)) } } }
    }
}

fn device(d: &Value) -> Markup {
    let models: &[Value] = d["models"].as_array().map_or(&[], Vec::as_slice);
    let through = text::list(d, "nodes");
    let worst = ["open", "half_open"].into_iter().find(|b| models.iter().any(|m| m["breaker"] == *b));
    html! {
        article.card {
            header {
                h3 { (text::of(d, "name")) }
                (match worst {
                    Some("open") => state("bad", "failing"),
                    Some(_) => state("warn", "on trial"),
                    None if models.is_empty() => state("off", "no model"),
                    None => state("ok", "answers"),
                })
            }
            p.sub {
                (text::of(d, "platform"))
                @if through.is_empty() { " · no node reaches it" } @else { " · through " (through.join(", ")) }
            }
            (load(d))
            @if let Some(percent) = d["battery_percent"].as_u64() {
                p.pair { span { "Battery" } span.num { (percent) " %" @if d["charging"] == true { ", charging" } } }
            }
            @if !models.is_empty() {
                table.small {
                    thead { tr {
                        th scope="col" { "Model" }
                        th.num scope="col" { abbr title="mean time to the first token" { "First" } }
                        th.num scope="col" { abbr title="mean time of each further token" { "Token" } }
                        th scope="col" { abbr title="circuit breaker: closed = requests flow" { "Breaker" } }
                    } }
                    tbody { @for m in models.iter().take(MODELS_OF_DEVICE) {
                        tr {
                            th scope="row" { (text::of(m, "id")) }
                            td.num { (text::maybe_millis(m["ttft_ms"].as_f64())) }
                            td.num { (text::maybe_millis(m["ms_per_token"].as_f64())) }
                            td { (breaker(m["breaker"].as_str().unwrap_or_default())) }
                        }
                    } }
                }
                @if models.len() > MODELS_OF_DEVICE { p.sub { "and " (models.len() - MODELS_OF_DEVICE) " models more" } }
            }
        }
    }
}

fn load(d: &Value) -> Markup {
    let busy = d["in_flight"].as_u64().unwrap_or(0);
    let slots = d["slots"].as_u64().unwrap_or(0);
    html! {
        p.pair {
            span { "Busy" }
            span.num {
                @if (1..=MAX_PIPS).contains(&slots) {
                    span.pips aria-hidden="true" { @for n in 0..slots { i.on[n < busy] {} } }
                }
                (text::count(busy)) @if slots > 0 { " of " (text::count(slots)) }
            }
        }
    }
}

/// A breaker as a state; "closed" is the word for requests that flow.
pub(super) fn breaker(code: &str) -> Markup {
    match code {
        "closed" => state("ok", "closed"),
        "open" => state("bad", "open"),
        "half_open" => state("warn", "half open"),
        _ => html! { (NONE) },
    }
}

fn requests(facts: &Facts) -> Markup {
    html! {
        h2 { "Requests" span.aside { "accepted by this node" } }
        @if facts.active.is_empty() && facts.recent.is_empty() {
            div.empty {
                p { "No request yet. Ask something: " code { "shoal chat \"What is the capital of France?\"" } }
                p { "Or point a client at this node: " code { "eval $(shoal env)" } }
            }
        } @else {
            table.wide {
                thead { tr {
                    th scope="col" { "Outcome" }
                    th scope="col" { "Request" }
                    th scope="col" { "Model" }
                    th scope="col" { "Where" }
                    th scope="col" { "Why" }
                    th.num scope="col" { "First token" }
                    th.num scope="col" { "Total" }
                    th.num scope="col" { abbr title="tokens of the prompt and of the answer" { "Tokens" } }
                    th.num scope="col" { "Attempts" }
                    th.num scope="col" { abbr title="calibrated probability that the answer is good" { "Confidence" } }
                    th.num scope="col" { "Cost" }
                } }
                tbody {
                    @for r in &facts.active { (request_row(r, facts.now_ms)) }
                    @for r in &facts.recent { (request_row(r, facts.now_ms)) }
                }
            }
        }
    }
}

fn request_row(r: &RequestRecord, now_ms: u64) -> Markup {
    let model = if r.model.is_empty() { &r.model_requested } else { &r.model };
    let asked = (*model != r.model_requested && !r.model_requested.is_empty()).then_some(&r.model_requested);
    let running = r.outcome == IN_PROGRESS;
    let took = if running { now_ms.saturating_sub(r.started_ms) } else { r.duration_ms };
    html! {
        tr.running[running] {
            td data-label="Outcome" { (outcome(&r.outcome)) @if !r.error.is_empty() && r.error != r.outcome { small.block { (text::clean(&r.error)) } } }
            td data-label="Request" {
                a href=(request_href(&r.id)) { (short_id(&r.id)) }
                small.block title=(text::moment(r.started_ms)) { (text::ago(r.started_ms, now_ms)) }
            }
            td.name data-label="Model" { (text::or_none(model)) @if let Some(asked) = asked { small.block { "asked for " (text::clean(asked)) } } }
            td.name data-label="Where" { (text::or_none(&r.upstream)) @if !r.target.is_empty() { small.block { (text::clean(&r.target)) } } }
            td data-label="Why" { (why(r)) }
            td.num data-label="First token" { (text::maybe_millis(r.ttft_ms.map(|n| n as f64))) }
            td.num data-label="Total" { (text::millis(took as f64)) }
            td.num data-label="Tokens" { (text::count(r.prompt_tokens)) " → " (text::count(r.completion_tokens)) }
            td.num data-label="Attempts" { (r.attempts) }
            td.num data-label="Confidence" { (text::share(r.confidence)) }
            td.num data-label="Cost" { (text::usd(r.cost_usd)) }
        }
    }
}

fn nodes(nodes: &[Value]) -> Markup {
    html! {
        h2 { "Nodes" }
        @if nodes.len() < 2 {
            p.hint { "One node so far. For another: " code { "shoal token create --role router" } " here, then " code { "shoal join TOKEN" } " there." }
        }
        table.wide {
            thead { tr {
                th scope="col" { "Node" } th scope="col" { "State" } th scope="col" { "Devices" }
                th scope="col" { "Version" } th.num scope="col" { "Last seen" }
            } }
            tbody { @for n in nodes { (node_row(n)) } }
        }
    }
}

fn node_row(n: &Value) -> Markup {
    let own = n["self"] == true;
    let seen_ms = n["last_seen_ms"].as_u64().unwrap_or(0);
    // Gossip comes several times a second; what is younger than this is simply present.
    let seen = if own {
        "this node".into()
    } else if seen_ms < 5000 {
        "now".into()
    } else {
        text::ago(0, seen_ms)
    };
    let attached = text::list(n, "devices");
    html! {
        tr {
            th.name scope="row" data-label="Node" { (text::of(n, "name")) small.block { (text::of(n, "api_url")) } }
            td data-label="State" {
                (match (n["alive"] == true, n["draining"] == true) {
                    (false, _) => state("bad", "away"),
                    (true, true) => state("warn", "draining"),
                    (true, false) => state("ok", "alive"),
                })
            }
            td.name data-label="Devices" { @if attached.is_empty() { (NONE) } @else { (attached.join(", ")) } }
            td data-label="Version" { (text::of(n, "version")) }
            td.num data-label="Last seen" { (seen) }
        }
    }
}

fn models(models: &[Value]) -> Markup {
    html! {
        h2 { "Models" }
        @if models.is_empty() {
            div.empty { p { "No model yet; models come with devices. To fetch one for the engine inside Shoal: " code { "shoal pull MODEL" } } }
        } @else {
            table.wide {
                thead { tr {
                    th scope="col" { "Model" } th scope="col" { "On" } th.num scope="col" { "Context" }
                    th scope="col" { "Weights" } th.num scope="col" { "Size" }
                } }
                tbody { @for m in models {
                    tr {
                        th.name scope="row" data-label="Model" { (text::of(m, "id")) }
                        td.name data-label="On" { (text::list(m, "devices").join(", ")) }
                        td.num data-label="Context" { @match m["context_length"].as_u64() { Some(n) if n > 0 => (text::count(n)), _ => (NONE) } }
                        td data-label="Weights" { (text::of(m, "quantization")) }
                        td.num data-label="Size" { @match m["size_bytes"].as_u64() { Some(n) if n > 0 => (text::bytes(n)), _ => (NONE) } }
                    }
                } }
            }
        }
    }
}

fn learnt(statistics: &Value) -> Markup {
    let arms: &[Value] = statistics.as_array().map_or(&[], Vec::as_slice);
    html! {
        h2 { "Learnt" span.aside { "by all nodes together" } }
        @if arms.is_empty() {
            div.empty {
                p { "Nothing yet; every answer teaches. Say how good one was: " code { "POST /v1/feedback" } " with its " code { "request_id" } " and a " code { "score" } "." }
            }
        } @else {
            table.wide {
                thead { tr {
                    th scope="col" { abbr title="what the router chooses among" { "Arm" } }
                    th.num scope="col" { "Answers" } th.num scope="col" { "Failures" } th.num scope="col" { "Scored" }
                    th.num scope="col" { "Mean score" } th.num scope="col" { "First token" }
                    th.num scope="col" { abbr title="nodes that contributed" { "Nodes" } }
                } }
                tbody { @for a in arms {
                    tr {
                        th.name scope="row" data-label="Arm" { (text::of(a, "arm")) }
                        td.num data-label="Answers" { (text::count(a["count"].as_u64().unwrap_or(0))) }
                        td.num data-label="Failures" { (text::count(a["failures"].as_u64().unwrap_or(0))) }
                        td.num data-label="Scored" { (text::count(a["scored"].as_u64().unwrap_or(0))) }
                        td.num data-label="Mean score" { (text::share(a["mean_reward"].as_f64())) }
                        td.num data-label="First token" { (text::maybe_millis(a["mean_ttft_ms"].as_f64())) }
                        td.num data-label="Nodes" { (text::count(a["origins"].as_u64().unwrap_or(0))) }
                    }
                } }
            }
        }
    }
}

/// A state: a shape of its own, then the word.
pub(super) fn state(kind: &str, word: &str) -> Markup {
    html! { span.state.(kind) { (mark(kind)) (word) } }
}

/// Why a request went where it went; that a stronger model took over comes before all else.
fn why(r: &RequestRecord) -> Markup {
    html! {
        @if r.escalated {
            (state("up", "escalated"))
            small.block { (text::escalation(&r.escalation)) }
        } @else {
            (text::reason(&r.routing_reason))
        }
    }
}

fn mark(kind: &str) -> Markup {
    html! { i.mark.(kind) aria-hidden="true" {} }
}

/// A request's outcome as a state.
pub(super) fn outcome(word: &str) -> Markup {
    let kind = match word {
        "completed" => "ok",
        IN_PROGRESS => "busy",
        "failed" => "bad",
        "rejected" => "warn",
        _ => "off",
    };
    state(kind, &text::or_none(word))
}

/// The end of an id, which is its random part; the whole one stands on the request's page.
fn short_id(id: &str) -> String {
    let end: Vec<char> = id.chars().rev().take(8).collect();
    text::clean(&end.into_iter().rev().collect::<String>())
}

/// The address of a request's page; an id is only letters, digits and `_`, and anything else leads nowhere.
fn request_href(id: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    format!("/dashboard/requests/{}", id.chars().filter(|c| plain(*c)).collect::<String>())
}

/// The name, which leads home.
pub(super) fn brand() -> Markup {
    html! { a.brand href="/dashboard" { img src="/dashboard/icon.svg" alt="" width="24" height="24"; "Shoal" } }
}

/// The frame of every page.
pub(super) fn document(title: &str, head: Markup, body: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { (title) }
                link rel="icon" href="/dashboard/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/dashboard/style.css";
                (head)
                script src="/dashboard/script.js" defer {}
            }
            body { a.skip href="#main" { "Skip to the content" } (body) }
        }
    }
}

/// Renders the way in.
pub(super) fn logged_out(why: Refusal) -> Markup {
    note(
        "The dashboard opens by a link",
        html! {
            @match why {
                Refusal::NoSession => p { "This browser is not logged in here, or its session has ended." },
                Refusal::BadCode => p { "This link has been used already, or it is older than 10 minutes." },
            }
            p { "On the machine where the node runs, type" }
            pre { code { "shoal dashboard" } }
            p { "and open the link that it prints. It works once and logs this browser in for 12 hours." }
        },
    )
}

/// Renders the answer to a request by a name that is not this machine's.
pub(super) fn wrong_host() -> Markup {
    note(
        "Not by this name",
        html! {
            p { "This node asks for no login, so it shows its dashboard only under " code { "localhost" } " or a loopback address." }
        },
    )
}

/// Renders a page that goes on to the dashboard by itself.
pub(super) fn going_on() -> Markup {
    let body = html! { main #main.note { h1 { "Logged in" } p { a href="/dashboard" { "Go on to the dashboard" } } } };
    document("Shoal", html! { meta http-equiv="refresh" content="0;url=/dashboard"; }, body)
}

fn note(title: &str, body: Markup) -> Markup {
    document(
        &format!("{title} · Shoal"),
        html! {},
        html! { main #main.note { (brand()) h1 { (title) } (body) } },
    )
}
