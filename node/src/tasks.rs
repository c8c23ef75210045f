//! The one place that spawns tasks: each has a kind, a span and an end.
//!
//! Long-lived tasks stop on the shutdown token that they were given and are awaited at drain; the others end
//! with the request they serve.

use std::fmt;
use std::future::Future;

use tokio::task::JoinHandle;
use tracing::Instrument;

/// What a task is for; its name in logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskKind {
    /// Owns gossip, links and the mesh endpoint. On error: the node serves its own devices and says so.
    Cluster,
    /// Serves HTTP on the API address. On error: the process ends.
    Api,
    /// Serves the admin socket in the data directory. On error: client commands need `SHOAL_URL`.
    AdminSocket,
    /// Takes what peers and devices send over the mesh.
    Inbound,
    /// Serves one inference that came over the mesh; ends with it.
    InboundInfer,
    /// Merges devices and the cluster view into registry snapshots.
    Inventory,
    /// Owns statistics: outcomes in, posterior snapshots out.
    Feedback,
    /// Fetches what other routers learnt. On error: what is known stays, and the router is asked again later.
    Statistics,
    /// Looks at answers: signs, retries. On error: nothing is learnt from them.
    Witness,
    /// Asks a model for grades.
    Evaluator,
    /// Lets other models answer, too.
    Shadow,
    /// Writes history rows in batches. On error: rows are dropped and counted.
    Store,
    /// Probes an engine and keeps its model list fresh.
    EngineProbe,
    /// Watches battery and heat of this machine. On error: it counts as one on mains.
    Power,
    /// Runs one device's agent.
    Agent,
    /// Relays a stream for a client; ends with it.
    Relay,
    /// Runs a request with an `Idempotency-Key`, and keeps its answer for a while.
    Replay,
    /// Forwards signals of the operating system.
    Signals,
    /// Renews the certificate of the API. On error: the old one is shown, with a warning.
    Certificate,
    /// Exchanges API-key records with other routers.
    Keys,
}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Spawns a task inside a span that names its kind.
#[allow(clippy::disallowed_methods)] // the one wrapper that the lint points to
pub fn spawn<F>(kind: TaskKind, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future.instrument(tracing::debug_span!("task", %kind)))
}
