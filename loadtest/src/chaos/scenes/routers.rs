//! Routers that die, and routers that are replaced in order.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::super::{
    Context, Samples,
    load::{self, End, Load, Pace, Shape},
    mesh::{Mesh, OWN},
    row::Row,
    wait::{PATIENCE, until},
};

/// Time from a death to the last request that may still have been sent towards it.
const PICKS_END: Duration = Duration::from_millis(1_500);

/// Kills routers in turn under load: `n1`, which alone reaches its own engine, and the others.
pub(super) async fn kill(context: &Context, mesh: &mut Mesh, row: &mut Row) -> Result<Samples> {
    let rounds = context.pick(2, 50);
    let (mut all, mut other_errors, mut late_picks) = (Vec::new(), 0, 0);
    let (mut left, mut attached, mut back) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let (mut cut, mut through) = (0, 0);
    for round in 0..rounds {
        let victim = round % mesh.nodes.len();
        let survivors: Vec<String> = mesh
            .nodes
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != victim)
            .map(|(_, n)| n.url.clone())
            .collect();
        let name = mesh.nodes[victim].name.clone();
        let usual = Shape { urls: survivors.clone(), ..Shape::usual(mesh) };
        let shared = Load::start(&mesh.api, usual.clone());
        // Answers of this model run through n1, wherever they are asked.
        let own = (victim == 0).then(|| {
            let shape =
                Shape { model: OWN.into(), pace: Pace::Closed(3), script: "n=30 itl=30".into(), ..usual };
            Load::start(&mesh.api, shape)
        });
        until("the load runs", PATIENCE, async || {
            (shared.done() > 40 && own.as_ref().is_none_or(|own| own.done() > 3)).then_some(())
        })
        .await?;
        let killed = Instant::now();
        mesh.nodes[victim].kill();
        for url in &survivors {
            let gone = until("the dead router out of the view", PATIENCE, async || {
                mesh.api.alive(url).await.filter(|alive| !alive.contains(&name)).map(drop)
            });
            gone.await?;
            left = left.max(killed.elapsed());
        }
        until("its devices with another router", PATIENCE, async || {
            let mut linked = Vec::new();
            for url in &survivors {
                linked.extend(mesh.api.devices(url, true).await?);
            }
            mesh.devices.iter().all(|device| linked.contains(&device.name)).then_some(())
        })
        .await?;
        attached = attached.max(killed.elapsed());
        let restarted = Instant::now();
        mesh.resume_node(victim).await?;
        back = back.max(restarted.elapsed());
        let samples = shared.finish().await;
        other_errors += samples
            .iter()
            // A committed stream through the dead router may end in an explicit error; nothing else may.
            .filter(|one| one.end() == End::Error && !(one.what().starts_with("cut: ") && one.sent <= killed))
            .count();
        if let Some(own) = own {
            let own = own.finish().await;
            let after = own.iter().filter(|one| one.sent > killed + PICKS_END && one.sent < restarted);
            late_picks += after
                .filter(|one| one.what().starts_with("cut: ") || one.what().contains("upstream_"))
                .count();
            let running = own.iter().filter(|one| one.sent <= killed && one.sent + one.answer.total > killed);
            through += running.clone().count();
            cut += running.filter(|one| one.end() == End::Error).count();
            all.extend(own);
        }
        all.extend(samples);
        mesh.whole().await.with_context(|| format!("after {name} came back"))?;
    }
    row.note(format!("{rounds} kills, {} requests, {through} answers ran through the dead router, {cut} of them ended in an explicit error", all.len()));
    row.most("errors other than committed streams through it", other_errors, 0);
    row.most("requests sent towards it later than 1.5 s", late_picks, 0);
    row.time("out of every view", left, Duration::from_secs(5));
    row.time("devices linked to another router", attached, Duration::from_secs(5));
    row.time("back in service after the start", back, Duration::from_secs(3));
    Ok(all)
}

/// Stops and starts every router under load, behind a balancer.
pub(super) async fn rolling_restart(context: &Context, mesh: &mut Mesh, row: &mut Row) -> Result<Samples> {
    let wanted: usize = context.pick(60, 20_000);
    let balancer = Arc::new((0..mesh.nodes.len()).map(|_| AtomicBool::new(true)).collect::<Vec<_>>());
    let pace = Pace::Closed(context.pick(8, 16));
    let shape = Shape { balancer: Some(Arc::clone(&balancer)), pace, ..Shape::usual(mesh) };
    let load = Load::start(&mesh.api, shape);
    let (mut unclean, mut slowest, mut rounds) = (0, Duration::ZERO, 0);
    while rounds == 0 || (context.full && load.done() < wanted) {
        rounds += 1;
        for at in 0..mesh.nodes.len() {
            let before = load.done();
            until("the load runs", PATIENCE, async || (load.done() >= before + 20).then_some(())).await?;
            let asked = Instant::now();
            // As an orchestrator does: out of service at the moment of the signal, whatever is on the way.
            balancer[at].store(false, Ordering::Relaxed);
            // The drain lets answers finish; none here takes more than a moment.
            unclean += usize::from(!mesh.nodes[at].stop(Duration::from_secs(30)).await?);
            slowest = slowest.max(asked.elapsed());
            mesh.resume_node(at).await?;
            // `/readyz` lists the models: a router that has heard of none yet serves nobody.
            mesh.whole().await?;
            balancer[at].store(true, Ordering::Relaxed);
        }
    }
    let samples = load.finish().await;
    row.note(format!("{rounds} rounds over {} routers", mesh.nodes.len()));
    row.least("requests", samples.len(), wanted);
    row.most("failed requests", samples.len() - load::count(&samples, End::Complete), 0);
    row.most("routers that did not end by themselves", unclean, 0);
    row.time("from the signal to the end", slowest, Duration::from_secs(10));
    for (what, count) in load::failures(&samples) {
        row.note(format!("{count} x {what}"));
    }
    Ok(samples)
}
