//! Two versions in one mesh: routers and devices of both, either founding it, and one that is upgraded where it stands.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{
    super::{
        Context, invariants,
        load::{self, Ask, End, Load, Pace, Shape},
        mesh::{self, Mesh, OWN, SHARED},
        row::Row,
        wait::{PATIENCE, until},
    },
    network::equal_totals,
};

/// Plays the basics with either version as the founder.
pub(super) async fn mixed(context: &Context, row: &mut Row) -> Result<()> {
    let Some(previous) = context.previous.clone() else {
        row.skipped = Some("name the program of the version before with --previous".to_owned());
        return Ok(());
    };
    for (what, bin, other) in [
        ("founded by this version", context.bin.clone(), previous.clone()),
        ("founded by the version before", previous, context.bin.clone()),
    ] {
        let shape = mesh::Shape { bin, other_bin: Some(other), ..context.shape() };
        basics(context, shape, what, row).await.with_context(|| format!("a mesh {what}"))?;
    }
    Ok(())
}

async fn basics(context: &Context, shape: mesh::Shape, what: &str, row: &mut Row) -> Result<()> {
    let mut mesh = Mesh::start(shape).await?;
    let load = Load::start(&mesh.api, Shape { pace: Pace::Closed(6), ..Shape::usual(&mesh) });
    let enough = context.pick(100, 2_000);
    until("requests over all routers", 4 * PATIENCE, async || (load.done() >= enough).then_some(())).await?;
    let mut samples = load.finish().await;

    // Every pair of router and host, streamed and not; the first router's own engine is reached from the others by way of it.
    let hosts = mesh.devices.iter().map(|device| format!("device:{}/{SHARED}", device.name));
    let models: Vec<String> = hosts.chain([OWN.to_owned(), "auto".to_owned()]).collect();
    for url in mesh.urls() {
        for model in &models {
            for stream in [true, false] {
                samples.push(load::ask(&mesh.api, &url, &Ask::new(model, "n=5", stream)).await);
            }
        }
    }
    let fed = feedback(&mesh, &samples).await?;
    if let Err(error) = equal_totals(&mesh).await {
        row.broken.push(format!("{what}: {error:#}"));
    }

    // Upgraded where it stands, from its own data directory, if it was the older one.
    let newer = context.bin.clone();
    let older: Vec<usize> = (0..mesh.nodes.len()).filter(|at| *mesh.shape.bin_of(*at) != newer).collect();
    for at in &older {
        let identity = mesh.nodes[*at].generations.len();
        if !mesh.nodes[*at].stop(Duration::from_secs(40)).await? {
            row.broken.push(format!("{what}: {} did not end by itself", mesh.nodes[*at].name));
        }
        mesh.nodes[*at].start(&newer, None)?;
        mesh.whole().await?;
        if mesh.nodes[*at].generations.len() <= identity {
            row.broken
                .push(format!("{what}: {} has no new generation after its upgrade", mesh.nodes[*at].name));
        }
        samples.push(load::ask(&mesh.api, &mesh.nodes[*at].url, &Ask::new(SHARED, "n=5", true)).await);
    }
    for (code, count) in load::failures(&samples) {
        row.note(format!("{what}: {count} x {code}"));
    }
    row.note(format!("{what}: {} requests, {} routers upgraded", samples.len(), older.len()));
    row.most(&format!("failed requests, {what}"), samples.len() - load::count(&samples, End::Complete), 0);
    row.least(&format!("routers that take feedback on another's request, {what}"), fed, mesh.nodes.len());
    row.broken.extend(
        invariants::broken(&mesh, &samples).await.into_iter().map(|text| format!("{what}: {text}")).take(10),
    );
    mesh.close();
    Ok(())
}

/// Sends feedback through every router on a request that another one took, and returns how many passed it on.
async fn feedback(mesh: &Mesh, samples: &[load::Sample]) -> Result<usize> {
    let (urls, mut taken) = (mesh.urls(), 0);
    for (at, url) in urls.iter().enumerate() {
        let other = (at + 1) % urls.len();
        let of_other = |one: &&load::Sample| one.url == other && one.end() == End::Complete;
        let sample = samples.iter().find(of_other).context("an answer of each router")?;
        let body = json!({"request_id": sample.header("x-request-id"), "score": 1.0});
        let sent = mesh.api.http.post(format!("{url}/v1/feedback")).bearer_auth(&mesh.api.key).json(&body);
        taken += usize::from(sent.send().await?.status().is_success());
    }
    Ok(taken)
}
