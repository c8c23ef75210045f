//! Links that lose, delay, reorder, harm or block.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokio::net::UdpSocket;

use super::super::{
    Context, Samples,
    load::{self, Ask, End, Load, Pace, Shape},
    mesh::{Mesh, SHARED},
    proxy::Rule,
    row::{Row, Sense},
    wait::{PATIENCE, until},
};

const BLOCKED: Rule = Rule {
    blocked: true,
    drop: 0.0,
    duplicate: 0.0,
    corrupt: 0.0,
    reorder: 0.0,
    delay: Duration::ZERO,
    jitter: Duration::ZERO,
    bandwidth: None,
};

/// Largest datagram of a stranger.
const STRANGE: usize = 1_400;
/// How much a router may grow under strangers' datagrams, MiB.
const MAX_GROWTH_MIB: f64 = 20.0;

/// Names of all routers and devices.
fn everybody(mesh: &Mesh) -> Vec<String> {
    let nodes = mesh.nodes.iter().map(|node| node.name.clone());
    nodes.chain(mesh.devices.iter().map(|device| device.name.clone())).collect()
}

fn on_all_links(mesh: &Mesh, rule: Rule) {
    let names = everybody(mesh);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    mesh.links.between(&names, &names, rule);
}

/// Share of looks at which a router may be missed in the quick set: on a machine that other programs starve, it may be
/// the processor that is late and not the judgement.
const STARVED: usize = 20;

/// Looks at all views for so long, and counts the looks at which a router missed another that was up all the time.
pub(super) async fn false_deaths(context: &Context, mesh: &Mesh, length: Duration, row: &mut Row) {
    let (started, mut deaths, mut looks) = (Instant::now(), 0, 0);
    while started.elapsed() < length {
        for url in mesh.urls() {
            // A node that does not answer in time tells nothing of what it believes.
            if let Some(alive) = mesh.api.alive(&url).await {
                looks += 1;
                deaths += mesh.nodes.len().saturating_sub(alive.len());
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let bound = context.pick(looks / STARVED, 0);
    row.note(format!("{looks} looks at the views of routers"));
    row.figure("living routers taken for dead", deaths as f64, "", Sense::AtMost, 0.0, bound as f64);
}

/// `n1` against the two others, both ways; then `n2` unheard by the others, one way.
pub(super) async fn partition(context: &Context, mesh: &mut Mesh, row: &mut Row) -> Result<Samples> {
    let length = context.secs(7, 60);
    let load = Load::start(&mesh.api, Shape { pace: Pace::Closed(6), ..Shape::usual(mesh) });
    mesh.links.between(&["n1"], &["n2", "n3"], BLOCKED);
    let cut = Instant::now();
    for (at, want) in [(0, vec!["n1"]), (1, vec!["n2", "n3"]), (2, vec!["n2", "n3"])] {
        let url = mesh.nodes[at].url.clone();
        let seen = until("each side sees itself alone", PATIENCE, async || {
            mesh.api.alive(&url).await.filter(|alive| alive.iter().eq(want.iter())).map(drop)
        });
        seen.await?;
    }
    let noticed = cut.elapsed();
    let mut refused = Vec::new();
    let mut sides = Vec::new();
    while cut.elapsed() < length {
        for url in mesh.urls() {
            // Every router has a way to a device on its own side, or says at once that it has none.
            let sample = load::ask(&mesh.api, &url, &Ask::new(SHARED, "n=4", true)).await;
            if sample.end() == End::Error {
                refused.push(sample.what());
            }
            sides.push(sample);
        }
    }
    // Totals can only be compared once nobody adds to them.
    let mut samples = load.finish().await;
    mesh.links.heal();
    let healed = Instant::now();
    let live = live_again(mesh).await?;
    equal_totals(mesh).await?;
    let totals = healed.elapsed();
    row.note(format!(
        "both ways for {:.0} s; each side asked {} times by itself",
        length.as_secs_f32(),
        sides.len() / 2
    ));
    row.time("each side sees itself alone", noticed, Duration::from_secs(5));
    row.most("errors at either side once it was parted", refused.len(), 0);
    row.time("live set right after the heal", live, Duration::from_secs(5));
    row.time("totals equal on all routers after the heal", totals, Duration::from_secs(5));

    let load = Load::start(&mesh.api, Shape { pace: Pace::Closed(4), ..Shape::usual(mesh) });
    for other in ["n1", "n3"] {
        mesh.links.set("n2", other, BLOCKED);
    }
    tokio::time::sleep(context.secs(5, 60)).await;
    mesh.links.heal();
    let live = live_again(mesh).await?;
    row.time("live set right after a one-way fault", live, Duration::from_secs(5));
    samples.extend(load.finish().await);
    samples.extend(sides);
    let forbidden = load::count(&samples, End::Forbidden);
    row.most("wrong answers", forbidden, 0);
    for (what, count) in load::failures(&samples) {
        row.note(format!("{count} x {what}"));
    }
    Ok(samples)
}

/// Time from now until every router sees all of them.
async fn live_again(mesh: &Mesh) -> Result<Duration> {
    let started = Instant::now();
    let count = mesh.nodes.len();
    for url in mesh.urls() {
        let whole = until("the live set whole again", PATIENCE, async || {
            mesh.api.alive(&url).await.filter(|alive| alive.len() == count).map(drop)
        });
        whole.await?;
    }
    Ok(started.elapsed())
}

/// Waits until all routers show the same totals, to the last bit.
pub(super) async fn equal_totals(mesh: &Mesh) -> Result<()> {
    let urls = mesh.urls();
    let equal = until("equal totals", PATIENCE, async || {
        let mut all: Vec<Value> = Vec::new();
        for url in &urls {
            let mut view = mesh.api.get(url, "/shoal/v1/router").await?;
            all.push(view["totals"].take());
        }
        all.iter().all(|one| *one == all[0]).then_some(())
    });
    equal.await?;
    Ok(())
}

/// Loss, delay, jitter and reordering on every link between routers and devices.
pub(super) async fn bad(context: &Context, mesh: &mut Mesh, row: &mut Row) -> Result<Samples> {
    let shape = Shape { streams: 1.0, pace: Pace::Closed(4), ..Shape::usual(mesh) };
    let before = Load::start(&mesh.api, shape.clone());
    until("a base line", PATIENCE, async || (before.done() >= 100).then_some(())).await?;
    let before = before.finish().await;
    let rule = Rule {
        drop: 0.05,
        reorder: 0.05,
        duplicate: 0.01,
        delay: Duration::from_millis(100),
        jitter: Duration::from_millis(50),
        ..Rule::default()
    };
    on_all_links(mesh, rule);
    let load = Load::start(&mesh.api, shape);
    false_deaths(context, mesh, context.secs(8, 600), row).await;
    let samples = load.finish().await;
    mesh.links.heal();
    let p99 = |samples: &[load::Sample]| load::quantile_ms(load::first_tokens(samples), 0.99);
    let added = p99(&samples) - p99(&before);
    row.note(format!(
        "5 % loss, 100 ± 50 ms, 5 % reordered, 1 % twice on every link; {} streams, {} packets lost of {}",
        samples.len(),
        mesh.links.passed.lost.load(Ordering::Relaxed),
        mesh.links.passed.delivered.load(Ordering::Relaxed),
    ));
    row.figure(
        "p99 to the first token, added",
        added,
        "ms",
        Sense::AtMost,
        400.0,
        context.pick(10_000.0, 1_200.0),
    );
    row.most("failed requests", samples.len() - load::count(&samples, End::Complete), 0);
    Ok(samples.into_iter().chain(before).collect())
}

/// Flipped bits on every link, and random datagrams to every mesh port.
pub(super) async fn corrupt(context: &Context, mesh: &mut Mesh, row: &mut Row) -> Result<Samples> {
    let before: Vec<f64> =
        mesh.nodes.iter().filter_map(|node| node.process.as_ref()).map(|one| one.resident_mib()).collect();
    let load = Load::start(&mesh.api, Shape { pace: Pace::Closed(4), ..Shape::usual(mesh) });
    on_all_links(mesh, Rule { corrupt: 0.1, duplicate: 0.05, ..Rule::default() });
    let frames = context.pick(2_000_usize, 100_000);
    let targets: Vec<_> = mesh.nodes.iter().map(|node| node.mesh).collect();
    let stranger = UdpSocket::bind("127.0.0.1:0").await?;
    let mut rng = StdRng::seed_from_u64(context.seed);
    let started = Instant::now();
    for number in 0..frames {
        let mut frame = vec![0; rng.random_range(1..STRANGE)];
        rng.fill(&mut frame[..]);
        if number % 2 == 0 {
            // The form of a long header of QUIC's version 1, so that more than the first byte is read.
            frame[0] |= 0xc0;
            frame.splice(1..frame.len().min(5), [0, 0, 0, 1]);
        }
        // A full socket buffer refuses; that is the stranger's loss.
        let _ = stranger.send_to(&frame, targets[number % targets.len()]).await;
        if number % 64 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    let left = context.secs(3, 60).saturating_sub(started.elapsed());
    tokio::time::sleep(left).await;
    let harmed = mesh.links.passed.harmed.load(Ordering::Relaxed);
    if harmed == 0 {
        bail!("no packet was harmed, so nothing was shown");
    }
    mesh.links.heal();
    let live = live_again(mesh).await?;
    let samples = load.finish().await;
    let grown = mesh
        .nodes
        .iter()
        .filter_map(|node| node.process.as_ref())
        .zip(before)
        .map(|(process, before)| process.resident_mib() - before)
        .fold(0.0, f64::max);
    row.note(format!(
        "{harmed} packets with a flipped bit, {frames} datagrams of a stranger, {} requests",
        samples.len()
    ));
    row.most("corrupt answers", load::count(&samples, End::Forbidden), 0);
    row.time("all routers live after it", live, Duration::from_secs(5));
    // A router that serves grows by what it learns, too.
    row.figure("growth of a router", grown, "MiB", Sense::AtMost, MAX_GROWTH_MIB, 3.0 * MAX_GROWTH_MIB);
    Ok(samples)
}
