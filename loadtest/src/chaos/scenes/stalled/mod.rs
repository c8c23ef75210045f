//! Clients that read nothing of an answer without end. What they do not take fills every buffer on its way: the client's
//! connection, the QUIC stream from the device or from the router in between, the engine's connection. The router cuts
//! them off, everything behind them ends, and nobody else notices.

mod firehose;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;
use tokio::net::{TcpSocket, TcpStream};

use self::firehose::Firehose;
use super::{
    super::{
        Context, invariants,
        load::{self, End, Load, Pace, Shape},
        mesh::Mesh,
        proxy::Rule,
        row::{Row, Sense},
        wait::{PATIENCE, until},
    },
    clients::{SPARE_DESCRIPTORS, send},
};

/// Models of the two devices that speak to those who do not read: one linked to the router that is asked, one that it
/// reaches through another router alone.
const NEAR: &str = "stall-near";
const FAR: &str = "stall-far";
/// Receive buffer of a client that reads nothing, bytes.
const WINDOW: u32 = 4096;
/// Time that a router waits for a reader: the default, and in the quick set one that it is set to.
const WRITE_IDLE: Duration = Duration::from_secs(60);
const QUICK_WRITE_IDLE: Duration = Duration::from_secs(5);
/// After that time all must be cut within this one.
const SLACK: Duration = Duration::from_secs(5);

/// Readers that stop, and healthy clients beside.
pub(super) async fn readers(context: &Context, row: &mut Row) -> Result<()> {
    let idle = if context.full { WRITE_IDLE } else { QUICK_WRITE_IDLE };
    let more_config = format!("[limits]\nwrite_idle_s = {}", idle.as_secs());
    let mut mesh =
        Mesh::start(super::super::mesh::Shape { nodes: 2, devices: 2, more_config, ..context.shape() })
            .await?;
    let (near_engine, far_engine) =
        (Firehose::start(NEAR, context.seed).await?, Firehose::start(FAR, context.seed + 1).await?);
    let _near = mesh.add_agent("d-near", &near_engine.url())?;
    let _far = mesh.add_agent("d-far", &far_engine.url())?;
    let model = async |url: &str, id: &str| {
        let models = mesh.api.get(url, "/v1/models").await?;
        models["data"].as_array()?.iter().any(|one| one["id"] == id).then_some(())
    };
    for id in [NEAR, FAR] {
        until("the engines' models", PATIENCE, async || model(&mesh.nodes[0].url, id).await).await?;
    }
    let (entry, far) = (mesh.nodes[0].url.clone(), "d-far".to_owned());
    mesh.links.between(&[&far], &["n1"], Rule { blocked: true, ..Rule::default() });
    until("the far device reached through the other router alone", PATIENCE, async || {
        let (direct, seen) = (mesh.api.devices(&entry, true).await?, mesh.api.devices(&entry, false).await?);
        (!direct.contains(&far) && seen.contains(&far)).then_some(())
    })
    .await?;
    until("its model served", PATIENCE, async || {
        let ready = mesh.api.http.post(format!("{entry}/v1/chat/completions")).bearer_auth(&mesh.api.key);
        let body = json!({"model": FAR, "messages": [{"role": "user", "content": "ready?"}]});
        ready.json(&body).send().await.is_ok_and(|answer| answer.status() == 200).then_some(())
    })
    .await?;

    let shape =
        Shape { urls: vec![entry.clone()], pace: Pace::Closed(4), streams: 1.0, ..Shape::usual(&mesh) };
    let before = Load::start(&mesh.api, shape.clone());
    until("a base line", PATIENCE, async || (before.done() >= 100).then_some(())).await?;
    let before = before.finish().await;
    let process = |at: usize| mesh.nodes[at].process.as_ref().context("the router runs");
    let descriptors = [process(0)?.descriptors(), process(1)?.descriptors()];

    let load = Load::start(&mesh.api, shape);
    let count = context.pick(20, 500);
    let mut stalled = Vec::new();
    let asked = Instant::now();
    for number in 0..count {
        for model in [NEAR, FAR] {
            let mut connection = deaf(&entry).await?;
            let body = json!({"model": model, "stream": true,
                "messages": [{"role": "user", "content": format!("story {number}")}]});
            send(&mesh, &mut connection, &body).await?;
            stalled.push(connection);
        }
    }
    let open = || near_engine.open() + far_engine.open();
    let (mut most, mut peak) = (0, [0.0_f64; 2]);
    let within = idle + PATIENCE + PATIENCE;
    until("all cut", within, async || {
        most = most.max(open());
        for (at, peak) in peak.iter_mut().enumerate() {
            *peak = peak.max(process(at).ok()?.resident_mib());
        }
        let status = mesh.api.get(&entry, "/shoal/v1/status").await?;
        let flying = status["requests"]["in_flight"].as_u64()?;
        // The healthy ones are under way all the time.
        (most > 0 && open() == 0 && flying <= 4 && asked.elapsed() > idle / 2).then_some(())
    })
    .await?;
    let cut = asked.elapsed();
    let samples = load.finish().await;
    drop(stalled);
    let freed = until("descriptors back", PATIENCE, async || {
        (0..2)
            .all(|at| process(at).is_ok_and(|one| one.descriptors() <= descriptors[at] + SPARE_DESCRIPTORS))
            .then_some(())
    })
    .await;
    let mut left = 0;
    for url in mesh.urls() {
        left += usize::from(mesh.api.idle(&url, Duration::from_secs(10)).await.is_err());
    }

    let p99 = |samples: &[load::Sample]| load::quantile_ms(load::first_tokens(samples), 0.99);
    row.note(format!(
        "{} stalled readers, at most {most} of them at an engine at once; {} healthy requests",
        2 * count,
        samples.len()
    ));
    for (what, count) in load::failures(&samples) {
        row.note(format!("{count} x {what}"));
    }
    row.least("stalled readers at an engine at once", most, context.pick(2 * count, 100));
    row.time_within("all of them cut, and their engines told", cut, idle + SLACK, idle + PATIENCE);
    row.most("routers with something in flight afterwards", left, 0);
    row.most("failed healthy requests", samples.len() - load::count(&samples, End::Complete), 0);
    let added = p99(&samples) - p99(&before);
    row.figure(
        "p99 of healthy streams, added",
        added,
        "ms",
        Sense::AtMost,
        20.0,
        context.pick(5_000.0, 200.0),
    );
    row.figure("memory of a router", peak[0].max(peak[1]), "MiB", Sense::AtMost, 600.0, 600.0);
    match freed {
        Ok((_, took)) => row.time("descriptors back", took, Duration::from_secs(5)),
        Err(error) => row.broken.push(format!("{error:#}")),
    }
    mesh.links.heal();
    mesh.whole().await?;
    let samples: Vec<_> = samples.into_iter().chain(before).collect();
    row.broken.extend(invariants::broken(&mesh, &samples).await.into_iter().take(10));
    mesh.close();
    Ok(())
}

/// A connection whose owner takes next to nothing: its window is as small as the kernel allows, so that a router has a
/// stalled reader at once and not after megabytes.
async fn deaf(url: &str) -> Result<TcpStream> {
    let address = url.strip_prefix("http://").context("a URL of loopback")?.parse()?;
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(WINDOW)?;
    Ok(socket.connect(address).await?)
}
