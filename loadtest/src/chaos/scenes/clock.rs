//! Clocks that are wrong, jump, and go backwards over a restart: one router's, then one device's.
//!
//! The wrong clock is libfaketime's, which is put before the system's for one process. Monotonic time stays true, as it
//! does on a machine whose clock somebody sets. That the clock was wrong is read from the router's own records.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::super::{
    Context, invariants,
    load::{self, Ask, End, Load, Pace, Shape},
    mesh::{Mesh, SHARED},
    process,
    row::Row,
    wait::{PATIENCE, until},
};
use super::network::false_deaths;

/// Where distributions put the library; the second is Debian's.
const LIBRARIES: [&str; 5] = [
    "/usr/lib/faketime/libfaketimeMT.so.1",
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/local/lib/faketime/libfaketimeMT.so.1",
];
const HOUR: i64 = 3_600;
/// By which a clock may differ from what was set, milliseconds: a request may wait that long.
const SET_WITHIN_MS: i64 = 10_000;
/// Longest run of `shoal doctor`.
const DOCTOR: Duration = Duration::from_secs(60);

/// A clock that can be set.
#[derive(Debug)]
struct Clock {
    file: PathBuf,
    env: Vec<(String, String)>,
}

impl Clock {
    fn new(library: &str, file: PathBuf) -> Result<Self> {
        let env = [
            ("LD_PRELOAD", library.to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ];
        let clock = Self { file, env: env.map(|(name, value)| (name.to_owned(), value)).into() };
        clock.set(0)?;
        Ok(clock)
    }

    /// Sets it so many seconds from the truth; whoever reads it sees it within a second.
    fn set(&self, seconds: i64) -> Result<()> {
        let next = self.file.with_extension("next");
        std::fs::write(&next, format!("{seconds:+}\n"))?;
        std::fs::rename(&next, &self.file).context("setting a clock")
    }
}

/// How far a router's clock is from ours, milliseconds, by its record of a request that is made now.
async fn offset_ms(mesh: &Mesh, at: usize) -> Option<i64> {
    let url = &mesh.nodes[at].url;
    let before = unix_ms();
    let sample = load::ask(&mesh.api, url, &Ask::new(SHARED, "n=1", false)).await;
    let id = sample.header("x-request-id");
    let record = mesh.api.get(url, &format!("/shoal/v1/requests/{id}")).await?;
    Some(record["started_ms"].as_i64()? - before)
}

fn unix_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// Waits until a router's clock is so many seconds from ours.
async fn is_set(mesh: &Mesh, at: usize, seconds: i64) -> Result<()> {
    let mut last = None;
    let set = until("a clock that was set", PATIENCE, async || {
        last = offset_ms(mesh, at).await;
        (last? - seconds * 1000).abs().le(&SET_WITHIN_MS).then_some(())
    })
    .await;
    set.map(drop).with_context(|| format!("a clock {seconds:+} s from the others is {last:?} ms from them"))
}

/// What `shoal doctor` says of the clock at a router: verdict and cause.
async fn doctor(bin: &Path, mesh: &Mesh, at: usize, env: &[(String, String)]) -> Result<(String, String)> {
    let node = &mesh.nodes[at];
    let data = node.folder.join("data").display().to_string();
    let args = ["doctor", "--json", "--data-dir", &data].map(str::to_owned);
    let text = process::output(bin, &args, env, DOCTOR).await?;
    let said: Value = serde_json::from_str(&text).with_context(|| format!("doctor said: {text}"))?;
    let check = said["checks"].as_array().and_then(|all| all.iter().find(|one| one["name"] == "clock"));
    let check = check.with_context(|| format!("doctor says nothing of the clock: {text}"))?;
    let text = |name: &str| check[name].as_str().unwrap_or_default().to_owned();
    Ok((text("verdict"), text("cause")))
}

/// A router's clock jumps under load and goes backwards over a restart; then a device's is wrong.
pub(super) async fn wrong(context: &Context, row: &mut Row) -> Result<()> {
    let Some(library) = LIBRARIES.into_iter().find(|place| Path::new(place).is_file()) else {
        row.skipped = Some("libfaketime is not here; on Debian: apt-get install faketime".to_owned());
        return Ok(());
    };
    let mut mesh = Mesh::start(context.shape()).await?;
    let clock = Clock::new(library, mesh.folder.path().join("clock"))?;
    restart(&mut mesh, &clock, 0).await?;
    mesh.whole().await?;

    // Jumps while it runs.
    let (jumps, hold) = ([HOUR, -HOUR, 0], context.secs(4, 60));
    let load = Load::start(&mesh.api, Shape { pace: Pace::Closed(6), ..Shape::usual(&mesh) });
    let mut named = Vec::new();
    let jumping = async {
        for seconds in jumps {
            clock.set(seconds)?;
            is_set(&mesh, 1, seconds).await?;
            let (began, done) = (Instant::now(), load.done());
            if seconds == -HOUR {
                named.push(doctor(&context.bin, &mesh, 1, &clock.env).await?);
            }
            until("requests under the wrong clock", PATIENCE, async || {
                (load.done() >= done + 30 && began.elapsed() >= hold).then_some(())
            })
            .await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let (jumped, ()) = tokio::join!(jumping, false_deaths(context, &mesh, 3 * hold, row));
    jumped?;
    let mut samples = load.finish().await;

    // Over restarts: an hour ahead, then an hour behind, so that it goes back by two.
    let others: Vec<String> = [0, 2].map(|at: usize| mesh.nodes[at].url.clone()).into();
    let load = Load::start(&mesh.api, Shape { urls: others, pace: Pace::Closed(4), ..Shape::usual(&mesh) });
    let mut rejoined = Duration::ZERO;
    for (seconds, witness) in [(HOUR, 0), (-HOUR, 1)] {
        rejoined = rejoined.max(restart(&mut mesh, &clock, seconds).await?);
        is_set(&mesh, 1, seconds).await?;
        let env = if witness == 1 { clock.env.as_slice() } else { &[] };
        named.push(doctor(&context.bin, &mesh, witness, env).await?);
        mesh.whole().await?;
    }
    samples.extend(load.finish().await);
    clock.set(0)?;
    is_set(&mesh, 1, 0).await?;

    // A device with a clock of its own.
    let aside = Clock::new(library, mesh.folder.path().join("device-clock"))?;
    mesh.devices[0].kill();
    mesh.devices[0].env = aside.env.clone();
    let mut served = 0;
    for seconds in [HOUR, -HOUR] {
        aside.set(seconds)?;
        mesh.devices[0].kill();
        mesh.resume_device(0)?;
        mesh.whole().await?;
        let model = format!("device:{}/{SHARED}", mesh.devices[0].name);
        for url in mesh.urls() {
            // Its former life may still be in a router's view, since it was killed.
            until("the device answers in its new life", PATIENCE, async || {
                let sample = load::ask(&mesh.api, &url, &Ask::new(&model, "n=4", true)).await;
                (sample.end() == End::Complete).then_some(())
            })
            .await?;
            served += 1;
        }
    }

    let failed = samples.len() - load::count(&samples, End::Complete);
    let silent = named.iter().filter(|(verdict, cause)| verdict != "bad" || !cause.contains("before"));
    let silent: Vec<_> = silent.collect();
    row.note(format!("{} requests; doctor: {}", samples.len(), named[0].1));
    for (what, count) in load::failures(&samples) {
        row.note(format!("{count} x {what}"));
    }
    for (verdict, cause) in &silent {
        row.note(format!("doctor did not name it: {verdict}: {cause}"));
    }
    row.most("failed requests", failed, 0);
    row.most("wrong clocks that `shoal doctor` does not name", silent.len(), 0);
    row.time("seen by all after a restart with another clock", rejoined, Duration::from_secs(5));
    row.least("answers of a device an hour ahead, an hour behind", served, 2 * mesh.nodes.len());
    row.broken.extend(invariants::broken(&mesh, &samples).await.into_iter().take(10));
    mesh.close();
    Ok(())
}

/// Restarts the second router with a clock; returns the time from its start until all see it.
async fn restart(mesh: &mut Mesh, clock: &Clock, seconds: i64) -> Result<Duration> {
    if !mesh.nodes[1].stop(Duration::from_secs(40)).await? {
        bail!("the router did not end by itself");
    }
    clock.set(seconds)?;
    mesh.nodes[1].env = clock.env.clone();
    let generations: Vec<Option<u64>> =
        mesh.nodes.iter().map(|node| node.generations.last().copied()).collect();
    let started = Instant::now();
    mesh.resume_node(1).await?;
    let name = mesh.nodes[1].name.clone();
    for url in mesh.urls() {
        until("seen by all in its new life", PATIENCE, async || {
            let view = mesh.api.get(&url, "/shoal/v1/nodes").await?;
            let nodes = view["nodes"].as_array()?;
            let seen = nodes.iter().find(|one| one["name"] == name.as_str() && one["alive"] == true)?;
            (seen["generation"].as_u64() > generations[1]).then_some(())
        })
        .await?;
    }
    Ok(started.elapsed())
}
