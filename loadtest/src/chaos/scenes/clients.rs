//! Clients that go away or say nothing.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use super::super::{
    Context, Samples,
    load::{self, Ask, End, Load, Pace, Shape},
    mesh::{Mesh, OWN, SHARED},
    row::{Row, Sense},
    wait::{PATIENCE, until},
};
use crate::stub::{self, Phase};

/// Descriptors by which a router may differ from before: pooled connections to engines and peers.
pub(super) const SPARE_DESCRIPTORS: usize = 32;

/// Opens a connection and sends a request on it, as bytes.
async fn raw(mesh: &Mesh, url: &str, request: &Ask) -> Result<TcpStream> {
    let address = url.strip_prefix("http://").context("a URL of loopback")?;
    let mut connection = TcpStream::connect(address).await?;
    send(mesh, &mut connection, &load::body(request, &load::prompt(request))).await?;
    Ok(connection)
}

/// Sends a request as bytes.
pub(super) async fn send(mesh: &Mesh, connection: &mut TcpStream, body: &Value) -> Result<()> {
    let text = body.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: shoal\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        mesh.api.key,
        text.len()
    );
    connection.write_all(head.as_bytes()).await?;
    Ok(connection.write_all(text.as_bytes()).await?)
}

/// Clients hang up in the line, in prefill and in decode, over every kind of path, streamed and not.
pub(super) async fn disconnects(context: &Context, mesh: &mut Mesh, row: &mut Row) -> Result<Samples> {
    let rounds = context.pick(3, 250);
    let (mut seen, mut unseen, mut left) = (Vec::new(), 0, 0);
    // Fills the own engine's slots, so that what comes after waits in the engine's or the router's line.
    for round in 0..rounds {
        for phase in [Phase::Prefill, Phase::Decode] {
            for (path, stream) in [(0, true), (0, false), (1, true), (1, false), (2, true), (2, false)] {
                let tag = format!("bye{round}{phase:?}{path}{stream}");
                let pace = if phase == Phase::Prefill { "ttft=60000" } else { "n=2000 itl=500" };
                let (node, model) = [(0, OWN), (1, OWN), (2, SHARED)][path];
                let request = Ask::new(model, &format!("{pace} tag={tag}"), stream);
                let connection = raw(mesh, &mesh.nodes[node].url.clone(), &request).await?;
                let found = || mesh.stubs().find_map(|(_, stub)| stub.log().tagged(&tag).pop());
                until("the request in its phase", PATIENCE, async || {
                    found().filter(|one| one.phase == phase).map(drop)
                })
                .await?;
                let gone = Instant::now();
                drop(connection);
                left += 1;
                match until("seen", Duration::from_secs(10), async || {
                    found().filter(|one| one.end == stub::End::ClientGone).map(drop)
                })
                .await
                {
                    Ok(_) => seen.push(gone.elapsed()),
                    Err(_) => unseen += 1,
                }
            }
        }
    }
    // In the line: more than the own engine has slots.
    let slots = mesh.shape.own_slots;
    let mut waiting = Vec::new();
    let url = mesh.nodes[0].url.clone();
    for _ in 0..slots + 3 {
        waiting.push(raw(mesh, &url, &Ask::new(OWN, "ttft=60000 tag=line", true)).await?);
    }
    until("the slots taken", PATIENCE, async || {
        (mesh.own.log().snapshot().counts.open as usize >= slots).then_some(())
    })
    .await?;
    left += waiting.len();
    drop(waiting);
    let mut idle = Duration::ZERO;
    for url in mesh.urls() {
        idle = idle.max(mesh.api.idle(&url, PATIENCE).await?);
    }
    until("no request left at an engine", PATIENCE, async || {
        mesh.stubs().all(|(_, stub)| stub.log().snapshot().counts.open == 0).then_some(())
    })
    .await?;
    let mut recorded = 0.0;
    for url in mesh.urls() {
        let status = mesh.api.get(&url, "/shoal/v1/status").await.unwrap_or_default();
        recorded += status["requests"]["cancelled"].as_f64().unwrap_or(0.0);
    }
    let again = load::ask(&mesh.api, &url, &Ask::new(OWN, "n=3", true)).await;
    row.note(format!("{left} clients went away, {} of them in the line", slots + 3));
    row.most("engines that did not see it", unseen, 0);
    let p99 = Duration::from_secs_f64(load::quantile_ms(seen, 0.99) / 1000.0);
    row.time("p99 until the engine sees it", p99, Duration::from_millis(250));
    row.time("until nothing is in flight", idle, Duration::from_secs(2));
    row.least("recorded as cancelled", recorded as usize, left);
    row.least("served afterwards", usize::from(again.end() == End::Complete), 1);
    Ok(vec![again])
}

/// Connections that send a head byte by byte or not at all, and healthy clients beside.
pub(super) async fn slow(context: &Context, mesh: &mut Mesh, row: &mut Row) -> Result<Samples> {
    let node = &mesh.nodes[1];
    let process = node.process.as_ref().context("the router runs")?;
    let address = node.url.strip_prefix("http://").context("a URL of loopback")?.to_owned();
    let shape =
        Shape { urls: vec![node.url.clone()], pace: Pace::Closed(4), streams: 1.0, ..Shape::usual(mesh) };
    let before = Load::start(&mesh.api, shape.clone());
    until("a base line", PATIENCE, async || (before.done() >= 100).then_some(())).await?;
    let before = before.finish().await;
    let descriptors = process.descriptors();

    let load = Load::start(&mesh.api, shape);
    let count = context.pick(150, 10_000);
    let mut clients = JoinSet::new();
    for number in 0..count {
        let address = address.clone();
        clients.spawn(async move { silent(&address, number % 2 == 0).await });
    }
    let (mut slowest, mut kept, mut peak) = (Duration::ZERO, 0, 0.0_f64);
    let mut ended = 0;
    while let Some(cut) = clients.join_next().await {
        ended += 1;
        if ended % 50 == 0 {
            peak = peak.max(process.resident_mib());
        }
        match cut.ok().flatten() {
            Some(after) => slowest = slowest.max(after),
            None => kept += 1,
        }
    }
    peak = peak.max(process.resident_mib());
    let samples = load.finish().await;
    row.note(format!("{count} silent or slow heads, {} healthy requests", samples.len()));
    let spare = descriptors + SPARE_DESCRIPTORS;
    let freed =
        until("descriptors back", PATIENCE, async || (process.descriptors() <= spare).then_some(())).await;
    let p99 = |samples: &[load::Sample]| load::quantile_ms(load::first_tokens(samples), 0.99);
    for (what, count) in load::failures(&samples) {
        row.note(format!("{count} x {what}"));
    }
    row.most("slow heads that were not cut", kept, 0);
    row.time_within(
        "the last of them cut",
        slowest,
        Duration::from_secs(12),
        Duration::from_secs(context.pick(40, 20)),
    );
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
    row.figure("memory of the router", peak, "MiB", Sense::AtMost, 600.0, 600.0);
    match freed {
        Ok((_, took)) => row.time("descriptors back", took, Duration::from_secs(5)),
        Err(_) => row.most("descriptors left open", process.descriptors() - descriptors, SPARE_DESCRIPTORS),
    }
    Ok(samples.into_iter().chain(before).collect())
}

/// Time until the router closes a connection whose head never ends; `None` if it does not within a minute.
async fn silent(address: &str, drips: bool) -> Option<Duration> {
    let started = Instant::now();
    let mut connection = match TcpStream::connect(address).await {
        Ok(connection) => connection,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            return Some(started.elapsed());
        }
        // Ours to mend: no descriptor left here.
        Err(_) => return None,
    };
    let mut buffer = [0; 512];
    let head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n";
    if drips && connection.write_all(&head[..10]).await.is_err() {
        return Some(started.elapsed());
    }
    let mut at = 10;
    while started.elapsed() < PATIENCE {
        match tokio::time::timeout(Duration::from_secs(2), connection.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => return Some(started.elapsed()),
            // A refusal is on its way; the end follows.
            Ok(Ok(_)) => {}
            Err(_) if drips && at < head.len() => {
                if connection.write_all(&head[at..=at]).await.is_err() {
                    return Some(started.elapsed());
                }
                at += 1;
            }
            Err(_) => {}
        }
    }
    None
}
