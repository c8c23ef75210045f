//! Faults that come and go, drawn by seed. Each is undone before the next, so that something always serves; routers
//! stay up, since what they hold is the question.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use anyhow::Result;
use rand::{RngExt, rngs::StdRng};
use rustix::process::Signal;

use super::super::super::{mesh::Mesh, proxy::Rule};

/// Length of one fault, and of the pause after it, milliseconds.
const FAULT_MS: std::ops::Range<u64> = 800..6_000;
const PAUSE_MS: std::ops::Range<u64> = 300..2_000;

/// Kinds of faults, in no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    KilledDevice,
    FrozenDevice,
    DeviceWithoutNetwork,
    PartedRouters,
    BadNetwork,
    EngineThatRefuses,
    EngineThatBreaks,
    ProviderThatRefuses,
}

const KINDS: [Kind; 8] = [
    Kind::KilledDevice,
    Kind::FrozenDevice,
    Kind::DeviceWithoutNetwork,
    Kind::PartedRouters,
    Kind::BadNetwork,
    Kind::EngineThatRefuses,
    Kind::EngineThatBreaks,
    Kind::ProviderThatRefuses,
];

/// How often each was played.
#[derive(Debug, Default)]
pub(super) struct Played(BTreeMap<Kind, usize>);

impl fmt::Display for Played {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts: Vec<String> = self.0.iter().map(|(kind, count)| format!("{count} x {kind:?}")).collect();
        f.write_str(&counts.join(", "))
    }
}

/// Plays one fault after the other until the time has come; all are undone at the end.
pub(super) async fn play(
    mesh: &mut Mesh,
    rng: &mut StdRng,
    until: Instant,
    played: &mut Played,
) -> Result<()> {
    while Instant::now() < until {
        let kind = KINDS[rng.random_range(0..KINDS.len())];
        let at = rng.random_range(0..mesh.devices.len());
        let left = until.saturating_duration_since(Instant::now());
        let length = Duration::from_millis(rng.random_range(FAULT_MS)).min(left);
        let pause = Duration::from_millis(rng.random_range(PAUSE_MS)).min(left.saturating_sub(length));
        begin(mesh, kind, at)?;
        tokio::time::sleep(length).await;
        end(mesh, kind, at)?;
        *played.0.entry(kind).or_default() += 1;
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

fn begin(mesh: &mut Mesh, kind: Kind, at: usize) -> Result<()> {
    let blocked = Rule { blocked: true, ..Rule::default() };
    let routers: Vec<String> = mesh.nodes.iter().map(|node| node.name.clone()).collect();
    let routers: Vec<&str> = routers.iter().map(String::as_str).collect();
    match kind {
        Kind::KilledDevice => mesh.devices[at].kill(),
        Kind::FrozenDevice => mesh.devices[at].signal(Signal::STOP)?,
        Kind::DeviceWithoutNetwork => {
            let name = mesh.devices[at].name.clone();
            mesh.links.between(&[&name], &routers, blocked);
        }
        Kind::PartedRouters => {
            let (one, others) = (routers[at % routers.len()], &routers);
            mesh.links.between(&[one], others, blocked);
        }
        Kind::BadNetwork => {
            let rule = Rule {
                drop: 0.05,
                delay: Duration::from_millis(40),
                jitter: Duration::from_millis(20),
                reorder: 0.05,
                ..Rule::default()
            };
            let names: Vec<String> = mesh.devices.iter().map(|device| device.name.clone()).collect();
            let everybody: Vec<&str> =
                names.iter().map(String::as_str).chain(routers.iter().copied()).collect();
            mesh.links.between(&everybody, &routers, rule);
        }
        Kind::EngineThatRefuses => mesh.devices[at].stub.refuse(Some(503)),
        Kind::EngineThatBreaks => mesh.devices[at].engine.reset_all(),
        Kind::ProviderThatRefuses => mesh.cloud.refuse(Some(if at.is_multiple_of(2) { 429 } else { 500 })),
    }
    Ok(())
}

fn end(mesh: &mut Mesh, kind: Kind, at: usize) -> Result<()> {
    match kind {
        Kind::KilledDevice => mesh.resume_device(at)?,
        Kind::FrozenDevice => mesh.devices[at].signal(Signal::CONT)?,
        Kind::DeviceWithoutNetwork | Kind::PartedRouters | Kind::BadNetwork => mesh.links.heal(),
        Kind::EngineThatRefuses => mesh.devices[at].stub.refuse(None),
        Kind::EngineThatBreaks => mesh.devices[at].engine.reset_all(),
        Kind::ProviderThatRefuses => mesh.cloud.refuse(None),
    }
    Ok(())
}
