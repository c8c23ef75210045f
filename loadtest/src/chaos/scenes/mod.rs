//! The scenes: one fault each, with the figures that it must reach.

mod burn;
mod canary;
mod clients;
mod clock;
mod devices;
mod disk;
mod namespaces;
mod network;
mod routers;
mod soak;
mod stalled;
mod upstreams;
mod versions;

use std::time::Duration;

use anyhow::{Result, bail};

use super::{Context, Samples, matrix, mesh::Mesh, row::Row};

/// One fault of the list.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) number: u8,
    pub(super) name: &'static str,
    pub(super) fault: &'static str,
    /// Builds a mesh of its own shape.
    pub(super) alone: bool,
    /// Played in the long set, or when it is named.
    pub(super) long: bool,
    /// Longest time, where it is not that of the set.
    pub(super) cap: Option<fn(&Context) -> Duration>,
}

impl Scene {
    pub(super) fn is_named(&self, text: &str) -> bool {
        self.name == text || self.number.to_string() == text
    }
}

const fn scene(number: u8, name: &'static str, fault: &'static str) -> Scene {
    Scene { number, name, fault, alone: false, long: false, cap: None }
}

const fn alone(number: u8, name: &'static str, fault: &'static str) -> Scene {
    Scene { number, name, fault, alone: true, long: false, cap: None }
}

/// Every scene, in the order of play: those that harm least first.
pub(super) const SCENES: &[Scene] = &[
    scene(1, "kill_router", "a router is killed under load"),
    scene(2, "rolling_restart", "all routers are stopped and started, one after the other"),
    scene(3, "kill_device_early", "a device is killed before the first token"),
    scene(4, "kill_device_late", "a device is killed in the middle of its answers"),
    scene(5, "freeze_device", "a device is stopped (SIGSTOP) and goes on later"),
    scene(6, "partition", "one router is cut off from two, then one way only"),
    scene(7, "bad_network", "loss, delay, jitter and reordering on every link"),
    scene(8, "slow_device", "a device becomes ten times slower"),
    scene(9, "busy_processor", "other programs take the processor"),
    scene(10, "corrupt_frames", "bits flip on every link, and strangers' datagrams come"),
    scene(14, "slow_clients", "clients that send nothing, or a byte now and then"),
    scene(17, "outage", "every engine refuses"),
    scene(18, "disconnects", "clients go away in every phase"),
    scene(19, "overload", "three times what the engines can do"),
    scene(21, "flapping_phone", "a device's network comes and goes, and its address changes"),
    scene(20, "canary", "what must not leave, under all of the above"),
    alone(16, "matrix", "upstreams that misbehave in every way, in every phase"),
    alone(12, "disk_full", "the disk of a router is full"),
    alone(13, "wrong_clock", "clocks an hour off, jumping, and going backwards over a restart"),
    alone(23, "mixed_versions", "this version and the one before in one mesh"),
    alone(25, "namespaces", "a partition, a translation and an address that change, in network namespaces"),
    alone(26, "stalled_readers", "clients that read nothing, of streams over devices and other routers"),
    Scene {
        long: true,
        cap: Some(|context| soak::cap(soak::minutes(context))),
        ..alone(22, "soak", "mixed traffic and faults for half an hour")
    },
];

/// Plays a scene on the common mesh.
pub(super) async fn play(
    scene: &Scene,
    context: &Context,
    mesh: &mut Mesh,
    row: &mut Row,
) -> Result<Samples> {
    match scene.name {
        "kill_router" => Box::pin(routers::kill(context, mesh, row)).await,
        "rolling_restart" => Box::pin(routers::rolling_restart(context, mesh, row)).await,
        "kill_device_early" => Box::pin(devices::kill_early(context, mesh, row)).await,
        "kill_device_late" => Box::pin(devices::kill_late(context, mesh, row)).await,
        "freeze_device" => Box::pin(devices::freeze(context, mesh, row)).await,
        "partition" => Box::pin(network::partition(context, mesh, row)).await,
        "bad_network" => Box::pin(network::bad(context, mesh, row)).await,
        "slow_device" => Box::pin(devices::slow(context, mesh, row)).await,
        "busy_processor" => Box::pin(burn::busy(context, mesh, row)).await,
        "corrupt_frames" => Box::pin(network::corrupt(context, mesh, row)).await,
        "slow_clients" => Box::pin(clients::slow(context, mesh, row)).await,
        "outage" => Box::pin(upstreams::outage(context, mesh, row)).await,
        "disconnects" => Box::pin(clients::disconnects(context, mesh, row)).await,
        "overload" => Box::pin(upstreams::overload(context, mesh, row)).await,
        "flapping_phone" => Box::pin(devices::flapping(context, mesh, row)).await,
        "canary" => Box::pin(canary::search(context, mesh, row)).await,
        other => bail!("the scene {other} is not played on the common mesh"),
    }
}

/// Plays a scene that builds what it needs.
pub(super) async fn play_alone(scene: &Scene, context: &Context, row: &mut Row) -> Result<()> {
    match scene.name {
        "matrix" => Box::pin(matrix::play(context, row)).await,
        "disk_full" => Box::pin(disk::full(context, row)).await,
        "wrong_clock" => Box::pin(clock::wrong(context, row)).await,
        "namespaces" => Box::pin(namespaces::play(context, row)).await,
        "stalled_readers" => Box::pin(stalled::readers(context, row)).await,
        "mixed_versions" => Box::pin(versions::mixed(context, row)).await,
        "soak" => Box::pin(soak::play(context, row)).await,
        other => bail!("the scene {other} has no mesh of its own"),
    }
}
