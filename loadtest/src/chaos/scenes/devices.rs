//! Devices that die, freeze, slow down, and come and go.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;

use super::super::{
    Context, Samples,
    load::{self, Ask, End, Load, Pace, Sample, Shape},
    mesh::{Mesh, SHARED},
    proxy::Rule,
    row::{Row, Sense},
    wait::{PATIENCE, until},
};
use crate::stub::Phase;

/// Silence after which a device, which may be a phone, is taken for gone (`cluster`: `DEVICE_IDLE`), and some time to
/// act on it. Beyond it no noise excuses a wait.
const DEVICE_SILENCE: Duration = Duration::from_secs(15 + 10);

/// Time in which what a device says of itself reaches every router: its next announcement at the latest, and gossip.
const NEWS: Duration = Duration::from_secs(5 + 2);

/// Starts requests and hands back their tasks.
fn start(mesh: &Mesh, count: usize, request: &Ask) -> Vec<tokio::task::JoinHandle<Sample>> {
    let urls = mesh.urls();
    (0..count)
        .map(|at| {
            let (api, url, request) = (mesh.api.clone(), urls[at % urls.len()].clone(), request.clone());
            crate::tasks::spawn_named("asked", async move { load::ask(&api, &url, &request).await })
        })
        .collect()
}

async fn finish(tasks: Vec<tokio::task::JoinHandle<Sample>>) -> Result<Samples> {
    let mut samples = Vec::new();
    for task in tasks {
        samples.push(task.await.context("a request's task ended early")?);
    }
    Ok(samples)
}

/// Requests of a tag that a device's engine has in a phase.
fn in_phase(mesh: &Mesh, at: usize, tag: &str, phase: Phase) -> usize {
    mesh.devices[at]
        .stub
        .log()
        .tagged(tag)
        .iter()
        .filter(|one| one.phase == phase && one.end == crate::stub::End::Open)
        .count()
}

/// Where most of a tag's requests are.
fn busiest(mesh: &Mesh, tag: &str, phase: Phase) -> usize {
    (0..mesh.devices.len()).max_by_key(|at| in_phase(mesh, *at, tag, phase)).unwrap_or(0)
}

/// The device that has most of the waiting requests dies before its first token.
pub(super) async fn kill_early(context: &Context, mesh: &mut Mesh, row: &mut Row) -> Result<Samples> {
    let (rounds, count) = (context.pick(1, 10), context.pick(12, 48));
    let (mut all, mut moved, mut spoke, mut slowest) = (Vec::new(), 0, 0, Duration::ZERO);
    for round in 0..rounds {
        let tag = format!("early{round}");
        let request = Ask::new(SHARED, &format!("ttft=2500 n=4 tag={tag}"), round % 2 == 0);
        let tasks = start(mesh, count, &request);
        let total = |mesh: &Mesh| {
            (0..mesh.devices.len()).map(|at| in_phase(mesh, at, &tag, Phase::Prefill)).sum::<usize>()
        };
        until("all in prefill", PATIENCE, async || (total(mesh) >= count).then_some(())).await?;
        let victim = busiest(mesh, &tag, Phase::Prefill);
        moved += in_phase(mesh, victim, &tag, Phase::Prefill);
        let killed = Instant::now();
        mesh.devices[victim].kill();
        let samples = finish(tasks).await?;
        // On a busy machine some may have begun to speak before the blow: those end in an error by rights.
        spoke +=
            mesh.devices[victim].stub.log().tagged(&tag).iter().filter(|one| one.tokens_sent > 0).count();
        let base = Duration::from_millis(2_500);
        slowest =
            samples.iter().map(|one| one.answer.total.saturating_sub(base)).fold(slowest, Duration::max);
        row.note(format!(
            "round {round}: the last answer {:.1} s after the death",
            killed.elapsed().as_secs_f32()
        ));
        all.extend(samples);
        mesh.resume_device(victim)?;
        mesh.whole().await?;
    }
    if moved == 0 {
        bail!("the dead device had no request, so nothing was shown");
    }
    row.least("requests that were under way at the dead device", moved, 1);
    let failed = all.len() - load::count(&all, End::Complete);
    row.most("failed requests that had no word yet", failed.saturating_sub(spoke), 0);
    row.time_within("latency added to the slowest", slowest, Duration::from_secs(2), 2 * DEVICE_SILENCE);
    for (what, count) in load::failures(&all) {
        row.note(format!("{count} x {what}"));
    }
    Ok(all)
}

/// A device dies in the middle of many answers: each says so, and none is completed by another's words.
pub(super) async fn kill_late(context: &Context, mesh: &mut Mesh, row: &mut Row) -> Result<Samples> {
    let (rounds, count) = (context.pick(1, 20), context.pick(20, 50));
    let (mut all, mut cut, mut clean, mut other, mut slowest) = (Vec::new(), 0, 0, 0, Duration::ZERO);
    for round in 0..rounds {
        let victim = round % mesh.devices.len();
        let (name, tag) = (mesh.devices[victim].name.clone(), format!("late{round}"));
        let model = format!("device:{name}/{SHARED}");
        // Long enough to be cut wherever the death falls, short enough to end if nothing cuts it.
        let tasks = start(mesh, count, &Ask::new(&model, &format!("n=400 itl=100 tag={tag}"), true));
        // A second of words: what is held back at first has gone to the client long since.
        let speaking = |mesh: &Mesh| {
            let log = mesh.devices[victim].stub.log();
            log.tagged(&tag).iter().filter(|one| one.tokens_sent >= 20).count()
        };
        until("all speak", PATIENCE, async || (speaking(mesh) >= count).then_some(())).await?;
        let killed = Instant::now();
        mesh.devices[victim].kill();
        for sample in finish(tasks).await? {
            slowest = slowest.max((sample.sent + sample.answer.total).saturating_duration_since(killed));
            match sample.what().as_str() {
                "cut: upstream_interrupted" => cut += 1,
                _ if sample.end() == End::Complete => clean += 1,
                what => {
                    other += 1;
                    row.note(format!("a cut answer ended as {what}"));
                }
            }
            all.push(sample);
        }
        mesh.resume_device(victim)?;
        mesh.whole().await?;
    }
    row.notes.truncate(5);
    let (reset, told) = reset_engine(context, mesh, &mut all).await?;
    row.most("ends other than upstream_interrupted where an engine is reset", reset, 0);
    row.time("from the reset to the last error", told, Duration::from_millis(1_500));
    row.least("answers that ended in upstream_interrupted", cut, rounds * count);
    row.most("clean ends", clean, 0);
    row.most("other ends", other, 0);
    row.most("spliced, lost or repeated words", load::count(&all, End::Forbidden), 0);
    row.time_within(
        "from the death to the last error",
        slowest,
        Duration::from_millis(1_500),
        DEVICE_SILENCE,
    );
    Ok(all)
}

/// The connections between a device and its engine are reset while it speaks: the device lives on and tells at once.
async fn reset_engine(context: &Context, mesh: &Mesh, all: &mut Samples) -> Result<(usize, Duration)> {
    let device = &mesh.devices[mesh.devices.len() - 1];
    let request = Ask::new(&format!("device:{}/{SHARED}", device.name), "n=400 itl=100 tag=reset", true);
    let count = context.pick(8, 50);
    let tasks = start(mesh, count, &request);
    let speaking = || device.stub.log().tagged("reset").iter().filter(|one| one.tokens_sent >= 20).count();
    until("all speak", PATIENCE, async || (speaking() >= count).then_some(())).await?;
    let reset = Instant::now();
    device.engine.reset_all();
    let samples = finish(tasks).await?;
    let others = samples.iter().filter(|one| one.what() != "cut: upstream_interrupted").count();
    let last = samples.iter().map(|one| (one.sent + one.answer.total).saturating_duration_since(reset)).max();
    all.extend(samples);
    Ok((others, last.unwrap_or_default()))
}

/// A device's agent stands still for a while: a gray failure, no connection breaks.
pub(super) async fn freeze(context: &Context, mesh: &mut Mesh, row: &mut Row) -> Result<Samples> {
    let (length, tag) = (context.secs(3, 10), "frozen");
    let tasks = start(mesh, 9, &Ask::new(SHARED, &format!("ttft=2000 n=4 tag={tag}"), true));
    until("some in prefill", PATIENCE, async || {
        ((0..mesh.devices.len()).map(|at| in_phase(mesh, at, tag, Phase::Prefill)).sum::<usize>() > 5)
            .then_some(())
    })
    .await?;
    let victim = busiest(mesh, tag, Phase::Prefill);
    let name = mesh.devices[victim].name.clone();
    let load = Load::start(&mesh.api, Shape { pace: Pace::Closed(4), ..Shape::usual(mesh) });
    mesh.devices[victim].signal(Signal::STOP)?;
    let stopped = Instant::now();
    tokio::time::sleep(length).await;
    mesh.devices[victim].signal(Signal::CONT)?;
    let waiting = finish(tasks).await?;
    let moved =
        waiting.iter().map(|one| (one.sent + one.answer.total).saturating_duration_since(stopped)).max();
    let resumed = Instant::now();
    let pinned = format!("device:{name}/{SHARED}");
    let url = mesh.nodes[0].url.clone();
    until("the device serves again", PATIENCE, async || {
        let sample = load::ask(&mesh.api, &url, &Ask::new(&pinned, "n=2", false)).await;
        (sample.end() == End::Complete).then_some(())
    })
    .await?;
    let back = resumed.elapsed();
    let mut samples = load.finish().await;
    samples.extend(waiting);
    for url in mesh.urls() {
        mesh.api.idle(&url, DEVICE_SILENCE).await?;
    }
    let left_open = slots_taken(mesh, &name).await;
    row.note(format!("stopped for {:.0} s under load, {} requests", length.as_secs_f32(), samples.len()));
    row.most("failed requests", samples.len() - load::count(&samples, End::Complete), 0);
    row.time_within(
        "its requests ended after the stop",
        moved.unwrap_or_default(),
        Duration::from_secs(3),
        length + DEVICE_SILENCE,
    );
    row.time("serves again after it goes on", back, Duration::from_secs(5));
    row.most("slots still taken on it", left_open, 0);
    Ok(samples)
}

/// Slots of a device that routers take for taken although nothing runs, once the news has had time to reach all of them.
async fn slots_taken(mesh: &Mesh, name: &str) -> usize {
    let started = Instant::now();
    loop {
        let mut taken = 0;
        for url in mesh.urls() {
            let view = mesh.api.get(&url, "/shoal/v1/devices").await.unwrap_or_default();
            let device =
                view["devices"].as_array().and_then(|all| all.iter().find(|one| one["name"] == name));
            let in_flight = device.and_then(|one| one["in_flight"].as_u64()).unwrap_or(0);
            taken += usize::try_from(in_flight).unwrap_or(usize::MAX);
        }
        if taken == 0 || started.elapsed() > NEWS {
            return taken;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One device takes ten times as long; traffic must find out.
pub(super) async fn slow(context: &Context, mesh: &mut Mesh, row: &mut Row) -> Result<Samples> {
    let shape = Shape { script: "ttft=20 n=8 itl=5".into(), pace: Pace::Closed(6), ..Shape::usual(mesh) };
    let before = Load::start(&mesh.api, shape.clone());
    until("a base line", PATIENCE, async || (before.done() >= context.pick(60, 600)).then_some(())).await?;
    let before = before.finish().await;
    mesh.devices[0].stub.slow_down(10);
    let slow = mesh.devices[0].name.clone();
    let load = Load::start(&mesh.api, shape);
    until("enough requests", PATIENCE, async || (load.done() >= context.pick(140, 2_000)).then_some(()))
        .await?;
    let samples = load.finish().await;
    mesh.devices[0].stub.slow_down(1);
    // Each router learns by its own requests: twenty of each are for finding out.
    let learnt = &samples[samples.len().min(20 * mesh.nodes.len())..];
    let at_slow = learnt.iter().filter(|one| one.header("x-shoal-upstream").contains(&slow)).count();
    let share = 100.0 * at_slow as f64 / learnt.len().max(1) as f64;
    let p99 =
        |samples: &[Sample]| load::quantile_ms(samples.iter().map(|one| one.answer.total).collect(), 0.99);
    let ratio = p99(learnt) / p99(&before).max(1.0);
    row.note(format!("{} requests after the first {}", learnt.len(), samples.len() - learnt.len()));
    row.figure("its share of requests", share, "%", Sense::AtMost, 5.0, context.pick(25.0, 10.0));
    row.figure("p99 of all against before", ratio, "x", Sense::AtMost, 1.3, context.pick(8.0, 3.0));
    row.most("failed requests", samples.len() - load::count(&samples, End::Complete), 0);
    Ok(samples.into_iter().chain(before).collect())
}

/// A phone's network goes off and on, and its address changes while it speaks.
pub(super) async fn flapping(context: &Context, mesh: &mut Mesh, row: &mut Row) -> Result<Samples> {
    let (rounds, off) = (context.pick(1, 5), context.secs(20, 30));
    let name = mesh.devices[0].name.clone();
    let routers: Vec<String> = mesh.nodes.iter().map(|node| node.name.clone()).collect();
    let routers: Vec<&str> = routers.iter().map(String::as_str).collect();
    let urls = mesh.urls();
    let load = Load::start(&mesh.api, Shape { pace: Pace::Closed(3), ..Shape::usual(mesh) });
    let (mut back, mut twice) = (Duration::ZERO, 0);
    for _ in 0..rounds {
        mesh.links.between(&[&name], &routers, Rule { blocked: true, ..Rule::default() });
        tokio::time::sleep(off).await;
        mesh.links.heal();
        let healed = Instant::now();
        until("the phone linked again", PATIENCE, async || {
            for url in &urls {
                if mesh.api.devices(url, true).await?.contains(&name) {
                    return Some(());
                }
            }
            None
        })
        .await?;
        back = back.max(healed.elapsed());
        for url in &urls {
            let seen = mesh.api.devices(url, false).await.unwrap_or_default();
            twice += seen.iter().filter(|one| **one == name).count().saturating_sub(1);
        }
    }
    let mut samples = load.finish().await;
    mesh.whole().await?;

    let tasks = start(mesh, 3, &Ask::new(&format!("device:{name}/{SHARED}"), "n=60 itl=50 tag=moving", true));
    until("it speaks", PATIENCE, async || (in_phase(mesh, 0, "moving", Phase::Decode) >= 3).then_some(()))
        .await?;
    for _ in 0..3 {
        for node in &mesh.nodes {
            node.proxy.rebind(&name);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let moving = finish(tasks).await?;
    let survived = load::count(&moving, End::Complete);
    for (what, count) in load::failures(&moving) {
        row.note(format!("new address: {count} x {what}"));
    }
    row.note(format!(
        "{rounds} times {:.0} s without network; {} other requests",
        off.as_secs_f32(),
        samples.len()
    ));
    row.time("linked again after the network", back, Duration::from_secs(2));
    row.most("devices seen twice", twice, 0);
    row.least("streams that survive three new source ports", survived, moving.len());
    row.most("wrong answers", load::count(&samples, End::Forbidden), 0);
    samples.extend(moving);
    Ok(samples)
}
