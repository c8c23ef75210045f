//! One cell: one request under one fault, and whether what came is what is specified.

use std::{fmt, ops::RangeInclusive, time::Duration};

use serde_json::{Value, json};

use super::{
    super::{
        load::{self, Ask},
        node::Api,
    },
    table::{Behaviour, Expect},
};
use crate::{check::Verdict, sse, stub::Stub};

/// Tokens of every answer, and those before a fault after content.
const TOKENS: usize = 12;
const BEFORE_FAULT: usize = 4;
/// Good requests before each cell with a retry. A retry costs as much as fourteen earn; a new router has 35 of them.
const GOOD_FOR_A_RETRY: usize = 10;
/// How long a throttling upstream is left alone after its `Retry-After`, which is told in whole seconds.
const LEFT_ALONE: Duration = Duration::from_millis(1_300);

/// Who else serves the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    /// Another upstream, which is good.
    Pair,
    /// Nobody.
    Solo,
}

impl Others {
    pub(super) fn model(self, number: usize) -> String {
        match self {
            Others::Pair => format!("pair-{number}"),
            Others::Solo => format!("solo-{number}"),
        }
    }
}

/// Where in an answer the fault lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Whole,
    Before,
    After,
}

/// One cell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cell {
    behaviour: &'static Behaviour,
    pub(super) phase: Phase,
    others: Others,
    /// 0: at the router that has the engines; 1: through another.
    route: usize,
    model: usize,
    expect: Expect,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phase = match self.phase {
            Phase::Whole => "not streamed",
            Phase::Before => "before content",
            Phase::After => "after content",
        };
        let others = match self.others {
            Others::Pair => "with another",
            Others::Solo => "alone",
        };
        let route = if self.route == 0 { "" } else { ", through a peer" };
        write!(f, "{} ({phase}, {others}{route})", self.behaviour.name)
    }
}

/// Plays a behaviour's cells one after the other.
pub(super) async fn play(
    api: &Api,
    url: &str,
    (route, model): (usize, usize),
    behaviour: &'static Behaviour,
    stubs: &[Stub; 3],
) -> Vec<(Cell, Result<(), String>)> {
    let mut results = Vec::new();
    let phases =
        [(Phase::Whole, behaviour.whole), (Phase::Before, behaviour.before), (Phase::After, behaviour.after)];
    for (phase, expect) in phases {
        let Some(expect) = expect else { continue };
        for others in [Others::Pair, Others::Solo] {
            let cell = Cell { behaviour, phase, others, route, model, expect };
            results.push((cell, cell.run(api, url, stubs).await));
            if behaviour.throttles {
                // Told by the upstream, so it is its time and not ours that is waited for.
                tokio::time::sleep(LEFT_ALONE).await;
            }
        }
    }
    results
}

impl Cell {
    async fn run(&self, api: &Api, url: &str, stubs: &[Stub; 3]) -> Result<(), String> {
        let tag = format!("{}-{:?}-{:?}-{}", self.behaviour.name, self.phase, self.others, self.route);
        let mut script = format!("n={TOKENS} {} tag={tag}", self.behaviour.script);
        if self.phase == Phase::After {
            script.push_str(&format!(" at={BEFORE_FAULT}"));
        }
        if self.others == Others::Pair {
            script.push_str(" times=1");
        }
        let request = Ask::new(&self.others.model(self.model), &script, self.phase != Phase::Whole);
        if *self.attempts().start() > 1 {
            self.earn(api, url, &request.model).await?;
        }
        let outcome = match self.expect {
            Expect::Call => call(api, url, &request).await,
            _ => self.judge(api, url, &request).await,
        };
        let asked: usize = stubs.iter().map(|stub| stub.log().tagged(&tag).len()).sum();
        outcome.and_then(|()| match (asked, self.attempts()) {
            (0, _) => Err("the fault was never injected".to_owned()),
            (asked, wanted) if !wanted.contains(&asked) => {
                Err(format!("{asked} attempts, expected {wanted:?}"))
            }
            _ => Ok(()),
        })
    }

    /// Attempts that may reach an upstream.
    fn attempts(&self) -> RangeInclusive<usize> {
        match (self.expect, self.others) {
            (Expect::Fails(..), Others::Pair) => 2..=2,
            // One that has no room may have some a moment later, and there is nobody else.
            (Expect::Fails(503, _), Others::Solo) => 1..=3,
            _ => 1..=1,
        }
    }

    /// Pays for the retry of this cell: routers retry only so many of all requests.
    async fn earn(&self, api: &Api, url: &str, model: &str) -> Result<(), String> {
        let good = Ask::new(model, "n=1", false);
        let answers =
            futures_util::future::join_all((0..GOOD_FOR_A_RETRY).map(|_| load::ask(api, url, &good))).await;
        match answers.iter().find(|one| one.answer.verdict != Verdict::Ok) {
            Some(bad) => Err(format!("a request without a fault got {}", bad.what())),
            None => Ok(()),
        }
    }

    async fn judge(&self, api: &Api, url: &str, request: &Ask) -> Result<(), String> {
        let sample = load::ask(api, url, request).await;
        let verdict = &sample.answer.verdict;
        let refused = |status: u16, code: &str| {
            if *verdict != (Verdict::Refused { status, code: code.to_owned() }) {
                return Err(format!("expected {status} {code}, got {}", sample.what()));
            }
            // Clients wait as long as they are told, and hammer where they are told nothing.
            if matches!(status, 429 | 503) && sample.header("retry-after").is_empty() {
                return Err(format!("{status} {code} without Retry-After"));
            }
            Ok(())
        };
        match (self.expect, self.others) {
            (Expect::Passes, _) | (Expect::Fails(..), Others::Pair) => match verdict {
                Verdict::Ok => Ok(()),
                _ => Err(format!("expected a whole answer, got {}", sample.what())),
            },
            (Expect::Fails(status, code), Others::Solo) | (Expect::Refused(status, code), _) => {
                refused(status, code)
            }
            (Expect::Marked, _) => match verdict {
                Verdict::CutMarked(code) if code == "upstream_interrupted" => match sample.answer.chunks {
                    0 => Err("the error came, the content before it did not".to_owned()),
                    _ => Ok(()),
                },
                _ => Err(format!("expected upstream_interrupted in the stream, got {}", sample.what())),
            },
            (Expect::AsIs, _) => match verdict {
                Verdict::Corrupt(why) if why == "repeated_or_reordered" => Ok(()),
                _ => Err(format!("expected the words as the upstream sent them, got {}", sample.what())),
            },
            (Expect::Call, _) => Err("a call is judged by itself".to_owned()),
        }
    }
}

/// Asks with a tool and checks that the call has an index and an id, whole and the same in every piece.
async fn call(api: &Api, url: &str, request: &Ask) -> Result<(), String> {
    let mut body = load::body(request, &load::prompt(request));
    body["tools"] = json!([{"type": "function", "function": {"name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]);
    let sent =
        api.http.post(format!("{url}/v1/chat/completions")).bearer_auth(&api.key).json(&body).send().await;
    let answer = sent.map_err(|error| format!("no answer: {error}"))?;
    let text = answer.bytes().await.map_err(|error| format!("no whole answer: {error}"))?;
    let calls: Vec<Value> = if request.stream {
        let (mut reader, mut events) = (sse::Reader::default(), Vec::new());
        reader.push(&text, &mut events).map_err(|error| error.to_string())?;
        if events.pop().as_deref() != Some("[DONE]") {
            return Err("the stream has no [DONE]".to_owned());
        }
        let chunks = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
        chunks
            .flat_map(|chunk| {
                chunk["choices"][0]["delta"]["tool_calls"].as_array().cloned().unwrap_or_default()
            })
            .collect()
    } else {
        let body: Value = serde_json::from_slice(&text).map_err(|error| format!("no JSON: {error}"))?;
        body["choices"][0]["message"]["tool_calls"].as_array().cloned().unwrap_or_default()
    };
    let id = calls.first().and_then(|one| one["id"].as_str()).unwrap_or_default();
    let arguments: String = calls.iter().filter_map(|one| one["function"]["arguments"].as_str()).collect();
    let strays = calls.iter().filter(|one| request.stream && one["index"] != 0).count();
    if id.is_empty() || strays > 0 || arguments != "{\"city\":\"Ulm\"}" {
        let shown: String = String::from_utf8_lossy(&text).chars().take(400).collect();
        return Err(format!("the call is not whole: {shown}"));
    }
    Ok(())
}
