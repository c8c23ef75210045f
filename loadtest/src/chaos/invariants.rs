//! What must hold after every fault, read from the nodes' own records, their metrics, and the stubs.
//!
//! The numbers are those of `docs/faults.md`. Of the nine, two cannot be seen from outside and have their tests
//! elsewhere: I6 (signed gossip, `cluster`) and I9 (the simulation, until identities can be revoked).

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;

use super::{
    load::{End, Sample},
    mesh::{CANARY, Mesh},
    node::Node,
};

/// Longest time until nothing is in flight after a load has ended: a dead device is given up after 15 s of silence.
const SETTLE: Duration = Duration::from_secs(25);
/// Rows of history that a node shows at once.
const ROWS: usize = 1000;
/// Most routers that hand a request on.
const MAX_HOPS: usize = 2;
/// Most attempts of one request.
const MAX_ATTEMPTS: u64 = 3;

/// Returns every broken invariant of the mesh, given what its clients saw.
pub(super) async fn broken(mesh: &Mesh, samples: &[Sample]) -> Vec<String> {
    let mut broken = Vec::new();
    for sample in samples.iter().filter(|sample| sample.end() == End::Forbidden).take(3) {
        broken.push(format!("I2: a client got an answer that is {}", sample.what()));
    }
    let by_id: BTreeMap<&str, &Sample> = samples
        .iter()
        .map(|one| (one.header("x-request-id"), one))
        .filter(|(id, _)| !id.is_empty())
        .collect();
    if by_id.len() < samples.iter().filter(|one| !one.header("x-request-id").is_empty()).count() {
        broken.push("I1: two answers carry the same request id".to_owned());
    }
    for node in mesh.nodes.iter().filter(|node| node.is_up()) {
        check_node(mesh, node, &by_id, &mut broken).await;
    }
    let leaked = mesh.cloud_line.seen(CANARY);
    if leaked > 0 {
        broken.push(format!("I3: what must not leave was sent to the provider {leaked} times"));
    }
    for node in &mesh.nodes {
        if !node.generations.is_sorted_by(|earlier, later| earlier < later) {
            broken.push(format!("I8: generations of {} do not grow: {:?}", node.name, node.generations));
        }
        let text = node.text();
        if text.contains("panicked at") {
            broken.push(format!("{} panicked; see its output", node.name));
        }
        if text.contains(CANARY) {
            broken.push(format!("I3: the log of {} holds text of a prompt", node.name));
        }
    }
    broken
}

async fn check_node(mesh: &Mesh, node: &Node, by_id: &BTreeMap<&str, &Sample>, broken: &mut Vec<String>) {
    let (api, url, name) = (&mesh.api, &node.url, &node.name);
    if let Err(error) = api.idle(url, SETTLE).await {
        broken.push(format!("I5: {error}"));
    }
    let Some(status) = api.get(url, "/shoal/v1/status").await else {
        broken.push(format!("{name} does not answer"));
        return;
    };
    let requests = |what: &str| status["requests"][what].as_u64().unwrap_or(0);
    let ended = ["completed", "failed", "cancelled", "rejected"].map(requests).iter().sum::<u64>();
    if requests("accepted") != ended {
        broken.push(format!("I1: {name} accepted {} requests and ended {ended}", requests("accepted")));
    }
    for (metric, invariant) in
        [("shoal_panics_total", "no panics"), ("shoal_waiting_requests", "I5: none waits")]
    {
        if let Some(value) = api.metric(url, metric, "").await.filter(|value| *value != 0.0) {
            broken.push(format!("{invariant}: {metric} of {name} is {value}"));
        }
    }
    let history = api.get(url, &format!("/shoal/v1/requests?limit={ROWS}")).await.unwrap_or_default();
    // A request id begins with the router that took the request from its client; others keep records of their hop.
    let own = status["node"]["id"].as_str().unwrap_or_default();
    let is_entry =
        |id: &str| id.split('_').nth(1).is_some_and(|part| !part.is_empty() && own.starts_with(part));
    let mut outcomes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for record in history["requests"].as_array().into_iter().flatten() {
        let id = record["id"].as_str().unwrap_or_default();
        if is_entry(id) {
            outcomes.entry(id).or_default().push(record["outcome"].as_str().unwrap_or_default());
        }
        check_record(record, broken);
    }
    for (id, outcomes) in &outcomes {
        check_outcomes(id, outcomes, by_id.get(id).copied(), broken);
    }
    let asked = by_id.keys().any(|id| is_entry(id));
    if asked && outcomes.is_empty() && requests("completed") > 0 {
        broken.push(format!("I1: {name} has no record of what it was asked"));
    }
    check_purses(mesh, node, broken).await;
}

fn check_record(record: &Value, broken: &mut Vec<String>) {
    let id = record["id"].as_str().unwrap_or_default();
    let outcome = record["outcome"].as_str().unwrap_or_default();
    if !["completed", "failed", "cancelled", "rejected"].contains(&outcome) {
        broken.push(format!("I1: {id} ended as '{outcome}'"));
    }
    if record["attempts"].as_u64().is_some_and(|attempts| attempts > MAX_ATTEMPTS) {
        broken.push(format!("I7: {id} made {} attempts", record["attempts"]));
    }
    if record["data_class"] == "restricted" && record["egress"] != "none" {
        broken.push(format!("I3: {id} is restricted and left to {}", record["egress"]));
    }
}

/// A router has one record of what a client asked it, and one for each time that a peer handed the same back to it.
fn check_outcomes(id: &str, outcomes: &[&str], sample: Option<&Sample>, broken: &mut Vec<String>) {
    if outcomes.len() > 1 + MAX_HOPS {
        broken.push(format!("I1: {id} has {} records where it came in", outcomes.len()));
    }
    let agrees = |outcome: &&str| match sample.map(Sample::end) {
        Some(End::Complete) => *outcome == "completed",
        Some(End::Error) => *outcome != "completed",
        Some(End::Forbidden) | None => true,
    };
    if !outcomes.iter().any(agrees) {
        let seen = sample.map(Sample::what).unwrap_or_default();
        broken.push(format!("I1: {id} is recorded as {outcomes:?}, its client saw: {seen}"));
    }
}

/// I4: no purse was passed, and what the provider served was paid.
async fn check_purses(mesh: &Mesh, node: &Node, broken: &mut Vec<String>) {
    let served = mesh.cloud.log().snapshot().counts.completed;
    let view = mesh.api.get(&node.url, "/shoal/v1/providers").await.unwrap_or_default();
    for provider in view["providers"].as_array().into_iter().flatten() {
        let spent = provider["spent_usd"].as_f64().unwrap_or(0.0);
        let budget = provider["budget_usd"].as_f64().unwrap_or(1.0);
        if spent > budget + 1e-9 {
            broken.push(format!("I4: {} spent {spent} USD of {budget} at {}", node.name, provider["name"]));
        }
        if served > 0 && spent <= 0.0 {
            broken.push(format!("I4: {} served {served} answers and nothing was booked", provider["name"]));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;
    use crate::check::{Answer, Verdict};

    fn sample(verdict: Verdict) -> Sample {
        let answer = Answer {
            verdict,
            total: Duration::ZERO,
            first_token: None,
            chunks: 0,
            text: String::new(),
            headers: BTreeMap::new(),
        };
        Sample { sent: Instant::now(), url: 0, restricted: false, answer }
    }

    fn complaints(record: Value) -> usize {
        let mut broken = Vec::new();
        check_record(&record, &mut broken);
        broken.len()
    }

    fn disagreements(outcomes: &[&str], verdict: Verdict) -> usize {
        let mut broken = Vec::new();
        check_outcomes("a", outcomes, Some(&sample(verdict)), &mut broken);
        broken.len()
    }

    #[test]
    fn records_beyond_the_bounds_are_told() {
        let good = json!({"id": "a", "outcome": "completed", "attempts": 3, "data_class": "restricted", "egress": "none"});
        let with = |key: &str, value: Value| {
            let mut record = good.clone();
            record[key] = value;
            record
        };
        assert_eq!(complaints(good.clone()), 0);
        assert_eq!(complaints(with("outcome", "".into())), 1);
        assert_eq!(complaints(with("attempts", 4.into())), 1);
        assert_eq!(complaints(with("egress", "cloud".into())), 1);
    }

    #[test]
    fn records_that_contradict_the_client_are_told() {
        assert_eq!(disagreements(&["completed"], Verdict::Ok), 0);
        assert_eq!(disagreements(&["failed"], Verdict::Ok), 1);
        assert_eq!(disagreements(&["failed", "completed"], Verdict::Ok), 0, "one of them is a hop's");
        assert_eq!(disagreements(&["completed"], Verdict::CutMarked("x".into())), 1);
        assert_eq!(disagreements(&["completed"; 4], Verdict::Ok), 1);
    }
}
