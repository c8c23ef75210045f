//! What a running node says of the mesh: members, devices, and how recent requests ended.

use std::collections::BTreeMap;

use serde_json::Value;

use super::check::Check;
use crate::cli::client::NodeClient;

/// Recent requests that are looked at.
const RECENT: usize = 100;

/// Failures among them from which it is no accident.
const SOME_FAILURES: usize = 3;

/// A running node's answers.
#[derive(Debug, Clone, Default)]
pub(super) struct Live {
    /// `/shoal/v1/status`
    pub(super) status: Value,
    /// `/shoal/v1/nodes`
    pub(super) nodes: Value,
    /// `/shoal/v1/devices`
    pub(super) devices: Value,
    /// `/shoal/v1/requests`
    pub(super) requests: Value,
}

impl Live {
    /// Asks a node; `None` if it does not answer.
    pub(super) async fn ask(client: &NodeClient) -> Option<Self> {
        let status = client.get("/shoal/v1/status").await.ok()?;
        let requests = format!("/shoal/v1/requests?limit={RECENT}");
        let (nodes, devices, requests) = tokio::join!(
            client.get("/shoal/v1/nodes"),
            client.get("/shoal/v1/devices"),
            client.get(&requests)
        );
        let or_null = |answer: Result<Value, _>| answer.unwrap_or(Value::Null);
        Some(Self { status, nodes: or_null(nodes), devices: or_null(devices), requests: or_null(requests) })
    }

    /// When the other nodes that are alive started, by their own clocks, in milliseconds since the Unix epoch.
    pub(super) fn starts_of_others(&self) -> Vec<(String, u64)> {
        let others = list(&self.nodes, "nodes").filter(|n| n["self"] == false && n["alive"] == true);
        others.filter_map(|n| Some((n["name"].as_str()?.to_owned(), n["generation"].as_u64()?))).collect()
    }
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

/// Judges the mesh; nothing where no node runs, which is told elsewhere.
pub(super) fn check(live: Option<&Live>) -> Vec<Check> {
    live.map(|live| vec![members(live), devices(live), failures(live)]).unwrap_or_default()
}

fn members(live: &Live) -> Check {
    const NAME: &str = "nodes";
    let dead: Vec<&str> = list(&live.nodes, "nodes")
        .filter(|n| n["alive"] == false)
        .filter_map(|n| n["name"].as_str())
        .collect();
    let all = list(&live.nodes, "nodes").count();
    if live.status["node"]["draining"] == true {
        return Check::warn(NAME, "this node is stopping", "wait, then `shoal up`");
    }
    if dead.is_empty() {
        return Check::ok(
            NAME,
            if all == 1 { "this one alone".into() } else { format!("all {all} are alive") },
        );
    }
    Check::warn(
        NAME,
        format!("{} of {all} do not answer: {}", dead.len(), dead.join(", ")),
        "`shoal doctor` on them, or nothing if they were switched off",
    )
}

fn devices(live: &Live) -> Check {
    const NAME: &str = "devices";
    let count = list(&live.devices, "devices").count();
    let models = live.status["mesh"]["models"].as_u64().unwrap_or(0);
    if models == 0 {
        return Check::warn(
            NAME,
            format!("{count} linked, and no model is served, so no request can be answered"),
            "`shoal token create` here, then `shoal join <token>` on a machine with an engine",
        );
    }
    Check::ok(NAME, format!("{count} linked, {models} models served"))
}

fn failures(live: &Live) -> Check {
    const NAME: &str = "recent requests";
    let all = list(&live.requests, "requests").count();
    let mut codes: BTreeMap<&str, usize> = BTreeMap::new();
    for request in list(&live.requests, "requests").filter(|r| r["outcome"] == "failed") {
        let code = request["error"].as_str().filter(|code| !code.is_empty()).unwrap_or("unknown");
        *codes.entry(code).or_insert(0) += 1;
    }
    let failed: usize = codes.values().sum();
    if failed < SOME_FAILURES {
        return Check::ok(NAME, format!("{failed} of the newest {all} failed"));
    }
    let mut codes: Vec<(&str, usize)> = codes.into_iter().collect();
    codes.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    let codes: Vec<String> = codes.iter().take(3).map(|(code, n)| format!("{n} × {code}")).collect();
    let cause = format!("{failed} of the newest {all} failed: {}", codes.join(", "));
    let next = "`shoal ps` lists them, `shoal explain <request-id>` says why";
    if failed * 2 > all { Check::bad(NAME, cause, next) } else { Check::warn(NAME, cause, next) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::check::Verdict;
    use super::*;

    fn live(dead: bool, models: u64, outcomes: &[(&str, &str)]) -> Live {
        let requests: Vec<Value> =
            outcomes.iter().map(|(outcome, error)| json!({"outcome": outcome, "error": error})).collect();
        Live {
            status: json!({"node": {"draining": false}, "mesh": {"models": models}}),
            nodes: json!({"nodes": [
                {"name": "a", "self": true, "alive": true, "generation": 1},
                {"name": "b", "self": false, "alive": !dead, "generation": 2},
            ]}),
            devices: json!({"devices": [{"name": "phone"}]}),
            requests: json!({"requests": requests}),
        }
    }

    #[test]
    fn a_mesh_that_lacks_something_is_told() {
        let verdicts = |live: &Live| check(Some(live)).iter().map(|check| check.verdict).collect::<Vec<_>>();
        assert_eq!(verdicts(&live(false, 1, &[])), [Verdict::Ok, Verdict::Ok, Verdict::Ok]);
        assert_eq!(verdicts(&live(true, 0, &[])), [Verdict::Warn, Verdict::Warn, Verdict::Ok]);
        assert!(check(None).is_empty());
        assert_eq!(live(false, 1, &[]).starts_of_others(), [("b".to_owned(), 2)]);
        assert!(live(true, 1, &[]).starts_of_others().is_empty());
    }

    #[test]
    fn failures_are_counted_and_named() {
        let (good, bad) = (("completed", ""), ("failed", "upstream_timeout"));
        for (outcomes, verdict) in [
            (vec![good, bad, bad], Verdict::Ok),
            (vec![good, good, good, bad, bad, bad], Verdict::Warn),
            (vec![good, bad, bad, bad], Verdict::Bad),
        ] {
            assert_eq!(failures(&live(false, 1, &outcomes)).verdict, verdict, "{outcomes:?}");
        }
        let check = failures(&live(false, 1, &[bad, bad, bad, ("failed", "overloaded")]));
        assert!(
            check.cause.contains("4 of the newest 4 failed: 3 × upstream_timeout, 1 × overloaded"),
            "{check:?}"
        );
    }
}
