//! The one place that spawns tasks in this package, so that each has a name.

use std::future::Future;

use tokio::task::JoinHandle;
use tracing::Instrument;

/// Spawns a task inside a span that carries its name. The caller keeps the handle and ends the task.
#[allow(clippy::disallowed_methods)] // the one wrapper that the lint points to
pub fn spawn_named<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future.instrument(tracing::info_span!("task", name)))
}
