//! Engines that all refuse, and engines that are asked for more than they can do.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::super::{
    Context, Samples,
    load::{self, Ask, End, Load, Pace, Sample, Shape},
    mesh::{Mesh, OWN, SHARED},
    row::{Row, Sense},
    wait::{PATIENCE, until},
};
use crate::check::Verdict;

/// Requests a second while all engines refuse, quick and full.
const OUTAGE_RATE: (f64, f64) = (15.0, 100.0);
/// Keys that share an engine.
const KEYS: usize = 3;

/// Every engine of the shared model answers 500 for a while.
pub(super) async fn outage(context: &Context, mesh: &mut Mesh, row: &mut Row) -> Result<Samples> {
    let seen =
        |mesh: &Mesh| mesh.devices.iter().map(|one| one.stub.log().snapshot().counts.requests).sum::<u64>();
    let rate = context.pick(OUTAGE_RATE.0, OUTAGE_RATE.1);
    let asked_before = seen(mesh);
    mesh.devices.iter().for_each(|device| device.stub.refuse(Some(500)));
    let shape = Shape { pace: Pace::Open(rate), ..Shape::usual(mesh) };
    let started = Instant::now();
    let load = Load::start(&mesh.api, shape);
    tokio::time::sleep(context.secs(8, 60)).await;
    let late = load.late();
    let samples = load.finish().await;
    let attempts = seen(mesh) - asked_before;
    mesh.devices.iter().for_each(|device| device.stub.refuse(None));
    let mended = Instant::now();
    for url in mesh.urls() {
        until("served again", PATIENCE, async || {
            let sample = load::ask(&mesh.api, &url, &Ask::new(SHARED, "n=2", false)).await;
            (sample.end() == End::Complete).then_some(())
        })
        .await?;
    }
    let recovered = mended.elapsed();
    let open = started + Duration::from_secs(3);
    let errors: Vec<Duration> =
        samples.iter().filter(|one| one.sent > open).map(|one| one.answer.total).collect();
    row.note(format!("{} requests at {rate} a second, {late} not sent in time", samples.len()));
    for (what, count) in load::failures(&samples) {
        row.note(format!("{count} x {what}"));
    }
    let per_request = attempts as f64 / samples.len().max(1) as f64;
    row.most("answers out of nothing", load::count(&samples, End::Complete), 0);
    row.figure("attempts for each request", per_request, "", Sense::AtMost, 1.2, context.pick(2.5, 1.2));
    let p99 = Duration::from_secs_f64(load::quantile_ms(errors, 0.99) / 1000.0);
    row.time_within(
        "p99 of an error once it is known",
        p99,
        Duration::from_millis(100),
        Duration::from_secs(context.pick(30, 1)),
    );
    row.time_within("served again after it", recovered, Duration::from_secs(10), Duration::from_secs(75));
    Ok(samples)
}

/// Makes an API key on a router.
async fn key(mesh: &Mesh, number: usize) -> Result<String> {
    let data = mesh.nodes[0].folder.join("data");
    let bin: &Path = &mesh.shape.bin;
    let made = tokio::process::Command::new(bin)
        .args(["keys", "create", &format!("k{number}"), "--data-dir"])
        .arg(&data)
        .kill_on_drop(true)
        .output();
    let made = tokio::time::timeout(PATIENCE, made).await.context("`shoal keys create` did not end")??;
    let text = String::from_utf8_lossy(&made.stdout).into_owned();
    super::super::mesh::printed_key(&text).with_context(|| {
        format!("`shoal keys create` printed no key: {text}{}", String::from_utf8_lossy(&made.stderr))
    })
}

/// Three times the own engine's capacity, from three keys, through the router that has it.
pub(super) async fn overload(context: &Context, mesh: &mut Mesh, row: &mut Row) -> Result<Samples> {
    // Four slots at 800 ms each: 5 a second, so few that no processor is the bottleneck.
    let script = "ttft=300 n=11 itl=50";
    let urls = vec![mesh.nodes[0].url.clone()];
    let mut keys = Vec::new();
    for number in 0..KEYS {
        keys.push(key(mesh, number).await?);
    }
    let slots = mesh.shape.own_slots;
    let base =
        Shape { urls, model: OWN.into(), script: script.into(), streams: 1.0, keys, ..Shape::usual(mesh) };
    let length = context.secs(7, 30);
    let goodput = |samples: &[Sample], since: Instant, until: Instant| {
        let ended = |one: &&Sample| (since..until).contains(&(one.sent + one.answer.total));
        let good = samples.iter().filter(|one| one.end() == End::Complete).filter(ended).count();
        good as f64 / until.duration_since(since).as_secs_f64()
    };
    let started = Instant::now();
    let load = Load::start(&mesh.api, Shape { pace: Pace::Closed(slots), ..base.clone() });
    tokio::time::sleep(length).await;
    let ended = Instant::now();
    let mut samples = load.finish().await;
    let warm = Duration::from_secs(1);
    let peak = goodput(&samples, started + warm, ended);

    let started = Instant::now();
    let load = Load::start(&mesh.api, Shape { pace: Pace::Open(peak * 3.0), ..base.clone() });
    tokio::time::sleep(length).await;
    let ended = Instant::now();
    let late = load.late();
    let pushed = load.finish().await;
    let under = goodput(&pushed, started + warm, ended);
    let rejected: Vec<&Sample> = pushed.iter().filter(|one| one.end() == End::Error).collect();
    // An error inside a stream has no headers any more.
    let is_head = |one: &&&Sample| matches!(one.answer.verdict, Verdict::Refused { status: 429 | 503, .. });
    let untold = rejected.iter().filter(is_head).filter(|one| one.header("retry-after").is_empty()).count();
    let slow = load::quantile_ms(rejected.iter().map(|one| one.answer.total).collect(), 0.5);
    row.note(format!(
        "{peak:.1} a second at its best, then {} requests, {} refused, {late} not sent in time",
        pushed.len(),
        rejected.len()
    ));
    for (what, count) in load::failures(&pushed) {
        row.note(format!("{count} x {what}"));
    }
    let percent = 100.0 * under / peak.max(0.1);
    row.figure("good answers against the best", percent, "%", Sense::AtLeast, 90.0, context.pick(40.0, 80.0));
    row.least("refused", rejected.len(), 1);
    row.most("refused without Retry-After", untold, 0);
    row.time_within(
        "median of a refusal",
        Duration::from_secs_f64(slow / 1000.0),
        Duration::from_millis(50),
        Duration::from_secs(context.pick(2, 1)),
    );
    let (index, shares) = fairness(mesh, &base.keys).await?;
    row.note(format!("good answers by key: {shares:?}"));
    row.figure("fairness over keys (Jain)", index, "", Sense::AtLeast, 0.9, context.pick(0.8, 0.9));
    samples.extend(pushed);
    Ok(samples)
}

/// Jain's index over the good answers of each key, as the router recorded them.
async fn fairness(mesh: &Mesh, keys: &[String]) -> Result<(f64, Vec<u64>)> {
    let history = mesh.api.get(&mesh.nodes[0].url, "/shoal/v1/requests?limit=1000").await;
    let history = history.context("the history of n1")?;
    let mut good: BTreeMap<&str, u64> = BTreeMap::new();
    let all = history["requests"].as_array().into_iter().flatten();
    for record in all.filter(|one| one["outcome"] == "completed" && one["model_requested"] == OWN) {
        *good.entry(record["key_id"].as_str().unwrap_or_default()).or_default() += 1;
    }
    let mut shares: Vec<u64> = good.into_values().collect();
    // The mesh's first key asks for this model in other scenes; the keys of this one have the most.
    shares.sort_unstable_by(|a, b| b.cmp(a));
    shares.truncate(keys.len());
    Ok((jain(&shares), shares))
}

fn jain(shares: &[u64]) -> f64 {
    let sum: f64 = shares.iter().map(|n| *n as f64).sum();
    let squares: f64 = shares.iter().map(|n| (*n as f64).powi(2)).sum();
    if squares == 0.0 { 0.0 } else { sum * sum / (shares.len() as f64 * squares) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fairness_is_one_for_equal_shares_and_a_part_for_one_winner() {
        assert_eq!(jain(&[5, 5, 5]), 1.0);
        assert!((jain(&[9, 0, 0]) - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!(jain(&[]), 0.0);
    }
}
