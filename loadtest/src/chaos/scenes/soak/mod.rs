//! Soak: mixed traffic at a fixed rate while faults come and go, with quiet moments at which what routers hold is read.
//!
//! A leak shows as a slope of live bytes between moments that are alike: nothing in flight, no fault, the load's own
//! connections closed. Memories that fill up to their bound are no leak: the largest, the words of the latest 8,192
//! requests, is filled before the clock starts, and a part of the run is warm-up and not judged, longer than the ten
//! minutes for which answers are kept.

mod faults;
mod holdings;
mod traffic;

use std::time::{Duration, Instant};

use anyhow::Result;
use rand::{SeedableRng, rngs::StdRng};

use self::{
    holdings::{Reading, read, slope},
    traffic::{Tally, Traffic},
};
use super::super::{
    Context, invariants,
    load::{self, Ask, End, Load, Pace, Shape},
    mesh::Mesh,
    row::{Row, Sense},
    wait::{PATIENCE, until},
};
use crate::stub::Kind;

/// Length where none is given, minutes: the long set's, and one that shows that the machinery works.
const FULL_MINUTES: f64 = 30.0;
const QUICK_MINUTES: f64 = 0.5;
/// Shortest run whose slope says something: answers are kept for ten minutes, so that before it the heap fills.
const JUDGED_MINUTES: f64 = 25.0;
/// Requests of each router by which its memory of words is full, and how long they may take.
const FILL: usize = 9_000;
const FILL_AT_ONCE: usize = 24;
const FILL_WITHIN: Duration = Duration::from_secs(900);
/// Share of a run that is warm-up: twelve minutes of thirty.
const WARM_UP: f64 = 0.4;
/// One round: load with faults, then quiet.
const BUSY: Duration = Duration::from_secs(40);
const QUIET: Duration = Duration::from_secs(8);
/// The same in a run shorter than two whole rounds.
const SHORT_BUSY: Duration = Duration::from_secs(8);
const SHORT_QUIET: Duration = Duration::from_secs(3);
/// Requests a second over all routers, in a long run and in a short one.
const RATE: f64 = 40.0;
const SHORT_RATE: f64 = 20.0;
/// Growth of live bytes, MB an hour.
const MAX_SLOPE: f64 = 1.0;
/// What bounded memories, which rise and fall by some hundred kilobytes over minutes, may look like in a short run.
const SLOPE_NOISE: f64 = 4.0;
/// From this length on there is no such noise.
const LONG_MINUTES: f64 = 100.0;
/// By which a quiet moment may differ from another: pooled connections to engines and peers, and their tasks.
const SPARE_DESCRIPTORS: f64 = 8.0;
const SPARE_TASKS: f64 = 24.0;
/// Served by a device of its own kind: recordings, speech and vectors.
const SPECIALS: [&str; 3] = [traffic::EAR, traffic::VOICE, traffic::VECTORS];

/// Time that a run of so many minutes may take: rounds end when they end, and the mesh starts first.
pub(super) fn cap(minutes: f64) -> Duration {
    Duration::from_secs_f64(minutes * 60.0 * 1.5 + 180.0) + FILL_WITHIN
}

/// Minutes asked for, or those of the set.
pub(super) fn minutes(context: &Context) -> f64 {
    context.minutes.unwrap_or(context.pick(QUICK_MINUTES, FULL_MINUTES))
}

/// Plays rounds until the time is over, and judges what routers hold.
pub(super) async fn play(context: &Context, row: &mut Row) -> Result<()> {
    let length = Duration::from_secs_f64(minutes(context) * 60.0);
    let short = length < 3 * (BUSY + QUIET);
    let (busy, quiet, rate) = if short { (SHORT_BUSY, SHORT_QUIET, SHORT_RATE) } else { (BUSY, QUIET, RATE) };
    let mut mesh = Mesh::start(context.shape()).await?;
    mesh.add_device("d-special", Kind::Openai, &SPECIALS).await?;
    mesh.whole().await?;
    if length.as_secs_f64() >= JUDGED_MINUTES * 60.0 {
        fill(&mesh).await?;
    }
    let mut rng = StdRng::seed_from_u64(context.seed);
    let (mut tally, mut played, mut readings) = (Tally::default(), faults::Played::default(), Vec::new());
    let started = Instant::now();
    while started.elapsed() < length || readings.len() < 2 {
        let traffic = Traffic::start(&mesh, rate, context.seed + readings.len() as u64)?;
        let until_ = Instant::now() + busy;
        faults::play(&mut mesh, &mut rng, until_, &mut played).await?;
        tally.add(traffic.finish().await);
        mesh.whole().await?;
        for url in mesh.urls() {
            mesh.api.idle(&url, PATIENCE).await?;
        }
        let reading = read(&mesh, started, quiet).await?;
        tracing::warn!("after {:.0} s: {reading}", reading.at.as_secs_f32());
        readings.push(reading);
    }
    // Everything still serves: a mesh that holds nothing since it does nothing has shown nothing.
    let mut served = 0;
    for url in mesh.urls() {
        let again = load::ask(&mesh.api, &url, &Ask::new(super::super::mesh::SHARED, "n=3", true)).await;
        served += usize::from(again.end() == End::Complete);
        tally.samples.push_back(again);
    }
    until("no request left at an engine", PATIENCE, async || {
        mesh.stubs().all(|(_, stub)| stub.log().snapshot().counts.open == 0).then_some(())
    })
    .await?;
    tally.tell(row);
    row.note(format!("faults: {played}"));
    row.least("routers that serve at the end", served, mesh.nodes.len());
    judge(&mesh, &readings, length, row);
    let samples: Vec<_> = tally.samples.into_iter().collect();
    row.broken.extend(invariants::broken(&mesh, &samples).await.into_iter().take(10));
    mesh.close();
    Ok(())
}

/// Fills what every request is remembered in.
async fn fill(mesh: &Mesh) -> Result<()> {
    let shape =
        Shape { script: "n=1".into(), pace: Pace::Closed(FILL_AT_ONCE), streams: 0.0, ..Shape::usual(mesh) };
    let load = Load::start(&mesh.api, shape);
    let full = FILL * mesh.nodes.len();
    until("memories filled", FILL_WITHIN, async || (load.done() >= full).then_some(())).await?;
    load.finish().await;
    Ok(())
}

/// Sets what was held at the end beside what was held after the warm-up.
fn judge(mesh: &Mesh, readings: &[Reading], length: Duration, row: &mut Row) {
    let warm = length.mul_f64(WARM_UP);
    // A short run has no warm-up beyond its first round.
    let from = readings.iter().position(|one| one.at >= warm).unwrap_or(0).min(readings.len() - 2);
    let judged = &readings[from..];
    row.note(format!("{} quiet moments, {} of them after the warm-up", readings.len(), judged.len()));
    for (at, node) in mesh.nodes.iter().enumerate() {
        let held: Vec<_> = judged.iter().map(|one| (one.at, one.held[at])).collect();
        let (first, last) = (held[0].1, held[held.len() - 1].1);
        let megabytes: Vec<(f64, f64)> =
            held.iter().map(|(at, held)| (at.as_secs_f64() / 3600.0, held.bytes / 1e6)).collect();
        let told = slope(&megabytes);
        row.note(format!(
            "{}: {:.2} MB live at first, {:.2} after the warm-up, {:.2} at the end; {:+.2} MB/h; {} descriptors, {} tasks",
            node.name, readings[0].held[at].bytes / 1e6, first.bytes / 1e6, last.bytes / 1e6, told, last.descriptors, last.tasks
        ));
        if length.as_secs_f64() >= JUDGED_MINUTES * 60.0 {
            let name = format!("growth of live bytes of {}", node.name);
            let noise = if length.as_secs_f64() < LONG_MINUTES * 60.0 { SLOPE_NOISE } else { 0.0 };
            row.figure(&name, told, "MB/h", Sense::AtMost, MAX_SLOPE, MAX_SLOPE + noise);
        }
        let more = |what: &str| format!("{what} of {} above those after the warm-up", node.name);
        let spare = [
            ("descriptors", last.descriptors - first.descriptors, SPARE_DESCRIPTORS),
            ("tasks", last.tasks - first.tasks, SPARE_TASKS),
        ];
        for (what, above, spare) in spare {
            row.figure(&more(what), above, "", Sense::AtMost, spare, spare);
        }
        row.figure(
            &format!("sockets of {} in CLOSE_WAIT", node.name),
            last.close_wait,
            "",
            Sense::AtMost,
            0.0,
            0.0,
        );
    }
}
