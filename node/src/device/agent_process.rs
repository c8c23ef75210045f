//! The process of a device: its link to the mesh and its agent, until it is stopped.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use shoal_cluster::identity::Identity;
use shoal_cluster::{DeviceLink, DeviceSettings, RouterAddr};
use tokio_util::sync::CancellationToken;

use super::agent::{self, Agent};
use super::mesh::work_of;
use super::power::watch_power;
use super::set::EngineSet;
use crate::store::Store;
use crate::tasks::{self, TaskKind};

/// A device only dials out, so any port will do.
pub const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
/// Links to distinct routers: one may die without the device being lost.
pub const LINKS: usize = 2;
/// Wait for the goodbye to reach the routers after the last answer.
const GOODBYE: Duration = Duration::from_millis(200);

/// Runs a device until shutdown; returns when running answers ended.
pub async fn run(
    name: &str,
    identity: Identity,
    settings: DeviceSettings,
    engines: EngineSet,
    store: Store,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let generation = store.next_generation()?;
    let identity = Arc::new(identity);
    let me = identity.node_id().to_string();
    let (link, handle, inbound) = DeviceLink::bind(settings, identity)?;
    // The link outlives the agent: running answers still travel over it.
    let stop_link = CancellationToken::new();
    let link_task = tasks::spawn(TaskKind::Cluster, link.run(stop_link.clone()));
    let (work, pump) = work_of(inbound);
    let forward = tasks::spawn(TaskKind::Inbound, pump);
    let settings = agent::Settings {
        id: me,
        name: name.to_owned(),
        version: env!("CARGO_PKG_VERSION").into(),
        generation,
        max_slots: None,
        drain: agent::DRAIN,
    };
    let remember = move |routers: &[RouterAddr]| {
        let texts: Vec<String> = routers.iter().map(ToString::to_string).collect();
        let store = store.clone();
        // One small write, seldom: a task of its own would outlive what it serves.
        if let Err(error) = store.remember_routers(&texts) {
            tracing::warn!(%error, "the routers' addresses could not be stored");
        }
    };
    let power = watch_power(shutdown.clone());
    let agent = Agent::new(settings, engines.engines().to_vec(), power, handle);
    agent.run(work, remember, shutdown).await;
    tokio::time::sleep(GOODBYE).await;
    stop_link.cancel();
    forward.abort();
    link_task.await??;
    Ok(())
}
