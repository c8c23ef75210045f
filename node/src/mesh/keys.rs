//! API keys kept equal on all routers: pushed when one changes, and to every router that comes (back).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use shoal_cluster::Handle;
use shoal_cluster::ids::NodeId;
use shoal_proto::KeyRecords;
use tokio_util::sync::CancellationToken;

use crate::replication;
use crate::store::KeyRing;

/// Wait for one router to take the records.
const PUSH_WAIT: Duration = Duration::from_secs(5);
/// Pause before a push that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// Pushes all records to every router that becomes alive, until shutdown.
pub async fn keep_keys_equal(mesh: Handle, keys: Arc<KeyRing>, shutdown: CancellationToken) {
    let mut view = mesh.view();
    let mut reached: BTreeSet<NodeId> = BTreeSet::new();
    loop {
        let alive: BTreeSet<NodeId> = view.borrow_and_update().alive().map(|m| m.id.clone()).collect();
        reached.retain(|id| alive.contains(id));
        let mut failed = false;
        for id in alive.iter().filter(|id| *id != mesh.node_id()) {
            if !reached.contains(id) {
                match push_to(&mesh, id, &keys).await {
                    Ok(()) => {
                        reached.insert(id.clone());
                    }
                    Err(error) => {
                        tracing::debug!(node = %id.short(), %error, "keys could not be pushed");
                        failed = true;
                    }
                }
            }
        }
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY_PAUSE), if failed => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Pushes all records to every live router now, after a key was made or revoked here.
pub async fn push_keys(mesh: Handle, keys: Arc<KeyRing>) {
    let alive: Vec<NodeId> = mesh.view().borrow().alive().map(|m| m.id.clone()).collect();
    for id in alive.iter().filter(|id| *id != mesh.node_id()) {
        if let Err(error) = push_to(&mesh, id, &keys).await {
            tracing::warn!(node = %id.short(), %error, "a router does not have the changed key yet; it gets it when it is back");
        }
    }
}

async fn push_to(mesh: &Handle, id: &NodeId, keys: &KeyRing) -> anyhow::Result<()> {
    let records = keys.list().into_iter().map(replication::key_to_proto).collect();
    let mut client = mesh.control(id).await?;
    let mut request = tonic::Request::new(KeyRecords { keys: records });
    request.set_timeout(PUSH_WAIT);
    tokio::time::timeout(PUSH_WAIT, client.push_keys(request)).await??;
    Ok(())
}
